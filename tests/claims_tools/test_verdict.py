"""The one rule of verdicts, and intervals where only means and intervals of the arms are known."""

import pytest
from scipy import stats

from claims._lab.claim import least_favourable
from claims._lab.verdict import compare, judge, welch
from secateur.measure import statistics
from secateur.vocabulary import Figure


def interval(low: float | None, high: float | None) -> Figure:
    return Figure(0.0 if low is None or high is None else (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.1, 0.3, 0.0, "holds"),
        (-0.1, 0.3, 0.0, "undecided"),
        (-0.3, -0.1, 0.0, "refuted"),
        (0.0, 0.0, 0.0, "undecided"),
        (0.0, 0.0, 0.5, "holds"),
        (-0.4, 0.3, 0.5, "holds"),
        (-0.5, 0.3, 0.5, "holds"),
        (-0.6, 0.3, 0.5, "undecided"),
        (-0.9, -0.6, 0.5, "refuted"),
        (2.5, 3.0, -2.0, "holds"),
        (1.5, 3.0, -2.0, "undecided"),
        (0.5, 1.5, -2.0, "refuted"),
        (None, None, 9.0, "undecided"),
    ],
)
def test_the_interval_decides(low, high, margin, verdict):
    assert judge(interval(low, high), "higher", margin) == verdict
    mirrored = interval(None if high is None else -high, None if low is None else -low)
    assert judge(mirrored, "lower", margin) == verdict


def test_a_mean_on_the_claimed_side_is_no_verdict():
    difference = compare([1.0, 3.0, 0.5], [0.9, 1.0, 0.6])
    assert difference.value > 0
    assert judge(difference, "higher") == "undecided"
    assert judge(compare([1.0], [0.0]), "higher") == "undecided", "one seed has no interval"


def test_welch_from_intervals_is_welch_from_values():
    ours, baseline = [1.0, 1.4, 1.1, 1.6], [0.7, 0.2, 0.9]
    difference = welch(statistics.mean_interval(ours), statistics.mean_interval(baseline))
    expected = stats.ttest_ind(ours, baseline, equal_var=False).confidence_interval()
    assert difference.low == pytest.approx(expected.low)
    assert difference.high == pytest.approx(expected.high)


def test_welch_of_a_constant_and_of_an_arm_without_an_interval():
    ours = statistics.mean_interval([1.0, 2.0, 3.0])
    constant = Figure(1.0, 1.0, 1.0, samples=3)
    difference = welch(ours, constant)
    assert difference.low == pytest.approx(ours.low - 1.0)
    assert welch(constant, constant).high == 0.0
    assert welch(ours, Figure(1.0)).low is None


def test_of_several_pairs_the_one_that_speaks_least_for_ours_is_judged():
    pairs = {("a", "b"): interval(0.1, 0.3), ("a", "c"): interval(-0.1, 0.9), ("a", "d"): interval(0.2, 0.4)}
    assert least_favourable(pairs, "higher", 0.0) == ("a", "c"), "undecided, though its mean is the largest"
    assert least_favourable(pairs | {("a", "e"): interval(-0.9, -0.8)}, "higher", 0.0) == ("a", "e")
    assert least_favourable({("a", "b"): interval(0.1, 0.3), ("a", "d"): interval(0.2, 0.4)}, "lower", 0.0) == (
        "a",
        "d",
    )
