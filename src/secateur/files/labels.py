"""Labels as they come with texts, rows and arrays: classes, numbers, or a line that says why they are neither."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import DataError

__all__ = ["DEFAULT", "Labelled", "Labels", "check", "short", "whole"]

DEFAULT = "label"
"""The column that may be missing, since nobody has named it."""

_WHOLE = 2**53
"""Beyond it a float tells no whole number from the next, and no class is counted so far."""
_SHOWN = 40


@dataclass(frozen=True, eq=False)
class Labelled:
    """What the labels are: `classes` [N] with their `names` if they have any, or `numbers` [N], or nothing.

    flaw: why there are no classes though there are labels, in a line for people; "" where there is nothing to say.
    """

    classes: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    numbers: NDArray[np.float64] | None = None
    flaw: str = ""


class Labels:
    """Labels one after another, each value held once.

    Whole numbers are classes as they are, 1.0 as 1; other values are names, counted in alphabetical order.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._seen: dict[tuple[type, Any], int] = {}
        self._codes = array("q")
        self._nested: tuple[int, Any] | None = None
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """The label of the next text, None or NaN for none."""
        if isinstance(value, list | tuple | Mapping | Set | np.ndarray):
            self._nested = self._nested or (len(self._codes), value)
            value = None
        elif isinstance(value, Real | Decimal) and value != value:  # NaN: how tables write that there is no number
            value = None
        self._codes.append(self._seen.setdefault((type(value), value), len(self._seen)))

    def end(self, name: str, column: str, noun: str = "text") -> Labelled:
        """What they are: one label for each, or for none. name, column, noun: for `flaw`, see `Labelled`."""
        values, codes = [value for _, value in self._seen], np.array(self._codes, np.int64)
        if self._nested is not None:
            place, value = self._nested
            found = f"{noun} {place + 1} of {name} has the label {short(value)} in {column!r}"
            return Labelled(flaw=f"{found}, more than one value: give one class for each, a name or a whole number")
        if None in values:
            missing = np.flatnonzero(codes == values.index(None))
            if len(missing) == len(codes):
                return Labelled()
            found = f"{noun} {missing[0] + 1} of {name} has no label in {column!r}"
            return Labelled(flaw=f"{found}, as {len(missing)} of {len(codes)} have none: label them or drop them")
        if values and all(isinstance(value, Real | Decimal) for value in values):
            if all(map(_whole, values)):
                return Labelled(np.array([int(value) for value in values], np.int64)[codes])
            if not all(isinstance(value, Integral) for value in values):
                broken = next(place for place, value in enumerate(values) if not _whole(value))
                place = int(np.argmax(codes == broken))
                found = f"{noun} {place + 1} of {name} has the label {short(values[broken])} in {column!r}"
                given = np.array([float(value) for value in values])[codes]
                return Labelled(numbers=given, flaw=f"{found}: classes are names or whole numbers, so give such labels")
        names = sorted({str(value) for value in values})
        place_of = {name: index for index, name in enumerate(names)}
        return Labelled(np.array([place_of[str(value)] for value in values], np.int64)[codes], tuple(names))


def check(label: str, columns: Iterable[str], name: str, *, what: str = "column") -> None:
    """Raise `DataError` for a column of labels that was named and is none of `columns`; it tells them, nearest first.

    name: of the data; what: what has the labels there.
    """
    known = [str(column) for column in columns]
    if label not in ("", DEFAULT, *known):
        near = difflib.get_close_matches(label, known, n=len(known) or 1, cutoff=0.0)
        raise DataError(f"{name} has no {what} {label!r}: it has {', '.join(near) or 'none'}")


def whole(
    values: Any,
    name: str,
    *,
    what: str = "label",
    of: str = "example",
    wanted: str = "classes are whole numbers from 0; their names go into `classes`",
) -> NDArray[np.int64]:
    """`values` as int64, 1.0 as 1. Raises `DataError` for any that is no whole number; the rest is for its line."""
    try:
        found = np.asarray(values)
    except ValueError as error:  # lists of several lengths
        raise DataError(f"{name} has {what}s that are no array: {wanted}") from error
    if found.dtype.kind == "f":
        floats = found.astype(np.float64)
        wrong = ~((np.abs(floats) < _WHOLE) & (np.floor(floats) == floats))
    elif found.dtype.kind == "u":
        wrong = found > np.iinfo(np.int64).max
    else:
        wrong = np.full(found.shape, found.dtype.kind not in "bi")
    if wrong.any():
        place = np.argwhere(wrong)[0]
        value = found[tuple(place)]
        shown = short(value.item() if isinstance(value, np.generic) else value)
        raise DataError(f"{name} has the {what} {shown}{f' ({of} {place[0]})' if len(place) else ''}: {wanted}")
    return np.zeros(found.shape, np.int64) if not found.size else found.astype(np.int64)


def _whole(value: Any) -> bool:
    return bool(abs(value) < _WHOLE and value == int(value))


def short(value: Any) -> str:
    """`value` for a line of people, as much of it as fits there."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
