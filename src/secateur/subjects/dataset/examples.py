"""Subject `examples`: a training set, of which examples stay, or whole classes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur._utils.disk import writing
from secateur.errors import DataError, InputError, RunError
from secateur.vocabulary import Array, Cut, Selection, Site, Units

__all__ = ["INDEX", "PACKED", "Data", "ExampleSet", "Packed"]

INDEX = "index.npz"
"""What an index file is called in a folder."""
PACKED = "examples.npz"
"""What the examples are called that are packed beside it."""
_SCORES, _KEPT, _FILES = "scores/", "kept_digest", "files_digest"
_IMAGES = "of_images"
"""In packed examples: the digests of the images and of the arrays that they became, see `Examples.save`."""
_CHUNK = 1024
"""Texts whose tokens are counted at once."""

Count = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> how many tokens, or whatever is counted, each of them has."""


class Data(Protocol):
    """What a training set says of itself: `data.examples.Examples`, `data.texts.Corpus`, `data.tables.Table`."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of the content."""
        ...

    @property
    def labels(self) -> Any:
        """[N] class of each example, or None."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, where there are any."""
        ...

    def __len__(self) -> int: ...

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N], what each example takes."""
        ...

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests, equal for examples that repeat one another."""
        ...

    def take(self, indices: NDArray[np.int64]) -> Any:
        """The examples at `indices`, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class Packed:
    """A training set of which only some examples are at hand: `Data` all the same, as far as that goes.

    there: those examples; places: [K] where they stand in the whole, rising; count, digest, name: of the whole. Nothing
    else is known of the others: neither classes nor costs.
    """

    there: Data
    places: NDArray[np.int64]
    count: int
    digest: str
    name: str
    labels: None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes, where there are any."""
        return self.there.classes

    def __len__(self) -> int:
        return self.count

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """None: what the others took is not known."""
        return {}

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """Refused: nobody can say what the others repeat."""
        raise DataError(f"{self.name} is at hand in part, which can't be compared with the rest: give all of it")

    def take(self, indices: NDArray[np.int64]) -> Any:
        """The examples at `indices` of the whole, in that order. Raises `DataError` for one that is not at hand."""
        wanted = np.asarray(indices, np.int64)
        found = np.searchsorted(self.places, wanted).clip(max=len(self.places) - 1)
        if (missing := wanted[self.places[found] != wanted]).size:
            raise DataError(
                f"example {missing[0]} of {self.name} is not among the {len(self.places)} of {self.count} at hand: "
                "give all of it"
            )
        return self.there.take(found)


class ExampleSet:
    """A training set, and which of its examples are left.

    source: all of the data; kept: [K] places in it that are left, rising; scores: name -> [N] of all of the data, kept
    so that another budget needs no scoring. Labels are never renumbered: a class that went leaves a gap.

    Raises `DataError` for labels below 0 or beyond the classes that the data names, `InputError` for places that are
    not in the data or not rising.
    """

    backend = "secateur.runs.backends.dataset:Datasets"

    def __init__(
        self,
        source: Data,
        kept: Sequence[int] | NDArray[np.int64] | None = None,
        scores: Mapping[str, Array] | None = None,
    ) -> None:
        count = len(source)
        self.source = source
        self.kept = np.arange(count) if kept is None else np.asarray(kept, np.int64).copy()
        self.scores: dict[str, NDArray[np.float32]] = {}
        if self.kept.ndim != 1 or not len(self.kept):
            raise InputError(f"an index of {source.name} keeps no example: keep at least one")
        if self.kept[0] < 0 or self.kept[-1] >= count or (np.diff(self.kept) <= 0).any():
            raise InputError(f"an index of {source.name} is to name places from 0 to {count - 1}, rising, each once")
        labels = source.labels
        self._labels = None if labels is None else np.asarray(labels, np.int64)
        if self._labels is not None:
            _in_range(self._labels, len(source.classes), source.name)
        for name, column in (scores or {}).items():
            self._score(name, column)

    def _score(self, name: str, column: Array) -> None:
        values = np.asarray(column, np.float32)
        if values.shape != (len(self.source),):
            raise InputError(f"scores {name!r} are {values.shape} for {len(self.source)} examples: give one for each")
        self.scores[name] = values

    # --------------------------------------------------------------------------------------------- what is left

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def whole(self) -> bool:
        """Whether nothing has gone."""
        return len(self.kept) == len(self.source)

    @cached_property
    def _costs(self) -> dict[str, NDArray[np.float64]]:
        return self.source.costs()

    @cached_property
    def data(self) -> Any:
        """The examples that are left, as what they were read as."""
        return self.source if self.whole else self.source.take(self.kept)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """[K] class of each example that is left."""
        return None if self._labels is None else self._labels[self.kept]

    @cached_property
    def class_numbers(self) -> NDArray[np.int64]:
        """[C] the classes with an example left, rising: unit i of the site "classes" is class `class_numbers[i]`."""
        return np.empty(0, np.int64) if self.labels is None else np.unique(self.labels)

    def with_scores(self, name: str, values: Array) -> ExampleSet:
        """The same with scores, [N] of all of the data: higher means keep."""
        return self._like(self.kept, {**self.scores, name: values})

    def _like(self, kept: NDArray[np.int64], scores: Mapping[str, Array]) -> ExampleSet:
        """Other examples of the same source, whose costs are counted once."""
        result = ExampleSet(self.source, kept, scores)
        result._costs = self._costs
        return result

    def with_costs(self, **counts: Count) -> ExampleSet:
        """The same with more costs: measure -> (texts -> how many each has), such as tokens=encoders.counter("gpt2").

        Raises `InputError` for data without texts.
        """
        texts = getattr(self.source, "texts", None)
        if not counts:
            return self
        if texts is None:
            raise InputError(f"{self.source.name} holds no texts whose {next(iter(counts))} could be counted")
        result = self._like(self.kept, self.scores)
        found: dict[str, list[NDArray[np.float64]]] = {measure: [] for measure in counts}
        for start in range(0, len(texts), _CHUNK):  # texts may lie on the disk
            part = list(texts[start : start + _CHUNK])
            for measure, count in counts.items():
                found[measure].append(np.asarray(count(part), np.float64))
        result._costs = self._costs | {measure: np.concatenate(parts) for measure, parts in found.items()}
        return result

    def plain(self) -> ExampleSet:
        """The same without costs of the data: for a recipe whose result is a network, which has bytes of its own."""
        result = self._like(self.kept, self.scores)
        result._costs = {}
        return result

    def repeats(self, *, normalised: bool = False) -> NDArray[np.bool_]:
        """[K] which examples repeat an earlier one that is left; `normalised`: have its words, for texts.

        Where keys are of the beginnings of files, those with equal ones are compared whole.
        """
        keys = self.source.keys(normalised=normalised)[self.kept]
        found = _mark_repeats(keys)
        if found.any() and hasattr(self.source, "whole_keys"):
            alike = np.flatnonzero(np.isin(keys, keys[found]))
            found[alike] = _mark_repeats(self.source.take(self.kept[alike]).whole_keys())
        return found

    # ------------------------------------------------------------------------------------------------- the verbs

    def units(self, *axes: str) -> Units:
        """Site "examples", and where there are classes a site "classes", whose units own their examples.

        axes: which of the two may be selected from; both unless named. Examples cost themselves ("examples"), "bytes",
        for texts "words", and whatever was counted (`with_costs`). Classes cost what they own.
        """
        known = ("examples", "classes") if self._labels is not None else ("examples",)
        unknown = [axis for axis in axes if axis not in known]
        if unknown:
            why = f"{self.source.name} has no classes" if unknown[0] == "classes" else f"it has {', '.join(known)}"
            raise InputError(f"a training set can't be cut by {unknown[0]!r}: {why}")
        cost = {"examples": np.ones(len(self))}
        cost |= {measure: column[self.kept] for measure, column in self._costs.items()}
        owner = None
        sites: dict[str, Site] = {}
        if self.labels is not None:
            sites["classes"] = Site("classes", len(self.class_numbers), minimum=1)
            owner = ("classes", np.searchsorted(self.class_numbers, self.labels))
        sites["examples"] = Site("examples", len(self), cost, owner=owner, minimum=1)
        units = Units(sites)
        return units.only(*axes) if axes else units

    def cut(self, selection: Selection) -> tuple[ExampleSet, Cut]:
        """The training set without the examples, or the classes, that do not stay."""
        units = self.units()
        for name, mask in selection.keep.items():
            if name not in units.sites or np.shape(mask) != (units[name].count,):
                has = ", ".join(f"{site.count} {site.name}" for site in units.sites.values())
                raise InputError(f"the selection keeps {np.size(mask)} {name} and there are {has}: "
                                 "select from these units")  # fmt: skip
        keep = {name: np.asarray(mask, dtype=bool) for name, mask in selection.keep.items()}
        stays = units.effective(keep).get("examples", np.ones(len(self), bool))
        if not stays.any():
            raise InputError("the selection keeps no example: keep at least one")
        smaller = self._like(self.kept[stays], self.scores)
        gone = {"examples": (len(self) - len(smaller), len(self))}
        if self.labels is not None:
            before, after = len(self.class_numbers), len(smaller.class_numbers)
            gone["classes"] = (before - after, before)
        return smaller, Cut(gone, units.cost(), smaller.units().cost())

    # ------------------------------------------------------------------------------------------------- on the disk

    def save(self, folder: str | Path, *, packed: bool = False) -> None:
        """Write `folder`/index.npz: which examples are left, the scores, and the digest of the data; not the data.

        Arrays: `kept` [K] int64, `scores/NAME` [N] float32; `count`, `digest` and `name` of the data; of arrays also
        `kept_digest`, that of the examples that are left, and of images on the disk `files_digest`, see `Examples`.
        The same index writes the same bytes, whole or not at all, and `numpy.load(...)["kept"]` is what
        `datasets.Dataset.select` takes.

        packed: write the examples that are left to `folder`/examples.npz, too, unless they lie there beside this index.
        `load` then takes them in place of the data. Raises `InputError` for data other than arrays.
        """
        folder = Path(folder)
        arrays = hasattr(self.source.there if isinstance(self.source, Packed) else self.source, "save")
        if packed and not arrays:
            raise InputError(f"{self.source.name} holds no arrays: only those can be packed beside their index")
        folder.mkdir(parents=True, exist_ok=True)
        about = {"count": len(self.source), "digest": self.source.digest, "name": self.source.name}
        if arrays:
            about[_KEPT] = self.data.digest
            if files := getattr(self.source, "files_digest", ""):
                about[_FILES] = files
        if packed and not ((folder / PACKED).is_file() and _keeps(folder / INDEX) == about[_KEPT]):
            self.data.save(folder / PACKED)  # before the index, which speaks of them
        found: dict[str, Any] = {"kept": self.kept, **{name: np.array(value) for name, value in about.items()}}
        found |= {f"{_SCORES}{name}": column for name, column in sorted(self.scores.items())}
        with writing(folder / INDEX) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **found)

    @classmethod
    def load(cls, data: Data, index: str | Path) -> ExampleSet:
        """`data` with what `save` wrote of it: a folder, or the file itself.

        Images on the disk may become other inputs than when the index was made.
        `data` may also be the examples that are left, as they were packed: then `source` is `Packed`.

        Raises:
            RunError: no such file, or one that can't be read.
            DataError: an index of other data, or an older one, which doesn't tell what it keeps, and packed examples.
        """
        path = Path(index) / INDEX if Path(index).is_dir() else Path(index)
        try:
            with np.load(path, allow_pickle=False) as file:
                count, digest, name = int(file["count"]), str(file["digest"]), str(file["name"])
                left = str(file[_KEPT]) if _KEPT in file.files else ""
                files = str(file[_FILES]) if _FILES in file.files else ""
                kept = file["kept"].astype(np.int64)
                scores = {key.removeprefix(_SCORES): file[key] for key in file.files if key.startswith(_SCORES)}
        except FileNotFoundError as error:
            raise RunError(f"there is no index at {path}: give a folder or file that prune-data wrote") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path} is damaged or no index: make it again") from error
        if digest == data.digest or (files and files == getattr(data, "files_digest", "")):
            return cls(data, kept, scores)
        if len(data) == len(kept) and data.digest in (left, _packed_digest(path.with_name(PACKED), left)):
            return cls(Packed(data, kept, count, digest, name), kept, scores)
        more = ", or all of the examples that it keeps" if left else ""
        if not left and len(data) == len(kept):
            more = "; it is older than packed examples, and does not tell them"
        raise DataError(
            f"{path} is an index of {name}, {count} examples of digest {digest[:8]}; {data.name} has {len(data)} "
            f"of digest {data.digest[:8]}: give the data that it was made of{more}"
        )


def _packed_digest(file: Path, images: str) -> str:
    """The digest of the arrays in `file` that images of this digest became; "" where there are none."""
    try:
        with np.load(file, allow_pickle=False) as packed:
            of, arrays = map(str, packed[_IMAGES])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return ""
    return arrays if of == images else ""


def _mark_repeats(keys: NDArray[np.void]) -> NDArray[np.bool_]:
    """[K]: whether an earlier key is the same."""
    found = np.ones(len(keys), bool)
    found[np.unique(keys, return_index=True)[1]] = False
    return found


def _keeps(index: Path) -> str:
    """The digest of what an index keeps; "" where there is none that tells, or images beside it that don't."""
    try:
        with np.load(index, allow_pickle=False) as file:
            kept, images = str(file[_KEPT]), _FILES in file.files
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return ""
    return "" if images and not _packed_digest(index.with_name(PACKED), kept) else kept


def _in_range(labels: NDArray[np.int64], named: int, name: str) -> None:
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or (named and most >= named):
        wrong = least if least < 0 else most
        known = f"it names {named} classes, 0 to {named - 1}" if named else "classes are counted from 0"
        raise DataError(f"{name} has the label {wrong}: {known}")
