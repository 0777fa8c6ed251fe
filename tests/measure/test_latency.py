"""The clock: what is compared is timed in turns, what can't be told is refused, and all settings come back."""

import gc
import itertools
import time

import numpy as np
import pytest
import torch

from secateur.errors import MeasurementError
from secateur.measure import latency


def busy(seconds):
    """A call of known length that no scheduler shortens."""

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
    assert described == {"batch": 8, "length": 64, "threads": 2, "device": "cpu", "dtype": "float32"}
    assert str(latency.Environment(8, 64, 2)) == "batch 8 x 64 tokens, 2 threads, cpu, float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(MeasurementError, match="no CUDA device"), latency.Environment(device="cuda").active():
        pass


def test_median_time_knows_a_busy_loop_and_runs_at_least_so_long():
    figure = latency.median_time(busy(2e-3), warmup=1, runs=10)
    assert 2e-3 <= figure.value < 6e-3
    assert figure.low <= figure.value <= figure.high
    assert figure.unit == "s"
    assert latency.median_time(busy(1e-3), warmup=1, runs=2, min_seconds=0.02).samples >= 4


def test_a_call_too_short_for_the_clock_is_repeated():
    calls = itertools.count()
    latency.median_time(lambda: next(calls), warmup=1, runs=3)
    assert next(calls) > 100


def test_compare_finds_twice_as_fast():
    result = latency.compare(busy(4e-3), busy(2e-3), pairs=20, warmup=1, resolution=0.2)
    assert result.speedup.value == pytest.approx(2.0, rel=0.15)
    assert result.speedup.samples >= 20
    assert result.faster


def test_compare_alternates_who_goes_first():
    order = []

    def logged(name):
        def run():
            order.append(name)
            busy(3e-4)()

        return run

    latency.compare(logged("a"), logged("b"), pairs=6, warmup=1, resolution=10.0)
    assert "".join(order[2:]) == "abba" * 3


def test_the_same_thing_twice_is_not_faster():
    result = latency.compare(busy(1e-3), busy(1e-3), pairs=20, warmup=1, resolution=0.3)
    assert result.speedup.value == pytest.approx(1.0, abs=0.1)
    assert not result.faster or result.speedup.low < 1.02


def test_a_clock_too_noisy_is_refused_after_more_pairs():
    rng = np.random.default_rng(0)
    calls = []

    def erratic():
        calls.append(1)
        busy(float(rng.uniform(2e-4, 4e-3)))()

    with pytest.raises(MeasurementError, match=r"too noisy to tell: after 24 pairs .* wanted \+-1%"):
        latency.compare(erratic, busy(1e-3), pairs=6, warmup=1, resolution=0.01, most=24)
    assert len(calls) == 1 + 24


def test_more_pairs_are_tried_before_giving_up():
    calls = itertools.count()

    def unsettled():
        busy(1e-3 * (1 + next(calls) % 4) if next(calls) < 14 else 1e-3)()

    result = latency.compare(unsettled, busy(1e-3), pairs=6, warmup=1, resolution=0.2)
    assert result.speedup.samples > 6


def test_too_few_pairs_are_refused():
    with pytest.raises(MeasurementError, match="at least 6"):
        latency.compare(busy(1e-4), busy(1e-4), pairs=5)


def test_garbage_collection_is_off_while_timing_and_on_after():
    seen = []
    latency.median_time(lambda: (seen.append(gc.isenabled()), busy(3e-4)()), warmup=1, runs=3)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        latency.median_time(lambda: 1 / 0)
    assert gc.isenabled()


def test_interleaved_rounds_there_and_back():
    order = []
    probes = {name: (lambda name=name: (order.append(name), busy(3e-4)())) for name in "abc"}
    latency.interleaved(probes, rounds=4, warmup=1)
    assert "".join(order[3:]) == "abccbaabccba"


def test_interleaved_cancels_slow_rounds():
    """Rounds of which most run at half speed in the second part change all levels alike: ratios hold."""
    state = {"calls": 0}

    def probe(seconds):
        def run():
            state["calls"] += 1
            slow = 2.0 if (state["calls"] // 6) % 2 else 1.0
            busy(seconds * slow)()

        return run

    figures = latency.interleaved({1: probe(5e-4), 2: probe(1e-3), 3: probe(2e-3)}, rounds=12, warmup=2)
    assert figures[3].value / figures[1].value == pytest.approx(4.0, rel=0.15)
    assert figures[2].value / figures[1].value == pytest.approx(2.0, rel=0.15)


def test_monotone_pools_violators():
    assert latency.monotone({0: 0.0, 2: 3.0, 1: 4.0, 3: 5.0}) == {0: 0.0, 1: 3.5, 2: 3.5, 3: 5.0}


def test_monotone_leaves_what_already_rises():
    rising = {k: float(k**2) for k in range(5)}
    assert latency.monotone(rising) == rising


def test_table_never_charges_less_for_more():
    table = latency.table({8: busy(1.0e-3), 16: busy(0.8e-3), 32: busy(2e-3), 0: busy(1e-4)}, rounds=6, warmup=1)
    assert list(table) == [0, 8, 16, 32]
    assert all(a <= b for a, b in itertools.pairwise(table.values()))
    assert table[8] == table[16] == pytest.approx(0.9e-3, rel=0.2)


def test_a_table_of_nothing_is_refused():
    with pytest.raises(MeasurementError, match="no probes"):
        latency.table({})


def test_the_same_with_a_progress_bar(capsys):
    assert set(latency.table({1: busy(1e-4)}, rounds=2, warmup=1, progress=True)) == {1}
