"""Masks over single weights: exact counts, ties, every scope, NumPy = torch, and no sort for the global threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BudgetError, InfeasibleError, InputError, NumericalError
from secateur.select import weights
from secateur.vocabulary import Budget, Pattern

shares = st.floats(0, 1)
numbers = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-(2.0**90), 2.0**90, width=32)), min_size=1, max_size=60
)


def by_sorting(scores: np.ndarray, wanted: int) -> np.ndarray:
    order = np.lexsort((np.arange(scores.size), -scores))
    mask = np.zeros(scores.size, bool)
    mask[order[:wanted]] = True
    return mask


@settings(max_examples=200, deadline=None)
@given(numbers, shares, st.booleans())
def test_a_matrix_keeps_exactly_the_best(values, share, wide):
    scores = np.array(values, np.float64 if wide else np.float32).reshape(1, -1)
    expected = by_sorting(scores[0], int(scores.size * share + 1e-9))
    assert (weights.best(scores, share, "matrix")[0] == expected).all()
    assert (weights.best(torch.from_numpy(scores), share, "matrix")[0].numpy() == expected).all()
    halves = {"first": scores[0, : scores.size // 2], "second": torch.from_numpy(scores[0, scores.size // 2 :])}
    found = weights.best_of_all(halves, share)
    assert (np.concatenate([np.asarray(mask) for mask in found.values()]) == expected).all()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), shares)
@settings(max_examples=50, deadline=None)
def test_rows_and_blocks_have_exact_counts(seed, rows, columns, share):
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    assert (weights.best(scores, share, "row").sum(1) == int(columns * share + 1e-9)).all()
    mask = weights.best(scores, share, "block", block=8)
    for start in range(0, columns, 8):
        part = mask[:, start : start + 8]
        assert part.sum() == int(part.numel() * share + 1e-9)


def test_a_smaller_share_keeps_a_subset():
    scores = torch.randint(0, 4, (16, 32)).float()  # full of ties
    for scope in ("row", "block", "matrix"):
        masks = [weights.best(scores, share, scope) for share in (0.2, 0.5, 0.7)]
        assert not (masks[0] & ~masks[1]).any()
        assert not (masks[1] & ~masks[2]).any()


def test_nothing_and_everything_can_stay():
    scores = torch.randn(4, 6)
    for scope in ("row", "block", "matrix"):
        assert not weights.best(scores, 0.0, scope).any()
        assert weights.best(scores, 1.0, scope).all()
    assert weights.best_of_all({"a": scores}, 1.0)["a"].all()
    assert not weights.best_of_all({"a": scores}, 0.0)["a"].any()


def test_half_precision_is_compared_as_it_is():
    scores = torch.randn(8, 16).bfloat16()
    assert (weights.best(scores, 0.5, "row") == weights.best(scores.float(), 0.5, "row")).all()
    assert (weights.best_of_all({"a": scores}, 0.5)["a"] == weights.best(scores.float(), 0.5, "matrix")).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_threshold_is_the_kth_largest(kind):
    draw = np.random.default_rng(0)
    columns = [draw.standard_normal(n).astype(kind) for n in (1, 300, 5000)]
    whole = np.sort(np.concatenate(columns))[::-1]
    for k in (1, 2, 777, 5301):
        edge, ties = weights.threshold(lambda: enumerate(columns), k)
        assert edge == whole[k - 1]
        assert ties == k - int((whole > edge).sum())


def test_minus_zero_is_zero():
    scores = {"a": np.array([-0.0, 1.0], np.float32), "b": np.array([0.0, 0.0], np.float32)}
    masks = weights.best_of_all(scores, 0.5)
    assert masks["a"].tolist() == [True, True]
    assert masks["b"].tolist() == [False, False]


def test_budgets_over_weights():
    share, pattern = weights.read_budget(Budget.parse("weights=30%"), 1000, "it")
    assert (share, pattern) == (0.3, None)
    assert weights.read_budget(Budget.parse("weights=300"), 1000, "it")[0] == 0.3
    share, pattern = weights.read_budget(Budget.parse("pattern=2:4"), 1000, "it")
    assert share == 0.5
    assert pattern == Pattern(2, 4)
    for bad in ("params=50%", "weights=50%,pattern=2:4", "weights=100%", "pattern=4:4", "weights=2000"):
        with pytest.raises(BudgetError, match="budget"):
            weights.read_budget(Budget.parse(bad), 1000, "it")
    assert weights.read_budget(Budget.parse("weights=50%"), 1000, "it", held=400)[0] == 0.2
    assert weights.read_budget(Budget.parse("weights=300"), 1000, "it", held=400)[0] == 0.3
    assert weights.read_budget(Budget.parse("weights=50%"), 1000, "it", held=998)[0] == 0.5
    with pytest.raises(BudgetError, match="lets every weight stay"):
        weights.read_budget(Budget.parse("weights=500"), 1000, "it", held=400)
    assert weights.chooser(0.5, Pattern(1, 4))(torch.randn(2, 8)).sum() == 4
    assert weights.chooser(0.5)(torch.randn(2, 8)).sum() == 8
    with pytest.raises(InfeasibleError, match="leaves nothing of a row of 8"):
        weights.chooser(0.1)(torch.randn(2, 8))


def test_bad_shares_scopes_and_nan_are_refused():
    scores = torch.randn(2, 4)
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="from 0 to 1"):
            weights.best(scores, share)
    with pytest.raises(InputError, match="best_of_all"):
        weights.best(scores, 0.5, "global")
    with pytest.raises(InputError, match="row, block, matrix, global"):
        weights.best(scores, 0.5, "column")
    scores[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        weights.best(scores, 0.5)
    with pytest.raises(NumericalError, match="layer 3"):
        weights.best_of_all({"layer 3": scores}, 0.5)


def test_sums_take_from_each_row_the_same_share_of_its_sum():
    scores = torch.rand(20, 200) ** 4
    mask = weights.by_sums(scores, 0.5)
    assert 0.498 <= float(mask.float().mean()) <= 0.5
    lost = (scores * ~mask).sum(1) / scores.sum(1)
    assert float(lost.max() - lost.min()) < 0.05  # one alpha for all rows, up to the size of one weight
    assert len(set(mask.sum(1).tolist())) > 1
    for row, stays in zip(scores, mask, strict=True):
        assert not (~stays).any() or row[~stays].max() <= row[stays].min()
