"""What the claims of the one-shot methods share: a trained Llama, calibration windows, and pruned copies."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from claims import lab
from secateur import recipes
from secateur._utils.rundir import Run
from secateur.select import weights
from secateur.select.pattern import n_of_m
from secateur.subjects import Transformer
from secateur.subjects.matrices import matrices
from secateur.vocabulary import Budget, Result

SEEDS = (0, 1, 2)
ORIGINALS = (0, 1, 2, 3, 4)
"""Seeds of `lab.narrow`: models that were trained alike differ more than what some claims are about."""
SETUP = "Llama of 6 layers, width 128, trained on Brown; 128 windows of 64 tokens; next-token loss on held-out Brown"
MANY = "five Llamas of 4 layers, width 64, trained on Brown from weights of their own; 128 windows of 64 tokens"


def pruned(name: str, budget: str, seed: int, subject: Transformer | None = None, **options: Any) -> Result:
    """A run of the recipe `name` on the training part of Brown."""
    function: Callable[..., Iterator[Result]] = recipes.find(name)
    if name != "magnitude":
        options = {"samples": 128, "length": lab.LENGTH} | options
    with tempfile.TemporaryDirectory() as folder, Run.open(folder, {}) as run:
        made = function(subject or lab.llama(), lab.training(), [Budget.parse(budget)], run, seed=seed, **options)
        (result,) = list(made)
    return result


@functools.cache
def loss(name: str, budget: str, seed: int, **options: Any) -> float:
    """Next-token loss on held-out Brown of what a recipe gives; of random masks for "random"."""
    if name == "random":
        return lab.held_out(at_random(budget, seed))
    if name == "dense":
        return lab.held_out(lab.llama())
    student = pruned(name, budget, 0 if name == "magnitude" else seed, **options).subject
    assert isinstance(student, Transformer)
    return lab.held_out(student)


def at_random(budget: str, seed: int) -> Transformer:
    student, draw = lab.llama().copy(), torch.Generator().manual_seed(seed)
    share, pattern = weights.read_budget(Budget.parse(budget), 1.0, "random")
    for matrix in matrices(student.model, student.layers()).values():
        scores = torch.rand(matrix.weight.shape, generator=draw)
        mask = n_of_m(scores, pattern.n, pattern.m) if pattern else weights.best(scores, share, "row")
        matrix.weight.mul_(mask)
    return student
