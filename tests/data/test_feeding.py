"""Workers that read ahead: the same batches with any number of them, errors in a line, nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pictures import class_folder
from secateur.data import examples, feeding, transforms
from secateur.errors import DataError, InputError, RunError


def photos(folder, workers):
    data = examples.read(folder)
    return replace(data, inputs=data.inputs.with_transform(transforms.read("imagenet", 16), workers))


def test_batches_are_the_same_with_any_number_of_workers_and_after_a_resume(tmp_path):
    class_folder(tmp_path, 20)
    feeds = [examples.batches(photos(tmp_path, workers), batch=4, seed=3) for workers in (0, 1, 2)]
    expected = [feeds[0][index] for index in range(13)]
    for feed in feeds[1:]:
        for index, batch in enumerate(expected):
            found = feed[index]
            assert torch.equal(found["inputs"], batch["inputs"])
            assert torch.equal(found["labels"], batch["labels"])
    for index in (7, 9, 11):
        assert torch.equal(feeds[2][index]["inputs"], expected[index]["inputs"])
    assert not torch.equal(expected[0]["inputs"], expected[5]["inputs"])
    plain = feeds[2].take(2)
    assert torch.equal(plain[0]["labels"], expected[0]["labels"])
    assert not torch.equal(plain[0]["inputs"], expected[0]["inputs"]), "calibration sees images as they are measured"


def test_all_in_order_are_those_without_workers(tmp_path):
    class_folder(tmp_path, 13)
    alone, both = (list(photos(tmp_path, workers).in_order(3)) for workers in (0, 2))
    assert [len(part["inputs"]) for part in both] == [3, 3, 3, 3, 1]
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(alone, both, strict=True))


def work(index):
    if index == 5:
        raise DataError("image 5 is damaged: remove it")
    if index == 7:
        raise KeyError("odd")
    return {"inputs": torch.full((2, 3), float(index)), "labels": [index]}


def test_an_error_in_a_worker_is_raised_here_as_it_is():
    found = feeding.read_in_order(work, range(9), 2, 24)
    assert [next(found)["labels"] for _ in range(5)] == [[0], [1], [2], [3], [4]]
    with pytest.raises(DataError, match=r"^image 5 is damaged: remove it$"):
        next(found)
    with pytest.raises(InputError, match="could not be read: KeyError"):
        list(feeding.read_in_order(work, range(6, 9), 2, 24))


@pytest.mark.parametrize("size", [24, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_each_batch_is_what_it_was_when_it_came(workers, size):
    found = list(feeding.read_in_order(work, [0, 1, 2, 3, 4, 6, 8], workers, size))
    assert [float(batch["inputs"].mean()) for batch in found] == [0, 1, 2, 3, 4, 6, 8]
    assert [batch["labels"] for batch in found] == [[0], [1], [2], [3], [4], [6], [8]]


def kill(index):
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_worker_that_was_killed_is_a_line():
    with pytest.raises(RunError, match=r"a process that reads images was killed .* with --workers, or 0"):
        list(feeding.read_in_order(kill, range(9), 1, 8))


def test_workers_end_with_what_asked_for_them():
    gc.collect()
    ahead = feeding.Ahead(work, 2, 24)
    assert [ahead[index]["labels"][0] for index in range(4)] == [0, 1, 2, 3]
    assert len(multiprocessing.active_children()) == 2
    assert ahead[0]["labels"] == [0]
    assert not multiprocessing.active_children()
    [ahead[index] for index in (1, 2, 3)]
    del ahead
    gc.collect()
    assert not multiprocessing.active_children()


ORPHANS = """
import os, sys, time
from secateur.data import feeding

def work(index):
    return {"inputs": None, "who": os.getpid()}

found = feeding.read_in_order(work, range(100), 2, 8)
print(next(found)["who"], next(found)["who"], flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_end_where_their_parent_is_killed():
    printed = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, timeout=60).stdout
    workers = [int(number) for number in printed.split()]
    assert len(workers) == 2
    until = time.monotonic() + 5
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() and state(worker) not in "ZX" for worker in workers)


def state(process):
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


LEFT = """
import torch
from secateur.data.feeding import Ahead
one = Ahead(lambda number: {"inputs": torch.zeros(2)}, 2, 8)
one.itself = one  # so that only Python's end ends it
for number in range(5):
    one[number]
print(one._values is not None)
"""


@pytest.mark.wide
def test_a_process_ends_whose_workers_were_never_told_to():
    """multiprocessing waits for them at its end, and they do not listen to SIGTERM."""
    printed = subprocess.run([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True, timeout=60).stdout
    assert printed == "True\n"


def test_chance_of_training_does_not_depend_on_workers(tmp_path):
    class_folder(tmp_path, 20)
    torch.manual_seed(1)
    feed = examples.batches(photos(tmp_path, 2), batch=4)
    for index in range(6):
        feed[index]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("workers", [-1, 1.5, "two", True])
def test_what_is_no_number_of_workers_is_refused(workers):
    with pytest.raises(InputError, match="give how many processes read images"):
        feeding.check_workers(workers)


def test_workers_are_by_the_cores_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32))
    assert feeding.count_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert feeding.count_workers() == 4
    assert feeding.check_workers(None) is None
