"""Load-balancing loss of the routers of mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.recover.training.compose import Parts
from secateur.recover.training.objectives import Objective, count

__all__ = ["add_balance", "load_balance"]


def load_balance(logits: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """E sum_e f_e P_e: f_e the choices that fell on expert e per token, P_e its mean probability; k if all are alike.

    Only P has a gradient. Shapes: logits [T, E] and chosen [T, k] of one router -> scalar; mask [T] leaves out padding.

    Source: Switch Transformers (arXiv 2101.03961), equations 4 to 6, here for k choices of each token.
    """
    probability = torch.softmax(logits.float(), -1)
    hits = torch.zeros_like(probability).scatter_add_(-1, chosen, torch.ones_like(chosen, dtype=probability.dtype))
    if mask is not None:
        probability, hits = probability[mask], hits[mask]
    return logits.shape[-1] * (hits.mean(0) * probability.mean(0)).sum()


def add_balance(objective: Objective, routers: Sequence[nn.Module], weight: float) -> Objective:
    """`objective` + `weight` x the mean of `load_balance` over `routers`, which the objective's forward pass calls.

    routers: of the student; each gives (logits [B S, E], shares, chosen [B S, k]). A micro-batch counts by its share of
    the step's tokens. Without weight or routers it is the objective itself.
    """
    if not weight or not routers:
        return objective

    def both(batch: Mapping[str, Tensor], totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        seen: list[tuple[Tensor, Tensor]] = []

        def note(module: nn.Module, inputs: object, output: Any) -> None:
            seen.append((output[0], output[-1]))

        hooks = [router.register_forward_hook(note) for router in routers]
        try:
            loss, parts = objective(batch, totals)
        finally:
            for hook in hooks:
                hook.remove()
        mask = batch.get("attention_mask")
        flat = None if mask is None else mask.flatten().bool().to(loss.device)
        uneven = torch.stack([load_balance(logits, chosen, flat) for logits, chosen in seen]).mean()
        uneven = uneven * (count(batch)["tokens"] / totals["tokens"])
        return loss + weight * uneven, {**parts, "balance": uneven.detach()}

    return both
