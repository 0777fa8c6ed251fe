"""Is the first draw of the weights a winning ticket? The comparison of arXiv 1810.05270, section 6.

A network is trained and pruned. In the shape that is left, the ticket starts from the very weights the network started
from (Frankle and Carbin, arXiv 1803.03635), its rival from a new draw of the same distribution. Both are trained alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from secateur.errors import InputError
from secateur.files.examples import Examples
from secateur.measure import statistics
from secateur.recipes.vision import rethinking_pruning_value as rethinking
from secateur.recipes.vision.rethinking_pruning_value import Augment
from secateur.recover import initialise
from secateur.running import keywords
from secateur.subjects.traced import Traced
from secateur.vocabulary import Budget, Figure

__all__ = ["Tickets", "lottery"]


@dataclass(frozen=True, slots=True)
class Tickets:
    """What tickets and new draws reach at one learning rate; accuracies per seed."""

    lr: float
    dense: tuple[float, ...]
    ticket: tuple[float, ...]
    drawn: tuple[float, ...]

    @property
    def difference(self) -> Figure:
        """Ticket minus new draw in percentage points, paired over seeds."""
        return rethinking.in_points(statistics.paired_difference(self.ticket, self.drawn))


def lottery(
    network: Traced,
    data: Examples,
    judged: Examples,
    *,
    kept: float = 0.2,
    method: str = "unstructured",
    rounds: int = 1,
    lrs: Sequence[float] = (0.1, 0.01),
    epochs: int = 160,
    batch: int = 64,
    weight_decay: float = 1e-4,
    seeds: Sequence[int] = (0, 1, 2),
    norm: float = 1.0,
    augment: Augment | None = None,
    optimizer: str = "sgd",
) -> tuple[Tickets, ...]:
    """Train, prune, start again: per learning rate, the ticket beside a new draw in the same shape.

    Args:
        network: the architecture; its weights don't matter.
        kept: share of convolution weights ("unstructured") or of channels ("l1") that stays.
        method: "unstructured" or "l1".
        rounds: 1 prunes at once. More prune iteratively, each round the same share of what is left, and train anew
            from the first draw in between; only for "unstructured".
        lrs: first learning rates; the claim is about the large one beside the small one.
        epochs: of every training.
        seeds: of draws and order; a ticket and its rival share the order.
        optimizer: "sgd", or "adamw" in place of the paper's Adam, for which give rates of 0.001 and below.
    """
    if method not in ("unstructured", "l1"):
        raise InputError(f"method={method!r} is not one of unstructured, l1")
    if optimizer not in ("sgd", "adamw"):
        raise InputError(f"optimizer={optimizer!r} is not one of sgd, adamw")
    if rounds < 1 or (rounds > 1 and method == "l1"):
        raise InputError(f"rounds={rounds}: give 1, or more for unstructured pruning")
    if not 0 < kept < 1:
        raise InputError(f"kept={kept} is no share between 0 and 1")
    keywords.check_seed(*seeds)
    found = []
    for lr in lrs:
        fit = partial(
            rethinking.fit,
            data=data,
            epochs=epochs,
            lr=lr,
            batch=batch,
            weight_decay=weight_decay,
            augment=augment,
            optimizer=optimizer,
        )
        accuracies: list[tuple[float, float, float]] = []
        for seed in seeds:
            first, large, closed = _draw(network, seed, norm), _draw(network, seed, norm), dict[str, Tensor]()
            fit(large.model, seed=seed)
            dense = rethinking.right(large.model, judged).mean()
            for part in range(1, rounds + 1):
                if part > 1:
                    large = rethinking.duplicate(first)
                    fit(large.model, seed=seed, closed=closed)
                left = kept ** (part / rounds)
                measure = "weights" if method == "unstructured" else "channels"
                pruned = rethinking.prune(large, Budget.parse(f"{measure}={100 * left:.6f}%"), method)
                closed = dict(pruned.masks)
            ticket, rival = rethinking.duplicate(first), _draw(network, seed + 1000, norm)
            if pruned.selection is not None:
                ticket, rival = ticket.cut(pruned.selection)[0], rival.cut(pruned.selection)[0]
            for one in (ticket, rival):
                fit(one.model, seed=seed, closed=closed)
            both = (rethinking.right(one.model, judged).mean() for one in (ticket, rival))
            accuracies.append((float(dense), *map(float, both)))  # type: ignore[arg-type]
        found.append(Tickets(lr, *(tuple(column) for column in zip(*accuracies, strict=True))))
    return tuple(found)


def _draw(network: Traced, seed: int, norm: float) -> Traced:
    """The network's shape with weights of the dense rule: what a mask closes later changes no variance."""
    model, _ = initialise.fresh(network.model, seed=seed, norm=norm)
    return Traced(model, network.inputs, network.plans)
