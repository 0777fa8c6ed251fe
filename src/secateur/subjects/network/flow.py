"""How labels meet: element by element, and in contractions. The two laws from which the rules of operators are made.

Where labelled tensors meet in one element, their atoms go together. Where labels change along a dimension that some
other tensor does not label, that dimension can't shrink: the labels are collapsed along it (all its indices go
together), and are carried on by the dimensions that remain; if none remains, the atoms stay, with the reason.
So attention heads, and the groups of grouped-query attention, come out by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.subjects.network.atoms import Atoms
from secateur.subjects.network.labels import along, first, on, padded, varying, wide

__all__ = ["NOTHING", "Flow", "Labelled", "Labels", "Scaling", "Shaping"]

Labels = tuple[Tensor, ...]

NOTHING: Labels = ()

_MARK = "_secateur_labels"
_BLANK = "_secateur_blank"
_LINEAR = "_secateur_linear"


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a rule needs to know of an operand: its shape, its labels, and whether it is one value all over.

    A tensor of zeros (`blank`) that the forward pass makes itself takes on any labels it meets.
    """

    shape: tuple[int, ...]
    labels: Labels
    blank: bool = False


@dataclass(frozen=True, eq=False)
class Shaping:
    """An operator that took sizes from the code of a module: what it was, where, and the labels of what came out.

    kind: "view" (sizes of each output dimension), "slice" (bounds along `dim` of the labels of what went in).
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

    It names rows of one linear layer or convolution, from which the query comes unchanged; its last dimension is the
    size of heads.
    """

    module: str
    label: Tensor


class Flow:
    """Labels on tensors, and what happens to them. `where` is the path of the module that runs."""

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
        self.heads: list[Tensor] = []
        """Labels that were carried on by the batch of a product alone: heads of an attention."""

    # ------------------------------------------------------------------------------------------ labels on tensors

    def labels(self, value: Any) -> Labels:
        """The labels of a tensor; none of anything else."""
        found: Labels = getattr(value, _MARK, NOTHING)
        return found

    def operand(self, value: Any) -> Labelled:
        """A tensor or number as a rule sees it."""
        if not isinstance(value, Tensor):
            return Labelled((), NOTHING)
        return Labelled(tuple(value.shape), self.labels(value), self.blank(value))

    def blank(self, value: Any) -> bool:
        """Whether a tensor is one value all over, made by the forward pass."""
        return getattr(value, _BLANK, False)

    def mark(self, value: Any, labels: Labels, blank: bool = False) -> None:
        """Put labels on a tensor."""
        if isinstance(value, Tensor):
            if labels or hasattr(value, _MARK):
                setattr(value, _MARK, labels)
            if blank or hasattr(value, _BLANK):
                setattr(value, _BLANK, blank)

    def keeps_heads(self, path: str) -> bool:
        """Whether an attention in the module at `path` keeps all its heads."""
        return any(path == one or path.startswith(f"{one}.") for one in self.whole)

    def linear(self, value: Any) -> bool:
        """Whether a tensor is what a linear layer or convolution gave, perhaps reshaped."""
        return getattr(value, _LINEAR, False)

    def mark_linear(self, value: Any, linear: bool) -> None:
        """Say whether a tensor is what a linear layer or convolution gave."""
        if isinstance(value, Tensor) and (linear or hasattr(value, _LINEAR)):
            setattr(value, _LINEAR, linear)

    def drop_single(self, value: Tensor) -> None:
        """A single index that was picked out is used: it must stay."""
        labels = self.labels(value)
        single = [label for label in labels if label.numel() == 1]
        if single:
            self.keep(single, "one index is picked out")
            self.mark(value, tuple(label for label in labels if label.numel() > 1))

    # ------------------------------------------------------------------------------------------------- the laws

    def reason(self, what: str) -> str:
        """`what`, and where it happens."""
        return f"{what} ({self.operator}{f' in {self.where}' if self.where else ''})"

    def keep(self, labels: Iterable[Tensor], what: str) -> None:
        """All these atoms must stay."""
        for label in labels:
            self.atoms.keep(label, self.reason(what))

    def collapse(self, label: Tensor, dims: Iterable[int], what: str) -> Tensor | None:
        """Whatever lies along `dims` goes together; None, and the atoms stay, where nothing else varies."""
        dims = [dim for dim in dims if label.shape[dim] > 1]
        if not dims:
            if label.numel() > 1:
                return label
            self._single(label)
            return None
        rest = first(label, dims)
        if rest.numel() == 1:
            self.keep([label], what)
            return None
        self.atoms.join(rest, label, self.reason(what))
        return rest

    def _single(self, label: Tensor) -> None:
        self.keep([label], "one index is picked out")

    def settled(self, labels: Iterable[Tensor], dims: Iterable[int], what: str) -> Labels:
        """Each label collapsed along `dims`; those that keep nothing are left out."""
        dims = list(dims)
        found = (self.collapse(label, dims, what) for label in labels)
        return tuple(label for label in found if label is not None)

    def meet(self, operands: Sequence[Labelled], what: str = "meets a tensor without channels to cut") -> Labels:
        """Labels of what comes of operands that are broadcast against one another, element by element."""
        rank = max((len(one.shape) for one in operands), default=0)
        items = [(place, padded(label, rank)) for place, one in enumerate(operands) for label in one.labels]
        if not items:
            return NOTHING
        shapes = [(1,) * (rank - len(one.shape)) + one.shape for one in operands]
        if len(items) == 1 and all(
            place == items[0][0] or operands[place].blank or not wide(shape) & varying(items[0][1])
            for place, shape in enumerate(shapes)
        ):
            return (items[0][1],)
        if len(items) == len(operands) and len({place for place, _ in items}) == len(items):
            head = items[0][1]
            if all(label.shape == head.shape for _, label in items) and head.numel() > 1:
                for _, other in items[1:]:
                    if other is not head and not self.atoms.deaf:
                        self.atoms.join(head, other, self.reason(what))
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
            lost = everywhere - allowed
            labels = self.settled((label for _, label in component), lost, what)
            if len(labels) < len(component):
                self.keep(labels, what)
                continue
            for other in labels[1:]:
                if other is not labels[0]:
                    self.atoms.join(labels[0], other, self.reason(what))
            result.append(labels[0])
        return tuple(result)

    def contract(self, a: Labelled, b: Labelled) -> Labels:
        """Labels of a batched matrix product [b, m, k] x [b, k, n] -> [b, m, n]."""
        what = "is summed with a tensor without channels to cut"
        whole = self.keeps_heads(self.where)
        left: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
        right: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
        for one, sides, inner, outer in ((a, left, 2, 1), (b, right, 1, 2)):
            for given in one.labels:
                label: Tensor | None = given
                assert label is not None
                dims = varying(label)
                if whole and 0 in dims and len(dims) > 1:
                    label = self.collapse(label, [0], what)
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
                if not dims:
                    self._single(label)
                    continue
                sides[next(iter(dims))].append(label)
        batch = self.meet(
            [
                Labelled((a.shape[0],), tuple(along(label, 0) for label in left[0]), a.blank),
                Labelled((b.shape[0],), tuple(along(label, 0) for label in right[0]), b.blank),
            ],
            what,
        )
        self.meet(
            [
                Labelled((a.shape[2],), tuple(along(label, 2) for label in left[2]), a.blank),
                Labelled((b.shape[1],), tuple(along(label, 1) for label in right[1]), b.blank),
            ],
            what,
        )
        return (*(on(row, 0, 3) for row in batch), *left[1], *right[2])

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

    def unknown(self, values: Iterable[Any], what: str) -> None:
        """An operator without a rule: all that enters it stays."""
        for value in values:
            self.keep(self.labels(value), what)


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
