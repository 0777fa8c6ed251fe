from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.subjects.network.absent import Absent, Nothing, form


def nothing() -> Nothing:
    return Nothing(lambda: torch.empty(2, 8, 6, 6, device="meta"))


Y = torch.randn(2, 8, 6, 6)
ZERO = torch.zeros(2, 8, 6, 6)

SAME = {
    "sigmoid": torch.sigmoid,
    "cat": lambda n: torch.cat([Y, n], 1),
    "a number": lambda n: n + 1,
    "a mean": lambda n: n.mean((2, 3)) + 1,
    "reversed": lambda n: 3 - n,
    "linear": lambda n: F.linear(n.flatten(1), torch.ones(3, 288), torch.ones(3)),
    "norm": lambda n: F.batch_norm(n, torch.rand(8), torch.ones(8), torch.ones(8), torch.full((8,), 2.0)) * 0 + 2,
    "quotient": lambda n: Y / (n + 1),
    "scaled": lambda n: torch.add(n, Y, alpha=2),
    "difference": lambda n: Y - n,
    "minus": lambda n: n - Y,
    "sum": lambda n: n + Y,
    "right sum": lambda n: Y + n,
    "list": lambda n: sum([n, Y, n]),
    "stack": lambda n: torch.stack([Y, n]),
    "softmax": lambda n: n.softmax(1),
    "attention to values": lambda n: F.scaled_dot_product_attention(n, n, Y),
}


@pytest.mark.parametrize("name", SAME)
def test_it_counts_as_zeros_wherever_it_meets_something(name: str) -> None:
    torch.testing.assert_close(SAME[name](nothing()), SAME[name](ZERO))


EMPTY = {
    "relu": F.relu,
    "method": lambda n: n.relu(),
    "pool": lambda n: F.max_pool2d(n, 2),
    "mean": lambda n: n.mean((2, 3)),
    "view": lambda n: n.view(2, 8, -1),
    "transpose": lambda n: n.flatten(2).transpose(1, 2),
    "index": lambda n: n[:, :3],
    "chunk": lambda n: n.chunk(2, 1)[1],
    "resize": lambda n: F.interpolate(n, scale_factor=2),
    "product": lambda n: 2 * n * Y,
    "matrix product": lambda n: n @ Y,
    "convolution": lambda n: F.conv2d(n, torch.ones(4, 8, 3, 3)),
    "cat": lambda n: torch.cat([n, n], 1),
    "twice": lambda n: n + n,
    "attention": lambda n: F.scaled_dot_product_attention(Y, Y, value=n),
    "unpacked": lambda n: n.reshape(n.shape[0], n.size(1), -1),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_computed_from_it_alone_is_again_nothing_and_has_a_shape(name: str) -> None:
    found = EMPTY[name](nothing())
    assert isinstance(found, Nothing)
    assert tuple(found.shape) == tuple(EMPTY[name](ZERO).shape)
    assert found.zeros().shape == found.shape


def test_a_sum_with_it_is_the_other_summand_itself_and_a_copy_where_it_is_written_to() -> None:
    assert (Y + nothing()) is Y
    assert (nothing() + Y) is Y
    out = nothing()
    out += Y
    assert out is Y
    x = Y.clone()
    before = x
    x += nothing()
    assert x is before, "writing into a tensor stays in that tensor"
    fresh = Nothing(nothing()._like, fresh=True)
    copied = fresh.relu() + Y
    assert copied is not Y
    assert torch.equal(copied, Y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = F.max_pool2d(self.act(self.a(x)), 3, 1, 1)
        b, c, h, w = y.shape
        y = y.view(b, c, h * w).view(b, c, h, w)
        y += self.b(x)
        return self.act(y)


def test_a_module_that_went_takes_no_weights_and_no_multiplications_and_exports_without_a_trace() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 6, 6)
    expected = F.relu(net.b(x))
    net.a = Absent(net.a)
    assert torch.equal(net(x), expected)
    assert list(net.state_dict()) == ["b.weight", "b.bias"]
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert counter.get_total_flops() == 2 * 2 * 36 * 27 * 8
    net.train()(x).sum().backward()
    assert torch.equal(copy.deepcopy(net).eval()(x), expected)
    program = torch.export.export(net.eval(), (x,), strict=False)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.conv2d.default", "aten.relu_.default"]
    torch.testing.assert_close(program.module()(x), expected)


def test_a_shape_follows_what_was_cut_before_it() -> None:
    absent = Absent(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 5)))
    assert absent(torch.randn(2, 3, 6, 6)).shape == (2, 8, 5)
    assert absent(torch.randn(2, 2, 5, 6)).shape == (2, 8, 5)


def test_code_may_ask_a_module_that_went_for_its_sizes() -> None:
    absent = Absent(nn.Conv2d(3, 8, 3, stride=2))
    assert (absent.in_channels, absent.stride, absent.weight.shape) == (3, (2, 2), (8, 3, 3, 3))
    assert not list(absent.parameters())
    with pytest.raises(AttributeError):
        absent.nothing_of_the_kind  # noqa: B018


def test_a_module_returns_what_it_returned() -> None:
    class Two(nn.Module):
        def forward(self, x):
            return x[:, :3], {"rest": [x.mean(1), None]}

    output = Two()(Y)
    assert form(output) == {"items": ["*", {"keys": {"rest": {"items": ["*", None], "list": True}}}], "list": False}
    first, second = Absent(Two(), form(output))(Y)
    assert first.shape == (2, 3, 6, 6)
    assert second["rest"][0].shape == (2, 6, 6)
    assert second["rest"][1] is None
    assert form((Y, "text")) == "?"
