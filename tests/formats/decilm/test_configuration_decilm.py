"""The configuration of a DeciLM export."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from secateur.formats.decilm.configuration_decilm import DeciLMConfig, Part, ffn_width

BLOCK = {
    "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
    "ffn": {"intermediate_size": 40, "no_op": False, "replace_with_linear": False},
}


def test_blocks_are_read_by_attribute_and_survive_saving(tmp_path: Path) -> None:
    config = DeciLMConfig(block_configs=[BLOCK], hidden_size=48, num_attention_heads=5, num_hidden_layers=1, head_dim=8)
    assert config.block_configs[0].attention.n_heads_in_group == 2
    assert not hasattr(config.block_configs[0].ffn, "ffn_mult")
    config.save_pretrained(tmp_path)
    again = DeciLMConfig.from_pretrained(tmp_path)
    assert copy.deepcopy(again).block_configs[0].ffn.intermediate_size == 40
    assert again.head_dim == 8


@pytest.mark.parametrize(("mult", "hidden", "width"), [(2.0, 192, 256), (5.25, 8192, 28672), (1.0, 8192, 5632)])
def test_ffn_mult_rounds_up_to_256(mult: float, hidden: int, width: int) -> None:
    assert ffn_width(Part(ffn_mult=mult), hidden) == width
    assert ffn_width(Part(intermediate_size=40), hidden) == 40
