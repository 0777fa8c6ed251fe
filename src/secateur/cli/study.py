"""secateur study: answer a question by many runs of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from secateur.cli import words as line
from secateur.cli.command import Command
from secateur.cli.flags import Flag, of_options
from secateur.cli.printing import console, print_lines

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """Answer a question over many runs of a recipe; the same command again resumes."""
    from secateur.reports import evidence
    from secateur.studies import executor

    answer, screen = executor.study(**given), console()
    for table in answer.tables:
        screen.print(evidence.rich_table(table.rows, title=table.title))
    print_lines(*answer.notes, answer.headline)
    if not given.get("dry_run"):
        print_lines("", *(f"{name}  {Path(given['out']) / f'study.{name}'}" for name in ("json", "html")))


def _check(typed: dict[str, Any]) -> None:
    """Refuse an unknown study before its missing arguments; without a study, list them."""
    from secateur import studies

    if "study" in typed:
        studies.options(typed["study"])
    elif "config" not in typed:
        cards = studies.cards()
        width, over = max(map(len, cards)), max(len(card["recipe"]) for card in cards.values())
        for name, card in cards.items():
            print(f"{name:<{width}}  {card['recipe'] or '-':<{over}}  {card['title']}")
        raise typer.Exit


def _recipe_flags(words: Sequence[str]) -> tuple[list[Flag], str]:
    """The flags of the study that the command line names, and its question."""
    from secateur import studies

    study, cards = line.recipe_named(words, "study"), studies.cards()
    if study not in cards:
        return [], ""
    return of_options(studies.options(study), f"Options of {study}"), f"{study}: {cards[study]['title']}."


COMMAND = Command(
    execute,
    ["secateur.studies.executor.study"],
    arguments=("study", "model"),
    help={
        "study": "a study's name; without one, all are listed.",
        "model": "file.py:function for any network; of grounding and priming a folder or Hub id.",
        "data": "the examples: an .npz file, a folder of images or file.py:function; a .jsonl file where one is read.",
    },
    recipe_flags=_recipe_flags,
    needed={"STUDY": "study", "--out": "out"},
    example="secateur study curve net.py:build --data digits.npz --out curves",
    configured="secateur.studies.executor.configured",
    adapt=_check,
)
