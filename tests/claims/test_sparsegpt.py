"""SparseGPT at small scale: a Llama trained on Brown, pruned to half and to 2:4."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import pytest
import torch

from claims import lab, oneshot
from claims.oneshot import MANY, ORIGINALS, SEEDS, SETUP, loss
from secateur.data import texts
from secateur.score import hessian, obs, wanda
from secateur.select import weights
from secateur.subjects.transformer import blocks

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
BUDGETS = {"half": "weights=50%", "seventy": "weights=30%", "pattern": "pattern=2:4"}


@pytest.mark.parametrize("name", BUDGETS)
def test_sparsegpt_beats_wanda_beats_magnitude_beats_random(name):
    budget = BUDGETS[name]
    ours = [loss("sparsegpt", budget, seed) for seed in SEEDS]
    rivals = {rival: [loss(rival, budget, seed) for seed in SEEDS] for rival in ("wanda", "magnitude", "random")}
    order = [ours, *rivals.values()]
    lab.record(
        "sparsegpt", name, f"at {budget}, SparseGPT loses less than Wanda, that than magnitude, magnitude than random",
        all(lab.clearly_less(one, other) for one, other in itertools.pairwise(order)),
        ("loss", ours), {**rivals, "dense": [loss("dense", budget, 0)] * 3}, against=["wanda", "magnitude", "random"],
        setup=SETUP,
    )  # fmt: skip


def errors(seed: int) -> dict[str, list[float]]:
    """Relative error |W'X - WX|^2 / |WX|^2 of each matrix of the dense model's blocks, at half."""
    subject, found = lab.llama(), dict[str, list[float]]()
    windows, _ = texts.windows(lab.training(), subject.tokenizer, 128, lab.LENGTH, seed=seed)
    choose = functools.partial(weights.best, share=0.5, scope="matrix")
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks.visit(subject, windows, Path(folder), store=False):
            for name, moments in block.read(hessian.Moments).items():
                weight, H = block.matrices[name].weight, moments.value(name)
                mask = weights.best(wanda.scores(weight, H.diagonal()), 0.5, "row")
                for what, made in (
                    ("SparseGPT", obs.prune(weight, H, choose).weight),
                    ("Wanda's mask, corrected", obs.prune(weight, H, mask).weight),
                    ("Wanda", weight * mask),
                ):
                    change = made - weight
                    energy = torch.einsum("ij,jk,ik->", change, H, change) / torch.einsum(
                        "ij,jk,ik->", weight, H, weight
                    )
                    found.setdefault(what, []).append(float(energy))
    return found


def test_each_matrix_keeps_its_output_better():
    rows = [errors(seed) for seed in SEEDS]
    means = {what: [sum(row[what]) / len(row[what]) for row in rows] for what in rows[0]}
    ours = means.pop("SparseGPT")
    lab.record(
        "sparsegpt", "layers", "a matrix pruned to half gives its output with less error than by Wanda's mask with "
        "corrections, and that with less than without",
        lab.clearly_less(ours, means["Wanda's mask, corrected"])
        and lab.clearly_less(means["Wanda's mask, corrected"], means["Wanda"]),
        ("relative error, mean over matrices", ours), means, setup=SETUP,
    )  # fmt: skip


ANEW = "at this size it makes no difference: 4.079 against 4.077 nats, one way or the other from seed to seed"


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=ANEW)
def test_reading_anew_inside_a_block_is_no_worse():
    ours, others = ([loss("sparsegpt", "pattern=2:4", s, true_sequential=how) for s in SEEDS] for how in (True, False))
    lab.record(
        "sparsegpt", "sequential", "at 2:4, reading anew inside a block loses no more than one reading for all",
        lab.less(ours, others), ("loss", ours), {"one reading": others}, setup=SETUP, reason=ANEW,
    )  # fmt: skip


ONCE = (
    "a tie at this size, 4.3402 against 4.3410 nats over five models; of two larger ones one lost clearly less, the "
    "other by the mean"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=ONCE)
def test_pruning_and_rounding_at_once_beats_rounding_afterwards():
    ours, others = [], []
    for seed in ORIGINALS:
        ours.append(lab.held_out(oneshot.pruned("sparsegpt", "weights=50%", seed, lab.narrow(seed), bits=4).subject))
        student = oneshot.pruned("sparsegpt", "weights=50%", seed, lab.narrow(seed)).subject
        for matrix in blocks.matrices(student.model, student.layers()).values():
            rounded = obs.grid(matrix.weight, 4)
            matrix.weight.copy_(torch.stack([rounded(column) for column in matrix.weight.T], 1))
        others.append(lab.held_out(student))
    lab.record(
        "sparsegpt", "joint", "half the weights and four bits at once lose less than four bits after pruning",
        lab.clearly_less(ours, others), ("loss", ours), {"pruned, then rounded": others}, setup=MANY,
        reason=ONCE, seeds=ORIGINALS,
    )  # fmt: skip
