"""Which functions a system's figures come from: those that a pilot of its claims runs, from an empty cache.

`python -m claims._lab.ran SYSTEM FILE` runs the pilots, originals trained anew, and writes the list. A pilot takes the
place of the judged run since following every call costs time, which some claims judge.
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

__all__ = ["FOLDER", "digest", "follow", "names", "note"]

FOLDER = ROOT / "docs" / "evidence" / "ran"
"""One list for each system, a line for each function: `file:name`."""
PLACES = ("src", "claims", "tests")


def digest(system: str) -> str | None:
    """Of the code that the functions in a system's list now have; None without a list."""
    file = FOLDER / f"{system}.txt"
    return sources.of_functions(f"claims.{system}", file.read_text("utf-8").split()) if file.exists() else None


def note(system: str) -> str:
    """Run the pilots of a system in a process of their own and keep what they ran; its digest."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        places = {"PILOT": "1", "SECATEUR_CLAIMS_CACHE": cache}
        command = [sys.executable, "-m", "claims._lab.ran", system, str(FOLDER / f"{system}.txt")]
        subprocess.run(command, check=True, env=os.environ | places, cwd=ROOT, stdout=subprocess.DEVNULL)
    found = digest(system)
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
        if is_function and any(path.is_relative_to(ROOT / place) for place in PLACES):
            found.add(f"{path.relative_to(ROOT).as_posix()}:{name}")
    yield from sorted(found)


def main(system: str, file: Path) -> None:
    """Run the pilots of a system and write what they ran."""
    from claims._lab.claim import claims_of

    assert settings.PILOT, "the list is made of pilots"
    seen = set[CodeType]()
    follow(seen)
    for claim in claims_of(system):
        claim.figures(claim.seeds[0])
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    file.write_text("".join(f"{name}\n" for name in names(seen)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
