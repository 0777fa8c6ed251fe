"""Groups, to be read and printed: which indices of which tensors go together, and which operators tie them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from secateur.subjects.network.coupling import Coupling

__all__ = ["Group", "Groups", "Member", "find_groups"]

_SHOWN = 3
"""How many operators are printed for one member."""


@dataclass(frozen=True, eq=False)
class Member:
    """One dimension of one tensor in a group."""

    module: str
    axis: str
    """The tensor's name in its module, and the dimension: "weight[0]"."""
    units: np.ndarray
    """The unit of each index, -1 for those of none."""
    ties: tuple[str, ...]
    """The operators in which its indices are combined with others of the group, and where they run."""


@dataclass(frozen=True, eq=False)
class Group:
    """The units of one site. Unit i is all indices that the members give to i: they go together or not at all."""

    name: str
    units: int
    members: tuple[Member, ...]
    """What makes the channels first."""

    def indices(self, unit: int) -> dict[str, list[int]]:
        """Member, as "module.weight[0]" -> its indices that go with one unit."""
        return {
            f"{member.module}.{member.axis}".lstrip("."): np.flatnonzero(member.units == unit).tolist()
            for member in self.members
        }

    def __str__(self) -> str:
        rows = [("module", "axis", "indices", "tied by")]
        for member in self.members:
            more = f" and {len(member.ties) - _SHOWN} more" if len(member.ties) > _SHOWN else ""
            indices = _ranges(np.flatnonzero(member.units >= 0).tolist())
            rows.append((member.module, member.axis, indices, ", ".join(member.ties[:_SHOWN]) + more))
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], wide), row[3]]).rstrip() for row in rows]
        return "\n".join([f"{self.name}: {self.units} units", *(f"  {line}" for line in lines)])


class Groups(Mapping[str, Group]):
    """Site -> its group, and what stays with the reason."""

    def __init__(self, groups: Iterable[Group], reasons: Mapping[str, str]) -> None:
        self._groups = {group.name: group for group in groups}
        self.reasons = reasons
        """Dimension of a tensor -> why it, or a part of it, stays."""

    def __getitem__(self, name: str) -> Group:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __str__(self) -> str:
        stays = [f"  {axis}: {reason}" for axis, reason in self.reasons.items()]
        return "\n".join([*map(str, self._groups.values()), *(["stays:", *stays] if stays else [])])


def find_groups(coupling: Coupling, joins: Iterable[tuple[np.ndarray, np.ndarray, str]]) -> Groups:
    """The groups of a network; joins: (atoms, atoms that go together with them, why), as they were recorded."""
    starts = [axis.start for axis in coupling.axes]
    ties: dict[int, dict[str, None]] = {}
    for first, second, reason in joins:
        differ = first != second
        atoms = np.concatenate([first[differ], second[differ]])
        operator = reason.rpartition(" (")[2].removesuffix(")")
        for number in np.unique(np.searchsorted(starts, atoms[atoms > 0], "right") - 1).tolist():
            ties.setdefault(number, {})[operator] = None
    numbers = {axis: number for number, axis in enumerate(coupling.axes)}
    of = coupling.classes.of
    unit = np.full(int(of.max(initial=0)) + 1, -1)
    groups = []
    for name, site in coupling.sites.items():
        unit[:] = -1
        unit[site.classes] = np.arange(len(site.classes))
        members = []
        for axis, _ in site.axes:
            module, _, leaf = axis.tensor.rpartition(".")
            units = unit[of[axis.start : axis.start + axis.size]]
            members.append(Member(module, f"{leaf}[{axis.dim}]", units, tuple(ties.get(numbers[axis], ()))))
        groups.append(Group(name, len(site.classes), tuple(members)))
    return Groups(groups, coupling.reasons)


def _ranges(numbers: list[int]) -> str:
    """Rising numbers as ranges: "0-7, 9"."""
    ends = [place for place, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
    parts = [numbers[a:b] for a, b in pairwise([0, *ends, len(numbers)])]
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts if part)
