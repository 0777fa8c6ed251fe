"""Absolute limits of budgets, and refusals of measures that do not apply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.vocabulary import Budget, Limit, write_enough

__all__ = [
    "describe_idle", "limits_of_cut", "limits_of_text", "refuse_idle", "refuse_unreachable", "write_reachable",
]  # fmt: skip


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
    refuse_idle([budget], whole)
    if least is not None:
        refuse_unreachable([budget], whole, least, hint)
    return limits


def refuse_idle(budgets: Sequence[Budget], whole: Mapping[str, float]) -> None:
    """Raise `InfeasibleError` for a budget by which nothing has to go; a latency that is not timed asks something."""
    for budget in budgets:
        limits = _find_timed(budget, whole).absolute(whole)
        if len(limits) == len(budget.limits) and all(limit >= whole[measure] for measure, limit in limits.items()):
            raise InfeasibleError(describe_idle(budget))


def describe_idle(budget: Budget) -> str:
    """What is said of a budget by which nothing has to go."""
    return f"budget {budget.brief()} would change nothing: all of the model fits in it; ask for less"


def refuse_unreachable(
    budgets: Sequence[Budget], whole: Mapping[str, float], least: Mapping[str, float], hint: str = ""
) -> None:
    """Raise `InfeasibleError`, with a budget that can be met, for one that the `least` costs are above.

    A latency waits until it is timed, that is among the costs of the `whole`. hint: what lowers the least.
    """
    for budget in budgets:
        for measure, limit in _find_timed(budget, whole).absolute(whole).items():
            if least[measure] > limit:
                raise InfeasibleError(
                    f"budget {budget.brief()} can't be met: {measure} can go down to "
                    f"{write_enough(least[measure])}, the limit is {limit:.6g}; ask for "
                    f"{write_reachable(measure, least[measure], whole[measure])}{f', or {hint}' if hint else ''}",
                    least[measure],
                )


def write_reachable(measure: str, least: float, whole: float) -> str:
    """The nearest budget that can be met, as it is typed: rounded to the side on which it is."""
    if measure == "latency":
        factor = math.floor(100.0 * whole / least) / 100.0
        return f"at most speedup={factor:g}x" if factor > 1.0 else "a budget in another measure"
    if least > whole:  # which has no share
        return f"{Limit(measure, math.ceil(least))} or more"
    return f"{measure}={write_enough(100.0 * least / whole)}% or more"


def _find_timed(budget: Budget, whole: Mapping[str, float]) -> Budget:
    return Budget(tuple(limit for limit in budget.limits if limit.measure in whole or limit.measure != "latency"))


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
