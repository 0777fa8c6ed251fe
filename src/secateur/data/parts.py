"""Parts of a data set that the names of its files tell: what is learned from, and what is there to measure on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from secateur.errors import DataError

__all__ = ["HELD_OUT", "DataPart", "choose", "find_held_out", "part_of", "split_name", "tell_apart"]

DataPart: TypeAlias = Literal["train", "validation", "test"]

_PART_WORDS: dict[str, DataPart] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
HELD_OUT = ("val", "valid", "validation", "dev", "test", "eval", "evaluation", "testing")
"""Names of parts to measure on, the first of which that is there is taken: of folders, and of splits in a dict."""

_WORD = "|".join(_PART_WORDS)
_NAMED = re.compile(
    rf"(?P<start>{_WORD})(?![^-_.\d])"  # train-00000-of-00001.parquet
    rf"|.*[-_.\d](?P<end>{_WORD})(?:[-_.\d]+(?:of[-_.\d]+)?)?(?:\.[a-z]\w*)*$"  # imagenet-val-00.tar
)


def part_of(path: Path) -> DataPart | None:
    """Which part a file belongs to: `train-00000-of-00001.parquet`, `imagenet-val-00.tar`, `test/x.jsonl`.

    A folder counts that is called so; then the word that the file's name begins with, or ends with before numbers and
    endings. `-`, `_`, `.` and digits bound it, and a name with blanks is a title, which says nothing. The first
    decides; None where none says. path: below the folder of the data, since what lies above says nothing of its parts.
    """
    *folders, name = (part.lower() for part in path.parts)
    found = None if re.search(r"\s", name) else _NAMED.match(name)
    words = [*folders, *((found["start"] or found["end"],) if found else ())]
    return next((_PART_WORDS[word] for word in words if word in _PART_WORDS), None)


def tell_apart(files: Sequence[Path]) -> dict[DataPart, list[Path]]:
    """part -> its files, in their order, train first; empty where no other part is beside train.

    Of their paths that counts which lies below the folder that all of them share.
    Files that name no part are read with train. Without a train part nothing is told apart: a text on a test may be
    called so.
    """
    found: dict[DataPart, list[Path]] = {"train": [], "validation": [], "test": []}
    root = os.path.commonpath([file.parent for file in files]) if files else ""
    named = [part_of(file.relative_to(root)) for file in files]
    for file, part in zip(files, named, strict=True):
        found[part or "train"].append(file)
    parts = {part: those for part, those in found.items() if those}
    return parts if "train" in named and len(parts) > 1 else {}


def find_held_out(source: Path, files: Sequence[Path]) -> Path | None:
    """What names the part of `source` to measure on, of its `files`: validation, else test; None where it has neither.

    None as well for a `source` that names a part.
    """
    there = {} if split_name(source)[1] else tell_apart(files)
    return next((Path(f"{source}:{part}") for part in ("validation", "test") if part in there), None)


def split_name(source: Path) -> tuple[Path, DataPart | None]:
    """(`source` without a part after a colon, that part): `data:test` is the test part of the folder `data`."""
    name, colon, word = source.name.rpartition(":")
    if colon and name and word in _PART_WORDS and not source.exists():
        return source.parent / name, _PART_WORDS[word]
    return source, None


def choose(source: Path, files: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """(of the files of `source` those to be read, a line for evidence where they are of several parts).

    Those are of the part that it names after a colon, else of train. Raises `DataError` for a part that is not there.
    """
    whole, part = split_name(source)
    there = tell_apart(files)
    if not there and part is None:
        return list(files), ()
    if part is not None and part not in there:
        raise DataError(f"{whole} holds no files of a part {part}: it has {', '.join(there) or 'no parts'}; give those")
    read = part or "train"
    counts = ", ".join(f"{one} ({len(those)})" for one, those in there.items())
    note = f"{whole.name} holds files of several parts by their names, {counts}: {read} is read"
    return there[read], (note,)
