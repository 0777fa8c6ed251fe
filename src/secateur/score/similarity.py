"""Similarity: how much a block changes what flows through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite, real_tokens

__all__ = ["block_influence", "collect"]


def block_influence(before: Tensor, after: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scalar BI = 1 - E[cos(X_i, X_{i+1})] over the real tokens: how much the block turns the residual stream.

    before, after: [B, S, d], what enters and leaves the block; mask: [B, S] booleans, False where padding.
    Higher means keep. Source: ShortGPT (arXiv 2403.03853), equation 1; Minitron (arXiv 2407.14679), section 2.2.
    """
    cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return 1.0 - (cosine if mask is None else cosine[mask]).mean()


def collect(hidden: Callable[[Batch], Sequence[Tensor]], batches: Iterable[Batch], *, span: int = 1) -> Tensor:
    """Float32 [layers - span + 1]: block influence of layers [i, i + span), streamed over batches.

    hidden: batch -> the embedding output, then the output after each layer, [B, S, d] each.
    With span > 1 the score belongs to a contiguous block of layers, first layer i.
    """
    total, tokens = torch.zeros(0), 0
    with torch.no_grad():
        for batch in batches:
            states = hidden(batch)
            if not 0 < span < len(states):
                raise InputError(f"span {span} does not fit {len(states) - 1} layers: give 1 to {len(states) - 1}")
            mask = real_tokens(batch)
            seen = int(mask.sum()) if mask is not None else states[0].shape[0] * states[0].shape[1]
            if not seen:
                continue
            pairs = zip(states[:-span], states[span:], strict=True)
            influence = torch.stack([block_influence(a, b, mask) for a, b in pairs]).cpu()
            total = influence * seen if not tokens else total + influence * seen
            tokens += seen
    if not tokens:
        raise DataError("there is no token to measure block influence on: give at least one batch")
    return finite("block influence", total / tokens)
