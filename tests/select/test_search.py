import math

import numpy as np
import pytest

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select import knapsack, search


def test_the_search_finds_what_unit_coefficients_miss():
    """The true loss weighs the first module ten times the last; only the search can learn that."""
    costs, losses = [np.array([0, 1])] * 4, [np.array([1.0 + 0.01 * i, 0.0]) for i in range(4)]
    truth = np.array([10.0, 3.0, 2.0, 1.0])
    asked = []

    def solve(c):
        choice = knapsack.solve(costs, [w * row for w, row in zip(c, losses, strict=True)], 1)
        return tuple(choice.levels), choice.levels

    def evaluate(levels):
        asked.append(tuple(levels))
        return float(sum(t * row[s] for t, row, s in zip(truth, losses, levels, strict=True)))

    found = search.coefficients(solve, evaluate, 4, trials=60, seed=1)
    assert found.payload == [1, 0, 0, 0]
    assert found.loss < found.history[0]
    assert len(found.history) == 61
    assert found.history == sorted(found.history, reverse=True)
    assert found.history[-1] == found.loss
    assert len(asked) == len(set(asked))  # no solution was evaluated twice
    assert ((found.coefficients >= 0) & (found.coefficients <= 1)).all()
    again = search.coefficients(solve, evaluate, 4, trials=60, seed=1)
    assert (again.coefficients == found.coefficients).all()
    assert again.history == found.history


def test_no_trials_is_the_plain_solution_and_progress_wraps_the_trials():
    seen = []

    def watch(trials):
        for trial in trials:
            seen.append(trial)
            yield trial

    found = search.coefficients(lambda c: (tuple(c), c), lambda c: float(c.sum()), 10, trials=5, progress=watch)
    assert seen == [0, 1, 2, 3, 4]
    assert (found.coefficients != 1.0).sum() <= 5  # one of ten changes at a time
    plain = search.coefficients(lambda c: (tuple(c), c), lambda c: float(c.sum()), 10, trials=0)
    assert plain.loss == 10.0
    assert (plain.coefficients == 1.0).all()


def test_coefficients_start_at_their_scale_and_stay_below_it():
    asked = []
    scale = [2.0, 0.5, 0.0]
    search.coefficients(lambda c: (tuple(c), asked.append(c)), lambda _: 1.0, 3, trials=50, scale=scale)
    assert asked[0].tolist() == scale
    assert (np.array(asked) <= scale).all()
    assert max(c[0] for c in asked[1:]) > 1
    for wrong in ([1.0], [1.0, -1.0, 0.0], [1.0, math.nan, 0.0]):
        with pytest.raises(InputError, match="scale must be 3 finite numbers"):
            search.coefficients(lambda c: (0, c), lambda c: 0.0, 3, scale=wrong)


def test_a_candidate_with_nan_loss_never_wins():
    found = search.coefficients(lambda c: (tuple(c), c), lambda c: 1.0 if (c == 1).all() else math.nan, 3, trials=9)
    assert found.loss == 1.0
    with pytest.raises(NumericalError, match="first candidate is NaN"):
        search.coefficients(lambda c: (0, c), lambda c: math.nan, 3)
    with pytest.raises(InputError, match="n >= 1"):
        search.coefficients(lambda c: (0, c), lambda c: 0.0, 0)


def test_shapes_under_several_limits_are_close_to_the_first_and_never_above_any():
    def cost(shape):
        return {"params": shape["layers"] * shape["width"] ** 2, "kv_cache": shape["layers"] * shape["width"]}

    axes = {"layers": [1, 2, 3, 4], "width": [8, 12, 16]}
    found = search.under(axes, cost, {"params": 600.0, "kv_cache": 36.0}, tolerance=0.2)
    assert found == [{"layers": 2, "width": 16}]  # the other within 20 % below, 4 x 12, has a cache of 48
    assert search.under(axes, cost, {"params": 600.0}, tolerance=0.2) == [{"layers": 4, "width": 12}, *found]
    everything = search.under(axes, cost, {"params": 600.0}, tolerance=1.0)
    sizes = [cost(shape)["params"] for shape in everything]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 600


def test_a_refusal_names_the_measure_the_limit_and_what_is_reachable():
    def cost(shape):
        return {"params": shape["width"] ** 2, "flops": 100.0 / shape["width"]}

    axes = {"width": [64, 128]}
    with pytest.raises(InfeasibleError, match=r"params of 12 can't be met: the smallest shape .* has 4096") as refused:
        search.under(axes, cost, {"params": 12.0})
    assert refused.value.reachable == 64**2
    assert search.under(axes, cost, {"params": refused.value.reachable}) == [{"width": 64}]
    with pytest.raises(InfeasibleError, match=r"params of 8000 can't be met within 5%: .* has 4096") as refused:
        search.under(axes, cost, {"params": 8000.0})
    assert refused.value.reachable == 64**2
    with pytest.raises(InfeasibleError, match=r"flops of 0\.1 can't be met"):
        search.under(axes, cost, {"params": 20000.0, "flops": 0.1})
    with pytest.raises(InfeasibleError, match="params=5000, flops=1 at once"):
        search.under(axes, cost, {"params": 5000.0, "flops": 1.0})
    with pytest.raises(InputError, match="at least one size"):
        search.under({}, cost, {"params": 1.0})


def test_sizes_that_somebody_chose_are_held_to_the_limits():
    def cost(shape):
        return {"params": 10.0 * shape["layers"] * shape["heads"]}

    with pytest.raises(InfeasibleError, match="shape layers=4,heads=3 has 120 params, and the budget allows 100") as no:
        search.combine({"layers": [4], "heads": [3]}, cost, {"params": 100.0})
    assert no.value.reachable == 120
    assert search.combine({"layers": [1], "heads": [3]}, cost, {"params": 100.0}) == [{"layers": 1, "heads": 3}]
    several = search.combine({"layers": [2, 3, 4], "heads": [1, 3]}, cost, {"params": 100.0}, tolerance=0.5)
    assert several == [{"layers": 3, "heads": 3}, {"layers": 2, "heads": 3}]


def test_the_likeliest_shapes_are_told_by_each_axis_alone_and_differ_in_depth():
    """Of ten combinations six cuts tell, the whole among them; the best of each depth stands before second-bests."""
    cuts = []

    def judge(sizes):
        cuts.append(sizes)
        return 4.0 - sizes["layers"] + 0.1 * (5 - sizes["heads"])

    shapes = [{"layers": layers, "heads": heads} for layers in (4, 3) for heads in range(1, 6)]
    losses = search.lose_alone(shapes, dict, judge)
    assert len(cuts) == 2 + 5
    assert all(sizes["layers"] == 4 or sizes["heads"] == 5 for sizes in cuts)
    found = search.likeliest(shapes, losses, 3, each="layers")
    assert found == [{"layers": 4, "heads": 5}, {"layers": 3, "heads": 5}, {"layers": 4, "heads": 4}]


def test_stages_that_no_shape_leads_through_are_refused():
    """Each stage halves a number: one that is odd leads nowhere."""
    asked = []

    def find(stage, start):
        asked.append((stage, start["n"]))
        if start["n"] % 2:
            raise InfeasibleError("n of 2 can't be met", 3.0)
        return [{"n": start["n"] // 2}]

    search.require_way([{"n": 5}], find, 1)
    assert not asked
    search.require_way([{"n": 5}, {"n": 4}], find, 3)
    assert asked == [(2, 5), (2, 4), (3, 2)]
    with pytest.raises(InfeasibleError, match=r"n of 2 can't be met \(what stage 3 of 4 is to reach; fewer") as no:
        search.require_way([{"n": 6}, {"n": 5}], find, 4)
    assert no.value.reachable is None
    with pytest.raises(InfeasibleError, match="stage 2 of 2") as no:
        search.require_way([{"n": 5}], find, 2)
    assert no.value.reachable == 3.0
    search.require_way([{"n": n} for n in range(1, 500, 2)], find, 2)  # it takes too long to tell


def test_the_nearest_below_is_of_the_first_measure():
    axes = {"a": [2, 4, 8], "b": [2, 4, 8]}

    def cost(shape):
        return {"params": 100.0 * shape["a"] * shape["b"], "kv": 10.0 * shape["a"]}

    found = search.nearest_under(axes, cost, {"params": 3100.0}, tolerance=0.01)
    assert found == [{"a": 2, "b": 8}, {"a": 4, "b": 4}, {"a": 8, "b": 2}]
    with pytest.raises(InfeasibleError, match="kv of 15 can't be met"):
        search.nearest_under(axes, cost, {"params": 3000.0, "kv": 15.0})
