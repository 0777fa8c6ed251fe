"""Similarity: how much a block changes its input, and how much a unit differs from its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite, real_tokens
from secateur.score.slices import Slices

__all__ = ["Distance", "angular_distance", "block_influence", "collect", "distances", "geometric_median"]

Distance = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(before [B, S, d], after [B, S, d], mask [B, S] or None) -> scalar mean over the tokens of the mask."""


def block_influence(before: Tensor, after: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scalar BI = 1 - E[cos(X_i, X_{i+1})] over the real tokens: how much the block turns the residual stream.

    before, after: [B, S, d], what enters and leaves the block; mask: [B, S] booleans, False where padding.
    Higher means keep. Source: ShortGPT (arXiv 2403.03853), equation 1; Minitron (arXiv 2407.14679), section 2.2.
    """
    cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return 1.0 - (cosine if mask is None else cosine[mask]).mean()


def angular_distance(before: Tensor, after: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scalar E[arccos(cos(x_l, x_{l+n})) / pi] over the tokens of the mask: 0 for one direction, 1 for its opposite.

    Shapes as in `block_influence`. Higher means keep. Source: Gromov et al., "The Unreasonable Ineffectiveness of the
    Deeper Layers" (arXiv 2403.17887), equation 6.
    """
    cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine) / math.pi
    return (angle if mask is None else angle[mask]).mean()


def collect(hidden: Callable[[Batch], Sequence[Tensor]], batches: Iterable[Batch], *, span: int = 1) -> Tensor:
    """Float32 [layers - span + 1]: block influence of layers [i, i + span), streamed over batches.

    hidden: batch -> the embedding output, then the output after each layer, [B, S, d] each.
    With span > 1 the score belongs to a contiguous block of layers, first layer i.
    """

    def neighbours(count: int) -> list[tuple[int, int]]:
        if not 0 < span < count:
            raise InputError(f"span {span} does not fit {count - 1} layers: give 1 to {count - 1}")
        return [(first, first + span) for first in range(count - span)]

    return _mean_distances(hidden, batches, neighbours, block_influence, last=False)[1]


def distances(
    hidden: Callable[[Batch], Sequence[Tensor]],
    batches: Iterable[Batch],
    distance: Distance = block_influence,
    *,
    last: bool = False,
) -> Tensor:
    """Float32 [layers + 1, layers + 1]: at [i, j], i < j, the distance of what enters layer i from what enters layer j.

    So [i, i + n] tells how much the n layers from i on do together, and the diagonal above the main one each layer
    alone. All is measured in one pass over the batches; below the diagonal stand zeros.

    hidden: see `collect`. last: only the last real token of each sequence counts, else all real tokens.
    """
    pairs, found = _mean_distances(
        hidden, batches, lambda count: [(i, j) for i in range(count) for j in range(i + 1, count)], distance, last=last
    )
    count = 1 + pairs[-1][1]
    table = torch.zeros(count, count)
    first, second = torch.tensor(pairs).T
    table[first, second] = found
    return table


def _mean_distances(
    hidden: Callable[[Batch], Sequence[Tensor]],
    batches: Iterable[Batch],
    choose: Callable[[int], list[tuple[int, int]]],
    distance: Distance,
    *,
    last: bool,
) -> tuple[list[tuple[int, int]], Tensor]:
    """The pairs of states that `choose` names, and the distance of each, a mean over all tokens that count."""
    total, tokens, pairs = torch.zeros(0), 0, list[tuple[int, int]]()
    with torch.no_grad():
        for batch in batches:
            states = hidden(batch)
            pairs = choose(len(states))
            mask = real_tokens(batch)
            if mask is not None:
                mask = mask.to(states[0].device)
            if last:
                mask = _last_tokens(states[0], mask)
            seen = int(mask.sum()) if mask is not None else states[0].shape[0] * states[0].shape[1]
            if not seen:
                continue
            apart = torch.stack([distance(states[i], states[j], mask) for i, j in pairs]).cpu()
            total = apart * seen if not tokens else total + apart * seen
            tokens += seen
    if not tokens:
        raise DataError("there is no token to measure block influence on: give at least one batch")
    return pairs, finite("block influence", total / tokens)


def _last_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """[B, S] booleans: the last real token of each sequence, none of a sequence of padding."""
    real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask
    behind = real.flip(1).cumsum(1).flip(1)
    return real & (behind == 1)


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
