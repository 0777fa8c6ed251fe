"""Cards of claims, and what runs them: every seed once, kept until the code changes, then one row."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from claims import ROOT
from claims._lab import ran, rows, settings
from claims._lab.verdict import Better, compare, judge
from secateur._utils.disk import atomic_write
from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.vocabulary import Figure

__all__ = ["Claim", "Figures", "claim", "claims_of", "least_favourable", "systems"]

Figures = Mapping[str, float | Mapping[str, float]]
"""Arm -> the judged figure, or measure -> figure."""


@dataclass(frozen=True)
class Claim:
    """An experiment and its card, which stands before the first judged run.

    question: what is asked, in one sentence. setup: data, models, budgets, steps. measure: what is judged, with its
    unit. pairs: (our arm, baseline), each of which has to hold; the least favourable one is shown. margin: how much
    worse ours may be. seeds: what chance decides is drawn anew for each.
    """

    run: Callable[[int], Figures]
    question: str
    setup: str
    measure: str
    unit: str
    better: Better
    margin: float
    pairs: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """The function's name: "headline", and what the other two are about."""
        return self.run.__name__

    @property
    def recipe(self) -> str:
        """The system that it is about, which its file is called after."""
        return self.run.__module__.rpartition(".")[2]

    @property
    def card(self) -> tuple[object, ...]:
        """What is asked, as a row has it."""
        return self.question, self.setup, self.measure, self.better, self.margin, self.seeds, self.pairs

    def figures(self, seed: int) -> dict[str, dict[str, float]]:
        """Arm -> measure -> figure of one seed; kept in the cache, by the digest of the code, but for a pilot's."""
        if settings.PILOT:
            return self._draw(seed)
        key = ran.digest(self.recipe, self.name) or ran.note(self.recipe, self.name)
        file = settings.CACHE / "seeds" / f"{self.recipe}-{self.name}-{seed}-{key}.json"
        if file.exists():
            kept: dict[str, dict[str, float]] = json.loads(file.read_text("utf-8"))
            return kept
        found = self._draw(seed)
        atomic_write(file, json.dumps(found))
        return found

    def _draw(self, seed: int) -> dict[str, dict[str, float]]:
        return {
            arm: dict(value) if isinstance(value, Mapping) else {self.measure: float(value)}
            for arm, value in self.run(seed).items()
        }

    def judged(self, folder: Path = settings.ROWS) -> rows.Row:
        """Run all seeds and write the row; of a pilot, run one seed and write nothing.

        Where a row of older code is there and its first seed gives the same figures to the last digit, the row is of
        this code, too: the other seeds are not run again.
        """
        seeds = self.seeds[:1] if settings.PILOT else self.seeds
        per_seed = [self.figures(seeds[0])]
        row = None if settings.PILOT else self._confirm(per_seed[0], folder)
        if row is not None:
            rows.write(row, folder)
            return row
        per_seed += [self.figures(seed) for seed in seeds[1:]]
        values = {
            arm: {measure: [figures[arm][measure] for figures in per_seed] for measure in measures}
            for arm, measures in per_seed[0].items()
        }
        row = replace(self._row(values, seeds), first=per_seed[0])
        if not settings.PILOT:
            rows.write(row, folder)
        return row

    def _confirm(self, first: Mapping[str, Mapping[str, float]], folder: Path) -> rows.Row | None:
        """The row that is there, as one of the code that stands; None where it asked or found something else."""
        file = rows.path(folder, self.recipe, self.name)
        row = rows.read(file) if file.exists() else None
        if row is None or not row.first or row.first != first or row.card != self.card:
            return None
        if not row.stale:
            return row
        return replace(row, digest=ran.digest(self.recipe, self.name), confirmed=describe().get("commit", ""))

    def _row(self, values: Mapping[str, Mapping[str, Sequence[float]]], seeds: tuple[int, ...]) -> rows.Row:
        arms = {
            arm: {
                measure: statistics.mean_interval(list(figures), unit=self.unit if measure == self.measure else "")
                for measure, figures in measures.items()
            }
            for arm, measures in values.items()
        }
        judged = {pair: compare(*(values[arm][self.measure] for arm in pair), unit=self.unit) for pair in self.pairs}
        ours, baseline = least_favourable(judged, self.better, self.margin)
        environment = describe()
        return rows.Row(
            recipe=self.recipe,
            claim=self.name,
            question=self.question,
            setup=self.setup,
            measure=self.measure,
            better=self.better,
            margin=self.margin,
            arms=arms,
            difference=rows.Difference(ours, baseline, judged[ours, baseline]),
            seeds=seeds,
            commit=environment.pop("commit", ""),
            digest=ran.digest(self.recipe, self.name),
            note=self.note,
            pairs=self.pairs,
            environment=environment,
        )


def least_favourable(judged: Mapping[tuple[str, str], Figure], better: Better, margin: float) -> tuple[str, str]:
    """The pair that speaks least for ours: refuted before undecided before holding, then by its difference.

    So a claim on several pairs holds where each of them does, and is refuted where one of them is.
    """
    order = ("refuted", "undecided", "holds")
    sign = 1.0 if better == "higher" else -1.0
    return min(judged, key=lambda pair: (order.index(judge(judged[pair], better, margin)), sign * judged[pair].value))


def claim(
    *,
    question: str,
    setup: str,
    measure: str,
    better: Better,
    seeds: Sequence[int],
    ours: str = "",
    baselines: Sequence[str] = (),
    pairs: Sequence[tuple[str, str]] = (),
    unit: str = "",
    margin: float = 0.0,
    note: str = "",
) -> Callable[[Callable[[int], Figures]], Claim]:
    """Make a function from a seed to figures a claim: `ours` against each of `baselines`, or `pairs` of arms."""
    judged = tuple(pairs) or tuple((ours, baseline) for baseline in baselines)

    def decorate(run: Callable[[int], Figures]) -> Claim:
        return Claim(run, question, setup, measure, unit, better, margin, judged, tuple(seeds), note)

    return decorate


def systems() -> list[str]:
    """Systems that have claims: the files of the folder."""
    return sorted(file.stem for file in (ROOT / "claims").glob("*.py") if not file.stem.startswith("_"))


def claims_of(system: str) -> Iterator[Claim]:
    """The claims of a system, in the order of its file."""
    module: ModuleType = importlib.import_module(f"claims.{system}")
    for value in vars(module).values():
        if isinstance(value, Claim) and value.recipe == system:
            yield value
