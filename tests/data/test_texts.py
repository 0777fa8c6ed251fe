import contextlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.data.shelf import Shelf, Writer
from secateur.data.texts import Corpus
from secateur.errors import DataError, DataWarning, InputError, UnsupportedError


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "[END]", *(f"w{i}" for i in range(200))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]")


def sentences(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in draw.integers(0, 200, draw.integers(2, 20))) for _ in range(count)]


def corpus(count, labels=None):
    return texts.read(sentences(count)) if labels is None else Corpus(sentences(count), labels)


# ----------------------------------------------------------------------------------------------------- reading


def test_text_lines_without_the_blank_ones(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwo ünï\nthree".encode())
    read = texts.read(path)
    assert list(read.texts) == ["one", "two ünï", "three"]
    assert read.name == "a.txt"
    assert read.labels is None
    assert list(texts.read(path, limit=2).texts) == ["one", "two ünï"]


def test_json_lines_with_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": name}) for i, name in enumerate("bab")))
    read = texts.read(path)
    assert list(read.texts) == ["t0", "t1", "t2"]
    assert read.labels == [1, 0, 1]
    assert read.classes == ("a", "b")
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, has no text in 'body': it has text, label"):
        texts.read(path, column="body")


def test_labels_take_the_numbers_of_the_model():
    named = Corpus(["x", "y", "z"], [1, 0, 1], "n", classes=("bad", "good"))
    labelled = named.labelled({"good": 0, "bad": 2, "fair": 1}, 3)
    assert labelled.labels == [0, 2, 0]
    assert labelled.labelled({"good": 0, "bad": 2, "fair": 1}, 3) == labelled
    assert labelled.digest != named.labelled({"good": 2, "bad": 0, "fair": 1}, 3).digest
    assert Corpus(["x"]).labelled({"a": 0}, 1).labels is None
    with pytest.raises(DataError, match="n has the class 'bad', which the model doesn't know: it knows LABEL_0, good"):
        named.labelled({"LABEL_0": 0, "good": 1}, 2)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_of_the_model_is_refused(label):
    with pytest.raises(DataError, match=f"n has the label {label}: the model has 3 classes, 0 to 2"):
        Corpus(["x", "y"], [0, label], "n").labelled({"a": 0, "b": 1, "c": 2}, 3)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x y", "z"], "label": [3, 1], "other": [0, 0]}), path)
    read = texts.read(path)
    assert list(read.texts) == ["x y", "z"]
    assert read.labels == [3, 1]
    with pytest.raises(DataError, match="no column 'body': it has text, label, other"):
        texts.read(path, column="body")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="is not a Parquet file"):
        texts.read(path)


def test_rows_without_a_text_are_told_by_their_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name, row in (("body", {"body": "a"}), ("asked", {"prompt": "a", "answer": "b"}), ("bare", {"x": 1})):
        datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / f"{name}.parquet"))
        (tmp_path / f"{name}.jsonl").write_text("\n" + json.dumps(row))
    for kind in ("parquet", "jsonl"):
        assert texts.wordless(tmp_path / f"body.{kind}", "text")
        assert not texts.wordless(tmp_path / f"body.{kind}", "body")
        assert not texts.wordless(tmp_path / f"asked.{kind}", "text")
        assert texts.wordless(tmp_path / f"bare.{kind}", "text")
        (tmp_path / f"damaged.{kind}").write_bytes(b"\xff")
        assert not texts.wordless(tmp_path / f"damaged.{kind}", "text")
    for name, content in (("list.jsonl", "[1]"), ("empty.jsonl", "\n"), ("texts.txt", "{}")):
        (tmp_path / name).write_text(content)
        assert not texts.wordless(tmp_path / name, "text")


def test_of_a_dict_its_train_split_or_its_rows_are_read():
    datasets = pytest.importorskip("datasets")
    columns = {"text": ["one", "two"], "label": [0, 1]}
    other = {"text": ["three"], "label": [1]}
    table, held = datasets.Dataset.from_dict(columns), datasets.Dataset.from_dict(other)
    streams = {"train": table.to_iterable_dataset(), "test": held.to_iterable_dataset()}
    for splits in (
        datasets.DatasetDict(train=table, test=table, validation=held),
        datasets.IterableDatasetDict(streams),
        {"train": columns, "dev": other},
    ):
        with pytest.warns(DataWarning, match="of the splits train, .* train is read"):
            read = texts.read(texts.take_rows(splits))
        assert (list(read.texts), read.labels) == (["one", "two"], [0, 1])
        with pytest.warns(DataWarning, match="quality is measured on (validation|test|dev)$"):
            found = texts.find_held_out(splits)
        assert list(texts.read(texts.take_rows(found)).texts) == ["three"]
    assert texts.take_rows(columns) == [{"text": "one", "label": 0}, {"text": "two", "label": 1}]
    assert texts.find_held_out({"train": columns}) is None
    for plain in (["one"], "owner/name", None):
        assert texts.take_rows(plain) is plain


def test_a_frame_is_its_rows_whatever_its_columns_are_called():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["one", "two"], "train": [True, False]})
    assert texts.take_rows(frame) == [{"text": "one", "train": True}, {"text": "two", "train": False}]
    none = frame.assign(label=pandas.array([None, 1], dtype="Int64"))
    assert [row["label"] for row in texts.take_rows(none)] == [None, 1]
    with pytest.raises(DataError, match="the frame has several columns 'text': give each a name of its own"):
        texts.take_rows(pandas.DataFrame([["one", "two"]], columns=["text", "text"]))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"text": "one"}, "a dict with 'one' in 'text': give a list there, or a list of dicts"),
        ({"text": ["one"], "label": 1}, "a dict with 1 in 'label'"),
        ({"text": ["one"], "label": [1, 2]}, "of several lengths, text 1, label 2: give one value for each text"),
    ],
)
def test_a_dict_that_holds_no_columns_is_refused(source, words):
    with pytest.raises(DataError, match=words):
        texts.take_rows(source)


def test_splits_without_train_are_refused():
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict(dev=datasets.Dataset.from_dict({"text": ["one"]}))
    with pytest.raises(DataError, match="the splits dev and no train: give one of them"):
        texts.take_rows(splits)


def test_parts_of_a_folder_are_told_apart(tmp_path):
    """The layout of a snapshot of the Hub: what is there to measure on is never learned from."""
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    with pytest.warns(DataWarning, match=r"by their names, train \(2\), validation \(1\), test \(1\): train is read"):
        read = texts.read(tmp_path)
    assert list(read.texts) == ["train-00000-of-00002", "train-00001-of-00002"]
    held = texts.find_held_out(tmp_path)
    with pytest.warns(DataWarning, match="validation is read"):
        assert list(texts.read(held).texts) == ["validation-00000-of-00001"]
    with pytest.warns(DataWarning, match="test is read"):
        named = texts.read(f"{tmp_path}:test")
    assert (list(named.texts), named.name) == (["test-00000-of-00001"], f"{tmp_path.name}:test")
    assert texts.find_held_out(f"{tmp_path}:train") is None


@pytest.mark.filterwarnings("error::secateur.errors.DataWarning")
def test_a_folder_without_parts_and_a_file_are_whole(tmp_path):
    for name in ("a", "latest", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(texts.read(tmp_path).texts) == ["a", "latest", "test"]
    assert list(texts.read(tmp_path / "test.txt").texts) == ["test"]
    for source in (tmp_path, tmp_path / "test.txt", "owner/name", ["one", "two"]):
        assert texts.find_held_out(source) is None
    with pytest.raises(DataError, match=r"test\.txt:test does not exist: give a \.txt"):
        texts.files(tmp_path / "test.txt:test")


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.jsonl").write_text('{"text": "3"}\n')
    (tmp_path / "b.txt").write_text("2\n")
    (tmp_path / "a.txt").write_text("1\n")
    (tmp_path / "notes.md").write_text("no\n")
    assert list(texts.read(tmp_path).texts) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"fine\nbro\xffken", r"a\.txt is not UTF-8 at byte 8"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", r"line 1, has no text in 'text'"),
        ("a.jsonl", b'{"text": null}', r"line 1, has null and no text in 'text': write a text there, or drop the row"),
        ("a.jsonl", b'{"text": 7, "x": 1}', r"line 1, has 7 and no text in 'text'"),
        ("a.csv", b"x", "is of no known kind"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "a \\ud83d b"}', r"line 2, holds \\ud83d, half a surrogate pair"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(DataError, match=r"no/such\.txt does not exist"):
        texts.read("no/such.txt")
    with pytest.raises(DataError, match="does not exist"):
        texts.read(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="does not exist"):
        texts.read("brown")
    with pytest.raises(DataError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        texts.read(tmp_path)
    with pytest.raises(DataError, match="holds no text"):
        texts.read([])
    with pytest.raises(DataError, match=r"text 2 of the list holds \\udc00"):
        texts.read(["fine", "\udc00"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hub:owner/name", (("owner/name", None), "train")),
        ("owner/name", (("owner/name", None), "train")),
        ("hub:owner/name:config:test", (("owner/name", "config"), "test")),
        ("hub:owner/name::test", (("owner/name", None), "test")),
    ],
)
def test_data_sets_of_the_hub_are_streamed(monkeypatch, name, asked):
    datasets = pytest.importorskip("datasets")
    calls, taken = [], []

    def load_dataset(*names, split, streaming):
        calls.append((names, split))
        assert streaming is True
        for number in itertools.count():
            taken.append(number)
            yield {"text": f"text {number}", "label": number % 2}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = texts.read(name, limit=3)
    assert calls == [asked]
    assert list(read.texts) == ["text 0", "text 1", "text 2"]
    assert read.labels == [0, 1, 0]
    assert len(taken) <= 4  # endless, and only what was asked for was fetched
    monkeypatch.setattr(texts, "_HUB_LIMIT", 5)
    assert len(texts.read(name)) == 5
    with pytest.raises(DataError, match="data set owner/name has no text in 'body': it has text, label"):
        texts.read(name, column="body")


def test_a_data_set_that_the_hub_does_not_give_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        texts.read("hub:owner/name")
    assert str(caught.value) == "data set 'owner/name' could not be read: no route"


def test_the_digest_tells_contents_apart():
    digests = {texts.read(values).digest for values in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"])}
    assert len(digests) == 4
    assert texts.read(["ab", "c"]).digest == texts.read(["ab", "c"]).digest


def test_split_is_a_partition_that_repeats():
    whole = Corpus([str(i) for i in range(1000)], list(range(1000)), "n")
    train, held = whole.split(held_out=0.1, seed=3)
    assert len(held) == 100
    assert sorted(map(int, [*train.texts, *held.texts])) == list(range(1000))
    assert [int(text) for text in held.texts] == held.labels == sorted(held.labels)
    assert whole.split(held_out=0.1, seed=3)[1].digest == held.digest != whole.split(held_out=0.1, seed=4)[1].digest
    assert [len(part) for part in Corpus(["a", "b"]).split()] == [1, 1]
    with pytest.raises(DataError, match="at least 2"):
        Corpus(["a"]).split()


# ----------------------------------------------------------------------------------------------------- batches


def test_packed_blocks_hold_every_token_once_per_epoch(tokenizer):
    data = corpus(300)
    made = texts.batches(data, tokenizer, packed=True, batch=4, length=16)
    stream = [token for text in data.texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = {tuple(stream[i : i + 16]) for i in range(0, len(stream) - 15, 16)}
    seen = [tuple(row.tolist()) for batch in made for row in batch["input_ids"]]
    assert len(seen) == len(made) * 4 == len(blocks) // 4 * 4
    assert len(set(seen)) == len(seen)
    assert set(seen) <= blocks
    assert all(batch["attention_mask"].all() for batch in made)
    assert made[0]["input_ids"].dtype == torch.int64


def test_padded_batches_hold_every_text_once_with_its_label(tokenizer):
    data = corpus(100, labels=list(range(100)))
    made = texts.batches(data, tokenizer, packed=False, batch=5, length=12)
    seen = []
    for batch in made:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            expected = tokenizer(data.texts[int(label)], truncation=True, max_length=12)["input_ids"]
            assert ids[mask.bool()].tolist() == expected
            assert (ids[~mask.bool()] == tokenizer.pad_token_id).all()
            seen.append(int(label))
        assert batch["attention_mask"].any(0).all()  # padded to the longest of the batch, no further
    assert sorted(seen) == list(range(100))


def test_what_is_held_out_is_never_learned_and_keeps_its_labels(tokenizer):
    data = corpus(50, labels=list(range(50)))
    made = texts.batches(data, tokenizer, packed=False, batch=4, length=12, seed=3)
    learned, judged = made.hold_out(0.2)
    rows = [{int(label) for i in range(3 * len(some)) for label in some[i]["labels"]} for some in (learned, judged)]
    assert not rows[0] & rows[1]
    assert sorted([*learned.members, *judged.members]) == list(range(50))
    assert len(judged.members) == 10
    for index in range(2 * len(learned)):
        assert learned.rows(index).tolist() == learned[index]["labels"].tolist(), "rows are those of all texts"
    again = texts.batches(data, tokenizer, packed=False, batch=4, length=12, seed=3).hold_out(0.2)[0]
    assert torch.equal(again[7]["input_ids"], learned[7]["input_ids"])
    with pytest.raises(DataError, match="leave less than a batch of 4"):
        made.hold_out(0.95)


@pytest.mark.parametrize("packed", [False, True])
def test_as_many_sequences_as_asked_no_one_twice_the_last_batch_smaller(tokenizer, packed):
    made = texts.batches(texts.read(sentences(43)), tokenizer, packed=packed, batch=8, length=10, seed=3)
    total = len(made.members)
    for count in (1, 8, 21, total, 10_000):
        found = made.sequences(count)
        sizes = [len(batch["input_ids"]) for batch in found]
        assert sum(sizes) == min(count, total)
        assert all(size == 8 for size in sizes[:-1])
        rows = [
            tuple(row[mask.bool()].tolist())
            for b in found
            for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]
        assert len(set(rows)) == len(rows)
        again = made.sequences(count)
        assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(found, again, strict=True))
    assert torch.equal(made.sequences(16)[1]["input_ids"], made[1]["input_ids"])


def test_blocks_are_held_out_whole(tokenizer):
    made = texts.batches(corpus(300), tokenizer, packed=True, batch=4, length=16)
    learned, judged = made.hold_out(0.1)
    ours, theirs = ({tuple(row.tolist()) for batch in some for row in batch["input_ids"]} for some in (learned, judged))
    assert ours
    assert theirs
    assert not ours & theirs
    assert len(learned) < len(made)


def test_bucketing_saves_padding(tokenizer):
    made = texts.batches(corpus(2000), tokenizer, packed=False, batch=16, length=64)
    share = [float(batch["attention_mask"].float().mean()) for batch in made]
    assert np.mean(share) > 0.93  # in random batches of these texts it is 0.57


@pytest.mark.parametrize("packed", [True, False])
def test_any_batch_is_a_function_of_seed_and_index(tokenizer, packed):
    def make(seed):
        return texts.batches(corpus(300), tokenizer, packed=packed, batch=4, length=16, seed=seed)

    first, again, other = make(0), make(0), make(1)
    indices = [0, 3 * len(first) + 2, 5, len(first), 1]  # out of order, across epochs
    expected = {i: first[i]["input_ids"] for i in sorted(indices)}
    assert all(torch.equal(again[i]["input_ids"], expected[i]) for i in indices)
    rows = [tuple(sorted(map(tuple, made[0]["input_ids"].tolist()))) for made in (first, other)]
    assert rows[0] != rows[1]
    epochs = [torch.cat([first[e * len(first) + i]["input_ids"].flatten() for i in range(len(first))]) for e in (0, 1)]
    assert epochs[0].shape != epochs[1].shape or not torch.equal(*epochs)
    assert torch.equal(first[2:4][1]["input_ids"], first[3]["input_ids"])
    assert len(first.take(3)) == 3
    assert len(first.take(10**6)) == len(first)


def test_less_than_one_batch_says_how_much_is_needed(tokenizer):
    with pytest.raises(DataError, match="holds 3 texts, less than one batch: 8 are needed"):
        texts.batches(corpus(3), tokenizer, packed=False, batch=8, length=16)
    with pytest.raises(DataError, match=r"holds [0-9]+ tokens, less than one batch: 8192 are needed"):
        texts.batches(corpus(3), tokenizer, packed=True, batch=8, length=1024)


def test_a_prompt_and_its_answer_are_one_text(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "Which is it?", "answer": "The second."},
        {"text": "plain", "prompt": "not", "answer": "read"},
        {"prompt": " ", "answer": " "},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(texts.read(path).texts) == ["Which is it?\nThe second.", "plain"]
    path.write_text('{"prompt": "alone", "label": 1}')
    with pytest.raises(DataError, match="has no text in 'text': it has prompt, label"):
        texts.read(path)
    path.write_text('{"prompt": "alone", "answer": 3}')
    with pytest.raises(DataError, match="has no text in 'text': it has prompt, answer"):
        texts.read(path)


def test_prompts_and_answers_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["q"], "answer": ["a"], "label": [1], "id": [7]}), path)
    found = texts.read(path)
    assert (list(found.texts), found.labels) == (["q\na"], [1])


@pytest.mark.parametrize(
    ("count", "length", "sizes"), [(70, 100, [4] * 17 + [2]), (20, 16, [1] * 20), (40, 512, [1] * 40)]
)
def test_short_windows_share_batches_of_which_there_stay_sixteen(count, length, sizes):
    corpus = texts.read(tiny.chains(9000))
    alone, told = texts.windows(corpus, tiny.tokenizer(), count, length)
    together, same = texts.windows(corpus, tiny.tokenizer(), count, length, together=True)
    assert told == same == ()
    assert [len(batch["input_ids"]) for batch in together] == sizes
    for key in alone[0]:
        assert torch.equal(torch.cat([one[key] for one in together]), torch.cat([one[key] for one in alone]))


@pytest.mark.parametrize("packed", [True, False])
def test_texts_on_the_disk_make_the_same_batches_of_tokens_on_the_disk(tokenizer, packed, tmp_path):
    corpus = Corpus(tiny.sentences(300), [i % 3 for i in range(300)])
    writer = Writer(tmp_path)
    writer.add(corpus.texts)
    lazy = Corpus(writer.end(), corpus.labels)
    how = dict(packed=packed, batch=7, length=12, seed=4)
    held, found = (texts.batches(one, tokenizer, **how) for one in (corpus, lazy))
    assert isinstance(found.tokens, Shelf)
    assert len(found) == len(held)
    for index in range(2 * len(held)):
        one, other = held[index], found[index]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    orders = [list(texts.in_order(one, tokenizer, batch=64, length=12)) for one in (corpus, lazy)]
    for one, other in zip(*orders, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    told = [one.labelled({}, 3) for one in (corpus, lazy)]
    assert told[0].digest == told[1].digest


# ------------------------------------------------------------------------------------------------- labels of words

TAGGED = [
    {"tokens": ["the", "old-tree", "grows"], "ner_tags": ["O", "B", "O"]},
    {"tokens": ["she", "cuts"], "ner_tags": ["B", "O"]},
]


@pytest.mark.parametrize("names", [("tokens", "ner_tags"), ("words", "labels"), ("tokens", "label")])
def test_words_may_have_a_label_each(tmp_path, names):
    rows = [dict(zip(names, row.values(), strict=True)) for row in TAGGED]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [texts.read(tmp_path / "a.jsonl"), texts.read(rows)]
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([{**row, "id": 1} for row in rows]), tmp_path / "a.parquet")
        given.append(texts.read(tmp_path / "a.parquet"))
    for found in given:
        assert list(found.texts) == ["the old-tree grows", "she cuts"]
        assert (found.labels, found.classes, found.flaw) == (None, ("B", "O"), "")
        assert [(one.words, one.tags) for one in found.tagged] == [
            (("the", "old-tree", "grows"), (1, 0, 1)), (("she", "cuts"), (0, 1))
        ]  # fmt: skip
        assert found.digest == given[0].digest
        numbered = found.words_labelled({"O": 0, "B": 2}, 3)
        assert [one.tags for one in numbered.tagged] == [(0, 2, 0), (2, 0)]
        assert numbered.digest != found.digest
        assert numbered.words_labelled({"O": 0, "B": 2}, 3).tagged == numbered.tagged
        assert [one.words for one in found.take([1]).tagged] == [("she", "cuts")]


def test_words_without_labels_are_a_text_and_a_text_comes_before_words():
    bare = texts.read([{"tokens": ["a", "b"]}, {"tokens": ["c"]}])
    assert (list(bare.texts), bare.tagged, bare.flaw) == (["a b", "c"], None, "")
    assert bare == texts.read(["a b", "c"])
    whole = texts.read([{"tokens": ["a", "b"], "label": "good"}, {"words": ["c"], "label": "bad"}])
    assert (whole.labels, whole.classes, whole.tagged) == ([1, 0], ("bad", "good"), None)
    named = texts.read([{"text": "a", "tokens": ["x"], "ner_tags": [0]}])
    assert (list(named.texts), named.tagged) == (["a"], None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"tokens": ["a", "b"], "ner_tags": [1]}],
         "row 1 has 2 words in 'tokens' and 1 labels in 'ner_tags': give a label for each"),
        ([{"words": ["a"], "labels": 3}], "row 1 has 1 words in 'words' and the label 3 in 'labels': give a label"),
        ([{"tokens": ["a", 1], "ner_tags": [1, 1]}], "row 1 has no text in 'text': it has tokens, ner_tags"),
    ],
)  # fmt: skip
def test_labels_that_are_not_one_for_each_word_are_refused(rows, message):
    with pytest.raises(DataError, match=message) as caught:
        texts.read(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([TAGGED[0], {"tokens": ["a"]}], "text 2 of texts has no labels of words in 'ner_tags', as others have"),
        ([{"tokens": ["a", "b"], "ner_tags": [0, None]}],
         "word 2 of all texts of texts has no label in 'ner_tags', as 1 of 2 have none"),
        ([{"tokens": ["a", "b"], "ner_tags": [0, [1]]}], r"word 2 of all texts of texts has the label \[1\]"),
        ([{"tokens": ["a"], "ner_tags": [None]}], "texts has no labels of words in 'ner_tags': label them"),
        ([{"tokens": ["a"], "ner_tags": [3]}], "texts has the label 3: the model has 3 classes, 0 to 2"),
        ([{"tokens": ["a"], "ner_tags": [-1]}], "texts has the label -1: the model has 3 classes, 0 to 2"),
        ([{"tokens": ["a"], "ner_tags": ["X"]}], "texts has the class 'X', which the model doesn't know: it knows O"),
        ([{"text": "a b", "label": [0, 1]}], "more than one value.*; labels of words go beside a list of the words"),
    ],
)  # fmt: skip
def test_labels_of_words_that_are_no_classes_are_told_in_a_line(rows, message):
    with pytest.raises(DataError, match=message) as caught:
        texts.read(rows).words_labelled({"O": 0, "B": 2}, 3)
    assert "\n" not in str(caught.value)


def test_a_words_first_token_has_its_label():
    rows = [
        {"tokens": ["the", "old-tree", "of of", "", "grows"], "labels": [0, 1, 2, -100, 1]},
        {"tokens": ["she"], "labels": [2]},
    ]
    found = texts.read(rows).words_labelled({}, 3)
    (batch,) = texts.batches(found, tiny.tokenizer(), packed=False, batch=2, length=16).take(1)
    long = int(batch["attention_mask"].sum(1).argmax())
    assert batch["labels"][long].tolist() == [-100, 0, 1, -100, -100, 2, -100, 1, -100]
    assert batch["labels"][1 - long].tolist() == [-100, 2, *[-100] * 7]
    assert batch["labels"].shape == batch["input_ids"].shape
    short = texts.batches(found, tiny.tokenizer(), packed=False, batch=2, length=4)[0]
    assert sorted(map(tuple, short["labels"].tolist())) == [(-100, 0, 1, -100), (-100, 2, -100, -100)]
    (bytes_,) = texts.batches(found.take([1]), tiny.letters(), packed=False, batch=1, length=16).take(1)
    assert bytes_["labels"].tolist() == [[2, -100, -100]]
    plain = replace(found, tagged=None)
    alone = texts.batches(plain, tiny.tokenizer(), packed=False, batch=2, length=16)[0]
    assert torch.equal(alone["input_ids"], batch["input_ids"]), "words are read as the text that they are"

    def slow(*args, **how):
        raise NotImplementedError("offsets are of fast tokenizers")

    with pytest.raises(UnsupportedError, match="labels of words need a fast tokenizer"):
        texts.batches(found, slow, packed=False, batch=2, length=16)


# ------------------------------------------------------------------------------------- chats, answers, documents


def dialogs(count=60, turns=1, **how):
    return replace(texts.read(tiny.chats(count, turns=turns)), **how)


def test_chats_are_read_from_files_and_rows_and_are_of_one_kind(tmp_path):
    rows = tiny.chats(4)
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = texts.read(path)
    assert read.form == "chat"
    assert read.digest == texts.read(rows).digest
    named = texts.read([{"dialog": row["messages"]} for row in rows], column="dialog")
    assert named.texts == read.texts
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet
    from pyarrow import Table

    parquet.write_table(Table.from_pylist(rows), tmp_path / "chats.parquet")
    assert texts.read(tmp_path / "chats.parquet").texts == read.texts
    with pytest.raises(DataError, match="texts holds 4 chats and 1 texts: give one kind"):
        texts.read([*rows, {"text": "the tree"}])


def test_a_chat_packs_as_its_template_writes_it_with_no_token_more():
    tokenizer = tiny.chat_tokenizer()
    read = dialogs()
    written = [tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"] for row in tiny.chats(60)]
    found = texts.batches(read, tokenizer, packed=True, batch=2, length=16)
    assert found.tokens.tolist() == list(itertools.chain.from_iterable(written))
    assert set(found[0]) == {"input_ids", "attention_mask"}, "nothing is masked unless somebody asks for it"


@pytest.mark.parametrize("packing", ["blocks", "documents"])
def test_only_what_predicts_an_answer_counts(packing):
    tokenizer = tiny.chat_tokenizer()
    read = dialogs(completion_only=True, packing=packing)
    found = texts.batches(read, tokenizer, packed=True, batch=1, length=26)
    assistant, user = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|user|>"])
    answers, inside = [], False
    for token in found.tokens.tolist():
        inside = token == assistant if token in (assistant, user) else inside
        answers.append(inside and token != assistant)
    for number in range(len(found)):
        (row,) = found.rows(number)
        block = slice(int(found.starts[row]), int(found.ends[row]))
        counted = found[number]["counted"][0].tolist()
        assert counted == [*answers[block][1:], False]
        assert found.tokens[block].tolist() == found[number]["input_ids"][0].tolist()


def test_blocks_without_an_answer_are_left_out_and_too_few_with_one_are_told():
    tokenizer = tiny.chat_tokenizer()
    rows = [{"prompt": "the tree " * 40, "completion": "grows"} for _ in range(3)]
    read = replace(texts.read(rows), completion_only=True)
    found = texts.batches(read, tokenizer, packed=True, batch=1, length=16)
    assert all(batch["counted"].any() for batch in found)
    assert len(found) <= 3 < len(found.tokens) // 16
    with pytest.raises(DataError, match=r"holds 252 tokens, with answers in \d of 15 blocks, less than one batch: 128"):
        texts.batches(read, tokenizer, packed=True, batch=8, length=16)


def test_documents_stand_whole_in_their_blocks_and_count_from_0():
    tokenizer = tiny.tokenizer()
    read = replace(texts.read(tiny.sentences(50)), packing="documents")
    found = texts.batches(read, tokenizer, packed=True, batch=4, length=32)
    assert len(found) * 4 <= len(found.starts)
    seen = []
    for batch in found:
        for ids, mask, places, counted in zip(*(batch[name].tolist() for name in
            ("input_ids", "attention_mask", "position_ids", "counted")), strict=True):  # fmt: skip
            length = sum(mask)
            starts = [place for place in range(length) if places[place] == 0]
            ends = [*starts[1:], length]
            seen += [tuple(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
            assert all(places[a:b] == list(range(b - a)) for a, b in zip(starts, ends, strict=True))
            assert places[length:] == list(range(len(ids) - length)), "padding is a document of its own"
            assert counted == [place + 1 < length and place + 1 not in starts for place in range(len(ids))]
    whole = [(*row, tokenizer.eos_token_id) for row in tokenizer(list(read.texts), add_special_tokens=False)
             ["input_ids"]]  # fmt: skip
    assert set(seen) <= set(whole)
    assert len(seen) > 40


def test_a_document_longer_than_a_block_is_cut_and_told_of():
    read = replace(texts.read(["the " * 40, *tiny.sentences(20)]), packing="documents")
    with pytest.warns(DataWarning, match="1 of 21 texts of texts are longer than 16 tokens and are cut there"):
        found = texts.batches(read, tiny.tokenizer(), packed=True, batch=2, length=16)
    assert int((found.ends - found.starts).max()) == 16
    assert sorted(zip(found.starts[1:].tolist(), found.ends[:-1].tolist(), strict=True)) == [
        (end, end) for end in found.ends[:-1].tolist()
    ], "no token is lost"


def test_padded_texts_that_are_cut_are_told_of(tokenizer):
    with pytest.warns(DataWarning, match="of 100 texts of texts are longer than 8 tokens and are cut there"):
        texts.batches(corpus(100), tokenizer, packed=False, batch=4, length=8)


def test_blank_rows_are_told_of_and_blank_lines_are_not(tmp_path, recwarn):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    texts.read(tmp_path / "a.txt")
    assert not [one for one in recwarn if one.category is DataWarning]
    with pytest.warns(DataWarning, match="2 texts of texts are blank and are passed over"):
        assert len(texts.read(["one", " ", "", "two"])) == 2


def test_a_tokenizer_that_begins_texts_itself_begins_those_that_run_on(tokenizer):
    from tokenizers import processors

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="[UNK] $A", special_tokens=[("[UNK]", 1)])
    how = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    begins = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="[UNK]", **how)
    rows = tokenizer(sentences(30))["input_ids"]
    found = texts.batches(corpus(30), begins, packed=True, batch=2, length=8)
    assert found.tokens.tolist() == [token for row in rows for token in (1, *row, 2)]
    other = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="[PAD]", **how)
    found = texts.batches(corpus(30), other, packed=True, batch=2, length=8)
    assert found.tokens.tolist() == [token for row in rows for token in (*row, 2)], "it does not begin with its bos"


def test_calibration_windows_run_on_whatever_is_learned():
    tokenizer = tiny.chat_tokenizer()
    plain, _ = texts.windows(dialogs(), tokenizer, 8, 16)
    found, _ = texts.windows(dialogs(completion_only=True, packing="documents"), tokenizer, 8, 16)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(plain, found, strict=True))
    assert set(found[0]) == {"input_ids", "attention_mask"}


def test_a_part_keeps_how_it_is_learned():
    read = dialogs(completion_only=True, packing="documents").render(tiny.chat_tokenizer())
    first, rest = read.split(seed=1)
    assert (first.form, first.packing, first.completion_only) == ("rendered", "documents", True)
    assert (len(first.answers), len(rest.answers)) == (len(first), len(rest))
    start, end = first.answers[0][0]
    assert first.texts[0][start:end].endswith("</s>")
    assert read.render(None) is read


def test_chats_for_a_model_that_knows_no_roles_are_their_messages():
    read = dialogs()
    message = tiny.chats(60)[0]["messages"]
    assert read.join().texts[0] == f"{message[0]['content']}\n{message[1]['content']}"
    with pytest.raises(InputError, match="completion_only is of language models, which write answers: leave it out"):
        replace(read, completion_only=True).join()


@pytest.mark.parametrize(
    ("name", "limit", "count", "told"),
    [
        ("hub:owner/name", None, 4, True),
        ("hub:owner/name::train[:2]", None, 2, False),
        ("hub:owner/name::train[:]", None, 6, False),
        ("hub:owner/name", 5, 5, False),
    ],
)
def test_how_many_texts_of_the_hub_are_read_is_the_user_s_to_say(monkeypatch, name, limit, count, told):
    datasets = pytest.importorskip("datasets")
    asked = []

    def give(*args, **how):
        asked.append(how["split"])
        return iter({"text": f"text {number}"} for number in range(6))

    monkeypatch.setattr(datasets, "load_dataset", give)
    monkeypatch.setattr(texts, "_HUB_LIMIT", 4)
    expects = pytest.warns(DataWarning, match=r"goes on after 4 texts.*hub:owner/name::train\[:500000\], or \[:\]")
    with expects if told else contextlib.nullcontext():
        assert len(texts.read(name, limit=limit)) == count
    assert asked == ["train"]


def test_what_gives_no_texts_is_refused():
    """Such as examples of networks, which a recipe on language models was given."""
    with pytest.raises(DataError, match=r"the data is Examples, which gives no texts: .*recipes on networks"):
        texts.read(Examples(torch.zeros(4, 3)))
    with pytest.raises(DataError, match="the data is int, which gives no texts"):
        texts.read(3)


def test_texts_are_not_read_without_a_tokenizer():
    """A recipe called in Python on a model that came without one."""
    corpus = texts.read(["a b", "c d"])
    with pytest.raises(
        InputError, match=r"no tokenizer: put its files, .* or give open_subject\(model, tokenizer=...\)"
    ):
        texts.batches(corpus, None, packed=True, batch=1, length=2)
    with pytest.raises(InputError, match="no tokenizer"):
        next(texts.in_order(corpus, None, batch=1, length=2))
    with pytest.raises(InputError, match="no tokenizer"):
        texts.windows(corpus, None, 1, 2)
