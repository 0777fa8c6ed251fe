"""Surveys by Ray Data: a corpus larger than memory, passed over by all cores or a cluster, in its own order."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur._utils import bars
from secateur.data import labels, texts
from secateur.data.shelf import CHUNK
from secateur.data.survey import Count, Survey, Surveyed, batched, gathered, told
from secateur.errors import DataError, InputError, MissingExtraError, SecateurError

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

__all__ = ["is_dataset", "survey"]

_PATIENCE = 5.0
"""Seconds in which a cluster has to answer; Ray itself waits for minutes."""


def is_dataset(data: object) -> bool:
    """Whether `data` is a data set of Ray, asked without importing it."""
    return type(data).__module__.startswith("ray.data") and hasattr(data, "map_batches")


def survey(
    source: str | Path | Dataset,
    *,
    column: str = "text",
    label: str = "label",
    counts: Mapping[str, Count] | None = None,
    shelf: Path | None = None,
) -> Survey | Surveyed:
    """What `survey.survey` tells of the same texts, digest and all; reading and counting run in Ray's workers.

    Texts come by this process once, a batch at a time, for the digest of them all, and for a `shelf` on this machine.

    source: a .parquet, .jsonl or .txt file, or a folder of them, each read by a worker as `texts.read` reads it; a .csv
    file; or a `ray.data.Dataset`. column, label, counts, shelf: see `survey.survey`; what counts must pickle.
    Ray runs on this machine's cores, or on the cluster that RAY_ADDRESS names, whose workers then have to see the
    files.

    Raises `MissingExtraError` without the `ray` extra, `DataError` as `texts.read`, `InputError` for another source and
    for a cluster that does not answer.
    """
    how: dict[str, Any] = {"column": column, "label": label, "counts": counts or {}}
    _check(source)
    with _running() as ray:
        name = Path(source).name if isinstance(source, str | Path) else "ray data set"
        try:
            data = _marked(source, name, how)
            parts = _batches(data.iter_batches(batch_format="pyarrow", batch_size=CHUNK))
            return gathered(name, parts, str(source) if isinstance(source, str | Path) else "", shelf, label)
        except (ray.exceptions.RayError, OSError, ValueError) as error:  # ValueError: what Arrow can't parse
            raise _plain(error, name) from error


def _check(source: object) -> None:
    """Refuse what Ray would be started for in vain, which takes seconds."""
    if not isinstance(source, str | Path):
        if not is_dataset(source):
            raise InputError(f"Ray Data can't read a {type(source).__name__}: give a path or a ray.data.Dataset")
        return
    kinds = (*texts.SUFFIXES, ".csv")
    other = next((file for file in texts.files(Path(source)) if file.suffix not in kinds), None)
    if other is not None:
        raise DataError(f"{other} is no file of texts: give {', '.join(kinds)}, or a folder of them")


def _marked(source: str | Path | Dataset, name: str, how: Mapping[str, Any]) -> Dataset:
    """The texts with what is told of them, see `_table`."""
    import ray.data

    if not isinstance(source, str | Path):
        given = source
    elif Path(source).suffix == ".csv" and Path(source).is_file():
        given = ray.data.read_csv(str(Path(source).resolve()))
    else:
        paths = [{"path": str(file.resolve()), "shown": str(file)} for file in texts.files(Path(source))]
        # Not by Ray's own readers: they split lines where we do not, and hold a file of text whole.
        listed = ray.data.from_items(paths, override_num_blocks=len(paths))
        return listed.map_batches(partial(_read, **how), batch_format="pyarrow", batch_size=1)
    if how["label"] not in ("", labels.DEFAULT):  # to know the columns, Ray may read a first block
        labels.check(how["label"], given.columns() or [how["label"]], name)
    return given.map_batches(partial(_told, name=name, **how), batch_format="pyarrow", batch_size=CHUNK)


def _read(table: pyarrow.Table, *, column: str, label: str, counts: Mapping[str, Count]) -> Iterator[pyarrow.Table]:
    """In a worker: the texts of files, a batch at a time."""
    for file in table.to_pylist():
        _, rows = texts.opened(file["path"], column=column, label=label)
        try:
            for chunk in batched(rows):
                yield _table(chunk, counts)
        except DataError as error:
            yield _table([("", None)], counts, str(error).replace(file["path"], file["shown"]))


def _told(table: pyarrow.Table, *, name: str, column: str, label: str, counts: Mapping[str, Count]) -> pyarrow.Table:
    """In a worker: a batch of the data set."""
    try:
        # Of a column that was named `_marked` knows that the data set has it, though this batch may not.
        more = {} if label in ("", labels.DEFAULT) else {label: None}
        rows = ({**more, **row} for row in table.to_pylist())
        return _table(list(texts.opened(rows, column=column, label=label)[1]), counts)
    except DataError as error:  # its number is that of a row in this batch, which tells nobody anything
        return _table([("", None)], counts, f"{name}: a row {str(error).split(' ', 2)[2]}")


def _table(chunk: Sequence[texts.Row], counts: Mapping[str, Count], problem: str = "") -> pyarrow.Table:
    """Texts, their classes as JSON, and what `survey.told` tells of them.

    problem: what this process is to raise: what a worker raises comes with pages of trace.
    """
    import pyarrow

    spoken = [text for text, _ in chunk]
    columns = {
        "text": spoken,
        "label": [json.dumps(value, default=str) for _, value in chunk],
        "problem": [problem for _ in chunk],
        **told(spoken, counts),
    }
    kinds = {"text": pyarrow.string(), "label": pyarrow.string(), "problem": pyarrow.string(),
             "exact": pyarrow.binary(), "normal": pyarrow.binary()}  # fmt: skip
    return pyarrow.table(
        {key: pyarrow.array(column, kinds.get(key, pyarrow.float64())) for key, column in columns.items()}
    )


def _batches(tables: Iterable[pyarrow.Table]) -> Iterator[tuple[list[texts.Row], Mapping[str, Sequence[Any]]]]:
    for table in tables:
        columns = table.to_pydict()
        for problem in filter(None, columns.pop("problem")):
            raise DataError(problem)
        spoken, classes = columns.pop("text"), map(json.loads, columns.pop("label"))
        yield list(zip(spoken, classes, strict=True)), columns


def _reached(address: str) -> None:
    """Raise `InputError` where nobody listens at the host and port of `address`."""
    named = re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address)
    if named is None:  # such as "auto"
        return
    try:
        if int(named[2]) > 65_535:  # the system would take it modulo 65,536, and may find somebody else there
            raise OverflowError(f"there is no port {named[2]}")
        socket.create_connection((named[1], int(named[2])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no cluster answers at RAY_ADDRESS={address}: start it, or unset RAY_ADDRESS") from error


@contextmanager
def _running() -> Iterator[Any]:
    """Ray, started for the block unless it runs, quiet, and keeping rows in order."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("Ray Data is not installed: pip install 'secateur[ray]'") from error
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS", "")
        where: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
        _reached(address)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no cluster answers at RAY_ADDRESS={address}: start it, or unset RAY_ADDRESS") from error
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what fails is raised, and told in a line
    context.execution_options.preserve_order, context.enable_progress_bars = True, bars.are_shown()
    try:
        yield ray
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        logger.setLevel(level)
        if started:
            ray.shutdown()


def _plain(error: BaseException, name: str) -> SecateurError:
    """Our own error from a worker, or the first line of what went wrong there."""
    cause: BaseException = error
    while following := getattr(cause, "cause", None) or cause.__cause__:
        cause = following
        if isinstance(cause, SecateurError):
            return cause
    return DataError(f"{name} can't be read: {(str(cause).strip().splitlines() or [type(cause).__name__])[0]}")
