"""Pruning single weights of a language model block after block, in memory or streamed from the disk.

Shared by magnitude, Wanda, SparseGPT, OWL, STUN and D-Pruner: budgets, what matrices read, scores, one global
threshold, and the result.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError
from secateur.methods.protection import Protection
from secateur.score import hessian, obs, wanda
from secateur.select import weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.matrices import Matrix, matrices, nonzero
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Pattern, Result

__all__ = [
    "Model",
    "count_nonzero",
    "describe_losses",
    "follow_budget",
    "make_result",
    "measure_outliers",
    "prune_by_hessian",
    "prune_by_wanda",
    "prune_globally",
    "read_inputs",
    "read_windows",
    "smallest_group",
]

Model: TypeAlias = Transformer | Streamed
_NOTHING = Protection()

Width: TypeAlias = Callable[[int], int]
"""Columns of a matrix -> columns of one block of it."""


def _paper_width(columns: int) -> int:
    return min(columns, 128)


# ---------------------------------------------------------------------------------------------------------- budgets


def follow_budget(
    subject: Model,
    budget: Budget,
    recipe: str,
    scope: str,
    width: Width = _paper_width,
    *,
    all_stay: bool = False,
    stays: Collection[str] = (),
) -> tuple[float, Pattern | None]:
    """(share of the blocks' weights that stay, pattern or None); see `weights.read_budget`.

    scope, width: see `smallest_group`; all_stay: see `weights.read_budget`. stays: matrices that are not pruned. A
    budget counts them: the share is that of the other matrices, which lose so much more.

    Raises `BudgetError` for a budget that is not over single weights, and `InfeasibleError`, before anything is scored,
    for a share that leaves nothing of the smallest group, or less than what stays.
    """
    whole = blocks.count(subject)
    held = whole if budget.pattern is not None else count_nonzero(subject)
    share, pattern = weights.read_budget(budget, whole, recipe, held=held, all_stay=all_stay)
    if stays:
        kept = sum(m.weight.numel() for n, m in matrices(subject.model, subject.layers()).items() if n in stays)
        if kept == whole:
            raise BudgetError(f"all matrices are protected, so that nothing would change under {budget}: protect fewer")
        if pattern is None:
            share = _share_of_rest(budget, share, whole, kept, count_nonzero(subject, stays), held)
    if pattern is not None:
        return share, pattern
    size = smallest_group(subject, scope, width, stays)
    if int(share * size + 1e-9) < 1:
        what = "the" if scope == "global" else f"a {scope.replace('columns', 'block')} of"
        least = whole / (held * size)
        shown = math.ceil(1e5 * least) / 1e3
        raise InfeasibleError(f"{budget} leaves nothing of {what} {size} weights: keep at least {shown:g}%", least)
    return share, None


def _share_of_rest(budget: Budget, share: float, whole: int, kept: int, nonzero: int, held: float) -> float:
    """The share of the matrices that are pruned, where `kept` weights are protected, of which some are not zero."""
    left = share * whole - nonzero
    if left <= 0:
        least = nonzero / held
        raise InfeasibleError(
            f"{budget} keeps fewer weights than are protected: protect less, or keep more than {100 * least:.3g}%",
            least,
        )
    return min(1.0, left / (whole - kept))


def count_nonzero(subject: Model, only: Collection[str] | None = None) -> int:
    """How many weights of the matrices of all blocks, or `only` some, are not zero; one block is resident at a time."""
    total = 0
    for path in subject.layers():
        with subject.resident(path):
            found = matrices(subject.model, [path])
            total += nonzero({name: m for name, m in found.items() if only is None or name in only})
    return total


def smallest_group(subject: Model, scope: str, width: Width = _paper_width, without: Collection[str] = ()) -> int:
    """How many weights the smallest group of compared weights has: row, block, columns, matrix, layer, or global.

    A block is `width(columns)` columns of a matrix; scope "columns" is the same, the narrower last block of a matrix
    among them. without: names of matrices that are not compared.
    """
    sizes = [blocks.count(subject)]
    for path in subject.layers():
        compared = {name: m for name, m in matrices(subject.model, [path]).items() if name not in without}
        if not compared:
            continue
        shapes = [matrix.weight.shape for matrix in compared.values()]
        by_scope = {
            "row": [columns for _, columns in shapes],
            "block": [rows * min(width(columns), columns) for rows, columns in shapes],
            "columns": [rows * (columns % width(columns) or width(columns)) for rows, columns in shapes],
            "matrix": [rows * columns for rows, columns in shapes],
            "layer": [sum(rows * columns for rows, columns in shapes)],
        }
        sizes += by_scope.get(scope, [])
    return min(sizes)


# ----------------------------------------------------------------------------------------------------------- scores


def read_windows(
    subject: Model, corpus: Corpus, samples: int, length: int, *, seed: int, together: bool = True
) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    """Calibration windows as `subject` reads texts: running on for a decoder, else one by one; see `texts.windows`."""
    packed = subject.kind == "decoder"
    return texts.windows(corpus, subject.tokenizer, samples, length, seed=seed, together=together, packed=packed)


def read_inputs(
    block: blocks.Block,
    floor: int,
    *,
    diagonal: bool = True,
    only: Collection[str] | None = None,
    routed: bool = False,
) -> dict[str, hessian.Moments]:
    """Matrix of the block -> the moments of its inputs.

    Those of experts that saw fewer than `floor` tokens get the moments of all experts of their layer, and count in
    `block.starved`. diagonal: ||X_j||^2 alone, not all of X X^T. only, routed: see `blocks.Block.read`.
    """
    moments = block.read(partial(hessian.Moments, diagonal=diagonal), only, routed=routed)
    moments, starved = hessian.pool_starved(moments, {name: block.matrices[name].leaf for name in moments}, floor)
    block.starved += len(starved)
    return moments


def measure_outliers(
    subject: Model,
    windows: Sequence[Mapping[str, Tensor]],
    folder: Path,
    *,
    times: float,
    floor: int,
    routed: bool = False,
) -> tuple[list[float], list[float]]:
    """(outliers in percent, number of weights) of each block of the model as it is.

    Source: OWL (arXiv 2310.05175), section 3.2; see `wanda.outliers`.
    """
    outliers, sizes = list[float](), list[float]()
    for block in blocks.visit(subject, windows, folder, title="outliers", store=False, sequential=False):
        moments = read_inputs(block, floor, routed=routed)
        scores = (wanda.scores(m.weight, moments[name].squares(name)) for name, m in block.matrices.items())
        outliers.append(wanda.outliers(scores, times))
        sizes.append(float(sum(matrix.weight.numel() for matrix in block.matrices.values())))
    return outliers, sizes


# ---------------------------------------------------------------------------------------------------------- pruning


def prune_by_wanda(block: blocks.Block, choose: weights.Choose, floor: int, *, routed: bool = False) -> None:
    """Zero what `choose` drops of |W_ij| ||X_j|| in each matrix of the block."""
    moments = read_inputs(block, floor, routed=routed)
    for name, matrix in block.matrices.items():
        matrix.weight.mul_(choose(wanda.scores(matrix.weight, moments[name].value(name))))


def prune_by_hessian(
    block: blocks.Block,
    choose: weights.Choose,
    floor: int,
    *,
    only: Collection[str] | None = None,
    every: int = 128,
    damp: float = 0.01,
    bits: int = 0,
    group: int = 0,
    by_row: bool = False,
    protection: Protection = _NOTHING,
) -> float:
    """SparseGPT on the matrices of a block, or `only` some: `obs.Pruned.loss` of all.

    The Hessians are gone when it returns. every, damp, bits, group, by_row: see `obs.prune_all`. protection: matrices
    that stay, and those with other bits than `bits`.
    """
    pruned = [name for name in (block.matrices if only is None else only) if name not in protection.stays]
    moments = read_inputs(block, floor, diagonal=False, only=pruned)
    by_bits: dict[int, dict[str, hessian.Moments]] = {}
    for name in moments:
        by_bits.setdefault(protection.bits.get(name, bits) if bits else 0, {})[name] = moments[name]
    loss = 0.0
    for number, some in by_bits.items():
        if len(by_bits) > 1:  # each takes its Hessians apart, which matrices of other bits may share
            some = copy.deepcopy(some)
        found = {name: block.matrices[name].weight for name in some}
        loss += obs.prune_all(found, some, choose, every=every, damp=damp, bits=number, group=group, by_row=by_row)
    return loss


def prune_globally(
    student: Model, folder: Path, score: Callable[[Matrix], Tensor], share: float, stays: Collection[str] = ()
) -> None:
    """Keep, in place, the best int(n share) of all n weights of the blocks but those that stay, under one threshold.

    Scores are computed anew in each pass and let go, block by block. A killed run starts again.
    """
    distributed.by_first(lambda: shutil.rmtree(folder, ignore_errors=True))

    def arrays() -> Iterator[tuple[str, Tensor]]:
        for path in student.layers():
            with student.resident(path):
                for name, matrix in matrices(student.model, [path]).items():
                    if name not in stays:
                        yield name, score(matrix)

    found = matrices(student.model, student.layers()).items()
    whole = sum(matrix.weight.numel() for name, matrix in found if name not in stays)
    edge, ties = weights.threshold(arrays, k=int(share * whole + 1e-9))
    for resident in blocks.walk(student, folder):
        for matrix in (matrix for name, matrix in resident.items() if name not in stays):
            mask, ties = weights.above(score(matrix), edge, ties)
            matrix.weight.mul_(mask)


# ----------------------------------------------------------------------------------------------------------- results


def describe_losses(run: Run, budget: Budget, subject: Model) -> str:
    """A note on SparseGPT's loss of each block, as stored in the run: `obs.describe_losses`."""
    losses = [run.json(f"loss-{budget}-{index}", lambda: None) for index in range(len(subject.layers()))]
    return obs.describe_losses(losses)


def make_result(
    subject: Model, student: Model, budget: Budget, of_cut: Sequence[str] = (), notes: Sequence[str] = (), **more: Any
) -> Result:
    """What became zero in `student`, as a result without training; `of_cut` are notes of its receipt."""
    cut = blocks.receipt(subject, student, of_cut)
    return Result(str(budget), student, cut, {"weights": cut.after["weights"]}, None, tuple(notes), **more)
