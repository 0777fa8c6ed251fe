from __future__ import annotations

import json

from secateur import cli, recipes


def test_list_names_each_recipe_in_a_line_of_its_own_and_shows_cards_as_json(capsys):
    cards = recipes.cards()
    assert {"ziplm", "minitron"} <= set(cards)
    assert cli.main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(cards)
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cards
