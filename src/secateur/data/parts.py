"""Parts of a data set that the names of its files tell: what is learned from, and what is there to measure on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Part", "describe", "find_held_out", "part_of", "split_name", "tell_apart"]

Part: TypeAlias = Literal["train", "validation", "test"]

_WORDS: dict[str, Part] = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip


def part_of(path: Path) -> Part | None:
    """Which part a file belongs to: `train-00000-of-00001.parquet`, `imagenet-val-00.tar`, `test/x.jsonl`.

    A folder counts that is called so, and any whole word of the file's name; the first decides. None where neither
    says. path: below the folder of the data, since what lies above it says nothing of its parts.
    """
    *folders, name = path.parts
    words = [*(folder.lower() for folder in folders), *re.split(r"[^a-z]+", name.lower())]
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def tell_apart(files: Sequence[Path], root: Path) -> dict[Part, list[Path]]:
    """part -> its files, in their order, train first; empty where no other part is beside train.

    Files that no part is named for are read with train. Without a train part nothing is told apart: a text on a test
    may be called so.
    """
    found: dict[Part, list[Path]] = {"train": [], "validation": [], "test": []}
    named = [part_of(file.relative_to(root)) for file in files]
    for file, part in zip(files, named, strict=True):
        found[part or "train"].append(file)
    parts = {part: those for part, those in found.items() if those}
    return parts if "train" in named and len(parts) > 1 else {}


def find_held_out(parts: Mapping[Part, Sequence[Path]]) -> Part | None:
    """The part to measure on: validation, else test; None where neither is kept apart."""
    held: tuple[Part, Part] = ("validation", "test")
    return next((part for part in held if part in parts), None)


def split_name(source: Path) -> tuple[Path, Part | None]:
    """(`source` without a part after a colon, that part): `data:test` is the test part of the folder `data`."""
    name, colon, word = source.name.rpartition(":")
    if colon and name and word in _WORDS and not source.exists():
        return source.with_name(name), _WORDS[word]
    return source, None


def describe(name: str, parts: Mapping[Part, Sequence[Path]], part: Part) -> str:
    """A line for evidence: which of several parts is read."""
    there = ", ".join(f"{one} ({len(files)})" for one, files in parts.items())
    return f"{name} holds files of several parts by their names, {there}: {part} is read; {name}:PART gives another"
