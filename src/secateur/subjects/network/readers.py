"""Modules that produce and that read the channels of a site: where to insert what switches a channel off.

What flows along a channel leaves it only where it is summed with others, in the modules that read it. A channel that is
zero at the input of each of them does what a channel that was cut does: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.subjects.network.graph import Graph, channels_along
from secateur.subjects.network.shrinking import twin
from secateur.subjects.network.traced import Traced

__all__ = ["Inner", "find_inner", "logit_layers"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BACK = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Inner:
    """A site whose channels are made and read by modules."""

    name: str
    units: int
    source: str
    """The module that makes the channels; of several that take one input, the first."""
    channels: int
    """Of its input."""
    dim: int
    """Where they lie."""
    readers: Mapping[str, Tensor]
    """Module -> the unit of each channel of its input, -1 for those of no unit."""
    dims: Mapping[str, int]
    """Where the channels of each reader's input lie."""


def find_inner(subject: Traced, names: Iterable[str] = ()) -> tuple[tuple[Inner, ...], dict[str, str]]:
    """The sites with makers and readers, and the others with the reason.

    names: patterns of sites such as "layer1.*"; unless given, all sites whose channels are not summed up along the
    network, as those of a residual stream are: to decide once for the whole network by what enters it says little.

    Raises `InputError` for a pattern that fits no site.
    """
    wanted = tuple(names)
    run = subject.graph
    slices = subject.slices()
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in slices):
            raise InputError(f"no site is called {pattern!r}: this network has {', '.join(slices) or 'none'}")
    owners = {
        id(parameter): (path, module, name)
        for path, module in subject.model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    found, reasons = [], {}
    for name, touched in slices.items():
        if wanted and not any(fnmatchcase(name, pattern) for pattern in wanted):
            continue
        made = _inner(name, [(*owners[id(p)], dim, unit) for p, dim, unit in touched], run, subject, bool(wanted))
        if isinstance(made, str):
            reasons[name] = made
        else:
            found.append(made)
    return tuple(found), reasons


def _inner(
    name: str, touched: list[tuple[str, nn.Module, str, int, Tensor]], run: Graph, subject: Traced, named: bool
) -> Inner | str:
    """One site, or why it has no gate."""
    makers: dict[str, nn.Module] = {}
    readers: dict[str, Tensor] = {}
    dims: dict[str, int] = {}
    for path, module, parameter, dim, unit in touched:
        if getattr(module, parameter).numel() == len(unit):
            continue
        read = _reads(module, parameter)
        if read is None:
            return f"{path} has a weight that no rule of this reads"
        if read == dim:
            readers[path], dims[path] = unit, 1 if isinstance(module, _CONV + _BACK) else -1
        elif getattr(module, "groups", 1) == 1:
            makers[path] = module
    for path in (*makers, *readers):
        if len(run.of.get(path, ())) != 1:
            return f"{path} is not run once as a module"
    if not makers or not readers:
        return "no module makes it" if not makers else "no module reads it"
    order = sorted(makers, key=lambda path: run.of[path][0].start)
    first, last = run.of[order[0]][0], run.of[order[-1]][0]
    if not named and last.source >= 0 and any(run.after(last.source, one) for one in first.made if one >= 0):
        return "its channels are added to along the network"
    for path in (order[0], *readers):
        call = run.of[path][0]
        if len(call.shape) < 2 or call.shape[0] != run.batch or call.source < 0:
            return f"the first dimension of what enters {path} is not that of the examples"
    if any(run.of[path][0].start < first.end for path in readers):
        return "it is read before it is made"
    dim = channels_along(makers[order[0]], len(first.shape))
    return Inner(name, len(subject.coupling.sites[name].classes), order[0], first.shape[dim], dim, readers, dims)


def _reads(module: nn.Module, parameter: str) -> int | None:
    """The dimension of a weight that meets the module's input; -1 for none (depth-wise); None if it isn't known."""
    if parameter != "weight":
        return None
    if isinstance(module, nn.Linear):
        return 1
    if isinstance(module, _CONV + _BACK):
        back = isinstance(module, _BACK)
        if module.groups == 1:
            return 0 if back else 1
        return -1 if module.groups == module.in_channels else None
    return 0 if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


@torch.no_grad()
def logit_layers(subject: Traced, logits: Tensor) -> tuple[str, ...]:
    """The linear layer whose outputs on the example inputs are `logits`, or the two whose mean is; or none.

    Of two, the one of classes comes first: the one that has no "dist" in its name, or that the network has first.
    """
    shadow = twin(subject.model, share=True).eval()  # where `Traced.forward` runs, for equal numbers
    linears: dict[nn.Module, str] = {
        module: name for name, module in shadow.named_modules() if isinstance(module, nn.Linear)
    }
    outputs: dict[str, Tensor] = {}

    def note(module: nn.Module, args: object, output: Tensor) -> None:
        outputs.setdefault(linears[module], output)

    hooks = [module.register_forward_hook(note) for module in linears]
    try:
        args, kwargs = subject.inputs.fresh()
        shadow(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    alike: dict[str, Tensor] = {}
    for name in reversed(linears.values()):
        if name not in outputs or outputs[name].shape != logits.shape:
            continue
        if torch.equal(outputs[name], logits):
            return (name,)
        for other, output in alike.items():
            if torch.allclose(torch.stack([outputs[name], output]).mean(0), logits):
                return (other, name) if "dist" in name and "dist" not in other else (name, other)
        alike[name] = outputs[name]
    return ()
