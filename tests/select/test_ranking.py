import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.select import ranking
from secateur.vocabulary import Budget, Limit, Site, Units


def one(count, **options) -> Units:
    options.setdefault("cost", {"units": np.ones(count)})
    return Units({"site": Site("site", count, **options)})


@st.composite
def problems(draw):
    """One to three sites with random rules, costs and scores."""
    sites, scores = {}, {}
    for number in range(draw(st.integers(1, 3))):
        name = f"layers.{number}.{draw(st.sampled_from(['a', 'b']))}"
        groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 6))
        count = groups * size
        rng = np.random.default_rng(draw(st.integers(0, 10_000)))
        sites[name] = Site(
            name,
            count,
            cost={"tokens": rng.integers(0, 9, count)},
            table={"seconds": np.sort(rng.random(count + 1))},
            group=rng.permutation(np.arange(count) % groups) if groups > 1 else None,
            fixed=rng.random(count) < 0.15 if draw(st.booleans()) else None,
            coupled=np.arange(count) // 2 if groups == 1 and draw(st.booleans()) else None,
            multiple=draw(st.sampled_from([1, 1, 2, 4])),
            minimum=draw(st.integers(0, 2)),
        )
        scores[name] = rng.integers(0, 5, count) / 4 if draw(st.booleans()) else rng.standard_normal(count)
    return Units(sites), scores


@given(problems(), st.floats(0.05, 1.0), st.sampled_from(["global", "kind", "local"]))
@settings(max_examples=150, deadline=None)
def test_never_over_budget_and_every_rule_holds(problem, share, scope):
    units, scores = problem
    budget = Budget.parse(f"tokens={share},seconds={share}")
    whole = units.cost()
    try:
        selection = ranking.by_budget(units, scores, budget, scope=scope)
    except InfeasibleError as error:
        reachable = error.reachable
    else:
        reachable = None
    if reachable is not None:
        assert reachable > share * min(whole.values()) - 1e-9
        return
    cost = units.cost(selection.keep)
    assert all(cost[m] <= limit for m, limit in budget.absolute(whole).items())
    assert selection.spent == pytest.approx(cost)
    for name, site in units.sites.items():
        keep = selection.keep[name]
        kept = int(keep.sum())
        if kept == site.count:
            continue
        assert kept % site.multiple == 0
        assert kept >= site.minimum
        if site.fixed is not None:
            assert keep[site.fixed].all()
        if site.group is not None:
            assert len({int(keep[site.group == g].sum()) for g in np.unique(site.group)}) == 1
        if site.coupled is not None:
            assert all(len(set(keep[site.coupled == c])) == 1 for c in site.coupled)


@given(problems(), st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.sampled_from(["global", "kind", "local"]))
@settings(max_examples=100, deadline=None)
def test_a_larger_budget_keeps_a_superset(problem, one_share, other_share, scope):
    units, scores = problem
    small, large = sorted([one_share, other_share])
    try:
        less = ranking.by_budget(units, scores, f"tokens={small}", scope=scope)
    except InfeasibleError:
        return
    more = ranking.by_budget(units, scores, f"tokens={large}", scope=scope)
    assert all((more.keep[name] | ~less.keep[name]).all() for name in units)


@given(problems(), st.sampled_from(["global", "local"]))
@settings(max_examples=100, deadline=None)
def test_what_a_refusal_says_can_be_reached_is_not_refused(problem, scope):
    units, scores = problem
    for measure in units.cost():
        try:
            ranking.by_budget(units, scores, Budget((Limit(measure, 1e-6),)), scope=scope)
        except InfeasibleError as error:
            told = float(re.search(r"can go down to ([0-9.]+),", str(error))[1])
            found = ranking.by_budget(units, scores, Budget((Limit(measure, told),)), scope=scope)
            assert found.spent[measure] <= told


@given(problems(), st.integers(1, 3), st.floats(0.05, 1.0), st.sampled_from(["global", "local"]))
@settings(max_examples=100, deadline=None)
def test_evened_sites_keep_equally_many_and_as_many_as_fit(problem, copies, share, scope):
    units, scores = problem
    rng = np.random.default_rng(copies)
    for name, site in list(units.sites.items()):
        for number in range(1, copies):
            units.sites[f"{number}.{name}"] = replace(site, name=f"{number}.{name}")
            scores[f"{number}.{name}"] = rng.permutation(scores[name])
    budget = Budget.parse(f"tokens={share},seconds={share}")
    limits = budget.absolute(units.cost())
    try:
        keep = ranking.by_budget(units, scores, budget, scope=scope).keep
    except InfeasibleError:
        return
    evened = ranking.even_out(units, scores, keep, budget)

    def fits(masks):
        cost = units.cost(masks)
        return all(cost[measure] <= limit for measure, limit in limits.items())

    assert fits(evened.keep)
    assert evened.spent == units.cost(evened.keep)
    levels = {n: [int(m.sum()) for m in ranking_levels(units, scores, n)] for n in units}
    groups = {}
    for name, site in units.sites.items():
        groups.setdefault((site.kind, site.count), []).append(name)
    for names in groups.values():
        common = sorted(set.intersection(*(set(levels[name]) for name in names)))
        if min(common) > min(int(keep[name].sum()) for name in names):
            continue  # their rules have no such count in common
        (count,) = {int(evened.keep[name].sum()) for name in names}
        more = [level for level in common if level > count][:1]
        assert not more or not fits(dict(evened.keep) | {
            name: next(m for m in ranking_levels(units, scores, name) if m.sum() == more[0]) for name in names
        })  # fmt: skip


def test_of_units_of_which_one_must_stay_the_best_does():
    units = Units({"a": Site("a", 5, {"units": np.ones(5)}, fixed=np.arange(5) == 4)})
    scores = {"a": np.array([0.1, 0.3, 0.3, 0.2, 0.0])}
    best = ranking.fix_best(units, scores, "a", [(0, 3), (1, 2), (0, 4)])
    assert best["a"].fixed.tolist() == [False, True, False, True, True]
    assert ranking.fix_best(units, scores, "a", []) is units


def ranking_levels(units, scores, name):
    """The selections of one site, largest first, as shares of it ask for them."""
    site = units[name]
    found = [ranking.by_shares(units, scores, {name: kept / site.count})[name] for kept in range(site.count + 1)]
    return [np.ones(site.count, bool), *found]


def test_evened_sites_fill_the_budget():
    """Those that keep least set the pace of all, and what the others gave stayed unused."""
    sizes = {"a.same": 12, "b.same": 12, "c.other": 10}
    units = Units({name: Site(name, size, {"units": np.ones(size)}) for name, size in sizes.items()})
    scores = {name: np.arange(float(size)) for name, size in sizes.items()}
    keep = {name: scores[name] >= least for name, least in zip(sizes, (10, 0, 10), strict=True)}
    evened = ranking.even_out(units, scores, keep, "units=15")
    assert [int(evened.keep[name].sum()) for name in units] == [5, 5, 5]
    held = ranking.even_out(units, scores, keep, "units=15", held=["a.same"])
    assert [int(held.keep[name].sum()) for name in units] == [2, 2, 10]


def test_what_a_site_of_large_steps_leaves_of_a_budget_the_others_fill():
    units = Units({
        "coarse": Site("coarse", 3, {"units": np.full(3, 20.0)}), "fine": Site("fine", 30, {"units": np.ones(30)}),
    })  # fmt: skip
    scores = {name: np.arange(float(site.count)) for name, site in units.sites.items()}
    keep = ranking.by_budget(units, scores, "units=65", scope="local").keep
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"coarse": 2, "fine": 21}
    filled = ranking.fill_up(units, scores, keep, "units=69")
    assert {name: int(mask.sum()) for name, mask in filled.keep.items()} == {"coarse": 2, "fine": 29}
    assert filled.spent == {"units": 69.0}
    assert all(mask[-1] for mask in filled.keep.values()), "the best stay"
    held = ranking.fill_up(units, scores, keep, "units=69", held=["fine"])
    assert int(held.keep["fine"].sum()) == 21


@given(problems(), st.floats(0.05, 1.0), st.sampled_from(["global", "local"]))
@settings(max_examples=60, deadline=None)
def test_a_filled_budget_holds_keeps_what_was_kept_and_has_no_room_for_more(problem, share, scope):
    units, scores = problem
    budget = Budget.parse(f"tokens={share},seconds={share}")
    limits = budget.absolute(units.cost())
    try:
        keep = ranking.by_budget(units, scores, budget, scope=scope).keep
    except InfeasibleError:
        return
    filled = ranking.fill_up(units, scores, keep, budget)
    assert filled.spent == units.cost(filled.keep)
    assert all(filled.spent[measure] <= limit for measure, limit in limits.items())
    for name in keep:
        assert not (np.asarray(keep[name]) & ~np.asarray(filled.keep[name])).any()
        count = int(filled.keep[name].sum())
        more = [level for level in ranking_levels(units, scores, name) if level.sum() > count]
        if more:
            cost = units.cost({**filled.keep, name: min(more, key=np.sum)})
            assert any(cost[measure] > limit for measure, limit in limits.items())


@given(problems())
@settings(max_examples=50, deadline=None)
def test_a_full_budget_is_the_identity(problem):
    units, scores = problem
    assert all(keep.all() for keep in ranking.by_budget(units, scores, "tokens=100%,seconds=100%").keep.values())


@given(problems(), st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_numpy_and_torch_agree(problem, share):
    units, scores = problem
    tensors = {name: torch.as_tensor(np.array(column)) for name, column in scores.items()}
    try:
        mine = ranking.by_budget(units, scores, f"seconds={share}")
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            ranking.by_budget(units, tensors, f"seconds={share}")
        return
    theirs = ranking.by_budget(units, tensors, f"seconds={share}")
    for name in units:
        assert isinstance(mine.keep[name], np.ndarray)
        assert isinstance(theirs.keep[name], torch.Tensor)
        assert theirs.keep[name].dtype == torch.bool
        assert (mine.keep[name] == theirs.keep[name].numpy()).all()
    assert mine.spent == theirs.spent


@given(st.integers(1, 40), st.data())
@settings(max_examples=80, deadline=None)
def test_by_counts_is_exact_and_keeps_the_best(count, data):
    wanted = data.draw(st.integers(0, count))
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)))
    keep = ranking.by_counts(one(count), {"site": scores}, {"site": wanted}).keep["site"]
    assert keep.sum() == wanted
    # Ties keep the lower index: the kept are the first in the order (score down, index up).
    assert sorted(np.flatnonzero(keep)) == sorted(sorted(range(count), key=lambda i: (-scores[i], i))[:wanted])


def test_by_budget_walks_the_ranking_of_by_counts():
    scores = {"site": torch.tensor([0.3, 0.1, 0.9, 0.1, 0.5])}
    by_cost = ranking.by_budget(one(5), scores, "units=3")
    by_count = ranking.by_counts(one(5), scores, {"site": 3})
    assert by_cost.keep["site"].tolist() == by_count.keep["site"].tolist() == [True, False, True, False, True]
    assert by_count.spent == {"units": 3.0}


def test_counts_by_kind_and_by_name():
    units = Units({f"layers.{i}.heads": Site(f"layers.{i}.heads", 4) for i in range(3)})
    scores = {name: np.arange(4.0) for name in units}
    keep = ranking.by_counts(units, scores, {"heads": 2, "layers.1.heads": 1}).keep
    assert [int(mask.sum()) for mask in keep.values()] == [2, 1, 2]


def test_groups_keep_equally_many_each():
    group = np.array([0, 0, 0, 1, 1, 1])
    scores = {"site": np.array([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])}
    keep = ranking.by_counts(one(6, group=group), scores, {"site": 4}).keep["site"]
    assert keep.tolist() == [True, True, False, False, True, True]
    with pytest.raises(InfeasibleError, match="equally many in each of 2 groups") as refused:
        ranking.by_counts(one(6, group=group), scores, {"site": 3})
    assert refused.value.reachable in (2, 4)


def test_groups_of_unequal_size_are_balanced_by_the_smallest():
    units = one(5, group=np.array([0, 0, 0, 0, 1]))
    keep = ranking.by_budget(units, {"site": np.array([1.0, 2, 3, 4, 5])}, "units=4").keep["site"]
    assert keep.tolist() == [False, False, False, True, True]


def test_coupled_units_share_one_fate_by_their_mean():
    units = one(5, coupled=np.array([0, 1, 0, 1, 2]))
    scores = {"site": np.array([1.0, 0.4, 0.0, 0.7, 0.52])}
    assert ranking.by_counts(units, scores, {"site": 2}).keep["site"].tolist() == [False, True, False, True, False]
    with pytest.raises(InfeasibleError, match="coupled units together"):
        ranking.by_counts(units, scores, {"site": 1})
    apart = one(2, coupled=np.array([0, 0]), group=np.array([0, 1]))
    with pytest.raises(InputError, match="coupled units lie in different groups"):
        ranking.by_counts(apart, {"site": np.zeros(2)}, {"site": 0})


def test_fixed_units_stay_whatever_their_score():
    fixed = np.array([True, False, False, False])
    keep = ranking.by_counts(one(4, fixed=fixed), {"site": np.arange(4.0)}, {"site": 2}).keep["site"]
    assert keep.tolist() == [True, False, False, True]
    with pytest.raises(InfeasibleError) as refused:
        ranking.by_counts(one(4, fixed=fixed), {"site": np.arange(4.0)}, {"site": 0})
    assert refused.value.reachable == 1


def test_multiples_count_what_stays():
    scores = {"site": np.arange(20.0)}
    assert ranking.by_budget(one(20, multiple=8), scores, "units=19").spent == {"units": 16.0}
    assert ranking.by_budget(one(20, multiple=8), scores, "units=20").spent == {"units": 20.0}
    assert ranking.by_budget(one(20, multiple=8), scores, "units=7").spent == {"units": 0.0}
    with pytest.raises(InfeasibleError) as refused:
        ranking.by_budget(one(20, multiple=8, minimum=8), scores, "units=7")
    assert refused.value.reachable == 8
    assert "units can go down to 8, the limit is 7" in str(refused.value)


def test_scopes_and_normalisation():
    units = Units({name: Site(name, 4, cost={"n": np.ones(4)}) for name in ("0.a", "1.a", "0.b")})
    scores = {"0.a": np.array([1.0, 2, 3, 4]), "1.a": np.array([10.0, 20, 30, 40]), "0.b": np.array([5.0, 6, 7, 8])}

    def kept(**how):
        return [int(mask.sum()) for mask in ranking.by_budget(units, scores, "n=6", **how).keep.values()]

    assert kept() == [0, 4, 2]
    assert kept(scope="local") == [2, 2, 2]
    assert kept(scope="kind") == [0, 4, 2]
    assert kept(normalise="max") == [2, 2, 2] or kept(normalise="max") == [1, 1, 4]
    assert kept(normalise="rank") == [2, 2, 2]
    for how in ("l2", "mean", "zscore"):  # 1.a is 0.a times ten: no norm may tell them apart
        a, b, _ = kept(normalise=how)
        assert abs(a - b) <= 1
    with pytest.raises(InputError, match="scope 'layer' is not one of global, kind, local"):
        kept(scope="layer")
    with pytest.raises(InputError, match="normalise 'l3' is not one of"):
        kept(normalise="l3")


def test_threshold_keeps_all_that_reach_it():
    scores = {"site": torch.tensor([0.3, 0.1, 0.9, 0.5])}
    assert ranking.threshold(one(4), scores, 0.3).keep["site"].tolist() == [True, False, True, True]
    assert ranking.threshold(one(4), scores, 2.0).keep["site"].tolist() == [False] * 4
    assert ranking.threshold(one(4, minimum=1), scores, 2.0).keep["site"].tolist() == [False, False, True, False]
    assert ranking.threshold(one(4, multiple=2), scores, 0.5).spent == {"units": 2.0}
    assert ranking.threshold(one(4, multiple=2), scores, 0.3).spent == {"units": 4.0}


def test_bad_scores_are_refused_by_name():
    for bad in (np.nan, np.inf):
        with pytest.raises(NumericalError, match="unit 1 of site is"):
            ranking.by_counts(one(2), {"site": torch.tensor([1.0, bad])}, {"site": 1})
    with pytest.raises(InputError, match="site has no scores"):
        ranking.by_budget(one(2), {}, "units=1")
    with pytest.raises(InputError, match=r"site has 2 units, but scores of shape \(3,\)"):
        ranking.by_budget(one(2), {"site": np.zeros(3)}, "units=1")


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="counts name 'neurons'"):
        ranking.by_counts(one(2), {"site": np.zeros(2)}, {"neurons": 1})
    with pytest.raises(InputError, match="every site is frozen"):
        ranking.by_counts(one(2).only("neurons"), {"site": np.zeros(2)}, {"site": 1})
    with pytest.raises(BudgetError, match="n_of_m"):
        ranking.by_budget(one(2), {"site": np.zeros(2)}, "pattern=2:4")
    with pytest.raises(BudgetError, match="latency has no cost here"):
        ranking.by_budget(one(2), {"site": np.zeros(2)}, "speedup=2x")


def test_frozen_sites_stay_whole_and_need_no_scores():
    units = Units({"a": Site("a", 2, cost={"n": np.ones(2)}), "b": Site("b", 2, cost={"n": np.ones(2)}, frozen=True)})
    selection = ranking.by_budget(units, {"a": np.array([0.0, 1.0])}, "n=3")
    assert set(selection.keep) == {"a"}
    with pytest.raises(InfeasibleError) as refused:
        ranking.by_budget(units, {"a": np.zeros(2)}, "n=25%")
    assert refused.value.reachable == 2


def test_low_precision_and_gradient_tensors_are_read():
    scores = {"site": torch.tensor([0.25, 2.0, 1.0], dtype=torch.bfloat16, requires_grad=True)}
    assert ranking.by_counts(one(3), scores, {"site": 1}).keep["site"].tolist() == [False, True, False]


@given(problems(), st.floats(0.05, 1.0), st.sampled_from(["global", "kind", "local"]))
@settings(max_examples=60, deadline=None)
def test_named_scopes_are_mappings_to_pools(problem, share, scope):
    units, scores = problem
    pools = {
        name: {"global": "all", "kind": f"kind {site.kind}", "local": name}[scope] for name, site in units.sites.items()
    }
    try:
        named = ranking.by_budget(units, scores, f"tokens={share}", scope=scope)
    except InfeasibleError:
        return
    mapped = ranking.by_budget(units, scores, f"tokens={share}", scope=pools)
    assert all((mapped.keep[name] == named.keep[name]).all() for name in units)


def test_a_pool_ranks_its_sites_together_and_the_others_stand_alone():
    units = Units({name: Site(name, 4, cost={"n": np.ones(4)}) for name in ("0.a", "1.a", "2.a", "3.a")})
    scores = {name: 10.0**i * np.arange(1.0, 5) for i, name in enumerate(units)}

    def kept(scope):
        return [int(mask.sum()) for mask in ranking.by_budget(units, scores, "n=8", scope=scope).keep.values()]

    assert kept("global") == [0, 0, 4, 4]
    assert kept({"0.a": "early", "1.a": "early", "2.a": "late", "3.a": "late"}) == [0, 4, 0, 4]
    assert kept({"0.a": "early", "1.a": "early"}) == [0, 4, 2, 2]
    assert kept({}) == [2, 2, 2, 2]
    with pytest.raises(InputError, match=r"scope names '9\.a', which is no site"):
        kept({"9.a": "early"})


def test_every_site_loses_the_same_share_of_what_it_has_whatever_its_rules_keep():
    """A site of two of which one has to stay loses that one at a half, not after all others have lost all they may."""
    rules = {"heads": {"minimum": 1}, "width": {"minimum": 1}, "blocks": {"multiple": 8, "minimum": 8}}
    counts = {"heads": 2, "width": 32, "blocks": 16}
    units = Units({name: Site(name, counts[name], cost={"n": np.ones(counts[name])}, **rules[name]) for name in counts})
    scores = {name: np.arange(float(count)) for name, count in counts.items()}

    def kept(budget, scope):
        return [int(mask.sum()) for mask in ranking.by_budget(units, scores, budget, scope=scope).keep.values()]

    assert kept("n=50%", "local") == kept("n=50%", {}) == [1, 16, 8]
    assert kept("n=75%", "local") == [2, 19, 16]  # the steps of the others are half of them, and 37 may stay
    assert kept("n=30%", "local") == [1, 6, 8]


def test_thresholds_may_differ_from_site_to_site():
    units = Units({name: Site(name, 3, cost={"n": np.ones(3)}) for name in ("a", "b", "c")})
    scores = {name: np.array([1.0, 2.0, 3.0]) for name in units}
    keep = ranking.threshold(units, scores, {"a": 2.0, "b": 3.0}).keep
    assert [int(keep[name].sum()) for name in units] == [2, 1, 3]
    with pytest.raises(InputError, match="value names 'd'"):
        ranking.threshold(units, scores, {"d": 2.0})


def test_what_does_not_add_up_is_measured_until_it_fits():
    """Each unit takes one more in truth than was foretold, beside 3 that no unit has."""
    units, scores = one(10), {"site": np.arange(10.0)}
    asked = []

    def measure(keep):
        asked.append(int(keep["site"].sum()))
        return {"units": 2.0 * asked[-1] + 3}

    selection = ranking.by_budget(units, scores, "units=9", measure=measure)
    assert selection.keep["site"].tolist() == [False] * 7 + [True] * 3
    assert selection.spent == {"units": 9.0}
    assert asked == [9, 8, 7, 6, 5, 4, 3]
    with pytest.raises(InfeasibleError, match="measured at 3 with the fewest") as error:
        ranking.by_budget(units, scores, "units=2", measure=measure)
    assert error.value.reachable == 3.0


def test_what_is_measured_to_cost_less_than_its_parts_comes_back():
    """Ten units of 3 are measured at 2 each: nine of them fit into 18, where their sum of 27 does not."""
    units = Units({"page": Site("page", 10, {"tokens": np.full(10, 3.0)})})
    scores = {"page": np.arange(10.0)}
    selection = ranking.by_budget(
        units, scores, "tokens=18", measure=lambda keep: {"tokens": 2.0 * float(keep["page"].sum())}
    )
    assert selection.keep["page"].tolist() == [False] + [True] * 9
    assert selection.spent["tokens"] == 18.0


def test_the_fewest_keep_every_rule_and_no_budget_goes_below_them():
    sites = {
        "a": Site("a", 8, {"channels": np.ones(8)}, multiple=4, minimum=1),
        "b": Site("b", 6, {"channels": np.ones(6)}, minimum=2),
        "c": Site("c", 5, {"channels": np.ones(5)}, frozen=True),
    }
    units = Units(sites)
    found = ranking.fewest(units)
    assert {name: int(np.sum(mask)) for name, mask in found.keep.items()} == {"a": 4, "b": 2}
    assert found.spent == {"channels": 11.0}
    scores = {"a": np.arange(8.0), "b": np.arange(6.0)}
    assert ranking.by_budget(units, scores, "channels=11").spent == found.spent
    with pytest.raises(InfeasibleError):
        ranking.by_budget(units, scores, "channels=10")
    assert ranking.fewest(units, {"a": 5, "b": 1}).spent == {"channels": 8.0 + 2 + 5}
    assert ranking.fewest(units, {"a": 99, "b": 99}).spent == units.cost()
