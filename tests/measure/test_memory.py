"""Peak memory sees what a call held for a moment."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from secateur.measure import memory

MIB = 2.0**20


def spike():
    big = torch.ones(64, 1024, 256)  # 64 MiB
    return float(big[0, 0, 0])


def test_a_short_spike_is_seen():
    peak = memory.peak(spike)
    assert peak.result == 1.0
    assert 55 * MIB < peak.extra < 110 * MIB
    assert peak.total > peak.extra
    assert peak.figure.unit == "B"


def held_for_a_moment():
    one = torch.ones(1024, 256)
    two = one * 2
    del one
    return float((two * 3)[0, 0])


def test_the_book_of_allocations_is_exact_and_repeats():
    found = {memory.measure_allocation(held_for_a_moment).value for _ in range(3)}
    assert len(found) == 1
    assert 2 * MIB <= found.pop() < 2 * MIB + 4096  # two of the three tensors at a time
    assert memory.measure_allocation(lambda: None).value == 0.0


@pytest.mark.wide
def test_the_book_of_allocations_is_read_in_silence():
    code = "import torch; from secateur.measure import memory; memory.measure_allocation(lambda: torch.ones(9))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_narrower_network_needs_less():
    rows = torch.rand(64, 32)

    def need(width):
        net = torch.nn.Sequential(torch.nn.Linear(32, width), torch.nn.ReLU(), torch.nn.Linear(width, 32))
        with torch.no_grad():
            return memory.measure_allocation(lambda: net(rows)).value

    assert need(256) == 2 * 64 * 256 * 4
    assert need(128) == 2 * 64 * 128 * 4


def test_a_second_smaller_call_does_not_inherit_the_first_peak():
    memory.peak(spike)
    assert memory.peak(lambda: torch.ones(1024)).extra < 20 * MIB


def test_what_only_the_first_call_holds_does_not_count():
    calls = []

    def first_is_large():
        calls.append(1)
        return spike() if len(calls) == 1 else 0.0

    assert memory.peak(first_is_large, calls=3).extra < 20 * MIB
    assert len(calls) == 3


def test_without_the_kernels_mark_it_samples(monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    looks = []

    class Counted(psutil.Process):
        def memory_info(self):
            found = super().memory_info()
            looks.append(found)
            return found

    monkeypatch.setattr(memory.psutil, "Process", Counted)

    def held_until_seen():
        big = torch.ones(64, 1024, 256)
        enough, latest = len(looks) + 3, time.monotonic() + 60  # the first look may have begun before
        while len(looks) < enough and time.monotonic() < latest:
            time.sleep(1e-3)
        return len(looks) >= enough and float(big[0, 0, 0])

    peak = memory.peak(held_until_seen)
    assert peak.result == 1.0
    assert 40 * MIB < peak.extra < 120 * MIB


def test_a_call_that_ends_while_the_sampler_looks(monkeypatch):
    looking, ended = threading.Event(), threading.Event()

    class Slow:
        def memory_info(self):
            if threading.current_thread() is not threading.main_thread():
                looking.set()
                ended.wait(60)
            elif looking.is_set():
                ended.set()
            return SimpleNamespace(rss=7)

    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    monkeypatch.setattr(memory.psutil, "Process", Slow)
    assert memory.peak(lambda: looking.wait(60)) == memory.Peak(0.0, 7.0, True)


def test_an_error_in_the_call_passes_through(monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    with pytest.raises(ZeroDivisionError):
        memory.peak(lambda: 1 / 0)
