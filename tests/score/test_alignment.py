"""The best alignment of two sequences, beside brute force."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.score.alignment import align


@given(st.integers(0, 4), st.integers(0, 5), st.randoms(use_true_random=False))
def test_an_alignment_is_the_best_there_is(rows, columns, draw):
    alike = np.array([[draw.uniform(-0.5, 1) for _ in range(columns)] for _ in range(rows)]).reshape(rows, columns)
    best = 0.0
    for size in range(min(rows, columns) + 1):
        for chosen in itertools.combinations(range(rows), size):
            for places in itertools.combinations(range(columns), size):
                best = max(best, sum(max(0.0, alike[i, j]) for i, j in zip(chosen, places, strict=True)))
    assert abs(sum(align(alike)) - best) < 1e-9
