"""Is the first draw of the weights a winning ticket? The comparison of arXiv 1810.05270, section 6.

A network is trained and pruned. In the shape that is left, the ticket starts from the very weights the network started
from (Frankle and Carbin, arXiv 1803.03635), its rival from a new draw of the same distribution. Both are trained alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Augment, Examples
from secateur.errors import InputError
from secateur.measure import statistics
from secateur.methods.arms import DEFAULTS, fit, give_verdict, mark_correct, split_judged
from secateur.methods.published_rules import duplicate, prune
from secateur.recover.training import initialise
from secateur.reports import sheet as sheets
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table
from secateur.runs import keywords, splits
from secateur.runs.backends.network import Network
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Figure, Training

__all__ = ["STUDY", "Lottery", "Tickets", "Trial", "lottery", "plan", "tickets"]

STUDY = {
    "title": "is the first draw a winning ticket? the original first weights beside a new draw in the pruned shape",
    "recipe": "rethinking_pruning_value",
    "sets": "seed select_by dry_run lr widths inner untrained sparsity calibration finetune finetune_epochs scratch "
    "cap",
    "grid": "lrs seeds",
}

Method = Literal["unstructured", "l1"]

_ARMS = {"large network": "dense", "ticket": "ticket", "new draw": "drawn"}


@dataclass(frozen=True, slots=True)
class Tickets:
    """What tickets and new draws reach at one learning rate; accuracies per seed."""

    lr: float
    dense: tuple[float, ...]
    ticket: tuple[float, ...]
    drawn: tuple[float, ...]

    @property
    def difference(self) -> Figure:
        """Ticket minus new draw in percentage points, paired over seeds."""
        return statistics.to_percent(statistics.paired_difference(self.ticket, self.drawn))

    @property
    def verdict(self) -> str:
        """Whether the ticket is better than a new draw, worse, or neither."""
        return give_verdict(self.difference, "the ticket is", "the new draw is")

    def mean_accuracy(self, arm: str) -> Figure:
        """Accuracy in percent of "large network", "ticket" or "new draw": mean over seeds with its interval."""
        return statistics.to_percent(statistics.mean_interval(getattr(self, _ARMS[arm])))


class Trial(NamedTuple):
    """A large network, its ticket and its rival."""

    seed: int
    lr: float

    def __str__(self) -> str:
        return f"seed {self.seed}, lr {self.lr:g}"


@dataclass(frozen=True, slots=True)
class Lottery:
    """What the draws gave for each learning rate, over seeds."""

    rates: tuple[Tickets, ...]
    seeds: tuple[int, ...]
    left: str
    """What is left of the network, in words."""

    def sheet(self) -> Sheet:
        """A table, a chart over learning rates, and figures; accuracies in percent, differences in points."""
        rows = [["Learning rate", *(f"{arm.capitalize()}, %" for arm in _ARMS), "Ticket over new draw", "Verdict"]]
        for one in self.rates:
            reached = [sheets.points(one.mean_accuracy(arm)) for arm in _ARMS]
            rows.append([f"{one.lr:g}", *reached, sheets.points(one.difference, signed=True), one.verdict])
        told = [f"lr {one.lr:g}: {sheets.points(one.difference, signed=True)} points" for one in self.rates]
        words = "; a ticket and its rival have one shape, and see the same batches in the same order."
        table = Table(f"Held-out accuracy with {self.left}", rows, sheets.over(self.seeds) + words)
        rates = sorted(self.rates, key=lambda one: one.lr)
        lines = [
            Line(arm, [(one.lr, one.mean_accuracy(arm)) for one in rates], (number + 1) / len(_ARMS))
            for number, arm in enumerate(_ARMS)
        ]
        chart = Chart("Accuracy by learning rate", {"": lines}, "first learning rate", "accuracy, %",
                      "Whiskers are intervals.", log=True, bounds=(0.0, 100.0))  # fmt: skip
        figures = {
            "rates": [
                {"lr": one.lr, **{arm: list(getattr(one, name)) for arm, name in _ARMS.items()},
                 "ticket_minus_new_draw": asdict(one.difference), "verdict": one.verdict}
                for one in self.rates
            ]
        }  # fmt: skip
        return Sheet("lottery", f"Ticket minus new draw, {self.left}: {'; '.join(told)}", [table], figures, chart=chart)


def lottery(
    subject: Traced,
    data: Examples,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    kept: float = 0.2,
    method: Literal["unstructured", "l1"] = "unstructured",
    rounds: int = 1,
    lrs: Sequence[float] = (0.1, 0.01),
    seeds: Sequence[int] = (0, 1, 2),
    judged: str | Examples = "",
    norm: float = 1.0,
    training: Training = Training(epochs=160, batch=64, weight_decay=1e-4, optimizer="sgd"),
) -> Lottery:
    """Train, prune, start again, at a large and at a small learning rate: the ticket beside a new draw, over seeds.

    The same call again goes on where it stopped; more rates or seeds in the same folder train what is new.

    Args:
        subject: the architecture; its weights don't matter.
        data: examples with classes.
        folder: of the run directories.
        progress: wraps the trials, such as rich.progress.track.
        kept: share of convolution weights ("unstructured") or of channels ("l1") that stays.
        method: "unstructured" or "l1".
        rounds: 1 prunes at once. More prune iteratively, each round the same share of what is left, and train anew
            from the first draw in between; only for "unstructured".
        lrs: first learning rates; the claim is about the large one beside the small one.
        seeds: of draws, order and what is held out; a ticket and its rival share them. Two or more for intervals.
        judged: examples to judge on; a tenth of the data, another for each seed, is held out unless given.
        epochs: of every training, decays at 50 % and 75 %.
        batch: examples per step.
        weight_decay: of matrices and kernels.
        norm: first weights of batch norms.
        optimizer: "sgd", or "adamw" in place of the paper's Adam, for which give rates of 0.001 and below.
    """
    how: dict[str, Any] = {"kept": kept, "method": method, "rounds": rounds, "norm": norm, "training": training}
    _check(lrs, seeds, **how)
    apart = splits.read_judged(judged, data, subject)
    about = {"model": Network().digest(subject), "data": data.digest, "judged": apart.digest if apart else ""}
    most = keywords.another_batch({"batch": training.batch}, lottery)
    data, apart = examples.limit(data, most), examples.limit(apart, most) if apart else None
    trials = [Trial(seed, lr) for seed in dict.fromkeys(seeds) for lr in dict.fromkeys(lrs)]
    found: dict[Trial, list[float]] = {}
    for trial in progress(trials):
        parts = split_judged(data, apart, trial.seed)
        record = {**about, "seed": trial.seed, **keywords.flat(lottery, how)}
        with Run.open(Path(folder, f"seed-{trial.seed}"), record) as run:

            def make(trial: Trial = trial, parts: tuple[Examples, Examples] = parts, run: Run = run) -> list[float]:
                place = run.folder(f"lr-{trial.lr}")
                reached = _train_draws(subject, *parts, lr=trial.lr, seed=trial.seed, folder=place, **how)
                shutil.rmtree(place, ignore_errors=True)  # their answers are known
                return list(reached)

            found[trial] = run.json(f"judged-{trial.lr}", make)
    rates = []
    for lr in dict.fromkeys(lrs):
        rows = [found[trial] for trial in trials if trial.lr == lr]
        rates.append(Tickets(lr, *(tuple(column) for column in zip(*rows, strict=True))))
    what = "convolution weights" if method == "unstructured" else "channels"
    return Lottery(tuple(rates), tuple(dict.fromkeys(seeds)), f"{100 * kept:g}% of the {what} left")


def plan(
    subject: Traced,
    data: Examples,
    *,
    lrs: Sequence[float],
    seeds: Sequence[int],
    judged: str | Examples = "",
    **how: Any,
) -> dict[str, int]:
    """What `lottery` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    _check(lrs, seeds, **how)
    apart = splits.read_judged(judged, data, subject)
    for seed in dict.fromkeys(seeds):
        for part in split_judged(data, apart, seed):
            Network().fit_data(part, subject)
    prune(_draw(subject, 0, how["norm"]), _budget(how["method"], how["kept"]), how["method"])
    many = len(set(seeds)) * len(set(lrs))
    return {"trainings of the large network": many * how["rounds"], "tickets": many, "new draws": many}


def tickets(
    subject: Traced,
    data: Examples,
    judged: Examples,
    *,
    lrs: Sequence[float] = (0.1, 0.01),
    seeds: Sequence[int] = (0, 1, 2),
    kept: float = 0.2,
    method: Method = "unstructured",
    rounds: int = 1,
    norm: float = 1.0,
    augment: Augment | None = None,
    training: Training | None = None,
    **settings: Any,
) -> tuple[Tickets, ...]:
    """As `lottery`, of examples that are apart already, in memory: per learning rate what its arms reach.

    Args:
        subject, data, judged, lrs, seeds, kept, method, rounds, norm, training: as of `lottery`.
        augment: see `examples.batches`.
        settings: fields of `training`, in place of those that it has.
    """
    training = replace(training or Training(), **settings).default(**DEFAULTS)
    how: dict[str, Any] = {"kept": kept, "method": method, "rounds": rounds, "norm": norm, "training": training}
    _check(lrs, seeds, **how)
    found = []
    for lr in lrs:
        rows = [_train_draws(subject, data, judged, lr=lr, seed=seed, augment=augment, **how) for seed in seeds]
        found.append(Tickets(lr, *zip(*rows, strict=True)))
    return tuple(found)


def _train_draws(
    subject: Traced,
    data: Examples,
    judged: Examples,
    *,
    lr: float,
    seed: int,
    kept: float,
    method: Method,
    rounds: int,
    norm: float,
    training: Training,
    folder: Path | None = None,
    augment: Augment | None = None,
) -> tuple[float, float, float]:
    """Accuracies of one large network, of its ticket and of a new draw."""

    def train(one: Traced, name: str, closed: Mapping[str, Tensor]) -> None:
        place = folder / name if folder else None
        how = replace(training, lr=lr)
        fit(one.model, data, how, seed=seed, augment=augment, closed=closed, folder=place)

    first, large = _draw(subject, seed, norm), _draw(subject, seed, norm)
    closed: Mapping[str, Tensor] = {}
    train(large, "large", closed)
    dense = mark_correct(large.model, judged).mean()
    for part in range(1, rounds + 1):
        if part > 1:
            large = duplicate(first)
            train(large, f"large-{part}", closed)
        pruned = prune(large, _budget(method, kept ** (part / rounds)), method)
        closed = pruned.masks
    ticket, rival = duplicate(first), _draw(subject, seed + 1000, norm)
    if method == "l1":
        ticket, rival = ticket.cut(pruned.selection)[0], rival.cut(pruned.selection)[0]
    for one, name in ((ticket, "ticket"), (rival, "drawn")):
        train(one, name, closed)
    ours, theirs = (float(mark_correct(one.model, judged).mean()) for one in (ticket, rival))
    return float(dense), ours, theirs


def _check(
    lrs: Sequence[float],
    seeds: Sequence[int],
    *,
    kept: float,
    method: Method,
    rounds: int,
    training: Training,
    **_: object,
) -> None:
    if method not in ("unstructured", "l1"):
        raise InputError(f"method={method!r} is not one of unstructured, l1")
    if rounds < 1 or (rounds > 1 and method == "l1"):
        raise InputError(f"rounds={rounds}: give 1, or more for unstructured pruning")
    if not 0 < kept < 1:
        raise InputError(f"kept={kept} is no share between 0 and 1")
    if not lrs or not seeds or not all(one > 0 for one in lrs):
        raise InputError(f"lrs={list(lrs)}, seeds={list(seeds)}: give at least one of each, and rates above 0")
    if training.number("epochs") < 1:
        raise InputError(f"epochs={training.epochs:g}: give at least 1, for what was not trained says nothing")
    keywords.check_seed(*seeds)


def _budget(method: str, share: float) -> Budget:
    return Budget.parse(f"{'weights' if method == 'unstructured' else 'channels'}={100 * share:.6f}%")


def _draw(subject: Traced, seed: int, norm: float) -> Traced:
    """The network's shape with weights of the dense rule: what a mask closes later changes no variance."""
    model, _ = initialise.fresh(subject.model, seed=seed, norm=norm)
    return Traced(model, subject.inputs, subject.plans)
