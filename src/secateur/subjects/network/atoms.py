"""Atoms: one index of one dimension of one parameter or buffer, and which of them can only go together.

A recording hands over pairs of atoms that meet in one element of a tensor, and atoms that must stay, with the reason.
`Atoms.classes` then joins what is connected: a class is the smallest thing that can be cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["Atoms", "Axis", "Classes"]


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
    """All atoms of a model and what was learnt about them. Atom 0 is none."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.count = 1
        self.deaf = False
        """Whether nothing more is learnt: only labels are wanted."""
        self._met: list[tuple[np.ndarray, np.ndarray, str]] = []
        self._pairs: list[np.ndarray] = []
        self._kept: list[tuple[np.ndarray, str]] = []

    def colour(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """One label tensor per dimension of `tensor`, each of size 1 in all other dimensions."""
        labels = []
        for dim, size in enumerate(tensor.shape):
            if size < 2:
                continue
            self.axes.append(Axis(name, dim, size, self.count))
            shape = [1] * tensor.dim()
            shape[dim] = size
            labels.append(torch.arange(self.count, self.count + size, dtype=torch.int32).view(shape))
            self.count += size
        return tuple(labels)

    def join(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Atoms that stand at the same place go together; those that meet none (0) stay."""
        if self.deaf or first is second:
            return
        a, b = first.numpy(), second.numpy()
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._met.append((a.reshape(-1), b.reshape(-1), reason))
        if a.size > _MANY:
            self._settle()

    def _settle(self) -> None:
        """Make pairs, and atoms that stay, of what has met."""
        if not self._met:
            return
        a, b = (np.concatenate([one[side] for one in self._met]) for side in (0, 1))
        unlike = a != b
        alone = unlike & ((a == 0) | (b == 0))
        if alone.any():
            ends = np.cumsum([len(one[0]) for one in self._met])
            places = np.flatnonzero(alone)
            owner = np.searchsorted(ends, places, side="right")
            atoms = np.maximum(a[places], b[places])
            for one in np.unique(owner).tolist():
                self._kept.append((np.unique(atoms[owner == one]), self._met[one][2]))
        both = unlike & ~alone
        pairs = np.stack([a[both], b[both]])
        self._pairs.append(_distinct(pairs) if pairs.shape[1] > _TOO_MANY else pairs)
        self._met.clear()

    def keep(self, labels: Tensor, reason: str) -> None:
        """These atoms must stay."""
        if self.deaf:
            return
        atoms = np.unique(labels.numpy())
        self._kept.append((atoms[atoms > 0], reason))

    def keep_all(self, labels: Iterable[Tensor], reason: str) -> None:
        """All these atoms must stay."""
        for label in labels:
            self.keep(label, reason)

    def classes(self, more: Iterable[np.ndarray] = (), kept: Iterable[tuple[np.ndarray, str]] = ()) -> Classes:
        """Join everything learnt so far, `more` pairs [2, n] and further `kept` atoms."""
        self._settle()
        pairs = np.concatenate([np.zeros((2, 0), np.int32), *self._pairs, *more], axis=1)
        graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(self.count, self.count))
        of = connected_components(graph, directed=False)[1]
        # Atom 0 is never joined: give its class the number 0.
        of = np.where(of == 0, of[0], np.where(of == of[0], 0, of)) if of[0] else of
        found = [*self._kept, *kept]
        first = np.full(int(of.max()) + 1, -1)
        for place in range(len(found) - 1, -1, -1):
            first[of[found[place][0]]] = place
        reasons = {one: found[first[one]][1] for one in np.flatnonzero(first >= 0).tolist()}
        return Classes(of, reasons)


_MANY, _TOO_MANY = 4096, 1 << 20
"""Labels that are not put off, and pairs of which each is kept once: to sort fewer takes longer than to join them."""


def _distinct(pairs: np.ndarray) -> np.ndarray:
    """Each pair [2, n] once."""
    mixed = np.unique(pairs[0].astype(np.int64) << 32 | pairs[1].astype(np.int64))
    return np.stack([mixed >> 32, mixed & 0xFFFFFFFF]).astype(np.int32)
