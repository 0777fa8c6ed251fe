"""One share for all, thresholds per group, floors, merged masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select import thresholds
from secateur.vocabulary import Budget, Site, Units

DRAW = np.random.default_rng(0)


def layers(**counts: int) -> dict[str, list[np.ndarray]]:
    return {name: [DRAW.random(count)] for name, count in counts.items()}


def test_a_quantile_takes_exactly_its_share():
    values = DRAW.permutation(20) / 20
    theta = thresholds.quantile(values, 0.35)
    assert theta == np.sort(values)[7]
    assert (values < theta).sum() == 7
    assert thresholds.quantile(values, 0.0) == -np.inf
    for wrong in (1.0, -0.1):
        with pytest.raises(InputError, match="fraction"):
            thresholds.quantile(values, wrong)


COLUMNS = arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1, 1).map(lambda value: round(value, 2)))
PERCENT, FLOOR, MOST = st.floats(0, 100), st.floats(-1, 1), st.integers(0, 50)


@given(COLUMNS, PERCENT, FLOOR, MOST)
def test_what_stands_above_is_strictly_above_and_the_best_of_it(values, percentile, floor, most):
    keep = thresholds.above(values, percentile=percentile, floor=floor, most=most)
    assert keep.shape == values.shape
    assert keep.sum() <= most
    if not len(values):
        return
    passes = values > np.percentile(values, percentile)
    high = (passes if passes.any() else values == values.max()) & (values > floor)
    assert not (keep & ~high).any()
    assert keep.sum() == min(most, high.sum())
    if keep.any() and (high & ~keep).any():
        assert values[keep].min() >= values[high & ~keep].max()


@given(COLUMNS, PERCENT, PERCENT, FLOOR, FLOOR, MOST, MOST)
def test_lower_thresholds_and_more_room_take_nothing_away(values, one, other, low, high, few, many):
    small = thresholds.above(values, percentile=max(one, other), floor=max(low, high), most=min(few, many))
    large = thresholds.above(values, percentile=min(one, other), floor=min(low, high), most=max(few, many))
    assert not (small & ~large).any()


def test_even_percentile_0_leaves_out_the_least():
    values = np.array([0.3, 0.1, 0.2, 0.1])
    assert thresholds.above(values, percentile=0, floor=-1, most=9).tolist() == [True, False, True, False]
    assert thresholds.above(values, percentile=75, floor=0.5, most=9).sum() == 0
    assert thresholds.above(np.array([0.5, 0.1, 0.5]), percentile=75, floor=0, most=9).tolist() == [True, False, True]
    assert thresholds.above(np.array([0.7, 0.4]), percentile=90, floor=0.5, most=9, few=2).tolist() == [True, False]
    with pytest.raises(InputError, match="percentile=101"):
        thresholds.above(values, percentile=101, floor=0, most=1)
    with pytest.raises(InputError, match="most=-1"):
        thresholds.above(values, percentile=1, floor=0, most=-1)
    with pytest.raises(NumericalError, match="NaN"):
        thresholds.above(np.array([np.nan]), percentile=1, floor=0, most=1)


@pytest.mark.parametrize(("policy", "wanted"), [("majority", "1100"), ("union", "1110"), ("smallest", "1000")])
def test_masks_are_merged_by_policy(policy, wanted):
    masks = [np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])]
    assert "".join(map(str, thresholds.merge(masks, policy).astype(int))) == wanted
    with pytest.raises(InputError, match="merge"):
        thresholds.merge(masks, "none")  # type: ignore[arg-type]


def test_each_group_has_a_threshold_of_its_own():
    scores = layers(a=40, b=40, c=40)
    scores["c"][0] += 10  # one threshold for all would leave c whole
    groups = {"a": "early", "b": "early", "c": "late"}
    keep = thresholds.by_group(scores, groups, {"early": 0.5, "late": 0.75}, least=1)
    assert keep["c"].sum() == 10
    assert keep["a"].sum() + keep["b"].sum() == 40
    joined = np.concatenate([scores["a"][0], scores["b"][0]])
    assert np.array_equal(np.concatenate([keep["a"], keep["b"]]), joined >= np.sort(joined)[40])
    everything = thresholds.by_group(scores, groups, {"early": 0.0, "late": 0.0})
    assert all(bool(mask.all()) for mask in everything.values())
    with pytest.raises(InputError, match="'late'"):
        thresholds.by_group(scores, groups, {"early": 0.5})


def test_floors_hold():
    scores = layers(a=50, b=50)
    scores["a"][0] *= 0.01
    groups = {"a": "g", "b": "g"}
    assert thresholds.by_group(scores, groups, {"g": 0.6}, share=0.2)["a"].sum() == 10
    assert thresholds.by_group(scores, groups, {"g": 0.6}, share=0.0)["a"].sum() == 16
    assert thresholds.by_group(layers(a=6), groups, {"g": 0.9}, share=0.0)["a"].sum() == 6
    kept = thresholds.by_group(scores, groups, {"g": 0.6}, share=0.2)["a"]
    assert scores["a"][0][kept].min() >= scores["a"][0][~kept].max(), "its best stay"
    assert thresholds.by_group(scores, groups, {"g": 0.6}, share=0.22, multiple=8)["a"].sum() == 16


def test_joined_layers_share_one_mask():
    one, other = np.array([9.0, 8, 1, 2, 7, 3, 4, 5]), np.array([1.0, 8, 9, 2, 7, 3, 4, 5])
    keep = thresholds.by_group({"s": [one, other]}, {"s": "g"}, {"g": 0.5}, least=1, policy="smallest")
    assert keep["s"].sum() == 4
    union = thresholds.by_group({"s": [one, other]}, {"s": "g"}, {"g": 0.5}, least=1, policy="union")
    assert set(np.flatnonzero(union["s"])) == {0, 1, 2, 4, 7}


def units(**counts: int) -> Units:
    sites = {
        name: Site(name, count, {"channels": np.ones(count)}, multiple=1, minimum=1) for name, count in counts.items()
    }
    return Units(sites)


def test_a_uniform_cut_takes_the_same_share_of_every_layer():
    counts = {"a": 48, "b": 8, "c": 20}
    scores = {name: DRAW.random(count) for name, count in counts.items()}
    for ratio in (0.25, 0.5):
        found = thresholds.uniform(units(**counts), scores, f"channels={1 - ratio:.0%}")
        assert {name: int(mask.sum()) for name, mask in found.keep.items()} == {
            name: count - int(ratio * count) for name, count in counts.items()
        }
        for name, mask in found.keep.items():
            assert scores[name][mask].min() > scores[name][~mask].max()


def test_a_uniform_cut_is_never_over_budget_and_respects_floors_and_multiples():
    counts = {"a": 47, "b": 9, "c": 21}
    scores = {name: DRAW.random(count) for name, count in counts.items()}
    for share in (30, 50, 77, 100):
        found = thresholds.uniform(units(**counts), scores, f"channels={share}%")
        assert found.spent["channels"] <= share / 100 * 77 + 1e-9
    floored = thresholds.uniform(units(**counts), scores, "channels=40%", least=8)
    assert int(floored.keep["b"].sum()) == 8
    rounded = {name: Site(name, 48, {"channels": np.ones(48)}, multiple=8, minimum=8) for name in "ab"}
    found = thresholds.uniform(Units(rounded), {name: DRAW.random(48) for name in "ab"}, "channels=40%")
    assert [int(mask.sum()) for mask in found.keep.values()] == [16, 16]
    with pytest.raises(InfeasibleError, match="can go down to 24"):
        thresholds.uniform(units(**counts), scores, Budget.parse("channels=20%"), least=8)
