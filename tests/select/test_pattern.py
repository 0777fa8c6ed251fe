import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import InputError, NumericalError
from secateur.select.pattern import n_of_m


@given(st.integers(1, 8), st.data(), st.integers(0, 1000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_exactly_n_of_every_m_and_the_best(m, data, seed, tied):
    n = data.draw(st.integers(1, m))
    rows, runs = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (rows, runs * m)) * 1.0 if tied else rng.standard_normal((rows, runs * m))
    mask = n_of_m(scores, n, m)
    assert mask.dtype == bool
    for kept, run in zip(mask.reshape(-1, m), scores.reshape(-1, m), strict=True):
        assert list(np.flatnonzero(kept)) == sorted(sorted(range(m), key=lambda i: (-run[i], i))[:n])
    assert (n_of_m(torch.as_tensor(scores), n, m).numpy() == mask).all()
    assert (n_of_m(scores.T, n, m, dim=0) == mask.T).all()


def test_a_tail_stays_whole():
    assert n_of_m(torch.arange(6.0).reshape(1, 6), 1, 4).tolist() == [[False, False, False, True, True, True]]


def test_a_pattern_wider_than_the_matrix_leaves_it_whole_at_once():
    assert n_of_m(np.ones((2, 6)), 1, 10**12).all()


def test_bad_patterns_and_scores_are_refused():
    with pytest.raises(InputError, match="pattern 3:2"):
        n_of_m(np.zeros((2, 4)), 3, 2)
    with pytest.raises(NumericalError, match="NaN"):
        n_of_m(torch.tensor([[0.0, float("nan")]]), 1, 2)
