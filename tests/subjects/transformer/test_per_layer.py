"""Lists of a config that go by layer are told from others."""

from __future__ import annotations

import pytest

from secateur.subjects.transformer.per_layer import take_layers


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["b", "d"]),
        ("no_rope_layers", [1, 1, 0, 1], [1, 1]),
        ("attn_layer_indices", [0, 3], [1]),
        ("full_attn_idxs", [0, 1, 2, 3], [0, 1]),
        ("mlp_only_layers", [], []),
        ("block_types", ["a", "b", "c"], ["b", "a"]),  # a pattern
    ],
)
def test_lists_follow_their_layers(name: str, value: list[object], expected: list[object]) -> None:
    assert take_layers({name: value}, [1, 3], 4) == {name: expected}


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_step_limit", [0.0, 1.0]), ("eos_token_ids", [1, 2]), ("mlp_multipliers", [1.0, 2.0]), ("hidden_size", 2)],
)
def test_others_stay(name: str, value: object) -> None:
    assert take_layers({name: value}, [1], 2) == {}
