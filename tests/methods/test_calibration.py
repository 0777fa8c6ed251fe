"""Sequences that a model is looked at on: as many as asked, however few texts there are."""

from __future__ import annotations

import pytest

import tiny
from secateur.data import texts
from secateur.errors import DataError
from secateur.methods import calibration
from secateur.subjects import open_subject


@pytest.mark.parametrize(("kind", "length"), [("bert", 16), ("llama", 12)])
def test_fewer_texts_than_a_batch_serve_one_by_one(kind, length):
    subject = open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())
    few = calibration.make_feed(subject, texts.read(tiny.chains(5)), length=length, seed=0)
    assert [len(batch["input_ids"]) for batch in few.sequences(100)] == [1] * len(few)
    assert len(few) >= 5
    many = calibration.make_feed(subject, texts.read(tiny.chains(40)), length=length, seed=0)
    assert [len(batch["input_ids"]) for batch in many.sequences(18)] == [16, 2]


def test_texts_that_give_no_sequence_are_refused():
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(DataError, match="less than one batch: 128 are needed"):
        calibration.make_feed(subject, texts.read(["the tree"]), length=128, seed=0)


@pytest.mark.parametrize(("length", "batch"), [(12, 16), (256, 16), (257, 15), (1024, 4), (4096, 1), (5000, 1)])
def test_a_batch_has_fewer_sequences_the_longer_they_are(length, batch):
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    made = calibration.make_feed(subject, texts.read(tiny.chains(1000)), length=length, seed=0)
    assert [made.batch, *made[0]["input_ids"].shape] == [batch, batch, length]
