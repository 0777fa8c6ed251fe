"""Scales of batch norms, unit by unit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import yolo
from secateur.errors import UnsupportedError
from secateur.score import scales
from secateur.subjects.network import detectors


@pytest.fixture(scope="module")
def subject():
    return detectors.open_detector(yolo.tiny(), torch.rand(1, 3, 64, 64))


def test_a_unit_has_the_scales_of_every_norm_that_goes_with_it(subject):
    found = scales.members(subject.model, subject.slices())
    alone = found["stem.conv.channels"]
    assert list(alone) == ["stem.bn"]
    assert torch.equal(alone["stem.bn"], subject.model.stem.bn.weight.detach().abs())
    joined = found["stage3.1.cv1.conv.channels"]
    block = subject.model.stage3[1]
    assert set(joined) == {"stage3.1.cv1.bn", "stage3.1.m.0.cv2.bn"}, "a shortcut joins them"
    assert torch.equal(joined["stage3.1.m.0.cv2.bn"], block.m[0].cv2.bn.weight.detach().abs())
    halves = block.cv1.bn.weight.detach().abs().view(2, -1)
    assert torch.allclose(joined["stage3.1.cv1.bn"], halves.mean(0)), "a split goes in step: the mean of both halves"


def test_what_is_pushed_is_what_may_go(subject):
    slices = subject.slices()
    found = scales.prunable(subject.model, slices)
    norms = [one for one in subject.model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert sum(int(inside.sum()) for _, inside in found) == sum(len(one.weight) for one in norms)
    only = {"stem.conv.channels": slices["stem.conv.channels"]}
    ((gamma, inside),) = scales.prunable(subject.model, only)
    assert gamma is subject.model.stem.bn.weight
    assert bool(inside.all())


def test_frozen_norms_have_nothing_to_push():
    net = yolo.tiny()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    subject = detectors.open_detector(net, torch.rand(1, 3, 64, 64))
    assert scales.members(subject.model, subject.slices()) == {}
    with pytest.raises(UnsupportedError, match="not frozen"):
        scales.prunable(subject.model, subject.slices())
