"""Split data into what a run learns from and what it is measured on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from secateur.data import examples, labels
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.measure import detection
from secateur.runs.backends import AnyBackend, Data

__all__ = ["Dataset", "Parts", "box_size_notes", "columns", "copies_note", "names_of", "read", "reading_notes", "split"]

_SHOWN = 3


class Dataset(Protocol):
    """Examples or texts, as a backend has read them."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def digest(self) -> str:
        """A hash of all it holds."""
        ...

    def __len__(self) -> int: ...

    def keys(self) -> NDArray[np.void]:
        """[N]: equal numbers for equal examples."""
        ...

    def split(self, *, seed: int) -> tuple[Self, Self]:
        """(most of it, the rest), drawn by the seed."""
        ...


@dataclass(frozen=True)
class Parts:
    """Of data that fits a model: `train` is learned from, and quality is measured on `held`.

    digests: of what was given, by the names under which settings have them; warning: of examples that are in both, or
    nothing; notes: of what was left out or renumbered when the data was read.
    """

    train: Dataset | None = None
    held: Dataset | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""
    notes: tuple[str, ...] = ()


def read(
    backend: AnyBackend,
    data: Data,
    held_out: Data = None,
    *,
    text: str = "text",
    label: str = "label",
    sizes: Any = None,
) -> tuple[Dataset | None, Dataset | None]:
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
    corpus, apart = (None if source is None else backend.read(source, text, label) for source in (data, held_out))
    if sizes is not None:
        corpus, apart = (None if part is None else _with_sizes(part, examples.sides(sizes)) for part in (corpus, apart))
    return corpus, apart


def _with_sizes(data: Dataset, sizes: tuple[float, float]) -> Dataset:
    if not isinstance(data, Examples) or not data.targets:
        raise InputError(f"sizes are of boxes, and {data.name} has none: leave sizes out")
    return replace(data, sizes=sizes)


def box_size_notes(held_out: Any, figures: Collection[str]) -> list[str]:
    """What is to be said of how these `figures` were measured: which boxes were small, and which large."""
    if not isinstance(held_out, Examples) or not any(name.startswith("mAP_") for name in figures):
        return []
    return [detection.describe_sizes(held_out.sizes, held_out.inputs.shape)]


def columns(text: str, label: str, sizes: str | Sequence[float | str] | None = None) -> dict[str, Any]:
    """What settings say of the columns that are read, and of sizes of boxes; nothing of the usual ones."""
    found = {name: column for name, column in (("text", text), ("label", label)) if column != name}
    return found if sizes is None else {**found, "sizes": list(examples.sides(sizes))}


def split(backend: AnyBackend, data: Dataset, held_out: Dataset | None, subject: Any, *, seed: int) -> Parts:
    """All of `data` and `held_out`, or if that is None two parts of `data`, drawn by the seed; both have been read.

    Raises `DataError` for what the subject can't take, held-out data by which it can't be judged, and too little data.
    """
    if held_out is not None:
        _check_alike(data, held_out)
    data = backend.fit_data(data, subject)
    if held_out is None:
        if len(data) < 3:
            few = f"{data.name} holds {len(data)} {backend.noun}"
            raise DataError(f"{few}: at least 3 are needed, one of them to measure on")
        train, held = data.split(seed=seed)
        warning = copies_note(train, held, backend.noun)
        return Parts(train, held, {"data_sha256": data.digest}, warning, reading_notes(data))
    held_out = backend.fit_data(held_out, subject)
    digests = {"data_sha256": data.digest, "held_out_sha256": held_out.digest}
    warning = copies_note(data, held_out, backend.noun, apart=True)
    return Parts(data, held_out, digests, warning, reading_notes(data, held_out))


def reading_notes(*parts: Dataset | None) -> tuple[str, ...]:
    """What was left out of examples, or renumbered, when they were read; each once."""
    notes = [note for part in parts if isinstance(part, Examples) for note in part.notes]
    return tuple(dict.fromkeys(notes))


def copies_note(train: Dataset, held: Dataset, noun: str, *, apart: bool = False) -> str:
    """A line on held-out examples that are in the training part as well; "" where there are none.

    apart: they were given, and are no part of the same data.
    """
    copies = int(np.isin(held.keys(), train.keys()).sum())
    if not copies:
        return ""
    where, advice = "training part", "`secateur prune-data DATA --deduplicate` leaves copies out"
    if apart:
        where, advice = "data", "leave them out of one of the two"
    return (
        f"{copies} of {len(held)} held-out {noun} are in the {where}, too, and figures of quality are better for it: "
        f"{advice}"
    )


def names_of(**given: tuple[Data, Dataset | None]) -> dict[str, str]:
    """Where each of what was given, and read, was found, or else what it calls itself; without what was not given."""
    return {
        name: str(source) if isinstance(source, str | Path) else str(found.name)
        for name, (source, found) in given.items()
        if found is not None
    }


def _check_alike(data: Dataset, judged: Dataset) -> None:
    """Refuse held-out examples by which a network that takes `data` can't be judged."""
    if not isinstance(data, Examples) or not isinstance(judged, Examples):
        return
    if bool(data.targets) != bool(judged.targets):
        has, lacks = (data, judged) if data.targets else (judged, data)
        raise DataError(f"{has.name} has boxes and {lacks.name} none: give data and held-out data of one kind")
    if data.labels is not None and judged.labels is None:
        raise DataError(f"{judged.name} has no classes to measure quality by: give held-out examples with labels")
    if data.classes and judged.classes and data.classes != judged.classes:
        theirs, ours = (", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                        for names in (judged.classes, data.classes))  # fmt: skip
        raise DataError(f"{judged.name} numbers the classes {theirs}, {data.name} {ours}: give both the same classes")
