"""What rounding kept channels to multiples of 8 costs and brings: networks cut to one budget with and without it.

    python benchmarks/rounding.py

Quality stands as the share of all weights' magnitude that is kept, which is what the default score ranks; time is the
least of interleaved passes on this machine's CPU, as a ratio to the cut without rounding.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torchvision import models

import secateur

NETWORKS = {"resnet18": models.resnet18, "mobilenet_v2": models.mobilenet_v2}
SIZE, BATCH, PASSES = 128, 4, 25


def kept_magnitude(network: nn.Module, small: nn.Module) -> float:
    """Share of the sum of absolute weights that is left."""
    left, whole = (sum(float(p.abs().sum()) for p in one.parameters() if p.dim() > 1) for one in (small, network))
    return left / whole


def time_both(first: nn.Module, second: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Least seconds of a pass of each, one after the other in turn."""
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(PASSES):
            for place, network in enumerate((first, second)):
                began = time.perf_counter()
                network(images)
                best[place] = min(best[place], time.perf_counter() - began)
    return best[0], best[1]


def main() -> None:
    """Cut, time, print."""
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    print(f"{'network':14}{'budget':14}{'multiple':>9}{'params':>10}{'magnitude':>11}{'time':>7}")
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build().eval()
        for budget in ("params=50%", "flops=50%"):
            results = [secateur.prune(network, images[:1], budget, multiple=multiple) for multiple in (1, 8)]
            times = time_both(results[0].model.eval(), results[1].model.eval(), images)
            for multiple, result, took in zip((1, 8), results, times, strict=True):
                params = sum(p.numel() for p in result.model.parameters())
                share = kept_magnitude(network, result.model)
                print(
                    f"{name:14}{budget:14}{multiple:9}{params / 1e6:9.2f}M{share:11.3f}{took / times[0]:7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
