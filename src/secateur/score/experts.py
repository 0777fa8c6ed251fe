"""Neurons inside experts of a mixture: gradient of a gate on each, activity and magnitude.

Layers are given as site -> packed experts in a form of `formats.expert_tensors`, E of I neurons each, with W2 of all
[E, d, I] in down_proj, called with (states [T, d], chosen experts [T, k], shares [T, k]). Neuron j of expert e has the
intermediate activation h_j = act(W1 x)_j (W3 x)_j, or act(W1 x)_j without gates; it is unit e I + j of its site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError
from secateur.formats import expert_tensors
from secateur.score import gradient
from secateur.score.hooks import Batch, finite, real_tokens, sound

__all__ = [
    "activation",
    "add_likeliest",
    "fill_starved",
    "has_no_gradient",
    "likeliest",
    "remember_likeliest",
    "share_scores",
    "taylor",
    "truncated_loss",
    "weight",
]

Layers = Mapping[str, Any]
_OUT = "down_proj"


def taylor(
    loss: Callable[[Batch], Tensor], model: nn.Module, layers: Layers, batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Site -> float32 [E I]: |sum over tokens of h_j dL/dh_j|, the gradient of a gate of 1 on each neuron.

    It is |sum_i W2_ij dL/dW2_ij|, for dL/dW2 sums g h^T over the tokens that the expert got, so that only down_proj
    needs a gradient; that of a layer is reduced to its E I numbers, and freed, before the next is there. The share that
    a token gives its expert is inside: experts that are hardly used score low.

    Source: Molchanov et al., CVPR 2019, equation 8, with gates; SlimMoE (arXiv 2506.18349) takes it of its KD loss.
    """
    weights = {site: module.down_proj for site, module in layers.items()}
    modules = {weights[site]: module for site, module in layers.items()}
    sums = {weight: _zeros(module) for weight, module in modules.items()}

    def reduce(weight: Tensor, found: Tensor) -> None:
        own, slopes = (expert_tensors.matrix(modules[weight], _OUT, one) for one in (weight.detach(), found))
        for expert, slope in enumerate(slopes):
            sums[weight][expert] += (own[expert].float() * slope.float()).sum(0).cpu()

    count = sum(1 for _ in gradient.reduce_gradients(loss, model, batches, list(sums), reduce))
    return {site: finite(site, (sums[one] / count).abs().flatten().float()) for site, one in weights.items()}


def activation(
    forward: Callable[[Batch], object], model: nn.Module, layers: Layers, batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Site -> float32 [E I]: mean |h_j| over the tokens routed to the expert; 0 where it got none.

    Raises `DataError` without batches, `InputError` for a layer that the forward pass never reached.
    """
    sums = {site: _zeros(module) for site, module in layers.items()}
    counts = {site: torch.zeros(len(module.down_proj), dtype=torch.float64) for site, module in layers.items()}
    mask: Tensor | None = None
    reached: set[str] = set()

    def look(site: str, module: Any, states: Tensor, chosen: Tensor) -> None:
        reached.add(site)
        real = None if mask is None else mask.flatten().to(chosen.device)
        for expert in range(len(module.down_proj)):
            mine = (chosen == expert).any(-1)
            given = states[mine if real is None else mine & real]
            sums[site][expert] += expert_tensors.run_first(module, expert, given).abs().double().sum(0).cpu()
            counts[site][expert] += len(given)

    hooks, ran = [], 0
    for site, module in layers.items():

        def note(one: nn.Module, args: tuple[Any, ...], kwargs: Any, site: str = site) -> None:
            states, chosen = (*args, *kwargs.values())[:2]
            with align_module_device(one):
                look(site, one, states, chosen)

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                mask = real_tokens(batch)
                forward(batch)
                ran += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise DataError("there are no batches to score with: give at least one")
    missed = sorted(set(layers) - reached)
    if missed:
        raise InputError(f"the experts of {missed[0]} were never run by the forward pass: they can't be scored from it")
    means = {site: sums[site] / counts[site].clamp(min=1)[:, None] for site in layers}
    return {site: finite(site, value.flatten().float()) for site, value in means.items()}


def weight(layers: Layers) -> dict[str, Tensor]:
    """Site -> float32 [E I]: the norm of all weights of a neuron, its row of W1 (and W3) and its column of W2."""
    found = {}
    for site, module in layers.items():
        with align_module_device(module):  # which brings what is offloaded
            squares = expert_tensors.matrix(module, _OUT).detach().float().square().sum(1)
            rows = expert_tensors.matrix(module, expert_tensors.find_first(module)).detach().float().square().sum(-1)
        squares.index_add_(1, expert_tensors.neurons_of_rows(module).to(rows.device), rows)
        found[site] = finite(site, squares.sqrt().flatten().cpu())
    return found


def _zeros(module: nn.Module) -> Tensor:
    """A number for each neuron of each expert, float64 [E, I]."""
    count, _, neurons = expert_tensors.sizes(module)
    return torch.zeros(count, neurons, dtype=torch.float64)


def share_scores(scores: Mapping[str, Tensor], layers: Layers) -> dict[str, Tensor]:
    """The scores with those of neuron j the same in every expert of a layer: the mean of its shares of each expert.

    So all experts keep one set of indices: what per-expert sets are compared with.
    """
    found = dict(scores)
    for site, module in layers.items():
        rows = scores[site].reshape(len(module.down_proj), -1)
        shares = rows / rows.sum(1, keepdim=True).clamp(min=1e-30)
        found[site] = shares.mean(0).repeat(len(rows))
    return found


def fill_starved(scores: Mapping[str, Tensor], layers: Layers) -> dict[str, Tensor]:
    """The scores, where experts that have none, such as those that no token came to, are ranked by their weights.

    With "SITE.starved", how many these are, where there are some. Ties would keep the first neurons, whatever they are.
    Each expert is ranked on its own, so scales need not agree.
    """
    table, norms = dict(scores), weight(layers)
    for site, module in layers.items():
        rows = table[site].reshape(len(module.down_proj), -1)
        none = ~rows.any(1)
        if bool(none.any()):
            table[site] = torch.where(none[:, None], norms[site].view_as(rows), rows).flatten()
            table[f"{site}.starved"] = none.sum()[None]
    return table


# ------------------------------------------------------------------------------------- a loss that has a gradient


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and indices [..., count] of the likeliest tokens under logits [..., V]."""
    found = torch.log_softmax(logits.detach().float(), -1).topk(min(count, logits.shape[-1]), -1)
    return found.values, found.indices


def remember_likeliest(
    logits: Callable[[Batch], Tensor], model: nn.Module, layers: Sequence[str], samples: Iterable[Batch], count: int
) -> dict[str, Tensor]:
    """`likeliest` of `logits(sample)` at every position: "NUMBER.values" and "NUMBER.indices" by sample.

    Raises `NumericalError` where one of the `layers` of `model` gives what is not finite.
    """
    tensors: dict[str, Tensor] = {}
    with sound(model, layers):
        for number, item in enumerate(samples):
            values, indices = likeliest(logits(item), count)
            tensors |= {f"{number}.values": values.cpu(), f"{number}.indices": indices.cpu()}
    return tensors


def add_likeliest(samples: Iterable[Batch], known: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The samples with the likeliest tokens of `remember_likeliest`, for `truncated_loss`."""
    return [
        {**item, "likely": known[f"{number}.values"], "likely_indices": known[f"{number}.indices"]}
        for number, item in enumerate(samples)
    ]


def truncated_loss(logits: Tensor, log_probabilities: Tensor, indices: Tensor, mask: Tensor | None = None) -> Tensor:
    """- sum_k p_k log q_k over the teacher's likeliest tokens k, p not renormalised; mean over tokens, in nats.

    Where q is the teacher's own distribution, KL over all tokens has no gradient, nor has any form with both sides
    renormalised or the rest kept as one event. This has: (S - 1) q_k at the k of mass S, and S q_v elsewhere.

    Shapes: logits [..., V], log_probabilities and indices [..., k] of `likeliest`, mask [...], True where one counts.
    """
    log_q = torch.log_softmax(logits.float(), -1).gather(-1, indices)
    loss = -(log_probabilities.exp() * log_q).sum(-1)
    return loss.mean() if mask is None else (loss * mask).sum() / mask.sum()


def has_no_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor, least: float = 1e-4) -> bool:
    """Whether a mean loss has next to no gradient at `logits` [..., V]: sum |dL/dz| below `least`.

    Cross-entropy has one of 2 (1 - q) per token. Without it first-order scores are noise, whatever the model.
    """
    at = logits.detach().float().requires_grad_(True)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(loss(at), at)
    return float(found.abs().sum()) < least
