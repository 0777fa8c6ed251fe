"""Figures of a small detector beside those of the one that it was cut from."""

from __future__ import annotations

from claims._lab import detection, timing
from claims._lab.claim import Figures
from secateur.subjects.network.traced import Traced

__all__ = ["compare_precision", "compare_speed"]


def compare_precision(small: Traced) -> Figures:
    """Average precision on held-out scenes of the distilled detector and of the original."""
    return {
        "distilled": detection.average_precision(small.model),
        "original": detection.average_precision(detection.trained().model),
    }


def compare_speed(small: Traced) -> Figures:
    """How many times as fast as the original the pruned detector is, on 32 held-out scenes, in alternating pairs."""
    dense, pruned = detection.trained().model.eval(), small.model.eval()
    images = detection.data()[1].inputs[:32]
    return {"pruned": timing.speedup(lambda: dense(images), lambda: pruned(images)), "original": 1.0}
