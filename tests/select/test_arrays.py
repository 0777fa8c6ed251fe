import numpy as np
import pytest
import torch

from secateur.select.arrays import as_numpy, mask_like


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_of_any_type_become_double_precision(dtype):
    array = as_numpy(torch.tensor([1, 2], dtype=dtype))
    assert array.dtype == np.float64
    assert array.tolist() == [1.0, 2.0]


def test_sequences_integers_and_tensors_with_gradients():
    assert as_numpy([1, 2]).dtype == np.float64
    assert as_numpy(torch.tensor([1, 2]), None).dtype == np.int64
    assert as_numpy(torch.tensor([1.0], requires_grad=True)).tolist() == [1.0]
    assert as_numpy(torch.tensor([True, False]), bool).tolist() == [True, False]


def test_a_mask_follows_the_array():
    mask = np.array([True, False])
    assert mask_like(mask, np.zeros(2)) is mask
    found = mask_like(mask, torch.zeros(2, dtype=torch.bfloat16))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False]
