"""Random scores: the baseline that every score must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from secateur.vocabulary import Units

__all__ = ["scores"]


def scores(units: Units, seed: int = 0) -> dict[str, Tensor]:
    """Site -> float32 [count] uniform in [0, 1). Each site draws from a generator of its own, seeded by
    (seed, site name), so that freezing or adding a site leaves the others' scores alone.
    """
    result: dict[str, Tensor] = {}
    for site in units.free():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{site.name}".encode()))
        result[site.name] = torch.rand(site.count, generator=generator)
    return result
