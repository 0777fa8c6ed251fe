"""The diagnosis of a reasoning model and of its compressed versions, kept version by version; `study reasoning`.

folder/diagnosis-NAME.json     importance of each linear for each behaviour, in one version
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from secateur._utils.disk import atomic_write
from secateur.clients import chat
from secateur.clients.completions import Local
from secateur.errors import MeasurementError
from secateur.measure import statistics
from secateur.methods import behaviours, diagnosis
from secateur.methods import tasks as asking
from secateur.methods.diagnosis import Importance
from secateur.methods.tasks import Task
from secateur.methods.traces import is_rendered, render_prompt
from secateur.reports.sheet import Heat, Table
from secateur.runs.backends.language import Language
from secateur.runs.compression import Config, compress
from secateur.runs.scoring import Held, Model
from secateur.score.steering import Marked
from secateur.subjects import Transformer
from secateur.vocabulary import Figure

__all__ = ["Diagnosis", "Manner", "diagnose"]

OUTPUTS = 30
"""Answers of each task that are looked at. Source: arXiv 2504.02010, 120 of four tasks."""
SHOWN = 10
"""Modules of a table."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How to diagnose; see `studies.reasoning`."""

    rules: str = ""
    annotator: str = ""
    annotator_name: str = ""
    spans: int = 60
    share: float = 0.02
    verify: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """Importance in the original and in each version; damage: of modules that were rounded alone."""

    blocks: Sequence[str]
    sizes: Mapping[str, int]
    norms: Mapping[str, float]
    original: Importance
    versions: Mapping[str, Importance]
    chosen: Sequence[str]
    damage: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def ranked(self) -> dict[str, float]:
        """Module -> its share of importance, over behaviours, the most important one first."""
        return diagnosis.rank(self.original)

    def protect_json(self) -> str:
        """What `--protect` and `--dynamic` take."""
        return diagnosis.describe_protection(self.chosen, self.ranked)

    def figures(self) -> dict[str, object]:
        """As JSON has it: shares by behaviour, shifts of each version, agreement with measured damage."""
        return {
            "spans": dict(self.original.spans),
            "importance": self.original.shares,
            "ranked": self.ranked,
            "protect": list(self.chosen),
            "damage": dict(self.damage),
            "shift": {name: diagnosis.shift(one, self.original) for name, one in self.versions.items()},
            "agreement": {name: None if one is None else asdict(one) for name, one in self.agreement().items()},
        }

    def agreement(self) -> dict[str, Figure | None]:
        """Spearman's correlation with the measured damage, of the importance and of what could stand in its place."""
        if not self.damage:
            return {}
        modules = list(self.damage)
        rivals = {
            "importance": self.ranked,
            "gradient alone": _mean(self.original.gradient),
            "random direction": _mean(self.original.random),
            "norm of the weights": self.norms,
        }
        return {
            name: _correlate([own[one] for one in modules], [self.damage[one] for one in modules])
            for name, own in rivals.items()
        }

    def tables(self) -> list[Table]:
        """The most important modules; what shifts in each version, up and down; whether it is true."""
        whole, found = sum(self.sizes.values()), list[Table]()
        names = list(self.original.shares)
        rows = [["Module", "share of importance", *names, "weights"]]
        for module, share in list(self.ranked.items())[:SHOWN]:
            own = [f"{100 * self.original.shares[name][module]:.1f} %" for name in names]
            mark = " (protected)" if module in self.chosen else ""
            rows.append([module + mark, f"{100 * share:.1f} %", *own, f"{100 * self.sizes[module] / whole:.1f} %"])
        spans = ", ".join(f"{count} of {name}" for name, count in self.original.spans.items())
        found.append(
            Table("Which linears matter", rows, f"By gradients along the directions of behaviours, spans: {spans}.")
        )
        if self.versions:
            rows = [["Model", "loses most", "", "gains most", ""]]
            for name, one in self.versions.items():
                moved = _mean(diagnosis.shift(one, self.original))
                low, high = min(moved, key=lambda key: moved[key]), max(moved, key=lambda key: moved[key])
                rows.append([name, low, f"{100 * moved[low]:+.2f}", high, f"{100 * moved[high]:+.2f}"])
            found.append(Table("Shift of importance", rows, "Points of the share of importance, over behaviours."))
        if self.damage:
            rows = [["By", "correlation with the measured damage"]]
            for name, figure in self.agreement().items():
                rows.append([name, _tell(figure)])
            words = f"Spearman's, over {len(self.damage)} linears each of which was rounded to 3 bits alone."
            found.append(Table("Is it true?", rows, words))
        return found

    def drawings(self) -> list[Heat]:
        """Importance by kind of module and block, and its shift in the version that shifts most."""
        leaves = {module: self._place(module) for module in self.sizes}
        rows = list(dict.fromkeys(leaf for leaf, _ in leaves.values()))
        panels = {"share of importance": self._field(self.ranked, leaves, rows)}
        moved = {name: _mean(diagnosis.shift(one, self.original)) for name, one in self.versions.items()}
        if moved:
            most = max(moved, key=lambda name: sum(map(abs, moved[name].values())))
            panels[f"shift in {most}"] = self._field(moved[most], leaves, rows)
        columns = [str(at) for at in range(len(self.blocks))]
        return [Heat("Importance by module and block", panels, rows, columns, "block", "Grey falls.")]

    def _place(self, module: str) -> tuple[str, int]:
        at = next(at for at, path in enumerate(self.blocks) if module.startswith(f"{path}."))
        return module.removeprefix(f"{self.blocks[at]}."), at

    def _field(
        self, values: Mapping[str, float], leaves: Mapping[str, tuple[str, int]], rows: Sequence[str]
    ) -> list[list[float]]:
        found = [[math.nan] * len(self.blocks) for _ in rows]
        for module, (leaf, at) in leaves.items():
            found[rows.index(leaf)][at] = values.get(module, math.nan)
        return found


def _mean(by_behaviour: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Module -> mean over behaviours."""
    first = next(iter(by_behaviour.values()))
    return {module: sum(own[module] for own in by_behaviour.values()) / len(by_behaviour) for module in first}


def _correlate(ours: Sequence[float], theirs: Sequence[float]) -> Figure | None:
    try:
        return statistics.spearman(ours, theirs)
    except MeasurementError:
        return None


def _tell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    ends = "" if figure.low is None else f" [{figure.low:.2f} to {figure.high:.2f}]"
    return f"{figure.value:.2f}{ends}".replace("-", "−")


def diagnose(
    subject: Transformer,
    tasks: Sequence[Task],
    dense: Model,
    versions: Sequence[tuple[Config, Model]],
    held: Held,
    folder: Path,
    manner: Manner,
) -> Diagnosis:
    """Importance of the original's linears for what it does in its own answers, and of each version's in the same ones.

    The same answers are read by all, so that what shifts is the weights' doing (the article has each model's own). What
    is found of a version is kept in `folder`.
    """
    texts = _mark(subject, tasks, dense, manner)
    sizes = diagnosis.find_modules(subject)
    key = hashlib.sha256(repr([(text.tokens.tolist(), text.spans) for text in texts]).encode()).hexdigest()[:12]
    original = _keep(
        folder / f"diagnosis-original-{key}.json", partial(diagnosis.importance, subject, texts, list(sizes))
    )
    found, notes = dict[str, Importance](), list[str]()
    for config, model in versions:
        file = folder / f"diagnosis-{config.digest}-{key}.json"
        if not file.exists():
            work = folder / config.digest / "work"
            student = compress(subject, config, held.calibration(config), work, length=held.length)
            student = Language().open(student, str(subject.model.device))
            paths = {path for path, _ in student.model.named_modules()}
            if missing := [one for one in sizes if one not in paths]:
                notes.append(f"{model.name} has no {missing[0]}: its importance is not compared")
                continue
            _keep(file, partial(diagnosis.importance, student, texts, list(sizes)))
        found[model.name] = _read(file)
    ranked = diagnosis.rank(original)
    tried = _pick(list(ranked), manner.verify)
    measured = (
        _keep_plain(
            folder / f"diagnosis-rounded-{key}-{len(tried)}.json",
            partial(diagnosis.damage_of_rounding, subject, texts, tried),
        )
        if tried
        else {}
    )
    norms = {module: float(subject.model.get_submodule(module).weight.detach().float().norm()) for module in sizes}
    chosen = diagnosis.choose_protected(ranked, sizes, manner.share)
    return Diagnosis(subject.layers(), sizes, norms, original, found, chosen, measured, tuple(notes))


def _mark(subject: Transformer, tasks: Sequence[Task], dense: Model, manner: Manner) -> list[Marked]:
    """The original's answers with the spans of their behaviours."""
    rules = behaviours.read_rules(manner.rules)
    tag: behaviours.Tagger = partial(behaviours.tag_by_rules, rules=rules)
    if manner.annotator:
        model = chat.open_model(manner.annotator, manner.annotator_name)
        names = [behaviours.INITIALIZING, behaviours.DEDUCTION, *rules]
        tag = partial(behaviours.tag_by_model, model=model, behaviours=names)
    completer, found = Local(subject.model, subject.tokenizer), list[diagnosis.Answer]()
    for task in tasks:
        prompts = {item.id: asking.build_prompt(task, item, completer) for item in task.items}
        lines = [line for line in dense.lines[task.name] if line.turn == 0 and line.text.strip()]
        step = max(1, len(lines) // OUTPUTS)  # of all levels
        plain = not is_rendered(task, subject.tokenizer)
        for line in lines[::step][:OUTPUTS]:
            prompt = render_prompt(task, prompts[line.item], subject.tokenizer)
            found.append(diagnosis.Answer(prompt, line.text, plain))
    most = 0 if math.isinf(completer.window) else int(completer.window)
    return diagnosis.mark_answers(subject, found, tag, spans=manner.spans, most=most)


def _pick(ranked: Sequence[str], count: int) -> list[str]:
    """`count` modules from all ranks."""
    count = min(count, len(ranked))
    return [ranked[at * len(ranked) // count] for at in range(count)] if count else []


def _keep(file: Path, find: Callable[[], Importance]) -> Importance:
    if not file.exists():
        atomic_write(file, json.dumps(asdict(find())))
    return _read(file)


def _read(file: Path) -> Importance:
    return Importance(**json.loads(file.read_text("utf-8")))


def _keep_plain(file: Path, find: Callable[[], dict[str, float]]) -> dict[str, float]:
    if not file.exists():
        atomic_write(file, json.dumps(find()))
    told: dict[str, float] = json.loads(file.read_text("utf-8"))
    return told
