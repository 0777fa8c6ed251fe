"""Tensors on disk: written atomically, checked when read, never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import DataError, RunError

__all__ = ["bits", "digest", "read", "write", "write_text"]


def write(path: Path, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Write `tensors`, and `text` in the file's header, as safetensors at `path`.

    A reader sees the old file or the new one, after a kill or a full disk too. Raises `RunError` when it can't be
    written.
    """
    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        # safetensors takes no two tensors of one storage.
        whole[name] = own.clone() if own.untyped_storage().data_ptr() in storages else own
        storages.add(own.untyped_storage().data_ptr())
    with _write_beside(path) as part:
        save_file(whole, part, metadata={"secateur": text})


def write_text(path: Path, text: str) -> None:
    """Write `text` at `path`, whole or not at all. Raises `RunError` when it can't be written."""
    with _write_beside(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _write_beside(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder, which takes the place of `path` once it is complete and on disk."""
    # One name, so that what a kill left behind is overwritten by the next attempt.
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise RunError(f"could not write {path}: {reason}; free some space and run the same command again") from problem
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text that `write` stored. Raises `DataError` when the file is missing, damaged or foreign."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("secateur")
            if text is None:
                raise DataError(f"{path} was not written by secateur: remove it and run again")
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise DataError(f"{path} is missing, damaged or cut short ({problem}): remove it and run again") from problem


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises `DataError` when it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise DataError(f"{path} can't be read ({problem.strerror}): remove its folder and run again") from problem


def bits(tensor: Tensor) -> bytes:
    """The raw bytes of a tensor of any type."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
