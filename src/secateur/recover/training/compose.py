"""Several losses as one objective: each with a name, a weight, a warm-up, and perhaps in balance with another.

    L = sum_i w_i r_i(done) b_i L_i

w_i the weight, r_i the ramp from 0 to 1 over the term's warm-up, b_i 1 or what makes the term as large as another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from secateur.errors import InputError

__all__ = ["Objective", "Parts", "Term", "balance", "compose", "ramp", "sum_layers"]

View = TypeVar("View")

Parts = Mapping[str, float | Tensor]
"""What an objective shows beside its loss: numbers by name, without gradients. A tensor need not be waited for."""

Objective = Callable[[Mapping[str, Any], Mapping[str, int]], tuple[Tensor, Parts]]


@dataclass(frozen=True)
class Term(Generic[View]):
    """One loss among several."""

    name: str
    loss: Callable[[View, Mapping[str, Any]], Tensor]
    """(what `look` gave, batch) -> a SUM over what it counts."""
    weight: float = 1.0
    warmup: float = 0.0
    """Steps, or a share of all steps if below 1, over which the weight grows from 0 in a straight line."""
    like: str = ""
    """An earlier term: this one is multiplied by what makes it as large (`balance`), then by its weight."""
    per: str = "examples"
    """Which of the step's totals the sum is divided by."""


def compose(
    terms: Sequence[Term[View]],
    look: Callable[[Mapping[str, Any]], View],
    *,
    steps: int = 0,
    stairs: float = 0.0,
) -> Objective:
    """The objective of `loop.train`: one `look` at the batch for all terms, their sum, and each as it was by its name.

    Args:
        terms: what is added up. A term whose weight is 0, at this step or at all, is not computed, and not among the
            parts: it changes nothing, not even the random numbers that others draw.
        look: batch -> what the terms need: the passes of student and teacher, with their taps.
        steps: of the training, for warm-ups in steps.
        stairs: warm-ups rise in so many stairs over the training, such as its epochs: the first stands at 0. Without,
            they rise with every step.

    Batches need "done", the share of training that is over (`data.batches.Numbered`), where a term warms up. Raises
    `InputError` for terms of one name, for one in balance with none before it, for weights and warm-ups that are no
    numbers of at least 0, and where no term is active at the first step.
    """
    _check(terms, steps)
    shares = {term.name: term.warmup if term.warmup < 1 else term.warmup / steps for term in terms}

    def objective(batch: Mapping[str, Any], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        view, total, found = look(batch), None, dict[str, Tensor]()
        for term in terms:
            weight: float | Tensor = term.weight * ramp(batch, term.name, shares[term.name], stairs)
            if not weight:
                continue
            value = term.loss(view, batch) / totals[term.per]
            if term.like in found:
                weight = weight * balance(found[term.like], value)
            found[term.name] = value
            total = weight * value if total is None else total + weight * value
        assert total is not None
        return total, {name: value.detach() for name, value in found.items()}

    return objective


def balance(logit_loss: Tensor, hidden_loss: Tensor) -> Tensor:
    """``alpha = L_logits / L_is``, detached: the weight that makes the hidden-state loss as large as the logit loss.

    Source: Minitron (arXiv 2407.14679), section 3, ``L = L_CLM + L_logits + alpha L_is``. Both must be divided by their
    own totals first. Scalars in, scalar out; 0 where L_is is 0, since then nothing is left to balance.
    """
    above, below = logit_loss.detach(), hidden_loss.detach()
    # Only an exact 0 gives 0: NaN has to pass through, so that training stops at it.
    zero = below == 0
    return torch.where(zero, 0, above / torch.where(zero, 1, below))


def ramp(batch: Mapping[str, Any], name: str, share: float, stairs: float = 0.0) -> float:
    """``min(1, done / share)``, the batch's "done" (0 to 1) rounded down to one of `stairs`, if any; 1 if share is 0.

    ND's warm-up (arXiv 2305.17007) is ``min(1, epoch / warmup)`` with epochs counted from 0: stairs are its epochs.
    Raises `InputError`, which calls the term `name`, for a batch that does not know.
    """
    if not share:
        return 1.0
    done = _progress(batch, name)
    if not stairs:
        return min(1.0, done / share)
    # A batch's share is a quotient: one that should be whole may lie a rounding below.
    stair = math.floor(done * stairs + 1e-9)
    return min(1.0, stair / (share * stairs))


def sum_layers(
    loss: Callable[[Tensor, Tensor], Tensor], weights: Sequence[float] = ()
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """``sum_i w_i loss(student_i, teacher_i)`` over pairs of taps; w_i is 1 where no weights are given.

    Raises `InputError` where weights, or the taps of both, are not equally many.
    """

    def total_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        each = list(weights) or [1.0] * len(ours)
        if not len(ours) == len(theirs) == len(each) or not each:
            raise InputError(
                f"{len(ours)} taps of the student, {len(theirs)} of the teacher and {len(each)} weights: give equally "
                "many, one at least"
            )
        first, *rest = (weight * loss(a, b) for weight, a, b in zip(each, ours, theirs, strict=True))
        return sum(rest, first)

    return total_loss


def _progress(batch: Mapping[str, Any], name: str) -> float:
    if "done" not in batch:
        raise InputError(
            f"term {name!r} warms up: number the batches with data.batches.Numbered, so that each knows when"
        )
    return float(batch["done"])


def _check(terms: Sequence[Term[Any]], steps: int) -> None:
    known: set[str] = set()
    for term in terms:
        if term.name in known:
            raise InputError(f"two terms are called {term.name!r}: give each a name of its own")
        if term.like and term.like not in known:
            raise InputError(f"term {term.name!r} is to be like {term.like!r}, which does not stand before it")
        if not 0 <= term.weight < math.inf or not 0 <= term.warmup < math.inf:
            raise InputError(f"term {term.name!r}: weight={term.weight}, warmup={term.warmup}: give at least 0")
        if term.warmup >= 1 and not steps:
            raise InputError(f"term {term.name!r} warms up for {term.warmup:g} steps: give compose the steps in all")
        known.add(term.name)
    if not any(term.weight and not term.warmup for term in terms):
        raise InputError("no term is active at the first step: give one a weight, and no warm-up")
