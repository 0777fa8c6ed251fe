"""Modes of modules are put back one by one; devices that can hold none are refused."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from secateur._utils.modes import check_device, default_dtype, evaluating, keep_modes, restore_modes
from secateur.errors import InputError


def frozen_inside() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model.train()
    model[1][0].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_each_module_is_put_back_in_its_own_mode() -> None:
    one, other = frozen_inside(), frozen_inside().eval()
    before = modes(one), modes(other)
    with evaluating(one, other):
        assert not any(modes(one) + modes(other))
    assert (modes(one), modes(other)) == before
    with restore_modes(one):
        one.train()
        assert all(modes(one))
    assert modes(one) == before[0]


def test_also_after_an_error() -> None:
    model = frozen_inside()
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert modes(model) == before


def test_what_a_function_is_called_with_is_given_back_in_its_modes() -> None:
    one, two, three = frozen_inside(), frozen_inside(), frozen_inside()
    before = modes(one)

    @keep_modes("model", "others")
    def change(model: nn.Module, data: object = None, *, others: list[object]) -> str:
        """Words."""
        for each in (model, two, three):
            each.eval()
        return "done"

    assert change(one, others=[two, (SimpleNamespace(model=three), "path", None)]) == "done"
    assert [modes(one), modes(two), modes(three)] == [before] * 3
    assert list(inspect.signature(change).parameters) == ["model", "data", "others"]
    two.train()
    assert change(one, two, others=[]) == "done"
    assert modes(two) == [False] * len(before), "data is not looked into"
    with pytest.raises(TypeError, match="others"):
        change(one)


@pytest.mark.parametrize(
    ("name", "words"),
    [("moon", "device 'moon' can't hold"), ("meta", "give cpu or cuda"), ("auto", "name one device, such as cuda")],
)
def test_a_device_that_holds_no_model_is_refused(name: str, words: str) -> None:
    check_device("cpu")
    with pytest.raises(InputError, match=words):
        check_device(name)


def test_number_types_of_16_to_64_bits_are_those_of_new_tensors_within_the_block() -> None:
    before = torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.int8, torch.float8_e4m3fn, None):
        with default_dtype(dtype):
            assert torch.zeros(2).dtype is (torch.bfloat16 if dtype is torch.bfloat16 else before)
        assert torch.get_default_dtype() is before
