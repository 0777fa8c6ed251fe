"""What each operator does to labels. An operator without a rule here keeps all that enters it: nothing is guessed.

A rule takes the flow, the operator, its arguments and what it returned, and gives the labels of its result, or a list
of them for an operator of several results. Operators that only move elements run on the labels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.subjects.network.flow import NOTHING, Flow, Labelled, Labels, Scaling, Shaping
from secateur.subjects.network.labels import along, compact, first, on, padded, varying

__all__ = ["BLANKS", "RECURRENT", "Step", "adopt", "apply", "look", "marks", "repeat"]

Given = Sequence[Any]
Result = Labels | list[Labels]
Rule = Callable[[Flow, Any, Given, dict[str, Any], Any], Result]

_RULES: dict[str, Rule] = {}

BLANKS = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "scalar_tensor",
    ]
)
"""Operators that make a tensor of one value (or of none yet): it takes on any labels it meets."""

RECURRENT = "belongs to a recurrent layer, whose state goes on from step to step"
_RECURRENT = frozenset(["mkldnn_rnn_layer", "_cudnn_rnn"])


def apply(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> None:
    """Label what an operator returned."""
    known = _FACTS.get(id(func))
    if known is None:
        known = _FACTS[id(func)] = _facts(func)
    name, base, inplace, rule = known.name, known.base, known.inplace, known.rule
    if known.written and args and isinstance(args[0], Tensor):
        _written(flow, args)
    if known.blank:
        flow.mark(out, flow.labels(args[0]) if name.endswith("_like") else NOTHING, blank=True)
        return
    tensors = [value for value in args if isinstance(value, Tensor)]
    if kwargs or any(isinstance(value, list | tuple) for value in args):
        tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
    labelled = any(flow.labels(value) for value in tensors)
    if not labelled:
        if not any(flow.blank(value) for value in tensors):
            return
        flow.operator = name
        # One value all over stays one value through anything that looks at one element at a time, and through views.
        only = all(flow.blank(value) for value in tensors)
        if only and (base in _SAME or base in _MOVES or _pointwise(func)):
            for value in _outputs(out):
                flow.mark(value, NOTHING, blank=True)
                if base in _PASSING and base not in _SAME:
                    value.__dict__["_secateur_base"] = args[0]
        elif inplace and tensors and out is tensors[0]:
            flow.mark(out, NOTHING, blank=False)
        return
    flow.operator = name
    if rule is None:
        flow.unknown(tensors, RECURRENT if base in _RECURRENT else f"{name} is not known to the analysis")
        for value in _outputs(out):
            flow.mark(value, NOTHING)
        return
    if base not in _PASSING:
        for value in tensors:
            flow.drop_single(value)
    labels = rule(flow, func, args, kwargs, out)
    results = _outputs(out)
    passed = bool(args) and flow.linear(args[0]) and (base in _PASSING or (base == "add" and _row(args[1])))
    for value in results:
        flow.mark_linear(value, passed or base in _LINEAR)
    if isinstance(labels, list):
        for value, one in zip(results, labels, strict=False):
            flow.mark(value, one)
    else:
        for value in results:
            flow.mark(value, labels if isinstance(value, Tensor) else NOTHING)
    if inplace and results and flow.blank(results[0]):
        flow.mark(results[0], flow.labels(results[0]), blank=False)


class Step(NamedTuple):
    """An operator of a recorded pass: what entered it and what came of it, (labels, blank) of each tensor."""

    func: Any
    given: list[tuple[Labels, bool]]
    plain: list[Any]
    made: list[tuple[Labels, bool]]
    again: bool
    """Whether the same comes of it whenever the same enters, whatever the values are."""


def look(flow: Flow, args: Given, kwargs: dict[str, Any]) -> tuple[list[tuple[Labels, bool]], list[Any], bool]:
    """What enters an operator: labels of tensors, all else, and whether values may matter (numbers that are whole)."""
    given, plain, values = [], [], False
    for value in (*args, *kwargs.values()):
        parts = value if isinstance(value, list | tuple) else (value,)
        if parts and isinstance(parts[0], Tensor):
            for one in parts:
                given.append((flow.labels(one), flow.blank(one)))
                values = values or not (isinstance(one, Tensor) and one.is_floating_point())
        else:
            plain.append(value)
            values = values or any(isinstance(one, Tensor) for one in parts)
    return given, plain, values


def repeat(flow: Flow, step: Step, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> bool:
    """Label what an operator returned as a step of a recorded pass says, where the same entered it."""
    if not step.again:
        return False
    given, plain, values = look(flow, args, kwargs)
    if values or len(given) != len(step.given) or plain != step.plain:
        return False
    for (labels, blank), (old, before) in zip(given, step.given, strict=True):
        if labels is not old or blank != before:
            return False
    results = _outputs(out)
    if len(results) != len(step.made):
        return False
    for value, (labels, blank) in zip(results, step.made, strict=True):
        flow.mark(value, labels, blank)
    return True


def marks(flow: Flow, out: Any) -> tuple[list[tuple[Labels, bool]], bool]:
    """What came of an operator, and whether it is marked as no part of something else."""
    results = _outputs(out)
    made = [(flow.labels(value), flow.blank(value)) for value in results]
    return made, not any("_secateur_base" in getattr(value, "__dict__", ()) for value in results)


def adopt(flow: Flow, step: Step, out: Any) -> None:
    """Give what an operator returned the very labels of a recorded pass, where they are equal to its own."""
    for value, (labels, _) in zip(_outputs(out), step.made, strict=False):
        mine = flow.labels(value)
        if len(mine) == len(labels) and all(torch.equal(one, other) for one, other in zip(mine, labels, strict=True)):
            flow.mark(value, labels, flow.blank(value))


class _Facts(NamedTuple):
    """What is asked of an operator each time it runs."""

    func: Any
    name: str
    base: str
    inplace: bool
    written: bool
    blank: bool
    rule: Rule | None


_FACTS: dict[int, _Facts] = {}


def _facts(func: Any) -> _Facts:
    name = func.overloadpacket.__name__
    inplace = name.endswith("_") and not name.endswith("__")
    base = name[:-1] if inplace else name
    rule = _RULES.get(base) or (_elementwise if _pointwise(func) else None)
    return _Facts(func, name, base, inplace, name.endswith("_"), name in BLANKS, rule)


def _written(flow: Flow, args: Given) -> None:
    """A part of a tensor of one value is written: the whole is one value no longer, and what is written stays."""
    whole = args[0].__dict__.get("_secateur_base")
    if whole is None:
        return
    while whole is not None:
        flow.mark(whole, NOTHING, blank=False)
        whole = whole.__dict__.get("_secateur_base")
    flow.mark(args[0], NOTHING, blank=False)
    flow.unknown(_flat(args[1:]), "is written into a part of another tensor")


def _pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [one for part in value for one in _flat(part)]
    if isinstance(value, dict):
        return [one for part in value.values() for one in _flat(part)]
    return []


def _row(value: Any) -> bool:
    """Whether this may be a bias, which a linear layer adds on its own where its input lies in pieces."""
    return isinstance(value, Tensor) and value.dim() == 1


def _outputs(out: Any) -> list[Any]:
    if isinstance(out, Tensor):
        return [out]
    return (
        [one for part in out for one in (_outputs(part) if isinstance(part, list | tuple) else [part])]
        if isinstance(out, list | tuple)
        else []
    )


def _rule(names: str) -> Callable[[Rule], Rule]:
    def put(rule: Rule) -> Rule:
        for name in names.split():
            _RULES[name] = rule
        return rule

    return put


def _get(args: Given, kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _dims(value: Any, rank: int) -> list[int]:
    if value is None or (isinstance(value, list | tuple) and not value):
        return list(range(rank))
    return [dim % max(rank, 1) for dim in ([value] if isinstance(value, int) else value)]


# ---------------------------------------------------------------------------------------------- one element at a time


@_rule(
    "where lerp addcmul addcdiv masked_fill _prelu_kernel prelu rsub hardtanh leaky_relu elu softplus threshold "
    "silu mish gelu hardswish hardsigmoid log_sigmoid_forward fmod remainder floor_divide clamp nan_to_num "
    "logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not isnan complex polar angle"
)
def _elementwise(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    return flow.meet([flow.operand(value) for value in _flat((args, kwargs))])


_SAME = frozenset(
    [
        "clone",
        "contiguous",
        "detach",
        "_to_copy",
        "alias",
        "lift_fresh",
        "lift",
        "native_dropout",
        "dropout",
        "bernoulli",
        "positive",
        "_conj",
        "conj",
        "resolve_conj",
        "resolve_neg",
        "zero",
        "fill",
        "alpha_dropout",
        "feature_dropout",
        "rand_like",
        "randn_like",
    ]
)


def _same(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    return flow.labels(args[0])


for _name in _SAME:
    _RULES[_name] = _same


@_rule("as_strided")
def _strided(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    if args[0].shape != out.shape:
        flow.unknown([args[0]], "as_strided reads memory as it lies")
        return NOTHING
    return flow.labels(args[0])


@_rule("copy")
def _copy(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    source = flow.operand(args[1])
    if out._is_view():
        return flow.meet([flow.operand(args[0]), source], "is written into a part of another tensor")
    rank = out.dim()
    return tuple(padded(label, rank) for label in source.labels)


# ------------------------------------------------------------------------------------------------ moving elements


def _moved(flow: Flow, label: Tensor) -> Tensor | None:
    if not label.numel():
        return None
    label = compact(label)
    return None if label.numel() == 1 and int(label.reshape(())) == 0 else label


def _all_moved(flow: Flow, labels: Sequence[Tensor]) -> Labels:
    found = (_moved(flow, label) for label in labels)
    return tuple(label for label in found if label is not None)


@_rule("view _unsafe_view reshape _reshape_alias unflatten flatten _reshape_copy view_copy")
def _view(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    source = args[0]
    if isinstance(_get(args, kwargs, 1, "size"), torch.dtype):
        return NOTHING
    shape = out.shape
    if source.shape == shape:
        labels = flow.labels(source)
    else:
        labels = _all_moved(flow, [label.expand(source.shape).reshape(shape) for label in flow.labels(source)])
    flow.shapings.append(Shaping(flow.where, "view", tuple(shape), labels))
    for label in labels:
        if sum(size > 1 for size in label.shape) > 1:
            flow.joint.append((label, flow.reason("is reshaped into several dimensions")))
    return labels


_MOVES = frozenset(
    [
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "roll",
        "flip",
        "repeat",
        "unfold",
        "movedim",
        "diagonal",
        "narrow",
        "numpy_T",
        "mT",
        "index_select",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "rot90",
        "take",
        "slice_copy",
        "permute_copy",
    ]
)


@_rule(
    "permute transpose t unsqueeze squeeze movedim diagonal numpy_T mT flip unfold rot90 repeat index_select "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle permute_copy"
)
def _move(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    shape = args[0].shape
    name = func.overloadpacket.__name__
    if name in ("permute", "transpose", "t", "unsqueeze", "numpy_T", "mT"):
        return tuple(func(label, *args[1:], **kwargs) for label in flow.labels(args[0]))
    if name.rstrip("_") in ("repeat",):
        flow.shapings.append(Shaping(flow.where, "view", tuple(out.shape), NOTHING))
    return _all_moved(flow, [func(label.expand(shape), *args[1:], **kwargs) for label in flow.labels(args[0])])


_VIEWS = "view _unsafe_view reshape _reshape_alias unflatten flatten expand slice narrow select split split_with_sizes"
_PASSING = _MOVES | _SAME | frozenset(_VIEWS.split()) | frozenset(("unbind", "chunk"))
"""Operators through which a single index that was picked out may pass; at any other it must stay."""
_LINEAR = frozenset(["mm", "addmm", "linear", "convolution", "_convolution"])


@_rule("expand")
def _expand(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    labels = tuple(padded(label, out.dim()) for label in flow.labels(args[0]))
    flow.shapings.append(Shaping(flow.where, "view", tuple(out.shape), labels))
    return labels


@_rule("slice narrow")
def _slice(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    source = args[0]
    dim = _get(args, kwargs, 1, "dim", 0) % source.dim()
    labels = []
    for label in flow.labels(source):
        if label.shape[dim] == 1:
            labels.append(label)
            continue
        start, end = _get(args, kwargs, 2, "start", 0) or 0, _get(args, kwargs, 3, "end")
        size = source.shape[dim]
        start = max(start + size, 0) if start < 0 else min(start, size)
        end = size if end is None else max(end + size, 0) if end < 0 else min(end, size)
        flow.shapings.append(Shaping(flow.where, "slice", tuple(source.shape), (label,), dim, (start, end)))
        moved = _moved(flow, func(label, *args[1:], **kwargs))
        labels += [moved] if moved is not None else []
    return tuple(labels)


@_rule("select")
def _select(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    dim = args[1] % args[0].dim()
    labels = []
    for label in flow.labels(args[0]):
        if label.shape[dim] == 1:
            labels.append(label.squeeze(dim))
        else:
            moved = _moved(flow, func(label, *args[1:], **kwargs))
            labels += [moved] if moved is not None else []
    return tuple(labels)


@_rule("roll")
def _roll(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    dims = _dims(_get(args, kwargs, 2, "dims"), args[0].dim())
    return flow.settled(flow.labels(args[0]), dims, "is rolled along the channels")


@_rule("split split_with_sizes unbind chunk split_with_sizes_copy unsafe_split unsafe_chunk split_copy unbind_copy")
def _split(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    source, name = args[0], func.overloadpacket.__name__
    dim = _get(args, kwargs, 1 if "unbind" in name else 2, "dim", 0) % source.dim()
    parts: list[list[Tensor]] = [[] for _ in out]
    for label in flow.labels(source):
        if label.shape[dim] == 1:
            for part in parts:
                part.append(label.squeeze(dim) if "unbind" in name else label)
            continue
        pieces = func(label, *args[1:], **kwargs)
        if "unbind" not in name:
            start = 0
            for piece in pieces:
                end = start + piece.shape[dim]
                flow.shapings.append(Shaping(flow.where, "slice", tuple(source.shape), (label,), dim, (start, end)))
                start = end
            if len({piece.shape[dim] for piece in pieces}) == 1:
                # Equal parts stay equal: the code may well ask for them by one number.
                for piece in pieces[1:]:
                    flow.atoms.join(pieces[0], piece, flow.reason("is split into equal parts"))
        for part, piece in zip(parts, pieces, strict=True):
            moved = _moved(flow, piece)
            if moved is not None:
                part.append(moved)
    return [tuple(part) for part in parts]


@_rule("cat")
def _cat(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    dim = _get(args, kwargs, 1, "dim", 0) % out.dim()
    tensors = [value for value in args[0] if tuple(value.shape) != (0,) and value.shape[dim]]
    return _joined(flow, [flow.operand(value) for value in tensors], dim)


@_rule("stack")
def _stack(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    dim = _get(args, kwargs, 1, "dim", 0) % out.dim()
    operands = []
    for value in args[0]:
        one = flow.operand(value)
        shape = (*one.shape[:dim], 1, *one.shape[dim:])
        operands.append(Labelled(shape, tuple(label.unsqueeze(dim) for label in one.labels), one.blank))
    return _joined(flow, operands, dim)


def _joined(flow: Flow, operands: list[Labelled], dim: int) -> Labels:
    """Side by side along `dim`: what varies across it must agree, what varies along it stands one after another."""
    across, beside = [], []
    for one in operands:
        mine = [label for label in one.labels if label.shape[dim] == 1]
        shape = tuple(1 if place == dim else size for place, size in enumerate(one.shape))
        across.append(Labelled(shape, tuple(mine), one.blank))
        beside.append([label for label in one.labels if label.shape[dim] > 1])
    if not any(beside):
        return flow.meet(across)
    others = {place for labels in beside for label in labels for place in varying(label) - {dim}}
    if others:
        # Labels across and along `dim` at once: all of them move together as they stand.
        beside = [list(one.labels) for one in operands]
        across = []
    rows = []
    shared = others | {dim}
    for one, labels in zip(operands, beside, strict=True):
        for extra in labels[1:]:
            flow.keep([extra], "is joined with others along two kinds of channels")
        full = [size if place in shared else 1 for place, size in enumerate(one.shape)]
        label = labels[0] if labels else torch.zeros([1] * len(full), dtype=torch.int32)
        if varying(label) - shared:
            flow.keep([label], "is joined with others across its channels")
            label = torch.zeros([1] * len(full), dtype=torch.int32)
        rows.append(label.expand(full))
    joined = _moved(flow, torch.cat(rows, dim))
    result = list(flow.meet(across)) if across else []
    if joined is not None:
        result.append(joined)
        if len(varying(joined)) > 1:
            flow.joint.append((joined, flow.reason("is joined along several dimensions")))
    return tuple(result)


@_rule("index _unsafe_index")
def _index(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    source, indices = args[0], args[1]
    labels = flow.settled(flow.labels(source), _indexed(indices), "is looked up by index")
    return _all_moved(flow, [func(label.expand(source.shape), indices) for label in labels])


def _indexed(indices: Sequence[Tensor | None]) -> list[int]:
    """The dimensions that indices are for: one each, and of a mask as many as it has."""
    dims, place = [], 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        if index is not None:
            dims += list(range(place, place + width))
        place += width
    return dims


@_rule("embedding")
def _embedding(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    rows = [label for label in flow.labels(args[0]) if label.shape[0] > 1]
    flow.settled(rows, [0], "is looked up by index")
    return tuple(on(along(label, 1), out.dim() - 1, out.dim()) for label in flow.labels(args[0]) if label.shape[0] == 1)


@_rule(
    "gather index_add index_put scatter scatter_add index_copy scatter_reduce index_fill take_along_dim "
    "_index_put_impl masked_scatter sort topk cumsum cumprod logcumsumexp argmax argmin argsort kthvalue cummax"
)
def _by_index(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    """Elements picked or put along some dimensions: labels pass where they vary along others."""
    name = func.overloadpacket.__name__.rstrip("_")
    self = args[0]
    rank = self.dim()
    if "index_put" in name:
        dims = _indexed(args[1])
        values = flow.operand(args[2])
        lead = len(values.shape) - (rank - len(dims))
        if dims != list(range(len(dims))):
            flow.unknown(_flat((args, kwargs)), f"{name} writes by index")
            return NOTHING
        shape = (1,) * len(dims) + values.shape[max(lead, 0) :]
        inner = flow.settled(values.labels, range(max(lead, 0)), "is written by index")
        inner = tuple(padded(label.reshape(label.shape[max(lead, 0) :]), rank) for label in inner)
        mine = Labelled(
            (1,) * len(dims) + self.shape[len(dims) :],
            flow.settled(flow.labels(self), dims, "is indexed"),
            flow.blank(self),
        )
        return flow.meet([mine, Labelled(shape, inner, values.blank)])
    if name == "masked_scatter":
        flow.unknown(_flat((args, kwargs)), "masked_scatter writes by mask")
        return NOTHING
    place = 2 if name in ("topk", "kthvalue") else 1
    dim = _get(args, kwargs, place, "dim", -1 if name in ("topk", "sort", "kthvalue", "argsort") else None)
    if name == "sort" and "stable" in kwargs:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    dims = _dims(dim, rank)
    operands = []
    for value in (args[0], *(args[3:4] if name not in ("topk", "sort", "cumsum", "kthvalue") else ())):
        one = flow.operand(value)
        if isinstance(value, Tensor) and value.dim() == rank:
            shape = tuple(1 if place in dims else size for place, size in enumerate(one.shape))
            operands.append(Labelled(shape, flow.settled(one.labels, dims, f"{name} along the channels"), one.blank))
    labels = flow.meet(operands)
    if name in ("argmax", "argmin") and not _get(args, kwargs, 2, "keepdim", False):
        labels = tuple(_without(label, dims) for label in labels)
    if name == "gather":
        flow.shapings.append(Shaping(flow.where, "view", tuple(out.shape), labels))
    return labels


def _without(label: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        label = label.squeeze(dim)
    return label


# ------------------------------------------------------------------------------------------------------ contractions


@_rule("mm addmm bmm baddbmm addbmm mv addmv dot matmul linear")
def _matmul(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    name = func.overloadpacket.__name__.rstrip("_")
    bias = args[0] if name in ("addmm", "baddbmm", "addmv") else None
    a, b = args[1:3] if bias is not None else args[:2]
    if name in ("addbmm", "dot") or (name == "matmul" and (a.dim() > 3 or b.dim() > 3 or a.dim() != b.dim())):
        flow.unknown(_flat((args, kwargs)), f"{name} is not known to the analysis")
        return NOTHING
    left, right = flow.operand(a), flow.operand(b)
    if name == "linear":
        lead = left.shape[:-1]
        if len(left.shape) != 2:
            flow_labels = _all_moved(flow, [label.expand(a.shape).reshape(-1, a.shape[-1]) for label in left.labels])
            left = Labelled((lead.numel() if isinstance(lead, torch.Size) else -1, a.shape[-1]), flow_labels)
        right = Labelled(right.shape[::-1], tuple(label.t() for label in right.labels), right.blank)
        bias = _get(args, kwargs, 2, "bias")
    vector = name in ("mv", "addmv")
    if vector:
        right = Labelled((*right.shape, 1), tuple(label.unsqueeze(1) for label in right.labels), right.blank)
    flat = len(left.shape) == 2
    if flat:
        left = Labelled((1, *left.shape), tuple(label.unsqueeze(0) for label in left.labels), left.blank)
        right = Labelled((1, *right.shape), tuple(label.unsqueeze(0) for label in right.labels), right.blank)
    labels = flow.contract(left, right)
    if flat:
        labels = tuple(label.squeeze(0) for label in labels)
    if vector:
        labels = tuple(label.squeeze(1) for label in labels)
    if name == "linear":
        labels = tuple(
            label.expand(label.shape).reshape((1,) * (out.dim() - 1) + label.shape[1:])
            for label in labels
            if label.shape[0] == 1
        )
    if bias is not None:
        shape = tuple(out.shape)
        labels = flow.meet([Labelled(shape, labels), flow.operand(bias)])
    return labels


@_rule("_grouped_mm")
def _grouped_matmul(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    """Rows of [n, k], in groups, with one matrix of [g, k, m] each."""
    a, b = flow.operand(args[0]), flow.operand(args[1])
    if len(a.shape) != 2 or len(b.shape) != 3:
        flow.unknown(args, "_grouped_mm of this shape is not known to the analysis")
        return NOTHING
    inner = flow.settled(b.labels, [0], "is one of several experts")
    flow.aligned += [*a.labels, *inner]
    right = Labelled((1, *b.shape[1:]), inner, b.blank)
    left = Labelled((1, *a.shape), tuple(label.unsqueeze(0) for label in a.labels), a.blank)
    return tuple(label.squeeze(0) for label in flow.contract(left, right))


@_rule("_weight_norm_interface _weight_norm")
def _weight_norm(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    return [flow.meet([flow.operand(args[0]), flow.operand(args[1])]), NOTHING]


@_rule("convolution _convolution mkldnn_convolution cudnn_convolution")
def _convolution(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, weight, bias = args[:3]
    transposed, groups = (args[6], args[8]) if len(args) > 8 else (False, args[-1])
    rank = out.dim()
    what = "enters a convolution beside its channels"
    batch = tuple(label for label in flow.labels(x) if varying(label) == {0})
    rows = flow.rows(tuple(label for label in flow.labels(x) if varying(label) != {0}), 1, what)
    filters, inputs = (1, 0) if transposed else (0, 1)
    by_dim: dict[int, list[Tensor]] = {0: [], 1: []}
    for label in flow.labels(weight):
        dims = varying(label)
        keep = 0 if 0 in dims else 1
        rest = flow.collapse(label, dims - {keep}, "is the kernel of a convolution") if dims != {keep} else label
        if rest is not None and rest.shape[keep] > 1:
            by_dim[keep].append(along(rest, keep))
        elif keep == 1 and 1 not in dims:
            flow.keep([label], "is the kernel of a convolution")
    channels = x.shape[1] if x.dim() == rank else x.shape[0]
    if groups == 1:
        flow.meet([Labelled((channels,), rows, flow.blank(x)), Labelled((channels,), tuple(by_dim[inputs]))])
        result = tuple(by_dim[filters])
    else:
        result = _grouped(flow, rows, by_dim, channels, out.shape[1], groups, transposed)
    labels = tuple(on(row, 1, rank) for row in result)
    if isinstance(bias, Tensor):
        row = tuple(on(label, 1, rank) for label in flow.labels(bias))
        shape = tuple(size if place == 1 else 1 for place, size in enumerate(out.shape))
        labels = flow.meet([Labelled(shape, labels), Labelled(shape, row)])
    if groups > 1:
        kind = "whole" if channels // groups <= groups else "tied"
        flow.shapings.append(Shaping(flow.where, kind, (channels,), rows, 0, (groups,)))
    return (*labels, *batch)


def _grouped(
    flow: Flow,
    rows: Labels,
    by_dim: dict[int, list[Tensor]],
    channels: int,
    filters: int,
    groups: int,
    transposed: bool,
) -> Labels:
    """Many thin groups go as wholes; of few thick ones, the same index of each goes, so that they stay alike."""
    thick, wide = channels // groups, filters // groups
    whole = thick <= groups

    def blocks(labels: Sequence[Tensor], width: int) -> Labels:
        found = tuple(label.reshape(groups, width) for label in labels)
        return tuple(
            along(one, 0 if whole else 1)
            for one in flow.settled(found, [1 if whole else 0], "is in a convolution with groups")
            if one.shape[0 if whole else 1] > 1
        )

    outer = blocks(by_dim[0], thick if transposed else wide)
    mine = blocks(rows, thick)
    if whole:
        flow.keep(by_dim[1], "is inside a group of a convolution")
        meeting = flow.meet([Labelled((groups,), mine), Labelled((groups,), outer)])
        return tuple(row.view(groups, 1).expand(groups, wide).reshape(-1) for row in meeting)
    inner = tuple(by_dim[1])
    if transposed:
        flow.meet([Labelled((thick,), mine), Labelled((thick,), outer)])
        return tuple(row.expand(groups, wide).reshape(-1) for row in inner)
    flow.meet([Labelled((thick,), mine), Labelled((thick,), inner)])
    return tuple(row.expand(groups, wide).reshape(-1) for row in outer)


@_rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math scaled_dot_product_attention _scaled_dot_product_fused_attention_overrideable"
)
def _attention(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    query, key, value = args[:3]
    heads = query.shape[1]
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None)
    what = "is inside attention"
    head_rows: list[Labelled] = []
    outer: Labels = NOTHING
    inner: list[Labels] = []
    # Without a scale of its own, attention divides by the root of the size of heads: what makes the query can make up.
    rooted = kwargs.get("scale") is None and flow.linear(query)
    for place, tensor in enumerate((query, key, value)):
        labels = flow.labels(tensor)
        if flow.keeps_heads(flow.where):
            labels = flow.settled(labels, [1], what)
        joint = [label for label in labels if label.shape[1] > 1]
        alone = [label for label in labels if label.shape[1] == 1]
        found: list[Tensor] = []
        for label in joint:
            rest = flow.collapse(label, (0, 2, 3), what)
            if rest is not None:
                row = along(rest, 1)
                flow.heads.append(row)
                found.append(row.repeat_interleave(heads // row.numel()) if row.numel() != heads else row)
        head_rows.append(Labelled((heads,), tuple(found), flow.blank(tensor)))
        if place == 2:
            outer = tuple(label for label in alone if varying(label) == {3})
            flow.keep([label for label in alone if varying(label) != {3}], what)
        elif kwargs.get("scale") is not None or rooted:
            inner.append(flow.rows(tuple(alone), 3, what))
        else:
            flow.keep(alone, "sets the scale of attention")
    if inner:
        flow.meet([Labelled((query.shape[3],), one) for one in inner])
        if rooted:
            sizes = [label for label in flow.labels(query) if label.shape[3] > 1]
            flow.scalings += [Scaling(flow.where, label) for label in sizes]
    if isinstance(mask, Tensor):
        head_rows.append(
            Labelled(
                (mask.shape[1] if mask.dim() == 4 else 1,),
                flow.rows(flow.labels(mask), 1, what) if mask.dim() == 4 else NOTHING,
                flow.blank(mask),
            )
        )
    labels = (*(on(one, 1, 4) for one in flow.meet(head_rows)), *outer)
    return [labels, NOTHING, *([NOTHING] * 8)] if not isinstance(out, Tensor) else labels


# -------------------------------------------------------------------------------------------------- reductions, norms


@_rule(
    "sum mean amax amin max min var std var_mean std_mean prod any all logsumexp linalg_vector_norm norm "
    "softmax log_softmax _softmax _log_softmax _safe_softmax nansum median aminmax"
)
def _reduction(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    name = func.overloadpacket.__name__.rstrip("_")
    x = args[0]
    if func._overloadname == "other":
        return _elementwise(flow, func, args, kwargs, out)
    place = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = _dims(_get(args, kwargs, place, "dim", None), x.dim())
    soft = "softmax" in name
    if "median" in name and any(varying(label) & set(dims) for label in flow.labels(x)):
        flow.unknown([x], "median over channels")
        return NOTHING
    labels: list[Tensor] = []
    for label in flow.labels(x):
        dims_of = varying(label)
        if dims_of & set(dims):
            if dims_of <= set(dims):
                labels += [label] if soft else []
                continue  # runs over the channels that are kept
            rest = flow.collapse(label, dims_of & set(dims), "is reduced with others")
            assert rest is not None
            label = rest
        labels.append(label)
    first_out = out[0] if isinstance(out, tuple | list) else out
    if not soft and first_out.dim() < x.dim():
        labels = [_without(label, dims) for label in labels]
    return tuple(labels)


@_rule("native_layer_norm _fused_rms_norm")
def _layer_norm(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, shape = args[0], args[1]
    dims = set(range(x.dim() - len(shape), x.dim()))
    labels = []
    for label in flow.labels(x):
        dims_of = varying(label)
        if dims_of & dims and not dims_of <= dims:
            rest = flow.collapse(label, dims_of & dims, "is normalised with others")
            assert rest is not None
            labels.append(rest)
        else:
            labels.append(label)
    flow.shapings.append(Shaping(flow.where, "view", tuple(x.shape), tuple(labels)))
    affine = [flow.operand(value) for value in args[2:4] if isinstance(value, Tensor)]
    result = flow.meet([Labelled(tuple(x.shape), tuple(labels)), *affine])
    return [result, NOTHING, NOTHING]


@_rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_native_batch_norm_legit_functional batch_norm miopen_batch_norm"
)
def _batch_norm(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x = args[0]
    rank = x.dim()
    passing = []
    for label in flow.labels(x):
        dims = varying(label)
        if 1 in dims and len(dims) > 1:
            rest = flow.collapse(label, dims - {1}, "is normalised by channel")
            passing += [rest] if rest is not None else []
        else:
            passing.append(label)
    shape = tuple(x.shape)
    row = tuple(size if place == 1 else 1 for place, size in enumerate(shape))
    affine = [
        Labelled(row, tuple(on(along(label, 0), 1, rank) for label in flow.labels(value)))
        for value in args[1:5]
        if isinstance(value, Tensor) and value.dim() == 1
    ]
    result = flow.meet([Labelled(shape, tuple(passing)), *affine])
    return [result, *([NOTHING] * 4)]


@_rule("native_group_norm")
def _group_norm(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, weight, bias = args[:3]
    rank, channels, groups = x.dim(), x.shape[1], args[6]
    rows = flow.rows(flow.labels(x), 1, "is normalised in groups")
    affine = [Labelled((channels,), flow.labels(value), False) for value in (weight, bias) if isinstance(value, Tensor)]
    result = flow.meet([Labelled((channels,), rows), *affine])
    if groups == channels:
        flow.shapings.append(Shaping(flow.where, "whole", (channels,), result, 0, (groups,)))
    elif groups > 1:
        for row in result:
            blocks = row.reshape(groups, -1)
            rest = first(blocks, [0])
            if rest.numel() > 1:
                flow.atoms.join(rest, blocks, flow.reason("groups of a norm stay alike"))
            else:
                flow.keep([row], "each group of a norm has one channel")
    return [tuple(on(row, 1, rank) for row in result), NOTHING, NOTHING]


# ------------------------------------------------------------------------------------------------- in space


@_rule(
    "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_avg_pool2d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_bilinear2d "
    "upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d reflection_pad3d "
    "grid_sampler_2d cudnn_grid_sampler"
)
def _spatial(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x = args[0]
    changed = range(1 if x.dim() == 2 else 2, x.dim())
    labels = flow.settled(flow.labels(x), changed, "is pooled, padded or resized")
    if isinstance(args[1], Tensor):
        flow.unknown([args[1]], "places to sample from")
    return labels


@_rule("constant_pad_nd")
def _pad(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, pad = args[0], args[1]
    labels = []
    for label in flow.labels(x):
        dims = [x.dim() - 1 - place for place in range(len(pad) // 2) if pad[2 * place] or pad[2 * place + 1]]
        if varying(label) & set(dims):
            moved = _moved(flow, func(label.expand(x.shape), pad, 0))
            labels += [moved] if moved is not None else []
        else:
            labels.append(label)
    return tuple(labels)


@_rule("im2col")
def _im2col(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, kernel = args[0], args[1]
    size = kernel[0] * kernel[1]
    rows = flow.rows(flow.labels(x), 1, "is unfolded into patches")
    return tuple(on(row.repeat_interleave(size), 1, out.dim()) for row in rows)


@_rule("col2im")
def _col2im(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x, kernel = args[0], args[2]
    size = kernel[0] * kernel[1]
    rows = flow.rows(flow.labels(x), 1, "is folded from patches")
    blocks = flow.settled((row.reshape(-1, size) for row in rows), [1], "is folded from patches")
    return tuple(on(along(one, 0), 1, out.dim()) for one in blocks if one.shape[0] > 1)


@_rule("glu")
def _glu(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x = args[0]
    dim = _get(args, kwargs, 1, "dim", -1) % x.dim()
    halves: list[list[Tensor]] = [[], []]
    for label in flow.labels(x):
        if label.shape[dim] == 1:
            halves[0].append(label)
        else:
            for half, part in zip(halves, label.chunk(2, dim), strict=True):
                half.append(part)
    shape = tuple(out.shape)
    if not halves[1]:
        return tuple(halves[0])
    return flow.meet([Labelled(shape, tuple(half)) for half in halves])


@_rule("roi_align roi_pool")
def _roi(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    rows = flow.rows(flow.labels(args[0]), 1, "is sampled in regions")
    flow.unknown([args[1]], "regions to sample from")
    return tuple(on(row, 1, out.dim()) for row in rows)


@_rule("view_as_complex")
def _complex(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    last = args[0].dim() - 1
    labels = flow.settled(flow.labels(args[0]), [last], "becomes a complex number")
    return tuple(label.squeeze(last) for label in labels)


@_rule("view_as_real")
def _real(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    return tuple(label.unsqueeze(-1) for label in flow.labels(args[0]))


@_rule("_fft_c2c _fft_r2c _fft_c2r")
def _fourier(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    return flow.settled(flow.labels(args[0]), args[1], "is Fourier-transformed")


@_rule("triu tril _local_scalar_dense is_nonzero sym_size")
def _triangle(flow: Flow, func: Any, args: Given, kwargs: dict[str, Any], out: Any) -> Result:
    x = args[0]
    return flow.settled(flow.labels(x), [x.dim() - 2, x.dim() - 1] if x.dim() > 1 else [0], "loses a triangle")
