"""secateur show."""

from __future__ import annotations

import re
from typing import Any

from secateur import recipes
from secateur.cli.command import Command
from secateur.cli.flags import extra
from secateur.cli.values import describe_default

__all__ = ["execute"]

_ARGUMENTS = re.compile(r"^Args:\n(?:[ ]+.*\n?|\n)*", re.MULTILINE)
"""The arguments in a docstring; its departures from the paper stand behind them."""


def execute(given: dict[str, Any]) -> None:
    """A recipe's card, method, departures from the paper, budgets and options."""
    recipe = given["recipe"]
    options = recipes.signature(recipe)
    card = recipes.cards()[recipe]
    width = max(map(len, card))
    for key, value in card.items():
        if value:
            print(f"{key:<{width}}  {value}")
    print(f"\n{_ARGUMENTS.sub('', recipes.describe(recipe)).strip()}\n")
    if budgets := recipes.budgets(recipe):
        print(f"Budgets: {budgets}\n")
    print("Options:")
    width = max((len(option.name) for option in options), default=0)
    for option in options:
        print(f"  {option.name:<{width}}  {option.help} [{option.annotation}, {describe_default(option)}]")


COMMAND = Command(
    execute,
    more=[extra("recipe", "str", "a recipe's name.", "", "RECIPE")],
    needed={"RECIPE": "recipe"},
    example="secateur show ziplm",
    config="",
)
