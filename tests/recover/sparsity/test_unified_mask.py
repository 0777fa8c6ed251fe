"""The shared mask: open at first, exactly so many channels in the end, and a number that the proxies come to."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.errors import InputError
from secateur.recover.sparsity import unified_mask
from secateur.recover.sparsity.unified_mask import UnifiedMask


def make(kept=5, channels=8, settled=10, steps=30, proxy=None, **how):
    mask = UnifiedMask(channels, kept, settled=settled, steps=steps, **how)
    if proxy is not None:
        mask.proxy.data = torch.tensor(proxy)
    return mask


def test_the_schedule_has_the_values_of_the_paper():
    steps = {0: 1.0, 1: 1.0, 100: 2.0, 1000: 4.0, 5000: 13.29, 8000: 41.27}
    for step, value in steps.items():
        assert unified_mask.find_temperature(step, 10_000) == pytest.approx(value, rel=1e-3)
    assert unified_mask.find_temperature(10_000, 10_000) == math.inf
    assert [unified_mask.find_offset(step, 10) for step in (0, 2, 5, 9)] == [0.5, 0.3, 0.0, 0.0]
    assert unified_mask.fade(0, 10) == 1
    assert unified_mask.fade(5, 10) == pytest.approx(0.2503, rel=1e-3)
    assert unified_mask.fade(10, 10) == 0


def test_every_gate_is_exactly_one_at_first_and_half_after_the_offset_is_gone():
    mask = make()
    assert torch.equal(mask.at(0), torch.ones(8))
    assert torch.equal(mask.at(5), torch.full((8,), 0.5))
    deep = make(proxy=[-9.0] * 8)
    assert torch.allclose(deep.at(7), torch.full((8,), 4.54e-5), rtol=1e-3)


def test_the_count_has_the_gradient_of_a_sum_and_the_wells_pull_away_from_zero():
    proxy = torch.tensor([0.3, -0.2, 0.0, 0.7], requires_grad=True)
    gap = unified_mask.count_gap(proxy, 2)
    assert gap == 0.5, "0 counts as open"
    gap.backward()
    assert torch.equal(proxy.grad, torch.full((4,), 0.5))
    assert unified_mask.count_gap(proxy, 3) == 0
    proxy.grad = None
    pull = unified_mask.pull_apart(proxy)
    assert float(pull.detach()) == pytest.approx((0.04 + 0.04) / 2 + (0.09 + 0.25) / 2)
    pull.backward()
    assert (proxy.grad * torch.tensor([-1, 1, 1, 1]) > 0).all(), "towards the nearer well, and 0 is with the lower"
    assert unified_mask.pull_apart(torch.full((3,), 0.5)) == 0


def test_proxies_are_detached_at_four_fifths_and_gates_whole_at_the_end():
    mask = make(kept=2, channels=4, proxy=[0.4, 0.3, -0.3, -0.4])
    for step in (0, 7):
        assert mask.at(step).requires_grad
        assert mask.pulls(step) is not None
    held = [mask.at(step) for step in (8, 9)]
    assert mask.pulls(8) is None
    assert torch.equal(*held), "the temperature stays"
    assert not held[0].requires_grad
    assert 0 < held[0][3] < held[0][2] < 0.5 < held[0][1] < held[0][0] < 1
    assert torch.equal(mask.at(10), torch.tensor([1.0, 1, 0, 0]))
    assert mask.converged


@pytest.mark.parametrize(("proxy", "kept", "stay"), [
    ([0.4, 0.1, 0.3, -0.2], 2, [1, 0, 1, 0]),
    ([-0.4, -0.1, 0.3, -0.2], 2, [0, 1, 1, 0]),
    ([0.0, 0.0, 0.0, 0.0], 3, [1, 1, 1, 0]),
])  # fmt: skip
def test_what_has_not_converged_is_finished_by_rank(proxy, kept, stay):
    mask, wanted = make(kept, 4, proxy=proxy), torch.tensor(stay)
    assert torch.equal(mask.keep().long(), wanted), "also before it is decided"
    early, late = mask.at(8), mask.at(12)
    assert not mask.converged
    wrong = (torch.tensor(proxy) >= 0) != wanted.bool()
    assert torch.equal(early[wrong], wanted[wrong].float()), "opened or closed outright"
    assert torch.equal(late.long(), wanted)
    mask.proxy.data = -mask.proxy.data  # averaged, say
    assert torch.equal(mask.keep().long(), wanted), "it was decided"


def test_proxies_come_to_the_number_by_themselves_and_the_record_says_how():
    """Channels of which each has another worth: those of the largest stay."""
    mask, worth = make(20, 32, settled=400, steps=900), torch.linspace(-0.05, 0.05, 32)
    adam = torch.optim.AdamW([mask.proxy], lr=3e-3, weight_decay=0)
    for step in range(900):
        adam.zero_grad()
        loss = -(mask.at(step) * worth).sum()
        pulls = mask.pulls(step)
        if pulls is None:
            assert not loss.requires_grad
            continue
        (loss + 10 * pulls[0] + pulls[1]).backward()
        adam.step()
    record = mask.describe()
    assert mask.converged
    assert mask.keep()[12:].all()
    assert (record["channels"], record["kept"], record["open"], record["late_flips"]) == (32, 20, 20, 0)
    assert record["sharp"] > 0.9
    assert record["curve"][0] == (0, 32)
    assert record["curve"][-1] == (319, 20)


@pytest.mark.parametrize("wells", [1, 10])
@pytest.mark.parametrize("open_now", [14, 34, 60])
def test_the_number_comes_back_where_no_task_asks_for_it(open_now, wells):
    """Few closed proxies share a mean, so that their wells could pull more than the number does."""
    mask = make(48, 64, settled=10_000, steps=10_000)
    mask.proxy.data = torch.where(torch.arange(64) < open_now, 0.01, -0.01) + torch.linspace(-0.004, 0.004, 64)
    adam = torch.optim.AdamW([mask.proxy], lr=1e-3, weight_decay=0)
    for step in range(400):
        adam.zero_grad()
        gap, pull = mask.pulls(step)
        (10 * gap + wells * pull).backward()
        adam.step()
    assert mask.converged
    assert mask.proxy.abs().min() > 0.05, "and then proxies leave 0"


def test_a_fixed_mask_fades_and_learns_nothing():
    fixed = torch.tensor([True, False, True, False])
    mask = make(2, 4, fixed=fixed)
    assert not mask.proxy.requires_grad
    assert torch.equal(mask.at(0), torch.ones(4))
    assert torch.allclose(mask.at(5), torch.tensor([1, 0.2503, 1, 0.2503]), atol=1e-4)
    assert torch.equal(mask.at(10), fixed.float())
    assert torch.equal(mask.keep(), fixed)
    assert mask.pulls(0) is None
    assert mask.describe() == {"channels": 4, "kept": 2, "fixed": True}


def test_a_checkpoint_holds_what_was_decided():
    mask, other = make(2, 4, proxy=[0.4, 0.1, 0.3, -0.2]), make(2, 4)
    mask.at(8)
    other.load_state_dict(mask.state_dict())
    assert torch.equal(other.keep(), mask.keep())


@pytest.mark.parametrize("kept", [0, 4, 5])
def test_a_mask_keeps_some_and_not_all(kept):
    with pytest.raises(InputError, match=f"a mask keeps {kept} of 4 channels"):
        make(kept, 4)


@pytest.mark.parametrize("settled", [1, 2, 3])
def test_the_shortest_trainings_have_a_mask_too(settled):
    mask = make(2, 4, settled=settled, steps=4)
    assert torch.equal(mask.at(0), torch.ones(4))
    assert all(mask.at(step).isfinite().all() for step in range(4))
    assert mask.at(3).sum() == 2
    assert mask.describe()["kept"] == 2
