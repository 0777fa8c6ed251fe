"""SparseGPT: massive language models can be accurately pruned in one-shot.

Frantar and Alistarh, ICML 2023 (arXiv 2301.00774).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

from annotated_types import Ge, MultipleOf
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.methods import blockwise
from secateur.methods.protection import read_protection
from secateur.methods.traces import answer_prompts
from secateur.score import hessian
from secateur.select import weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Result

CARD = {
    "title": "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    "paper": "https://arxiv.org/abs/2301.00774",
    "cuts": "single weights, any share or n:m, to zeros",
    "recovers": "the weights that stay make up for those that go, by the inverse Hessian of each matrix",
    "extra": "",
    "family": "sparse",
}


def sparsegpt(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    samples: Annotated[int, Ge(1)] = 128,
    length: Annotated[int, Ge(1)] = 128,
    damp: Annotated[float, Ge(0)] = 0.01,
    columns: Annotated[int, Ge(1)] = 128,
    scope: weights.Scope = "block",
    sequential: bool = True,
    true_sequential: bool = False,
    bits: int = 0,
    group: Annotated[int, Ge(0), MultipleOf(16)] = 0,
    floor: int = 1,
    protect: str = "",
    traces: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Go through the columns of each matrix; what goes is made up for by the columns to its right.

    For each block in turn:

    1. all windows run through it, and H = 2 X X^T / N of the inputs of each matrix is summed up; matrices with the same
       inputs (queries, keys and values) share one;
    2. U = Cholesky((H + damp mean(diag H) I)^-1)^T;
    3. for each `columns` columns, those weights go whose w_ij^2 / U_jj^2 is smallest among them, over all rows; for
       n:m, for each m columns and each row; always by weights that hold all corrections so far;
    4. column by column, e = (w - q) / U_jj is spread over the columns to the right, W -= e U_j: (algorithm 1);
    5. the windows run through the pruned block, for the next one (not with `sequential` off).

    Args:
        subject: a language model, in memory or, a causal one, streamed from the disk; it stays as it is.
        data: general text.
        budgets: weights=50% (of the matrices of the blocks; embeddings, norms, head and routers stay), or pattern=2:4.
        run: where finished blocks and the states between blocks go.
        samples: calibration windows.
        length: tokens per window; the model's full length at real scale.
        damp: dampening, as a share of the mean of the Hessian's diagonal.
        columns: columns of a block, among whose weights those are found that go.
        scope: what is compared: block (of columns), row or matrix. Rows and matrices are compared as a whole, so by the
            weights as they were before any correction. A pattern is of single rows in any case.
        sequential: let a block read what the pruned blocks before it give. Off, it reads what the dense ones gave, and
            each block runs once in place of twice.
        true_sequential: inside a block, read anew what a matrix gets once the matrices before it are pruned.
        bits: if not 0, what stays is rounded to 2^bits levels per row on the way (joint quantisation, section 3.5). The
            result holds them as floats; the export "packed" stores them in so many bits, equal to the bit.
        group: columns of a row that share their levels, such as 128; 0 for the whole row. With weights=100% nothing is
            cut, and what is left of the method is GPTQ (arXiv 2210.17323) with groups of this size; weights that are
            zero already stay so.
        floor: experts with fewer tokens are pruned by the Hessian of all experts of their layer.
        protect: a protect.json: modules that stay as they are, which a budget of weights counts (the others lose more),
            and, with `bits`, modules with a number of bits of their own.
        traces: a task file, as `secateur study reasoning` reads it: calibrate on what the model itself answers to its
            prompts, its thoughts among it, in place of the data.
        seed: of the choice of windows.
        dry_run: as a run; nothing is kept.

    Departures: dead inputs do not enter the mean of the dampening, which grows until Cholesky succeeds. Each
    block of columns keeps int(n share) of its n weights. Experts without tokens are pruned by their layer's Hessian.
    """
    if bits and not 2 <= bits <= 8:
        raise InputError(f"bits={bits}: give 2 to 8, or 0 for no rounding")
    if group and not bits:
        raise InputError(f"group={group} is of levels, and nothing is rounded: give bits too")
    if true_sequential and not sequential:
        raise InputError("true_sequential reads anew inside a block, so between blocks too: leave sequential on")
    if scope == "global":
        raise InputError(
            "scope=global: corrections stay within a matrix, and so does what is compared; give block, row or matrix"
        )
    protection = read_protection(protect, subject)
    if protection.bits and not bits:
        raise InputError(f"{protect} gives modules bits of their own, and nothing is rounded: give bits too")
    corpus = answer_prompts(subject, traces, run.folder("traces"), samples * length) if traces else data
    windows, notes = blockwise.read_windows(subject, corpus, samples, length, seed=seed)
    for budget in budgets:
        compared = "columns" if scope == "block" else scope
        share, pattern = blockwise.follow_budget(
            subject, budget, "sparsegpt", compared, partial(min, columns), all_stay=bits > 0, stays=protection.stays
        )
        by_row = pattern is not None or scope == "row"
        choose = weights.chooser(share, pattern, "row" if by_row else "matrix")
        every = pattern.m if pattern else columns if scope == "block" else 0
        if str(budget) == "weights=100%":
            choose, every = choose_nonzero, 0
        student, folder = subject.copy(), run.folder(f"blocks-{budget}")
        for block in blocks.visit(student, windows, folder, sequential=sequential):
            lost = 0.0
            for names in block.order() if true_sequential else [list(block.matrices)]:
                lost += blockwise.prune_by_hessian(
                    block,
                    choose,
                    floor,
                    only=names,
                    every=every,
                    damp=damp,
                    bits=bits,
                    group=group,
                    by_row=by_row,
                    protection=protection,
                )
            run.json(f"loss-{budget}-{block.index}", partial(float, lost))  # for a run that goes on behind this block
        of_cut = [*notes, *hessian.describe_starved(blocks.count_starved(folder), floor, "pruned by their layer's H")]
        if bits:
            kept = f"for each {group} columns" if group else f"a row: `secateur export --to packed` keeps {bits} bits"
            of_cut.append(f"rounded to {2**bits} levels, held as floats, {kept}")
        yield blockwise.make_result(subject, student, budget, of_cut, [blockwise.describe_losses(run, budget, subject)])
        del student  # or it would be held beside the next one


def choose_nonzero(scores: Tensor) -> Tensor:
    """Which weights [d_out, d_in] are not zero, by the scores of all of them before any correction."""
    return scores > 0
