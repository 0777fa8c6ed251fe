"""What could go in a network, what stays and why, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.errors import InfeasibleError, InputError
from secateur.files import plugins
from secateur.files.rundir import atomic_write
from secateur.measure import pictures
from secateur.running import network
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects import segments
from secateur.subjects.outline import outline
from secateur.subjects.traced import CutError, Traced, open_traced
from secateur.vocabulary import Budget, Cut, Selection, Units

__all__ = ["inspect"]


def inspect(
    model: network.Model,
    *,
    inputs: str | Any = None,
    budget: str | Budget | None = None,
    multiple: int = 1,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """What could go in a network, and with a budget what would.

    Args:
        model: a module, a `Traced`, or "file.py:function" that gives a module or (module, inputs).
        inputs: example inputs, or their shape such as "1x3x224x224"; those of the function if None.
        budget: what may stay, such as "channels=50%"; the units of the smallest weights go.
        multiple: kept channels are multiples of this.
        picture: an .svg or .html file to draw the network into, with what would go.

    Returns {"model", "kind": "network", "cost": measure -> total, "axes": as for a transformer, "sites": [{"name",
    "kind", "units", "width", "members": tensor[dim] -> indices per unit, "share": measure -> share of the whole}],
    "stays": [{"reason", "axes"}]} and, with a budget, "budget", "kept": site -> units and "after": measure -> total.
    """
    if picture is not None and Path(picture).suffix not in (".svg", ".html"):
        raise InputError(f"the picture {picture} is neither .svg nor .html: give it one of these endings")
    limit = None if budget is None else Budget.parse(budget)
    if limit is not None:
        segments.refuse(limit)
    subject, selection, after = _opened(model, inputs), Selection({}), {}
    if limit is not None:
        selection, small, cut = _cut(subject, limit, multiple)
        after = {**{name: cut.after[name] for name in subject.units().cost()}, "flops": small.flops()}
    units = subject.units(multiple=multiple)
    found: dict[str, Any] = {
        "model": type(subject.model).__name__,
        "kind": "network",
        "cost": {**units.cost(), "flops": subject.flops()},
        "axes": _axes(units),
        "sites": _sites(subject, units),
        "stays": _stays(subject),
    }
    if limit is not None:
        kept = {name: int(np.asarray(mask).sum()) for name, mask in selection.keep.items()}
        found |= {"budget": str(limit), "kept": kept, "after": after}
    if picture is not None:
        title = found["model"] if limit is None else f"{found['model']} at {limit}"
        svg = _drawn(subject, selection, found, title)
        atomic_write(picture, pictures.page(svg, title) if Path(picture).suffix == ".html" else svg)
    return found


def _opened(model: network.Model, inputs: str | Any) -> Traced:
    if isinstance(model, Traced):
        return model.copy()  # what turns out to stay is noted there
    module, given = plugins.network(str(model)) if isinstance(model, str | Path) else (model, None)
    given = _random(inputs) if isinstance(inputs, str) else given if inputs is None else inputs
    if given is None:
        what = model if isinstance(model, str | Path) else type(model).__name__
        raise InputError(
            f"{what} comes without example inputs: give their shape, such as --input 1x3x224x224, "
            "or let its function return (model, inputs)"
        )
    return open_traced(module, given)


def _random(shape: str) -> torch.Tensor:
    """Random numbers of a shape such as 1x3x224x224."""
    sizes = shape.lower().split("x")
    if not all(size.isdigit() and int(size) for size in sizes):
        raise InputError(f"input {shape!r} is no shape: say for example 1x3x224x224")
    return torch.rand([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))


def _cut(subject: Traced, budget: Budget, multiple: int) -> tuple[Selection, Traced, Cut]:
    """What is kept within the budget, the result and the receipt. What can't be cut after all, stays in `subject`."""
    while True:
        scores = magnitude.coupled(subject.slices())
        selection = ranking.by_budget(subject.units(multiple=multiple), scores, budget)
        if all(bool(np.asarray(mask).all()) for mask in selection.keep.values()):
            raise InfeasibleError(f"budget {budget} would change nothing: every unit fits in it; ask for less")
        try:
            return selection, *subject.cut(selection)
        except CutError as error:
            subject.without(error.fault, selection)


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
