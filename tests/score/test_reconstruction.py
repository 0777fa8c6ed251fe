"""Moments of real layers, contributions of channels, and the two published ways to choose among them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.errors import DataError, InputError
from secateur.score import reconstruction


@pytest.fixture
def layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 4, 2, dilation=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return model, [torch.randn(6, 3, 8, 8) for _ in range(2)]


def contributions(model, batches, path, channels):
    """[channels, everything] of what each input channel adds to the output of a convolution, from the layer itself."""
    module, rows = model.get_submodule(path), []
    inputs = torch.cat([model[: int(path)](batch) for batch in batches])
    for channel in range(channels):
        alone = torch.zeros_like(inputs)
        alone[:, channel] = inputs[:, channel]
        rows.append(
            functional.conv2d(alone, module.weight, None, module.stride, module.padding, module.dilation).flatten()
        )
    return torch.stack(rows).double()


@pytest.mark.parametrize(("path", "channels"), [("0", 3), ("2", 5)])
def test_the_gram_matrix_is_that_of_the_contributions(layers, path, channels):
    model, batches = layers
    hessian = reconstruction.moments(model, model, batches, [path])[path]
    weight = model.get_submodule(path).weight
    unit = torch.arange(channels).repeat_interleave(weight[0, 0].numel())
    found = reconstruction.gram(weight, hessian, unit)
    with torch.no_grad():
        rows = contributions(model, batches, path, channels)
    positions = rows.shape[1] / weight.shape[0]
    assert torch.allclose(found, rows @ rows.T / positions, rtol=1e-4, atol=1e-6)


def test_moments_of_a_linear_and_the_mode_of_the_model(layers):
    model, batches = layers
    model.train()
    found = reconstruction.moments(model, model, batches, ["4"])["4"]
    assert model.training
    with torch.no_grad():
        rows = torch.cat([model[:4](batch) for batch in batches]).double()
    assert torch.allclose(found, rows.T @ rows / len(rows), rtol=1e-5)
    with pytest.raises(DataError):
        reconstruction.moments(model, model, [], ["4"])
    with pytest.raises(InputError, match="ReLU"):
        reconstruction.moments(model, model, batches, ["1"])


def test_columns_of_no_unit_are_left_out():
    weight, hessian = torch.randn(3, 4), torch.eye(4)
    found = reconstruction.gram(weight, hessian, torch.tensor([0, -1, 1, 1]))
    assert found.shape == (2, 2)
    assert found[1, 1] == pytest.approx(float(weight[:, 2:].square().sum()), rel=1e-5)
    with pytest.raises(InputError, match="d_in"):
        reconstruction.gram(weight, hessian, torch.tensor([0]))


def products(seed: int = 0, count: int = 6) -> torch.Tensor:
    torch.manual_seed(seed)
    rows = torch.randn(count, 40, dtype=torch.float64)
    return rows @ rows.T


def test_greedy_takes_the_least_growth_each_time():
    g = products()
    order = torch.argsort(reconstruction.greedy(g)).tolist()
    for step in range(len(order)):
        gone = order[:step]
        losses = {c: float(g[[*gone, c]][:, [*gone, c]].sum()) for c in range(len(g)) if c not in gone}
        assert order[step] == min(losses, key=losses.get)


def test_greedy_sees_that_two_channels_cancel():
    # Channels 0 and 1 cancel: together they are nothing, alone they are large; magnitude would keep both.
    z = torch.tensor([[5.0, 0, 0], [-5.0, 0, 0], [0, 6.0, 0], [0, 0, 7.0]], dtype=torch.float64)
    assert set(torch.argsort(reconstruction.greedy(z @ z.T))[:2].tolist()) == {0, 1}


def test_lasso_keeps_the_pair_that_reconstructs_best():
    z = torch.zeros(4, 30, dtype=torch.float64)
    torch.manual_seed(0)
    z[0], z[1] = 3 * torch.randn(30), 2.5 * torch.randn(30)
    z[2], z[3] = 0.2 * torch.randn(30), 0.1 * torch.randn(30)
    scores = reconstruction.lasso(z @ z.T)
    target = z.sum(0)

    def error(pair):
        basis = z[list(pair)].T
        return float((target - basis @ torch.linalg.lstsq(basis, target).solution).square().sum())

    best = min(itertools.combinations(range(4), 2), key=error)
    assert set(torch.argsort(scores, descending=True)[:2].tolist()) == set(best)
    assert (scores[:2] > scores[2:].max()).all()


def test_lasso_drops_a_duplicate_before_what_is_unique():
    torch.manual_seed(1)
    z = torch.randn(3, 50, dtype=torch.float64)
    z[2] = 0.999 * z[1]
    scores = reconstruction.lasso(z @ z.T)
    assert int(scores.argmin()) in (1, 2)
    assert reconstruction.lasso(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [0, 0, 0]
