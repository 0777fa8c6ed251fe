"""A small model before and after a training, as folders and in memory."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

import tiny
from secateur.subjects.delta.delta import Delta
from secateur.subjects.delta.tensors import InMemory

FROZEN = "model.embed_tokens.weight"
"""What the training of the toy leaves alone."""


@functools.cache
def states(kind: str = "llama") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(before, after): a training is a step in which some entries move much more than others, some equally far."""
    before = {name: tensor.clone() for name, tensor in tiny.model(kind).state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    after = {}
    for name, tensor in before.items():
        step = torch.randn(tensor.shape, generator=draw) ** 3 / 50
        step = torch.where(step.abs() < 0.02, torch.sign(step) * 2**-7, step)
        after[name] = tensor if name == FROZEN else tensor + step
    return before, after


def delta(kind: str = "llama") -> Delta:
    """The update between the two."""
    return Delta(*(InMemory(state) for state in states(kind)))


def folders(root: Path, kind: str = "llama", dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """(before, after) as checkpoints with tokenizer and licence, the trained one in several files."""
    for place, state, shard in zip(("before", "after"), states(kind), ("1GB", "100KB"), strict=True):
        model = tiny.model(kind)
        model.load_state_dict(state)
        model.to(dtype).save_pretrained(root / place, max_shard_size=shard)
        tiny.tokenizer().save_pretrained(root / place)
        (root / place / "LICENSE").write_text(f"free {place}")
    return root / "before", root / "after"
