"""One pass over a corpus without holding it in memory: columns that scores and budgets need.

Texts that something is to read afterwards are written to the disk in the same pass.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur._utils import hashes
from secateur.data import texts
from secateur.data.labels import Labels, Tagged
from secateur.data.shelf import CHUNK, Writer
from secateur.errors import DataError

__all__ = ["Count", "Survey", "Surveyed", "batched", "gathered", "survey", "told"]

Count = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, eq=False)
class Survey:
    """Columns of a corpus: a few numbers for each text, and no text.

    Its `digest` is that of the corpus read whole, so that an index made from the one fits the other.
    """

    name: str
    digest: str
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    columns: Mapping[str, NDArray[np.float64]] = field(repr=False)
    exact: NDArray[np.void] = field(repr=False)
    normal: NDArray[np.void] = field(repr=False)
    flaw: str = ""

    def __len__(self) -> int:
        return len(self.exact)

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N]: bytes, words, and what else was counted."""
        return dict(self.columns)

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests, as `texts.Corpus.keys` gives them."""
        return self.normal if normalised else self.exact

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Survey:
        """The columns of the texts at `indices`; a digest of the texts that are left takes another pass: "" here."""
        chosen = np.asarray(indices, np.int64)
        return Survey(
            self.name, "", None if self.labels is None else self.labels[chosen], self.classes,
            {name: column[chosen] for name, column in self.columns.items()}, self.exact[chosen], self.normal[chosen],
            self.flaw,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Surveyed(texts.Corpus):
    """A corpus whose texts lie on the disk, with what its survey has `told` of them: nothing is counted again."""

    told: Survey = field(kw_only=True, repr=False)

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N]: bytes, words, and what else was counted."""
        return self.told.costs()

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests, as `texts.Corpus.keys` gives them."""
        return self.told.keys(normalised=normalised)


def survey(
    source: str | Path | Iterable[str] | Iterable[Mapping[str, Any]],
    *,
    column: str = "text",
    label: str = "label",
    limit: int | None = None,
    counts: Mapping[str, Count] | None = None,
    shelf: Path | None = None,
) -> Survey | Surveyed:
    """Pass once over texts, of which at most 1,024 are in memory at a time.

    source, column, label, limit: see `texts.opened`. counts: measure -> (texts -> how many each has), such as tokens.
    shelf: a folder in which the texts are to lie for as long as they are asked for, see `shelf.Texts`.
    About 50 bytes per text remain, 8 for each count, and 24 for a text on a shelf. Raises `DataError` as `texts.read`.
    """
    name, rows = texts.opened(source, limit=limit, column=column, label=label)
    shown = str(source) if isinstance(source, str | Path) else ""
    parts = ((chunk, told([text for text, _ in chunk], counts or {})) for chunk in batched(rows))
    return gathered(name, parts, shown, shelf, label)


def told(spoken: Sequence[str], counts: Mapping[str, Count]) -> dict[str, Sequence[Any]]:
    """What remains of texts: measure -> how many each has, and under "exact" and "normal" the bytes of its digests."""
    packed = [text.encode("utf-8", "surrogatepass") for text in spoken]
    return {
        "bytes": list(map(len, packed)),
        "words": [len(text.split()) for text in spoken],
        **{measure: list(count(spoken)) for measure, count in counts.items()},
        "exact": [one.tobytes() for one in hashes.digests(packed)],
        "normal": [one.tobytes() for one in hashes.digests(map(hashes.normalise_words, spoken))],
    }


def gathered(
    name: str,
    batches: Iterable[tuple[Sequence[texts.Row], Mapping[str, Sequence[Any]]]],
    shown: str = "",
    shelf: Path | None = None,
    label: str = "label",
) -> Survey | Surveyed:
    """The survey of texts that come in batches, each with its classes and with what was `told` of them.

    shown: how errors name the source, if not by `name`; shelf, label: see `survey`.
    """
    digest, labels, writer = texts.Digest(), Labels(), None if shelf is None else Writer(shelf)
    columns: dict[str, array[float]] = {}
    exact, normal = list[bytes](), list[bytes]()
    for chunk, about in batches:
        for text, value in chunk:
            digest.add(text)
            labels.add(None if isinstance(value, Tagged) else value)  # words have no class that a text could go by
        if writer is not None:
            writer.add([text for text, _ in chunk])
        for measure, column in about.items():
            if measure not in ("exact", "normal"):
                columns.setdefault(measure, array("d")).extend(map(float, column))
        exact.append(b"".join(about["exact"]))
        normal.append(b"".join(about["normal"]))
    if not exact:
        raise DataError(f"{shown or name} holds no text: give at least one line")
    ends = texts.labelled(labels.end(name, label), name, label, shown)
    kind = np.dtype((np.void, hashes.SIZE))
    found = Survey(
        name, digest.end(ends.classes, ends.numbers), ends.classes, ends.names,
        {key: np.array(one) for key, one in columns.items()},
        np.frombuffer(b"".join(exact), kind), np.frombuffer(b"".join(normal), kind), ends.flaw,
    )  # fmt: skip
    if writer is None:
        return found
    plain = None if ends.classes is None else ends.classes.tolist()
    numbers = None if ends.numbers is None else ends.numbers.tolist()
    return Surveyed(writer.end(), plain, name, found.digest, ends.names, numbers, ends.flaw, told=found)


def batched(rows: Iterator[texts.Row]) -> Iterator[list[texts.Row]]:
    """Rows in lists of `CHUNK`."""
    while chunk := list(islice(rows, CHUNK)):
        yield chunk
