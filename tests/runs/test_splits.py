"""What a run learns from and what it is measured on: two parts of the data, or two sets of data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.data.examples import Examples
from secateur.errors import DataError
from secateur.runs import splits
from secateur.runs.backends.network import Network
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced

DATA = Examples(torch.arange(40.0).reshape(20, 2), torch.arange(20) % 3, classes=("a", "b", "c"), name="data")
JUDGED = Examples(torch.arange(40.0, 48.0).reshape(4, 2), torch.arange(4) % 3, name="judged")


def parted(data: Examples, held_out: Examples | None = None, seed: int = 0) -> splits.Parts:
    return splits.split(Network(), data, held_out, Traced(nn.Linear(2, 3), Example.of(data.inputs[:1])), seed=seed)


def test_a_part_of_the_data_is_drawn_by_the_seed():
    found, again, other = parted(DATA), parted(DATA), parted(DATA, seed=1)
    assert sorted([*found.train.inputs[:, 0].tolist(), *found.held.inputs[:, 0].tolist()]) == DATA.inputs[:, 0].tolist()
    assert torch.equal(found.held.inputs, again.held.inputs)
    assert not torch.equal(found.held.inputs, other.held.inputs)
    assert found.digests == {"data_sha256": DATA.digest}
    assert found.warning == ""


def test_data_of_its_own_leaves_all_to_learn_from():
    found = parted(DATA, JUDGED)
    assert (found.train, found.held) == (DATA, JUDGED)
    assert found.digests == {"data_sha256": DATA.digest, "held_out_sha256": JUDGED.digest}
    assert parted(DATA.take([0]), JUDGED).train.inputs.tolist() == [[0.0, 1.0]], "nothing has to be held out of it"


def test_copies_are_told_of():
    both = replace(JUDGED, inputs=torch.cat([DATA.inputs[5:6], JUDGED.inputs[1:]]))
    assert "1 of 4 held-out examples are in the data, too" in parted(DATA, both).warning
    twice = DATA.take([*range(20), *range(20)])
    assert "in the training part, too" in parted(twice, seed=3).warning


@pytest.mark.parametrize(
    ("data", "held_out", "words"),
    [
        (DATA.take([0, 1]), None, "data holds 2 examples: at least 3 are needed, one of them to measure on"),
        (replace(DATA, inputs=torch.zeros(20, 3)), None, r"data holds inputs of shape \(3,\), the model was built for"),
        (DATA, replace(JUDGED, labels=torch.full((4,), 3)), "judged has the label 3: the model has 3 classes"),
        (DATA, replace(JUDGED, labels=None), "judged has no classes to measure quality by"),
        (
            DATA,
            replace(JUDGED, classes=("a", "c")),
            "judged numbers the classes a, c, data a, b, c: give both the same",
        ),
    ],
)
def test_what_can_not_be_judged_is_refused(data, held_out, words):
    with pytest.raises(DataError, match=words):
        splits.split(Network(), data, held_out, Traced(nn.Linear(2, 3), Example.of(DATA.inputs[:1])), seed=0)


def test_names_are_paths_or_what_data_calls_itself():
    assert splits.names_of(data=("a.npz", DATA), held_out=(JUDGED, JUDGED), other=(None, None)) == {
        "data": "a.npz", "held_out": "judged",
    }  # fmt: skip
