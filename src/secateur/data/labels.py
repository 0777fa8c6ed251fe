"""Labels of texts, rows and arrays: classes, numbers, or an error that names the first bad one."""

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

__all__ = [
    "DEFAULT", "IGNORED", "SEVERAL", "Labelled", "Labels", "Tagged", "check", "columns", "short", "tagged", "unnamed",
    "whole",
]  # fmt: skip

DEFAULT = "label"
"""The column that may be missing, since nobody has named it."""
IGNORED = -100
"""Label of a word, or of a token, that does not count, as in transformers."""
SEVERAL = "more than one value"
"""What `Labelled.flaw` says of a text with several labels."""

_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "labels")
"""Columns of lists: of a text's words, and of a label for each of them."""

_WHOLE = 2**53
"""Beyond it a float tells no whole number from the next, and no class is counted so far."""
_SHOWN = 40


@dataclass(frozen=True, eq=False)
class Labelled:
    """What the labels are: `classes` [N] with their `names` if they have any, or `numbers` [N], or nothing.

    tagged: where words of texts have labels, the words with their classes, which `names` name if they have any; none
    where those labels are no classes.
    flaw: why there are no classes though there are labels, in a line for people; "" where there is nothing to say.
    """

    classes: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    numbers: NDArray[np.float64] | None = None
    flaw: str = ""
    tagged: tuple[Tagged, ...] | None = None


@dataclass(frozen=True)
class Tagged:
    """The words of a text, and a label for each of them; `column` is where the labels stood."""

    words: tuple[str, ...]
    tags: tuple[Any, ...]
    column: str = ""


def tagged(row: Mapping[str, Any], label: str, where: str) -> tuple[str, Any] | None:
    """A row that holds words in place of a text: the words as one text, and `Tagged` with their labels, or its label.

    Words are a list of strings in `tokens` or `words`; labels, of which there is one for each word, a list in the
    column `label`, in `ner_tags` or in `labels`. None for a row without words. Raises `DataError` for labels that are
    not as many.
    """
    found = next((name for name in _WORDS if isinstance(row.get(name), list | tuple)), None)
    if found is None or not all(isinstance(word, str) for word in row[found]):
        return None
    words = tuple(row[found])
    own = (label,) if isinstance(row.get(label), list | tuple) else ()
    column = next((name for name in (*own, *_TAGS) if label and row.get(name) is not None), None)
    if column is None:
        return " ".join(words), row.get(label)
    tags = row[column]
    if not isinstance(tags, list | tuple) or len(tags) != len(words):
        given = f"{len(tags)} labels" if isinstance(tags, list | tuple) else f"the label {short(tags)}"
        raise DataError(f"{where} has {len(words)} words in {found!r} and {given} in {column!r}: give a label for each")
    return " ".join(words), Tagged(words, tuple(tags), column)


def columns(names: Iterable[str], label: str) -> list[str]:
    """Which of a table's columns `tagged` asks for; nothing where it has none of words."""
    found = [name for name in names if name in (*_WORDS, label, *_TAGS)]
    return found if any(name in _WORDS for name in found) else []


class Labels:
    """Labels one after another, each value held once.

    Whole numbers are classes as they are, 1.0 as 1; other values are names, counted in alphabetical order.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._seen: dict[tuple[type, Any], int] = {}
        self._codes = array("q")
        self._nested: tuple[int, Any] | None = None
        self._tagged: list[Tagged] = []
        for value in values:
            self.add(value)

    def add(self, value: Any) -> None:
        """The label of the next text, or the labels of its words; None or NaN for none."""
        if isinstance(value, Tagged):
            self._tagged.append(value)
            self._codes.append(self._seen.setdefault((Tagged, None), len(self._seen)))
            return
        if isinstance(value, list | tuple | Mapping | Set | np.ndarray):
            self._nested = self._nested or (len(self._codes), value)
            value = None
        elif isinstance(value, Real | Decimal) and value != value:  # NaN: how tables write that there is no number
            value = None
        self._codes.append(self._seen.setdefault((type(value), value), len(self._seen)))

    def end(self, name: str, column: str, noun: str = "text") -> Labelled:
        """What they are: one label for each, or for none. name, column, noun: for `flaw`, see `Labelled`."""
        if self._tagged:
            return self._of_words(name, noun)
        values, codes = [value for _, value in self._seen], np.array(self._codes, np.int64)
        if self._nested is not None:
            place, value = self._nested
            found = f"{noun} {place + 1} of {name} has the label {short(value)} in {column!r}"
            return Labelled(flaw=f"{found}, {SEVERAL}: give one class for each, a name or a whole number")
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

    def _of_words(self, name: str, noun: str) -> Labelled:
        """What they are where texts have labels for their words."""
        column, kinds = self._tagged[0].column, [kind for kind, _ in self._seen]
        other = next((place for place, code in enumerate(self._codes) if kinds[code] is not Tagged), None)
        if other is not None:
            found = f"{noun} {other + 1} of {name} has no labels of words in {column!r}"
            return Labelled(flaw=f"{found}, as others have: label them or drop them", tagged=())
        flat = Labels(tag for one in self._tagged for tag in one.tags).end(f"all {noun}s of {name}", column, "word")
        if flat.classes is None:
            return Labelled(flaw=flat.flaw or f"{name} has no labels of words in {column!r}: label them", tagged=())
        parts = np.split(flat.classes, np.cumsum([len(one.tags) for one in self._tagged])[:-1])
        pairs = zip(self._tagged, parts, strict=True)
        tagged = tuple(Tagged(one.words, tuple(part.tolist()), column) for one, part in pairs)
        return Labelled(names=flat.names, tagged=tagged)


def check(label: str, columns: Iterable[str], name: str, *, what: str = "column") -> None:
    """Raise `DataError` for a column of labels that was named and is none of `columns`; it tells them, nearest first.

    name: of the data; what: what has the labels there.
    """
    known = [str(column) for column in columns]
    if label not in ("", DEFAULT, *known):
        near = difflib.get_close_matches(label, known, n=len(known) or 1, cutoff=0.0)
        raise DataError(f"{name} has no {what} {label!r}: it has {', '.join(near) or 'none'}")


def unnamed(why: str, **named: str) -> None:
    """Raise `DataError` for the name of a column, by that of its option, where there is none to be named; `why` not."""
    for option, column in named.items():
        if column not in ("", option):  # which stand for no column, and for its default
            raise DataError(f"{why}, so {option}={column!r} says nothing: leave it out")


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
