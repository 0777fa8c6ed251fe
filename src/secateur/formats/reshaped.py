"""Rebuild a model of transformers whose tensors have sizes of their own, which no config of its class can say.

`Reshaped`, mixed into the model's own class, builds it by its config, and then gives tensors the shapes, and modules
the numbers, that stand in the config under "secateur". It knows no class and no kind of layer. This file imports only
torch and transformers: a copy of it travels with the weights, so that they load anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

Sizes = Mapping[str, Any]
"""What `reshape` does, as plain data."""

__all__ = ["Reshaped", "reshape"]


def reshape(model: nn.Module, said: Sizes) -> None:
    """Give tensors of `model` other shapes, and modules other numbers, in place; fresh weights are random.

    said: "shapes", of parameters and buffers by name, biases included that the class does not have; "numbers", as
    (module, attribute, value); "buffers", those whose values are to be read from files, which else have none of them.

    Raises `ValueError` for an attribute that is no number, nor a list of numbers, before or after.
    """
    fresh = dict[int, tuple[nn.Parameter, nn.Parameter]]()  # old and new: an id counts while its tensor is there
    for name, shape in said["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        if isinstance(old, torch.Tensor) and not isinstance(old, nn.Parameter):
            module._buffers[leaf] = old.new_zeros(shape)
            continue
        if id(old) not in fresh:  # one tensor may stand in several modules
            like = next(module.parameters()) if old is None else old
            new = nn.Parameter(like.new_empty(shape), like.requires_grad)
            if new.is_floating_point():
                nn.init.normal_(new, std=0.02)
            if old is None:
                module._parameters[leaf] = new
                continue
            fresh[id(old)] = (old, new)
        module._parameters[leaf] = fresh[id(old)][1]
    for path, name, value in said["numbers"]:
        module = model.get_submodule(path)
        before = getattr(module, name)
        if name.startswith("_") or not (_has_numbers(before) and _has_numbers(value)):
            raise ValueError(f'"numbers" of "secateur" name {path}.{name}, which is no number: fetch config.json again')
        module.__dict__[name] = type(before)(value) if isinstance(before, list | tuple) else value
    for name in said["buffers"]:
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._non_persistent_buffers_set.discard(leaf)


def _has_numbers(value: object) -> bool:
    return all(isinstance(one, int | float) for one in (value if isinstance(value, list | tuple) else [value]))


class Reshaped:
    """Mixed in before a transformers class: builds it with the sizes that its config names under "secateur"."""

    def __init__(self, config: PretrainedConfig, *args: object, **kwargs: object) -> None:
        # A class that builds its base model by AutoModel would ask about the code named in auto_map: hide it meanwhile.
        hidden = {name: config.__dict__.pop(name) for name in ("auto_map",) if name in config.__dict__}
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.__dict__.update(hidden)
        reshape(self, config.to_dict()["secateur"])  # type: ignore[arg-type]
        self._keys_to_ignore_on_save = set[str]()  # its class would make them anew, as they were before the cut

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: weights are named as those of the class it is mixed into, whose checkpoints list experts one by one."""
        return False
