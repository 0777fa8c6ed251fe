"""Magnitude pruning: the smallest weights go.

Han, Pool, Tran and Dally, NeurIPS 2015 (arXiv 1506.02626).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.methods import blockwise
from secateur.methods.protection import read_protection
from secateur.select import weights
from secateur.subjects import Streamed, Transformer
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget, Result

CARD = {
    "title": "Learning both Weights and Connections for Efficient Neural Networks",
    "paper": "https://arxiv.org/abs/1506.02626",
    "cuts": "single weights, any share or n:m, to zeros",
    "recovers": "nothing is trained",
    "extra": "",
    "family": "sparse",
}


def magnitude(
    subject: Transformer | Streamed,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    scope: weights.Scope = "matrix",
    protect: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Zero the weights of smallest |W|, by row, block, matrix or over all of the model.

    Args:
        subject: a causal language model, in memory or streamed from the disk; it stays as it is.
        data: not looked at; quality is measured on it.
        budgets: weights=50% (of the matrices of the blocks; embeddings, norms, head and routers stay), or pattern=2:4.
        run: where finished blocks go.
        scope: what is compared: row, block (128 columns), matrix or global.
        protect: a protect.json: modules that stay as they are, which a budget of weights counts (the others lose more).
        seed: not used; nothing here is random.
        dry_run: as a run; nothing is kept.

    Departures: no training afterwards, which the paper's method alternates with; as a one-shot baseline of language
    models. Exactly int(n share) weights stay of n that are compared, where widely used code takes one too many.
    """
    stays = read_protection(protect, subject).stays
    for budget in budgets:
        share, pattern = blockwise.follow_budget(subject, budget, "magnitude", scope, stays=stays)
        student, folder = subject.copy(), run.folder(f"blocks-{budget}")
        if scope == "global" and pattern is None:
            blockwise.prune_globally(student, folder, lambda matrix: matrix.weight.abs(), share, stays)
        else:
            choose = weights.chooser(share, pattern, scope)
            for block in blocks.walk(student, folder):
                for matrix in (matrix for name, matrix in block.items() if name not in stays):
                    matrix.weight.mul_(choose(matrix.weight.abs()))
        yield blockwise.make_result(subject, student, budget)
        del student  # or it would be held beside the next one
