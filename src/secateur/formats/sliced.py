"""Rebuild a model whose residual stream was rotated and sliced, from the widths that its config names.

The residual stream has a width of its own at each point: after the embeddings, and after each sub-block of each layer.
Every sub-block has a linear on its residual connection, which leads from the basis before it to the one after it. Norms
have no weights: these went into what reads them. `Sliced`, mixed into the model's own class, builds all that.

Source: SliceGPT (arXiv 2401.15024), section 3. This file imports only torch and transformers: a copy of it travels with
the weights, so that they load anywhere.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["Normalise", "Sliced", "SlicedLayer", "find_embeddings", "slice_model"]


class Normalise(nn.Module):
    """x / sqrt(|x|^2 / width + eps), [..., any] -> the same: RMSNorm over `width` channels of which x has some."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The states, of mean square 1 where all channels are there."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.width + self.eps)
        return (wide * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"width={self.width}, eps={self.eps}"


class SlicedLayer:
    """Mixed in before a layer's class: attention and FFN, each beside a linear on the residual connection."""

    sliced: dict[str, Any]
    arguments: tuple[str, ...]

    def attend(self, hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """The first half of the layer: [B, S, width before] -> [B, S, width after attention]."""
        layer: Any = self
        block = self.sliced["attention"]
        out = layer.get_submodule(block["module"])(layer.get_submodule(block["norm"])(hidden_states), **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        out = layer.resid_attn_dropout(out) if hasattr(layer, "resid_attn_dropout") else out
        result: torch.Tensor = layer.attention_shortcut(hidden_states) + out
        return result

    def feed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The second half of the layer: [B, S, width after attention] -> [B, S, width after the layer]."""
        layer: Any = self
        block = self.sliced["ffn"]
        out = layer.get_submodule(block["module"])(layer.get_submodule(block["norm"])(hidden_states))
        out = layer.resid_mlp_dropout(out) if hasattr(layer, "resid_mlp_dropout") else out
        result: torch.Tensor = layer.ffn_shortcut(hidden_states) + out
        return result

    def name_arguments(self, args: tuple[object, ...], kwargs: dict[str, object]) -> dict[str, object]:
        """What the model hands to its layers beside the states, by the names that attention knows them by."""
        named = dict(zip(self.arguments, args, strict=False)) | kwargs
        return {name: value for name, value in named.items() if not name.startswith("encoder_")}

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """Both halves, one after the other."""
        return self.feed(self.attend(hidden_states, **self.name_arguments(args, kwargs)))


_layers: dict[type, type] = {}


def _sliced_class(plain: type) -> type:
    """The class of layers with linears on their residual connections; under its name in this module, for copies."""
    if plain not in _layers:
        name = f"Sliced{plain.__name__}"
        _layers[plain] = type(name, (SlicedLayer, plain), {"__module__": __name__, "__doc__": SlicedLayer.__doc__})
        globals()[name] = _layers[plain]
    return _layers[plain]


def slice_model(model: nn.Module, family: dict[str, Any], widths: list[int], head_bias: bool) -> None:
    """Give the residual stream of `model` its widths, in place: 1 + 2 x layers of them.

    family: "layers", "embeddings" (and heads), "final" (norm), "conv1d", and for "attention" and "ffn" the "module"
    that is called, the "norm" before it, the linear "out" into the residual stream, and the linears "reads" out of it.
    head_bias: norms had shifts, so that what reads them has biases.
    """
    whole: Any = model
    base, conv1d, full = whole.base_model, family["conv1d"], whole.config.hidden_size
    for table in find_embeddings(base, family["embeddings"]).values():
        table.weight = nn.Parameter(table.weight.new_zeros(table.num_embeddings, widths[0]))
        table.embedding_dim = widths[0]
    for index, layer in enumerate(base.get_submodule(family["layers"])):
        arguments = list(inspect.signature(layer.forward).parameters)[1:]
        layer.__class__ = _sliced_class(type(layer))
        for one in (whole, base):  # what places layers on devices, or shards them, knows them by name
            one._no_split_modules = {*(one._no_split_modules or ()), type(layer).__name__}
        layer.sliced, layer.arguments = family, tuple(arguments)
        for half, kind in enumerate(("attention", "ffn")):
            before, after = widths[2 * index + half], widths[2 * index + half + 1]
            block = family[kind]
            for name in block["reads"]:
                _resize(layer.get_submodule(name), conv1d, columns=before, shifted=head_bias)
            out = layer.get_submodule(block["out"])
            _resize(out, conv1d, rows=after)
            layer.set_submodule(block["norm"], _normalise(layer.get_submodule(block["norm"]), full))
            shortcut = nn.Linear(before, after, bias=False, device=out.weight.device, dtype=out.weight.dtype)
            layer.add_module(f"{kind}_shortcut", shortcut)
    base.set_submodule(family["final"], _normalise(base.get_submodule(family["final"]), full))
    if model is base:
        return
    for _, head in model.named_children():
        if isinstance(head, nn.Linear) and head.in_features == full:
            _resize(head, False, columns=widths[-1], shifted=head_bias)


def find_embeddings(base: nn.Module, names: list[str]) -> dict[str, nn.Embedding]:
    """Those of these modules of a base model that write its residual stream."""
    return {name: one for name, one in base.named_modules() if name in names and isinstance(one, nn.Embedding)}


def _normalise(module: nn.Module, width: int) -> Normalise:
    norm: Any = module
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return Normalise(width, float(eps))


def _resize(
    module: nn.Module, conv1d: bool, *, rows: int | None = None, columns: int | None = None, shifted: bool = False
) -> None:
    """Fresh numbers for a weight of so many rows (outputs) and columns (inputs); GPT-2 stores it turned.

    shifted: it takes the shift of a norm as a bias, if it has none.
    """
    linear: Any = module
    old = linear.weight.T if conv1d else linear.weight
    shape = (old.shape[0] if rows is None else rows, old.shape[1] if columns is None else columns)
    linear.weight = nn.Parameter(linear.weight.new_zeros(shape[::-1] if conv1d else shape))
    nn.init.normal_(linear.weight, std=0.02)
    if rows is not None and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    if shifted and linear.bias is None:
        linear.bias = nn.Parameter(linear.weight.new_zeros(shape[0]))
    for name, value in (("in_features", shape[1]), ("out_features", shape[0]), ("nx", shape[1]), ("nf", shape[0])):
        if hasattr(linear, name):
            setattr(linear, name, value)


class Sliced:
    """Mixed in before a transformers class: builds it with the widths that its config names under "secateur"."""

    family: dict[str, Any]

    def __init__(self, config: Any, *args: object, **kwargs: object) -> None:
        # A class that builds its base model by AutoModel would ask about the code named in auto_map: hide it meanwhile.
        hidden = {name: config.__dict__.pop(name) for name in ("auto_map",) if name in config.__dict__}
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.__dict__.update(hidden)
        model: Any = self
        slice_model(model, self.family, config.secateur["widths"], config.secateur["head_bias"])

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: weights are named as those of the class that it is mixed into."""
        return False
