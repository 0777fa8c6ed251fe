"""What is special to one kind of thing: how it is opened, given data, run, measured and saved.

A recipe says by the annotation of its first parameter what it works on; a model says it by its name.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from secateur.errors import InputError, UnsupportedError
from secateur.measure.latency import Environment
from secateur.vocabulary import Figure

__all__ = ["Trade", "called", "copies", "match", "name", "of_folder", "of_model", "of_recipe", "sharing", "streaming"]

Row = dict[str, Figure]

_READ = {"page", "passage", "knowledge_graph"}
"""Subjects that are no model, but what one reads; named, since opening one takes libraries that models do without."""


class Trade(Protocol):
    """The functions of `language` and `network`; see there."""

    __name__: str
    BATCH: int
    LENGTH: int | None
    NOUN: str

    def read(self, data: Any, text: str = "text", label: str = "label") -> Any:
        """The data, from wherever the caller has it; texts and classes are in the columns named."""
        ...

    def opened(self, model: Any, device: str | None = None, data: Any = None) -> Any:
        """The model as a subject."""
        ...

    def again(self, model: Any, original: Any, device: str | None = None) -> Any:
        """Another model, to be compared with `original`."""
        ...

    def fitted(self, corpus: Any, subject: Any) -> Any:
        """The data as the subject takes it."""
        ...

    def where(self, subject: Any, batch: int | None, length: int | None, threads: int | None) -> Environment:
        """Where time is measured."""
        ...

    def check(self, subject: Any, options: Mapping[str, Any]) -> None:
        """Refuse options that the subject can't follow."""
        ...

    def digest(self, subject: Any) -> str:
        """What tells this model from another."""
        ...

    def example(self, subject: Any, place: Environment) -> Any:
        """A batch of the size that is timed."""
        ...

    def forward(self, subject: Any, batch: Any) -> Any:
        """What is timed."""
        ...

    def matrices(self, subject: Any) -> Mapping[str, Tensor]:
        """Its weight matrices that may be pruned weight by weight, each [d_out, d_in]."""
        ...

    def sizes(self, subject: Any, batch: Any) -> Row:
        """What can be counted on the subject."""
        ...

    def compared(self, original: Any, student: Any, held_out: Any, place: Environment) -> tuple[Row, Row, Row]:
        """Quality of each, and of the two together."""
        ...

    def save(self, subject: Any, folder: Path) -> None:
        """Write the subject."""
        ...

    def loading(self, folder: Path, name: str) -> str:
        """The lines of Python that load it again."""
        ...


def of_recipe(function: Callable[..., Any]) -> Trade:
    """The trade of the subject that a recipe takes first; `UnsupportedError` for one that prunes no model."""
    hints = typing.get_type_hints(function)
    first = next(iter(inspect.signature(function).parameters), "")
    if getattr(hints.get(first), "__module__", "").removeprefix("secateur.subjects.") in _READ:
        recipe = function.__name__
        raise UnsupportedError(
            f"{recipe} prunes what a model reads, no model: use `secateur prune-context --recipe {recipe}`"
        )
    return _network() if _is_a(hints.get(first), "secateur.subjects.network.traced", "Traced") else _language()


def name(trade: Trade) -> str:
    """language, network or streamed: asking for one by name loads none of the others."""
    return trade.__name__.rpartition(".")[2]


def called(model: Any) -> str:
    """What records call a model: its folder or its name, or the class of a module or a subject."""
    return str(model) if isinstance(model, str | Path) else type(getattr(model, "model", model)).__name__


def of_model(model: Any) -> Trade:
    """The trade of a model: networks are modules, `Traced`, or functions that build one ("file.py:function")."""
    named = isinstance(model, str) and ":" in model and not Path(model).exists()
    kind = type(model)
    module = isinstance(model, nn.Module) and not _is_a(kind, "transformers.modeling_utils", "PreTrainedModel")
    return _network() if named or module or _is_a(kind, "secateur.subjects.network.traced", "Traced") else _language()


def match(trade: Trade, model: Any, recipe: str) -> None:
    """Raise `InputError` for a name of a model that is not of the recipe's trade."""
    if not isinstance(model, str | Path) or of_model(model) is trade:
        return
    if name(trade) == "language":
        raise InputError(
            f"{recipe} works on language models, and {str(model)!r} names a function that builds a network: give a "
            "folder or a Hub id, or use a recipe on networks or secateur.prune"
        )
    raise InputError(
        f"{recipe} works on networks, and {str(model)!r} names none: give a function that builds one, such as "
        "net.py:build, or use a recipe on language models (secateur list)"
    )


def copies(train: Any, held: Any, noun: str, *, apart: bool = False) -> str:
    """A line on held-out examples that are in the training part as well; "" where there are none.

    apart: they were given, and are no part of the same data.
    """
    found = int(np.isin(held.keys(), train.keys()).sum())
    if not found:
        return ""
    where, advice = "training part", "`secateur prune-data DATA --deduplicate` leaves copies out"
    if apart:
        where, advice = "data", "leave them out of one of the two"
    return (
        f"{found} of {len(held)} held-out {noun} are in the {where}, too, and figures of quality are better for it: "
        f"{advice}"
    )


def of_folder(folder: Path) -> Trade | None:
    """The trade of a model that was saved in `folder`; None where there is none."""
    if (folder / "config.json").is_file():
        return _language()
    return _network() if (folder / "cut.json").is_file() else None


def streaming(function: Callable[..., Any]) -> Trade:
    """The trade of models that stay on the disk; `UnsupportedError` for a recipe that needs them in memory."""
    if not _by_blocks(function):
        raise UnsupportedError(f"{function.__name__} needs the whole model in memory: leave stream out")
    from secateur.runs.backends import streamed

    return streamed


def sharing(function: Callable[..., Any], many: int) -> None:
    """Raise `UnsupportedError` for a recipe that `many` processes can't share out: they do that block by block."""
    if many > 1 and not _by_blocks(function):
        raise UnsupportedError(
            f"{function.__name__} runs in one process, and {many} were started: start it without torchrun or "
            "accelerate launch (recipes that can stream can be shared out)"
        )


def _by_blocks(function: Callable[..., Any]) -> bool:
    """Whether the recipe takes a model that stays on the disk, so that it goes through one block at a time."""
    hints = typing.get_type_hints(function)
    first = next(iter(inspect.signature(function).parameters), "")
    return any(
        _is_a(kind, "secateur.subjects.transformer.streamed", "Streamed") for kind in typing.get_args(hints.get(first))
    )


def _is_a(kind: Any, module: str, wanted: str) -> bool:
    """Whether `kind` is that class or is made of it; a module that nobody has loaded has no such thing."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(kind, type) and issubclass(kind, getattr(loaded, wanted))


def _language() -> Trade:
    from secateur.runs.backends import language  # networks do without

    return language


def _network() -> Trade:
    from secateur.runs.backends import network  # text recipes do without

    return network
