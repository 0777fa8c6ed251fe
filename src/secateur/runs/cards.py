"""Model cards: what was cut or taught, what it costs and keeps beside the original, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur._utils import hub
from secateur._utils.disk import read_object
from secateur.data.texts import SUFFIXES
from secateur.reports import display, evidence
from secateur.vocabulary import Evidence

__all__ = ["write_card", "write_export_card", "write_size_card", "write_whole_card"]

_STATES = "feature-extraction"
_TASKS = {
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForDocumentQuestionAnswering": "document-question-answering",
    "AutoModelForVisualQuestionAnswering": "visual-question-answering",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForTableQuestionAnswering": "table-question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForInstanceSegmentation": "image-segmentation",
    "AutoModelForUniversalSegmentation": "image-segmentation",
    "AutoModelForImageSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForZeroShotObjectDetection": "zero-shot-object-detection",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
    "AutoModelForDepthEstimation": "depth-estimation",
    "AutoModelForImageToImage": "image-to-image",
    "AutoModelForKeypointDetection": "keypoint-detection",
    "AutoModelForMaskGeneration": "mask-generation",
    "AutoModelForVideoClassification": "video-classification",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForTextToWaveform": "text-to-audio",
    "AutoModelForTextToSpectrogram": "text-to-audio",
    "AutoModelForMultimodalLM": "any-to-any",
    "AutoModel": _STATES,
}
"""transformers' automatic class -> the Hub's name of the task; of a class that several make, the first holds."""
_HUB = "hub:"
"""What names of data sets of the Hub begin with, unless they are owner/name."""
_COPIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What a card says of a model that holds for what was made of it."""


def write_card(
    folder: Path, row: Evidence, load: str, *, name: str, tag: str, title: str, origin: str, base: Path | None = None
) -> None:
    """Write README.md for the model in `folder`.

    load: the lines of Python that load it. name: by which readers know it, for `folder` may be one that is renamed when
    all is written. tag: pruned or distilled. origin: a sentence on what it was made of. base:
    the folder of what it was made of, whose card tells licence, language and task.
    """
    known: dict[str, object] = {"library_name": _library(load), "tags": ["secateur", tag]}
    source, part = str(row.settings.get("model", row.settings.get("student", ""))), row.settings.get("part")
    told: dict[str, object] = {"pipeline_tag": _find_task(folder) or (_find_task(base) if base else None)}
    told |= dict(hub.read_card(base)) if base else {}
    if part is not None:
        origin += f" Of the model its part `{part}` was cut, by itself: the figures are of that. The rest is as it was."
    lines = [
        _front(folder, known, told, source, row, name),
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


def write_whole_card(folder: Path, model: str, recipe: str, load: str, *, name: str, base: Path | None = None) -> None:
    """Write README.md for what a recipe has published beside its results: one model that holds all of its sizes.

    model: what it was made of, and `base` its folder, whose card tells licence, language and task. load: the lines of
    Python that load it. name: by which readers know it.
    """
    known: dict[str, object] = {"library_name": _library(load), "tags": ["secateur", "elastic"]}
    told = hub.read_card(base) if base else {}
    lines = [
        _front(folder, known, told, _name_base(model, told), None),
        f"# {Path(model).name} in several sizes",
        f"Made from {Path(model).name} by secateur's recipe `{recipe}`: the whole model, which holds the smaller ones. "
        f"`secateur extract {name} --budget ...` cuts one out, without training.",
        "## How to load it",
        f"```python\n{load}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def write_export_card(folder: Path, name: str, source: Path, to: str, notes: Sequence[str], load: str) -> None:
    """Write README.md for the other form `to` of the model `name`, which stands in `source`, in `folder`.

    notes: what was said of the export. load: the lines of Python that load it. Figures that the card in `source` states
    are repeated where the form holds the same weights, and not where they were rounded.
    """
    rounded, told = "int" in to, hub.read_card(source)
    known: dict[str, object] = {"library_name": _library(load), "tags": ["secateur", to]}
    known |= {key: told[key] for key in ("datasets", "metrics", "model-index") if key in told and not rounded}
    if rounded:
        known["base_model_relation"] = "quantized"
    own = Path(name).name
    origin = f"{own} in another form, written and checked by `secateur export --to {to}`."
    _write_derived(folder, name, source, known, f"{own} as {to}", origin, notes, load)


def write_size_card(folder: Path, name: str, source: Path, budget: str, notes: Sequence[str], load: str) -> None:
    """Write README.md for the size that `budget` asks for of the elastic model `name` in `source`, in `folder`.

    notes: what was said of it. load: the lines of Python that load it.
    """
    known: dict[str, object] = {"library_name": _library(load), "tags": ["secateur", "pruned"]}
    own = Path(name).name
    origin = f"Cut out of the elastic model {own} by `secateur extract --budget {budget}`, without training."
    _write_derived(folder, name, source, known, f"{own} at {budget}", origin, notes, load)


def _write_derived(
    folder: Path,
    name: str,
    source: Path,
    known: Mapping[str, object],
    title: str,
    origin: str,
    notes: Sequence[str],
    load: str,
) -> None:
    """The card of what was made of the model `name` in `source` without a run of its own."""
    told = hub.read_card(source)
    lines = [
        _front(source, known, told, _name_base(name, told), None),
        f"# {title}",
        origin,
        *(f"- {note}" for note in notes),
        "## How to load it",
        f"```python\n{load}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _name_base(name: str, told: Mapping[str, object]) -> str:
    """What a card names as the base of what was made of the model `name`, whose own card is `told`.

    Itself where it is on the Hub; of a result of ours that is a folder here, what that was made of. The card of
    somebody else's model names the model before it.
    """
    base, tags = told.get("base_model"), told.get("tags")
    ours = isinstance(tags, list) and "secateur" in tags
    return base if ours and isinstance(base, str) and not hub.is_id(name) else name


def _front(
    folder: Path,
    known: Mapping[str, object],
    told: Mapping[str, object],
    source: str,
    row: Evidence | None,
    name: str = "",
) -> str:
    """The metadata at the head of a card; see huggingface.co/docs/hub/model-cards.

    folder: where the model stands. known: what the caller says. told: the card of what it was made of. source: what
    that is called; a Hub id is named as the base. name: of the model, for the figures of `row`.
    The Hub knows no relation of pruned models: they are finetunes of it.
    """
    from huggingface_hub import ModelCardData

    about: dict[str, object] = {name: told[name] for name in _COPIED if _is_plain(told.get(name))}
    about.setdefault("pipeline_tag", _find_task(folder))
    judged = "text-generation" if row is not None and "part" in row.settings else str(about["pipeline_tag"] or "other")
    base = next((name for name in (source, _cut_from(folder)) if hub.is_id(name)), None)
    if base is not None:
        about |= {"base_model": base, "base_model_relation": "finetune"}
    if row is not None:
        about |= _figures(row, judged, name)
    values: dict[str, Any] = {**about, **known}
    card = ModelCardData(ignore_metadata_errors=True, **values)
    return f"---\n{card.to_yaml()}\n---"


def _figures(row: Evidence, task: str, name: str) -> dict[str, object]:
    """What a card says of data and of quality measured on the result `name`, as keys of its metadata."""
    from huggingface_hub import EvalResult

    data = str(row.settings.get("data", ""))
    judged = str(row.settings.get("held_out", data))
    learnt, held = _read_hub(data), _read_hub(judged)
    figures = {**row.measured, **row.after}
    names = [name for name in display.order(figures) if display.measure(name).role == "quality"]
    names = [name for name in names if math.isfinite(figures[name].value)]
    where, configuration, split = held or ("local", "", "")
    results = [
        EvalResult(
            task_type=task,
            dataset_type=where,
            dataset_name=Path(where if held else judged).name,
            dataset_config=configuration or None,
            dataset_split=split or None,
            metric_type=name,
            metric_name=display.measure(name).label,
            metric_value=figures[name].value,
        )
        for name in names
    ]
    datasets = [learnt[0]] if learnt else None
    told = {"metrics": names, "model_name": name, "eval_results": results} if results else {}
    return {"datasets": datasets, **told}


def _read_hub(data: str) -> tuple[str, str, str] | None:
    """(id, configuration, split) of a data set of the Hub, by what it is called to `--data`; None of any other data."""
    name, configuration, split = (*data.removeprefix(_HUB).split(":", 2), "", "")[:3]
    if not data.startswith(_HUB) and not (hub.is_id(name) and Path(name).suffix not in SUFFIXES):
        return None
    return name, configuration, split.partition("[")[0]


def _library(load: str) -> str:
    """The library of the first import in lines of Python, as the Hub writes it."""
    return load.split()[1].partition(".")[0].replace("_", "-")


def _is_plain(value: object) -> bool:
    """Whether a value of a card's is a text, or several."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _cut_from(folder: Path) -> str:
    """What the model in `folder` was cut from, by its map; "" where it has none."""
    base = read_object(folder / "cut_map.json").get("base")
    return str(base.get("name", "")) if isinstance(base, dict) else ""


def _find_task(folder: Path) -> str | None:
    """The Hub's name of what the model in `folder` is for, by its class; None where that does not tell."""
    if (folder / "modules.json").is_file():
        return "sentence-similarity"
    named = read_object(folder / "config.json").get("architectures")
    if not (isinstance(named, list) and named):
        return None
    from secateur.subjects.transformer import saving  # which loads transformers

    kind = saving.original_class(str(named[0]))
    if kind is None:
        return None
    made = (task for automatic, task in _TASKS.items() if kind.__name__ in saving.list_made(automatic))
    task = next(made, None)
    return f"image-{task}" if task == _STATES and kind.main_input_name == "pixel_values" else task
