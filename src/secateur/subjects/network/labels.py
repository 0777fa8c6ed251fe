"""Labels: to which parameters' indices each element of a tensor belongs, and what operators do to that.

One index of one dimension of one parameter or buffer is an atom, a number. A label tensor says for every element of a
tensor which atom it belongs to; it has the tensor's rank, and size 1 along each dimension in which its labels do not
change, so that the labels of a feature map are a handful of numbers. Two laws, from which the rules of operators are
made (`rules`):

- Where two labelled tensors are combined element by element, the atoms that stand at the same place go together.
- Where labels change along a dimension that the other tensor does not label, that dimension can't shrink: all atoms
  along it go together, and the dimensions that remain carry them on. If none remains, the atoms stay, with the reason.

So attention heads, and the groups of grouped-query attention, come out by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = [
    "CONSUMED",
    "LEFT_OUT",
    "NOTHING",
    "REDUCED",
    "SOURCES",
    "Atoms",
    "Axis",
    "Classes",
    "Flow",
    "Labels",
    "Operand",
    "Scaling",
    "Shaping",
    "along",
    "compact",
    "first",
    "on",
    "pad_rank",
    "varying",
    "wide",
    "within",
]

Labels = tuple[Tensor, ...]

NOTHING: Labels = ()

CONSUMED, REDUCED, LEFT_OUT = 1, 2, 4
"""What becomes of atoms that enter an operator and that no result carries on: they met other tensors, as in a product;
they were reduced to a number, as by a mean; or an operator that takes a part of a tensor did not take them."""

_MARK = "_secateur_labels"
_BLANK = "_secateur_blank"
_LINEAR = "_secateur_linear"
SOURCES = "_secateur_sources"
"""Of a tensor of one value: those that it was made of, in as many dimensions."""


# ----------------------------------------------------------------------------------------------------- label tensors


def varying(label: Tensor) -> frozenset[int]:
    """The dimensions along which the labels change."""
    return wide(label.shape)


@lru_cache(4096)
def wide(shape: tuple[int, ...]) -> frozenset[int]:
    """The dimensions of size above 1."""
    return frozenset(dim for dim, size in enumerate(shape) if size > 1)


def first(label: Tensor, dims: Iterable[int]) -> Tensor:
    """The labels at index 0 of `dims`, with those dimensions kept at size 1."""
    for dim in dims:
        label = label.narrow(dim, 0, 1)
    return label


def pad_rank(label: Tensor, rank: int) -> Tensor:
    """With leading dimensions of size 1, as broadcasting aligns it."""
    return label.view((1,) * (rank - label.dim()) + tuple(label.shape)) if label.dim() < rank else label


def compact(label: Tensor) -> Tensor:
    """Size 1 along every dimension in which the labels are all the same."""
    for dim, (size, stride) in enumerate(zip(label.shape, label.stride(), strict=True)):
        if size > 1 and stride == 0:
            label = label.narrow(dim, 0, 1)
    for dim, size in enumerate(label.shape):
        if size > 1 and torch.equal(head := label.narrow(dim, 0, 1), label.narrow(dim, size - 1, 1)):
            same = bool((label == head).all())
            label = head if same else label
    return label


def within(path: str, parents: Iterable[str]) -> bool:
    """Whether a module or parameter is one of `parents` or inside one."""
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


def along(label: Tensor, dim: int) -> Tensor:
    """The labels of a tensor that varies along `dim` only, as one row."""
    return label.reshape(label.shape[dim])


def on(row: Tensor, dim: int, rank: int) -> Tensor:
    """A row of labels along `dim` of a tensor of `rank` dimensions: the inverse of `along`."""
    shape: Sequence[int] = [row.numel() if place == dim else 1 for place in range(rank)]
    return row.reshape(shape)


# --------------------------------------------------------------------------------------------------------------- atoms


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor of the model; its index i is atom `start + i`."""

    tensor: str
    """Name of the parameter or buffer (the first, where it is shared)."""
    dim: int
    size: int
    start: int


@dataclass(frozen=True, eq=False)
class Classes:
    """The atoms, joined: `of[atom]` is the class of an atom (0 is no atom, and no class)."""

    of: np.ndarray
    reasons: dict[int, str]
    """Class -> why it must stay. Classes not named here may go."""


class Atoms:
    """All atoms of a model, which of them go together, and which must stay. Atom 0 is none."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.matrices: set[str] = set()
        """Parameters of two dimensions and more, also where all but one of these are of size 1 and have no atoms."""
        self.count = 1
        self.frozen = False
        """Ignore further constraints; only propagate labels."""
        self.joins: list[tuple[np.ndarray, np.ndarray, str]] = []
        """(atoms, atoms that stand at the same places, what was done there)."""
        self._settled = 0
        """How many of `joins` are in `_pairs` and `_kept` already."""
        self._pairs: list[np.ndarray] = []
        self._kept: list[tuple[np.ndarray, str]] = []

    def add(self, name: str, tensor: Tensor) -> Labels:
        """Number the indices of a parameter: one label tensor per dimension, of size 1 in all other dimensions."""
        labels = []
        if tensor.dim() > 1:
            self.matrices.add(name)
        for dim, size in enumerate(tensor.shape):
            if size < 2:
                continue
            self.axes.append(Axis(name, dim, size, self.count))
            row = torch.arange(self.count, self.count + size, dtype=torch.int32)
            labels.append(on(row, dim, tensor.dim()))
            self.count += size
        return tuple(labels)

    def join(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Atoms that stand at the same place go together; those that stand beside none (0) stay."""
        if self.frozen or first is second:
            return
        a, b = first.numpy(), second.numpy()
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self.joins.append((a.reshape(-1), b.reshape(-1), reason))
        if a.size > _MANY:
            self._settle()

    def _settle(self) -> None:
        """Make pairs, and atoms that stay, of the latest joins."""
        joins = self.joins[self._settled :]
        self._settled = len(self.joins)
        if not joins:
            return
        a, b = (np.concatenate([join[side] for join in joins]) for side in (0, 1))
        unlike = a != b
        alone = unlike & ((a == 0) | (b == 0))
        if alone.any():
            ends = np.cumsum([len(join[0]) for join in joins])
            places = np.flatnonzero(alone)
            owner = np.searchsorted(ends, places, side="right")
            atoms = np.maximum(a[places], b[places])
            for number in np.unique(owner).tolist():
                self._kept.append((np.unique(atoms[owner == number]), joins[number][2]))
        both = unlike & ~alone
        pairs = np.stack([a[both], b[both]])
        self._pairs.append(_distinct(pairs) if pairs.shape[1] > _TOO_MANY else pairs)

    def keep(self, labels: Iterable[Tensor], reason: str) -> None:
        """All these atoms must stay."""
        if self.frozen:
            return
        for label in labels:
            atoms = np.unique(label.numpy())
            self._kept.append((atoms[atoms > 0], reason))

    def classes(self, more: Iterable[np.ndarray] = (), kept: Iterable[tuple[np.ndarray, str]] = ()) -> Classes:
        """Connect all that was joined, with `more` pairs [2, n] and further `kept` atoms."""
        self._settle()
        pairs = np.concatenate([np.zeros((2, 0), np.int32), *self._pairs, *more], axis=1)
        graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(self.count, self.count))
        of = connected_components(graph, directed=False)[1]
        # Atom 0 is never joined: give its class the number 0.
        of = np.where(of == 0, of[0], np.where(of == of[0], 0, of)) if of[0] else of
        reasons = [*self._kept, *kept]
        first = np.full(int(of.max()) + 1, -1)
        for place in range(len(reasons) - 1, -1, -1):
            first[of[reasons[place][0]]] = place
        return Classes(of, {number: reasons[first[number]][1] for number in np.flatnonzero(first >= 0).tolist()})


_MANY, _TOO_MANY = 4096, 1 << 20
"""Labels that are not put off, and pairs of which each is kept once: to sort fewer takes longer than to join them."""


def _distinct(pairs: np.ndarray) -> np.ndarray:
    """Each pair [2, n] once."""
    mixed = np.unique(pairs[0].astype(np.int64) << 32 | pairs[1].astype(np.int64))
    return np.stack([mixed >> 32, mixed & 0xFFFFFFFF]).astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------- flow


@dataclass(frozen=True, eq=False)
class Operand:
    """What a rule needs to know of a tensor: its shape, its labels, and whether it is one value all over.

    A tensor of one value (`blank`) that the forward pass makes itself takes on the labels of what it is combined with.
    """

    shape: tuple[int, ...]
    labels: Labels = NOTHING
    blank: bool = False


@dataclass(frozen=True, eq=False)
class Shaping:
    """An operator that took sizes from the code of a module: what it was, where, and the labels of what came out.

    kind: "view" (sizes of each output dimension), "slice" (bounds along `dim` of the labels of what went in), "whole"
    or "tied" (a convolution or norm with groups, which go as wholes or lose the same indices).
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    labels: Labels
    dim: int = 0
    bounds: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Scaling:
    """An attention whose scale is taken from the size of its heads: where it is, and the query's label.

    The label names rows of one linear layer or convolution, from which the query comes unchanged; its last dimension
    is the size of heads.
    """

    module: str
    label: Tensor


class Flow:
    """Labels on the tensors of one forward pass, and the two laws. `where` is the path of the module that runs."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.where = ""
        self.entered: set[str] = set()
        """Paths of the modules that ran; of others code may have called a method."""
        self.operator = ""
        self.masks: dict[int, tuple[Labels, Tensor | None]] = {}
        """What a silenced pass keeps of tensors with these very labels, by their identity; None is all."""
        self.joint: list[tuple[Tensor, str]] = []
        """Labels that change along several dimensions of one tensor: what goes must be whole slices of it."""
        self.shapings: list[Shaping] = []
        self.scalings: list[Scaling] = []
        self.whole: frozenset[str] = frozenset()
        """Modules whose attention keeps all its heads: the same dimensions of each go instead."""
        self.aligned: list[Tensor] = []
        """Labels whose number must stay a multiple of some power of two, for the sake of a kernel."""
        self._pass = object()
        """Whose its labels are: tensors may outlive the pass, and be read in one of another network."""
        self.heads: list[Tensor] = []
        """Labels that were carried on by the batch of a product alone: heads of an attention."""
        self.parts: list[Tensor] = []
        """Labels [parts, n] of equal parts of a matrix, all of which are used where one is: nothing else reads them."""
        self._reduced: list[np.ndarray] = []
        """Atoms that were reduced together."""

    # ------------------------------------------------------------------------------------------ labels on tensors

    def labels(self, value: object) -> Labels:
        """The labels of a tensor that it has in this pass, which it may outlive; none of anything else."""
        owner, labels = getattr(value, _MARK, (None, NOTHING))
        return labels if owner is self._pass else NOTHING

    def operand(self, value: object) -> Operand:
        """A tensor or number as a rule sees it."""
        if not isinstance(value, Tensor):
            return Operand(())
        return Operand(tuple(value.shape), self.labels(value), self.blank(value))

    def blank(self, value: object) -> bool:
        """Whether a tensor is one value all over, made by the forward pass."""
        return getattr(value, _BLANK, False)

    @cached_property
    def _uses(self) -> np.ndarray:
        """`CONSUMED` and `LEFT_OUT`, as bits [atoms]."""
        return np.zeros(self.atoms.count, np.uint8)

    @cached_property
    def _carried(self) -> np.ndarray:
        """Booleans [atoms], False between calls: to sort labels takes far longer than to look atoms up."""
        return np.zeros(self.atoms.count, bool)

    def lose(self, entered: Iterable[Tensor], results: Iterable[object], how: int) -> None:
        """Note what becomes of those of these labels that no result carries on."""
        if self.atoms.frozen:
            return
        carried = {id(label): label for value in results for label in self.labels(value)}
        lost = [label.numpy() for label in entered if id(label) not in carried]
        if not lost:
            return
        for label in carried.values():
            self._carried[label.numpy()] = True
        for atoms in lost:
            gone = atoms[~self._carried[atoms]]
            if how == REDUCED and gone.size == atoms.size:
                self._reduced.append(gone)
            else:
                # Of a label that goes on in part, the rest was joined with that part, and is no number.
                self._uses[gone] |= how & LEFT_OUT or CONSUMED
        for label in carried.values():
            self._carried[label.numpy()] = False

    def list_reached(self) -> np.ndarray:
        """Booleans [atoms]: what the network uses. Of a table of positions, those beyond the inputs are not there.

        Nor are they where the whole table is reduced to a number, such as its mean, beside the part that is taken.
        """
        left, result = self._uses & LEFT_OUT > 0, self._uses & CONSUMED > 0
        for atoms in sorted(self._reduced, key=np.size):  # parts before the whole
            result[atoms[~left[atoms]] if result[atoms].any() else atoms] = True
        for parts in self.parts:
            result[parts.numpy()] |= result[parts.numpy()].any(axis=0)
        return result

    def take_on(self, value: object, labels: Iterable[Tensor]) -> None:
        """Let a tensor of one value have labels of what it was broadcast to: it is of one shape wherever it goes.

        So have those that it was made of; what two casts of one mask are broadcast to is joined.
        """
        given, seen, fresh = [(value, label) for label in labels], set[tuple[int, _Memory]](), set[int]()
        for one, label in given:  # which grows
            key = (id(one), _memory(label))
            found = None if key in seen else self._take_label(one, label, fresh)
            seen.add(key)
            given += [] if found is None else [(source, found) for source in getattr(one, SOURCES, ())]

    def _take_label(self, value: object, label: Tensor, fresh: set[int]) -> Tensor | None:
        """Let a tensor of one value have one more label: that label in its dimensions.

        None where it does not fit. fresh: ids of the labels that are new, among which nothing is joined.
        """
        if not (isinstance(value, Tensor) and self.blank(value)):
            return None
        own, lead = self.labels(value), label.dim() - value.dim()
        dims = {dim - lead for dim in varying(label)}
        if not dims or min(dims) < 0 or any(value.shape[dim] != label.shape[dim + lead] for dim in dims):
            return None
        mine = label.reshape(label.shape[lead:])
        if dims <= wide(tuple(value.shape)).difference(*(varying(one) for one in own)):
            fresh.add(id(mine))
            self.mark(value, (*own, mine), blank=True)
            return mine
        for other in own:
            if other.shape == mine.shape and id(other) not in fresh:
                self.join(other, mine, "is combined with one and the same tensor")
        return mine

    def mark(self, value: object, labels: Labels, blank: bool = False) -> None:
        """Put labels on a tensor."""
        if isinstance(value, Tensor):
            if labels or hasattr(value, _MARK):
                setattr(value, _MARK, (self._pass, labels))
            if blank or hasattr(value, _BLANK):
                setattr(value, _BLANK, blank)

    def keeps_heads(self) -> bool:
        """Whether an attention in the module that runs keeps all its heads."""
        return bool(self.whole) and within(self.where, self.whole)

    def linear(self, value: object) -> bool:
        """Whether a tensor is what a linear layer or convolution gave, perhaps reshaped."""
        return getattr(value, _LINEAR, False)

    def mark_linear(self, value: object, linear: bool) -> None:
        """Say whether a tensor is what a linear layer or convolution gave."""
        if isinstance(value, Tensor) and (linear or hasattr(value, _LINEAR)):
            setattr(value, _LINEAR, linear)

    def drop_single(self, value: Tensor) -> None:
        """Keep a single index that was picked out and is used now."""
        labels = self.labels(value)
        single = [label for label in labels if label.numel() == 1]
        if single:
            self.keep(single, _PICKED)
            self.mark(value, tuple(label for label in labels if label.numel() > 1))

    # ------------------------------------------------------------------------------------------------- the laws

    def reason(self, what: str) -> str:
        """`what`, and where it happens."""
        return f"{what} ({self.operator}{f' in {self.where}' if self.where else ''})"

    def keep(self, labels: Iterable[Tensor], what: str) -> None:
        """All these atoms must stay."""
        self.atoms.keep(labels, self.reason(what))

    def note_shape(
        self, kind: str, shape: tuple[int, ...], labels: Labels, dim: int = 0, bounds: tuple[int, ...] = ()
    ) -> None:
        """Note an operator that took sizes from the code of the module that runs, see `Shaping`."""
        self.shapings.append(Shaping(self.where, kind, shape, labels, dim, bounds))

    def keep_inputs(self, values: Iterable[object], what: str) -> None:
        """All that enters an operator must stay."""
        for value in values:
            self.keep(self.labels(value), what)

    def join(self, first: Tensor, second: Tensor, what: str) -> None:
        """Atoms at the same place go together."""
        if first is not second and not self.atoms.frozen:
            self.atoms.join(first, second, self.reason(what))

    def collapse(self, label: Tensor, dims: Iterable[int], what: str) -> Tensor | None:
        """Whatever lies along `dims` goes together; None, and the atoms stay, where nothing else varies."""
        dims = [dim for dim in dims if label.shape[dim] > 1]
        if not dims:
            if label.numel() > 1:
                return label
            self.keep([label], _PICKED)
            return None
        rest = first(label, dims)
        if rest.numel() == 1:
            self.keep([label], what)
            return None
        self.join(rest, label, what)
        return rest

    def collapse_all(self, labels: Iterable[Tensor], dims: Iterable[int], what: str) -> Labels:
        """Each label collapsed along `dims`; those that keep nothing are left out."""
        dims = list(dims)
        collapsed = (self.collapse(label, dims, what) for label in labels)
        return tuple(label for label in collapsed if label is not None)

    def elementwise(self, operands: Sequence[Operand], what: str = "meets what stays, such as the input") -> Labels:
        """Labels of the result of operands that are broadcast against one another, element by element."""
        rank = max((len(operand.shape) for operand in operands), default=0)
        items = [(place, pad_rank(label, rank)) for place, operand in enumerate(operands) for label in operand.labels]
        if not items:
            return NOTHING
        shapes = [(1,) * (rank - len(operand.shape)) + operand.shape for operand in operands]
        if len(items) == 1 and all(
            place == items[0][0] or operands[place].blank or not wide(shape) & varying(items[0][1])
            for place, shape in enumerate(shapes)
        ):
            return (items[0][1],)
        if len(items) == len(operands) and len({place for place, _ in items}) == len(items):
            head = items[0][1]
            if all(label.shape == head.shape for _, label in items) and head.numel() > 1:
                for _, other in items[1:]:
                    self.join(head, other, what)
                return (head,)
        result: list[Tensor] = []
        for component in _components(items):
            allowed = frozenset.intersection(*(varying(label) for _, label in component))
            everywhere = frozenset.union(*(varying(label) for _, label in component))
            labelled = {place for place, _ in component}
            for place, shape in enumerate(shapes):
                if place not in labelled and not operands[place].blank:
                    allowed -= wide(shape)
            if len(labelled) < len(component):
                # Two kinds of channels along one dimension: they pass, or stay.
                if len(labelled) == 1 and allowed == everywhere:
                    result += [label for _, label in component]
                else:
                    self.keep((label for _, label in component), "stands across two kinds of channels")
                continue
            labels = self.collapse_all((label for _, label in component), everywhere - allowed, what)
            if len(labels) < len(component):
                self.keep(labels, what)
                continue
            for other in labels[1:]:
                self.join(labels[0], other, what)
            result.append(labels[0])
        return tuple(result)

    def matmul(self, a: Operand, b: Operand) -> Labels:
        """Labels of a batched matrix product [b, m, k] x [b, k, n] -> [b, m, n]."""
        what = "is summed with what stays, such as the input"
        left, right = self._by_dim(a, 2, 1, what), self._by_dim(b, 1, 2, what)

        def along_both(dim: int, other: int) -> Labels:
            one = Operand((a.shape[dim],), tuple(along(label, dim) for label in left[dim]), a.blank)
            two = Operand((b.shape[other],), tuple(along(label, other) for label in right[other]), b.blank)
            return self.elementwise([one, two], what)

        batch = along_both(0, 0)
        along_both(2, 1)
        return (*(on(row, 0, 3) for row in batch), *left[1], *right[2])

    def _by_dim(self, operand: Operand, inner: int, outer: int, what: str) -> dict[int, list[Tensor]]:
        """The labels of a factor by the one dimension along which each varies, once it is collapsed along others.

        inner: the dimension that is summed over. outer: that which goes into the result.
        """
        by_dim: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
        whole = self.keeps_heads()
        for given in operand.labels:
            label: Tensor | None = given
            dims = varying(given)
            if whole and 0 in dims and len(dims) > 1:
                label = self.collapse(given, [0], what)
                dims -= {0}
            joint = len(dims) > 1
            if label is not None and inner in dims and joint:
                label = self.collapse(label, [inner], what)
                dims -= {inner}
            if label is not None and outer in dims and 0 in dims:
                label = self.collapse(label, [outer], what)
                dims -= {outer}
            if label is None:
                continue
            if joint and dims == {0}:
                self.heads.append(label)
            if dims:
                by_dim[next(iter(dims))].append(label)
            else:
                self.keep([label], _PICKED)
        return by_dim

    def rows(self, labels: Labels, dim: int, what: str) -> Labels:
        """As rows along `dim`, everything else collapsed."""
        rows = []
        for label in labels:
            if varying(label) == {dim}:
                rows.append(along(label, dim))
                continue
            rest = self.collapse(label, [other for other in range(label.dim()) if other != dim], what)
            if rest is not None and rest.shape[dim] > 1:
                rows.append(along(rest, dim))
        return tuple(rows)


_PICKED = "one index is picked out"

_Memory = tuple[int, torch.Size, tuple[int, ...]]


def _memory(label: Tensor) -> _Memory:
    """What tells labels apart that may be views of one row, along several dimensions."""
    return label.data_ptr(), label.shape, label.stride()


def _components(items: list[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    """Labels that share a varying dimension, together."""
    groups: list[tuple[frozenset[int], list[tuple[int, Tensor]]]] = []
    for item in items:
        dims = varying(item[1])
        members = [item]
        rest = []
        for other, others in groups:
            if other & dims:
                dims, members = dims | other, others + members
            else:
                rest.append((other, others))
        groups = [*rest, (dims, members)]
    return [members for _, members in groups]
