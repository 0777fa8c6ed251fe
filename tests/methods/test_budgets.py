import pytest

from secateur.errors import BudgetError
from secateur.methods import budgets
from secateur.vocabulary import Budget


def test_patterns_and_budgets_without_limits_are_refused_by_name():
    fine = Budget.parse("params=50%")
    budgets.refuse_patterns("thinner", [fine])
    for bad in (Budget.parse("pattern=2:4"), Budget.parse("params=50%,pattern=2:4"), Budget()):
        with pytest.raises(BudgetError, match=r"thinner can't meet .*: it cuts layers, for such as"):
            budgets.refuse_patterns("thinner", [fine, bad], "layers")
