from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateur
from secateur.subjects.network.recording import Example, record, running, tensors_of
from secateur.subjects.network.shrinking import twin
from subjects import nets


def test_examples_are_read_as_they_are_given() -> None:
    x = torch.ones(2)
    assert Example.of(x).args == (x,)
    assert Example.of((x, 3)).args == (x, 3)
    assert Example.of({"a": x}).kwargs == {"a": x}
    assert Example.of([x]).args == ([x],)
    args, _ = Example.of(x).fresh()
    args[0].add_(1)
    assert x.tolist() == [1, 1]


def test_recording_leaves_no_mark_and_repeats() -> None:
    model, inputs = nets.make("residual")
    model.eval()
    before = copy.deepcopy(model.state_dict())
    first, second = (record(model, Example.of(inputs)) for _ in range(2))
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.output, model(inputs))
    assert (first.flow.atoms.classes().of == second.flow.atoms.classes().of).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("_secateur_labels" in tensor.__dict__ for tensor in tensors_of(model).values())
    assert "stem.weight" in first.used


def test_hooks_are_gone_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 2))
    seen: list[str] = []
    with pytest.raises(RuntimeError), running(model, seen.append):
        model(torch.zeros(1, 2))
    assert seen[-1] == "1"
    model[0](torch.zeros(1, 2))
    assert seen[-1] == "1"


def test_a_pass_that_writes_into_a_parameter_leaves_the_model_as_it_is() -> None:
    layers = {"scale": nn.Parameter(torch.full((4,), 2.0)), "head": nn.Linear(4, 2)}
    model = nets.Net(lambda net, x: net.head(x * net.scale.mul_(0.5)), **layers).eval()
    record(twin(model, share=True).eval(), Example.of(torch.randn(3, 4)))
    assert model.scale.tolist() == [2.0] * 4


def test_a_network_that_casts_to_half_precision_itself_is_looked_at_in_single() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16).bfloat16(), nn.Linear(16, 4).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.to(torch.bfloat16)).relu()).float()

    small, cut = secateur.prune(Casting(), torch.randn(4, 8))
    assert cut.removed == {"first.channels": (8, 16)}
    assert small.first.weight.dtype is torch.bfloat16
    assert small(torch.randn(2, 8)).shape == (2, 4)


def test_a_network_that_normalises_its_images_itself_loses_its_stem_too() -> None:
    """Of a pooling nobody asks for the indices; they were taken for what the numbers in the code came from."""

    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool, self.head = nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = torch.tensor([0.48, 0.45, 0.4])[:, None, None]
            return self.head(self.pool(self.stem(x - mean)).mean((2, 3)))

    assert secateur.prune(Normalising(), torch.randn(2, 3, 9, 9)).cut.removed == {"stem.channels": (8, 16)}
