"""Which functions a claim's figures come from: those that its pilot runs, from an empty cache.

`python -m claims._lab.ran SYSTEM CLAIM FILE` runs the pilot, originals trained anew, and writes the list. A pilot takes
the place of the judged run since following every call costs time, which some claims judge; what only the judged run
enters is not in the list.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType

from claims import ROOT
from claims._lab import settings, sources

__all__ = ["FOLDER", "digest", "follow", "names", "note", "read", "write"]

FOLDER = ROOT / "docs" / "evidence" / "ran"
"""One list for each claim: a line for each file, with the functions in it."""
PLACES = ("src", "claims", "tests")


def digest(system: str, claim: str) -> str | None:
    """Of the code that the functions in a claim's list now have; None without a list."""
    file = FOLDER / f"{system}-{claim}.txt"
    return sources.of_functions(f"claims.{system}", read(file)) if file.exists() else None


def read(file: Path) -> list[str]:
    """The functions in a list, as `file:name`."""
    lines = (line.partition(":")[::2] for line in file.read_text("utf-8").splitlines())
    return [f"{place}:{name}" for place, named in lines for name in named.split()]


def write(file: Path, functions: Iterable[str]) -> None:
    """Write a list of functions, each as `file:name`."""
    by_file: dict[str, list[str]] = {}
    for function in functions:
        place, _, name = function.partition(":")
        by_file.setdefault(place, []).append(name)
    file.write_text("".join(f"{place}: {' '.join(named)}\n" for place, named in by_file.items()), encoding="utf-8")


def note(system: str, claim: str) -> str:
    """Run the pilot of a claim in a process of its own and keep what it ran; its digest."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{system}-{claim}.txt"
    with tempfile.TemporaryDirectory() as cache:
        places = {"PILOT": "1", "SECATEUR_CLAIMS_CACHE": cache}
        command = [sys.executable, "-m", "claims._lab.ran", system, claim, str(file)]
        subprocess.run(command, check=True, env=os.environ | places, cwd=ROOT, stdout=subprocess.DEVNULL)
    found = digest(system, claim)
    assert found is not None
    return found


def follow(seen: set[CodeType]) -> None:
    """From here on, in this thread and in those to come, put the code of every function that is called into `seen`."""

    def call(frame: FrameType, event: str, argument: object) -> None:
        seen.add(frame.f_code)

    threading.settrace(call)
    sys.settrace(call)


def names(seen: Iterable[CodeType]) -> Iterator[str]:
    """`file:name` of the functions of ours, each as the outermost one that it stands in, in order."""
    found = set[str]()
    for code in seen:
        path, name = Path(code.co_filename), code.co_qualname.partition(".<locals>")[0]
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not name.startswith("<")
        if is_function and path.suffix == ".py" and any(path.is_relative_to(ROOT / place) for place in PLACES):
            found.add(f"{path.relative_to(ROOT).as_posix()}:{name}")
    yield from sorted(found)


def main(system: str, name: str, file: Path) -> None:
    """Run the pilot of a claim and write what it ran."""
    from claims._lab.claim import claims_of

    assert settings.PILOT, "the list is made of a pilot"
    seen = set[CodeType]()
    follow(seen)
    for claim in claims_of(system):
        if claim.name == name:
            claim.figures(claim.seeds[0])
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    write(file, names(seen.copy()))  # threads that still run go on adding to it


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
