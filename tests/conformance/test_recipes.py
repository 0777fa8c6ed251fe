"""Every recipe obeys the laws of `secateur.conformance` on a toy."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedModel

import tiny
from secateur import conformance, recipes
from secateur.files import texts
from secateur.measure.quality import perplexity
from secateur.subjects import Transformer, open_subject

# Recipe -> the toy: kind of model, budget, and options that make it quick. Others run as they are on the default.
DEFAULT = ("llama", "params=75%", {})
TOYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minitron": (
        "llama",
        "params=75%",
        {"steps": 0, "short_steps": 0, "calibration": 64, "length": 16, "train_batch": 8, "candidates": 3},
    ),
    "ziplm": ("bert", "params=75%", {"steps": 0, "calibration": 32, "trials": 4, "judged": 16}),
}
LAWS = {"card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"}


@pytest.fixture(scope="module")
def decoder() -> PreTrainedModel:
    return tiny.taught(tiny.model("llama"))


@pytest.mark.parametrize("name", recipes.cards())
def test_recipes(name: str, decoder: PreTrainedModel) -> None:
    kind, budget, options = TOYS.get(name, DEFAULT)
    quality = None
    if kind == "llama":
        subject = open_subject(decoder, tokenizer=tiny.tokenizer())
        held_out = texts.batches(texts.read(tiny.chains(200, 1)), subject.tokenizer, packed=True, batch=8, length=16)

        def quality(student: Transformer) -> float:
            return -perplexity(student.forward, held_out.take(10)).value

        assert quality(subject) > -20  # of 64 words: the toy has learnt something that a cut can lose
    else:
        subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    data = texts.read(tiny.chains(800))
    assert set(conformance.check_recipe(name, subject, data, budget, options=options, quality=quality)) == LAWS
