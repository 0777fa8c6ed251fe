"""Fake quantisers round, pass gradients inside their range, observe, hold still, and go without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import DataError, InputError, NumericalError
from secateur.recover.quantization import qat
from secateur.recover.sparsity import masks
from secateur.recover.training import loop

pytest.importorskip("torchao")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 2, 2), nn.Flatten(2), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3))


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def ready(bits=8, **how):
    model = net()
    qat.prepare(model, ["0", "2", "4"], bits=bits, **how)
    qat.calibrate(model, model, [IMAGES[:3], IMAGES[3:]])
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_become_integers_in_range_and_zero_stays_zero(bits):
    inputs = qat.Inputs(bits)
    assert inputs(torch.zeros(3)).eq(0).all(), "an empty signal too"
    inputs.limit.fill_(2.0)
    x = torch.linspace(-3, 3, 1001)
    found = inputs(x) / inputs.scale
    assert torch.allclose(found, found.round(), atol=1e-3)
    assert found.round().min() == -(2 ** (bits - 1))
    assert found.round().max() == 2 ** (bits - 1) - 1
    assert inputs(torch.zeros(4)).eq(0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_pass_inside_the_range_and_stop_outside(bits):
    inputs = qat.Inputs(bits)
    inputs.limit.fill_(1.0)
    x = torch.tensor([-5.0, -0.9, -0.01, 0.0, 0.3, 0.9, 5.0], requires_grad=True)
    inputs(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_gradients_of_weights_pass_inside_the_range_and_stop_outside():
    model = ready(bits=4)
    qat.frozen(model, inputs=True, weights=True)
    layer = model[2]
    with torch.no_grad():
        layer.weight[0, 0] = 100.0  # beyond what its row's scale, which is held, can tell
    layer.weight_fake_quantizer(layer.weight).sum().backward()
    assert layer.weight.grad[0, 0] == 0
    assert torch.allclose(layer.weight.grad.flatten()[1:], torch.ones(()))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_weight_of_a_row_learns_too(bits):
    model = ready(bits)
    layer = model[2]
    for sign in (1.0, -1.0):
        with torch.no_grad():
            layer.weight.mul_(sign)
        layer.weight.grad = None
        rounded = layer.weight_fake_quantizer(layer.weight)
        rounded.sum().backward()
        assert torch.allclose(layer.weight.grad, torch.ones(()))
        assert torch.allclose(rounded.abs().amax(1), layer.weight.abs().amax(1)), "and stays what it is"


@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_trained_under_is_what_convert_gives(bits):
    model = ready(bits)
    wanted = model(IMAGES).detach()
    scales = qat.convert(model)
    assert [type(layer) for layer in model] == [type(layer) for layer in net()]
    assert set(scales) == {"0", "2", "4"}
    limit = 2 ** (bits - 1)
    x = IMAGES
    for path, layer in model.named_children():
        if path in scales:
            step, steps = scales[path]
            x = torch.clamp((x / step).round(), -limit, limit - 1) * step
            wide = steps.view(-1, *[1] * (layer.weight.dim() - 1))
            with torch.no_grad():
                layer.weight.copy_(torch.clamp((layer.weight / wide).round(), -limit, limit - 1) * wide)
        x = layer(x)
    assert torch.allclose(x, wanted, atol=1e-5)
    assert not any("quantizer" in name for name, _ in model.named_modules())


def test_parameters_keep_their_names_and_masks_survive_training():
    model = net()
    names = [name for name, _ in model.named_parameters()]
    mask = {"2.weight": torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) < 0.5}
    qat.prepare(model, ["0", "2", "4"], bits=4)
    qat.calibrate(model, model, [IMAGES])
    assert [name for name, _ in model.named_parameters()] == names
    before = model[2].weight.detach().clone()

    def objective(batch, totals):
        return model(batch).square().mean(), {}

    with masks.hold(model, mask):
        loop.train(model, [IMAGES], objective, steps=4, lr=1e-2, count=lambda batch: {"examples": len(batch)})
    after = model[2].weight.detach()
    assert not after[~mask["2.weight"]].any()
    assert not torch.equal(after[mask["2.weight"]], before[mask["2.weight"]])
    rounded = model[2].weight_fake_quantizer(model[2].weight)
    assert not rounded[~mask["2.weight"]].any()


def test_scales_follow_while_they_observe_and_hold_still_when_frozen():
    model = ready(momentum=0.5)
    for name in ("0.activation_fake_quantizer.limit", "2.weight_fake_quantizer.scale"):
        assert model.state_dict()[name].abs().sum() > 0, "checkpoints hold the scales"
    qat.frozen(model, inputs=False, weights=False)
    before = model[0].activation_fake_quantizer.limit.clone()
    model(10 * IMAGES)
    after = model[0].activation_fake_quantizer.limit.clone()
    assert torch.isclose(after, (before + 10 * IMAGES.abs().max()) / 2)
    qat.frozen(model, inputs=True, weights=True)
    scale = model[2].weight_fake_quantizer.scale.clone()
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    model(100 * IMAGES)
    assert model[0].activation_fake_quantizer.limit == after
    assert torch.equal(model[2].weight_fake_quantizer.scale, scale)
    qat.frozen(model, inputs=True, weights=False)
    model(IMAGES)
    assert torch.allclose(model[2].weight_fake_quantizer.scale, 3 * scale)


def test_calibration_takes_the_largest_a_quantile_or_what_tells_most():
    values = torch.cat([torch.randn(20000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])])
    limits = {}
    assert qat.entropy_limit([torch.zeros(10)], 8) == 0.0
    for by in ("max", "percentile", "entropy"):
        model = nn.Sequential(nn.Linear(3, 4))
        qat.prepare(model, ["0"], bits=8)
        qat.calibrate(model, model, [values[:, None].repeat(1, 3)], by=by, share=0.999)
        limits[by] = float(model[0].activation_fake_quantizer.limit)
    assert limits["max"] == 60.0
    assert 2.5 < limits["percentile"] < 4.5
    assert 2.0 < limits["entropy"] < 10.0, "one outlier does not set the range"


def test_nothing_is_rounded_while_it_calibrates():
    model = net()
    plain = model(IMAGES)
    qat.prepare(model, ["0", "2", "4"], bits=4)
    seen = []
    qat.calibrate(model, lambda batch: seen.append(model(batch)), [IMAGES])
    assert torch.allclose(seen[0], plain, atol=1e-6)
    assert not torch.allclose(model(IMAGES), plain, atol=1e-3)


def test_what_can_not_be_calibrated_is_refused_by_name():
    model = net()
    qat.prepare(model, ["0", "2"], bits=8)
    with pytest.raises(DataError, match="no batch reached 0"):
        qat.calibrate(model, model, [])
    with pytest.raises(NumericalError, match="inputs of 0 hold NaN"):
        qat.calibrate(model, model, [IMAGES / 0])
    with pytest.raises(InputError, match="bits=3"):
        qat.prepare(net(), ["2"], bits=3)
