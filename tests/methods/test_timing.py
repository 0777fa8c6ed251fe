"""Latency tables and cuts that are timed: every level, one sum, and corrections until the clock agrees."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import tiny
from secateur._utils.rundir import Run
from secateur.errors import DataWarning, InfeasibleError, InputError, MeasurementError, UnsupportedError
from secateur.measure import latency
from secateur.methods import timing
from secateur.methods.timing import Clock
from secateur.recipes.language import llm_pruner
from secateur.select import levels
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Figure, Selection
from subjects.hybrids import make_hybrid


def subject(kind: str = "bert") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("kind", "axis"), [("bert", "heads"), ("llama", "kv_groups")])
def test_the_latency_table_has_every_level_and_the_rest(kind, axis):
    start = subject(kind)
    most = {site.kind: site.count for site in start.units(axis, "neurons").free()}
    table = timing.time_blocks(start, (axis, "neurons"), [0, 16, most["neurons"]], 2, 8)
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


@pytest.mark.parametrize("axis", ["heads", "neurons"])
def test_one_axis_alone_is_timed_where_the_other_stays_whole(axis):
    start = subject()
    table = timing.time_blocks(start, (axis,), [0, 16, 64], 2, 8)
    assert set(table) == {axis, "rest"}
    units = levels.with_latency(start.units(axis), table, table["rest"]["0"])
    assert units.cost()["latency"] > table["rest"]["0"] > 0.0


def test_axes_of_a_clock_are_heads_or_their_groups_and_neurons_as_far_as_they_can_go():
    assert timing.choose_axes(subject()) == ("heads", "neurons")
    assert timing.choose_axes(subject("llama")) == ("kv_groups", "neurons")
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.Olmo2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    normed = open_subject(transformers.Olmo2ForCausalLM(config), tokenizer=tiny.tokenizer())
    with pytest.warns(DataWarning, match="kv groups of this olmo2 model stay whole: ") as said:
        assert timing.choose_axes(normed) == ("neurons",), "a norm runs over all heads together"
    assert len(said) == 1


def test_no_axis_that_can_go_is_said_with_the_reasons():
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.OlmoeConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_experts=4)
    with pytest.raises(
        UnsupportedError,
        match=r"its query and key norms .*neurons of this olmoe model stay whole: they are those of experts",
    ):
        timing.choose_axes(open_subject(transformers.OlmoeForCausalLM(config), tokenizer=tiny.tokenizer()))
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4))
    with pytest.warns(DataWarning, match="heads of this bloom model stay whole: no units of them were found"):
        assert timing.choose_axes(open_subject(bloom, tokenizer=tiny.tokenizer())) == ("neurons",)


def test_the_latency_table_adds_up_to_the_whole_models_own_time(monkeypatch):
    """Blocks timed alone are slower than inside the model; all entries shrink alike."""
    start = subject()
    slow = {"heads": 3.0, "neurons": 2.0}

    def interleaved(probes, **options):
        times = {(kind, k): slow.get(kind, 0) * k for kind, k in probes}
        return {
            key: SimpleNamespace(value=value) for key, value in (times | {("rest", 0): 200, ("dense", 0): 50}).items()
        }

    monkeypatch.setattr(timing.latency, "time_interleaved", interleaved)
    most = {site.kind: site.count for site in start.units("heads", "neurons").free()}
    table = timing.time_blocks(start, ("heads", "neurons"), [0, 8, most["neurons"]], 2, 8)
    whole = levels.with_latency(start.units("heads", "neurons"), table, table["rest"]["0"]).cost()["latency"]
    assert whole == pytest.approx(50)
    assert table["neurons"]["8"] / table["heads"]["1"] == pytest.approx(16 / 3)


@pytest.mark.parametrize("narrow", [0, 3])
def test_layers_of_unequal_widths_are_each_timed_as_wide_as_they_are(narrow):
    """A pruned model that is pruned again: whichever layer is the narrow one, the others have seconds of their own."""
    whole = subject("llama")
    half = {f"layers.{narrow}.neurons": np.arange(128) < 64, f"layers.{narrow}.kv_groups": np.arange(2) < 1}
    start, _ = whole.cut(Selection(half))
    for table in (
        timing.time_blocks(start, ("kv_groups", "neurons"), [0, 32, 64], 2, 8),
        llm_pruner.time_units(start, ("kv_groups", "neurons"), 2, 8),
    ):
        assert max(map(int, table["neurons"])) == 128
        assert max(map(int, table["kv_groups"])) == 2
        units = levels.with_latency(start.units("kv_groups", "neurons"), table, 0.0)
        assert units[f"layers.{narrow}.neurons"].table["latency"][-1] == table["neurons"]["64"]
        assert units["layers.1.neurons"].table["latency"][-1] == table["neurons"]["128"]


def test_a_speedup_far_out_of_reach_is_refused_before_the_table_is_timed(monkeypatch):
    """speedup=900x took the minutes of a whole table; what is advised in its place passes."""
    asked = []

    def ten_times(probes, **_):
        asked.append(set(probes))
        return {"dense": Figure(1.0), "rest": Figure(0.1)}

    monkeypatch.setattr(timing.latency, "time_interleaved", ten_times)
    far = [Budget.parse("params=50%"), Budget.parse("speedup=900x")]
    with pytest.raises(InfeasibleError, match=r"^budget speedup=900x can't be met: .*at most speedup=8x$") as refused:
        timing.time_blocks(subject(), ("heads", "neurons"), [0, 8], 2, 8, budgets=far)
    assert asked == [{"dense", "rest"}]
    assert refused.value.reachable == 0.1
    with pytest.raises(InfeasibleError, match=r"^budget latency=33.33ms can't be met"):
        timing.refuse_far([Budget.parse("latency=33.33333333ms")], len, len)
    timing.refuse_far([Budget.parse("speedup=8x"), Budget.parse("latency=60ms")], len, len)


def test_in_decoding_the_table_is_of_single_tokens_behind_a_cache(monkeypatch):
    """Blocks are timed in stacks, of whose time that of an empty one is taken."""
    start, seen = subject("llama"), []
    made, slow = timing.make_run, {("kv_groups", 1): 14.0, ("kv_groups", 2): 18.0, ("neurons", 64): 12.0}
    slow |= {("neurons", 128): 16.0, ("empty", 0): 10.0, ("rest", 0): 30.0, ("dense", 0): 50.0}
    monkeypatch.setattr(timing, "make_run", lambda *given: seen.append(given) or made(*given))

    def interleaved(probes, **options):
        assert set(probes) == set(slow)
        assert all(probes[key]().shape[:2] == (2, 1) for key in probes)
        return {key: SimpleNamespace(value=value) for key, value in slow.items()}

    monkeypatch.setattr(timing.latency, "time_interleaved", interleaved)
    table = timing.time_blocks(start, ("kv_groups", "neurons"), [0, 64, 128], 2, 8, Clock(environment="decode"))
    assert {place.phase for _, place in seen} == {"decode"}
    each = {"kv_groups": {"0": 0.0, "1": 2.0, "2": 4.0}, "neurons": {"0": 0.0, "64": 1.0, "128": 3.0}}
    scale = 50 / (30 - 4 * 1 + 4 * (4 + 3))
    assert table["rest"]["0"] == pytest.approx(scale * 26)
    for kind, row in each.items():
        assert table[kind] == pytest.approx({count: scale * seconds for count, seconds in row.items()})


@pytest.mark.parametrize("timer", ["compile", "onnx"])
def test_one_timer_serves_the_table_and_the_cuts(timer, monkeypatch):
    """Where each size must be compiled first, some are, and the others lie between them."""
    start, ran = subject("gpt2"), []
    monkeypatch.setattr(timing, "_compile_run", lambda run: ran.append("compile") or run)
    monkeypatch.setattr(timing, "_export_run", lambda module, tensors: ran.append("onnx") or partial(module, *tensors))
    clock = Clock(timer=timer)
    table = timing.time_blocks(start, ("heads", "neurons"), list(range(0, 65, 4)), 2, 8, clock)
    assert list(table["heads"]) == ["0", "1", "2", "3", "4"]
    assert len(table["neurons"]) == 1 + 8
    assert [int(count) for count in table["neurons"]][::8] == [0, 128], "as wide as the layers are"
    monkeypatch.setattr(timing.latency, "compare", lambda *_, **__: SimpleNamespace(speedup=SimpleNamespace(value=4.0)))
    timing.time_share(start, start, 2, 8, clock)
    assert ran == [timer] * (4 + 8 + 3 + 2)


def test_torch_compile_keeps_each_model_apart_and_gives_what_the_model_gives(monkeypatch):
    """Ten models of one class: torch keeps eight variants of a function by itself, then it runs them uncompiled."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda run, **how: asked.append((run, how)) or run)
    place = latency.Environment(2, 8, phase="decode", timer="compile")
    for _ in range(10):
        timing.make_run(subject("gpt2").stack("heads", 1, 1), place)
    assert len({run.__code__.co_name for run, _ in asked}) == 10
    assert all(how == {"fullgraph": True, "dynamic": False} for _, how in asked)


@pytest.mark.wide
def test_a_compiled_step_is_the_model_as_a_whole(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    start, place = subject("gpt2").stack("heads", 2, 1), latency.Environment(2, 8, phase="decode", timer="compile")
    with place.active():
        torch.manual_seed(0)
        compiled = timing.make_run(start, place)
        torch.manual_seed(0)
        plain = timing.make_run(start, latency.Environment(2, 8, phase="decode"))
        for _ in range(2):
            torch.testing.assert_close(compiled(), plain())


@pytest.mark.wide
def test_onnxruntime_runs_a_step_of_decoding():
    start, place = subject("gpt2").stack("heads", 2, 1), latency.Environment(2, 8, phase="decode", timer="onnx")
    with place.active():
        torch.manual_seed(0)
        run = timing.make_run(start, place)
        torch.manual_seed(0)
        plain = timing.make_run(start, latency.Environment(2, 8, phase="decode"))
        torch.testing.assert_close(torch.from_numpy(run()[0]), plain(), atol=1e-5, rtol=1e-4)


def test_what_can_not_be_timed_so_is_refused_in_a_line(monkeypatch):
    with pytest.raises(UnsupportedError, match="has no cache: time it with environment=prefill"):
        timing.check_place(subject(), latency.Environment(phase="decode"))
    half = latency.Environment(dtype="bfloat16", timer="onnx")
    with pytest.raises(InputError, match="timer=onnx runs float32 on the CPU, and the model is bfloat16 on cpu"):
        timing.check_place(subject(), half)

    def fail(*given, **how):
        raise RuntimeError("no compiler here. Install one")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(MeasurementError, match=r"as a whole \(RuntimeError: no compiler here\): take timer=eager"):
        timing.make_run(subject(), latency.Environment(1, 4, timer="compile"))
    monkeypatch.setattr(timing.onnx_files, "write", fail)
    with pytest.raises(MeasurementError, match=r"exported to ONNX \(RuntimeError: no compiler here\)"):
        timing.make_run(subject(), latency.Environment(1, 4, timer="onnx"))


def meet(limit, clocked, **options):
    """Solve a problem of one number: the largest x with x + fixed <= limit; the clock adds what it adds."""
    tried = []

    def timed(x, lasting):
        tried.append((x, lasting))
        return clocked(x)

    values = {"tolerance": 0.01, "corrections": 4} | options
    found = timing.meet_target(
        lambda fixed: int(limit - fixed), lambda x, fixed: x + fixed, timed, limit, 0.0, **values
    )
    return found, tried


def test_what_the_clock_adds_is_taken_off_until_the_limit_is_met():
    (chosen, fixed, failed), tried = meet(100, lambda x: x + 20)
    assert (chosen, fixed, failed) == (80, 20, False)
    assert tried == [(100, 3.0), (80, 15.0)], "a glance tells that the table is far off"
    assert meet(100, lambda x: x + 2)[1] == [(100, 3.0), (100, 15.0), (98, 15.0)], "it is near: that takes time to tell"


def test_of_several_choices_the_one_nearest_on_the_clock_is_returned():
    (chosen, _, failed), tried = meet(100, {100: 150, 50: 60, 90: 104, 88: 90, 91: 120, 86: 88}.get)
    assert [x for x, _ in tried] == [100, 50, 90, 88, 91, 86], "the mean of what was asked for: 10, 14, 2 and 29"
    assert (chosen, failed) == (90, False)


def test_the_noise_of_one_timing_weighs_less_than_that_of_all():
    """Each timing is off by up to 4 %, in turns: a single one sends the choice away by as much."""
    noise = iter([1.5, 1.04, 0.96, 1.04, 0.97, 1.0])
    (chosen, _, _), tried = meet(1000, lambda x: (x + 200) * next(noise), tolerance=0.005)
    assert [x for x, _ in tried] == [1000, 200, 784, 811, 794, 803], "not 839 and 758, as the last alone asks for"
    assert chosen == 803


def test_a_glance_that_fails_or_misleads_is_no_more_than_a_glance():
    def clock(first):
        looks = iter([first])

        def timed(x):
            if (told := next(looks, None)) is None:
                return x
            if isinstance(told, Exception):
                raise told
            return told

        return timed

    assert meet(100, clock(MeasurementError("too noisy"))) == ((100, 0.0, False), [(100, 3.0), (100, 15.0)])

    def solve(fixed):
        if fixed > 20:
            raise InfeasibleError("nothing is so small", 1.0)
        return int(100 - fixed)

    noisy = clock(125)
    found = timing.meet_target(
        solve, lambda x, fixed: x + fixed, lambda x, lasting: noisy(x), 100, 0.0, tolerance=0.01, corrections=4
    )
    assert found == (100, 0.0, False), "with the fixed seconds that it was solved with"
    assert meet(100, clock(108))[1] == [(100, 3.0), (100, 15.0)], "a glance is too coarse to tell of so little"


def test_a_students_share_is_its_time_in_the_originals_at_a_glance_or_timed_as_often_as_the_table(monkeypatch):
    asked = []
    answer = SimpleNamespace(speedup=SimpleNamespace(value=4.0))
    monkeypatch.setattr(timing.latency, "compare", lambda *_, **how: asked.append(how) or answer)
    for lasting, timings in ((15.0, 20), (3.0, 20), (15.0, 80)):
        assert timing.time_share(subject(), subject(), 1, 8, Clock(timings=timings), lasting) == 0.25
    names = ("pairs", "resolution", "lasting", "most", "limit")
    assert [tuple(how[name] for name in names) for how in asked] == [
        (20, 0.03, 15.0, 2000, 60.0), (6, 0.06, 3.0, 2000, 12.0), (20, 0.015, 60.0, 8000, 240.0),
    ]  # fmt: skip


def test_without_a_clock_or_a_limit_the_first_choice_stands():
    def broken(*_):
        raise MeasurementError("too noisy")

    assert meet(100, broken)[0] == (100, 0.0, True)
    assert meet(100, broken, corrections=0) == ((100, 0.0, False), [])  # nothing to correct: nothing is timed
    assert timing.meet_target(lambda fixed: 7, None, None, None, 0.0, tolerance=0.01, corrections=4) == (7, 0.0, False)


def test_layers_share_the_time_that_the_whole_model_takes_beyond_half_of_them(monkeypatch):
    start = subject("llama")  # of four layers; the half model has two

    def interleaved(probes, **_):
        return {name: SimpleNamespace(value=0.01 + 0.02 * len(p.func.__self__.layers())) for name, p in probes.items()}

    monkeypatch.setattr(timing.latency, "time_interleaved", interleaved)
    table = timing.time_layers(start, 1, 8)
    assert table["layers"] == {"0": 0.0, "4": pytest.approx(0.08)}
    assert table["rest"]["0"] == pytest.approx(0.01)
    hybrid = open_subject(make_hybrid("Bamba", vocab_size=64))  # the half keeps an attention, by which caches count
    assert timing.time_layers(hybrid, 1, 8)["layers"] == {"0": 0.0, "4": pytest.approx(0.08)}


def test_a_choice_within_a_latency_is_corrected_by_the_clock_and_kept(tmp_path, monkeypatch):
    """The table says 10 ms a layer; the clock says that the rest takes 10 ms more."""
    start, asked = subject("llama"), []
    table = {"layers": {"0": 0.0, "4": 0.04}, "rest": {"0": 0.0}}

    def share(_, student, *place, lasting):
        asked.append(len(student.layers()))
        return (0.01 * len(student.layers()) + 0.01) / 0.04

    def choose(units, budget):
        masks = [np.arange(4) < n for n in range(1, 5)]
        fitting = [mask for mask in masks if units.cost({"layers": mask})["latency"] <= budget.limits[0].value]
        return {"layers": fitting[-1]}

    monkeypatch.setattr(timing, "time_share", share)
    for _ in range(2):
        with Run.open(tmp_path, {}) as run:
            found, notes = timing.select_in_time(
                run, start, start.units("layers"), table, Budget.parse("speedup=1.33x"), choose, batch=1, length=8
            )
        assert (found.keep["layers"].sum(), notes) == (2, ())
        assert found.spent["latency"] == pytest.approx(0.03)
        assert found.spent["speedup"] == pytest.approx(4 / 3)
    assert asked == [3, 2], "the second run takes the choice from the first"
