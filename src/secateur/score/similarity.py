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

__all__ = [
    "CenteredAlignment", "Distance", "angular_distance", "block_influence", "cka", "collect", "distances",
    "geometric_median",
]  # fmt: skip

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


# ------------------------------------------------------------------------------------------------ of representations


def cka(first: Tensor, second: Tensor) -> Tensor:
    """Scalar linear CKA of two representations [n, p] and [n, q] of the same n examples, between 0 and 1.

    ``|Y_c^T X_c|_F^2 / (|X_c^T X_c|_F |Y_c^T Y_c|_F)`` of the centred columns: 1 for one up to rotation, scale and
    shift. 0 where either says the same of all examples. Source: Kornblith et al., "Similarity of Neural Network
    Representations Revisited" (arXiv 1905.00414), section 3.
    """
    x, y = (_centre(one) for one in _alike(first, second))
    # Gram matrices of whichever is smaller, examples or features: the same numbers.
    if len(x) < max(x.shape[1], y.shape[1]):
        k, m = x @ x.T, y @ y.T
        products = (k * m).sum(), (k * k).sum(), (m * m).sum()
    else:
        products = (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()
    return _share_common(*products)


class CenteredAlignment:
    """Linear CKA over minibatches, without all activations at once: HSIC of each batch, unbiased, added up.

    Batches have at least 4 examples. The sum goes to the CKA of all, not to a mean of CKAs, which depend on the size of
    the batches. Source: Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (arXiv
    2010.15327), equations 2 to 4; the unbiased estimator: Song et al., JMLR 13 (2012).
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, first: Tensor, second: Tensor) -> None:
        """One batch: [n, p] and [n, q] of the same n examples; higher dimensions are flattened to features."""
        x, y = _alike(first.flatten(1), second.flatten(1))
        if len(x) < 4:
            raise InputError(f"similarity of a batch of {len(x)} was asked for: give batches of at least 4 examples")
        k, m = (_without_diagonal(one @ one.T) for one in (x, y))
        found = (_hsic(k, m), _hsic(k, k), _hsic(m, m))
        self._sums = found if self._sums is None else tuple(map(torch.add, self._sums, found))  # type: ignore[assignment]

    def value(self) -> Tensor:
        """Scalar: the CKA of what was added, about 0 (it may be a little below) to 1."""
        if self._sums is None:
            raise DataError("there are no batches to compare representations on: give at least one")
        return _share_common(*self._sums)


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second) or not len(first):
        raise InputError(
            f"representations of shape {tuple(first.shape)} and {tuple(second.shape)}: give [n, p] and [n, q] of the "
            "same examples"
        )
    return first.double(), second.double()


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _without_diagonal(gram: Tensor) -> Tensor:
    return gram.fill_diagonal_(0.0)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """HSIC_1 of two Gram matrices [n, n] with empty diagonals."""
    n = len(k)
    crossed = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * (k.sum(0) @ m.sum(0))
    return ((k * m).sum() + crossed) / (n * (n - 3))


def _share_common(both: Tensor, first: Tensor, second: Tensor) -> Tensor:
    length = (first.clamp(min=0) * second.clamp(min=0)).sqrt()
    return torch.where(length > 0, both / length.clamp(min=torch.finfo(length.dtype).tiny), torch.zeros_like(both))
