"""Records of context runs: `OUT.run.yaml` holds settings, digests of inputs, versions and counts.

It is a config of `prune-context`, too, and so repeats what it tells of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from secateur import recipes
from secateur._utils import rundir
from secateur._utils.disk import atomic_write
from secateur.errors import DataError
from secateur.measure import environment
from secateur.runs import configs, keywords, servers

__all__ = ["digest", "prune_context_command", "record_path", "settings", "write"]


def prune_context_command(
    *,
    recipe: str = "",
    files: Sequence[str] = (),
    question: str = "",
    budget: str = "",
    in_: str = "",
    out: str = "",
    trace: bool = False,
    page: str = "",
    strict: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    dry_run: bool = False,
) -> None:
    """What `secateur prune-context` is told: its flags, and the keys of its config, in which `in_` is `in`."""


def settings(path: str | Path, given: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `prune-context` is told by a YAML file, where `given` says nothing else: flags, and the recipe's options.

    Raises `InputError` where the file, or a key in it, can't be used.
    """

    def own_options(recipe: str) -> list[str]:
        return [*keywords.names(recipes.find(recipe)), *keywords.names(servers.servers)]

    values = configs.read(path, "prune-context", prune_context_command, given, more=own_options)
    known = [name.rstrip("_") for name in keywords.of(prune_context_command)]
    flags = {name: value for name, value in values.items() if name in known}
    renamed = {"in_" if name == "in" else name: value for name, value in flags.items()}
    checked = keywords.check_options(prune_context_command, renamed)
    checked["in"] = checked.pop("in_")
    return {name: checked[name] for name in flags}, {name: values[name] for name in values if name not in known}


def digest(source: str | Path) -> str:
    """sha256 of a file; of a folder, that of the names and the contents of all files in it.

    But for the lock of a run directory, which tells the process that was there last.
    Raises `DataError` where one can't be read.
    """
    source, total = Path(source), hashlib.sha256()
    lock = source / "work" / "lock"
    try:
        if not source.is_dir():
            with source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for path in sorted(path for path in source.rglob("*") if path.is_file() and path != lock):
            total.update(f"{path.relative_to(source)}\0{digest(path)}\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DataError(f"{error.filename or source}: {error.strerror}: give what can be read") from error
    return total.hexdigest()


def record_path(out: str | Path) -> Path:
    """Where the record of a result stands."""
    out = Path(out)
    return out.with_name(out.name + ".run.yaml")


def write(out: str | Path, told: Mapping[str, object], counts: Mapping[str, object]) -> None:
    """Leave the record of what was told and what it came to, beside `out`."""
    record = {"command": "prune-context", **told, "counts": counts, "versions": environment.describe()}
    atomic_write(record_path(out), yaml.safe_dump(rundir.plain(record), sort_keys=False, allow_unicode=True))
