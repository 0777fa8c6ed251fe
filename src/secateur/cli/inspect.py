"""secateur inspect: list what could be cut from a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.cli.command import Command
from secateur.cli.flags import AS_JSON
from secateur.cli.printing import console, print_lines
from secateur.cli.prune import SCOPES
from secateur.cli.run import SHAPE

__all__ = ["execute"]


def execute(given: dict[str, Any]) -> None:
    """What could go in a model, and what that would save."""
    from secateur.runs import executor

    as_json = given.pop("as_json", False)
    found = executor.inspect(**given)
    if as_json:
        print(json.dumps(found, indent=1))
    elif found["kind"] == "network":
        _print_network(found, given.get("picture"))
    else:
        _print_kinds(found)


def _print_kinds(found: Mapping[str, Any]) -> None:
    """What all units of a kind cost, and the whole model."""
    from secateur.reports import display, evidence

    costs = found["cost"]
    rows = [["Units", "Sites", "Count", *(display.measure(name).label for name in costs)]]
    for row in found["axes"]:
        shares = [f"{row['share'].get(name, 0.0):.1%}" for name in costs]
        rows.append([row["kind"], str(row["sites"]), str(row["units"]), *shares])
    rows.append(["whole model", "", "", *(display.number(name, cost) for name, cost in costs.items())])
    title = f"{found['model']} ({found['kind']}): what all units of a kind cost"
    console().print(evidence.rich_table(rows, title=title))
    print_lines(*_list_lasting(found))


def _list_lasting(found: Mapping[str, list[dict[str, Sequence[str]]]]) -> list[str]:
    """A line on each reason for which units stay."""
    lines = list[str]()
    for row in found.get("stays", ()):
        more = f" and {len(row['axes']) - 4} more" if len(row["axes"]) > 4 else ""
        lines.append(f"stays: {', '.join(row['axes'][:4])}{more}: {row['reason']}")
    return lines


def _print_network(found: Mapping[str, Any], picture: str | None) -> None:
    """Sites with their members and shares, what stays and why, and the costs."""
    from secateur.reports import display, evidence

    kept, after = found.get("kept", {}), found.get("after")
    narrowed = after and "segments" not in after
    rows = [["Site", "Units", "Channels each", *(["Kept"] if narrowed else []), "Params"]]
    for site in found["sites"]:
        stay = [str(kept.get(site["name"], site["units"]))] if narrowed else []
        share = f"{site['share'].get('params', 0.0):.1%}"
        rows.append([site["name"], str(site["units"]), str(site["width"]), *stay, share])
    title = f"{found['model']}: what goes together" + (f", at {found['budget']}" if after else "")
    console().print(evidence.rich_table(rows, title=title))
    lines = [f"{site['name']}: {', '.join(site['members'])}" for site in found["sites"]]
    lines += _list_lasting(found)
    for segment in found["segments"]:
        if segment["goes"] or not segment["stays"]:
            share = f"{segment['params'] / found['cost']['params']:.1%} of the parameters"
            what = f"goes ({segment['goes']})" if segment["goes"] else "may be erased whole"
            lines.append(f"{what}: {segment['name']}, {share}")
    for name, cost in found["cost"].items():
        number = display.number(name, cost) + (f" -> {display.number(name, after[name])}" if after else "")
        lines.append(f"{display.measure(name).label}: {number}")
    if picture is not None:
        lines.append(f"picture: {picture}")
    print_lines(*lines)


COMMAND = Command(
    execute,
    ["secateur.inspect", "secateur.runs.inspection.inspect"],
    arguments=("model",),
    words={"inputs": "--input"},
    help={
        "model": "a model folder or Hub id, or file.py:function for any network, or a cut one's folder.",
        "batch": "sequences at a time, for FLOPs and the KV cache.",
        "length": "tokens per sequence.",
        "inputs": SHAPE,
        "part": "of a model of several, such as one that reads images, too: language_model or vision_tower, say.",
        "score": "of a network, by which the least go: magnitude, l1, taylor, ..., or file.py:function.",
    },
    metavars=SCOPES,
    again=("protect",),
    more=[AS_JSON],
    needed={"MODEL": "model"},
    example="secateur inspect MODEL",
)
