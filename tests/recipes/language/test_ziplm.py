"""ZipLM on models of a few thousand parameters, under budgets of parameters: nothing here hangs on the clock."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import BudgetError, DataWarning, InfeasibleError, InputError
from secateur.recipes.language import ziplm
from secateur.recover.training import loop, objectives
from secateur.runs import keywords
from secateur.score import database
from secateur.select import levels
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Result, Selection

QUICK = {"calibration": 32, "judged": 16, "trials": 3, "steps": 0, "train_batch": 8, "train_length": 16}
DATA = texts.read(tiny.sentences(200))
TABLE = {"heads": {"0": 0.0, "4": 1.0}, "neurons": {"0": 0.0, "64": 2.0}, "rest": {"0": 1.0}}


def subject(kind: str = "bert") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def results(root, budgets, kind: str | Transformer = "bert", **options) -> list[Result]:
    start = subject(kind) if isinstance(kind, str) else kind
    how = keywords.check_options(ziplm.ziplm, {**QUICK, **options})
    with Run.open(root, {}) as run:
        return list(ziplm.ziplm(start, DATA, [Budget.parse(b) for b in budgets], run, **how))


def kept(found: Result) -> dict[str, int]:
    """Site, named by its layer in the original -> units left."""
    left = {}
    for site in found.subject.units("heads", "neurons").free():
        layer, kind = site.name.split(".")[1:]
        left[f"layers.{found.subject.layer_index[int(layer)]}.{kind}"] = site.count
    return left


def batches(start: Transformer, count: int = 1) -> list[dict[str, torch.Tensor]]:
    packed = start.kind == "decoder"
    return texts.batches(DATA, start.tokenizer, packed=packed, batch=16, length=16, seed=0).take(count)


def swept(start: Transformer, heads: str = "heads", step: int = 8) -> dict:
    sites = start.units(heads, "neurons").free()
    gone = {s.name: list(range(0, s.count + 1, 1 if s.kind == heads else step)) for s in sites}
    return database.build(start.forward, start.model, batches(start, 2), start.consumers(), gone)


@pytest.mark.parametrize(("kind", "budget"), [("bert", "params=80%"), ("llama", "params=70%"), ("gpt2", "params=80%")])
def test_a_budget_is_kept_and_the_prediction_is_the_count(tmp_path, kind, budget):
    (found,) = results(tmp_path, [budget], kind)
    whole = subject(kind).units().cost()["params"]
    count = sum(parameter.numel() for parameter in found.subject.model.parameters())
    assert count == found.predicted["params"]
    assert 0.5 * whole < count <= Budget.parse(budget).absolute({"params": whole})["params"]
    assert not found.cut.is_noop
    assert all(count % 8 == 0 for site, count in kept(found).items() if site.endswith("neurons"))


@pytest.mark.parametrize(("dense", "budget"), [([], "params=97%"), ([1], "params=92%")])
def test_a_mixture_of_experts_gives_kv_groups_and_dense_neurons_and_keeps_its_experts(tmp_path, dense, budget):
    start = open_subject(tiny.mixture(dense), tokenizer=tiny.tokenizer())
    (found,) = results(tmp_path, [budget], start)
    assert not found.cut.is_noop
    assert {site.rpartition(".")[2] for site, (gone, _) in found.cut.removed.items() if gone} <= {
        "kv_groups", "heads", "neurons", "attention", "ffn",
    }  # fmt: skip
    whole, left = start.units().cost(), found.subject.units().cost()
    assert left["params"] <= Budget.parse(budget).absolute(whole)["params"]
    assert [mixture.count for mixture in found.subject.mixtures().values()] == [8] * (3 - len(dense))


def test_a_budget_that_only_experts_could_meet_names_the_recipes_that_cut_them(tmp_path):
    start = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    with pytest.raises(InfeasibleError, match=r"experts stay whole here: slimmoe .* stun .* sparsegpt and wanda"):
        results(tmp_path, ["params=50%"], start)


def test_what_hardly_speaks_goes_first(tmp_path):
    """Half of each layer's neurons are nearly silent, so that to cut as much costs next to nothing."""
    dense = subject()
    (found,) = results(tmp_path, ["params=82%"])
    batch = texts.batches(DATA, dense.tokenizer, packed=False, batch=16, length=16, seed=5).take(1)[0]
    with torch.no_grad():
        before, after = dense.forward(batch).prediction, found.subject.forward(batch).prediction
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).mean() > 0.99


def test_the_grid_dampening_and_losses_are_what_the_options_say(tmp_path, monkeypatch):
    built, asked, build, distil = [], [], database.build, objectives.distil
    monkeypatch.setattr(
        database, "build", lambda *given, **how: built.append((given[4], how, given[2])) or build(*given, **how)
    )
    read, seek = [], ziplm.search_coefficients
    monkeypatch.setattr(ziplm, "search_coefficients", lambda *given: read.append(given[4]) or seek(*given))
    monkeypatch.setattr(objectives, "distil", lambda *models, **how: asked.append(how) or distil(*models, **how))
    losses = {"task": 0.0, "logit": 2.0, "token": 0.25, "temperature": 3.0}
    results(tmp_path, ["params=80%"], ratio=0.5, damp=0.1, steps=1, trials=0, calibration=21, judged=3, **losses)
    ((levels_of, how, samples),) = built
    assert [len(batch["input_ids"]) for batch in samples] == [16, 5]
    assert [len(batch["input_ids"]) for batch in read[0]] == [3]
    assert how == {"damp": 0.1}
    assert not list((tmp_path / "work").glob("database*"))  # it has served
    assert levels_of["layers.0.neurons"] == [64, 56, 48, 32, 0]
    assert {name: asked[0][name] for name in losses} == losses


def test_the_grid_reaches_to_the_widest_layer_whichever_it_is(tmp_path, monkeypatch):
    built, build = [], database.build
    monkeypatch.setattr(database, "build", lambda *given, **how: built.append(given[4]) or build(*given, **how))
    start, _ = subject().cut(Selection({"layers.2.neurons": np.arange(64) < 16}))
    results(tmp_path, ["params=90%"], start, ratio=0.5, trials=0)
    assert built[0]["layers.0.neurons"] == [64, 56, 48, 32, 0]
    assert built[0]["layers.2.neurons"] == [16, 8, 0]


def test_two_budgets_are_a_family_that_resumes(tmp_path):
    first = results(tmp_path / "a", ["params=65%", "params=85%"], steps=2)
    assert [found.name for found in first] == ["params=85%", "params=65%"]  # the loosest first
    assert first[1].predicted["params"] < first[0].predicted["params"]
    assert all(found.recovery is not None and found.recovery.steps == 2 for found in first)
    looser, tighter = (kept(found) for found in first)
    assert all(tighter[site] <= looser.get(site, 0) for site in tighter)  # the second is cut from the first
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "work").glob("cut-*")}
    assert len(stamps) == 2
    again = results(tmp_path / "a", ["params=65%", "params=85%"], steps=2)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps  # read, not decided anew
    for one, two in zip(first, again, strict=True):
        assert one.cut.removed == two.cut.removed
        for name, tensor in one.subject.model.state_dict().items():
            assert torch.equal(tensor, two.subject.model.state_dict()[name]), name


def test_students_that_are_done_are_let_go_of(tmp_path, monkeypatch):
    """Each was held with its database until the last budget, beside the original and the one that is worked on."""
    seen, alive, build = [], [], database.build

    def watched(*given, **how):
        gc.collect()
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(given[1]))
        return build(*given, **how)

    monkeypatch.setattr(database, "build", watched)
    how = keywords.check_options(ziplm.ziplm, {**QUICK, "trials": 0})
    budgets = [Budget.parse(f"params={share}%") for share in (90, 80, 70, 65)]
    start = subject()
    with Run.open(tmp_path, {}) as run:
        for found in ziplm.ziplm(start, DATA, budgets, run, **how):
            del found
    assert alive == [0, 1, 1, 1]  # the original alone


def test_one_shot_cuts_every_budget_from_the_original(tmp_path):
    together = results(tmp_path / "a", ["params=65%", "params=85%"], steps=2, gradual=False)
    (alone,) = results(tmp_path / "b", ["params=65%"], steps=2, gradual=False)
    assert kept(together[1]) == kept(alone)
    for name, tensor in alone.subject.model.state_dict().items():
        assert torch.equal(tensor, together[1].subject.model.state_dict()[name]), name


def test_a_dry_run_trains_nothing_and_cuts_what_the_run_would(tmp_path, monkeypatch):
    (real,) = results(tmp_path / "a", ["params=80%"], steps=2, trials=20)
    monkeypatch.setattr(loop, "train", None)
    (found,) = results(tmp_path / "b", ["params=80%"], steps=2, trials=20, dry_run=True)
    assert found.recovery is None
    assert kept(found) == kept(real)


def test_the_database_rises_from_nothing_to_all():
    for site, sweep in swept(subject()).items():
        errors = [sweep.errors[level] for level in sweep.levels]
        assert errors == sorted(errors), site
        assert errors[0] == pytest.approx(0.0, abs=1e-6)
        assert errors[-1] == pytest.approx(1.0, abs=1e-6)
        masks = [sweep.keep(level) for level in sweep.levels]
        assert all((fewer <= more).all() for more, fewer in itertools.pairwise(masks)), site


def test_levels_never_cost_more_than_the_limit():
    """In parameters, and in the seconds of a table, of which the rest takes one."""
    start = subject()
    units, base = start.units("heads", "neurons"), swept(start)
    nothing = {site.name: np.zeros(site.count, dtype=bool) for site in units.free()}
    draw = np.random.default_rng(0)
    for measure, table, fixed in (("params", None, 0.0), ("latency", TABLE, 1.0)):
        priced = levels.with_latency(units, table, fixed)
        least, whole = priced.cost(nothing)[measure], priced.cost()[measure]
        for share in (0.35, 0.5, 0.75, 0.95, 1.0):
            limit = {measure: least + share * (whole - least)}
            for weights in (np.ones(len(base)), draw.random(len(base))):
                chosen = ziplm.choose_levels(units, table, base, limit, fixed, list(weights))
                assert priced.cost(ziplm.kept_units(base, chosen))[measure] <= limit[measure] + 1e-9
                assert share < 1.0 or set(chosen.values()) == {0}


def test_one_clock_times_the_table_and_the_cuts(tmp_path, monkeypatch):
    """As the flags say: here a step of decoding, by torch.compile."""
    seen = []
    monkeypatch.setattr(ziplm.timing, "time_blocks", lambda *given, **_: seen.append(given[-1]) or TABLE)
    monkeypatch.setattr(ziplm.timing, "time_share", lambda *_, clock, **__: seen.append(clock) or 0.5)
    (found,) = results(tmp_path, ["speedup=2x"], environment="decode", timer="compile", corrections=1)
    assert found.predicted["speedup"] >= 2
    assert set(seen) == {ziplm.Clock(environment="decode", timer="compile", tolerance=0.02, corrections=1)}
    assert len(seen) == 3, "the table, and its cut at a glance and in full"


@pytest.mark.parametrize("budget", ["params=80%", "speedup=1.2x"])
def test_neurons_go_alone_where_heads_stay_whole(tmp_path, monkeypatch, budget):
    """As of OLMo-2 and -3, whose norms run over all heads together."""
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.Olmo2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    start = open_subject(tiny.uneven(transformers.Olmo2ForCausalLM(config)), tokenizer=tiny.tokenizer())
    timed = []
    table = {name: TABLE[name] for name in ("neurons", "rest")}
    monkeypatch.setattr(ziplm.timing, "time_blocks", lambda *given, **_: timed.append(given[1]) or table)
    monkeypatch.setattr(ziplm.timing, "time_share", lambda *_, **__: 0.8)
    with pytest.warns(DataWarning, match="kv groups of this olmo2 model stay whole: "):
        (found,) = results(tmp_path, [budget], start)
    assert {site.split(".")[-1] for site, (gone, _) in found.cut.removed.items() if gone} == {"neurons"}
    assert timed == ([("neurons",)] if "speedup" in budget else [])
    with pytest.raises(InfeasibleError, match="with no neuron left it is"):
        results(tmp_path / "more", ["params=1%"], start)


def test_an_original_in_training_mode_is_asked_without_dropout(tmp_path):
    start, again = subject(), subject()
    for module in start.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    start.model.train()
    seen = set()
    start.model.register_forward_pre_hook(lambda model, _: seen.add(model.training))
    (noisy,), (calm,) = (results(tmp_path / name, ["params=80%"], one) for name, one in (("a", start), ("b", again)))
    assert start.model.training
    assert seen == {False}
    assert noisy.cut.removed == calm.cut.removed
    assert all(
        torch.equal(a, b)
        for a, b in zip(noisy.subject.model.parameters(), calm.subject.model.parameters(), strict=True)
    )


def test_two_measures_are_both_kept():
    start = subject("llama")
    units = start.units("kv_groups", "neurons")
    base = swept(start, "kv_groups", 16)
    limit = Budget.parse("params=80%,kv_cache=75%").absolute(units.cost())
    chosen = ziplm.choose_levels(units, None, base, limit, 0.0, [1.0] * len(base))
    spent = units.cost({site: base[site].keep(level).numpy() for site, level in chosen.items()})
    assert all(spent[measure] <= limit[measure] for measure in limit)


def test_a_budget_out_of_reach_names_the_measure_and_what_is_reachable(tmp_path):
    with pytest.raises(InfeasibleError, match=r"params of .* can't be met: .*ask for at least params=") as refused:
        results(tmp_path / "a", ["params=1%"])
    whole = subject().units().cost()["params"]
    assert 0.01 * whole < refused.value.reachable < whole
    start = subject()
    with pytest.raises(InfeasibleError, match=r"latency of 0\.5 can't be met: .*ask for at most speedup=10x"):
        ziplm.choose_levels(start.units("heads", "neurons"), TABLE, swept(start), {"latency": 0.5}, 1.0, [1.0] * 6)


def test_the_search_never_ends_above_its_start():
    start = subject()
    units, base = start.units("heads", "neurons"), swept(start)
    items = batches(start)
    limit = {"params": 0.7 * units.cost()["params"]}
    solve = partial(ziplm.choose_levels, units, None, base, limit, 0.0)
    plain = ziplm.search_coefficients(start, start, base, solve, items, 0, 0)
    assert set(plain) == {1.0}
    found = ziplm.search_coefficients(start, start, base, solve, items, 10, 0)
    assert found == ziplm.search_coefficients(start, start, base, solve, items, 10, 0)

    def loss(weights) -> float:
        chosen = {site: base[site].weights[level] for site, level in solve(weights).items()}
        with torch.no_grad(), database.stitch(start.model, start.consumers(), chosen):
            student = start.forward(items[0]).prediction
        with torch.no_grad():
            answer = start.forward(items[0]).prediction
        return float(ziplm.objectives.distance(student, answer, items[0], output=start.output))

    assert loss(found) <= loss(plain)


def test_the_search_starts_from_each_sites_weight_in_the_whole_loss(monkeypatch):
    """A site whose cut the whole model does not feel may lose all; the one it feels most has weight 1."""
    start = subject()
    consumers = start.consumers()
    last = [site for site in consumers if site.endswith("neurons")][-1]
    with torch.no_grad():
        start.model.get_submodule(consumers[last].module).weight.mul_(1e-4)  # it adds next to nothing
    base, given = swept(start), {}
    items = batches(start)
    limit = {"params": 0.7 * start.units().cost()["params"]}
    solve = partial(ziplm.choose_levels, start.units("heads", "neurons"), None, base, limit, 0.0)
    search = ziplm.search.coefficients

    def spy(*args, scale, **options):
        given.update(zip(base, scale, strict=True))
        return search(*args, scale=scale, **options)

    monkeypatch.setattr(ziplm.search, "coefficients", spy)
    ziplm.search_coefficients(start, start, base, solve, items, 2, 0)
    assert max(given.values()) == 1
    assert given[last] == min(given.values()) < 0.01


def test_the_receipt_of_a_later_budget_counts_from_the_original(tmp_path):
    first, second = results(tmp_path, ["params=85%", "params=75%"])
    whole = sum(parameter.numel() for parameter in subject().model.parameters())
    for found in (first, second):
        assert found.cut.before["params"] == whole
        assert found.cut.after["params"] == sum(p.numel() for p in found.subject.model.parameters())
    gone = [sum(gone for site, (gone, _) in found.cut.removed.items() if "." in site) for found in (first, second)]
    assert gone[1] > gone[0]


def test_settings_of_the_training_loop_pass_through(tmp_path):
    (found,) = results(tmp_path, ["params=85%"], steps=6, lr=0.0, training="patience=1,evaluate_every=1,accumulate=2")
    assert found.recovery.settings["micro_batches"] == 2
    assert found.recovery.steps == 2  # nothing is learnt, so the second evaluation is no better than the first


def test_the_student_holds_the_compensated_weights(tmp_path, monkeypatch):
    made, real = [], database.build
    monkeypatch.setattr(ziplm.database, "build", lambda *given, **how: made.append(real(*given, **how)) or made[-1])
    (found,) = results(tmp_path, ["params=80%"], keep_database=True)
    (base,) = made
    changed, dense = 0, subject()
    for site, at in found.subject.consumers().items():
        level = dense.units()[site].count - found.subject.units()[site].count
        weight = found.subject.model.get_submodule(at.module).weight
        assert torch.equal(weight, base[site].weights.columns[level]), site
        columns = base[site].keep(level).repeat_interleave(at.block)
        changed += not torch.equal(weight, dense.model.get_submodule(at.module).weight[:, columns])
    assert changed


@pytest.mark.parametrize("budget", ["pattern=2:4", "params=80%,pattern=2:4"])
def test_a_pattern_is_no_budget_of_units(tmp_path, budget):
    with pytest.raises(BudgetError, match=f"ziplm can't meet {budget}: it cuts units"):
        results(tmp_path, ["params=90%", budget])


def test_recovery_is_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ziplm.distillation, "distil", lambda *given, **how: asked.append(how))
    losses = {"task": 0.25, "logit": 0.5, "token": 0.75, "temperature": 3.0}
    rates = {"lr": 2e-3, "min_lr": 1e-5, "warmup": 0.2, "weight_decay": 0.1}
    loop = {"steps": 7, "train_batch": 4, "train_length": 12, "lr": 2e-3, "weight_decay": 0.1}
    results(tmp_path, ["params=85%"], "llama", seed=3, trials=0, **losses, **loop, training="min_lr=1e-5,warmup=0.2")
    (how,) = asked
    assert (how["seed"], how["train_length"]) == (3, 12)
    assert {name: getattr(how["losses"], name) for name in losses} == losses
    assert (how["training"].steps, how["training"].batch) == (7, 4)
    assert {name: getattr(how["training"], name) for name in rates} == rates


def test_sequences_and_trials_are_those_of_the_seed_and_the_length_that_are_asked_for(tmp_path, monkeypatch):
    asked, make, seek = [], ziplm.make_feed, ziplm.search_coefficients
    monkeypatch.setattr(ziplm, "make_feed", lambda *given, **how: asked.append(how) or make(*given, **how))
    monkeypatch.setattr(ziplm, "search_coefficients", lambda *given: asked.append(given[-2:]) or seek(*given))
    results(tmp_path, ["params=85%"], seed=3, train_length=12, trials=2)
    assert asked == [{"length": 12, "seed": 3}, (2, 3)]


def test_costs_are_those_of_the_environment_that_is_asked_for(tmp_path):
    (found,) = results(tmp_path, ["params=85%"], "llama", batch=4, length=24, trials=0)
    assert found.predicted == found.subject.units(batch=4, length=24).cost()


def test_how_near_and_how_often_the_clock_looks_is_as_asked(tmp_path, monkeypatch):
    seen, meet = [], ziplm.timing.meet_target
    monkeypatch.setattr(ziplm.timing, "time_blocks", lambda *given, **_: seen.append(given[-1]) or TABLE)
    monkeypatch.setattr(ziplm.timing, "time_share", lambda *_, clock, **__: seen.append(clock) or 0.5)
    monkeypatch.setattr(ziplm.timing, "meet_target", lambda *given, **how: seen.append(how) or meet(*given, **how))
    results(tmp_path, ["speedup=2x"], tolerance=0.3, corrections=2, timings=7)
    clock = ziplm.Clock(tolerance=0.3, corrections=2, timings=7)
    assert seen[:2] == [clock, {"tolerance": 0.3, "corrections": 2}]
    assert set(seen[2:]) == {clock}


def test_losses_that_weigh_nothing_are_refused_before_anything_is_scored(tmp_path):
    with pytest.raises(InputError, match="task=0, logit=0, token=0 leave nothing to learn by"):
        results(tmp_path, ["params=80%"], steps=2, logit=0.0, token=0.0)  # task is 0 for encoders unless given
    with pytest.raises(InputError, match=r"option token=-1.0 of ziplm"):
        results(tmp_path, ["params=80%"], token=-1.0)


def test_a_later_budget_out_of_reach_is_refused_before_the_first_is_trained(tmp_path, monkeypatch):
    """And what is reachable refers to the original, though the second student is cut from the first."""
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InfeasibleError) as alone:
        results(tmp_path / "a", ["params=1%"])
    with pytest.raises(InfeasibleError) as later:
        results(tmp_path / "b", ["params=80%", "params=1%"], steps=2)
    assert str(later.value) == str(alone.value)


def test_an_infeasible_speedup_names_the_originals_multiple():
    """What would be 2x of the student is 4x of the original."""
    start = subject()
    units = start.units("heads", "neurons")
    table = {kind: {"0": 0.0, "1000": 0.0} for kind in ("heads", "neurons")}
    with pytest.raises(InfeasibleError, match=r"at most speedup=4x"):
        ziplm.check_reachable(units, table, {"latency": 0.1}, 0.25, {"latency": 1.0})
    with pytest.raises(InfeasibleError, match=r"at most speedup=3.33x"):  # not 3.34: that could not be met
        ziplm.check_reachable(units, table, {"latency": 0.1}, 0.3, {"latency": 1.0})


def test_the_search_starts_from_a_level_that_loses_something(monkeypatch):
    """With one head a layer, nothing removed is nearer to a relative error of 0.3 than the whole: it tells nothing."""
    start = subject()
    base = swept(start)
    only = {site: SimpleNamespace(levels=[0, 5], errors={0: 0.0, 5: 1.0}, weights=sweep.weights)
            for site, sweep in base.items() if site.endswith("neurons")}  # fmt: skip
    for sweep in only.values():
        sweep.weights = {0: sweep.weights[0], 5: torch.zeros_like(sweep.weights[0])}
    seen = {}
    real = ziplm.search.coefficients
    monkeypatch.setattr(ziplm.search, "coefficients", lambda *given, **how: seen.update(how) or real(*given, **how))
    items = batches(start)
    ziplm.search_coefficients(start, start, only, lambda _: dict.fromkeys(only, 5), items, 1, 0)
    assert min(seen["scale"]) > 0.01


def test_a_database_that_is_kept_serves_the_next_call(tmp_path, monkeypatch):
    (plain,) = results(tmp_path / "a", ["params=80%"])
    (first,) = results(tmp_path / "b", ["params=80%"], keep_database=True)
    (tmp_path / "b" / "work" / "cut-params=80%.safetensors").unlink()
    monkeypatch.setattr(ziplm.database.hessian, "sweep", lambda *_, **__: pytest.fail("built anew"))
    (second,) = results(tmp_path / "b", ["params=80%"], keep_database=True)
    for name, tensor in plain.subject.model.state_dict().items():
        assert torch.equal(tensor, first.subject.model.state_dict()[name])
        assert torch.equal(tensor, second.subject.model.state_dict()[name])


def spy_on_search(
    monkeypatch, whole: Transformer, start: Transformer, base: dict, items: list
) -> tuple[dict, Callable]:
    """Site -> where the search starts, and the loss that it judges levels by."""
    given, search = [], ziplm.search.coefficients

    def spy(propose, evaluate, *rest, scale, **options):
        given.extend((dict(zip(base, scale, strict=True)), evaluate))
        return search(propose, evaluate, *rest, scale=scale, **options)

    limit = {"params": 0.7 * start.units().cost()["params"]}
    solve = partial(ziplm.choose_levels, start.units("heads", "neurons"), None, base, limit, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(ziplm.search, "coefficients", spy)
        ziplm.search_coefficients(whole, start, base, solve, items, 1, 0)
    return given[0], given[1]


def test_a_later_search_counts_what_is_lost_beside_what_the_student_has_lost_already(monkeypatch):
    """Against the original, of which the student is far: a site that adds nothing weighs nothing all the same."""
    whole = subject()
    start, _ = whole.cut(Selection({"layers.0.neurons": np.arange(64) < 16, "layers.1.heads": np.arange(4) < 1}))
    last = [site for site in start.consumers() if site.endswith("neurons")][-1]
    with torch.no_grad():
        start.model.get_submodule(start.consumers()[last].module).weight.mul_(1e-4)
    items, asked, distance = batches(start, 2), [], ziplm.objectives.distance
    monkeypatch.setattr(
        ziplm.objectives, "distance", lambda *given, **how: asked.append(given[:2]) or distance(*given, **how)
    )
    scale, _ = spy_on_search(monkeypatch, whole, start, swept(start), items)
    assert scale[last] == min(scale.values()) < 0.01
    assert all(weight > 0.1 for site, weight in scale.items() if site.endswith("heads"))
    with torch.no_grad():
        answers = [whole.forward(item).prediction for item in items]
        students = [start.forward(item).prediction for item in items]
    assert all(torch.equal(said, answers[place % 2]) for place, (_, said) in enumerate(asked))
    assert all(torch.equal(said, own) for (said, _), own in zip(asked, students, strict=False))


def test_every_sequence_counts_alike_in_the_search_also_those_of_a_smaller_batch(monkeypatch):
    start = subject()
    base, (item,) = swept(start), batches(start)
    parts = [{name: tensor[rows] for name, tensor in item.items()} for rows in (slice(0, 13), slice(13, 16))]
    site, losses = next(iter(base)), []
    for items in (parts[:1], parts[1:], parts):
        _, evaluate = spy_on_search(monkeypatch, start, start, base, items)
        losses.append(evaluate({site: base[site].levels[-1]}))
    large, small, both = losses
    assert both == pytest.approx((13 * large + 3 * small) / 16)
    assert both != pytest.approx((large + small) / 2, rel=1e-3)


def test_of_budgets_of_two_measures_the_one_whose_tightest_is_loosest_is_first(tmp_path):
    found = results(tmp_path, ["params=95%,kv_cache=50%", "params=85%,kv_cache=90%"], "llama", trials=0)
    assert [one.name for one in found] == ["params=85%,kv_cache=90%", "params=95%,kv_cache=50%"]


def test_what_the_clock_adds_to_the_table_is_predicted(tmp_path, monkeypatch):
    """A second that the table does not know."""

    def seconds(model: Transformer) -> float:
        return 1.0 + sum(width.heads / 4 + width.neurons / 32 for width in model.widths())

    monkeypatch.setattr(ziplm.timing, "time_blocks", lambda *_, **__: TABLE)
    monkeypatch.setattr(ziplm.timing, "time_share", lambda whole, student, **_: (seconds(student) + 1) / seconds(whole))
    (found,) = results(tmp_path, ["speedup=2x"], tolerance=0.05)
    assert found.predicted["latency"] == pytest.approx(seconds(found.subject) + 1)
    assert found.predicted["speedup"] == pytest.approx(10 / found.predicted["latency"])
    assert found.predicted["speedup"] > 1.9


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("bert", steps=0, calibration=32, trials=4, judged=16)
