"""The JSON files of a checkpoint, whoever wrote them: read, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateur.errors import ModelError

__all__ = ["read_index", "read_json"]


def read_json(path: Path) -> Any:
    """A JSON file of a checkpoint; `ModelError` when it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        raise ModelError(f"{path} is damaged ({error}): fetch the model again") from error


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> name of its file, of the index of a checkpoint in several files; all are plain names, of its folder.

    Raises `ModelError` for an index that is none, or names files outside the folder.
    """
    table = read_json(path)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and Path(name).name == name and name != ".." for name in names.values()
    ):
        raise ModelError(f"{path} is damaged: it names no files of this folder")
    return names
