"""Layers that pass states on as [S, B, d], tokens before texts, as XLNet's do."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from secateur._utils.modes import evaluating
from secateur.errors import UnsupportedError
from secateur.subjects.transformer.subject import Transformer

__all__ = ["passes_tokens_first", "refuse_tokens_first"]

_FOUND = WeakKeyDictionary[nn.Module, bool]()


def passes_tokens_first(subject: Transformer) -> bool:
    """Whether layers pass states on as [S, B, d], by a pass over one text of two tokens, once for each model.

    Shapes alone don't tell where there are as many texts as tokens.
    """
    if subject.model not in _FOUND:
        with torch.no_grad(), evaluating(subject.model), torch.random.fork_rng(devices=[]):
            states = Transformer.forward(subject, subject.example(1, 2), hidden=True).hidden
        _FOUND[subject.model] = bool(states) and states[0].dim() == 3 and states[0].shape[0] > 1 == states[0].shape[1]
    return _FOUND[subject.model]


def refuse_tokens_first(subject: Transformer) -> None:
    """Raise `UnsupportedError` where what linears read would take tokens of one text for those of another."""
    if passes_tokens_first(subject):
        raise UnsupportedError(
            f"layers of {type(subject.model).__name__} pass states on as [S, B, d], so what their linears read can't "
            "be told apart by texts: take shortgpt or llm_pruner, or secateur prune, which cuts any network"
        )
