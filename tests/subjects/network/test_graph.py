"""The graph of one pass: who depends on whom, and which module ran when."""

import torch
from torch import nn

from secateur.subjects.network.graph import Graph, channels_along, record
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import twin
from subjects import nets


def recorded(model, *inputs, watch=None):
    return record(twin(model, share=True).eval(), Example(inputs), Graph(), watch)


def test_dependencies_and_runs_of_modules():
    model, inputs = nets.make("residual")
    run = recorded(model, inputs)
    assert run.batch == 2
    assert all(len(made) == 1 for path, made in run.of.items() if path)
    stem, inner, outer = (run.of[name][0] for name in ("stem", "inner", "outer"))
    assert run.after(outer.made[0], inner.made[0])
    assert not run.after(inner.made[0], outer.made[0])
    assert run.vertices[outer.made[0]].sizes[0] == (2, 12, 10, 10)
    assert run.vertices[outer.made[0]].parameters == {"outer.weight"}
    assert inner.shape == (2, 12, 10, 10)
    assert run.outputs == run.of[""][0].made
    assert run.takers[run.outputs[0]] == [-1]
    assert stem.end - stem.start == 1
    assert [run.calls[one].path for one in run.vertices[stem.start].calls] == ["", "stem"]
    assert not any(vars(p) for p in model.parameters())


def test_what_modules_are_given_by_name_and_what_they_return():
    class Both(nn.Module):
        def forward(self, *, x):
            return x * 2, None, x

    net = nets.Net(lambda net, x: net.both(x=x.exp())[0], both=Both())
    (call,) = recorded(net, torch.ones(3, 2)).of["both"]
    assert (call.source, call.shape) == (1, (3, 2))
    assert call.form == {"items": ["*", None, "*"], "list": False}
    assert call.made == (2, 1)


def test_every_input_is_a_vertex_and_what_leads_nowhere_is_not_useful():
    class Net(nn.Module):
        def forward(self, x, y):
            x.exp()
            return x + y + y

    run = recorded(Net(), torch.ones(4, 2), torch.ones(4, 2))
    assert [vertex.operator for vertex in run.vertices] == ["input", "input", "exp", "add", "add"]
    assert run.batch == 4
    assert run.useful == {0, 1, 3, 4}
    assert run.users[0] == [2, 3]
    assert run.takers[0] == [3]
    assert run.back({0, 3, 4}) == {0, 3, 4}
    assert not run.overwritten


def test_writes_in_place_and_values_that_python_reads():
    class Net(nn.Module):
        def forward(self, x):
            y = x + x
            y[:, 0].mul_(2.0)
            return y.relu_() if y.sum() > 0 else y

    seen = []
    run = recorded(Net(), torch.ones(3, 2), watch={1: seen.append})
    names = [vertex.operator for vertex in run.vertices]
    write, relu = names.index("mul_"), names.index("relu_")
    assert run.vertices[relu].inputs == (1, write)
    assert run.overwritten
    assert relu in run.outputs
    assert names.index("_local_scalar_dense") in run.outputs
    assert torch.equal(seen[0][:, 1], torch.full((3,), 2.0))


def test_where_channels_lie():
    assert channels_along(nn.Conv2d(3, 4, 1), 4) == 1
    assert channels_along(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), 3) == 1
    assert channels_along(nn.LayerNorm(4), 4) == 3
    assert channels_along(nn.Linear(4, 4), 3) == 2


def test_tensors_inside_vmap_have_no_memory_of_their_own():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(7, 12), nn.Linear(12, 3)

        def forward(self, x):
            return self.second(torch.vmap(lambda row: self.first(row).relu())(x))

    run = recorded(Mapped(), torch.randn(2, 7))
    assert set(run.of) == {"", "first", "second"}
