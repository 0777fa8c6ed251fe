"""Rebuild a model whose modules were cut one by one, from the shapes and numbers that its config names.

`Narrowed`, mixed into the model's own class, builds the model as usual, and then gives modules that the config names
tensors of other shapes, and the numbers that they keep beside them. This file imports only torch: a copy of it travels
with the weights of a result that no config of its class describes, so that it loads anywhere.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import nn

__all__ = ["Layers", "Narrowed", "narrow"]

Layers: TypeAlias = dict[str, dict[str, dict[str, Any]]]
"""Path of a module -> {"shapes": tensor -> shape, "numbers": attribute -> value}."""


def narrow(model: nn.Module, layers: Layers) -> None:
    """Give modules of `model` other sizes, in place."""
    for path, own in layers.items():
        module = model.get_submodule(path)
        for name, shape in own["shapes"].items():
            old = getattr(module, name)
            fresh = old.new_zeros(shape)
            setattr(module, name, nn.Parameter(fresh) if isinstance(old, nn.Parameter) else fresh)
        for name, value in own["numbers"].items():
            setattr(module, name, tuple(value) if isinstance(getattr(module, name), tuple) else value)


class Narrowed:
    """Mixed in before a transformers class: builds it with modules as its config's `secateur["layers"]` has them."""

    def __init__(self, config: object, *args: object, **kwargs: object) -> None:
        # A class that builds its base model by AutoModel would ask about the code named there.
        hidden = {name: vars(config).pop(name) for name in ("auto_map",) if name in vars(config)}
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            vars(config).update(hidden)
        model: Any = self
        narrow(model, model.config.secateur["layers"])

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: weights are named as those of the class it is mixed into."""
        return False
