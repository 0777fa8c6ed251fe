"""secateur export: write a model in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.cli.command import Command
from secateur.cli.printing import print_folder

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> Path:
    """Write a model in another form, checked against the original's output."""
    from secateur.runs import exporting

    return print_folder(*exporting.export(**given))


COMMAND = Command(
    execute,
    ["secateur.export"],
    arguments=("folder",),
    help={
        "folder": "the folder of a model, usually a result; a GGUF file or a Hub id.",
        "to": "onnx, gguf (for llama.cpp), decilm (for vLLM), packed, packed-int8, masks, int8 or int4.",
        "out": "where to; FOLDER/onnx and so on if not given, NAME-onnx of a file or a Hub id.",
        "data": "texts to measure the quality of integers on.",
        "stream": "read the model block by block from the disk.",
    },
    needed={"FOLDER": "folder", "--to": "to"},
    example="secateur export small --to onnx",
    pushes=True,
)
