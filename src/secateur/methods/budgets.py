"""What recipes that make smaller shapes ask of a budget."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import BudgetError
from secateur.vocabulary import Budget

__all__ = ["refuse_patterns"]


def refuse_patterns(recipe: str, budgets: Sequence[Budget], what: str = "units") -> None:
    """Raise `BudgetError` for a budget of single weights, n of m, and for one that limits nothing.

    what: the recipe cuts, as in "heads and neurons".
    """
    for budget in budgets:
        if budget.pattern is not None or not budget.limits:
            raise BudgetError(f"{recipe} can't meet {budget}: it cuts {what}, for such as speedup=2x or params=50%")
