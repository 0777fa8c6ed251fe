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
from secateur.subjects.transformer import bases, cutting, loading, saving
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

    None where it can't be told: the class fits no table, the cut did more than slice, or the map of a model that was
    cut before does not tell all of it. The cut stands without it, so whatever a class has against being read as one of
    a table is no error.
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
        whole = cutting.find_kept(layout, {})
        stays = _follow(layout, whole, {}, layout.model, places)
        kept = _find_kept(layout, whole, stays)
        known = saving.classes(layout.model.config).values()
        if _find_rest(layout, kept, stays) or saving.plain_class(type(layout.model)) not in known:
            return None
        config, _ = cutting.correct(layout, {}, kept, _norm_ratio(subject, layout, whole, kept), kept.layers)
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


def _find_cut(subject: Traced, original: str) -> tuple[Layout, Origin, Rest] | None:
    """(the base, where the result comes from, what stays of it beside units); None where the cut did more than slice.

    Raises whatever a class has against it, and `ModelError` for an original whose map is damaged or tells too little.
    """
    places = _compose(subject.plans)
    if places is None:
        return None
    model, base, origin = _find_base(original)
    before, rest = cutting.find_kept(base, {}), Rest()
    if origin.kept is not None:  # the original was cut itself
        before, rest = origin.kept, read_rest(loading.locate(original)) or {}
    stays = _follow(base, before, rest, model, places)
    kept = _find_kept(base, before, stays)
    ratio = origin.norm_ratio * _norm_ratio(subject, base, before, kept)
    return base, replace(origin, kept=kept, norm_ratio=ratio), _find_rest(base, kept, stays)


def _find_base(original: str) -> tuple[PreTrainedModel, Layout, Origin]:
    """(`original`, what it was cut from by the map beside it, how): without weights; itself where it was not cut."""
    if (file := find_gguf(original)) is not None:  # which holds no map
        layout = loading.open_outline(original).layout
        return layout.model, layout, Origin.of_model(layout.model, original, file)
    folder = loading.locate(original)
    if saving.is_reshaped(checkpoints.read_json(folder / "config.json")):  # it fits no table, as its base may
        origin = Origin.read(folder)
        if origin is None or origin.part:
            raise UnsupportedError(f"{original} was cut in no whole units, and no {saving.MAP} of all of it is there")
        return loading.outline_any(original), bases.outline(origin, folder), origin
    layout = loading.open_outline(original).layout
    origin = Origin.find(layout.model, layout, folder, original)
    return layout.model, layout if origin.kept is None else bases.outline(origin, folder), origin


def _norm_ratio(subject: Traced, layout: Layout, before: Kept, kept: Kept) -> float:
    """D / d where norms were made exact for d of D channels, else 1."""
    if not any(plan.scaled for plan in subject.plans):
        return 1.0
    wide, narrow = (layout.hidden_size if one.channels is None else len(one.channels) for one in (before, kept))
    return wide / narrow


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


def _follow(base: Layout, kept: Kept, rest: Rest, model: PreTrainedModel, places: _Places) -> _Places:
    """What stays of the tensors of `base` where `model` was cut to `places`, of which base `kept` and `rest` stayed.

    Neurons of experts that kept unlike ones are left out. Raises `UnsupportedError` for tensors of other names or sizes
    than these give, and for a cut of such neurons.
    """
    shapes = {name: one.shape for some in (model.named_parameters(), model.named_buffers()) for name, one in some}
    found, known = dict[tuple[str, int], Tensor](), {name for name, _ in model.named_buffers()}
    for name, parameter in base.model.named_parameters():
        place = base.place(name)
        if place.layer is not None and place.layer not in kept.parts:
            continue
        new = cutting.new_name(base, name, place, kept) or ""
        known.add(new)
        for dim, axis in enumerate(place.axes or ("",) * parameter.dim()):
            index = rest.get(new, {}).get(dim)
            if index is None and _is_unlike(base, axis, place.layer, kept):
                if (new, dim) in places:
                    raise UnsupportedError(f"the experts of {new} kept unlike neurons before")
                continue
            if index is None:
                index = cutting.slice_tensor(base, torch.arange(parameter.shape[dim]), (axis,), place.layer, kept)
            if new and shapes[new][dim] != len(index):
                raise UnsupportedError(f"{new} has {shapes[new][dim]} along {dim}, and its map tells of {len(index)}")
            found[name, dim] = index[places[new, dim]] if (new, dim) in places else index
    for name, _ in places:
        if name not in known:
            raise UnsupportedError(f"{name} is no tensor of {type(base.model).__name__}")
    return found


def _is_unlike(base: Layout, axis: str, layer: int | None, kept: Kept) -> bool:
    """Whether along an axis stand neurons of experts, of which each kept its own."""
    if layer is None or not axis.startswith("expert_neurons"):
        return False
    return kept.parts[layer]["expert_neurons"].shape[-1] < base.widths[layer].expert_neurons


def _find_kept(base: Layout, before: Kept, stays: _Places) -> Kept:
    """The units of the base, of those in `before`, of which something stays. Raises as `cutting.find_kept`."""
    names = {id(parameter): name for name, parameter in base.model.named_parameters()}
    masks, found = _mask_sites(base, before), dict[str, np.ndarray]()
    for site, slices in base.slices().items():
        for weight, dim, unit in slices:
            index = stays.get((names[id(weight)], dim))
            if index is not None:
                mask = found.setdefault(site, np.zeros(int(unit.max()) + 1, dtype=bool))
                mask[unit[index][unit[index] >= 0].numpy()] = True
    # The cut is made, and was proved: what recipes may not cut in this family may be gone all the same.
    return cutting.find_kept(Layout(base.model, replace(base.family, whole={})), masks | found)


def _mask_sites(base: Layout, kept: Kept) -> dict[str, np.ndarray]:
    """Site -> which of its units are in `kept`."""
    depth = len(base.widths)
    masks = {"layers": _mask(torch.tensor(kept.layers), depth), "mixer": np.ones(depth, dtype=bool)}
    if kept.channels is not None:
        masks["channels"] = _mask(kept.channels, base.hidden_size)
    for layer, parts in kept.parts.items():
        width, name = base.widths[layer], f"layers.{layer}"
        masks["mixer"][layer] = len(parts["mixer"]) == width.mixer
        for part, index in parts.items():
            site = {"kv": "kv_groups", "cross": "cross.heads"}.get(part, part)
            if part == "expert_neurons":
                index, count = (
                    parts["experts"][:, None] * width.expert_neurons + index,
                    width.experts * width.expert_neurons,
                )
            else:
                count = getattr(width, part)
            masks[f"{name}.{site}"] = _mask(index.flatten(), count)
    return masks


def _mask(index: Tensor, count: int) -> np.ndarray:
    return np.isin(np.arange(count), index.numpy())


def _find_rest(base: Layout, kept: Kept, stays: _Places) -> Rest:
    """What slicing the base by `kept` would leave otherwise than it stands at `stays`."""
    rest = Rest()
    for (name, dim), wanted in stays.items():
        place = base.place(name)
        new = cutting.new_name(base, name, place, kept)
        if new is None:
            continue
        parameter = base.model.get_parameter(name)
        axis = (place.axes or ("",) * parameter.dim())[dim]
        left = cutting.slice_tensor(base, torch.arange(parameter.shape[dim]), (axis,), place.layer, kept)
        if not torch.equal(left, wanted):
            rest.setdefault(new, {})[dim] = wanted
    return rest
