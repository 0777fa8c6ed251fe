"""Indices that `secateur prune-data` or a recipe wrote, opened again: which examples stay, of the data each is of.

What was packed beside an index is read from there, whatever has become of that data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeGuard

import yaml

from secateur.data import examples
from secateur.data.examples import Examples
from secateur.data.labels import DEFAULT
from secateur.errors import DataError, RunError
from secateur.subjects.dataset.examples import INDEX, PACKED, Data, ExampleSet

__all__ = ["Read", "is_index", "open_index"]


class Read(Protocol):
    """Reads the data that an index is of, by the columns that its run read."""

    def __call__(self, source: str, *, text: str, label: str) -> Data:
        """All of the data."""
        ...


def is_index(data: object) -> TypeGuard[str | Path | ExampleSet]:
    """Whether `data` is an `ExampleSet`, an index file or its folder, or the folder of a run with several."""
    if isinstance(data, ExampleSet):
        return True
    return isinstance(data, str | Path) and (
        any(path.is_file() for path in _index_paths(data)) or bool(_index_folders(data))
    )


def open_index(data: str | Path | ExampleSet, read: Read, *, text: str = "text", label: str = DEFAULT) -> ExampleSet:
    """An index with what it keeps: packed beside it, or read from where the run that wrote it had its data.

    A path that was relative then is taken from here, or from beside the run, and columns are those that the run read.
    The index of a recipe is of the part that its run has learned from, without what was held out.

    Raises `DataError` for a run in place of one of its indices, an index without its run, or data that is not there, or
    is other data now; and for a column that was named here and is another than the run's.
    """
    if isinstance(data, ExampleSet):
        return data
    index = next((path for path in _index_paths(data) if path.is_file()), None)
    if index is None:
        raise DataError(
            f"{data} is a run, whose indices stand in its folders: give one, such as {_index_folders(data)[0]}"
        )
    settings = next((path for path in _settings_paths(index) if path.is_file()), None)
    recorded = _read_settings(settings)
    columns = {name: str(recorded.get(name, name)) for name in ("text", "label")}
    for name, named in (("text", text), ("label", label)):
        if named not in (name, columns[name]):
            raise DataError(f"{index} is of data read with {name}={columns[name]!r}, not {named!r}: leave {name} out")
    if (packed := index.with_name(PACKED)).is_file():
        try:
            return ExampleSet.load(examples.read(packed), index)
        except RunError as error:
            raise DataError(str(error)) from error
    if settings is None:
        raise DataError(f"{index} stands in no run directory, which would say what data it is of: give that data")
    if "data" not in recorded:
        raise DataError(f"{settings} does not say what data {index} is of: give that data")
    source = str(recorded["data"])
    beside = settings.parent.parent / source
    found = beside if not Path(source).exists() and beside.exists() else source
    try:
        return _load(read(str(found), text=columns["text"], label=columns["label"]), index, recorded)
    except DataError as error:
        raise DataError(f"{index} is of the data {source}: {error}") from error
    except RunError as error:
        raise DataError(str(error)) from error


def _load(data: Data, index: Path, recorded: Mapping[str, object]) -> ExampleSet:
    """The index of all of the data; or of the part that its run has learned from, where a recipe left it."""
    try:
        return ExampleSet.load(data, index)
    except DataError:
        seed = recorded.get("seed")
        if not isinstance(data, Examples) or not isinstance(seed, int) or "recipe" not in recorded:
            raise
        train = data.split(seed=seed, stratified="split" in recorded)[0]
        with suppress(DataError):
            return ExampleSet.load(train, index)
        raise


def _index_paths(data: str | Path) -> Iterator[Path]:
    path = Path(data)
    yield path / INDEX
    if path.name == INDEX:
        yield path


def _index_folders(data: str | Path) -> list[Path]:
    """The folders of indices in that of a run."""
    return sorted(path.parent for path in Path(data).glob(f"*/{INDEX}"))


def _read_settings(settings: Path | None) -> dict[str, object]:
    """What a run's settings say; nothing where there are none to be read."""
    try:
        found = yaml.safe_load(settings.read_text("utf-8")) if settings else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _settings_paths(index: Path) -> Iterator[Path]:
    """Where the run's settings may stand: a budget's folder is in the run's, a recipe's own work deeper."""
    for folder in list(index.resolve().parents)[1:4]:
        yield folder / "run.yaml"
