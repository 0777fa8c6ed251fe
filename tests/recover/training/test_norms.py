"""Batch norms averaged anew: the plain mean over batches, no weight touched, momentum and modes as they were."""

import torch
from torch import nn

from secateur.recover.training import norms


def test_statistics_are_those_of_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    net[0].running_mean.fill_(7.0)
    net[0].momentum = 0.3
    before = [p.detach().clone() for p in net.parameters()]
    batches = [torch.randn(8, 3) * 2 + 1 for _ in range(4)]
    assert norms.reestimate(net, net, batches) == 1
    assert torch.allclose(net[0].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(net[0].running_var, torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-5)
    assert net[0].momentum == 0.3
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_without_batch_norms_nothing_runs():
    def fails(_):
        raise AssertionError("ran")

    assert norms.reestimate(nn.Linear(2, 2), fails, [torch.zeros(1, 2)]) == 0
