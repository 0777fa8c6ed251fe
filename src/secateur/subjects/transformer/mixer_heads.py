"""Find the heads inside a mixer: rows of its inputs and columns of its output that reach one another and no others.

No mixer is known by name, nor what it computes: derivatives of a small copy say which numbers of which weights reach
which columns of the output linear. Columns that one row of an input linear reaches go together, and so make a head: a
key head of a gated delta rule with its value heads, a block of an RG-LRU, one channel of a short convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.subjects.transformer.families import States
from secateur.subjects.transformer.small_copy import draw_apart, draw_model, make_tokens, run_model

__all__ = ["Heads", "read_heads"]

_COLUMNS = 16
"""Columns that are derived at once: more take longer than their number, for what is derived leaves the cache."""

_Parts = dict[str, tuple[int, tuple[int, ...]]]
"""Parameter -> the dimension along which heads stand, and the numbers that each has in every part of it.

Queries of all heads before keys of all heads are two parts."""


@dataclass(frozen=True)
class Heads:
    """The heads of a mixer as a table has them; axes: module or tensor -> the dimension where they stand, its axis."""

    axes: Mapping[str, tuple[int, str]]
    states: States


@dataclass(frozen=True)
class _Mixer:
    """Where a mixer stands: its layer, as names begin there, itself and its output linear, relative to the layer."""

    start: str
    path: str
    out: str


@dataclass(frozen=True)
class _Trial:
    """A model with other values of some settings: shapes of all parameters, and the numbers that a mixer keeps.

    Numbers are attributes of the mixer's modules but its linears and convolutions, relative to the layer.
    """

    shapes: Mapping[str, tuple[int, ...]]
    numbers: Mapping[str, int]


def read_heads(model: PreTrainedModel, start: str, path: str, out: str) -> Heads | None:
    """The heads of a mixer of a small copy; None where there are not several, or nothing says how many there are.

    See `_Mixer` for start, path and out. What counts the heads, and which of their sizes are the same in every model,
    is tried by other values of each setting.
    """
    mixer = _Mixer(start, path, out)
    found = _find_parts(model, mixer)
    plain = _outline(model, mixer, {})
    if found is None or plain is None:
        return None
    count, parts = found
    settings = {name: value for name, value in model.config.to_dict().items() if type(value) is int and value > 0}
    trials = {name: trial for name, value in settings.items() if (trial := _outline(model, mixer, {name: 2 * value}))}
    inside = [name for name, trial in trials.items() if _changes_mixers_alone(plain, trial, path)]
    resized = dict[str, _Parts]()
    """Setting that gives each head other sizes -> the parts with twice its value."""
    for name in inside:
        if not _grows(plain, trials[name], mixer, parts):
            continue  # derivatives take the longest, and would tell of the same heads
        built = _build(model, {name: 2 * settings[name]})
        other = None if built is None else _find_parts(built, mixer)
        if other is not None and other[0] == count and _are_alike(parts, other[1]):
            resized[name] = other[1]
    counting = [name for name in inside if name not in resized and settings[name] == count]
    names, doubled = _find_settings(model, mixer, plain, parts, counting, list(resized))
    counts = _find_counts(plain, doubled, list(trials.values()), mixer, count, parts)
    counters = [
        name for name in counts
        if plain.numbers[name] == count and all(trials[other].numbers.get(name) == count for other in resized)
    ]  # fmt: skip
    axes = _name_axes(parts, list(resized.values()), f"{out}.weight")
    if axes is None or not (counters or parts[f"{out}.weight"][1] == (1,)):
        return None
    states = States(
        path,
        counter=counters[0] if counters else f"{out}.in_features",
        norm="",
        heads=names[0] if names else "state_heads",
        channels="state_channels",
        says_heads=bool(names),
        beside=names[1] if len(names) > 1 else "",
        counts=tuple(counts),
    )
    return Heads(axes, states)


# ------------------------------------------------------------------------------------------------ what reaches what


def _find_parts(model: PreTrainedModel, mixer: _Mixer) -> tuple[int, _Parts] | None:
    """The number of heads, and where they stand in parameters relative to the layer; None where they are no heads.

    A row that reaches all columns is of what all heads share, and stays. So does a tensor of which every number reaches
    all heads, as a norm over each.
    """
    reached = _find_reached(model, mixer)
    modules = dict(model.named_modules())
    inputs = [
        dims[0] for name, dims in reached.items()
        if len(dims) == 2 and isinstance(modules.get(mixer.start + name.removesuffix(".weight")), nn.Linear)
    ]  # fmt: skip
    heads = _join_columns([rows[~rows.all(1)] for rows in inputs])
    if heads is None:
        return None
    count = int(heads.max()) + 1
    parts: _Parts = {f"{mixer.out}.weight": (1, (len(heads) // count,))}
    belongs = torch.from_numpy(heads[:, None] == np.arange(count)).float()
    for name, dims in reached.items():
        touched = [columns.float() @ belongs > 0 for columns in dims]  # each [numbers along dim, heads]
        along = [dim for dim, heads_of in enumerate(touched) if not heads_of.all()]
        if not along:
            continue
        (dim, *others) = along
        if others or not (touched[dim].sum(1) == 1).all():
            return None
        lengths = _split(touched[dim].int().argmax(1).tolist(), count)
        if lengths is None:
            return None
        parts[name] = dim, lengths
    return count, parts


class _ReachedError(Exception):
    """The output linear is reached: the rest of the model need not run."""


@torch.enable_grad()
def _find_reached(model: PreTrainedModel, mixer: _Mixer) -> dict[str, list[Tensor]]:
    """Parameter of the mixer -> for each dimension, [numbers along it, columns of the output linear]: does it reach it.

    Without those that reach none, and none where the mixer does not run.
    """
    start, found = mixer.start, list[Tensor]()
    inner = model.get_submodule(start + mixer.path).named_parameters(prefix=mixer.path)
    tensors = {name: tensor for name, tensor in inner if not name.startswith(f"{mixer.out}.")}

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _ReachedError

    hook = model.get_submodule(start + mixer.out).register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(Exception):  # values that were tried may be impossible
            run_model(model, make_tokens()[:1])  # of one text: time goes by the size of what is derived
    finally:
        hook.remove()
    if not found or not found[0].requires_grad or not tensors:
        return {}
    columns = found[0].flatten(0, -2)
    with draw_apart():
        totals = (columns * torch.randn_like(columns)).sum(0)
    try:
        pieces = [
            torch.autograd.grad(
                totals, list(tensors.values()), some, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
            for some in torch.eye(len(totals)).split(_COLUMNS)
        ]
    except RuntimeError:  # of an operator that has no derivative, or none for several columns at once
        return {}
    gradients = [None if some[0] is None else torch.cat(some) for some in zip(*pieces, strict=True)]
    return {
        name: [
            (gradient != 0).movedim(dim, 1).reshape(len(totals), size, -1).any(2).T
            for dim, size in enumerate(gradient.shape) if dim
        ]
        for name, gradient in zip(tensors, gradients, strict=True) if gradient is not None and gradient.any()
    }  # fmt: skip


def _join_columns(inputs: Sequence[Tensor]) -> np.ndarray | None:
    """The head of each column, from the [rows, columns] that rows of input linears reach.

    None where all columns are of one head, some of none, or heads differ in size or have no order.
    """
    rows = torch.cat(list(inputs)).numpy() if inputs else np.zeros((0, 1), bool)
    if not rows.any(0).all():
        return None
    heads = np.arange(rows.shape[1])
    for columns in rows:
        joined = np.unique(heads[columns])
        heads[np.isin(heads, joined)] = joined.min(initial=len(heads))
    numbers = np.unique(heads, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    return numbers if count > 1 and _split(numbers.tolist(), count) == (len(heads) // count,) else None


def _split(heads: Sequence[int], count: int) -> tuple[int, ...] | None:
    """How many numbers each head has in every part, where parts have all heads in order with as many each; else None.

    >>> _split([0, 0, 1, 1, 0, 1], 2)
    (2, 1)
    """
    runs = [(head, len(list(group))) for head, group in groupby(heads)]
    if [head for head, _ in runs] != list(range(count)) * (len(runs) // count):
        return None
    lengths = [{length for _, length in runs[first : first + count]} for first in range(0, len(runs), count)]
    return tuple(min(one) for one in lengths) if all(len(one) == 1 for one in lengths) else None


# ------------------------------------------------------------------------------------------------ what counts them


def _build(model: PreTrainedModel, values: Mapping[str, int]) -> PreTrainedModel | None:
    """A random model of the same class with other values of some settings; None where it can't be built."""
    try:
        return draw_model(type(model), type(model.config).from_dict(model.config.to_dict() | dict(values)))
    except Exception:  # a class may want another number
        return None


def _outline(model: PreTrainedModel, mixer: _Mixer, values: Mapping[str, int]) -> _Trial | None:
    """What a model with other values of some settings has; None where it can't be built, or lacks the mixer."""
    try:
        with torch.device("meta"):
            built = type(model)(type(model.config).from_dict(model.config.to_dict() | dict(values)))
    except Exception:  # a class may want another number
        return None
    modules = dict(built.named_modules())
    if mixer.start + mixer.path not in modules:
        return None
    numbers = dict[str, int]()
    for name, module in modules[mixer.start + mixer.path].named_modules(prefix=mixer.path):
        if not isinstance(module, nn.Linear | nn.Conv1d):
            numbers |= {f"{name}.{key}": value for key, value in vars(module).items() if type(value) is int}
    return _Trial({name: tuple(tensor.shape) for name, tensor in built.named_parameters()}, numbers)


def _changes_mixers_alone(plain: _Trial, trial: _Trial, path: str) -> bool:
    changed = [name for name, shape in plain.shapes.items() if trial.shapes.get(name) != shape]
    return bool(changed) and all(f".{path}." in name for name in changed)


def _grows(plain: _Trial, trial: _Trial, mixer: _Mixer, parts: _Parts) -> bool:
    """Whether a tensor has more numbers where its heads stand."""
    places = {mixer.start + name: (dim, plain.shapes[mixer.start + name]) for name, (dim, _) in parts.items()}
    return any(trial.shapes.get(name, shape)[dim] > shape[dim] for name, (dim, shape) in places.items())


def _are_alike(parts: _Parts, other: _Parts) -> bool:
    """Whether heads stand along the same dimensions, in as many parts."""
    return {name: (dim, len(sizes)) for name, (dim, sizes) in parts.items()} == {
        name: (dim, len(sizes)) for name, (dim, sizes) in other.items()
    }


def _find_settings(
    model: PreTrainedModel,
    mixer: _Mixer,
    plain: _Trial,
    parts: _Parts,
    counting: Sequence[str],
    resizing: Sequence[str],
) -> tuple[list[str], _Trial | None]:
    """The setting of which twice the value gives mixers twice the heads and nothing else, and the outline with it.

    counting: settings that may be it; resizing: those that give each head more, one of which may have to grow with it.
    """
    wanted = dict[str, tuple[int, ...]]()
    for name, shape in plain.shapes.items():
        _, inside, rest = name.partition(f".{mixer.path}.")
        dim = parts.get(f"{mixer.path}.{rest}", (-1, ()))[0] if inside else -1
        wanted[name] = tuple(2 * size if place == dim else size for place, size in enumerate(shape))
    settings = model.config.to_dict()
    for names in [[name] for name in counting] + [[name, other] for name in counting for other in resizing]:
        trial = _outline(model, mixer, {name: 2 * settings[name] for name in names})
        if trial is not None and trial.shapes == wanted:
            return names, trial
    return [], None


def _find_counts(
    plain: _Trial, doubled: _Trial | None, trials: Sequence[_Trial], mixer: _Mixer, count: int, parts: _Parts
) -> list[str]:
    """The numbers that a mixer keeps which grow with its heads: twice as large where there are twice the heads.

    Where no setting says the heads alone (`doubled` is None), those that are as large as something with heads, and grow
    with something that has.
    """
    if doubled is not None:
        return [name for name, value in plain.numbers.items() if value and doubled.numbers.get(name) == 2 * value]
    sizes = {count, *(count * sum(lengths) for _, lengths in parts.values())}
    growing = [trial for trial in trials if _grows(plain, trial, mixer, parts)]
    return [
        name for name, value in plain.numbers.items()
        if value in sizes and any(trial.numbers.get(name) == 2 * value for trial in growing)
    ]  # fmt: skip


def _name_axes(parts: _Parts, resized: Sequence[_Parts], out: str) -> dict[str, tuple[int, str]] | None:
    """Module or tensor -> the dimension where heads stand, and its axis as tables write it; a bias has its weight's.

    resized: the parts of models whose heads have other sizes. What is as large as the columns of `out` in all of them
    is "state_heads*". None where an axis has parts of more than one other size.
    """
    found = dict[str, tuple[int, str]]()
    wide = tuple(one[out][1][0] for one in (parts, *resized))
    for name, (dim, lengths) in parts.items():
        sizes = [tuple(one[name][1][part] for one in (parts, *resized)) for part in range(len(lengths))]
        several = len(set(sizes)) > 1
        if several and len(set(sizes) - {wide}) > 1:
            return None
        axis = "+".join(
            "state_heads*" if size == wide and (several or name == out) else "state_heads*n" for size in sizes
        )
        if name.endswith(".bias"):
            if parts.get(f"{name.removesuffix('.bias')}.weight", (-1, ())) != (dim, lengths):
                return None
            continue
        found[name.removesuffix(".weight")] = dim, axis
    return found
