"""Atomic writes of files and folders, and one-line errors where the disk is full or read-only."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.errors import RunError

__all__ = [
    "TEMPORARY",
    "atomic_write",
    "cache_folder",
    "flush",
    "guard",
    "is_disk_full",
    "read_object",
    "remove",
    "settle",
    "writing",
]

TEMPORARY = ".tmp-"
"""How the names of what is still being written begin."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_FULL_TEXTS = re.compile(
    "No space left on device|File too large|Disk quota exceeded"
    r"|^[0-9]+ requested and [0-9]+ written$"  # NumPy's `tofile`, whose error has no number
)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of UTF-8; empty where there is no file, or no object in it."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_disk_full(error: BaseException | None) -> bool:
    """True when `error`, or what caused it, is a full disk. Native writers wrap the system's error in their own."""
    seen = set[int]()
    while error is not None and id(error) not in seen:  # one may be its own cause
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_TEXTS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn a full disk and a folder that can't be written into a `RunError` that names `path`."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise RunError(f"disk full while writing {path}: free some space and run the same command again") from error
        if isinstance(error, OSError) and error.errno in _CLOSED:
            raise RunError(f"{path} can't be written: choose a folder you may write to") from error
        raise


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at the end flush the file or folder written there and rename it to `path`.

    When the block fails, the temporary goes and `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with guard(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            settle(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            remove(temporary)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`: whole, or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def flush(path: Path) -> None:
    """See to it that a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(path: Path) -> None:
    """Flush a file or folder to the disk, with the modes that files made in the ordinary way would have.

    safetensors and mkdtemp make theirs for the owner only.
    """
    mask = os.umask(0)
    os.umask(mask)
    for part in (*path.rglob("*"), path):
        part.chmod((0o777 if part.is_dir() else 0o666) & ~mask)
        flush(part)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: $SECATEUR_CACHE, or ~/.cache/secateur."""
    chosen = os.environ.get("SECATEUR_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "secateur"
