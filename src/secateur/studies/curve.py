"""What is a teacher worth, by the share of the data that is left? The curves of arXiv 2403.07854.

Accuracy(f, alpha, rule): students of `kd_data_pruning` for each share f of the training set, each weight alpha of the
teacher and each rule by which examples are kept, over seeds. All of one seed and share are judged on the same examples
and start from the same weights: what the teacher brings is paired.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from secateur import recipes
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.measure import loyalty, quality
from secateur.measure.statistics import mean_interval, paired_difference, to_percent
from secateur.methods.example_scores import ask_logits, ask_teacher, check_scoring, count_classes, score_by_training
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table, over, percent
from secateur.runs import keywords
from secateur.runs.backends.network import Network
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Figure, Limit, Result

__all__ = ["STUDY", "Cell", "Curve", "curve", "plan"]

STUDY = {
    "title": "accuracy by share of the data kept, rule and weight of the teacher: with a teacher and without",
    "recipe": "kd_data_pruning",
    "sets": "score scored alpha soft pack tried trials held labels_alone seed dry_run",
    "grid": "shares alphas rules seeds teachers",
}

OWN = "MODEL"
"""What the first teacher is called among others."""


class Cell(NamedTuple):
    """One training."""

    seed: int
    rule: str
    share: float
    alpha: float
    teacher: str = OWN

    def __str__(self) -> str:
        told = f"seed {self.seed}, {self.rule}, {100 * self.share:g}%, {_name_weight(self.alpha)}"
        return told if self.teacher == OWN else f"{told}, taught by {self.teacher}"


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
        means = {name: one.accuracy(rule, share, alpha).value for name, one in self.teachers.items()}
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
        called = _name_weight(taught).capitalize()
        headline = f"{called} brings {gain} points over labels alone: {rule} examples, {span}"
        tables = [*map(self._accuracies, self.rules), self._areas(), *map(self._loyalties, self.rules)]
        if self.others:
            told = [f"{self.best_teacher(rule, f, taught)} at {100 * f:g}%" for f in self.shares]
            headline = f"Best teacher, {rule} examples, {_name_weight(taught)}: {', '.join(told)}"
            tables = [self._by_teacher(one, alpha) for one in self.rules for alpha in self.alphas if alpha] + tables
        return Sheet("curve", headline, tables, self._figures(), chart=Chart(
            "Accuracy by the share that is kept",
            self._panels_of_teachers() if self.others else {
                one: [self._line(_name_weight(alpha), one, alpha, alpha) for alpha in self.alphas] for one in self.rules
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
            f"{rule}, {_name_weight(alpha)}": [
                self._line(_name_weight(0.0), rule, 0.0, 0.0),
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
        return Table(
            f"{rule}, {_name_weight(alpha)}: accuracy by teacher", rows,
            f"{over(self.seeds)}. Differences in points, paired over seeds: all teachers teach the same students on "
            "the same examples. Where the best of several is taken on these seeds, it flatters a little.",
        )  # fmt: skip

    def _accuracies(self, rule: str) -> Table:
        rows = [["Kept", *map(_name_weight, self.alphas), "Best alpha", "Gain of the best"]]
        for share in self.shares:
            best = self.best(rule, share)
            cells = [percent(self.accuracy(rule, share, alpha)) for alpha in self.alphas]
            rows.append([f"{100 * share:g}%", *cells, f"{best:g}", percent(self.gain(rule, share, best), signed=True)])
        return Table(
            f"{rule}: accuracy, %", rows,
            f"{over(self.seeds)}. The gain is over labels alone, in points, "
            "paired over seeds; where the best of several is taken on these seeds, it flatters a little.",
        )  # fmt: skip

    def _loyalties(self, rule: str) -> Table:
        rows = [["Kept", *map(_name_weight, self.alphas)]]
        rows += [
            [f"{100 * share:g}%", *(percent(self.loyalty(rule, share, alpha)) for alpha in self.alphas)]
            for share in self.shares
        ]
        words = f"{over(self.seeds)}: of held-out examples, how many the student gives the teacher's class."
        return Table(f"{rule}: label loyalty to the teacher, %", rows, words)

    def _areas(self) -> Table:
        taught = self.alphas[1:]
        rows = [["Rule", *map(_name_weight, self.alphas), *(f"Gain, {_name_weight(alpha)}" for alpha in taught)]]
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

    def _figures(self) -> dict[str, Any]:
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

    def _figures_of_teachers(self) -> dict[str, Any]:
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


def curve(
    subject: Traced,
    data: Examples,
    folder: str | Path,
    progress: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
    *,
    shares: Sequence[float] = (0.05, 0.1, 0.3, 1.0),
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    rules: Sequence[str] = ("random",),
    seeds: Sequence[int] = (0, 1, 2),
    judged: str | Examples = "",
    teachers: Sequence[str] = (),
    **options: Any,
) -> Curve:
    """Train the students of `kd_data_pruning` for the whole grid, each in a run directory of its rule and seed.

    The same call again goes on where it stopped; a larger grid in the same folder trains what is new. At a share of 1
    all rules keep the same, and share one training.

    Args:
        subject: the teacher: a trained classifier.
        data: what it was trained on, with classes.
        folder: of the run directories.
        progress: wraps the trainings, such as rich.progress.track.
        shares: of the examples that stay, above 0 and up to 1.
        alphas: weights of the teacher, 0 to 1; 0, labels alone, is always among them.
        rules: scores by which examples stay: random, el2n, forgetting, grand, moderate, herding, memorisation.
        seeds: each splits the data, draws what stays and starts from weights of its own; two or more for intervals.
        judged: examples to judge on; a tenth of the data, another for each seed, is held out unless given.
        teachers: file.py:function of others, smaller or larger, of the same classes, to be compared with the first:
            all teach the same students, which are like the first unless a student is given, on the same examples.
        options: of `kd_data_pruning`.
    """
    wanted, chosen = _grid(shares, alphas, rules, seeds, teachers), _check_options(rules, options)
    sets = STUDY["sets"].split()
    recorded = {name: value for name, value in keywords.flat(_recipe(), chosen).items() if name not in sets}
    found = dict[Cell, dict[str, float]]()
    apart = examples.read(judged) if judged else None
    about = {"data": data.digest, "judged": apart.digest if apart else ""}
    known = {OWN: subject, **{name: _open_teacher(name, subject, data) for name in wanted.teachers}}
    digests = {name: Network().digest(one) for name, one in known.items()}
    for cell in progress(list(wanted.trainings())):
        train, held = _parts(data, apart, cell.seed)
        first = Path(folder, f"{cell.rule}-{cell.seed}")
        settings = {"rule": cell.rule, "seed": cell.seed, "model": digests[OWN], **about, **recorded}
        own, name = cell.teacher == OWN, f"judged-{cell.share:g}-alpha-{cell.alpha:g}"
        # By its weights: a teacher that was trained further is another, under whatever name.
        place = first if own else Path(folder, f"{first.name}-by-{digests[cell.teacher][:16]}")
        with Run.open(place, settings if own else {**settings, "teacher": digests[cell.teacher]}) as run:
            source = None if own else first
            judge = partial(_judge_cell, subject, known[cell.teacher], train, held, run, cell, chosen, source)
            found[cell] = run.json(name, judge)
    rows = {
        teacher: [
            {(rule, share, alpha): tuple(found[wanted.training(seed, rule, share, alpha, teacher)][name]
                                         for seed in wanted.seeds)
             for rule in wanted.rules for share in wanted.shares for alpha in wanted.alphas
             # Labels alone ask no teacher, but to whom they are loyal is known of the first alone.
             if alpha or teacher == OWN or name == "accuracy"}
            for name in ("accuracy", "label_loyalty")
        ]
        for teacher in known
    }  # fmt: skip
    grid = (wanted.rules, wanted.shares, wanted.alphas, wanted.seeds)
    others = {name: Curve(rows[name][0], *grid, rows[name][1]) for name in wanted.teachers}
    return Curve(rows[OWN][0], *grid, rows[OWN][1], others, {name: _weights(one) for name, one in known.items()})


def plan(
    subject: Traced,
    data: Examples,
    *,
    shares: Sequence[float],
    alphas: Sequence[float],
    rules: Sequence[str],
    seeds: Sequence[int],
    judged: str | Examples = "",
    teachers: Sequence[str] = (),
    **options: Any,
) -> dict[str, int]:
    """What `curve` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    wanted, chosen = _grid(shares, alphas, rules, seeds, teachers), _check_options(rules, options)
    Network().fit_data(data, subject)
    for name in wanted.teachers:
        _open_teacher(name, subject, data)
    apart = examples.read(judged) if judged else None
    for seed in wanted.seeds:
        train, held = _parts(data, apart, seed)
        Network().fit_data(held, subject)
        with tempfile.TemporaryDirectory() as place, Run.open(place, {}) as run:
            budgets, how = [_budget(share) for share in wanted.shares], {**chosen, "score": "random", "alpha": 0.0}
            list(_recipe()(subject, train, budgets, run, **{**how, "seed": seed, "dry_run": True}))
    scored, ask = [rule for rule in wanted.rules if rule != "random"], partial(ask_logits, subject.inputs)
    for rule in scored:  # a look at the teacher as it is: some rules read what enters a last linear layer
        score_by_training(subject.model, train, ask, rule, chosen["training"], epochs=0, seed=0)
    if scored:
        runs = len(scored) * len(wanted.seeds) * int(chosen["runs"])
        return {"students": len(list(wanted.trainings())), "short trainings for scores": runs}
    return {"students": len(list(wanted.trainings()))}


@dataclass(frozen=True, slots=True)
class _Grid:
    rules: tuple[str, ...]
    shares: tuple[float, ...]
    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    teachers: tuple[str, ...]

    def training(self, seed: int, rule: str, share: float, alpha: float, teacher: str = OWN) -> Cell:
        """The training that stands for this cell: all of the data is the same by any rule, labels alone by anyone."""
        return Cell(seed, rule if share < 1 else "random", share, alpha, teacher if alpha else OWN)

    def trainings(self) -> Iterator[Cell]:
        cells = (
            self.training(seed, rule, share, alpha, teacher)
            for seed in self.seeds for rule in self.rules for share in self.shares
            for teacher in (OWN, *self.teachers) for alpha in self.alphas
        )  # fmt: skip
        yield from dict.fromkeys(cells)


def _grid(
    shares: Sequence[float], alphas: Sequence[float], rules: Sequence[str], seeds: Sequence[int],
    teachers: Sequence[str],
) -> _Grid:  # fmt: skip
    keywords.check_seed(*seeds)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares={list(shares)}: give shares of the examples that stay, above 0 and up to 1")
    if not all(0 <= alpha <= 1 for alpha in alphas) or not any(alphas):
        raise InputError(f"alphas={list(alphas)}: give weights of the teacher up to 1, one of them above 0")
    if not rules or not seeds:
        raise InputError(f"rules={list(rules)}, seeds={list(seeds)}: give at least one of each")
    return _Grid(
        tuple(dict.fromkeys(rules)), tuple(sorted({*shares})), tuple(sorted({0.0, *alphas})),
        tuple(dict.fromkeys(seeds)), tuple(dict.fromkeys(teachers)),
    )  # fmt: skip


def _open_teacher(name: str, subject: Traced, data: Examples) -> Traced:
    """Another teacher, which takes the data and tells as many classes as the first."""
    teacher = Network().open(name, None, data)
    Network().fit_data(data, teacher)
    own, other = (count_classes(one.model, partial(ask_logits, one.inputs), data) for one in (subject, teacher))
    if own != other:
        raise InputError(f"the teacher {name} tells {other} classes, {OWN} {own}: give teachers of the same classes")
    return teacher


def _weights(subject: Traced) -> int:
    return sum(weight.numel() for weight in subject.model.parameters())


def _recipe() -> Callable[..., Iterator[Result]]:
    return recipes.find(STUDY["recipe"])


def _check_options(rules: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """All of the recipe's options, checked for each rule."""
    for rule in rules:
        checked = keywords.checked(_recipe(), {**options, "score": rule})
        check_scoring(rule, checked["runs"], checked["score_epochs"])
    return checked


def _parts(data: Examples, judged: Examples | None, seed: int) -> tuple[Examples, Examples]:
    """(what is learned from, what is judged on) under a seed."""
    train, held = data.split(seed=seed) if judged is None else (data, judged)
    if held.labels is None:
        raise DataError(f"{held.name} has no classes to judge by: give labels")
    return train, held


def _budget(share: float) -> Budget:
    return Budget((Limit("examples", share, True),))


def _judge_cell(
    subject: Traced,
    teacher: Traced,
    train: Examples,
    held: Examples,
    run: Run,
    cell: Cell,
    chosen: Mapping[str, Any],
    first: Path | None,
) -> dict[str, float]:
    """{"accuracy", "label_loyalty" to the teacher} of the student of one cell, on `held`.

    first: for a teacher that is not `subject`, the run of that: what stays there is what its students see.
    """
    budget, how = _budget(cell.share), {**chosen, "score": cell.rule}
    if first is not None:
        left = ExampleSet.load(train, first / "work" / f"kept-{budget}")
        left.save(run.folder(f"kept-{budget}"))
        ask, batch = partial(ask_logits, teacher.inputs), chosen["training"].batch
        run.tensors(f"soft-{budget}", partial(ask_teacher, teacher.model, ask, left, batch=batch))
        how |= {"score": "random", "soft": str(run.root)}
    (result,) = _recipe()(subject, train, [budget], run, **{**how, "alpha": cell.alpha, "seed": cell.seed})
    assert isinstance(result.subject, Traced)
    tally, both = loyalty.Tally(), [partial(Network().forward, one) for one in (teacher, result.subject)]
    accuracy = quality.accuracies(both, held.in_order(256), watch=tally.add)[1].value
    for folder in (run.root / "work").glob("train-*"):
        shutil.rmtree(folder, ignore_errors=True)  # its answer is known
    return {"accuracy": accuracy, "label_loyalty": tally.figures()["label_loyalty"].value}


# ----------------------------------------------------------------------------------------------------- in words


def _name_weight(alpha: float) -> str:
    return {0.0: "labels alone", 1.0: "teacher alone"}.get(alpha, f"alpha {alpha:g}")
