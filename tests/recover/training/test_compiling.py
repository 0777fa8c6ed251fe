"""torch.compile in the loop: what runs compiled, and what it does where that can't be."""

import functools
import subprocess
from unittest import mock

import pytest
import torch
from torch import nn

from secateur.errors import TrainingWarning
from secateur.recover.training import loop
from secateur.recover.training.compiling import compiling

COMPILE = torch.compile


@pytest.fixture
def eager(monkeypatch):
    """The tracing of torch.compile without its code generation, which takes a compiler and half a minute."""
    torch._dynamo.reset()
    traced = []

    def backend(graph, example):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=backend))
    return traced


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.inner(x).relu()


def test_training_is_that_without_it_and_goes_on_where_it_stopped(tmp_path, eager):
    def train(**how):
        torch.manual_seed(0)
        model, feed = nn.Sequential(Block(), nn.Linear(3, 3), Block()), [torch.eye(3), torch.ones(1, 3)]

        def objective(batch, totals):
            return model(batch).square().sum() / totals["examples"], {}

        done = loop.train(
            model, feed, objective, steps=4, lr=0.1, count=lambda batch: {"examples": len(batch)}, progress=False,
            evaluate=lambda: float(model(torch.eye(3)).sum()), evaluate_every=2, **how,
        )  # fmt: skip
        return done, model.state_dict()

    plain, expected = train()
    done, found = train(compile=True)
    assert eager, "the blocks were traced"
    assert done.settings["compile"] is True
    assert "compile" not in plain.settings
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    stop_after(2, functools.partial(train, compile=True, checkpoint=tmp_path, every=1))
    again = train(compile=True, checkpoint=tmp_path, every=1)[1]
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())


def stop_after(steps, train):
    """End a training in its checkpoint of that number."""
    save, calls = loop.checkpoints.save, []

    def count(*args):
        save(*args)
        calls.append(args)
        if len(calls) == steps:
            raise InterruptedError

    with mock.patch.object(loop.checkpoints, "save", count), pytest.raises(InterruptedError):
        train()


def run_twice(model):
    with compiling(model):
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()


def test_hooks_inside_are_not_passed_over(eager):
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out))
    with pytest.warns(TrainingWarning, match="trains without torch.compile: hooks"):
        run_twice(model)
    assert len(seen) == 2
    assert not eager
    assert "forward" not in vars(model)


def test_a_machine_that_can_not_compile_trains_as_ever(monkeypatch):
    def fails(graph, example):
        raise subprocess.SubprocessError("no compiler")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(COMPILE, backend=fails))
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.warns(TrainingWarning, match="no compiler") as warned:
        run_twice(model)
    assert len(warned) == 1
    assert model[0].weight.grad is not None
