"""Gradient: how much the loss would change, to first order, if a unit's weights were zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite
from secateur.score.magnitude import Columns, consumer_weight

__all__ = ["fisher", "taylor"]


def taylor(
    loss: Callable[[Batch], Tensor],
    model: nn.Module,
    batches: Iterable[Batch],
    consumers: Mapping[str, Columns],
    *,
    within: Literal["unit", "weight"] = "unit",
) -> dict[str, Tensor]:
    """Site -> float32 [count]: |sum_w w g| over a unit's weights, g the gradient of the mean loss over batches.

    loss:      batch -> scalar mean loss, with gradients
    consumers: site -> linear whose input columns [d_out, block] are the unit's weights
    within:    "unit" sums w g with its sign before the absolute value (removing the unit as a whole);
               "weight" takes sum |w g| (each weight on its own)

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8;
    LLM-Pruner (arXiv 2305.11627), its vector- and element-wise first-order forms.
    """
    if within not in ("unit", "weight"):
        raise InputError(f"within {within!r} is neither 'unit' nor 'weight'")
    gradients: dict[str, Tensor] = {}
    count = 0
    for found in _gradients(loss, model, batches, consumers):
        gradients = {site: gradients[site] + g if count else g for site, g in found.items()}
        count += 1
    if not count:
        raise DataError("there are no batches to score with: give at least one")
    scores: dict[str, Tensor] = {}
    for site, consumer in consumers.items():
        product = consumer_weight(model, consumer).detach().float() * gradients[site] / count
        if within == "weight":
            product = product.abs()
        scores[site] = finite(site, _per_unit(product, consumer).abs())
    return scores


def fisher(
    loss: Callable[[Batch], Tensor],
    model: nn.Module,
    batches: Iterable[Batch],
    consumers: Mapping[str, Columns],
) -> dict[str, Tensor]:
    """Site -> float32 [count]: (1/N) sum_n (sum_w w g_n)^2, the diagonal Fisher estimate of the loss increase.

    One gradient g_n per batch: batches of one sample give the estimate as published.
    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, equation 9 (up to
    the factor 1/2).
    """
    totals: dict[str, Tensor] = {}
    count = 0
    for found in _gradients(loss, model, batches, consumers):
        for site, consumer in consumers.items():
            square = _per_unit(consumer_weight(model, consumer).detach().float() * found[site], consumer).square()
            totals[site] = totals[site] + square if count else square
        count += 1
    if not count:
        raise DataError("there are no batches to score with: give at least one")
    return {site: finite(site, total / count) for site, total in totals.items()}


def _gradients(
    loss: Callable[[Batch], Tensor], model: nn.Module, batches: Iterable[Batch], consumers: Mapping[str, Columns]
) -> Iterable[dict[str, Tensor]]:
    """Per batch, site -> gradient as stored, float32. Leaves `.grad` and `requires_grad` as they were."""
    weights = {site: consumer_weight(model, consumer) for site, consumer in consumers.items()}
    frozen = {site: weight.requires_grad for site, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                found = torch.autograd.grad(loss(batch), list(weights.values()))
            yield {site: gradient.float() for site, gradient in zip(weights, found, strict=True)}
    finally:
        for site, weight in weights.items():
            weight.requires_grad_(frozen[site])


def _per_unit(product: Tensor, consumer: Columns) -> Tensor:
    """Sum a [d_out, d_in] product (stored [d_in, d_out] for Conv1D) over each unit's columns."""
    columns = product.sum(1 if consumer.conv1d else 0)
    return columns.reshape(-1, consumer.block).sum(1)
