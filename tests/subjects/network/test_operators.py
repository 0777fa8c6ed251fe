from __future__ import annotations

import torch

from secateur.subjects.network.operators import (
    Call,
    base_name,
    dimensions,
    is_view,
    name_of,
    names,
    qualify,
    results_of,
    tensors_in,
)

aten = torch.ops.aten


def test_names_and_dimensions_of_operators():
    assert names("add  mul") == {"add", "mul"}
    assert [base_name(name) for name in ("add", "add_", "__and__")] == ["add", "add", "__and__"]
    assert (name_of(aten.add_.Tensor), qualify("mylib", "add_")) == ("add_", "mylib::add_")
    assert is_view(aten.view.default)
    assert not is_view(aten.add.Tensor)
    assert dimensions(None, 3) == dimensions([], 3) == [0, 1, 2]
    assert dimensions(-1, 3) == [2]
    assert dimensions([0, -2], 3) == [0, 1]
    assert dimensions(0, 0) == [0]


def test_tensors_are_found_in_what_goes_in_and_comes_out():
    a, b = torch.ones(1), torch.ones(2)
    assert [x.numel() for x in tensors_in(([a, (b, 3)], {"other": a}))] == [1, 2, 1]
    assert [type(one) for one in results_of((a, [b, None]))] == [torch.Tensor, torch.Tensor, type(None)]
    assert results_of(3) == []
    call = Call(aten.sum.dim_IntList, "sum", (torch.ones(2, 3), [1]), {"keepdim": True}, None)
    assert (call.get(1, "dim"), call.get(2, "keepdim"), call.get(3, "dtype", 7)) == ([1], True, 7)
    assert call.repeated_on(torch.ones(4, 5)).shape == (4, 1)
    assert len(call.tensors) == 1
