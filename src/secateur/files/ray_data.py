"""Surveys by Ray Data: a corpus larger than memory, passed over by all cores or a cluster, in its own order."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import DataError, InputError, MissingExtraError, SecateurError
from secateur.files import texts
from secateur.files.survey import CHUNK, Count, Survey, gathered, told

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

__all__ = ["SUFFIXES", "is_dataset", "survey"]

SUFFIXES = (*texts.SUFFIXES, ".csv")


def is_dataset(data: object) -> bool:
    """Whether `data` is a data set of Ray, asked without importing it."""
    return type(data).__module__.startswith("ray.data") and hasattr(data, "map_batches")


def survey(
    source: str | Path | Dataset,
    *,
    column: str = "text",
    label: str = "label",
    counts: Mapping[str, Count] | None = None,
) -> Survey:
    """What `survey.survey` tells of the same texts, digest and all; reading and counting run in Ray's workers.

    Texts come by this process once, a batch at a time, for the digest of them all.

    source: a .parquet, .jsonl, .csv or .txt file, a folder of them (in alphabetical order), or a `ray.data.Dataset`.
    column, label, counts: see `survey.survey`; what counts must pickle. Ray runs on this machine's cores, or on the
    cluster that RAY_ADDRESS names.

    Raises `MissingExtraError` without the `ray` extra, `DataError` as `texts.read`, `InputError` for another source.
    """
    with _running() as ray:
        name = Path(source).name if isinstance(source, str | Path) else "ray data set"
        tell = partial(_told, name=name, column=column, label=label, counts=counts or {})
        try:
            data = _opened(source).map_batches(tell, batch_format="pyarrow", batch_size=CHUNK)
            return gathered(name, _batches(data.iter_batches(batch_format="pyarrow", batch_size=CHUNK)))
        except (ray.exceptions.RayError, OSError, ValueError) as error:  # ValueError: what Arrow can't parse
            raise _plain(error, name) from error


def _told(table: pyarrow.Table, *, name: str, column: str, label: str, counts: Mapping[str, Count]) -> pyarrow.Table:
    """In a worker: a batch's texts that are not blank, their classes as JSON, and what `survey.told` tells of them."""
    import pyarrow

    _, rows = texts.opened(({**row} for row in table.to_pylist()), column=column, label=label)
    chunk, problem = list[texts.Row](), ""
    try:
        chunk.extend(rows)
    except DataError as error:  # its number is that of a row in this batch, which tells nobody anything
        problem = f"{name}: a row {str(error).split(' ', 2)[2]}"
    if problem:  # for the process that asked to raise: what a worker raises comes with pages of trace
        chunk = [("", None)]
    spoken = [text for text, _ in chunk]
    columns = {
        "text": spoken,
        "label": [json.dumps(value) for _, value in chunk],
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


def _opened(source: str | Path | Dataset) -> Dataset:
    import ray.data

    if not isinstance(source, str | Path):
        if not is_dataset(source):
            raise InputError(f"Ray Data can't read a {type(source).__name__}: give a path or a ray.data.Dataset")
        return source
    path = Path(source)
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if path.is_dir() else [path]
    kinds = {file.suffix for file in files}
    if not path.exists() or not files or not kinds <= set(SUFFIXES):
        raise DataError(f"{path} is no {', '.join(SUFFIXES)} file and no folder of them: give one that is there")
    if len(kinds) > 1:
        raise DataError(f"{path} holds {', '.join(sorted(kinds))} files: give a folder of one kind")
    read: dict[str, Callable[..., Dataset]] = {
        ".parquet": ray.data.read_parquet, ".jsonl": ray.data.read_json, ".csv": ray.data.read_csv,
        ".txt": partial(ray.data.read_text, drop_empty_lines=False),
    }  # fmt: skip
    return read[kinds.pop()]([str(file.resolve()) for file in files])


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
        where = {"address": os.environ["RAY_ADDRESS"]} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    context.execution_options.preserve_order, context.enable_progress_bars = True, sys.stderr.isatty()
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
