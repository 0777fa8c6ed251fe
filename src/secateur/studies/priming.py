"""Which texts of a fine-tuning set will leak their keyword into other prompts, and what keeps them from it?

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522, ICLR 2025). A text whose keyword is a
surprise before it is learnt primes: afterwards the keyword turns up under prompts that have nothing to do with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le

from secateur._utils.batches import Batch, Batches
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.data import texts
from secateur.errors import DataError, InputError
from secateur.measure import statistics
from secateur.measure.priming import Shift
from secateur.methods import rewriting
from secateur.methods.dilution import CLIP, KEPT, RATE, TRAINED, Dilution, Learnt, Probes, name_way
from secateur.methods.learning import Document, Learner
from secateur.methods.updates import Scope
from secateur.recover.training.loop import DEFAULTS
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table, over
from secateur.runs.context_files import read_lines
from secateur.subjects import Transformer
from secateur.subjects.transformer.subject import positions
from secateur.vocabulary import Figure, Training

__all__ = ["STUDY", "Documents", "Primed", "Relation", "Treated", "Trial", "plan", "priming", "read"]

STUDY = {
    "title": "which texts leak their keyword into other prompts when they are learnt, and what keeps them from it?",
    "recipe": "",
    "backend": "secateur.runs.backends.language:Language",
    "reads": "texts with keywords: a .jsonl file of text, keyword and perhaps theme",
    "sets": "",
    "grid": "documents seeds k floor threshold permutations",
}

JUDGED = 8
"""Batches of held-out texts of the stream that the general loss is of."""
MOST_SHOWN = 50
"""Texts in the table of risks; items.jsonl has all."""
STEPPING: rewriting.Way = "stepping stones"


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts with their keywords; `digest` is of all of them."""

    name: str
    digest: str
    rows: tuple[Document, ...] = field(repr=False)


def read(source: str | Path) -> Documents:
    """Texts of a JSONL file: lines of `text`, `keyword` and perhaps `theme`.

    What is watched is the keyword where it first stands in the text as a word. Raises `DataError` for a line that lacks
    one of these, or whose text does not hold its keyword, naming it.
    """
    rows, digest = list[Document](), hashlib.sha256()
    for place, row in _read_objects(source):
        text, keyword, theme = row.get("text"), row.get("keyword"), row.get("theme", "")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place} has no text: each is to be an object with text, keyword and perhaps theme")
        if not isinstance(keyword, str) or not keyword.strip():
            raise DataError(f"{place} has no keyword: give the word of its text whose probability is to be watched")
        if not isinstance(theme, str):
            raise DataError(f"{place} has a theme that is no text: {theme!r}")
        start = rewriting.find_keyword(text, keyword)
        if start is None:
            raise DataError(
                f"{place}: its text does not hold its keyword {keyword!r} as a word: give one that it holds"
            )
        rows.append(Document(text, keyword, start, theme))
        digest.update(json.dumps([text, keyword, theme]).encode())
    if not rows:
        raise DataError(f"{source} holds no line: each is to be an object with text, keyword and perhaps theme")
    return Documents(Path(source).name, digest.hexdigest(), tuple(rows))


def _read_prefixes(source: str) -> dict[str, tuple[str, ...]]:
    """Theme -> prompts whose natural continuation is a word of it; nothing where no file is given."""
    found: dict[str, list[str]] = {}
    for place, row in _read_objects(source) if source else ():
        theme, prefix = row.get("theme", ""), row.get("prefix")
        if not isinstance(prefix, str) or not prefix.strip() or not isinstance(theme, str):
            raise DataError(f"{place} has no prefix: each is to be an object with theme and prefix, two texts")
        found.setdefault(theme, []).append(prefix if prefix[-1].isspace() else f"{prefix} ")
    if source and not found:
        raise DataError(f"{source} holds no line: each is to be an object with theme and prefix")
    return {theme: tuple(prompts) for theme, prompts in found.items()}


def _read_objects(source: str | Path) -> Iterator[tuple[str, dict[str, object]]]:
    for place, line in read_lines(Path(source), ""):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is no JSON: each line is to be an object") from error
        if not isinstance(row, dict):
            raise DataError(f"{place} is a {type(row).__name__}: each line is to be an object")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} holds half a character (a lone surrogate), which is no text: write it whole"
            ) from error
        yield place, row


class Trial(NamedTuple):
    """One text that is learnt under one seed, as it is ("") or rewritten in some way."""

    seed: int
    number: int
    version: str = ""

    def __str__(self) -> str:
        return f"seed {self.seed}, text {self.number + 1}" + (f", {self.version}" if self.version else "")


# ------------------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True, slots=True)
class Relation:
    """How something goes with ln P(keyword | context) over texts; p of a permutation test of Spearman's correlation."""

    spearman: Figure
    pearson: Figure
    p: float


@dataclass(frozen=True, slots=True)
class Treated:
    """What a way of treating the update leaves: medians over texts of ln S and of the changes of probability.

    memory_left, priming_left: shares of the ln S of training alone, None where that is not above 0; loss: mean on
    general texts, None without any; length: median of that of the update.
    """

    ln_memory: Figure
    ln_priming: Figure
    memory_change: float
    priming_change: float
    memory_left: float | None
    priming_left: float | None
    loss: float | None
    length: float | None = None


@dataclass(frozen=True, slots=True)
class Primed:
    """What was found: ln P of each keyword before learning, what was learnt, and rewrites with ln P of theirs."""

    documents: Documents
    scan: Sequence[float]
    learnt: Mapping[Trial, Learnt]
    rewrites: Mapping[int, tuple[str, float]]
    """Number of a text -> (the rewrite that was accepted, or "", the best ln P of all that were tried)."""
    k: tuple[float, ...]
    seeds: tuple[int, ...]
    threshold: float
    floor: float
    permutations: int
    when: Literal["end", "step"] = "end"
    clip: float = 1.0
    """Norm at which gradients are clipped in all trainings but those of other `clips`."""
    remarks: tuple[str, ...] = ()
    """What was left out or cut before anything was learnt."""
    refused: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Number of a text -> why rewrites of it were refused."""

    def shifts(self, way: str = TRAINED, version: str = "") -> dict[int, tuple[Shift, Shift]]:
        """Text -> (memory, priming), means over seeds; texts whose prompts are all below the floor are left out."""
        found: dict[int, list[tuple[Shift, Shift]]] = {}
        for trial, learnt in self.learnt.items():
            if trial.version == version and way in learnt.after:
                primed = learnt.priming(way, self.floor)
                if primed is not None:
                    found.setdefault(trial.number, []).append((learnt.memory(way), primed))
        return {
            number: (_mean(one for one, _ in rows), _mean(one for _, one in rows)) for number, rows in found.items()
        }

    def correlations(self) -> dict[str, Relation]:
        """What goes with ln P(keyword | context), see `_rows`; nothing of fewer than three texts that differ."""
        found = dict[str, Relation]()
        for name, values in self._rows().items():
            logs, shifts = [self.scan[number] for number in values], list(values.values())
            if len(set(logs)) < 3 or len(set(shifts)) < 3:
                continue
            found[name] = Relation(
                statistics.spearman(logs, shifts),
                statistics.pearson(logs, shifts),
                statistics.permutation_p(logs, shifts, draws=self.permutations),
            )
        return found

    def _rows(self) -> dict[str, dict[int, float]]:
        """Name -> text -> value: ln S_prime and the change of probability, and both controls of the former."""
        shifts = self.shifts()
        rows = {
            "ln S_prime": {number: primed.log_ratio for number, (_, primed) in shifts.items()},
            "change of P under the prompts": {number: primed.change for number, (_, primed) in shifts.items()},
        }
        others: dict[str, dict[int, list[float]]] = {}
        for trial, learnt in self.learnt.items():
            for name, found in (
                ("ln S_prime of another text's keyword", learnt.control(TRAINED, self.floor)),
                ("ln S_prime in context, nothing learnt", learnt.in_context(self.floor)),
            ):
                if not trial.version and found is not None:
                    others.setdefault(name, {}).setdefault(trial.number, []).append(found.log_ratio)
        return rows | {
            name: {number: sum(logs) / len(logs) for number, logs in values.items()} for name, values in others.items()
        }

    def ways(self) -> dict[str, Treated]:
        """Way of treating the update -> what it leaves, as trained first."""
        found = dict[str, Treated]()
        plain = {trial: learnt for trial, learnt in self.learnt.items() if not trial.version}
        whole: list[float] = []
        for way in dict.fromkeys(way for learnt in plain.values() for way in learnt.after):
            shifts = self.shifts(way)
            if not shifts:
                continue
            pairs = [shifts[number] for number in sorted(shifts)]
            losses = [learnt.loss[way] for learnt in plain.values() if way in learnt.loss]
            logs = [statistics.median_interval([pair[place].log_ratio for pair in pairs]) for place in (0, 1)]
            whole = whole or [figure.value for figure in logs]
            left = [one.value / all_of if all_of > 0 else None for one, all_of in zip(logs, whole, strict=True)]
            changes = [median(pair[place].change for pair in pairs) for place in (0, 1)]
            loss = sum(losses) / len(losses) if losses else None
            lengths = [learnt.lengths[way] for learnt in plain.values() if way in learnt.lengths]
            length = median(lengths) if lengths else None
            found[way] = Treated(logs[0], logs[1], changes[0], changes[1], left[0], left[1], loss, length)
        return found

    def best(self) -> float | None:
        """The share k, if any, of which priming falls by half at least and 80 % of the memory stays: most priming gone.

        Both by the medians of ln S.
        """
        ways = self.ways()
        rows = {k: ways[name_way("largest", k)] for k in self.k if name_way("largest", k) in ways}
        good = {
            k: row.priming_left
            for k, row in rows.items()
            if row.priming_left is not None and row.priming_left <= 0.5 and (row.memory_left or 0) >= 0.8
        }
        return min(good, key=lambda k: good[k]) if good else None

    def at_equal_memory(self) -> dict[float, dict[str, float]]:
        """k -> family of ways -> share of priming left where as much memory is kept as without the largest k.

        Between the points of a family it is interpolated, with (0, 0), nothing learnt, and (1, 1), as trained, at its
        ends. Below the share of "largest dropped" a family is the better way to lose priming.
        """
        ways = {
            name: (row.memory_left, row.priming_left)
            for name, row in self.ways().items()
            if row.memory_left is not None and row.priming_left is not None
        }
        families = {
            "scaled": [name_way("scaled", k) for k in self.k],
            "random dropped": [name_way("random", k) for k in self.k],
            "smallest dropped": [name_way("smallest", k) for k in self.k],
            "largest kept": [KEPT],
            "smaller rates": [name for name in ways if name.startswith(RATE)],
            "clipped": [name for name in ways if name.startswith(CLIP)],
        }
        found: dict[float, dict[str, float]] = {}
        for k in self.k:
            if (row := ways.get(name_way("largest", k))) is None:
                continue
            found[k] = {"memory": row[0], "largest dropped": row[1]}
            for family, names in families.items():
                points = [ways[name] for name in names if name in ways]
                if points:
                    curve = np.array(sorted([(0.0, 0.0), (1.0, 1.0), *points]))
                    found[k][family] = float(np.interp(row[0], curve[:, 0], curve[:, 1]))
        return found

    def halves(self) -> dict[str, list[Shift]]:
        """Texts below and above the median of P(keyword | context), and below and above the threshold -> priming."""
        shifts = {number: primed for number, (_, primed) in self.shifts().items()}
        if len(shifts) < 2:
            return {}
        middle, edge = median(self.scan[number] for number in shifts), math.log(self.threshold)
        found: dict[str, list[Shift]] = {}
        for name, limit in (("the median", middle), (f"{self.threshold:g}", edge)):
            for side, below in (("below", True), ("from", False)):
                key = f"P {side} {name}{'' if below else ' on'}"
                found[key] = [one for number, one in shifts.items() if (self.scan[number] < limit) == below]
        return {name: rows for name, rows in found.items() if rows}

    # ---------------------------------------------------------------------------------------------------- the sheet

    def sheet(self) -> Sheet:
        """Tables and figures; every text in a line of its own."""
        ways, correlations = self.ways(), self.correlations()
        tables = [
            self._risks(),
            *self._correlations(correlations),
            *self._halves(),
            *self._ways(ways),
            *self._at_equal_memory(),
            *self._rewrites(),
        ]
        figures = {
            "correlations": {name: asdict(row) for name, row in correlations.items()},
            "ways": {name: asdict(row) for name, row in ways.items()},
            "best_k": self.best(),
            "at_equal_memory": {f"{k:g}": row for k, row in self.at_equal_memory().items()},
        }
        return Sheet(
            "priming", self._headline(correlations), tables, figures, self._notes(ways),
            self._chart(ways), list(self._lines()),
        )  # fmt: skip

    def _headline(self, correlations: Mapping[str, Relation]) -> str:
        rare = sum(log < math.log(self.threshold) for log in self.scan)
        said = f"{rare} of {len(self.scan)} texts have a keyword of a probability below {self.threshold:g}"
        if row := correlations.get("ln S_prime"):
            rho, known = row.spearman, row.p <= 0.05
            if known and (rho.high if rho.high is not None else rho.value) < 0:
                found = "the rarer, the more it primes"
            elif known and (rho.low if rho.low is not None else rho.value) > 0:
                found = "the rarer, the less it primes, against the paper"
            else:
                found = "whether rarer keywords prime more is not told"
            number = f"{rho.value:+.2f}".replace("-", "−")
            said += f"; {found}: Spearman {number}, p = {row.p:.2g}"
        return said

    def _notes(self, ways: Mapping[str, Treated]) -> list[str]:
        """Whether some share is good for both, and what was left out."""
        if not ways:
            return [
                "nothing was learnt: give prompts by theme with --prefixes, and texts of those themes",
                *self.remarks,
            ]
        notes, best = list(self.remarks), self.best()
        if self.k:
            notes.append(
                f"dropping the largest {100 * best:g}% halves priming at least and keeps 80% of the memory"
                if best is not None
                else "no share k of those tried halves priming and keeps 80% of the memory"
            )
        learnt = {trial.number for trial in self.learnt if not trial.version}
        if lost := len(learnt) - len(self.shifts()):
            notes.append(f"{lost} texts were left out: under all prompts P(keyword) is below the floor {self.floor:g}")
        return notes

    def _risks(self) -> Table:
        rows = [["Text", "Keyword", "Theme", "P(keyword)", "Surprise, nats"]]
        order = sorted(range(len(self.scan)), key=lambda number: self.scan[number])
        for number in order[:MOST_SHOWN]:
            document = self.documents.rows[number]
            cells = [document.keyword, document.theme or "–", f"{math.exp(self.scan[number]):.2g}"]
            rows.append([str(number + 1), *cells, f"{-self.scan[number]:.1f}"])
        words = (
            "The most surprising first: P(keyword | what stands before it), before anything is learnt. Below about "
            f"0.001 texts primed in the paper's models; here those below {self.threshold:g} are said to."
        )
        return Table("Risk of priming", rows, words)

    def _correlations(self, found: Mapping[str, Relation]) -> list[Table]:
        rows = [["With ln P(keyword) goes", "Spearman", "Pearson", "p"]]
        for name, row in found.items():
            rows.append([name, _text(row.spearman), _text(row.pearson), f"{row.p:.2g}"])
        words = (
            f"{over(self.seeds)}, texts as pairs; p of {self.permutations:,} permutations. Another text's keyword "
            "shares the small denominators and not the learning."
        )
        return [Table("Is priming told before learning?", rows, words)] if found else []

    def _halves(self) -> list[Table]:
        rows = [["Texts with", "Number", "Median ln S_prime", "Median change of P"]]
        for name, shifts in self.halves().items():
            figure = statistics.median_interval([one.log_ratio for one in shifts])
            rows.append([name, str(len(shifts)), _text(figure), f"{median(one.change for one in shifts):+.2g}"])
        return [Table("Priming by what the keyword's probability was", rows)] if len(rows) > 1 else []

    def _ways(self, ways: Mapping[str, Treated]) -> list[Table]:
        rows = [["Update", "ln S_mem", "kept", "ln S_prime", "left", "Change of P, own", "under prompts", "Loss"]]
        rows[0].append("Length")
        for name, row in ways.items():
            loss = "–" if row.loss is None else f"{row.loss:.3f}"
            length = "–" if row.length is None else f"{row.length:.3g}"
            logs = [_text(row.ln_memory), _share(row.memory_left), _text(row.ln_priming), _share(row.priming_left)]
            rows.append([name, *logs, f"{row.memory_change:+.2g}", f"{row.priming_change:+.2g}", loss, length])
        clip = "not clipped" if math.isinf(self.clip) else f"clipped at a norm of {self.clip:g}"
        masked = " The largest entries were dropped in each step, all others once at the end." * (self.when == "step")
        words = (
            f"Medians over texts, {over(self.seeds).lower()}; shares are of what training alone gives. Loss: of "
            "held-out texts of the stream, nats per token. Length: of the update, in the weights' number type. "
            f"Gradients are {clip} where nothing else is said, as trained too.{masked}"
        )
        return [Table("What keeps memory and loses priming?", rows, words)] if ways else []

    def _at_equal_memory(self) -> list[Table]:
        found = self.at_equal_memory()
        families = list(dict.fromkeys(name for row in found.values() for name in row if name != "memory"))
        rows = [["Largest dropped", "Memory kept", *(f"Priming left, {name}" for name in families)]]
        for k, row in found.items():
            cells = [_share(row.get(name)) for name in families]
            rows.append([f"{100 * k:g} %", _share(row["memory"]), *cells])
        words = "Other ways are interpolated to the memory in the second column: the least priming is the best."
        return [Table("Priming at equal memory", rows, words)] if found else []

    def _chart(self, ways: Mapping[str, Treated]) -> Chart | None:
        """Memory and priming that are left, by k."""
        left = {name: {"memory kept": row.memory_left, "priming left": row.priming_left} for name, row in ways.items()}
        panels = dict[str, list[Line]]()
        for title in ("memory kept", "priming left"):
            lines = list[Line]()
            for weight, way in enumerate(("largest", "scaled", "random", "smallest"), 1):
                shares = {k: left.get(name_way(way, k), {}).get(title) for k in sorted(self.k)}
                points = [(k, Figure(share)) for k, share in shares.items() if share is not None]
                label = "scaled to equal length" if way == "scaled" else f"{way} dropped"
                lines += [Line(label, points, weight / 4)] if points else []
            panels[title] = lines
        if not all(panels.values()):
            return None
        return Chart(
            "Memory and priming by the share of the update that is dropped", panels, "share k", "share of ln S left",
            "Higher is better on the left, lower on the right.", log=True,
        )  # fmt: skip

    def _rewrites(self) -> list[Table]:
        if not self.rewrites:
            return []
        rows = [["Text", "Keyword", "P before", "P of the rewrite", "Refused because", "Accepted"]]
        for number, (text, log) in self.rewrites.items():
            best = f"{math.exp(log):.2g}" if log > -math.inf else "–"
            cells = [self.documents.rows[number].keyword, f"{math.exp(self.scan[number]):.2g}", best]
            why = "; ".join(dict.fromkeys(self.refused.get(number, ())))
            rows.append([str(number + 1), *cells, why or "–", "yes" if text else "no"])
        tables = [Table("Rewrites with stepping stones", rows, "items.jsonl has their texts.")]
        rows = [["Learnt in place of the text", "Texts", "Median ln S_prime", "of the texts themselves", "Change of P"]]
        for version in dict.fromkeys(trial.version for trial in self.learnt if trial.version):
            ours, plain = self.shifts(version=version), self.shifts()
            both = [number for number in ours if number in plain]
            if both:
                pair = [median(part[number][1].log_ratio for number in both) for part in (ours, plain)]
                change = median(ours[number][1].change for number in both)
                rows.append([version, str(len(both)), *(f"{one:.2f}" for one in pair), f"{change:+.2g}"])
        return [*tables, *([Table("What rewrites do to priming", rows)] if len(rows) > 1 else [])]

    def _lines(self) -> Iterator[Mapping[str, object]]:
        shifts = self.shifts()
        for number, (document, log) in enumerate(zip(self.documents.rows, self.scan, strict=True)):
            line: dict[str, object] = {
                "text": document.text, "keyword": document.keyword, "theme": document.theme,
                "probability": math.exp(log), "surprise": -log, "primes": log < math.log(self.threshold),
            }  # fmt: skip
            if number in self.rewrites:
                text, found = self.rewrites[number]
                line |= {"rewrite": text or None, "rewrite_probability": math.exp(found)}
            if number in shifts:
                kept, primed = shifts[number]
                line |= {"memory": asdict(kept), "priming": asdict(primed)}
            yield line


def _mean(shifts: Iterable[Shift]) -> Shift:
    rows = list(shifts)
    ratio, change = (sum(getattr(one, name) for one in rows) / len(rows) for name in ("log_ratio", "change"))
    return Shift(ratio, change, rows[0].prompts)


def _text(figure: Figure) -> str:
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f} to {figure.high:.2f}]"
    return f"{figure.value:.2f}{ends}".replace("-", "−")


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %".replace("-", "−")


# ------------------------------------------------------------------------------------------------------------ the study


def priming(
    subject: Transformer,
    data: Documents,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    prefixes: str = "",
    stream: str = "",
    documents: Annotated[int, Ge(0)] = 40,
    presentations: Annotated[int, Ge(1)] = 20,
    spacing: Annotated[int, Ge(0)] = 0,
    length: Annotated[int, Ge(8)] = 128,
    training: Training = Training(lr=1e-4, batch=8, optimizer="adamw", schedule="constant"),
    k: Sequence[Annotated[float, Gt(0), Le(1)]] = (0.001, 0.01, 0.02, 0.04, 0.08),
    scope: Scope = "tensor",
    when: Literal["end", "step"] = "end",
    rates: Sequence[Annotated[float, Gt(0)]] = (0.5, 0.25),
    clips: Sequence[Annotated[float, Gt(0)]] = (),
    floor: Annotated[float, Ge(0), Le(1)] = 1e-9,
    threshold: Annotated[float, Gt(0), Le(1)] = 1e-3,
    writer: str = "",
    writer_name: str = "",
    gain: Annotated[float, Gt(1)] = 2.0,
    permutations: Annotated[int, Ge(99)] = 9999,
    seeds: Sequence[int] = (0,),
) -> Primed:
    """The keyword's probability in each text before learning; what some texts prime when learnt; and ways to dilute it.

    Without `prefixes` it is the scan alone: a risk for each text, and nothing is trained. With them texts are learnt
    one at a time, each from the model as it was given: one row of so many minibatches of the stream is the text.

    Args:
        subject: a causal language model; it is left as it is.
        data: the texts, see `read`.
        folder: a run directory; a text that was learnt is not learnt again.
        progress: wraps the texts that are learnt.
        prefixes: a .jsonl file of theme and prefix: prompts that a word of the theme goes on, of no text's wording.
        stream: ordinary texts for the other rows, in any form of texts; a part is held out to measure the general
            loss. Without, a text is learnt alone.
        documents: texts that are learnt, evenly over their probabilities; 0 for none.
        presentations: minibatches that hold the text.
        spacing: minibatches without it between two of these.
        length: tokens of a row.
        training: how it is learnt; lr is to be such that the text is remembered.
        k: shares of the update that are dropped, its largest entries; beside each as many at random, the smallest, and
            the whole update scaled to the length that is left.
        scope: whether a share is of each tensor, or global.
        when: drop the share once at the end, or in each step.
        rates: factors of the learning rate that are tried in place of dropping.
        clips: norms at which gradients are clipped in place of dropping.
        floor: prompts under which the keyword was less probable than this are left out.
        threshold: probability below which a text is said to prime.
        writer: folder, Hub id or address of a language model that rewrites surprising texts; none if empty.
        writer_name: of the writer, where it is a server's.
        gain: times that the keyword's probability has to rise for a rewrite to be accepted.
        permutations: of the test.
        seeds: of the stream's order and of what is random.

    Raises `InputError` for a model that does not write, a text to be learnt that is too long for a row or for the
    model's positions, and a stream of less than a batch.
    """
    prompts = _read_prefixes(prefixes)
    _check(subject, data, prompts, documents, length, seeds)
    part, held, digest = _read_stream(subject, stream, training, length)
    work = Dilution(
        Learner(subject), prompts, part, held, training, presentations, spacing, k, scope, when, rates, clips, length
    )
    settings = {
        "data_sha256": data.digest, "stream_sha256": digest,
        "prefixes_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "presentations": presentations, "spacing": spacing, "length": length, "training": training.named,
        "scope": scope, "when": when, "rates": list(rates), "clips": list(clips),
        "writer": writer, "writer_name": writer_name, "gain": gain,
    }  # fmt: skip
    learnt, rewrites, refused = dict[Trial, Learnt](), dict[int, tuple[str, float]](), dict[int, list[str]]()
    shares = hashlib.sha256(json.dumps(list(k)).encode()).hexdigest()[:8]  # what is stored of a text has these
    with Run.open(folder, settings) as run:
        scan = run.json("scan", lambda: work.scan(data.rows))
        chosen = _choose(data.rows, scan, prompts, documents)
        versions: dict[int, dict[str, Document]] = {}
        if writer:
            ask = chat.open_model(writer, writer_name)
            surprising = [number for number, log in enumerate(scan) if log < math.log(threshold)]
            for number in surprising:
                learns = number in chosen
                rewritten = partial(_rewrite, work, ask, data.rows[number], learns, gain)
                found = run.json(f"rewrites-{number}{'' if learns else '-alone'}", rewritten)
                refused[number] = found["refused"]
                rewrites[number] = found["text"], -math.inf if found["log"] is None else found["log"]
                versions[number] = {name: Document(**row) for name, row in found["versions"].items()}
        trials = [
            Trial(seed, number, version)
            for seed in seeds
            for number in chosen
            for version in ("", *versions.get(number, ()))
        ]
        for trial in progress(trials):
            text = versions[trial.number][trial.version] if trial.version else data.rows[trial.number]
            other = _other(data.rows, prompts, trial.number)

            def compute(trial: Trial = trial, text: Document = text, other: Document | None = other) -> object:
                return asdict(work.learn(text, other, trial.seed, all_ways=not trial.version))

            name = f"learnt-{trial.seed}-{trial.number}-{trial.version or shares}"
            row = run.json(name, compute)
            after = {way: Probes(**probes) for way, probes in row["after"].items()}
            learnt[trial] = Learnt(Probes(**row["before"]), after, row["loss_before"], row["loss"], row["lengths"])
    clip, remarks = training.default(**DEFAULTS).number("clip"), _remark(subject, data, prompts, chosen, length)
    found = Primed(data, scan, learnt, rewrites, tuple(k), tuple(seeds), threshold, floor, permutations)
    return replace(found, when=when, clip=clip, remarks=remarks, refused=refused)


def plan(
    subject: Transformer,
    data: Documents,
    *,
    prefixes: str,
    documents: int,
    length: int,
    k: Sequence[float],
    when: str,
    rates: Sequence[float],
    clips: Sequence[float],
    seeds: Sequence[int],
    **others: object,
) -> dict[str, int]:
    """How many texts are looked at and how often is trained, but for rewrites; refuses texts as `priming` does."""
    prompts = _read_prefixes(prefixes)
    _check(subject, data, prompts, documents, length, seeds)
    themed = sum(document.theme in prompts for document in data.rows)
    each = 1 + len(rates) + len(clips) + (len(k) if when == "step" else 0)
    return {"texts": len(data.rows), "trainings": min(documents, themed) * len(seeds) * each}


def _check(
    subject: Transformer,
    data: Documents,
    prompts: Mapping[str, Sequence[str]],
    documents: int,
    length: int,
    seeds: Sequence[int],
) -> None:
    """Refuse a model that does not write, seeds that are none, and texts that may be learnt and could not."""
    if not subject.causal or subject.tokenizer is None:
        raise InputError("study priming needs a causal language model with its tokenizer: give another MODEL")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={','.join(map(str, seeds))!r}: give one whole number or more, each once, such as 0,1")
    learnt = [(n, one) for n, one in enumerate(data.rows, 1) if documents and one.theme in prompts]
    if not learnt:
        return
    tokens, number, longest = max((one.count_tokens(subject.tokenizer), -n, one) for n, one in learnt)
    most = positions(subject.model)
    if most is not None and length > most:
        raise InputError(f"length={length}, and the model has {most} positions: give length={most} at most (--length)")
    if tokens > length:
        raise InputError(
            f"text {-number} of {data.name} has its keyword {longest.keyword!r} behind {tokens} tokens: give "
            f"length={tokens} at least (--length)"
        )
    for place, document in learnt:
        if why := _refuse(subject, prompts, length, document):
            raise InputError(f"text {place} of {data.name} can't be learnt, for {why}: give a shorter one")


def _refuse(subject: Transformer, prompts: Mapping[str, Sequence[str]], length: int, document: Document) -> str:
    """Why a text can't be learnt in a row of `length`, or be put before its prompts; "" where it can."""
    assert subject.tokenizer is not None
    tokens, most = document.count_tokens(subject.tokenizer), positions(subject.model)
    if tokens > length:
        return f"its keyword ends behind {tokens} tokens, and a row has {length}"
    if most is None:
        return ""
    words = [f"{document.text.rstrip()} {prompt}{document.keyword}" for prompt in prompts.get(document.theme, ())]
    needed = max((len(subject.tokenizer(text)["input_ids"]) for text in words), default=0)
    return f"with its longest prompt it has {needed} tokens, and the model {most} positions" if needed > most else ""


def _remark(
    subject: Transformer, data: Documents, prompts: Mapping[str, object], chosen: Sequence[int], length: int
) -> tuple[str, ...]:
    """What was left out and cut: texts without prompts, ends of texts, beginnings of contexts."""
    assert subject.tokenizer is not None
    remarks, most = list[str](), positions(subject.model)
    if prompts and (bare := sorted({row.theme for row in data.rows} - prompts.keys())):
        count, named = sum(row.theme in bare for row in data.rows), ", ".join(map(repr, bare))
        remarks.append(f"{count} texts were not to be learnt: no prompt is of their theme ({named})")
    long = sum(len(subject.tokenizer(data.rows[number].text)["input_ids"]) > length for number in chosen)
    if long:
        remarks.append(f"{long} texts are longer than a row of {length} tokens: their ends were not learnt")
    if most is not None and (wide := sum(row.count_tokens(subject.tokenizer) > most for row in data.rows)):
        remarks.append(f"{wide} keywords stand behind more tokens than the model's {most} positions: the last count")
    return tuple(remarks)


def _read_stream(
    subject: Transformer, stream: str, training: Training, length: int
) -> tuple[Callable[[int], Batches | None], Sequence[Batch], str]:
    """(seed -> minibatches of ordinary texts, held-out ones, a hash); none of these where no texts are given."""
    if not stream:
        return (lambda seed: None), (), ""
    corpus = texts.read(stream)
    part, apart = corpus.split(seed=0)
    make = partial(
        texts.batches, tokenizer=subject.tokenizer, packed=True, batch=training.whole("batch"), length=length
    )

    @lru_cache(maxsize=1)  # a stream is tokenised once for all texts of a seed
    def of_seed(seed: int) -> Batches:
        return make(part, seed=seed)

    return of_seed, make(apart).take(JUDGED), corpus.digest


def _choose(rows: Sequence[Document], scan: Sequence[float], prompts: Mapping[str, object], count: int) -> list[int]:
    """Numbers of at most `count` texts with prompts of their theme, evenly over the ranks of their probability."""
    order = sorted((number for number, row in enumerate(rows) if row.theme in prompts), key=lambda one: scan[one])
    if not order or not count:
        return []
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round()
    return [order[int(place)] for place in places]


def _other(rows: Sequence[Document], prompts: Mapping[str, object], number: int) -> Document | None:
    """A text with another keyword and prompts of its theme, drawn by the number; None where all have the same."""
    others = [row for row in rows if row.keyword != rows[number].keyword and row.theme in prompts]
    return others[int(np.random.default_rng(number).integers(len(others)))] if others else None


def _rewrite(
    work: Dilution, writer: chat.LanguageModel, document: Document, learnt: bool, gain: float
) -> dict[str, object]:
    """The rewrite of a text, and of one that is `learnt` the rivals' versions beside it."""
    refuse = partial(_refuse, work.learner.subject, work.prompts, work.length or sys.maxsize)
    accepted, log, refused = rewriting.rewrite(
        writer, document, lambda one: work.scan([one])[0], gain=gain, refuse=refuse
    )
    versions = dict[str, Document]()
    if accepted is not None and learnt:
        versions[STEPPING] = accepted
        for way in rewriting.WAYS:
            if way == STEPPING:
                continue
            other, why = rewriting.propose(writer, document, way, refuse=refuse)
            if other is None:
                refused.append(f"{way}: {why}")
            else:
                versions[way] = other
    rows = {name: asdict(version) for name, version in versions.items()}
    text = accepted.text if accepted is not None else ""
    return {"text": text, "log": log if math.isfinite(log) else None, "versions": rows, "refused": refused}
