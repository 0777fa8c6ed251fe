"""What a budget lets go of a network of three residual steps."""

from __future__ import annotations

import pytest
import torch

from recipes.vision import nets
from secateur.errors import InfeasibleError, InputError
from secateur.methods.group_budget import GroupBudget, erase
from secateur.score import magnitude
from secateur.vocabulary import Budget, Selection


def test_the_search_passes_over_what_the_network_needs_and_free_selection_breaks_it():
    start = nets.blocks()
    graph, names = start.graph, [one.name for one in start.graph.removable]
    assert [name[:4] for name in names] == ["one.", "left", "righ", "two."]
    lowest = torch.tensor([2.0, 0.0, 1.0, 3.0])
    budget = Budget.parse("segments=50%")
    assert erase(graph, lowest, 2, budget).tolist() == [False, False, True, True]
    assert erase(graph, lowest, 2, budget, hierarchical=False).tolist() == [True, False, False, True]


def test_a_dry_choice_that_breaks_the_network_is_refused_by_the_cut():
    start, budget = nets.blocks(), Budget.parse("segments=50%")
    with torch.no_grad():
        for name in ("left", "right"):
            for parameter in start.model.get_submodule(name).parameters():
                parameter.mul_(1e-3)
    scores = magnitude.coupled_norm(start.weights())
    for hierarchical in (True, False):
        groups = GroupBudget.of(start, budget, hierarchical=hierarchical)
        selection = Selection({site: ~row for site, row in groups.lowest(scores).items()})
        if hierarchical:
            assert start.cut(selection)[1].removed == {"segments": (2, 4)}
        else:
            with pytest.raises(InputError, match="no way leads from the input to the output"):
                start.cut(selection)


def test_a_little_more_may_go_where_all_groups_cost_the_same():
    start = nets.blocks()
    groups = GroupBudget.of(start, Budget.parse("params=50%"))
    scores = magnitude.coupled_norm(groups.slices)
    assert not groups.even
    assert all(torch.equal(groups.lowest(scores, 0.1)[site], row) for site, row in groups.lowest(scores).items())
    even = GroupBudget.of(start, Budget.parse("channels=50%"))
    more, less = (sum(int(row.sum()) for row in even.lowest(scores, extra).values()) for extra in (0.2, 0.0))
    assert more > less
    with pytest.raises(InfeasibleError, match=r"3 of 4 segments can go .* at least segments=1"):
        GroupBudget.of(start, Budget.parse("segments=10%")).lowest(magnitude.coupled_norm(start.weights()))
