"""secateur list: list recipes."""

from __future__ import annotations

import json
from typing import Any

from secateur import recipes
from secateur.cli.command import Command
from secateur.cli.flags import AS_JSON

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """The recipes there are."""
    cards = recipes.cards()
    if given.get("as_json"):
        print(json.dumps(cards, indent=1))
        return
    width = max(map(len, cards), default=0)
    for name, card in cards.items():
        print(f"{name:<{width}}  {card['family']:<9} {card['title']}")


COMMAND = Command(execute, more=[AS_JSON], config="")
