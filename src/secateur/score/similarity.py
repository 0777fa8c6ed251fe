"""Similarity: how much a block changes its input, and how much a unit differs from its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite, real_tokens
from secateur.score.slices import Slices

__all__ = ["block_influence", "collect", "geometric_median"]


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


def geometric_median(slices: Slices) -> dict[str, Tensor]:
    """Site -> float32 [count]: sum_v |x_u - x_v|, the distance of a unit's weights from those of all others.

    x_u: all weights that go with unit u, as one vector. The unit nearest to the geometric median of all is the one
    that the others can stand for best, and goes first, however large it is.
    Source: He et al., "Filter Pruning via Geometric Median" (FPGM), CVPR 2019, equation 6. Departure: not the filter
    alone, but all that is coupled with it.
    """
    result = {}
    for site, parts in slices.items():
        count = max(int(unit.max()) for _, _, unit in parts) + 1
        square = torch.zeros(count, count, dtype=torch.float64)
        for weight, dim, unit in parts:
            index = torch.nonzero(unit >= 0).flatten()
            index = index[torch.argsort(unit[index], stable=True)]
            rows = weight.detach().movedim(dim, 0)[index.to(weight.device)].cpu().double().reshape(count, -1)
            norms = rows.square().sum(1)
            square += norms[:, None] + norms[None, :] - 2 * rows @ rows.T
        result[site] = finite(site, square.clamp(min=0).fill_diagonal_(0).sqrt().sum(1).float())
    return result
