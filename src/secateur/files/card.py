"""The model card that travels with a result: what was cut, what it costs and keeps, how to load it."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.vocabulary import Evidence, Figure

__all__ = ["human", "model_card"]


def model_card(row: Evidence, *, base: str, heterogeneous: bool, kind: str) -> str:
    """The card as Markdown with a metadata head.

    base: name of the original. heterogeneous: layers differ, so that reloading runs the modelling file beside the
    weights. kind: "decoder", "encoder", or "sentence" for a sentence-transformers folder.
    """
    library = "sentence-transformers" if kind == "sentence" else "transformers"
    removed = sorted(
        (site, gone, count) for site, (gone, count) in (row.cut.removed if row.cut else {}).items() if gone
    )
    lines = [
        "---",
        f"library_name: {library}",
        "tags:",
        "- pruned",
        "- distilled" if row.recovery else "- one-shot",
        "- secateur",
        "---",
        "",
        f"# {base}, cut to {row.target}",
        "",
        f"Made from **{base}** by [secateur](https://pypi.org/project/secateur/) with the recipe `{row.recipe}`.",
        f"Verdict: **{row.verdict}**.",
        "",
        "## Evidence",
        "",
        "| | before | after | |",
        "|---|---|---|---|",
        *(f"| {name} | {human(name, a)} | {human(name, b)} | {_change(a, b)} |" for name, a, b in _pairs(row)),
        *(f"| {name} | | {human(name, value)} | |" for name, value in row.measured.items()),
        "",
        f"Measured at {row.environment.get('measured_at', 'an unstated environment')}.",
        "",
        "## What was cut",
        "",
        "| site | removed | of |",
        "|---|---|---|",
        *(f"| {site} | {gone} | {count} |" for site, gone, count in removed),
        "",
        *(f"- {note}" for note in (row.cut.notes if row.cut else ())),
        "",
    ]
    if row.recovery:
        lines += [f"Recovered by {row.recovery.steps} steps of training against the original.", ""]
    return "\n".join([*lines, "## How to load it", "", "```python", *_loading(kind, heterogeneous), "```", ""])


def _loading(kind: str, heterogeneous: bool) -> list[str]:
    flag = ", trust_remote_code=True" if heterogeneous else ""
    if kind == "sentence":
        return [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("PATH"{flag})',
        ]
    name = "AutoModelForCausalLM" if kind == "decoder" else "AutoModel"
    lines = [f"from transformers import {name}", "", f'model = {name}.from_pretrained("PATH"{flag})']
    if heterogeneous:
        lines += [
            "",
            "# or, without running code from the folder:",
            "import secateur",
            "",
            'model = secateur.load("PATH")',
        ]
    return lines


def _pairs(row: Evidence) -> list[tuple[str, Figure, Figure]]:
    return [(name, row.before[name], row.after[name]) for name in row.before if name in row.after]


def _change(before: Figure, after: Figure) -> str:
    return f"{after.value / before.value:.1%}" if before.value else ""


_UNITS: Mapping[str, str] = {"bytes": "B", "memory": "B", "kv_cache": "B", "peak_memory": "B", "latency": "s"}


def human(name: str, figure: Figure | float) -> str:
    """A figure of measure `name` for a person: 12.3 ms, 45.6 MB, 22.7M."""
    value = figure.value if isinstance(figure, Figure) else float(figure)
    unit = _UNITS.get(name, figure.unit if isinstance(figure, Figure) else "")
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if name == "speedup":
        return f"{value:.3g}x"
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale and (unit == "B" or name in ("params", "embedding_params", "flops")):
            return f"{value / scale:.3g}{' ' if unit else ''}{letter}{unit}"
    return f"{value:.4g}{f' {unit}' if unit else ''}"
