"""Descent inside the backward pass does what SGD does, without ever holding all gradients."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn

import processes
from secateur.errors import NumericalError, RunError
from secateur.recover.training import fused
from secateur.recover.training.schedule import learning_rate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[2].weight = nn.Parameter(model[2].weight.detach() * 3)
    return model


def batches(count: int = 5) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(16, 6, generator=draw), "y": torch.randn(16, 3, generator=draw)} for _ in range(count)]


def objective(model):
    def ask(batch, totals):
        return 5 * (model(batch["x"]) - batch["y"]).square().mean(), {}

    return ask


def examples(batch):
    return {"examples": len(batch["x"])}


def by_hand(model, items, steps, lr, clip):
    """The same with torch's own gradients, all at once."""
    norms = []
    for place in range(steps):
        loss = objective(model)(items[place % len(items)], {})[0]
        found = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.norm() for g in found]).norm()
        norms.append(float(norm))
        scale = 1.0 if clip is None else min(1.0, clip / float(norm))
        rate = learning_rate(place, steps=steps, lr=lr, warmup=0.1, schedule="linear")
        with torch.no_grad():
            for parameter, g in zip(model.parameters(), found, strict=True):
                parameter.sub_(rate * scale * g)
    return norms


@pytest.mark.parametrize("clip", [None, 1.0, 1e9])
def test_it_is_sgd_with_clipping_by_the_norm_of_all_gradients(clip):
    ours, theirs = network(), network()
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    found = fused.descend(ours, batches(), objective(ours), steps=12, lr=0.05, clip=clip, count=examples)
    norms = by_hand(theirs, batches(), 12, 0.05, clip)
    assert max(norms) > 1.0  # clipping by 1 bites
    for a, b, c in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert not torch.allclose(a, c, atol=1e-3)
    assert (found.steps, found.tokens, len(found.losses)) == (12, 12 * 16, 12)
    assert found.losses[-1][1] < found.losses[0][1]


def test_no_two_gradients_are_held_at_once():
    model, seen = network(), []
    parameters = dict(model.named_parameters())

    def shape(name, gradient, rate):
        seen.append((name, sum(p.grad is not None for p in parameters.values())))
        return gradient

    loss = objective(model)(batches()[0], {})[0]
    fused.step(loss, parameters, lr=0.1, shape=shape)
    assert [held for _, held in seen] == [1] * (2 * len(parameters))
    assert all(parameter.grad is None for parameter in parameters.values())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters.values())


def test_weights_are_seen_before_their_update_beside_what_becomes_of_their_gradient():
    model = network()
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    loss = objective(model)(batches()[0], {})[0]
    plain = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True))
    seen = {}

    def look(name, weight, gradient):
        seen[name] = (weight.clone(), gradient.clone())

    norm = fused.step(loss, parameters, lr=0.1, clip=0.5, shape=lambda name, g, rate: 2 * g + rate, look=look)
    shaped = {name: 2 * g + 0.1 for name, g in plain.items()}
    whole = torch.stack([g.norm() for g in shaped.values()]).norm()
    assert norm == pytest.approx(float(whole), rel=1e-5)
    assert seen.keys() == parameters.keys()
    for name, (weight, gradient) in seen.items():
        assert torch.equal(weight, before[name])
        assert torch.allclose(gradient, shaped[name], atol=1e-6)  # not clipped
        moved = before[name] - 0.1 * min(1.0, 0.5 / float(whole)) * shaped[name]
        assert torch.allclose(parameters[name], moved, atol=1e-6)


def test_tied_weights_move_once_by_their_whole_gradient():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.outer.weight = self.inner.weight

        def forward(self, x):
            return self.outer(torch.tanh(self.inner(x)))

    model, x = Tied(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    start = model.inner.weight.detach().clone()
    (wanted,) = torch.autograd.grad(model(x).square().mean(), [model.inner.weight])
    fused.step(model(x).square().mean(), dict(model.named_parameters()), lr=1.0, clip=None)
    assert torch.allclose(model.inner.weight, start - wanted, atol=1e-6)


def test_a_killed_descent_goes_on_to_the_same_bytes(tmp_path):
    def run(folder, stop=None):
        model, total = network(), torch.zeros(8, 8)
        asked = []

        def ask(batch, totals):
            asked.append(1)
            if stop is not None and len(asked) > stop:
                raise KeyboardInterrupt
            return objective(model)(batch, totals)

        def look(name, weight, gradient):
            if name == "2.weight":
                total.add_((weight * gradient).abs())

        found = fused.descend(
            model, batches(), ask, steps=9, lr=0.05, look=look, beside={"total": total}, count=examples,
            checkpoint=folder, every=2,
        )  # fmt: skip
        return model, total, found, len(asked)

    whole, total, straight, _ = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=5)
    again, counted, resumed, asked = run(tmp_path / "b")
    assert asked == 5  # four of nine were done at the last checkpoint
    assert torch.equal(counted, total)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    assert resumed.losses == straight.losses
    assert run(tmp_path / "b")[3] == 0
    model = network()
    with pytest.raises(RunError, match="belongs to another run"):
        fused.descend(model, batches(), objective(model), steps=8, lr=0.05, count=examples, checkpoint=tmp_path / "b")
    (tmp_path / "b" / "descent.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="remove it to start anew"):
        run(tmp_path / "b")


class Branches(nn.Module):
    """Rows of even and odd places take different linears, in different orders; one linear is never taken."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.outer = nn.Linear(6, 3)

    def forward(self, batch):
        kinds = batch["kind"][:, None]
        first = self.inner[0](torch.tanh(self.inner[1](batch["x"]))) if bool((kinds == 0).any()) else batch["x"]
        second = self.inner[1](torch.tanh(self.inner[0](batch["x"]))) if bool((kinds == 1).any()) else batch["x"]
        second = self.inner[2](second) if bool((kinds == 1).any()) else second
        first = self.inner[3](first) if bool((kinds == 0).any()) else first
        return self.outer(torch.where(kinds == 0, first, second))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_two_processes_descend_as_one_though_their_rows_take_different_ways(tmp_path, clip):
    items = [{**batch, "kind": torch.arange(16) % 2} for batch in batches()]

    def run(folder):
        model, seen = Branches(), {}
        if os.environ.get("RANK") == "1":
            model.requires_grad_(False).apply(lambda part: [weight.mul_(2) for weight in part.parameters()])
            model.requires_grad_(True)  # all begin with the weights of the first

        def objective(batch, totals):
            return 5 * (model(batch) - batch["y"]).square().sum() / (3 * totals["examples"]), {}

        def look(name, weight, gradient):
            seen[name] = seen.get(name, 0) + (weight * gradient).abs().sum()

        how = {"steps": 6, "lr": 0.1, "clip": clip, "look": look, "count": examples}
        done = fused.descend(model, items, objective, **how, checkpoint=folder, every=3)
        return {"losses": done.losses, "tokens": done.tokens, "weights": model.state_dict(), "seen": seen}

    processes.both(lambda: torch.save(run(tmp_path / "two"), tmp_path / os.environ["RANK"]))
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = run(tmp_path / "one")
    assert first["losses"] == second["losses"]
    assert first["tokens"] == second["tokens"] == alone["tokens"]
    assert all(
        math.isclose(a, b, rel_tol=1e-5) for (_, a), (_, b) in zip(first["losses"], alone["losses"], strict=True)
    )
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert second["seen"] == {}
    for name, value in alone["seen"].items():
        torch.testing.assert_close(first["seen"][name], value, rtol=1e-5, atol=1e-6)
    assert all(value == 0 for name, value in first["seen"].items() if name not in alone["seen"])
    assert (tmp_path / "two" / "descent.safetensors").is_file()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_is_not_finite_stops_the_descent_by_name(clip):
    model, items = network(), batches()
    items[2]["y"][0, 0] = torch.inf
    with pytest.raises(NumericalError, match="loss is inf at step 3"):
        fused.descend(model, items, objective(model), steps=5, lr=0.01, clip=clip, count=examples)
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def broken(name, gradient, rate):
        return gradient * torch.nan if name == "0.bias" else gradient

    with pytest.raises(NumericalError, match=r"step 1: the gradient of 0\.bias is not finite"):
        fused.descend(model, batches(), objective(model), steps=5, lr=0.1, clip=clip, shape=broken, count=examples)
    untouched = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert untouched is (clip is not None)
    assert all(parameter.grad is None for parameter in model.parameters())
