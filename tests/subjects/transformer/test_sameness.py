"""Checks of small models say what is wrong with them, and how they fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from secateur.subjects.transformer.sameness import NEAR, differ, run_check, start_cache, step_behind
from subjects.tiny import make


def spoil(model: PreTrainedModel) -> None:
    """Let its base give twice the states wherever it keeps a cache."""
    own = model.base_model.forward

    def forward(*args: object, use_cache: bool = False, **kwargs: object) -> object:
        out = own(*args, use_cache=use_cache, **kwargs)
        out["last_hidden_state"] = out["last_hidden_state"] * (2 if use_cache else 1)
        return out

    model.base_model.forward = forward


@pytest.mark.parametrize("check", [start_cache, step_behind])
def test_a_cache_that_changes_what_is_said_is_told(check: Callable[[PreTrainedModel], str]) -> None:
    model = make("llama").model
    assert run_check(check, model) == ""
    spoil(model)
    assert "gives other outputs than" in run_check(check, model)


def test_a_model_without_a_cache_has_none_and_one_that_fails_says_how() -> None:
    assert run_check(step_behind, make("bert-mlm").model) == "has none"
    model = make("llama").model
    model.base_model.layers[0].mlp = None
    assert run_check(start_cache, model) == "fails: TypeError: 'NoneType' object is not callable"


def test_differences_are_parts_of_the_largest_output() -> None:
    assert differ(torch.tensor([1.0, 100.0]), torch.tensor([2.0, 100.0])) == pytest.approx(0.01)
    assert differ(torch.ones(3), torch.ones(3)) < NEAR
