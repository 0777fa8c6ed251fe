"""What a cut of a model as any network left of its units, as the maps of recipes' results say it.

A traced network has channels of tensors, and no heads or layers. Where the class fits a table of the transformers, the
indices that stay are those of whole units, and the same adapters fit a result of either kind. What is no whole unit,
such as the inner channels of experts or of a mixer, stands in the same file as indices of its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from secateur._utils import checkpoints, ranges
from secateur.errors import ModelError, UnsupportedError
from secateur.subjects.network.pretrained import find_gguf
from secateur.subjects.network.proof import TOLERANCE, differences
from secateur.subjects.network.shrinking import Plan
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer import cutting, loading, saving
from secateur.subjects.transformer.cutting import Kept
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.making import make_subject
from secateur.subjects.transformer.origin import Origin
from secateur.subjects.transformer.subject import Transformer

__all__ = ["Rest", "describe_cut", "has_map", "read_rest", "rebuild"]

Rest = dict[str, dict[int, Tensor]]
"""Tensor of the result -> dimension -> indices of the base's that stay, where they are not those of whole units."""
_REST = "tensors"
"""The key of the map that holds the rest."""
_Places = Mapping[tuple[str, int], Tensor]
"""(tensor, dimension) -> indices of the original that stay."""


def describe_cut(subject: Traced, original: str) -> str | None:
    """The map of a model cut from the folder or Hub id `original`, as `Origin.describe` has it, with the rest.

    None where it can't be told: the class fits no table, the cut did more than slice, or it went into units of a model
    that a recipe cut. The cut stands without it, so whatever a class has against being read as one of a table is no
    error.
    """
    try:
        found = _find_cut(subject, original)
        if found is None:
            return None
        layout, origin, rest = found
        if (file := find_gguf(original)) is not None:
            origin = replace(origin, sha256=loading.hash_gguf(file))
        text = origin.describe(layout)
    except Exception:
        return None
    if rest is None:
        return text
    said = {name: {dim: ranges.write(index.tolist()) for dim, index in dims.items()} for name, dims in rest.items()}
    return json.dumps({**json.loads(text), _REST: said}, indent=1) + "\n"


def has_map(subject: Traced, original: str) -> bool:
    """Whether `describe_cut` can tell what stays; no weights are read."""
    try:
        return _find_cut(subject, original) is not None
    except Exception:  # as there
        return False


def rebuild(subject: Traced, original: str) -> Transformer | None:
    """The model cut from the folder or Hub id `original` as one whose layers have widths of their own.

    It shares the weights, and is saved with a modelling file. None where whole units don't say all that stays, where no
    modelling file is written for its class, or where that, built so, gives other outputs on the example inputs.
    """
    try:
        layout = loading.open_outline(original).layout
        places = _compose(subject.plans)
        if places is None or saving.is_reshaped(layout.model.config):
            return None
        kept, rest = _find_kept(layout, places)
        if rest or saving.plain_class(type(layout.model)) not in saving.classes(layout.model.config).values():
            return None
        config, _ = cutting.correct(layout, {}, kept, _norm_ratio(subject, layout, kept), kept.layers)
        network = cast(PreTrainedModel, subject.model)
        if network.can_generate():
            layout.model.generation_config = network.generation_config
        model = cutting.build(layout, config, network.state_dict(), kept).eval()
        if differences(Traced(model, subject.inputs).forward(), subject.forward()) > TOLERANCE:
            return None
        home = None if find_gguf(original) else loading.locate(original)
        return make_subject(model, layout.family, folder=home)
    except Exception:  # as in `describe_cut`
        return None


def read_rest(folder: Path) -> Rest | None:
    """What the map in `folder` says beside units; None for a recipe's. Raises `ModelError` where it is damaged."""
    said = checkpoints.read_json(folder / saving.MAP).get(_REST)
    try:
        return (
            None
            if said is None
            else {
                name: {int(dim): torch.tensor(ranges.read(text, sorted_only=False)) for dim, text in dims.items()}
                for name, dims in said.items()
            }
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / saving.MAP} is damaged ({_REST}: {error}): cut the model again") from error


def _find_cut(subject: Traced, original: str) -> tuple[Layout, Origin, Rest | None] | None:
    """(the original, where the result comes from, what stays beside units: None where that is not known)."""
    layout = loading.open_outline(original).layout
    places = _compose(subject.plans)
    if places is None or saving.is_reshaped(layout.model.config):
        return None
    kept, rest = _find_kept(layout, places)
    ratio, file = _norm_ratio(subject, layout, kept), find_gguf(original)
    if file is not None:  # which holds no map
        return layout, Origin.of_model(layout.model, original, file).cut(kept, ratio), rest
    folder = loading.locate(original)
    origin = Origin.find(layout.model, layout, folder, original)
    joined: Rest | None = rest
    if origin.kept is not None:  # the original was cut itself
        before = read_rest(folder)
        if not _is_told(layout, before, rest):
            return None
        joined = None if before is None else _join(before, places, rest)
    return layout, origin.cut(kept, ratio), joined


def _norm_ratio(subject: Traced, layout: Layout, kept: Kept) -> float:
    """D / d where norms were made exact for d of D channels, else 1."""
    if kept.channels is None or not any(plan.scaled for plan in subject.plans):
        return 1.0
    return layout.hidden_size / len(kept.channels)


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


def _find_kept(layout: Layout, places: _Places) -> tuple[Kept, Rest]:
    """The units of which something stays, and what slicing by them would leave otherwise than it stands at `places`.

    Raises `UnsupportedError` for a class that gives its tensors other names, and as `cutting.find_kept`.
    """
    known = {name for some in (layout.model.named_parameters(), layout.model.named_buffers()) for name, _ in some}
    for name, _ in places:
        if name not in known:
            raise UnsupportedError(f"{name} is no tensor of {type(layout.model).__name__}")
    names = {id(parameter): name for name, parameter in layout.model.named_parameters()}
    masks = dict[str, np.ndarray]()
    for site, slices in layout.slices().items():
        for weight, dim, unit in slices:
            index = places.get((names[id(weight)], dim))
            if index is not None:
                stays = masks.setdefault(site, np.zeros(int(unit.max()) + 1, dtype=bool))
                stays[unit[index][unit[index] >= 0].numpy()] = True
    # The cut is made, and was proved: what recipes may not cut in this family may be gone all the same.
    free = Layout(layout.model, replace(layout.family, whole={}))
    kept, rest = cutting.find_kept(free, masks), Rest()
    for name, parameter in layout.model.named_parameters():
        place = layout.place(name)
        for dim, axis in enumerate(place.axes or ("",) * parameter.dim()):
            every = torch.arange(parameter.shape[dim])
            left = cutting.slice_tensor(layout, every, (axis,), place.layer, kept)
            wanted = places.get((name, dim), every)
            if not torch.equal(left, wanted):
                rest.setdefault(name, {})[dim] = wanted
    return kept, rest


def _is_told(layout: Layout, before: Rest | None, now: Rest) -> bool:
    """Whether a map with the rest `before` tells which of the base's indices those of `now` are.

    A recipe's map tells whole units alone; and which part of which unit of the base one is, is told of no axis that was
    cut by whole units before.
    """
    if before is None:
        return not now
    new = [(name, dim) for name, dims in now.items() for dim in dims if dim not in before.get(name, {})]
    return not any((layout.place(name).axes or {dim: ""})[dim] for name, dim in new)


def _join(before: Rest, places: _Places, now: Rest) -> Rest:
    """The rest of a cut of a result that has one itself."""
    result: Rest = {
        name: {dim: index[places[name, dim]] if (name, dim) in places else index for dim, index in dims.items()}
        for name, dims in before.items()
    }
    for name, dims in now.items():
        result[name] = dims | result.get(name, {})
    return result
