"""Search for a cut that passes its proof: which units must be cut in step, and which must stay.

Code that computes one width from another breaks when only one of them is cut. A fault of a proof names a module; what
helps one module helps all of its kind, so each remedy is applied to them all, and its success is seen in the next cut.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from secateur.errors import ModelError
from secateur.subjects.network.labels import Flow, Shaping, varying
from secateur.subjects.network.proof import Fault
from secateur.vocabulary import Selection

if TYPE_CHECKING:
    from secateur.subjects.network.traced import Traced

__all__ = ["Constraints", "atoms_of", "find_remedy", "keep_guilty", "keep_site", "trial_selection"]

_REPLACED = WeakKeyDictionary[Flow, dict[type, list[Shaping]]]()
"""Kind of module -> what its code gave shapes to, where a remedy put other notes in their place."""


_MOST_ALONE = 64
"""Sites of which each is cut alone: of more it would take too long."""


@dataclass
class Constraints:
    """What the caller asked to keep, and what failed cuts have shown."""

    atoms: dict[int, str] = field(default_factory=dict)
    """Atom -> why it stays."""
    parameters: dict[str, str] = field(default_factory=dict)
    """Parameter -> why no segment that it belongs to is erased."""
    bound: list[np.ndarray] = field(default_factory=list)
    """Pairs of atoms [2, n] that go together, though no operator joins them."""
    whole: frozenset[str] = frozenset()
    """Modules whose heads stay whole: the same dimensions of each go instead."""
    tried: dict[type, tuple[int, int]] = field(default_factory=dict)
    """Kind of module -> from where on `bound` is bound for it (-1 if nothing is), and which remedy comes next."""

    def copy(self) -> Constraints:
        """The same, to be changed alone."""
        return Constraints(dict(self.atoms), dict(self.parameters), list(self.bound), self.whole, dict(self.tried))


def trial_selection(subject: Traced, turn: float | None) -> Selection:
    """Every second unit of each site, or unequal shares that begin at `turn`.

    Where one site loses more than another, code shows that computes the width of one from that of the other. A site
    that is cut in steps alone keeps whole steps, or a kernel refuses what nobody would cut.
    """
    keep = {}
    for number, (name, site) in enumerate(subject.coupling.sites.items()):
        count = len(site.classes)
        index = np.arange(count)
        mask = index % 2 == 0
        if turn is not None:
            # Multiples of the golden ratio: no two sites lose the same share, and some lose nothing.
            mask = index < 1 + int(count * (1.2 * (0.618 * number + turn) % 1.2))
        keep[name] = _round_down(mask, site.multiple)
    return Selection(keep)


def _round_down(mask: np.ndarray, step: int) -> np.ndarray:
    """The mask with its last units off, so that a multiple of `step` stays; at least one step, or all, stays."""
    count = min(len(mask), max(step, int(mask.sum()) // step * step))
    first = np.argsort(~mask, kind="stable")[:count]  # what is on, then what is off
    result: np.ndarray = np.isin(np.arange(len(mask)), first)
    return result


def keep_site(subject: Traced, name: str, reason: str) -> None:
    """Let nothing of a site go."""
    subject.constraints.atoms.update(dict.fromkeys(atoms_of(subject, name), reason))


def atoms_of(subject: Traced, name: str) -> list[int]:
    """The atoms of a site."""
    coupling = subject.coupling
    atoms: list[int] = np.flatnonzero(np.isin(coupling.classes.of, coupling.sites[name].classes)).tolist()
    return atoms


def find_remedy(subject: Traced, fault: Fault, selection: Selection) -> list[str]:
    """Change the constraints so that a cut does not fail as this one did; the sites that are constrained.

    The remedies in turn, for all modules of the kind in which the fault shows: sites that meet there are bound to one
    another, all of them, the same with whole heads, whole heads alone, numbers read as sizes of what lies inside. If
    none helps, the site that touches least of the network stays. Raises `ModelError` where no site that was cut
    explains the fault.
    """
    sites = subject.coupling.sites
    cut = [name for name, keep in selection.keep.items() if not bool(np.asarray(keep).all())]
    modules = dict(subject.model.named_modules())
    path, near = fault.where, list[str]()
    while path:
        near = _sites_at(subject, path, cut)
        if near:
            break
        path = path.rpartition(".")[0]
    places = _alike(path, modules) if path else []
    if not near:
        # Nothing near the fault: half of what was cut stays, what touches least first.
        near = sorted(cut, key=lambda name: len(sites[name].axes))[: max(1, len(cut) // 2)]
    if not near:
        raise ModelError(f"the cut can't be proved: {fault.what}")
    above, around = path, places
    parent = path.rpartition(".")[0]
    leaf = not any(True for _ in modules.get(path, subject.model).children())
    if leaf and (near[0].endswith("heads") or parent in subject.constraints.whole):
        # A layer that is given heads of another size than it was made for: the module around it shaped them.
        leaf, above, around = False, parent, _alike(parent, modules)
    kind = type(modules.get(above, subject.model))
    known = kind in subject.constraints.tried
    if not leaf and _apply_next(subject, kind, around, 0 if above == path else 2):
        return near
    if not leaf and _read_inner_sizes(subject, kind, around):
        return near
    candidates = list(subject.coupling.sites) if known and not leaf else cut
    chosen = [_sites_at(subject, place, candidates)[:1] for place in places] or [near]
    stays = list(dict.fromkeys(name for names in chosen for name in names))
    place = f" (in {fault.where})" if fault.where else ""
    for name in stays:
        keep_site(subject, name, f"a cut of it fails: {fault.what}{place}")
    subject.forget("coupling")
    return stays


def keep_guilty(subject: Traced, whole: Constraints) -> None:
    """Let stay what can't be cut even alone, where nothing was left: of what was kept first, some may be innocent.

    whole: the constraints before any remedy.
    """
    failed, subject.constraints = subject.constraints, whole.copy()
    subject.forget("run", "coupling", "_zeroable")
    names, guilty = list(subject.coupling.sites), dict[str, str]()
    for name in names if len(names) <= _MOST_ALONE else ():
        trial = copy.copy(subject)  # of the same weights, which a cut leaves as they are
        trial.constraints = whole.copy()
        for other in names:
            if other != name:
                keep_site(trial, other, "is not tried now")
        trial.forget("coupling")
        try:
            trial.cut(trial_selection(trial, None))
        except ModelError as error:
            guilty[name] = f"a cut of it fails: {error}"
    if len(guilty) == len(names) or len(names) > _MOST_ALONE:
        subject.constraints = failed
    else:
        for name, why in guilty.items():
            keep_site(subject, name, why)
    subject.forget("run", "coupling", "_zeroable")


def _apply_next(subject: Traced, kind: type, places: list[str], step: int) -> bool:
    """Apply the next remedy for modules of a kind, in these places; False, and all as it was, after the last.

    step: where to begin, if nothing was tried for this kind.
    """
    constraints = subject.constraints
    start, step = constraints.tried.get(kind, (-1, step))
    if start >= 0:
        # Binding did not help: what was bound for this kind of module is free again.
        del constraints.bound[start:]
        subject.forget("coupling")
    while step < 4:
        near = [_sites_at(subject, place, subject.coupling.sites) for place in places]
        if step == 2:
            if not any(name.endswith("heads") for names in near for name in names):
                break
            _keep_heads_whole(subject, constraints.whole.union(places))
            near = [_sites_at(subject, place, subject.coupling.sites) for place in places]
        plain, every = ([pairs for names in near for pairs in _bind(subject, names, more)] for more in (False, True))
        bound = (plain, every if len(every) > len(plain) else [], plain, [])[step]
        step += 1
        if bound or step == 3 or (step == 4 and start >= 0):
            constraints.tried[kind] = (len(constraints.bound) if bound else -1, step)
            constraints.bound += bound
            subject.forget("coupling")
            return True
    if not constraints.whole.isdisjoint(places):
        _keep_heads_whole(subject, constraints.whole.difference(places))
    constraints.tried[kind] = (-1, 4)
    return False


def _keep_heads_whole(subject: Traced, whole: Iterable[str]) -> None:
    """Record anew, with these modules' heads whole."""
    subject.constraints.whole = frozenset(whole)
    subject.forget("run", "coupling", "_zeroable")


def _read_inner_sizes(subject: Traced, kind: type, places: Iterable[str]) -> bool:
    """Take what code of these modules gives shapes to for sizes of what lies inside them alone.

    A number of a module that is as large as something else too, such as the hidden size or the length of the inputs,
    else stays, for nothing tells the two apart. False, and all as it was, where nothing does, or that was done before.
    """
    coupling, flow, places = subject.coupling, subject.run.flow, set(places)
    known = _REPLACED.setdefault(flow, {})
    others = [shaping for shaping in flow.shapings if shaping.module not in places]
    if kind in known:
        flow.shapings[:] = [*others, *known[kind]]
        return False
    inside = {
        path: [
            site.classes for site in coupling.sites.values()
            if all(axis.tensor.startswith(f"{path}.") for axis, _ in site.axes)
        ]
        for path in places
    }  # fmt: skip
    if not any(inside.values()):
        return False
    known[kind] = [shaping for shaping in flow.shapings if shaping.module in places]
    for shaping in known[kind]:
        if shaping.kind not in ("view", "slice"):
            others.append(shaping)
            continue
        for label in shaping.labels:
            classes = coupling.classes.of[label.numpy()]
            if not any(np.isin(classes, own).any() for own in inside[shaping.module]):
                continue
            if shaping.kind == "slice":
                others.append(shaping)
                continue
            sizes = [(dim, shaping.shape[dim]) for dim in sorted(varying(label))]
            others += [replace(shaping, kind="slice", labels=(label,), dim=dim, bounds=(0, end)) for dim, end in sizes]
    flow.shapings[:] = others
    return True


def _bind(subject: Traced, near: list[str], every: bool) -> list[np.ndarray]:
    """Pairs of atoms that let heads go in step with the channels that they are computed from.

    The channels are those of the site that touches most of the network; each head takes a block of them along. Where
    there are no heads, other sites are bound in their place, and with `every` also beside them, if they have as many
    channels.
    """
    sites = [subject.coupling.sites[name] for name in near]
    if len(sites) < 2:
        return []
    of = subject.coupling.classes.of
    atom = np.zeros(int(of.max()) + 1, np.int64)
    atom[of] = np.arange(len(of))
    large = max(sites, key=lambda site: len(site.axes))
    others = [site for site in sites if site is not large]
    heads = [site for site in others if site.name.endswith("heads")]
    pairs = []
    for small in others if every or not heads else heads:
        few, many = len(small.classes), len(large.classes)
        if many % few == 0 and (few == many or not heads or small in heads):
            block = small.classes[np.arange(many) * few // many]
            pairs.append(np.stack([atom[block], atom[large.classes]]))
    if every and not pairs:
        # Queries, keys and values of as many dimensions, whatever they are computed from.
        first = others[0].classes
        alike = [site.classes for site in others[1:] if len(site.classes) == len(first)]
        pairs = [np.stack([atom[first], atom[other]]) for other in alike]
    return pairs


def _sites_at(subject: Traced, path: str, names: Iterable[str]) -> list[str]:
    """The sites among `names` that touch module `path`: those it gives a shape first, then those that touch least."""
    coupling = subject.coupling
    shaped: set[int] = set()
    for shaping in subject.run.flow.shapings:
        if shaping.module == path:
            for label in shaping.labels:
                shaped.update(np.unique(coupling.classes.of[label.numpy()]).tolist())
    near = []
    for name in names:
        site = coupling.sites.get(name)
        if site is None:
            continue
        apart = shaped.isdisjoint(site.classes.tolist())
        if not apart or any(axis.tensor.startswith(f"{path}.") for axis, _ in site.axes):
            near.append((apart, len(site.axes), name))
    return [name for _, _, name in sorted(near)]


def _alike(path: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules of the kind of the one at `path`; of layers, only those that stand in like places."""
    kind = type(modules[path])
    same_kind = [name for name, module in modules.items() if type(module) is kind]
    if any(True for _ in modules[path].children()):
        return same_kind

    def position(name: str) -> tuple[str, type, str]:
        parent, _, leaf = name.rpartition(".")
        return leaf, type(modules[parent]), parent.rpartition(".")[2].strip("0123456789")

    return [name for name in same_kind if position(name) == position(path)]
