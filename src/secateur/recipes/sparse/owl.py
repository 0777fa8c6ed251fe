"""OWL: outlier weighed layerwise sparsity.

Yin et al., ICML 2024 (arXiv 2310.05175).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.score import hessian, obs, wanda
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


def owl(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    method: Literal["wanda", "sparsegpt", "magnitude"] = "wanda",
    scope: weights.Scope | None = None,
    samples: int = 128,
    length: int = 128,
    spread: float | None = None,
    times: float = 5.0,
    damp: float = 0.01,
    floor: int = 1,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Blocks with more outliers among |W_ij| ||X_j|| keep more weights.

    1. D_l = 100 #{A > times mean(A)} / n over the scores A of all matrices of block l, in the original model;
    2. each block's density is 2 spread (D_l - min D) / (max D - min D), shifted so that the budget is met;
    3. Wanda, SparseGPT or magnitude prunes block after block by these shares.

    Args:
        subject: a causal language model, in memory or streamed from the disk; it stays as it is.
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
    windows, notes = texts.windows(data, subject.tokenizer, samples, length, seed=seed, together=True)
    whole = blocks.count(subject)
    norms = partial(hessian.Moments, diagonal=True)
    if scope == "global":
        raise InputError("scope=global: owl gives each block of the model its own share; give row, block or matrix")
    own: dict[str, weights.Scope] = {"wanda": "row", "sparsegpt": "block", "magnitude": "matrix"}
    scope = scope or own[method]
    asked = [weights.asked(budget, whole, "owl") for budget in budgets]
    least = [
        1.0 / blocks.enough(subject, budget, share, "columns" if scope == "block" else scope)
        if pattern is None
        else 0.0
        for budget, (share, pattern) in zip(budgets, asked, strict=True)
    ]

    def look() -> list[list[float]]:
        found = []
        for block in blocks.visit(
            subject, windows, run.folder("outliers"), title="outliers", store=False, sequential=False
        ):
            pools = {m.name: m.leaf for m in block.matrices.values()}
            moments, _ = hessian.pooled(block.read(norms), pools, floor)
            scores = (wanda.scores(m.weight, moments[name].value(name)) for name, m in block.matrices.items())
            size = sum(m.weight.numel() for m in block.matrices.values())
            found.append([wanda.outliers(scores, times), float(size)])
        return found

    outliers, sizes = zip(*run.json("outliers", look), strict=True)
    run.drop("outliers")
    for budget, (share, pattern), low in zip(budgets, asked, least, strict=True):
        patterns = list[Pattern]()
        if pattern is None:
            half = 0.08 if spread is None else spread
            shares = allocate.spread(outliers, share, half, sizes=sizes, least=max(0.01, low))
            # SparseGPT asks for each block of columns by itself.
            within = "matrix" if method == "sparsegpt" and scope == "block" else scope
            chosen = [weights.chooser(one, None, within) for one in shares]
        else:
            half = (0.25 if spread is None else spread) * pattern.m / 2
            kept = allocate.spread(outliers, pattern.n, half, sizes=sizes, whole=pattern.m)
            patterns = [Pattern(int(n), pattern.m) for n in allocate.rounded(kept, sizes, most=pattern.m)]
            chosen = [weights.chooser(1.0, one) for one in patterns]
        student, starving = subject.copy(), 0
        each = {
            name: one
            for path, one in zip(subject.layers(), patterns, strict=False)
            for name in matrices(subject.model, [path])
        }
        every = pattern.m if pattern else 128 if scope == "block" else 0
        for block in blocks.visit(student, windows, run.folder(f"blocks-{budget}")):
            reader = hessian.Moments if method == "sparsegpt" else norms
            few, loss = prune(block, chosen[block.index], reader, method, every, damp, floor)
            starving += few
            if method == "sparsegpt":  # for a run that goes on behind this block
                run.json(f"loss-{budget}-{block.index}", partial(float, loss))
        cut = blocks.receipt(subject, student, (*notes, *hessian.shortage(starving, floor)))
        told = "outliers by block: " + ", ".join(f"{value:.2f} %" for value in outliers)
        if pattern is not None:
            told += "; weights that stay of " + f"{pattern.m}: " + ", ".join(str(one.n) for one in patterns)
        said = [told]
        if method == "sparsegpt":
            losses = [run.json(f"loss-{budget}-{index}", lambda: None) for index in range(len(subject.layers()))]
            said.append(obs.described(losses))
        yield Result(str(budget), student, cut, {"weights": cut.after["weights"]}, None, tuple(said), patterns=each)


def prune(
    block: blocks.Block, choose: weights.Choose, reader: Callable[[], hessian.Moments], method: str, every: int,
    damp: float, floor: int,
) -> tuple[int, float]:  # fmt: skip
    """Prune the matrices of a block by `method`: (how many starved, SparseGPT's loss). What they read is then gone."""
    moments, starved = hessian.pooled(block.read(reader), {m.name: m.leaf for m in block.matrices.values()}, floor)
    if method == "sparsegpt":
        found = {name: matrix.weight for name, matrix in block.matrices.items()}
        return len(starved), obs.prune_all(found, moments, choose, every=every, damp=damp)
    for name, matrix in block.matrices.items():
        weight, squares = matrix.weight, moments[name].value(name)
        weight.mul_(choose(wanda.scores(weight, squares) if method == "wanda" else weight.abs()))
    return len(starved), 0.0
