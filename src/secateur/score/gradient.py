"""Gradient: how much the loss would change if a unit's weights were zero, and where descent would take them.

Weights are given as slices (site -> everything that goes with a unit) or as consumers (site -> the linear whose input
columns are the units). Gradients are taken in evaluation mode; `.grad`, modes, statistics and `requires_grad` stay as
they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite
from secateur.score.magnitude import Columns, consumer_weight
from secateur.score.slices import Slices, gather, sum_rows, total

__all__ = ["Gradients", "Loss", "cosine", "dhspg", "fisher", "hesso", "mean", "reduce_gradients", "taylor"]

T = TypeVar("T")

Loss = Callable[[Batch], Tensor]
"""Batch -> scalar mean loss, with gradients."""

Gradients = Mapping[Tensor, Tensor]
"""Parameter (the very tensor) -> gradient of its shape: of the loss, or what an optimiser makes of it."""


def mean(loss: Loss, model: nn.Module, batches: Iterable[Batch], slices: Slices) -> dict[Tensor, Tensor]:
    """Parameter of the slices -> gradient of the mean loss over batches, float32; zero where the loss has no part."""
    return _moments(loss, model, batches, slices)[0]


def taylor(
    loss: Loss,
    model: nn.Module,
    batches: Iterable[Batch],
    weights: Mapping[str, Columns] | Slices,
    *,
    within: Literal["unit", "weight"] = "unit",
    order: Literal[1, 2] = 1,
) -> dict[str, Tensor]:
    """Site -> float32 [count]: |sum_w d_w| over a unit's weights, d_w the change of the loss as w becomes zero.

        order 1: d_w = w g                                  g = mean of g_n, one gradient g_n per batch
        order 2: d_w = w g - 1/2 w^2 h,   h = mean of g_n^2 the diagonal of the Fisher matrix stands for the Hessian

    within: "unit" sums with signs before the absolute value (removing the unit as a whole); "weight" takes sum |d_w|
            (each weight on its own)

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8;
    LLM-Pruner (arXiv 2305.11627), its vector- and element-wise forms of both orders.
    """
    if within not in ("unit", "weight"):
        raise InputError(f"within {within!r} is neither 'unit' nor 'weight'")
    if order not in (1, 2):
        raise InputError(f"order {order!r} is neither 1 nor 2")
    slices = _slices(model, weights)
    if within == "unit":
        first, second = _unit_sums(loss, model, batches, slices, squares=order == 2)
        summed = {site: first[site] - 0.5 * second[site] if order == 2 else first[site] for site in slices}
        return {site: finite(site, change.abs().float()) for site, change in summed.items()}
    gradients, squares = _moments(loss, model, batches, slices, squares=order == 2)

    def change(weight: Tensor) -> Tensor:
        w = weight.detach().float()
        result = w * gradients[weight]
        if order == 2:
            result = result - 0.5 * w.square() * squares[weight]
        return result.abs()

    return {site: finite(site, found.float()) for site, found in total(slices, change).items()}


def fisher(
    loss: Loss, model: nn.Module, batches: Iterable[Batch], weights: Mapping[str, Columns] | Slices
) -> dict[str, Tensor]:
    """Site -> float32 [count]: (1/N) sum_n (sum_w w g_n)^2, the diagonal Fisher estimate of the loss increase.

    One gradient g_n per batch: batches of one sample give the estimate as published.
    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, equation 9 (up to
    the factor 1/2).
    """
    slices = _slices(model, weights)
    dims = _dims_of(slices)

    def reduce(weight: Tensor, gradient: Tensor) -> dict[int, Tensor]:
        product = weight.detach().float() * gradient.float()
        return {dim: sum_rows(product, dim) for dim in dims[weight]}

    sums: dict[str, Tensor] = {}
    count = 0
    for found in reduce_gradients(loss, model, batches, list(dims), reduce):

        def row(weight: Tensor, dim: int, found: Mapping[Tensor, Mapping[int, Tensor]] = found) -> Tensor:
            return found[weight][dim] if weight in found else _zeros(weight, dim)

        for site, inner in gather(slices, row).items():
            sums[site] = sums[site] + inner.square() if count else inner.square()
        count += 1
    return {site: finite(site, (summed / count).float()) for site, summed in sums.items()}


def cosine(slices: Slices, gradients: Gradients) -> dict[str, Tensor]:
    """Site -> float32 [count]: cos(x_u, -g_u) over all weights x_u of a unit; 0 where either is zero.

    A unit that descent lengthens has 1, one that descent shrinks has -1: what is on its way to zero goes first. That
    is DHSPG's reading (`dhspg`); `hesso` reads the sign the other way round.
    """
    parts = _parts(slices, gradients)
    return {site: finite(site, (-_cosine(*part[:3])).float()) for site, part in parts.items()}


def dhspg(slices: Slices, gradients: Gradients) -> dict[str, Tensor]:
    """Site -> float32 [count]: the saliency of DHSPG, with its sign turned so that higher means keep.

        -( 1/2 N(cos(-x_u, -g_u)) + 1/2 N(1 / (|x_u| / n_u + 1e-6)) )

    x_u: the n_u weights of a unit; g_u: their gradients (with momentum, in its training); N divides by the L2 norm
    over all units of all sites.
    Source: OTOv2 (arXiv 2303.06862) and its released code; see also OTOv3 (arXiv 2312.09411).
    """
    parts = _parts(slices, gradients)
    angles = _share({site: _cosine(dot, x, g) for site, (dot, x, g, _) in parts.items()})
    small = _share({site: 1 / (x / size + 1e-6) for site, (_, x, _, size) in parts.items()})
    return {site: finite(site, (-0.5 * angles[site] - 0.5 * small[site]).float()) for site in parts}


def hesso(slices: Slices, gradients: Gradients) -> dict[str, Tensor]:
    """Site -> float32 [count]: the saliency of HESSO.

        1/5 ( N(|x_u|) + N(|x_u| / n_u) + N(cos(x_u, g_u) + 1) + N(|<x_u, g_u>|) + N(<x_u, g_u>^2 / 2) )

    x_u, g_u, n_u, N as in `dhspg`. A high cosine keeps a unit here, and lets it go there: both as released.
    Source: the released code of OTOv3 (arXiv 2312.09411), `only_train_once` 3.0.
    """
    parts = _parts(slices, gradients)
    criteria = (
        {site: x for site, (_, x, _, _) in parts.items()},
        {site: x / size for site, (_, x, _, size) in parts.items()},
        {site: _cosine(dot, x, g) + 1 for site, (dot, x, g, _) in parts.items()},
        {site: dot.abs() for site, (dot, _, _, _) in parts.items()},
        {site: 0.5 * dot.square() for site, (dot, _, _, _) in parts.items()},
    )
    normed = [_share(one) for one in criteria]
    return {site: finite(site, torch.stack([one[site] for one in normed]).mean(0).float()) for site in parts}


def _parts(slices: Slices, gradients: Gradients) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Site -> <x, g>, |x|, |g| and the number of weights, [count] each."""
    absent = [tuple(w.shape) for parts in slices.values() for w, _, _ in parts if w not in gradients]
    if absent:
        raise InputError(
            f"a parameter of shape {absent[0]} has no gradient: give one for every parameter of the slices"
        )
    dot = total(slices, lambda w: w.detach().float() * gradients[w].float())
    x = total(slices, lambda w: w.detach().float().square())
    g = total(slices, lambda w: gradients[w].float().square())
    size = total(slices, torch.ones_like)
    return {site: (dot[site], x[site].sqrt(), g[site].sqrt(), size[site]) for site in slices}


def _cosine(dot: Tensor, x: Tensor, g: Tensor) -> Tensor:
    return dot / (x * g).clamp(min=1e-30)


def _share(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divided by the L2 norm over all units of all sites."""
    norm = torch.cat(list(scores.values())).norm().clamp(min=1e-30)
    return {site: score / norm for site, score in scores.items()}


def _slices(model: nn.Module, weights: Mapping[str, Columns] | Slices) -> Slices:
    """Slices as they are; of a consumer, `block` neighbouring input columns for each unit."""
    result = {}
    for site, given in weights.items():
        if isinstance(given, Sequence):
            result[site] = given
            continue
        weight, dim = consumer_weight(model, given), 0 if given.conv1d else 1
        if weight.shape[dim] % given.block:
            raise InputError(f"{site}: {weight.shape[dim]} columns do not divide into blocks of {given.block}")
        result[site] = [(weight, dim, torch.arange(weight.shape[dim]) // given.block)]
    return result


def _dims_of(slices: Slices) -> dict[Tensor, list[int]]:
    """Parameter -> the dimensions along which slices divide it."""
    dims: dict[Tensor, list[int]] = {}
    for parts in slices.values():
        for weight, dim, _ in parts:
            known = dims.setdefault(weight, [])
            if dim not in known:
                known.append(dim)
    return dims


def _zeros(weight: Tensor, dim: int) -> Tensor:
    return torch.zeros((weight.shape or (1,))[dim], dtype=torch.float64)


def _unit_sums(
    loss: Loss, model: nn.Module, batches: Iterable[Batch], slices: Slices, *, squares: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Site -> sum over a unit's weights of w times the mean of g_n, and, if asked for, of w^2 times that of g_n^2.

    Both are linear in what each batch gives, so that only a number for each index of a parameter is kept of it.
    """
    dims = _dims_of(slices)
    powers = (1, 2) if squares else (1,)
    rows = {(weight, dim, power): _zeros(weight, dim) for weight in dims for dim in dims[weight] for power in powers}

    def reduce(weight: Tensor, gradient: Tensor) -> None:
        product = weight.detach().float() * gradient.float()
        for power in powers:
            for dim in dims[weight]:
                rows[weight, dim, power] += sum_rows(product if power == 1 else product.square(), dim)

    count = sum(1 for _ in reduce_gradients(loss, model, batches, list(dims), reduce))
    first = gather(slices, lambda weight, dim: rows[weight, dim, 1] / count)
    return first, gather(slices, lambda weight, dim: rows[weight, dim, 2] / count) if squares else {}


def _moments(
    loss: Loss, model: nn.Module, batches: Iterable[Batch], slices: Slices, *, squares: bool = False
) -> tuple[dict[Tensor, Tensor], dict[Tensor, Tensor]]:
    """Mean over batches of gradients and, if asked for, of their squares."""
    weights = list(_dims_of(slices))
    sums: list[dict[Tensor, Tensor]] = [{}, {}]
    count = 0
    for found in reduce_gradients(loss, model, batches, weights, lambda _, gradient: gradient.float()):
        for weight in weights:
            gradient = found.get(weight)
            if gradient is None:  # the loss has no part in it
                gradient = torch.zeros_like(weight, dtype=torch.float32)
            sums[0][weight] = sums[0][weight] + gradient if count else gradient
            if squares:
                sums[1][weight] = sums[1][weight] + gradient.square() if count else gradient.square()
        count += 1
    first, second = ({weight: summed / count for weight, summed in part.items()} for part in sums)
    return first, second


def reduce_gradients(
    loss: Loss,
    model: nn.Module,
    batches: Iterable[Batch],
    weights: Sequence[Tensor],
    reduce: Callable[[Tensor, Tensor], T],
) -> Iterator[dict[Tensor, T]]:
    """Per batch, parameter -> what `reduce(parameter, its gradient)` gives, where the loss has a part in it.

    `reduce` is called in the midst of the backward pass, as soon as a gradient is there, which is freed after it: of
    all gradients of a model there is only one at a time. Leaves everything as it was.
    """
    frozen = [(weight.requires_grad, weight.grad) for weight in weights]
    found: dict[Tensor, T] = {}

    def take(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        with torch.no_grad():
            found[weight] = reduce(weight, gradient)

    handles = []
    count = 0
    try:
        with evaluating(model):
            for weight in weights:
                weight.requires_grad_(True)
                weight.grad = None
                handles.append(weight.register_post_accumulate_grad_hook(take))
            for batch in batches:
                with torch.enable_grad():
                    value = loss(devices.move(batch, model))
                if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                    raise InputError("the loss must give one number with gradients: return the mean loss of the batch")
                found.clear()
                torch.autograd.backward(value, inputs=list(weights))
                del value
                count += 1
                yield dict(found)
    finally:
        for handle in handles:
            handle.remove()
        for weight, (flag, gradient) in zip(weights, frozen, strict=True):
            weight.requires_grad_(flag)
            weight.grad = gradient
    if not count:
        raise DataError("there are no batches to score with: give at least one")
