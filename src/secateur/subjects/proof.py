"""The proof of a cut: the smaller network's outputs equal those of the silenced original, or it is said where not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.subjects.coupling import Coupling
from secateur.subjects.recording import Example, leaves, record, running, tensors_of
from secateur.subjects.shrinking import twin

__all__ = ["Fault", "Silenced", "compare", "differences", "same", "silenced"]

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
    found = tensors_of(model)
    changed: dict[str, Tensor] = {}
    for axis in coupling.axes:
        stays = kept[axis.start : axis.start + axis.size]
        if not stays.all():
            old = changed[axis.tensor] if axis.tensor in changed else found[axis.tensor].detach().clone()
            gone = torch.from_numpy(np.flatnonzero(~stays)).to(old.device)
            changed[axis.tensor] = old.index_fill_(axis.dim, gone, 0)
    return Silenced(twin(model, changed, share=True).eval(), torch.from_numpy(kept))


def compare(small: nn.Module, reference: Silenced, example: Example) -> tuple[float, Fault | None]:
    """The largest relative difference of outputs, and the fault if it is above the tolerance.

    What single modules give is compared as well, by the sum of its absolute values, which zeros that were cut do not
    change: outputs alone prove little where a network's last weights are zero.
    """
    expected, wanted = _watched(reference.model, reference, example)
    where = [""]
    watched = twin(small, share=True).eval()
    try:
        found, given = _watched(watched, watched, example, where)
    except Exception as error:
        line = str(error).strip().splitlines()
        return math.inf, Fault(where[0], f"{type(error).__name__}: {line[0][:160] if line else ''}")
    worst, what = _difference(found, expected)
    for (path, a), (other, b) in zip(given, wanted, strict=False):
        if path != other or len(a) != len(b) or not np.allclose(a, b, rtol=1e-3, atol=1e-4):
            return max(worst, 1.0), Fault(path, what if worst > TOLERANCE else "gives other values inside")
    return worst, None if worst <= TOLERANCE else Fault("", what)


def same(small: nn.Module, large: nn.Module, example: Example) -> tuple[float, Fault | None]:
    """The largest relative difference of the outputs of two networks, and the fault if it is above the tolerance."""
    expected, _ = _watched(shadow := twin(large, share=True).eval(), shadow, example)
    where = [""]
    watched = twin(small, share=True).eval()
    try:
        found, _ = _watched(watched, watched, example, where)
    except Exception as error:
        line = str(error).strip().splitlines()
        return math.inf, Fault(where[0], f"{type(error).__name__}: {line[0][:160] if line else ''}")
    worst, what = _difference(found, expected)
    return worst, None if worst <= TOLERANCE else Fault("", what)


def _watched(
    model: nn.Module, run: Any, example: Example, where: list[str] | None = None
) -> tuple[Any, list[tuple[str, list[float]]]]:
    """The output, and for each module that ran the sums of absolute values of its outputs, in order."""
    sums: list[tuple[str, list[float]]] = []

    def entered(path: str) -> None:
        if where is not None:
            where[0] = path

    def left(path: str, output: Any) -> None:
        if path:
            sums.append((path, [float(one.abs().sum()) for one in leaves(output)[0] if one.is_floating_point()]))

    with running(model, entered, left):
        args, kwargs = example.fresh()
        return run(*args, **kwargs), sums


def differences(found: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest expected value; infinite where shapes differ."""
    return _difference(found, expected)[0]


def _difference(found: Any, expected: Any) -> tuple[float, str]:
    one, other = leaves(found)[0], leaves(expected)[0]
    if len(one) != len(other):
        return math.inf, "gives another number of outputs"
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return math.inf, f"gives an output of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if not a.numel():
            continue
        a, b = (part.to(torch.complex128 if part.is_complex() else torch.float64) for part in (a, b))
        finite = torch.isfinite(b.abs()) & torch.isfinite(a.abs())
        if not torch.equal(torch.isfinite(a.abs()), torch.isfinite(b.abs())):
            return math.inf, "gives values that are not finite"
        scale = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
        worst = max(worst, gap / max(scale, 1e-12) if gap else 0.0)
    return worst, f"differs by {worst:.2g}"
