"""What the tests of the one-shot recipes share: a taught decoder, runs of them all, and what stays."""

from __future__ import annotations

import functools

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.measure.quality import perplexity
from secateur.recipes.sparse.magnitude import magnitude
from secateur.recipes.sparse.owl import owl
from secateur.recipes.sparse.sparsegpt import sparsegpt
from secateur.recipes.sparse.wanda import wanda
from secateur.runs import keywords
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices
from secateur.vocabulary import Budget

CALIBRATED = {"samples": 24, "length": 16}
RECIPES = {
    "magnitude": (magnitude, {}),
    "wanda": (wanda, CALIBRATED),
    "sparsegpt": (sparsegpt, {**CALIBRATED, "columns": 16}),
    "owl": (owl, CALIBRATED),
}


@functools.cache
def taught():
    return open_subject(tiny.fluent("llama"), tokenizer=tiny.tokenizer())


@functools.cache
def data():
    return texts.read(tiny.chains(800))


def run(name, tmp_path, budget="weights=50%", subject=None, **options):
    recipe, defaults = RECIPES[name]
    with Run.open(tmp_path / f"{name}-{budget}-{sorted(options.items())}".replace("/", "-"), {}) as opened:
        how = keywords.check_options(recipe, {**defaults, **options})
        made = recipe(subject or taught(), data(), [Budget.parse(budget)], opened, **how)
        (result,) = list(made)
    return result


def quality(student):
    held = texts.batches(texts.read(tiny.chains(200, 1)), tiny.tokenizer(), packed=True, batch=8, length=16)
    return perplexity(student.forward, held.take(10)).value


def stays(result):
    return {name: m.weight != 0 for name, m in matrices(result.subject.model, result.subject.layers()).items()}
