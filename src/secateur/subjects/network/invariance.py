"""Which channels are silent when the weights that make them are zero, and whether a cut equals the zeros exactly.

A training that drives weights to zero wants the fewest that must be zero: rows that make a channel, its bias, scale and
shift, not the columns that read it. And it wants sites where the network with zeros gives what the cut network gives,
in a plain forward pass: not so where a norm runs over channels, or where zero becomes something else on its way.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.proof import same
from secateur.subjects.network.recording import Example, Run, tensors_of
from secateur.subjects.network.shrinking import plan, shrink, twin

__all__ = ["exact", "reads"]


def reads(model: nn.Module) -> set[tuple[str, int]]:
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


def exact(model: nn.Module, example: Example, coupling: Coupling, run: Run) -> set[str]:
    """The sites of which any units may be zero where they are made, and the cut network then gives the same outputs.

    Tried on weights and statistics drawn at random, so that nothing holds by chance of how they were initialised.
    """
    model = _drawn(model)
    reading = reads(model)
    candidates = [name for name, site in coupling.sites.items() if not _over_channels(model, site.axes)]
    if candidates and _equal(model, example, coupling, run, reading, candidates):
        return set(candidates)
    return {name for name in candidates if _equal(model, example, coupling, run, reading, [name])}


def _drawn(model: nn.Module) -> nn.Module:
    changed = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, tensor in tensors_of(model).items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                changed[name] = torch.rand_like(tensor) + 0.5
    return twin(model, changed).eval()


def _over_channels(model: nn.Module, axes: Iterable[tuple[object, int]]) -> bool:
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm) or "RMSNorm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    found = tensors_of(model)
    return any(id(found[getattr(axis, "tensor")]) in norms for axis, _ in axes)  # noqa: B009


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
    kept = coupling.kept(keep)
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
