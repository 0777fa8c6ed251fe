"""What fits into limits is measured anew after each cut."""

from __future__ import annotations

import numpy as np

from secateur.methods.fitting import fit_to_limits
from secateur.subjects import Facts, Line


def letters(texts):
    return [len(text) for text in texts]


def test_the_lowest_leave_until_the_rest_fits():
    facts = Facts([Line("a b", ()), Line("c d e", ()), Line("f", ())])
    scores = np.array([0.2, 0.9, 0.5])
    for limit, kept in (
        (20, [True, True, True]),
        (9, [False, True, True]),
        (7, [False, True, True]),
        (5, [False, True, False]),
    ):
        selection = fit_to_limits(facts, scores, {"tokens": limit}, {"tokens": letters})
        assert selection.keep["facts"].tolist() == kept
        assert facts.cut(selection)[0].cost({"tokens": letters})["tokens"] <= limit
    assert not fit_to_limits(facts, scores, {"words": 0}, {}).keep["facts"].any()
