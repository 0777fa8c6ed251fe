"""From a recorded pass to sites: which atoms go together, in units, and units of one kind in a site.

Units that touch the same dimensions of the same tensors, equally often, stand in one site.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from secateur.errors import InputError
from secateur.subjects.network.flops import Product, Size
from secateur.subjects.network.labels import Axis, Classes
from secateur.subjects.network.recording import Run
from secateur.vocabulary import Selection, Term

__all__ = ["Coupled", "Coupling", "couple", "keep_mask"]

_ALIGNED = 8
"""Some kernels want rows of whole 16 bytes: eight numbers of two bytes."""


@dataclass(frozen=True, eq=False)
class Coupled:
    """One site: unit i is class `classes[i]`, and takes `per_unit` indices of each axis."""

    name: str
    classes: np.ndarray
    axes: tuple[tuple[Axis, int], ...]
    step: int = 1
    """Kept channels, of which a unit has `width`, are multiples of this, whatever the caller wants.

    Given is what every axis beside vectors must be a multiple of: units of gated experts have two channels where they
    are made and one where they are read, which is then what counts.
    """

    def __post_init__(self) -> None:
        if self.step > 1:
            parts = [per_unit for axis, per_unit in self.axes if axis.dim]
            units = math.lcm(*(self.step // math.gcd(self.step, part) for part in parts))
            object.__setattr__(self, "step", math.lcm(self.step, units * self.width))

    @property
    def width(self) -> int:
        """Channels of one unit, where they are made."""
        return self.axes[0][1]

    @property
    def multiple(self) -> int:
        """`step` in units."""
        return self.step // math.gcd(self.step, self.width)


@dataclass(frozen=True, eq=False)
class Coupling:
    """Everything of a network that goes together, and what stays."""

    axes: tuple[Axis, ...]
    classes: Classes
    sites: Mapping[str, Coupled]
    reasons: Mapping[str, str]
    """Axis, as "tensor[dim]" -> why it, or a part of it, stays."""

    def keep_atoms(self, keep: Mapping[str, np.ndarray]) -> np.ndarray:
        """Booleans [atoms]: what stays when `keep` stays of each site."""
        stays = np.ones(int(self.classes.of.max(initial=0)) + 1, bool)
        for name, mask in keep.items():
            stays[self.sites[name].classes[~mask]] = False
        result: np.ndarray = stays[self.classes.of]
        return result

    def size(self, axis: Axis) -> dict[str, int]:
        """Site -> indices of the axis per unit; what no site takes, under the empty name."""
        return self._sizes[axis]

    @cached_property
    def _sizes(self) -> dict[Axis, dict[str, int]]:
        places, site_of = self._site_of
        owner = _owners(self.axes)
        kinds = len(places) + 1
        every = np.bincount(owner * kinds + site_of[self.classes.of[1:]] + 1)
        found = np.flatnonzero(every)
        counts = every[found]
        result: dict[Axis, dict[str, int]] = {axis: {} for axis in self.axes}
        for axis, place, count in zip(
            (found // kinds).tolist(), (found % kinds).tolist(), counts.tolist(), strict=True
        ):
            name = places[place - 1] if place else ""
            result[self.axes[axis]][name] = count // len(self.sites[name].classes) if place else count
        return result

    def count(self, classes: np.ndarray) -> dict[str, int]:
        """How many of these classes each site holds per unit; those that stay under the empty name."""
        place, site_of = self._site_of
        numbers, counts = np.unique(site_of[classes], return_counts=True)
        return {
            (place[number] if number >= 0 else ""): (
                int(count) // len(self.sites[place[number]].classes) if number >= 0 else int(count)
            )
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        }

    @cached_property
    def _site_of(self) -> tuple[list[str], np.ndarray]:
        names = list(self.sites)
        site_of = np.full(int(self.classes.of.max(initial=0)) + 1, -1)
        for number, name in enumerate(names):
            site_of[self.sites[name].classes] = number
        return names, site_of

    def along(self, size: Size) -> dict[str, int]:
        """Site -> indices of a dimension of what flows per unit; what no site takes, under the empty name."""
        for label, dim in size.labels:
            key = (id(label), dim)
            if key not in self._along:
                self._along[key] = label, self._count_along(label, dim)
            if self._along[key][1]:
                return self._along[key][1]
        return {"": size.length}

    @cached_property
    def _along(self) -> dict[tuple[int, int], tuple[Tensor, dict[str, int]]]:
        return {}

    def _count_along(self, label: Tensor, dim: int) -> dict[str, int]:
        """Site -> labels along `dim` per unit, if they change along it alone; else nothing."""
        _, site_of = self._site_of
        of = self.classes.of[label.numpy()]
        of = np.where(site_of[of] < 0, 0, of)
        row = np.moveaxis(of, dim, 0).reshape(of.shape[dim], -1)
        alone = (row[:, :1] == row).all() and (row[0, 0] != row).any()
        return self.count(row[:, 0]) if alone else {}

    def terms(
        self, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], products: Iterable[Product] = ()
    ) -> tuple[list[Term], dict[str, float]]:
        """Parameters, bytes and FLOPs as polynomials of kept counts, and what of them can't go.

        sizes: bytes per element, of parameters only; products: what each operator costs.
        """
        by_tensor: dict[str, dict[int, dict[str, int]]] = {}
        for axis in self.axes:
            by_tensor.setdefault(axis.tensor, {})[axis.dim] = self.size(axis)
        total: dict[tuple[str, tuple[str, ...]], float] = {("flops", ()): 0.0}

        def add(measure: str, factor: float, product: Mapping[tuple[str, ...], float]) -> None:
            for sites, coefficient in product.items():
                total[measure, sites] = total.get((measure, sites), 0.0) + factor * coefficient

        for name, element in sizes.items():
            product = _product(by_tensor.get(name, {}).get(dim, {"": size}) for dim, size in enumerate(shapes[name]))
            add("params", 1, product)
            add("bytes", element, product)
        for one in products:
            add("flops", one.factor, _product(self.along(size) for size in one.sizes))
        base = {measure: value for (measure, sites), value in total.items() if not sites}
        return [Term(measure, value, sites) for (measure, sites), value in total.items() if sites], base


def _product(sums: Iterable[Mapping[str, int]]) -> dict[tuple[str, ...], float]:
    """The product of sums of multiples of sites, multiplied out: sites, sorted -> coefficient."""
    product: dict[tuple[str, ...], float] = {(): 1.0}
    for parts in sums:
        grown: dict[tuple[str, ...], float] = {}
        for sites, coefficient in product.items():
            for site, count in parts.items():
                key = tuple(sorted((*sites, site))) if site else sites
                grown[key] = grown.get(key, 0.0) + coefficient * count
        product = grown
    return product


def keep_mask(selection: Selection, site: str, count: int) -> np.ndarray:
    """Booleans [count] of a site's units that stay. Raises `InputError` for a selection of another shape."""
    keep = selection.keep[site]
    mask: np.ndarray = np.asarray(keep.cpu() if isinstance(keep, Tensor) else keep).astype(bool)
    if mask.shape != (count,):
        raise InputError(f"the selection of {site} has shape {mask.shape}, expected ({count},)")
    return mask


def couple(run: Run, kept: Mapping[int, str] | None = None, bound: Iterable[np.ndarray] = ()) -> Coupling:
    """Join what was recorded, and make of it sites.

    kept: atoms that must stay beside, with the reason. bound: pairs [2, n] of atoms that go together beside.
    """
    atoms = run.flow.atoms
    more: list[np.ndarray] = list(bound)
    by_reason: dict[str, list[int]] = {}
    for atom, reason in (kept or {}).items():
        by_reason.setdefault(reason, []).append(atom)
    extra = [(np.array(some), reason) for reason, some in by_reason.items()]
    joint = {(tuple(label.shape), label.numpy().tobytes()): label for label, _ in run.flow.joint}
    several = _axes_among(joint.values(), atoms.axes)
    unused = [
        (_find_unused(run, axis, at in several), "takes no part in the forward pass")
        for at, axis in enumerate(atoms.axes)
    ]
    while True:
        classes = atoms.classes(more, [*extra, *unused])
        stays = np.zeros(int(classes.of.max(initial=0)) + 1, bool)
        stays[[0, *classes.reasons]] = True
        ties = [tie for label in joint.values() if (tie := _tie(label.numpy(), classes.of, stays)) is not None]
        if not ties:
            break
        more += ties
    return Coupling(tuple(atoms.axes), classes, _sites(run, classes, stays), _reasons(atoms.axes, classes, stays))


def _find_unused(run: Run, axis: Axis, several: bool) -> np.ndarray:
    """The atoms of an axis that take no part, as positions of a table do that are beyond the inputs: these may be used.

    several: whether it is reshaped into several dimensions. Where a part of it is, all of it stays, for where slices of
    the rest begin nobody knows.
    """
    atoms = np.arange(axis.start, axis.start + axis.size)
    unused = atoms[~run.reached[atoms]]
    return atoms if several and len(unused) else unused


def _tie(label: np.ndarray, of: np.ndarray, stays: np.ndarray) -> np.ndarray | None:
    """What must go together so that whole slices of a tensor go; None if they do."""
    found = of[label]
    found = np.where(stays[found], 0, found)
    dims = [dim for dim, size in enumerate(found.shape) if size > 1]
    for dim in dims:
        head = found[tuple(slice(None) if place == dim else slice(0, 1) for place in range(found.ndim))]
        if (found == head).all():
            return None
    longest = max(dims, key=lambda dim: (_pieces(found, dim), found.shape[dim], dim))
    head = label[tuple(slice(None) if place == longest else slice(0, 1) for place in range(label.ndim))]
    pairs = np.stack([np.broadcast_to(head, label.shape).reshape(-1), label.reshape(-1)])
    alone = (pairs == 0).any(axis=0)
    pairs = np.unique(pairs[:, (pairs[0] != pairs[1]) & ~alone], axis=1)
    if (of[pairs[0]] == of[pairs[1]]).all():
        return None  # nothing left to join: what is left of it stays, and the cut is checked
    result: np.ndarray = pairs
    return result


def _pieces(found: np.ndarray, dim: int) -> int:
    """How many classes remain when everything goes together that stands at one index of `dim`."""
    head = found[tuple(slice(None) if place == dim else slice(0, 1) for place in range(found.ndim))]
    names, index = np.unique(np.stack([np.broadcast_to(head, found.shape), found]), return_inverse=True)
    a, b = index.reshape(2, -1)
    graph = coo_array((np.ones(a.size, bool), (a, b)), shape=(len(names), len(names)))
    return int(connected_components(graph, directed=False)[0])


def _sites(run: Run, classes: Classes, stays: np.ndarray) -> dict[str, Coupled]:
    axes = run.flow.atoms.axes
    if not axes:
        return {}
    of = classes.of[1:]  # atoms stand in the order of axes
    free = ~stays[of]
    table = coo_array(
        (np.ones(int(free.sum()), np.int64), (of[free], _owners(axes)[free])), shape=(len(stays), len(axes))
    ).tocsr()
    table.sort_indices()
    axis, counts, rows = table.indices, table.data, np.diff(table.indptr)
    owner = np.repeat(np.arange(len(stays)), rows)
    draw = np.random.default_rng(0).integers(1, 2**62, len(axes) + 1, dtype=np.int64)
    with np.errstate(over="ignore"):
        mixed = draw[axis] * counts + (draw[axis] >> 7) * counts * counts
        signature = np.zeros(len(stays), np.int64)
        np.add.at(signature, owner, mixed)
    seen = np.flatnonzero(rows)
    if not len(seen):
        return {}
    start, ends = table.indptr[seen], table.indptr[seen + 1]
    first_atom = np.full(len(stays), len(of))
    np.minimum.at(first_atom, of, np.arange(len(of)))
    in_order = np.argsort(first_atom[seen], kind="stable")
    _, first, kind = np.unique(signature[seen[in_order]], return_index=True, return_inverse=True)
    sizes = np.bincount(kind)
    groups = np.split(in_order[np.argsort(kind, kind="stable")], np.cumsum(sizes)[:-1])
    heads, aligned = _among(run.flow.heads, classes), _among(run.flow.aligned, classes)
    made, read = _axes_among(run.made, axes), _axes_among(run.read, axes)
    matrices = {name for name in run.flow.atoms.matrices if name.endswith("weight")}
    ranks = {axis.start: _rank(axis, at in made, at in read, matrices) for at, axis in enumerate(axes)}
    result: dict[str, Coupled] = {}
    for group in [groups[place] for place in np.argsort(first)]:
        one = int(group[0])
        span = slice(start[one], ends[one])
        touched = [(axes[a], c) for a, c in zip(axis[span].tolist(), counts[span].tolist(), strict=True)]
        if len(group) < 2 or any(count * len(group) < 2 for _, count in touched):
            # The last unit always stays.
            continue
        touched.sort(key=lambda pair: (ranks[pair[0].start], pair[0].start))
        maker = touched[0][0].tensor
        base = maker.rpartition(".")[0] if "." in maker else maker
        kind_of = "heads" if heads[seen[one]] and touched[0][1] > 1 else "channels"
        name, number = f"{base}.{kind_of}", 2
        while name in result:
            name, number = f"{base}.{number}.{kind_of}", number + 1
        result[name] = Coupled(name, seen[group], tuple(touched), _ALIGNED if aligned[seen[one]] else 1)
    return result


def _owners(axes: Sequence[Axis]) -> np.ndarray:
    """The number of the axis of each atom but the first, which is none."""
    return np.repeat(np.arange(len(axes)), [axis.size for axis in axes])


def _among(labels: Iterable[Tensor], classes: Classes) -> np.ndarray:
    """Booleans [classes]: those that these labels name."""
    result = np.zeros(int(classes.of.max(initial=0)) + 1, bool)
    for label in labels:
        result[classes.of[label.numpy()]] = True
    return result


def _axes_among(labels: Iterable[Tensor], axes: Sequence[Axis]) -> set[int]:
    """The places of axes that have atoms among these labels."""
    starts = np.array([axis.start for axis in axes])
    found: set[int] = set()
    for label in {id(one): one for one in labels}.values():
        atoms = np.unique(label.numpy())
        found |= set((np.searchsorted(starts, atoms[atoms > 0], "right") - 1).tolist())
    return found


def _rank(axis: Axis, made: bool, read: bool, matrices: Set[str]) -> int:
    """What makes channels in a product comes first, then what reads them, and last what is added or scales them.

    Rows of a matrix make them where no product says otherwise.
    """
    if made:
        return int(read)
    if axis.tensor in matrices and axis.dim == 0 and not read:
        return 0
    return 2 if axis.dim or read else 3


def _reasons(axes: Sequence[Axis], classes: Classes, stays: np.ndarray) -> dict[str, str]:
    result: dict[str, str] = {}
    for place in np.unique(_owners(axes)[stays[classes.of[1:]]]).tolist():
        axis = axes[place]
        of = classes.of[axis.start : axis.start + axis.size]
        one = int(of[stays[of]].min())
        if one in classes.reasons:
            result[f"{axis.tensor}[{axis.dim}]"] = classes.reasons[one]
    return result
