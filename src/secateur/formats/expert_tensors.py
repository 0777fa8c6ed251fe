"""The forms in which transformers keeps all experts of a layer: one module with two tensors.

With gates gate_up_proj [E, 2 I, d], the rows of the gate first, an expert gives W2 (act(W1 x) * W3 x); without them
up_proj [E, I, d], and it gives W2 act(W1 x). Both have down_proj [E, d, I]. They may be stored turned, inputs before
outputs: gate_up_proj [E, d, 2 I] and down_proj [E, I, d] (Aria). Rows of gate and up may alternate, and each tensor may
have a bias beside it: gate_up_proj_bias [E, 2 I], down_proj_bias [E, d] (gpt-oss).

Such a module is called with (states [T, d], chosen experts [T, k], shares [T, k]), or with a copy of all states for
each expert [E T, d], times its shares, which are zero for tokens that are not sent to it (Llama 4).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import UnsupportedError

__all__ = [
    "find_bias",
    "find_first",
    "is_packed",
    "is_turned",
    "matrix",
    "neurons_of_rows",
    "run_first",
    "sizes",
    "takes_choice",
    "told_apart",
]

_PLAIN = "up_proj"
_OUT = "down_proj"
_FORMS = (("gate_up_proj", _OUT), (_PLAIN, _OUT))


def find_first(module: nn.Module) -> str:
    """The name of the tensor that reads the states; "" where the module holds other tensors than those of a form."""
    names = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
    there = tuple(name for name in names if getattr(getattr(module, name, None), "ndim", 0) == 3)
    return there[0] if there in _FORMS else ""


def is_packed(module: nn.Module) -> bool:
    """Whether it holds experts in one of the forms."""
    return bool(find_first(module)) and (_fits(module, turned=False) or _fits(module, turned=True))


def takes_choice(module: nn.Module) -> bool:
    """Whether it is called with (states, chosen experts, shares), and not with states for each expert (Llama 4)."""
    taken = inspect.signature(module.forward).parameters.values()
    return len(taken) > 2 or any(one.kind is one.VAR_POSITIONAL for one in taken)


def is_turned(module: nn.Module) -> bool:
    """Whether its tensors have inputs before outputs: as the module or else its shapes say; not if they fit both."""
    return bool(getattr(module, "is_transposed", False)) or not _fits(module, turned=False)


def _fits(module: nn.Module, *, turned: bool) -> bool:
    first = find_first(module)
    (_, rows, inputs), (_, outputs, neurons) = (getattr(module, name).shape for name in (first, _OUT))
    if turned:
        rows, inputs, outputs, neurons = inputs, rows, neurons, outputs
    return bool(rows == neurons * (1 if first == _PLAIN else 2) and inputs == outputs)


def sizes(module: nn.Module) -> tuple[int, int, int]:
    """(E experts, d channels, I neurons of each)."""
    count, outputs, neurons = getattr(module, _OUT).shape
    return (count, neurons, outputs) if is_turned(module) else (count, outputs, neurons)


def matrix(module: nn.Module, leaf: str, stored: Tensor | None = None) -> Tensor:
    """A tensor of all experts, or one of its shape such as its gradient, as a view [E, outputs, inputs]."""
    given = getattr(module, leaf) if stored is None else stored
    return given.mT if is_turned(module) else given


def find_bias(module: nn.Module, leaf: str) -> Tensor | None:
    """The bias [E, outputs] of a tensor of all experts, where there is one."""
    return cast(Tensor | None, getattr(module, f"{leaf}_bias", None))


def neurons_of_rows(module: nn.Module) -> Tensor:
    """The neuron of each row of the first matrix: [2 I] with gates, [I] without."""
    neurons = torch.arange(sizes(module)[2])
    if find_first(module) == _PLAIN:
        return neurons
    return neurons.repeat(2) if getattr(module, "is_concatenated", True) else neurons.repeat_interleave(2)


def told_apart(module: nn.Module, args: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Of each expert in turn, from what the module is called with: (states [T, d], which are sent to it [T], shares).

    The shares [T, 1] are those with which tokens are sent there; None where the states hold them already.
    """
    if not takes_choice(module):
        for states in args[0].unflatten(0, (sizes(module)[0], -1)):
            yield states, states.any(-1), None
        return
    states, chosen, shares = (given.flatten(0, -2) for given in args[:3])
    for expert in range(sizes(module)[0]):
        mine = chosen == expert
        yield states, mine.any(-1), (shares * mine).sum(-1, keepdim=True)


def run_first(module: nn.Module, expert: int, states: Tensor) -> Tensor:
    """What the neurons of an expert give for states [T, d]: [T, I], act(W1 x) * W3 x or act(W1 x).

    A module that joins gate and rows in a way of its own, such as clamped, says so by `_apply_gate`, as those of
    transformers do. Raises `UnsupportedError` for one that says neither that nor what its activation is.
    """
    first = find_first(module)
    bias = find_bias(module, first)
    read = functional.linear(states, matrix(module, first)[expert], None if bias is None else bias[expert])
    join = cast(Callable[[Tensor], Tensor] | None, getattr(module, "_apply_gate", None))
    if first != _PLAIN and join is not None:
        return join(read)
    act = cast(Callable[[Tensor], Tensor] | None, getattr(module, "act_fn", None))
    if act is None:
        raise UnsupportedError(
            f"experts of the class {type(module).__name__} say neither `act_fn` nor `_apply_gate`, so what their "
            "neurons give is not known: take a score that asks weights alone, such as magnitude"
        )
    if first == _PLAIN:
        return act(read)
    gate, up = read.chunk(2, -1)
    return act(gate) * up
