"""Rehearsals: what is recorded is what the network makes of each example, in the order of the examples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.recover.training import rehearsal
from secateur.vocabulary import Training


@pytest.fixture
def data() -> Examples:
    torch.manual_seed(0)
    labels = torch.arange(48) % 3
    return Examples(torch.randn(48, 6) * 0.3 + nn.functional.one_hot(labels, 6).float() * 2, labels)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def record(model, data, epochs, **how):
    feed = examples.batches(data, batch=10, seed=0)
    return rehearsal.rehearse(
        model, lambda batch: model(batch["inputs"]), feed, lambda: data.in_order(7), epochs=epochs,
        lr=0.02, seed=0, progress=False, **how,
    )  # fmt: skip


def test_what_is_recorded_is_the_network_at_the_end_and_its_way(data):
    model = net()
    found = record(model, data, 6)
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(found["logits"], model(data.inputs))
        torch.testing.assert_close(found["features"], model[:3](data.inputs))
    assert torch.equal(found["labels"], data.labels)
    assert found["right"].shape == (6, 48)
    assert torch.equal(found["right"][-1], found["logits"].argmax(-1) == data.labels)
    assert found["right"][-1].float().mean() > found["right"][0].float().mean()


def test_a_part_of_an_epoch_has_a_last_look(data):
    assert record(net(), data, 1.5)["right"].shape == (2, 48)


@pytest.mark.parametrize("how", [{"accumulate": 2}, {"training": Training(accumulate=2)}])
def test_an_epoch_holds_as_many_examples_under_accumulation_and_in_several_processes(data, how, monkeypatch):
    steps, train = [], rehearsal.loop.train
    monkeypatch.setattr(
        rehearsal.loop, "train", lambda *args, **given: (steps.append(given["steps"]), train(*args, **given))[1]
    )
    assert record(net(), data, 6)["right"].shape == (6, 48)
    assert record(net(), data, 6, **how)["right"].shape == (6, 48)
    monkeypatch.setattr(rehearsal.distributed, "count", lambda: 3)
    monkeypatch.setattr(rehearsal.loop, "train", lambda *args, **given: steps.append(given["steps"]))
    record(net(), data, 6, needs=["logits"], **how)
    feed = len(examples.batches(data, batch=10))
    assert steps == [6 * feed, 3 * feed, feed]


def test_without_epochs_the_network_is_looked_at_as_it_is(data):
    model = net()
    before = [weight.clone() for weight in model.parameters()]
    assert record(model, data, 0)["right"].shape == (1, 48)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training  # as it was


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_epochs_that_are_none_are_refused(data, wrong):
    with pytest.raises(InputError, match=f"epochs={wrong}: give 0 or more"):
        record(net(), data, wrong)


def test_halves_are_complements_and_another_pair_is_another_draw():
    halves = [rehearsal.half(9, seed=3, number=number) for number in range(4)]
    assert [int(half.sum()) for half in halves] == [4, 5, 4, 5]
    assert torch.equal(halves[0], ~halves[1])
    assert torch.equal(halves[2], ~halves[3])
    assert not torch.equal(halves[0], halves[2])
    assert not torch.equal(halves[0], rehearsal.half(9, seed=4, number=0))


def test_it_repeats(data):
    first, second = record(net(), data, 2), record(net(), data, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_networks_without_a_linear_end_have_no_features(data):
    plain = nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Conv1d(6, 3, 1), nn.Flatten())
    with pytest.raises(InputError, match="take el2n, forgetting or random"):
        record(plain, data, 0)
    with pytest.raises(InputError, match="a classifier gives logits"):
        record(nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (3, 2))), data, 0)


@pytest.mark.parametrize("needs", [["logits", "labels"], ["labels", "features"], ["right"], ["right", "inside"]])
def test_only_what_is_needed_is_recorded_and_the_same(data, needs, monkeypatch):
    whole = record(net(), data, 3)
    looks, real = [], rehearsal._looks
    monkeypatch.setattr(rehearsal, "_looks", lambda *given, **how: looks.append(how) or real(*given, **how))
    found = record(net(), data, 3, needs=needs)
    assert found.keys() == set(needs) - {"inside"}
    assert all(torch.equal(found[name], whole[name]) for name in found)
    assert len(looks) == (3 if "right" in needs else 1)
    assert record(net(), data, 0, needs=needs).keys() == found.keys()
