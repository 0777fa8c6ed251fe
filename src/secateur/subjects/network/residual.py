"""Residual branches as units: where a network computes x + F(x), F can be removed.

Found in one recorded pass, in any network: a sum of two tensors of one shape, the second of which is computed from the
first by modules whose results go nowhere else. A branch that goes is replaced by stand-ins without weights; each is
tried once, and one that can't be left out so stays, with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import InputError, UnsupportedError
from secateur.subjects.network import configs
from secateur.subjects.network.coupling import keep_mask
from secateur.subjects.network.graph import Call, Graph, channels_along
from secateur.subjects.network.proof import Silenced, one_line, same
from secateur.subjects.network.shrinking import Plan, shrink, twin
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Branch", "Branches"]

SITE = "branches"


@dataclass(frozen=True)
class Branch:
    """F of x + F(x)."""

    name: str
    modules: tuple[str, ...]
    """The outermost modules of which it is made, in the order in which they run; the last one gives F."""
    forms: tuple[Any, ...]
    """What each returns, see `absent.form`."""
    source: str
    """The module whose input is x."""
    channels: int
    """Of x."""
    dim: int
    """Where they lie."""


class Branches:
    """The residual branches of a network, as something to prune; `subject` stays as it is.

    names: patterns such as "layer1.*" of those wanted; all unless given. Raises `UnsupportedError` where the network
    has none that can be left out, `InputError` for a pattern that fits none.
    """

    def __init__(self, subject: Traced, names: Iterable[str] = ()) -> None:
        if isinstance(subject.model, Silenced):
            raise UnsupportedError("a silenced network has no branches to cut: give the network itself")
        self.subject = subject
        self.reasons: dict[str, str] = {}
        """Branch -> why it can't go."""
        wanted = tuple(names)
        found = _find(subject.graph, dict(subject.model.named_modules()))
        for pattern in wanted:
            if not any(fnmatchcase(one.name, pattern) for one in found):
                known = ", ".join(one.name for one in found) or "none"
                raise InputError(f"no residual branch is called {pattern!r}: this network has {known}")
        chosen = [one for one in found if not wanted or any(fnmatchcase(one.name, pattern) for pattern in wanted)]
        self.base, kept = subject.count(), []
        self.cost: dict[str, dict[str, float]] = {}
        for one in chosen:
            why = self._why_not(one)
            if why:
                self.reasons[one.name] = why
                continue
            small = Traced(shrink(subject.model, self._plan([one])), subject.inputs)
            after = small.count()
            self.cost[one.name] = {measure: value - after[measure] for measure, value in self.base.items()}
            kept.append(one)
        self.branches = tuple(kept)
        if not kept:
            why = "; ".join(f"{name} {reason}" for name, reason in list(self.reasons.items())[:3])
            raise UnsupportedError(
                f"this {type(subject.model).__name__} has no residual branch that can go"
                f"{': ' + why if why else ': nothing of it has the form x + F(x)'}"
            )

    def of(self, subject: Traced) -> Branches:
        """The same branches of a copy of the network with other weights, without looking for them again."""
        other = copy.copy(self)
        other.subject = subject
        return other

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.branches)

    def __len__(self) -> int:
        return len(self.branches)

    def units(self) -> Units:
        """One site, "branches", with exact costs: params, bytes, FLOPs on the example inputs, and branches."""
        columns = {measure: np.array([self.cost[one.name][measure] for one in self.branches]) for measure in self.base}
        base = {measure: value - float(columns[measure].sum()) for measure, value in self.base.items()}
        columns["branches"] = np.ones(len(self.branches))
        return Units({SITE: Site(SITE, len(self.branches), columns)}, (), base)

    def cut(self, selection: Selection) -> tuple[Traced, Cut]:
        """A smaller copy without the branches that go, and the receipt.

        Raises `InputError` for a selection of another shape.
        """
        if set(selection.keep) - {SITE}:
            raise InputError(f"the selection names {sorted(set(selection.keep) - {SITE})[0]!r}: use {SITE!r}")
        keep = keep_mask(selection, SITE, len(self)) if SITE in selection.keep else np.ones(len(self), bool)
        gone = [one for one, stays in zip(self.branches, keep, strict=True) if not stays]
        made = self._plan(gone)
        before = self.base | {"branches": float(len(self))}
        plans = (*self.subject.plans, made) if gone else self.subject.plans
        small = Traced(shrink(self.subject.model, made), self.subject.inputs, plans)
        after = small.count() | {"branches": float(len(self) - len(gone))}
        notes = [f"{one.name} is gone: x + F(x) is x" for one in gone]
        notes += [f"stays: {name}: {why}" for name, why in self.reasons.items()]
        notes += configs.behind(self.subject.model) if gone else []
        removed = {SITE: (len(gone), len(self))} if gone else {}
        return small, Cut(removed, before, after, tuple(notes))

    def _plan(self, gone: Iterable[Branch]) -> Plan:
        """What leaves these out."""
        parts = tuple(part for one in gone for part in zip(one.modules, one.forms, strict=True))
        return Plan(absent=parts, fresh=self.subject.graph.overwritten)

    def _why_not(self, branch: Branch) -> str:
        """Why the branch can't be left out; empty if the network without it equals the one with its output zeroed."""
        if "?" in branch.forms:
            path = branch.modules[branch.forms.index("?")]
            return f"can't be left out: {path} returns what can't be imitated"
        try:
            small = shrink(self.subject.model, self._plan([branch]))
            with torch.no_grad():  # as its user calls it, on whatever fast path it has
                args, kwargs = self.subject.inputs.fresh()
                twin(small, share=True).eval()(*args, **kwargs)
            _, fault = same(small, self._with_zeros(branch), self.subject.inputs)
        except Exception as error:
            return f"can't be left out ({one_line(error)})"
        return f"can't be left out: against its output at zero, the network {fault.what}" if fault else ""

    def _with_zeros(self, branch: Branch) -> nn.Module:
        """The network with the output of a branch at zero."""
        model = twin(self.subject.model, share=True).eval()

        def zero(_: nn.Module, args: object, output: Any) -> object:
            if isinstance(output, Tensor):
                return torch.zeros_like(output)
            first = next(place for place, value in enumerate(output) if isinstance(value, Tensor))
            return type(output)(torch.zeros_like(x) if place == first else x for place, x in enumerate(output))

        model.get_submodule(branch.modules[-1]).register_forward_hook(zero)
        return model


# ------------------------------------------------------------------------------------------------------ finding


def _find(run: Graph, modules: dict[str, nn.Module]) -> list[Branch]:
    spans: list[tuple[int, int, set[int]]] = []
    for place, vertex in enumerate(run.vertices):
        if vertex.operator not in ("add", "add_") or len(vertex.inputs) != 2 or len(set(vertex.shapes)) != 1:
            continue
        for x, f in (vertex.inputs, vertex.inputs[::-1]):
            if run.after(f, x):
                span = _span(run, x, f, place)
                if span:
                    spans.append((x, place, span))
    found: list[tuple[int, list[Call], Call]] = []
    for x, place, span in spans:
        made = _modules(run, span, modules)
        if not made or not any(True for call in made for _ in modules[call.path].parameters()):
            continue
        if any(other != place and other in span and _modules(run, within, modules) for _, other, within in spans):
            continue  # a branch with branches of its own
        first = next((call for call in made if call.source == x), made[0])
        if len(first.shape) >= 2 and first.shape[0] == run.batch:
            found.append((place, made, first))
    names = _names([[call.path for call in made] for _, made, _ in found], modules)
    result = []
    for (place, made, first), name in zip(found, names, strict=True):
        dim = channels_along(modules[first.path], len(first.shape))
        parts = tuple(call.path for call in made), tuple(call.form for call in made)
        result.append((place, Branch(name, *parts, first.path, first.shape[dim], dim)))
    return [branch for _, branch in sorted(result, key=lambda pair: pair[0])]


def _span(run: Graph, x: int, f: int, total: int) -> set[int]:
    """The vertices that only F is made of; empty where something of F is used elsewhere."""
    if run.takers[f] != [total]:
        return set()
    span = {f}
    for place in range(f - 1, -1, -1):
        takers, given = run.takers[place], run.vertices[place].inputs
        if place != x and given and takers and span.issuperset(takers) and not run.after(x, place):
            span.add(place)
    between = {one for one in range(x + 1, f) if run.after(one, x) and run.after(f, one)}
    return span if between <= span else set()


def _modules(run: Graph, span: set[int], modules: dict[str, nn.Module]) -> list[Call]:
    """The outermost modules that work for this branch alone, in the order in which they run."""

    def inside(call: Call) -> bool:
        own = range(call.start, call.end)
        loose = set(own) - span
        return bool(loose != set(own)) and all(set(run.takers[place]) <= set(own) for place in loose)

    whole = [path for path, made in run.of.items() if path and len(made) == 1 and inside(made[0])]
    chosen = set(whole)
    outer = [path for path in whole if not any(path[:cut] in chosen for cut in _cuts(path))]
    return sorted((run.of[path][0] for path in outer), key=lambda call: (call.start, call.end))


def _cuts(path: str) -> list[int]:
    return [place for place, letter in enumerate(path) if letter == "."]


def _names(branches: list[list[str]], modules: dict[str, nn.Module]) -> list[str]:
    """What the modules of each branch have in common; where that holds another branch as well, the largest of them."""
    common = [_common([path.split(".") for path in paths]) for paths in branches]
    names = []
    for place, (name, paths) in enumerate(zip(common, branches, strict=True)):
        others = [f"{other}." for number, other in enumerate(common) if number != place]
        if not name or any(other.startswith(f"{name}.") for other in others):
            name = max(paths, key=lambda path: sum(p.numel() for p in modules[path].parameters()))
        names.append(name)
    return names


def _common(paths: list[list[str]]) -> str:
    alike = 0
    while all(len(path) > alike for path in paths) and len({path[alike] for path in paths}) == 1:
        alike += 1
    return ".".join(paths[0][:alike])
