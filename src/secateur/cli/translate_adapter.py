"""secateur translate-adapter: make an adapter of the dense model fit a pruned one."""

from __future__ import annotations

from pathlib import Path

from secateur.cli.command import Command
from secateur.cli.printing import print_folder

__all__ = ["execute"]


def execute(given: dict[str, str]) -> Path:
    """Slice a LoRA or DoRA of the dense model so that it fits a result: equal to cutting the merged model."""
    from secateur.subjects.transformer import adapters

    return print_folder(*adapters.translate_adapter(**given))


COMMAND = Command(
    execute,
    ["secateur.subjects.transformer.adapters.translate_adapter"],
    arguments=("adapter",),
    help={
        "to": "the folder of the result.",
        "out": "where to; ADAPTER-RESULT if not given.",
    },
    needed={"ADAPTER": "adapter", "--to": "to"},
    example="secateur translate-adapter adapter --to small",
    pushes=True,
)
