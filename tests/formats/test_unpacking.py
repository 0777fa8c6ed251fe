"""Bits and matrices come back as they went."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.formats import unpacking


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_bits_are_those_of_numpy_and_come_back(count):
    mask = torch.rand(5, count, generator=torch.Generator().manual_seed(count)) > 0.5
    packed = unpacking.bits(mask)
    assert packed.numpy().tolist() == np.packbits(mask.numpy(), axis=-1, bitorder="little").tolist()
    assert torch.equal(unpacking.unpack_bits(packed, count), mask)


def test_a_matrix_is_filled_row_by_row():
    shape, mask = torch.tensor([2, 4]), torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]).bool()
    matrix = unpacking.dense(shape, unpacking.bits(mask), torch.tensor([1.0, 2.0, 3.0]))
    assert matrix.tolist() == [[0, 1, 0, 2], [3, 0, 0, 0]]


def test_a_config_is_as_it_was_before():
    from transformers import LlamaConfig

    config = LlamaConfig()
    config.auto_map = {"AutoModel": "modeling_packed.PackedLlamaModel"}
    config.compression_config = {"auto_map": None}
    assert not hasattr(unpacking.plain(config), "auto_map")
    config.compression_config = {"auto_map": {"AutoModel": "modeling_secateur.SecateurLlamaModel"}}
    assert unpacking.plain(config).auto_map == {"AutoModel": "modeling_secateur.SecateurLlamaModel"}
    assert not hasattr(unpacking.plain(config), "compression_config")
    assert hasattr(config, "compression_config")
