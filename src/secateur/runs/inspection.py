"""What could be cut from a network, what stays and why, and a picture of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur._utils.disk import atomic_write
from secateur.errors import InputError
from secateur.methods import pruning
from secateur.methods.group_budget import GroupBudget
from secateur.reports import pictures
from secateur.runs import keywords
from secateur.runs.backends import axes_of
from secateur.score import magnitude
from secateur.select import limits
from secateur.select.ranking import Normalise
from secateur.subjects.network import segments
from secateur.subjects.network.opening import NetworkSource, open_network
from secateur.subjects.network.outline import Node, outline
from secateur.subjects.network.segments import SITE
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget, Selection, Units

__all__ = ["inspect"]


def inspect(
    model: NetworkSource,
    *,
    inputs: str | Any = None,
    budget: str | Budget | None = None,
    score: str = "magnitude",
    scope: str | Mapping[str, str] = "local",
    normalise: Normalise | None = None,
    multiple: int | None = None,
    protect: Sequence[str] = (),
    shares: str | Mapping[str, float] = "",
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """What could go in a network, and with a budget what would.

    Args:
        model: a module, a `Traced`, "file.py:function" that gives a module or (module, inputs), or the folder of
            a saved cut.
        inputs: example inputs, or their shape such as "1x3x224x224"; those of the function if None.
        budget: what may stay, such as "channels=50%"; or "segments=50%", for what `otov3` would erase by the weights
            as they are.
        score: by which the least go; one that looks at no data, or "file.py:function".
        scope: which sites share one ranking: local, kind, global, isomorphic, or "SITE=POOL,SITE=POOL", or a mapping.
        normalise: what makes scores of different sites comparable first: l2, max, mean, zscore or rank.
        multiple: kept channels are multiples of this. None: as `secateur.prune` has it.
        protect: modules, parameters or sites that stay whole.
        shares: what single sites keep, as a mapping or as "layer4.*=25%,stem=1"; the others share what is left.
        seed: of random scores.
        picture: an .svg or .html file to draw the network into, with what would go.

    `score` to `normalise` and `seed` are those of `secateur.prune`, and count with a budget only.

    Returns {"model", "kind": "network", "cost": measure -> total, "axes": as for a transformer, "sites": [{"name",
    "kind", "units", "width", "members": tensor[dim] -> indices per unit, "share": measure -> share of the whole}],
    "stays": [{"reason", "axes"}], "segments": [{"name", "params", "stays": why it can't be erased, or "", "goes": why
    it does with the budget, or ""}]} and, with a budget, "budget", "kept": site -> units and "after": measure -> total.
    """
    if picture is not None and Path(picture).suffix not in (".svg", ".html"):
        raise InputError(f"the picture {picture} is neither .svg nor .html: give it one of these endings")
    limit = None if budget is None else Budget.parse(budget)
    keywords.check_seed(seed)
    rate, pools = pruning.make_scorer(score, seed=seed), pruning.scope_of(scope)
    if erasing := limit is not None and SITE in limit:
        _check_alone(limit, score=(score, "magnitude"), scope=(scope, "local"), normalise=(normalise, None),
               multiple=(multiple, None), shares=(shares, ""))  # fmt: skip
    subject, selection, after = _open(model, inputs, protect), Selection({}), dict[str, float]()
    if limit is not None and erasing:
        selection, after = _erase_segments(subject, limit)
    elif limit is not None:
        selection, small, cut = pruning.prune_subject(
            subject, limit, rate, multiple=multiple, shares=pruning.shares_of(shares), scope=pools, normalise=normalise
        )
        after = {**{name: cut.after[name] for name in subject.units().cost()}, "flops": small.flops()}
    units = subject.units(multiple=multiple)
    summary: dict[str, Any] = {
        "model": type(subject.model).__name__,
        "kind": "network",
        "cost": {**({SITE: float(len(subject.graph.removable))} if erasing else {}), **units.cost(),
                 "flops": subject.flops()},
        "axes": axes_of(units),
        "sites": _list_sites(subject, units),
        "stays": _list_reasons(subject),
        "segments": _list_segments(subject, selection),
    }  # fmt: skip
    if limit is not None:
        kept = {name: int(np.asarray(mask).sum()) for name, mask in selection.keep.items()}
        summary |= {"budget": str(limit), "kept": kept, "after": after}
    if picture is not None:
        title = summary["model"] if limit is None else f"{summary['model']} at {limit}"
        svg = (_draw_segments if erasing else _draw_channels)(subject, selection, summary, title)
        atomic_write(picture, pictures.page(svg, title) if Path(picture).suffix == ".html" else svg)
    return summary


def _open(model: NetworkSource, inputs: str | Any, protect: Sequence[str]) -> Traced:
    if isinstance(model, Traced):
        traced = model.copy()  # what turns out to stay is noted there
        traced.protect(protect)
        return traced
    return open_traced(open_network(model, inputs), protect=protect)


def _share(units: Units, name: str) -> dict[str, float]:
    """Of the whole, what goes when every unit of the site goes."""
    without = units.cost({name: np.zeros(units[name].count, bool)})
    return {measure: 1.0 - without.get(measure, 0.0) / total for measure, total in units.cost().items() if total}


def _list_sites(subject: Traced, units: Units) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "kind": units[name].kind,
            "units": len(site.classes),
            "width": site.width,
            "members": {f"{axis.tensor}[{axis.dim}]": count for axis, count in site.axes},
            "share": _share(units, name),
        }
        for name, site in subject.coupling.sites.items()
        if name in units.sites
    ]


def _list_reasons(subject: Traced) -> list[dict[str, object]]:
    axes_by_reason: dict[str, list[str]] = {}
    for axis, reason in subject.reasons.items():
        axes_by_reason.setdefault(reason, []).append(axis)
    return [{"reason": reason, "axes": axes} for reason, axes in axes_by_reason.items()]


def _list_segments(subject: Traced, selection: Selection) -> list[dict[str, object]]:
    """Chains of operators that can be erased whole, why the others can't, and why those go that do."""
    graph = subject.graph
    erasure = subject.erasure(selection) if SITE in selection.keep else None
    removed, dead = (erasure.removed, erasure.dead) if erasure else ((), ())
    return [
        {
            "name": segment.name,
            "params": sum(graph.weights[name] for name in segment.parameters),
            "stays": segment.reason,
            "goes": _why_it_goes(segment.name, removed, dead),
        }
        for segment in graph.segments
    ]


def _why_it_goes(name: str, removed: Collection[str], dead: Collection[str]) -> str:
    if name in removed:
        return "erased"
    return "only erased parts take its results" if name in dead else ""


def _check_alone(budget: Budget, **given: tuple[object, object]) -> None:
    """Refuse options of cuts of channels where segments are to go."""
    others = [name for name, (value, default) in given.items() if value != default]
    if others or len(budget.limits) > 1 or budget.pattern:
        what = f"{others[0]}={given[others[0]][0]!r} is of channels: leave it out" if others else "give them alone"
        raise InputError(f"budget {budget}: segments go by magnitude, as `otov3` says beforehand; {what}")


def _erase_segments(subject: Traced, budget: Budget) -> tuple[Selection, dict[str, float]]:
    """What stays of the segments, as a dry run of `otov3` says, and what is left then."""
    limits.limits_of_cut(budget, subject.units(SITE).cost())
    task = GroupBudget.of(subject, budget)
    gone = task.lowest(magnitude.coupled_norm(task.slices))
    selection = Selection({site: ~row for site, row in gone.items()})
    small, cut = subject.cut(selection)
    channels = small.units().cost()["channels"] if small.coupling.sites else 0.0
    return selection, {**{name: cut.after[name] for name in (SITE, "params", "bytes", "flops")}, "channels": channels}


def _draw_channels(subject: Traced, selection: Selection, summary: Mapping[str, Any], title: str) -> str:
    boxes = []
    for node in outline(subject):
        parts = []
        hint = [node.name, " · ".join(node.details), f"gives {' x '.join(map(str, node.shape))}"]
        for site, members in node.parts(subject):
            mask = selection.keep.get(site)
            kept = len(members) if mask is None else int(np.asarray(mask)[members].sum())
            parts.append((site, len(members), kept))
            why = subject.reasons.get(f"{node.weight}[{node.dim}]", "")
            hint.append(f"{len(members)} go with {site}" if site else f"{len(members)} stay: {why}")
        name = node.name or type(subject.model).__name__
        boxes.append(
            pictures.Box(node.kind, name, " · ".join(node.details), node.shape, tuple(parts), tuple(node.before),
                         "\n".join(filter(None, hint)))
        )  # fmt: skip
    sites = []
    for site in summary["sites"]:
        mask = selection.keep.get(site["name"])
        kept = site["units"] if mask is None else int(np.asarray(mask).sum())
        sites.append((site["name"], site["units"] * site["width"], kept * site["width"]))
    stays = []
    for row in summary["stays"]:
        more = f" and {len(row['axes']) - 4} more" if len(row["axes"]) > 4 else ""
        stays.append((row["reason"], ", ".join(row["axes"][:4]) + more))
    return pictures.network(boxes, title, _cost_lines(summary), sites, stays)


def _draw_segments(subject: Traced, selection: Selection, summary: Mapping[str, Any], title: str) -> str:
    """A colour for each segment that can be erased; what would go, with what flows there, is dashed."""
    graph, erasure = subject.graph, subject.erasure(selection)
    owner = {name: one for one in graph.segments for place in one.vertices for name in graph.vertices[place].parameters}
    nodes = outline(subject)
    gone = _gone_nodes(nodes, graph, erasure.live) if erasure else set()
    boxes = []
    for number, node in enumerate(nodes):
        segment, count = owner.get(node.weight), sum(len(members) for _, members in node.parts(subject))
        name = segment.name if segment and not segment.reason else ""
        hint = [node.name, " · ".join(node.details), f"gives {' x '.join(map(str, node.shape))}"]
        if segment:
            hint.append(f"can be erased with {name}" if name else f"stays: {segment.reason}")
        if number in gone:
            hint.append("would go")
        boxes.append(
            pictures.Box(
                node.kind, node.name or type(subject.model).__name__, " · ".join(node.details), node.shape,
                ((name, count, 0 if number in gone else count),) if count else (), tuple(node.before),
                "\n".join(filter(None, hint)), number in gone,
            )
        )  # fmt: skip
    able = [one for one in summary["segments"] if not one["stays"]]
    sites = [(one["name"], one["params"], 0 if one["goes"] else one["params"]) for one in able]
    stays: dict[str, list[str]] = {}
    for one in summary["segments"]:
        if one["stays"]:
            stays.setdefault(one["stays"], []).append(one["name"])
    reasons = [(reason, ", ".join(names)) for reason, names in stays.items()]
    return pictures.network(
        boxes, title, _cost_lines(summary), sites, reasons, "What can be erased, and its parameters"
    )


def _gone_nodes(nodes: Sequence[Node], graph: segments.Segments, live: Collection[int]) -> set[int]:
    """Numbers of the nodes that go where only `live` vertices stay."""
    every = {name for vertex in graph.vertices for name in vertex.parameters}
    used = {name for place in live for name in graph.vertices[place].parameters}
    inside = {graph.calls[call].path for place in live for call in graph.vertices[place].calls}
    gone: set[int] = set()
    for number, node in enumerate(nodes):
        if node.kind == "module":
            off = node.weight in every and node.weight not in used
        elif node.kind == "plain":
            off = node.name not in inside
        else:
            missing = [one in gone for one in node.before]
            off = node.kind == "join" and (all if node.name in ("+", "-", "concat", "stack") else any)(missing)
        if off:
            gone.add(number)
    for number in reversed(range(len(nodes))):  # a join that only feeds what goes
        takers = [other for other, node in enumerate(nodes) if number in node.before]
        if nodes[number].kind == "join" and takers and gone.issuperset(takers):
            gone.add(number)
    return gone


def _cost_lines(summary: Mapping[str, Any]) -> list[str]:
    from secateur.reports import display

    after = summary.get("after")
    words = []
    for name, cost in summary["cost"].items():
        if name != "bytes":
            more = f" → {display.number(name, after[name])}" if after else ""
            words.append(f"{display.measure(name).label} {display.number(name, cost)}{more}")
    return [" · ".join(words)]
