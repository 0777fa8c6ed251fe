"""A model before training whose vocabulary was of another length then, as where a chat's special tokens were added."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import ModelError, UnsupportedError
from secateur.subjects.delta.tensors import Checkpoint, Outline, Tensors
from secateur.subjects.transformer import loading

__all__ = ["Resized", "fit_vocabulary"]


class Resized:
    """Tensors of which those in `names` have as many rows [rows, ...] as in `after`, one for each token.

    Rows that `held` lacks are those of `after`, and so no part of an update; rows that `after` lacks are left out.
    """

    def __init__(self, held: Tensors, after: Tensors, names: Collection[str]) -> None:
        self.held, self.after, self.names = held, after, names
        self.name: str = held.name
        self.folder: Path | None = held.folder

    @property
    def note(self) -> str:
        """How many tokens one has more than the other."""
        ours, theirs = (one.outlines()[min(self.names)].shape[0] for one in (self.held, self.after))
        if ours < theirs:
            return f"{self.after.name} has {theirs - ours} tokens more than {self.name}: they stay as they were trained"
        return f"{self.after.name} has {ours - theirs} tokens fewer than {self.name}: these are left out"

    def outlines(self) -> Mapping[str, Outline]:
        """Name -> number type and shape."""
        found, theirs = dict(self.held.outlines()), self.after.outlines()
        return found | {name: Outline(found[name].kind, theirs[name].shape) for name in self.names}

    def read(self, name: str) -> Tensor:
        """One tensor."""
        tensor = self.held.read(name)
        if name not in self.names:
            return tensor
        other = self.after.read(name)
        return torch.cat([tensor[: len(other)], other[len(tensor) :]])

    def digest(self) -> str:
        """A hash of all tensors that are held, whatever rows are left out."""
        return self.held.digest()


def fit_vocabulary(before: Tensors, after: Checkpoint) -> Tensors:
    """`before`, or `Resized` where the configs of the two say vocabularies of other lengths, and tensors have them."""
    ours, theirs = _count_tokens(before.folder), _count_tokens(after.folder)
    if ours is None or theirs is None or ours == theirs:
        return before
    shapes = {name: outline.shape for name, outline in after.outlines().items()}
    names = {
        name
        for name, outline in before.outlines().items()
        if outline.shape[:1] == (ours,) and shapes.get(name) == (theirs, *outline.shape[1:])
    }
    return Resized(before, after, names) if names else before


def _count_tokens(folder: Path | None) -> int | None:
    """Tokens of the vocabulary, by the model's config; None where it says nothing of it, or is of no known class."""
    try:
        config = None if folder is None else loading.read_config(folder).get_text_config()
    except (ModelError, UnsupportedError):
        return None
    count = getattr(config, "vocab_size", None)
    return count if isinstance(count, int) else None
