"""The clock: what is compared is timed in turns, what can't be told is refused, and all settings come back.

Most tests run on a clock of their own, which moves only when a call says so: what is checked is the arithmetic of the
timing, and a busy machine must not decide whether it is right. Two tests at the end use the real one.
"""

import gc
import itertools
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secateur.errors import InputError, MeasurementError
from secateur.measure import latency


@pytest.fixture
def busy(monkeypatch):
    """busy(seconds) is a call that takes so long by the clock that `latency` reads; `busy.pace` slows it."""
    now = [0.0]

    def busy(seconds):
        def run():
            now[0] += seconds * busy.pace()

        return run

    busy.pace = lambda: 1.0
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return busy


def spin(seconds):
    """A call that really takes so long, and longer when the machine is busy."""

    def run():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return run


def test_environment_sets_threads_and_restores_them_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fail():
        with latency.Environment(threads=before + 1).active() as environment:
            seen.append((torch.get_num_threads(), environment.describe()["threads"], torch.is_inference_mode_enabled()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(before + 1, before + 1, True)]
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_environment_describes_itself():
    described = latency.Environment(batch=8, length=64, threads=2).describe()
    assert described == {
        "batch": 8, "length": 64, "threads": 2, "device": "cpu", "dtype": "float32", "phase": "prefill",
        "timer": "eager",
    }  # fmt: skip
    assert str(latency.Environment(8, 64, 2)) == "batch 8 x 64 tokens, 2 threads, cpu, float32"
    decoding = latency.Environment(8, 64, 2, phase="decode", timer="onnx")
    assert str(decoding) == "batch 8 x 1 token behind a cache of 64, 2 threads, cpu, float32, onnxruntime"
    with pytest.raises(InputError, match=r"environment='decoding' is not one of prefill, decode"):
        latency.Environment(phase="decoding")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MeasurementError, match="no CUDA device"), latency.Environment(device="cuda").active():
        pass


def test_median_time_ignores_bursts_and_runs_at_least_so_long(busy):
    bursts = itertools.cycle([1.0, 1.0, 50.0])
    busy.pace = lambda: next(bursts)
    figure = latency.median_time(busy(2e-3), warmup=1, runs=30)
    assert figure.value == pytest.approx(2e-3)
    assert figure.low == pytest.approx(2e-3)
    assert (figure.unit, figure.samples) == ("s", 30)
    busy.pace = lambda: 1.0
    assert latency.median_time(busy(1e-3), warmup=1, runs=2, min_seconds=0.0195).samples == 20


def test_what_is_timed_finds_the_memory_that_it_freed(monkeypatch, busy):
    kept = []

    @contextmanager
    def keep_memory():
        kept.append(True)
        yield
        kept.pop()

    monkeypatch.setattr(latency, "keep_memory", keep_memory)
    seen = []
    for time_it in (
        lambda run: latency.median_time(run, runs=2),
        lambda run: latency.compare(run, run, pairs=6),
        lambda run: latency.time_interleaved({"a": run}, rounds=2),
    ):
        run = busy(1e-3)
        time_it(lambda run=run: (seen.append(bool(kept)), run()))
        assert all(seen)
        assert not kept
    assert seen


def test_a_call_too_short_for_the_clock_is_repeated(busy):
    calls = itertools.count()
    run = busy(1e-5)
    figure = latency.median_time(lambda: (next(calls), run()), warmup=1, runs=3)
    assert next(calls) == 1 + 3 * 20
    assert figure.value == pytest.approx(1e-5)


def test_compare_finds_twice_as_fast_under_drift(busy):
    drift = itertools.count(100)
    busy.pace = lambda: next(drift) / 100  # each call 1 % of the first one slower than the call before
    result = latency.compare(busy(4e-3), busy(2e-3), pairs=20, warmup=1)
    assert result.speedup.value == pytest.approx(2.0, rel=0.01)
    assert result.speedup.low < 2.0 < result.speedup.high
    assert result.speedup.samples == 20
    assert result.before.value / result.after.value == pytest.approx(2.0, rel=0.01)
    assert result.faster


def test_compare_alternates_who_goes_first(busy):
    order = []
    before, after = busy(3e-4), busy(3e-4)
    latency.compare(lambda: (order.append("a"), before()), lambda: (order.append("b"), after()), pairs=6, warmup=1)
    assert "".join(order[2:]) == "abba" * 3


def test_the_same_thing_twice_is_not_faster(busy):
    rng = np.random.default_rng(0)
    busy.pace = lambda: float(rng.lognormal(0, 0.02))
    result = latency.compare(busy(1e-3), busy(1e-3))
    assert result.speedup.value == pytest.approx(1.0, abs=0.02)
    assert not result.faster


def test_a_clock_too_noisy_is_refused_after_more_pairs(busy):
    rng = np.random.default_rng(0)
    busy.pace = lambda: float(rng.lognormal(0, 0.7))
    calls = []
    erratic = busy(1e-3)
    with pytest.raises(MeasurementError, match=r"too noisy to tell: after 24 pairs .* wanted \+-1%.*stop other work"):
        latency.compare(lambda: (calls.append(1), erratic()), busy(1e-3), pairs=6, warmup=1, resolution=0.01, most=24)
    assert len(calls) == 1 + 24


def test_a_noisy_clock_is_given_up_after_some_time(busy):
    """On a machine that others use, a run timed for an hour; the first pairs are timed however long they take."""
    rng = np.random.default_rng(0)
    busy.pace = lambda: float(rng.lognormal(0, 0.7))
    calls = []
    erratic = busy(1.0)
    for limit, pairs in ((60.0, range(20, 40)), (0.0, range(20, 21))):
        calls.clear()
        with pytest.raises(MeasurementError, match="too noisy to tell: after"):
            latency.compare(
                lambda: (calls.append(1), erratic()), busy(1.0), warmup=1, resolution=0.01, most=2000, limit=limit
            )
        assert len(calls) - 1 in pairs


def test_more_pairs_are_tried_before_giving_up(busy):
    calls = itertools.count()
    busy.pace = lambda: 1.0 + 3.0 * (next(calls) % 3) if next(calls) < 24 else 1.0
    result = latency.compare(busy(1e-3), busy(1e-3), pairs=6, warmup=1)
    assert result.speedup.samples > 6
    assert result.speedup.value == pytest.approx(1.0)


def test_a_comparison_can_be_asked_to_last(busy):
    samples = [
        latency.compare(busy(1e-3), busy(1e-3), warmup=1, **asked).speedup.samples
        for asked in ({}, {"lasting": 0.2}, {"lasting": 0.2, "enough": 50})
    ]
    assert samples == [20, 100, 50]


def test_the_interval_covers_states_that_last(busy):
    """Half the time the first is 3x the second's time, half of it 2x: neighbours agree, and tell little."""
    calls = itertools.count()
    state = {"before": lambda: 3e-3 if next(calls) % 400 < 200 else 2e-3}
    slow, fast = {3e-3: busy(3e-3), 2e-3: busy(2e-3)}, busy(1e-3)
    result = latency.compare(lambda: slow[state["before"]()](), fast, pairs=1000, warmup=1, resolution=1.0)
    assert result.speedup.low == pytest.approx(2.0)
    assert result.speedup.high == pytest.approx(3.0)


def test_too_few_pairs_are_refused(busy):
    with pytest.raises(MeasurementError, match="at least 6"):
        latency.compare(busy(1e-4), busy(1e-4), pairs=5)


def test_garbage_collection_is_off_while_timing_and_on_after():
    seen = []
    latency.median_time(lambda: (seen.append(gc.isenabled()), spin(3e-4)()), warmup=1, runs=3)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        latency.median_time(lambda: 1 / 0)
    assert gc.isenabled()


def test_interleaved_rounds_there_and_back(busy):
    order = []
    run = busy(1e-3)
    probes = {name: (lambda name=name: (order.append(name), run())) for name in "abc"}
    latency.time_interleaved(probes, rounds=4, warmup=1)
    assert "".join(order[3:]) == "abccbaabccba"


def test_interleaved_cancels_slow_rounds(busy):
    """More than half of the rounds run at their own, slower pace: all probes alike, so their ratios hold exactly."""
    rng = np.random.default_rng(2)
    paces = [1.0] * 6 + list(np.repeat(rng.uniform(1.0, 3.0, size=20), 3))  # the warm-up, then one pace a round
    pace = iter(paces)
    busy.pace = lambda: next(pace)
    figures = latency.time_interleaved({k: busy(k * 1e-3) for k in (1, 2, 4)}, rounds=20, warmup=2)
    assert figures[4].value / figures[1].value == pytest.approx(4.0)
    assert figures[2].value / figures[1].value == pytest.approx(2.0)
    assert figures[1].high - figures[1].low < 1e-9
    assert figures[1].value == pytest.approx(1e-3 * np.median(paces[6:]), rel=0.02)


def test_monotone_pools_violators():
    assert latency.monotone({0: 0.0, 2: 3.0, 1: 4.0, 3: 5.0}) == {0: 0.0, 1: 3.5, 2: 3.5, 3: 5.0}


def test_monotone_leaves_what_already_rises():
    rising = {k: float(k**2) for k in range(5)}
    assert latency.monotone(rising) == rising


def test_table_never_charges_less_for_more(busy):
    table = latency.table({8: busy(1.0e-3), 16: busy(0.8e-3), 32: busy(2e-3), 0: busy(1e-4)}, rounds=6, warmup=1)
    assert list(table) == [0, 8, 16, 32]
    assert table[8] == table[16] == pytest.approx(0.9e-3)
    assert table[32] == pytest.approx(2e-3)


def test_a_table_of_nothing_is_refused():
    with pytest.raises(MeasurementError, match="no probes"):
        latency.table({})


def test_the_same_with_a_progress_bar_and_no_empty_line_where_none_is_seen(busy, capsys):
    assert latency.table({1: busy(1e-3)}, rounds=2, warmup=1, progress=True) == {1: pytest.approx(1e-3)}
    assert capsys.readouterr().out == ""


def test_the_real_clock_is_read():
    assert latency.median_time(spin(2e-3), warmup=1, runs=10).value >= 2e-3


def test_real_work_ten_times_as_long_is_told_apart():
    result = latency.compare(spin(1e-2), spin(1e-3), warmup=1, resolution=10.0)
    assert result.speedup.value > 2.0
