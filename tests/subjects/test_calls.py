"""The graph of one pass: who depends on whom, and which module ran when."""

import torch
from torch import nn

from secateur.subjects.calls import calls, channels_along
from secateur.subjects.recording import Example
from subjects import nets


def test_dependencies_and_runs_of_modules():
    model, inputs = nets.make("residual")
    run = calls(model, Example.of(inputs))
    assert run.batch == 2
    assert all(len(made) == 1 for path, made in run.of.items() if path)
    stem, inner, outer = (run.of[name][0] for name in ("stem", "inner", "outer"))
    assert run.after(outer.output, inner.output)
    assert not run.after(inner.output, outer.output)
    assert run.nodes[outer.output].shape == (2, 12, 10, 10)
    assert inner.shape == (2, 12, 10, 10)
    assert run.users[-1] == []
    assert run.nodes[-1].name == "output"
    assert run.nodes[-1].inputs == (run.of[""][0].output,)
    assert stem.end - stem.start == 1
    assert not any(hasattr(p, "_secateur_node") for p in model.parameters())


def test_forms_of_what_modules_return():
    class Both(nn.Module):
        def forward(self, x):
            return x * 2, None, x

    run = calls(nn.Sequential(Both()), Example.of(torch.ones(3, 2)))
    assert run.of["0"][0].form == ["*", None, "*"]
    assert run.batch == 3


def test_where_channels_lie():
    assert channels_along(nn.Conv2d(3, 4, 1), 4) == 1
    assert channels_along(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), 3) == 1
    assert channels_along(nn.LayerNorm(4), 4) == 3
    assert channels_along(nn.Linear(4, 4), 3) == 2
