"""One encoder for many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secateur._utils.together import Together


def test_what_comes_while_a_call_is_in_work_goes_into_one_call_and_each_gets_its_own():
    calls, started, go_on = [], threading.Event(), threading.Event()

    def encode(texts):
        calls.append(list(texts))
        if len(calls) == 1:
            started.set()
            assert go_on.wait(10)
        return np.array([[float(text)] for text in texts])

    together = Together(encode)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(together, ["0"])
        assert started.wait(10)
        others = [pool.submit(together, [str(number), "0.5"]) for number in range(1, 9)]
        while len(together._waiting) < 8:
            pass
        go_on.set()
        assert first.result().tolist() == [[0.0]]
        assert [one.result().tolist() for one in others] == [[[float(n)], [0.5]] for n in range(1, 9)]
    assert [len(call) for call in calls] == [1, 16]


def test_an_error_is_raised_where_it_was_asked_and_the_next_call_goes_on():
    def encode(texts):
        if "bad" in texts:
            raise ValueError("no")
        return np.ones((len(texts), 2))

    together = Together(encode)
    with pytest.raises(ValueError, match="no"):
        together(["bad"])
    assert together(["good", "good"]).shape == (2, 2)
