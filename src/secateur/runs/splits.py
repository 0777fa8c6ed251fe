"""What a run learns from, and what it is measured on: a part of the data that it never sees, or data of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.data import examples, labels
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.measure import detection
from secateur.runs import backends
from secateur.runs.backends import Trade

__all__ = ["Parts", "columns", "named", "parted", "read", "remarks"]

_SHOWN = 3


@dataclass(frozen=True)
class Parts:
    """Of data that fits a model: `train` is learned from, and quality is measured on `held`.

    digests: of what was given, by the names under which settings have them; warning: of examples that are in both, or
    nothing.
    """

    train: Any
    held: Any
    digests: dict[str, str]
    warning: str


def read(
    trade: Trade, data: Any, held_out: Any = None, *, text: str = "text", label: str = "label", sizes: Any = None
) -> tuple[Any, Any]:
    """`data` and `held_out`, read by the same columns; None for either that was not given.

    sizes: by which boxes are small, medium or large in the place of the data's own; see `examples.sides`.

    Raises `InputError` or `DataError` for what makes no sense without data, and `DataError` for what can't be read.
    """
    if data is None and held_out is not None:
        raise InputError("held_out is what quality is measured on beside the data: give data, too")
    if data is None:
        labels.unnamed("no data is given", text=text, label=label)
        if sizes is not None:
            raise InputError("sizes are of the boxes in data, and no data is given: leave sizes out")
    corpus, apart = (None if one is None else trade.read(one, text, label) for one in (data, held_out))
    if sizes is not None:
        corpus, apart = (None if one is None else _sized(one, examples.sides(sizes)) for one in (corpus, apart))
    return corpus, apart


def _sized(data: Any, sizes: tuple[float, float]) -> Any:
    if not isinstance(data, Examples) or not data.targets:
        raise InputError(f"sizes are of boxes, and {data.name} has none: leave sizes out")
    return replace(data, sizes=sizes)


def remarks(held_out: Any, figures: Collection[str]) -> list[str]:
    """What is to be said of how these `figures` were measured: which boxes were small, and which large."""
    if not isinstance(held_out, Examples) or not any(one.startswith("mAP_") for one in figures):
        return []
    return [detection.describe_sizes(held_out.sizes, held_out.inputs.shape)]


def columns(text: str, label: str, sizes: Any = None) -> dict[str, Any]:
    """What settings say of the columns that are read, and of sizes of boxes; nothing of the usual ones."""
    found = {name: column for name, column in (("text", text), ("label", label)) if column != name}
    return found if sizes is None else {**found, "sizes": list(examples.sides(sizes))}


def parted(trade: Trade, data: Any, held_out: Any, subject: Any, *, seed: int) -> Parts:
    """All of `data` and `held_out`, or if that is None two parts of `data`, drawn by the seed; both have been read.

    Raises `DataError` for what the subject can't take, held-out data by which it can't be judged, and too little data.
    """
    if held_out is not None:
        _alike(data, held_out)
    data = trade.fitted(data, subject)
    if held_out is None:
        if len(data) < 3:
            few = f"{data.name} holds {len(data)} {trade.NOUN}"
            raise DataError(f"{few}: at least 3 are needed, one of them to measure on")
        train, held = data.split(seed=seed)
        return Parts(train, held, {"data_sha256": data.digest}, backends.copies(train, held, trade.NOUN))
    held_out = trade.fitted(held_out, subject)
    digests = {"data_sha256": data.digest, "held_out_sha256": held_out.digest}
    return Parts(data, held_out, digests, backends.copies(data, held_out, trade.NOUN, apart=True))


def named(**given: tuple[Any, Any]) -> dict[str, str]:
    """Where each of what was given, and read, was found, or else what it calls itself; without what was not given."""
    return {
        name: str(source) if isinstance(source, str | Path) else str(found.name)
        for name, (source, found) in given.items()
        if found is not None
    }


def _alike(data: Any, judged: Any) -> None:
    """Refuse held-out examples by which a network that takes `data` can't be judged."""
    if not isinstance(data, Examples) or not isinstance(judged, Examples):
        return
    if bool(data.targets) != bool(judged.targets):
        has, lacks = (data, judged) if data.targets else (judged, data)
        raise DataError(f"{has.name} has boxes and {lacks.name} none: give data and held-out data of one kind")
    if data.labels is not None and judged.labels is None:
        raise DataError(f"{judged.name} has no classes to measure quality by: give held-out examples with labels")
    if data.classes and judged.classes and data.classes != judged.classes:
        theirs, ours = (", ".join(one[:_SHOWN]) + (", ..." if len(one) > _SHOWN else "")
                        for one in (judged.classes, data.classes))  # fmt: skip
        raise DataError(f"{judged.name} numbers the classes {theirs}, {data.name} {ours}: give both the same classes")
