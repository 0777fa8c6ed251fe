"""Wanda: |weight| times the norm of its input, and the share of outliers among these products (OWL)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from secateur._utils.batches import Batch
from secateur.errors import InputError
from secateur.score import activation, magnitude
from secateur.score.magnitude import Columns

__all__ = ["outliers", "scores", "units"]


def scores(weight: Tensor, squares: Tensor) -> Tensor:
    """A_ij = |W_ij| ||X_j||_2, float32 [d_out, d_in].

    weight: [d_out, d_in]; squares: [d_in], ||X_j||^2, or the mean square of each input up to a factor
    (`hessian.diagonal`), which changes no order within a matrix. Compare within a row: there A is invariant under
    rescaled inputs and rows.
    Source: Wanda (arXiv 2306.11695), equation 1.
    """
    if weight.dim() != 2 or squares.shape != weight.shape[1:]:
        raise InputError(
            f"weight {tuple(weight.shape)} and squares {tuple(squares.shape)}: give [d_out, d_in] and [d_in]"
        )
    return weight.detach().float().abs() * squares.to(weight.device).sqrt()


def outliers(parts: Iterable[Tensor], times: float = 5.0) -> float:
    """D = 100 #{A > times mean(A)} / n over the scores A of all matrices of a block together, in percent.

    Source: OWL (arXiv 2310.05175), section 3.2; its M is `times` (5 in the published run on LLaMA at 70 %).
    """
    held = list(parts)
    count = sum(part.numel() for part in held)
    mean = sum(float(part.double().sum()) for part in held) / count
    return 100.0 * sum(int(torch.count_nonzero(part > times * mean)) for part in held) / count


def units(
    forward: Callable[[Batch], object], model: nn.Module, batches: Iterable[Batch], consumers: Mapping[str, Columns]
) -> dict[str, Tensor]:
    """Site -> [count]: ||W_u||_2 ||X_u||_2 of each unit, Wanda's products over all weights that read it.

    W_u are its columns of the consumer, X_u what that reads of it over all tokens. For single columns this is the norm
    of what the unit adds to the output, as if nothing correlated.
    """
    columns = magnitude.groups(model, consumers)
    norms = activation.collect(forward, model, batches, activation.inputs(consumers), batch="l2", sequence="l2")
    return {site: columns[site].to(norm.device) * norm for site, norm in norms.items()}
