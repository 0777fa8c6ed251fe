"""Losses between a student's features and its teacher's, beside another objective and from the same forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.modes import evaluating
from secateur.errors import InputError
from secateur.recover.distillation import features, losses, maps, relations, taps
from secateur.recover.training import compose, objectives
from secateur.recover.training.compose import Objective, Parts

__all__ = ["KINDS", "add_matching"]


def _normalised_rows(ours: Tensor, theirs: Tensor) -> Tensor:
    """`features.normalised_errors` of rows [..., d]: a token, or a place of a map, is an input."""
    rows = losses.pair(ours, theirs, None, None)
    return features.normalised_errors(rows[:1], rows[1:])


_OF_ROWS: dict[str, Callable[..., Tensor]] = {
    "mse": losses.mse,
    "cosine": losses.cosine,
    "unit": features.unit,
    "unit-l1": partial(features.unit, power=1),
    "normalised": _normalised_rows,
}
_OF_MAPS: dict[str, Callable[..., Tensor]] = {"attention": maps.spatial_attention, "channel-wise": maps.channel_wise}
_OF_EXAMPLES = {"relational": losses.relational, "contrastive": relations.contrastive}
KINDS = (*_OF_ROWS, *_OF_MAPS, *_OF_EXAMPLES)
"""Of rows [..., d] (or of each place of maps): mse, cosine, unit vectors by squares or absolutes, squares as a share of
the teacher's norm; of maps [N, C, H, W]: attention transfer, channel-wise softmaxes over space; of examples [N, d]: how
alike they are to one another, and whether each is nearest to its own of the teacher's."""


def add_matching(
    objective: Objective,
    pairs: Sequence[tuple[nn.Module, nn.Module, str, str]],
    look: Callable[[], object],
    *,
    kind: str = "mse",
    weights: Sequence[float] = (),
    warmup: float = 0.0,
    balanced: bool = False,
) -> tuple[Objective, nn.Module]:
    """`objective` plus ``sum_i w_i L(s_i, t_i)`` of pairs of taps, and the adapters that are to be trained along.

    Args:
        objective: makes one pass of the student, and one of the teacher, in each call.
        pairs: (student, teacher, tap of the student, tap of the teacher); the models are the same in all.
        look: makes such passes once, for the widths; without gradients and in evaluation mode.
        kind: L, one of `KINDS`: a mean over real tokens, or over the places of an example, and a mean over examples.
        weights: w_i; all 1 unless given, one for all, or one for each pair.
        warmup: share of training over which all w_i grow from 0; batches then need "done" (`data.batches.Numbered`).
        balanced: each L_i is first multiplied by what makes it as large as the objective's part "logit"
            (`compose.balance`).

    Where widths differ, the student's features pass a linear map (of maps a 1 x 1 convolution) first; attention and
    relational losses need none. Raises `InputError` for another kind, for features that it is not of, for modules that
    do not run, and for as many weights as there are no pairs.
    """
    if kind not in KINDS:
        raise InputError(f"features can't be compared by {kind!r}: give one of {', '.join(KINDS)}")
    if not pairs:
        raise InputError("no module was named whose features are compared: name one")
    student, teacher = pairs[0][:2]
    ours, theirs = [one[2] for one in pairs], [one[3] for one in pairs]
    each = list(weights or (1.0,)) * (len(pairs) if len(weights) < 2 else 1)
    if len(each) != len(pairs):
        raise InputError(f"{len(each)} weights for {len(pairs)} pairs of modules: give one, or one for each")
    with (
        torch.no_grad(),
        evaluating(student, teacher),
        taps.each(student, ours) as seen,
        taps.each(teacher, theirs) as known,
    ):
        look()
    for whose, names, found in (("student", ours, seen), ("teacher", theirs, known)):
        if silent := [name for name, given in zip(names, found, strict=True) if not given]:
            raise InputError(
                f"{taps.list_names(silent)} of the {whose}'s modules does not run, or gives no tensor of floats: name "
                "modules that do"
            )
    adapters = nn.ModuleList(
        _adapter(kind, name, one, other) for name, (one,), (other,) in zip(ours, seen, known, strict=True)
    )

    def together(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        with taps.tap(student, ours) as mine, taps.tap(teacher, theirs) as told:
            total, parts = objective(batch, totals)
        values = [
            _pair_loss(kind, adapter, one, devices.move(other.detach(), one), batch, totals)
            for adapter, one, other in zip(adapters, mine, told, strict=True)
        ]
        if balanced:
            values = [compose.balance(torch.as_tensor(parts["logit"]), one) * one for one in values]
        near = torch.stack(values) @ values[0].new_tensor(each)
        return total + compose.ramp(batch, "match", warmup) * near, {**parts, "match": near.detach()}

    return together, adapters


def _adapter(kind: str, name: str, ours: Tensor, theirs: Tensor) -> nn.Module:
    """What brings the student's feature to the teacher's width. Raises `InputError` for features `kind` is not of."""
    shapes = f"{name} gives {list(ours.shape)}, its teacher's module {list(theirs.shape)}"
    if ours.dim() != theirs.dim() or ours.dim() not in (2, 3, 4):
        raise InputError(f"{shapes}: compare rows [N, d], tokens [N, S, d] or maps [N, C, H, W] of both")
    if (kind in _OF_MAPS and ours.dim() != 4) or (kind in _OF_EXAMPLES and ours.dim() != 2):
        raise InputError(f"{shapes}: {kind} is of {'rows [N, d]' if kind in _OF_EXAMPLES else 'maps [N, C, H, W]'}")
    if kind in ("attention", "relational"):
        return nn.Identity()
    axis = 1 if ours.dim() == 4 else -1
    wide = ours.shape[axis], theirs.shape[axis]
    return taps.adapter(*wide, "convolution" if ours.dim() == 4 else "linear")


def _pair_loss(
    kind: str, adapter: nn.Module, ours: Tensor, theirs: Tensor, batch: Batch, totals: Mapping[str, int]
) -> Tensor:
    """L of one pair: over real tokens where the features have one row for each, else over sequences that have any.

    Rows are picked before the adapter, so that what stands in the padding, NaN even, stays out of its gradient as well.
    """
    divide, kept = totals["sequences"], objectives.rows_of(batch)
    mask = batch.get("counted", batch.get("attention_mask"))
    if mask is not None and kind in _OF_ROWS and ours.shape[:-1] in (mask.shape, (mask.numel(),)):
        divide, kept = totals["tokens"], mask.bool().reshape(ours.shape[:-1])
    if kept is not None and kept.shape == ours.shape[: kept.dim()] == theirs.shape[: kept.dim()]:
        ours, theirs = (one[kept.to(one.device)] for one in (ours, theirs))
    elif mask is not None and kind in _OF_EXAMPLES and len(ours) != len(mask):
        raise InputError(
            f"{kind} is of a row for each of {len(mask)} texts, and a module gives {len(ours)}: name another"
        )
    ours = losses.lift(adapter, ours)
    if kind in _OF_MAPS:
        return _OF_MAPS[kind](ours, theirs) / divide
    if kind in _OF_EXAMPLES:
        return _OF_EXAMPLES[kind](ours, theirs) / divide
    if ours.dim() == 4:
        ours, theirs = ours.movedim(1, -1), theirs.movedim(1, -1)
    return _OF_ROWS[kind](ours, theirs) / (ours.shape[1:-1].numel() * divide)
