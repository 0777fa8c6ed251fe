"""Models that no config of their class describes, and their modelling file."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

from secateur.subjects.transformer import loading, narrowing

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def make() -> transformers.ViTModel:
    return transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)).eval()


def test_what_a_class_builds_otherwise_is_listed_and_saved(tmp_path: Path) -> None:
    model = make()
    assert narrowing.list_layers(model) == {}
    assert not narrowing.is_narrowed(model.config)
    path = next(name for name, one in model.named_modules() if getattr(one, "out_features", 0) == 24)
    wide, after = (
        model.get_submodule(path),
        next(one for one in model.modules() if getattr(one, "in_features", 0) == 24),
    )
    wide.weight, wide.bias = (nn.Parameter(one.detach()[:20]) for one in (wide.weight, wide.bias))
    after.weight = nn.Parameter(after.weight.detach()[:, :20])
    wide.out_features = after.in_features = 20
    layers = narrowing.list_layers(model)
    assert layers is not None
    assert layers[path] == {"shapes": {"weight": [20, 16], "bias": [20]}, "numbers": {"out_features": 20}}
    assert len(layers) == 2
    assert narrowing.save(model, tmp_path)
    again = loading.read_any(tmp_path)
    assert narrowing.is_narrowed(again.config)
    assert narrowing.list_layers(again) == layers
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(again(images).last_hidden_state, model(images).last_hidden_state)


def test_what_is_more_than_sizes_is_not_saved_so(tmp_path: Path) -> None:
    model = make()
    model.layernorm = nn.Identity()
    assert narrowing.list_layers(model) is None
    assert not narrowing.save(model, tmp_path / "small")
