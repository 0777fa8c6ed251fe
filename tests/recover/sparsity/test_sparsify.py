from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.recover.sparsity.sparsify import Groups, GroupSparse, interval
from secateur.recover.training import loop

STEPS = 60


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def groups(model: nn.Sequential) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
    first, second = torch.arange(12), torch.arange(8)
    return {
        "a": [(p, 0, first) for p in (model[0].weight, model[0].bias, model[1].weight, model[1].bias)],
        "b": [(p, 0, second) for p in (model[3].weight, model[3].bias)],
    }


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(32, 6, generator=draw)
    return x, (x[:, :3].argmax(1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, first: int = 0, hook: Any = None):
    for step in range(first, first + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if hook:
            hook(step)
    return model


def norms(slices: Any) -> Tensor:
    with torch.no_grad():
        return Groups(slices).total(torch.square).sqrt()


PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-3),
}


def made(model: nn.Sequential, variant: str = "sgd", **how: Any) -> GroupSparse:
    lr = 0.1 if variant == "sgd" else 0.01
    settings = {"start": 10, "span": 30, "finish": 0.3, "weight_decay": 1e-3, "nesterov": variant == "sgd"} | how
    return GroupSparse(model.parameters(), settings.pop("slices", groups(model)), lr=lr, variant=variant, **settings)


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("what", ["no share", "no groups", "warm-up"])
def test_with_nothing_to_remove_it_is_the_plain_optimiser_bit_for_bit(variant: str, what: str) -> None:
    ours, theirs = net(), net()
    how = {"no share": {"target": 0.0}, "no groups": {"slices": {}}, "warm-up": {"start": STEPS}}[what]
    train(ours, made(ours, variant, **how))
    train(theirs, PLAIN[variant](theirs.parameters()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("method", ["dhspg", "hesso"])
def test_the_target_is_reached_once_and_zero_groups_stay_zero(variant: str, method: str) -> None:
    model = net()
    slices = groups(model)
    optimizer = made(model, variant, method=method, periods=3)
    seen: list[float] = []
    zero: list[Tensor] = []

    def hook(step: int) -> None:
        row = torch.cat(list(optimizer.zero.values()))
        assert not norms(slices)[row].any(), f"a zero group moved at step {step}"
        for parameter in model.parameters():
            for name, value in optimizer.state[parameter].items():
                if name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                    zeros = {id(p): unit[optimizer.zero[s]] for s, parts in slices.items() for p, _, unit in parts}
                    if id(parameter) in zeros:
                        assert not value[zeros[id(parameter)]].any(), f"{name} of a zero group"
        if zero:
            assert bool(row[zero[-1]].all()), "a zero group came back"
        zero.append(row)
        seen.append(optimizer.sparsity)

    train(model, optimizer, hook=hook)
    assert seen[:10] == [0.0] * 10
    assert seen == sorted(seen)
    assert seen[39] == seen[-1] == 0.5
    row = torch.cat(list(optimizer.zero.values()))
    assert int((norms(slices) == 0).sum()) == int(row.sum()) == 10
    assert all(not bool(one.all()) for one in optimizer.zero.values()), "a site lost all of its groups"
    with torch.no_grad():
        hidden = model[2](model[1](model[0](batch(0)[0])))
    assert not hidden[:, optimizer.zero["a"]].any()


def test_what_is_not_chosen_is_trained_plainly() -> None:
    """At the first step after the choice, only chosen groups differ from the plain optimiser's step."""
    ours, theirs = net(), net()
    optimizer = made(ours, start=5, finish=0.0)
    train(ours, optimizer, steps=6)
    train(theirs, PLAIN["sgd"](theirs.parameters()), steps=6)
    chosen = optimizer.chosen
    assert 0 < sum(int(one.sum()) for one in chosen.values()) < 20
    pairs = zip(groups(ours).items(), groups(theirs).values(), strict=True)
    for (site, parts), others in pairs:
        for (a, _, _), (b, _, _) in zip(parts, others, strict=True):
            assert torch.equal(a[~chosen[site]], b[~chosen[site]])
            assert not torch.equal(a[chosen[site]], b[chosen[site]])
    assert torch.equal(ours[5].weight, theirs[5].weight)


def test_the_interval_lets_a_group_shrink_and_the_loss_descend() -> None:
    torch.manual_seed(0)
    x, d = torch.randn(200, 5, dtype=torch.float64), torch.randn(200, 5, dtype=torch.float64)
    dot, size, slope = (x * d).sum(1), x.norm(dim=1), d.norm(dim=1)
    for penalty, amplify, coefficient in ((1e-3, 2.0, 10.0), (1e-2, 20.0, 1e3), (0.5, 2.0, 10.0)):
        chosen, low, high = interval(dot, size, slope, penalty, amplify, coefficient)
        assert bool((low <= chosen).all())
        assert bool((chosen <= high).all())
        assert bool((chosen[dot >= 0] == penalty).all())
        lr = 1e-6
        trial = x - lr * (d + chosen[:, None] * x / size[:, None])
        assert bool((trial.norm(dim=1) < size).all()), "a penalised group grew"
        assert bool((((x - trial) * d).sum(1) > 0).all()), "the step goes uphill"
    one = interval(torch.tensor([-1.0]), torch.tensor([2.0]), torch.tensor([3.0]), 1e-3, 2.0, 1e4)
    assert [float(value) for value in one] == [1.0, 0.5, 18.0]


def test_without_the_projection_nothing_is_exactly_zero_and_with_it_the_target_is_met() -> None:
    how = {"finish": 0.0, "span": 40, "start": 5}
    shares = {}
    for name, more in {"dhspg": {}, "no projection": {"project": False}, "proximal": {"proximal": True}}.items():
        model = net()
        optimizer = made(model, **how, **more)
        train(model, optimizer, steps=120)
        shares[name] = float((norms(groups(model)) == 0).double().mean())
        assert shares[name] == optimizer.sparsity
    assert shares["dhspg"] == 0.5
    assert shares["no projection"] == 0.0
    assert 0 < shares["proximal"] <= 0.5


def test_no_more_go_than_the_target_even_if_more_are_chosen() -> None:
    model = net()
    optimizer = made(model, tolerance=0.3, epsilon=0.999, penalty=30.0, finish=0.0, target=0.4)
    train(model, optimizer, steps=40)
    assert sum(int(one.sum()) for one in optimizer.chosen.values()) == 14
    assert sum(int(one.sum()) for one in optimizer.zero.values()) == 8


def test_a_saliency_sees_the_weights_before_the_step_and_the_direction_and_a_choice_is_obeyed() -> None:
    model = net()
    seen: dict[str, Any] = {}

    def saliency(slices, directions):
        seen["weight"] = model[0].weight.detach().clone()
        seen["direction"] = directions[model[0].weight]
        return {"a": torch.arange(12.0), "b": -torch.arange(8.0)}

    optimizer = GroupSparse(
        model.parameters(), groups(model), lr=0.1, momentum=0.0, start=0, span=1, method="hesso", saliency=saliency,
        choose=lambda scores, extra: {"a": scores["a"] < 3, "b": scores["b"] < -6},
    )  # fmt: skip
    weight = model[0].weight.detach().clone()
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(seen["weight"], weight)
    torch.testing.assert_close(seen["direction"], gradient, rtol=1e-3, atol=1e-5)
    assert optimizer.zero["a"].tolist() == [True] * 3 + [False] * 9
    assert optimizer.zero["b"].tolist() == [False] * 7 + [True]
    assert not model[0].weight[:3].any()
    assert model[0].weight[3:].any()


def test_hesso_shrinks_linearly_in_periods() -> None:
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.requires_grad_(True)
    optimizer = GroupSparse(
        model.parameters(), groups(model), lr=0.0, start=2, span=8, periods=2, method="hesso", target=0.5
    )
    start, share = norms(groups(model)), []
    train(model, optimizer, steps=12, hook=lambda _: share.append(norms(groups(model)) / start))
    first = (share[5] == 0).nonzero().flatten()
    both = (share[9] == 0).nonzero().flatten()
    assert (len(first), len(both)) == (5, 10)
    torch.testing.assert_close(share[2][first], torch.full((5,), 0.75, dtype=torch.float64))
    torch.testing.assert_close(share[4][first], torch.full((5,), 0.25, dtype=torch.float64))
    assert share[5][both].count_nonzero() == 5
    assert torch.equal(share[9], share[11])


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("method", ["dhspg", "hesso"])
@pytest.mark.parametrize("when", [4, 25])
def test_state_survives_torchs_own_state_dict(variant: str, method: str, when: int) -> None:
    whole = net()
    straight = made(whole, variant, method=method, periods=3)
    train(whole, straight)
    half = net()
    optimizer = made(half, variant, method=method, periods=3)
    train(half, optimizer, steps=when)
    rest = copy.deepcopy(half)
    again = made(rest, variant, method=method, periods=3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(rest, again, steps=STEPS - when, first=when)
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(one, again.zero[site]) for site, one in straight.zero.items())


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_the_loops_checkpoint_resumes_to_the_same_bytes(variant: str, tmp_path: Any) -> None:
    def objective(model: nn.Module) -> Any:
        return lambda part, totals: (
            F.cross_entropy(model(part[0]), part[1], reduction="sum") / totals["examples"], {}
        )  # fmt: skip

    def run(model: nn.Module, folder: Any, **how: Any) -> list[GroupSparse]:
        optimizers: list[GroupSparse] = []

        def optimiser(weights: Any) -> GroupSparse:
            slices = groups(model)
            optimizers.append(GroupSparse(weights, slices, lr=0.05, variant=variant, start=5, span=20, finish=0.5))
            return optimizers[0]

        loop.train(
            model, [batch(i) for i in range(7)], objective(model), steps=40, lr=0.05, optimizer=optimiser, every=10,
            count=lambda part: {"examples": len(part[0])}, checkpoint=folder, progress=False, **how,
        )  # fmt: skip
        return optimizers

    whole, parts = net(), net()
    run(whole, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop() -> float:
        raise Stop

    with pytest.raises(Stop):
        run(parts, tmp_path / "parts", evaluate=stop, evaluate_every=15)
    fresh = net(seed=3)
    (optimizer,) = run(fresh, tmp_path / "parts")
    for a, b in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    assert optimizer.sparsity == 0.5


def test_scalars_other_dimensions_and_positions_of_no_group() -> None:
    weight, scalar = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.tensor(2.0))
    slices = {"x": [(weight, 1, torch.tensor([0, 1, -1, 1])), (scalar, 0, torch.tensor([0]))]}
    assert Groups(slices).total(torch.square).tolist() == [7.0, 6.0]
    optimizer = GroupSparse(
        [weight, scalar], slices, lr=0.1, momentum=0.0, start=0, span=1, method="hesso",
        choose=lambda scores, extra: {"x": torch.tensor([True, False])},
    )  # fmt: skip
    (weight.sum() + scalar).backward()
    optimizer.step()
    assert scalar == 0
    assert weight.tolist() == [[0.0, *[pytest.approx(0.9)] * 3]] * 3


def test_bad_input_is_one_clear_line() -> None:
    model = net()
    for how, message in (
        ({"variant": "lion"}, "variant='lion': give one of sgd, adam, adamw"),
        ({"method": "x"}, "method='x': give 'dhspg' or 'hesso'"),
        ({"target": 1.0}, "are shares below 1"),
        ({"span": 0}, "give whole numbers"),
        ({"slices": {"a": [(model[0].weight, 0, torch.arange(5))]}}, "needs 12 units"),
        ({"slices": {"a": [(nn.Parameter(torch.ones(2)), 0, torch.arange(2))]}}, "not among those trained"),
    ):
        settings = {"slices": groups(model), "lr": 0.1} | how
        with pytest.raises(InputError, match=message):
            GroupSparse(model.parameters(), **settings)
