"""Names of measures and formats of numbers, for tables, reports and the command line."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from secateur.vocabulary import Figure

__all__ = [
    "NO_BREAK",
    "Measure",
    "change",
    "fill_template",
    "format_target",
    "interval",
    "measure",
    "number",
    "order",
    "text",
    "thousands",
    "trim_left",
]

NO_BREAK = "\u00a0"

Kind = Literal["count", "bytes", "seconds", "factor", "share", "plain"]


@dataclass(frozen=True, slots=True)
class Measure:
    """How one measure is spoken of."""

    label: str
    kind: Kind = "plain"
    role: Literal["size", "speed", "quality", "other"] = "other"
    better: Literal["less", "more", ""] = ""


_MEASURES = {
    "speedup": Measure("Speedup", "factor", "speed", "more"),
    "latency": Measure("Latency", "seconds", "speed", "less"),
    "tokens_per_second": Measure("Tokens per second", "plain", "speed", "more"),
    "params": Measure("Parameters", "count", "size", "less"),
    "active_params": Measure("Active parameters", "count", "size", "less"),
    "embedding_params": Measure("Embedding parameters", "count", "size", "less"),
    "weights": Measure("Non-zero weights", "count", "size", "less"),
    "zeros": Measure("Zeros", "share", "size", "more"),
    "off_pattern": Measure("Runs off the pattern", "count", "size", "less"),
    "bytes": Measure("Size on disk", "bytes", "size", "less"),
    "packed_bytes": Measure("Size packed", "bytes", "size", "less"),
    "flops": Measure("FLOPs", "count", "speed", "less"),
    "memory": Measure("Memory", "bytes", "size", "less"),
    "served_memory": Measure("Memory as served", "bytes", "size", "less"),
    "state_cache": Measure("State cache", "bytes", "size", "less"),
    "peak_memory": Measure("Memory a pass adds", "bytes", "size", "less"),
    "kv_cache": Measure("KV cache", "bytes", "size", "less"),
    "layers": Measure("Layers", "count", "size", "less"),
    "channels": Measure("Channels", "count", "size", "less"),
    "segments": Measure("Segments", "count", "size", "less"),
    "cache bytes": Measure("Cache on disk", "bytes", "other", "less"),
    "tokens": Measure("Tokens", "count", "size", "less"),
    "words": Measure("Words", "count", "size", "less"),
    "examples": Measure("Examples", "count", "size", "less"),
    "classes": Measure("Classes", "count", "size", "less"),
    "spearman": Measure("Fidelity (Spearman)", "plain", "quality", "more"),
    "cosine": Measure("Mean cosine", "plain", "quality", "more"),
    "perplexity": Measure("Perplexity", "plain", "quality", "less"),
    "loss": Measure("Loss", "plain", "quality", "less"),
    "accuracy": Measure("Accuracy", "plain", "quality", "more"),
    "label_pearson": Measure("Pearson to the labels", "plain", "quality", "more"),
    "label_spearman": Measure("Spearman to the labels", "plain", "quality", "more"),
    "label_loyalty": Measure("Label loyalty", "plain", "quality", "more"),
    "pearson": Measure("Regression loyalty (Pearson)", "plain", "quality", "more"),
    "rank_loyalty": Measure("Regression loyalty (Spearman)", "plain", "quality", "more"),
    "rmse": Measure("RMSE to the original", "plain", "quality", "less"),
    "shared_kl": Measure("KL over shared tokens", "plain", "quality", "less"),
    "shared_label_loyalty": Measure("Label loyalty over shared tokens", "plain", "quality", "more"),
    "shared_probability_loyalty": Measure("Probability loyalty over shared tokens", "plain", "quality", "more"),
    "served_label_loyalty": Measure("Label loyalty to the server", "plain", "quality", "more"),
    "probability_loyalty": Measure("Probability loyalty", "plain", "quality", "more"),
    "mAP": Measure("mAP", "plain", "quality", "more"),
    "AP50": Measure("AP50", "plain", "quality", "more"),
    "AP75": Measure("AP75", "plain", "quality", "more"),
    "mAP_small": Measure("mAP, small", "plain", "quality", "more"),
    "mAP_medium": Measure("mAP, medium", "plain", "quality", "more"),
    "mAP_large": Measure("mAP, large", "plain", "quality", "more"),
    "mIoU": Measure("Mean IoU", "plain", "quality", "more"),
    "pixel_accuracy": Measure("Accuracy of pixels", "plain", "quality", "more"),
    "pixel_agreement": Measure("Agreement of pixels", "plain", "quality", "more"),
    "IoU": Measure("IoU", "plain", "quality", "more"),
    "f1": Measure("Macro F1", "plain", "quality", "more"),
    "acc": Measure("accuracy", "plain", "quality", "more"),
    "acc_norm": Measure("normalised accuracy", "plain", "quality", "more"),
    "exact_match": Measure("exact match", "plain", "quality", "more"),
    "word_perplexity": Measure("word perplexity", "plain", "quality", "less"),
}
_ROLES = ("speed", "size", "quality", "other")


def measure(name: str) -> Measure:
    """What is known of a measure; a task's ("arc/acc") is known by its last part, an unknown one speaks for itself."""
    if name in _MEASURES:
        return _MEASURES[name]
    task, slash, last = name.rpartition("/")
    if slash and last in _MEASURES:
        known = _MEASURES[last]
        return Measure(f"{task}: {known.label}", known.kind, known.role, known.better)
    return Measure(name.replace("_", " "))


def order(names: Iterable[str]) -> list[str]:
    """Names without repeats: speed, size, quality, the rest; known ones in their usual order, others as they came."""
    known = list(_MEASURES)
    unique = list(dict.fromkeys(names))

    def place(name: str) -> tuple[int, int]:
        return _ROLES.index(measure(name).role), known.index(name) if name in known else len(known)

    return sorted(unique, key=place)


_SCALES: dict[Kind, tuple[tuple[float, str], ...]] = {
    "count": ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "factor": ((1.0, "×"),),
    "share": ((0.01, "%"),),
    "plain": ((1.0, ""),),
}


def _pick_scale(value: float, kind: Kind) -> tuple[float, str]:
    scales = _SCALES[kind]
    return next(((scale, unit) for scale, unit in scales if abs(value) >= scale), scales[-1])


def _places(value: float, digits: int = 3) -> int:
    """Decimals that show so many significant digits, at most 6."""
    return min(6, digits - 1 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def _digits(value: float, places: int | None = None) -> str:
    """Three significant digits, more where they stand before the point; never an exponent below a billion."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    if abs(value) >= 1e9:
        return f"{value:.3g}"
    rounded = f"{value:.{_places(value) if places is None else places}f}".replace("-", "−")
    return rounded if abs(value) < 1e4 else thousands(round(value))


def thousands(value: int) -> str:
    """A whole number with thin spaces that never break: 22 713 216."""
    return f"{value:,}".replace(",", "\u202f").replace("-", "−")


def number(name: str, value: float) -> str:
    """A value of a measure as people write it: 22.7 M, 91.2 MB, 12.3 ms, 2.03×."""
    kind = measure(name).kind
    scale, unit = _pick_scale(value, kind)
    if kind == "count" and unit == "" and value == int(value):
        return f"{int(value)}"
    return f"{_digits(value / scale)}{'' if unit in ('', '×') else NO_BREAK}{unit}"


def format_target(name: str, value: float) -> str:
    """A target as it was asked for: 2×, not 2.00×, which would claim a precision nobody gave it."""
    if measure(name).kind == "count" and value == int(value) and value < 1e6:
        return thousands(int(value))
    return re.sub(r"(\.\d*?)0+(?!\d)", r"\1", number(name, value)).replace("." + NO_BREAK, NO_BREAK).replace(".×", "×")


def interval(name: str, figure: Figure) -> str:
    """The interval in the unit of the value: "1.98 to 2.07"; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    scale, _ = _pick_scale(figure.value, measure(name).kind)
    value, low, high = figure.value / scale, figure.low / scale, figure.high / scale
    if not all(map(math.isfinite, (value, low, high))):
        return f"{_digits(low)} to {_digits(high)}"
    # As many decimals as the value has, or as a narrow interval needs to show that it has a width.
    places = max(_places(value), _places(high - low, 1) if high > low else 0)
    return f"{_digits(low, places)} to {_digits(high, places)}"


def text(name: str, figure: Figure | float | None) -> str:
    """Value and interval in one line: "2.03× [1.98 to 2.07]"; a dash for nothing."""
    if figure is None:
        return "–"
    if not isinstance(figure, Figure):
        return number(name, figure)
    spread = interval(name, figure)
    return number(name, figure.value) + (f" [{spread}]" if spread else "")


def change(name: str, before: Figure | float | None, after: Figure | float | None) -> str:
    """What changed: a share for costs ("−51.6 %"), a plain difference for qualities ("−0.021"), empty for nothing."""
    if before is None or after is None:
        return ""
    a, b = (f.value if isinstance(f, Figure) else f for f in (before, after))
    if not (math.isfinite(a) and math.isfinite(b)):
        return ""
    if measure(name).role == "quality":
        return "0" if a == b else ("+" if b > a else "") + _digits(b - a)
    if a == 0:
        return ""
    share = (b - a) / a * 100.0
    return f"{share:+.1f}{NO_BREAK}%".replace("-", "−") if abs(share) >= 0.05 else f"0{NO_BREAK}%"


def trim_left(name: str, most: int) -> str:
    """At most so many characters of a path or a dotted name: its end, which tells it from its neighbours."""
    return name if len(name) <= most else "…" + name[len(name) - most + 1 :].lstrip(".")


def fill_template(template: str, **values: object) -> str:
    """The HTML that a template beside this file makes of `values`; all of them are escaped but what is marked safe."""
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> Environment:
    """The templates beside this file, each compiled once."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
