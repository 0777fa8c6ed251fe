"""Proof of a cut: outputs of the smaller network equal those of the silenced original, or failing units are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Set
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils.outputs import leaves
from secateur.errors import ModelError
from secateur.subjects.network import silencing
from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.flops import Counter
from secateur.subjects.network.labels import Axis
from secateur.subjects.network.recording import Example, Run, record, resting, running, tensors_of, training
from secateur.subjects.network.shrinking import Plan, plan, shrink, twin

__all__ = [
    "FAINT",
    "TOLERANCE",
    "Fault",
    "Silenced",
    "compare",
    "compare_redrawn",
    "differences",
    "exact_sites",
    "one_line",
    "reading_dims",
    "same",
    "silence",
    "trains",
]

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

    def __init__(self, model: nn.Module, kept: Tensor, whole: Set[str]) -> None:
        super().__init__()
        self.model, self.kept, self.whole = model, kept, whole

    def forward(self, *args: object, **kwargs: object) -> Any:
        """As the model's own, with what goes silenced."""
        return record(self.model, Example(args, kwargs), lambda _: self.kept, whole=self.whole).output


def silence(model: nn.Module, kept: np.ndarray, whole: Set[str] = frozenset()) -> Silenced:
    """`model` with the atoms that go set to zero in everything that is computed of them; `whole` as when recorded."""
    return Silenced(twin(model, share=True).eval(), torch.from_numpy(kept), whole)


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
    result = _attempt(small, example, counter)
    if isinstance(result, Fault):
        return math.inf, result
    return _verdict(result, _watch(reference.model, reference, example), scaled)


def same(small: nn.Module, large: nn.Module, example: Example) -> tuple[float, Fault | None]:
    """The largest relative difference of the outputs of two networks, and the fault if it is above the tolerance."""
    result = _attempt(small, example)
    if isinstance(result, Fault):
        return math.inf, result
    shadow = twin(large, share=True).eval()
    return _verdict((result[0], []), (_watch(shadow, shadow, example)[0], []))


def trains(small: nn.Module, example: Example) -> Fault | None:
    """What is wrong with a pass in training, of a network with parts that run in training only."""
    result = _attempt(small, example, train=True)
    return result if isinstance(result, Fault) else None


Watched = tuple[Any, list[tuple[str, list[float]]]]
"""An output, and for each module that ran the sums of absolute values of its outputs."""


def _attempt(
    model: nn.Module, example: Example, counter: Counter | None = None, *, train: bool = False
) -> Watched | Fault:
    """Run a network that may fail."""
    where = [""]
    watched = twin(model, share=True)
    try:
        with training(watched) if train else counter or nullcontext():
            return _watch(watched if train else watched.eval(), watched, example, where)
    except Exception as error:
        return Fault(where[0], one_line(error))


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"


def _verdict(found: Watched, expected: Watched, scaled: Collection[str] = ()) -> tuple[float, Fault | None]:
    worst, what = _difference(found[0], expected[0])
    for (path, a), (place, b) in zip(found[1], expected[1], strict=False):
        if path == place and path in scaled:
            continue
        if path != place or len(a) != len(b) or not np.allclose(np.where(np.isnan(b), b, a), b, 1e-3, 1e-4, True):
            return max(worst, 1.0), Fault(path, what if worst > TOLERANCE else "gives other values inside")
    return worst, None if worst <= TOLERANCE else Fault("", what)


def compare_redrawn(
    model: nn.Module, cut: Plan, kept: np.ndarray, example: Example, whole: Set[str] = frozenset()
) -> tuple[float, Fault | None]:
    """`compare` where outputs tell nothing: the same cut under weights drawn anew.

    Weights of zero, and signals that fade on their way through untrained layers, make any two networks agree. Rounding
    grows more under such weights: what is above the tolerance is computed in double precision, which tells a difference
    from a rounding. Code that computes in single precision all the same is let pass at ten times the tolerance; and
    where it chooses by its values (the best boxes), it may choose otherwise for a rounding: then there is no verdict,
    and the difference is 0.
    """
    redrawn = twin(model, _draw_weights(model), share=True).eval()
    small = twin(shrink(redrawn, cut), share=True).eval()
    worst, fault = compare(small, silence(redrawn, kept, whole), example, scaled=cut.rescaled)
    if worst <= TOLERANCE:
        return worst, None
    with suppress(Exception):  # code that meets its own numbers of single precision
        double = twin(small).double(), silence(twin(redrawn).double(), kept, whole)
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
        steady, _ = _verdict(_watch(other, other, example), _watch(small, small, example))
    except Exception:
        return worst, fault
    return (worst, fault) if steady <= 100 * TOLERANCE else (0.0, None)


def _draw_weights(model: nn.Module) -> dict[str, Tensor]:
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


def _watch(model: nn.Module, run: Callable[..., object], example: Example, where: list[str] | None = None) -> Watched:
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

    def enter(path: str) -> None:
        if where is not None:
            where[0] = path

    def leave(path: str, output: object) -> None:
        if path:  # what is on the meta device is a part that was erased before, asked for its shape
            given = [one for one in leaves(output)[0] if one.is_floating_point() and not one.is_meta]
            sums.append((path, [total(one) for one in given]))

    with running(model, enter, leave):
        args, kwargs = example.fresh()
        return run(*args, **kwargs), sums


def differences(found: object, expected: object) -> float:
    """The largest difference of two outputs, relative to the largest expected value; infinite where shapes differ."""
    return _difference(found, expected)[0]


def _difference(found: object, expected: object) -> tuple[float, str]:
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


# ------------------------------------------------------------------------------------------- zeros in place of a cut

# A training that drives weights to zero wants the fewest that must be zero: rows that make a channel, its bias, scale
# and shift, not the columns that read it. And it wants sites where the network with these zeros gives what the cut
# network gives, in a plain forward pass: not so where a norm runs over channels, or zero becomes something else.


def reading_dims(model: nn.Module) -> set[tuple[str, int]]:
    """(parameter, dimension) along which weights read channels rather than make them."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    found = set()
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            dim = _reading(module, leaf, parameter)
            if dim is not None:
                found.add((names[id(parameter)], dim))
    return found


def _reading(module: nn.Module, leaf: str, parameter: Tensor) -> int | None:
    if parameter.dim() < 2 or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
            return 0 if module.groups == 1 else None
        return 1
    if type(module).__name__ == "Conv1D":  # transformers stores it [d_in, d_out]
        return 0
    if parameter.dim() == 2 and min(parameter.shape) > 1:
        return 1
    return None


def exact_sites(model: nn.Module, example: Example, coupling: Coupling, run: Run) -> set[str]:
    """The sites of which any units may be zero where they are made, and the cut network then gives the same outputs.

    Tried on weights and statistics drawn at random, so that nothing holds by chance of how they were initialised.
    """
    model = _with_random_vectors(model)
    reading = reading_dims(model)
    candidates = [name for name, site in coupling.sites.items() if not _over_channels(model, site.axes)]
    if candidates and _equal(model, example, coupling, run, reading, candidates):
        return set(candidates)
    return {name for name in candidates if _equal(model, example, coupling, run, reading, [name])}


def _with_random_vectors(model: nn.Module) -> nn.Module:
    changed = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, tensor in tensors_of(model).items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                changed[name] = torch.rand_like(tensor) + 0.5
    return twin(model, changed).eval()


def _over_channels(model: nn.Module, axes: Iterable[tuple[Axis, int]]) -> bool:
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm) or "RMSNorm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    found = tensors_of(model)
    return any(id(found[axis.tensor]) in norms for axis, _ in axes)


def _equal(
    model: nn.Module,
    example: Example,
    coupling: Coupling,
    run: Run,
    reading: set[tuple[str, int]],
    names: Iterable[str],
) -> bool:
    """Whether every second unit of these sites can be zero where it is made instead of being cut."""
    keep = {name: np.arange(len(coupling.sites[name].classes)) % 2 == 0 for name in names}
    kept = coupling.keep_atoms(keep)
    found = tensors_of(model)
    changed: dict[str, Tensor] = {}
    for axis in coupling.axes:
        gone = np.flatnonzero(~kept[axis.start : axis.start + axis.size])
        tensor = found[axis.tensor]
        if len(gone) and (axis.tensor, axis.dim) not in reading and isinstance(tensor, nn.Parameter):
            old = changed.get(axis.tensor, tensor.detach().clone())
            changed[axis.tensor] = old.index_fill_(axis.dim, torch.from_numpy(gone).to(old.device), 0)
    try:
        small = shrink(model, plan(model, coupling, kept, run.flow))
    except ModelError:
        return False
    return same(small, twin(model, changed), example)[1] is None
