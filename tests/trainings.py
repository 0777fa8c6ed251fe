"""A toy of a second or less for each recipe that trains, and whether what `Training` asks for is in force."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import tiny
import yolo
from recipes.vision import nets
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.errors import TrainingWarning
from secateur.recover.training import averaging, loop, recomputing
from secateur.subjects import Traced, open_subject
from secateur.subjects.network import detectors

SMALL = {"length": 16, "train_batch": 4}
QUICK = {"batch": 8, "epochs": 1.0}
MINITRON = {"steps": 4, "short_steps": 2, "candidates": 2, "calibration": 32}
MINITRON |= {"tolerance": 0.1, "shape": "layers=3..4,neurons=72+112"}  # two shapes, no search
Toy = tuple[Any, Any, str, dict[str, Any]]


def language(kind: str, budget: str, **options: Any) -> Toy:
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    return subject, texts.read(tiny.chains(200)), budget, {**SMALL, **options}


def network(budget: str, model: nn.Module | None = None, count: int = 64, **options: Any) -> Toy:
    return nets.opened(model or nets.vgg()), nets.data(count), budget, {**QUICK, **options}


@functools.cache
def opened_detector() -> tuple[Traced, Examples]:
    images = yolo.squares(8)
    return detectors.open_detector(yolo.tiny(), images.inputs[:1]), images


def detector(**options: Any) -> Toy:
    stages = dict.fromkeys(("sparse_epochs", "finetune_epochs", "distil_epochs"), 1.0)
    return *opened_detector(), "channels=60%", {"batch": 2, **stages, **options}


def plain() -> nn.Module:
    """No batch norm, whose statistics would be those of one process's part of the batch."""
    torch.manual_seed(0)
    inner = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*inner, nn.Flatten(), nn.Linear(128, 4))


TOYS: Mapping[str, Callable[[], Toy]] = {
    "minitron": lambda: language("llama", "params=75%", **MINITRON),
    "nemotron_elastic": lambda: language("llama", "params=75%", steps=4, samples=16, depth_samples=4, router_hidden=16),
    "ziplm": lambda: language("bert", "params=75%", steps=4, calibration=32, trials=4, judged=16),
    "shortgpt": lambda: language("llama", "params=75%", steps=4, samples=16),
    "llm_pruner": lambda: language("llama", "params=80%", steps=4, samples=2),
    "slicegpt": lambda: language("llama", "params=90%", steps=4, samples=16),
    "pat": lambda: language("llama", "params=75%", steps=6, lora_rank=2),
    "romanian_distilberts": lambda: language("masked", "params=80%", steps=4),
    "ast": lambda: language("llama", "pattern=2:4", steps=6, refresh=2, slorb=8),
    "slimmoe": lambda: language("mixtral", "params=70%", steps=6, calibration=16, stages="2"),
    "otov3": lambda: network("channels=60%"),
    "consensus_polarization": lambda: network("channels=60%", plain(), 71),
    "gpusq_vit": lambda: network("pattern=2:4", nets.vit(), quantise_epochs=1.0, least=8, calibration="entropy"),
    "rethinking_pruning_value": lambda: network("channels=60%", epochs=2, scratch="E"),
    "nd_loss": lambda: network("channels=60%"),
    "yolov4_group_sad": lambda: detector(layer_keep=0.0, least=2, fractions=(0.5,) * 7),
    "yolov8_cwd": lambda: detector(least=2),
}


@dataclass
class Record:
    """What trainings within `watch` did."""

    kinds: set[torch.dtype | None] = field(default_factory=set)
    """Number types of autocast in objectives; None where it was off."""
    averages: list[averaging.Average] = field(default_factory=list)
    recomputed: int = 0
    compiled: int = 0
    optimizers: set[str] = field(default_factory=set)
    losses: list[tuple[int, float]] = field(default_factory=list)


class _Average(averaging.Average):
    """An average that counts what is asked of it."""

    updates = 0
    swaps = 0

    def update(self, step: int) -> None:
        self.updates += 1
        super().update(step)

    def swap(self) -> None:
        self.swaps += 1
        super().swap()


@contextlib.contextmanager
def watch() -> Iterator[Record]:
    """Note what trainings do within the block; torch.compile gives what it is given."""
    record = Record()
    train, make, compute = loop.train, loop.make_optimizer, recomputing.checkpoint

    def watched_train(student: Any, batches: Any, objective: Any, *args: Any, **how: Any) -> Any:
        def watched(batch: Any, totals: Any) -> Any:
            on = torch.is_autocast_enabled("cpu")
            if torch.is_grad_enabled():
                record.kinds.add(torch.get_autocast_dtype("cpu") if on else None)
            return objective(batch, totals)

        done = train(student, batches, watched, *args, **how)
        record.losses += done.losses
        return done

    def watched_make(*args: Any, **how: Any) -> Any:
        made = make(*args, **how)
        record.optimizers.add(type(made).__name__)
        return made

    def watched_average(*args: Any) -> _Average:
        record.averages.append(_Average(*args))
        return record.averages[-1]

    def watched_checkpoint(*args: Any, **how: Any) -> Any:
        record.recomputed += 1
        return compute(*args, **how)

    def compile_nothing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **how: Any) -> Any:
            record.compiled += 1
            return forward(*args, **how)

        return run

    with (
        mock.patch.object(loop, "train", watched_train),
        mock.patch.object(loop, "make_optimizer", watched_make),
        mock.patch.object(loop, "Average", watched_average),
        mock.patch.object(recomputing, "checkpoint", watched_checkpoint),
        mock.patch.object(torch, "compile", compile_nothing),
    ):
        yield record


def check_options(run: Callable[[str], Any], *, averaged: bool = True, optimizer: bool = True) -> None:
    """Whether each option is in force in `run(training)`, and activations that are not kept change no loss."""
    asked = ["precision=bf16", *["ema=0.5"] * averaged, *["optimizer=adamw8bit"] * optimizer]
    with watch() as kept:
        run(",".join(asked))
    with watch() as again, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", TrainingWarning)
        run(",".join([*asked, "checkpointing=true", "compile=true"]))
    for record in (kept, again):
        assert record.kinds == {torch.bfloat16}
        assert bool(record.averages) == averaged
        for average in record.averages:
            assert average.updates > 0
            assert average.swaps % 2 == 1, "the averages are what training ends with"
        if optimizer:
            assert record.optimizers == {"AdamW8bit"}
    assert (kept.recomputed, kept.compiled) == (0, 0)
    assert again.recomputed > 0
    assert again.compiled or any(issubclass(one.category, TrainingWarning) for one in warned)
    assert [loss for _, loss in again.losses] == pytest.approx([loss for _, loss in kept.losses], rel=1e-5)
