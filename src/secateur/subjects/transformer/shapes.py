"""Shapes of transformers whose layers are alike: number of layers, heads, neurons (without experts) and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer.subject import Transformer
from secateur.vocabulary import Cut, Units, parse_list

__all__ = ["cost", "grid", "parse", "receipt", "removable_layers", "sizes", "steps"]


def sizes(subject: Transformer) -> dict[str, int]:
    """Axis -> size: layers, heads per layer, neurons per layer, channels.

    Where some layers have experts there is no axis of neurons: experts, and the FFNs of layers without, stay whole.
    Raises `UnsupportedError` where layers of one kind differ.
    """
    widths = subject.widths()
    mixed = any(width.experts for width in widths)
    kinds = {(width.heads, width.kv, bool(width.experts)): width for width in widths}
    if len(set(widths)) > len(kinds) or not all(width.heads and width.ffn for width in widths):
        alike = False
    else:
        alike = len({(width.heads, width.kv) for width in widths}) == 1
    if not alike:
        raise UnsupportedError(
            "the layers of this model differ, so no one shape describes it: start from the uncut model"
        )
    found = {"layers": len(widths), "heads": widths[0].heads}
    if not mixed:
        found["neurons"] = widths[0].neurons
    return found | {"channels": subject.hidden_size}


def removable_layers(units: Units) -> list[int]:
    """The layers that a shape may drop: all, or, where some have experts and some have not, those with experts.

    Otherwise a number of layers would not say what a shape costs.
    """
    count = units["layers"].count
    mixed = [layer for layer in range(count) if f"layers.{layer}.experts" in units.sites]
    return mixed or list(range(count))


def parse(given: str | Sequence[str], subject: Transformer) -> dict[str, int]:
    """The sizes written as "axis=number,..."; axes not named stay whole.

    Raises `InputError` for an axis that is not there, and for a size that no cut can have.
    """
    result, multiples = sizes(subject), steps(subject)
    least = dict.fromkeys(result, 1) | {"layers": _fewest_layers(subject.units("layers"))}
    for part in parse_list(given):
        axis, _, number = part.partition("=")
        if axis not in result or not number.isdigit() or not least[axis] <= int(number) <= result[axis]:
            known = ", ".join(f"{name}={least[name]}..{size}" for name, size in result.items())
            raise InputError(f"shape {given!r}: {part!r} is not one of {known}")
        if int(number) % multiples[axis] and int(number) != result[axis]:
            raise InputError(f"shape {given!r}: {part!r} is no multiple of {multiples[axis]}")
        result[axis] = int(number)
    return result


def steps(subject: Transformer) -> dict[str, int]:
    """Axis -> what a size must be a multiple of: whole KV groups keep equally many heads each, widths go by 8.

    Channels that must stay (see `Layout.fixed_ratio`) go by their whole number.
    """
    width = subject.widths()[0]
    heads = width.kv if width.kv < width.heads else 1
    channels = subject.hidden_size if subject.layout.fixed_ratio else 8
    return {"layers": 1, "heads": heads, "neurons": 8, "channels": channels}


def grid(subject: Transformer, axes: Sequence[str], *, least: float = 0.25) -> dict[str, list[int]]:
    """Axis -> sizes to try, ascending, from `least` of the axis on; about eight per axis.

    Other axes stay whole, and so do those that can't be cut in this family (`Layout.whole`).
    """
    result, fewest = {}, _fewest_layers(subject.units("layers"))
    for axis, size in sizes(subject).items():
        step = steps(subject)[axis]
        step *= max(1, size // 8 // step)
        may_shrink = axis in axes and axis not in subject.layout.whole
        tried = [k for k in range(step, size, step) if k >= least * size] if may_shrink else []
        if axis == "layers":
            tried = [k for k in tried if k >= fewest]
        result[axis] = [*tried, size]
    return result


def _fewest_layers(units: Units) -> int:
    """Layers that can't go, and one of those that can."""
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


def receipt(before: Transformer, after: Transformer) -> Cut:
    """What went between two subjects, the second cut from the first in any number of steps."""
    left = {}
    for name, site in after.units().sites.items():
        layer, _, rest = name.removeprefix("layers.").partition(".")
        left[f"layers.{after.layer_index[int(layer)]}.{rest}" if rest else name] = site.count
    # A sub-block without units is gone, though its layer stays.
    left |= {"attention": sum(width.heads > 0 for width in after.widths())}
    left |= {"ffn": sum(width.ffn for width in after.widths())}
    gone = {name: (site.count - left.get(name, 0), site.count) for name, site in before.units().sites.items()}
    return Cut(gone, before.units().cost(), after.units().cost())
