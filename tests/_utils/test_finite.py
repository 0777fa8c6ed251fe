"""One pass that finds what is not finite, in any type and place."""

import math

import pytest
import torch

from secateur._utils.finite import all_finite

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_anywhere_is_found(dtype, bad):
    for place in (0, 7, 1000):
        values = torch.randn(1001)
        assert all_finite(values.to(dtype))
        values[place] = bad
        assert not all_finite(values.to(dtype))
        assert not all_finite(values.to(dtype).reshape(7, 11, 13).mT)


def test_types_without_floats_and_without_numbers():
    assert all_finite(torch.tensor([1, 2]))
    assert all_finite(torch.tensor([True]))
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([1 + 2j]))
    assert not all_finite(torch.tensor([complex(1, math.nan)]))
    assert not all_finite(torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn))
    assert not all_finite(torch.tensor([1.0, math.inf], requires_grad=True))
