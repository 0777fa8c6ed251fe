"""What a cut of a model as any network left of its units, as the maps of recipes' results say it.

A traced network has channels of tensors, and no heads or layers. Where the class fits a table of the transformers, the
indices that stay are those of whole units, and the same adapters fit a result of either kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer import cutting, loading
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.origin import Origin

__all__ = ["describe_cut"]

_Places = Mapping[tuple[str, int], Tensor]
"""(tensor, dimension) -> indices of the original that stay."""


def describe_cut(subject: Traced, original: str) -> str | None:
    """The map of a model cut from the folder or Hub id `original`, as `Origin.describe` has it.

    None where it can't be told: the class fits no table, or what stays of a tensor is not that of whole units. The cut
    stands without it, so whatever a class has against being read as one of a table is no error.
    """
    folder = loading.locate(original)
    try:
        layout = loading.open_outline(folder).layout
        places = _compose(subject.plans)
        kept = None if places is None else _find_kept(layout, places)
        if kept is None:
            return None
        exact = kept.channels is not None and any(plan.scaled for plan in subject.plans)
        ratio = layout.hidden_size / len(kept.channels) if exact and kept.channels is not None else 1.0
        return Origin.find(layout.model, layout, folder, original).cut(kept, ratio).describe(layout)
    except Exception:
        return None


def _compose(plans: tuple[Plan, ...]) -> _Places | None:
    """What stays after cuts that follow one another; None where they did more than slice."""
    found = dict[tuple[str, int], Tensor]()
    for plan in plans:
        if plan.absent or plan.missing or plan.unfolded or plan.bits or plan.biases:
            return None
        for name, dims in plan.tensors.items():
            for dim, index in dims.items():
                before = found.get((name, dim))
                found[name, dim] = torch.tensor(index) if before is None else before[index]
    return found


def _find_kept(layout: Layout, places: _Places) -> Kept | None:
    """The units that stay; None where slicing by them would leave other indices than those at `places`."""
    known = {name for some in (layout.model.named_parameters(), layout.model.named_buffers()) for name, _ in some}
    if any(name not in known for name, _ in places):
        return None  # of a class that gives its tensors other names
    names = {id(parameter): name for name, parameter in layout.model.named_parameters()}
    masks = dict[str, np.ndarray]()
    for site, slices in layout.slices().items():
        for weight, dim, unit in slices:
            index = places.get((names[id(weight)], dim))
            if index is not None:
                stays = masks.setdefault(site, np.zeros(int(unit.max()) + 1, dtype=bool))
                stays[unit[index][unit[index] >= 0].numpy()] = True
    kept = cutting.find_kept(layout, masks)
    for name, parameter in layout.model.named_parameters():
        place = layout.place(name)
        for dim, axis in enumerate(place.axes or ("",) * parameter.dim()):
            every = torch.arange(parameter.shape[dim])
            left = cutting.slice_tensor(layout, every, (axis,), place.layer, kept)
            if not torch.equal(left, places.get((name, dim), every)):
                return None
    return kept
