"""ReviewKD: a student's shallow feature maps, fused with its deep ones, are compared with a teacher's.

Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021 (arXiv 2104.09044).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.recover.distillation import maps, taps

__all__ = ["Review", "hierarchical", "stages"]

_LEVELS = (4, 2, 1)


class Review(nn.Module):
    """A student's maps of all stages in its teacher's widths and sizes, each joined with what comes from deeper stages.

    From the deepest on: ``x_i = narrow_i(f_i)``; below it ``(a, b) = sigmoid(attend_i([x_i, up(x_{i+1})]))``
    [N, 2, H, W] and ``x_i = a x_i + b up(x_{i+1})``; out comes ``widen_i(x_i)``. narrow is a 1 x 1 and widen a 3 x 3
    convolution, both with batch norms (section 3.2, attention-based fusion). To be trained along, and left out of the
    result.

    student, teacher: (channels, height, width) of each stage, shallow ones first. middle: width between the two, at
    most that of the student's deepest stage.
    """

    def __init__(
        self, student: Sequence[tuple[int, int, int]], teacher: Sequence[tuple[int, int, int]], *, middle: int = 512
    ) -> None:
        super().__init__()
        if len(student) != len(teacher) or not student:
            raise InputError(f"{len(student)} stages of a student, {len(teacher)} of its teacher: tap equally many")
        if any(deep[1] > shallow[1] for one in (student, teacher) for shallow, deep in pairwise(one)):
            raise InputError(f"stages of {list(student)} and {list(teacher)}: name those with large maps first")
        middle = min(middle, student[-1][0])
        self.sizes = [(height, width) for _, height, width in teacher]
        self.narrow = nn.ModuleList(_with_norm(nn.Conv2d(c, middle, 1, bias=False)) for c, _, _ in student)
        self.widen = nn.ModuleList(_with_norm(nn.Conv2d(middle, c, 3, padding=1, bias=False)) for c, _, _ in teacher)
        self.attend = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in student[1:])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[N, C_t, H_t, W_t] of each stage, shallow ones first, of the student's maps [N, C_s, H_s, W_s]."""
        found: list[Tensor] = []
        deeper: Tensor | None = None
        for place in reversed(range(len(self.narrow))):
            here = self.narrow[place](maps[place])
            if deeper is not None:
                again = functional.interpolate(deeper, here.shape[2:])
                share = torch.sigmoid(self.attend[place](torch.cat([here, again], 1)))
                here = share[:, :1] * here + share[:, 1:] * again
            deeper, size = here, self.sizes[place]
            found.append(self.widen[place](here if here.shape[2:] == size else functional.interpolate(here, size)))
        return found[::-1]


def hierarchical(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over images and stages of ``sum_l w_l mse(pool_l(s), pool_l(t)) / sum_l w_l``, w = 1, 1/2, 1/4, 1/8.

    l: the maps as they are, then averaged to 4 x 4, 2 x 2 and 1 x 1, as far as they are larger than that; mse: the mean
    over channels and places. Shapes: pairs of [N, C, H, W]. Source: section 3.2, hierarchical context loss.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.shape != theirs.shape:
            raise InputError(f"maps {list(ours.shape)} and {list(theirs.shape)}: bring them to one shape with Review")
        ours, theirs = ours.float(), theirs.detach().float()
        weight, weights, value = 1.0, 1.0, _squared_error(ours, theirs)
        for level in _LEVELS:
            if level < min(ours.shape[2:]):
                weight /= 2
                weights += weight
                pair = (functional.adaptive_avg_pool2d(one, level) for one in (ours, theirs))
                value = value + weight * _squared_error(*pair)
        total = total + value / weights
    return total


def stages(
    model: nn.Module, ask: Callable[[nn.Module], object], names: Sequence[str] = ()
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and (channels, height, width) of the last maps [N, C, H, W] of each size, as a pass by `ask` gives them.

    Maps of one place are no maps. Raises `InputError` where there are none.

    names: of the modules, where they are not to be looked for.
    """
    if names:
        places = [taps.one(model, name) for name in names]
        seen = taps.look_at(model, places, torch.empty(0), maps.flat, ask=lambda model, _: ask(model))
        return places, [(one.shape[1], one.shape[2], one.shape[3]) for one in seen]
    last: dict[tuple[int, int], tuple[str, tuple[int, int, int]]] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(_: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                size = (output.shape[2], output.shape[3])
                last.pop(size, None)
                last[size] = name, (output.shape[1], *size)

        return look

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), evaluating(model):
            ask(model)
    finally:
        for handle in handles:
            handle.remove()
    found = sorted(last.values(), key=lambda one: -one[1][1] * one[1][2])
    if not found:
        raise InputError(
            f"no module of this {type(model).__name__} gives maps [N, C, H, W]: it has no stages to review"
        )
    return [name for name, _ in found], [shape for _, shape in found]


def _with_norm(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


def _squared_error(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).square().mean((1, 2, 3)).sum()
