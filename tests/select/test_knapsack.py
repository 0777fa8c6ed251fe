import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select import knapsack


def brute(costs, losses, budget, add=math.fsum):
    """The least loss of all combinations within budget, by trying them all; `add` sums their costs."""
    best = math.inf
    for levels in itertools.product(*(range(len(row)) for row in costs)):
        if add(float(row[s]) for row, s in zip(costs, levels, strict=True)) <= budget:
            best = min(best, math.fsum(row[s] for row, s in zip(losses, levels, strict=True)))
    return best


def rows(draw, elements, sizes):
    return [np.array(draw(st.lists(elements, min_size=size, max_size=size))) for size in sizes]


@st.composite
def whole_problems(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    costs = rows(draw, st.integers(0, 20), sizes)
    return costs, rows(draw, st.floats(0, 10), sizes), draw(st.integers(0, 60))


@st.composite
def real_problems(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    costs = rows(draw, st.floats(0, 1), sizes)
    return costs, rows(draw, st.floats(0, 10), sizes), draw(st.floats(0, 3))


@given(whole_problems())
@settings(max_examples=200, deadline=None)
def test_equals_brute_force_where_costs_are_whole(problem):
    costs, losses, budget = problem
    best = brute(costs, losses, budget)
    if best == math.inf:
        with pytest.raises(InfeasibleError) as refused:
            knapsack.solve(costs, losses, budget)
        assert refused.value.reachable == sum(row.min() for row in costs)
        return
    choice = knapsack.solve(costs, losses, budget)
    assert choice.loss == pytest.approx(best, abs=1e-9)
    assert choice.cost <= budget
    assert choice.cost == sum(row[s] for row, s in zip(costs, choice.levels, strict=True))


@given(real_problems())
@example(([np.array([0.0, 2.3e-57]), np.array([0.5])], [np.array([1.0, 0.0]), np.array([0.0])], 0.5))
@settings(max_examples=200, deadline=None)
def test_never_over_budget_and_within_a_bucket_per_module(problem):
    costs, losses, budget = problem
    cheapest = math.fsum(row.min() for row in costs)
    if cheapest > budget:
        with pytest.raises(InfeasibleError):
            knapsack.solve(costs, losses, budget)
        return
    choice = knapsack.solve(costs, losses, budget)
    assert choice.cost <= budget
    # Without rounding: 0.5 + 2e-57 is over a budget of 0.5, though the float sum is not; found by hypothesis.
    tighter = Fraction(budget) - len(costs) * Fraction(budget - cheapest) / 10_000
    least = exactly(row.min() for row in costs)
    within = brute(costs, losses, max(tighter, least), exactly)
    assert brute(costs, losses, budget) - 1e-9 <= choice.loss <= within + 1e-9


def exactly(values):
    """The sum of floats as a fraction, free of rounding."""
    return sum((Fraction(float(value)) for value in values), Fraction(0))


def test_four_modules_of_five_levels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, losses = rng.integers(1, 30, (4, 5)), rng.random((4, 5))
        assert knapsack.solve(costs, losses, 60).loss == pytest.approx(brute(costs, losses, 60))


def test_a_budget_of_exactly_everything_keeps_everything():
    rng = np.random.default_rng(1)
    costs = [np.append(0.0, np.cumsum(rng.random(42))) for _ in range(12)]
    losses = [np.linspace(1, 0, 43) for _ in range(12)]
    choice = knapsack.solve(costs, losses, math.fsum(row[-1] for row in costs))
    assert choice.levels == [42] * 12
    assert choice.loss == 0.0


def test_a_budget_of_exactly_the_cheapest_is_met():
    rng = np.random.default_rng(2)
    for _ in range(50):
        costs = [rng.random(5) + 0.1 for _ in range(9)]
        losses = [rng.random(5) for _ in range(9)]
        least = math.fsum(row.min() for row in costs)
        assert knapsack.solve(costs, losses, least).levels == [int(row.argmin()) for row in costs]
        with pytest.raises(InfeasibleError):
            knapsack.solve(costs, losses, np.nextafter(least, 0))


def test_free_levels_and_a_budget_of_nothing():
    choice = knapsack.solve([np.array([0.0, 0.0, 1.0])] * 2, [np.array([3.0, 2.0, 0.0])] * 2, 0.0)
    assert choice.levels == [1, 1]
    assert choice.cost == 0.0


def test_a_level_far_above_the_budget_is_skipped():
    choice = knapsack.solve([np.array([0.0, 1e300]), np.array([0.0, 0.5])], [np.array([1.0, 0.0])] * 2, 0.7)
    assert choice.levels == [0, 1]


def test_ties_are_broken_the_same_way_every_time():
    costs, losses = [np.array([0, 1, 1])] * 3, [np.array([1.0, 0.0, 0.0])] * 3
    assert knapsack.solve(costs, losses, 2).levels == knapsack.solve(costs, losses, 2).levels
    assert set(knapsack.solve(costs, losses, 2).levels) <= {0, 1}


def test_numpy_and_torch_agree():
    rng = np.random.default_rng(3)
    costs, losses = rng.random((6, 7)), rng.random((6, 7))
    tensors = knapsack.solve(list(torch.as_tensor(costs)), list(torch.as_tensor(losses)), 2.0)
    assert tensors == knapsack.solve(list(costs), list(losses), 2.0)


def test_the_size_of_a_real_model_is_quick():
    rng = np.random.default_rng(4)
    costs = [np.append(0.0, np.sort(rng.random(42))) for _ in range(12)]
    losses = [np.append(1.0, np.sort(rng.random(42))[::-1]) for _ in range(12)]
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        choice = knapsack.solve(costs, losses, 0.5 * sum(row[-1] for row in costs))
        best = min(best, time.perf_counter() - start)
    assert choice.loss > 0.0
    assert best < 0.2


def test_bad_input_is_refused_by_name():
    with pytest.raises(NumericalError, match="losses of module 1 are not finite"):
        knapsack.solve([[0, 1], [0, 1]], [[0, 1], [0, np.nan]], 1)
    with pytest.raises(NumericalError, match="budget is NaN"):
        knapsack.solve([[0]], [[0]], math.nan)
    with pytest.raises(InputError, match=r"\[2\] costs and \[3\] losses"):
        knapsack.solve([[0, 1]], [[0, 1, 2]], 1)
    with pytest.raises(InputError, match="module 0 have shape"):
        knapsack.solve([[]], [[]], 1)
    with pytest.raises(InputError, match="at least one module"):
        knapsack.solve([], [], 1)


# ---------------------------------------------------------------------------------------------- several budgets


def brute_many(costs, losses, budgets):
    best = math.inf
    for levels in itertools.product(*(range(len(row)) for row in losses)):
        spent = {m: math.fsum(row[s] for row, s in zip(costs[m], levels, strict=True)) for m in budgets}
        if all(spent[m] <= limit for m, limit in budgets.items()):
            best = min(best, math.fsum(row[s] for row, s in zip(losses, levels, strict=True)))
    return best


@given(st.integers(0, 10_000), st.floats(0.2, 1.0), st.floats(0.2, 1.0))
@settings(max_examples=40, deadline=None)
def test_several_budgets_equal_brute_force(seed, first, second):
    rng = np.random.default_rng(seed)
    costs = {m: list(rng.integers(0, 9, (3, 4))) for m in ("params", "latency")}
    losses = list(rng.random((3, 4)))
    budgets = {m: s * sum(row.max() for row in costs[m]) + 0.5 for m, s in zip(costs, (first, second), strict=True)}
    best = brute_many(costs, losses, budgets)
    if best == math.inf:
        with pytest.raises(InfeasibleError, match="can't be met together"):
            knapsack.solve_many(costs, losses, budgets)
        return
    choice = knapsack.solve_many(costs, losses, budgets)
    assert choice.loss == pytest.approx(best)
    assert all(choice.spent[m] <= limit for m, limit in budgets.items())
    assert choice.cost == choice.spent["params"]


def test_one_budget_by_both_solvers():
    rng = np.random.default_rng(5)
    costs, losses = list(rng.integers(0, 30, (6, 8))), list(rng.random((6, 8)))
    one = knapsack.solve(costs, losses, 70)
    assert knapsack.solve_many({"n": costs}, losses, {"n": 70}).loss == pytest.approx(one.loss)


def test_budgets_that_clash_name_the_nearest_choice():
    costs = {"a": [np.array([0.0, 4.0])], "b": [np.array([4.0, 0.0])]}
    with pytest.raises(InfeasibleError, match="the nearest choice costs a 0, b 4") as refused:
        knapsack.solve_many(costs, [np.zeros(2)], {"a": 1.0, "b": 2.0})
    assert refused.value.reachable == 0.0
    with pytest.raises(InputError, match="need costs of the same names"):
        knapsack.solve_many(costs, [np.zeros(2)], {"c": 1.0})
