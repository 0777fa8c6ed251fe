import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from score.networks import Block, Linear, batches
from secateur.errors import DataError, InputError
from secateur.score import gradient


def loss_of(model):
    return lambda batch: model(batch["x"]).square().mean()


def test_taylor_is_the_first_order_change_of_the_loss():
    torch.manual_seed(0)
    model, data = Block().double(), batches()
    for batch in data:
        batch["x"] = batch["x"].double()
    scores = gradient.taylor(loss_of(model), model, data, {"n": Linear("down")})["n"]
    mean = lambda: sum(loss_of(model)(b).item() for b in data) / len(data)  # noqa: E731
    own = model.down.weight.data.clone()
    for unit in range(6):
        step = 1e-5
        model.down.weight.data[:, unit] = own[:, unit] * (1 + step)
        up = mean()
        model.down.weight.data[:, unit] = own[:, unit] * (1 - step)
        down = mean()
        model.down.weight.data = own.clone()
        assert scores[unit].item() == pytest.approx(abs(up - down) / (2 * step), rel=1e-4)


def test_fisher_squares_each_batch_before_the_mean():
    torch.manual_seed(0)
    model, data = Block(), batches()
    scores = gradient.fisher(loss_of(model), model, data, {"n": Linear("down", 2)})["n"]
    single = [gradient.taylor(loss_of(model), model, [b], {"n": Linear("down", 2)})["n"] for b in data]
    torch.testing.assert_close(scores, torch.stack(single).square().mean(0))


def test_single_weights_do_not_cancel():
    torch.manual_seed(0)
    model, data = Block(), batches()
    unit = gradient.taylor(loss_of(model), model, data, {"n": Linear("down")})["n"]
    weight = gradient.taylor(loss_of(model), model, data, {"n": Linear("down")}, within="weight")["n"]
    assert (weight >= unit).all()
    assert (weight > unit).any()


def test_both_layouts_agree_and_nothing_is_left_behind():
    torch.manual_seed(0)
    plain, other = nn.Linear(6, 4), Conv1D(4, 6)
    with torch.no_grad():
        other.weight.copy_(plain.weight.T)
        other.bias.copy_(plain.bias)
    plain.weight.requires_grad_(False)
    data = [{"x": torch.randn(2, 3, 6)} for _ in range(2)]
    a = gradient.taylor(loss_of(plain), plain, data, {"n": Linear("", 3)})["n"]
    b = gradient.taylor(loss_of(other), other, data, {"n": Linear("", 3, conv1d=True)})["n"]
    torch.testing.assert_close(a, b)
    assert not plain.weight.requires_grad
    assert plain.bias.requires_grad
    assert plain.bias.grad is None
    assert other.weight.grad is None


def test_bad_requests_are_refused():
    model = Block()
    for score in (gradient.taylor, gradient.fisher):
        with pytest.raises(DataError, match="no batches"):
            score(loss_of(model), model, [], {"n": Linear("down")})
    with pytest.raises(InputError, match="within 'head'"):
        gradient.taylor(loss_of(model), model, batches(), {"n": Linear("down")}, within="head")
