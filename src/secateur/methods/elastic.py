"""Elastic models: one set of weights that holds models of several sizes, and the router that says which size is which.

A model whose units are sorted (`subjects.transformer.sorting`) is an elastic one with its choices: `find_axes` lists
them, `Elastic` masks the model to any of them and cuts them out, `write` and `read` keep all of it in one folder, which
loads as the whole model by plain `from_pretrained`.

Source: Nemotron Elastic (arXiv 2511.16664).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.errors import BudgetError, InfeasibleError, InputError, ModelError, UnsupportedError
from secateur.formats import expert_tensors
from secateur.recover.sparsity import gates, nested
from secateur.recover.sparsity.router import BudgetRouter, encode_budget
from secateur.score import ablation, activation, experts, routing
from secateur.subjects import Moe, Transformer, open_subject
from secateur.subjects.transformer import cutting
from secateur.subjects.transformer.costs import PROFILES, Profile
from secateur.subjects.transformer.sorting import sort_units
from secateur.vocabulary import Budget, Cut, Selection, Units, parse_list

__all__ = [
    "AXES", "FILE", "Axis", "Elastic", "Timed", "find_axes", "find_places", "find_reason", "make", "rank_layers",
    "read", "read_profile", "removable_layers", "score_widths", "share_of", "write",
]  # fmt: skip

FILE = "elastic.json"
"""Of an elastic folder: what it holds beside the weights of the whole model."""
_ROUTER = "router.safetensors"
_VERSION = 1

AXES = (
    "layers", "channels", "neurons", "shared_neurons", "heads", "kv_groups", "state_heads", "state_channels", "experts",
    "expert_neurons",
)  # fmt: skip
"""Axes along which a model can be elastic."""
SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Shares of an axis to choose from, beside the whole, where nothing else is said; of the layers at least half stay."""
_NEAR, _NEAR_HALF = 1e-3, 5e-2
"""How far apart masked and sliced outputs may be by rounding, in parts of the largest; in half precision."""
_LOGITS = 1 << 28
"""Numbers that predictions may have while units are ranked: more sequences are looked at in turn."""
_SLACK = 0.05
"""How far below its budget a size may lie before it grows again."""

Chosen = dict[str, list[int]]
"""Axis -> the number of the choice of each row."""


@dataclass(frozen=True)
class Axis:
    """One axis: its sites, their choices, and whether each of them chooses on its own."""

    name: str
    counts: Mapping[str, tuple[int, ...]]
    """Site -> kept counts of each choice, the whole first; inside each group where units have groups."""
    uneven: bool = False
    order: tuple[int, ...] = ()
    """Layers in the order in which they go, where those are the axis."""
    dropped: tuple[str, ...] = field(default=(), compare=False)
    """Choices that were asked for and can't be, and why."""

    @property
    def rows(self) -> int:
        """Choices that are made."""
        return len(self.counts) if self.uneven else 1

    @property
    def choices(self) -> int:
        """How many there are to choose from."""
        return len(next(iter(self.counts.values())))

    def row(self, place: int) -> int:
        """The row by which the site at `place` goes."""
        return place if self.uneven else 0

    def prefix(self, site: str, units: int) -> nested.Prefix:
        """The choices of a site of `units` units, in groups one after the other as large as its first count."""
        counts = self.counts[site]
        if self.name != "layers":
            return nested.Prefix(torch.arange(units) % counts[0], counts)
        rank = torch.full((units,), -1)
        for place, layer in enumerate(self.order):
            rank[layer] = units - 1 - place
        return nested.Prefix(rank, counts)


def find_axes(
    subject: Transformer,
    names: Sequence[str],
    *,
    uneven: Sequence[str] = (),
    choices: str | Sequence[str] = "",
    order: Sequence[int] = (),
    multiple: int = 8,
) -> dict[str, Axis]:
    """The axes of a model, of those in `names` that it has, with their choices.

    uneven: axes along which layers choose on their own. choices: "neurons=0.5+0.75", shares of each layer's own width,
    or counts such as "layers=20+24", in any order; 1.0 is the whole, 1 one unit; the eighths down to a quarter unless
    given. Counts are rounded down to what a cut can have; those that can't be are named in `Axis.dropped`. order: the
    layers, those first that go first. Raises `InputError` for what can't be read, `UnsupportedError` for an axis that
    this model can't lose.
    """
    units = subject.units(multiple=multiple)
    given = _read_choices(choices, names)
    for name in (*names, *uneven):
        if name not in AXES:
            raise InputError(f"axis {name!r} is not one of {', '.join(AXES)}")
    found = dict[str, Axis]()
    for name in names:
        sites = [site for site in units.sites if site.rpartition(".")[2] == name and ".cross." not in site]
        sites = [site for site in sites if units[site].count]
        bare = name == "channels" and subject.family.bare_channels  # as sizes are cut: norms run over what stays
        why = "" if bare else find_reason(subject, name)
        if why and name in given:
            raise UnsupportedError(f"{name} of this model can't be cut: {why}")
        if not sites and name in given:
            raise UnsupportedError(f"choices: this model has no {name}: leave them out")
        if why or not sites:
            continue
        counts, dropped = _list_counts(units, name, sites, given.get(name), order)
        if len(next(iter(counts.values()))) > 1:
            apart = name in uneven and len(sites) > 1
            found[name] = Axis(name, counts, apart, tuple(order) if name == "layers" else (), dropped)
        elif name in given:
            raise InputError(
                f"choices {choices!r}: none of {name} is below the whole and a count that a cut can have: "
                + ("; ".join(dropped) or "it is the whole")
            )
    if not found:
        reasons = "; ".join(filter(None, (find_reason(subject, name) for name in names)))
        raise UnsupportedError(f"nothing of this model can be cut along {', '.join(names)}: {reasons or 'it has none'}")
    if any(axis.uneven for axis in found.values()):
        subject.check_unequal()
    return found


def find_reason(subject: Transformer, axis: str) -> str:
    """Why an axis of a model stays whole, where the family says so; "" where it can go, or is not there."""
    if axis == "channels" and cutting.layer_norms(subject.layout):
        return "its LayerNorms subtract a mean over all channels, so masked ones would be no sliced ones"
    if axis == "channels" and subject.layout.fixed_ratio:
        return "its config checks long-context rope factors against the number of channels"
    return subject.layout.whole.get(axis, "")


def _read_choices(choices: str | Sequence[str], names: Sequence[str]) -> dict[str, list[float]]:
    """Axis -> its sizes: a float is a share, an int a count."""
    found = dict[str, list[float]]()
    for part in parse_list(choices):
        axis, equals, text = part.partition("=")
        try:
            numbers = [_read_size(number) for number in text.split("+")]
        except ValueError:
            numbers = []
        if axis not in names or not equals or not numbers:
            raise InputError(
                f"choices: {part!r} was not understood: write an axis of {', '.join(names)} with its sizes, shares up "
                "to 1.0 or whole counts, such as neurons=0.5+0.75 or layers=20+24"
            )
        if axis in found:
            raise InputError(f"choices: {axis} is there twice: write all of its sizes at once, such as {axis}=0.5+0.75")
        found[axis] = numbers
    return found


def _read_size(text: str) -> float:
    """A share as a float, a count as an int: "1.0" is the whole, "1" is one. Raises `ValueError` for neither."""
    number = float(text)
    if not 0 < number < math.inf or (number > 1 and not number.is_integer()):
        raise ValueError
    return number if number < 1 or (number == 1 and not text.strip().isdigit()) else int(number)


def _list_counts(
    units: Units, name: str, sites: Sequence[str], given: Sequence[float] | None, order: Sequence[int]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """(site -> counts of each choice, falling in all sites; what of `given` is left out, and why)."""
    layers = name == "layers"
    sizes = {site: _size_of_group(units, site) for site in sites}
    rows, dropped = list[tuple[float, dict[str, int]]](), list[str]()
    for size in given or (range(math.ceil(units[name].count / 2), units[name].count) if layers else SHARES):
        row, few = dict[str, int](), 0
        for site, whole in sizes.items():
            groups = _count_groups(units, site)
            step = 1 if layers else max(1, units[site].multiple // groups)
            least = max(-(-units[site].minimum // groups), min(step, whole), 1)
            least = max(whole - len(order), 1) if layers else least
            told = 1 if name == "expert_neurons" else groups  # a count is of all groups; an expert's width its own
            amount = size * whole if isinstance(size, float) else size / told
            kept = math.floor(amount / step + 1e-9) * step
            few = few or (least * told if kept < least else 0)
            row[site] = max(least, kept)
        if given and few:
            dropped.append(f"{name}={size} is left out, for at least {few} stay")
        elif row != sizes:
            rows.append((size, row))
    found = {site: [whole] for site, whole in sizes.items()}
    for size, row in sorted(rows, key=lambda one: -sum(one[1].values())):
        if all(row[site] < found[site][-1] for site in sites):
            for site in sites:
                found[site].append(row[site])
        elif given:
            dropped.append(f"{name}={size} is left out, for it is not below the next larger choice everywhere")
    return {site: tuple(counts) for site, counts in found.items()}, tuple(dropped)


def _count_groups(units: Units, site: str) -> int:
    group = units[site].group
    return 1 if group is None else int(np.max(group)) + 1


def _size_of_group(units: Units, site: str) -> int:
    return units[site].count // _count_groups(units, site)


def read_profile(text: str) -> Profile:
    """A profile by its name, or with numbers of one's own: "fp8", "weights=0.5625,cache=1,states=2,buffers=2".

    Raises `InputError` for what is neither, and for numbers that are given twice or not finite.
    """
    if text in PROFILES:
        return PROFILES[text]
    try:
        parts = [part.partition("=") for part in parse_list(text)]
        pairs = {name: float(value) for name, _, value in parts}
        if not pairs or len(pairs) < len(parts) or not all(0 < value < math.inf for value in pairs.values()):
            raise ValueError
        return Profile(**pairs)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"profile={text}: give {', '.join(PROFILES)}, or bytes of each number such as "
            "weights=0.5625,cache=1,states=2,buffers=2"
        ) from error


# ------------------------------------------------------------------------------------------------------------ ranking


def score_widths(
    subject: Transformer, batches: Sequence[Mapping[str, Tensor]], axes: Mapping[str, Axis]
) -> dict[str, Tensor]:
    """Site -> [count]: how much each unit of the axes, layers apart, is worth by its activations on `batches`.

    Channels: sum |LN(X)_i| over tokens and all norms. Neurons: sum |X W1_i| at the one linear that goes in, and after
    the gate where there are two. Heads, and groups of them: sum over tokens of the L2 norm of what they give to the
    output linear. Heads and channels of Mamba-2: `activation.state_scores`. Experts: the router's probabilities, summed
    over tokens. Source: section 3.1 of the paper.
    """
    layout = subject.layout
    wanted = {site for name, axis in axes.items() if name != "layers" for site in axis.counts}
    taps = activation.inputs({site: at for site, at in subject.consumers().items() if site in wanted})
    for index, path in enumerate(layout.layers()):
        first = _find_first_linears(subject, index) if f"layers.{index}.neurons" in taps else []
        if len(first) == 1:
            taps[f"layers.{index}.neurons"] = activation.Tap(f"{path}.{first[0]}", "output")
    norms = {norm: activation.Tap(norm, "output") for norm in subject.norms()} if "channels" in wanted else {}
    inner = _tap_states(subject) if {"state_heads", "state_channels"} & axes.keys() else {}
    batches = _part_batches(subject, batches)
    found = activation.collect(subject.forward, subject.model, batches, {**taps, **norms, **inner}, batch="mean")
    for name in inner:
        index = int(name.removeprefix("states "))
        found |= _score_states(subject, index, found.pop(name), axes)
    if norms:
        found["channels"] = activation.sum_scores({norm: found.pop(norm) for norm in norms})
    if "expert_neurons" in axes and isinstance(subject, Moe):
        packed = {f"layers.{index}.expert_neurons": mixture.experts for index, mixture in subject.mixtures().items()}
        worth = experts.activation(subject.forward, subject.model, packed, batches)
        filled = experts.fill_starved(worth, packed)
        found |= {site: filled[site] for site in packed}
    if "experts" in axes and isinstance(subject, Moe):
        mixtures = {f"layers.{index}.experts": mixture for index, mixture in subject.mixtures().items()}
        routings = routing.collect(
            subject.forward, subject.model, batches, {site: one.experts for site, one in mixtures.items()},
            routers={site: one.router for site, one in mixtures.items()},
        )  # fmt: skip
        soft = {site: one.worth("soft") for site, one in routings.items()}
        found |= {site: worth.float() for site, worth in soft.items() if worth is not None}
    return found


def _tap_states(subject: Transformer) -> dict[str, activation.Tap]:
    """ "states L" -> where the input linear of the mixer of layer L gives its output.

    Of heads that share nothing it is what their output linear reads, as of the heads of an attention.
    """
    layout, found = subject.layout, dict[str, activation.Tap]()
    for index, (path, width) in enumerate(zip(layout.layers(), layout.widths, strict=True)):
        if width.state_heads and not width.state_fixed:
            found[f"states {index}"] = activation.Tap(f"{path}.{layout.blocks(index)['mixer'].out}", "input")
            continue
        for name, axes in layout.blocks(index)["mixer"].tensors.items() if width.state_heads else ():
            if axes[0].startswith("state_heads*+state_heads*"):
                found[f"states {index}"] = activation.Tap(f"{path}.{name}", "output")
    return found


def _score_states(subject: Transformer, index: int, rows: Tensor, axes: Mapping[str, Axis]) -> dict[str, Tensor]:
    """Site -> scores of the states of a layer; rows: magnitudes at its tap, those of an input linear z before x."""
    width, places = subject.widths()[index], [f"layers.{index}.{kind}" for kind in ("state_heads", "state_channels")]
    wide = width.state_heads * width.state_channels
    narrow = axes["state_channels"].counts.get(places[1]) if "state_channels" in axes else None
    scores = activation.state_scores(
        rows[wide : 2 * wide] if width.state_fixed else rows, width.state_heads, narrow[-1] if narrow else None
    )
    return {
        site: score for site, score in zip(places, scores, strict=True)
        if any(site in axis.counts for axis in axes.values())
    }  # fmt: skip


def _find_first_linears(subject: Transformer, layer: int) -> list[str]:
    """The linears into the neurons of a layer's FFN, relative to the layer."""
    wanted = ("channels", "neurons") if subject.family.conv1d else ("neurons", "channels")
    return [name for name, axes in subject.layout.blocks(layer)["ffn"].tensors.items() if axes == wanted]


def _part_batches(subject: Transformer, batches: Sequence[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """The batches in parts of whole sequences, whose logits are `_LOGITS` numbers at most, or those of one sequence."""
    found, vocabulary = list[Mapping[str, Tensor]](), int(getattr(subject.model.config, "vocab_size", 1))
    for batch in batches:
        rows, length = batch["input_ids"].shape
        size = max(1, _LOGITS // max(1, length * vocabulary))
        parts = range(0, rows, size)
        found += [{name: one[start : start + size] for name, one in batch.items()} for start in parts]
    return found


def removable_layers(subject: Transformer) -> list[int]:
    """The layers that may go."""
    site = subject.units()["layers"]
    return [layer for layer in range(site.count) if site.fixed is None or not site.fixed[layer]]


def rank_layers(subject: Transformer, batches: Sequence[Mapping[str, Tensor]], count: int) -> list[tuple[int, float]]:
    """(layer, its score) of `count` layers, the least important first: `ablation.list_in_order` by normalised MSE.

    Of layers of which one must stay, the one that is missed most is none of them.
    """
    removable, layers = removable_layers(subject), len(subject.layers())
    masks = nested.Nested({}, [nested.Gate(path, "layers", index) for index, path in enumerate(subject.layers())])

    def read(batch: Mapping[str, Tensor]) -> Tensor:
        prediction = subject.forward(batch).prediction
        mask = batch.get("attention_mask")
        tokens = prediction.dim() == 3 and mask is not None
        return prediction[mask.bool().to(prediction.device)] if tokens and mask is not None else prediction

    def whole(batch: Mapping[str, Tensor]) -> Tensor:
        masks.shares = {}
        return read(batch)

    def without(batch: Mapping[str, Tensor], gone: tuple[int, ...]) -> Tensor:
        stays = torch.ones(layers)
        stays[list(gone)] = 0.0
        masks.shares = {"layers": stays}
        return read(batch)

    lose = partial(ablation.normalized_mse, whole, without, _part_batches(subject, batches))
    needed = [set(members) for members in subject.needed_layers()]

    def score(sets: Sequence[tuple[int, ...]]) -> Tensor:
        barred = [any(members.issubset(gone) for members in needed) for gone in sets]
        return lose(sets).masked_fill(torch.tensor(barred), torch.inf)

    with masks.on(subject.model), evaluating(subject.model):
        order = ablation.list_in_order(score, removable, min(count, len(removable) - (len(removable) == layers)))
    return [(layer, loss) for layer, loss in order if loss != math.inf]  # where none but barred ones were left


# ------------------------------------------------------------------------------------------------------------- masks


def find_places(subject: Transformer, axes: Mapping[str, Axis]) -> Iterator[nested.Place]:
    """Where the choices of the axes act in a model's modules."""
    layout = subject.layout
    if "channels" in axes:
        yield from _place_channels(subject, axes["channels"])
    for site, consumer in subject.consumers().items():
        axis = axes.get(site.rpartition(".")[2])
        if axis is not None and site in axis.counts:
            module = subject.model.get_submodule(consumer.module)
            width = module.get_parameter("weight").shape[0 if consumer.conv1d else 1]
            yield nested.Mask(consumer.module, "input", site, torch.arange(width) // consumer.block)
    names = layout.family.experts
    yield from _place_states(subject, axes)
    for index, path in enumerate(layout.layers()):
        site = f"layers.{index}.experts"
        if names is not None and "experts" in axes and site in axes["experts"].counts:
            yield nested.Bar(f"{path}.{names.router}", site)
            mixture = names.packed.rpartition(".")[0]
            for name, parts in names.tensors.items():
                if parts == ("experts",):
                    yield nested.Bar(f"{path}.{mixture}", site, name.removeprefix(f"{mixture}."))
        site = f"layers.{index}.expert_neurons"
        if names is not None and "expert_neurons" in axes and site in axes["expert_neurons"].counts:
            width = layout.widths[index]
            unit = torch.arange(width.experts * width.expert_neurons).reshape(width.experts, 1, width.expert_neurons)
            packed = f"{path}.{names.packed}"
            turned = expert_tensors.is_turned(subject.model.get_submodule(packed))
            yield nested.Columns(packed, "down_proj", site, unit.mT if turned else unit)
        if "layers" in axes and index in axes["layers"].order:
            yield nested.Gate(path, "layers", index)


def _place_states(subject: Transformer, axes: Mapping[str, Axis]) -> Iterator[nested.Place]:
    """What goes into the norm of a mixer's states, or into its output linear where it has no norm.

    Heads and channels of the states do not see one another before, and what their groups share is touched nowhere.
    """
    layout, states = subject.layout, subject.family.states
    kinds = ("state_heads", "state_channels")
    for index, (path, width) in enumerate(zip(layout.layers(), layout.widths, strict=True)):
        sites = [f"layers.{index}.{kind}" for kind in kinds]
        sites = [site for site, kind in zip(sites, kinds, strict=True) if kind in axes and site in axes[kind].counts]
        if states is None or not width.state_heads or not sites:
            continue
        every = torch.arange(width.state_heads * width.state_channels)
        units = {"state_heads": every // width.state_channels, "state_channels": every % width.state_channels}
        module = f"{path}.{states.norm or layout.blocks(index)['mixer'].out}"
        for site in sites:
            yield nested.Mask(module, "input", site, units[site.rpartition(".")[2]])
        if states.norm:
            yield nested.Norm(module, tuple(sites))


def _place_channels(subject: Transformer, axis: Axis) -> Iterator[nested.Place]:
    layout, family = subject.layout, subject.family
    every = torch.arange(subject.hidden_size)
    modules = dict(subject.model.named_modules())
    scales = [cutting.scale_embedding(family, count) for count in axis.counts["channels"]]
    factors = torch.tensor([scale / scales[0] for scale in scales]) if family.scaled_embedding else None
    norms = set(layout.norms())
    for name, _ in subject.model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module, axes = modules[path], layout.place(name).axes or ()
        if "channels" not in axes or path in norms or leaf == "bias":
            continue
        if isinstance(module, nn.Embedding):
            word = factors is not None and module is subject.model.get_input_embeddings()
            yield nested.Mask(path, "output", "channels", every, factors if word else None)
        elif leaf == "weight" and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            if axes[-1 if family.conv1d and not isinstance(module, nn.Linear) else 0] == "channels":
                yield nested.Mask(path, "output", "channels", every)
        elif len(axes) == 3 and axes[1] == "channels":  # of packed experts
            yield nested.Mask(path, "output", "channels", every)
        elif len(axes) == 1 or axes[-1] != "channels":  # what only reads, such as a router, sees zeros
            raise UnsupportedError(f"channels can't be elastic: {name} is neither of a linear nor of a norm")
    for path in sorted(norms):
        yield nested.Norm(path, ("channels",))


# --------------------------------------------------------------------------------------------------- the elastic model


@dataclass(frozen=True)
class Timed:
    """What costs are of: sequences, and tokens of each."""

    batch: int = 1
    length: int = 128


class _Step(NamedTuple):
    """A size in which one choice is another: of which axis and row, what of the router's logit is lost, its cost."""

    place: tuple[str, int]
    lost: float
    size: Chosen
    cost: float


class Elastic:
    """A sorted model with the choices of its axes, the budgets it is trained for, and the router that chooses.

    shares: of the whole cost in `measure`, falling, 1 first.
    """

    def __init__(
        self,
        subject: Transformer,
        axes: Mapping[str, Axis],
        measure: str,
        shares: Sequence[float],
        *,
        hidden: int = 256,
        timed: Timed = Timed(),
        router: BudgetRouter | None = None,
    ) -> None:
        self.subject, self.axes, self.measure = subject, dict(axes), measure
        self.shares, self.hidden, self.timed = tuple(shares), hidden, timed
        self.units = subject.units(batch=timed.batch, length=timed.length)
        self.whole = self.units.cost()
        rows = {name: (axis.rows, axis.choices) for name, axis in self.axes.items()}
        self.router = router or BudgetRouter(len(self.shares), rows, hidden=hidden)
        prefixes = {
            site: axis.prefix(site, self.units[site].count) for axis in self.axes.values() for site in axis.counts
        }
        self.masks = nested.Nested(prefixes, list(find_places(subject, self.axes)))
        least = self.cost({name: [axis.choices - 1] * axis.rows for name, axis in self.axes.items()})
        self.least = least[measure]
        self._chosen = dict[tuple[object, ...], Chosen]()

    def weights(self, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Site -> weights of its choices, from axis -> [rows, choices]."""
        found = dict[str, Tensor]()
        for name, weights in chosen.items():
            axis = self.axes[name]
            found |= {site: weights[axis.row(place)] for place, site in enumerate(axis.counts)}
        return found

    def expect_cost(self) -> Tensor:
        """What the masks cost as they were chosen last, in the measure of the budgets; differentiable."""
        return gates.cost(self.units, self.masks.shares, self.measure)

    def mask(self, chosen: Chosen) -> None:
        """Mask the model to a size, within `masks.on(model)`."""
        sites = ((self.axes[name], rows) for name, rows in chosen.items())
        self.masks.choose({s: rows[axis.row(k)] for axis, rows in sites for k, s in enumerate(axis.counts)})

    def select(self, chosen: Chosen) -> Selection:
        """The units of a size."""
        keep = dict[str, np.ndarray]()
        for name, rows in chosen.items():
            axis = self.axes[name]
            for place, site in enumerate(axis.counts):
                if rows[axis.row(place)]:
                    keep[site] = self.masks.prefixes[site].stays()[rows[axis.row(place)]].numpy()
        return Selection(keep)

    def cost(self, chosen: Chosen) -> dict[str, float]:
        """What a size costs in every measure."""
        return self.units.cost(self.select(chosen).keep)

    def cut(self, chosen: Chosen) -> tuple[Transformer, Cut]:
        """A size as an ordinary model: the first units of every axis, with weights as they are."""
        return self.subject.cut(self.select(chosen), norm_correction=False)

    @torch.no_grad()
    def choose(self, share: float) -> Chosen:
        """The size that the router chooses for a share of the whole cost, brought under it where it is above.

        While it costs more than that, the choice goes one down that the router holds likeliest for what it saves. While
        it costs less than 95 % of it, one goes up: alone where that fits, else as others go down in the same way. The
        whole budget is the whole model. Raises `BudgetError` outside of the trained range, `InfeasibleError` where the
        smallest size costs more.
        """
        budget = encode_budget(share, self.shares)
        if share >= 1.0:
            return {name: [0] * axis.rows for name, axis in self.axes.items()}
        limit = share * self.whole[self.measure]
        if self.least > limit:
            raise InfeasibleError(
                f"{self.measure}={share:.4g} of the whole can't be met: the smallest size takes "
                f"{self.least / self.whole[self.measure]:.4g}; ask for more, or train with smaller choices",
                self.least,
            )
        logits = {name: z.float().cpu() for name, z in self.router(devices.move(budget, self.router)).items()}
        key = share, *(tuple(z.flatten().tolist()) for z in logits.values())
        if key not in self._chosen:  # a run asks several times for each size
            self._chosen[key] = self._search(logits, limit)
        return {name: list(rows) for name, rows in self._chosen[key].items()}

    def _search(self, logits: Mapping[str, Tensor], limit: float) -> Chosen:
        """The likeliest choices, brought near to the limit from whichever side; see `choose`."""
        chosen: Chosen = {name: found.argmax(-1).tolist() for name, found in logits.items()}
        chosen, _ = self._descend(chosen, logits, limit)
        while (spent := self.cost(chosen)[self.measure]) < (1 - _SLACK) * limit:
            larger = [step for step in self._steps(chosen, logits, -1) if step.cost > spent]
            fitting = [(step.lost, step.size) for step in larger if step.cost <= limit]
            for step in larger if not fitting else ():
                size, lost = self._descend(step.size, logits, limit, step.place)
                cost = self.cost(size)[self.measure]
                fitting += [(step.lost + lost, size)] if spent < cost <= limit else []
            if not fitting:
                break
            chosen = min(fitting, key=lambda one: one[0])[1]
        return chosen

    def _descend(
        self, chosen: Chosen, logits: Mapping[str, Tensor], limit: float, stays: tuple[str, int] | None = None
    ) -> tuple[Chosen, float]:
        """(the size, brought down to the limit, what of the logits was lost); the row `stays` as it is."""
        lost, spent = 0.0, self.cost(chosen)[self.measure]
        while spent > limit:
            steps = [step for step in self._steps(chosen, logits, 1) if step.place != stays and step.cost < spent]
            if not steps:
                break
            best = min(steps, key=lambda step: step.lost / (spent - step.cost))
            chosen, lost, spent = best.size, lost + best.lost, best.cost
        return chosen, lost

    def _steps(self, chosen: Chosen, logits: Mapping[str, Tensor], by: int) -> Iterator[_Step]:
        """Every size in which one choice is moved `by` one."""
        for name, rows in chosen.items():
            for row, choice in enumerate(rows):
                if 0 <= choice + by < self.axes[name].choices:
                    moved = {**chosen, name: [*rows[:row], choice + by, *rows[row + 1 :]]}
                    lost = float(logits[name][row, choice] - logits[name][row, choice + by])
                    yield _Step((name, row), lost, moved, self.cost(moved)[self.measure])

    @torch.no_grad()
    def check(self, chosen: Chosen) -> None:
        """Raise `UnsupportedError` where the masked model gives something else than the one that is cut out of it."""
        model, batch = self.subject.model, self.subject.example(2, 12)
        sliced = self.cut(chosen)[0]
        with evaluating(model, sliced.model), self.masks.on(model):
            self.mask(chosen)
            masked = self.subject.forward(batch).prediction
            self.masks.choose({})
        cut = sliced.forward(batch).prediction
        masked = masked[..., : cut.shape[-1]]  # of states and embeddings, the channels that stay
        far = float((masked - cut).abs().max() / cut.abs().max().clamp_min(1e-6))
        if not far < (_NEAR if model.dtype == torch.float32 else _NEAR_HALF):
            raise UnsupportedError(
                f"this {self.subject.family.model_type} model can't be elastic along {', '.join(self.axes)}: a cut of "
                f"it gives other outputs than its masks (by {far:.2g} of the largest): give fewer axes"
            )

    def describe(self, chosen: Chosen) -> dict[str, object]:
        """Axis -> how many units stay: one number, or one for each of its layers where they differ.

        Of expert_neurons, in each expert.
        """
        found = dict[str, object]()
        for name, rows in chosen.items():
            axis = self.axes[name]
            sizes = []
            for place, site in enumerate(axis.counts):
                groups = 1 if name == "expert_neurons" else self.units[site].count // axis.counts[site][0]
                sizes.append(axis.counts[site][rows[axis.row(place)]] * groups)
            found[name] = sizes[0] if len(set(sizes)) == 1 else sizes
        return found


def make(
    subject: Transformer,
    scores: Mapping[str, Tensor],
    axes: Mapping[str, Axis],
    measure: str,
    shares: Sequence[float],
    *,
    hidden: int = 256,
    timed: Timed = Timed(),
) -> Elastic:
    """The elastic model of a copy of `subject` whose units are sorted by `scores` (`score_widths`).

    Raises `UnsupportedError` where its masks would not give what its cuts give.
    """
    found = Elastic(sort_units(subject, scores), axes, measure, shares, hidden=hidden, timed=timed)
    found.check({name: [axis.choices - 1] * axis.rows for name, axis in found.axes.items()})
    return found


def share_of(budget: Budget, elastic_measure: str, whole: Mapping[str, float]) -> float:
    """The share of the whole cost that a budget allows in the measure that a router is trained for.

    Raises `BudgetError` for other measures, and for a budget above the whole.
    """
    others = [limit.measure for limit in budget.limits if limit.measure != elastic_measure]
    if budget.pattern is not None or others or not budget.limits:
        raise BudgetError(
            f"budget {budget.brief()}: the router was trained for {elastic_measure}; give {elastic_measure}=... alone"
        )
    share = budget.absolute(whole)[elastic_measure] / whole[elastic_measure]
    if share > 1.0:
        most = f"{whole[elastic_measure]:.6g}"
        raise BudgetError(f"budget {budget.brief()} is above the whole model's {most}: ask for less")
    return share


# --------------------------------------------------------------------------------------------------------------- files


def write(elastic: Elastic, folder: Path) -> None:
    """Write the whole model, the router and what the sizes are into `folder`."""
    elastic.subject.save(folder)
    save_file({name: tensor.contiguous() for name, tensor in elastic.router.state_dict().items()}, folder / _ROUTER)
    sizes = {f"{share:.6g}": elastic.choose(share) for share in elastic.shares}
    data = {
        "version": _VERSION,
        "measure": elastic.measure,
        "shares": list(elastic.shares),
        "hidden": elastic.hidden,
        **asdict(elastic.timed),
        "profile": None if elastic.subject.profile is None else asdict(elastic.subject.profile),
        "axes": {name: asdict(axis) for name, axis in elastic.axes.items()},
        "sizes": {share: elastic.describe(chosen) for share, chosen in sizes.items()},
    }
    (folder / FILE).write_text(json.dumps(data, indent=1), encoding="utf-8")


def read(folder: str | Path) -> Elastic:
    """The elastic model in `folder`.

    Raises `InputError` where it is none, `ModelError` where it is damaged, and where another version has written it.
    """
    root = Path(folder)
    if not (root / FILE).is_file():
        raise InputError(f"{root} is no elastic model, for it has no {FILE}: give the folder that an elastic run wrote")
    try:
        data = json.loads((root / FILE).read_text(encoding="utf-8"))
        _expect(isinstance(data, dict) and "version" in data, "it tells no version")
        if data["version"] != _VERSION:
            raise UnsupportedError(f"{root / FILE} is of version {data['version']!r}, not {_VERSION}: update secateur")
        tensors, subject = load_file(root / _ROUTER), open_subject(root)
        assert isinstance(subject, Transformer)
        axes = {name: _read_axis(name, axis, subject) for name, axis in data["axes"].items()}
        shares, profile = data["shares"], data["profile"]
        for name in ("batch", "length", "hidden"):
            _expect(type(data[name]) is int and data[name] > 0, f"{name} is no count")
        numbers = [*shares, *(profile or {}).values()]
        _expect(all(type(one) in (int, float) and 0 < one < math.inf for one in numbers), "a number is none")
        _expect(len(shares) > 1 and shares[0] == 1 and _falls(shares), "its shares do not fall from 1")
        _expect(all(bool(tensor.isfinite().all()) for tensor in tensors.values()), "its router is not finite")
        _expect(any(tensor.shape[0] == data["hidden"] for tensor in tensors.values()), "its router has another width")
        subject.profile = Profile(**profile) if profile else None
        timed = Timed(data["batch"], data["length"])
        elastic = Elastic(subject, axes, data["measure"], shares, hidden=data["hidden"], timed=timed)
        elastic.router.load_state_dict(tensors)
    except (UnsupportedError, ModelError):
        raise
    except _DAMAGED as error:
        why = str(error).splitlines()[0] if type(error) is ValueError else type(error).__name__
        raise ModelError(f"{root} is a damaged elastic model ({why}): restore it") from error
    return elastic


_DAMAGED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, AssertionError,
    MemoryError, SafetensorError, InputError,
)  # fmt: skip
"""What comes of a file that anyone may have changed."""


def _expect(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)


def _falls(numbers: Sequence[float]) -> bool:
    return all(above > below for above, below in itertools.pairwise(numbers))


def _read_axis(name: str, data: Mapping[str, object], subject: Transformer) -> Axis:
    """An axis of `subject` as it was written. Raises `ValueError` and others for what it can't be."""
    units, counts, order = subject.units(), data["counts"], data["order"]
    _expect(name in AXES and isinstance(counts, dict) and bool(counts), f"axes tell no counts of {name}")
    assert isinstance(counts, dict)
    assert isinstance(order, list)
    for site, row in counts.items():
        _expect(site in units.sites and site.rpartition(".")[2] == name, f"there is no {site}")
        fits = isinstance(row, list) and len(row) > 1 and all(type(one) is int and one > 0 for one in row)
        _expect(
            fits and _falls(row) and row[0] == _size_of_group(units, site), f"counts of {site} do not fall from all"
        )
    _expect(len({len(row) for row in counts.values()}) == 1, f"{name} has more choices in one layer than in another")
    if name == "layers":
        known = all(type(one) is int for one in order) and len(set(order)) == len(order)
        known = known and set(order) <= set(removable_layers(subject))
        row = counts["layers"]
        _expect(known and row[0] - row[-1] <= len(order), "the order of its layers is none")
    return Axis(name, {site: tuple(row) for site, row in counts.items()}, data["uneven"] is True, tuple(order))
