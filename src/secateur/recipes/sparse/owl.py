"""OWL: outlier weighed layerwise sparsity.

Yin et al., ICML 2024 (arXiv 2310.05175).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.methods import blockwise
from secateur.score import hessian
from secateur.select import allocate, weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Pattern, Result

CARD = {
    "title": "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
    "paper": "https://arxiv.org/abs/2310.05175",
    "cuts": "single weights to zeros, more in blocks with fewer outliers",
    "recovers": "as the method it lends its shares to: none for wanda and magnitude, corrections for sparsegpt",
    "extra": "",
    "family": "sparse",
}

SCOPES: dict[str, weights.Scope] = {"wanda": "row", "sparsegpt": "block", "magnitude": "matrix"}
"""What each method compares inside a block of the model, unless told otherwise."""


def owl(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    method: Literal["wanda", "sparsegpt", "magnitude"] = "wanda",
    scope: weights.Scope | None = None,
    samples: Annotated[int, Ge(1)] = 128,
    length: Annotated[int, Ge(1)] = 128,
    spread: Annotated[float, Ge(0)] | None = None,
    times: Annotated[float, Gt(0)] = 5.0,
    damp: Annotated[float, Ge(0)] = 0.01,
    floor: int = 1,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Blocks with more outliers among |W_ij| ||X_j|| keep more weights.

    1. D_l = 100 #{A > times mean(A)} / n over the scores A of all matrices of block l, in the original model;
    2. each block's density is 2 spread (D_l - min D) / (max D - min D), shifted so that the budget is met;
    3. Wanda, SparseGPT or magnitude prunes block after block by these shares.

    Args:
        subject: a language model, in memory or, a causal one, streamed from the disk; it stays as it is.
        data: general text.
        budgets: weights=30%, or a pattern, of which each block then gets an n of its own with that mean.
        run: where outlier shares, finished blocks and the states between blocks go.
        method: what prunes by the shares.
        scope: what is compared inside a block of the model: row, block (128 columns) or matrix. Unless given, that of
            the method: row for wanda, block for sparsegpt, matrix for magnitude.
        samples: calibration windows.
        length: tokens per window; the model's full length at real scale.
        spread: the paper's lambda, 0.08 unless given: densities differ by at most twice as much. For a pattern, how
            much they differ: 0.25 unless given, which is 2 of 8 as in the paper.
        times: the paper's M, what makes an outlier (5; the official code's default is 3).
        damp: dampening of sparsegpt.
        floor: experts with fewer tokens are judged by what all experts of their layer saw.
        seed: of the choice of windows.
        dry_run: as a run; nothing is kept.

    Departures: shares are weighted by the blocks' sizes, so that the budget is met where blocks differ; with equal
    blocks they are the paper's. Equal outlier shares give uniform sparsity, where the official code divides by zero.
    For patterns n stays between 1 and m. A block's density is at most 1, where the official code stops at 0.99, and at
    least 1 % or one weight of what is compared.
    """
    windows, notes = blockwise.read_windows(subject, data, samples, length, seed=seed)
    if scope == "global":
        raise InputError("scope=global: owl gives each block of the model its own share; give row, block or matrix")
    scope = scope or SCOPES[method]
    compared = "columns" if scope == "block" else scope
    targets = [blockwise.follow_budget(subject, budget, "owl", compared) for budget in budgets]
    least = max(0.01, 1.0 / blockwise.smallest_group(subject, compared))

    def look() -> list[tuple[float, float]]:
        folder = run.folder("outliers")
        return list(zip(*blockwise.measure_outliers(subject, windows, folder, times=times, floor=floor), strict=True))

    outliers, sizes = zip(*run.json("outliers", look), strict=True)
    run.drop("outliers")
    for budget, (share, pattern) in zip(budgets, targets, strict=True):
        patterns: list[Pattern] = []
        if pattern is None:
            half = 0.08 if spread is None else spread
            shares = allocate.spread(outliers, share, half, sizes=sizes, least=least)
            # SparseGPT asks for each block of columns by itself.
            within = "matrix" if method == "sparsegpt" and scope == "block" else scope
            choosers = [weights.chooser(own, None, within) for own in shares]
        else:
            half = (0.25 if spread is None else spread) * pattern.m / 2
            kept = allocate.spread(outliers, pattern.n, half, sizes=sizes, whole=pattern.m)
            patterns = [Pattern(int(n), pattern.m) for n in allocate.round_to_total(kept, sizes, most=pattern.m)]
            choosers = [weights.chooser(1.0, own) for own in patterns]
        every = pattern.m if pattern else 128 if scope == "block" else 0
        student, folder = subject.copy(), run.folder(f"blocks-{budget}")
        visited: Iterable[blocks.Block] = ()
        if method == "magnitude":  # what a block reads has no say: none is run
            prune_by_magnitude(student, folder, dict(zip(subject.layers(), choosers, strict=True)))
        else:
            visited = blocks.visit(student, windows, folder)
        for block in visited:
            choose = choosers[block.index]
            if method == "sparsegpt":
                loss = blockwise.prune_by_hessian(block, choose, floor, every=every, damp=damp)
                run.json(f"loss-{budget}-{block.index}", partial(float, loss))  # for a run that goes on behind it
            else:
                blockwise.prune_by_wanda(block, choose, floor)
        told = "outliers by block: " + ", ".join(f"{value:.2f} %" for value in outliers)
        if pattern is not None:
            told += f"; weights that stay of {pattern.m}: " + ", ".join(str(own.n) for own in patterns)
        by_matrix = {
            name: own
            for path, own in zip(subject.layers(), patterns, strict=False)
            for name in matrices(subject.model, [path])
        }
        yield blockwise.make_result(
            subject, student, budget, (*notes, *hessian.describe_starved(blocks.count_starved(folder), floor)),
            [told, *([blockwise.describe_losses(run, budget, subject)] if method == "sparsegpt" else [])],
            patterns=by_matrix,
        )  # fmt: skip
        del student  # or it would be held beside the next one


def prune_by_magnitude(student: Transformer | Streamed, folder: Path, choosers: Mapping[str, weights.Choose]) -> None:
    """Zero, in place, what the chooser of each block (by path) leaves of its |W|."""
    owners = {name: path for path in choosers for name in matrices(student.model, [path])}
    for found in blocks.walk(student, folder):
        for name, matrix in found.items():
            matrix.weight.mul_(choosers[owners[name]](matrix.weight.abs()))
