"""Courses made by hand: small networks on examples, tiny language models on texts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.runs.backends import language, network
from secateur.runs.distilling.course import Course, stream
from secateur.runs.distilling.lessons import Lesson
from secateur.subjects import open_subject

PLAIN = Lesson(
    steps=3, lr=1e-2, batch=8, length=16, temperature=1.0, direction="forward", task=0.0, hidden=False, shares=(),
    choice="", cache=0, on_policy=0.0, prompt=4, server="", align=False, match=(), match_index=(), match_loss="mse",
    match_weight=(), match_balance=False, skew=0.0, buckets=(), warm_up={}, training={}, seed=0,
)  # fmt: skip


def small(classes):
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, classes))


@pytest.fixture
def plain():
    """A lesson of the options that `distill` has by default, and few steps."""
    return PLAIN


@pytest.fixture
def of_networks():
    """(lesson, number of classes, cache_at) -> a student and its course of two teachers, on 40 examples."""

    def made(lesson=PLAIN, classes=3, cache_at=""):
        torch.manual_seed(0)
        data = Examples(torch.randn(40, 4), name="some")
        train, held = data.split(seed=0)
        pupil, *masters = (network.opened(small(classes), None, data) for _ in range(3))
        items = stream(network, lesson, pupil, train)
        place = network.where(pupil, lesson.batch, None, None)
        return pupil, Course(network, lesson, ("one", "two"), masters, train, held, items, place, str(cache_at))

    return made


@pytest.fixture
def of_texts():
    """(lesson, cache_at) -> a student and its course of two teachers, on 40 texts."""

    def made(lesson=PLAIN, cache_at=""):
        tokenizer = tiny.tokenizer()
        train, held = texts.read(tiny.chains(40)).split(seed=0)
        pupil, *masters = (open_subject(tiny.model("llama", seed), tokenizer=tokenizer) for seed in range(3))
        items = stream(language, lesson, pupil, train, masters)
        place = language.where(pupil, lesson.batch, lesson.length, None)
        return pupil, Course(language, lesson, ("one", "two"), masters, train, held, items, place, str(cache_at))

    return made
