"""Every recipe that trains, and `distill`: precision, average, checkpointing, compilation, optimiser are in force."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
import tiny
import trainings
from secateur import recipes
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.runs import executor, keywords
from secateur.subjects import open_subject
from secateur.vocabulary import Budget, Result

OWN_OPTIMIZER = ("ast", "otov3")
"""Their method is the optimiser's."""


@pytest.mark.parametrize("name", trainings.TOYS)
def test_what_a_recipe_is_asked_for_is_in_force(name: str, tmp_path: Path) -> None:
    function = recipes.find(name)
    subject, data, budget, options = trainings.TOYS[name]()
    if name.startswith("yolo"):  # one step of each stage
        options = {**options, "batch": len(data)}

    def run(training: str) -> None:
        torch.manual_seed(0)
        checked = keywords.check_options(function, {**options, "training": training})
        with Run.open(tmp_path / str(len(list(tmp_path.iterdir()))), {}) as directory:
            list(function(subject, data, [Budget.parse(budget)], directory, **checked))

    trainings.check_options(run, averaged=name != "otov3", optimizer=name not in OWN_OPTIMIZER)


def test_what_distill_is_asked_for_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(120)))
    for name, seed in (("student", 1), ("teacher", 0)):
        tiny.folder("llama", tmp_path / name)
        tiny.model("llama", seed).save_pretrained(tmp_path / name)
    student, teacher, data = (str(tmp_path / name) for name in ("student", "teacher", "texts.txt"))

    def run(training: str) -> None:
        out = tmp_path / training.replace("=", "-")
        secateur.distill(student, teacher, data, out, training=training, steps=4, batch=4, length=16)

    trainings.check_options(run)


# ---------------------------------------------------------------------------------------------- copies of the model


def one_shot(**options: Any) -> trainings.Toy:
    subject = open_subject(tiny.uneven(tiny.model("llama")), tokenizer=tiny.tokenizer())
    return subject, texts.read(tiny.chains(100)), "", {"samples": 4, "length": 16, **options}


def magnitude() -> trainings.Toy:
    return (*one_shot()[:3], {})


def one_by_one() -> trainings.Toy:
    """Where each student of ZipLM is cut from the original."""
    subject, data, budget, options = trainings.TOYS["ziplm"]()
    return subject, data, budget, {**options, "gradual": False}


BUDGETS = {
    "magnitude": (magnitude, ("weights=60%", "weights=50%")),
    "wanda": (one_shot, ("weights=60%", "weights=50%")),
    "sparsegpt": (one_shot, ("weights=60%", "weights=50%")),
    "owl": (one_shot, ("weights=60%", "weights=50%")),
    "ast": (trainings.TOYS["ast"], ("pattern=2:4", "pattern=1:4")),
    "romanian_distilberts": (trainings.TOYS["romanian_distilberts"], ("params=80%", "params=60%")),
    "nemotron_elastic": (trainings.TOYS["nemotron_elastic"], ("params=80%", "params=70%")),
    "ziplm": (one_by_one, ("params=80%", "params=70%")),
    "shortgpt": (trainings.TOYS["shortgpt"], ("params=80%", "params=60%")),
    "llm_pruner": (trainings.TOYS["llm_pruner"], ("params=90%", "params=80%")),
    "slicegpt": (trainings.TOYS["slicegpt"], ("params=90%", "params=80%")),
    "gpusq_vit": (trainings.TOYS["gpusq_vit"], ("pattern=2:4", "pattern=1:4")),
    "yolov8_cwd": (trainings.TOYS["yolov8_cwd"], ("channels=80%", "channels=60%")),
    "yolov4_group_sad": (trainings.TOYS["yolov4_group_sad"], ("channels=80%", "channels=60%")),
    "slimmoe": (trainings.TOYS["slimmoe"], ("params=80%", "params=70%")),
    "consensus_polarization": (trainings.TOYS["consensus_polarization"], ("channels=80%", "channels=60%")),
    "rethinking_pruning_value": (trainings.TOYS["rethinking_pruning_value"], ("channels=80%", "channels=60%")),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_the_model_of_a_budget_is_gone_when_the_next_one_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the original and of one student the bytes are held, whatever the number of budgets."""
    make, budgets = BUDGETS[name]
    subject, data, _, options = make()
    made: list[weakref.ref[nn.Module]] = []
    held: list[int] = []
    gc.collect()
    gc.freeze()  # what is here already need not be walked through at each of the collections below

    def noting(work: Any) -> Any:
        def note(*args: Any, **how: Any) -> Any:
            gc.collect()
            alive = [module for module in (reference() for reference in made) if module is not None]
            held.append(sum(parameter.nbytes for module in alive for parameter in module.parameters()))
            return work(*args, **how)

        return note

    for step in ("copy", "cut"):
        monkeypatch.setattr(type(subject), step, noting(getattr(type(subject), step)))
    monkeypatch.setattr(executor.Reference, "compare", lambda *_: ({}, {}, {}, []))

    def recipe(subject: Any, data: Any, budgets: Any, run: Any, **chosen: Any) -> Iterator[Result]:
        for result in recipes.find(name)(subject, data, budgets, run, **chosen):
            made.append(weakref.ref(result.subject.model))
            yield result
            del result

    executor.run(functools.wraps(recipes.find(name))(recipe), subject, data, budgets, tmp_path / "out", **options)
    assert len(made) == 2
    assert set(held) == {0}
