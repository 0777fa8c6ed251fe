"""How often gates of a dynamic network are open, and how far they agree over inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from secateur.errors import DataError, InputError
from secateur.vocabulary import Array

__all__ = ["Votes", "agreement", "collect", "frequency", "is_majority", "unanimous"]

B = TypeVar("B")


@dataclass(frozen=True)
class Votes:
    """How many of `count` examples each gate was on for: place -> [units] int64."""

    on: Mapping[str, Tensor]
    count: int

    @classmethod
    def of(cls, decisions: Mapping[str, Tensor]) -> Votes:
        """The votes in decisions [N, units] of each place."""
        count = len(next(iter(decisions.values()), ()))
        return cls({name: (value.detach() > 0.5).sum(0) for name, value in decisions.items()}, count)


def collect(decide: Callable[[B], Mapping[str, Tensor]], batches: Iterable[B]) -> Votes:
    """The votes for all examples of `batches`; nothing is held but their sums.

    decide: batch -> place -> [B, units], what the gates gave in a forward pass, in evaluation mode: dropout and
    stochastic depth would be counted as disagreement. Raises `DataError` without batches.
    """
    on, count = dict[str, Tensor](), 0
    with torch.no_grad():
        for batch in batches:
            votes = Votes.of(decide(batch))
            for name, value in votes.on.items():
                on[name] = on[name] + value if name in on else value
            count += votes.count
    if not count:
        raise DataError("there are no batches to ask the gates with: give at least one")
    return Votes({name: value.cpu() for name, value in on.items()}, count)


def frequency(votes: Votes) -> dict[str, Tensor]:
    """f_u = (1/N) sum_i g_u(x_i): place -> [units], the share of inputs for which a unit is on. A score: 1 is keep."""
    return {name: value.double() / votes.count for name, value in votes.on.items()}


def unanimous(frequencies: Mapping[str, Tensor], eps: float = 0.01) -> float:
    """The share of gates with f in [0, eps] or [1 - eps, 1]: those that say the same for (nearly) every input."""
    every = torch.cat([value.reshape(-1) for value in frequencies.values()])
    return float(((every <= eps) | (every >= 1.0 - eps)).double().mean())


def is_majority(keep: Mapping[str, Array], frequencies: Mapping[str, Tensor]) -> bool:
    """Whether those units stay, of each place (name -> [units]), that are on for half of the inputs, and no others."""
    return all(torch.equal(torch.as_tensor(keep[name]).bool(), f >= 0.5) for name, f in frequencies.items())


def agreement(votes: Votes) -> float:
    """Mean over pairs of different inputs of the share of gates on which their masks agree (1 - Hamming / |G|).

    Of k inputs on and N - k off, k (N - k) of the N (N - 1) / 2 pairs differ.
    """
    count = votes.count
    if count < 2:
        raise InputError(f"agreement over {count} input: give two or more")
    on = torch.cat([value.double() for value in votes.on.values()])
    return float(1.0 - (on * (count - on) / (count * (count - 1) / 2)).mean())
