"""Residual branches: found without being named, left out exactly, counted exactly, and reloaded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.network.residual import Branches
from secateur.subjects.network.shrinking import Plan, shrink
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Selection
from subjects import nets


class Block(nn.Module):
    def __init__(self, before, width, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(before, width, 1, stride) if before != width else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Net(nn.Module):
    """Two stages: the first block of each has no shortcut of its own shape, or has."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.Sequential(Block(6, 6), Block(6, 6), Block(6, 8, 2), Block(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layers(self.stem(x).relu()).mean((2, 3)))


class Tokens(nn.Module):
    """Pre-norm sub-layers, the attention written inline, and a sum that is no branch."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 6, 8))
        self.norm1, self.attention = nn.LayerNorm(8), nets.Attention()
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x) + self.place
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def made(kind=Net, shape=(2, 3, 8, 8)):
    torch.manual_seed(0)
    model = kind()
    for name, tensor in model.named_buffers():
        if "running" in name:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return open_traced(model.eval(), torch.randn(shape))


@pytest.fixture(scope="module")
def subject():
    return made()


@pytest.fixture(scope="module")
def branches(subject):
    return Branches(subject)


def by_hand(model, x, gone):
    x = model.stem(x).relu()
    for index, block in enumerate(model.layers):
        x = x.relu() if index in gone else block(x)
    return model.head(x.mean((2, 3)))


def test_identity_blocks_are_found_and_blocks_that_change_the_shape_are_not(branches):
    assert [one.name for one in branches] == ["layers.0", "layers.1", "layers.3"]
    assert branches.branches[0].modules[-1] == "layers.0.bn2"
    assert (branches.branches[2].source, branches.branches[2].channels, branches.branches[2].dim) == (
        "layers.3.conv1",
        8,
        1,
    )


@pytest.mark.parametrize("keep", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0)])
def test_what_is_cut_is_the_shortcut_and_costs_what_was_promised(subject, branches, keep):
    mask = np.array(keep, bool)
    small, cut = branches.cut(Selection({"branches": mask}))
    gone = {index for index, stays in zip((0, 1, 3), keep, strict=True) if not stays}
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(small.model.eval()(x), by_hand(subject.model, x, gone), atol=1e-6)
    promised = branches.units().cost({"branches": mask})
    counted = {"params": sum(p.numel() for p in small.model.parameters()), "flops": small.flops()}
    for measure, value in counted.items():
        assert cut.after[measure] == promised[measure] == value
    assert cut.is_noop == all(keep)
    assert cut.before["branches"] - cut.after["branches"] == len(gone)
    assert not any(name.startswith(f"layers.{index}.c") for index in gone for name in small.model.state_dict())


def test_sub_layers_of_a_network_of_tokens():
    subject = made(Tokens, (2, 6, 5))
    branches = Branches(subject)
    assert [one.modules for one in branches] == [("norm1", "attention"), ("norm2", "up", "down")]
    assert [(one.channels, one.dim) for one in branches] == [(8, 2), (8, 2)]
    small, _ = branches.cut(Selection({"branches": np.zeros(2, bool)}))
    model, x = subject.model, torch.randn(3, 6, 5)
    with torch.no_grad():
        assert torch.allclose(small.model(x), model.head((model.embed(x) + model.place).mean(1)), atol=1e-6)


@pytest.mark.usefixtures("programs")
def test_a_smaller_network_is_exported_saved_and_reloaded(subject, branches, tmp_path):
    small, _ = branches.cut(Selection({"branches": np.array([True, False, True])}))
    small.save(tmp_path, program=True)
    again = reload_traced(tmp_path, Net(), subject.inputs)
    x = subject.inputs.args[0]
    assert torch.equal(again.model.eval()(x), small.model.eval()(x))
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(program(x), small.model(x), atol=1e-6)


def test_channels_can_go_from_what_is_left(branches):
    small, _ = branches.cut(Selection({"branches": np.array([True, False, True])}))
    subject = Traced(small.model, small.inputs, small.plans)
    sites = subject.units().free()
    smaller, _ = subject.cut(Selection({sites[0].name: np.arange(sites[0].count) > 1}))
    assert smaller.error <= 1e-5
    assert len(smaller.plans) == 2


def test_a_copy_has_the_same_branches_and_its_own_weights(subject, branches):
    work = subject.copy()
    with torch.no_grad():
        work.model.head.bias.fill_(3.0)
    small, _ = branches.of(work).cut(Selection({"branches": np.zeros(3, bool)}))
    assert small.model.head.bias.tolist() == [3.0] * 4
    assert branches.subject is subject


def test_some_branches_and_bad_input(subject, branches):
    assert [one.name for one in Branches(subject, ["layers.[13]"])] == ["layers.1", "layers.3"]
    with pytest.raises(InputError, match=r"no residual branch is called 'stage\.\*'"):
        Branches(subject, ["stage.*"])
    with pytest.raises(InputError, match="shape"):
        branches.cut(Selection({"branches": np.ones(2, bool)}))
    with pytest.raises(InputError, match="conv1"):
        branches.cut(Selection({"layers.0.conv1.channels": np.ones(2, bool)}))
    model, inputs = nets.make("mlp")
    with pytest.raises(UnsupportedError, match=r"x \+ F"):
        Branches(open_traced(model, inputs))


def test_a_branch_whose_inside_is_used_elsewhere_stays():
    def run(net, x):
        x = net.a(x)
        y = net.b(x)
        return net.d(x + net.c(y.relu())) + y.mean()

    with pytest.raises(UnsupportedError):
        Branches(open_traced(nets.Net(run, **nets.linears(4, 6, 6, 6, 2)), torch.randn(2, 4)))


def test_an_encoder_layer_whose_fast_path_asks_for_weights_that_went():
    """PyTorch's own encoder layer reads weights and settings of its parts when it is run for inference."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    first, last, x = nn.Linear(5, 8), nn.Linear(8, 3), torch.randn(2, 4, 5)
    branches = Branches(open_traced(nn.Sequential(first, layer, last).eval(), x))
    assert [one.modules for one in branches] == [("1.self_attn",), ("1.linear1", "1.linear2")]
    small, _ = branches.cut(Selection({"branches": np.zeros(2, bool)}))
    with torch.inference_mode():
        expected = last(layer.norm2(layer.norm1(first(x))))
        assert torch.allclose(small.model.eval()(x), expected, atol=1e-6)


def test_a_config_that_does_not_follow_is_named():
    model = Net().eval()
    model.config, model.save_pretrained = {"depth": 4}, lambda folder: None
    branches = Branches(open_traced(model, torch.randn(2, 3, 8, 8)))
    _, receipt = branches.cut(Selection({"branches": np.arange(len(branches)) > 0}))
    assert [note.split(" describes")[0] for note in receipt.notes if "config" in note] == ["config: no config of Net"]
    _, receipt = branches.cut(Selection({"branches": np.ones(len(branches), bool)}))
    assert not receipt.notes


def test_a_plan_of_another_network_is_refused():
    with pytest.raises(ModelError, match=r"layers\.0"):
        shrink(nn.Linear(2, 2), Plan(absent=(("layers.0", "*"),)))


def test_what_returns_an_object_of_its_own_stays():
    layers = {"inner": nets.Net(lambda net, x: SimpleNamespace(value=net.a(x)), a=nn.Linear(6, 6))}
    layers |= {"stem": nn.Linear(4, 6), "head": nn.Linear(6, 2)}

    def run(net, x):
        x = net.stem(x)
        return net.head(x + net.inner(x).value)

    with pytest.raises(UnsupportedError, match="inner returns what can't be imitated"):
        Branches(open_traced(nets.Net(run, **layers), torch.randn(2, 4)))
