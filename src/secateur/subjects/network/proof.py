"""The proof of a cut: the smaller network's outputs equal those of the silenced original, or it is said where not."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils.outputs import leaves
from secateur.subjects.network import silencing
from secateur.subjects.network.flops import Counter
from secateur.subjects.network.recording import Example, Run, record, resting, running, training
from secateur.subjects.network.shrinking import Plan, shrink, twin

__all__ = ["FAINT", "Fault", "Silenced", "compare", "differences", "same", "silenced", "stirred", "trains"]

TOLERANCE = 1e-5
"""Largest difference, relative to the largest output."""
FAINT = 1e-8
"""A difference below what rounding makes of two ways to compute the same: outputs that tell nothing."""


@dataclass(frozen=True)
class Fault:
    """Why a cut is not what it should be, and the module in which that shows (empty if unknown)."""

    where: str
    what: str


class Silenced(nn.Module):
    """A network of the old shapes in which some atoms do nothing."""

    def __init__(self, model: nn.Module, kept: Tensor, run: Run | None = None) -> None:
        super().__init__()
        self.model, self.kept, self.run = model, kept, run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with what goes silenced."""
        return record(self.model, Example(args, kwargs), lambda _: self.kept, again=self.run).output


def silenced(model: nn.Module, kept: np.ndarray, run: Run | None = None) -> Silenced:
    """`model` with the atoms that go set to zero in everything that is computed of them.

    run: the recorded pass, if there was one, so that less has to be found out again.
    """
    return Silenced(twin(model, share=True).eval(), torch.from_numpy(kept), run)


def compare(
    small: nn.Module,
    reference: Silenced,
    example: Example,
    counter: Counter | None = None,
    scaled: Collection[str] = (),
) -> tuple[float, Fault | None]:
    """The largest relative difference of outputs, and the fault if it is above the tolerance.

    counter: counts the FLOPs of `small`. scaled: modules that give other values by intent, see `Plan.scaled`.

    What single modules give is compared as well, by the sum of its absolute values, which zeros that were cut do not
    change: outputs alone prove little where a network's last weights are zero.
    """
    where = [""]
    watched = twin(small, share=True).eval()
    try:
        with counter or nullcontext():
            found, given = _watched(watched, watched, example, where)
    except Exception as error:
        return math.inf, _stopped(error, where[0])
    # What can't run needs no reference.
    expected, wanted = _watched(reference.model, reference, example)
    return _verdict((found, given), (expected, wanted), scaled)


Watched = tuple[Any, list[tuple[str, list[float]]]]


def _verdict(one: Watched, other: Watched, scaled: Collection[str] = ()) -> tuple[float, Fault | None]:
    worst, what = _difference(one[0], other[0])
    for (path, a), (place, b) in zip(one[1], other[1], strict=False):
        if path == place and path in scaled:
            continue
        if path != place or len(a) != len(b) or not np.allclose(np.where(np.isnan(b), b, a), b, 1e-3, 1e-4, True):
            return max(worst, 1.0), Fault(path, what if worst > TOLERANCE else "gives other values inside")
    return worst, None if worst <= TOLERANCE else Fault("", what)


def stirred(
    model: nn.Module, cut: Plan, kept: np.ndarray, example: Example, run: Run | None = None
) -> tuple[float, Fault | None]:
    """`compare` where outputs tell nothing: the same cut under weights drawn anew.

    Weights of zero, and signals that fade on their way through untrained layers, make any two networks agree. Rounding
    grows more under such weights: what is above the tolerance is computed in double precision, which tells a difference
    from a rounding. Code that computes in single precision all the same is let pass at ten times the tolerance; and
    where it chooses by its values (the best boxes), it may choose otherwise for a rounding: then there is no verdict,
    and the difference is 0.
    """
    lively = twin(model, _drawn(model), share=True).eval()
    small = twin(shrink(lively, cut), share=True).eval()
    worst, fault = compare(small, silenced(lively, kept, run), example, scaled=cut.rescaled)
    if worst <= TOLERANCE:
        return worst, None
    with suppress(Exception):  # code that meets its own numbers of single precision
        double = twin(small).double(), silenced(twin(lively).double(), kept, run)
        found, why = compare(*double, example.cast(torch.float64), scaled=cut.rescaled)
        if why is None:
            return found, None
    if worst <= 10 * TOLERANCE:
        return worst, None
    noise = torch.Generator().manual_seed(1)
    rounded = {
        name: old * (1 + 3e-6 * torch.empty(old.shape, dtype=old.dtype).uniform_(-1, 1, generator=noise))
        for name, old in small.named_parameters()
        if old.is_floating_point()
    }
    other = twin(small, {name: new.detach() for name, new in rounded.items()}, share=True)
    try:
        steady, _ = _verdict(_watched(other, other, example), _watched(small, small, example))
    except Exception:
        return worst, fault
    return (worst, fault) if steady <= 100 * TOLERANCE else (0.0, None)


def _drawn(model: nn.Module) -> dict[str, Tensor]:
    """Matrices and kernels that keep the size of what flows, and vectors and scales in place of almost nothing.

    Numbers are drawn once and repeated with a period that divides no width.
    """
    drawn = torch.empty(65521).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    result = {}
    for name, old in model.named_parameters():
        if not old.is_floating_point() or not old.numel():
            continue
        size = math.sqrt(6 / max(1, math.prod(old.shape[1:]))) if old.dim() > 1 else 0.5
        if old.dim() > 1 or float(old.detach().abs().max()) < 0.01:
            new = drawn.repeat(-(-old.numel() // len(drawn)))[: old.numel()].view(old.shape) * size
            result[name] = new.to(old.dtype).to(old.device)
    return result


def trains(small: nn.Module, example: Example) -> Fault | None:
    """What is wrong with a pass in training, of a network with parts that run in training only."""
    where = [""]
    watched = twin(small, share=True)
    try:
        with training(watched):
            _watched(watched, watched, example, where)
    except Exception as error:
        return _stopped(error, where[0])
    return None


def _stopped(error: Exception, where: str) -> Fault:
    line = str(error).strip().splitlines()
    return Fault(where, f"{type(error).__name__}: {line[0][:160] if line else ''}")


def same(small: nn.Module, large: nn.Module, example: Example) -> tuple[float, Fault | None]:
    """The largest relative difference of the outputs of two networks, and the fault if it is above the tolerance."""
    expected, _ = _watched(shadow := twin(large, share=True).eval(), shadow, example)
    where = [""]
    watched = twin(small, share=True).eval()
    try:
        found, _ = _watched(watched, watched, example, where)
    except Exception as error:
        return math.inf, _stopped(error, where[0])
    worst, what = _difference(found, expected)
    return worst, None if worst <= TOLERANCE else Fault("", what)


def _watched(model: nn.Module, run: Any, example: Example, where: list[str] | None = None) -> Watched:
    """The output, and for each module that ran the sums of absolute values of its outputs, in order."""
    sums: list[tuple[str, list[float]]] = []
    last: tuple[Tensor, int, float] | None = None

    def total(value: Tensor) -> float:
        """The sum of absolute values; not a number for a parameter that a module gives as it is, and for a shape."""
        nonlocal last
        if silencing.raw(value) or value.is_meta:
            return math.nan
        # What a module gives is most often what the last module in it gave.
        if last is None or last[0] is not value or last[1] != value._version:
            with resting():
                last = value, value._version, float(value.abs().sum())
        return last[2]

    def entered(path: str) -> None:
        if where is not None:
            where[0] = path

    def left(path: str, output: Any) -> None:
        if path:  # what is on the meta device is a part that was erased before, asked for its shape
            given = [one for one in leaves(output)[0] if one.is_floating_point() and not one.is_meta]
            sums.append((path, [total(one) for one in given]))

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
    worst, some, none = 0.0, False, False
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return math.inf, f"gives an output of shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if not a.numel():
            continue
        a, b = (part.to(torch.complex128 if part.is_complex() else torch.float64) for part in (a, b))
        finite = torch.isfinite(b.abs()) & torch.isfinite(a.abs())
        if not torch.equal(torch.isfinite(a.abs()), torch.isfinite(b.abs())):
            return math.inf, "gives values that are not finite"
        some = some or bool(finite.any())
        none = none or not bool(finite.any())
        scale = float(b[finite].abs().max()) if bool(finite.any()) else 0.0
        gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
        worst = max(worst, gap / max(scale, 1e-12) if gap else 0.0)
    if none and not some:
        return math.inf, "gives nothing finite"
    return worst, f"differs by {worst:.2g}"
