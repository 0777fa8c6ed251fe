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
    with pytest.raises(InfeasibleError, match="params can go down to 40, the limit is 38; ask for params=20%") as found:
        limits.limits_of_cut(Budget.parse("channels=50%,params=19%"), whole, least, "eat less")
    assert str(found.value).endswith("; ask for params=20% or more, or eat less")
    assert found.value.reachable == 40.0
    with pytest.raises(BudgetError, match="latency has no cost here; costs known: channels, params"):
        limits.limits_of_cut(Budget.parse("speedup=2x"), whole)
    for text in ("pattern=2:4", "params=50%,pattern=2:4"):
        with pytest.raises(BudgetError, match="no pattern is made here; limit one of channels, params"):
            limits.limits_of_cut(Budget.parse(text), whole)


@pytest.mark.parametrize(
    ("measure", "least", "whole", "told"),
    [
        ("params", 1.0, 3.0, "params=33.34% or more"),
        ("layers", 3.0, 12.0, "layers=25% or more"),
        ("bytes", 301.0, 300.0, "bytes=301B or more"),
        ("latency", 0.03, 0.1, "at most speedup=3.33x"),
        ("latency", 0.1, 0.1, "a budget in another measure"),
    ],
)
def test_what_a_refusal_says_can_be_met_is_not_refused(measure, least, whole, told):
    assert limits.write_reachable(measure, least, whole) == told
    if "=" in told:
        budget = Budget.parse(told.removeprefix("at most ").removesuffix(" or more"))
        limits.refuse_unreachable([budget], {measure: whole}, {measure: least})


def test_a_latency_waits_for_its_table_and_asks_something_until_then():
    budget, whole, least = Budget.parse("speedup=5x,params=100%"), {"params": 200.0}, {"params": 40.0}
    limits.refuse_idle([budget], whole)
    limits.refuse_unreachable([budget], whole, least)
    with pytest.raises(InfeasibleError, match=r"budget speedup=5x,params=100% can't be met: latency .* speedup=4x$"):
        limits.refuse_unreachable([budget], {**whole, "latency": 0.4}, {**least, "latency": 0.1})
    with pytest.raises(InfeasibleError, match="would change nothing"):
        limits.refuse_idle([Budget.parse("speedup=5x"), Budget.parse("params=100%")], whole)


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
