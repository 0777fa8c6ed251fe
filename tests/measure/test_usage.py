"""Where answers come from."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import DataError
from secateur.measure import usage


def count_up(batch):
    """A model whose next token is the last one plus one, whatever stands before; padding tells it nothing."""
    ids = batch["input_ids"]
    assert bool((batch["attention_mask"].sum(1) > 0).all())
    return torch.nn.functional.one_hot((ids + 1) % 20, 20).float()


def test_greedy_goes_on_from_prompts_of_all_lengths():
    prompts = [(3,), (1, 2, 7), (5, 6), (9, 9, 9, 9)]
    found = usage.greedy(count_up, prompts, [1, 3, 0, 2], pad=19, batch=2)
    assert found == [(4,), (8, 9, 10), (), (10, 11)]
    assert usage.greedy(count_up, prompts, [1, 3, 0, 2], pad=0, batch=64) == found


def test_rates_add_up_and_tell_first_tokens_from_whole_answers():
    answers = [(1, 2), (1, 3), (5, 6), (9, 9)]
    memory, context = [(1, 2)] * 4, [(5, 6)] * 4
    full = usage.usage_rates(answers, memory, context)
    first = usage.usage_rates(answers, [m[:1] for m in memory], [c[:1] for c in context])
    assert [full[f"{name}_rate"].value for name in ("memory", "context", "other")] == [0.25, 0.25, 0.5]
    assert [first[f"{name}_rate"].value for name in ("memory", "context", "other")] == [0.5, 0.25, 0.25]
    assert full["memory_rate"].samples == 4
    assert full["memory_rate"].low < 0.25 < full["memory_rate"].high
    with pytest.raises(DataError, match="no answer to tell"):
        usage.usage_rates([], [], [])
