"""Peak memory sees what a call held for a moment."""

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

    def slow_spike():
        big = torch.ones(64, 1024, 256)
        for _ in range(20):
            big.mul_(1.0)

    assert 40 * MIB < memory.peak(slow_spike).extra < 120 * MIB


def test_an_error_in_the_call_passes_through(monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    with pytest.raises(ZeroDivisionError):
        memory.peak(lambda: 1 / 0)
