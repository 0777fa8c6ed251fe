"""secateur conflicts: conflict prompts on the facts that a model knows."""

from __future__ import annotations

from typing import Any

from secateur.cli.command import Command
from secateur.cli.printing import print_lines

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Make conflict prompts of a fact table, for `secateur run ph3`, on the facts that a language model knows."""
    from secateur.runs import conflicts

    made = conflicts.make_conflicts(**given)
    print_lines(f"{len(made)} prompts in {given['out']}", *made.notes)


COMMAND = Command(
    execute,
    ["secateur.runs.conflicts.make_conflicts"],
    arguments=("table",),
    help={
        "table": "JSON lines of facts (subject, relation, object) and templates (relation, template).",
        "model": "a language model's folder or Hub id.",
        "out": "the JSON-lines file to write.",
        "overwrite": "write --out anew.",
    },
    needed={"TABLE": "table", "--model": "model", "--out": "out"},
    example="secateur conflicts facts.jsonl --model MODEL --out prompts.jsonl",
)
