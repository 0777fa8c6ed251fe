"""What texts that were learnt are remembered and prime, by their keyword's probability before; `study priming`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from secateur.measure import statistics
from secateur.measure.priming import Shift
from secateur.methods.dilution import CLIP, KEPT, RATE, TRAINED, Learnt, name_way
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table, over
from secateur.runs.keyword_texts import Documents
from secateur.vocabulary import Figure

__all__ = ["PAIRED", "Primed", "Relation", "Treated", "Trial"]

PAIRED = "beside another text"
"""The version of a trial in which two texts are learnt at once."""
MOST_SHOWN = 50
"""Texts in the table of risks; items.jsonl has all."""
_OF_CATEGORY = "ln S_prime of texts of category "
"""Begins the names of correlations within a category, since a pool of several may turn the sign round."""


class Trial(NamedTuple):
    """One text that is learnt under one seed: as it is (""), rewritten in some way, or beside another (`PAIRED`)."""

    seed: int
    number: int
    version: str = ""

    def __str__(self) -> str:
        return f"seed {self.seed}, text {self.number + 1}" + (f", {self.version}" if self.version else "")


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
        of = {number: self.documents.rows[number].category for number in shifts}
        for category in dict.fromkeys(of.values()) if len(set(of.values())) > 1 else ():
            some = {number: value for number, value in rows["ln S_prime"].items() if of[number] == category}
            rows[f"{_OF_CATEGORY}{category or 'none'}"] = some
        paired = {number: primed.log_ratio for number, (_, primed) in self.shifts(version=PAIRED).items()}
        rows |= {f"ln S_prime, learnt {PAIRED}": paired} if paired else {}
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
            *self._pairs(),
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
            said += f"; {found}: Spearman {_sign(rho)}, p = {row.p:.2g}"
            kinds = {
                name.removeprefix(_OF_CATEGORY): one.spearman
                for name, one in correlations.items()
                if name.startswith(_OF_CATEGORY)
            }
            if kinds:
                said += f" (by category: {', '.join(f'{kind} {_sign(one)}' for kind, one in kinds.items())})"
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
        for version in dict.fromkeys(trial.version for trial in self.learnt if trial.version not in ("", PAIRED)):
            ours, plain = self.shifts(version=version), self.shifts()
            both = [number for number in ours if number in plain]
            if both:
                pair = [median(part[number][1].log_ratio for number in both) for part in (ours, plain)]
                change = median(ours[number][1].change for number in both)
                rows.append([version, str(len(both)), *(f"{one:.2f}" for one in pair), f"{change:+.2g}"])
        return [*tables, *([Table("What rewrites do to priming", rows)] if len(rows) > 1 else [])]

    def _pairs(self) -> list[Table]:
        """Two texts at once beside one alone, of the texts of which both are known."""
        plain, paired = self.shifts(), self.shifts(version=PAIRED)
        both = [number for number in paired if number in plain]
        if not both:
            return []
        rows = [["Learnt", "Texts", "Median ln S_mem", "Median ln S_prime", "Change of P, own", "under prompts"]]
        for name, shifts in (("alone", plain), (PAIRED, paired)):
            parts = [[shifts[number][place] for number in both] for place in (0, 1)]
            logs = (_text(statistics.median_interval([one.log_ratio for one in part])) for part in parts)
            changes = (f"{median(one.change for one in part):+.2g}" for part in parts)
            rows.append([name, str(len(both)), *logs, *changes])
        words = "Another text, with another keyword, took a row of the same minibatches; it is the one of the control."
        return [Table("Two texts at once", rows, words)]

    def _lines(self) -> Iterator[Mapping[str, object]]:
        shifts = self.shifts()
        for number, (document, log) in enumerate(zip(self.documents.rows, self.scan, strict=True)):
            line: dict[str, object] = {
                "text": document.text, "keyword": document.keyword, "theme": document.theme,
                "category": document.category,
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


def _sign(figure: Figure) -> str:
    """With its sign, to two places."""
    return f"{figure.value:+.2f}".replace("-", "−")
