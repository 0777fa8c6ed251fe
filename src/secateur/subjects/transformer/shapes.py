"""Shapes of homogeneous transformers: number of layers, heads, neurons and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secateur.errors import InputError, UnsupportedError
from secateur.subjects.transformer.subject import Transformer
from secateur.vocabulary import Cut, Units, parse_list

__all__ = ["cost", "grid", "parse", "receipt", "sizes", "steps"]


def sizes(subject: Transformer) -> dict[str, int]:
    """Axis -> size: layers, heads per layer, neurons per layer, channels.

    Raises `UnsupportedError` where layers differ.
    """
    widths = set(subject.widths())
    if len(widths) > 1 or not all(width.heads and width.neurons for width in widths):
        raise UnsupportedError(
            "the layers of this model differ, so no one shape describes it: start from the uncut model"
        )
    (width,) = widths
    return {
        "layers": len(subject.layers()),
        "heads": width.heads,
        "neurons": width.neurons,
        "channels": subject.hidden_size,
    }


def parse(given: str | Sequence[str], subject: Transformer) -> dict[str, int]:
    """The sizes written as "axis=number,..."; axes not named stay whole."""
    result = sizes(subject)
    for part in parse_list(given):
        axis, _, number = part.partition("=")
        if axis not in result or not number.isdigit() or not 0 < int(number) <= result[axis]:
            known = ", ".join(f"{name}=1..{size}" for name, size in result.items())
            raise InputError(f"shape {given!r}: {part!r} is not one of {known}")
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
    """Axis -> sizes to try, ascending, from `least` of the axis on; about eight per axis. Other axes stay whole."""
    result = {}
    for axis, size in sizes(subject).items():
        step = steps(subject)[axis]
        step *= max(1, size // 8 // step)
        tried = [k for k in range(step, size, step) if k >= least * size] if axis in axes else []
        result[axis] = [*tried, size]
    return result


def cost(units: Units, shape: Mapping[str, int]) -> dict[str, float]:
    """What a shape costs, in every measure of `units`."""
    kept = {name: shape.get(site.kind) for name, site in units.sites.items()}
    return units.cost({name: np.arange(units[name].count) < size for name, size in kept.items() if size is not None})


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
