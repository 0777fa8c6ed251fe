"""Records of trainings that followed one another."""

from __future__ import annotations

from secateur.recover.training import records
from secateur.vocabulary import Recovery


def test_records_are_joined():
    one, other = (
        Recovery(2, 8, 1.0, 0.0, ((1, 3.0), (2, 2.0)), {"lr": 1}),
        Recovery(3, 12, 2.0, 0.0, ((3, 1.0),), {"lr": 2}),
    )
    both = records.together(one, None, other)
    assert both is not None
    assert (both.steps, both.tokens, both.seconds) == (5, 20, 3.0)
    assert both.losses == ((1, 3.0), (2, 2.0), (5, 1.0))
    assert both.settings == {"1. lr": 1, "2. lr": 2}
    assert records.together(None, None) is None
    assert records.together(None, one).settings == {"lr": 1}
