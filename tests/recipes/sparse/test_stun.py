"""STUN: the order of its steps, exact counts of experts and weights, and experts that keep their rows of the router."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import secateur
import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.recipes.sparse import stun
from secateur.recover.sparsity import merging
from secateur.runs import keywords
from secateur.score import routing
from secateur.subjects import Moe, open_subject
from secateur.subjects.matrices import matrices, nonzero
from secateur.subjects.transformer import blocks
from secateur.subjects.transformer.parts import Whole
from secateur.vocabulary import Budget
from subjects.tiny import make

QUICK = {"seen": 16, "samples": 12, "length": 16}


@functools.cache
def taught() -> Moe:
    return open_subject(tiny.fluent("mixtral"), tokenizer=tiny.tokenizer())


@functools.cache
def data():
    return texts.read(tiny.chains(400))


def result_of(tmp_path, budget="weights=60%", subject=None, **options):
    with Run.open(tmp_path / f"{budget}-{sorted(options.items())}".replace("/", "-"), {}) as opened:
        how = keywords.check_options(stun.stun, {**QUICK, **options})
        (result,) = stun.stun(subject or taught(), data(), [Budget.parse(budget)], opened, **how)
    return result


def counts(subject: Moe) -> list[int]:
    return [mixture.count for mixture in subject.mixtures().values()]


def of(subject: Moe, target: int, **how):
    """(the settled clusters, chosen) with integer layers, by router rows."""
    first = stun.choose_experts(subject, stun.expert_distances(subject, {}), target, **how)
    return first["clusters"], first["chosen"]


def state(subject: Moe) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    return [
        (merging.per_expert(one.experts, one.count), merging.per_expert(one.router, one.count))
        for one in subject.mixtures().values()
    ]


# ------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(("total", "first"), [(0.4, 0.2), (0.65, 0.203), (0.5, 0.0), (0.3, 0.3)])
def test_the_second_ratio_makes_up_the_total(total, first):
    ratio = stun.weights.second_share(total, first)
    assert 1 - (1 - first) * (1 - ratio) == pytest.approx(total, abs=1e-12)


def test_more_than_the_total_cannot_go_first():
    with pytest.raises(
        InfeasibleError, match=r"budget weights=60%: the experts that go are 0.5 of the weights"
    ) as caught:
        stun.weights.second_share(0.4, 0.5, Budget.parse("weights=60%"))
    assert caught.value.reachable == 0.5


@pytest.mark.parametrize("method", ["owl", "wanda"])
@pytest.mark.parametrize("budget", ["weights=60%", "weights=35%"])
def test_removed_experts_and_zeros_give_the_total_that_is_told(tmp_path, method, budget):
    result = result_of(tmp_path, budget, method=method)
    whole = blocks.count(taught())
    found = matrices(result.subject.model, result.subject.layers())
    zeros = sum(int((m.weight == 0).sum()) for m in found.values())
    gone = whole - blocks.count(result.subject)
    assert nonzero(found) == result.cut.after["weights"] == result.predicted["weights"] == whole - gone - zeros
    limit = Budget.parse(budget)["weights"].absolute(whole)
    # A row of 24 weights can't lose a part of one.
    assert limit - 0.05 * whole < nonzero(found) <= limit
    assert result.cut.before["weights"] == whole
    assert f"total sparsity {(gone + zeros) / whole:.4f}, of it {gone / whole:.4f} by experts" in result.cut.notes
    lost = [result.cut.removed.get(f"layers.{i}.experts", (0, 8))[0] for i in range(3)]
    assert lost == [8 - n for n in counts(result.subject)]
    assert sum(lost) == round(0.2 * 24)


def test_less_goes_first_where_the_budget_asks_for_less(tmp_path):
    result = result_of(tmp_path, "weights=95%", structured=0.5)
    whole = blocks.count(taught())
    assert 0.9 * whole < result.cut.after["weights"] <= 0.95 * whole
    assert sum(counts(result.subject)) == 23  # one expert is 3.6 % of the weights


def test_patterns_hold_in_what_the_experts_leave(tmp_path):
    result = result_of(tmp_path, "pattern=2:4", structured=0.5)
    assert sum(counts(result.subject)) == 12
    for matrix in matrices(result.subject.model, result.subject.layers()).values():
        stays = matrix.weight != 0
        assert (stays.reshape(len(stays), -1, 4).sum(-1) <= 2).all()


# --------------------------------------------------------------------------------------------------- expert counts


def test_exactly_as_many_experts_stay_as_asked_for(tmp_path):
    for experts in (12, 17, 23):
        assert sum(counts(result_of(tmp_path, "weights=30%", experts=experts).subject)) == experts


def test_every_layer_keeps_what_the_router_chooses(tmp_path):
    assert counts(result_of(tmp_path, "weights=20%", experts=6).subject) == [2, 2, 2]
    with pytest.raises(InfeasibleError, match=r"5 clusters can't be had.*at least 2 in each 6 stay"):
        result_of(tmp_path, "weights=20%", experts=5)


def test_experts_alone_may_not_be_more_than_the_budget_asks_for(tmp_path):
    with pytest.raises(InfeasibleError, match="keep more experts or fewer weights"):
        result_of(tmp_path, "weights=80%", experts=6)


def test_experts_that_a_later_budget_can_not_have_are_refused_before_the_first_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(stun.blocks, "visit", lambda *_: pytest.fail("pruned"))
    budgets = [Budget.parse("weights=20%"), Budget.parse("pattern=2:4"), Budget.parse("weights=80%")]
    with (
        Run.open(tmp_path, {}) as opened,
        pytest.raises(InfeasibleError, match=r"budget weights=80%.*keep more experts"),
    ):
        list(stun.stun(taught(), data(), budgets, opened, **keywords.check_options(stun.stun, {**QUICK, "experts": 6})))


def test_uniform_leaves_as_many_in_each_layer(tmp_path):
    assert counts(result_of(tmp_path, uniform=True, structured=0.25).subject) == [6, 6, 6]
    assert counts(result_of(tmp_path, uniform=True, structured=0.2).subject) == [7, 7, 7]  # 19 can't be; not fewer
    assert counts(result_of(tmp_path, "weights=40%", uniform=True, experts=15).subject) == [5, 5, 5]
    with pytest.raises(InfeasibleError, match="experts=14 can't be the same in 3 layers: ask for a multiple of 3"):
        result_of(tmp_path, "weights=40%", uniform=True, experts=14)


@pytest.mark.parametrize(("experts", "nearest"), [(3, 6), (30, 24)])
def test_uniform_counts_that_layers_can_not_have_are_refused(tmp_path, experts, nearest):
    with pytest.raises(InfeasibleError, match=f"experts={experts} can't be the same.*ask for such as {nearest}$") as e:
        result_of(tmp_path, "weights=20%", uniform=True, experts=experts)
    assert e.value.reachable == nearest


def test_routers_that_choose_among_groups_are_refused_unless_uniform(tmp_path):
    deep = make("deepseek3")
    deep.tokenizer = tiny.tokenizer()
    deep.model.resize_token_embeddings(64)
    with pytest.raises(UnsupportedError, match=r"this router chooses groups of experts first.*uniform=True") as e:
        result_of(tmp_path, subject=deep)
    assert "\n" not in str(e.value)
    layers = len(deep.mixtures())
    with pytest.raises(InfeasibleError, match="in 2 equal groups: ask for such as"):
        result_of(tmp_path, "weights=40%", subject=deep, uniform=True, experts=5 * layers)
    for choose in ("clusters", "saliency"):
        result = result_of(tmp_path, "weights=40%", subject=deep, uniform=True, experts=6 * layers, choose=choose)
        assert counts(result.subject) == [6] * layers
        for index, mixture in result.subject.mixtures().items():
            old = deep.mixtures()[index].router.weight
            rows = [int((old == row).all(1).nonzero()) for row in mixture.router.weight]
            assert sum(row < 4 for row in rows) == 3  # three in each group of four
        result.subject.forward(result.subject.example(2, 12))


def test_a_part_of_another_model_keeps_as_many_experts_in_every_layer():
    part = taught().copy()
    part.whole = Whole(part.model, None, "text_config", {}, "", "")
    with pytest.raises(UnsupportedError, match="a part of another model must keep as many experts each: give uniform"):
        stun.check(part, uniform=False, passes=0)
    stun.check(part, uniform=True, passes=0)


def test_counts_that_no_threshold_gives_are_named():
    copy = taught().copy()
    for mixture in copy.mixtures().values():
        rows = mixture.router.weight.data
        rows[4:] = rows[:4]  # each expert has a twin: at any threshold above 0 four pairs merge in each layer
    with pytest.raises(InfeasibleError, match=r"23 clusters can't be had.*gives 12 or 24; ask for one of these"):
        stun.choose_experts(copy, stun.expert_distances(copy, {}), 23)
    assert counts(stun.keep_experts(copy, *of(copy, 23, exact=False), 0)[0]) == [8, 8, 8]
    groups, _ = of(copy, 12)
    assert all(sorted(one) == [[i, i + 4] for i in range(4)] for one in map(sorted, groups.values()))


# ----------------------------------------------------------------------------------------------- what stays, where


def test_nothing_merges_below_the_least_distance():
    groups, chosen = of(taught(), 24)
    assert all(one == [[i] for i in range(8)] for one in groups.values())
    student, cut = stun.keep_experts(taught(), groups, chosen, 3)
    batch = taught().example(2, 12)
    assert torch.equal(student.forward(batch).prediction, taught().forward(batch).prediction)
    assert cut.is_noop


def test_without_means_every_tensor_is_one_of_the_originals_and_rows_go_with_their_experts():
    groups, chosen = of(taught(), 14)
    student, _ = stun.keep_experts(taught(), groups, chosen, 0)
    for (experts, router), (old, rows), layer in zip(state(student), state(taught()), chosen, strict=True):
        assert chosen[layer] == sorted(chosen[layer])
        for name, tensor in experts.items():
            assert torch.equal(tensor, old[name][chosen[layer]])
        assert torch.equal(router["weight"], rows["weight"][chosen[layer]])
        for members, one in zip(groups[layer], chosen[layer], strict=True):
            assert one in members


def test_layers_of_few_clusters_become_means_and_others_do_not():
    groups, chosen = of(taught(), 9)
    assert len({len(one) for one in groups.values()}) > 1
    kappa = min(len(one) for one in groups.values())
    student, _ = stun.keep_experts(taught(), groups, chosen, kappa)
    for (experts, router), (old, rows), layer in zip(state(student), state(taught()), groups, strict=True):
        for name, tensor in [*experts.items(), *router.items()]:
            source = old[name] if name in old else rows[name]
            for place, members in enumerate(groups[layer]):
                mean = source[members].double().mean(0).float()
                assert torch.equal(tensor[place], mean if len(groups[layer]) <= kappa else source[chosen[layer][place]])


def test_a_permutation_of_experts_permutes_what_stays():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    turned = taught().copy()
    for mixture in turned.mixtures().values():
        for module in (mixture.experts, mixture.router):
            for tensor in merging.per_expert(module, 8).values():
                tensor.copy_(tensor[order])
    batch = taught().example(2, 12)
    torch.testing.assert_close(turned.forward(batch).prediction, taught().forward(batch).prediction)
    groups, chosen = of(taught(), 14)
    theirs, kept = of(turned, 14)
    for layer in groups:
        back = {frozenset(order[members].tolist()) for members in theirs[layer]}
        assert back == {frozenset(members) for members in groups[layer]}
        assert {int(order[i]) for i in kept[layer]} == set(chosen[layer])
    for kappa in (0, 8):
        one, _ = stun.keep_experts(taught(), groups, chosen, kappa)
        other, _ = stun.keep_experts(turned, theirs, kept, kappa)
        torch.testing.assert_close(other.forward(batch).prediction, one.forward(batch).prediction)


def test_merging_exact_twins_changes_nothing_where_one_expert_answers():
    """With two per token, both twins answer one token; with one per token, the twin that stays does what both did."""
    single = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    single.model.config.num_experts_per_tok = 1
    for mixture in single.mixtures().values():
        mixture.router.top_k = 1
        for module in (mixture.experts, mixture.router):
            for tensor in merging.per_expert(module, 8).values():
                tensor[4:] = tensor[:4]
    assert single.top_k == 1
    groups, chosen = of(single, 12)
    batch = single.example(2, 12)
    for kappa in (0, 4):
        student, _ = stun.keep_experts(single, groups, chosen, kappa)
        assert counts(student) == [4, 4, 4]
        torch.testing.assert_close(student.forward(batch).prediction, single.forward(batch).prediction)


def test_tokens_of_at_most_one_twin_are_answered_as_before():
    copy = taught().copy()
    mixture = copy.mixtures()[1]
    for module in (mixture.experts, mixture.router):
        for tensor in merging.per_expert(module, 8).values():
            tensor[7] = tensor[2]
    groups, chosen = {i: [[j] for j in range(8)] for i in range(3)}, {i: list(range(8)) for i in range(3)}
    groups[1], chosen[1] = [[0], [1], [2, 7], *([j] for j in range(3, 7))], list(range(7))
    student, _ = stun.keep_experts(copy, groups, chosen, 0)
    states = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    new = student.mixtures()[1]
    with torch.no_grad():
        picked = mixture.router(states)[2]
        ours, theirs = (m.experts(states, *m.router(states)[:0:-1]) for m in (new, mixture))
    twins = ((picked == 2) | (picked == 7)).sum(1)
    near = torch.isclose(ours, theirs, atol=1e-5).all(1)
    assert near[twins <= 1].all()
    assert not near[twins == 2].any()  # their joint share falls to one slot, and another expert comes in
    assert all(int((twins == n).sum()) for n in range(3))


# --------------------------------------------------------------------------------------------- distances and rules


def test_co_activation_decides_where_it_is_asked_to(tmp_path):
    found = routing.collect(
        taught().forward,
        taught().model,
        texts.windows(data(), tiny.tokenizer(), 16, 16)[0],
        {"1": taught().mixtures()[1].experts},
    )["1"]
    together = dict.fromkeys(range(3), found.together)
    for how, expected in (
        ("together", routing.meeting_distance(found.together)),
        ("mixed", routing.mixed_distance(taught().mixtures()[1].router.weight, found.together, 0.5)),
        ("router", routing.row_distance(taught().mixtures()[1].router.weight)),
    ):
        assert torch.equal(stun.expert_distances(taught(), together, stun.Distances(how, mix=0.5))[1], expected)
    for how in ("together", "mixed"):
        result = result_of(tmp_path, distance=how, structured=0.3)
        assert sum(counts(result.subject)) >= 17
        assert "experts judged in one pass over 256 tokens" in result.cut.notes
    assert "experts judged in no pass" in result_of(tmp_path, structured=0.3).cut.notes
    with pytest.raises(InputError, match="give router, together or mixed"):
        stun.expert_distances(taught(), {}, stun.Distances("cosine"))


def test_the_weight_of_counts_and_the_settings_of_owl_are_used(tmp_path):
    def same(first, second):
        pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    owl = result_of(tmp_path, distance="mixed", mix=0.0).subject
    assert same(owl, result_of(tmp_path).subject)  # without counts the rows alone
    assert not same(owl, result_of(tmp_path, times=2.0).subject)
    assert same(result_of(tmp_path, spread=0.0).subject, result_of(tmp_path, method="wanda").subject)


def test_rows_of_routers_are_compared_as_they_are_where_that_is_asked_for():
    together = {index: torch.arange(64.0).reshape(8, 8) + index for index in taught().mixtures()}
    for distance in ("router", "mixed"):
        found = stun.expert_distances(taught(), together, stun.Distances(distance, normalise=False))
        for index, mixture in taught().mixtures().items():
            wanted = routing.row_distance(mixture.router.weight, normalised=False)
            if distance == "mixed":
                wanted = wanted + routing.meeting_distance(together[index])
            assert torch.equal(found[index], wanted)


def test_outliers_are_those_of_the_scores_that_weights_are_judged_by(tmp_path, monkeypatch):
    asked, real = [], stun.blockwise.measure_outliers
    monkeypatch.setattr(
        stun.blockwise, "measure_outliers", lambda *given, **how: asked.append(how) or real(*given, **how)
    )
    result_of(tmp_path, routed=True, floor=3, times=4.0)
    assert asked == [{"times": 4.0, "floor": 3, "routed": True}]


def test_shares_of_blocks_have_the_mean_over_all_weights_that_the_budget_leaves(tmp_path, monkeypatch):
    """A block of few experts has few weights, and counts for less."""
    found, real = [], stun.allocate.spread
    monkeypatch.setattr(
        stun.allocate, "spread", lambda *given, **how: found.append((given[1], real(*given, **how))) or found[-1][1]
    )
    result = result_of(tmp_path, "weights=40%", experts=9)
    sizes = [sum(m.weight.numel() for m in matrices(result.subject.model, [path]).values())
             for path in result.subject.layers()]  # fmt: skip
    assert max(sizes) > 1.2 * min(sizes)
    ((mean, shares),) = found
    assert max(shares) > min(shares)
    assert np.average(shares, weights=sizes) == pytest.approx(mean)
    assert mean == pytest.approx(0.4 * blocks.count(taught()) / sum(sizes))


@pytest.mark.parametrize(("budget", "method"), [("weights=60%", "wanda"), ("pattern=2:4", "owl")])
def test_outliers_are_looked_for_only_where_blocks_get_shares_of_their_own(tmp_path, monkeypatch, budget, method):
    """It is one more pass through all blocks."""
    monkeypatch.setattr(stun.blockwise, "measure_outliers", lambda *_, **__: pytest.fail("looked for outliers"))
    assert result_of(tmp_path, budget, method=method).predicted["weights"] > 0


def test_a_budget_that_is_none_of_weights_is_refused_before_the_first_is_worked_on(tmp_path, monkeypatch):
    monkeypatch.setattr(stun, "expert_distances", lambda *_, **__: pytest.fail("worked on the first"))
    with Run.open(tmp_path, {}) as opened, pytest.raises(BudgetError, match="stun can't follow budget params=50%"):
        list(stun.stun(taught(), data(), [Budget.parse("weights=60%"), Budget.parse("params=50%")], opened))


@pytest.mark.parametrize("rule", ["usage", "soft", "saliency", "random"])
def test_other_rules_keep_as_many_of_each_layer(tmp_path, rule):
    ours = result_of(tmp_path, structured=0.3)
    other = result_of(tmp_path, structured=0.3, choose=rule)
    assert counts(other.subject) == counts(ours.subject)


def test_the_most_used_stay_under_the_rule_of_usage():
    usage = {f"layers.{i}.experts": torch.tensor([5, 1, 7, 2, 9, 3, 8, 4]) for i in range(3)}
    first = stun.choose_experts(
        taught(), stun.expert_distances(taught(), {}), 12, uniform=True, worths=usage, rule="usage"
    )
    assert all(one == [0, 2, 4, 6] for one in first["chosen"].values())
    assert all(one == [[0], [2], [4], [6]] for one in first["clusters"].values())


def test_weights_of_experts_are_judged_by_what_they_get_times_its_share(tmp_path):
    """MoE-Pruner: |W_ij| ||X_j g||, here of the first block, whose inputs no pruned one has changed."""
    how = {"structured": 0.0, "method": "wanda"}
    found = {routed: result_of(tmp_path, subject=taught(), routed=routed, **how) for routed in (False, True)}
    stays = {
        routed: {name: m.weight != 0 for name, m in matrices(one.subject.model, one.subject.layers()).items()}
        for routed, one in found.items()
    }
    mixture, seen = taught().mixtures()[0], []
    hook = mixture.experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        for item in texts.windows(data(), tiny.tokenizer(), QUICK["samples"], QUICK["length"])[0]:
            taught().forward(item)
    hook.remove()
    for expert in (0, 5):
        rows = [s[(c == expert).any(-1)] * g[c == expert][:, None] for s, c, g in seen]
        weight = mixture.experts.gate_up_proj[expert].detach()
        score = weight.abs() * torch.cat(rows).square().sum(0).sqrt()
        name = f"model.layers.0.mlp.experts.gate_up_proj[{expert}]"
        kept = stays[True][name]
        least = score.masked_fill(~kept, torch.inf).min(1).values
        assert (score.masked_fill(kept, 0).max(1).values <= least * (1 + 1e-5)).all()
    changed = {name for name, one in stays[True].items() if name.startswith("model.layers.0.") and
               not torch.equal(one, stays[False][name])}  # fmt: skip
    assert changed
    assert all("experts" in name for name in changed)


def test_kurtosis_is_told_per_stage(tmp_path):
    result = result_of(tmp_path)
    (told,) = (note for note in result.cut.notes if note.startswith("kurtosis"))
    shape = stun.kurtosis(before=taught(), weights=result.subject)
    assert f"before {np.mean(list(shape['before'].values())):.3f}" in told
    assert f"weights {np.mean(list(shape['weights'].values())):.3f}" in told
    assert np.mean(list(shape["weights"].values())) < np.mean(list(shape["before"].values()))


def test_starved_experts_are_pruned_all_the_same(tmp_path):
    copy = taught().copy()
    for mixture in copy.mixtures().values():
        mixture.router.weight.data[3] = 0
        mixture.router.weight.data[:3] *= 8  # some of the others are always ahead
        mixture.router.weight.data[4:] *= 8
    result = result_of(tmp_path, subject=copy, structured=0.0, method="wanda", floor=10**6)
    assert any("matrices of experts had under 1000000 tokens" in note for note in result.cut.notes)
    found = matrices(result.subject.model, result.subject.layers())
    assert all(int((m.weight != 0).sum(1).max()) <= 0.6 * m.weight.shape[1] for m in found.values())


# ------------------------------------------------------------------------------------------------- without experts


@functools.cache
def dense():
    return open_subject(tiny.taught(tiny.uneven(tiny.model("llama")), steps=20), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("budget", ["weights=60%", "pattern=2:4"])
def test_a_model_without_experts_loses_neurons_first_then_weights(tmp_path, budget):
    """A fifth of 128 neurons, rounded down to 8: 104 stay, and the total is what was asked for."""
    result = result_of(tmp_path, budget, subject=dense(), neurons=0.2)
    assert {width.neurons for width in result.subject.widths()} == {104}
    assert result.subject.model.config.intermediate_size == 104
    whole, left = blocks.count(dense()), nonzero(matrices(result.subject.model, result.subject.layers()))
    assert left == result.cut.after["weights"] == result.predicted["weights"]
    assert result.cut.before["weights"] == whole
    assert "416 neurons of all layers stay" in result.cut.notes
    if budget == "pattern=2:4":
        assert left == blocks.count(result.subject) / 2
        return
    assert 0.55 * whole < left <= 0.6 * whole
    gone = 1 - blocks.count(result.subject) / whole
    assert f"total sparsity {1 - left / whole:.4f}, of it {gone:.4f} by neurons" in result.cut.notes
    assert result.cut.removed["layers.0.neurons"] == (24, 128)


def test_neurons_go_by_what_they_add_and_no_more_than_the_budget_allows(tmp_path):
    """Half of them are nearly silent behind the second linear."""
    uneven = open_subject(tiny.uneven(tiny.model("llama")), tokenizer=tiny.tokenizer())
    worths = stun.neuron_worths(uneven, texts.windows(data(), tiny.tokenizer(), 12, 16)[0], "clusters", seed=0)
    for index, layer in enumerate(uneven.model.model.layers):
        loud = layer.mlp.down_proj.weight.norm(dim=0) > 0.1
        assert worths[f"layers.{index}.neurons"][loud].min() > worths[f"layers.{index}.neurons"][~loud].max()
    result = result_of(tmp_path, subject=dense(), neurons=0.3)
    chance = result_of(tmp_path, subject=dense(), neurons=0.3, choose="random")
    item = dense().example(4, 16)
    with torch.no_grad():
        wanted = dense().forward(item).prediction
        errors = [float((one.subject.forward(item).prediction - wanted).norm()) for one in (result, chance)]
    assert errors[0] < errors[1]
    little = result_of(tmp_path, "weights=98%", subject=dense(), neurons=0.5)
    assert nonzero(matrices(little.subject.model, little.subject.layers())) <= 0.98 * blocks.count(dense())
    assert {width.neurons for width in little.subject.widths()} == {128}  # less than 8 of a layer


def test_a_seed_draws_its_own_worth_of_neurons():
    first, again, other = (stun.neuron_worths(dense(), [], "random", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[site], again[site]) for site in first)
    assert not any(torch.equal(first[site], other[site]) for site in first)


@pytest.mark.parametrize("how", [{"experts": 3}, {"uniform": True}, {"distance": "together"}, {"choose": "usage"}])
def test_options_of_experts_are_refused_without_any(tmp_path, how):
    with pytest.raises(InputError, match="are of experts, and this model has none"):
        result_of(tmp_path, subject=dense(), **how)


# ------------------------------------------------------------------------------------------------ files, bad input


def test_different_counts_per_layer_survive_the_disk(tmp_path):
    result = result_of(tmp_path, "weights=50%", experts=17)
    assert len(set(counts(result.subject))) > 1
    result.subject.save(tmp_path / "saved")
    again = open_subject(tmp_path / "saved")
    assert counts(again) == counts(result.subject)
    batch = again.example(2, 12)
    assert torch.equal(again.forward(batch).prediction, result.subject.forward(batch).prediction)
    assert torch.equal(secateur.load(tmp_path / "saved")(**batch).logits, result.subject.forward(batch).prediction)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"option structured=1\.0 of stun"):
        result_of(tmp_path, structured=1.0)
    for option, value in {"kappa": -1, "floor": -1, "times": 0.0, "samples": 0, "experts": -1}.items():
        with pytest.raises(InputError, match=f"option {option}={value} of stun"):
            result_of(tmp_path, **{option: value})
    for budget in ("params=50%", "weights=100%"):
        with pytest.raises(BudgetError):
            result_of(tmp_path, budget)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("mixtral", "weights=60%", seen=32, samples=32, length=16)
