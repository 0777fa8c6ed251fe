"""Run directories: settings, artefacts and the result, written so that a kill loses little and breaks nothing.

    out/run.yaml         what repeats the run: settings, hashes of the inputs, versions
    out/work/            artefacts computed once and reused; checkpoints; the lock
    out/...              the result, evidence.json, report.html

Of processes that were started together the first has the directory, and writes; the others read what it has written.

Every file appears whole or not at all: it is written beside its place, flushed to the disk, then renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from secateur._utils import distributed
from secateur._utils.disk import TEMPORARY, atomic_write, flush, guard, remove, settle, writing
from secateur.errors import InfeasibleError, InputError, RunError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Run", "Transient", "lock_folder", "plain", "read_matching_record", "read_record", "read_tensors",
    "say_what_takes_long",
]  # fmt: skip

_DIGEST = "_sha256"
_LATE = 10.0
"""Seconds after which it is said what is computed, where there is no terminal with a bar.

A refusal keeps what was written so long after the record, since it took work.
"""

T = TypeVar("T")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Have `folder`, made if need be, alone. Raises `RunError` while another process has it, or it can't be written."""
    with guard(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(folder / "lock", folder)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _say_what_takes_long(name: str) -> Iterator[None]:
    """Within the block `name` is computed: two lines on stderr tell so where that takes long, by the first process."""
    if sys.stderr.isatty() or distributed.index():
        yield
        return
    start = time.monotonic()
    timer = threading.Timer(_LATE, partial(print, f"{name}: under way", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if (took := time.monotonic() - start) >= _LATE:
        print(f"{name}: done, {took:.0f} s", file=sys.stderr, flush=True)


say_what_takes_long = _say_what_takes_long
"""The same for what is computed without a run directory, or kept in none."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The torch tensors that `Run.tensors` left at `path`. Raises `RunError` for a file that is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: delete it and run the same command again") from error


def read_record(record: Path) -> dict[str, Any]:
    """The settings on record in a run.yaml. Raises `RunError` for one that is damaged."""
    try:
        found = yaml.safe_load(record.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{record} is damaged: restore it or choose another folder") from error
    if not isinstance(found, dict):
        raise RunError(f"{record} is damaged: restore it or choose another folder")
    return found


def read_matching_record(scored: str, run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """The settings of an earlier run, at `scored`, whose scores `run` is to take: by `keys` they are those of `run`.

    Raises `InputError`, which names the first that is another, and for a damaged record.
    """
    try:
        was = read_record(Path(scored, "run.yaml"))
    except RunError as error:
        raise InputError(f"scored={scored}: {error}") from error
    for key in keys:
        if was.get(key) != run.settings.get(key):
            told = f"{key}={was.get(key)}, not {run.settings.get(key)}"
            raise InputError(f"scored={scored} was scored with {told}: give the same, or leave scored out")
    return was


@dataclass
class Run:
    """One run directory, locked while open. Use it as a context manager, or call `close`."""

    root: Path
    settings: Mapping[str, Any]
    _lock: int = -1
    _new: bool = False
    _shared: bool = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: Mapping[str, object],
        *,
        about: Mapping[str, object] | None = None,
        overwrite: bool = False,
        shared: bool = False,
        defaults: Mapping[str, object] | None = None,
    ) -> Run:
        """Make or resume the run directory `path`.

        `settings` must equal those of the run that is already there, key by key (after a trip through YAML), and where
        some of them are digests of inputs (`*_sha256`), no other input may be on record; `about`, such as versions, is
        stored beside them and not compared. `overwrite` starts anew in the directory of another run. A setting at its
        value in `defaults` may be missing on record: an older version did not have it.

        `shared` opens it for all processes that were started together, which see the same disk, and ask for the same
        artefacts in the same order: the first has the lock and writes.

        Raises:
            RunError: in use; not a run directory; made with other settings (names the first differing key);
                damaged; disk full.
        """
        if shared and distributed.count() > 1:
            held: list[Run] = []

            def first() -> None:
                work = Path(path, "work")
                if work.is_dir() and not Path(path, "run.yaml").exists():
                    for one in work.iterdir():  # left by processes that had not yet heard that their run was refused
                        if one != work / "lock":
                            remove(one)
                held.append(cls.open(path, settings, about=about, overwrite=overwrite, defaults=defaults))

            distributed.by_first(first)
            run = held[0] if held else cls(Path(path), plain(settings))
            run._shared = True
            return run
        root = Path(path)
        if root.exists() and not root.is_dir():
            raise RunError(f"{root} is a file: give a folder for the run")
        work, record = root / "work", root / "run.yaml"
        if root.is_dir() and any(root.iterdir()) and not record.exists() and not (work / "lock").exists():
            raise RunError(f"{root} is not empty and is no run directory: choose a new or empty folder")
        with guard(root):
            work.mkdir(parents=True, exist_ok=True)
            run = cls(root, plain(settings), _lock(work / "lock", root))
        try:
            run._sweep()
            if overwrite:
                run._clear()
            if record.exists():
                run._check(record, plain(defaults or {}))
                run._roll_forward()
            else:
                if any(one != work / "lock" for one in work.iterdir()):
                    raise RunError(
                        f"{root} has lost its run.yaml, which says what its work was made with: put it back, choose "
                        "another folder, or start anew with --overwrite"
                    )
                run._new = True
                atomic_write(record, yaml.safe_dump({**run.settings, **plain(about or {})}, sort_keys=False))
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._new and isinstance(error, (InputError, InfeasibleError, UnsupportedError)):
            self._withdraw()
        self.close()

    def keep(self) -> None:
        """From here on a refusal leaves what is there: it took work."""
        self._new = False

    def _withdraw(self) -> None:
        """A new run that was refused at once leaves nothing, so that the corrected command may use the same folder.

        What has taken work, such as a checkpoint of a training that met a damaged image, stays whole: see `_LATE`.
        """
        record = self.root / "run.yaml"
        begun = record.stat().st_mtime
        if any(path.is_file() and path.stat().st_mtime - begun > _LATE for path in (self.root / "work").rglob("*")):
            return
        if self._shared:  # others may still be writing: what is left goes when the folder is opened again
            remove(record)
        elif {path.name for path in self.root.iterdir()} <= {record.name, "work"}:
            for path in (record, self.root / "work", self.root):
                remove(path)

    def close(self) -> None:
        """Release the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ------------------------------------------------------------------------------------------- artefacts

    def path(self, name: str) -> Path:
        """Where the artefact `name` lives; its folder exists."""
        path = self.root / "work" / name.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folder(self, name: str) -> Path:
        """A folder for the artefact `name`, made if need be."""
        path = self.path(name)
        with guard(path):
            path.mkdir(exist_ok=True)
        return path

    def json(self, name: str, compute: Callable[[], object], *, alone: bool = False) -> Any:
        """The plain value `name`: computed and stored the first time, read afterwards.

        What is returned has always been through JSON, so that a resumed run sees exactly what a first run saw.

        alone: of several processes the first computes, as a clock wants it; else all do, and its value counts.
        """
        path = self.path(f"{name}.json")

        def write() -> None:
            atomic_write(path, json.dumps(compute() if alone else value, indent=1))

        if not self._once(path.exists):
            with _say_what_takes_long(name):
                value = None if alone else compute()
                self._once(write)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is damaged: delete it and run the same command again") from error

    def tensors(
        self, name: str, compute: Callable[[], Mapping[str, Tensor]], *, alone: bool = False
    ) -> dict[str, Tensor]:
        """The torch tensors `name`: computed and stored as safetensors the first time, read afterwards.

        alone: see `json`.
        """
        from safetensors.torch import save_file

        path = self.path(f"{name}.safetensors")

        def write() -> None:
            # Clones, since safetensors refuses tensors that share memory.
            made = compute() if alone else computed
            values = {key: value.detach().cpu().contiguous().clone() for key, value in made.items()}
            with writing(path) as temporary:
                save_file(values, str(temporary))

        if not self._once(path.exists):
            with _say_what_takes_long(name):
                computed = {} if alone else compute()
                self._once(write)
        return read_tensors(path)

    def drop(self, name: str) -> None:
        """Remove the artefact `name`, which nothing needs any more; of several processes, once all are done with it."""
        if self._shared:
            distributed.wait()
        self._once(lambda: remove(self.path(name)))

    def _once(self, work: Callable[[], T]) -> T:
        """What `work` gives: of several processes the first does it, and all get the answer."""
        return distributed.by_first(work) if self._shared else work()

    # ---------------------------------------------------------------------------------------------- result

    def publish(self, builder: Callable[[Path], object], name: str = "") -> Path:
        """Let `builder` fill an empty folder, then put that in place as `root/name` (`root` itself without a name).

        A folder of its own is renamed at once. In the root, files move one by one with `config.json` last, so that
        what stands there never looks like a model before it is one; a kill between two moves is completed by the
        next `open`.
        """
        target = self.root / name if name else self.root
        with guard(target):
            staged = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.root / "work"))
            try:
                (staged / name).mkdir(exist_ok=True)
                builder(staged / name)
                settle(staged)
                # From this rename on the new result counts: `_roll_forward` finishes the move whatever happens.
                os.rename(staged, self.root / "work" / "ready")
                self._roll_forward()
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return target

    def _roll_forward(self) -> None:
        ready = self.root / "work" / "ready"
        if ready.is_dir():
            for path in sorted(ready.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
                _replace(path, self.root / path.name)
            ready.rmdir()
            flush(self.root)

    # ---------------------------------------------------------------------------------------------- opening

    def _check(self, record: Path, defaults: Mapping[str, object]) -> None:
        added = {key: value for key, value in defaults.items() if self.settings.get(key) == value}
        before = {**added, **read_record(record)}
        keys = list(self.settings)
        if any(key.endswith(_DIGEST) for key in keys):  # what names its inputs by digests names all of them
            keys += [key for key in before if str(key).endswith(_DIGEST) and key not in self.settings]
        for key in keys:
            if key not in before or key not in self.settings or before[key] != self.settings[key]:
                was, now = (_short(values.get(key, "not set")) for values in (before, self.settings))
                raise RunError(
                    f"{self.root} holds a run with {key}={was}, not {key}={now}: "
                    "choose another folder, or overwrite it (--overwrite)"
                )

    def _sweep(self) -> None:
        """Remove what a killed run was writing when it was killed."""
        for folder in (self.root, self.root / "work"):
            for pattern in (".evidence*", ".report*"):
                for path in folder.glob(pattern):
                    remove(path)
        for path in sorted(self.root.rglob(".tmp*"), reverse=True):  # ours, and those that safetensors names itself
            remove(path)

    def _clear(self) -> None:
        """Remove everything but the lock; the record goes last, so that a kill in between leaves a run directory."""
        paths = [*self.root.iterdir(), *(self.root / "work").iterdir()]
        keep = {self.root / "work", self.root / "work" / "lock"}
        for path in sorted(paths, key=lambda p: p.name == "run.yaml"):
            if path not in keep:
                remove(path)


class Transient(Run):
    """A run that leaves nothing: its plain values stand in `values`. For what is too small to be worth a folder."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), {})
        self.values: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Refused: this run has no folder."""
        raise RunError(f"{name} has no place: this run has no folder, give one")

    def json(self, name: str, compute: Callable[[], object], *, alone: bool = False) -> Any:
        """The plain value `name`, computed the first time."""
        if name not in self.values:
            self.values[name] = compute()
        return self.values[name]


def _lock(path: Path, root: Path) -> int:
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode(errors="replace").strip()
        os.close(handle)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        who = f" (process {holder})" if holder else ""
        raise RunError(f"{root} is in use by another run{who}: wait for it, or choose another folder") from error
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        # A folder can't be renamed over one with files in it; the old one steps aside, and the sweep removes it.
        aside = target.with_name(f"{TEMPORARY}{os.getpid()}-old-{target.name}")
        os.rename(target, aside)
        os.rename(source, target)
        shutil.rmtree(aside)
    else:
        os.replace(source, target)


def plain(values: Mapping[str, object]) -> dict[str, Any]:
    """`values` as YAML gives them back: tuples as lists, paths as text."""

    def simple(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): simple(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [simple(part) for part in value]
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    return {str(key): simple(value) for key, value in values.items()}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
