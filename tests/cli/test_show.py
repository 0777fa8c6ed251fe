from __future__ import annotations

import pytest

from secateur import cli, recipes


@pytest.mark.parametrize(
    ("recipe", "option", "default"),
    [("ziplm", "tolerance", "default 0.02"), ("dp4tl", "target", "required"), ("provence", "model", "build-pruner")],
)
def test_show_prints_the_card_the_method_and_the_options_with_what_holds_without_them(capsys, recipe, option, default):
    assert cli.main(["show", recipe]) == 0
    shown = capsys.readouterr().out
    assert recipes.cards()[recipe]["paper"] in shown
    (line,) = (line for line in shown.partition("Options:")[2].splitlines() if line.split()[:1] == [option])
    assert default in line
    assert "Args:" not in shown


@pytest.mark.parametrize("recipe", sorted(recipes.cards()))
def test_show_tells_the_departures_from_the_paper_and_the_budgets(capsys, recipe):
    """As the pages of recipes and the guide of budgets say."""
    assert cli.main(["show", recipe]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    departures = recipes.describe(recipe).partition("Departures")[2]
    assert departures
    assert " ".join(departures.split()) in shown
    assert recipes.budgets(recipe)
    assert f"Budgets: {recipes.budgets(recipe)}" in shown


def test_an_unknown_recipe_is_refused_with_the_nearest(capsys):
    assert cli.main(["show", "minitrn"]) == 2
    assert "did you mean 'minitron'" in capsys.readouterr().err
