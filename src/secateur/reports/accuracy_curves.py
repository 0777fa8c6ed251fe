"""Accuracy by share of the data left, rule and teacher: figures, tables and chart of the study `curve`.

Accuracy(f, alpha, rule) over seeds, the curves of arXiv 2403.07854; all comparisons are paired over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.integrate import trapezoid

from secateur.measure.statistics import mean_interval, paired_difference, to_percent
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table, over, percent
from secateur.vocabulary import Figure

__all__ = ["OWN", "Curve", "name_weight"]

OWN = "MODEL"
"""What the first teacher is called among others."""


_FLATTERS = "Where the best of several is taken on these seeds, it flatters a little."


def name_weight(alpha: float) -> str:
    """The weight of the teacher, in words."""
    return {0.0: "labels alone", 1.0: "teacher alone"}.get(alpha, f"alpha {alpha:g}")


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracies on held-out examples, seed by seed, and how often the students say what the teacher says."""

    accuracies: Mapping[tuple[str, float, float], tuple[float, ...]]
    """(rule, share, alpha) -> one per seed, in the order of `seeds`."""
    rules: tuple[str, ...]
    shares: tuple[float, ...]
    """Rising."""
    alphas: tuple[float, ...]
    """Rising; 0, labels alone, is the first."""
    seeds: tuple[int, ...]
    loyalties: Mapping[tuple[str, float, float], tuple[float, ...]] = field(default_factory=dict)
    """As `accuracies`: label loyalty to the teacher, on the same examples."""
    others: Mapping[str, Curve] = field(default_factory=dict)
    """Another teacher -> its curve, of the same students on the same examples; labels alone are those of this one."""
    params: Mapping[str, int] = field(default_factory=dict)
    """Teacher -> how many weights it has; this one is `OWN`."""

    @property
    def teachers(self) -> dict[str, Curve]:
        """Teacher -> its curve, the smallest first."""
        every = {OWN: self, **self.others}
        return dict(sorted(every.items(), key=lambda one: self.params.get(one[0], 0)))

    def best_teacher(self, rule: str, share: float, alpha: float) -> str:
        """The teacher of the highest mean; of equals the smallest."""
        means = {name: curve.accuracy(rule, share, alpha).value for name, curve in self.teachers.items()}
        return max(means, key=means.__getitem__)

    def lead(self, rule: str, share: float, alpha: float, teacher: str) -> Figure:
        """What a teacher brings over this one, paired over seeds."""
        theirs = self.teachers[teacher].accuracies[rule, share, alpha]
        return paired_difference(theirs, self.accuracies[rule, share, alpha])

    def accuracy(self, rule: str, share: float, alpha: float) -> Figure:
        """Mean over seeds with Student's interval."""
        return mean_interval(self.accuracies[rule, share, alpha])

    def loyalty(self, rule: str, share: float, alpha: float) -> Figure:
        """Mean label loyalty over seeds with Student's interval."""
        return mean_interval(self.loyalties[rule, share, alpha])

    def gain(self, rule: str, share: float, alpha: float) -> Figure:
        """What the teacher at this weight brings over labels alone, paired over seeds."""
        return paired_difference(self.accuracies[rule, share, alpha], self.accuracies[rule, share, 0.0])

    def best(self, rule: str, share: float) -> float:
        """The alpha of the highest mean; of equals the smallest."""
        means = [self.accuracy(rule, share, alpha).value for alpha in self.alphas]
        return self.alphas[int(np.argmax(means))]

    def areas(self, rule: str, alpha: float) -> tuple[float, ...]:
        """Per seed the area under accuracy over log f, divided by its width: the mean accuracy over log f.

        ``1 / log(f_n / f_1) sum_i (a_i + a_{i+1}) / 2 log(f_{i+1} / f_i)``, the trapezoid rule, from the smallest share
        f_1 to the largest. By log f a halving of the data counts the same wherever it falls, and 1 is still the best.
        Of a single share it is the accuracy.
        """
        rows = np.array([self.accuracies[rule, share, alpha] for share in self.shares])
        if len(self.shares) == 1:
            return tuple(rows[0].tolist())
        places = np.log(self.shares)
        return tuple((trapezoid(rows, places, axis=0) / (places[-1] - places[0])).tolist())

    def area(self, rule: str, alpha: float) -> Figure:
        """Mean of `areas`, with its interval."""
        return mean_interval(self.areas(rule, alpha))

    def area_gain(self, rule: str, alpha: float) -> Figure:
        """How much larger the area is than that of labels alone, paired over seeds."""
        return paired_difference(self.areas(rule, alpha), self.areas(rule, 0.0))

    def sheet(self) -> Sheet:
        """Tables, chart and figures; accuracies in percent, differences in points."""
        taught = self.alphas[-1]
        rule = max(self.rules, key=lambda one: self.area(one, taught).value)
        span = f"{100 * self.shares[0]:g}"
        span = f"{span} to {100 * self.shares[-1]:g}%, mean over log f" if len(self.shares) > 1 else f"{span}%"
        gain = percent(self.area_gain(rule, taught), signed=True)
        called = name_weight(taught).capitalize()
        headline = f"{called} brings {gain} points over labels alone: {rule} examples, {span}"
        tables = [*map(self._accuracies, self.rules), self._areas(), *map(self._loyalties, self.rules)]
        if self.others:
            told = [f"{self.best_teacher(rule, f, taught)} at {100 * f:g}%" for f in self.shares]
            headline = f"Best teacher, {rule} examples, {name_weight(taught)}: {', '.join(told)}"
            tables = [self._by_teacher(one, alpha) for one in self.rules for alpha in self.alphas if alpha] + tables
        return Sheet("curve", headline, tables, self._figures(), chart=Chart(
            "Accuracy by the share that is kept",
            self._panels_of_teachers() if self.others else {
                one: [self._line(name_weight(alpha), one, alpha, alpha) for alpha in self.alphas] for one in self.rules
            },
            "examples kept, %", "accuracy, %", log=len(self.shares) > 1, bounds=(0.0, 100.0),
            words=f"{over(self.seeds)}. The share is drawn by its logarithm.",
        ))  # fmt: skip

    def _line(self, name: str, rule: str, alpha: float, weight: float) -> Line:
        return Line(name, [(100 * f, to_percent(self.accuracy(rule, f, alpha))) for f in self.shares], weight)

    def _panels_of_teachers(self) -> dict[str, list[Line]]:
        """A panel for each rule and weight: labels alone, and a line for each teacher, the largest the strongest."""
        every = list(self.teachers.items())
        names = [Path(name).name for name, _ in every]
        if len(set(names)) < len(names):  # of files of one name the folders tell which
            names = [name for name, _ in every]
        return {
            f"{rule}, {name_weight(alpha)}": [
                self._line(name_weight(0.0), rule, 0.0, 0.0),
                *(one._line(names[place], rule, alpha, (place + 1) / len(every))
                  for place, (_, one) in enumerate(every)),
            ]
            for rule in self.rules for alpha in self.alphas if alpha
        }  # fmt: skip

    def _by_teacher(self, rule: str, alpha: float) -> Table:
        rows = [["Kept", "Teacher", "Weights", "Accuracy, %", "Over labels alone", f"Over {OWN}", ""]]
        for share in self.shares:
            best = self.best_teacher(rule, share, alpha)
            rows += [
                [f"{100 * share:g}%", name, str(self.params.get(name, "")),
                 percent(one.accuracy(rule, share, alpha)),
                 percent(one.gain(rule, share, alpha), signed=True),
                 "" if one is self else percent(self.lead(rule, share, alpha, name), signed=True),
                 "best" if name == best else ""]
                for name, one in self.teachers.items()
            ]  # fmt: skip
        words = (
            f"{over(self.seeds)}. Differences in points, paired over seeds: all teachers teach the same students on "
            f"the same examples. {_FLATTERS}"
        )
        return Table(f"{rule}, {name_weight(alpha)}: accuracy by teacher", rows, words)

    def _accuracies(self, rule: str) -> Table:
        rows = [["Kept", *map(name_weight, self.alphas), "Best alpha", "Gain of the best"]]
        for share in self.shares:
            best = self.best(rule, share)
            cells = [percent(self.accuracy(rule, share, alpha)) for alpha in self.alphas]
            rows.append([f"{100 * share:g}%", *cells, f"{best:g}", percent(self.gain(rule, share, best), signed=True)])
        words = f"{over(self.seeds)}. The gain is over labels alone, in points, paired over seeds. {_FLATTERS}"
        return Table(f"{rule}: accuracy, %", rows, words)

    def _loyalties(self, rule: str) -> Table:
        rows = [["Kept", *map(name_weight, self.alphas)]]
        rows += [
            [f"{100 * share:g}%", *(percent(self.loyalty(rule, share, alpha)) for alpha in self.alphas)]
            for share in self.shares
        ]
        words = f"{over(self.seeds)}: of held-out examples, how many the student gives the teacher's class."
        return Table(f"{rule}: label loyalty to the teacher, %", rows, words)

    def _areas(self) -> Table:
        taught = self.alphas[1:]
        rows = [["Rule", *map(name_weight, self.alphas), *(f"Gain, {name_weight(alpha)}" for alpha in taught)]]
        rows += [
            [rule, *(percent(self.area(rule, alpha)) for alpha in self.alphas),
             *(percent(self.area_gain(rule, alpha), signed=True) for alpha in taught)]
            for rule in self.rules
        ]  # fmt: skip
        return Table(
            "Area under the curve", rows,
            f"Mean accuracy over log f from {100 * self.shares[0]:g} to {100 * self.shares[-1]:g}%, in percent; gains "
            "over labels alone in points, paired over seeds.",
        )  # fmt: skip

    def _figures(self) -> dict[str, object]:
        return {
            "accuracy": [
                {"rule": rule, "share": share, "alpha": alpha, "by_seed": self.accuracies[rule, share, alpha],
                 "mean": asdict(self.accuracy(rule, share, alpha)), "gain": asdict(self.gain(rule, share, alpha)),
                 "label_loyalty": asdict(self.loyalty(rule, share, alpha))}
                for rule in self.rules for share in self.shares for alpha in self.alphas
            ],
            "best_alpha": [
                {"rule": rule, "share": share, "alpha": self.best(rule, share)}
                for rule in self.rules for share in self.shares
            ],
            "area_over_log_share": [
                {"rule": rule, "alpha": alpha, "by_seed": self.areas(rule, alpha),
                 "mean": asdict(self.area(rule, alpha)), "gain": asdict(self.area_gain(rule, alpha))}
                for rule in self.rules for alpha in self.alphas
            ],
            **(self._figures_of_teachers() if self.others else {}),
        }  # fmt: skip

    def _figures_of_teachers(self) -> dict[str, object]:
        cells = [(rule, f, alpha) for rule in self.rules for f in self.shares for alpha in self.alphas if alpha]
        return {
            "teachers": [
                {"teacher": name, "params": self.params.get(name), "rule": rule, "share": share, "alpha": alpha,
                 "by_seed": one.accuracies[rule, share, alpha], "mean": asdict(one.accuracy(rule, share, alpha)),
                 "gain": asdict(one.gain(rule, share, alpha)),
                 "lead": asdict(self.lead(rule, share, alpha, name)),
                 "label_loyalty": asdict(one.loyalty(rule, share, alpha))}
                for name, one in self.teachers.items() for rule, share, alpha in cells
            ],
            "best_teacher": [
                {"rule": rule, "share": share, "alpha": alpha, "teacher": self.best_teacher(rule, share, alpha)}
                for rule, share, alpha in cells
            ],
        }  # fmt: skip
