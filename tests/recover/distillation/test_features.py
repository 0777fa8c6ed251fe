"""Losses of norms and directions against loops over rows, and what each of them does not see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.recover.distillation import features, losses
from secateur.recover.distillation.features import norms_and_directions as nd

ROWS, WIDTH = 12, 7


@pytest.fixture
def rows():
    torch.manual_seed(0)
    student = torch.randn(ROWS, WIDTH, requires_grad=True)
    return student, torch.randn(ROWS, 5), torch.randn(ROWS, WIDTH)


def looped(student, teacher, centres):
    """The loss row by row, as its formula reads."""
    total = torch.zeros(())
    for f, t, c in zip(student, teacher, centres, strict=True):
        e = c / c.norm()
        total = total + 1 - (f @ e) / max(f.norm(), t.norm())
    return total


def test_nd_equals_the_loop_and_its_gradient(rows):
    student, teacher, centres = rows
    ours, plain = nd(student, teacher, centres), looped(student, teacher, centres)
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6)
    longer, shorter = (student.norm(dim=1) > teacher.norm(dim=1)), (student.norm(dim=1) < teacher.norm(dim=1))
    assert longer.any()
    assert shorter.any(), "both sides of the maximum are looked at"
    torch.testing.assert_close(*(torch.autograd.grad(one, student)[0] for one in (ours, plain)))


def test_nd_is_zero_one_and_two_where_it_should_be():
    e = torch.tensor([[0.6, 0.8]])
    teacher = torch.tensor([[3.0, 0.0]])
    for length in (3.0, 7.0):
        assert nd(length * e, teacher, 5 * e).item() == pytest.approx(0, abs=1e-6)
        assert nd(-length * e, teacher, 5 * e).item() == pytest.approx(2, abs=1e-6)
    for length in (0.5, 9.0):
        assert nd(length * torch.tensor([[-0.8, 0.6]]), teacher, e).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [1.1, 2.0, 3.0])
def test_a_short_feature_gains_by_growing_and_a_long_one_does_not(scale):
    e, short = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    teacher = torch.tensor([[0.0, 3.0]])
    fell = nd(short, teacher, e) - nd(scale * short, teacher, e)
    assert fell.item() == pytest.approx((scale - 1) * 0.6 / 3.0, abs=1e-6)
    assert nd(4 * short, teacher, e).item() == pytest.approx(nd(4 * scale * short, teacher, e).item(), abs=1e-6)
    assert nd(4 * short, teacher, e).item() == pytest.approx(losses.cosine(4 * short, e).item(), abs=1e-6)


def test_nd_knows_no_length_of_centres_and_masks_rows(rows):
    student, teacher, centres = rows
    whole = nd(student, teacher, centres)
    assert nd(student, teacher, 3 * centres).item() == pytest.approx(whole.item(), rel=1e-6)
    mask = torch.arange(ROWS) < 4
    part = nd(student, teacher, centres, mask)
    assert part.item() == pytest.approx(nd(student[:4], teacher[:4], centres[:4]).item(), rel=1e-6)
    poisoned = student.detach().clone()
    poisoned[5:] = torch.nan
    assert nd(poisoned, teacher, centres, mask).item() == pytest.approx(part.item(), rel=1e-6)


def test_nd_goes_through_a_projection_and_leaves_teachers_alone(rows):
    student, _, centres = rows
    project, teacher, means = nn.Linear(3, WIDTH), torch.randn(ROWS, 2, requires_grad=True), centres.requires_grad_()
    narrow = torch.randn(ROWS, 3, requires_grad=True)
    nd(narrow, teacher, means, project=project).backward()
    assert narrow.grad.abs().sum() > 0
    assert project.weight.grad.abs().sum() > 0
    assert teacher.grad is None
    assert means.grad is None
    with pytest.raises(InputError, match="width 3 differs from teacher width 7"):
        nd(narrow, teacher, means)
    with pytest.raises(InputError, match="not of the same tokens"):
        nd(student[:3], teacher, centres)


def test_a_feature_of_zeros_has_a_finite_gradient():
    zeros = torch.zeros(2, 3, requires_grad=True)
    for teacher in (torch.ones(2, 3), torch.zeros(2, 3)):
        for loss in (nd(zeros, teacher, torch.ones(2, 3)), features.growth(zeros), features.unit(zeros, teacher)):
            assert torch.isfinite(torch.autograd.grad(loss, zeros)[0]).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: nd(s, 2 * t, t),
        lambda s, t: nd(s, t, t, torch.tensor([1, 0, 1])),
        lambda s, t: features.unit(s, t),
        lambda s, t: features.unit(s, t, power=1),
        lambda s, t: features.normalised_errors([s, 2 * s], [t, 50 * t], scale="mean"),
    ],
)
def test_gradcheck(loss):
    torch.manual_seed(1)
    student, teacher = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student.requires_grad_(),))


def test_growth_asks_for_a_step_of_length_and_no_other_direction(rows):
    student = rows[0]
    loss = features.growth(student, step=0.5)
    assert loss.item() == pytest.approx(ROWS * 0.25, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    wanted = -2 * 0.5 * student / student.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, wanted.detach())
    with pytest.raises(InputError, match="step=0"):
        features.growth(student, step=0)


def test_unit_vectors_are_compared_without_their_lengths(rows):
    student, _, teacher = rows
    assert features.unit(student, teacher).item() == pytest.approx(2 * losses.cosine(student, teacher).item(), rel=1e-5)
    assert features.unit(3 * student, 9 * teacher).item() == pytest.approx(features.unit(student, teacher).item(), 1e-5)
    assert features.unit(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-10)
    ours = student / student.norm(dim=1, keepdim=True) - teacher / teacher.norm(dim=1, keepdim=True)
    assert features.unit(student, teacher, power=1).item() == pytest.approx(ours.abs().sum().item(), rel=1e-5)
    with pytest.raises(InputError, match="power=3"):
        features.unit(student, teacher, power=3)


def stages():
    torch.manual_seed(2)
    teacher = [10.0**i * torch.randn(6, 2, 3, 3) for i in range(4)]
    return [one + 0.1 * one.abs().mean() * torch.randn_like(one) for one in teacher], teacher


def test_stages_of_other_sizes_count_alike():
    student, teacher = stages()
    each = [features.normalised_errors([s], [t]).item() for s, t in zip(student, teacher, strict=True)]
    plain = [losses.mse(s.flatten(1), t.flatten(1)).item() for s, t in zip(student, teacher, strict=True)]
    assert max(plain) / min(plain) > 1e5
    assert max(each) / min(each) < 2
    assert features.normalised_errors(student, teacher).item() == pytest.approx(sum(each), rel=1e-5)
    terms = [
        ((s - t) ** 2).flatten(1).sum() / (t**2).flatten(1).sum(1).mean() for s, t in zip(student, teacher, strict=True)
    ]
    assert features.normalised_errors(student, teacher).item() == pytest.approx(sum(terms).item(), rel=1e-5)


@pytest.mark.parametrize("scale", ["one", "mean", "max"])
def test_inputs_that_the_mask_leaves_out_are_not_in_the_teachers_norm_either(scale):
    student, teacher = stages()
    mask = torch.tensor([1, 1, 0, 1, 1, 0])
    wanted = features.normalised_errors([s[mask > 0] for s in student], [t[mask > 0] for t in teacher], scale=scale)
    for stage in student:
        stage[mask == 0] = torch.nan
        stage.requires_grad_()
    found = features.normalised_errors(student, teacher, mask, scale=scale)
    torch.testing.assert_close(found, wanted)
    assert all(one.isfinite().all() for one in torch.autograd.grad(found, student))
    assert features.normalised_errors(student, teacher, torch.zeros(6), scale=scale) == 0


def test_a_tap_may_change_its_unit_and_the_scale_may_stay():
    student, teacher = stages()
    moved = features.normalised_errors([s * 7 for s in student], [t * 7 for t in teacher])
    assert moved.item() == pytest.approx(features.normalised_errors(student, teacher).item(), rel=1e-5)
    assert features.normalised_errors(teacher, teacher).item() == 0
    ones = [one / one.square().flatten(1).sum(1).mean().sqrt() * 3 for one in teacher]
    apart = [one + 0.1 for one in ones]
    plain = sum(((a - b) ** 2).sum() for a, b in zip(apart, ones, strict=True)).item()
    for scale in ("mean", "max"):
        assert features.normalised_errors(apart, ones, scale=scale).item() == pytest.approx(plain, rel=1e-4)
    with pytest.raises(InputError, match="scale='least'"):
        features.normalised_errors(apart, ones, scale="least")
    with pytest.raises(InputError, match="tap equally many"):
        features.normalised_errors(apart, ones[:2])
    with pytest.raises(InputError, match="give one shape"):
        features.normalised_errors(apart[:1], [ones[0][..., :2]])
