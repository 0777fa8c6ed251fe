"""ZipLM on models of a few thousand parameters, under budgets of parameters: nothing here hangs on the clock."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
import toys
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import InfeasibleError, MeasurementError
from secateur.recipes.language import ziplm
from secateur.score import database
from secateur.select import levels
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Result, Selection

QUICK = {"calibration": 32, "judged": 16, "trials": 3, "steps": 0, "train_batch": 8, "train_length": 16}
DATA = texts.read(tiny.sentences(200))


def subject(kind: str = "bert") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def results(root, budgets, kind: str = "bert", **options) -> list[Result]:
    with Run.open(root, {}) as run:
        return list(ziplm.ziplm(subject(kind), DATA, [Budget.parse(b) for b in budgets], run, **{**QUICK, **options}))


def kept(found: Result) -> dict[str, int]:
    """Site, named by its layer in the original -> units left."""
    left = {}
    for site in found.subject.units("heads", "neurons").free():
        layer, kind = site.name.split(".")[1:]
        left[f"layers.{found.subject.layer_index[int(layer)]}.{kind}"] = site.count
    return left


def swept(start: Transformer) -> dict:
    items = texts.batches(DATA, start.tokenizer, packed=False, batch=16, length=16, seed=0).take(2)
    sites = start.units("heads", "neurons").free()
    gone = {s.name: list(range(0, s.count + 1, 1 if s.kind == "heads" else 8)) for s in sites}
    return database.build(start.forward, start.model, items, start.consumers(), gone)


@pytest.mark.parametrize(("kind", "budget"), [("bert", "params=80%"), ("llama", "params=70%"), ("gpt2", "params=80%")])
def test_a_budget_is_kept_and_the_prediction_is_the_count(tmp_path, kind, budget):
    (found,) = results(tmp_path, [budget], kind)
    whole = subject(kind).units().cost()["params"]
    count = sum(parameter.numel() for parameter in found.subject.model.parameters())
    assert count == found.predicted["params"]
    assert 0.5 * whole < count <= Budget.parse(budget).absolute({"params": whole})["params"]
    assert not found.cut.is_noop
    assert all(count % 8 == 0 for site, count in kept(found).items() if site.endswith("neurons"))


def test_what_hardly_speaks_goes_first(tmp_path):
    """Half of each layer's neurons are nearly silent, so that to cut as much costs next to nothing."""
    dense = subject()
    (found,) = results(tmp_path, ["params=82%"])
    batch = texts.batches(DATA, dense.tokenizer, packed=False, batch=16, length=16, seed=5).take(1)[0]
    with torch.no_grad():
        before, after = dense.forward(batch).prediction, found.subject.forward(batch).prediction
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).mean() > 0.99


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


def test_one_shot_cuts_every_budget_from_the_original(tmp_path):
    together = results(tmp_path / "a", ["params=65%", "params=85%"], steps=2, gradual=False)
    (alone,) = results(tmp_path / "b", ["params=65%"], steps=2, gradual=False)
    assert kept(together[1]) == kept(alone)
    for name, tensor in alone.subject.model.state_dict().items():
        assert torch.equal(tensor, together[1].subject.model.state_dict()[name]), name


def test_a_dry_run_trains_nothing_and_cuts_what_the_run_would(tmp_path, monkeypatch):
    (real,) = results(tmp_path / "a", ["params=80%"], steps=2, trials=20)
    monkeypatch.setattr(ziplm.loop, "train", None)
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


@pytest.mark.parametrize("share", [0.35, 0.5, 0.75, 0.95, 1.0])
def test_levels_never_cost_more_than_the_limit(share):
    start = subject()
    units, base = start.units("heads", "neurons"), swept(start)
    least = units.cost({site.name: np.zeros(site.count, dtype=bool) for site in units.free()})
    whole = units.cost()
    limit = {"params": least["params"] + share * (whole["params"] - least["params"])}
    draw = np.random.default_rng(0)
    for weights in (np.ones(len(base)), draw.random(len(base))):
        chosen = ziplm.solution(units, None, base, limit, 0.0, list(weights))
        keep = {site: base[site].keep(level).numpy() for site, level in chosen.items()}
        assert units.cost(keep)["params"] <= limit["params"]
        if share == 1.0:
            assert set(chosen.values()) == {0}


def test_two_measures_are_both_kept():
    start = subject("llama")
    units = start.units("kv_groups", "neurons")
    items = texts.batches(DATA, start.tokenizer, packed=True, batch=16, length=16, seed=0).take(2)
    gone = {s.name: list(range(0, s.count + 1, 1 if s.kind == "kv_groups" else 16)) for s in units.free()}
    base = database.build(start.forward, start.model, items, start.consumers(), gone)
    limit = Budget.parse("params=80%,kv_cache=75%").absolute(units.cost())
    chosen = ziplm.solution(units, None, base, limit, 0.0, [1.0] * len(base))
    spent = units.cost({site: base[site].keep(level).numpy() for site, level in chosen.items()})
    assert all(spent[measure] <= limit[measure] for measure in limit)


def test_a_budget_out_of_reach_names_the_measure_and_what_is_reachable(tmp_path):
    with pytest.raises(InfeasibleError, match=r"params of .* can't be met: .*ask for at least params=") as refused:
        results(tmp_path / "a", ["params=1%"])
    whole = subject().units().cost()["params"]
    assert 0.01 * whole < refused.value.reachable < whole
    start = subject()
    table = {"heads": {"0": 0.0, "4": 1.0}, "neurons": {"0": 0.0, "64": 2.0}, "rest": {"0": 1.0}}
    with pytest.raises(InfeasibleError, match=r"latency of 0\.5 can't be met: .*ask for at most speedup=10x"):
        ziplm.solution(start.units("heads", "neurons"), table, swept(start), {"latency": 0.5}, 1.0, [1.0] * 6)


def test_seconds_of_blocks_and_rest_are_the_knapsack_s_costs():
    start = subject()
    units, base = start.units("heads", "neurons"), swept(start)
    table = {"heads": {"0": 0.0, "4": 1.0}, "neurons": {"0": 0.0, "64": 2.0}, "rest": {"0": 1.0}}
    for target in (2.0, 5.0, 9.0):
        chosen = ziplm.solution(units, table, base, {"latency": target}, 1.0, [1.0] * 6)
        keep = {site: base[site].keep(level).numpy() for site, level in chosen.items()}
        assert levels.with_latency(units, table, 1.0).cost(keep)["latency"] <= target + 1e-9


@pytest.mark.parametrize(("kind", "axis"), [("bert", "heads"), ("llama", "kv_groups")])
def test_the_latency_table_has_every_level_and_the_rest(kind, axis):
    start = subject(kind)
    most = {site.kind: site.count for site in start.units(axis, "neurons").free()}
    table = ziplm.profile(start, axis, [0, 16, most["neurons"]], 2, 8)
    assert set(table) == {axis, "neurons", "rest"}
    assert [int(k) for k in table[axis]] == list(range(most[axis] + 1))
    assert [int(k) for k in table["neurons"]] == [0, 16, most["neurons"]]
    assert set(table["rest"]) == {"0"}
    for row in (table[axis], table["neurons"]):
        assert row["0"] == 0.0
        assert list(row.values()) == sorted(row.values())  # more never takes less time
    whole = levels.with_latency(start.units(), table, table["rest"]["0"]).cost()["latency"]
    blocks = len(start.layers()) * (table[axis][str(most[axis])] + table["neurons"][str(most["neurons"])])
    assert whole == pytest.approx(table["rest"]["0"] + blocks)
    assert table["rest"]["0"] >= 0.0


def test_the_latency_table_adds_up_to_the_whole_models_own_time(monkeypatch):
    """Blocks timed alone are slower than inside the model; all entries shrink alike."""
    start = subject()
    slow = {"heads": 3.0, "neurons": 2.0}

    def interleaved(probes, **options):
        times = {(kind, k): slow.get(kind, 0) * k for kind, k in probes}
        return {
            key: SimpleNamespace(value=value) for key, value in (times | {("rest", 0): 200, ("dense", 0): 50}).items()
        }

    monkeypatch.setattr(ziplm.latency, "interleaved", interleaved)
    most = {site.kind: site.count for site in start.units("heads", "neurons").free()}
    table = ziplm.profile(start, "heads", [0, 8, most["neurons"]], 2, 8)
    whole = levels.with_latency(start.units("heads", "neurons"), table, table["rest"]["0"]).cost()["latency"]
    assert whole == pytest.approx(50)
    assert table["neurons"]["8"] / table["heads"]["1"] == pytest.approx(16 / 3)


def settled(limit, clocked, **options):
    """Solve a problem of one number: the largest x with x + fixed <= limit; the clock adds what it adds."""
    tried = []

    def timed(x):
        tried.append(x)
        return clocked(x)

    values = {"tolerance": 0.01, "corrections": 4} | options
    found = ziplm.settle(lambda fixed: int(limit - fixed), lambda x, fixed: x + fixed, timed, limit, 0.0, **values)
    return found, tried


def test_what_the_clock_adds_is_taken_off_until_the_limit_is_met():
    (chosen, fixed, failed), tried = settled(100, lambda x: x + 20)
    assert (chosen, fixed, failed) == (80, 20, False)
    assert tried == [100, 80]


def test_of_several_choices_the_one_nearest_on_the_clock_is_returned():
    (chosen, _, failed), tried = settled(100, {100: 150, 50: 60, 90: 104, 86: 90, 96: 120}.__getitem__)
    assert tried == [100, 50, 90, 86, 96]
    assert (chosen, failed) == (90, False)


def test_without_a_clock_or_a_limit_the_first_choice_stands():
    def broken(x):
        raise MeasurementError("too noisy")

    assert settled(100, broken)[0] == (100, 0.0, True)
    assert ziplm.settle(lambda fixed: 7, None, None, None, 0.0, tolerance=0.01, corrections=4) == (7, 0.0, False)


def test_the_search_never_ends_above_its_start():
    start = subject()
    units, base = start.units("heads", "neurons"), swept(start)
    items = texts.batches(DATA, start.tokenizer, packed=False, batch=16, length=16, seed=0).take(1)
    limit = {"params": 0.7 * units.cost()["params"]}
    solve = partial(ziplm.solution, units, None, base, limit, 0.0)
    plain = ziplm.tune(start, start, base, solve, items, 16, 0, 0)
    assert set(plain) == {1.0}
    found = ziplm.tune(start, start, base, solve, items, 16, 10, 0)
    assert found == ziplm.tune(start, start, base, solve, items, 16, 10, 0)

    def loss(weights) -> float:
        chosen = {site: base[site].weights[level] for site, level in solve(weights).items()}
        with torch.no_grad(), database.stitched(start.model, start.consumers(), chosen):
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
        start.model.get_submodule(consumers[last].module).weight.mul_(
            1e-4
        )  # what it adds to the residual stream is next to nothing
    base, given = swept(start), {}
    items = texts.batches(DATA, start.tokenizer, packed=False, batch=16, length=16, seed=0).take(1)
    limit = {"params": 0.7 * start.units().cost()["params"]}
    solve = partial(ziplm.solution, start.units("heads", "neurons"), None, base, limit, 0.0)
    search = ziplm.search.coefficients

    def spy(*args, scale, **options):
        given.update(zip(base, scale, strict=True))
        return search(*args, scale=scale, **options)

    monkeypatch.setattr(ziplm.search, "coefficients", spy)
    ziplm.tune(start, start, base, solve, items, 16, 2, 0)
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
    (found,) = results(tmp_path, ["params=80%"])
    (base,) = made
    changed, dense = 0, subject()
    for site, at in found.subject.consumers().items():
        level = dense.units()[site].count - found.subject.units()[site].count
        weight = found.subject.model.get_submodule(at.module).weight
        assert torch.equal(weight, base[site].weights.columns[level]), site
        columns = base[site].keep(level).repeat_interleave(at.block)
        changed += not torch.equal(weight, dense.model.get_submodule(at.module).weight[:, columns])
    assert changed


def test_a_later_budget_out_of_reach_is_refused_before_the_first_is_trained(tmp_path, monkeypatch):
    """And what is reachable refers to the original, though the second student is cut from the first."""
    monkeypatch.setattr(ziplm.loop, "train", lambda *_, **__: pytest.fail("trained"))
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
        ziplm.check(units, table, {"latency": 0.1}, 0.25, {"latency": 1.0})
    with pytest.raises(InfeasibleError, match=r"at most speedup=3.33x"):  # not 3.34: that could not be met
        ziplm.check(units, table, {"latency": 0.1}, 0.3, {"latency": 1.0})


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
    items = texts.batches(DATA, start.tokenizer, packed=False, batch=16, length=16, seed=0).take(1)
    ziplm.tune(start, start, only, lambda _: dict.fromkeys(only, 5), items, 16, 1, 0)
    assert min(seen["scale"]) > 0.01


@pytest.mark.parametrize(("kind", "weights"), [("bert", (0.0, 1.0, 1.0)), ("llama", (0.5, 1.0, 0.5))])
def test_the_default_losses_and_schedule(tmp_path, monkeypatch, kind, weights):
    losses, trainings = [], []
    distil, train = ziplm.objectives.distil, ziplm.loop.train
    monkeypatch.setattr(ziplm.objectives, "distil", lambda *m, **how: losses.append(how) or distil(*m, **how))
    monkeypatch.setattr(ziplm.loop, "train", lambda *m, **how: trainings.append(how) or train(*m, **how))
    results(tmp_path, ["params=80%"], kind, steps=2)
    (loss,), (training,) = losses, trainings
    assert (loss["task"], loss["logit"], loss["token"]) == weights
    assert training["schedule"] == "linear"
    assert (training["warmup"], training["lr"], training["weight_decay"]) == (0.1, 5e-4, 0.03)
    assert training["dropout"] is False


def test_the_token_loss_leaves_out_layers_that_are_empty(tmp_path, monkeypatch):
    start, blocks = subject(), []
    gone = {
        "layers.1.heads": np.zeros(4, bool),
        "layers.1.neurons": np.zeros(64, bool),
        "layers.2.heads": np.zeros(4, bool),
    }
    student, _ = start.cut(Selection(gone))
    distil = ziplm.objectives.distil
    monkeypatch.setattr(ziplm.objectives, "distil", lambda *m, **how: blocks.extend(how["blocks"]) or distil(*m, **how))
    found = ziplm.distil(start, student, tmp_path, data=DATA, steps=1, train_batch=8, train_length=16)
    assert blocks == [(1, 1), (3, 3)]
    ours, theirs = (model.units(length=16).cost()["flops"] / 16 for model in (student, start))
    assert found.flops == pytest.approx((3 * ours + theirs) * found.tokens)


def test_a_database_that_is_kept_serves_the_next_call(tmp_path, monkeypatch):
    (plain,) = results(tmp_path / "a", ["params=80%"])
    (first,) = results(tmp_path / "b", ["params=80%"], keep_database=True)
    (tmp_path / "b" / "work" / "cut-params=80%.safetensors").unlink()
    monkeypatch.setattr(ziplm.database, "build", lambda *_, **__: pytest.fail("built anew"))
    (second,) = results(tmp_path / "b", ["params=80%"], keep_database=True)
    for name, tensor in plain.subject.model.state_dict().items():
        assert torch.equal(tensor, first.subject.model.state_dict()[name])
        assert torch.equal(tensor, second.subject.model.state_dict()[name])


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("bert", steps=0, calibration=32, trials=4, judged=16)
