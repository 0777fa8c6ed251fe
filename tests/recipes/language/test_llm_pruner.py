"""LLM-Pruner on models of a few thousand parameters."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.methods import distillation, retraining
from secateur.recipes.language import llm_pruner
from secateur.recipes.language.llm_pruner import Importance
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Result

QUICK = {"samples": 6, "train_length": 16, "length": 16, "steps": 0}
DATA = texts.read(tiny.chains(200))


def toy(folder):
    return toys.language("llama", "params=75%", **QUICK)


def subject(kind: str = "llama") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def results(root, *budgets, model=None, kind="llama", data=DATA, **options) -> list[Result]:
    how = keywords.check_options(llm_pruner.llm_pruner, {**QUICK, **options})
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(llm_pruner.llm_pruner(model or subject(kind), data, wanted, run, **how))


def scores(start: Transformer, axes=("kv_groups", "neurons"), **importance) -> dict[str, torch.Tensor]:
    _, units = llm_pruner.choose_units(start, axes, 0, 0, batch=1, length=16)
    batches = llm_pruner.sequences(start, DATA, 3, length=16, seed=0)
    return llm_pruner.score_units(start, units, batches, Importance(**importance), seed=0)


def gradients(start: Transformer) -> list[dict[str, torch.Tensor]]:
    """Name -> gradient of the next token's loss, sequence by sequence."""
    found = []
    for batch in llm_pruner.sequences(start, DATA, 3, length=16, seed=0):
        start.model.zero_grad()
        logits = start.model(input_ids=batch["input_ids"]).logits
        functional.cross_entropy(logits[0, :-1], batch["input_ids"][0, 1:]).backward()
        found.append({name: p.grad.clone() for name, p in start.model.named_parameters()})
    start.model.zero_grad()
    return found


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("within", ["vector", "element"])
@pytest.mark.parametrize("aggregation", ["sum", "prod", "max", "last"])
def test_the_importance_of_a_group_is_that_of_the_equations(order, within, aggregation):
    start, layer = subject(), "model.layers.1"
    passes, weights = gradients(start), dict(start.model.named_parameters())

    def change(name: str, dim: int) -> torch.Tensor:
        w, each = weights[name].detach(), torch.stack([one[name] for one in passes])
        moved = w * each.mean(0) - (0.5 * w.square() * each.square().mean(0) if order == 2 else 0)
        return moved.sum(1 - dim).abs() if within == "vector" else moved.abs().sum(1 - dim)

    def together(matrices: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(matrices).double()
        how = {"sum": stacked.sum(0), "prod": stacked.prod(0).log(), "max": stacked.amax(0), "last": stacked[-1]}
        return how[aggregation]

    found = scores(start, order=order, within=within, aggregation=aggregation)
    neurons = together(
        [change(f"{layer}.mlp.{name}_proj.weight", dim) for name, dim in (("gate", 0), ("up", 0), ("down", 1))]
    )
    torch.testing.assert_close(found["layers.1.neurons"], neurons, rtol=1e-4, atol=1e-9)
    heads = [
        (name, change(f"{layer}.self_attn.{name}_proj.weight", dim))
        for name, dim in (("q", 0), ("k", 0), ("v", 0), ("o", 1))
    ]
    groups = together([moved.unflatten(0, (2, -1)).sum(1) for _, moved in heads])
    torch.testing.assert_close(found["layers.1.kv_groups"], groups, rtol=1e-4, atol=1e-9)


def test_heads_of_gpt2_take_their_columns_of_the_fused_projection():
    start = subject("gpt2")
    found = scores(start, ("heads", "channels"), score="l2")
    attention = start.model.transformer.h[0].attn
    fused = attention.c_attn.weight.detach().square().sum(0) + attention.c_attn.bias.detach().square()
    expected = fused.unflatten(0, (3, 4, -1)).sum((0, 2)) + attention.c_proj.weight.detach().square().sum(1).unflatten(
        0, (4, -1)
    ).sum(1)
    torch.testing.assert_close(found["layers.0.heads"].float(), expected)
    assert found["channels"].shape == (32,)


@pytest.mark.parametrize(
    ("kind", "axes", "budget"),
    [
        ("llama", ("kv_groups", "neurons"), "params=85%"),
        ("llama", ("heads", "neurons", "channels"), "params=85%"),
        ("qwen3", ("channels",), "params=85%"),
        ("gpt2", ("kv_groups", "neurons", "channels"), "params=85%"),
        ("masked", ("kv_groups", "neurons"), "params=85%"),
        ("mixtral", ("kv_groups", "neurons"), "params=95%"),
    ],
)
def test_every_family_with_a_loss_meets_its_budget_as_predicted(tmp_path, kind, axes, budget):
    (found,) = results(tmp_path, budget, kind=kind, axes=axes)
    assert found.predicted["params"] == sum(p.numel() for p in found.subject.model.parameters())
    limit = Budget.parse(budget).absolute(subject(kind).units().cost())
    assert found.predicted["params"] <= limit["params"]
    assert found.predicted == found.subject.units(batch=1, length=16).cost()


def test_products_of_many_small_factors_rank_as_exact_ones_do():
    """28 matrices of squared norms near 1e-16 multiply to 1e-448: as a float of any size, zero for every channel."""
    start = subject()
    with torch.no_grad():
        for parameter in start.model.parameters():
            parameter.mul_(1e-8)
    found = scores(start, ("channels",), score="l2", aggregation="prod")["channels"]
    parts = start.slices()["channels"]
    factors = [
        [
            weight.detach().select(dim, int((unit == channel).nonzero())).double().square().sum()
            for weight, dim, unit in parts
        ]
        for channel in range(len(found))
    ]
    assert torch.tensor(factors, dtype=torch.float64).prod(1).max() == 0
    exact = [math.prod(Fraction(float(factor)) for factor in row) for row in factors]
    assert found.argsort().tolist() == sorted(range(len(exact)), key=exact.__getitem__)


def test_a_product_with_a_factor_of_zero_is_below_all_others_and_still_tells_what_else_is_there():
    start = subject()
    mlp = start.model.model.layers[1].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[[3, 7]] = 0
        mlp.up_proj.weight[[3]] = 0
        start.model.model.layers[2].mlp.down_proj.weight.zero_()
    found = scores(start, ("neurons",), score="l2", aggregation="prod")
    assert found["layers.1.neurons"].argsort()[:2].tolist() == [3, 7]
    assert found["layers.2.neurons"].unique().numel() > 100
    assert found["layers.2.neurons"].max() < found["layers.0.neurons"].min()
    assert all(score.isfinite().all() for score in found.values())


def test_the_first_and_last_layers_stay_whole(tmp_path):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 8}
    _, units = llm_pruner.choose_units(
        open_subject(LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=32))), ("neurons",), None, None,
        batch=1, length=16,
    )  # fmt: skip
    assert [site.name for site in units.free()] == [f"layers.{index}.neurons" for index in range(4, 30)]
    start = subject()
    (found,) = results(tmp_path / "a", "params=90%", model=start, first=1, last=1)
    before, after = start.widths(), found.subject.widths()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False, True]
    with pytest.raises(InputError, match="first=3 and last=1 keep all 4 layers whole"):
        results(tmp_path / "b", "params=90%", model=start, first=3, last=1)


def test_silent_neurons_go_first_whatever_the_score_but_chance(tmp_path):
    """Half the neurons of each layer are nearly silent; a random choice keeps about half of them."""

    def silent(found: Result) -> float:
        norms = [layer.mlp.down_proj.weight.norm(dim=0) for layer in found.subject.model.model.layers]
        return float(torch.cat([norm < 0.1 for norm in norms]).float().mean())

    for name, how in {
        "first": {},
        "second": {"order": 2},
        "vector": {"within": "vector"},
        "last": {"aggregation": "last"},
        "prod": {"aggregation": "prod"},
    }.items():
        (found,) = results(tmp_path / name, "params=75%", axes=("neurons",), **how)
        assert silent(found) < 0.2, name
    (found,) = results(tmp_path / "random", "params=75%", axes=("neurons",), score="random")
    assert silent(found) > 0.3


def test_a_classifier_is_scored_by_its_labels_and_needs_them(tmp_path):
    start = open_subject(tiny.classifier(), tokenizer=tiny.tokenizer())
    lines = tiny.sentences(40)
    labelled = texts.Corpus(texts=lines, name="told", digest="0", labels=[0, 1] * 20)
    _, units = llm_pruner.choose_units(start, ("neurons",), 0, 0, batch=1, length=16)
    batches = llm_pruner.sequences(start, labelled, 5, length=16, seed=0)
    assert {int(batch["labels"]) for batch in batches} == {0, 1}
    worth = llm_pruner.score_units(start, units, batches, Importance(aggregation="last"), seed=0)
    last = start.model.bert.encoder.layer[0].output.dense
    (torch.stack([start.model(**batch).loss for batch in batches]).mean()).backward()
    torch.testing.assert_close(
        worth["layers.0.neurons"].float(), (last.weight * last.weight.grad).abs().sum(0).detach()
    )
    start.model.zero_grad()
    (found,) = results(tmp_path / "a", "params=98%", model=start, data=labelled, axes=("neurons",))
    assert found.predicted["params"] <= 0.98 * start.units().cost()["params"]
    with pytest.raises(InputError, match="scores by the gradient of a loss, and this model has none"):
        results(tmp_path / "b", "params=98%", model=start, axes=("neurons",))
    (found,) = results(tmp_path / "c", "params=98%", model=start, axes=("neurons",), score="l2")
    assert not found.cut.is_noop


def test_gradients_are_of_as_many_sequences_of_the_length_and_seed_that_are_asked_for(tmp_path, monkeypatch):
    asked, real = [], llm_pruner.sequences

    def spy(*given, **how):
        found = real(*given, **how)
        asked.append(torch.cat([batch["input_ids"] for batch in found]))
        return found

    monkeypatch.setattr(llm_pruner, "sequences", spy)
    for seed in (0, 1):
        results(tmp_path / str(seed), "params=85%", seed=seed, samples=4, train_length=12)
        train, _ = DATA.split(seed=seed)
        wanted = distillation.make_batches(subject(), train, batch=1, length=12, seed=seed).take(4)
        assert torch.equal(asked[-1], torch.cat([batch["input_ids"] for batch in wanted]))
    assert not torch.equal(*asked)


def test_a_seed_draws_its_own_random_scores():
    start = subject()
    _, units = llm_pruner.choose_units(start, ("neurons",), 0, 0, batch=1, length=16)
    first, again, other = (
        llm_pruner.score_units(start, units, [], Importance(score="random"), seed=seed) for seed in (3, 3, 4)
    )
    assert all(torch.equal(score, again[site]) for site, score in first.items())
    assert not any(torch.equal(score, other[site]) for site, score in first.items())


@pytest.mark.parametrize("scope", ["local", "kind", "global"])
def test_layers_lose_alike_or_the_weakest_of_all_go_as_the_scope_says(tmp_path, scope):
    start = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    with torch.no_grad():
        for linear in start.model.model.layers[1].mlp.children():
            if isinstance(linear, torch.nn.Linear):
                linear.weight.mul_(1e-2)
    how = {"axes": ("neurons",), "score": "l2", "first": 0, "last": 0}
    (found,) = results(tmp_path, "params=85%", model=start, scope=scope, **how)
    left = [width.neurons for width in found.subject.widths()]
    if scope == "local":
        assert max(left) - min(left) <= 8 < 128 - max(left)
    else:
        assert left[1] < 64 < min(left[0], left[2], left[3])


def test_costs_are_those_of_the_batch_that_is_asked_for(tmp_path):
    (found,) = results(tmp_path, "params=85%", batch=4)
    assert found.predicted == found.subject.units(batch=4, length=16).cost()
    assert found.predicted != found.subject.units(batch=1, length=16).cost()


def test_it_recovers_with_the_loop_of_all_recipes(tmp_path):
    start = subject()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    (found,) = results(tmp_path, "params=85%", model=start, steps=2, train_batch=4)
    assert found.recovery is not None
    assert found.recovery.steps == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items())


def test_recovery_is_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(llm_pruner.distillation, "distil", lambda *given, **how: asked.append(how))
    losses = {"task": 0.25, "logit": 0.5, "token": 0.75, "temperature": 3.0}
    rates = {"lr": 2e-3, "min_lr": 1e-5, "warmup": 0.2, "weight_decay": 0.1}
    loop = {"steps": 7, "train_batch": 4, "train_length": 12, "lr": 2e-3, "warmup": 0.2}
    results(tmp_path, "params=85%", seed=3, **losses, **loop, training="min_lr=1e-5,weight_decay=0.1")
    (how,) = asked
    assert (how["seed"], how["train_length"]) == (3, 12)
    assert {name: getattr(how["losses"], name) for name in losses} == losses
    assert (how["training"].steps, how["training"].batch) == (7, 4)
    assert {name: getattr(how["training"], name) for name in rates} == rates


def test_scores_are_taken_once_for_all_budgets_and_a_run_resumes(tmp_path, monkeypatch):
    counted = []
    real = llm_pruner.score_units
    monkeypatch.setattr(llm_pruner, "score_units", lambda *a, **how: counted.append(1) or real(*a, **how))
    first = results(tmp_path, "params=85%", "params=75%")
    again = results(tmp_path, "params=85%", "params=75%")
    assert len(counted) == 1
    for one, two in zip(first, again, strict=True):
        assert one.cut.removed == two.cut.removed
    gone = [sum(lost for lost, _ in found.cut.removed.values()) for found in first]
    assert gone[0] < gone[1]


def test_a_latency_is_met_by_the_table_and_the_clock(tmp_path, monkeypatch):
    """Here a neuron takes 1 us, a group of heads 10 us, and nothing else takes time, as the clock says, too."""
    table = {"neurons": {"0": 0.0, "128": 128e-6}, "kv_groups": {"0": 0.0, "2": 20e-6}, "rest": {"0": 0.0}}

    def seconds(model: Transformer) -> float:
        return sum(1e-6 * width.neurons + 1e-5 * width.kv for width in model.widths())

    monkeypatch.setattr(llm_pruner.timing, "time_blocks", lambda *_: table)
    monkeypatch.setattr(llm_pruner.timing, "time_share", lambda whole, cut, *_, **__: seconds(cut) / seconds(whole))
    (found,) = results(tmp_path / "a", "speedup=1.5x")
    assert found.predicted["latency"] == pytest.approx(seconds(found.subject))
    assert found.predicted["speedup"] >= 1.5
    del table["kv_groups"]
    (alone,) = results(tmp_path / "c", "speedup=1.2x", axes=("neurons",))
    assert alone.predicted["speedup"] >= 1.2
    assert {name.rpartition(".")[2] for name in alone.cut.removed} == {"neurons"}
    with pytest.raises(UnsupportedError, match="a latency is predicted for one of heads and kv_groups, and neurons"):
        results(tmp_path / "b", "speedup=1.5x", axes=("neurons", "channels"))


@pytest.mark.parametrize(
    ("options", "budget", "error", "words"),
    [
        ({"axes": ("heads",), "select_by": "short-retrain"}, "params=90%", InputError, "heads go in step"),
        ({"axes": ("layers",)}, "params=80%", InputError, "axes=layers: give one or more of heads, kv_groups"),
        ({"score": "loudness"}, "params=80%", InputError, "score 'loudness' is not one of taylor, l2, random"),
        ({"axes": ("channels",), "token": 0.5}, "params=80%", InputError, "token compares states of equal width"),
        ({}, "pattern=2:4", BudgetError, "llm_pruner can't meet pattern=2:4"),
        (
            {},
            "params=1%",
            InfeasibleError,
            r"budget params=1% can't be met: .*; ask for params=[\d.]+% or more, or cut",
        ),
        ({}, "params=100%", InfeasibleError, "budget params=100% would change nothing: all of the model fits in it"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, monkeypatch, options, budget, error, words):
    if error is InfeasibleError:  # before anything slow
        monkeypatch.setattr(llm_pruner, "score_units", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(error, match=words):
        results(tmp_path, budget, **options)


def test_a_score_of_ones_own_is_taken_from_a_file(tmp_path):
    place = tmp_path / "mine.py"
    place.write_text(
        "def worth(subject, batches):\n    return {s.name: range(s.count) for s in subject.units().free()}\n"
    )
    (found,) = results(tmp_path / "run", "params=80%", axes=("neurons",), score=f"{place}:worth")
    kept = found.subject.model.model.layers[0].mlp.down_proj.weight
    start = subject().model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(kept, start[:, -kept.shape[1] :])
    assert np.isfinite(found.predicted["params"])


def test_a_short_distillation_picks_among_cuts_of_the_same_widths_once(tmp_path, monkeypatch):
    asked, students, real = [], [], distillation.distil

    def distil(*given, **how):
        asked.append(how["training"].steps)
        students.append([tensor.clone() for tensor in given[1].model.state_dict().values()])
        recovery = real(*given, **how)
        return replace(recovery, losses=((1, 7.0 - len(asked) % 7),)) if how["training"].steps == 1 else recovery

    monkeypatch.setattr(distillation, "distil", distil)
    quick = {"steps": 5, "train_batch": 4, "first": 0, "last": 0}
    (plain,) = results(tmp_path / "plain", "params=75%", **{**quick, "steps": 0})
    (result,) = results(tmp_path / "short", "params=75%", select_by="short-retrain", **quick)
    assert asked == [0, *[1] * 8, 5], "a tenth of the recovery for each of eight cuts"
    assert result.cut.removed == plain.cut.removed
    assert result.cut.after == plain.cut.after
    reached = [float(number) for number in json.loads(next((tmp_path / "short").rglob("shortly-*%.json")).read_text())]
    assert len(reached) == 8
    best = int(np.argmin(reached))
    assert best == 4, "the one that was told to be lowest, and not the scores' own"
    assert all(torch.equal(one, other) for one, other in zip(students[9], students[1 + best], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(students[9], students[1], strict=True))
    assert not list((tmp_path / "short").rglob("shortly-*/")), "no checkpoint of what was only tried"
    assert result.notes[-1] == retraining.describe_choice(best, reached)
    results(tmp_path / "short", "params=75%", select_by="short-retrain", **quick)
    assert asked[10:] == [5], "the choice is kept"
