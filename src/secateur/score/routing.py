"""Routing: which experts the tokens of a calibration set go to, together with which others, and for how much.

One pass of forwards gives everything that is counted; the distances between experts are made of it, or of the router's
weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError
from secateur.score.hooks import Batch, finite, real_tokens

__all__ = ["Routing", "collect", "collect_for", "meeting_distance", "mixed_distance", "probabilities", "row_distance"]


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """How the tokens of a calibration set went to the E experts of one layer.

    tokens: how many there were
    counts: [E] int64, tokens that went to each expert
    shares: [E] float64, the sum of the shares (gate weights) they went with: soft counts
    together: [E, E] int64, tokens that went to both experts; symmetric, zero on the diagonal
    saliency: [E] float32, or None if it was not asked for; see `collect`
    soft: [E] float64, the router's probabilities summed up over all tokens, also those that went elsewhere; or None
    """

    tokens: int
    counts: Tensor
    shares: Tensor
    together: Tensor
    saliency: Tensor | None = None
    soft: Tensor | None = None

    def worth(self, rule: str) -> Tensor | None:
        """[E]: what the experts are worth by "usage" (the counts), "soft" or "saliency"; None for any other rule."""
        return {"usage": self.counts, "soft": self.soft, "saliency": self.saliency}.get(rule)


def collect(
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, nn.Module],
    *,
    saliency: bool = False,
    routers: Mapping[str, nn.Module] | None = None,
) -> dict[str, Routing]:
    """Path -> routing of each module in `layers`: packed experts, called with (states, experts, shares).

    states [T, d] are the tokens' inputs, experts [T, k] the indices of the experts that each goes to, shares [T, k]
    what the experts' outputs are multiplied by. Padding (0 in batch["attention_mask"]) is left out.

    saliency: also give each expert's mean contribution, which takes its outputs once more:
        S_j = mean over the tokens routed to j of  share_j(x) ||expert_j(x)||_2,   0 for an expert without tokens.
    routers: path -> the module that gives (logits [T, E], ...) of the layer; for soft counts,
        H_j = sum over all tokens of p_j(x),   p = softmax(logits), or sigmoid(logits) / their sum for DeepSeek-V3's.

    Raises `InputError` for a module that the forward pass never reached, `NumericalError` for NaN or infinity.

    Source: counts of co-activation: STUN (arXiv 2409.06211); saliency: REAP (arXiv 2510.13999); soft counts: SEER-MoE
    (arXiv 2404.05089), heavy hitters.
    """
    sums = {path: _Sums(path, module, saliency) for path, module in layers.items()}
    mask: Tensor | None = None
    ran = 0
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for one in sums.values():

            def look(_: nn.Module, args: tuple[Any, ...], kwargs: Any, one: _Sums = one) -> None:
                states, experts, shares = (*args, *kwargs.values())[:3]
                one.add(states, experts, shares, mask)

            stack.callback(one.module.register_forward_pre_hook(look, with_kwargs=True).remove)
        for path, router in (routers or {}).items():

            def note(router: Any, _: object, output: Any, one: _Sums = sums[path]) -> None:
                one.weigh(probabilities(router, output[0]), mask)

            stack.callback(router.register_forward_hook(note).remove)
        for batch in batches:
            mask = real_tokens(batch)
            forward(batch)
            ran += 1
    if not ran:
        raise DataError("there are no batches to see the routing on: give at least one")
    return {path: one.result() for path, one in sums.items()}


def collect_for(
    rule: str,
    forward: Callable[[Batch], object],
    model: nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, nn.Module],
    routers: Mapping[str, nn.Module],
) -> dict[str, Routing]:
    """`collect`, with what `Routing.worth` needs for `rule` and no more."""
    heard = routers if rule == "soft" else None
    return collect(forward, model, batches, layers, saliency=rule == "saliency", routers=heard)


def probabilities(router: nn.Module, logits: Tensor) -> Tensor:
    """[T, E] float64: what a router's logits [T, E] say of each expert, adding up to 1 for each token.

    Routers that correct their choice by a bias (DeepSeek-V3) judge each expert on its own, by a sigmoid.
    """
    if hasattr(router, "e_score_correction_bias"):
        alone = logits.double().sigmoid()
        return alone / alone.sum(-1, keepdim=True).clamp(min=1e-30)
    return logits.double().softmax(-1)


class _Sums:
    """The running sums of one layer."""

    def __init__(self, path: str, module: nn.Module, saliency: bool) -> None:
        packed = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() == 3]
        if not packed:
            raise InputError(f"module {path!r} holds no packed experts [E, ., .]: give those that do")
        self.path, self.module, self.saliency = path, module, saliency
        self.count, self.tokens, self.reached = len(packed[0]), 0, False
        self.shares = torch.zeros(self.count, dtype=torch.float64)
        self.norms = torch.zeros(self.count, dtype=torch.float64)
        self.meetings = torch.zeros(self.count, self.count, dtype=torch.float64)
        self.soft: Tensor | None = None

    def weigh(self, shares: Tensor, mask: Tensor | None) -> None:
        """Count in what the router says of tokens: [T, E] probabilities."""
        shares = finite(self.path, shares if mask is None else shares[mask.flatten().to(shares.device)])
        self.soft = shares.sum(0).cpu() + (0 if self.soft is None else self.soft)

    def add(self, states: Tensor, experts: Tensor, shares: Tensor, mask: Tensor | None) -> None:
        self.reached = True
        if mask is not None:
            if mask.numel() != len(experts):
                raise InputError(
                    f"module {self.path!r} routes {len(experts)} tokens of a batch of {mask.numel()}: "
                    "its experts must be given every token of the batch"
                )
            real = mask.flatten().to(experts.device)
            states, experts, shares = states[real], experts[real], shares[real]
        # Some libraries send a token nowhere by an index past the last expert.
        routed = torch.zeros(len(experts), self.count + 1, dtype=torch.float64, device=experts.device)
        weight = routed.scatter_add(1, experts.clamp(max=self.count), finite(self.path, shares).double())
        routed = routed.scatter(1, experts.clamp(max=self.count), 1.0)[:, : self.count]
        self.tokens += len(experts)
        self.shares += weight[:, : self.count].sum(0).cpu()
        self.meetings += (routed.T @ routed).cpu()
        if self.saliency:
            for expert in range(self.count):
                self._outputs(expert, states, routed[:, expert].bool(), weight[:, expert])

    def _outputs(self, expert: int, states: Tensor, mine: Tensor, weight: Tensor) -> None:
        given = states[mine]
        if not len(given):
            return
        alone = torch.full((len(given), 1), expert, dtype=torch.long, device=given.device)
        # Past the hooks: the module itself, with this expert alone and a share of one.
        outputs = self.module.forward(given, alone, torch.ones_like(alone, dtype=given.dtype))
        norms = torch.linalg.vector_norm(outputs.double(), dim=-1)
        self.norms[expert] += float(finite(self.path, norms * weight[mine]).sum())

    def result(self) -> Routing:
        if not self.reached:
            raise InputError(f"module {self.path!r} was never run by the forward pass: its routing can't be seen")
        if not self.tokens:
            raise InputError("every token was padding: check the attention mask")
        counts = self.meetings.diagonal().clone()
        mean = (self.norms / counts.clamp(min=1)).float() if self.saliency else None
        together = self.meetings.clone().fill_diagonal_(0).long()
        return Routing(self.tokens, counts.long(), self.shares, together, mean, self.soft)


# ------------------------------------------------------------------------------------------------------- distances


def row_distance(rows: Tensor, *, normalised: bool = True) -> Tensor:
    """[E, E] float64: ||W_i - W_j||_2 between rows of a router [E, d], divided by ||W||_F if `normalised`.

    One threshold for all layers needs the division: routers differ in scale.
    Source: STUN (arXiv 2409.06211), the first term of the behavioural similarity, with its sign turned.
    """
    wide = finite("router", rows.detach()).double().cpu()
    if wide.dim() != 2:
        raise InputError(f"a router of shape {tuple(rows.shape)}: give [experts, d]")
    found = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    norm = float(torch.linalg.matrix_norm(wide))
    return found / norm if normalised and norm > 0 else found


def meeting_distance(together: Tensor) -> Tensor:
    """[E, E] float64: -a_ij / |mean(a)|, from counts of tokens that went to both; all zero where none did.

    together: [E, E], zero on the diagonal; the mean is over all of it. Experts that answer the same tokens are near.
    Source: STUN (arXiv 2409.06211), the second term of the behavioural similarity, with its sign turned.
    """
    counts = together.double().cpu()
    if counts.dim() != 2 or counts.shape[0] != counts.shape[1]:
        raise InputError(f"co-activation of shape {tuple(together.shape)}: give [experts, experts]")
    mean = float(counts.mean().abs())
    return -counts / mean if mean > 0 else torch.zeros_like(counts)


def mixed_distance(rows: Tensor, together: Tensor, mix: float = 1.0, *, normalised: bool = True) -> Tensor:
    """[E, E] float64: `row_distance` + mix `meeting_distance`.

    Source: STUN (arXiv 2409.06211), the behavioural similarity of both terms, with its sign turned.
    """
    return row_distance(rows, normalised=normalised) + mix * meeting_distance(together)
