"""Estimate the cost of cutting many texts from the first few of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Estimate"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was measured on the first `tried` of `count` lines, `failed` of which can't be cut.

    before, after: measure (words, or tokens where they can be counted) -> cost of those that were cut. seconds: what
    all that were tried took, on one process. calls, llm_tokens: what they took of a language model.
    most_calls, most_tokens: what all lines may take of it, at most; no limit if 0.
    """

    recipe: str
    budget: str
    count: int
    tried: int
    failed: int
    seconds: float
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    llm_tokens: int = 0
    most_calls: int = 0
    most_tokens: int = 0

    @property
    def title(self) -> str:
        """What the table is about."""
        few = f"the first {self.tried} of {self.count} lines" if self.tried < self.count else f"lines: {self.count}"
        return f"{self.recipe}, {self.budget}, {few}"

    def of_all(self, value: float, most: float = math.inf) -> float:
        """What all lines come to, where those that were tried come to `value`."""
        return min(most, value * self.count / self.tried)

    def rows(self) -> list[list[str]]:
        """The table, its header first."""
        from secateur.reports import display  # its templates, which only estimates need

        table, all_of_them = [["Measure", "Target", "Before", "After", "Change"]], f"all {self.count}, estimated"
        for name in display.order(self.before):
            label, costs = display.measure(name).label, (self.before[name], self.after[name])
            table.append(_row(name, label, self.budget, *costs))
            if self.tried < self.count:
                table.append(_row(name, f"{label}, {all_of_them}", "–", *map(self.of_all, costs)))
        taken = {"Time a question": ("latency", self.seconds / self.tried)}
        taken |= {f"Time on one process, {all_of_them}": ("latency", self.of_all(self.seconds))}
        if self.calls:
            taken |= {
                f"Calls of the language model, {all_of_them}": (
                    "tokens",
                    round(self.of_all(self.calls, self.most_calls or math.inf)),
                )
            }
            taken |= {
                f"Its tokens, {all_of_them}": (
                    "tokens",
                    round(self.of_all(self.llm_tokens, self.most_tokens or math.inf)),
                )
            }
        return [*table, *([label, "–", "–", display.number(*figure), "–"] for label, figure in taken.items())]


def _row(name: str, label: str, target: str, before: float, after: float) -> list[str]:
    from secateur.reports import display

    shown = (display.number(name, round(value)) for value in (before, after))
    return [label, target, *shown, display.change(name, before, after) or "–"]
