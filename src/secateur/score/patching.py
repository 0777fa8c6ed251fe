"""Path patching: what one attention head adds to an answer by itself, with all other heads frozen.

Jin et al. 2024, "Cutting Off the Head Ends the Conflict" (arXiv 2402.18154); path patching: Goldowsky-Dill et al.
2023 (arXiv 2304.05969).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.score.hooks import module_at
from secateur.score.magnitude import Columns

B = TypeVar("B")

__all__ = ["gradient_importance", "logit_preference", "patch_each", "preference", "relative_change"]


def patch_each(clean: Tensor, corrupted: Tensor, block: int) -> Tensor:
    """[H, N, H * block]: for each head h the outputs `clean` [N, H * block] with those of h from `corrupted`."""
    if clean.shape != corrupted.shape or clean.shape[-1] % block:
        raise InputError(
            f"clean outputs are {tuple(clean.shape)}, corrupted ones {tuple(corrupted.shape)}, heads {block} wide: "
            "give two of one shape, a whole number of heads wide"
        )
    count = clean.shape[-1] // block
    own = torch.eye(count, dtype=torch.bool, device=clean.device).repeat_interleave(block, 1)
    return torch.where(own[:, None], corrupted, clean)


def relative_change(patched: Tensor, clean: Tensor) -> Tensor:
    """dP = (P~ - P) / P of probabilities given by their natural logarithms, float64; `clean` is broadcast.

    Source: Jin et al., section 4; the form of the denominator at second hand.
    """
    return torch.expm1(patched.double() - clean.double())


def preference(memory: Tensor, context: Tensor) -> Tensor:
    """S = mean over prompts (dim 1) of dC - dM, [H]: above 0 the head supports the memory, below 0 the context.

    memory, context: dM and dC [H, N], the relative changes of the two answers where the head is patched.
    """
    return (context.double() - memory.double()).mean(1)


def logit_preference(patched: Tensor, clean: Tensor) -> Tensor:
    """S = mean over prompts of (l~_c - l~_m) - (l_c - l_m), [H]: in logarithms, where small P make dP large.

    patched: ln P of memory and context [H, N, 2]; clean [N, 2].
    """
    moved = patched.double() - clean.double()
    return (moved[..., 1] - moved[..., 0]).mean(1)


def gradient_importance(
    loss: Callable[[B], Tensor], model: nn.Module, batches: Iterable[B], consumers: Mapping[str, Columns]
) -> dict[str, Tensor]:
    """Site -> float64 [H]: mean over prompts of |sum over positions and channels of z dL/dz|: importance by gradients.

    The absolute value is of each prompt's own sum, so that prompts which pull a head both ways do not cancel.

    loss: batch -> [N], the losses of its prompts. consumers: site -> the linear that reads its heads' outputs z.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (arXiv 1905.10650), equation 2.
    """
    found, count = dict[str, Tensor](), 0
    outputs = dict[str, Tensor]()

    def watch(site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            outputs[site] = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            return (outputs[site], *args[1:])

        return take

    with ExitStack() as stack, torch.enable_grad(), evaluating(model):
        for site, consumer in consumers.items():
            module = module_at(model, consumer.module)
            stack.callback(module.register_forward_pre_hook(watch(site)).remove)
        for batch in batches:
            losses = loss(batch)
            slopes = torch.autograd.grad(losses.sum(), list(outputs.values()))
            for (site, z), slope in zip(outputs.items(), slopes, strict=True):
                product = (z.detach().double() * slope.double()).reshape(len(losses), -1, z.shape[-1]).sum(1)
                part = product.reshape(len(losses), -1, consumers[site].block).sum(2).abs().sum(0).cpu()
                found[site] = found[site] + part if site in found else part
            count += len(losses)
            outputs.clear()
    return {site: value / count for site, value in found.items()}
