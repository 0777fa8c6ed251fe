"""Apply a cut to a network: a plan names the kept indices of tensors and the changed integers of modules.

A plan is plain data, so a saved result is the original, the plan, and the weights.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.formats import integers
from secateur.subjects.network import configs
from secateur.subjects.network.absent import Absent, Nothing
from secateur.subjects.network.attributes import changed_numbers, has_role
from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.labels import Flow, Scaling
from secateur.subjects.network.recording import WIDENED, tensors_of

if TYPE_CHECKING:
    from secateur.subjects.network.parts import Whole

__all__ = ["History", "Plan", "history", "plan", "remember", "shrink", "twin"]


@dataclass(frozen=True)
class Plan:
    """What a cut does to a network."""

    tensors: Mapping[str, Mapping[int, list[int]]] = field(default_factory=dict)
    """Tensor -> dimension -> indices that stay."""
    attributes: tuple[tuple[str, str, Any], ...] = ()
    """(module, attribute, new value)."""
    biases: tuple[str, ...] = ()
    """Modules that get a bias, which they did not have: zeros, to be filled with offsets."""
    scaled: tuple[tuple[str, int, tuple[int, ...], float], ...] = ()
    """(tensor, dimension, indices before the cut, factor): what makes up for a scale that the cut changes."""
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
        """Plain data for JSON: what every file of a cut has, and the fields that say something."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["tensors"] = {
            name: {str(dim): index for dim, index in dims.items()} for name, dims in self.tensors.items()
        }
        return {name: value for name, value in data.items() if value or name in ("tensors", "attributes", "biases")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        try:
            tensors = {
                name: {int(dim): list(map(int, index)) for dim, index in dims.items()}
                for name, dims in data["tensors"].items()
            }
            others = {field.name: _with_tuples(data[field.name]) for field in fields(cls)[1:] if field.name in data}
            for name in ("bits", "config"):
                others[name] = tuple((*entry[:-1], int(entry[-1])) for entry in others.get(name, ()))
            others["scaled"] = tuple(
                (tensor, int(dim), tuple(map(int, index)), float(by))
                for tensor, dim, index, by in others.get("scaled", ())
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the file of a cut is damaged: {error!r}; save the result again") from error
        return cls(tensors, **others)

    def within(self, path: str) -> Plan:
        """The same cut of a network that holds this one at `path`."""

        def place(name: str) -> str:
            return f"{path}.{name}" if name else path

        places = {
            key: tuple((place(name), *rest) for name, *rest in getattr(self, key))
            for key in ("attributes", "scaled", "absent", "bits", "config")
        }
        names = {key: tuple(map(place, getattr(self, key))) for key in ("biases", "missing", "unfolded")}
        tensors = {place(name): dims for name, dims in self.tensors.items()}
        return replace(self, tensors=tensors, **places, **names)  # type: ignore[arg-type]

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


def _with_tuples(value: object) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


_HISTORY = "_secateur_history"
"""The attribute of a network that says where it comes from: copies, and what torch.save pickles, have it too."""


@dataclass(frozen=True)
class History:
    """Where a network comes from. It is pickled as a text, which loads where secateur is not installed."""

    plans: tuple[Plan, ...] = ()
    """What was done to the original, cut after cut."""
    channels: float | None = None
    """How many channels the last cut has left, as it counted them."""
    built_by: str = ""
    """The function that builds the original, "file.py:function"; "" where it was given as a module."""
    whole: Whole | None = None
    """Of a part of a network, see `parts`: what it was taken from. No file says so."""

    def __deepcopy__(self, memo: object) -> History:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (json.dumps(self.to_dict()),)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data: dict[str, object] = {"plans": [plan.to_dict() for plan in self.plans], "channels": self.channels}
        return {**data, "built_by": self.built_by} if self.built_by else data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """The inverse of `to_dict`."""
        channels = float(data["channels"]) if data.get("channels") else None
        plans = tuple(Plan.from_dict(plan) for plan in data.get("plans", ()))
        return cls(plans, channels, str(data.get("built_by", "")))

    def since(self, earlier: History) -> tuple[Plan, ...]:
        """The plans after those of `earlier`, where these are the first of this; else all."""
        count = len(earlier.plans)
        before, first = ([plan.to_dict() for plan in plans] for plans in (earlier.plans, self.plans[:count]))
        return self.plans[count:] if json.dumps(before) == json.dumps(first) else self.plans


def history(model: nn.Module) -> History:
    """Where `model` comes from; an empty one where nothing was cut from it."""
    said = getattr(model, "__dict__", {}).get(_HISTORY)  # what is no module is refused elsewhere
    if isinstance(said, str):  # it was pickled
        said = History.from_dict(json.loads(said))
        remember(model, said)
    return said if isinstance(said, History) else History()


def remember(model: nn.Module, said: History) -> None:
    """Let `model` say where it comes from."""
    model.__dict__[_HISTORY] = said


def twin(model: nn.Module, changed: Mapping[str, Tensor] | None = None, *, share: bool = False) -> nn.Module:
    """A copy of `model` with some tensors `changed`.

    With `share`, one to look at: all other parameters are those of `model` where they lie on the CPU in float32 (or
    float64), and are brought there where not, so that a proof does not drown in the rounding of half precision.
    """
    memo: dict[int, object] = {}
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
        result = _copy_model(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} can't be copied ({error}): give a model that copy.deepcopy takes"
        ) from error
    if share:
        if not all(tensor.is_cpu for tensor in found.values()):
            result.cpu()
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in found.values()):
            result.float()
            result.__dict__[WIDENED] = True
    return result


def _copy_model(model: nn.Module, memo: dict[int, object]) -> nn.Module:
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
def _ordinary(kind: type[nn.Module]) -> bool:
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


def _value(value: Any, memo: dict[int, object]) -> object:
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
    blank = {path: integers.blank_scales(layers.get(path), path, bits) for path, bits in cut.bits}
    integers.install(result, blank)
    configs.write(result, cut.config)
    before = history(model)
    remember(result, replace(before, plans=(*before.plans, cut), channels=None))
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
    scaled, scales = _scale_factors(model, coupling, kept, flow.scalings)
    attributes = [*changed_numbers(model, tensors, kept, flow), *scales]
    return Plan(tensors, tuple(sorted(attributes, key=lambda number: number[:2])), scaled=scaled)


def _scale_factors(
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
            if has_role(name, "scale") and type(value) is float and math.isclose(value, size**-0.5)
        ]
    names = {axis.tensor for axis in coupling.axes}
    return tuple((*key, by) for key, by in factors.items() if key[0] in names), list(dict.fromkeys(attributes))
