"""Seconds until the package and its command line answer, in processes of their own.

    python benchmarks/start.py            # a few seconds

Targets: `import secateur` under 0.1 s beyond the bare interpreter, `secateur --help` under 0.3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "bare interpreter": ["-c", "pass"],
    "import secateur": ["-c", "import secateur"],
    "secateur --help": ["-m", "secateur", "--help"],
    "secateur list": ["-m", "secateur", "list"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(15):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    for name, row in times.items():
        print(f"{name}: {statistics.median(row):.3f} s [{min(row):.3f} to {max(row):.3f}]")


if __name__ == "__main__":
    main()
