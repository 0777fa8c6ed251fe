"""Class means against a groupby of NumPy, and their file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import DataError, InputError
from secateur.recover.distillation.centres import ClassMeans, collect

LABELS = torch.tensor([0, 1, 1, 3, 0, 3, 3, -100, 1, 0])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9))


def found(net, batch=3, labels=LABELS, classes=5):
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    parts = [(x[i : i + batch], labels[i : i + batch]) for i in range(0, 10, batch)]
    return x, collect(net, lambda part: (net(part[0]), part[1]), parts, classes)


def test_means_are_those_of_a_groupby_in_evaluation_mode():
    net = network().train()
    before = net[1].running_mean.clone()
    x, table = found(net)
    assert net.training
    assert torch.equal(net[1].running_mean, before), "no statistics were learnt"
    values = net.eval()(x).detach().double().numpy()
    for label in range(5):
        rows = values[LABELS.numpy() == label]
        wanted = rows.mean(0) if len(rows) else np.zeros(6)
        np.testing.assert_allclose(table.means[label].numpy(), wanted, atol=1e-6)
    assert table.counts.tolist() == [3, 3, 0, 3, 0]


def test_means_do_not_depend_on_batches():
    torch.testing.assert_close(found(network(), 3)[1].means, found(network(), 10)[1].means, rtol=1e-6, atol=1e-6)


def test_each_input_has_its_centre_and_a_mixed_one_the_mix():
    table = ClassMeans(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([4, 4]))
    assert table.of(torch.tensor([1, 0])).tolist() == [[0, 2], [1, 0]]
    mixed = table.mix(torch.tensor([0, 1]), torch.tensor([1, 1]), 0.25)
    assert mixed.tolist() == [[0.25, 1.5], [0.0, 2.0]]
    each = table.mix(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([1.0, 0.0]))
    assert each.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_labels_without_a_mean_are_named():
    table = found(network())[1]
    table.covers(torch.tensor([0, 3, 1]))
    with pytest.raises(InputError, match="class 2 has no mean"):
        table.covers(torch.tensor([0, 2]))
    with pytest.raises(InputError, match="labels from 0 to 7"):
        table.covers(torch.tensor([0, 7]))


def test_means_are_saved_and_belong_to_their_teacher(tmp_path):
    table, path = found(network())[1], tmp_path / "means.safetensors"
    table.save(path, {"teacher": "abc"})
    again = ClassMeans.load(path, {"teacher": "abc"})
    assert torch.equal(again.means, table.means)
    assert torch.equal(again.counts, table.counts)
    with pytest.raises(DataError, match=r"another teacher \(abc, now xyz\)"):
        ClassMeans.load(path, {"teacher": "xyz"})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        ClassMeans.load(path, {"teacher": "abc"})


def test_bad_labels_are_refused():
    with pytest.raises(InputError, match="label 3: there are 3 classes"):
        found(network(), classes=3)
    with pytest.raises(InputError, match="no input with a class"):
        found(network(), labels=torch.full((10,), -1))
