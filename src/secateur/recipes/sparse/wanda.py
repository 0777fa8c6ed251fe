"""Wanda: pruning by weights and activations.

Sun, Liu, Bair and Kolter, ICLR 2024 (arXiv 2306.11695).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.methods import blockwise
from secateur.methods.protection import read_protection
from secateur.methods.traces import answer_prompts
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
    samples: Annotated[int, Ge(1)] = 128,
    length: Annotated[int, Ge(1)] = 128,
    scope: weights.Scope = "row",
    cumulative: bool = False,
    sequential: bool = True,
    floor: int = 1,
    protect: str = "",
    traces: str = "",
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
        subject: a language model, in memory or, a causal one, streamed from the disk; it stays as it is.
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
        protect: a protect.json: modules that stay as they are, which a budget of weights counts (the others lose more).
        traces: a task file, as `secateur study reasoning` reads it: calibrate on what the model itself answers to its
            prompts, its thoughts among it, in place of the data.
        seed: of the choice of windows.
        dry_run: as a run; nothing is kept.

    Departures: exactly int(n share) weights stay of n that are compared. Experts that saw no token are pruned by their
    layer's norms, where the official code skips them, so that the budget is met. The variant for
    image classifiers (ConvNeXt and ViT), which the official code has beside language models, is left out.
    """
    stays = read_protection(protect, subject).stays
    corpus = answer_prompts(subject, traces, run.folder("traces"), samples * length) if traces else data
    windows, notes = blockwise.read_windows(subject, corpus, samples, length, seed=seed)
    for budget in budgets:
        compared = "matrix" if cumulative else scope
        share, pattern = blockwise.follow_budget(subject, budget, "wanda", compared, stays=stays)
        if cumulative and (pattern is not None or scope != "row"):
            raise InputError("cumulative compares sums of scores in rows: give a share of weights and scope=row")
        globally = scope == "global" and pattern is None
        choose: weights.Choose | None = None
        if cumulative:
            choose = partial(weights.by_sums, share=share)
        elif not globally:
            choose = weights.chooser(share, pattern, scope)
        student, starved = subject.copy(), 0
        norms: dict[str, Tensor] = {}
        name, in_turn = f"blocks-{budget}", sequential and not globally
        for block in blocks.visit(student, windows, run.folder(name), store=not globally, sequential=in_turn):
            moments = blockwise.read_inputs(block, floor, only=[key for key in block.matrices if key not in stays])
            starved += block.starved
            for key, matrix in block.matrices.items():
                if key in stays:
                    continue
                norms[key] = moments[key].squares(key)
                if choose is not None:
                    matrix.weight.mul_(choose(score.scores(matrix.weight, norms[key])))
        if globally:
            run.drop(name)
            of_norms = partial(_scores, norms)
            blockwise.prune_globally(student, run.folder(f"global-{budget}"), of_norms, share, stays)
        else:
            starved = blocks.count_starved(run.folder(name))
        yield blockwise.make_result(subject, student, budget, (*notes, *hessian.describe_starved(starved, floor)))
        del student  # or it would be held beside the next one


def _scores(norms: Mapping[str, Tensor], matrix: Matrix) -> Tensor:
    return score.scores(matrix.weight, norms[matrix.name])
