"""A page that shows what of a text was cut and why: block by block with its score; what was cut is greyed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.reports import display

__all__ = ["page"]


def page(
    question: str,
    trace: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> str:
    """One HTML page that needs nothing else and runs nothing.

    Args:
        question: what was asked.
        trace: site -> blocks in the order of the document, each with path, text, score, kept, and its costs.
        before, after: measure -> cost.
    """
    steps = []
    for site, blocks in trace.items():
        scores = [block["score"] for block in blocks]
        low, high = min(scores, default=0.0), max(scores, default=1.0)
        shown = [
            {**block, "share": (block["score"] - low) / (high - low) if high > low else 1.0, "rank": rank}
            for block, rank in zip(blocks, _ranks(scores), strict=True)
        ]
        steps.append({"site": site, "blocks": shown, "kept": sum(block["kept"] for block in blocks)})
    costs = [(measure, before[measure], after[measure]) for measure in after if measure in before]
    return display.fill_template("decisions.html.j2", question=question, steps=steps, costs=costs)


def _ranks(scores: Sequence[float]) -> list[int]:
    """1 for the highest."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    ranks = [0] * len(scores)
    for rank, index in enumerate(order, start=1):
        ranks[index] = rank
    return ranks
