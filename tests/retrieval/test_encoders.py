"""Encoders and tokenizers by name, as objects and as functions."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import tiny
from secateur._utils import tokenizers
from secateur.errors import InputError, MissingExtraError, ModelError
from secateur.retrieval import encoders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder") / "bert"
    tiny.folder("bert", place, sentence=True)
    return place


def test_an_encoder_by_name_as_a_model_and_as_a_function(folder):
    embed = encoders.encoder(str(folder))
    texts = tiny.sentences(5)
    found = embed(texts)
    assert found.dtype == np.float32
    assert found.shape[0] == 5
    assert np.array_equal(embed([texts[3]])[0].round(5), found[3].round(5))
    assert embed([]).shape[0] == 0
    again = encoders.encoder(str(folder))
    assert again.args[0] is embed.args[0]  # opened once
    assert np.array_equal(encoders.encoder(embed.args[0])(texts), found)
    assert encoders.encoder(len) is len


def test_no_compiled_code_is_fetched_for_the_layers_of_an_encoder(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(PreTrainedModel, "set_use_kernels", lambda self, use, *given: asked.append(use))
    encoders._open_checkpoint.__wrapped__(str(folder), "cpu", "")
    assert asked == [False]


def test_an_encoder_is_held_where_it_is_wanted(folder, monkeypatch):
    def device(embed):
        return next(embed.args[0].parameters()).device.type

    with monkeypatch.context() as here:
        here.setattr("secateur._utils.modes.check_device", lambda _: None)  # meta stands for a second device
        assert device(encoders.encoder(str(folder), "meta")) == "meta"
    assert device(encoders.encoder(str(folder))) == "cpu"
    assert encoders.encoder(str(folder), "meta").args[0] is encoders.encoder(str(folder), "meta").args[0]
    with pytest.raises(InputError, match="device 'moon' can't hold the model"):
        encoders.open_remembering(str(folder), device="moon")


@dataclass
class Splitter:
    """A tokenizer of one's own, which compares by its fields and so has no hash."""

    sign: str

    def tokenize(self, text):
        return text.split(self.sign)

    def __call__(self, texts, **options):
        return {"input_ids": [list(filter(None, self.tokenize(text))) for text in texts]}


def test_a_counter_counts_what_a_text_adds(folder):
    count = encoders.counter(str(folder))
    first, second, *_ = tiny.sentences(3)
    assert count([first, second, ""]) == [len(first.split()), len(second.split()), 0]
    assert count([]) == []
    assert encoders.counter(tiny.letters())(["abc", "é"]) == [3, 2]
    assert encoders.counter(Splitter(" "))(["a b", "", "a b"]) == [2, 0, 2]


def test_a_counter_counts_a_text_once_and_keeps_no_more_than_it_may(folder, monkeypatch):
    read = []

    class Reader(type(encoders.tokenizer(str(folder)))):
        def __call__(self, texts, **options):
            read.extend(texts)
            return super().__call__(texts, **options)

    reader = Reader.from_pretrained(str(folder))
    count = encoders.counter(reader)
    first, second, third, *_ = tiny.sentences(4)
    expected = [len(text.split()) for text in (first, second, first)]
    assert count([first, second, first]) == expected
    assert encoders.counter(reader)([first, second, first]) == expected
    assert read == [first, second]
    monkeypatch.setattr(encoders, "_COUNTED", 2)
    assert count([third, first]) == [len(third.split()), expected[0]]
    assert count([second]) == expected[1:2]
    assert read == [first, second, third, second]  # the third was too much, and all was forgotten


def test_what_is_no_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="embedder 'no/such/encoder' is no folder here, nor found on the Hub"):
        encoders.encoder("no/such/encoder")
    with pytest.raises(InputError, match="is a folder without one"):
        encoders.tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text("{bad")
    with pytest.raises(ModelError, match=f"tokenizer '{tmp_path}' can't be opened .*fetch the model again"):
        encoders.tokenizer(str(tmp_path))
    with pytest.raises(InputError, match="not int"):
        encoders.encoder(3)


# ------------------------------------------------------------------------------------------------ prompts and batches


class Asymmetric:
    """A model that reads questions otherwise than passages; it tells what it read."""

    prompts: ClassVar = {"query": "ask: ", "document": "read: ", "sts": "alike: "}

    def __init__(self):
        self.batches = []

    def encode(self, sentences, prompt="", **options):
        self.batches.append([prompt + text for text in sentences])
        return np.array([[len(prompt + text), 1.0] for text in sentences])


def test_questions_and_passages_have_the_prompts_of_the_model():
    for opens in (encoders.encoder, encoders.open_remembering):
        model = Asymmetric()
        asked, read = encoders.encode_pair(opens(model), ["why", "same"], ["because", "same"])
        assert (asked[:, 0].tolist(), read[:, 0].tolist()) == ([8.0, 9.0], [13.0, 10.0])
        texts = {text for batch in model.batches for text in batch} - {f"read: {encoders._PROBE}"}
        assert texts == {"ask: why", "ask: same", "read: because", "read: same"}
    plain = encoders.encoder(len)
    assert encoders.for_questions(plain) is plain


def test_another_prompt_for_questions_is_another_vector_on_the_disk(tmp_path, monkeypatch):
    """The probe is read as a passage: a change of the prompt for questions was not seen, and old vectors came back."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))

    def ask(prompt):
        model = Asymmetric()
        model.prompts = {"query": prompt, "document": "read: "}
        monkeypatch.setattr(encoders, "_open_checkpoint", lambda *_: model)
        asked, read = encoders.encode_pair(encoders.open_remembering("some/encoder"), ["why"], ["because"])
        return asked[0, 0], read[0, 0], sum(map(len, model.batches))

    assert ask("ask: ") == (8.0, 13.0, 3)
    assert ask("ask: ") == (8.0, 13.0, 1)  # the probe alone
    assert ask("find: ") == (9.0, 13.0, 2)


def test_vectors_of_each_precision_are_its_own_in_memory_and_on_the_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    texts = tiny.sentences(4)

    def read(**how):
        return encoders.open_remembering(str(folder), **how)(texts)

    found = {precision: read(precision=precision) for precision in ("float32", "bfloat16")}
    assert np.array_equal(read(), found["float32"])
    assert found["bfloat16"].dtype == np.float32
    assert not np.array_equal(found["bfloat16"], found["float32"])
    assert np.sum(found["bfloat16"] * found["float32"], axis=1) == pytest.approx(1.0, abs=0.02)
    monkeypatch.setattr(encoders, "_REMEMBERED", {})  # as in another process
    for precision, vectors in found.items():
        model, seen = encoders.encoder(str(folder), precision=precision).args[0], []
        assert next(model.parameters()).dtype == getattr(torch, precision)
        encode = model.encode
        monkeypatch.setattr(
            model, "encode", lambda given, encode=encode, seen=seen, **o: seen.extend(given) or encode(given, **o)
        )
        assert np.array_equal(read(precision=precision), vectors)
        assert seen == [encoders._PROBE]


@pytest.mark.parametrize(
    ("source", "precision", "message"),
    [
        (len, "bfloat16", "precision=bfloat16: the embedder builtin_function_or_method has its own: leave precision"),
        ("http://localhost:1", "float32", "precision=float32: the embedder http://localhost:1 has its own"),
        ("some/encoder", "fp8", r"precision 'fp8' of an embedder is not known: give float32 or bfloat16, or for int8"),
        ("", "bfloat16", r"precision=bfloat16: there is no embedder that computes: give one \(--embedder\)"),
    ],
)
def test_a_precision_that_can_not_be_had_is_refused(source, precision, message):
    with pytest.raises(InputError, match=message):
        encoders.Encoding(source, precision=precision).open_embedder()


class OfLangChain:
    """LangChain's interface: questions get a longer vector where `wide`."""

    wide = False

    def embed_query(self, text):
        return [float(len(text)), 2.0] + [0.0] * self.wide

    def embed_documents(self, texts):
        return [[float(len(text)), 1.0] for text in texts]


class OfLlamaIndex:
    """LlamaIndex's interface."""

    def get_query_embedding(self, query):
        return [float(len(query)), 2.0]

    def get_text_embedding_batch(self, texts, show_progress=False):
        return [[float(len(text)), 1.0] for text in texts]


@pytest.mark.parametrize("kind", [OfLangChain, OfLlamaIndex])
def test_embeddings_of_pipelines_are_encoders(kind):
    for opens in (encoders.encoder, encoders.open_remembering):
        asked, read = encoders.encode_pair(opens(kind()), ["why", "same"], ["because", "same"])
        assert (asked.tolist(), read.tolist()) == ([[3.0, 2.0], [4.0, 2.0]], [[7.0, 1.0], [4.0, 1.0]])
        assert opens(kind())([]).shape[0] == 0


def test_embeddings_of_two_lengths_and_of_none_are_refused_in_one_line():
    wide = OfLangChain()
    wide.wide = True
    with pytest.raises(InputError, match="gives vectors of 3 numbers, and gave some of 2: give one model for all"):
        encoders.encode_pair(encoders.open_remembering(wide), ["why"], ["because"])
    for wrong in ([], [[1.0], [1.0, 2.0]], None, [["a", "b"], ["c", "d"]], [[], []]):
        model = OfLangChain()
        model.embed_documents = lambda texts, wrong=wrong: wrong
        with pytest.raises(InputError, match="OfLangChain, gives no vector of one length for each of 2 texts"):
            encoders.encoder(model)(["a", "b"])


def test_tokens_are_counted_by_openais_names(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    letters = {bytes([i]): i for i in range(256)}
    made = tiktoken.Encoding("o200k_base", pat_str=r"\S+|\s+", mergeable_ranks=letters, special_tokens={"<|end|>": 256})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "o200k_base", made)
    tokenizers.open_tiktoken.cache_clear()
    for source in ("o200k_base", "gpt-4o", "gpt-4o-2024-08-06", made):
        assert encoders.counter(source)(["abc", "", "é <|end|>", "\ud800"]) == [3, 0, 10, 3]
    assert encoders.counter(made)([" " * 2_000_000, "a"]) == [2_000_000, 1]  # its stack overflowed
    assert encoders.counter(made)([]) == []


def test_a_vocabulary_that_can_not_be_had_is_one_line(monkeypatch, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")

    def fail(*_):
        raise ConnectionError("no way out\nat all")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    tokenizers.open_tiktoken.cache_clear()
    with pytest.raises(InputError, match="'gpt-4o': tiktoken downloads the vocabulary o200k_base once, and could not"):
        encoders.counter("gpt-4o")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MissingExtraError, match=r"'o200k_base' is OpenAI's.*secateur\[tiktoken\]"):
        encoders.counter("o200k_base")
    assert tokenizers.open_tiktoken("gpt2") is tokenizers.open_tiktoken("Qwen/Qwen3") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-4o").mkdir()
    assert tokenizers.open_tiktoken("gpt-4o") is None  # a folder of that name


def test_a_batch_has_texts_of_about_one_length():
    """In one batch 994 tokens became 5,404: each text was as long as the longest."""
    model, rng = Asymmetric(), np.random.default_rng(0)
    model.prompts, model.count_tokens = {}, lambda texts: [len(text.split()) for text in texts]
    many = [200, 150, *rng.integers(1, 40, 30)]
    texts = [" ".join(["w"] * count) for count in many]
    found = encoders.encoder(model)(texts)
    assert found[:, 0].tolist() == [len(text) for text in texts]  # in their order
    padded = sum(len(batch) * max(len(text.split()) for text in batch) for batch in model.batches)
    assert sum(many) <= padded < 1.3 * sum(many) < 0.3 * len(many) * max(many)
    assert len(model.batches) < 12


def test_threads_that_share_a_model_do_not_share_its_settings(folder, monkeypatch):
    """One thread counted, with a tokenizer that neither cuts nor pads, where another was about to read."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 8
    embed, kind = encoders.encoder(model), type(model.tokenizer)
    change = kind.set_truncation_and_padding

    def change_slowly(*given, **options):
        change(*given, **options)
        time.sleep(0.001)  # another thread's turn

    monkeypatch.setattr(kind, "set_truncation_and_padding", change_slowly)
    text = " ".join(tiny.sentences(4))
    alone = embed([text, text])
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(embed, [[text] * (1 + number % 3) for number in range(64)]):
            assert np.allclose(found, alone[0], atol=1e-5)


def test_vectors_of_another_dimension_are_refused_in_one_line():
    width = [2]
    remembered = encoders.open_remembering(lambda texts: np.ones((len(texts), width[0]), np.float32))
    remembered(["a"])
    width[0] = 3
    with pytest.raises(InputError, match="the embedder gives vectors of 3 numbers, and gave some of 2"):
        remembered(["b"])


# ------------------------------------------------------------------------------------------------ what is remembered


class Counting:
    """An encoder that tells what it read."""

    def __init__(self):
        self.seen, self.sign = [], 1.0

    def __call__(self, texts):
        self.seen += texts
        return self.sign * np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32).reshape(-1, 2)


def test_a_text_is_read_once_by_all_callers_of_an_encoder():
    embed = Counting()
    first = encoders.open_remembering(embed)(["abc", "aa", "abc"])
    assert first.tolist() == [[3, 1], [2, 2], [3, 1]]
    assert encoders.open_remembering(embed)(["aa", "b"]).tolist() == [[2, 2], [1, 0]]
    assert [text for text in embed.seen if len(text) < 5] == ["abc", "aa", "b"]
    other = Counting()
    encoders.open_remembering(other)(["aa"])
    assert "aa" in other.seen
    assert encoders.open_remembering(embed)([]).shape == (0, 2)


def test_an_encoder_that_was_changed_is_asked_anew():
    embed = Counting()
    encoders.open_remembering(embed)(["aa"])
    embed.sign = -1.0
    assert encoders.open_remembering(embed)(["aa"]).tolist() == [[-2, -2]]


def test_what_is_remembered_is_bounded_and_goes_with_its_encoder():
    embed = Counting()
    remembered = encoders.open_remembering(embed, most=80)
    for i in range(50):
        remembered([f"text {i}"])
    (known,) = [kept for owner, kept in encoders._REMEMBERED.items() if owner is embed]
    assert len(known) == 10
    assert "text 49" in known
    before = len(encoders._REMEMBERED)
    del embed, remembered
    assert len(encoders._REMEMBERED) == before - 1


def test_an_encoder_that_nothing_refers_to_weakly_is_remembered_by_its_caller():
    class Bare:
        __slots__ = ("seen",)

        def __init__(self):
            self.seen = []

        def __call__(self, texts):
            self.seen += texts
            return np.ones((len(texts), 2), dtype=np.float32)

    embed = Bare()
    remembered = encoders.open_remembering(embed)
    remembered(["x"])
    remembered(["x"])
    assert embed.seen.count("x") == 1


def test_a_model_by_name_is_remembered_as_the_model(folder):
    one, other = encoders.open_remembering(str(folder)), encoders.open_remembering(str(folder))
    text = tiny.sentences(1)
    assert one.args[1] is other.args[1]
    assert np.array_equal(one(text), encoders.encoder(str(folder))(text))
