"""How much training changed each entry of a tensor."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

__all__ = ["Sign", "size"]

Sign: TypeAlias = Literal["both", "positive", "negative"]
"""Which changes count as large: of either sign, or one alone."""


def size(update: Tensor, sign: Sign = "both") -> Tensor:
    """``|d|`` of each entry of an update [n]; of one sign alone ``d`` or ``-d``, so that the other sign comes last.

    Source: arXiv 2504.09522 ranks by |d|.
    """
    if sign == "both":
        return update.abs()
    return update if sign == "positive" else -update
