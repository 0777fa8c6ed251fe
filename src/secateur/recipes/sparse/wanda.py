"""Wanda: pruning by weights and activations.

Sun, Liu, Bair and Kolter, ICLR 2024 (arXiv 2306.11695).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.score import hessian
from secateur.score import wanda as score
from secateur.select import weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.matrices import Matrix
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Result

CARD = {
    "title": "Wanda: A Simple and Effective Pruning Approach for Large Language Models",
    "paper": "https://arxiv.org/abs/2306.11695",
    "cuts": "single weights, any share or n:m, to zeros",
    "recovers": "nothing is trained; each block is judged on what pruned blocks before it give",
    "extra": "",
    "family": "sparse",
}


def wanda(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    samples: int = 128,
    length: int = 128,
    scope: weights.Scope = "row",
    cumulative: bool = False,
    sequential: bool = True,
    floor: int = 1,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Zero the weights with the smallest |W_ij| ||X_j||, row by row, block after block.

    For each block in turn:

    1. all windows run through it as it is, and ||X_j||^2 of each input of each matrix is summed up (over the tokens
       that an expert got, in a mixture of experts);
    2. of each row of each matrix, the weights with the smallest |W_ij| ||X_j|| become zero (equation 1);
    3. the windows run through the pruned block, for the next one (not with `sequential` off).

    Args:
        subject: a causal language model, in memory or streamed from the disk; it stays as it is.
        data: general text.
        budgets: weights=50% (of the matrices of the blocks; embeddings, norms, head and routers stay), or pattern=2:4.
        run: where finished blocks and the states between blocks go.
        samples: calibration windows.
        length: tokens per window; the model's full length at real scale.
        scope: what is compared: row, block (128 columns), matrix or global. Global takes all norms from the original.
        cumulative: each row loses what is below a share of its summed scores (the paper's appendix), with one share for
            a matrix, found by bisection, that meets the budget.
        sequential: let a block read what the pruned blocks before it give. Off, it reads what the dense ones gave, and
            each block runs once in place of twice; so it is with scope=global.
        floor: experts with fewer tokens are judged by the norms of all experts of their layer.
        seed: of the choice of windows.
        dry_run: as a run; nothing is kept.

    Departures: exactly int(n share) weights stay of n that are compared. Experts that saw no token are pruned by their
    layer's norms, where the official code skips them, so that the budget is met.
    """
    windows, notes = texts.windows(data, subject.tokenizer, samples, length, seed=seed, together=True)
    whole = blocks.count(subject)
    for budget in budgets:
        share, pattern = weights.asked(budget, whole, "wanda")
        if cumulative and (pattern is not None or scope != "row"):
            raise InputError("cumulative compares sums of scores in rows: give a share of weights and scope=row")
        if pattern is None:
            blocks.enough(subject, budget, share, "matrix" if cumulative else scope)
        student, starving = subject.copy(), 0
        everywhere = scope == "global" and pattern is None
        choose: weights.Choose | None = partial(weights.by_sums, share=share) if cumulative else None
        if choose is None and not everywhere:
            choose = weights.chooser(share, pattern, scope)
        norms: dict[str, Tensor] = {}
        name, alone = f"blocks-{budget}", sequential and not everywhere
        for block in blocks.visit(student, windows, run.folder(name), store=not everywhere, sequential=alone):
            moments = block.read(partial(hessian.Moments, diagonal=True))
            moments, starved = hessian.pooled(moments, {m.name: m.leaf for m in block.matrices.values()}, floor)
            starving += len(starved)
            for key, matrix in block.matrices.items():
                norms[key] = moments[key].value(key)
                if choose is not None:
                    matrix.weight.mul_(choose(score.scores(matrix.weight, norms[key])))
        if everywhere:
            run.drop(name)
            blocks.everywhere(
                student, run.folder(f"global-{budget}"), partial(of_matrix, norms),
                partial(weights.threshold, k=int(share * whole + 1e-9)), weights.above,
            )  # fmt: skip
        cut = blocks.receipt(subject, student, (*notes, *hessian.shortage(starving, floor)))
        yield Result(str(budget), student, cut, {"weights": cut.after["weights"]}, None, ())


def of_matrix(norms: Mapping[str, Tensor], matrix: Matrix) -> Tensor:
    """|W_ij| ||X_j|| of a matrix whose norms are known."""
    return score.scores(matrix.weight, norms[matrix.name])
