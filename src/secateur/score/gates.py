"""How often gates of a dynamic network are open, and how far they agree over inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from secateur.errors import DataError, InputError

__all__ = ["agreement", "collect", "frequency", "unanimous"]

B = TypeVar("B")


def collect(decide: Callable[[B], Mapping[str, Tensor]], batches: Iterable[B]) -> dict[str, Tensor]:
    """Place -> the decisions [N, units], booleans, for every example of `batches`.

    decide: batch -> place -> [B, units], what the gates gave in a forward pass, in evaluation mode: dropout and
    stochastic depth would be counted as disagreement. Raises `DataError` without batches.
    """
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            for name, value in decide(batch).items():
                found.setdefault(name, []).append((value.detach() > 0.5).cpu())
    if not found:
        raise DataError("there are no batches to ask the gates with: give at least one")
    return {name: torch.cat(parts) for name, parts in found.items()}


def frequency(decisions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """f_u = (1/N) sum_i g_u(x_i): place -> [units], the share of inputs for which a unit is on. A score: 1 is keep."""
    return {name: value.sum(0).double() / len(value) for name, value in decisions.items()}


def unanimous(frequencies: Mapping[str, Tensor], eps: float = 0.01) -> float:
    """The share of gates with f in [0, eps] or [1 - eps, 1]: those that say the same for (nearly) every input."""
    every = torch.cat([value.reshape(-1) for value in frequencies.values()])
    return float(((every <= eps) | (every >= 1.0 - eps)).double().mean())


def agreement(decisions: Mapping[str, Tensor]) -> float:
    """Mean over pairs of different inputs of the share of gates on which their masks agree (1 - Hamming / |G|).

    Of k inputs on and N - k off, k (N - k) of the N (N - 1) / 2 pairs differ.
    """
    count = len(next(iter(decisions.values())))
    if count < 2:
        raise InputError(f"agreement over {count} input: give two or more")
    on = torch.cat([value.sum(0).double() for value in decisions.values()])
    return float(1.0 - (on * (count - on) / (count * (count - 1) / 2)).mean())
