"""Put labels on an operator's result, by its rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from secateur.subjects.network.labels import CONSUMED, LEFT_OUT, NOTHING, REDUCED, SOURCES, Flow
from secateur.subjects.network.operators import (
    Arguments,
    Call,
    Keywords,
    base_name,
    name_of,
    names,
    results_of,
    tensors_in,
)
from secateur.subjects.network.rules import MOVES, RECURRENT, RULES, SAME, pass_elementwise

__all__ = ["apply"]

_RECURRENT = names("_cudnn_rnn")

_BLANKS = names(
    "zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like "
    "scalar_tensor"
)
"""Operators that make a tensor of one value (or of none yet): it takes on the labels of what it is combined with."""

_PASSING = names(
    "view _unsafe_view reshape _reshape_alias unflatten flatten expand slice narrow select split split_with_sizes "
    "unbind chunk"
).union(MOVES, SAME)
"""Operators through which a single index that was picked out may pass; at any other it must stay."""

_TAKING = names(
    "slice narrow select split split_with_sizes unbind chunk unsafe_split unsafe_chunk slice_copy split_copy "
    "split_with_sizes_copy unbind_copy diagonal unfold constant_pad_nd"
)
"""Operators that take a part of a tensor and leave the rest out; padding by less than nothing does, too."""

_LINEAR = names("mm addmm linear convolution _convolution")

_BASE = "_secateur_base"
"""Marks a view of a tensor of one value with that tensor."""


class _Facts(NamedTuple):
    """What is asked of an operator each time it runs."""

    name: str
    base: str
    pointwise: bool


_FACTS: dict[int, _Facts] = {}
"""By the operator's id, which takes less time than its hash."""


def _facts(func: OpOverload) -> _Facts:
    name = name_of(func)
    base, pointwise = base_name(name), torch.Tag.pointwise in func.tags
    return _Facts(name, base, pointwise)


def apply(flow: Flow, func: OpOverload, args: Arguments, kwargs: Keywords, out: object) -> None:
    """Label what an operator returned, and note what becomes of labels that it does not carry on.

    Of a table that is scaled before a part of it is taken, the network uses that part; so what an operator carries on
    is used only where a later one does not.
    """
    facts = _FACTS.get(id(func))
    if facts is None:
        facts = _FACTS[id(func)] = _facts(func)
    name, base, pointwise = facts
    rule = RULES.get(base) or (pass_elementwise if pointwise else None)
    if name.endswith("_") and args and isinstance(args[0], Tensor):
        _note_write(flow, args)
    if name in _BLANKS:
        flow.mark(out, flow.labels(args[0]) if name.endswith("_like") else NOTHING, blank=True)
        return
    tensors = [value for value in args if isinstance(value, Tensor)]
    if kwargs or any(isinstance(value, list | tuple) for value in args):
        tensors = list(tensors_in((args, kwargs)))
    inplace = name != base
    if not any(flow.labels(value) for value in tensors):
        if not any(flow.blank(value) for value in tensors):
            return
        flow.operator = name
        # One value all over stays one value through anything that looks at one element at a time, and through views.
        only = all(flow.blank(value) for value in tensors)
        if only and (base in SAME or base in MOVES or pointwise):
            for value in results_of(out):
                flow.mark(value, NOTHING, blank=True)
                if isinstance(value, Tensor) and all(one is not value for one in tensors):
                    value.__dict__[SOURCES] = [one for one in tensors if one.dim() == value.dim()]
                if base in _PASSING and base not in SAME:
                    value.__dict__[_BASE] = args[0]
        elif inplace and tensors and out is tensors[0]:
            flow.mark(out, NOTHING, blank=False)
        return
    flow.operator = name
    results = results_of(out)
    entered = [label for value in tensors for label in flow.labels(value)]
    if rule is None:
        flow.keep_inputs(tensors, RECURRENT if base in _RECURRENT else f"{name} is not known to the analysis")
        for value in results:
            flow.mark(value, NOTHING)
        flow.lose(entered, results, CONSUMED)
        return
    if base not in _PASSING:
        for value in tensors:
            flow.drop_single(value)
    one = (base in SAME or base in MOVES or pointwise) and all(flow.blank(value) for value in tensors)  # value all over
    labels = rule(flow, Call(func, name, args, kwargs, out))
    # A linear layer whose input lies in pieces adds its bias on its own.
    passed = bool(args) and flow.linear(args[0]) and (base in _PASSING or (base == "add" and _is_row(args[1])))
    for value in results:
        flow.mark_linear(value, passed or base in _LINEAR)
    for value, own in zip(results, labels if isinstance(labels, list) else [labels] * len(results), strict=False):
        if one:  # an index that is picked out of it is as good as any other
            own = tuple(label for label in own if label.numel() > 1)
        flow.mark(value, own, blank=one and not inplace)
    if inplace and results and flow.blank(results[0]):
        flow.mark(results[0], flow.labels(results[0]), blank=False)
    flow.lose(entered, results, LEFT_OUT if base in _TAKING else REDUCED if len(tensors) == 1 else CONSUMED)


def _is_row(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _note_write(flow: Flow, args: Arguments) -> None:
    """A part of a tensor of one value is written: the whole is one value no longer, and what is written stays."""
    whole = args[0].__dict__.get(_BASE)
    if whole is None:
        return
    while whole is not None:
        flow.mark(whole, NOTHING, blank=False)
        whole = whole.__dict__.get(_BASE)
    flow.mark(args[0], NOTHING, blank=False)
    flow.keep_inputs(tensors_in(args[1:]), "is written into a part of another tensor")
