"""Seconds of a first look at all-MiniLM-L6-v2 with ZipLM, by the command line: a result by --quick, and a dry run.

    python benchmarks/quick.py            # some minutes on 2 cores

Targets: a first result under 120 s, a dry run under 60 s.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from start import measure
from support.data import packages

TARGETS = {"--quick": 120, "--dry-run": 60}


def main() -> None:
    sentences = [text for _, text in packages.brown() if 5 <= len(text.split()) <= 40]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "texts.txt").write_text("\n".join(sentences), "utf-8")
        for flag, target in TARGETS.items():
            how = ["--budget", "speedup=2x", "--data", "texts.txt", "--out", flag.strip("-"), flag]
            clock, processor, memory = measure(["-m", "secateur", "run", "ziplm", str(packages.minilm()), *how], folder)
            print(
                f"secateur run ziplm {flag}: {clock:.0f} s (target {target}), {processor:.0f} s of the processor, "
                f"{memory:.0f} MB, {len(sentences):,} texts"
            )


if __name__ == "__main__":
    main()
