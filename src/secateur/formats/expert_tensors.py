"""The form in which transformers keeps all experts of a layer: one module with two tensors.

With gates gate_up_proj [E, 2 I, d], the rows of the gate first, an expert gives W2 (act(W1 x) * W3 x); without them
up_proj [E, I, d], and it gives W2 act(W1 x). Both have down_proj [E, d, I].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import UnsupportedError

__all__ = ["find_first", "is_packed", "run_first"]

_PLAIN = "up_proj"
_FORMS = (("gate_up_proj", "down_proj"), (_PLAIN, "down_proj"))


def find_first(module: nn.Module) -> str:
    """The name of the tensor that reads the states; "" where the module holds other tensors than those of a form."""
    names = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
    there = tuple(name for name in names if getattr(getattr(module, name, None), "ndim", 0) == 3)
    return there[0] if there in _FORMS else ""


def is_packed(module: nn.Module) -> bool:
    """Whether it holds experts in one of the forms: outputs before inputs, and rows for each neuron."""
    first = find_first(module)
    if not first:
        return False
    (_, rows, inputs), (_, outputs, neurons) = (getattr(module, name).shape for name in (first, "down_proj"))
    return bool(rows == neurons * (1 if first == _PLAIN else 2) and inputs == outputs)


def run_first(module: nn.Module, expert: int, states: Tensor) -> Tensor:
    """What the neurons of an expert give for states [T, d]: [T, I], act(W1 x) * W3 x or act(W1 x).

    A module that joins gate and rows in a way of its own, such as clamped, says so by `_apply_gate`, as those of
    transformers do. Raises `UnsupportedError` for one that says neither that nor what its activation is.
    """
    first = find_first(module)
    read = functional.linear(states, getattr(module, first)[expert])
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
