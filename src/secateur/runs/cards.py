"""Model cards: what was cut or taught, what it costs and keeps beside the original, and how to load it."""

from __future__ import annotations

from pathlib import Path

from secateur.reports import evidence
from secateur.vocabulary import Evidence

__all__ = ["write_card"]


def write_card(folder: Path, row: Evidence, load: str, *, tag: str, title: str, origin: str) -> None:
    """Write README.md for the model in `folder`.

    load: the lines of Python that load it. tag: pruned or distilled. origin: a sentence on what it was made of.
    """
    lines = [
        f"---\nlibrary_name: {load.split()[1].replace('_', '-')}\ntags: [secateur, {tag}]\n---",
        f"# {title}",
        f"{origin} Verdict: {evidence.describe_verdict(row)}.",
        "## Evidence",
        evidence.markdown(evidence.table(row)),
        f"Measured at {row.environment.get('measured_at')}.",
    ]
    if row.cut is not None:
        removed = sorted((site, gone, count) for site, (gone, count) in row.cut.removed.items() if gone)
        sites = [("Site", "Removed", "Of"), *((site, str(gone), str(count)) for site, gone, count in removed)]
        lines += ["## What was cut", evidence.markdown(sites), *(f"- {note}" for note in row.cut.notes)]
    lines += ["## How to load it", f"```python\n{load}\n```"]
    if row.cut is not None and "trust_remote_code" in load:
        lines.append(
            "Its layers differ in width, so a modelling file travels along. To load it without running that: "
            "`secateur.load(...)`."
        )
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
