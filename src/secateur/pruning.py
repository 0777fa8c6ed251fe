"""`secateur.prune`: any PyTorch network made smaller in one call, without data and without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import InfeasibleError, InputError
from secateur.score import magnitude, random
from secateur.select import ranking
from secateur.subjects.traced import CutError, Traced, open_traced
from secateur.vocabulary import Budget, Cut

__all__ = ["prune"]

Score = Callable[[Traced], Mapping[str, Tensor]]


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget | str = "channels=50%",
    score: str | Score = "magnitude",
    *,
    multiple: int = 1,
    protect: Iterable[str] = (),
    scope: ranking.Scope = "local",
    seed: int = 0,
    offsets: bool = False,
) -> tuple[nn.Module, Cut]:
    """A smaller copy of `model`, and the receipt of what went; `model` stays as it is.

    Args:
        model: any network that runs on the inputs.
        example_inputs: a tensor (one positional input), a tuple (positional), or a dict (keywords).
        budget: how much may stay, in channels, params or bytes.
        score: "magnitude" (the norm of all weights that go with a unit, as a share of its site's mean), "random", or
            a function from the opened subject to one score per unit of each site; higher means keep.
        multiple: kept channels are multiples of this.
        protect: modules, parameters or sites that stay whole.
        scope: "local": every site loses the same share; "kind" and "global": the weakest of all go.
        seed: of random scores.
        offsets: fold the constants that channels leave behind, at a batch norm's scale of 0, into what reads them.

    The cut is proved on the example inputs: its outputs equal those of the original with the same units silenced. What
    can't be cut stays, and the receipt's notes say why. Raises `ModelError` for a model that can't run on the inputs,
    `UnsupportedError` where nothing can go, `InfeasibleError` for a budget below the floor or a cut that would change
    nothing.
    """
    budget = Budget.parse(budget)
    subject = open_traced(model, example_inputs, protect=protect, prove=False)
    while True:
        units = subject.units(multiple=multiple)
        scores = _scores(subject, score, seed)
        selection = ranking.by_budget(units, scores, budget, scope=scope)
        if all(bool(mask.all()) for mask in selection.keep.values()):
            raise InfeasibleError(f"budget {budget} would change nothing: every unit fits in it; ask for less")
        try:
            small, cut = subject.cut(selection, offsets=offsets)
        except CutError as error:
            subject.without(error.fault, selection)
            continue
        return small.model, cut


def _scores(subject: Traced, score: str | Score, seed: int) -> Mapping[str, Tensor]:
    if callable(score):
        return score(subject)
    if score == "magnitude":
        return magnitude.coupled(subject.slices())
    if score == "random":
        return random.scores(subject.units(), seed)
    raise InputError(f"score {score!r} is not one of magnitude, random: name one, or give a function")
