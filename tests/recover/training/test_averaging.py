"""The average of weights: its formula, its warm-up, and what it leaves alone."""

import pytest
import torch
from torch import nn

from secateur._utils import storage
from secateur.errors import RunError
from secateur.recover.training import loop
from secateur.recover.training.averaging import Average
from secateur.recover.training.checkpoints import tensors_of


def test_it_is_the_formula_with_its_warm_up_and_leaves_other_buffers_alone():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    model.register_buffer("mask", torch.ones(1))
    nn.init.constant_(model[0].weight, 1.0)
    average = Average(tensors_of([model]), 0.5)
    assert set(average.tensors) == {"0.0.weight", "0.1.running_mean", "0.1.running_var"}
    expected, weight = 1.0, 1.0
    for step in (1, 2, 30):
        weight += 1.0
        with torch.no_grad():
            model[0].weight.fill_(weight)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    with average.in_place():
        assert model[0].weight.item() == torch.tensor(expected).item()
        assert average.tensors["0.0.weight"].item() == weight
    assert model[0].weight.item() == weight


def test_training_ends_with_the_average_and_evaluates_it(tmp_path):
    def train(steps, **how):
        torch.manual_seed(0)
        model, weights, seen = nn.Linear(3, 2), [], []

        def objective(batch, totals):
            weights.append(model.weight.detach().clone())
            return (model(batch) - 1).square().sum() / totals["examples"], {}

        def evaluate():
            seen.append(model.weight.detach().clone())
            return 1.0

        feed, how = [torch.eye(3)[:2], torch.eye(3)[1:]], {"ema": 0.9, "warmup": 0, "schedule": "constant", **how}
        done = loop.train(
            model, feed, objective, steps=steps, lr=0.1, evaluate=evaluate, evaluate_every=3, progress=False,
            count=lambda batch: {"examples": len(batch)}, **how,
        )  # fmt: skip
        return model, weights, seen, done

    last = train(6, ema=None)[0].weight.detach()
    model, weights, seen, done = train(6)
    expected = weights[0]
    for step, weight in enumerate([*weights[1:], last], start=1):
        expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + step) / (10 + step)))
        if step == 3:
            torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(model.weight.detach(), expected)
    assert not torch.allclose(model.weight, last)
    assert done.settings["ema"] == 0.9

    train(3, checkpoint=tmp_path)  # as far as a longer training of a constant rate
    text = storage.read(tmp_path / "training.safetensors")[1].replace('"steps": 3', '"steps": 6')
    storage.write(tmp_path / "training.safetensors", storage.read(tmp_path / "training.safetensors")[0], text)
    again = train(6, checkpoint=tmp_path)
    assert len(again[1]) == 3
    assert torch.equal(again[0].weight, model.weight)
    assert torch.equal(train(6, checkpoint=tmp_path)[0].weight, model.weight), "a finished one gives it, too"
    with pytest.raises(RunError, match=r"belongs to a run with ema=0.9, this one has None"):
        train(6, ema=None, checkpoint=tmp_path)


def test_the_best_is_the_best_average():
    model, seen = nn.Linear(1, 1, bias=False), []

    def evaluate():
        seen.append(model.weight.item())
        return abs(len(seen) - 2.0)

    loop.train(
        model, [torch.ones(1, 1)], lambda batch, totals: (model(batch).square().sum(), {}), steps=5, lr=0.1, ema=0.5,
        evaluate=evaluate, evaluate_every=1, keep="best", count=lambda _: {"examples": 1}, progress=False,
    )  # fmt: skip
    assert model.weight.item() == seen[1]
