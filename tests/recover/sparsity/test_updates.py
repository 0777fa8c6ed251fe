"""Steps of which a part is undone."""

from __future__ import annotations

import torch
from torch import nn

from secateur.recover.sparsity.updates import filter_steps


def test_what_does_not_stay_is_as_before_the_step_and_the_rest_as_the_optimiser_says():
    torch.manual_seed(0)
    plain, masked = nn.Linear(4, 3), nn.Linear(4, 3)
    masked.load_state_dict(plain.state_dict())
    first = {name: tensor.clone() for name, tensor in plain.state_dict().items()}

    seen = []

    def largest(changes):
        seen.extend(changes.values())
        return {name: change.abs() < change.abs().max() for name, change in changes.items()}

    optimizers = [torch.optim.AdamW(plain.parameters(), lr=0.1)]
    optimizers.append(filter_steps(torch.optim.AdamW(masked.parameters(), lr=0.1), largest))
    for model, optimizer in zip((plain, masked), optimizers, strict=True):
        (model(torch.eye(4)) * torch.arange(1, 4)).square().sum().backward()
        optimizer.step()
    for name, tensor in masked.state_dict().items():
        moved = plain.state_dict()[name] - first[name]
        assert any(change.shape == moved.shape and torch.equal(change, moved) for change in seen)
        undone = moved.abs() == moved.abs().max()
        assert undone.any()
        assert torch.equal(tensor[undone], first[name][undone])
        assert torch.equal(tensor[~undone], plain.state_dict()[name][~undone])
