"""Batches of pairs, sentences by the tokens that stay, and the quality of a pruner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from keeper import fresh, sentence
from secateur.errors import InputError
from secateur.methods.reranker_training import PairBatches, keep_sentences, measure_quality, share_words
from secateur.retrieval.rerankers import Judgement


def test_tokens_of_question_and_padding_are_labelled_as_asked():
    model = fresh().with_head()
    pairs = [
        {"question": sentence(1), "sentences": [sentence(2, 3), sentence(4)], "kept": [1], "score": 0.5},
        {"question": sentence(1), "sentences": [sentence(2)], "kept": [], "score": None},
    ]
    batch = PairBatches(pairs, model, 2, True)[0]
    assert batch["labels"].tolist() == [[0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, -100, -100]]
    assert batch["targets"].tolist() == [[0, 0, 0, 0, 0, 1, 0], [0] * 7]
    taught = PairBatches([{**pairs[0], "targets": [0.25, 0.75]}], model, 1, True)[0]["targets"]
    assert taught.tolist() == [[0, 0, 0, 0.25, 0.25, 0.75, 0]]
    assert batch["scores"].tolist() == [0.5, 0.0]
    assert all(tensor.shape == batch["labels"].shape for name, tensor in batch.items() if name != "scores")
    masked = PairBatches(pairs, model, 2, False)[0]["labels"]
    assert masked.tolist() == [[-100, -100, -100, 0, 0, 1, -100], [-100, -100, -100, 0, -100, -100, -100]]
    assert PairBatches(pairs, model, 1, True)[3]["scores"].tolist() == [0.0]  # over and over


def test_a_step_is_of_as_many_batches_as_it_takes():
    pairs = [{"question": sentence(1), "sentences": [sentence(2)], "kept": [], "score": None}]
    feed, steps = PairBatches(pairs, fresh().with_head(), 1, True, 2), []
    for index in range(4):
        feed[index]
        steps.append(feed.step)
    assert steps == [1, 1, 2, 2]


def test_the_measures_of_what_is_held_out_are_what_they_say():
    class Says(type(fresh())):
        def judge(self, pairs, *, longest=0, best=False):
            return list(told)

    model = fresh().with_head()
    model = Says(model.model, model.tokenizer, model.keep, replace(model.settings, threshold=0.5))
    pairs = [
        {"question": "q", "sentences": ["four", "of ten"], "kept": [0], "score": 1.0},
        {"question": "q", "sentences": ["a"], "kept": [], "score": None},
        {"question": "r", "sentences": ["bc"], "kept": [], "score": None},
    ]
    judged = [(0.5, [0.8, 0.6], [0, 1]), (0.9, [0.1], [0]), (0.0, [0.9], [0])]
    told = [Judgement(score, np.array(keep), np.array(owner)) for score, keep, owner in judged]
    found = measure_quality(model, pairs)
    assert found["mask_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.1]).mean())
    assert found["ranking_loss"] == pytest.approx(0.25)
    # Both sentences of the first stay, none of the second, and one of the third, which should not.
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx([0.5, 1.0, (2 / 3 + 1 + 0) / 3])
    assert (found["empty"], found["pairs"], found["questions"]) == (0.5, 3, 1)
    assert found["compression"] == pytest.approx(100 / 13)
    assert found["ndcg"] == pytest.approx(1 / np.log2(3))
    told = told[1:2]
    assert measure_quality(model, pairs[1:2])["ndcg"] is None


def test_words_of_the_question_are_told_as_a_share_of_the_best_of_all_passages():
    shares = share_words("What does --depth do?", [["Use --depth.", "Else none."], [], ["Depths of a tree."]], "en")
    assert shares[0] == 1.0
    assert 0 < shares[2] < 1
    assert shares[1] == 0
    assert share_words("What?", [["No word."]], "en").tolist() == [0.0]
    assert share_words("What?", [], "en").tolist() == []


def test_both_roundings_are_what_they_say():
    """Two tokens of three are just above the threshold, and the third is far below."""
    told = [{"score": 0.0, "keep": [0.6, 0.6, 0.0], "owner": [0, 0, 0]}]
    vote, scores = keep_sentences(told, [1], 0.5, "vote")
    mean, _ = keep_sentences(told, [1], 0.5, "mean")
    assert (vote.tolist(), mean.tolist(), scores.tolist()) == ([True], [False], [pytest.approx(0.4)])
    half, _ = keep_sentences([{"keep": [0.6, 0.0], "owner": [0, 0]}], [1], 0.5, "vote")
    assert half.tolist() == [False]  # more than half of them
    two = [{"keep": [0.8, 0.5, 0.3], "owner": [0, 1, 2]}, {"keep": [0.5], "owner": [0]}, {"keep": [], "owner": []}]
    near, _ = keep_sentences(two, [3, 1, 0], 0.2, "mean", 0.6)
    assert near.tolist() == [True, True, False, True]  # of the best of their own passage
    raised, values = keep_sentences(two, [3, 1, 0], 0.2, "mean", 0.6, np.array([0.0, 0.0, 0.5, 0.5]))
    assert values == pytest.approx([0.8, 0.5, 0.3**0.5, 0.5**0.5])
    assert raised.tolist() == [True, True, True, True]
    gone, _ = keep_sentences([{"keep": [0.0], "owner": [0]}], [1], 0.0, "mean", 0.0, np.array([0.5]))
    assert gone.tolist() == [False]  # what is surely to go stays gone
    with pytest.raises(InputError, match="vote, mean or share"):
        keep_sentences(told, [1], 0.5, "most")
    with pytest.raises(InputError, match="nan"):
        keep_sentences(told, [1], float("nan"), "vote")
