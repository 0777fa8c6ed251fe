"""The tensors in what a module returns: a tensor, a tuple, a dataclass, or an output of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["leaves", "of_labels", "of_two"]

_SIDE = ("hidden_state", "attentions", "past_key_values", "cache", "states", "pooler_output", "mems")
"""Parts of an output that transformers gives beside the main one."""


def leaves(output: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of an output: those it is about, and those beside it (hidden states and caches of transformers)."""
    if hasattr(output, "to_tuple") and not all(any(name in str(key) for name in _SIDE) for key in output):
        main: list[Any] = []
        side: list[Any] = []
        for key, value in output.items():
            (side if any(name in str(key) for name in _SIDE) else main).append(value)
        return _tensors(main), _tensors(side)
    return _tensors(output), []


def of_two(maps: Tensor) -> Tensor:
    """Logits [B, 2, H, W] of no and yes, 0 and z, of maps of one logit z, whose sigmoid is yes; others as they are."""
    return torch.cat([torch.zeros_like(maps), maps], 1) if maps.dim() == 4 and maps.shape[1] == 1 else maps


def of_labels(logits: Tensor) -> Tensor:
    """Logits [..., C, 2] of no and yes, 0 and z, of C labels [..., C] that do not exclude one another."""
    return torch.stack([torch.zeros_like(logits), logits], -1)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        # A cache beside what the network gives is no result of it.
        return [one for key, part in value.items() if "past_key_values" not in str(key) for one in _tensors(part)]
    if isinstance(value, list | tuple | set):
        return [one for part in value for one in _tensors(part)]
    if is_dataclass(value) and not isinstance(value, type):
        return [one for part in fields(value) for one in _tensors(getattr(value, part.name))]
    return []
