"""Lists of a config that go by layer are told from others."""

from __future__ import annotations

import pytest

from secateur.subjects.transformer.per_layer import take_layers


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["b", "d"]),
        ("no_rope_layers", [1, 1, 0, 1], [1, 1]),
        ("activation_sparsity_pattern", [0.9, 0.9, 0.0, 0.0], [0.9, 0.0]),
        ("attn_layer_indices", [0, 3], [1]),
        ("full_attn_idxs", [0, 1, 2, 3], [0, 1]),
        ("mlp_only_layers", [], []),
        ("block_types", ["a", "b", "c"], ["b", "a"]),  # a pattern
    ],
)
def test_lists_follow_their_layers(name: str, value: list[object], expected: list[object]) -> None:
    assert take_layers({name: value}, [1, 3], 4) == {name: expected}


def test_of_two_layers_the_class_tells_their_numbers_from_entries_for_each() -> None:
    said = {"model_type": "llama4_text", "moe_layers": [0, 1], "no_rope_layers": [0, 1]}
    assert take_layers(said, [1], 2) == {"moe_layers": [0], "no_rope_layers": [1]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_step_limit", [0.0, 1.0]),
        ("eos_token_ids", [1, 2]),
        ("mlp_multipliers", [1.0, 2.0]),
        ("hidden_size", 2),
        ("pos_att_type", ["p2c", "c2p"]),
    ],
)
def test_others_stay(name: str, value: object) -> None:
    assert take_layers({name: value}, [1], 2) == {}


def test_a_list_of_convolutions_stays_however_many_layers_there_are() -> None:
    """A class's own defaults tell it from one of layers: Wav2Vec2's are seven convolutions and twelve layers."""
    said = {"model_type": "wav2vec2", "conv_dim": [16, 24], "conv_stride": (5, 2), "tdnn_dim": [8, 8]}
    assert take_layers(said, [1], 2) == {}
    assert take_layers({"model_type": "qwen2", "layer_types": ["a", "b"]}, [1], 2) == {"layer_types": ["b"]}
    assert take_layers({"model_type": "falcon_h1", "ssm_multipliers": [1.0] * 5}, [1, 3], 5) == {}
    pattern = {"model_type": "recurrent_gemma", "block_types": ["a", "b", "c"]}
    assert take_layers(pattern, [1, 2], 3) == {"block_types": ["b", "c"]}


def test_a_class_whose_number_of_layers_is_none_says_nothing_of_its_lists() -> None:
    """LXMERT has three of them, in a dict, where others have a number."""
    assert take_layers({"model_type": "lxmert", "layer_types": ["a", "b"]}, [1], 2) == {"layer_types": ["b"]}
