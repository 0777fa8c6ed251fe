"""Resolution stage of each batch norm in a detector: backbone, upsampling or downsampling path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.subjects.network.graph import Graph, record
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import twin

__all__ = ["Place", "feeders", "group_norms", "places"]


@dataclass(frozen=True, slots=True)
class Place:
    """A batch norm: its name, the name of the block it ends (the module that holds it), and its stride in pixels."""

    name: str
    block: str
    stride: float


@torch.no_grad()
def places(model: nn.Module, images: Tensor) -> list[Place]:
    """The batch norms over maps, in the order in which they first run on `images` [B, C, H, W]."""
    found: list[Place] = []
    names = {id(module): name for name, module in model.named_modules()}
    seen = set()

    def note(module: nn.Module, args: object, output: Tensor) -> None:
        name = names[id(module)]
        if name not in seen and output.dim() == 4:
            seen.add(name)
            found.append(Place(name, name.rpartition(".")[0], images.shape[-1] / output.shape[-1]))

    _run_with_hooks(model, images, nn.modules.batchnorm._BatchNorm, note)
    return found


def group_norms(order: Sequence[Place], starts: Iterable[str] = ()) -> dict[str, str]:
    """Norm -> group. Without `starts`, one group per scale of the backbone, then "neck up" and "neck down".

    The backbone ends where maps grow again; from there to the finest map is the way up, and all after it, heads as
    well, the way down. starts: modules with whose first norm a new group begins, in place of that.
    """
    starts = list(starts)
    result: dict[str, str] = {}
    if starts:
        group, left = "1", list(starts)
        for one in order:
            if left and (one.name == left[0] or one.name.startswith(f"{left[0]}.")):
                del left[0]
                group = str(int(group) + 1) if result else group
            result[one.name] = group
        if left:
            raise InputError(
                f"groups name {left[0]!r}, at or behind which no batch norm runs: give modules in the order they run"
            )
        return result
    phase, before = "backbone", 0.0
    for one in order:
        if phase == "backbone" and one.stride < before * 0.75:
            phase = "neck up"
        elif phase == "neck up" and one.stride > before * 1.5:
            phase = "neck down"
        before = one.stride
        result[one.name] = f"stride {round(one.stride)}" if phase == "backbone" else phase
    return result


def feeders(model: nn.Module, images: Tensor) -> set[str]:
    """The batch norms whose channels go straight into an upsampling, or a max-pool that keeps the size (as in SPP).

    Told from the operators that ran, so that functions count as modules do.
    """
    norms = {
        f"{path}.{name}": path
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name in (*module._parameters, *module._buffers)
    }
    graph = record(twin(model, share=True).eval(), Example.of(images), Graph())
    sources: list[str] = []  # of each vertex, the batch norm whose channels it has, or nothing
    found: set[str] = set()
    for vertex in graph.vertices:
        given = {sources[one] for one in vertex.inputs}
        kept = bool(vertex.sizes) and set(vertex.shapes) == {vertex.sizes[0]}
        if "upsample" in vertex.operator or (kept and "max_pool" in vertex.operator):
            found |= given
        if vertex.parameters:
            given = {norms.get(name, "") for name in vertex.parameters}
            kept = True
        sources.append(given.pop() if kept and len(given) == 1 else "")
    return found - {""}


def _run_with_hooks(
    model: nn.Module, images: Tensor, kind: type[nn.Module], note: Callable[[nn.Module, object, Tensor], None]
) -> None:
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kind)]
    try:
        with evaluating(model):
            model(devices.move(images, model))
    finally:
        for hook in hooks:
            hook.remove()
