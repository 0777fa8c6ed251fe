"""Where a model wants its inputs, and how a batch gets there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers import BatchEncoding

import second_device
from secateur._utils import devices


class Pair(NamedTuple):
    first: torch.Tensor
    second: int


def test_a_model_wants_its_inputs_where_its_values_are():
    assert devices.find_device(nn.ReLU()) == devices.find_device(lambda x: x) == torch.device("cpu")
    assert devices.find_device(nn.Linear(2, 2, device="meta")).type == "meta"
    partly = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert devices.find_device(partly).type == "cpu"
    with second_device.present():
        assert str(devices.find_device(nn.BatchNorm1d(2, affine=False).to("card"))) == "card:0"
        hooked = nn.Linear(2, 2)
        hooked._hf_hook = SimpleNamespace(execution_device="card:0")
        assert str(devices.find_device(hooked)) == "card:0"
    hooked._hf_hook = SimpleNamespace(execution_device=1)
    assert devices.find_device(hooked) == torch.device("cuda:1")


def test_only_models_in_one_piece_can_be_moved():
    model = nn.Linear(2, 2)
    assert not devices.is_fixed(model)
    model.hf_device_map = {"": 0}
    assert not devices.is_fixed(model)
    model.hf_device_map = {"a": 0, "b": "cpu"}
    assert devices.is_fixed(model)
    quantised = nn.Linear(2, 2)
    quantised.is_loaded_in_4bit = True
    assert devices.is_fixed(quantised)


def test_every_tensor_of_a_batch_goes_along():
    x = torch.ones(2)
    with second_device.present():
        model = nn.Linear(2, 2).to("card")
        batch = {"a": x, "b": [x, "word", 1.5], "c": (x, None), "d": Pair(x, 3), "e": {"f": x}}
        moved = devices.move(batch, model)
        found = [moved["a"], moved["b"][0], moved["c"][0], moved["d"].first, moved["e"]["f"]]
        assert {str(one.device) for one in found} == {"card:0"}
        assert (moved["b"][1:], moved["c"][1], moved["d"].second) == (["word", 1.5], None, 3)
        assert (type(moved["d"]), type(moved["c"])) == (Pair, tuple)
        coded = devices.move(BatchEncoding({"input_ids": x}), torch.device("card:0"))
        assert (type(coded), str(coded["input_ids"].device)) == (BatchEncoding, "card:0")
        with second_device.watch() as traffic:
            assert devices.move(moved, found[0]) is moved
        assert traffic.copies == 0
        assert batch["a"].device.type == "cpu", "the batch that was given stays"


@pytest.mark.parametrize("batch", [{"a": torch.ones(1)}, [torch.ones(1)], torch.ones(1), "words", None])
def test_what_is_there_is_given_back_itself(batch):
    assert devices.move(batch, nn.Linear(1, 1)) is batch
