"""Decoders whose residual stream is written in other bases, and narrower, than that of the model they come from.

An RMSNorm without gain commutes with any rotation. So once gains (and a LayerNorm's mean) have moved into the linears
around, the residual stream may be turned at each of its points, after the embeddings and after each sub-block, by an
orthogonal matrix of its own, and nothing changes in what the model says: what writes the point is turned, what reads it
is turned back, and a linear on the residual connection leads from one basis to the next.

Source: SliceGPT (arXiv 2401.15024), sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import UnsupportedError
from secateur.formats.sliced import find_embeddings
from secateur.subjects.transformer import costs, cutting, low_rank, saving
from secateur.subjects.transformer.blocks import Call, record_calls
from secateur.subjects.transformer.decoder import Decoder
from secateur.subjects.transformer.families import find
from secateur.subjects.transformer.sameness import NEAR, differ, run_check, step_behind
from secateur.subjects.transformer.small_copy import copy_small, describe_error, make_tokens, run_model
from secateur.subjects.transformer.subject import Transformer
from secateur.vocabulary import Units

__all__ = ["Rotated", "fold_norms"]

_EXAMPLES = "llama, mistral, qwen2, qwen3, phi3 or gpt2"
_OTHERS = f"give a dense decoder such as {_EXAMPLES}, or take minitron or llm_pruner with axes=channels"
_FACTOR = re.compile(r"scal|multiplier|factor|alpha")
"""What configs call a factor, which may be a whole number."""
_NO_FACTORS = {"attention": 1.0, "ffn": 1.0}


class Rotated(Decoder):
    """A decoder with a basis of its own at each point of its residual stream; see `fold_norms`.

    Point 0 is after the embeddings, 2 l + 1 after the attention of layer l, 2 l + 2 after its FFN. Its widths stand in
    the config under "secateur"; GPT-2's class wants the first and the last to be equal. Nothing of it can be cut any
    more.
    """

    @property
    def stream(self) -> list[int]:
        """The width at each point: 1 + 2 x layers of them."""
        return list(self.model.config.secateur["widths"])

    def units(self, *axes: str, multiple: int = 8, batch: int = 1, length: int = 128) -> Units:
        """No unit can go, so all of the cost is the base; the measures of `Transformer.units`."""
        if axes:
            self._refuse()
        return Units({}, (), self.price(self.stream, batch=batch, length=length))

    def cut(self, *_: object, **__: object) -> NoReturn:
        """Refused with `UnsupportedError`."""
        self._refuse()

    def silence(self, *_: object, **__: object) -> NoReturn:
        """Refused with `UnsupportedError`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            "the residual stream of this model was rotated and sliced, so its units can't be cut: cut the original "
            "first, and slice the result"
        )

    def price(self, widths: Sequence[int], *, batch: int = 1, length: int = 128) -> dict[str, float]:
        """What the model would cost with these widths of its points, in the measures of `Transformer.units`."""
        layout, now = self.layout, self.stream
        points = self._points()
        products = {name for name, _ in layout.products()}
        total = {"params": 0.0, "bytes": 0.0, "flops": 0.0}
        for name, parameter in self.model.named_parameters():
            own = points.get(name, ())
            size = parameter.numel() // math.prod(now[point] for point in own) * math.prod(widths[p] for p in own)
            total["params"] += size
            total["bytes"] += size * parameter.element_size()
            if name in products:
                total["flops"] += 2.0 * batch * length * size
        heads = sum(layout.attention_width(layer) * width.heads for layer, width in enumerate(layout.widths))
        total["flops"] += 4.0 * batch * length**2 * heads
        cached = Units(costs.sites(layout), tuple(self._cache(layout, batch, length))).cost().get("kv_cache", 0.0)
        return total | {"kv_cache": cached, "memory": total["bytes"] + cached}

    def _points(self) -> dict[str, tuple[int, ...]]:
        """Parameter -> the points along whose channels its dimensions lie, for those that have such."""
        table, prefix = self.family.stream(), self.layout.prefix
        tables = find_embeddings(self.model.base_model, table["embeddings"])
        found: dict[str, tuple[int, ...]] = {f"{prefix}{name}.weight": (0,) for name in tables}
        found |= {f"{name}.weight": (len(self.stream) - 1,) for name in self._heads()}
        for index, path in enumerate(self.layers()):
            for half, kind in enumerate(("attention", "ffn")):
                before, out = 2 * index + half, f"{path}.{table[kind]['out']}"
                found |= {f"{path}.{name}.weight": (before,) for name in table[kind]["reads"]}
                found |= {f"{out}.weight": (before + 1,), f"{out}.bias": (before + 1,)}
                found[f"{path}.{kind}_shortcut.weight"] = (before, before + 1)
        return found

    def _heads(self) -> list[str]:
        return [name for name, head in self.model.named_children() if isinstance(head, nn.Linear)]

    @torch.no_grad()
    def turn(self, point: int, basis: Tensor) -> None:
        """Write the residual stream at `point` in another basis, in place.

        basis: [width now, width then] with orthonormal columns, float64; as many columns as rows only rotate, which
        changes no output, fewer lose what lies across them.
        """
        table, paths = self.family.stream(), self.layers()
        base, conv1d = self.model.base_model, self.family.conv1d
        if point == 0:
            for embedding in find_embeddings(base, table["embeddings"]).values():
                embedding.weight = nn.Parameter(_times(embedding.weight, basis))
                embedding.embedding_dim = basis.shape[1]
        else:
            layer, kind = self._half(point - 1)
            _turn_rows(layer.get_submodule(table[kind]["out"]), basis, conv1d)
            _turn_rows(layer.get_submodule(f"{kind}_shortcut"), basis, False)
        if point == 2 * len(paths):
            for name in self._heads():
                _turn_columns(self.model.get_submodule(name), basis, False)
        else:
            layer, kind = self._half(point)
            for name in table[kind]["reads"]:
                _turn_columns(layer.get_submodule(name), basis, conv1d)
            _turn_columns(layer.get_submodule(f"{kind}_shortcut"), basis, False)
        self.model.config.secateur["widths"][point] = basis.shape[1]

    def _half(self, point: int) -> tuple[Any, str]:
        """The layer, and the sub-block of it, that reads the stream at `point`."""
        layer = self.model.get_submodule(self.layers()[point // 2])
        return layer, ("attention", "ffn")[point % 2]

    @torch.no_grad()
    def run_half(self, point: int, states: Tensor, call: Call) -> Tensor:
        """What stands at `point` + 1, [B, S, width], when `states` [B, S, width] stand at `point`.

        call: with what else the model calls the layer that reads them, see `blocks.record_calls`.
        """
        layer, kind = self._half(point)
        states = devices.move(states, layer)
        with evaluating(layer):
            result: Tensor = (
                layer.attend(states, **layer.name_arguments(*call)) if kind == "attention" else (layer.feed(states))
            )
        return result

    def restore(self, widths: Sequence[int], state: Mapping[str, Tensor]) -> Rotated:
        """The model of these widths with the weights `state`, made by the class that reloads it."""
        model = cutting.build(self.layout, self._with_widths(widths), state)
        result = self._copy(model, self.layer_index)
        assert isinstance(result, Rotated)
        return result

    def _with_widths(self, widths: Sequence[int]) -> PretrainedConfig:
        config: Any = copy.deepcopy(self.model.config)
        config.secateur = config.secateur | {"widths": list(widths)}
        made: PretrainedConfig = config
        return made

    def make_random(self, widths: Sequence[int]) -> Rotated:
        """A model of these widths with fresh weights, where this one is: what takes as long as a sliced one."""
        config = self._with_widths(widths)
        model = saving.architecture(type(self.model), config, self.family)(config)
        result = self._copy(model.to(self.model.device, self.model.dtype).eval(), self.layer_index)
        assert isinstance(result, Rotated)
        return result


def fold_norms(subject: Transformer) -> Rotated:
    """The same model, its logits too, with norms that have no weights and linears on its residual connections.

    Gains g and shifts b of a norm go into the linears that read it: W' = W diag(g), and W b is added to their biases.
    The mean that a LayerNorm subtracts is subtracted from what is written instead, M = I - 1 1^T / D: rows of the
    embeddings, outputs of the sub-blocks. Embeddings and head are no longer tied, since only the head takes the last
    norm's gain. The linears on the residual connections are the identity; factors on what sub-blocks add (Granite's)
    go into their outputs.

    Raises `UnsupportedError` for what this is not exact for: models with norms after their sub-blocks, with experts,
    with layers that differ, or without a head; and those of a derived family a small copy of which says otherwise when
    it is turned.
    """
    _check_rotatable(subject)
    return _fold(subject, _NO_FACTORS if find(subject.family.model_type) else _prove(subject))


def _fold(subject: Transformer, factors: Mapping[str, float]) -> Rotated:
    """The model with its norms folded; factors: kind of sub-block -> what its output is multiplied by."""
    layout, model, offset = subject.layout, subject.model, subject.family.norm_offset
    table, prefix, conv1d = subject.family.stream(), layout.prefix, subject.family.conv1d
    final = model.get_submodule(f"{prefix}{table['final']}")
    config: Any = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    config.secateur = (getattr(config, "secateur", None) or {}) | {
        "layer_index": list(subject.layer_index),
        "widths": [layout.hidden_size] * (1 + 2 * len(layout.widths)),
        "head_bias": getattr(final, "bias", None) is not None,
    }
    norms = set(layout.norms())
    state = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in norms
    }
    heads = [name for name, head in model.named_children() if isinstance(head, nn.Linear)]
    for name in heads:
        _move_gain(state, name, final, False, offset)
    centred = bool(cutting.layer_norms(layout))
    for name in find_embeddings(model.base_model, table["embeddings"]) if centred else ():
        _centre(state, f"{prefix}{name}.weight", 1)
    for path in layout.layers():
        for kind in ("attention", "ffn"):
            norm = model.get_submodule(f"{path}.{table[kind]['norm']}")
            for name in table[kind]["reads"]:
                _move_gain(state, f"{path}.{name}", norm, conv1d, offset)
            out = f"{path}.{table[kind]['out']}"
            for key in (f"{out}.weight", f"{out}.bias"):
                if key in state and factors[kind] != 1:
                    state[key] = (state[key].double() * factors[kind]).to(state[key].dtype)
            if centred:
                _centre(state, f"{out}.weight", 1 if conv1d else 0)
                _centre(state, f"{out}.bias", 0)
            like = state[f"{out}.weight"]
            eye = torch.eye(layout.hidden_size, dtype=like.dtype, device=like.device)
            state[f"{path}.{kind}_shortcut.weight"] = eye
    built = cutting.build(layout, saving.mark_config(config), state)
    result = Rotated(built, subject.family, tokenizer=subject.tokenizer, folder=subject.folder)
    result.layer_index, result.origin = subject.layer_index, subject.origin
    return result


def _check_rotatable(subject: Transformer) -> None:
    family, kind = subject.family, subject.family.model_type
    if isinstance(subject, Rotated):
        subject._refuse()
    subject.check_unequal()  # its linears on the residual connections are in no config
    if family.experts:
        raise UnsupportedError(f"{kind} has experts, whose router reads the residual stream: give a dense model")
    if family.kind != "decoder" or family.has_encoder:
        what = "has an encoder" if family.has_encoder else "is an encoder"
        raise UnsupportedError(f"{kind} {what}: give a dense decoder such as {_EXAMPLES}")
    if sorted(block.kind for block in family.blocks) != ["attention", "ffn"]:
        raise UnsupportedError(
            f"the layers of {kind} have other sub-blocks than one attention and one FFN: give a dense decoder such as "
            f"{_EXAMPLES}"
        )
    if not (family.attention.before and family.ffn.before) or family.attention.after or family.ffn.after:
        raise UnsupportedError(
            f"{kind} has norms after its sub-blocks, with which no rotation commutes, or none with weights before "
            f"each, as where sub-blocks stand side by side: {_OTHERS}"
        )
    split = next((block for block in family.blocks if not block.out.startswith(f"{block.module}.")), None)
    if split is not None:
        raise UnsupportedError(
            f"the {split.kind} of {kind} is no module of its own, which a sliced layer could call: {_OTHERS}"
        )
    if subject.model.config.is_heterogeneous:
        raise UnsupportedError("the layers of this model differ: slice the uncut model")
    if subject.output != "logits":
        raise UnsupportedError(
            f"{type(subject.model).__name__} gives the residual stream itself, whose channels a rotation mixes: give "
            "a model with its head"
        )
    branches = low_rank.find_branches(subject.model)
    if branches:
        raise UnsupportedError(f"{next(iter(branches))} has a branch beside it: merge it first")


@torch.no_grad()
def _find_factors(subject: Transformer) -> dict[str, float]:
    """Kind of sub-block -> what its output is multiplied by before the residual stream takes it, in the first layer."""
    entering, calls = record_calls(subject, {"input_ids": make_tokens()})
    layer, (args, kwargs) = subject.model.get_submodule(subject.layers()[0]), calls[0]
    given = dict[str, Tensor]()

    def note(kind: str, _: nn.Module, __: object, out: Tensor | tuple[Tensor, ...]) -> None:
        given[kind] = out[0] if isinstance(out, tuple) else out

    handles = [
        layer.get_submodule(block.module).register_forward_hook(partial(note, block.kind))
        for block in (subject.family.attention, subject.family.ffn)
    ]
    try:
        with evaluating(layer):
            left = layer(entering, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    more = (left[0] if isinstance(left, tuple) else left).double() - entering.double()
    columns = torch.stack([one.double().flatten() for one in given.values()], 1)
    found: list[float] = torch.linalg.lstsq(columns, more.flatten()[:, None]).solution[:, 0].tolist()
    return dict(zip(given, found, strict=True))


def _prove(subject: Transformer) -> dict[str, float]:
    """The factors of a derived family, with which a small copy says the same once it is turned at all points.

    They are measured on that copy, whose sub-blocks all say something, and are 1 or a setting: others may go by sizes
    that the copy has not. Raises `UnsupportedError` where the copy says something else: no table that was derived tells
    of further inputs of layers, of sub-blocks side by side and the like.
    """
    small = type(subject)(copy_small(subject.model), subject.family)
    settings = subject.model.config.to_dict().items()
    said = [value for name, value in settings if type(value) is float or (type(value) is int and _FACTOR.search(name))]
    factors, why = dict[str, float](), ""
    try:
        for kind, factor in _find_factors(small).items():
            factors[kind] = min((1.0, *said), key=lambda value: abs(value - factor))
        why = _try_small(small, factors)
    except Exception as error:  # whatever its class says against layers of another form
        why = f"it fails ({describe_error(error)})"
    if why:
        raise UnsupportedError(f"rotating {subject.family.model_type} is not exact: on a small copy, {why}; {_OTHERS}")
    return factors


def _try_small(small: Transformer, factors: Mapping[str, float]) -> str:
    """What is wrong with a small model that is turned at all points, "" where it is as it should be."""
    tokens, draw, turned = make_tokens(), torch.Generator().manual_seed(0), _fold(small, factors)
    for point, width in enumerate(turned.stream):
        turned.turn(point, torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=draw))[0])
    with torch.no_grad():
        before, after = (run_model(one.model, tokens).logits for one in (small, turned))
    if differ(after, before) > NEAR:
        return "its logits change"
    wrong = run_check(step_behind, turned.model) if not run_check(step_behind, small.model) else ""
    return f"a step behind its cache {wrong}" if wrong else ""


def _move_gain(state: dict[str, Tensor], name: str, norm: nn.Module, conv1d: bool, offset: float) -> None:
    """Move gain and shift of a norm into the linear `name` that reads it; the gain is its weight and `offset`."""
    gain, shift = (getattr(norm, leaf, None) for leaf in ("weight", "bias"))
    key, bias = f"{name}.weight", f"{name}.bias"
    weight = state[key].double()
    weight = weight.T if conv1d else weight
    if shift is not None:
        more = weight @ shift.detach().double()
        state[bias] = (more + state[bias].double() if bias in state else more).to(state[key].dtype)
    weight = weight if gain is None else weight * (gain.detach().double() + offset)
    state[key] = (weight.T if conv1d else weight).to(state[key].dtype).contiguous()


def _centre(state: dict[str, Tensor], key: str, dim: int) -> None:
    """Subtract its mean along the channels from what is written into the residual stream."""
    if key in state:
        wide = state[key].double()
        state[key] = (wide - wide.mean(dim, keepdim=True)).to(state[key].dtype)


def _times(weight: Tensor, basis: Tensor) -> Tensor:
    return (weight.double() @ basis.to(weight.device)).to(weight.dtype).contiguous()


def _turn_columns(module: nn.Module, basis: Tensor, conv1d: bool) -> None:
    """Let a linear read its inputs in another basis: W basis."""
    linear: Any = module
    weight = linear.weight.T if conv1d else linear.weight
    _set_weight(linear, _times(weight, basis), conv1d)


def _turn_rows(module: nn.Module, basis: Tensor, conv1d: bool) -> None:
    """Let a linear write its outputs in another basis: basis^T W, basis^T b."""
    linear: Any = module
    weight = linear.weight.T if conv1d else linear.weight
    _set_weight(linear, _times(weight.T, basis).T, conv1d)
    if linear.bias is not None:
        linear.bias = nn.Parameter(_times(linear.bias, basis))


def _set_weight(linear: nn.Module, weight: Tensor, conv1d: bool) -> None:
    rows, columns = weight.shape
    linear.weight = nn.Parameter((weight.T if conv1d else weight).contiguous())
    for name, value in (("in_features", columns), ("out_features", rows), ("nx", columns), ("nf", rows)):
        if hasattr(linear, name):
            setattr(linear, name, value)
