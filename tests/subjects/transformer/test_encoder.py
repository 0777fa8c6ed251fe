"""Encoders: post-norm layers keep their norms when a sub-block goes."""

from __future__ import annotations

import pytest
import torch

from secateur.vocabulary import Selection
from subjects.tiny import (
    make,
    without,
)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_a_removed_block_leaves_its_norm_and_bias(name: str) -> None:
    subject = make(name)
    cut, _ = subject.cut(Selection({"attention": without(3, 0)}))
    norm, out = {
        "distilbert": ("transformer.layer.0.sa_layer_norm", "transformer.layer.0.attention.out_lin"),
    }.get(name, ("encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.attention.output.dense"))
    assert isinstance(cut.model.get_submodule(norm), torch.nn.LayerNorm)
    assert torch.equal(cut.model.get_parameter(f"{out}.bias"), subject.model.get_parameter(f"{out}.bias"))
    assert "kv_cache" not in subject.units().cost()


def test_a_layernorm_model_says_that_channels_are_not_exact() -> None:
    _, receipt = make("bert").cut(Selection({"channels": without(48, *range(8))}))
    assert any("LayerNorm" in note for note in receipt.notes)
