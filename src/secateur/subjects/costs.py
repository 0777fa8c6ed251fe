"""What a transformer's units are, and what they cost: exact polynomials of the kept counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from secateur.subjects.layout import Layout, Place
from secateur.vocabulary import Site, Term

__all__ = ["sites", "terms"]


def sites(layout: Layout, multiple: int = 8) -> dict[str, Site]:
    """Every site of the model, whole; `multiple` rounds neurons and channels."""
    widths = layout.widths
    every = np.arange(len(widths))
    gone = {"attention": [not width.heads for width in widths], "ffn": [not width.neurons for width in widths]}
    found = {"layers": Site("layers", len(widths), minimum=1)}
    for kind, missing in gone.items():
        # What has gone in an earlier cut keeps its index here, and costs nothing.
        fixed = np.array(missing) if any(missing) else None
        found[kind] = Site(kind, len(widths), owner=("layers", every), fixed=fixed)
    for index, width in enumerate(widths):
        groups, heads, neurons = (f"layers.{index}.{kind}" for kind in ("kv_groups", "heads", "neurons"))
        if width.grouped:
            group = np.repeat(np.arange(width.kv), width.heads // width.kv)
            found[groups] = Site(groups, width.kv, owner=("attention", np.full(width.kv, index)))
            found[heads] = Site(heads, width.heads, group=group, owner=(groups, group))
        elif width.heads:
            found[heads] = Site(heads, width.heads, owner=("attention", np.full(width.heads, index)))
        if width.neurons:
            owner = ("ffn", np.full(width.neurons, index))
            found[neurons] = Site(neurons, width.neurons, owner=owner, multiple=multiple)
    least = min(multiple, layout.hidden_size)
    fixed = np.ones(layout.hidden_size, dtype=bool) if layout.fixed_ratio else None
    found["channels"] = Site("channels", layout.hidden_size, multiple=multiple, minimum=least, fixed=fixed)
    return found


def terms(
    layout: Layout, batch: int, length: int, cache: Iterable[Term] = ()
) -> tuple[tuple[Term, ...], dict[str, float]]:
    """Terms and base of params, bytes, flops and memory; `cache` are terms of kv_cache, which memory includes."""
    total: dict[Term, float] = {}
    base: dict[str, float] = {"params": 0.0, "bytes": 0.0, "flops": 0.0, "memory": 0.0}

    def add(measure: str, coefficient: float, names: Iterable[str], condition: Mapping[str, Any]) -> None:
        if names or condition:
            key = Term(measure, 1.0, tuple(names), **condition)
            total[key] = total.get(key, 0.0) + coefficient
        else:
            base[measure] += coefficient

    for name, parameter in layout.model.named_parameters():
        place = layout.place(name)
        condition = _condition(layout, place)
        for size, names in _monomials(layout, place, parameter.shape):
            add("params", size, names, condition)
            for measure in ("bytes", "memory"):
                add(measure, size * parameter.element_size(), names, condition)
    for name, linear in layout.linears():
        place = layout.place(f"{name}.weight")
        tokens = batch if _once(layout, place) else batch * length
        for size, names in _monomials(layout, place, linear.weight.shape):
            add("flops", 2.0 * tokens * size, names, _condition(layout, place))
    for index, width in enumerate(layout.widths):
        if width.heads:
            products = 4.0 * batch * length**2 * layout.head_dim  # queries by keys, and weights by values
            add("flops", products, [f"layers.{index}.heads"], {"units": (("layers", index),)})
    found = [replace(term, coefficient=value) for term, value in total.items()]
    cached = [term for part in cache for term in (part, replace(part, measure="memory"))]
    return (*found, *cached), base


def _monomials(layout: Layout, place: Place, shape: torch.Size) -> Iterator[tuple[float, list[str]]]:
    """A tensor's size as a sum of (coefficient, sites): the product of its axes, each a sum of parts."""

    def part(name: str) -> tuple[int, str]:
        if name == "channels":
            return 1, "channels"
        if name == "neurons":
            return 1, f"layers.{place.layer}.neurons"
        grouped = name == "kv*" and place.layer is not None and layout.widths[place.layer].grouped
        return layout.head_dim, f"layers.{place.layer}.{'kv_groups' if grouped else 'heads'}"

    axes = [
        [part(name) for name in axis.split("+")] if axis else [(size, "")]
        for axis, size in zip(place.axes or ("",) * len(shape), shape, strict=True)
    ]
    for chosen in itertools.product(*axes):
        yield math.prod(size for size, _ in chosen), sorted(site for _, site in chosen if site)


def _condition(layout: Layout, place: Place) -> dict[str, Any]:
    """With what a tensor leaves, as fields of a `Term`."""
    if place.layer is None:
        return {}
    with_layer: dict[str, Any] = {"units": (("layers", place.layer),)}
    if not layout.leaves_with_block(place):
        return with_layer
    site = "heads" if place.block == "attention" else "neurons"
    return with_layer | {"present": (f"layers.{place.layer}.{site}",)}


def _once(layout: Layout, place: Place) -> bool:
    """Whether a linear runs once per sequence; a classifier does, unless it labels tokens."""
    if place.layer is not None or place.module not in layout.family.per_sequence:
        return False
    return place.module != "classifier" or "TokenClassification" not in type(layout.model).__name__
