"""Properties of a dispatched operator: its name, its tensors, and what it writes into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, TypeAlias

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Arguments",
    "Call",
    "EagerMode",
    "Keywords",
    "base_name",
    "dimensions",
    "is_view",
    "name_of",
    "names",
    "qualify",
    "results_of",
    "tensors_in",
]

Arguments: TypeAlias = Sequence[Any]
"""Positional arguments of an operator: numbers, tensors and lists of them, as its schema says, which no type shows."""
Keywords: TypeAlias = Mapping[str, Any]
"""Its arguments by name, likewise."""


class EagerMode(TorchDispatchMode):
    """A dispatch mode of code that nobody compiles."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing here is compiled, and to say so takes longer than most operators."""
        return False


def names(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


_KNOWN = names("aten torchvision")
"""Namespaces of the operators that are known here by their bare names."""


def qualify(namespace: str, name: str) -> str:
    """What an operator is called here: its bare name where torch or torchvision has it, else "namespace::name".

    So `mylib::mean` is not taken for torch's own.
    """
    return name if namespace in _KNOWN else f"{namespace}::{name}"


def name_of(func: OpOverload) -> str:
    """The name of a dispatched operator, as `qualify` gives it."""
    return qualify(func.namespace, func.overloadpacket.__name__)


def base_name(name: str) -> str:
    """The operator's name without the underscore of one that writes in place."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def results_of(out: object) -> list[object]:
    """What an operator returned, also what is no tensor, in one list."""
    if isinstance(out, Tensor):
        return [out]
    if not isinstance(out, list | tuple):
        return []
    return [result for part in out for result in (results_of(part) if isinstance(part, list | tuple) else [part])]


def dimensions(argument: int | Sequence[int] | None, rank: int) -> list[int]:
    """The dimensions that an operator's `dim` names; all where it names none."""
    if argument is None or (isinstance(argument, list | tuple) and not argument):
        return list(range(rank))
    return [dim % max(rank, 1) for dim in ([argument] if isinstance(argument, int) else argument)]


@cache
def is_view(func: OpOverload) -> bool:
    """Whether an operator returns a view of what it was given."""
    returns = func._schema.returns
    return any(one.alias_info is not None and not one.alias_info.is_write for one in returns)


class Call:
    """One call of an operator: the operator, its arguments and what it returned."""

    def __init__(self, func: OpOverload, name: str, args: Arguments, kwargs: Keywords, out: Any) -> None:
        self.func, self.name, self.args, self.kwargs, self.out = func, name, args, kwargs, out
        self.base = base_name(name)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors that were given."""
        return list(tensors_in((self.args, self.kwargs)))

    def get(self, place: int, name: str, default: object = None) -> Any:
        """An argument, given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def repeated_on(self, first: Tensor) -> Any:
        """What the operator gives with another first argument."""
        return self.func(first, *self.args[1:], **self.kwargs)
