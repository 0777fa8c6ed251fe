"""Random scores: the baseline that every score must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from secateur.vocabulary import Units

__all__ = ["draw", "scores"]


def scores(units: Units, seed: int = 0) -> dict[str, Tensor]:
    """Site -> float32 [count] uniform in [0, 1). Each site draws from a generator of its own, seeded by
    (seed, site name), so that freezing or adding a site leaves the others' scores alone.
    """
    result: dict[str, Tensor] = {}
    for site in units.free():
        result[site.name] = draw(site.count, site.name, seed)
    return result


def draw(count: int, name: str, seed: int = 0) -> Tensor:
    """Float32 [count] uniform in [0, 1), from a generator of its own, seeded by (seed, name)."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    return torch.rand(count, generator=generator)
