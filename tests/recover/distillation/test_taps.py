"""Taps by pattern, pairs by number, and the maps between widths, on networks of a few layers."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.recover.distillation import maps, taps
from secateur.recover.training.loop import train


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return {"mask": torch.zeros(1, dtype=torch.long), "states": x + self.mlp(self.attn(x))}["states"]


class Net(nn.Module):
    def __init__(self, depth: int, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(depth)
        self.layers, self.head = nn.ModuleList(Block(width) for _ in range(depth)), nn.Linear(width, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(input=x)


def test_patterns_fit_parts_of_names():
    net = Net(3)
    assert taps.match(net, "layers.*") == ["layers.0", "layers.1", "layers.2"], "a star does not cross a dot"
    assert taps.match(net, "layers.[01].mlp") == ["layers.0.mlp", "layers.1.mlp"]
    assert taps.match(net, "**.attn") == [f"layers.{i}.attn" for i in range(3)]
    assert taps.match(net, "**.attn@input")[0] == "layers.0.attn@input"
    assert taps.match(net, "head") == ["head"]
    assert taps.one(net, "hea?") == "head"


def test_what_a_module_reads_is_taken_before_its_dropout():
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    inputs = torch.rand(5, 4)
    assert taps.before_dropout(net, ["4", "0", "2"], lambda model: model(inputs)) == ["3@input", "0@input", "1@input"]
    assert net.training


def test_a_pattern_that_fits_nothing_lists_the_nearest_names():
    with pytest.raises(InputError, match=r"'layer.0.mlp' is no module of Net: near are layers.0.mlp"):
        taps.match(Net(2), "layer.0.mlp")
    with pytest.raises(InputError, match="near are head"), taps.tap(Net(2), ["haed"]):
        pass
    with pytest.raises(InputError, match="near are"):
        taps.pairs(Net(2), Net(2), "blocks.{i}")


def test_a_pattern_that_fits_two_things_where_one_is_wanted_says_which():
    with pytest.raises(InputError, match=r"'layers.\*' names 2 modules, layers.0, layers.1: name one"):
        taps.one(Net(2), "layers.*")
    with pytest.raises(InputError, match=r"names 6 modules, .* and 2 more"):
        taps.one(Net(6), "**.attn")


def test_layers_that_are_missing_are_mapped_by_their_numbers():
    student, teacher = Net(3), Net(5)
    wanted = [("layers.0", "layers.0"), ("layers.1", "layers.2"), ("layers.2", "layers.4")]
    assert taps.pairs(student, teacher, "layers.{i}", index=[0, 2, 4]) == wanted
    assert taps.pairs(student, teacher, "layers.{i}", index={0: 0, 1: 2, 2: 4}) == wanted
    assert taps.pairs(student, teacher, "layers.{i}")[2] == ("layers.2", "layers.2")
    found = taps.pairs(student, teacher, "layers.{i}.mlp@input", other="layers.{i}.attn", index=[4, 4, 4])
    assert found[0] == ("layers.0.mlp@input", "layers.4.attn")
    assert taps.pairs(student, teacher, "head") == [("head", "head")]
    later = nn.Sequential(nn.ReLU(), Block(4))  # a list begins at 0, whatever number the first module has
    assert taps.pairs(later, later, "{i}.mlp", index=[0, 1]) == [("1.mlp", "1.mlp")]


@pytest.mark.parametrize(
    ("pattern", "how", "said"),
    [
        ("layers.{i}", {"index": [0, 2]}, "index says nothing of layers.2"),
        ("layers.{i}", {"index": [0, 2, 9]}, "'layers.9' is no module"),
        ("layers.{i}", {"index": [0, 1, 2, 3, 4]}, "numbers for layers.3, layers.4, which the student lacks: leave"),
        ("layers.{i}", {"index": {0: 0, 1: 2, 2: 4, 7: 4}}, "numbers for layers.7, which the student lacks"),
        ("layers.2", {"index": [0, 2, 4]}, r"'layers.2' has none: write \{i\} in it"),
        ("layers.{i}", {"other": "layers.*"}, "in both, or in neither"),
        ("layers.{i}.*", {}, "without other wildcards"),
        (
            "layers.*",
            {},
            r"fits 3 modules of the student \(layers.0, layers.1, layers.2\) and 'layers.\*' 5 of the teacher "
            r"\(layers.0, .* and 1 more\): write \{i\} for",
        ),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pattern, how, said):
    with pytest.raises(InputError, match=said):
        taps.pairs(Net(3), Net(5), pattern, **how)


def test_taps_give_what_modules_give_in_the_order_asked_for():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3))
    with taps.tap(net, ["2", "0", "0@input"]) as found:
        net(torch.rand(1, 1, 9, 9))
    assert [one.shape[1] for one in found] == [4, 2, 1]
    net(torch.rand(1, 1, 9, 9))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net)
    with taps.tap(net, ["1", "1"], maps.flat) as found:
        net(torch.rand(1, 1, 9, 9))
    assert [one.shape[1] for one in found] == [3, 3], "a module that is named twice comes twice"


def test_the_input_of_a_module_may_be_named():
    net, x = Net(2), torch.rand(5, 4)
    with taps.tap(net, ["head@input", "layers.1"]) as found:
        net(x)
    assert torch.equal(found[0], found[1])


def test_only_what_is_found_is_kept():
    net, alive = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU()), []

    def pooled(output):
        alive.append(weakref.ref(output))
        return [output.mean((2, 3))]

    with torch.no_grad(), taps.tap(net, ["0"], pooled) as found:
        net(torch.rand(2, 1, 16, 16))
    assert found[0].shape == (2, 8)
    assert alive[0]() is None, "the whole map is gone"


def test_features_are_seen_in_evaluation_mode():
    net, x = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(1, 2, 1), nn.Flatten()), torch.ones(1, 1, 4, 4)
    (found,) = taps.look_at(net.train(), ["1"], x, maps.flat)
    assert torch.equal(found, net[1](x))
    assert net.training
    assert net[0].training
    for names in (["2"], ["1", "2"]):
        with pytest.raises(InputError, match=r"^2 gives nothing to compare"):
            taps.look_at(net, names, x, maps.flat)


def test_the_first_floats_are_a_feature():
    states = torch.rand(2, 3)
    assert taps.first({"mask": torch.zeros(2, dtype=torch.long), "states": (states, torch.rand(1))})[0] is states
    assert taps.first(torch.zeros(2, dtype=torch.long)) == []


# ------------------------------------------------------------------------------------------------------ widths


def test_adapters_are_where_widths_differ():
    adapters = taps.Adapters([4, 6], [4, 8])
    assert [tuple(p.shape) for p in adapters.parameters()] == [(8, 6, 1, 1), (8,)]
    out = adapters([torch.rand(1, 4, 2, 2), torch.rand(1, 6, 2, 2)])
    assert [one.shape[1] for one in out] == [4, 8]
    with pytest.raises(InputError, match="tap equally many"):
        taps.Adapters([4], [4, 8])


@pytest.mark.parametrize("kind", ["linear", "norm"])
def test_rows_are_mapped_by_what_their_kind_says(kind):
    found = taps.adapter(3, 5, kind, dropout=0.25)
    assert found(torch.rand(4, 3)).shape == (4, 5)
    assert isinstance(taps.adapter(3, 3, kind), nn.Identity)
    if kind == "norm":
        norm, dropped, linear = found
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
        assert not linear.bias.any()
        assert dropped.p == 0.25
    with pytest.raises(InputError, match="'linear', 'norm' or 'convolution'"):
        taps.adapter(3, 5, "mlp")


def test_an_adapter_is_trained_beside_the_student_which_never_holds_it():
    student, teacher, adapter = Net(1), Net(1, 6), taps.adapter(4, 6, "norm")
    start, names = adapter[2].weight.detach().clone(), set(student.state_dict())
    batches = [{"inputs": torch.rand(8, 4), "told": torch.rand(8, 6)} for _ in range(3)]

    def objective(batch, totals):
        with taps.tap(student, ["head@input"]) as found:
            student(batch["inputs"])
        return (adapter(found[0]) - batch["told"]).square().sum() / totals["examples"], {}

    count = {"count": lambda batch: {"examples": len(batch["inputs"])}}
    train(student, batches, objective, steps=3, lr=0.1, extra=[adapter], progress=False, **count)
    assert not torch.equal(adapter[2].weight, start)
    assert set(student.state_dict()) == names
    assert teacher.head.in_features == 6
