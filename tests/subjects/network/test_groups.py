"""Groups: which indices go together, what ties them, and how they are printed."""

from __future__ import annotations

import torch
from torch import nn

from secateur.subjects.network.groups import find_groups
from secateur.subjects.network.traced import open_traced
from subjects import nets


def test_convolutions_that_meet_in_a_sum_are_one_group_with_the_norm_between_them():
    torch.manual_seed(0)
    net = nets.Net(
        lambda net, x: net.conv2((net.norm(net.conv1(x)) + net.skip(x)).relu()),
        conv1=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4),
        skip=nn.Conv2d(3, 4, 1),
        conv2=nn.Conv2d(4, 2, 3),
    )
    groups = open_traced(net, torch.randn(2, 3, 8, 8)).groups()
    assert str(groups).splitlines() == [
        "conv1.channels: 4 units",
        "  module  axis             indices  tied by",
        "  conv1   weight[0]        0-3      native_batch_norm in norm, add, convolution in conv2",
        "  skip    weight[0]        0-3      convolution in skip, add",
        "  conv2   weight[1]        0-3      convolution in conv2",
        "  norm    weight[0]        0-3      native_batch_norm in norm",
        "  norm    bias[0]          0-3      native_batch_norm in norm",
        "  skip    bias[0]          0-3      convolution in skip",
        "  norm    running_mean[0]  0-3      native_batch_norm in norm",
        "  norm    running_var[0]   0-3      native_batch_norm in norm",
        "stays:",
        "  conv1.weight[1]: meets what stays, such as the input (convolution in conv1)",
        "  skip.weight[1]: meets what stays, such as the input (convolution in skip)",
        "  conv2.weight[0]: reaches the output of the network",
        "  conv2.bias[0]: reaches the output of the network",
    ]
    (group,) = groups.values()
    assert len(group.members) == 8
    assert all(index == [2] for index in group.indices(2).values())


def test_a_unit_may_take_several_indices_and_stand_at_an_offset():
    groups = open_traced(*nets.make("joined")).groups()
    assert list(groups) == ["a.channels", "b.channels"]
    second = groups["b.channels"].indices(1)
    assert second["b.weight[0]"] == [1]
    assert second["bn.weight[0]"] == [7], "six channels of the other branch stand before it"
    assert second["head.weight[1]"] == [28, 29, 30, 31], "four places of each channel are flattened"
    assert "bn      weight[0]        6-15 " in str(groups["b.channels"])


def test_heads_are_ranges_and_a_width_computed_from_another_is_named_as_a_tie():
    subject = open_traced(*nets.make("fused attention"))
    group = subject.groups()["qkv.heads"]
    assert group.indices(1)["qkv.weight[0]"] == [*range(6, 12), *range(30, 36), *range(54, 60)]
    sites = subject.coupling.sites
    of = subject.coupling.classes.of.tolist()
    first, second = (of.index(sites[name].classes[0]) for name in list(sites)[:2])
    subject.constraints.bound.append(torch.tensor([[first], [second]]).numpy())
    assert "a width computed from another" in str(subject.groups())
    assert not find_groups(subject.coupling, [])["qkv.heads"].members[0].ties
