"""The order in which modules run, where their outputs meet, and the sites of their channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.subjects.network.outline import Node, outline
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced, open_traced
from subjects import nets


def drawn(nodes: list[Node]) -> dict[str, list[str]]:
    """Name -> names of what it reads from; meetings by their word and number."""
    names = [f"{node.name}{number}" if node.kind == "join" else node.name for number, node in enumerate(nodes)]
    return {name: [names[one] for one in node.before] for name, node in zip(names, nodes, strict=True)}


def test_modules_stand_in_order_with_the_sum_they_meet_in() -> None:
    nodes = outline(open_traced(*nets.make("residual")))
    (join,) = [number for number, node in enumerate(nodes) if node.kind == "join"]
    assert drawn(nodes) == {
        "input": [],
        "stem": ["input"],
        "inner": ["stem"],
        "outer": ["inner"],
        f"+{join}": ["stem", "outer"],
        "head": [f"+{join}"],
        "output": ["head"],
    }
    stem = nodes[1]
    assert stem.details == ["Conv2d 3x3", "BatchNorm2d"], "a norm that alone follows is part of the box"
    assert stem.shape == (2, 12, 10, 10)
    assert all(one < number for number, node in enumerate(nodes) for one in node.before)


def test_parts_are_the_sites_of_a_module_s_outputs() -> None:
    subject = open_traced(*nets.make("residual"))
    nodes = {node.name: node for node in outline(subject)}
    ((site, units),) = nodes["outer"].parts(subject)
    assert site == "stem.channels"
    assert sorted(units.tolist()) == list(range(12))
    assert [(name, set(units.tolist())) for name, units in nodes["head"].parts(subject)] == [("", {-1})]
    assert nodes["input"].parts(subject) == []


def test_attention_of_heads_with_functional_products() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    subject = open_traced(nn.Sequential(nn.Linear(8, 32), layer, nn.Linear(32, 3)), torch.randn(2, 5, 8))
    found = {node.name: node for node in outline(subject)}
    assert {"1.self_attn.in_proj_weight", "1.self_attn.out_proj", "1.linear1", "1.linear2"} <= set(found)
    assert sum(units.size for _, units in found["1.self_attn.in_proj_weight"].parts(subject)) == 96


@pytest.mark.parametrize("name", nets.NETS)
def test_every_network_has_one_input_and_one_output(name: str) -> None:
    nodes = outline(open_traced(*nets.make(name)))
    assert [node.kind for node in nodes].count("output") == 1
    assert nodes[0].kind == "input"
    assert nodes[-1].before
    assert sum(node.kind == "module" for node in nodes) >= 3


def test_modules_that_pass_their_input_on_or_take_none() -> None:
    class Net(nets.Net):
        def forward(self, x, y):
            x = self.stem(x) + self.place(torch.arange(3))
            return self.head(x + self.skip(self.inner(x)) + y)

    layers = {"stem": nn.Linear(4, 6), "inner": nn.Linear(6, 6), "skip": nets.Net(lambda net, x: x)}
    net = Net(None, **layers, place=nn.Embedding(3, 6), head=nn.Linear(6, 2))
    nodes = outline(Traced(net, Example.of((torch.randn(2, 3, 4), torch.randn(2, 3, 6)))))
    found = [(node.name, [nodes[one].name for one in node.before]) for node in nodes]
    assert sorted(found) == sorted(
        [
            ("input", []),
            ("input", []),
            ("stem", ["input"]),
            ("place", []),
            ("+", ["stem", "place"]),
            ("inner", ["+"]),
            ("+", ["+", "inner"]),
            ("+", ["+", "input"]),
            ("head", ["+"]),
            ("output", ["head"]),
        ]
    )
