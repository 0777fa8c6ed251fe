"""Latency tables and cuts that are timed: every level, one sum, and corrections until the clock agrees."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from secateur._utils.rundir import Run
from secateur.errors import MeasurementError
from secateur.methods import timing
from secateur.select import levels
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget


def subject(kind: str = "bert") -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(("kind", "axis"), [("bert", "heads"), ("llama", "kv_groups")])
def test_the_latency_table_has_every_level_and_the_rest(kind, axis):
    start = subject(kind)
    most = {site.kind: site.count for site in start.units(axis, "neurons").free()}
    table = timing.time_blocks(start, axis, [0, 16, most["neurons"]], 2, 8)
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

    monkeypatch.setattr(timing.latency, "time_interleaved", interleaved)
    most = {site.kind: site.count for site in start.units("heads", "neurons").free()}
    table = timing.time_blocks(start, "heads", [0, 8, most["neurons"]], 2, 8)
    whole = levels.with_latency(start.units("heads", "neurons"), table, table["rest"]["0"]).cost()["latency"]
    assert whole == pytest.approx(50)
    assert table["neurons"]["8"] / table["heads"]["1"] == pytest.approx(16 / 3)


def meet(limit, clocked, **options):
    """Solve a problem of one number: the largest x with x + fixed <= limit; the clock adds what it adds."""
    tried = []

    def timed(x):
        tried.append(x)
        return clocked(x)

    values = {"tolerance": 0.01, "corrections": 4} | options
    found = timing.meet_target(
        lambda fixed: int(limit - fixed), lambda x, fixed: x + fixed, timed, limit, 0.0, **values
    )
    return found, tried


def test_what_the_clock_adds_is_taken_off_until_the_limit_is_met():
    (chosen, fixed, failed), tried = meet(100, lambda x: x + 20)
    assert (chosen, fixed, failed) == (80, 20, False)
    assert tried == [100, 80]


def test_of_several_choices_the_one_nearest_on_the_clock_is_returned():
    (chosen, _, failed), tried = meet(100, {100: 150, 50: 60, 90: 104, 86: 90, 96: 120}.__getitem__)
    assert tried == [100, 50, 90, 86, 96]
    assert (chosen, failed) == (90, False)


def test_without_a_clock_or_a_limit_the_first_choice_stands():
    def broken(x):
        raise MeasurementError("too noisy")

    assert meet(100, broken)[0] == (100, 0.0, True)
    assert timing.meet_target(lambda fixed: 7, None, None, None, 0.0, tolerance=0.01, corrections=4) == (7, 0.0, False)


def test_a_students_share_is_its_time_in_the_originals(monkeypatch):
    monkeypatch.setattr(timing.latency, "compare", lambda *_, **__: SimpleNamespace(speedup=SimpleNamespace(value=4.0)))
    assert timing.time_share(subject(), subject(), 1, 8) == 0.25


def test_layers_share_the_time_that_the_whole_model_takes_beyond_half_of_them(monkeypatch):
    start = subject("llama")  # of four layers; the half model has two

    def interleaved(probes, **_):
        return {name: SimpleNamespace(value=0.01 + 0.02 * len(p.func.__self__.layers())) for name, p in probes.items()}

    monkeypatch.setattr(timing.latency, "time_interleaved", interleaved)
    table = timing.time_layers(start, 1, 8)
    assert table["layers"] == {"0": 0.0, "4": pytest.approx(0.08)}
    assert table["rest"]["0"] == pytest.approx(0.01)


def test_a_choice_within_a_latency_is_corrected_by_the_clock_and_kept(tmp_path, monkeypatch):
    """The table says 10 ms a layer; the clock says that the rest takes 10 ms more."""
    start, asked = subject("llama"), []
    table = {"layers": {"0": 0.0, "4": 0.04}, "rest": {"0": 0.0}}

    def share(_, student, *place):
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
