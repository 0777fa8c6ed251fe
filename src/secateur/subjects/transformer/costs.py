"""Units of a transformer and their costs: exact polynomials of the kept counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from secateur.subjects.transformer.layout import Layout, Place, Widths
from secateur.vocabulary import Site, Term, Units

__all__ = ["PROFILES", "Profile", "Source", "find_lasting", "find_needed", "serve", "sites", "state_terms", "terms"]

_COUNTED = ("neurons", "experts", "expert_neurons", "shared_neurons", "state_heads")
_STATES = ("state_heads", "state_channels")
"""Kinds of sites that are selected from only where they are named."""


@dataclass(frozen=True)
class Source:
    """What an encoder reads that is no text, of one sample: a sound or an image, whatever the length of texts.

    tokens: states that enter its layers. rows: linear -> rows that it runs over. flops: of convolutions.
    """

    tokens: int
    rows: Mapping[str, int] = field(default_factory=dict)
    flops: float = 0.0


@dataclass(frozen=True)
class Profile:
    """Bytes of each number as a model is served: of weights, of keys and values, of states, and of activations."""

    weights: float = 2.0
    cache: float = 2.0
    states: float = 2.0
    buffers: float = 2.0


PROFILES = {
    "bf16": Profile(),
    "fp8": Profile(weights=1.0, cache=1.0),
    "fp4": Profile(weights=0.5625, cache=1.0),
}
"""Weights in 4 bits come with a scale of 8 bits for every 16 of them. Of the paper's code the bytes of weights."""


def find_lasting(layout: Layout) -> dict[int, str]:
    """Layer -> why it can't go."""
    found = dict[int, str]()
    attends = [index for index in range(len(layout.widths)) if "attention" in layout.blocks(index)]
    if len(attends) == 1:  # by an attention, or the mark it leaves
        found[attends[0]] = "the cache counts tokens by an attention, and no other layer has one"
    if layout.family.caches_by_encoder and layout.counts[0] <= layout.counts[-1]:
        why = "generation caches as many layers as the encoder has, so that the decoder may not become the deeper one"
        found |= dict.fromkeys(range(layout.counts[0]), why)
    for start, count in zip(layout.starts, layout.counts, strict=True):
        if layout.family.first_stays:
            found |= dict.fromkeys(
                range(start, start + min(count, layout.family.first_layers)), layout.family.first_stays
            )
        if count == 1 and len(layout.counts) > 1:
            found[start] = "it is a whole stack"
    return found


def find_needed(layout: Layout) -> dict[tuple[int, ...], str]:
    """Layers of which one must stay -> why; alone where no other will do, as `find_lasting` has them."""
    found: dict[tuple[int, ...], str] = {(layer,): why for layer, why in find_lasting(layout).items()}
    attends = tuple(index for index in range(len(layout.widths)) if "attention" in layout.blocks(index))
    if 1 < len(attends) < len(layout.widths):
        found[attends] = "the cache counts tokens by an attention"
    for start, count in zip(layout.starts, layout.counts, strict=True):
        if count > 1 and len(layout.counts) > 1:
            found[tuple(range(start, start + count))] = "a stack can't go whole"
    return found


def sites(layout: Layout, multiple: int = 8) -> dict[str, Site]:
    """Every site of the model, whole; `multiple` rounds neurons and channels."""
    widths = layout.widths
    every = np.arange(len(widths))
    stays = np.isin(every, list(find_lasting(layout)))
    alone = stays if stays.any() and len(widths) > 1 else None
    found = {"layers": Site("layers", len(widths), minimum=1, fixed=alone)}
    for kind in dict.fromkeys(block.kind for block in layout.family.blocks):
        # What a layer has not, or has lost in an earlier cut, keeps its index here, and costs nothing.
        missing = [not width.has(kind) for width in widths]
        fixed = np.array(missing) if any(missing) else None
        found[kind] = Site(kind, len(widths), owner=("layers", every), fixed=fixed)
    for index, width in enumerate(widths):
        groups, heads, neurons = (f"layers.{index}.{kind}" for kind in ("kv_groups", "heads", "neurons"))
        if width.has_groups:
            group = np.repeat(np.arange(width.kv), width.heads // width.kv)
            found[groups] = Site(groups, width.kv, owner=("attention", np.full(width.kv, index)))
            found[heads] = Site(heads, width.heads, group=group, owner=(groups, group))
        elif width.heads:
            found[heads] = Site(heads, width.heads, owner=("attention", np.full(width.heads, index)))
        if width.cross:
            name = f"layers.{index}.cross.heads"
            found[name] = Site(name, width.cross, owner=("cross", np.full(width.cross, index)))
        if width.neurons:
            owner = ("ffn", np.full(width.neurons, index))
            found[neurons] = Site(neurons, width.neurons, owner=owner, multiple=multiple)
        if width.experts:
            found |= _mixture(layout, index, width, multiple)
        if width.state_heads:
            found |= _states(layout, index, width, multiple)
    least = min(multiple, layout.hidden_size)
    fixed = np.ones(layout.hidden_size, dtype=bool) if layout.fixed_ratio else None
    found["channels"] = Site("channels", layout.hidden_size, multiple=multiple, minimum=least, fixed=fixed)
    return {
        name: replace(site, frozen=site.kind in layout.whole or site.kind in _STATES) for name, site in found.items()
    }


def _states(layout: Layout, index: int, width: Widths, multiple: int) -> dict[str, Site]:
    """The sites of a mixer's states: heads, as many in each group, and channels, the same of every head."""
    heads, channels = (f"layers.{index}.{kind}" for kind in _STATES)
    groups = layout.state_groups(index)
    group = np.repeat(np.arange(groups), width.state_heads // groups)
    owner = ("mixer", np.full(width.state_heads, index))
    every = ("mixer", np.full(width.state_channels, index))
    least = min(multiple, width.state_channels)
    step = multiple if width.state_channels == 1 and width.state_heads >= multiple else 1
    return {
        heads: Site(heads, width.state_heads, group=group, owner=owner, minimum=max(groups, step), multiple=step),
        channels: Site(channels, width.state_channels, owner=every, multiple=multiple, minimum=least),
    }


def _mixture(layout: Layout, index: int, width: Widths, multiple: int) -> dict[str, Site]:
    """The sites of a layer with experts: whole experts, the neurons inside each, those of the shared expert.

    Experts of a layer stay equally wide: each keeps as many neurons, a multiple of `multiple`, by its own choice.
    """
    experts, neurons, shared = (f"layers.{index}.{kind}" for kind in ("experts", "expert_neurons", "shared_neurons"))
    every, inside = np.arange(width.experts), np.repeat(np.arange(width.experts), width.expert_neurons)
    ffn = np.full(width.experts, index)
    groups = layout.expert_groups
    found = {
        experts: Site(
            experts,
            width.experts,
            group=every // (width.experts // groups) if groups > 1 else None,
            owner=("ffn", ffn),
            minimum=layout.fewest_experts,
        ),
        neurons: Site(
            neurons,
            len(inside),
            group=inside,
            owner=(experts, inside),
            multiple=multiple * width.experts,
            minimum=min(multiple, width.expert_neurons) * width.experts,
        ),
    }
    if width.shared_neurons:
        count = width.shared_neurons
        owner = ("ffn", np.full(count, index))
        found[shared] = Site(shared, count, owner=owner, multiple=multiple, minimum=min(multiple, count))
    return found


def terms(
    layout: Layout, batch: int, length: int, cache: Iterable[Term] = (), source: Source | None = None
) -> tuple[tuple[Term, ...], dict[str, float]]:
    """Terms and base of params, bytes, flops and memory; `cache` are terms of kv_cache, which memory includes.

    source: what an encoder reads that is no text; else it reads `length` tokens, too.
    With experts also active_params: what one token passes, k of E experts of each layer and all the rest.
    """
    total: dict[Term, float] = {}
    base: dict[str, float] = {"params": 0.0, "bytes": 0.0, "flops": 0.0, "memory": 0.0}
    rows = {} if source is None else source.rows
    read = length if source is None else source.tokens
    base["flops"] += 0.0 if source is None else batch * source.flops
    if layout.family.experts:
        base["active_params"] = 0.0

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
            if layout.family.experts:
                times, per_expert = _routed_share(layout, place)
                add("active_params", size * times, names, condition | per_expert)
            for measure in ("bytes", "memory"):
                add(measure, size * parameter.element_size(), names, condition)
    for name, weight in layout.products():
        place = layout.place(name)
        tokens = batch * (1 if _once(layout, place) else rows.get(name.removesuffix(".weight"), length))
        times, per_expert = _routed_share(layout, place)
        for size, names in _monomials(layout, place, weight.shape):
            add("flops", 2.0 * tokens * size * times, names, _condition(layout, place) | per_expert)
    for index, width in enumerate(layout.widths):
        product = 4.0 * batch * layout.attention_width(index)  # queries by keys, and weights by values
        own = read if index < layout.starts[-1] or not layout.family.has_encoder else length
        if width.heads:
            add("flops", product * own**2, [f"layers.{index}.heads"], {"units": (("layers", index),)})
        elif not layout.family.attends:
            add("flops", product * own**2 * layout.stated_heads, [], {"units": (("layers", index),)})
        if width.heads and layout.index_width(index):
            ranking = 2.0 * batch * layout.index_width(index)
            add("flops", ranking * own**2, [], {"units": (("layers", index), ("attention", index))})
        if width.cross:
            add("flops", product * length * read, [f"layers.{index}.cross.heads"], {"units": (("layers", index),)})
    found = [replace(term, coefficient=value) for term, value in total.items()]
    cached = [term for part in cache for term in (part, replace(part, measure="memory"))]
    return (*found, *cached), base


def state_terms(layout: Layout, batch: int, size: float) -> Iterator[Term]:
    """Bytes that the states of mixers take while text is written, `size` for each number.

    B (H C N + K (H C + F)) of a layer: H heads of C channels with N numbers each, and the last K inputs of the
    convolution over these and the F rows that groups share, or that all heads have together. Of a mixer without keys
    and queries the last inputs alone: a number for each channel that an RG-LRU keeps in itself is not counted.
    """
    for index, width in enumerate(layout.widths):
        if not width.state_heads:
            continue
        numbers, taps, rows = layout.state_sizes(index)
        units = (("layers", index), ("mixer", index))
        inside = tuple(f"layers.{index}.{kind}" for kind in _STATES)
        yield Term("state_cache", batch * size * (numbers + taps), inside, units=units)
        if width.state_fixed:
            yield Term("state_cache", batch * size * taps * width.state_fixed, units=units)
        elif rows:
            yield Term("state_cache", batch * size * taps * rows / width.state_heads, inside[:1], units=units)


def serve(units: Units, profile: Profile, itemsize: int, batch: int, length: int) -> Units:
    """These units with the measure served_memory: bytes of weights, caches and one activation [B, T, channels].

    itemsize: bytes of each number in which kv_cache and state_cache are.
    """
    shares = {"params": profile.weights, "kv_cache": profile.cache / itemsize, "state_cache": profile.states / itemsize}
    served = [
        replace(term, measure="served_memory", coefficient=term.coefficient * shares[term.measure])
        for term in units.terms if term.measure in shares
    ]  # fmt: skip
    served.append(Term("served_memory", batch * length * profile.buffers, ("channels",)))
    base = sum(units.base.get(measure, 0.0) * share for measure, share in shares.items())
    return replace(units, terms=(*units.terms, *served), base={**units.base, "served_memory": base})


def _monomials(layout: Layout, place: Place, shape: torch.Size) -> Iterator[tuple[float, list[str]]]:
    """A tensor's size as a sum of (coefficient, sites): the product of its axes, each a sum of parts."""

    each = any("expert_neurons" in axis for axis in place.axes or ())

    def part(name: str) -> tuple[int, str, str]:
        if name == "channels":
            return 1, "channels", ""
        if name == "experts" and each:
            return 1, "", ""  # the site of the neurons counts those of all experts
        if name == "state_fixed" and place.layer is not None:
            return layout.widths[place.layer].state_fixed, "", ""
        if name == "state_heads*":
            return 1, f"layers.{place.layer}.state_heads", f"layers.{place.layer}.state_channels"
        if name.startswith("state_heads*"):
            return int(name.partition("*")[2]), f"layers.{place.layer}.state_heads", ""
        if name in _COUNTED:
            return 1, f"layers.{place.layer}.{name}", ""
        if name == "cross*":
            return layout.head_dim, f"layers.{place.layer}.cross.heads", ""
        if name.startswith("expert_neurons*"):
            return int(name.partition("*")[2]), f"layers.{place.layer}.expert_neurons", ""
        grouped = name == "kv*" and place.layer is not None and layout.widths[place.layer].has_groups
        block = layout.head_dim * int(name.partition("*")[2] or 1) if "*" in name else 1
        return block, f"layers.{place.layer}.{'kv_groups' if grouped else 'heads'}", ""

    axes = [
        [part(name) for name in axis.split("+")] if axis else [(size, "", "")]
        for axis, size in zip(place.axes or ("",) * len(shape), shape, strict=True)
    ]
    for chosen in itertools.product(*axes):
        yield math.prod(size for size, *_ in chosen), sorted(site for _, *sites in chosen for site in sites if site)


def _condition(layout: Layout, place: Place) -> dict[str, object]:
    """With what a tensor leaves, as fields of a `Term`."""
    if place.layer is None:
        return {}
    with_layer: dict[str, Any] = {"units": (("layers", place.layer),)}
    if not layout.leaves_with_block(place):
        return with_layer
    width = layout.widths[place.layer]
    if place.block == "mixer":
        return {"units": (*with_layer["units"], ("mixer", place.layer))}
    names = {"attention": "heads", "cross": "cross.heads"}
    site = names.get(place.block, "experts" if width.experts else "neurons")
    return with_layer | {"present": (f"layers.{place.layer}.{site}",)}


def _routed_share(layout: Layout, place: Place) -> tuple[float, dict[str, Any]]:
    """How often a token passes one of the packed experts a tensor holds, as a factor and a divisor; else once."""
    experts = layout.family.experts
    if experts is None or place.layer is None or place.module != experts.packed:
        return 1.0, {}
    return float(layout.chosen), {"per": (f"layers.{place.layer}.experts",)}


def _once(layout: Layout, place: Place) -> bool:
    """Whether a linear runs once per sequence; a classifier does, unless it labels tokens."""
    if place.layer is not None or place.module not in layout.family.per_sequence:
        return False
    return place.module != "classifier" or "TokenClassification" not in type(layout.model).__name__
