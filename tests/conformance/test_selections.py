"""Every rule of selection obeys the laws of `secateur.conformance`, and the suite notices one that doesn't."""

from __future__ import annotations

import numpy as np
import pytest

from secateur import conformance
from secateur.select import ranking
from secateur.vocabulary import Selection


@pytest.mark.parametrize("scope", ["global", "kind", "local"])
@pytest.mark.parametrize("normalise", [None, "l2", "rank"])
def test_rankings(scope: str, normalise: str | None) -> None:
    laws = conformance.check_selection(
        lambda units, scores, budget: ranking.by_budget(units, scores, budget, scope=scope, normalise=normalise)
    )
    assert set(laws) >= {"within budget", "spent = cost", "fixed stays", "repeats", "whole", "refuses", "superset"}
    assert "NumPy = torch" in laws


def test_a_rule_that_overspends_is_caught() -> None:
    def everything(units, scores, budget):
        keep = {site.name: np.ones(site.count, bool) for site in units.free()}
        return Selection(keep, units.cost(keep), budget)

    with pytest.raises(AssertionError, match="over the budget"):
        conformance.check_selection(everything)


def test_a_rule_that_keeps_the_wrong_end_for_larger_budgets_is_caught() -> None:
    def restless(units, scores, budget):
        sign = -1.0 if round(budget.limits[0].value * 1000) % 2 else 1.0
        return ranking.by_budget(units, {name: sign * column for name, column in scores.items()}, budget)

    with pytest.raises(AssertionError):
        conformance.check_selection(restless)
