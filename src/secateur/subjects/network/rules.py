"""What each operator does to labels. An operator without a rule here keeps all that enters it: nothing is guessed.

A rule takes the flow and the call of an operator, and gives the labels of its result, or a list of them for an operator
of several results. Operators that only move elements run on the labels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.subjects.network.labels import (
    NOTHING,
    Flow,
    Labels,
    Operand,
    Scaling,
    along,
    compact,
    first,
    on,
    pad_rank,
    varying,
)
from secateur.subjects.network.operators import Call, base_name, dimensions, names, qualify

__all__ = ["MOVES", "RECURRENT", "RULES", "SAME", "Rule", "pass_elementwise", "rule"]

Result = Labels | list[Labels]
Rule = Callable[[Flow, Call], Result]

RULES: dict[str, Rule] = {}
"""By `qualify` of `operators`: bare names are torch's and torchvision's, those of other libraries have a namespace."""

RECURRENT = "belongs to a recurrent layer, whose state goes on from step to step"
"""Why the gates and states of such layers stay."""


def _rule(text: str) -> Callable[[Rule], Rule]:
    def put(rule: Rule) -> Rule:
        for name in text.split():
            RULES[name] = rule
        return rule

    return put


def rule(operator: str, does: Literal["elementwise", "spatial"] | Rule) -> None:
    """Say what an operator that the analysis does not know does to channels, from now on in this process.

        secateur.rule("mylib::swish", "elementwise")

    Args:
        operator: its name as torch registers it, "namespace::name".
        does: "elementwise", where each element of the result comes of the elements at the same place of its tensors,
            broadcast; "spatial", where [B, C, ...] becomes [B, C, ...] channel by channel (pooling, resizing); or a
            rule, as those in this file: (flow, call) -> labels of the result.

    A wrong rule makes no wrong network: each cut is proved beside the original, and what fails stays whole. Raises
    `InputError` for an operator that is not registered.
    """
    namespace, _, name = operator.rpartition("::")
    namespace = namespace or "aten"
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise InputError(
            f"{operator!r} is no operator of torch: write namespace::name, as in torch.library.custom_op, and import "
            "what registers it first"
        )
    if not callable(does) and does not in _KINDS:
        raise InputError(f"does={does!r}: give {' or '.join(map(repr, _KINDS))}, or a rule (flow, call) -> labels")
    RULES[base_name(qualify(namespace, name))] = does if callable(does) else _KINDS[does]


# ---------------------------------------------------------------------------------------------- one element at a time


@_rule(
    "where lerp addcmul addcdiv masked_fill _prelu_kernel prelu rsub hardtanh leaky_relu elu softplus threshold "
    "silu mish gelu hardswish hardsigmoid log_sigmoid_forward fmod remainder floor_divide clamp nan_to_num "
    "logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not isnan complex polar angle"
)
def pass_elementwise(flow: Flow, call: Call) -> Result:
    """Labels of an operator that looks at one element of each operand at a time."""
    labels = flow.elementwise([flow.operand(value) for value in call.tensors])
    for value in call.tensors:
        flow.take_on(value, labels)
    return labels


SAME = names(
    "clone contiguous detach _to_copy alias lift_fresh lift native_dropout dropout bernoulli positive _conj conj "
    "resolve_conj resolve_neg zero fill alpha_dropout feature_dropout rand_like randn_like"
)
"""Operators that give what they are given, element by element."""


@_rule(" ".join(SAME))
def _same(flow: Flow, call: Call) -> Result:
    return flow.labels(call.args[0])


@_rule("as_strided")
def _as_strided(flow: Flow, call: Call) -> Result:
    if call.args[0].shape != call.out.shape:
        flow.keep_inputs([call.args[0]], "as_strided reads memory as it lies")
        return NOTHING
    return flow.labels(call.args[0])


@_rule("copy")
def _copy(flow: Flow, call: Call) -> Result:
    source = flow.operand(call.args[1])
    if call.out._is_view():
        return flow.elementwise([flow.operand(call.args[0]), source], "is written into a part of another tensor")
    rank = call.out.dim()
    return tuple(pad_rank(label, rank) for label in source.labels)


# ------------------------------------------------------------------------------------------------ moving elements


def _moved_labels(labels: Iterable[Tensor]) -> Labels:
    """Labels on which an operator that moves elements ran; those that name no atom any more are left out."""
    moved = (compact(label) for label in labels if label.numel())
    return tuple(label for label in moved if label.numel() > 1 or int(label.reshape(())))


@_rule("view _unsafe_view reshape _reshape_alias unflatten flatten _reshape_copy view_copy")
def _view(flow: Flow, call: Call) -> Result:
    source = call.args[0]
    if isinstance(call.get(1, "size"), torch.dtype):
        return NOTHING
    shape = call.out.shape
    if source.shape == shape:
        labels = flow.labels(source)
    else:
        labels = _moved_labels([label.expand(source.shape).reshape(shape) for label in flow.labels(source)])
    flow.note_shape("view", tuple(shape), labels)
    for label in labels:
        if sum(size > 1 for size in label.shape) > 1:
            flow.joint.append((label, flow.reason("is reshaped into several dimensions")))
    return labels


MOVES = names(
    "permute transpose t unsqueeze squeeze expand slice select roll flip repeat unfold movedim diagonal narrow "
    "numpy_T mT index_select pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle rot90 take "
    "slice_copy permute_copy"
)
"""Operators that give elements of what they are given, in other places."""


@_rule(
    "permute transpose t unsqueeze squeeze movedim diagonal numpy_T mT flip unfold rot90 repeat "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle permute_copy"
)
def _move(flow: Flow, call: Call) -> Result:
    labels = flow.labels(call.args[0])
    if call.name in ("permute", "transpose", "t", "unsqueeze", "numpy_T", "mT"):
        return tuple(call.repeated_on(label) for label in labels)
    if call.base == "repeat":
        flow.note_shape("view", tuple(call.out.shape), NOTHING)
    shape = call.args[0].shape
    return _moved_labels([call.repeated_on(label.expand(shape)) for label in labels])


@_rule("expand")
def _expand(flow: Flow, call: Call) -> Result:
    labels = tuple(pad_rank(label, call.out.dim()) for label in flow.labels(call.args[0]))
    flow.note_shape("view", tuple(call.out.shape), labels)
    return labels


@_rule("slice narrow")
def _slice(flow: Flow, call: Call) -> Result:
    source = call.args[0]
    dim = call.get(1, "dim", 0) % source.dim()
    labels = []
    for label in flow.labels(source):
        if label.shape[dim] == 1:
            labels.append(label)
            continue
        start, end = call.get(2, "start", 0) or 0, call.get(3, "end")
        size = source.shape[dim]
        start = max(start + size, 0) if start < 0 else min(start, size)
        end = size if end is None else max(end + size, 0) if end < 0 else min(end, size)
        flow.note_shape("slice", tuple(source.shape), (label,), dim, (start, end))
        labels += _moved_labels([call.repeated_on(label)])
    return tuple(labels)


@_rule("select")
def _select(flow: Flow, call: Call) -> Result:
    dim = call.args[1] % call.args[0].dim()
    labels = []
    for label in flow.labels(call.args[0]):
        if label.shape[dim] == 1:
            labels.append(label.squeeze(dim))
        else:
            labels += _moved_labels([call.repeated_on(label)])
    return tuple(labels)


@_rule("roll")
def _roll(flow: Flow, call: Call) -> Result:
    dims = dimensions(call.get(2, "dims"), call.args[0].dim())
    return flow.collapse_all(flow.labels(call.args[0]), dims, "is rolled along the channels")


@_rule("split split_with_sizes unbind chunk split_with_sizes_copy unsafe_split unsafe_chunk split_copy unbind_copy")
def _split(flow: Flow, call: Call) -> Result:
    source, name = call.args[0], call.name
    dim = call.get(1 if "unbind" in name else 2, "dim", 0) % source.dim()
    parts: list[list[Tensor]] = [[] for _ in call.out]
    for label in flow.labels(source):
        if label.shape[dim] == 1:
            for part in parts:
                part.append(label.squeeze(dim) if "unbind" in name else label)
            continue
        pieces = call.repeated_on(label)
        if "unbind" not in name:
            start = 0
            for piece in pieces:
                end = start + piece.shape[dim]
                flow.note_shape("slice", tuple(source.shape), (label,), dim, (start, end))
                start = end
            if len({piece.shape[dim] for piece in pieces}) == 1:
                # Equal parts stay equal: the code may well ask for them by one number.
                for piece in pieces[1:]:
                    flow.join(pieces[0], piece, "is split into equal parts")
        for part, piece in zip(parts, pieces, strict=True):
            part += _moved_labels([piece])
    return [tuple(part) for part in parts]


@_rule("cat")
def _cat(flow: Flow, call: Call) -> Result:
    dim = call.get(1, "dim", 0) % call.out.dim()
    tensors = [value for value in call.args[0] if tuple(value.shape) != (0,) and value.shape[dim]]
    return _join(flow, [flow.operand(value) for value in tensors], dim)


@_rule("stack")
def _stack(flow: Flow, call: Call) -> Result:
    dim = call.get(1, "dim", 0) % call.out.dim()
    operands = []
    for value in call.args[0]:
        one = flow.operand(value)
        shape = (*one.shape[:dim], 1, *one.shape[dim:])
        operands.append(Operand(shape, tuple(label.unsqueeze(dim) for label in one.labels), one.blank))
    return _join(flow, operands, dim)


def _join(flow: Flow, operands: list[Operand], dim: int) -> Labels:
    """Side by side along `dim`: what varies across it must agree, what varies along it stands one after another."""
    across, beside = [], []
    for one in operands:
        mine = [label for label in one.labels if label.shape[dim] == 1]
        shape = tuple(1 if place == dim else size for place, size in enumerate(one.shape))
        across.append(Operand(shape, tuple(mine), one.blank))
        beside.append([label for label in one.labels if label.shape[dim] > 1])
    if not any(beside):
        return flow.elementwise(across)
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
    joined = _moved_labels([torch.cat(rows, dim)])
    flow.joint += [
        (label, flow.reason("is joined along several dimensions")) for label in joined if len(varying(label)) > 1
    ]
    return (*(flow.elementwise(across) if across else ()), *joined)


@_rule("index _unsafe_index")
def _index(flow: Flow, call: Call) -> Result:
    source, indices = call.args[0], call.args[1]
    labels = flow.collapse_all(flow.labels(source), _indexed_dims(indices), "is looked up by index")
    return _moved_labels([call.func(label.expand(source.shape), indices) for label in labels])


@_rule("index_select")
def _index_select(flow: Flow, call: Call) -> Result:
    """Rows of a table, some of which another input may ask for; where all are taken, they are moved or repeated."""
    source, labels = call.args[0], flow.labels(call.args[0])
    dim = call.args[1] % max(source.dim(), 1)
    if source.dim() and len(call.args[2].unique()) < source.shape[dim]:
        labels = flow.collapse_all(labels, [dim], "is looked up by index")
    return _moved_labels([call.repeated_on(label.expand(source.shape)) for label in labels])


def _indexed_dims(indices: Sequence[Tensor | None]) -> list[int]:
    """The dimensions that indices are for: one each, and of a mask as many as it has."""
    dims, place = [], 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        if index is not None:
            dims += list(range(place, place + width))
        place += width
    return dims


@_rule("embedding")
def _embedding(flow: Flow, call: Call) -> Result:
    labels, rank = flow.labels(call.args[0]), call.out.dim()
    flow.collapse_all([label for label in labels if label.shape[0] > 1], [0], "is looked up by index")
    return tuple(on(along(label, 1), rank - 1, rank) for label in labels if label.shape[0] == 1)


@_rule(
    "gather index_add index_put scatter scatter_add index_copy scatter_reduce index_fill take_along_dim "
    "_index_put_impl masked_scatter sort topk cumsum cumprod logcumsumexp argmax argmin argsort kthvalue cummax"
)
def _by_index(flow: Flow, call: Call) -> Result:
    """Elements picked or put along some dimensions: labels pass where they vary along others."""
    name = call.base
    self = call.args[0]
    rank = self.dim()
    if "index_put" in name:
        dims = _indexed_dims(call.args[1])
        values = flow.operand(call.args[2])
        lead = len(values.shape) - (rank - len(dims))
        if dims != list(range(len(dims))):
            flow.keep_inputs(call.tensors, f"{name} writes by index")
            return NOTHING
        shape = (1,) * len(dims) + values.shape[max(lead, 0) :]
        inner = flow.collapse_all(values.labels, range(max(lead, 0)), "is written by index")
        inner = tuple(pad_rank(label.reshape(label.shape[max(lead, 0) :]), rank) for label in inner)
        outer = (1,) * len(dims) + self.shape[len(dims) :]
        mine = Operand(outer, flow.collapse_all(flow.labels(self), dims, "is indexed"), flow.blank(self))
        return flow.elementwise([mine, Operand(shape, inner, values.blank)])
    if name == "masked_scatter":
        flow.keep_inputs(call.tensors, "masked_scatter writes by mask")
        return NOTHING
    place = 2 if name in ("topk", "kthvalue") else 1
    dim = call.get(place, "dim", -1 if name in ("topk", "sort", "kthvalue", "argsort") else None)
    if name == "sort" and "stable" in call.kwargs:
        dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    dims = dimensions(dim, rank)
    operands = []
    for value in (call.args[0], *(call.args[3:4] if name not in ("topk", "sort", "cumsum", "kthvalue") else ())):
        one = flow.operand(value)
        if isinstance(value, Tensor) and value.dim() == rank:
            shape = tuple(1 if place in dims else size for place, size in enumerate(one.shape))
            labels = flow.collapse_all(one.labels, dims, f"{name} along the channels")
            operands.append(Operand(shape, labels, one.blank))
    labels = flow.elementwise(operands)
    if name in ("argmax", "argmin") and not call.get(2, "keepdim", False):
        labels = tuple(_without(label, dims) for label in labels)
    if name == "gather":
        flow.note_shape("view", tuple(call.out.shape), labels)
    return labels


def _without(label: Tensor, dims: Sequence[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        label = label.squeeze(dim)
    return label


# ------------------------------------------------------------------------------------------------------ contractions


@_rule("mm addmm bmm baddbmm addbmm mv addmv dot matmul linear")
def _matmul(flow: Flow, call: Call) -> Result:
    name = call.base
    bias = call.args[0] if name in ("addmm", "baddbmm", "addmv") else None
    a, b = call.args[1:3] if bias is not None else call.args[:2]
    if name in ("addbmm", "dot") or (name == "matmul" and (a.dim() > 3 or b.dim() > 3 or a.dim() != b.dim())):
        flow.keep_inputs(call.tensors, f"{name} is not known to the analysis")
        return NOTHING
    left, right = flow.operand(a), flow.operand(b)
    if name == "linear":
        if len(left.shape) != 2:
            rows = _moved_labels([label.expand(a.shape).reshape(-1, a.shape[-1]) for label in left.labels])
            left = Operand((-1, a.shape[-1]), rows)
        right = Operand(right.shape[::-1], tuple(label.t() for label in right.labels), right.blank)
        bias = call.get(2, "bias")
    vector = name in ("mv", "addmv")
    if vector:
        right = Operand((*right.shape, 1), tuple(label.unsqueeze(1) for label in right.labels), right.blank)
    flat = len(left.shape) == 2
    if flat:
        left = Operand((1, *left.shape), tuple(label.unsqueeze(0) for label in left.labels), left.blank)
        right = Operand((1, *right.shape), tuple(label.unsqueeze(0) for label in right.labels), right.blank)
    labels = flow.matmul(left, right)
    if flat:
        labels = tuple(label.squeeze(0) for label in labels)
    if vector:
        labels = tuple(label.squeeze(1) for label in labels)
    if name == "linear":
        lead = (1,) * (call.out.dim() - 1)
        labels = tuple(label.reshape(lead + label.shape[1:]) for label in labels if label.shape[0] == 1)
    if bias is not None:
        labels = flow.elementwise([Operand(tuple(call.out.shape), labels), flow.operand(bias)])
    return labels


@_rule("bmm baddbmm")
def _batched_matmul(flow: Flow, call: Call) -> Result:
    """`_matmul` of many matrices at once, also with a state that begins with zeros, and of blocks.

    Rows [h, m, k] that came as h blocks of one row meet one weight [h, k, n] each: blocks go as wholes. Columns of the
    weight stay: they will lie beside one another again, where those of a block must go with the block alone.
    """
    for value in call.tensors:
        if value._is_view() and flow.blank(value._base) and not flow.labels(value):
            flow.mark(value, NOTHING, blank=True)
    rows, weight = call.args[-2:]
    blocks = any(varying(label) >= {0, 2} for label in flow.labels(rows))
    if call.base == "baddbmm" and blocks and any(varying(label) == {0} for label in flow.labels(weight)):
        flow.keep([label for label in flow.labels(weight) if varying(label) == {2}], "is inside a block")
        flow.mark(weight, tuple(label for label in flow.labels(weight) if varying(label) != {2}))
    return _matmul(flow, call)


@_rule("linalg_solve_triangular")
def _solve(flow: Flow, call: Call) -> Result:
    """X of A X = B, or of X A = B: whole systems of a batch go, and of one system what B has beside A's rows."""
    a, b = flow.operand(call.args[0]), flow.operand(call.args[1])
    inner = len(b.shape) - (2 if call.kwargs.get("left", True) else 1)
    square = (len(a.shape) - 2, len(a.shape) - 1)
    what = "is inside a system of equations"
    shape = tuple(1 if dim == inner else size for dim, size in enumerate(b.shape))
    systems = Operand((*a.shape[:-2], 1, 1), flow.collapse_all(a.labels, square, what), a.blank)
    return flow.elementwise([systems, Operand(shape, flow.collapse_all(b.labels, [inner], what), b.blank)])


@_rule("_grouped_mm")
def _grouped_matmul(flow: Flow, call: Call) -> Result:
    """Rows of [n, k], in groups, with one matrix of [g, k, m] each."""
    a, b = flow.operand(call.args[0]), flow.operand(call.args[1])
    if len(a.shape) != 2 or len(b.shape) != 3:
        flow.keep_inputs(call.args, "_grouped_mm of this shape is not known to the analysis")
        return NOTHING
    inner = flow.collapse_all(b.labels, [0], "is one of several experts")
    flow.aligned += [*a.labels, *inner]
    right = Operand((1, *b.shape[1:]), inner, b.blank)
    left = Operand((1, *a.shape), tuple(label.unsqueeze(0) for label in a.labels), a.blank)
    return tuple(label.squeeze(0) for label in flow.matmul(left, right))


@_rule("_weight_norm_interface _weight_norm")
def _weight_norm(flow: Flow, call: Call) -> Result:
    return [flow.elementwise([flow.operand(call.args[0]), flow.operand(call.args[1])]), NOTHING]


@_rule("convolution _convolution mkldnn_convolution cudnn_convolution")
def _convolution(flow: Flow, call: Call) -> Result:
    x, weight, bias = call.args[:3]
    transposed, groups = (call.args[6], call.args[8]) if len(call.args) > 8 else (False, call.args[-1])
    rank = call.out.dim()
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
        flow.elementwise([Operand((channels,), rows, flow.blank(x)), Operand((channels,), tuple(by_dim[inputs]))])
        result = tuple(by_dim[filters])
    else:
        result = _grouped_convolution(flow, rows, by_dim, channels, call.out.shape[1], groups, transposed)
    labels = tuple(on(row, 1, rank) for row in result)
    if isinstance(bias, Tensor):
        row = tuple(on(label, 1, rank) for label in flow.labels(bias))
        shape = tuple(size if place == 1 else 1 for place, size in enumerate(call.out.shape))
        labels = flow.elementwise([Operand(shape, labels), Operand(shape, row)])
    if groups > 1:
        kind = "whole" if channels // groups <= groups else "tied"
        flow.note_shape(kind, (channels,), rows, 0, (groups,))
    return (*labels, *batch)


@_rule("deform_conv2d")
def _deformable(flow: Flow, call: Call) -> Result:
    """A convolution beside offsets and a mask, which stay as they are."""
    x, weight, offset, mask, bias = call.args[:5]
    groups, offset_groups = call.args[11:13]
    flow.keep_inputs([offset, mask], "places to sample from")
    if offset_groups > 1:
        flow.keep_inputs([x], "is sampled in groups of channels")
    plain = (x, weight, bias if bias.numel() else None, None, None, None, False, None, groups)
    return _convolution(flow, Call(call.func, call.name, plain, {}, call.out))


@_rule("mkldnn_rnn_layer")
def _recurrent(flow: Flow, call: Call) -> Result:
    """One direction of one layer of an LSTM: what comes in may be cut, gates and states stay."""
    x, weight = call.args[:2]
    flow.keep_inputs([value for value in call.tensors if value is not x and value is not weight], RECURRENT)
    columns = [label for label in flow.labels(weight) if varying(label) == {1}]
    flow.keep([label for label in flow.labels(weight) if varying(label) != {1}], RECURRENT)
    size = (x.shape[-1],)
    rows = flow.rows(flow.labels(x), x.dim() - 1, "enters a recurrent layer")
    flow.elementwise([Operand(size, rows, flow.blank(x)), Operand(size, tuple(along(one, 1) for one in columns))])
    return [NOTHING for _ in call.out]


def _grouped_convolution(
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
            for one in flow.collapse_all(found, [1 if whole else 0], "is in a convolution with groups")
            if one.shape[0 if whole else 1] > 1
        )

    outer = blocks(by_dim[0], thick if transposed else wide)
    mine = blocks(rows, thick)
    if whole:
        flow.keep(by_dim[1], "is inside a group of a convolution")
        meeting = flow.elementwise([Operand((groups,), mine), Operand((groups,), outer)])
        return tuple(row.view(groups, 1).expand(groups, wide).reshape(-1) for row in meeting)
    inner = tuple(by_dim[1])
    if transposed:
        flow.elementwise([Operand((thick,), mine), Operand((thick,), outer)])
        return tuple(row.expand(groups, wide).reshape(-1) for row in inner)
    flow.elementwise([Operand((thick,), mine), Operand((thick,), inner)])
    return tuple(row.expand(groups, wide).reshape(-1) for row in outer)


@_rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math scaled_dot_product_attention _scaled_dot_product_fused_attention_overrideable"
)
def _attention(flow: Flow, call: Call) -> Result:
    query, key, value = call.args[:3]
    heads = query.shape[1]
    mask = call.kwargs.get("attn_mask", next(iter(call.args[3:4]), None))
    what = "is inside attention"
    head_rows: list[Operand] = []
    outer: Labels = NOTHING
    inner: list[Labels] = []
    # Without a scale of its own, attention divides by the root of the size of heads: what makes the query can make up.
    rooted = call.kwargs.get("scale") is None and flow.linear(query)
    for place, tensor in enumerate((query, key, value)):
        labels = flow.labels(tensor)
        if flow.keeps_heads():
            labels = flow.collapse_all(labels, [1], what)
        joint = [label for label in labels if label.shape[1] > 1]
        alone = tuple(label for label in labels if label.shape[1] == 1)
        rows = tuple(along(label, 1) for label in flow.collapse_all(joint, (0, 2, 3), what))
        flow.heads += rows
        each = tuple(row.repeat_interleave(heads // row.numel()) if row.numel() != heads else row for row in rows)
        head_rows.append(Operand((heads,), each, flow.blank(tensor)))
        if place == 2:
            outer = tuple(label for label in alone if varying(label) == {3})
            flow.keep([label for label in alone if varying(label) != {3}], what)
        elif call.kwargs.get("scale") is not None or rooted:
            inner.append(flow.rows(alone, 3, what))
        else:
            flow.keep(alone, "sets the scale of attention")
    if inner:
        flow.elementwise([Operand((query.shape[3],), one) for one in inner])
        if rooted:
            sizes = [label for label in flow.labels(query) if label.shape[3] > 1]
            flow.scalings += [Scaling(flow.where, label) for label in sizes]
    if isinstance(mask, Tensor):
        by_head = mask.dim() == 4
        rows = flow.rows(flow.labels(mask), 1, what) if by_head else NOTHING
        head_rows.append(Operand((mask.shape[1] if by_head else 1,), rows, flow.blank(mask)))
    by_heads = tuple(on(one, 1, 4) for one in flow.elementwise(head_rows))
    if isinstance(mask, Tensor) and mask.dim() == 4:
        flow.take_on(mask, by_heads)
    labels = (*by_heads, *outer)
    return [labels, NOTHING, *([NOTHING] * 8)] if not isinstance(call.out, Tensor) else labels


# -------------------------------------------------------------------------------------------------- reductions, norms


@_rule(
    "sum mean amax amin max min var std var_mean std_mean prod any all logsumexp linalg_vector_norm norm "
    "softmax log_softmax _softmax _log_softmax _safe_softmax nansum median aminmax"
)
def _reduction(flow: Flow, call: Call) -> Result:
    name = call.base
    x = call.args[0]
    if call.func._overloadname == "other":
        return pass_elementwise(flow, call)
    place = 2 if name in ("linalg_vector_norm", "norm") else 1
    dims = dimensions(call.get(place, "dim", None), x.dim())
    soft = "softmax" in name
    if "median" in name and any(varying(label) & set(dims) for label in flow.labels(x)):
        flow.keep_inputs([x], "median over channels")
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
    first_out = call.out[0] if isinstance(call.out, tuple | list) else call.out
    if not soft and first_out.dim() < x.dim():
        labels = [_without(label, dims) for label in labels]
    return tuple(labels)


@_rule("native_layer_norm _fused_rms_norm")
def _layer_norm(flow: Flow, call: Call) -> Result:
    x, shape = call.args[0], call.args[1]
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
    flow.note_shape("view", tuple(x.shape), tuple(labels))
    affine = [flow.operand(value) for value in call.args[2:4] if isinstance(value, Tensor)]
    result = flow.elementwise([Operand(tuple(x.shape), tuple(labels)), *affine])
    return [result, NOTHING, NOTHING]


@_rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_native_batch_norm_legit_functional batch_norm miopen_batch_norm"
)
def _batch_norm(flow: Flow, call: Call) -> Result:
    x = call.args[0]
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
        Operand(row, tuple(on(along(label, 0), 1, rank) for label in flow.labels(value)))
        for value in call.args[1:5]
        if isinstance(value, Tensor) and value.dim() == 1
    ]
    result = flow.elementwise([Operand(shape, tuple(passing)), *affine])
    return [result, *([NOTHING] * 4)]


@_rule("native_group_norm")
def _group_norm(flow: Flow, call: Call) -> Result:
    x, weight, bias = call.args[:3]
    rank, channels, groups = x.dim(), x.shape[1], call.args[6]
    rows = flow.rows(flow.labels(x), 1, "is normalised in groups")
    affine = [Operand((channels,), flow.labels(value), False) for value in (weight, bias) if isinstance(value, Tensor)]
    result = flow.elementwise([Operand((channels,), rows), *affine])
    if groups == channels:
        flow.note_shape("whole", (channels,), result, 0, (groups,))
    elif groups > 1:
        for row in result:
            blocks = row.reshape(groups, -1)
            rest = first(blocks, [0])
            if rest.numel() > 1:
                flow.join(rest, blocks, "groups of a norm stay alike")
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
def _spatial(flow: Flow, call: Call) -> Result:
    x = call.args[0]
    changed = range(1 if x.dim() == 2 else 2, x.dim())
    labels = flow.collapse_all(flow.labels(x), changed, "is pooled, padded or resized")
    if isinstance(call.args[1], Tensor):
        flow.keep_inputs([call.args[1]], "places to sample from")
    return labels


def _by_channel(flow: Flow, call: Call) -> Result:
    """[B, C, ...] -> [B, C, ...], each channel on its own; other tensors that come in stay."""
    x = call.args[0]
    flow.keep_inputs([value for value in call.tensors if value is not x], "is a parameter of an operator of one's own")
    return flow.collapse_all(flow.labels(x), range(2, x.dim()), "goes through an operator of one's own")


@_rule("constant_pad_nd")
def _pad(flow: Flow, call: Call) -> Result:
    x, pad = call.args[0], call.args[1]
    labels: list[Tensor] = []
    for label in flow.labels(x):
        dims = [x.dim() - 1 - place for place in range(len(pad) // 2) if pad[2 * place] or pad[2 * place + 1]]
        if varying(label) & set(dims):
            labels += _moved_labels([call.func(label.expand(x.shape), pad, 0)])
        else:
            labels.append(label)
    return tuple(labels)


@_rule("im2col")
def _im2col(flow: Flow, call: Call) -> Result:
    x, kernel = call.args[0], call.args[1]
    size = kernel[0] * kernel[1]
    rows = flow.rows(flow.labels(x), 1, "is unfolded into patches")
    return tuple(on(row.repeat_interleave(size), 1, call.out.dim()) for row in rows)


@_rule("col2im")
def _col2im(flow: Flow, call: Call) -> Result:
    x, kernel = call.args[0], call.args[2]
    size = kernel[0] * kernel[1]
    rows = flow.rows(flow.labels(x), 1, "is folded from patches")
    blocks = flow.collapse_all((row.reshape(-1, size) for row in rows), [1], "is folded from patches")
    return tuple(on(along(one, 0), 1, call.out.dim()) for one in blocks if one.shape[0] > 1)


@_rule("glu")
def _glu(flow: Flow, call: Call) -> Result:
    x = call.args[0]
    dim = call.get(1, "dim", -1) % x.dim()
    halves: list[list[Tensor]] = [[], []]
    for label in flow.labels(x):
        if label.shape[dim] == 1:
            halves[0].append(label)
        else:
            for half, part in zip(halves, label.chunk(2, dim), strict=True):
                half.append(part)
    shape = tuple(call.out.shape)
    if not halves[1]:
        return tuple(halves[0])
    return flow.elementwise([Operand(shape, tuple(half)) for half in halves])


@_rule("roi_align roi_pool")
def _roi(flow: Flow, call: Call) -> Result:
    rows = flow.rows(flow.labels(call.args[0]), 1, "is sampled in regions")
    flow.keep_inputs([call.args[1]], "regions to sample from")
    return tuple(on(row, 1, call.out.dim()) for row in rows)


@_rule("view_as_complex")
def _complex(flow: Flow, call: Call) -> Result:
    last = call.args[0].dim() - 1
    labels = flow.collapse_all(flow.labels(call.args[0]), [last], "becomes a complex number")
    return tuple(label.squeeze(last) for label in labels)


@_rule("view_as_real")
def _real(flow: Flow, call: Call) -> Result:
    return tuple(label.unsqueeze(-1) for label in flow.labels(call.args[0]))


@_rule("_fft_c2c _fft_r2c _fft_c2r")
def _fourier(flow: Flow, call: Call) -> Result:
    return flow.collapse_all(flow.labels(call.args[0]), call.args[1], "is Fourier-transformed")


@_rule("triu tril _local_scalar_dense is_nonzero sym_size")
def _triangle(flow: Flow, call: Call) -> Result:
    x = call.args[0]
    return flow.collapse_all(flow.labels(x), [x.dim() - 2, x.dim() - 1] if x.dim() > 1 else [0], "loses a triangle")


_KINDS: dict[str, Rule] = {"elementwise": pass_elementwise, "spatial": _by_channel}
