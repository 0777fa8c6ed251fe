"""Every recipe that trains, and `distill`: precision, average, checkpointing, compilation, optimiser are in force."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
import tiny
import trainings
from secateur import recipes
from secateur._utils.rundir import Run
from secateur.runs import keywords
from secateur.vocabulary import Budget

OWN_OPTIMIZER = ("ast", "otov3")
"""Their method is the optimiser's."""


@pytest.mark.parametrize("name", trainings.TOYS)
def test_what_a_recipe_is_asked_for_is_in_force(name: str, tmp_path: Path) -> None:
    function = recipes.find(name)
    subject, data, budget, options = trainings.TOYS[name]()

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
