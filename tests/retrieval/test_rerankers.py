"""Cross-encoders with a second head: exact sentences, blocks, and what is read from a checkpoint."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import tiny
from secateur.errors import InputError, ModelError
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Reranker, Settings
from strangers import run_without_secateur

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 160, "pad_token_id": 0, "num_labels": 1}  # fmt: skip
WORDS = tiny.WORDS


def classifier(kind: str = "bert"):
    torch.manual_seed(0)
    if kind == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**SMALL)).eval()
    if kind == "distilbert":
        shape = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "num_labels": 1}
        return DistilBertForSequenceClassification(DistilBertConfig(**shape, pad_token_id=0)).eval()
    return BertForSequenceClassification(BertConfig(**SMALL)).eval()


@pytest.fixture
def reranker():
    return Reranker(classifier(), tiny.tokenizer())


def text(*numbers: int) -> str:
    return " ".join(WORDS[number] for number in numbers)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_second_head_leaves_the_scores_as_they_are(kind):
    model, tokenizer = classifier(kind), tiny.tokenizer()
    parts = [text(1, 2, 3), text(4, 5)]
    given = tokenizer(text(6, 7), " ".join(parts), return_tensors="pt")
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        score = float(model(**{name: given[name] for name in names}).logits[0, 0])
    plain = Reranker(model, tokenizer)
    (found,) = plain.judge([(text(6, 7), parts)])
    assert found.score == pytest.approx(score, abs=1e-5)
    assert found.keep.tolist() == [1.0] * 5  # nothing is known of tokens
    (headed,) = plain.with_head(seed=1).judge([(text(6, 7), parts)])
    assert headed.score == found.score
    assert headed.owner.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_gets_a_second_head(dtype, reranker, tmp_path):
    wide = reranker.with_head(0)
    pair = text(6, 7), [text(1, 2, 3), text(4, 5)]
    before = wide.judge([pair])[0]
    Reranker(wide.model.to(dtype), wide.tokenizer).save(tmp_path)
    narrow = rerankers.open_reranker(str(tmp_path)).with_head(0)
    assert narrow.model.dtype == dtype
    narrow.save(tmp_path / "pruner")
    for model in (narrow, rerankers.open_reranker(str(tmp_path / "pruner"))):
        after = model.judge([pair])[0]
        assert after.score == pytest.approx(before.score, abs=0.05)
        assert after.keep == pytest.approx(before.keep, abs=0.05)


def test_blocks_are_as_long_as_is_asked_for_and_the_model_has_positions(reranker):
    model = classifier()
    assert Reranker(model, tiny.tokenizer()).longest == 160
    model.config.max_position_embeddings = 8192
    assert Reranker(model, tiny.tokenizer()).longest == 512
    assert Reranker(model, tiny.tokenizer(), None, Settings(longest=1024)).longest == 1024
    assert Reranker(model, tiny.tokenizer(), None, Settings(longest=9999)).longest == 8192


def test_sequences_are_those_of_the_tokenizer(reranker):
    parts = [text(1, 2, 3), text(4, 5)]
    (block,) = reranker.blocks(text(6, 7), parts)
    assert block.ids == reranker.tokenizer(text(6, 7), " ".join(parts))["input_ids"]
    assert len(block.ids) == len(block.types) == len(block.owner)
    assert [i for i, owner in enumerate(block.owner) if owner == 1] == [7, 8]


def test_long_passages_are_read_in_blocks_with_the_question_before_each(reranker):
    parts = [text(*range(5)), text(*range(5)), text(*range(20)), text(1)]
    blocks = reranker.blocks(text(6, 7), parts, longest=12)  # room for 12 - 3 - 2 = 7 tokens
    assert [[owner for owner in block.owner if owner >= 0] for block in blocks] == [
        [0] * 5, [1] * 5, [2] * 7, [2] * 7, [2] * 6 + [3],
    ]  # fmt: skip
    asked = reranker.tokenizer(text(6, 7))["input_ids"][:3]
    assert all(block.ids[:3] == asked and len(block.ids) <= 12 for block in blocks)


def test_a_question_that_fills_a_block_is_shortened(reranker):
    (block, *_) = reranker.blocks(text(*range(40)), [text(1, 2)], longest=13)
    assert block.owner.count(-1) == 3 + 5
    with pytest.raises(InputError, match="longest=3"):
        reranker.blocks("a", ["b"], longest=3)


def test_neither_order_nor_padding_alters_anything(reranker):
    judge = reranker.with_head(seed=3)
    pairs = [(text(i), [text(*range(i + 1)), text(i, 2)]) for i in range(9)]
    alone = [judge.judge([pair])[0] for pair in pairs]
    for chosen in (pairs, pairs[::-1]):
        found = judge.judge(chosen)
        for one, other in zip(found if chosen is pairs else found[::-1], alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            np.testing.assert_allclose(one.keep, other.keep, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_as_many_threads_as_there_are_find_the_same(kind):
    """Each pass hears its own last hidden state, and no other thread's."""
    judge = Reranker(classifier(kind), tiny.tokenizer()).with_head(seed=3)
    pairs = [(text(i % 20), [text(*range(i % 7 + 1)) for _ in range(4 + i % 5)]) for i in range(60)]
    before, found = torch.get_num_threads(), []
    try:
        for many in (1, 4):
            torch.set_num_threads(many)
            found.append(judge.judge(pairs))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.keep, other.keep, atol=1e-5)
        np.testing.assert_array_equal(one.owner, other.owner)


def test_a_long_passage_scores_as_its_first_block_or_its_best(reranker):
    pair = (text(6), [text(*range(9)), text(*range(20, 29))])
    blocks = [reranker.judge([(text(6), [part])], longest=14)[0].score for part in pair[1]]
    assert reranker.judge([pair], longest=14)[0].score == pytest.approx(blocks[0], abs=1e-6)
    assert reranker.judge([pair], longest=14, best=True)[0].score == pytest.approx(max(blocks), abs=1e-6)


def test_an_empty_passage_has_a_score_and_no_tokens(reranker):
    (found,) = reranker.judge([(text(6), [])])
    assert len(found.keep) == len(found.owner) == 0
    assert reranker.judge([]) == []


def test_a_checkpoint_comes_back_with_both_heads_and_settings(reranker, tmp_path):
    judge = reranker.with_head(seed=2)
    judge.settings = Settings(threshold=0.3, rounding="mean", longest=64, language="de")
    judge.save(tmp_path)
    again = rerankers.open_reranker(str(tmp_path))
    assert again.settings == judge.settings
    plain = Reranker(judge.model, judge.tokenizer, None, Settings(longest=32))
    plain.save(tmp_path / "plain")
    assert rerankers.open_reranker(str(tmp_path / "plain")).settings.longest == 32
    pair = (text(6), [text(1, 2), text(3)])
    one, other = judge.judge([pair])[0], again.judge([pair])[0]
    assert other.score == pytest.approx(one.score, abs=1e-6)
    np.testing.assert_allclose(other.keep, one.keep, atol=1e-6)


def test_a_checkpoint_is_read_without_us(reranker, tmp_path):
    """An ordinary classifier; and the second head is one linear layer on its last hidden state."""
    judge = reranker.with_head(seed=2)
    judge.save(tmp_path)
    (found,) = judge.judge([(text(6), [text(1, 2)])])
    code = f"""
import json, torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r})
given = AutoTokenizer.from_pretrained({str(tmp_path)!r})({text(6)!r}, {text(1, 2)!r}, return_tensors="pt")
with torch.no_grad():
    states = model.base_model(**given)[0]
    head = load_file({str(tmp_path / "keep_head.safetensors")!r})
    keep = (states @ head["weight"].T + head["bias"]).softmax(-1)[0, :, 1]
    print(json.dumps([float(model(**given).logits[0, 0]), keep[3:5].tolist()]))
"""
    score, keep = json.loads(run_without_secateur(code, tmp_path).splitlines()[-1])
    assert score == pytest.approx(found.score, abs=1e-5)
    np.testing.assert_allclose(keep, found.keep, atol=1e-5)


def test_an_encoder_without_a_classifier_prunes_and_does_not_rank(tmp_path):
    folder = tiny.folder("bert", tmp_path / "encoder")
    assert not rerankers.open_reranker(str(folder)).settings.ranks


def test_what_is_read_goes_where_the_model_is(reranker, tmp_path, monkeypatch):
    reranker.with_head().save(tmp_path)
    with monkeypatch.context() as here:
        here.setattr("secateur._utils.modes.check_device", lambda _: None)  # meta stands for a second device
        found = rerankers.open_reranker(str(tmp_path), "meta")
    assert {parameter.device.type for parameter in found.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in rerankers.open_reranker(str(tmp_path)).parameters()} == {"cpu"}
    assert rerankers.open_reranker(str(tmp_path), "meta") is found
    assert rerankers.open_reranker(reranker, "meta") is reranker
    seen = list[str]()

    def read(**given):
        seen.extend(tensor.device.type for tensor in given.values())
        return torch.zeros(len(given["input_ids"])), None

    monkeypatch.setattr(found, "forward", read)  # what a model of no numbers makes of it is nothing
    found.judge([(text(1), [text(2)]), (text(3), [text(4, 5)] * 9)])
    assert set(seen) == {"meta"}
    assert len(seen) >= 3
    assert found.with_head().keep.weight.device.type == "meta"
    with pytest.raises(InputError, match="device 'moon' can't hold the model"):
        rerankers.open_reranker(str(tmp_path), "moon")


def test_what_is_no_reranker_is_refused(tmp_path, reranker):
    with pytest.raises(InputError, match="reranker"):
        rerankers.open_reranker(str(tmp_path / "no/such/one"))
    with pytest.raises(InputError, match="not int"):
        rerankers.open_reranker(3)
    torch.manual_seed(0)
    many = BertForSequenceClassification(BertConfig(**{**SMALL, "num_labels": 3}))
    with pytest.raises(ModelError, match="3 classes"):
        Reranker(many, tiny.tokenizer())


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"weight": torch.zeros(2, 31), "bias": torch.zeros(2)}, "not weight"),
        ({"weight": torch.full((2, 32), torch.nan), "bias": torch.zeros(2)}, "NaN"),
        ({"weights": torch.zeros(2, 32)}, "not weight"),
        (None, "damaged"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(reranker, tmp_path, head, words):
    reranker.with_head().save(tmp_path)
    if head is None:
        (tmp_path / rerankers.HEAD).write_bytes(b"nonsense")
    else:
        save_file(head, tmp_path / rerankers.HEAD)
    with pytest.raises(ModelError, match=words):
        rerankers.open_reranker(str(tmp_path))
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("given", [3, {"threshold": "high"}, {"longest": []}, ["a"]])
def test_settings_that_are_none_are_refused(given):
    with pytest.raises(ModelError, match="not settings"):
        Settings.read(given)
    assert Settings.read({"threshold": 0.5, "of another program": 1}).threshold == 0.5
