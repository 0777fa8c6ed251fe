"""Seconds until the package and its command line answer, in processes of their own.

    python benchmarks/start.py            # a few seconds

Targets: `import secateur` under 0.1 s beyond the bare interpreter, `secateur --help` under 0.3 s; a page cut by BM25
under 0.6 s and 120 MB. Seconds of the processor stand beside those of the clock, for a machine that others use, too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "import secateur": ["-c", "import secateur"],
    "secateur --help": ["-m", "secateur", "--help"],
    "secateur list": ["-m", "secateur", "list"],
    "secateur prune-context, BM25": [
        "-m", "secateur", "prune-context", "page.html", "--recipe", "htmlrag", "--question", "what does -s do?",
        "--budget", "words=40",
    ],
}  # fmt: skip
PAGE = "".join(f"<h2>Option {n}</h2><p>Use <code>-{chr(97 + n % 26)}</code> for thing {n}.</p>" for n in range(200))


def main() -> None:
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(PAGE, "utf-8")
        for _ in range(15):
            for name, arguments in COMMANDS.items():
                rows[name].append(measure(arguments, folder))
    for name, row in rows.items():
        clock, processor, memory = zip(*row, strict=True)
        print(
            f"{name}: {statistics.median(clock):.3f} s [{min(clock):.3f} to {max(clock):.3f}], "
            f"{statistics.median(processor):.3f} s of the processor, {max(memory):.0f} MB"
        )


def measure(arguments: list[str], folder: str) -> tuple[float, float, float]:
    """Seconds by the clock and of the processor, and the most memory in MB, of one process."""
    began = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, **quiet)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


if __name__ == "__main__":
    main()
