from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import ModelError
from secateur.subjects.network.shrinking import Plan, shrink, twin
from subjects import nets


def test_a_plan_survives_json_and_makes_the_network_smaller() -> None:
    model, _ = nets.make("mlp")
    plan = Plan({"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}}, (("0", "out_features", 2),))
    again = Plan.from_dict(plan.to_dict())
    assert again == plan
    small = shrink(model, again)
    assert torch.equal(small[0].weight, model[0].weight[[0, 2]])
    assert small[0].out_features == 2
    assert model[0].out_features == 16
    with pytest.raises(ModelError, match="does not have"):
        shrink(nn.Linear(2, 2), plan)
    with pytest.raises(ModelError, match="does not fit"):
        shrink(nn.Sequential(nn.Linear(2, 2)), plan)
    with pytest.raises(ModelError, match="damaged"):
        Plan.from_dict({"tensors": 3})


def test_twins_share_or_copy_and_keep_ties() -> None:
    model, _ = nets.make("fused attention")
    shared = twin(model, share=True)
    assert shared.table.weight.data_ptr() == model.table.weight.data_ptr()
    assert shared.table.weight is shared.head.weight
    copied = twin(model)
    assert copied.table.weight.data_ptr() != model.table.weight.data_ptr()
    changed = twin(model, {"table.weight": torch.zeros(3, 16)})
    assert changed.head.weight is changed.table.weight
    assert changed.head.weight.shape == (3, 16)


def test_what_cannot_be_copied_is_named() -> None:
    class Odd(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    with pytest.raises(ModelError, match=r"Odd can't be copied \(not me\)"):
        twin(Odd(2, 2))


class Odd(nn.Module):
    """Attributes of many kinds: aliases, hooks, modules in lists, a buffer that is part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.again, self.listed = self.first, [self.first, nn.ReLU()]
        self.register_buffer("table", torch.arange(6.0).view(2, 3))
        self.register_buffer("row", self.table[0])
        self.register_buffer("none", None)
        self.sizes, self.names = {"a": [1, 2], 3: (4,)}, {"x", "y"}
        self.first.register_forward_hook(lambda *_: None)
        self.lstm = nn.LSTM(3, 3)


def test_a_twin_is_what_a_deep_copy_is() -> None:
    model = Odd()
    one = twin(model)
    assert one.tied.weight is one.first.weight
    assert one.again is one.first
    assert one.listed[0] is one.first
    assert one.sizes == model.sizes
    assert one.sizes["a"] is not model.sizes["a"]
    assert one.names == model.names
    assert one.none is None
    assert len(one.first._forward_hooks) == 1
    assert one.first._forward_hooks is not model.first._forward_hooks
    assert repr(one) == repr(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = one.state_dict(keep_vars=True)[name]
        assert torch.equal(tensor, other)
        assert tensor.data_ptr() != other.data_ptr()
        assert type(tensor) is type(other)
    x = torch.randn(2, 1, 3)
    assert torch.equal(one.lstm(x)[0], model.lstm(x)[0])
