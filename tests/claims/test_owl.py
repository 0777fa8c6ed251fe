"""OWL at small scale: shares by outliers against one share for all blocks."""

from __future__ import annotations

import pytest

from claims import lab
from claims.oneshot import SEEDS, SETUP, loss

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
def test_at_70_percent_shares_by_outliers_beat_uniform_ones(method):
    budget = "weights=30%"
    ours = [loss("owl", budget, seed, method=method) for seed in SEEDS]
    uniform = [loss(method, budget, seed) for seed in SEEDS]
    lab.record(
        "owl", f"seventy-{method}", f"at 70 % zeros, {method} loses less with shares by outliers than with one for all",
        lab.clearly_less(ours, uniform), ("loss", ours), {"uniform": uniform}, setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "budget"), [("eighty", "weights=20%"), ("pattern", "pattern=3:8")])
def test_other_budgets(name, budget):
    ours = [loss("owl", budget, seed) for seed in SEEDS]
    uniform = [loss("wanda", budget, seed) for seed in SEEDS]
    lab.record(
        "owl", name, f"at {budget}, Wanda loses less with shares by outliers than with one share for all",
        lab.less(ours, uniform) and ours != uniform, ("loss", ours), {"uniform": uniform}, setup=SETUP,
    )  # fmt: skip
