"""ShortGPT and the angular rule on models of a few layers."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.methods import distillation
from secateur.recipes.language import shortgpt
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Recovery, Result
from subjects.hybrids import make_hybrid

QUICK = {"samples": 16, "train_length": 16, "length": 16}
DATA = texts.read(tiny.chains(200))


def toy(folder):
    found = toys.language("llama", "params=80%", **QUICK)
    return {**found, "subject": idle_layers(found["subject"].copy(), (2,))}


def idle_layers(made: Transformer, idle: tuple[int, ...]) -> Transformer:
    """The model, of which the layers `idle` now add next to nothing."""
    with torch.no_grad():
        for index in idle:
            layer = made.model.get_submodule(made.layers()[index])
            for block in (made.family.attention, made.family.ffn):
                for parameter in layer.get_submodule(block.out).parameters():
                    parameter.mul_(1e-3)
    return made


def subject(kind: str = "llama", idle: tuple[int, ...] = ()) -> Transformer:
    return idle_layers(open_subject(tiny.model(kind), tokenizer=tiny.tokenizer()), idle)


def results(root, *budgets, model=None, **options) -> list[Result]:
    how = keywords.check_options(shortgpt.shortgpt, {**QUICK, **options})
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(shortgpt.shortgpt(model or subject(), DATA, wanted, run, **how))


def test_the_layers_of_least_influence_go_wherever_they_stand(tmp_path):
    loose, tight = results(tmp_path, "flops=80%", "flops=60%", model=subject(idle=(0, 2)))
    assert loose.subject.layer_index in {(1, 2, 3), (0, 1, 3)}
    assert tight.subject.layer_index == (1, 3)
    for found in (loose, tight):
        assert found.predicted == found.subject.units(batch=1, length=16).cost()
        assert found.recovery is None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "qwen3", "mixtral"])
@pytest.mark.parametrize("rule", ["influence", "angular", "deepest"])
def test_every_rule_takes_every_family_and_meets_the_budget(tmp_path, kind, rule):
    start = subject(kind)
    (found,) = results(tmp_path, "params=80%", model=start, rule=rule)
    left = len(found.subject.layers())
    assert 0 < left < len(start.layers())
    assert found.predicted["params"] == sum(p.numel() for p in found.subject.model.parameters())
    assert found.predicted["params"] <= 0.8 * start.units().cost()["params"]


def test_the_angular_rule_takes_the_run_of_the_least_angle(tmp_path):
    start = subject(idle=(1, 2))
    (found,) = results(tmp_path / "a", "flops=60%", model=start, rule="angular")
    assert found.subject.layer_index == (0, 3)
    (all_tokens,) = results(tmp_path / "b", "flops=60%", model=start, rule="angular", tokens="all")
    assert all_tokens.subject.layer_index == (0, 3)
    (deepest,) = results(tmp_path / "c", "flops=60%", model=start, rule="deepest")
    assert deepest.subject.layer_index == (0, 3)
    (one,) = results(tmp_path / "d", "flops=80%", model=start, rule="deepest")
    assert one.subject.layer_index == (0, 1, 3)


def test_a_run_of_layers_may_do_less_together_than_its_layers_alone():
    """Layers 1 and 2 turn the states and turn them back: each alone looks important, both together do nothing."""
    units = subject().units("layers")
    distances = np.triu(np.full((5, 5), 0.5, np.float32), 1)
    distances[0, 1] = distances[3, 4] = 0.4
    distances[1, 3] = 0.1
    budget = Budget.of({"params": 0.7 * units.cost()["params"]})
    angular = shortgpt.keep_layers(units, budget, rule="angular", distances=distances)
    assert angular["layers"].tolist() == [True, False, False, True]
    influence = shortgpt.keep_layers(units, budget, rule="influence", distances=distances)
    assert influence["layers"].tolist() == [False, True, True, False]


def test_the_distances_are_measured_once_and_a_run_resumes(tmp_path, monkeypatch):
    counted = []
    real = shortgpt.similarity.distances
    monkeypatch.setattr(shortgpt.similarity, "distances", lambda *a, **k: counted.append(1) or real(*a, **k))
    first = results(tmp_path, "flops=80%", "flops=60%")
    again = results(tmp_path, "flops=80%", "flops=60%")
    assert len(counted) == 1
    assert [found.subject.layer_index for found in first] == [found.subject.layer_index for found in again]


@pytest.mark.parametrize("asked", [1, 5, 20])
def test_as_many_sequences_are_looked_at_as_asked_and_none_for_the_deepest(tmp_path, monkeypatch, asked):
    seen, start, real = [], subject(), shortgpt.similarity.distances

    def spy(ask, items, *rest, **how):
        seen.append(sum(len(item["input_ids"]) for item in items))
        return real(ask, items, *rest, **how)

    monkeypatch.setattr(shortgpt.similarity, "distances", spy)
    results(tmp_path / "a", "flops=80%", model=start, samples=asked)
    assert seen == [asked]
    monkeypatch.setattr(start, "forward", None)
    results(tmp_path / "b", "flops=80%", model=start, samples=asked, rule="deepest")


@pytest.mark.parametrize(
    ("rule", "tokens", "last"),
    [("influence", None, False), ("influence", "last", True), ("angular", None, True), ("angular", "all", False)],
)
def test_states_are_compared_by_the_rule_at_the_tokens_and_lengths_that_are_asked_for(
    tmp_path, monkeypatch, rule, tokens, last
):
    asked, real = [], shortgpt.similarity.distances

    def spy(states, items, how, **rest):
        asked.append((how, rest, {item["input_ids"].shape[1] for item in items}))
        return real(states, items, how, **rest)

    monkeypatch.setattr(shortgpt.similarity, "distances", spy)
    results(tmp_path, "flops=80%", rule=rule, tokens=tokens, train_length=12)
    named = {"influence": shortgpt.similarity.block_influence, "angular": shortgpt.similarity.angular_distance}
    assert asked == [(named[rule], {"last": last}, {12})]


def test_costs_are_those_of_the_batch_that_is_asked_for(tmp_path):
    (found,) = results(tmp_path, "kv_cache=50%", batch=4)
    assert found.predicted == found.subject.units(batch=4, length=16).cost()
    assert found.predicted != found.subject.units(batch=1, length=16).cost()


def test_healing_compares_each_layer_with_the_one_it_was(tmp_path, monkeypatch):
    asked = []
    real = shortgpt.distillation.objectives.distil
    monkeypatch.setattr(
        shortgpt.distillation.objectives, "distil", lambda *a, **how: asked.append(how) or real(*a, **how)
    )
    start = subject(idle=(1,))
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    (found,) = results(tmp_path / "a", "flops=80%", model=start, steps=2, train_batch=4, token=0.5)
    assert asked[0]["blocks"] == [(1, 1), (2, 3), (3, 4)]
    assert (asked[0]["task"], asked[0]["logit"], asked[0]["token"]) == (0.5, 1.0, 0.5)
    assert found.recovery is not None
    assert found.recovery.steps == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items())
    (dry,) = results(tmp_path / "dry", "flops=80%", model=start, steps=2, dry_run=True)
    assert dry.recovery is None
    trained, cut = (one.subject.model.state_dict() for one in (found, dry))
    assert not torch.equal(trained["model.norm.weight"], cut["model.norm.weight"])


def test_healing_is_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shortgpt.distillation, "distil", lambda *given, **how: asked.append(how))
    losses = {"task": 0.25, "logit": 0.5, "token": 0.75, "temperature": 3.0}
    rates = {"lr": 2e-3, "min_lr": 1e-5, "warmup": 0.2, "weight_decay": 0.1}
    loop = {"steps": 7, "train_batch": 4, "train_length": 12, "lr": 2e-3}
    results(tmp_path, "flops=80%", seed=3, **losses, **loop, training="min_lr=1e-5,warmup=0.2,weight_decay=0.1")
    (how,) = asked
    assert (how["seed"], how["train_length"]) == (3, 12)
    assert {name: getattr(how["losses"], name) for name in losses} == losses
    assert (how["training"].steps, how["training"].batch) == (7, 4)
    assert {name: getattr(how["training"], name) for name in rates} == rates


def test_a_short_healing_picks_among_cuts_of_as_many_layers(tmp_path, monkeypatch):
    asked = []

    def distil(original, student, *given, blocks, training, **how):
        asked.append((student.layer_index, blocks, training.steps))
        return Recovery(training.steps, losses=((1, 1.0 if student.layer_index == (0, 3) else 2.0),))

    monkeypatch.setattr(distillation, "distil", distil)
    how = {"select_by": "short-retrain", "steps": 20, "model": subject(idle=(0, 2))}
    (found,) = results(tmp_path / "short", "flops=60%", **how)
    assert [steps for *_, steps in asked] == [2] * 6 + [20], "all six cuts of two layers of four, and the one chosen"
    assert asked[0][0] == (1, 3), "the rule's own"
    assert asked[-1][:2] == ((0, 3), [(1, 1), (2, 4)])
    assert found.subject.layer_index == (0, 3)
    assert "not the criterion's own choice" in found.notes[-1]
    hybrid = open_subject(make_hybrid("Bamba", vocab_size=64, attn_layer_indices=[1]), tokenizer=tiny.tokenizer())
    for more, words in (({"steps": 0}, "give steps"), ({"model": hybrid}, "cost unlike amounts")):
        with pytest.raises(InputError, match=words):
            results(tmp_path / "refused", "flops=60%", **{**how, **more})


def test_a_short_healing_is_judged_by_where_it_ends(tmp_path, monkeypatch):
    """By the last fifth of its losses, and not by all of them."""

    def distil(original, student, *given, training, **how):
        course = [9.0] * 8 + [1.0] * 2 if student.layer_index == (0, 3) else [2.0] * 10
        return Recovery(training.steps, losses=tuple(enumerate(course, 1)))

    monkeypatch.setattr(distillation, "distil", distil)
    (found,) = results(
        tmp_path, "flops=60%", model=subject(idle=(0, 2)), select_by="short-retrain", steps=100, train_batch=4
    )
    assert found.subject.layer_index == (0, 3)


def test_states_of_an_encoder_are_not_compared_with_those_of_a_decoder(tmp_path):
    """The first layer of a decoder was judged by what left the encoder: it always was the most important one."""
    sizes = {"d_model": 48, "vocab_size": 64, "max_position_embeddings": 32, "encoder_layers": 3, "decoder_layers": 3}
    sizes |= {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    pair = open_subject(BartForConditionalGeneration(BartConfig(**sizes)), tokenizer=tiny.tokenizer())
    for rule in ("influence", "angular"):
        with pytest.raises(InputError, match=f"rule={rule} compares states .*: give rule=deepest$"):
            results(tmp_path / rule, "params=80%", model=pair, rule=rule)
    (found,) = results(tmp_path / "deepest", "params=80%", model=pair, rule="deepest")
    assert len(found.subject.layers()) < len(pair.layers())


def test_a_latency_is_met_on_the_clock(tmp_path, monkeypatch):
    """Here a layer takes 10 ms and the rest 4 ms, as both the timer and the pairs say."""

    def seconds(model: Transformer) -> float:
        return 0.004 + 0.01 * len(model.layers())

    def interleaved(probes, **_):
        return {name: SimpleNamespace(value=seconds(probe.func.__self__)) for name, probe in probes.items()}

    monkeypatch.setattr(shortgpt.timing.latency, "time_interleaved", interleaved)
    monkeypatch.setattr(shortgpt.timing, "time_share", lambda whole, cut, *_, **__: seconds(cut) / seconds(whole))
    (found,) = results(tmp_path, "speedup=1.8x", model=subject(idle=(1, 2)))
    assert found.subject.layer_index == (0, 3)
    assert found.predicted["latency"] == pytest.approx(0.024)
    assert found.predicted["speedup"] == pytest.approx(44 / 24)


def test_what_no_number_of_layers_meets_is_refused_before_anything_is_compared(tmp_path, monkeypatch):
    whole = results(tmp_path / "whole", "params=90%", rule="deepest")[0].cut.before["params"]
    monkeypatch.setattr(shortgpt.similarity, "distances", lambda *_, **__: pytest.fail("compared"))
    for rule in ("influence", "angular", "deepest"):
        with pytest.raises(InfeasibleError, match=r"^budget params=1% can't be met: .*; ask for params=") as found:
            results(tmp_path / rule, "params=1%", rule=rule)
    told = re.search(r"params=[\d.]+%(?= or more$)", str(found.value))
    (met,) = results(tmp_path / "met", told[0], rule="deepest")
    assert met.cut.after["params"] == found.value.reachable < whole
    monkeypatch.setattr(shortgpt.timing, "time_layers", lambda *_: {"layers": {"0": 0, "4": 3}, "rest": {"0": 1}})
    with pytest.raises(InfeasibleError, match=r"speedup=9x can't be met: .*; ask for at most speedup=2\.28x$"):
        results(tmp_path / "slow", "speedup=9x")
    with pytest.raises(BudgetError, match=r"shortgpt can't meet pattern=2:4: it cuts layers"):
        results(tmp_path / "d", "pattern=2:4")


def test_a_model_that_comes_from_training_is_judged_without_dropout(tmp_path):
    """Its distances were others in each run; its mode is its own again afterwards."""
    start = subject("gpt2")
    (calm,) = results(tmp_path / "a", "flops=80%", model=start)
    start.model.train()
    with Run.open(tmp_path / "b", {}) as run:
        how = keywords.check_options(shortgpt.shortgpt, QUICK)
        (found,) = shortgpt.shortgpt(start, DATA, [Budget.parse("flops=80%")], run, **how)
        again = run.tensors("distances", lambda: pytest.fail("measured twice"))["distances"]
    with Run.open(tmp_path / "a", {}) as run:
        torch.testing.assert_close(again, run.tensors("distances", lambda: pytest.fail("gone"))["distances"])
    assert found.subject.layer_index == calm.subject.layer_index
    assert start.model.training


def test_layers_of_several_kinds(tmp_path, monkeypatch):
    """The only layer with an attention stays: the cache counts tokens by it."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny.tokenizer()
    model = make_hybrid("Bamba", vocab_size=len(tokenizer), attn_layer_indices=[1])
    hybrid = open_subject(model, tokenizer=tokenizer)
    (found,) = results(tmp_path / "run", "flops=60%", model=idle_attention(hybrid))
    assert 1 in found.subject.layer_index
    assert found.subject.model.config.attn_layer_indices == [found.subject.layer_index.index(1)]
    assert found.predicted == found.subject.units(batch=1, length=16).cost()


def test_the_best_of_the_layers_with_an_attention_stays(tmp_path, monkeypatch):
    """Both of them go first by score, and the cache needs one."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    hybrid = open_subject(make_hybrid("Bamba", vocab_size=64), tokenizer=tiny.tokenizer())
    distances = np.zeros((5, 5), dtype=np.float32)
    distances[range(4), range(1, 5)] = [0.4, 0.1, 0.5, 0.2]
    monkeypatch.setattr(shortgpt.similarity, "distances", lambda *_, **__: torch.from_numpy(distances))
    (found,) = results(tmp_path / "run", "params=60%", model=hybrid)
    assert found.subject.layer_index == (2, 3)
    assert "layers.3 is the last of 1, 3, of which one stays: the cache counts tokens by an attention" in found.notes
    distances[0, 2:], distances[1, 3:], distances[2, 4] = [0.1, 0.1, 1.0], [0.1, 0.1], 0.3  # 0 to 2, and then 1 to 3
    (found,) = results(tmp_path / "angular", "params=45%", model=hybrid, rule="angular")
    assert len(found.subject.layer_index) == 1
    assert {1, 3} & {*found.subject.layer_index}


def idle_attention(made: Transformer) -> Transformer:
    """The model, of which the layer with an attention now adds next to nothing."""
    with torch.no_grad():
        for name, parameter in made.model.get_submodule(made.layers()[1]).named_parameters():
            if name in ("self_attn.o_proj.weight", "feed_forward.down_proj.weight"):
                parameter.mul_(1e-3)
    return made
