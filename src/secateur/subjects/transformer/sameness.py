"""Whether small models say the same: with a cache as without, and one as another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from secateur.subjects.transformer.small_copy import describe_error, make_tokens

__all__ = ["NEAR", "differ", "run_check", "start_cache", "step_behind"]

NEAR = 2e-4
"""Largest difference that rounding makes, and an epsilon that no setting says, in parts of the largest output."""


def run_check(check: Callable[[PreTrainedModel], str], model: PreTrainedModel) -> str:
    """What a check finds wrong with a model, or how it fails."""
    try:
        return check(model)
    except Exception as error:
        return f"fails: {type(error).__name__}: {describe_error(error)}"


def start_cache(model: PreTrainedModel) -> str:
    """What is wrong with texts of one token that fill a cache or states, beside a pass without."""
    first, base = make_tokens()[:, :1], model.base_model
    with torch.no_grad():
        plain, filled = (base(input_ids=first, use_cache=use)[0] for use in (False, True))
    return "" if differ(filled, plain) < NEAR else "gives other outputs than without"


def step_behind(model: PreTrainedModel) -> str:
    """What is wrong with the last token behind a cache of the others, beside all at once; one text is padded left."""
    tokens = make_tokens()
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    base: nn.Module = model.base_model
    with torch.no_grad():
        plain = base(input_ids=tokens, attention_mask=mask, use_cache=False)[0][:, -1]
        before = base(input_ids=tokens[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
        caches = {name: value for name, value in before.items() if isinstance(value, Cache)}
        if not caches:
            return "has none"
        behind = base(input_ids=tokens[:, -1:], attention_mask=mask, use_cache=True, **caches)[0][:, -1]
    return "" if differ(behind, plain) < NEAR else "gives other outputs than all tokens at once"


def differ(one: Tensor, other: Tensor) -> float:
    """The largest difference of two outputs, in parts of the largest number of the second."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-6))
