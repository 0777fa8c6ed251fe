"""The map of `secateur study regimes`: errors, connectivity and similarity by temperature and density, and its uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur.errors import MeasurementError
from secateur.measure import connectivity as lmc
from secateur.measure import statistics
from secateur.measure.connectivity import Regime
from secateur.methods.temperatures import Walk, advise, pick, walk
from secateur.reports import sheet as sheets
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Heat, Sheet, Table
from secateur.vocabulary import Figure

__all__ = ["MAGNITUDE", "RANDOM", "Key", "RegimeMap", "Siblings", "Sign"]

MAGNITUDE, RANDOM = "magnitude", "random"


class Key(NamedTuple):
    """A cell of the map: how weights were masked, the name of the temperature, the share of weights that stays."""

    masks: str
    temperature: str
    density: float


@dataclass(frozen=True, slots=True)
class Siblings:
    """What was measured of one cell under one seed."""

    seed: int
    density: float
    """As the masks have it."""
    errors: tuple[float, ...]
    """Of each sibling on the judged examples, mean over its last epochs."""
    paths: tuple[tuple[float, ...], ...]
    """Training errors along the path of each pair."""
    similarities: tuple[float, ...]
    """CKA of each pair."""

    @property
    def connectivities(self) -> tuple[float, ...]:
        """mc of each pair."""
        return tuple(lmc.connectivity(path) for path in self.paths)


class Sign(NamedTuple):
    """What the three-regime model predicts, what was measured, and whether it shows; None where it can't be told."""

    predicted: str
    measured: str
    shows: bool | None


@dataclass(frozen=True, eq=False)
class RegimeMap:
    """Cells by temperature and density, over seeds; places of temperatures count from the warmest, 0.

    what: the temperature, in words. ordered: whether the temperatures have an order. start: where the advice begins,
    the usual training. similar: CKA that parts II-A from II-B; 0 for halfway between the connected cells. early:
    checkpoints before the first decay of the learning rate.
    """

    what: str
    temperatures: tuple[str, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    cells: Mapping[Key, tuple[Siblings, ...]]
    dense: Mapping[str, tuple[float, ...]]
    """Temperature -> error of the dense network under each seed."""
    start: int
    barrier: float = 0.05
    similar: float = 0.0
    ordered: bool = True
    beyond: tuple[str, str] = ("", "")
    """What would be warmer than the warmest and cooler than the coolest, where there is such a thing."""
    early: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    # ------------------------------------------------------------------------------------------------ the maps

    def errors(self, place: int, density: float, masks: str = MAGNITUDE) -> list[float]:
        """Test error under each seed, mean over siblings."""
        return [float(np.mean(one.errors)) for one in self.cells[Key(masks, self.temperatures[place], density)]]

    def table(self, value: Callable[[Siblings], float], masks: str = MAGNITUDE) -> NDArray[np.float64]:
        """[temperatures, densities]: a figure of each cell, mean over seeds; NaN for a cell that was not measured."""
        found = np.full((len(self.temperatures), len(self.densities)), math.nan)
        for row, temperature in enumerate(self.temperatures):
            for column, density in enumerate(self.densities):
                cell = self.cells.get(Key(masks, temperature, density))
                if cell:
                    found[row, column] = np.mean([value(one) for one in cell])
        return found

    def error_table(self, masks: str = MAGNITUDE) -> NDArray[np.float64]:
        """[temperatures, densities]: test error, mean over seeds and siblings."""
        return self.table(lambda one: float(np.mean(one.errors)), masks)

    @cached_property
    def connectivities(self) -> NDArray[np.float64]:
        """[temperatures, densities]: mc, mean over seeds and pairs."""
        return self.table(lambda one: float(np.mean(one.connectivities)))

    @cached_property
    def similarities(self) -> NDArray[np.float64]:
        """[temperatures, densities]: CKA, mean over seeds and pairs."""
        return self.table(lambda one: float(np.mean(one.similarities)))

    @cached_property
    def split(self) -> float:
        """The CKA from which on connected siblings are alike."""
        known = np.isfinite(self.connectivities)
        return self.similar or lmc.midpoint(
            self.connectivities[known].tolist(), self.similarities[known].tolist(), self.barrier
        )

    def regime(self, place: int, column: int) -> Regime | None:
        """Of a cell; None where it was not measured."""
        mc, cka = float(self.connectivities[place, column]), float(self.similarities[place, column])
        return lmc.label(mc, cka, barrier=self.barrier, similar=self.split) if math.isfinite(mc) else None

    # ------------------------------------------------------------------------------------------------ the uses

    def walk(self, column: int) -> Walk:
        """Where the advice leads from the usual training, at one density; needs only the cells on its way."""

        def look(place: int) -> Regime:
            found = self.regime(place, column)
            assert found is not None
            return found

        return walk(self.start, len(self.temperatures), look)

    def choices(self, column: int) -> dict[str, int | None]:
        """Rule -> place of the model that it prunes at one density; None for a rule that needs cells not measured."""
        whole = bool(np.isfinite(self.connectivities[:, column]).all())
        chosen: dict[str, int | None] = {"usual training": self.start}
        if self.ordered:
            chosen["advice"] = self.walk(column).chosen
        mcs, ckas = (table[:, column].tolist() for table in (self.connectivities, self.similarities))
        chosen["connected and most alike"] = pick(mcs, ckas, barrier=self.barrier) if whole else None
        chosen["most accurate before pruning"] = self.most_accurate if whole else None
        chosen["best on the map"] = self._find_best(column) if whole else None
        return chosen

    def _find_best(self, column: int) -> int:
        """The place with the fewest errors after retraining; of equals the coolest."""
        errors = self.error_table()[:, column]
        return len(errors) - 1 - int(np.argmin(errors[::-1]))

    @cached_property
    def most_accurate(self) -> int:
        """The dense network with the fewest errors; of equals the coolest."""
        means = [float(np.mean(self.dense[one])) if one in self.dense else math.inf for one in self.temperatures]
        return max(place for place, one in enumerate(means) if one == min(means))

    @property
    def advised(self) -> str:
        """The rule that answers: the advice, or where temperatures have no order the choice by similarity."""
        return "advice" if self.ordered else "connected and most alike"

    def gain(self, rule: str, column: int) -> Figure | None:
        """Errors of the usual training minus those of a rule's model at one density, in points, paired over seeds."""
        place = self.choices(column).get(rule)
        if place is None:
            return None
        density = self.densities[column]
        pair = (self.errors(self.start, density), self.errors(place, density))
        return statistics.to_percent(statistics.paired_difference(*pair))

    def signs(self) -> list[Sign]:
        """What the model predicts of the whole map, beside what was measured; nothing for a part of a map."""
        errors = self.error_table()
        if not self.ordered or not np.isfinite(errors).all():
            return []
        excess, coolest = lmc.normalise(errors), len(self.temperatures) - 1
        low, high = (self._find_best(column) for column in (0, -1))
        first = self.densities[0]
        gap = statistics.paired_difference(self.errors(coolest, first), self.errors(low, first))
        certain = None if gap.low is None else gap.low > 0
        barriers = np.maximum(0.0, -self.connectivities[coolest, [0, -1]]) + 0.0  # not -0
        try:
            rank: float | None = statistics.spearman(self.densities, self.similarities[coolest].tolist()).value
        except MeasurementError:
            rank = None
        best = (self.temperatures[low], self.temperatures[high])
        return [
            Sign(
                "at the highest density the coolest is within 0.3 points of the best",
                f"{100 * excess[-1, -1]:.2g} points behind",
                bool(excess[-1, -1] <= 0.003),
            ),
            Sign(
                "the best temperature is warmer at the lowest density",
                f"{best[0]}, and {best[1]} at the highest",
                low < high,
            ),
            Sign(
                "at the lowest density the coolest loses to the best, beyond chance",
                f"{sheets.percent(gap)} points",
                certain if low < coolest else False,
            ),
            Sign(
                "the coolest has a barrier at the lowest density 5 times that at the highest",
                f"{barriers[0]:.2g} and {barriers[1]:.2g}",
                bool(barriers[0] > 5 * barriers[1] and barriers[0] > 0),
            ),
            Sign(
                "the coolest's CKA rises with density (Spearman 0.8 or more)",
                "can't be told" if rank is None else f"{rank:.2g}",
                None if rank is None else rank > 0.8 - 1e-9,
            ),
        ]

    # ----------------------------------------------------------------------------------------------- the sheet

    def sheet(self) -> Sheet:
        """Maps, tables and figures; errors in percent, differences in points."""
        gains = [gain.value for column in range(len(self.densities)) if (gain := self.gain(self.advised, column))]
        worst = max(0.0, -min(gains)) if gains else 0.0
        mean = f"{np.mean(gains):+.1f}".replace("-", "−")
        headline = (
            f"{self.advised} against the usual training ({self.temperatures[self.start]}): {mean} points of accuracy, "
            f"mean over {len(gains)} densities; no worse in {sum(one >= 0 for one in gains)}, {worst:.1f} points worse "
            f"at most; regimes on the map: {', '.join(sorted(self._labels()))}"
        )
        tables = [self._regimes(), self._errors(MAGNITUDE), self._uses()]
        if signs := self.signs():
            words = {True: "yes", False: "no", None: "can't be told"}
            rows = [["Predicted", "Measured", "Shows"], *([one[0], one[1], words[one[2]]] for one in signs)]
            tables.append(Table("What three regimes would show", rows, "Reported as measured."))
        if any(key.masks == RANDOM for key in self.cells):
            tables.append(self._errors(RANDOM))
        heats = [] if len(self.densities) < 2 else [self._heat()]
        return Sheet(
            "regimes",
            headline,
            tables,
            self._figures(),
            self._all_notes(),
            self._chart(),
            items=list(self._items()),
            more=heats,
        )

    def _labels(self) -> set[Regime]:
        places = [(row, column) for row in range(len(self.temperatures)) for column in range(len(self.densities))]
        return {found for place in places if (found := self.regime(*place))}

    def _all_notes(self) -> tuple[str, ...]:
        notes = list(self.notes)
        if "I" not in self._labels():
            notes.append(
                f"Regime I does not show: no siblings are parted by a barrier above {self.barrier:g}. The task is too "
                "easy for it, or the densities too high; what remains of the advice rests on similarity alone"
            )
        notes += self._suggestions()
        if self.early:
            notes.append(
                f"{', '.join(self.early)}: before the first decay of the learning rate, so that less training and a "
                "higher rate are mixed"
            )
        return tuple(notes)

    def _suggestions(self) -> list[str]:
        """What to try where the advice leads off the map."""
        found = []
        for column, share in enumerate(self._columns if self.ordered else []):
            way = self.walk(column)
            off = self.beyond[way.end.endswith("cooler")] if "nothing" in way.end else ""
            if off:
                last = self.temperatures[way.chosen]
                found.append(f"{share} of the weights: {last} is in {way.end} was measured: try {off}")
        return found

    @property
    def _columns(self) -> list[str]:
        return [f"{100 * density:.3g}%" for density in self.densities]

    def _regimes(self) -> Table:
        rows = [["Dense training", *self._columns]]
        for place, name in enumerate(self.temperatures):
            cells = []
            for column in range(len(self.densities)):
                regime = self.regime(place, column)
                mc, cka = self.connectivities[place, column], self.similarities[place, column]
                cells.append(f"{regime}: mc {mc:.2f}, CKA {cka:.3f}".replace("-0.", "−0.") if regime else "")
            rows.append([name, *cells])
        told = sheets.over(self.seeds).split(" with")[0]
        words = (
            f"By {self.what}, the warmest first, and weights left. I: a barrier (mc below −{self.barrier:g}); II-A: "
            f"connected; II-B: connected, and CKA at least {self.split:.3f}. {told}."
        )
        return Table("Regimes", rows, words)

    def _errors(self, masks: str) -> Table:
        table = self.error_table(masks)
        rows = [["Dense training", "Dense", *self._columns]]
        for place, name in enumerate(self.temperatures):
            dense = f"{100 * np.mean(self.dense[name]):.1f}" if name in self.dense else ""
            cells = [f"{100 * one:.1f}" if math.isfinite(one) else "" for one in table[place].tolist()]
            rows.append([name, dense, *cells])
        title = "Test error after retraining, %" if masks == MAGNITUDE else "The same with random masks, %"
        words = (
            "Mean over the last 5 epochs, siblings and seeds."
            if masks == MAGNITUDE
            else ("As many weights of each layer, at random places: what of the map is not due to which weights stay.")
        )
        return Table(title, rows, words)

    def _uses(self) -> Table:
        names = [name for name in self.choices(0) if name != "usual training"]
        titles = [*(name.capitalize() for name in names), "Any, on average", "Looked at"]
        rows = [["Weights left", "Usual training", "There", *titles]]
        table = self.error_table()
        for column, density in enumerate(self.densities):
            usual = sheets.percent(statistics.mean_interval(self.errors(self.start, density)))
            regime, choices = self.regime(self.start, column), self.choices(column)
            there = f"{regime}: {advise(regime)}" if regime else ""
            cells = []
            for name in names:
                place, gain = choices[name], self.gain(name, column)
                cells.append(
                    f"{self.temperatures[place]}: {sheets.points(gain, signed=True)}"
                    if place is not None and gain is not None
                    else ""
                )
            any_one = 100 * (table[self.start, column] - table[:, column].mean())
            cells.append(f"{any_one:+.1f}".replace("-", "−") if math.isfinite(any_one) else "")
            looked = f"{len(self.walk(column).path)} of {len(self.temperatures)}" if self.ordered else "all"
            rows.append([self._columns[column], usual, there, *cells, looked])
        words = (
            f"Test error in percent of what comes of the usual training ({self.temperatures[self.start]}); then which "
            "dense network each rule prunes, and points of accuracy gained by it, paired over seeds. The advice goes "
            "warmer out of I, cooler out of II-A, and sees no test error."
        )
        return Table("Which dense network to prune", rows, words)

    def _heat(self) -> Heat:
        errors = self.error_table()
        panels = {
            "Test error, points above the best of each density": 100 * lmc.normalise(errors),
            "Barrier between siblings (−mc)": -self.connectivities,
            "Difference of siblings' outputs (1 − CKA)": 1 - self.similarities,
        }
        if any(key.masks == RANDOM for key in self.cells):
            panels["Random masks: points above the best"] = 100 * lmc.normalise(self.error_table(RANDOM))
            panels["Random masks: barrier (−mc)"] = -self.table(lambda one: float(np.mean(one.connectivities)), RANDOM)
        return Heat(
            "Maps",
            {title: table.tolist() for title, table in panels.items()},
            self.temperatures,
            self._columns,
            "weights left",
            f"Up: {self.what}, the warmest on top. The stronger, the larger.",
        )

    def _chart(self) -> Chart:
        lines = []
        for number, rule in enumerate(name for name in self.choices(0) if name != "most accurate before pruning"):
            points = []
            for column, density in enumerate(self.densities):
                place = self.choices(column)[rule]
                if place is not None:
                    error = statistics.to_percent(statistics.mean_interval(self.errors(place, density)))
                    points.append((100 * density, error))
            if points:
                lines.append(Line(rule, points, {0: 0.0, 1: 1.0}.get(number, 0.3)))
        return Chart(
            "Test error by density",
            {"": lines},
            "weights left, %",
            "test error, %",
            "Whiskers are intervals.",
            log=True,
            bounds=(0.0, 100.0),
        )

    def _figures(self) -> dict[str, object]:
        cells = []
        for (masks, temperature, density), seeds in self.cells.items():
            mcs, ckas = ([np.mean(getattr(one, name)) for one in seeds] for name in ("connectivities", "similarities"))
            place = (self.temperatures.index(temperature), self.densities.index(density))
            cells.append(
                {
                    "masks": masks,
                    "temperature": temperature,
                    "density": density,
                    "error": asdict(statistics.mean_interval([float(np.mean(one.errors)) for one in seeds])),
                    "mc": asdict(statistics.mean_interval(mcs)),
                    "cka": asdict(statistics.mean_interval(ckas)),
                    "regime": self.regime(*place) if masks == MAGNITUDE else None,
                }
            )
        uses = []
        for column, density in enumerate(self.densities):
            gains = {rule: self.gain(rule, column) for rule in self.choices(column)}
            use: dict[str, Any] = {
                "density": density,
                "chosen": {
                    rule: None if place is None else self.temperatures[place]
                    for rule, place in self.choices(column).items()
                },
                "points_gained": {rule: None if gain is None else asdict(gain) for rule, gain in gains.items()},
            }
            if self.ordered:
                found = self.walk(column)
                use["path"] = [self.temperatures[place] for place in found.path]
                use["end"] = found.end
            errors = self.error_table()[:, column]
            use["random_temperature_error"] = float(errors.mean()) if np.isfinite(errors).all() else None
            uses.append(use)
        return {
            "temperatures": list(self.temperatures),
            "densities": list(self.densities),
            "barrier": self.barrier,
            "similar": self.split,
            "dense_error": {name: list(values) for name, values in self.dense.items()},
            "cells": cells,
            "uses": uses,
            "signs": [one._asdict() for one in self.signs()],
        }

    def _items(self) -> Iterator[Mapping[str, object]]:
        for (masks, temperature, density), seeds in self.cells.items():
            for one in seeds:
                yield {
                    "masks": masks,
                    "temperature": temperature,
                    "density": density,
                    "seed": one.seed,
                    "kept": one.density,
                    "errors": one.errors,
                    "mc": one.connectivities,
                    "cka": one.similarities,
                    "paths": one.paths,
                }
