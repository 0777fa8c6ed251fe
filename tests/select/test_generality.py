"""The selection knows columns, not things: four unlike subjects go through the same functions."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import InfeasibleError
from secateur.select import allocate, knapsack, pattern, ranking
from secateur.vocabulary import Site, Term, Units


def network(layers=3, width=16, neurons=32, heads=4, head=4) -> Units:
    """A transformer's shape: costs are products of kept counts, and heads and neurons belong to their layer."""
    sites = {"layers": Site("layers", layers), "channels": Site("channels", width, multiple=4, minimum=4)}
    terms = [Term("params", 100.0, ("channels",)), Term("params", 1.0, ("channels",))]
    for i in range(layers):
        owner = ("layers", torch.full((neurons,), i))
        sites[f"layers.{i}.neurons"] = Site(f"layers.{i}.neurons", neurons, owner=owner, multiple=8)
        group, own = torch.arange(heads) // 2, ("layers", torch.full((heads,), i))
        sites[f"layers.{i}.heads"] = Site(f"layers.{i}.heads", heads, owner=own, group=group)
        terms += [
            Term("params", 2.0, (f"layers.{i}.neurons", "channels")),
            Term("params", 4.0 * head, (f"layers.{i}.heads", "channels")),
            Term("params", 2.0, ("channels",), units=(("layers", i),)),
        ]
    return Units(sites, tuple(terms))


@pytest.mark.parametrize("axes", [("neurons",), ("neurons", "heads"), ("neurons", "heads", "channels"), ("layers",)])
@pytest.mark.parametrize("share", [0.9, 0.75, 0.65])
def test_neurons_of_a_network(axes, share):
    units = network().only(*axes)
    torch.manual_seed(0)
    scores = {site.name: torch.rand(site.count) for site in units.free()}
    selection = ranking.by_budget(units, scores, f"params={share}")
    whole = units.cost()["params"]
    assert selection.spent["params"] <= share * whole
    assert selection.spent == units.cost(selection.keep)
    assert {name.rsplit(".", 1)[-1] for name in selection.keep} == set(axes)
    if axes == ("neurons",):  # as large as the order allows: the last eight to go would have been too many
        dearer = []
        for name, keep in selection.keep.items():
            back = keep.clone()
            back[scores[name].masked_fill(keep, -1.0).topk(8).indices] = True
            dearer.append(units.cost({**selection.keep, name: back})["params"] > share * whole)
        assert any(dearer)
    exact = ranking.by_counts(units, scores, allocate.uniform(units, 0.5))
    assert all(
        exact.count_kept(site.name, site.count) == allocate.uniform(units, 0.5)[site.name] for site in units.free()
    )


def test_single_weights_under_a_global_budget():
    torch.manual_seed(0)
    weights = {"a": torch.randn(8, 12), "b": 0.1 * torch.randn(4, 12)}
    units = Units({name: Site(name, w.numel(), cost={"weights": torch.ones(w.numel())}) for name, w in weights.items()})
    selection = ranking.by_budget(units, {name: w.abs().flatten() for name, w in weights.items()}, "weights=50%")
    kept = torch.cat([weights[name].abs().flatten()[selection.keep[name]] for name in weights])
    everything = torch.cat([w.abs().flatten() for w in weights.values()])
    assert torch.equal(kept.sort().values, everything.sort().values[-72:])
    assert selection.keep["a"].reshape(8, 12)[weights["a"].abs() > everything.median() + 1e-6].all()


def test_single_weights_in_a_pattern():
    torch.manual_seed(0)
    weight = torch.randn(6, 16)
    mask = pattern.n_of_m(weight.abs(), 2, 4)
    assert (mask.reshape(-1, 4).sum(1) == 2).all()
    assert mask.float().mean() == 0.5


def test_training_examples_balanced_by_class():
    rng = np.random.default_rng(0)
    label, score = rng.permutation(np.repeat(np.arange(5), 40)), rng.random(200)
    units = Units({"train": Site("train", 200, cost={"examples": np.ones(200)}, group=label)})
    selection = ranking.by_budget(units, {"train": score}, "examples=30%")
    keep = selection.keep["train"]
    assert selection.spent["examples"] == 60
    for c in range(5):
        mine = np.flatnonzero(label == c)
        assert set(np.flatnonzero(keep[mine])) == set(np.argsort(-score[mine])[:12])


def test_training_examples_in_proportion_where_classes_differ():
    sizes = [50, 30, 20]
    sites = {f"class{c}.train": Site(f"class{c}.train", n) for c, n in enumerate(sizes)}
    counts = dict(zip(sites, allocate.proportional(sizes, 33), strict=True))
    scores = {name: np.arange(float(site.count)) for name, site in sites.items()}
    selection = ranking.by_counts(Units(sites), scores, counts)
    assert sum(int(keep.sum()) for keep in selection.keep.values()) == 33
    assert list(counts.values()) == [16, 10, 7]  # of 16.5, 9.9 and 6.6 the largest remainders are rounded up


@st.composite
def pages(draw):
    count = draw(st.integers(1, 9))
    tokens = np.array(draw(st.lists(st.integers(1, 40), min_size=count, max_size=count)))
    worth = np.array(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    return tokens, worth, draw(st.integers(1, int(tokens.sum())))


@given(pages())
@settings(max_examples=100, deadline=None)
def test_blocks_of_a_page_under_a_token_budget(page):
    tokens, worth, budget = page
    units = Units({"page": Site("page", len(tokens), cost={"tokens": tokens})})
    limit = f"tokens={budget}" if budget > 1 else f"tokens={budget / tokens.sum()}"
    greedy = ranking.by_budget(units, {"page": worth}, limit)
    assert greedy.spent["tokens"] <= budget

    # The worst blocks are popped until the rest fits, as a page pruner would do it by hand.
    order = sorted(range(len(tokens)), key=lambda i: (-worth[i], i))
    while sum(tokens[i] for i in order) > budget:
        order.pop()
    assert sorted(np.flatnonzero(greedy.keep["page"])) == sorted(order)

    # Exact: each block is a module with two levels, gone (its worth lost) or kept (its tokens spent).
    exact = knapsack.solve([np.array([0, t]) for t in tokens], [np.array([w, 0.0]) for w in worth], budget)
    best = min(
        sum(w for w, s in zip(worth, stay, strict=True) if not s)
        for stay in itertools.product([0, 1], repeat=len(tokens))
        if np.dot(tokens, stay) <= budget
    )
    assert exact.loss == pytest.approx(best)
    assert exact.cost <= budget
    assert exact.loss <= worth[~greedy.keep["page"]].sum() + 1e-9


def test_a_page_that_must_keep_one_block_says_what_is_reachable():
    tokens = np.array([30, 50])
    units = Units({"page": Site("page", 2, cost={"tokens": tokens}, minimum=1)})
    with pytest.raises(InfeasibleError) as refused:
        ranking.by_budget(units, {"page": np.array([0.0, 1.0])}, "tokens=40")
    assert refused.value.reachable == 50


def test_torch_is_never_imported_by_select():
    code = (
        "import sys, numpy as np\n"
        "from secateur.select import allocate, knapsack, pattern, ranking, search\n"
        "from secateur.vocabulary import Site, Units\n"
        "units = Units({'a': Site('a', 2, cost={'n': np.ones(2)})})\n"
        "ranking.by_budget(units, {'a': np.arange(2.0)}, 'n=50%')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
