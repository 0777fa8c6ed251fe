"""Sort the units of a transformer once, so that the best k of an axis are its first k; what it computes stays.

Every index of an axis moves in all tensors that have the axis, as when a selection is cut: heads inside the group of
keys and values that they share, experts inside the groups that a router chooses among, neurons inside their expert.
Layers stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.subjects.transformer import cutting
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.subject import Transformer

__all__ = ["find_order", "sort_units"]


def find_order(scores: Tensor, groups: int = 1) -> Tensor:
    """[count] scores -> the units, best first inside each of `groups` runs of equally many; ties keep their order.

    >>> find_order(torch.tensor([1.0, 3.0, 2.0, 9.0]), 2).tolist()
    [1, 0, 3, 2]
    """
    inside = scores.reshape(groups, -1)
    order = torch.argsort(inside, dim=1, descending=True, stable=True)
    return (order + torch.arange(groups, device=order.device)[:, None] * inside.shape[1]).flatten()


def sort_units(subject: Transformer, scores: Mapping[str, Tensor]) -> Transformer:
    """A copy with the units of each site in `scores` (site -> [count]) sorted, best first.

    Other sites stay as they are. Its outputs are those of `subject` but for rounding. Groups of keys and values move
    with the heads that read them. Raises `InputError` for a site that it has not, or another number of scores.
    """
    layout, units = subject.layout, subject.units()
    stays = cutting.find_kept(layout, {})
    for site, score in scores.items():
        if site not in units.sites or score.shape != (units[site].count,):
            known = units[site].count if site in units.sites else "none"
            raise InputError(f"scores of {site} have shape {tuple(score.shape)}: the model has {known} such units")
    for site, score in scores.items():
        place, _, kind = site.rpartition(".")
        if site == "channels":
            stays.channels = find_order(score.cpu())
            continue
        if not place.startswith("layers.") or place.count(".") != 1:
            raise InputError(f"{site} can't be sorted: give channels, or sites inside layers such as layers.0.neurons")
        layer = int(place.removeprefix("layers."))
        _move(layout, stays.parts[layer], layer, kind, score.cpu())
    state = cutting.slice_state(layout, stays)
    result = subject.copy()
    result.model.load_state_dict(state, strict=True)
    result.origin = subject.origin.cut(stays, 1.0)
    return result


def _move(layout: Layout, parts: dict[str, Tensor], layer: int, kind: str, score: Tensor) -> None:
    """Change the order of the units of one kind in `parts`, the indices of a layer."""
    width = layout.widths[layer]
    if kind == "kv_groups":
        order = find_order(score)
        per = width.heads // width.kv
        parts["kv"] = parts["kv"][order]
        parts["heads"] = parts["heads"].reshape(width.kv, per)[order].flatten()
    elif kind == "heads" and width.has_groups:
        per = width.heads // width.kv
        moved = find_order(score, width.kv).reshape(width.kv, per)
        parts["heads"] = moved[parts["kv"]].flatten()  # whatever order the groups have by now
    elif kind == "heads":
        parts["heads"] = parts["kv"] = find_order(score)
    elif kind == "experts":
        order = find_order(score, layout.expert_groups)
        parts["experts"], parts["expert_neurons"] = parts["experts"][order], parts["expert_neurons"][order]
    elif kind == "expert_neurons" and width.expert_neurons:
        inside = find_order(score, width.experts).reshape(width.experts, -1) % width.expert_neurons
        parts[kind] = inside[parts["experts"]]  # whatever order the experts have by now
    elif kind == "state_heads" and width.state_heads:
        parts[kind] = find_order(score, layout.state_groups(layer))
    elif kind in ("neurons", "shared_neurons", "state_channels") and getattr(width, kind):
        parts[kind] = find_order(score)
    else:
        raise InputError(f"layers.{layer}.{kind} can't be sorted: only whole sub-blocks of that kind can go")
