"""A router that learns which size of every axis meets a budget best: its choices by Gumbel-Softmax, and its loss.

Source: Nemotron Elastic (arXiv 2511.16664), section 3.3, with what its released code adds: the scale of the logits, the
dead zone of the loss, and the penalty that keeps the whole model whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils import distributed
from secateur._utils.batches import Batch, Batches
from secateur.errors import BudgetError, InputError

__all__ = ["BudgetRouter", "Draws", "budget_loss", "encode_budget", "gumbel_softmax", "scale_at", "temperature_at"]

_SLOPE = 0.1
"""Of the leaky ReLU."""
_DEVIATION = 0.1
"""Of the first weights."""
_SHARP = 0.996
"""A pass is hard, with the gradient of a soft one, where a uniform number is above it."""


class BudgetRouter(nn.Module):
    """Budget u [budgets] -> logits of the choices of each axis: z = W2 leaky(W1 u + b1) + b2, a network for each axis.

    axes: name -> (rows, choices): layers that choose on their own, 1 where all choose alike, and choices of each.
    """

    def __init__(self, budgets: int, axes: Mapping[str, tuple[int, int]], *, hidden: int = 256) -> None:
        super().__init__()
        if not axes or budgets < 1:
            raise InputError("a router needs an axis to choose on, and a budget to choose by")
        self.shapes = dict(axes)
        self.each = nn.ModuleDict()
        for name, (rows, choices) in axes.items():
            self.each[name] = nn.Sequential(
                nn.Linear(budgets, hidden), nn.LeakyReLU(_SLOPE), nn.Linear(hidden, rows * choices)
            )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=_DEVIATION)

    @property
    def budgets(self) -> int:
        """Length of what it takes."""
        return int(next(self.parameters()).shape[1])

    def forward(self, budget: Tensor) -> dict[str, Tensor]:
        """Axis -> logits [rows, choices] for a budget [budgets], in full precision."""
        with torch.autocast(budget.device.type, enabled=False):
            return {name: network(budget).view(self.shapes[name]) for name, network in self.each.items()}

    def draw_noise(self, generator: torch.Generator) -> Tensor:
        """[all choices]: Gumbel noise -log(-log(uniform)) for one pass."""
        count = sum(rows * choices for rows, choices in self.shapes.values())
        uniform = torch.rand(count, generator=generator).clamp(1e-9, 1 - 1e-7)
        return -torch.log(-torch.log(uniform))

    def split(self, noise: Tensor) -> dict[str, Tensor]:
        """Noise of one pass -> axis -> [rows, choices]."""
        sizes = [rows * choices for rows, choices in self.shapes.values()]
        parts = noise.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def gumbel_softmax(
    logits: Tensor, noise: Tensor | None, *, temperature: float, scale: float = 1.0, hard: bool = False
) -> Tensor:
    """pi = softmax((s z + g) / tau) over the last dimension; `hard`: 1 at the largest, with the gradient of pi.

    Source: Jang et al. (arXiv 1611.01144), equation 2.
    """
    soft = ((scale * logits + (0 if noise is None else noise)) / temperature).softmax(-1)
    if not hard:
        return soft
    sharp = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return sharp + soft - soft.detach()


def temperature_at(done: float, *, first: float = 1.0, last: float = 0.05) -> float:
    """tau0 (tau1 / tau0)^t: an exponential fall over training, of which the share t is done."""
    return float(first * (last / first) ** done)


def scale_at(done: float, *, first: float = 1.0, last: float = 10.0) -> float:
    """s0 + (s1 - s0) t: a straight line over training, of which the share t is done."""
    return first + (last - first) * done


def encode_budget(share: float, trained: Sequence[float]) -> Tensor:
    """[budgets]: one-hot for a trained share, and between two of them both, by how near they are.

    trained: falling shares of the whole. Raises `BudgetError` outside of their range.
    """
    if not trained[-1] - 1e-9 <= share <= trained[0] + 1e-9:
        raise BudgetError(
            f"a budget of {share:.4g} of the whole is outside of what the router was trained for, {trained[-1]:.4g} to "
            f"{trained[0]:.4g}: ask for one between them"
        )
    found = torch.zeros(len(trained))
    for place, (above, below) in enumerate(itertools.pairwise(trained)):
        if below <= share <= above:
            part = (above - share) / (above - below)
            found[place], found[place + 1] = 1.0 - part, part
            return found
    found[0 if share >= trained[0] else -1] = 1.0
    return found


def budget_loss(
    cost: Tensor,
    whole: float,
    share: float,
    chosen: Mapping[str, Tensor],
    *,
    slack: float = 0.05,
    identity: float = 10.0,
) -> Tensor:
    """|C / (b C_full) - 1|; 0 below `slack` unless b = 1, where `identity` times how far it is from whole is added.

    cost: C, what the weights of the choices cost, differentiable. whole: C_full. share: b. chosen: axis -> weights
    [rows, choices], the whole first; the penalty is the sum over axes of the mean squared difference from one-hot.
    """
    far = (cost / (share * whole) - 1.0).abs().float()
    if share != 1.0:
        return far * (far.detach() >= slack)
    penalty = far.new_zeros(())
    for weights in chosen.values():
        first = torch.zeros_like(weights)
        first[..., 0] = 1.0
        penalty = penalty + nn.functional.mse_loss(weights, first).float()
    return far + identity * penalty


class Draws:
    """Batches, each with a budget and the router's noise: `Draws(feed, ...)[i]` adds what batch i is trained at.

    "size" is the number of the budget, drawn by `weights`; "noise" the router's, [all choices]; "sharp" whether the
    pass is hard; "done" the share of training that is over. All of it follows from `seed` and the number of the batch,
    so that a resumed run, and each of several processes, sees what one process would see.

    before, steps: of training, done before this stage and in all stages. accumulate: micro-batches of a step, per
    process.
    """

    def __init__(
        self,
        feed: Batches,
        router: BudgetRouter,
        weights: Sequence[float],
        *,
        steps: int,
        before: int = 0,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        if len(weights) != router.budgets or min(weights) < 0 or not sum(weights) > 0:
            raise InputError(f"weights {list(weights)}: give one of at least 0 for each of {router.budgets} budgets")
        self._feed, self._router, self._seed = feed, router, seed
        self._weights = np.array(weights) / sum(weights)
        self._before, self._steps = before, max(1, steps)
        self._per_step = accumulate * distributed.count()

    def __getitem__(self, index: int) -> Batch:
        words = np.random.SeedSequence((self._seed, self._before, index)).generate_state(2)
        draw = torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
        size = int(torch.multinomial(torch.from_numpy(self._weights), 1, generator=draw))
        drawn = {
            "size": size,
            "sharp": float(torch.rand((), generator=draw)) > _SHARP,
            "noise": self._router.draw_noise(draw),
            "done": min(1.0, (self._before + index // self._per_step) / self._steps),
        }
        return cast(Batch, {**self._feed[index], **drawn})
