"""Tail exponents: small for heavy tails."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import InputError
from secateur.score.spectral import tail_exponent


def of(values):
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0)))
    return q * torch.tensor(values, dtype=torch.float32).sqrt()


def test_the_exponent_is_hills_and_falls_with_the_weight_of_the_tail():
    flat, heavy = [1.0 + 0.1 * at for at in range(12)], [1.0 * 2**at for at in range(12)]
    assert tail_exponent(of(heavy)) < tail_exponent(of(flat))
    k = 6
    expected = 1 + k / sum(torch.tensor(heavy[-k + at] / heavy[-k - 1]).log().item() for at in range(k))
    assert tail_exponent(of(heavy)) == pytest.approx(expected, rel=1e-3)
    assert tail_exponent(3.0 * of(heavy)) == pytest.approx(expected, rel=1e-3), "scale says nothing"
    assert tail_exponent(torch.eye(6)) > 1e5
    with pytest.raises(InputError, match="2 rows and columns"):
        tail_exponent(torch.ones(4))
