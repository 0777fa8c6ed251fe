"""What channels that go leave behind: a batch norm of scale 0 gives the constant beta, which its readers can keep.

Removed channels are taken as if the scales of their batch norms were 0. What comes of their betas on the way, through
activations, sums, concatenations, pooling and resizing, is read off a forward pass with those scales, and folded into
whatever reads it: for an output o,

    offset_o = sum_c (sum_k W[o, c, k]) * constant_c

goes into the bias, or, where the reader has none, out of the running mean of the batch norm behind it; where neither
is there, a bias is made. Exact except where zeros are padded to constants that are not zero. Source: the bias-aware
cut of Group channel pruning (arXiv 2306.01526), there for one architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.operators import Arguments, Keywords
from secateur.subjects.network.proof import differences
from secateur.subjects.network.recording import Example, evaluate, tensors_of
from secateur.subjects.network.shrinking import Plan, shrink, twin

__all__ = ["Offset", "add", "constant", "fold", "offsets"]


_MAKERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)


@dataclass(frozen=True, eq=False)
class Offset:
    """What one module's output lacks once the constants that it read are gone."""

    module: str
    values: Tensor
    """[outputs that stay]"""
    into: str
    """The tensor to change: a bias (add), or a running mean (subtract)."""
    made: bool = False
    """Whether the bias has to be made first."""


def constant(model: nn.Module, coupling: Coupling, kept: np.ndarray) -> nn.Module:
    """`model`, of the old shapes, with the scales of batch norms at 0 wherever channels go: what offsets must equal."""
    found, gone = tensors_of(model), _removed_indices(coupling, kept)
    changed = {}
    for module in model.modules():
        name = _name(found, module._parameters.get("weight", module._buffers.get("weight")))
        if name and name in gone and module._buffers.get("running_mean") is not None:
            places = torch.from_numpy(np.flatnonzero(gone[name][0])).to(found[name].device)
            changed[name] = found[name].detach().clone().index_fill_(0, places, 0)
    return twin(model, changed, share=True).eval()


def offsets(
    model: nn.Module, coupling: Coupling, kept: np.ndarray, example: Example
) -> tuple[list[Offset], tuple[str, ...]]:
    """Every offset that is not 0, and notes on constants that could not be kept."""
    shadow = constant(model, coupling, kept)
    found, gone = tensors_of(shadow), _removed_indices(coupling, kept)
    readers: dict[str, tuple[nn.Module, np.ndarray]] = {}
    for path, module in shadow.named_modules():
        weight = _name(found, module._parameters.get("weight"))
        transposed = getattr(module, "transposed", False)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and weight in gone:
            inner = gone[weight].get(0 if transposed else 1)
            if inner is not None and inner.any() and not (transposed and getattr(module, "groups", 1) > 1):
                readers[path] = (module, inner)
    if not readers:
        return [], ()
    seen = _Seen(shadow, readers)
    seen.run(example, noise=False)
    seen.run(example, noise=True)
    stays = {axis.tensor: kept[axis.start : axis.start + axis.size] for axis in coupling.axes if axis.dim == 0}
    owners: dict[int, int] = {}
    for module in shadow.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            owners[id(tensor)] = owners.get(id(tensor), 0) + (tensor is not None)
    result, notes = [], []
    for path, (module, _) in readers.items():
        values = seen.constants(path)
        if values is None or not bool(values.any()):
            continue
        offset = _through(module, values)
        weight = _name(found, module._parameters.get("weight"))
        if getattr(module, "transposed", False):
            rows = next((~gone[weight][1] for _ in (0,) if 1 in gone[weight]), None)
        else:
            rows = stays.get(weight)
        if rows is not None:
            offset = offset[torch.from_numpy(rows)]
        bias, mean = module._parameters.get("bias"), seen.mean_behind(path)
        if bias is not None and owners[id(bias)] == 1:
            result.append(Offset(path, offset, _name(found, bias)))
        elif bias is None and mean is not None and owners[id(mean)] == 1:
            result.append(Offset(path, -offset, _name(found, mean)))
        elif bias is None and "bias" in module._parameters:
            result.append(Offset(path, offset, f"{path}.bias" if path else "bias", made=True))
        else:
            notes.append(f"the constants that {path} read are lost: its bias is shared")
    return result, tuple(notes)


def fold(
    model: nn.Module, small: nn.Module, made: Plan, coupling: Coupling, kept: np.ndarray, example: Example
) -> tuple[nn.Module, Plan, tuple[str, ...]]:
    """Fold into a copy of `small`, which `made` cut from `model`, the constants of what went.

    Returns the network, its plan (with the biases that had to be made), and notes; `small` and `made` themselves where
    the outputs do not come nearer to those of `model` with the scales at 0.
    """
    found, lost = offsets(model, coupling, kept, example)
    if not found:
        return small, made, (*lost, "offsets: no constant of what went reaches anything that stays")
    modules = dict(model.named_modules())
    found = [_rescale(offset, made, modules[offset.module]) for offset in found]
    plan = replace(made, biases=tuple(offset.module for offset in found if offset.made))
    whole = shrink(small, Plan(biases=plan.biases))
    add(whole, found)
    wanted = evaluate(constant(model, coupling, kept), example)
    before, after = (
        differences(evaluate(twin(network, share=True).eval(), example), wanted) for network in (small, whole)
    )
    changed = f"the outputs' difference to scales of 0 changes from {before:.2g} to {after:.2g} of the largest"
    if after >= before:
        return small, made, (*lost, f"offsets: left out, for {changed}")
    means = sum(offset.into.endswith("running_mean") for offset in found)
    biases = f"{len(found) - means} biases ({sum(offset.made for offset in found)} of them new)"
    return whole, plan, (*lost, f"offsets: folded into {biases} and {means} running means; {changed}")


def _rescale(offset: Offset, cut: Plan, module: nn.Module) -> Offset:
    """The offset of a layer whose results a cut makes larger or smaller."""
    name = f"{offset.module}.weight" if offset.module else "weight"
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    by = cut.factors(name, 0, len(weight)) if weight is not None else None
    if by is None:
        return offset
    stays = cut.tensors.get(name, {}).get(0)
    return replace(offset, values=offset.values * (by if stays is None else by[stays]).to(offset.values))


def add(small: nn.Module, found: list[Offset]) -> None:
    """Add offsets to the tensors of a network that was cut, in place; biases that had to be made are there already."""
    tensors = tensors_of(small)
    with torch.no_grad():
        for offset in found:
            tensor = tensors[offset.into]
            tensor.add_(offset.values.to(tensor.device, tensor.dtype))


def _removed_indices(coupling: Coupling, kept: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """Tensor -> dimension -> which of its indices go, for those of which some go."""
    gone: dict[str, dict[int, np.ndarray]] = {}
    for axis in coupling.axes:
        gone.setdefault(axis.tensor, {})[axis.dim] = ~kept[axis.start : axis.start + axis.size]
    return {name: dims for name, dims in gone.items() if any(one.any() for one in dims.values())}


def _name(found: Mapping[str, Tensor], tensor: Tensor | None) -> str:
    return next((name for name, one in found.items() if one is tensor), "") if tensor is not None else ""


def _through(module: nn.Module, values: Tensor) -> Tensor:
    """[inputs] that are constant everywhere -> [outputs], what `module` makes of them away from its borders."""
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    if not isinstance(module, nn.modules.conv._ConvNd):
        return weight @ values
    summed = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    if module.transposed:
        # Each output meets one of `stride` parts of the kernel: the mean of them.
        return summed.T @ values / float(np.prod(module.stride))
    rows = summed.view(module.groups, -1, summed.shape[1])
    return (rows @ values.view(module.groups, -1, 1)).reshape(-1)


class _Counter(TorchDispatchMode):
    """How often each tensor was given to an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        for value in args:
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, Tensor):
                    self.uses[id(one)] = self.uses.get(id(one), 0) + 1
        return func(*args, **(kwargs or {}))


class _Seen:
    """What readers were given, and what took their outputs."""

    def __init__(self, model: nn.Module, readers: Mapping[str, tuple[nn.Module, np.ndarray]]) -> None:
        self.model, self.readers = model, readers
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}
        self.behind: dict[str, set[int]] = {}
        """Reader -> ids of the batch norms that took its outputs; 0 for anything else."""
        self.before: dict[int, set[str]] = {}
        """Id of a batch norm -> the readers whose outputs it took; "" for anything else."""
        self.norms: dict[int, nn.Module] = {}

    def run(self, example: Example, *, noise: bool) -> None:
        """One pass. With `noise` on what every reader and maker of channels gives, only constants stay the same."""
        made: dict[int, tuple[Tensor, str, int]] = {}
        takers: dict[int, list[int]] = {}
        paths = {id(module): path for path, module in self.model.named_modules()}

        def note_input(module: nn.Module, args: tuple[object, ...]) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            path = paths.get(id(module), "")
            if path in self.readers:
                self._look(path, args[0].detach())
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                source = made.get(id(args[0]))
                fresh = source is not None and source[0]._version == source[2]
                self.norms[id(module)] = module
                self.before.setdefault(id(module), set()).add(source[1] if source and fresh else "")
                takers.setdefault(id(args[0]), []).append(id(module))

        def gave(module: nn.Module, _: object, output: object) -> None:
            if noise and isinstance(module, _MAKERS) and isinstance(output, Tensor) and output.is_floating_point():
                # Never near 0, so that nothing that changes is taken for a constant.
                size = 0.05 + 0.1 * torch.rand_like(output)
                scale = output.std() if output.numel() > 1 else output.abs()
                output.add_(torch.where(torch.rand_like(output) < 0.5, -size, size) * (scale + 1e-3))
            path = paths.get(id(module), "")
            if path in self.readers and isinstance(output, Tensor):
                made[id(output)] = (output, path, output._version)
                # What another tensor was used for, that is gone and whose place this one took.
                counter.uses.pop(id(output), None)
                takers.pop(id(output), None)

        counter = _Counter()
        handles = [module.register_forward_pre_hook(note_input) for module in self.model.modules()]
        handles += [module.register_forward_hook(gave) for module in self.model.modules()]
        try:
            with counter:
                evaluate(self.model, example)
        finally:
            for handle in handles:
                handle.remove()
        if not noise:
            for key, (_, path, _) in made.items():
                norms = takers.get(key, [])
                alone = len(norms) == 1 and counter.uses.get(key) == 1
                self.behind.setdefault(path, set()).add(norms[0] if alone else 0)

    def _look(self, path: str, x: Tensor) -> None:
        module, _ = self.readers[path]
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        dim = x.dim() - (module.weight.dim() - 1 if convolution else 1)  # type: ignore[operator]
        others = [one for one in range(x.dim()) if one != dim]
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        self.low[path] = torch.minimum(self.low[path], low) if path in self.low else low
        self.high[path] = torch.maximum(self.high[path], high) if path in self.high else high

    def constants(self, path: str) -> Tensor | None:
        """[inputs]: the constant of each input that goes, 0 where it is none; None for what did not run."""
        if path not in self.low:
            return None
        low, high = self.low[path], self.high[path]
        module, inner = self.readers[path]
        groups = 1 if isinstance(module, nn.Linear) else int(module.groups)  # type: ignore[arg-type]
        gone = torch.from_numpy(inner).repeat(groups) if inner.size != low.numel() else torch.from_numpy(inner)
        same = high - low <= 1e-6 + 1e-5 * torch.maximum(high.abs(), low.abs())
        return torch.where(gone & same, (low + high) / 2, torch.zeros_like(low))

    def mean_behind(self, path: str) -> Tensor | None:
        """The running mean of the batch norm that takes all that this module gives, and nothing else."""
        norms = self.behind.get(path, set())
        if len(norms) != 1 or 0 in norms:
            return None
        (one,) = norms
        mean = self.norms[one].running_mean
        return mean if self.before[one] == {path} and isinstance(mean, Tensor) else None
