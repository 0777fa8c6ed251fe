"""secateur report: print the evidence of a run directory."""

from __future__ import annotations

from typing import Any

from secateur.cli.command import Command

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Write a run's report.html anew from its evidence."""
    from secateur.runs import executor

    print(executor.report(**given))


COMMAND = Command(
    execute,
    ["secateur.report"],
    arguments=("run_dir",),
    help={"run_dir": "the --out folder of a run."},
    needed={"RUN_DIR": "run_dir"},
    example="secateur report small",
)
