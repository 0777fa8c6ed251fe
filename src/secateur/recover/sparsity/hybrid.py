"""Hybrid sparsification modules: a trained operator and a shared mask behind what writes into a residual stream.

    Z = (M * D) y        D = L1 diag(v) L0 + I

y [.., d] is what a linear, or a table of embeddings, writes; M [d] is one mask for all of them (`unified_mask`); L0
[r, d] and L1 [d, r], r about a twentieth of d, mix channels, so that those that stay can take over from those that go.
L1 = 0 at first: D is the identity, and nothing changes. Afterwards both are folded into the weights, exactly, and the
channels of which M is 0 hold zeros at every place, so that they can be cut.

Models that subtract a mean (LayerNorm) are brought into the form of RMSNorm on the way: what is written also loses its
mean over the open channels, m <- m - M (sum_i m_i) / (sum_i M_i), so that the mean that the norms subtract is zero and
zero channels stay zero; the norms' shifts are masked, too. With M = 1 that changes no output.

Source: Pruning-Aware Tuning (PAT, arXiv 2408.14721), sections 3.2 to 3.4. Hooks do all of it: the network's code stays
as it is, and adapters (`training.lora`) may stand beside the same linears.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur.errors import InputError
from secateur.recover.sparsity.unified_mask import UnifiedMask

__all__ = ["Distance", "Hybrid", "Operator", "Variant", "centre", "orthogonality"]

Variant = Literal["paper", "code"]
"""Where the scale is: see `Operator`."""
Distance = Literal["square", "norm", "mean"]
"""How `orthogonality` is measured."""

_ROWS = 8192
"""Of a weight that are folded at a time, in float64."""


def orthogonality(rows: Tensor, distance: Distance = "square") -> Tensor:
    """How far the rows [r, d] of L0 are from orthonormal: |L0 L0^T - I|_F^2, its root ("norm") or mean square ("mean").

    The paper has the norm, whose gradient is as long beside the optimum as far from it; the official code the mean.
    """
    with torch.autocast(rows.device.type, enabled=False):
        gap = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        squares = gap.square()
        if distance == "mean":
            return squares.mean()
        return squares.sum() if distance == "square" else torch.linalg.matrix_norm(gap)


def centre(states: Tensor, mask: Tensor) -> Tensor:
    """``m - M (sum_i m_i) / (sum_i M_i)``: states [.., d] without their mean over the open channels of M [d]."""
    return states - mask * (states.sum(-1, keepdim=True) / mask.sum())


class Operator(nn.Module):
    """The hybrid identity operator of one place, float32.

    "paper": D = L1 diag(v) L0 + I with v [r], 1 at first. "code", as the official implementation has it: D = L1 L0 + I,
    and a scale u [d], 1 at first, behind the mask.
    """

    def __init__(self, channels: int, rank: int, *, variant: Variant = "paper") -> None:
        super().__init__()
        if not 0 < rank <= channels:
            raise InputError(f"an operator of rank {rank} on {channels} channels: give a rank from 1 to {channels}")
        self.variant = variant
        self.L0 = nn.Parameter(torch.empty(rank, channels))
        self.L1 = nn.Parameter(torch.zeros(channels, rank))
        self.scale = nn.Parameter(torch.ones(rank if variant == "paper" else channels))
        nn.init.kaiming_uniform_(self.L0, a=math.sqrt(5))

    def forward(self, states: Tensor, mask: Tensor, *, centred: bool = False) -> Tensor:
        """(M * D) states [.., d], in the number type of `states`; in float64 if that is theirs."""
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        # A model that is split over devices writes on several of them.
        low, high, scale, mask = (one.to(states.device, wide) for one in (self.L0, self.L1, self.scale, mask))
        with torch.autocast(states.device.type, enabled=False):
            inner = nn.functional.linear(states.to(wide), low)
            inner = inner * scale if self.variant == "paper" else inner
            mixed = (states.to(wide) + nn.functional.linear(inner, high)) * mask
            mixed = mixed if self.variant == "paper" else mixed * scale
            return (centre(mixed, mask) if centred else mixed).to(states.dtype)


class Hybrid(nn.Module):
    """An operator at every place of a network and one mask for all; within `on(model)` they act in its forward passes.

    writers: module paths of what writes into the residual stream: linears and tables. norms: of models that subtract
    means (`centred`), module paths of the norms, whose shifts are masked. rank: r. variant: see `Operator`. seed: of
    L0.
    """

    def __init__(
        self,
        writers: Sequence[str],
        mask: UnifiedMask,
        *,
        rank: int,
        variant: Variant = "paper",
        norms: Sequence[str] = (),
        centred: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not writers:
            raise InputError("nothing writes into a residual stream: name the linears and tables that do")
        self.writers, self.norms, self.centred, self.variant = list(writers), list(norms), centred, variant
        self.mask = mask
        channels = len(mask.proxy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.operators = nn.ModuleList(Operator(channels, rank, variant=variant) for _ in writers)
        self.now = torch.ones(channels)
        """M of this step."""

    def set_step(self, step: int) -> None:
        """Compute M once, for all places of the passes to come."""
        self.now = self.mask.at(step)

    def harden(self) -> None:
        """Let passes to come use the mask that is cut by."""
        self.now = self.mask.keep().float()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within the block, what the writers of `model` give is mixed and masked; the operators are where it is.

        Raises `InputError` for a module that it does not have.
        """
        modules = dict(model.named_modules())
        missing = next((path for path in (*self.writers, *self.norms) if path not in modules), None)
        if missing is not None:
            raise InputError(f"the model has no module {missing!r}: give a path of named_modules()")
        self.to(devices.find_device(model))
        with ExitStack() as stack:
            for path, operator in zip(self.writers, self.operators, strict=True):
                stack.callback(modules[path].register_forward_hook(partial(self._write, operator)).remove)
            for path in self.norms:
                stack.callback(modules[path].register_forward_hook(self._shift).remove)
            yield

    def _write(self, operator: nn.Module, _: nn.Module, args: object, output: Tensor) -> Tensor:
        mixed: Tensor = operator(output, devices.move(self.now, output), centred=self.centred)
        return mixed

    def _shift(self, norm: nn.Module, args: object, output: Tensor) -> Tensor:
        """The norm's output with its shift masked: g x / rms + M b."""
        shift: Any = norm.bias
        masked: Tensor = output - ((1.0 - devices.move(self.now, output)) * shift).to(output.dtype)
        return masked

    def orthogonality(self, distance: Distance = "square") -> Tensor:
        """The sum of `orthogonality` over all places, with gradient."""
        place = self.now.device
        return torch.stack([orthogonality(one.L0, distance).to(place) for one in self._each()]).sum()

    def _each(self) -> Iterator[Operator]:
        for operator in self.operators:
            assert isinstance(operator, Operator)
            yield operator

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Fold the operators and the mask of `keep` into the weights of `model`, in place, in float64.

        W <- (M * D) W of linears, and likewise their biases; E <- E (M * D)^T of tables; the shifts of `norms` are
        masked. Merge adapters first: they lie inside.
        """
        keep = self.mask.keep().double()
        for path, operator in zip(self.writers, self._each(), strict=True):
            module: Any = model.get_submodule(path)
            written_last = isinstance(module, nn.Embedding) or hasattr(module, "nf")  # Conv1D stores [in, out]
            weight = module.weight.data if written_last else module.weight.data.T
            apply = partial(_fold_rows, operator.to(weight.device), keep.to(weight.device), self.centred)
            apply(weight)
            if getattr(module, "bias", None) is not None:
                apply(module.bias.data[None])
        for path in self.norms:
            shift: Any = model.get_submodule(path).bias
            shift.mul_(keep.to(shift))


def _fold_rows(operator: Callable[..., Tensor], keep: Tensor, centred: bool, rows: Tensor) -> None:
    """rows [n, d] <- (M * D) rows, in place."""
    for part in rows.split(_ROWS):
        part.copy_(operator(part.double(), keep, centred=centred))
