import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from score.networks import Block, Linear, batches, images, residual, same, slices, state, unit_of
from secateur.errors import DataError, InputError
from secateur.measure import memory
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
    assert (weight >= unit * (1 - 1e-5)).all(), "but for rounding"
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


def criterion(model):
    return lambda batch: nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


def plain_gradients(model, data):
    """Parameter -> its gradient for each batch, by backward() on a copy."""
    other = copy.deepcopy(model).eval()
    result = {own: [] for own in model.parameters()}
    for batch in data:
        other.zero_grad()
        criterion(other)(batch).backward()
        for own, theirs in zip(model.parameters(), other.parameters(), strict=True):
            result[own].append(theirs.grad.clone())
    return result


SLOW = {
    "taylor": lambda x, g: (x * g.mean(0)).sum().abs(),
    "weight": lambda x, g: (x * g.mean(0)).abs().sum(),
    "taylor2": lambda x, g: (x * g.mean(0) - 0.5 * (x * g).square().mean(0)).sum().abs(),
    "fisher": lambda x, g: (x * g).sum(1).square().mean(),
    "cosine": lambda x, g: nn.functional.cosine_similarity(x, -g.mean(0), dim=0),
}


def measured(model, data, given, loss=None):
    loss = loss or criterion(model)
    gradients = gradient.mean(loss, model, data, given)
    return {
        "taylor": gradient.taylor(loss, model, data, given),
        "weight": gradient.taylor(loss, model, data, given, within="weight"),
        "taylor2": gradient.taylor(loss, model, data, given, order=2),
        "fisher": gradient.fisher(loss, model, data, given),
        "cosine": gradient.cosine(given, gradients),
        "dhspg": gradient.dhspg(given, gradients),
        "hesso": gradient.hesso(given, gradients),
    }


def test_scores_of_slices_are_the_plain_formulas():
    model, data = residual().train(), images()
    given = slices(model)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    model.head.weight.requires_grad_(False)
    before = state(model)
    found = measured(model, data, given)
    assert same(before, state(model)), "scoring left something behind"
    plain = plain_gradients(model.requires_grad_(), data)
    vectors = {
        site: [
            (unit_of(parts, unit), torch.stack([unit_of(parts, unit, lambda w: plain[w][n]) for n in range(len(data))]))  # noqa: B023
            for unit in range(len(found["taylor"][site]))
        ]
        for site, parts in given.items()
    }
    for name, formula in SLOW.items():
        for site, units in vectors.items():
            expected = torch.stack([formula(x, g) for x, g in units])
            torch.testing.assert_close(found[name][site], expected, rtol=1e-4, atol=1e-7, msg=f"{name} of {site}")
    every = [(x, g.mean(0)) for units in vectors.values() for x, g in units]
    over_all = lambda rows: torch.stack(rows) / torch.stack(rows).norm()  # noqa: E731
    cosines = [torch.dot(x, g) / (x.norm() * g.norm()) for x, g in every]
    dhspg = -0.5 * over_all(cosines) - 0.5 * over_all([1 / (x.norm() / len(x) + 1e-6) for x, _ in every])
    torch.testing.assert_close(torch.cat(list(found["dhspg"].values())), dhspg, rtol=1e-4, atol=1e-6)
    criteria = (
        [x.norm() for x, _ in every],
        [x.norm() / len(x) for x, _ in every],
        [one + 1 for one in cosines],
        [torch.dot(x, g).abs() for x, g in every],
        [0.5 * torch.dot(x, g) ** 2 for x, g in every],
    )
    hesso = sum(0.2 * over_all(rows) for rows in criteria)
    torch.testing.assert_close(torch.cat(list(found["hesso"].values())), hesso, rtol=1e-4, atol=1e-6)


def test_scores_follow_the_scale_of_the_loss_as_they_should():
    model, data = residual(), images()
    given = slices(model)
    once, thrice = measured(model, data, given), measured(model, data, given, lambda b: 3 * criterion(model)(b))
    for name, power in {"taylor": 3, "weight": 3, "fisher": 9, "cosine": 1, "dhspg": 1, "hesso": 1}.items():
        for site in given:
            torch.testing.assert_close(thrice[name][site], power * once[name][site], rtol=1e-3, atol=1e-6)


def test_a_planted_channel_without_weights_scores_least():
    model, data = residual(), images()
    with torch.no_grad():
        for weight, dim, units in slices(model)["inner"]:
            weight.index_fill_(dim, torch.nonzero(units == 5).flatten(), 0.0)
    for name, scores in measured(model, data, slices(model)).items():
        assert name == "cosine" or int(scores["inner"].argmin()) == 5, name
        if name in ("taylor", "taylor2", "weight", "fisher", "cosine"):
            assert scores["inner"][5] == 0


def test_consumers_are_slices_of_their_columns():
    torch.manual_seed(0)
    model, data = Block(), batches()
    given = {"n": [(model.down.weight, 1, torch.arange(6) // 2)]}
    for score in (gradient.taylor, gradient.fisher):
        consumers = score(loss_of(model), model, data, {"n": Linear("down", 2)})
        assert torch.equal(score(loss_of(model), model, data, given)["n"], consumers["n"])


def test_what_the_loss_does_not_use_has_no_gradient_and_bad_losses_are_refused():
    model, data = residual(), images()
    given = slices(model)
    found = gradient.mean(lambda b: model.stem(b["x"]).square().mean(), model, data, given)
    assert found[model.head.weight].abs().sum() == 0
    assert found[model.stem.weight].abs().sum() > 0
    for loss in (lambda b: model(b["x"]), lambda b: torch.zeros(()), lambda b: 0.0):
        with pytest.raises(InputError, match="one number with gradients"):
            gradient.mean(loss, model, data, given)
    assert not [p for p in model.parameters() if not p.requires_grad]
    with pytest.raises(InputError, match="order 3"):
        gradient.taylor(criterion(model), model, data, given, order=3)
    with pytest.raises(InputError, match="has no gradient"):
        gradient.hesso(given, {model.stem.weight: torch.zeros_like(model.stem.weight)})
    with pytest.raises(InputError, match="do not divide into blocks of 4"):
        gradient.taylor(loss_of(Block()), Block(), batches(), {"n": Linear("down", 4)})


@pytest.mark.parametrize("rule", [gradient.taylor, partial(gradient.taylor, order=2), gradient.fisher])
def test_only_one_gradient_is_held_at_a_time(rule: Any) -> None:
    width, layers = 256, 12
    net = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    units = torch.arange(width)
    slices = {f"layer{n}": [(layer.weight, 0, units), (layer.weight, 1, units)] for n, layer in enumerate(net)}
    batches = [torch.randn(2, width) for _ in range(2)]
    took = memory.measure_allocation(lambda: rule(lambda x: net(x).square().mean(), net, batches, slices))
    assert took.value < 5 * 4 * width**2  # a gradient, its product and square: never all twelve
    assert all(parameter.grad is None for parameter in net.parameters())
