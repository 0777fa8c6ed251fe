"""What could go in a network, what stays and why, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur import pruning
from secateur.disk import atomic_write
from secateur.errors import InputError
from secateur.measure import pictures
from secateur.running import keywords, network
from secateur.select.ranking import Normalise
from secateur.subjects import segments
from secateur.subjects.outline import outline
from secateur.subjects.traced import Traced, open_traced
from secateur.vocabulary import Budget, Selection, Units

__all__ = ["inspect"]


def inspect(
    model: network.Model,
    *,
    inputs: str | Any = None,
    budget: str | Budget | None = None,
    score: str = "magnitude",
    scope: str | Mapping[str, str] = "local",
    normalise: Normalise | None = None,
    multiple: int = 1,
    protect: Sequence[str] = (),
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """What could go in a network, and with a budget what would.

    Args:
        model: a module, a `Traced`, or "file.py:function" that gives a module or (module, inputs).
        inputs: example inputs, or their shape such as "1x3x224x224"; those of the function if None.
        budget: what may stay, such as "channels=50%".
        score: by which the least go; one that looks at no data, or "file.py:function".
        scope: which sites share one ranking: local, kind, global, isomorphic, or "SITE=POOL,SITE=POOL", or a mapping.
        normalise: what makes scores of different sites comparable first: l2, max, mean, zscore or rank.
        multiple: kept channels are multiples of this.
        protect: modules, parameters or sites that stay whole.
        seed: of random scores.
        picture: an .svg or .html file to draw the network into, with what would go.

    `score` to `normalise` and `seed` are those of `secateur.prune`, and count with a budget only.

    Returns {"model", "kind": "network", "cost": measure -> total, "axes": as for a transformer, "sites": [{"name",
    "kind", "units", "width", "members": tensor[dim] -> indices per unit, "share": measure -> share of the whole}],
    "stays": [{"reason", "axes"}], "segments": [{"name", "params", "stays": why it can't be erased, or ""}]} and, with a
    budget, "budget", "kept": site -> units and "after": measure -> total.
    """
    if picture is not None and Path(picture).suffix not in (".svg", ".html"):
        raise InputError(f"the picture {picture} is neither .svg nor .html: give it one of these endings")
    limit = None if budget is None else Budget.parse(budget)
    if limit is not None:
        segments.refuse(limit)
    keywords.check_seed(seed)
    rate, pools = pruning.scorer(score, seed=seed), pruning.scope_of(scope)
    subject, selection, after = _opened(model, inputs, protect), Selection({}), {}
    if limit is not None:
        selection, small, cut = pruning.thinned(
            subject, limit, rate, multiple=multiple, scope=pools, normalise=normalise
        )
        after = {**{name: cut.after[name] for name in subject.units().cost()}, "flops": small.flops()}
    units = subject.units(multiple=multiple)
    found: dict[str, Any] = {
        "model": type(subject.model).__name__,
        "kind": "network",
        "cost": {**units.cost(), "flops": subject.flops()},
        "axes": _axes(units),
        "sites": _sites(subject, units),
        "stays": _stays(subject),
        "segments": _segments(subject),
    }
    if limit is not None:
        kept = {name: int(np.asarray(mask).sum()) for name, mask in selection.keep.items()}
        found |= {"budget": str(limit), "kept": kept, "after": after}
    if picture is not None:
        title = found["model"] if limit is None else f"{found['model']} at {limit}"
        svg = _drawn(subject, selection, found, title)
        atomic_write(picture, pictures.page(svg, title) if Path(picture).suffix == ".html" else svg)
    return found


def _opened(model: network.Model, inputs: str | Any, protect: Sequence[str]) -> Traced:
    if isinstance(model, Traced):
        found = model.copy()  # what turns out to stay is noted there
        found.protect(protect)
        return found
    module, given = network.built(model, inputs)
    return open_traced(module, given, protect=protect)


def _axes(units: Units) -> list[dict[str, Any]]:
    rows = []
    for kind in dict.fromkeys(site.kind for site in units.sites.values()):
        sites = [site for site in units.sites.values() if site.kind == kind]
        share = _share(units, [site.name for site in sites])
        rows.append({"kind": kind, "sites": len(sites), "units": sum(site.count for site in sites), "share": share})
    return rows


def _share(units: Units, names: list[str]) -> dict[str, float]:
    """Of the whole, what goes when every unit of these sites goes."""
    without = units.cost({name: np.zeros(units[name].count, bool) for name in names})
    return {measure: 1.0 - without.get(measure, 0.0) / total for measure, total in units.cost().items() if total}


def _sites(subject: Traced, units: Units) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "kind": units[name].kind,
            "units": len(site.classes),
            "width": site.width,
            "members": {f"{axis.tensor}[{axis.dim}]": count for axis, count in site.axes},
            "share": _share(units, [name]),
        }
        for name, site in subject.coupling.sites.items()
        if name in units.sites
    ]


def _stays(subject: Traced) -> list[dict[str, Any]]:
    found: dict[str, list[str]] = {}
    for axis, reason in subject.reasons.items():
        found.setdefault(reason, []).append(axis)
    return [{"reason": reason, "axes": axes} for reason, axes in found.items()]


def _segments(subject: Traced) -> list[dict[str, Any]]:
    """Chains of operators that can be erased whole, and why the others can't."""
    graph = subject.graph
    return [
        {"name": one.name, "params": sum(graph.weights[name] for name in one.parameters), "stays": one.reason}
        for one in graph.segments
    ]


def _drawn(subject: Traced, selection: Selection, found: Mapping[str, Any], title: str) -> str:
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
    for site in found["sites"]:
        mask = selection.keep.get(site["name"])
        kept = site["units"] if mask is None else int(np.asarray(mask).sum())
        sites.append((site["name"], site["units"] * site["width"], kept * site["width"]))
    stays = []
    for row in found["stays"]:
        more = f" and {len(row['axes']) - 4} more" if len(row["axes"]) > 4 else ""
        stays.append((row["reason"], ", ".join(row["axes"][:4]) + more))
    return pictures.network(boxes, title, _lines(found), sites, stays)


def _lines(found: Mapping[str, Any]) -> list[str]:
    from secateur.measure import display

    after = found.get("after")
    words = []
    for name, cost in found["cost"].items():
        if name != "bytes":
            more = f" → {display.number(name, after[name])}" if after else ""
            words.append(f"{display.measure(name).label} {display.number(name, cost)}{more}")
    return [" · ".join(words)]
