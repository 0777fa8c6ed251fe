"""One trainable mask for many places: gates that start open, sharpen step by step, and end with a given number open.

    M(s) = sigmoid(tau(s) w) + beta(s)        of step s = 0, 1, ..., with one proxy w per channel, 0 at first

so that M(0) = 1, and from step s0 on M is 0 or 1. Source: Pruning-Aware Tuning (PAT, arXiv 2408.14721), section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from secateur.errors import InputError

__all__ = [
    "FROZEN",
    "UnifiedMask",
    "count_gap",
    "fade",
    "find_offset",
    "find_temperature",
    "open_straight_through",
    "pull_apart",
]

FROZEN = 0.8
"""Share of s0 after which proxies and temperature stay as they are (the official code)."""
_FLOOR = 10.0
"""tau w is at least minus this, so that no gate is below 4.5e-5 while it learns (the official code)."""
_RATE = 2.77
"""Of `fade`: 1/16 is left at s0."""
_TINY = 1e-6
_POINTS = 100
"""Counts kept in a record."""


def find_temperature(step: int, settled: int) -> float:
    """tau(s) = 1 / (1 - ln s / ln s0) for s < s0: 1 up to the first step, then ever steeper; infinite from s0 on."""
    if step >= settled:
        return math.inf
    return 1.0 / (1.0 - math.log(max(1, step)) / math.log(settled) + _TINY) if settled > 1 else 1.0


def find_offset(step: int, settled: int) -> float:
    """beta(s) = 1/2 - s / s0 for s < s0 / 2, else 0: with sigmoid(0) = 1/2 every gate is 1 at step 0."""
    return 0.5 - step / settled if 2 * step < settled else 0.0


def fade(step: int, settled: int) -> float:
    """exp(-2.77 s / s0) for s < s0, then 0: the gate of a channel of which it is known from the start that it goes."""
    return math.exp(-_RATE * step / settled) if step < settled else 0.0


class _Open(torch.autograd.Function):
    """1[w >= 0] forward, the gradient unchanged backward."""

    @staticmethod
    def forward(ctx: object, proxy: Tensor) -> Tensor:
        return (proxy >= 0).to(proxy.dtype)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def open_straight_through(proxy: Tensor) -> Tensor:
    """1[w >= 0] of any shape, with the gradient of w itself (the straight-through estimator)."""
    result: Tensor = _Open.apply(proxy)
    return result


def count_gap(proxy: Tensor, kept: int) -> Tensor:
    """|sum_i 1[w_i >= 0] - N| / N, straight through: how far the number of open channels is from N. Scalar."""
    return (open_straight_through(proxy).sum() - kept).abs() / kept


def pull_apart(proxy: Tensor) -> Tensor:
    """mean (w - 1/2)^2 over w > 0 plus mean (w + 1/2)^2 over w <= 0: two wells, so that no proxy stays at 0. Scalar."""
    above = proxy > 0

    def mean(square: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, square, 0.0).sum() / where.sum().clamp(min=1)

    return mean((proxy - 0.5).square(), above) + mean((proxy + 0.5).square(), ~above)


class UnifiedMask(nn.Module):
    """One mask [channels] for every place of a network, `kept` of which end open.

    From step 0.8 s0 on the proxies are detached and the temperature is held. Then the channels that stay are those of
    the `kept` largest proxies, ties by index, so that the number is exact whether the proxies have come to it by
    themselves or not (`converged`). A channel whose proxy is on the other side of 0 is opened or closed outright; all
    are from s0 on.

    fixed: [channels] booleans, in place of a mask that is learned: those that go `fade` (for comparison).
    steps: of the whole training, for the record of open channels.
    """

    def __init__(self, channels: int, kept: int, *, settled: int, steps: int, fixed: Tensor | None = None) -> None:
        super().__init__()
        if not 0 < kept < channels:
            raise InputError(f"a mask keeps {kept} of {channels} channels: give a number between")
        self.kept, self.settled = kept, max(1, settled)
        self.frozen_at = math.ceil(FROZEN * self.settled)
        self.proxy = nn.Parameter(torch.zeros(channels), requires_grad=fixed is None)
        self.fixed: Tensor | None
        self.decided: Tensor
        self.open: Tensor
        self.counts: Tensor
        self.flips: Tensor
        self.register_buffer("fixed", fixed)
        self.register_buffer("decided", torch.zeros(channels))
        """1 for channels that stay, once that is decided; weights may be averaged, this is not."""
        self.register_buffer("open", torch.ones(channels, dtype=torch.bool))
        """As it was at the step before."""
        self.register_buffer("counts", torch.zeros(min(self.frozen_at, steps)))
        """Open channels at each step."""
        self.register_buffer("flips", torch.zeros(min(self.frozen_at, steps)))
        """Channels that changed sides at each step."""

    def at(self, step: int) -> Tensor:
        """M(s), [channels] float32, with the gradient of the proxies until they are detached."""
        if self.fixed is not None:
            self._decide()
            return torch.where(self.fixed, 1.0, fade(step, self.settled))
        if step < self.frozen_at:
            self._note(step)
            scaled = (find_temperature(step, self.settled) * self.proxy).clamp(min=-_FLOOR)
            return scaled.sigmoid() + find_offset(step, self.settled)
        self._decide()
        if step >= self.settled:
            return self.decided.clone()
        proxy = self.proxy.detach()
        soft = (find_temperature(self.frozen_at, self.settled) * proxy).clamp(min=-_FLOOR).sigmoid()
        return torch.where((proxy >= 0) == self.decided.bool(), soft, self.decided)

    def keep(self) -> Tensor:
        """[channels] booleans, `kept` of them true: what stays, by rank as long as that is not decided."""
        if self.fixed is not None:
            return self.fixed
        return torch.where(self.decided.sum() == self.kept, self.decided.bool(), self._rank())

    def pulls(self, step: int) -> tuple[Tensor, Tensor] | None:
        """(`count_gap`, `pull_apart` where that gap is 0, else 0) of the proxies; None once they are detached.

        Wells that pulled at any count would hold a wrong one: few closed proxies, which share one mean, are pulled down
        more than the gap pulls them up.
        """
        if self.fixed is not None or step >= self.frozen_at:
            return None
        gap = count_gap(self.proxy, self.kept)
        return gap, torch.where(gap.detach() == 0, pull_apart(self.proxy), 0.0)

    @property
    def converged(self) -> bool:
        """Whether the proxies came to the right number by themselves. Waits for the device."""
        return self.fixed is not None or int((self.proxy >= 0).sum()) == self.kept

    def describe(self) -> dict[str, object]:
        """What became of the mask: waits for the device.

        channels, kept; open, at the end of learning; sharp: the share of gates within 0.1 of 0 or 1 there; late_flips:
        channels that changed sides in the last tenth before it; curve: (step, open channels), at most a hundred.
        """
        if self.fixed is not None:
            return {"channels": len(self.proxy), "kept": self.kept, "fixed": True}
        last = len(self.counts)
        steps = sorted({round(place * (last - 1) / (_POINTS - 1)) for place in range(_POINTS)}) if last else []
        tau = find_temperature(min(self.frozen_at, max(0, self.settled - 1)), self.settled)
        gates = (tau * self.proxy.detach()).sigmoid()
        return {
            "channels": len(self.proxy),
            "kept": self.kept,
            "open": int((self.proxy >= 0).sum()),
            "sharp": float(((gates - 0.5).abs() > 0.4).float().mean()),
            "late_flips": int(self.flips[last - max(1, last // 10) :].sum()) if last else 0,
            "curve": [(step, int(self.counts[step])) for step in steps],
        }

    @torch.no_grad()
    def _rank(self) -> Tensor:
        order = self.proxy.detach().argsort(descending=True, stable=True)
        return torch.zeros_like(self.open).index_fill(0, order[: self.kept], True)

    @torch.no_grad()
    def _decide(self) -> None:
        self.decided.copy_(self._rank() if self.fixed is None else self.fixed)

    @torch.no_grad()
    def _note(self, step: int) -> None:
        now = self.proxy >= 0
        self.counts[step] = now.sum()
        self.flips[step] += (now != self.open).sum()
        self.open.copy_(now)
