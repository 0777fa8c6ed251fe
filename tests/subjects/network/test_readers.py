"""Who makes channels and who reads them; inner sites alone unless they are named."""

import pytest
import torch
from torch import nn

from recipes.vision import nets as small
from secateur.errors import InputError
from secateur.subjects.network.readers import find_inner, logit_layers
from secateur.subjects.network.traced import open_traced
from subjects import nets


def opened(name):
    return open_traced(*nets.make(name))


def test_inner_channels_have_a_maker_and_readers_and_the_residual_stream_has_none():
    found, reasons = find_inner(opened("residual"))
    assert [one.name for one in found] == ["inner.channels"]
    (one,) = found
    assert (one.source, one.channels, one.dim, one.units) == ("inner", 12, 1, 16)
    assert {path: unit.tolist() for path, unit in one.readers.items()} == {"outer": list(range(16))}
    assert one.dims == {"outer": 1}
    assert "added to" in reasons["stem.channels"]


def test_a_named_site_is_taken_though_it_is_summed_up():
    found, _ = find_inner(opened("residual"), ["stem.*"])
    assert {path for one in found for path in one.readers} == {"inner", "head"}
    with pytest.raises(InputError, match="no site is called 'stam"):
        find_inner(opened("residual"), ["stam"])


def test_flattened_channels_are_read_in_runs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))
    (one,), _ = find_inner(open_traced(net, torch.randn(2, 3, 8, 8)))
    assert one.readers["4"].tolist() == [unit for unit in range(5) for _ in range(4)]
    assert one.dims["4"] == -1


def test_heads_are_read_in_blocks():
    found, _ = find_inner(opened("grouped queries"))
    heads = next(one for one in found if one.name.endswith("heads"))
    width = len(heads.readers["out"]) // heads.units
    assert heads.readers["out"].tolist() == [unit for unit in range(heads.units) for _ in range(width)]


def test_what_no_rule_reads_is_said():
    _, reasons = find_inner(opened("fused attention"))
    assert any("no rule" in why or "run once" in why or "added" in why for why in reasons.values())


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (small.vit(depth=1, two=True), ("net.cls_classifier", "net.distillation_classifier")),
        (small.Apart(), ("head", "head_dist")),
        (small.vgg(), ("15",)),
        (small.Headless(), ()),
    ],
    ids=["deit", "apart", "vgg", "headless"],
)
def test_heads_of_classes_and_of_distillation_are_told_apart(net, names):
    inputs = small.data(2).inputs
    with torch.no_grad():
        output = net.eval()(inputs)
    assert logit_layers(open_traced(net, inputs), output) == names
