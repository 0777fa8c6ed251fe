"""Keep the strings of most weight for each byte (a toy; arXiv has no paper of it)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.select import ranking
from secateur.vocabulary import Budget, Result
from toy_bags.bags import Bag

CARD = {
    "title": "Heavy strings first",
    "paper": "none: a toy",
    "cuts": "strings",
    "recovers": "nothing",
    "extra": "",
    "family": "toys",
}


def keep_heavy(
    subject: Bag, data: Corpus, budgets: Sequence[Budget], run: Run, *, power: float = 1.0, seed: int = 0
) -> Iterator[Result]:
    """Rank strings by weight for each byte.

    Args:
        subject: the bag.
        data: texts; a string weighs more for each of them that it is.
        budgets: bytes=.
        run: keeps nothing.
        power: of the bytes by which a weight is divided.
        seed: of nothing.
    """
    units = subject.units()
    counts = Counter(data.texts)
    worth = np.array([weight + counts[string] for string, weight in subject.weights.items()])
    score = worth / units["strings"].cost["bytes"] ** power
    for budget in budgets:
        selection = ranking.by_budget(units, {"strings": score}, budget)
        small, cut = subject.cut(selection)
        yield Result(str(budget), small, cut, dict(selection.spent))
