"""Tensors and files of a checkpoint: where each tensor is, and atomic replacement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur._utils.checkpoints import read_index, read_json
from secateur.errors import ModelError

__all__ = [
    "INDEX",
    "WHOLE",
    "find_tensors",
    "list_tensors",
    "read_shapes",
    "read_tensors",
    "replace_file",
    "update_config",
    "walk_tensors",
    "write_index",
]

WHOLE = "model.safetensors"
"""Name of the weights of a checkpoint in one file."""
INDEX = "model.safetensors.index.json"
"""Name of the index of a checkpoint in several files."""


def update_config(folder: Path, changes: Mapping[str, object]) -> None:
    """Set entries of config.json."""
    config = {**read_json(folder / "config.json"), **changes}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_tensors(folder: Path) -> dict[str, Path]:
    """Tensor -> the file of the checkpoint that holds it, by the rules of `from_pretrained`: model.safetensors first.

    Raises `ModelError` for an index that names files outside the folder, files that are not there, or tensors that
    are not in their file.
    """
    if (folder / WHOLE).is_file():
        return list_tensors(folder / WHOLE)
    if not (folder / INDEX).is_file():
        found: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            found |= list_tensors(file)
        return found
    names = read_index(folder / INDEX)
    missing = sorted({name for name in names.values() if not (folder / name).is_file()})
    if missing:
        raise ModelError(f"{folder} lacks {missing[0]}, which its index names: fetch the model again")
    held = {name: list_tensors(folder / name) for name in set(names.values())}
    lost = next((key for key, name in names.items() if key not in held[name]), None)
    if lost is not None:
        raise ModelError(f"{folder / names[lost]} lacks {lost}, which the index says it holds: fetch the model again")
    return {key: folder / name for key, name in names.items()}


def list_tensors(file: Path) -> dict[str, Path]:
    """Name of each tensor of a safetensors file -> the file."""
    with safe_open(file, "pt") as opened:
        return dict.fromkeys(opened.keys(), file)


def walk_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in the files, one at a time."""
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)


def read_tensors(places: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of tensors whose files are known, one at a time; each file is opened once."""
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in set(places.values())}
        for name, file in places.items():
            yield name, opened[file].get_tensor(name)


def read_shapes(places: Mapping[str, Path]) -> dict[str, list[int]]:
    """Name -> shape of tensors whose files are known, by the heads of the files alone."""
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in set(places.values())}
        return {name: list(opened[file].get_slice(name).get_shape()) for name, file in places.items()}


def replace_file(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors to `file`: whole, or not at all."""
    aside = file.with_name(f".tmp-{file.name}")
    save_file(dict(tensors), aside, {"format": "pt"})
    aside.replace(file)


def write_index(folder: Path, table: Mapping[str, str], total: int) -> None:
    """The index of a checkpoint in several files: name of a tensor -> name of its file; `total` bytes in all."""
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=1)
    (folder / INDEX).write_text(text, encoding="utf-8")
