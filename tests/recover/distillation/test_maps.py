"""Losses between feature maps, against formulas written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.errors import InputError
from secateur.recover.distillation import maps


def pair(channels: int = 3, other: int = 3):
    torch.manual_seed(0)
    return torch.randn(2, channels, 4, 5, requires_grad=True), torch.randn(2, other, 4, 5, requires_grad=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_is_the_kl_over_space_of_each_channel(temperature):
    ours, theirs = pair()
    p, q = (softmax(one.detach().double().numpy().reshape(2, 3, 20) / temperature) for one in (theirs, ours))
    wanted = temperature**2 / 3 * (p * np.log(p / q)).sum()
    assert maps.channel_wise(ours, theirs, temperature=temperature).item() == pytest.approx(wanted, rel=1e-5)


def test_channel_wise_knows_places_and_not_levels():
    ours, theirs = pair()
    shift = torch.randn(2, 3, 1, 1)
    loss = maps.channel_wise(ours, theirs)
    assert loss > 0.1
    assert maps.channel_wise(theirs, theirs).item() == pytest.approx(0, abs=1e-5)
    assert maps.channel_wise(ours + shift, theirs + 2 * shift).item() == pytest.approx(loss.item(), rel=1e-4)
    shuffled = theirs.detach().flatten(2)[..., torch.randperm(20)].view(2, 3, 4, 5)
    assert maps.channel_wise(shuffled, theirs) > 0.1, "a loss over channels would not see this"


def test_teachers_get_no_gradient():
    for loss in (maps.channel_wise, maps.spatial_attention):
        ours, theirs = pair()
        loss(ours, theirs).backward()
        assert theirs.grad is None
        assert ours.grad is not None
        assert ours.grad.abs().sum() > 0


def test_weights_of_places_leave_a_loss_that_is_never_negative():
    ours, theirs = pair()
    ones = torch.ones(2, 4, 5)
    plain = maps.channel_wise(ours, theirs).item()
    assert maps.channel_wise(ours, theirs, weights=ones).item() == pytest.approx(plain, rel=1e-4)
    for place in range(20):
        alone = torch.zeros(2, 20)
        alone[:, place] = 1
        assert maps.channel_wise(ours, theirs, weights=alone.view(2, 4, 5)) >= 0


def test_spatial_attention_is_the_formula():
    ours, theirs = pair(3, 6)

    def attention(x):
        q = (x.detach().double().numpy() ** 2).mean(1).reshape(2, -1)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    wanted = ((attention(theirs) - attention(ours)) ** 2).mean(1).sum()
    assert maps.spatial_attention(ours, theirs).item() == pytest.approx(wanted, rel=1e-5)


def test_spatial_attention_sees_no_scale_and_needs_no_equal_widths():
    ours, theirs = pair(3, 6)
    loss = maps.spatial_attention(ours, theirs)
    assert loss > 0
    assert maps.spatial_attention(3 * ours, theirs).item() == pytest.approx(loss.item(), rel=1e-4)
    assert maps.spatial_attention(5 * theirs, theirs).item() == pytest.approx(0, abs=1e-9)
    mask = torch.zeros(2, 4, 5)
    mask[:, 1, 1] = 1
    assert maps.spatial_attention(ours, theirs, mask=mask).item() == pytest.approx(0, abs=1e-9), (
        "one place is all of it"
    )


def test_output_distillation():
    student, teacher = torch.randn(2, 7, 3, dtype=torch.double), torch.randn(2, 7, 3, dtype=torch.double)
    p, q = softmax(teacher.numpy() / 3), softmax(student.numpy() / 3)
    assert maps.classes(student, teacher).item() == pytest.approx(9 * (p * np.log(p / q)).sum(), rel=1e-5)
    one, other = torch.zeros(1, 3, 4), torch.tensor([[[1.0, 0, 0, 2], [9, 9, 9, 9], [0, 3, 0, 0]]])
    assert maps.boxes(one, other, torch.tensor([[True, False, True]])).item() == 5 + 9
    with pytest.raises(InputError, match="alike"):
        maps.classes(student, teacher[:, :3])


def test_classes_that_do_not_exclude_one_another_are_each_a_yes_or_no():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 3, requires_grad=True)
    p, q = (1 / (1 + np.exp(-one.detach().double().numpy() / 2)) for one in (theirs, ours))
    wanted = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
    loss = maps.classes(ours, theirs, temperature=2.0, exclusive=False)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert theirs.grad is None
    assert ours.grad.abs().sum() > 0
    assert maps.classes(theirs, theirs, exclusive=False).item() == pytest.approx(0, abs=1e-5)
    assert maps.classes(theirs + 3, theirs).item() == pytest.approx(0, abs=1e-5), "a softmax sees no level"
    assert maps.classes(theirs + 3, theirs, exclusive=False) > 0.1
    assert torch.isfinite(maps.classes(ours * 1e4, theirs * 1e4, exclusive=False))


def test_small_boxes_count_most():
    targets = [{"boxes": torch.tensor([[0.0, 0, 16, 16], [32, 32, 64, 64]])}, {"boxes": torch.zeros(0, 4)}]
    like, images = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 64, 64)
    found = maps.box_weights(targets, like, images, gains=(3.0, 2.0, 1.0), sizes=(20, 40))
    assert found.shape == (2, 8, 8)
    assert found[0, 0, 0] == 3
    assert found[0, 5, 5] == 2
    assert found[0, 0, 6] == 1
    assert bool((found[1] == 1).all())
    near = maps.box_weights(targets, like, images, gains=(1, 1, 1), background=0.0)
    assert near[0].sum() == 9 + 16
    assert near[1].sum() == 0


def test_maps_are_found_in_what_a_module_gives():
    given = (torch.rand(1, 1), {"a": torch.rand(1, 1, 1, 1), "b": [torch.rand(1, 1, 1, 1)]})
    assert [len(maps.flat(x)) for x in given] == [0, 2]


def test_maps_of_other_sizes_are_refused():
    ours, theirs = pair(3, 4)
    with pytest.raises(InputError, match="Adapters"):
        maps.channel_wise(ours, theirs)
    with pytest.raises(InputError, match="one size"):
        maps.spatial_attention(ours, theirs[..., :4])
    with pytest.raises(InputError, match="temperature"):
        maps.channel_wise(ours, ours, temperature=0.0)
