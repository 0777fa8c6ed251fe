"""Courses made by hand: small networks on examples, tiny language models on texts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.distilling.settings import Settings
from secateur.runs.distilling.setup import Setup, make_batches
from secateur.subjects import open_subject

PLAIN = Settings(
    steps=3, lr=1e-2, batch=8, length=16, temperature=1.0, direction="forward", task=0.0, hidden=False, shares=(),
    choice="", cache=0, on_policy=0.0, prompt=4, server="", align=False, match=(), match_index=(), match_loss="mse",
    match_weight=(), match_balance=False, skew=0.0, buckets=(), warm_up={}, training={}, seed=0,
)  # fmt: skip


def small(classes):
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))


@pytest.fixture
def plain():
    """A settings of the options that `distill` has by default, and few steps."""
    return PLAIN


@pytest.fixture
def of_networks():
    """(settings, number of classes, cache_at) -> a student and its setup of two teachers, on 40 examples."""

    def made(settings=PLAIN, classes=3, cache_at=""):
        torch.manual_seed(0)
        data = Examples(torch.randn(40, 4), name="some")
        train, held = data.split(seed=0)
        student, *teachers = (Network().open(small(classes), None, data) for _ in range(3))
        items = make_batches(settings, student, train)
        place = Network().environment(student, settings.batch, None, None)
        return student, Setup(Network(), settings, ("one", "two"), teachers, train, held, items, place, str(cache_at))

    return made


@pytest.fixture
def of_texts():
    """(settings, cache_at) -> a student and its setup of two teachers, on 40 texts."""

    def made(settings=PLAIN, cache_at=""):
        tokenizer = tiny.tokenizer()
        train, held = texts.read(tiny.chains(40)).split(seed=0)
        student, *teachers = (open_subject(tiny.model("llama", seed), tokenizer=tokenizer) for seed in range(3))
        items = make_batches(settings, student, train, teachers)
        place = Language().environment(student, settings.batch, settings.length, None)
        return student, Setup(Language(), settings, ("one", "two"), teachers, train, held, items, place, str(cache_at))

    return made
