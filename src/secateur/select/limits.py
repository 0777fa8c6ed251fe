"""How much of what is read may stay: budgets in words and tokens, and refusals of what they can't say."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.errors import InfeasibleError, InputError
from secateur.vocabulary import Budget

__all__ = ["reading"]


def reading(budget: Budget, whole: Mapping[str, float], what: str) -> dict[str, float]:
    """Measure -> limit; refuses what texts are not measured in, and less than one word or token.

    whole: what the uncut text costs, in tokens only where the reader's tokenizer is known. what: what is cut, for the
    refusal: "a page".
    """
    unknown = next((limit.measure for limit in budget.limits if limit.measure not in ("words", "tokens")), None)
    if unknown or budget.pattern or not budget.limits:
        raise InputError(f"budget {budget}: {what} is cut to tokens or words, such as tokens=2048")
    if "tokens" in budget and "tokens" not in whole:
        raise InputError(f"budget {budget} needs the reader's tokenizer: give one (--tokenizer), or a budget in words")
    limits = budget.absolute(whole)
    for name, limit in limits.items():
        if limit < 1 <= whole[name]:
            raise InfeasibleError(
                f"budget {budget} leaves {limit:.3g} {name} of {whole[name]:.0f}: give at least 1", 1.0
            )
    return limits
