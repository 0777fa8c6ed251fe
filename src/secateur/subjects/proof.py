"""The proof of a cut: the smaller network's outputs equal those of the silenced original, or it is said where not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.subjects.coupling import Coupling
from secateur.subjects.recording import Example, leaves, record, running, tensors_of
from secateur.subjects.shrinking import twin

__all__ = ["Fault", "Silenced", "compare", "silenced"]

TOLERANCE = 1e-5
"""Largest difference, relative to the largest output."""


@dataclass(frozen=True)
class Fault:
    """Why a cut is not what it should be, and the module in which that shows (empty if unknown)."""

    where: str
    what: str


class Silenced(nn.Module):
    """A network of the old shapes in which some atoms do nothing."""

    def __init__(self, model: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with what goes silenced."""
        return record(self.model, Example(args, kwargs), lambda _: self.kept).output


def silenced(model: nn.Module, coupling: Coupling, kept: np.ndarray) -> Silenced:
    """`model` with the atoms that go set to zero in its parameters, and in everything that is computed from them."""
    found, changed = tensors_of(model), {}
    for axis in coupling.axes:
        stays = kept[axis.start : axis.start + axis.size]
        if not stays.all():
            old = changed[axis.tensor] if axis.tensor in changed else found[axis.tensor].detach().clone()
            gone = torch.from_numpy(np.flatnonzero(~stays)).to(old.device)
            changed[axis.tensor] = old.index_fill_(axis.dim, gone, 0)
    return Silenced(twin(model, changed, share=True).eval(), torch.from_numpy(kept))


def compare(small: nn.Module, reference: Silenced, example: Example) -> tuple[float, Fault | None]:
    """The largest relative difference of outputs, and the fault if it is above the tolerance."""
    args, kwargs = example.fresh()
    expected = reference(*args, **kwargs)
    where = [""]
    watched = twin(small, share=True).eval()

    def entered(path: str) -> None:
        where[0] = path

    try:
        with running(watched, entered):
            args, kwargs = example.fresh()
            found = watched(*args, **kwargs)
    except Exception as error:
        return float("inf"), Fault(where[0], f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}")
    worst, what = _difference(found, expected)
    if worst <= TOLERANCE:
        return worst, None
    return worst, Fault(_culprit(watched, reference, example), what)


def _difference(found: Any, expected: Any) -> tuple[float, str]:
    one, other = leaves(found)[0], leaves(expected)[0]
    if len(one) != len(other):
        return float("inf"), "gives another number of outputs"
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf"), f"gives an output of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if not a.numel():
            continue
        a, b = (part.to(torch.complex128 if part.is_complex() else torch.float64) for part in (a, b))
        finite = torch.isfinite(b.abs()) & torch.isfinite(a.abs())
        if not torch.equal(torch.isfinite(a.abs()), torch.isfinite(b.abs())):
            return float("inf"), "gives values that are not finite"
        scale = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
        worst = max(worst, gap / max(scale, 1e-12) if gap else 0.0)
    return worst, f"differs by {worst:.2g}"


def _culprit(small: nn.Module, reference: Silenced, example: Example) -> str:
    """The first module whose output's sum is another: zeros that were cut do not change a sum."""

    def sums(model: nn.Module, run: Any) -> list[tuple[str, list[float]]]:
        found: list[tuple[str, list[float]]] = []

        def left(path: str, output: Any) -> None:
            found.append((path, [float(one.double().sum()) for one in _floats(output)]))

        with running(model, lambda _: None, left):
            args, kwargs = example.fresh()
            run(*args, **kwargs)
        return found

    for (path, a), (other, b) in zip(
        sums(small, small), sums(reference.model, reference), strict=False
    ):
        if path != other or len(a) != len(b) or not np.allclose(a, b, rtol=1e-3, atol=1e-4):
            return path
    return ""


def _floats(output: Any) -> Iterator[Tensor]:
    for one in leaves(output)[0]:
        if one.is_floating_point():
            yield one
