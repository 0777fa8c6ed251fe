"""Is it worth inheriting? The control experiment for any cut: the same shape, trained from scratch.

Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270). `scratch` does it for budgets and seeds,
cuts included; `methods.control` for a cut that is made, `runs.scratch_baseline` for a finished run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from secateur import recipes
from secateur._utils import plugins
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.measure import statistics
from secateur.methods import published_rules
from secateur.methods.arms import Arm, fit, forward_flops, refuse_selection, split_judged, train_arms
from secateur.methods.control import LACKS, Control, describe
from secateur.methods.published_rules import Rule
from secateur.recover.training import initialise
from secateur.reports import sheet as sheets
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table
from secateur.runs import keywords, splits
from secateur.runs.backends.network import Network
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Result, Training

__all__ = ["STUDY", "Controls", "Trial", "plan", "scratch"]

STUDY = {
    "title": "is it worth inheriting? fine-tuned weights beside the same shape trained from scratch, over seeds",
    "recipe": "rethinking_pruning_value",
    "sets": "seed select_by dry_run",
    "grid": "budgets seeds",
}


class Trial(NamedTuple):
    """One cut, with all its arms."""

    seed: int
    budget: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.budget}"


@dataclass(frozen=True, eq=False)
class Controls:
    """What the arms gave for each budget, over seeds."""

    budgets: Mapping[str, Control]
    left: Mapping[str, float]
    """Budget -> share of the large network's FLOPs that its cut has, mean over seeds."""
    notes: tuple[str, ...] = ()

    def sheet(self) -> Sheet:
        """A table for each budget, a chart, and figures; accuracies in percent, differences in points."""
        smallest = min(self.left, key=self.left.__getitem__)
        last = self.budgets[smallest]
        fresh = [name for name in last.arms if name.startswith("scratch")]
        best = max(fresh, key=lambda name: float(np.mean(last.accuracies(name))))
        return Sheet(
            "scratch",
            f"{smallest}: fine-tuned minus {best} {sheets.points(last.difference(best), signed=True)} points: "
            f"{last.verdicts[best]}",
            [self._table(budget, control) for budget, control in self.budgets.items()], self._figures(), self.notes,
            Chart(
                "Accuracy by what is left of the network", {"": [self._line(name) for name in last.arms]},
                "FLOPs left, %", "accuracy, %", "Whiskers are intervals.", bounds=(0.0, 100.0),
            ),
        )  # fmt: skip

    def _line(self, arm: str) -> Line:
        reached = {100 * self.left[budget]: control.mean_accuracy(arm) for budget, control in self.budgets.items()}
        return Line(arm, sorted(reached.items()), {"fine-tuned": 1.0, "scratch-B": 0.6, "scratch-E": 0.4}.get(arm, 0.2))

    def _table(self, budget: str, control: Control) -> Table:
        rows = [["Arm", "Accuracy, %", "Epochs", "Training FLOPs", "With the large network's", "Fine-tuned over it",
                 "Verdict"]]  # fmt: skip
        for name, arms in control.arms.items():
            verdict = control.verdicts.get(name, "")
            lead = sheets.points(control.difference(name), signed=True) if verdict else ""
            epochs = f"{np.mean([arm.epochs for arm in arms]):g}"
            reached = sheets.points(control.mean_accuracy(name))
            rows.append([control.arm_name(name), reached, epochs, *control.costs(name), lead, verdict])
        words = (
            f"{sheets.over(control.seeds)}; differences in points, paired over {control.paired_over}: all arms of a "
            "seed see the same batches in the same order."
        )
        return Table(f"{budget}: {100 * self.left[budget]:.3g}% of the FLOPs left", rows, words)

    def _figures(self) -> dict[str, object]:
        budgets = []
        for budget, control in self.budgets.items():
            arms = []
            for name, rows in control.arms.items():
                figures: dict[str, Any] = {
                    "arm": name, "by_seed": control.accuracies(name), "epochs": [arm.epochs for arm in rows],
                    "flops": [arm.flops for arm in rows],
                    "mean": asdict(statistics.mean_interval(control.accuracies(name))),
                }  # fmt: skip
                if name in control.verdicts:
                    figures["fine_tuned_minus_it"] = asdict(control.difference(name))
                    figures["verdict"] = control.verdicts[name]
                arms.append(figures)
            budgets.append({
                "budget": budget, "flops_left": self.left[budget], "large_flops": control.dense_flops,
                "architecture": dict(control.widths), "arms": arms,
            })  # fmt: skip
        return {"budgets": budgets}


def scratch(
    subject: Traced,
    data: Examples,
    folder: str | Path,
    progress: Callable[[Sequence[Trial]], Iterable[Trial]] = iter,
    *,
    budgets: Sequence[str] = ("channels=50%",),
    seeds: Sequence[int] = (0, 1, 2),
    judged: str | Examples = "",
    chance: bool = True,
    **options: object,
) -> Controls:
    """The arms of `rethinking_pruning_value` for each budget, each seed in a run directory of its own.

    The same call again goes on where it stopped; more budgets or seeds in the same folder train what is new.

    Args:
        subject: the large network; untrained, new first weights are drawn for each seed, so that the interval is that
            of the whole experiment.
        data: examples with classes.
        folder: of the run directories.
        progress: wraps the trials, such as rich.progress.track.
        budgets: of one measure each, such as channels=50% or flops=30%.
        seeds: of weights, order and what is held out; all arms of a seed share it. Two or more for intervals.
        judged: examples to judge on; a tenth of the data, another for each seed, is held out unless given.
        chance: train as many units chosen at random, with their inherited weights, too.
        options: of `rethinking_pruning_value`.
    """
    limits, settings = _study_inputs(budgets, seeds, options)
    judges = splits.read_judged(judged, data, subject)
    about = {"model": Network().digest(subject), "data": data.digest, "judged": judges.digest if judges else ""}
    trials = [Trial(seed, budget) for seed in dict.fromkeys(seeds) for budget in limits]
    rows: dict[Trial, dict[str, Any]] = {}
    for trial in progress(trials):
        train, held = split_judged(data, judges, trial.seed)
        record = {**about, "seed": trial.seed, "chance": chance, **keywords.flat(_recipe(), settings)}
        with Run.open(Path(folder, f"seed-{trial.seed}"), record) as run:
            make = partial(_try, subject, train, held, run, trial.seed, limits[trial.budget], chance, **settings)
            rows[trial] = run.json(f"judged-{trial.budget}", make)
    controls, left = {}, {}
    for budget in limits:
        by_seed = [rows[trial] for trial in trials if trial.budget == budget]
        arms = {name: tuple(_stored_arm(row["arms"][name]) for row in by_seed) for name in by_seed[0]["arms"]}
        large = float(np.mean([row["large"] for row in by_seed]))
        controls[budget] = Control(arms, tuple(dict.fromkeys(seeds)), settings["finetune"], large, by_seed[0]["widths"])
        left[budget] = float(np.mean([row["left"] for row in by_seed]))
    notes = dict.fromkeys(note for row in rows.values() for note in row["notes"])
    if not settings["untrained"]:
        notes[f"{LACKS}; what it saw of the examples that arms are judged on flatters its heirs"] = None
    return Controls(controls, left, tuple(notes))


def _stored_arm(row: Mapping[str, Any]) -> Arm:
    return Arm(row["epochs"], row["flops"], np.array(row["right"], bool), nn.Identity())


def plan(
    subject: Traced,
    data: Examples,
    *,
    budgets: Sequence[str],
    seeds: Sequence[int],
    judged: str | Examples = "",
    chance: bool = True,
    **options: object,
) -> dict[str, int]:
    """What `scratch` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    limits, settings = _study_inputs(budgets, seeds, options)
    Network().fit_data(data, subject)
    judges = splits.read_judged(judged, data, subject)
    for seed in dict.fromkeys(seeds):
        _, held = split_judged(data, judges, seed)
        Network().fit_data(held, subject)
    with tempfile.TemporaryDirectory() as place, Run.open(place, {}) as run:
        list(_recipe()(subject, data, list(limits.values()), run, seed=seeds[0], dry_run=True, **settings))
    many, cuts = len(set(seeds)), len(set(seeds)) * len(limits)
    large = settings["untrained"] + (settings["method"] in ("slimming", "blocks"))
    counted = {
        "large networks": many * large + cuts * (settings["method"] == "soft"),
        "fine-tunings": cuts * (1 + chance),
        "trainings from scratch": cuts * (2 if settings["scratch"] == "both" else 1),
    }
    return {name: count for name, count in counted.items() if count}


def _recipe() -> Callable[..., Iterator[Result]]:
    return recipes.find(STUDY["recipe"])


def _study_inputs(
    budgets: Sequence[str], seeds: Sequence[int], options: Mapping[str, object]
) -> tuple[dict[str, Budget], dict[str, Any]]:
    """(name -> budget, all of the recipe's options that are not the study's), checked."""
    if not budgets or not seeds:
        raise InputError(f"budgets={list(budgets)}, seeds={list(seeds)}: give at least one of each")
    keywords.check_seed(*seeds)
    settings = keywords.check_options(_recipe(), options)
    if settings["scratch"] == "none":
        raise InputError("scratch=none leaves out what inherited weights are compared with: give E, B or both")
    refuse_selection(settings["training"])
    epochs = settings["training"].epochs
    if epochs < 1:
        raise InputError(f"epochs={epochs:g}: give at least 1, for what was not trained says nothing")
    limits = {str(budget): budget for budget in map(Budget.parse, budgets)}
    return limits, {name: value for name, value in settings.items() if name not in STUDY["sets"].split()}


def _try(
    subject: Traced,
    train: Examples,
    held: Examples,
    run: Run,
    seed: int,
    budget: Budget,
    chance: bool,
    *,
    method: Rule,
    widths: str | Sequence[str],
    inner: bool,
    untrained: bool,
    sparsity: float,
    calibration: int,
    scratch: str,
    norm: float,
    training: Training,
    augment: str,
    **arms_settings: Any,
) -> dict[str, object]:
    """One cut and its arms: what of `rethinking_pruning_value` is to be kept of them."""
    moved = plugins.function(augment) if augment else None
    learn = partial(fit, data=train, training=training, seed=seed, augment=moved)
    start, batch = subject, training.whole("batch")
    if untrained:
        first = initialise.fresh(subject.model, seed=seed, norm=norm)[0]
        start = Traced(first, subject.inputs, subject.plans)
    large = published_rules.train_large(start, run, learn, rule=method, untrained=untrained, sparsity=sparsity)
    if method == "soft":
        large = published_rules.train_soft(large, budget, run, learn, inner=inner)
    few = examples.batches(train, batch=batch, seed=seed).take(max(1, calibration // batch))
    pruned = published_rules.prune(large, budget, method, widths=widths, inner=inner, batches=few)
    place = run.folder(f"arms-{budget}")
    arms = train_arms(
        pruned,
        train,
        held,
        training,
        seed=seed,
        mode=scratch,
        norm=norm,
        chance=chance,
        watch=False,
        augment=moved,
        folder=place,
        **arms_settings,
    )
    shutil.rmtree(place, ignore_errors=True)  # their answers are known
    dense, cut = (forward_flops(one, bool(pruned.masks)) for one in (pruned.dense, pruned.student))
    once = next((arm.flops / arm.epochs for arm in arms.values() if arm.epochs), 0.0)
    return {
        "arms": {
            name: {"epochs": arm.epochs, "flops": arm.flops, "right": arm.right.astype(int).tolist()}
            for name, arm in arms.items()
        },
        "left": cut / dense,
        "large": once * dense / cut * training.whole("epochs"),
        "widths": describe(pruned.student.model, pruned.masks),
        "notes": list(dict.fromkeys([*pruned.notes, *(note for arm in arms.values() for note in arm.notes)])),
    }
