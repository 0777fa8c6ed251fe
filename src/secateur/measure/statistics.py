"""Intervals: of medians by order statistics, of means by Student's t; rank correlations; tests of paired items.

Items that two models answered are compared in pairs: `mcnemar`, `paired_bootstrap`, `flips`. Rank agreement of a proxy
with what it stands for: `kendall`, `independence`, `anomaly_ratio`, `counterexample_ratio`.

Every function takes plain sequences of numbers and returns a `Figure`. Where the sample is too small to carry an
interval at the asked confidence, `low` and `high` are None rather than a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from secateur.errors import MeasurementError
from secateur.vocabulary import Figure

Values = Sequence[float] | np.ndarray

__all__ = [
    "Values",
    "anomaly_ratio",
    "bootstrap",
    "counterexample_ratio",
    "fisher",
    "flips",
    "independence",
    "kendall",
    "kendall_deviation",
    "mcnemar",
    "mean_interval",
    "median_interval",
    "paired_bootstrap",
    "paired_difference",
    "pearson",
    "per_item",
    "permutation_p",
    "proportion",
    "ratio",
    "share_above",
    "spearman",
    "to_percent",
]


def _sample(values: Values, what: str) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size == 0:
        raise MeasurementError(f"{what} of no values was asked for: give at least one")
    if not np.isfinite(sample).all():
        raise MeasurementError(f"{what}: {int((~np.isfinite(sample)).sum())} of {sample.size} values are not finite")
    return sample


def median_interval(values: Values, *, confidence: float = 0.95, unit: str = "") -> Figure:
    """Median with the distribution-free interval of order statistics.

    With x(1) <= ... <= x(n), the interval [x(k), x(n+1-k)] covers the median with probability
    1 - 2 P(Binomial(n, 1/2) <= k-1), whatever the distribution; k is the largest that reaches `confidence`.
    Fewer than 6 values can't reach 95 %: the interval is then None.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    sample = np.sort(_sample(values, "a median"))
    n = sample.size
    k = int(stats.binom.ppf((1.0 - confidence) / 2.0, n, 0.5))
    low, high = (float(sample[k - 1]), float(sample[n - k])) if k >= 1 else (None, None)
    return Figure(float(np.median(sample)), low, high, unit, n)


def mean_interval(values: Values, *, confidence: float = 0.95, unit: str = "") -> Figure:
    """Mean with Student's interval: mean +- t(1 - alpha/2, n-1) s / sqrt(n). One value has no interval."""
    sample = _sample(values, "a mean")
    n = sample.size
    mean = float(sample.mean())
    if n < 2:
        return Figure(mean, None, None, unit, n)
    half = float(stats.t.ppf((1.0 + confidence) / 2.0, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Figure(mean, mean - half, mean + half, unit, n)


def _pairs(first: Values, second: Values, what: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _sample(first, what), _sample(second, what)
    if a.size != b.size:
        raise MeasurementError(f"{what} needs pairs: {a.size} values were given beside {b.size}")
    return a, b


def paired_difference(first: Values, second: Values, *, confidence: float = 0.95, unit: str = "") -> Figure:
    """Mean of first[i] - second[i] with Student's interval: i is a seed, and both ran under it.

    Pairing takes out what the seeds have in common (data order, initialisation), so a small gain can show.
    """
    a, b = _pairs(first, second, "a paired difference")
    return mean_interval(a - b, confidence=confidence, unit=unit)


def to_percent(share: Figure) -> Figure:
    """A share, such as an accuracy, in percent; a difference of two of them in percentage points."""
    low, high = (None if end is None else 100 * end for end in (share.low, share.high))
    return Figure(100 * share.value, low, high, "", share.samples)


def ratio(first: Values, second: Values, *, confidence: float = 0.95) -> Figure:
    """Geometric mean of first[i] / second[i] with Student's interval on the logarithms; both must be positive."""
    a, b = _pairs(first, second, "a ratio")
    if (a <= 0).any() or (b <= 0).any():
        raise MeasurementError("a ratio of means needs positive values: zero or negative ones were given")
    logs = mean_interval(np.log(a) - np.log(b), confidence=confidence)
    if logs.low is None or logs.high is None:
        return Figure(math.exp(logs.value), None, None, "x", logs.samples)
    return Figure(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), "x", logs.samples)


def per_item(sums: Values, counts: Values, *, confidence: float = 0.95, unit: str = "") -> Figure:
    """Mean over items that come in groups, such as the tokens of texts: sums[i] over the counts[i] items of group i.

    The groups are the sample, since items of one group are not independent: for the ratio R = sum_i s_i / sum_i n_i of
    n groups, var(R) = n / (n - 1) sum_i (s_i - R n_i)^2 / (sum_i n_i)^2, with Student's interval. `samples` are groups.
    """
    s, c = _pairs(sums, counts, "a mean per item")
    if (c <= 0).any():
        raise MeasurementError("a mean per item was asked for with a group of none: leave empty groups out")
    mean, n = float(s.sum() / c.sum()), s.size
    if n < 2:
        return Figure(mean, None, None, unit, n)
    variance = n / (n - 1) * float(((s - mean * c) ** 2).sum()) / float(c.sum()) ** 2
    half = float(stats.t.ppf((1.0 + confidence) / 2.0, n - 1)) * math.sqrt(variance)
    return Figure(mean, mean - half, mean + half, unit, n)


def proportion(successes: int, trials: int, *, confidence: float = 0.95) -> Figure:
    """successes / trials with Wilson's score interval, which stays inside [0, 1].

    Source: E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise MeasurementError(f"a proportion of {successes} in {trials} was asked for: trials must be at least 1")
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Figure(successes / trials, float(interval.low), float(interval.high), "", trials)


def fisher(rho: float, error: float, n: int, *, confidence: float = 0.95) -> Figure:
    """A correlation with the interval tanh(atanh(rho) +- z error); `error` is the standard error of atanh(rho)."""
    if not math.isfinite(error) or abs(rho) >= 1.0:
        return Figure(rho, None, None, "", n)
    half = float(stats.norm.ppf((1.0 + confidence) / 2.0)) * error
    return Figure(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), "", n)


def spearman(first: Values, second: Values, *, confidence: float = 0.95) -> Figure:
    """Spearman's rank correlation of independent pairs, ties by average rank.

    The interval is Fisher's with the variance (1 + rho^2 / 2) / (n - 3) of atanh(rho).

    Source: D. G. Bonett and T. A. Wright, Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations, Psychometrika 65 (2000).
    """
    a, b = _differing(first, second, "a rank correlation")
    rho = float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
    error = math.sqrt((1.0 + rho * rho / 2.0) / (a.size - 3)) if a.size > 3 else math.inf
    return fisher(rho, error, int(a.size), confidence=confidence)


def permutation_p(first: Values, second: Values, *, draws: int = 9999, seed: int = 0) -> float:
    """p of Spearman's correlation under permutations of the pairs, two-sided: (1 + #{|rho*| >= |rho|}) / (1 + draws).

    It assumes nothing of how either is distributed. Source: B. Phipson and G. K. Smyth, Permutation p-values should
    never be zero, SAGMB 9 (2010).
    """
    a, b = (stats.rankdata(values) for values in _differing(first, second, "a permutation test"))
    draw = np.random.default_rng(seed)
    a, b = a - a.mean(), b - b.mean()
    seen = abs(float(a @ b)) * (1 - 1e-12)
    larger = sum(abs(float(a @ draw.permutation(b))) >= seen for _ in range(draws))
    return (1 + larger) / (1 + draws)


def pearson(first: Values, second: Values, *, confidence: float = 0.95) -> Figure:
    """Pearson's correlation of independent pairs, with Fisher's interval: atanh(rho) has the variance 1 / (n - 3)."""
    a, b = _differing(first, second, "a correlation")
    rho = float(np.corrcoef(a, b)[0, 1])
    return fisher(rho, 1.0 / math.sqrt(a.size - 3) if a.size > 3 else math.inf, int(a.size), confidence=confidence)


def _differing(first: Values, second: Values, what: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _pairs(first, second, what)
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        raise MeasurementError(f"{what} needs 3 pairs that differ: {a.size} pairs were given")
    return a, b


# ------------------------------------------------------------------------------------------------------ paired items


def mcnemar(first: Values, second: Values) -> float:
    """p-value of "both are right equally often", from items that each answered right (1) or wrong (0), two-sided.

    Only items on which they differ count: of n of them k went the first's way, and p is that of k or further from n/2
    under Binomial(n, 1/2), exactly; 1 where they never differ. Raises `MeasurementError` for other values than 0 and 1.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12
    (1947), in its exact form.
    """
    a, b = _pairs(first, second, "McNemar's test")
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise MeasurementError("McNemar's test is of items that are right or wrong: give 1 and 0")
    ours, theirs = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return float(stats.binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def flips(first: Sequence[object], second: Sequence[object]) -> Figure:
    """Share of items on which two models gave other answers, with Wilson's interval; accuracy may stay the same.

    Source: Dutta et al., Accuracy is Not All You Need (arXiv 2407.09141).
    """
    if len(first) != len(second):
        raise MeasurementError(f"flips need pairs: {len(first)} answers were given beside {len(second)}")
    return proportion(sum(one != other for one, other in zip(first, second, strict=True)), len(first))


def bootstrap(
    statistic: Callable[..., float],
    *samples: Values,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    unit: str = "",
) -> Figure:
    """`statistic` of samples that belong together place by place, with its percentile interval over `resamples`.

    Places are drawn with replacement, the same ones of every sample; draws whose statistic is not finite (all alike,
    say) are left out, and the interval is None where more than half of them are.
    """
    columns = [_sample(one, "a bootstrap") for one in samples]
    n = columns[0].size
    if any(one.size != n for one in columns):
        raise MeasurementError(f"a bootstrap needs samples of one size: {', '.join(str(one.size) for one in columns)}")
    value, draw = float(statistic(*columns)), np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        places = draw.integers(0, n, n)
        found.append(float(statistic(*(one[places] for one in columns))))
    finite = np.asarray([one for one in found if math.isfinite(one)])
    if n < 2 or 2 * finite.size < resamples:
        return Figure(value, None, None, unit, n)
    low, high = np.quantile(finite, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Figure(value, float(low), float(high), unit, n)


def paired_bootstrap(first: Values, second: Values, *, confidence: float = 0.95, unit: str = "") -> Figure:
    """Mean of first[i] - second[i] over items, with the interval of `bootstrap`, for scores that are not normal."""
    a, b = _pairs(first, second, "a paired bootstrap")
    return bootstrap(lambda d: float(d.mean()), a - b, confidence=confidence, unit=unit)


# --------------------------------------------------------------------------------------- a proxy and what it stands for


def kendall(first: Values, second: Values, *, confidence: float = 0.95, resamples: int = 1000) -> Figure:
    """Kendall's tau-b, which allows for ties, with the interval of `bootstrap` over pairs.

    Source: M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).
    """
    a, b = _differing(first, second, "a rank correlation")

    def tau(x: np.ndarray, y: np.ndarray) -> float:
        return float(stats.kendalltau(x, y).statistic)

    n = int(a.size)
    if n > _MANY:
        return bootstrap(tau, a, b, confidence=confidence, resamples=resamples)
    # With w_i how often pair i was drawn, tau is w' M w of the signs, so that all draws are three products of matrices.
    signs = [np.sign(values[:, None] - values[None, :]) for values in (a, b)]
    draw = np.random.default_rng(0)
    often = np.stack([np.bincount(draw.integers(0, n, n), minlength=n) for _ in range(resamples)]).astype(np.float64)
    products = (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))
    top, left, right = (((often @ product) * often).sum(1) for product in products)
    finite = left * right > 0
    value = tau(a, b)
    if 2 * int(finite.sum()) < resamples:
        return Figure(value, None, None, "", n)
    found = top[finite] / np.sqrt(left[finite] * right[finite])
    low, high = np.quantile(found, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Figure(value, float(low), float(high), "", n)


_MANY = 2000
"""Pairs of which matrices of signs are no longer small."""


def kendall_deviation(n: int) -> float:
    """Deviation of tau of n pairs that have nothing to do with one another: sqrt(2 (2n + 5) / (9 n (n - 1)))."""
    if n < 2:
        raise MeasurementError(f"a rank correlation of {n} pairs was asked for: it needs at least 2")
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def independence(first: Values, second: Values) -> dict[str, float]:
    """p-value of "the two have nothing to do with one another", by kendall, spearman and pearson, two-sided.

    As `scipy.stats` computes them: exact for tau of few pairs without ties, else by its normal approximation.
    """
    a, b = _differing(first, second, "a rank correlation")
    tests = {"kendall": stats.kendalltau, "spearman": stats.spearmanr, "pearson": stats.pearsonr}
    return {name: float(test(a, b).pvalue) for name, test in tests.items()}


def anomaly_ratio(proxy: Values, outcome: Values) -> float:
    """Share of candidates with a better (higher) outcome than the one whose proxy is lowest, the first of equal ones.

    0 where the proxy picks the best; above 1/2 a candidate at random is the better pick. For an outcome that is better
    when low, such as a loss, give its negative. Source: arXiv 2412.00143.
    """
    a, b = _pairs(proxy, outcome, "an anomaly ratio")
    return share_above(b, b[int(np.argmin(a))])


def share_above(outcomes: Values, one: float) -> float:
    """Share of outcomes that are better (higher) than one, which need not be among them."""
    return float((np.asarray(outcomes) > one).mean())


def counterexample_ratio(proxy: Values, outcome: Values) -> float:
    """Share of pairs of candidates in which the lower proxy has the worse (lower) outcome, of all pairs.

    Pairs that are equal in either count as none. Without ties it is (1 - tau) / 2, tau of the negative proxy with the
    outcome. Source: arXiv 2412.00143.
    """
    a, b = _pairs(proxy, outcome, "a counterexample ratio")
    if a.size < 2:
        raise MeasurementError("a counterexample ratio needs 2 candidates")
    lower = np.sign(a[:, None] - a[None, :]) * np.sign(b[:, None] - b[None, :])
    above = np.triu_indices(a.size, 1)
    return float((lower[above] > 0).mean())
