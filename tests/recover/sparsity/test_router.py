from __future__ import annotations

import itertools

import pytest
import torch

from secateur.errors import BudgetError, InputError
from secateur.recover.sparsity import router as routers

AXES = {"channels": (1, 3), "neurons": (4, 5)}


def router() -> routers.BudgetRouter:
    torch.manual_seed(0)
    return routers.BudgetRouter(3, AXES, hidden=16)


def test_every_axis_has_a_network_and_uneven_ones_logits_for_each_layer():
    found = router()(torch.tensor([0.0, 1.0, 0.0]))
    assert {name: tuple(logits.shape) for name, logits in found.items()} == AXES
    first, _, last = router().each["channels"]
    u = torch.tensor([0.0, 1.0, 0.0])
    z = last.weight @ torch.nn.functional.leaky_relu(first.weight @ u + first.bias, 0.1) + last.bias
    assert torch.allclose(found["channels"][0], z)
    with pytest.raises(InputError, match="needs an axis"):
        routers.BudgetRouter(3, {})


def test_gumbel_softmax_is_softmax_without_noise_and_sharpens():
    logits = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    assert torch.allclose(routers.gumbel_softmax(logits, None, temperature=1.0), logits.softmax(-1))
    sharp = routers.gumbel_softmax(logits, None, temperature=0.05, scale=10.0)
    assert float(sharp[0, 1].detach()) > 0.999
    hard = routers.gumbel_softmax(logits, None, temperature=1.0, hard=True)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    hard[0, 0].backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0  # the soft one's


def test_noise_draws_each_choice_as_often_as_its_softmax():
    model, draw = routers.BudgetRouter(1, {"a": (1, 3)}), torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0])
    noise = torch.stack([model.draw_noise(draw) for _ in range(4000)])
    drawn = torch.bincount((logits + noise).argmax(-1), minlength=3) / 4000
    assert torch.allclose(drawn, logits.softmax(-1), atol=0.03)
    assert {name: tuple(part.shape) for name, part in router().split(router().draw_noise(draw)).items()} == AXES


def test_the_schedules_end_where_the_paper_says():
    assert (routers.temperature_at(0.0), routers.temperature_at(1.0)) == (1.0, pytest.approx(0.05))
    assert (routers.scale_at(0.0), routers.scale_at(0.5), routers.scale_at(1.0)) == (1.0, 5.5, 10.0)


def test_a_budget_between_two_is_both_of_them():
    trained = (1.0, 0.75, 0.5)
    assert routers.encode_budget(0.75, trained).tolist() == [0, 1, 0]
    assert routers.encode_budget(0.6, trained).tolist() == pytest.approx([0, 0.4, 0.6])
    assert routers.encode_budget(1.0, trained).tolist() == [1, 0, 0]
    for share in (0.49, 1.01):
        with pytest.raises(BudgetError, match=r"outside of what the router was trained for, 0.5 to 1"):
            routers.encode_budget(share, trained)


def test_the_loss_of_a_budget_has_a_dead_zone_and_keeps_the_whole_model_whole():
    def loss(cost: float, share: float, weights: list[float]) -> float:
        return float(routers.budget_loss(torch.tensor(cost), 100.0, share, {"a": torch.tensor([weights])}))

    whole = [1.0, 0.0]
    assert loss(60.0, 0.5, whole) == pytest.approx(0.2)
    assert loss(40.0, 0.5, whole) == pytest.approx(0.2)
    assert loss(52.0, 0.5, whole) == loss(48.0, 0.5, whole) == 0.0  # within 5 %
    assert loss(98.0, 1.0, whole) == pytest.approx(0.02)  # none at the whole
    assert loss(100.0, 1.0, [0.8, 0.2]) == pytest.approx(10 * 0.04)  # mean of 0.2^2 and 0.2^2


class Feed:
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((1, 2), index)}


def draws(**how: object) -> routers.Draws:
    return routers.Draws(Feed(), router(), [0.5, 0.25, 0.25], **{"steps": 10, "seed": 1, **how})


def test_what_is_drawn_follows_from_the_seed_and_the_number_of_the_batch():
    """So a resumed run sees the same, and of several processes each what one would at that batch."""
    first, again = draws(), draws()
    for index in (3, 0, 7):
        one, two = first[index], again[index]
        assert torch.equal(one["noise"], two["noise"])
        assert (one["size"], one["sharp"], one["done"]) == (two["size"], two["sharp"], two["done"])
        assert torch.equal(one["input_ids"], Feed()[index]["input_ids"])
    assert not torch.equal(first[0]["noise"], first[1]["noise"])
    assert not torch.equal(first[0]["noise"], draws(seed=2)[0]["noise"])
    assert not torch.equal(first[0]["noise"], draws(before=5)[0]["noise"])  # of the second stage


def test_sizes_come_as_often_as_their_weights_and_few_passes_are_hard():
    feed = draws(steps=3000)
    drawn = torch.bincount(torch.tensor([feed[index]["size"] for index in range(3000)]), minlength=3) / 3000
    assert torch.allclose(drawn, torch.tensor([0.5, 0.25, 0.25]), atol=0.03)
    assert 0 < sum(feed[index]["sharp"] for index in range(3000)) < 40


def test_the_share_that_is_done_runs_over_all_stages_and_micro_batches():
    assert [draws(steps=4)[index]["done"] for index in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [draws(steps=4, before=2)[index]["done"] for index in range(2)] == [0.5, 0.75]
    assert [draws(steps=2, accumulate=2)[index]["done"] for index in range(4)] == [0.0, 0.0, 0.5, 0.5]
    for wrong in ([1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="one of at least 0 for each of 3 budgets"):
            routers.Draws(Feed(), router(), wrong, steps=1)


def test_a_router_learns_a_budget():
    """Of three sizes, the one that costs what the budget allows is found by the loss alone, at every budget."""
    model, costs = router(), torch.tensor([100.0, 75.0, 50.0])
    shares = (1.0, 0.75, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for step, index in zip(range(240), itertools.cycle(range(3)), strict=False):
        logits = model(torch.eye(3)[index])["channels"]
        noise = model.split(model.draw_noise(draw))["channels"]
        done = step / 240
        chosen = routers.gumbel_softmax(
            logits, noise, temperature=routers.temperature_at(done), scale=routers.scale_at(done)
        )
        routers.budget_loss((chosen @ costs).sum(), 100.0, shares[index], {"channels": chosen}).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [int(model(row)["channels"].argmax()) for row in torch.eye(3)] == [0, 1, 2]
