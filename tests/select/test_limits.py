"""Budgets of what is read: words and tokens, of which one must stay."""

from __future__ import annotations

import pytest

from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.select import limits
from secateur.vocabulary import Budget


def reading(text, **whole):
    return limits.limits_of_text(Budget.parse(text), whole, "a page")


def test_a_budget_by_which_nothing_has_to_go_is_refused():
    whole = {"params": 200.0, "channels": 12.0}
    assert limits.limits_of_cut(Budget.parse("params=50%,channels=100%"), whole) == {"params": 100.0, "channels": 12.0}
    for text in ("channels=100%", "channels=100%,params=100%", "params=3000"):
        with pytest.raises(InfeasibleError, match=f"budget {text} would change nothing: all of the model fits in it"):
            limits.limits_of_cut(Budget.parse(text), whole)
    least = {"params": 40.0, "channels": 4.0}
    assert limits.limits_of_cut(Budget.parse("params=20%"), whole, least) == {"params": 40.0}
    with pytest.raises(InfeasibleError, match="params can go down to 40, the limit is 38; allow more, or eat") as found:
        limits.limits_of_cut(Budget.parse("channels=50%,params=19%"), whole, least, "eat less")
    assert found.value.reachable == 40.0
    with pytest.raises(BudgetError, match="latency has no cost here; costs known: channels, params"):
        limits.limits_of_cut(Budget.parse("speedup=2x"), whole)
    for text in ("pattern=2:4", "params=50%,pattern=2:4"):
        with pytest.raises(BudgetError, match="no pattern is made here; limit one of channels, params"):
            limits.limits_of_cut(Budget.parse(text), whole)


def test_shares_become_numbers():
    assert reading("tokens=20%,words=7", tokens=50.0, words=40.0) == {"tokens": 10.0, "words": 7.0}
    assert reading("words=20%", words=0.0) == {"words": 0.0}  # of nothing, nothing


def test_what_texts_are_not_measured_in_is_refused():
    for text in ("params=50%", "pattern=2:4"):
        with pytest.raises(InputError, match="a page is cut to tokens or words"):
            reading(text, words=3.0)
    with pytest.raises(InputError, match="a page is cut to tokens or words"):
        limits.limits_of_text(Budget(), {"words": 3.0}, "a page")
    with pytest.raises(InputError, match="needs the reader's tokenizer"):
        reading("tokens=4", words=3.0)
    with pytest.raises(InfeasibleError, match=r"leaves 0\.3 words of 3: give at least 1") as caught:
        reading("words=10%", words=3.0)
    assert caught.value.reachable == 1.0
