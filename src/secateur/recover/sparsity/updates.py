"""A part of each step of an optimiser undone, such as the entries that it changes most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["filter_steps"]

T = TypeVar("T", bound=Optimizer)


def filter_steps(optimizer: T, choose: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> T:
    """Have `optimizer` undo, after each of its steps, the changes that `choose` does not let stay; returns it.

    choose: name of a parameter -> its change [...] in this step, to name -> booleans [...], True where it stays. Names
    are "0", "1", ... in the order of the optimiser's groups. An entry that does not stay is what it was, bit by bit;
    what the optimiser remembers, such as Adam's moments, is left alone. It takes a copy of the parameters during a
    step. In a loop of one's own: `filter_steps(torch.optim.AdamW(model.parameters()), choose)`.

    Source: arXiv 2504.09522, whose mask of a whole update is here of each step; which of the two it means is open.
    """
    before: dict[str, Tensor] = {}

    def parameters() -> dict[str, Tensor]:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {str(number): parameter for number, parameter in enumerate(held)}

    @torch.no_grad()
    def remember(*_: object) -> None:
        before.update({name: parameter.detach().clone() for name, parameter in parameters().items()})

    @torch.no_grad()
    def undo(*_: object) -> None:
        now = parameters()
        stays = choose({name: parameter.detach() - before[name] for name, parameter in now.items()})
        for name, parameter in now.items():
            parameter.copy_(torch.where(stays[name].to(parameter.device), parameter, before[name]))
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(undo)
    return optimizer
