"""Passes that are read at once: in their order, as if one after the other, and nothing of torch's is left changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from secateur._utils import threads


@pytest.fixture
def four():
    """Torch with four threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def told(_: object) -> tuple[int, int, bool]:
    return threading.get_ident(), torch.get_num_threads(), torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("passes", "share"), [(1, 4), (2, 2), (3, 1), (4, 1), (9, 1)])
def test_threads_are_shared_by_those_that_work_at_once(four, passes, share):
    met = threading.Barrier(passes) if passes < 5 else None

    def seen(number):
        if met:
            met.wait(timeout=20)  # all of them are at work at once
        return (number, *told(number))

    found = threads.each(seen, range(passes), 4)
    assert [number for number, *_ in found] == list(range(passes))
    assert {got for *_, got, _ in found} == {share}
    assert all(inference for *_, inference in found)
    assert len({ident for _, ident, *_ in found}) <= 4
    assert torch.get_num_threads() == 4
    assert not torch.is_inference_mode_enabled()


def test_a_thread_that_comes_later_begins_with_as_many_as_before(four):
    threads.each(told, range(4), 4)
    found = list[int]()
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [4]


def test_within_a_pass_others_are_read_one_by_one(four):
    """Or those that wait would hold all threads, and those that they wait for would get none."""
    found = threads.each(lambda _: threads.each(told, range(4), threads.count(torch.device("cpu"))), range(4), 4)
    assert all(len({ident for ident, *_ in inner}) == 1 for inner in found)


def test_what_fails_is_raised_and_threads_are_as_before(four):
    def fails(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        threads.each(fails, range(4), 4)
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(four):
    """As workers of a server have that loaded it before they were forked; those of its parent are not there."""
    threads.each(told, range(4), 4)
    child = os.fork()
    if not child:
        os._exit(0 if threads.each(lambda one: one + 1, range(4), 4) == [1, 2, 3, 4] else 1)
    for _ in range(400):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("it waits for threads that it has not")
    assert os.waitstatus_to_exitcode(status) == 0


def test_ctrl_c_while_threads_start_leaves_none_that_the_interpreter_waits_for():
    """Ctrl-C comes to the main thread, here whenever that has started a thread that works."""
    script = (
        "import threading\n"
        "from secateur._utils import threads\n"
        "begin = threading.Thread.start\n"
        "def start(self):\n"
        "    begin(self)\n"
        "    if threading.current_thread() is threading.main_thread() and self.name.startswith('secateur_'):\n"
        "        raise KeyboardInterrupt\n"
        "threading.Thread.start = start\n"
        "print(threads.each(lambda one: one + 1, range(4), 2))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[1, 2, 3, 4]\n"), done.stderr


def test_no_device_but_a_processor_is_read_by_several(four):
    assert threads.count(torch.device("cpu")) == 4
    assert threads.count(torch.device("meta")) == 1
    assert threads.each(told, [], 4) == []
