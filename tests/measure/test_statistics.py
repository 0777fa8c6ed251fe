"""Intervals cover what they claim to cover, and say None where they can't."""

import math

import numpy as np
import pytest
from scipy import stats

from secateur.errors import MeasurementError
from secateur.measure import statistics
from secateur.vocabulary import Figure


def test_median_interval_is_the_order_statistics_known_for_twenty():
    figure = statistics.median_interval(np.arange(1, 21)[::-1], unit="s")
    assert (figure.value, figure.low, figure.high) == (10.5, 6.0, 15.0)
    assert (figure.unit, figure.samples) == ("s", 20)


@pytest.mark.parametrize("n", [6, 7, 20, 51])
def test_median_interval_has_the_widest_index_that_reaches_the_confidence(n):
    figure = statistics.median_interval(np.arange(1, n + 1))
    k = int(figure.low)
    assert 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95


def test_median_interval_covers_a_skewed_median_in_95_of_100():
    rng = np.random.default_rng(0)
    hits = 0
    for sample in rng.lognormal(size=(2000, 20)):
        figure = statistics.median_interval(sample)
        hits += figure.low <= 1.0 <= figure.high
    assert 0.945 <= hits / 2000 <= 0.975


def test_five_values_carry_no_95_percent_median():
    figure = statistics.median_interval([1, 2, 3, 4, 5])
    assert figure.value == 3
    assert figure.low is None
    assert figure.high is None


def test_mean_interval_is_students():
    values = [1.0, 2.0, 4.0]
    figure = statistics.mean_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert figure.low == pytest.approx(low)
    assert figure.high == pytest.approx(high)
    assert statistics.mean_interval([3.0]).low is None


def test_pairing_shows_a_gain_that_seeds_hide():
    seeds = np.array([10.0, 20.0, 30.0, 40.0])
    gain = np.array([0.9, 1.0, 1.1, 1.0])
    figure = statistics.paired_difference(seeds + gain, seeds)
    assert figure.value == pytest.approx(1.0)
    assert figure.low > 0
    assert stats.ttest_ind(seeds + gain, seeds).pvalue > 0.5


def test_ratio_is_geometric_and_symmetric():
    a, b = [2.0, 4.0, 9.0], [1.0, 2.0, 4.0]
    forward, backward = statistics.ratio(a, b), statistics.ratio(b, a)
    assert forward.value * backward.value == pytest.approx(1.0)
    assert forward.low * backward.high == pytest.approx(1.0)


def test_spearman_matches_scipy_with_ties_and_covers():
    x, y = [1, 2, 2, 3, 5, 8, 9], [2, 1, 4, 4, 5, 9, 7]
    figure = statistics.spearman(x, y)
    assert figure.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert figure.low < figure.value < figure.high <= 1.0


def test_pearson_matches_scipy_and_its_interval():
    x, y = [1.0, 2.0, 2.5, 3.0, 5.0, 8.0, 9.0], [2.0, 1.0, 4.0, 4.5, 5.0, 9.0, 7.0]
    figure, wanted = statistics.pearson(x, y), stats.pearsonr(x, y)
    assert figure.value == pytest.approx(wanted.statistic)
    assert (figure.low, figure.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))


def test_a_mean_per_item_weighs_groups_by_their_items():
    figure = statistics.per_item([2.0, 9.0], [1, 3])
    assert (figure.value, figure.samples) == (11 / 4, 2)
    equal, plain = statistics.per_item([2.0, 4.0, 9.0], [2, 2, 2]), statistics.mean_interval([1.0, 2.0, 4.5])
    assert (equal.value, equal.low, equal.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert statistics.per_item([3.0], [2]).low is None


def test_proportion_stays_inside_zero_and_one():
    figure = statistics.proportion(10, 10)
    assert figure.value == 1.0
    assert 0.6 < figure.low < figure.high <= 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.median_interval([]),
        lambda: statistics.mean_interval([1.0, math.nan]),
        lambda: statistics.paired_difference([1.0, 2.0], [1.0]),
        lambda: statistics.ratio([1.0, -1.0], [1.0, 1.0]),
        lambda: statistics.spearman([1, 1, 1, 1], [1, 2, 3, 4]),
        lambda: statistics.pearson([1, 2], [3, 4]),
        lambda: statistics.per_item([1.0, 0.0], [1, 0]),
        lambda: statistics.proportion(1, 0),
    ],
)
def test_a_sample_that_cannot_answer_is_refused(call):
    with pytest.raises(MeasurementError):
        call()


def test_shares_in_percent():
    assert statistics.to_percent(Figure(0.5, 0.25, 0.75, "", 8)) == Figure(50.0, 25.0, 75.0, "", 8)
    assert statistics.to_percent(Figure(-0.5)) == Figure(-50.0)


# ------------------------------------------------------------------------------------------------------ paired items


def test_mcnemar_counts_only_what_differs():
    first = [1] * 30 + [1] * 9 + [0] * 1 + [0] * 10
    second = [1] * 30 + [0] * 9 + [1] * 1 + [0] * 10
    assert statistics.mcnemar(first, second) == pytest.approx(22 / 1024)  # 2 (1 + 10) / 2^10
    assert statistics.mcnemar(first, second) == statistics.mcnemar(second, first)
    assert statistics.mcnemar(first, first) == 1.0
    with pytest.raises(MeasurementError, match="right or wrong"):
        statistics.mcnemar([0.5, 1], [1, 0])
    with pytest.raises(MeasurementError, match="needs pairs"):
        statistics.mcnemar([1, 0], [1])


def test_flips_see_what_accuracy_does_not():
    figure = statistics.flips(["a", "b", "c", "d"], ["b", "a", "c", "d"])
    assert figure.value == 0.5
    assert figure.low < 0.5 < figure.high
    with pytest.raises(MeasurementError, match="flips need pairs"):
        statistics.flips(["a"], [])


def test_a_bootstrap_covers_the_mean_in_95_of_100():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(150):
        sample = rng.exponential(size=60)
        figure = statistics.paired_bootstrap(sample, np.zeros(60))
        hits += figure.low <= 1.0 <= figure.high
    assert 0.86 <= hits / 150 <= 0.99
    assert statistics.bootstrap(np.mean, [1.0]).low is None
    assert statistics.bootstrap(lambda x: math.nan, [1.0, 2.0, 3.0]).low is None
    with pytest.raises(MeasurementError, match="samples of one size"):
        statistics.bootstrap(lambda x, y: 0.0, [1, 2], [1, 2, 3])


# --------------------------------------------------------------------------------------- a proxy and what it stands for


def test_kendall_is_scipys_and_tells_its_interval():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 60)
    y = x + rng.normal(size=60)
    figure = statistics.kendall(x, y)
    assert figure.value == pytest.approx(stats.kendalltau(x, y).statistic)
    assert figure.low < figure.value < figure.high
    plain = statistics.bootstrap(lambda a, b: stats.kendalltau(a, b).statistic, x, y)
    assert (figure.low, figure.high) == pytest.approx((plain.low, plain.high)), "all draws at once, or one by one"
    order = rng.permutation(60)
    assert statistics.kendall(x[order], y[order]).value == pytest.approx(figure.value)
    assert statistics.kendall(x, x).value == pytest.approx(1.0)
    taus = [stats.kendalltau(rng.random(45), rng.random(45)).statistic for _ in range(2000)]
    assert np.std(taus) == pytest.approx(statistics.kendall_deviation(45), rel=0.06)


def test_p_values_tell_chance_from_more():
    rng = np.random.default_rng(0)
    x, chance = rng.random(40), rng.random(40)
    assert all(p < 1e-6 for p in statistics.independence(x, x**3).values())
    found = [statistics.independence(rng.random(20), rng.random(20)) for _ in range(300)]
    for kind in ("kendall", "spearman", "pearson"):
        assert np.mean([one[kind] < 0.05 for one in found]) == pytest.approx(0.05, abs=0.03)
    order = rng.permutation(40)
    assert statistics.independence(x[order], chance[order]) == pytest.approx(statistics.independence(x, chance))
    with pytest.raises(MeasurementError, match="3 pairs that differ"):
        statistics.independence([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])


def test_anomalies_are_those_that_beat_the_proxy_s_pick():
    x = np.arange(8.0)
    assert statistics.anomaly_ratio(x, -x) == 0.0
    assert statistics.anomaly_ratio(x, x) == pytest.approx(7 / 8)
    assert statistics.counterexample_ratio(x, -x) == 0.0
    assert statistics.counterexample_ratio(x, x) == 1.0
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    tau = stats.kendalltau(-a, b).statistic
    assert statistics.counterexample_ratio(a, b) == pytest.approx((1 - tau) / 2)
    with pytest.raises(MeasurementError, match="2 candidates"):
        statistics.counterexample_ratio([1], [1])


def test_a_permutation_test_tells_order_from_chance():
    draw = np.random.default_rng(0)
    first = draw.normal(size=30)
    assert statistics.permutation_p(first, -(first**3), draws=999) == 1 / 1000
    chance = [statistics.permutation_p(first, draw.normal(size=30), draws=199, seed=seed) for seed in range(40)]
    assert 0.3 < np.mean(chance) < 0.7
    assert min(chance) > 0.001
    with pytest.raises(MeasurementError, match="a permutation test needs 3 pairs that differ"):
        statistics.permutation_p([1, 1, 1], [1, 2, 3])
