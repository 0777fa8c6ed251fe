"""Absolute limits of budgets, and refusals of measures that do not apply."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.vocabulary import Budget, write_enough

__all__ = ["limits_of_cut", "limits_of_text"]


def limits_of_cut(
    budget: Budget, whole: Mapping[str, float], least: Mapping[str, float] | None = None, hint: str = ""
) -> dict[str, float]:
    """Measure -> limit, for what cuts and then trains: refuses a budget by which nothing has to go, or too much.

    whole: what the uncut model costs; least: what it costs at least, such as that of `ranking.fewest`; hint: what
    lowers that. Raises `InfeasibleError` where all of it fits in the budget, or the least does not; `BudgetError` for a
    measure that it has no cost in, and for a pattern.
    """
    if budget.pattern or not budget.limits:
        raise BudgetError(f"budget {budget.brief()}: no pattern is made here; limit one of {', '.join(sorted(whole))}")
    limits = budget.absolute(whole)
    if all(limit >= whole[measure] for measure, limit in limits.items()):
        raise InfeasibleError(
            f"budget {budget.brief()} would change nothing: all of the model fits in it; ask for less"
        )
    for measure, limit in limits.items():
        if least is not None and least[measure] > limit:
            raise InfeasibleError(
                f"budget {budget.brief()} can't be met: {measure} can go down to "
                f"{write_enough(least[measure])}, the limit is {limit:.6g}; allow more{f', or {hint}' if hint else ''}",
                least[measure],
            )
    return limits


def limits_of_text(budget: Budget, whole: Mapping[str, float], what: str) -> dict[str, float]:
    """Measure -> limit; refuses what texts are not measured in, and less than one word or token.

    whole: what the uncut text costs, in tokens only where the reader's tokenizer is known. what: what is cut, for the
    refusal: "a page".
    """
    unknown = next((limit.measure for limit in budget.limits if limit.measure not in ("words", "tokens")), None)
    if unknown or budget.pattern or not budget.limits:
        raise InputError(f"budget {budget.brief()}: {what} is cut to tokens or words, such as tokens=2048")
    if "tokens" in budget and "tokens" not in whole:
        raise InputError(
            f"budget {budget.brief()} needs the reader's tokenizer: give one (--tokenizer), or a budget in words"
        )
    limits = budget.absolute(whole)
    for name, limit in limits.items():
        if limit < 1 <= whole[name]:
            raise InfeasibleError(
                f"budget {budget.brief()} leaves {limit:.3g} {name} of {whole[name]:.0f}: give at least 1", 1.0
            )
    return limits
