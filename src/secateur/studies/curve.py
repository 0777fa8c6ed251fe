"""What is a teacher worth, by the share of the data that is left? The curves of arXiv 2403.07854.

Accuracy(f, alpha, rule): students of `kd_data_pruning` for each share f of the training set, each weight alpha of the
teacher and each rule by which examples are kept, over seeds. All of one seed and share are judged on the same examples
and start from the same weights: what the teacher brings is paired.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from secateur import recipes
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError
from secateur.measure import loyalty, quality
from secateur.methods.example_scores import ask_logits, ask_teacher, check_scoring, count_classes, score_by_training
from secateur.reports.accuracy_curves import OWN, Curve, name_weight
from secateur.runs import keywords, splits
from secateur.runs.backends.network import Network
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Limit, Result

__all__ = ["STUDY", "Cell", "curve", "plan"]

STUDY = {
    "title": "accuracy by share of the data kept, rule and weight of the teacher: with a teacher and without",
    "recipe": "kd_data_pruning",
    "sets": "score scored alpha soft pack tried trials held labels_alone seed dry_run",
    "grid": "shares alphas rules seeds teachers",
}


class Cell(NamedTuple):
    """One training."""

    seed: int
    rule: str
    share: float
    alpha: float
    teacher: str = OWN

    def __str__(self) -> str:
        told = f"seed {self.seed}, {self.rule}, {100 * self.share:g}%, {name_weight(self.alpha)}"
        return told if self.teacher == OWN else f"{told}, taught by {self.teacher}"


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
    **options: object,
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
    sets, flags = STUDY["sets"].split(), keywords.flat(_recipe(), chosen)
    recorded = {name: value for name, value in flags.items() if name not in sets}
    data = examples.limit(data, keywords.another_batch(flags, _recipe()))
    found = dict[Cell, dict[str, float]]()
    apart = splits.read_judged(judged, data, subject)
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
    **options: object,
) -> dict[str, int]:
    """What `curve` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    wanted, chosen = _grid(shares, alphas, rules, seeds, teachers), _check_options(rules, options)
    data = Network().fit_data(data, subject)
    for name in wanted.teachers:
        _open_teacher(name, subject, data)
    apart = splits.read_judged(judged, data, subject)
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


def _check_options(rules: Sequence[str], options: Mapping[str, object]) -> dict[str, Any]:
    """All of the recipe's options, checked for each rule."""
    for rule in rules:
        checked = keywords.check_options(_recipe(), {**options, "score": rule})
        check_scoring(rule, checked["runs"], checked["score_epochs"])
    return checked


def _parts(data: Examples, judged: Examples | None, seed: int) -> tuple[Examples, Examples]:
    """(what is learned from, what is judged on) under a seed."""
    train, held = data.split(seed=seed) if judged is None else (data, examples.limit_as(judged, data))
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
