"""secateur measure: measure a model, alone or against others."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from secateur.cli.command import Command
from secateur.cli.flags import AS_JSON
from secateur.cli.printing import console, print_lines
from secateur.cli.run import SHAPE

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Measure size, time, memory and quality of a model, alone or against others."""
    from secateur.reports import evidence
    from secateur.runs import backends, measuring

    as_json = given.pop("as_json", False)
    figures = measuring.measure(**given)
    if as_json:
        plain: dict[str, Any] = {
            part: {name: asdict(figure) for name, figure in row.items()} for part, row in figures.items()
        }
        plain |= {"notes": list(figures.notes)} if figures.notes else {}
        print(json.dumps(plain, indent=1))
        return
    rows = [["Measure", *figures], *figures.rows()]
    usual = backends.of_source(next(iter(given.get("against", ())), given["model"]))
    length = given.get("length") or usual.length
    title = f"batch {given.get('batch') or usual.batch}" + (f" x {length} tokens" if length else "")
    if given.get("environment") == "decode":
        title = title.replace(f"{length} tokens", f"1 token behind a cache of {length}")
    title += {"compile": ", torch.compile", "onnx": ", onnxruntime"}.get(given.get("timer", ""), "")
    console().print(evidence.rich_table(rows, title=title))
    for note in figures.notes:
        print_lines(f"note: {note}")


COMMAND = Command(
    execute,
    ["secateur.runs.measuring.measure"],
    arguments=("model",),
    words={"inputs": "--input"},
    help={
        "model": "a model folder or Hub id; for networks file.py:function, or the folder of a cut one.",
        "against": "another model to compare with, usually the original. Again for more, such as all its teachers.",
        "data": "texts (for networks examples) to measure quality on.",
        "sizes": "sides of squares that part small, medium and large boxes: 8,24 pixels, 5%,15% of a side.",
        "inputs": SHAPE,
        "tasks": "tasks of lm-eval to measure quality on.",
        "task_folder": "a folder of lm-eval task files of your own.",
        "limit": "documents per task; all if not given.",
        "batch": "rows per batch; 32 if not given.",
        "length": "tokens per sequence; 64 if not given.",
        "threads": "of torch.",
        "device": "where to measure: cpu (the default), cuda, ...",
        "environment": "prefill (whole sequences, the default) or decode (one token behind a cache of --length).",
        "timer": "eager (PyTorch, the default), compile (torch.compile) or onnx (onnxruntime).",
    },
    metavars={"against": "MODEL", "tasks": "TASK,..."},
    again=("against",),
    more=[AS_JSON],
    needed={"MODEL": "model"},
    example="secateur measure small --against MODEL",
)
