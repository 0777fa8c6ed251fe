"""The loss that keeps all experts in use."""

from __future__ import annotations

import pytest
import torch

from secateur.recover.training import objectives, routing
from secateur.subjects import Moe
from subjects.tiny import make, padded


def test_even_routing_costs_k_and_uneven_more() -> None:
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert routing.load_balance(torch.zeros(4, 4), chosen) == pytest.approx(2.0)
    one = torch.tensor([[0, 1]] * 4)
    logits = torch.tensor([[4.0, 4.0, 0.0, 0.0]] * 4, requires_grad=True)
    uneven = routing.load_balance(logits, one)
    assert float(uneven.detach()) > 3.5
    uneven.backward()
    assert logits.grad is not None
    assert (logits.grad[:, :2] > 0).all()


def test_padding_does_not_count() -> None:
    logits, chosen = torch.randn(6, 4), torch.randint(0, 4, (6, 2))
    mask = torch.tensor([True, True, False, True, False, True])
    assert routing.load_balance(logits, chosen, mask) == routing.load_balance(logits[mask], chosen[mask])


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "phimoe", "deepseek3"])
def test_an_objective_gets_the_mean_over_routers(name: str) -> None:
    subject = make(name)
    assert isinstance(subject, Moe)
    plain = objectives.distil(subject.forward, None, output="logits", task=1.0)
    batch = padded(subject)
    totals = objectives.count(batch)
    alone, _ = plain(batch, totals)
    both, parts = routing.add_balance(plain, subject.routers(), 0.5)(batch, totals)
    assert float((both - alone).detach()) == pytest.approx(0.5 * float(parts["balance"]), rel=1e-4)
    assert parts["balance"] >= 1.0
    # A micro-batch counts by its share of the step.
    half = routing.add_balance(plain, subject.routers(), 0.5)(batch, {key: 2 * value for key, value in totals.items()})
    assert half[1]["balance"] == pytest.approx(float(parts["balance"]) / 2)
    assert routing.add_balance(plain, [], 0.5) is plain
    assert routing.add_balance(plain, subject.routers(), 0.0) is plain
