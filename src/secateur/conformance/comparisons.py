"""Comparisons of outputs, costs and selections, whose errors name what differs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.errors import InfeasibleError, SecateurError
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Budget, Scores, Selection, Units

__all__ = [
    "Output",
    "assert_equal_costs",
    "assert_equal_outputs",
    "assert_equal_selections",
    "assert_superset",
    "expect_refusal",
    "kept_columns",
    "output_of",
    "random_scores",
]

Output: TypeAlias = Callable[[Any], object]
"""Subject -> an array that a deterministic use of it gives."""


def output_of(subject: Any) -> Output | None:
    """The prediction for one random batch, of subjects with `forward` and `example`."""
    if not (hasattr(subject, "forward") and hasattr(subject, "example")):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        example = subject.example(2, 12)

    @torch.no_grad()
    def output(other: Any) -> object:
        other.model.eval()
        return other.forward(example).prediction

    return output


def random_scores(units: Units, seed: int) -> dict[str, NDArray[np.float64]]:
    """Site -> a number in [0, 1) for each unit."""
    draw = np.random.default_rng(seed)
    return {site.name: draw.random(site.count) for site in units.free()}


def kept_columns(expected: object, found: object, units: Units, selection: Selection) -> np.ndarray:
    """`expected`, without silenced columns where the last axis of `found` was cut itself (a network's channels)."""
    a, b = as_numpy(expected), as_numpy(found)
    if a.shape == b.shape:
        return a
    for name, mask in units.effective(dict(selection.keep)).items():
        if units[name].count == a.shape[-1] and int(mask.sum()) == b.shape[-1]:
            return a[..., as_numpy(mask).astype(bool)]
    return a


def expect_refusal(call: Callable[[], object], what: str) -> SecateurError:
    """The error with which `call` refuses a budget of next to nothing."""
    try:
        call()
    except SecateurError as error:
        return error
    raise AssertionError(f"{what}: a budget of 0.0001 % was not refused")


def assert_equal_costs(
    found: Mapping[str, float], expected: Mapping[str, float], what: str, ignore: Collection[str] = ()
) -> None:
    """Costs that both have are equal but for rounding."""
    for measure in (found.keys() & expected.keys()) - set(ignore):
        a, b = found[measure], expected[measure]
        assert abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1.0), f"{what}: {measure} is {a:.12g}, expected {b:.12g}"


def assert_equal_outputs(found: object, expected: object, tolerance: float, what: str) -> None:
    """Arrays differ by at most `tolerance` of the largest value."""
    a, b = as_numpy(found), as_numpy(expected)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    worst, scale = float(abs(a - b).max(initial=0.0)), float(abs(b).max(initial=1e-30))
    assert worst <= tolerance * scale, f"{what}: differs by {worst:.3g} where the largest value is {scale:.3g}"


def assert_equal_selections(found: Selection, expected: Selection, what: str) -> None:
    """Both keep the same units of the same sites."""
    assert found.keep.keys() == expected.keep.keys(), f"{what}: other sites"
    for name in found.keep:
        same = (as_numpy(found.keep[name]) == as_numpy(expected.keep[name])).all()
        assert same, f"{what}: other units of {name}"


def assert_superset(select: Callable[..., Selection], units: Units, scores: Scores, measure: str) -> None:
    """What a budget keeps, a larger one keeps too."""
    try:
        select(units, scores, Budget.parse(f"{measure}=0.0001%"))
        least = 0.0
    except InfeasibleError as error:
        least = (error.reachable or 0.0) / units.cost()[measure]
    smaller: dict[str, Any] = {}
    for step in (0.1, 0.3, 0.5, 0.7, 0.9):
        budget = Budget.parse(f"{measure}={least + step * (1.0 - least):%}")
        keep = {name: as_numpy(mask).astype(bool) for name, mask in select(units, scores, budget).keep.items()}
        for name, mask in smaller.items():
            lost = np.flatnonzero(mask & ~keep.get(name, mask))[:5].tolist()
            assert not lost, f"{budget} drops units {lost} of {name}, which a smaller budget kept"
        smaller = keep
