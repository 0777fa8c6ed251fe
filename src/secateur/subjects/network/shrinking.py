"""Making a network smaller: a plan says which indices of which tensors stay and which numbers of modules change.

A plan is plain data, so a saved result is the original, the plan, and the weights.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.formats import integers
from secateur.subjects.network import configs
from secateur.subjects.network.absent import Absent, Nothing
from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.flow import Flow, Scaling, Shaping
from secateur.subjects.network.recording import tensors_of

__all__ = ["Plan", "plan", "shrink", "speaks_of_widths", "twin", "widths"]


@dataclass(frozen=True)
class Plan:
    """What a cut does to a network."""

    tensors: Mapping[str, Mapping[int, list[int]]] = field(default_factory=dict)
    """Tensor -> dimension -> indices that stay."""
    attributes: tuple[tuple[str, str, Any], ...] = ()
    """(module, attribute, new value)."""
    scaled: tuple[tuple[str, int, tuple[int, ...], float], ...] = ()
    """(tensor, dimension, indices before the cut, factor): what makes up for a scale that the cut changes."""
    biases: tuple[str, ...] = ()
    """Modules that get a bias, which they did not have: zeros, to be filled with offsets."""
    absent: tuple[tuple[str, Any], ...] = ()
    """(module, the form of what it returned): modules that were erased, see `absent.Absent`."""
    missing: tuple[str, ...] = ()
    """Parameters that were erased beside those of modules."""
    fresh: bool = False
    """Whether a sum with what was erased is a copy."""
    unfolded: tuple[str, ...] = ()
    """Attentions whose projections became layers of their own, see `integers.unfold`."""
    bits: tuple[tuple[str, int], ...] = ()
    """(layer, bits): layers that were quantised; their weights and scales are with the weights."""
    config: tuple[configs.Change, ...] = ()
    """What the configs of models say from now on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "tensors": {name: {str(dim): index for dim, index in dims.items()} for name, dims in self.tensors.items()},
            "attributes": [list(one) for one in self.attributes],
            "biases": list(self.biases),
            **(
                {"scaled": [[name, dim, list(index), by] for name, dim, index, by in self.scaled]}
                if self.scaled
                else {}
            ),
            **({"absent": [list(one) for one in self.absent]} if self.absent else {}),
            **({"missing": list(self.missing)} if self.missing else {}),
            **({"fresh": True} if self.fresh else {}),
            **({"unfolded": list(self.unfolded)} if self.unfolded else {}),
            **({"bits": [list(one) for one in self.bits]} if self.bits else {}),
            **({"config": [list(one) for one in self.config]} if self.config else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        try:
            tensors = {
                name: {int(dim): list(map(int, index)) for dim, index in dims.items()}
                for name, dims in data["tensors"].items()
            }
            attributes = tuple(
                (path, name, tuple(value) if isinstance(value, list) else value)
                for path, name, value in data["attributes"]
            )
            scaled = tuple(
                (str(name), int(dim), tuple(map(int, index)), float(by))
                for name, dim, index, by in data.get("scaled", ())
            )
            biases = tuple(map(str, data.get("biases", ())))
            absent = tuple((str(path), form) for path, form in data.get("absent", ()))
            missing, fresh = tuple(map(str, data.get("missing", ()))), bool(data.get("fresh"))
            unfolded = tuple(map(str, data.get("unfolded", ())))
            bits = tuple((str(path), int(width)) for path, width in data.get("bits", ()))
            config = tuple((str(path), str(name), int(value)) for path, name, value in data.get("config", ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the file of a cut is damaged: {error!r}; save the result again") from error
        return cls(tensors, attributes, scaled, biases, absent, missing, fresh, unfolded, bits, config)

    @property
    def rescaled(self) -> frozenset[str]:
        """The modules whose results are larger or smaller than they were."""
        return frozenset(name.rpartition(".")[0] for name, _, _, _ in self.scaled)

    def factors(self, name: str, dim: int, size: int) -> Tensor | None:
        """What each of the `size` indices of a tensor's dimension is multiplied by; None if nothing of it is."""
        found = [(index, by) for tensor, place, index, by in self.scaled if (tensor, place) == (name, dim)]
        if not found:
            return None
        result = torch.ones(size)
        for index, by in found:
            result[list(index)] = by
        return result


def twin(model: nn.Module, changed: Mapping[str, Tensor] | None = None, *, share: bool = False) -> nn.Module:
    """A copy of `model` with some tensors `changed`.

    With `share`, one to look at: all other parameters are those of `model` where they lie on the CPU in float32 (or
    float64), and are brought there where not, so that a proof does not drown in the rounding of half precision.
    """
    memo: dict[int, Any] = {}
    changed = changed or {}
    found = tensors_of(model)
    for name, tensor in found.items():
        if name in changed:
            new = changed[name].detach()
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
        elif share and isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
    try:
        result = _copied(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} can't be copied ({error}): give a model that copy.deepcopy takes"
        ) from error
    if share:
        if not all(tensor.is_cpu for tensor in found.values()):
            result.cpu()
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in found.values()):
            result.float()
    return result


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As `copy.deepcopy` does, which takes its time over the many small dictionaries of modules."""
    copies = []
    for module in model.modules():
        kind: Any = type(module)
        if id(module) not in memo and _ordinary(kind):
            memo[id(module)] = new = kind.__new__(kind)
            copies.append((vars(module), vars(new)))
    for old, state in copies:
        for name, value in old.items():
            kind = type(value)
            if kind in _ATOMIC:
                state[name] = value
            elif kind is OrderedDict and not value and id(value) not in memo:  # hooks, of which most modules have none
                memo[id(value)] = state[name] = OrderedDict()
            elif name != "_compiled_call_impl":
                state[name] = _value(value, memo)
    return copy.deepcopy(model, memo)


@cache
def _ordinary(kind: Any) -> bool:
    """Whether a copy of such a module is a module with copies of its attributes."""
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
        and str(kind.__setstate__.__module__).startswith("torch.nn.")
        and not any("__slots__" in vars(one) for one in kind.__mro__)
    )


_ATOMIC = frozenset([int, float, bool, str, type(None)])


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMIC:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict):
        memo[id(value)] = new = kind()
        for key, one in value.items():
            new[key if type(key) is str else _value(key, memo)] = (
                memo[id(one)] if id(one) in memo else _value(one, memo)
            )
        return new
    if kind in (tuple, set, list) and all(type(one) in _ATOMIC for one in value):
        if kind is not tuple:
            memo[id(value)] = value = kind(value)
        return value
    if kind is Tensor and not value.requires_grad and not vars(value) and value.is_contiguous() and _whole(value):
        memo[id(value)] = copied = value.clone()
        return copied
    return copy.deepcopy(value, memo)


def _whole(value: Tensor) -> bool:
    """Whether a tensor is all of its memory."""
    return value.layout == torch.strided and value.untyped_storage().nbytes() == value.numel() * value.element_size()


def shrink(model: nn.Module, cut: Plan) -> nn.Module:
    """A smaller copy of `model`. Raises `ModelError` where the plan is not of this model."""
    found = tensors_of(model)
    changed = {}
    for name, dims in cut.tensors.items():
        if name not in found:
            raise ModelError(f"the cut names {name}, which {type(model).__name__} does not have: build the original")
        tensor = found[name].detach()
        for dim in range(tensor.dim()):
            by = cut.factors(name, dim, tensor.shape[dim])
            if by is not None:
                shape = [-1 if place == dim else 1 for place in range(tensor.dim())]
                tensor = tensor * by.to(tensor.device, tensor.dtype).view(shape)
        for dim, stays in dims.items():
            index = np.asarray(stays, np.int64)
            if dim >= tensor.dim() or index.max(initial=0) >= tensor.shape[dim]:
                raise ModelError(f"the cut does not fit {name} {tuple(tensor.shape)}: build the original")
            tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
        changed[name] = tensor.contiguous()
    result = twin(model, changed)
    modules = dict(result.named_modules())
    for path, name, value in cut.attributes:
        if path not in modules:
            raise ModelError(f"the cut names the module {path}, which is not there: build the original")
        holder = modules[path]
        old = getattr(holder, name)
        holder.__dict__[name] = type(old)(value) if isinstance(old, list | tuple) else value
    for path in cut.biases:
        if path not in modules:
            raise ModelError(f"the cut names the module {path}, which is not there: build the original")
        weight = modules[path].weight
        assert isinstance(weight, Tensor)
        size = weight.shape[1 if getattr(modules[path], "transposed", False) else 0]
        modules[path].register_parameter("bias", nn.Parameter(weight.new_zeros(size), weight.requires_grad))
    _erase(result, cut)
    integers.unfold(result, cut.unfolded)
    layers = dict(result.named_modules())
    blank = {path: integers.blank(layers.get(path), path, bits) for path, bits in cut.bits}
    integers.install(result, blank)
    configs.write(result, cut.config)
    return result


def _erase(model: nn.Module, cut: Plan) -> None:
    for path, form in cut.absent:
        if path not in dict(model.named_modules()):
            raise ModelError(f"the cut names the module {path}, which is not there: build the original")
        model.set_submodule(path, Absent(model.get_submodule(path), form, cut.fresh))
    for name in cut.missing:
        path, _, leaf = name.rpartition(".")
        parameter = dict(model.named_parameters()).get(name)
        if parameter is None:
            raise ModelError(f"the cut names {name}, which {type(model).__name__} does not have: build the original")
        holder = model.get_submodule(path)
        del holder._parameters[leaf]
        holder.__dict__[leaf] = Nothing.like(parameter, cut.fresh)


def plan(model: nn.Module, coupling: Coupling, kept: np.ndarray, flow: Flow) -> Plan:
    """What a cut that keeps the atoms `kept` does; flow: what was recorded."""
    tensors: dict[str, dict[int, list[int]]] = {}
    for axis in coupling.axes:
        stays = kept[axis.start : axis.start + axis.size]
        if not stays.all():
            tensors.setdefault(axis.tensor, {})[axis.dim] = np.flatnonzero(stays).tolist()
    scaled, scales = _scaled(model, coupling, kept, flow.scalings)
    numbers = _attributes(model, tensors, kept, flow)
    # Eight heads of eight dimensions: which number is which, only the name says.
    numbers = [one for one in numbers if not (flow.keeps_heads(one[0]) and one[1].endswith(("head", "heads")))]
    attributes = [*numbers, *scales]
    return Plan(tensors, tuple(sorted(attributes, key=lambda one: one[:2])), scaled)


def _scaled(
    model: nn.Module, coupling: Coupling, kept: np.ndarray, scalings: Iterable[Scaling]
) -> tuple[tuple[tuple[str, int, tuple[int, ...], float], ...], list[tuple[str, str, Any]]]:
    """What makes queries so much larger or smaller as the root of their size changes, and the scales that modules keep.

    Where weights are used elsewhere too, that is wrong, and the proof of the cut says so.
    """
    modules = dict(model.named_modules())
    starts = [axis.start for axis in coupling.axes]
    factors: dict[tuple[str, int, tuple[int, ...]], float] = {}
    attributes = []
    for one in scalings:
        atoms, size = one.label.numpy().reshape(-1), one.label.shape[-1]
        left = int(kept[atoms].reshape(-1, size).any(axis=0).sum())
        axis = coupling.axes[int(np.searchsorted(starts, atoms.min(), "right")) - 1]
        stem, kind = re.sub("(weight|bias)$", "", axis.tensor), modules.get(axis.tensor.rpartition(".")[0])
        inside = axis.start <= atoms.min() and atoms.max() < axis.start + axis.size
        if left == size or stem == axis.tensor or not inside:
            continue
        dim = axis.dim if axis.tensor == f"{stem}weight" else int(type(kind).__name__ == "Conv1D")
        for tensor, place in ((f"{stem}weight", dim), (f"{stem}bias", 0)):
            factors[tensor, place, tuple((atoms - axis.start).tolist())] = math.sqrt(left / size)
        attributes += [
            (one.module, name, left**-0.5)
            for name, value in vars(modules[one.module]).items()
            if "scal" in name and type(value) is float and math.isclose(value, size**-0.5)
        ]
    names = {axis.tensor for axis in coupling.axes}
    return tuple((*key, by) for key, by in factors.items() if key[0] in names), list(dict.fromkeys(attributes))


# ------------------------------------------------------------------------------------------------------- attributes

_FIXED = frozenset(
    [
        "training",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "output_padding",
        "eps",
        "momentum",
        "dropout",
        "p",
        "num_key_value_groups",
        "inplace",
    ]
)
_OTHER = [
    "bucket",
    "position",
    "rotary",
    "window",
    "patch",
    "img",
    "image",
    "vocab",
    "kernel",
    "stride",
    "max_",
    "layer",
    "depth",
    "length",
    "resolution",
    "seq",
    "idx",
    "expert",
    "top_k",
    "token",
    "label",
    "class",
    "shift",
    "level",
    "point",
    "grid",
    "ratio",
    "num_patches",
    "chunk",
    "area",
    "scale",
]
"""Words in names of numbers that speak of something else than channels."""


def _attributes(
    model: nn.Module, tensors: Mapping[str, Mapping[int, list[int]]], kept: np.ndarray, flow: Flow
) -> list[tuple[str, str, Any]]:
    sizes, groups = _shaped(kept, flow.shapings)
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
    return result + [one for one in _checked(model, tensors, shared) if one[:2] not in changed]


def _callers(entered: Set[str]) -> dict[str, str]:
    """Module that did not run, with some inside that did -> the one around it that ran, and called its methods."""
    found: dict[str, str] = {}
    ran = entered | {""}
    for path in entered:
        around = path.rpartition(".")[0]
        while around not in ran and around not in found:
            found[around] = around.rpartition(".")[0]
            around = found[around]
    for path, caller in found.items():
        while caller in found:
            caller = found[caller]
        found[path] = caller
    return found


def _shaped(
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
    sizes, groups = _shaped(kept, shapings)
    for table in sizes.values():
        for old, several in table.items():
            for new in several:
                note(old, new)
    for old, new in groups.values():
        note(old, new)
    return found


def speaks_of_widths(name: str, surely: bool = False) -> bool:
    """Whether a number of this name may be one of channels, heads or groups, or surely is."""
    return name not in _FIXED and not any(word in name for word in _OTHER) and (not surely or _sizes_something(name))


def _checked(
    model: nn.Module, tensors: Mapping[str, Mapping[int, list[int]]], shared: Mapping[int, str]
) -> list[tuple[str, str, Any]]:
    """Numbers that a module compares with the widths of the modules in it: channels and out_channels, say."""
    result = []
    for path, module in model.named_modules():
        if not any(True for _ in module.children()):
            continue
        names = [
            name
            for name, old in vars(module).items()
            if type(old) is int
            and any(word in name for word in ("channel", "feature", "planes"))
            and name not in _FIXED
        ]
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
            table = filters if "out" in name else inputs if old in inputs else filters
            if len(table.get(old, ())) == 1 and old not in table[old]:
                result.append((path, name, next(iter(table[old]))))
    return result


def _remaining(shape: tuple[int, ...], labels: Iterable[Tensor], kept: np.ndarray) -> list[int]:
    sizes = list(shape)
    for label in labels:
        stays = kept[label.numpy()]
        dims = [dim for dim, size in enumerate(stays.shape) if size > 1]
        for dim in dims:
            left = int(stays.any(axis=tuple(other for other in range(stays.ndim) if other != dim)).sum())
            sizes[dim] = min(sizes[dim], left)
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
) -> list[tuple[str, str, Any]]:
    known = _known(module, places, groups)
    result = [(path, name, value) for name, value in known.items() if getattr(module, name) != value]
    for name, old in vars(module).items():
        if name in known or name.startswith("_") or name in _FIXED or any(word in name for word in _OTHER):
            continue
        new = _renumbered(name, old, own, shaped)
        if new is not old and new != old:  # what is kept may be a tensor, which has no truth
            result.append((path, name, new))
    # Three heads of three parts each: which of the counts is that of what goes, only their names say.
    counts = {
        name: getattr(module, name) for _, name, new in result if type(new) is int and name.startswith(("num_", "n_"))
    }
    named = {old for name, old in counts.items() if _sizes_something(name)}
    return [one for one in result if one[1] not in counts or _sizes_something(one[1]) or counts[one[1]] not in named]


def _renumbered(name: str, old: Any, own: Mapping[int, set[int]], shaped: Mapping[int, set[int]]) -> Any:
    if isinstance(old, bool):
        return old
    if isinstance(old, list | tuple):
        if old and all(isinstance(one, int) and not isinstance(one, bool) for one in old):
            return type(old)(_renumbered(name, one, own, shaped) for one in old) if type(old) in (list, tuple) else old
        return old
    if not isinstance(old, int):
        return old
    for table in (shaped, own):
        changed = table.get(old, set()) - {old}
        if changed and (old not in table[old] or _sizes_something(name)):
            return min(changed)
    return old


def _sizes_something(name: str) -> bool:
    """Whether the name of an attribute speaks of what can be cut; asked only where the number alone does not say."""
    return not name.endswith(("head_dim", "key_dim", "val_dim", "value_dim", "attention_head_size")) and any(
        word in name
        for word in ("head", "dim", "channel", "feature", "embed", "hidden", "group", "split", "planes", "width")
    )


def _known(module: nn.Module, places: Mapping[str, tuple[int, ...]], groups: tuple[int, int] | None) -> dict[str, Any]:
    """The attributes of PyTorch's own modules, from the shapes of their tensors."""
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
