"""Integer attributes of modules that change with a cut: `out_channels`, `num_heads`, sizes in forward code.

Numbers of PyTorch's own layers follow from the shapes of their weights. Of other modules, a number changes if it equals
a size that code gave to `view`, `reshape` or `split` in that module, or a size of one of its own tensors, and that size
changed; the name decides where the number alone does not. What comes of it is proved like the rest of the cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from secateur.subjects.network.labels import Flow, Shaping, varying, within
from secateur.subjects.network.recording import tensors_of

if TYPE_CHECKING:
    from secateur.subjects.network.shrinking import Plan

__all__ = ["changed_numbers", "has_role", "speaks_of_widths", "widths"]

_NAMES = (
    # Role of a number, where the words stand in its name, the words, and the reason.
    ("width", "in", "channel feature planes", "channels of a layer, which code compares with its layers"),
    ("width", "in", "dim embed hidden width", "channels of a stream"),
    ("width", "in", "head group split", "heads and groups, and what a projection is split into"),
    ("head size", "end", "head_dim key_dim val_dim value_dim attention_head_size", "stays when whole heads go"),
    ("compared", "in", "channel feature planes", "a module with layers compares it with their widths"),
    ("outputs", "in", "out", "of numbers compared so: the rows of weights, not their columns"),
    ("count", "start", "num_ n_", "how many heads or groups there are"),
    ("heads", "end", "head heads", "stays where all heads stay and each loses dimensions"),
    ("scale", "in", "scal", "the root of a head's size, kept as a float"),
    ("other", "in", "kernel stride patch img image window resolution grid area", "sizes in space"),
    ("other", "is", "padding output_padding dilation", "sizes in space"),
    ("other", "in", "position rotary seq length max_ bucket chunk shift", "places in a sequence"),
    ("other", "in", "vocab token label class", "entries of a table, and classes"),
    ("other", "in", "layer depth level idx point", "layers, levels and sampling points, and their numbers"),
    ("other", "in", "expert top_k", "experts, which go by themselves"),
    ("other", "in", "ratio scale", "factors"),
    ("other", "is", "num_key_value_groups", "query heads for one of keys: a ratio, which stays"),
    ("other", "is", "training inplace eps momentum dropout p", "modes, and numbers of a formula"),
)
"""What the name of a number says of it: all that is known of names stands here."""


@cache
def has_role(name: str, role: str) -> bool:
    """Whether a number of this name plays a role of the table."""
    return any(
        {"in": word in name, "is": word == name, "start": name.startswith(word), "end": name.endswith(word)}[where]
        for of, where, words, _ in _NAMES
        if of == role
        for word in words.split()
    )


def _is_width(name: str) -> bool:
    """Whether the name speaks of what can be cut; asked only where the number alone does not say."""
    return has_role(name, "width") and not has_role(name, "head size")


def speaks_of_widths(name: str, surely: bool = False) -> bool:
    """Whether a number of this name may be one of channels, heads or groups, or surely is."""
    return not has_role(name, "other") and (not surely or _is_width(name))


def changed_numbers(
    model: nn.Module, tensors: Mapping[str, Mapping[int, list[int]]], kept: np.ndarray, flow: Flow
) -> list[tuple[str, str, object]]:
    """(module, attribute, new value) of all numbers that change.

    tensors: what stays of each tensor that is cut, see `Plan.tensors`. kept: booleans [atoms].
    """
    sizes, groups = _collect_sizes(kept, flow.shapings)
    callers = _callers(flow.entered)
    shared = {id(tensor): name for name, tensor in tensors_of(model).items()}
    result = []
    for path, module in model.named_modules():
        own: dict[int, set[int]] = {}
        places: dict[str, tuple[int, ...]] = {}
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            cut = tensors.get(shared.get(id(tensor), ""), {})
            places[name] = tuple(len(cut[dim]) if dim in cut else size for dim, size in enumerate(tensor.shape))
            for dim, size in enumerate(tensor.shape):
                own.setdefault(size, set()).add(places[name][dim])
        result += _of_module(path, module, own, sizes.get(callers.get(path, path), {}), places, groups.get(path))
    changed = {(path, name) for path, name, _ in result}
    compared = (*_compared_attributes(model, tensors, shared), *_stream_widths(model, tensors, shared))
    result += [number for number in compared if number[:2] not in changed]
    # Eight heads of eight dimensions: which number is which, only the name says.
    return [number for number in result if not (has_role(number[1], "heads") and within(number[0], flow.whole))]


def _callers(entered: Set[str]) -> dict[str, str]:
    """Module that did not run, with some inside that did -> the one around it that ran, and called its methods."""
    ran = entered | {""}
    callers: dict[str, str] = {}
    for path in entered:
        skipped = []
        around = path.rpartition(".")[0]
        while around not in ran:
            skipped.append(around)
            around = around.rpartition(".")[0]
        callers.update(dict.fromkeys(skipped, around))
    return callers


def _collect_sizes(
    kept: np.ndarray, shapings: Iterable[Shaping]
) -> tuple[dict[str, dict[int, set[int]]], dict[str, tuple[int, int]]]:
    """What code gives shapes to: module -> old size -> new sizes; module -> old and new number of groups."""
    sizes: dict[str, dict[int, set[int]]] = {}
    groups: dict[str, tuple[int, int]] = {}

    def note(path: str, old: int, new: int) -> None:
        sizes.setdefault(path, {}).setdefault(old, set()).add(new)

    seen = set()
    for one in shapings:
        key = (one.module, one.kind, one.shape, one.dim, one.bounds, tuple(map(id, one.labels)))
        if key in seen:
            continue
        seen.add(key)
        if one.kind in ("whole", "tied"):
            (count,), old = one.bounds, one.shape[0]
            new = _remaining(one.shape, one.labels, kept)[0]
            if one.kind == "whole" and new != old:
                groups[one.module] = (count, new * count // old)
        elif one.kind == "view":
            # The first dimension of three is a batch, perhaps times heads: no number of a module.
            skip = 1 if len(one.shape) > 2 else 0
            for old, new in zip(one.shape[skip:], _remaining(one.shape, one.labels, kept)[skip:], strict=True):
                note(one.module, old, new)
        else:
            stays = _stays(one.labels[0], kept, one.dim)
            start, end = one.bounds
            for a, b in ((0, start), (0, end), (start, end)):
                if b > a:
                    note(one.module, b - a, int(stays[a:b].sum()))
    return sizes, groups


def widths(model: nn.Module, made: Plan, kept: np.ndarray, shapings: Iterable[Shaping]) -> dict[int, Counter[int]]:
    """Old size -> how often a cut makes it which: of tensors, of numbers of modules, and of what code gives shapes."""
    found: dict[int, Counter[int]] = {}

    def note(old: int, new: int) -> None:
        found.setdefault(old, Counter())[new] += 1

    for name, tensor in tensors_of(model).items():
        for dim, size in enumerate(tensor.shape):
            note(size, len(made.tensors[name][dim]) if dim in made.tensors.get(name, {}) else size)
    modules = dict(model.named_modules())
    for path, attribute, new in made.attributes:
        old = getattr(modules[path], attribute)
        if type(old) is int:
            note(old, new)
    sizes, groups = _collect_sizes(kept, shapings)
    pairs = [(old, new) for table in sizes.values() for old, several in table.items() for new in several]
    for old, new in (*pairs, *groups.values()):
        note(old, new)
    return found


def _compared_attributes(
    model: nn.Module, tensors: Mapping[str, Mapping[int, list[int]]], shared: Mapping[int, str]
) -> list[tuple[str, str, int]]:
    """Numbers that a module compares with the widths of the modules in it: channels and out_channels, say."""
    result = []
    for path, module in model.named_modules():
        if not any(True for _ in module.children()):
            continue
        names = [name for name, old in vars(module).items() if type(old) is int and has_role(name, "compared")]
        if not names:
            continue
        filters: dict[int, set[int]] = {}
        inputs: dict[int, set[int]] = {}
        for child in module.children():
            for parameter in child.parameters(recurse=False):
                cut = tensors.get(shared.get(id(parameter), ""), {})
                for dim, table in ((0, filters), (1, inputs)):
                    if parameter.dim() > 1:
                        size = parameter.shape[dim]
                        table.setdefault(size, set()).add(len(cut[dim]) if dim in cut else size)
        for name in names:
            old = getattr(module, name)
            table = inputs if old in inputs and not has_role(name, "outputs") else filters
            if len(table.get(old, ())) == 1 and old not in table[old]:
                result.append((path, name, next(iter(table[old]))))
    return result


def _stream_widths(
    model: nn.Module, tensors: Mapping[str, Mapping[int, list[int]]], shared: Mapping[int, str]
) -> list[tuple[str, str, int]]:
    """What PyTorch's encoder and decoder (`nn.Transformer`) compare with the widths of their inputs."""
    result = []
    for path, module in model.named_modules():
        norms = [one for one in module.modules() if isinstance(one, nn.LayerNorm) and one.weight is not None]
        if isinstance(module, nn.Transformer) and norms:
            cut = tensors.get(shared.get(id(norms[-1].weight), ""), {})  # that behind all layers
            result += [(path, "d_model", len(cut[0]))] if 0 in cut else []
    return result


def _remaining(shape: tuple[int, ...], labels: Iterable[Tensor], kept: np.ndarray) -> list[int]:
    sizes = list(shape)
    for label in labels:
        for dim in varying(label):
            sizes[dim] = min(sizes[dim], int(_stays(label, kept, dim).sum()))
    return sizes


def _stays(label: Tensor, kept: np.ndarray, dim: int) -> np.ndarray:
    stays = kept[label.numpy()]
    result: np.ndarray = stays.any(axis=tuple(other for other in range(stays.ndim) if other != dim))
    return result


def _of_module(
    path: str,
    module: nn.Module,
    own: Mapping[int, set[int]],
    shaped: Mapping[int, set[int]],
    places: Mapping[str, tuple[int, ...]],
    groups: tuple[int, int] | None,
) -> list[tuple[str, str, object]]:
    known = _torch_attributes(module, places, groups)
    result = [(path, name, value) for name, value in known.items() if getattr(module, name) != value]
    for name, old in vars(module).items():
        if name in known or name.startswith("_") or has_role(name, "other"):
            continue
        new = _renumber(name, old, own, shaped)
        if new is not old and new != old:  # what is kept may be a tensor, which has no truth
            result.append((path, name, new))
    # Three heads of three parts each: which of the counts is that of what goes, only their names say.
    counts = {name: getattr(module, name) for _, name, new in result if type(new) is int and has_role(name, "count")}
    named = {old for name, old in counts.items() if _is_width(name)}
    return [one for one in result if one[1] not in counts or _is_width(one[1]) or counts[one[1]] not in named]


def _renumber(name: str, old: object, own: Mapping[int, set[int]], shaped: Mapping[int, set[int]]) -> object:
    if isinstance(old, bool):
        return old
    if isinstance(old, list | tuple):
        if old and all(isinstance(one, int) and not isinstance(one, bool) for one in old):
            return type(old)(_renumber(name, one, own, shaped) for one in old) if type(old) in (list, tuple) else old
        return old
    if not isinstance(old, int):
        return old
    for table in (shaped, own):
        changed = table.get(old, set()) - {old}
        if changed and (old not in table[old] or _is_width(name)):
            return min(changed)
    return old


def _torch_attributes(
    module: nn.Module, places: Mapping[str, tuple[int, ...]], groups: tuple[int, int] | None
) -> dict[str, object]:
    """The attributes of PyTorch's own modules, from the shapes of their tensors."""
    if isinstance(module, nn.RNNBase) and "weight_ih_l0" in places:
        return {"input_size": places["weight_ih_l0"][1]}
    shape = places.get("weight")
    if shape is None:
        return {}
    if isinstance(module, nn.modules.conv._ConvNd):
        new = groups[1] if groups else module.groups
        transposed = module.transposed
        filters, inputs = (shape[1] * new, shape[0]) if transposed else (shape[0], shape[1] * new)
        return {"out_channels": filters, "in_channels": inputs, "groups": new}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": groups[1] if groups else module.num_groups}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape}
    if type(module).__name__ == "Conv1D" and len(shape) == 2:  # transformers' linear layer, with its weight transposed
        return {name: size for name, size in (("nx", shape[0]), ("nf", shape[1])) if hasattr(module, name)}
    return {}
