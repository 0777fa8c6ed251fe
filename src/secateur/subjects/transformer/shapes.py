"""Shapes of transformers whose layers are alike: number of layers, heads, neurons (without experts) and channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.subjects.transformer import cutting, saving
from secateur.subjects.transformer.cutting import BLOCKS
from secateur.subjects.transformer.subject import Transformer
from secateur.vocabulary import Cut, Units, parse_list, write_enough

__all__ = [
    "cost", "describe_slack", "explain_states", "fits_class", "grid", "parse", "pricing", "receipt", "removable_layers",
    "require_least", "sizes", "steps",
]  # fmt: skip


_MOST = 8
"""Sizes of an axis between two ends."""


def sizes(subject: Transformer) -> dict[str, int]:
    """Axis -> size: layers, heads per layer, neurons per layer, channels.

    Where some layers have experts there is no axis of neurons: experts, and the FFNs of layers without, stay whole.
    Layers may be of several kinds: then heads are those of each layer with an attention, and neurons likewise. Raises
    `UnsupportedError` where layers of one kind differ, or have lost a sub-block.
    """
    widths, layout = subject.widths(), subject.layout
    complete = all(width.has(kind) for index, width in enumerate(widths) for kind in layout.blocks(index))
    heads = {(width.heads, width.kv) for width in widths if width.heads}
    heads |= {(width.cross, width.cross) for width in widths if width.cross}
    neurons = {width.neurons for width in widths if width.neurons}
    mixtures = {(width.experts, width.expert_neurons, width.shared_neurons) for width in widths if width.experts}
    if not complete or len(heads) > 1 or len(neurons) > 1 or len(mixtures) > 1:
        raise UnsupportedError(_explain_differences(subject))
    found = {"layers": len(widths)}
    if heads:
        found["heads"] = max(heads)[0]
    if neurons and not mixtures:
        found["neurons"] = max(neurons)
    return found | {"channels": subject.hidden_size}


def _explain_differences(subject: Transformer) -> str:
    """Which widths differ, with the first layer of each, and what takes such a model."""
    first: dict[str, dict[int, str]] = {}
    for path, width in zip(subject.layers(), subject.widths(), strict=True):
        counts = {"heads": width.heads, "cross-attention heads": width.cross, "neurons": width.neurons}
        counts |= {"KV heads": width.kv if width.has_groups else 0, "experts": width.experts}
        counts |= {"neurons per expert": width.expert_neurons, "shared neurons": width.shared_neurons}
        for kind, count in counts.items():
            if count:
                first.setdefault(kind, {}).setdefault(count, path)
    told = [
        f"{kind} ({', '.join(f'{count} in {path}' for count, path in list(places.items())[:3])})"
        for kind, places in first.items()
        if len(places) > 1
    ]
    return (
        f"the layers of this model differ in {' and '.join(told[:2]) or 'their sub-blocks'}, so no one shape describes "
        "it: start from the uncut model if it was cut, else take secateur prune, or a recipe that cuts each layer by "
        "itself, such as llm_pruner"
    )


def removable_layers(units: Units) -> list[int]:
    """The layers that a shape may drop: all, or, where some have experts and some have not, those with experts.

    Otherwise a number of layers would not say what a shape costs. For the same reason, of layers with different
    sub-blocks those go that most others are like, and of an encoder and its decoder the decoder's: these run for each
    token that is written.
    """
    count = units["layers"].count
    fixed = units["layers"].fixed
    free = [layer for layer in range(count) if fixed is None or not fixed[layer]]
    candidates = [layer for layer in free if f"layers.{layer}.experts" in units.sites] or free
    if "cross" in units.sites:
        cross = units["cross"].fixed
        candidates = [layer for layer in candidates if cross is None or not cross[layer]] or candidates
    kinds = {layer: _list_blocks(units, layer) for layer in candidates}
    common = Counter(kinds.values()).most_common(1)[0][0]
    return [layer for layer in candidates if kinds[layer] == common]


def explain_states(subject: Transformer, layers: Sequence[int], *, blocks: bool) -> str:
    """Why states before and after layers that may go don't tell what they do, and what to do; "" where they do tell.

    layers: those of `removable_layers`, ascending, or none. blocks: of several neighbours at once.
    """
    if layers and subject.family.has_encoder:
        return "a decoder begins with states of its own, not with those that leave the encoder: give depth=perplexity"
    if blocks and layers and layers[-1] - layers[0] >= len(layers):
        between = "layers that stay stand between those of the kind that may go"
        return f"{between}: give contiguous=false, or depth=perplexity"
    return ""


def _list_blocks(units: Units, layer: int) -> tuple[str, ...]:
    """The kinds of sub-blocks that a layer has."""
    sites = [units[kind] for kind in BLOCKS if kind in units.sites]
    return tuple(site.name for site in sites if site.fixed is None or not site.fixed[layer])


def parse(given: str | Sequence[str], subject: Transformer) -> dict[str, list[int]]:
    """Axis -> the sizes written as "axis=size", "axis=size+size" or "axis=least..most", ascending; others stay whole.

    A range has at most `_MOST` sizes, its ends among them where a cut can have them.

    Raises `InputError` for an axis that is not there, and for a size that no cut can have.
    """
    whole, multiples = sizes(subject), steps(subject)
    least = dict.fromkeys(whole, 1) | {"layers": _fewest_layers(subject)}
    result = {axis: [size] for axis, size in whole.items()}
    for part in parse_list(given):
        axis, _, text = part.partition("=")
        low, is_range, high = text.partition("..")
        numbers = [low, high] if is_range else text.split("+")
        known = axis in result and all(number.isdigit() for number in numbers)
        chosen = sorted({int(number) for number in numbers}) if known else []
        if not chosen or chosen[0] < least[axis] or chosen[-1] > whole[axis]:
            there = ", ".join(f"{name}={least[name]}..{size}" for name, size in whole.items())
            raise InputError(f"shape {given!r}: {part!r} is not one of {there}")
        wanted = range(chosen[0], chosen[-1] + 1) if is_range else chosen
        fitting = [size for size in wanted if not size % multiples[axis] or size == whole[axis]]
        if not fitting or (not is_range and len(fitting) < len(chosen)):
            raise InputError(f"shape {given!r}: {part!r} is no multiple of {multiples[axis]}")
        places = np.linspace(0, len(fitting) - 1, min(_MOST, len(fitting))).round().astype(int).tolist()
        result[axis] = [fitting[place] for place in dict.fromkeys(places)] if is_range else fitting
    return result


def steps(subject: Transformer) -> dict[str, int]:
    """Axis -> what a size must be a multiple of: whole KV groups keep equally many heads each, widths go by 8.

    Channels that must stay (see `Layout.fixed_ratio`) go by their whole number.
    """
    width = max(subject.widths(), key=lambda width: width.heads)
    heads = width.kv if width.kv < width.heads else 1
    channels = subject.hidden_size if subject.layout.fixed_ratio else 8
    return {"layers": 1, "heads": heads, "neurons": 8, "channels": channels}


def grid(
    subject: Transformer, axes: Sequence[str], *, least: float = 0.25, start: Mapping[str, int] | None = None
) -> dict[str, list[int]]:
    """Axis -> sizes to try, ascending, from `least` of the axis on; about eight per axis.

    Other axes stay whole, and so do those that can't be cut in this family (`Layout.whole`). start: the sizes to which
    it will have been cut before, where these are not those that it has.
    """
    result, fewest, multiples = {}, _fewest_layers(subject), steps(subject)
    for axis, size in (start or sizes(subject)).items():
        step = 1 if axis == "heads" and size <= multiples[axis] else multiples[axis]  # one in each group: no groups
        step *= max(1, size // 8 // step)
        may_shrink = axis in axes and axis not in subject.layout.whole
        tried = [k for k in range(step, size, step) if k >= least * size] if may_shrink else []
        if axis == "layers":
            tried = [k for k in tried if k >= fewest]
        result[axis] = [*tried, size]
    return result


def require_least(
    subject: Transformer,
    axes: Sequence[str],
    price: Callable[[Mapping[str, int]], Mapping[str, float]],
    limits: Mapping[str, float],
    stages: int,
) -> None:
    """Raise `InfeasibleError` where the smallest sizes of each of `stages` lead to a shape that is beyond a limit."""
    shape = sizes(subject)
    for _ in range(stages):
        shape = {axis: min(tried) for axis, tried in grid(subject, axes, start=shape).items()}
    for measure, limit in limits.items():
        if (least := price(shape)[measure]) > limit:
            raise InfeasibleError(
                f"{measure} of {limit:.4g} can't be met: the smallest shape of {stages} stages has "
                f"{write_enough(least)}; ask for at least {measure}={write_enough(least)}, or for other axes",
                least,
            )


def _fewest_layers(subject: Transformer) -> int:
    """Layers that can't go, and one of those that can."""
    if "layers" in subject.layout.whole:
        return len(subject.widths())
    units = subject.units("layers")
    return units["layers"].count - len(removable_layers(units)) + 1


def cost(units: Units, shape: Mapping[str, int]) -> dict[str, float]:
    """What a shape costs, in every measure of `units`."""
    kept = {name: shape.get(site.kind) for name, site in units.sites.items()}
    keep = {name: np.arange(units[name].count) < size for name, size in kept.items() if size is not None}
    if "layers" in shape and "layers" in units.sites:
        stays = np.ones(units["layers"].count, dtype=bool)
        stays[removable_layers(units)[shape["layers"] - len(stays) :] if shape["layers"] < len(stays) else []] = False
        keep["layers"] = stays
    return units.cost(keep)


def pricing(subject: Transformer, *, batch: int, length: int) -> Callable[[Mapping[str, int]], dict[str, float]]:
    """What a shape of all axes costs.

    Fewer heads than KV groups are those of a model that will have been cut before: groups without a head go, too.
    """
    units = subject.units(batch=batch, length=length)
    return lambda shape: cost(units, {**shape, "kv_groups": shape["heads"]})


def fits_class(subject: Transformer, channels: int) -> bool:
    """Whether transformers' own class reads the model with so many channels, by its config alone.

    Else a modelling file would have to travel with it: of a class whose heads must divide the channels, or whose heads
    are always as wide as channels / heads.
    """
    layout = subject.layout
    every = [*range(len(layout.widths))]
    config = cutting.new_config(layout, layout.widths, channels, every, list(subject.layer_index))
    return not saving.needs_module(config)


def describe_slack(spent: Mapping[str, float], limits: Mapping[str, float], tolerance: float) -> tuple[str, ...]:
    """A note where a shape leaves more of the budget than `tolerance`: one that was given, or that stages led to."""
    used = {measure: spent[measure] / limit for measure, limit in limits.items()}
    fullest = max(used, key=lambda measure: used[measure])
    if used[fullest] >= 1 - tolerance:
        return ()
    return (f"the shape takes {used[fullest]:.0%} of the {fullest} that the budget allows",)


def receipt(before: Transformer, after: Transformer) -> Cut:
    """What went between two subjects, the second cut from the first in any number of steps."""
    left, places = {}, {layer: place for place, layer in enumerate(before.layer_index)}
    for name, site in after.units().sites.items():
        layer, _, rest = name.removeprefix("layers.").partition(".")
        left[f"layers.{places[after.layer_index[int(layer)]]}.{rest}" if rest else name] = site.count
    gone = {name: (site.count - left.get(name, 0), site.count) for name, site in before.units().sites.items()}
    for kind in gone.keys() & set(BLOCKS):  # without units it is gone, though its layer stays
        there, stays = (sum(width.has(kind) for width in subject.widths()) for subject in (before, after))
        gone[kind] = (there - stays, there)
    return Cut(gone, before.units().cost(), after.units().cost())
