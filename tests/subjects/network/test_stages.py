"""Where norms stand in a network of images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import yolo
from secateur.errors import InputError
from secateur.subjects.network import stages

IMAGE = torch.rand(1, 3, 64, 64)


def test_norms_are_found_in_the_order_they_run_with_their_stride():
    net = yolo.tiny()
    before = [module.training for module in net.modules()]
    found = stages.places(net.train(), IMAGE)
    assert net.training
    assert len(found) == sum(isinstance(one, torch.nn.BatchNorm2d) for one in net.modules())
    assert (found[0].name, found[0].block, found[0].stride) == ("stem.bn", "stem", 2.0)
    strides = {one.name: one.stride for one in found}
    assert strides["stage5.2.cv2.bn"] == 32
    assert strides["up3.cv2.bn"] == 8
    assert [one.name for one in found].index("up4.cv1.bn") < [one.name for one in found].index("to4.bn")
    assert len(before) == len(list(net.modules()))


def test_groups_follow_the_scales_down_up_and_down_again():
    found = stages.group_norms(stages.places(yolo.tiny(), IMAGE))
    names = list(dict.fromkeys(found.values()))
    assert names == ["stride 2", "stride 4", "stride 8", "stride 16", "stride 32", "neck up", "neck down"]
    assert found["stage4.1.cv2.bn"] == "stride 16"
    assert {found[f"{name}.cv2.bn"] for name in ("up4", "up3")} == {"neck up"}
    assert {found["to4.bn"], found["down5.cv2.bn"], found["box.0.0.bn"]} == {"neck down"}


def test_groups_begin_where_the_user_says():
    order = stages.places(yolo.tiny(), IMAGE)
    found = stages.group_norms(order, ["stage4", "to4"])
    looked = ("stem.bn", "stage3.1.cv2.bn", "stage4.0.bn", "up3.cv2.bn", "to4.bn", "cls.2.0.bn")
    assert [found[one] for one in looked] == list("112233")
    assert len(found) == len(order)
    with pytest.raises(InputError, match="'stem'"):
        stages.group_norms(order, ["to4", "stem"])


def test_what_feeds_pools_and_upsampling_is_found():
    assert stages.feeders(yolo.tiny(), IMAGE) == {"stage5.2.cv1.bn", "stage5.2.cv2.bn", "up4.cv2.bn"}


class Pyramid(nn.Module):
    """Maps that are pooled and grow by functions, in the manner of torchvision's feature pyramids."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.top, self.side = yolo.Conv(3, 8, 3, 2), yolo.Conv(8, 8, 3, 2), yolo.Conv(8, 8)
        self.deep, self.out = yolo.Conv(8, 8, 3, 2, act=nn.Mish), yolo.Conv(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x)
        middle = self.top(functional.max_pool2d(fine, 3, 2, 1))
        deep = functional.relu_(self.deep(functional.max_pool2d(middle, 5, 1, 2)))
        middle = self.side(middle) + functional.interpolate(deep, size=middle.shape[-2:])
        return self.out(functional.interpolate(middle, scale_factor=2.0, mode="bilinear"))


def test_what_feeds_pools_and_upsampling_that_are_no_modules_is_found():
    net = Pyramid()
    assert stages.feeders(net, IMAGE) == {"top.bn", "deep.bn"}, "a pool that halves and a sum are none"
    assert net.training
