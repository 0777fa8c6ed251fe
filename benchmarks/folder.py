"""A folder of 1,000 pages pruned by one process and by one for each core; killed half way and gone on with.

    python benchmarks/folder.py                 # writes docs/evidence/benchmarks/folder.*
    python benchmarks/folder.py --pages 100     # a quick look, writes nothing

The pages are those of Python's manual, twice. Each round is a run of `secateur prune-context --in folder`; one process
and two take turns. The killed run gets SIGKILL when half of its lines are there, and the same command then ends it: its
bytes are compared with those of a run that was left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from secateur.measure import statistics
from secateur.measure.environment import describe
from support import peers
from support.data import packages

QUESTION = "How is a file opened for writing, and what happens if it is there already?"


def command(folder: Path, out: Path, processes: int) -> list[str]:
    how = ["--recipe", "htmlrag", "--budget", "tokens=512", "--tokenizer", str(packages.minilm())]
    many = ["--processes", str(processes)] if processes else []
    return [sys.executable, "-m", "secateur", "prune-context", "--in", str(folder), "--out", str(out), "--overwrite",
            "--question", QUESTION, *how, *many]  # fmt: skip


def timed(folder: Path, out: Path, processes: int) -> float:
    began = time.perf_counter()
    subprocess.run(command(folder, out, processes), check=True, capture_output=True)
    return time.perf_counter() - began


def killed(folder: Path, out: Path, pages: int) -> int:
    """Lines that were there when it was killed; then it is gone on with."""
    part = out.with_name(out.name + ".part")
    with subprocess.Popen(command(folder, out, 0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = part.read_bytes().count(b"\n") if part.exists() else 0
            if done >= pages // 2:
                process.kill()
                break
            time.sleep(0.01)
    again = [one for one in command(folder, out, 0) if one != "--overwrite"]
    subprocess.run(again, check=True, capture_output=True)
    return done


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1, help="the median is told, and from six on an interval")
    options = parser.parse_args(given)
    sources = sorted(packages.manual().rglob("*.html"))
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place, "pages"), Path(place, "out.jsonl")
        folder.mkdir()
        for number in range(options.pages):
            shutil.copy(sources[number % len(sources)], folder / f"{number:04}.html")
        size = sum(path.stat().st_size for path in folder.iterdir())
        cores = os.cpu_count() or 1
        rows = [(timed(folder, out, 1), timed(folder, out, cores)) for _ in track(range(options.rounds), "rounds")]
        whole = out.read_bytes()
        again = out.with_name("again.jsonl")
        done = killed(folder, again, options.pages)
        same = again.read_bytes() == whole
    one = statistics.median_interval([options.pages / alone for alone, _ in rows], unit="pages/s")
    all_of = statistics.median_interval([options.pages / together for _, together in rows], unit="pages/s")
    gain = statistics.median_interval([alone / together for alone, together in rows])
    machine = describe()
    lines = [
        "# A folder of pages", "",
        f"{options.pages:,} pages of Python's manual, {size / 2**20:.0f} MiB, to 512 tokens each by BM25; "
        f"{options.rounds} rounds.",
        "", "| | pages a second |", "| --- | ---: |",
        f"| one process | {one} |", f"| one for each of {cores} cores | {all_of} |", "",
        f"Time of the one over that of the others: {gain}. Killed after {done} lines and gone on with, the result has "
        f"{'the same' if same else 'OTHER'} bytes.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if options.pages == 1000:
        found = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {"seconds": rows, "bytes": size, "killed_after": done, "same": same, "machine": machine}
        (found / "folder.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (found / "folder.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
