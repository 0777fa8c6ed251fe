"""Is it worth inheriting? The control experiment for any cut: the same shape, trained from scratch.

Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270). `scratch_control` does it for a cut over
several seeds, `scratch` for budgets and seeds, cuts included; `add` does it for each result of a finished run, of
networks and of language models alike.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from secateur import recipes
from secateur._utils.disk import atomic_write
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, InfeasibleError, InputError, SecateurError, UnsupportedError
from secateur.measure import statistics
from secateur.recipes.language import ziplm
from secateur.recipes.vision import rethinking_pruning_value as rethinking
from secateur.recipes.vision.rethinking_pruning_value import Arm, Augment, Pruned
from secateur.recover.sparsity import masks
from secateur.recover.training import initialise
from secateur.reports import evidence
from secateur.reports import sheet as sheets
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table
from secateur.runs import backends, executor, keywords, measuring
from secateur.runs.backends.network import Network
from secateur.score import random
from secateur.select import ranking
from secateur.subjects import Transformer, open_subject, reload_traced
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Evidence, Figure, Result, Selection

__all__ = [
    "LACKS",
    "STUDY",
    "Control",
    "Controls",
    "Trial",
    "add",
    "check",
    "describe",
    "fresh_language",
    "fresh_network",
    "parts",
    "plan",
    "scratch",
    "scratch_control",
]

STUDY = {
    "title": "is it worth inheriting? fine-tuned weights beside the same shape trained from scratch, over seeds",
    "recipe": "rethinking_pruning_value",
    "sets": "seed dry_run",
    "grid": "budgets seeds",
}

LACKS = (
    "scratch lacks the compute of the original's training before this run, which is not counted: where the original "
    "was pretrained on more data, a fresh network that loses says that inheriting helps, not which units"
)


# ------------------------------------------------------------------------------------------- over several seeds


@dataclass(frozen=True, eq=False)
class Control:
    """What the arms gave, over seeds."""

    arms: Mapping[str, tuple[Arm, ...]]
    """Name -> one per seed, in the order of `seeds`."""
    seeds: tuple[int, ...]
    finetune: str
    dense_flops: float
    """Of training the large network for the recipe's epochs."""
    widths: Mapping[str, float]
    """The cut architecture of the first seed, see `describe`."""
    notes: tuple[str, ...] = ()

    def accuracies(self, arm: str) -> tuple[float, ...]:
        """Held-out accuracy of each seed's last weights."""
        return tuple(one.accuracy for one in self.arms[arm])

    def difference(self, arm: str) -> Figure:
        """Fine-tuned minus `arm` in percentage points, paired: over seeds, or over examples where there is one seed."""
        if len(self.seeds) > 1:
            return rethinking.in_points(
                statistics.paired_difference(self.accuracies("fine-tuned"), self.accuracies(arm))
            )
        ours, theirs = (self.arms[name][0].right.astype(float) for name in ("fine-tuned", arm))
        return rethinking.in_points(statistics.paired_difference(ours, theirs))

    @property
    def verdicts(self) -> dict[str, str]:
        """Arm -> whether the inherited weights are better than it, worse, or neither."""
        found = {}
        for name in self.arms:
            if name.startswith("scratch"):
                found[name] = rethinking.judge(self.difference(name))
            elif name == "random units":
                words = rethinking.judge(self.difference(name))
                found[name] = words.replace("the inherited weights are", "the chosen units are").replace(
                    "training from scratch is", "random units are"
                )
        return found

    def markdown(self) -> str:
        """The report: all arms, what each cost, a plain verdict, the architecture."""
        rows = [("Arm", "Accuracy", "Best epoch", "Epochs", "Training FLOPs", "With the large network's")]
        for name, arms in self.arms.items():
            accuracy = rethinking.in_points(statistics.mean_interval(self.accuracies(name)))
            best = [one for one in map(_best, arms) if one is not None]
            inherits = not name.startswith("scratch")
            rows.append(
                (
                    f"{name} ({self.finetune})" if name == "fine-tuned" else name,
                    str(accuracy),
                    f"{100 * float(np.mean(best)):.4g}" if best else "-",
                    f"{arms[0].epochs}",
                    f"{np.mean([arm.flops for arm in arms]):.3g}",
                    f"{np.mean([arm.flops for arm in arms]) + self.dense_flops * inherits:.3g}",
                )
            )
        over = "seeds" if len(self.seeds) > 1 else "held-out examples of one training each"
        lines = [
            "# Is it worth inheriting?",
            f"Held-out accuracy in percent, mean over seeds {', '.join(map(str, self.seeds))} with its interval.",
            evidence.markdown(rows),
            *(
                f"- fine-tuned minus {name}: {self.difference(name)} points over {over}: {verdict}."
                for name, verdict in self.verdicts.items()
            ),
            *(f"- {note}." for note in self.notes),
            "## The architecture",
            evidence.markdown([("Layer", "Outputs"), *((name, f"{width:g}") for name, width in self.widths.items())]),
        ]
        return "\n\n".join(lines) + "\n"


def _best(arm: Arm) -> float | None:
    found = (arm.recovery.settings.get("evaluations") if arm.recovery else None) or []
    return 1.0 - min(error for _, error in found) if found else None


def scratch_control(
    pruned: Pruned | Callable[[int], Pruned],
    data: Examples,
    *,
    judged: Examples | None = None,
    mode: str = "both",
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 160,
    lr: float = 0.1,
    batch: int = 64,
    weight_decay: float = 1e-4,
    finetune: str = "classic",
    finetune_epochs: int | None = None,
    cap: float | None = None,
    norm: float = 1.0,
    chance: bool = True,
    pretrained: bool = False,
    build: Callable[[], nn.Module] | None = None,
    augment: Augment | None = None,
    out: str | Path | None = None,
) -> Control:
    """Fine-tuned, Scratch-E, Scratch-B and random units with inherited weights, over `seeds`, in one shape.

    Args:
        pruned: a cut (see `rethinking_pruning_value.prune`), or seed -> one, so that the large network is another for
            each seed: then the interval is that of the whole experiment, otherwise of its last part.
        data: what all arms train on, in the same order.
        judged: what they are judged on; a tenth of `data` is held out unless given.
        mode: "E", "B" or "both".
        seeds: of initialisation and order; all arms of a seed share it.
        epochs: E, what the large network was trained for.
        lr: its first learning rate.
        batch: examples per step.
        weight_decay: of matrices and kernels, in all arms.
        finetune: "classic" or "rewind"; see `rethinking_pruning_value`.
        finetune_epochs: a quarter of `epochs` for classic and all of them for rewind, unless given.
        cap: Scratch-B trains for at most this many times `epochs`.
        norm: first weights of batch norms in fresh networks.
        chance: whether to train random units with inherited weights, too.
        pretrained: the large network has seen more than `data`: the report says that scratch lacks that.
        build: gives a network of the cut shape; otherwise the cut network is copied. Weights are drawn anew.
        augment: see `examples.batches`; the same in all arms.
        out: where report.md goes; nowhere unless given.
    """
    if mode not in ("E", "B", "both"):
        raise InputError(f"mode={mode!r} is not one of E, B, both")
    if not seeds:
        raise InputError("no seed was given: give at least one, and three for a verdict")
    keywords.check_seed(*seeds)
    if data.labels is None:
        raise DataError(f"{data.name} has no classes: give labels, for all arms are judged by accuracy")
    if judged is None:
        data, judged = data.split(seed=seeds[0])
    found: dict[str, list[Arm]] = {}
    costs, widths, notes = [], dict[str, float](), dict[str, None]()
    for seed in seeds:
        one = pruned(seed) if callable(pruned) else pruned
        arms = rethinking.trial(
            one, data, judged, mode=mode, epochs=epochs, lr=lr, batch=batch, seed=seed, weight_decay=weight_decay,
            finetune=finetune, finetune_epochs=finetune_epochs, cap=cap, norm=norm, chance=chance, build=build,
            augment=augment,
        )  # fmt: skip
        for name, arm in arms.items():
            found.setdefault(name, []).append(arm)
            notes |= dict.fromkeys(arm.notes)
        first = arms["scratch-E" if "scratch-E" in arms else "scratch-B"]
        ratio = rethinking.forward_flops(one.dense) / rethinking.forward_flops(one.student, bool(one.masks))
        costs.append(first.flops / max(first.epochs, 1) * ratio * epochs)
        widths = widths or describe(one.student.model, one.masks)
    if pretrained:
        notes[LACKS] = None
    result = Control(
        {name: tuple(arms) for name, arms in found.items()}, tuple(seeds), finetune, float(np.mean(costs)), widths,
        tuple(notes),
    )  # fmt: skip
    if out is not None:
        atomic_write(Path(out) / "report.md", result.markdown())
    return result


def describe(model: nn.Module, closed: masks.Masks | None = None) -> dict[str, float]:
    """The architecture in numbers: layer -> outputs of each convolution and linear; kept share where masked."""
    closed, found = closed or {}, dict[str, float]()
    for path, module in model.named_modules():
        weight = f"{path}.weight" if path else "weight"
        if weight in closed:
            found[path] = masks.share({weight: closed[weight]})
        elif isinstance(module, nn.modules.conv._ConvNd):
            found[path] = float(module.out_channels)
        elif isinstance(module, nn.Linear):
            found[path] = float(module.out_features)
    return found


# ------------------------------------------------------------------------------------- of budgets, over several seeds


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
            [self._table(budget, one) for budget, one in self.budgets.items()], self._figures(), self.notes,
            Chart(
                "Accuracy by what is left of the network", {"": [self._line(name) for name in last.arms]},
                "FLOPs left, %", "accuracy, %", "Whiskers are intervals.", bounds=(0.0, 100.0),
            ),
        )  # fmt: skip

    def _line(self, arm: str) -> Line:
        found = sorted((100 * self.left[budget], _percent(one, arm)) for budget, one in self.budgets.items())
        return Line(arm, found, {"fine-tuned": 1.0, "scratch-B": 0.6, "scratch-E": 0.4}.get(arm, 0.2))

    def _table(self, budget: str, one: Control) -> Table:
        rows = [["Arm", "Accuracy, %", "Epochs", "Training FLOPs", "With the large network's", "Fine-tuned over it",
                 "Verdict"]]  # fmt: skip
        for name, arms in one.arms.items():
            cost = float(np.mean([arm.flops for arm in arms]))
            apart = name in one.verdicts
            rows.append([
                f"{name} ({one.finetune})" if name == "fine-tuned" else name, sheets.points(_percent(one, name)),
                f"{np.mean([arm.epochs for arm in arms]):g}", f"{cost:.3g}",
                f"{cost + one.dense_flops * (not name.startswith('scratch')):.3g}",
                sheets.points(one.difference(name), signed=True) if apart else "", one.verdicts.get(name, ""),
            ])  # fmt: skip
        paired = "seeds" if len(one.seeds) > 1 else "held-out examples of one training each"
        return Table(
            f"{budget}: {100 * self.left[budget]:.3g}% of the FLOPs left", rows,
            f"{sheets.over(one.seeds)}; differences in points, paired over {paired}: all arms of a seed see the same "
            "batches in the same order.",
        )  # fmt: skip

    def _figures(self) -> dict[str, Any]:
        return {
            "budgets": [
                {"budget": budget, "flops_left": self.left[budget], "large_flops": one.dense_flops,
                 "architecture": dict(one.widths),
                 "arms": [
                     {"arm": name, "by_seed": one.accuracies(name), "epochs": [arm.epochs for arm in arms],
                      "flops": [arm.flops for arm in arms],
                      "mean": asdict(statistics.mean_interval(one.accuracies(name))),
                      **({"fine_tuned_minus_it": asdict(one.difference(name)), "verdict": one.verdicts[name]}
                         if name in one.verdicts else {})}
                     for name, arms in one.arms.items()
                 ]}
                for budget, one in self.budgets.items()
            ]
        }  # fmt: skip


def _percent(control: Control, arm: str) -> Figure:
    return rethinking.in_points(statistics.mean_interval(control.accuracies(arm)))


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
    **options: Any,
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
    limits, how = _asked(budgets, seeds, options)
    apart = examples.read(judged) if judged else None
    about = {"model": Network().digest(subject), "data": data.digest, "judged": apart.digest if apart else ""}
    trials = [Trial(seed, budget) for seed in dict.fromkeys(seeds) for budget in limits]
    found: dict[Trial, dict[str, Any]] = {}
    for trial in progress(trials):
        train, held = parts(data, apart, trial.seed)
        settings = {**about, "seed": trial.seed, "chance": chance, **how}
        with Run.open(Path(folder, f"seed-{trial.seed}"), settings) as run:
            make = partial(_tried, subject, train, held, run, trial.seed, limits[trial.budget], chance, **how)
            found[trial] = run.json(f"judged-{trial.budget}", make)
    controls, left = {}, {}
    for budget in limits:
        rows = [found[trial] for trial in trials if trial.budget == budget]
        arms = {
            name: tuple(
                Arm(row["arms"][name]["epochs"], row["arms"][name]["flops"],
                    np.array(row["arms"][name]["right"], bool), nn.Identity())
                for row in rows
            )
            for name in rows[0]["arms"]
        }  # fmt: skip
        large = float(np.mean([row["large"] for row in rows]))
        controls[budget] = Control(arms, tuple(dict.fromkeys(seeds)), how["finetune"], large, rows[0]["widths"])
        left[budget] = float(np.mean([row["left"] for row in rows]))
    notes = dict.fromkeys(note for row in found.values() for note in row["notes"])
    if not how["untrained"]:
        notes[f"{LACKS}; what it saw of the examples that arms are judged on flatters its heirs"] = None
    return Controls(controls, left, tuple(notes))


def plan(
    subject: Traced,
    data: Examples,
    *,
    budgets: Sequence[str],
    seeds: Sequence[int],
    judged: str | Examples = "",
    chance: bool = True,
    **options: Any,
) -> dict[str, int]:
    """What `scratch` will train, by kind; whatever it would refuse is refused here, before anything is trained."""
    limits, how = _asked(budgets, seeds, options)
    Network().fit_data(data, subject)
    apart = examples.read(judged) if judged else None
    for seed in dict.fromkeys(seeds):
        _, held = parts(data, apart, seed)
        Network().fit_data(held, subject)
    with tempfile.TemporaryDirectory() as place, Run.open(place, {}) as run:
        list(rethinking.rethinking_pruning_value(
            subject, data, list(limits.values()), run, seed=seeds[0], dry_run=True, **how
        ))  # fmt: skip
    many, cuts = len(set(seeds)), len(set(seeds)) * len(limits)
    large = how["untrained"] + (how["method"] in ("slimming", "blocks"))
    counted = {
        "large networks": many * large + cuts * (how["method"] == "soft"),
        "fine-tunings": cuts * (1 + chance),
        "trainings from scratch": cuts * (2 if how["scratch"] == "both" else 1),
    }
    return {name: count for name, count in counted.items() if count}


def _asked(
    budgets: Sequence[str], seeds: Sequence[int], options: Mapping[str, Any]
) -> tuple[dict[str, Budget], dict[str, Any]]:
    """(name -> budget, all of the recipe's options that are not the study's), checked."""
    if not budgets or not seeds:
        raise InputError(f"budgets={list(budgets)}, seeds={list(seeds)}: give at least one of each")
    keywords.check_seed(*seeds)
    how = keywords.checked(rethinking.rethinking_pruning_value, options)
    if how["scratch"] == "none":
        raise InputError("scratch=none leaves out what inherited weights are compared with: give E, B or both")
    if how["epochs"] < 1:
        raise InputError(f"epochs={how['epochs']}: give at least 1, for what was not trained says nothing")
    parsed = [Budget.parse(one) for one in budgets]
    return {str(one): one for one in parsed}, {k: v for k, v in how.items() if k not in STUDY["sets"].split()}


def parts(data: Examples, judged: Examples | None, seed: int) -> tuple[Examples, Examples]:
    """(what is learned from, what is judged on) under a seed. Raises `DataError` where there are no classes."""
    for one in (data, data if judged is None else judged):
        if one.labels is None:
            raise DataError(f"{one.name} has no classes: give labels, for all arms are judged by accuracy")
    return data.split(seed=seed) if judged is None else (data, judged)


def _tried(
    subject: Traced,
    train: Examples,
    held: Examples,
    run: Run,
    seed: int,
    budget: Budget,
    chance: bool,
    *,
    method: str,
    widths: str | Sequence[str],
    inner: bool,
    untrained: bool,
    sparsity: float,
    calibration: int,
    scratch: str,
    **training: Any,
) -> dict[str, Any]:
    """One cut and its arms: what of `rethinking_pruning_value` is to be kept of them."""
    shared = {name: training[name] for name in ("batch", "lr", "weight_decay", "training")}
    fitting = partial(rethinking.fit, data=train, seed=seed, **shared)
    start, epochs = subject, training["epochs"]
    if untrained:
        first = initialise.fresh(subject.model, seed=seed, norm=training["norm"])[0]
        start = Traced(first, subject.inputs, subject.plans)
    large = rethinking.grown(
        start, run, fitting, method=method, untrained=untrained, sparsity=sparsity, epochs=epochs
    )  # fmt: skip
    if method == "soft":
        large = rethinking.softened(large, budget, run, fitting, inner=inner, epochs=epochs)
    few = examples.batches(train, batch=training["batch"], seed=seed).take(max(1, calibration // training["batch"]))
    pruned = rethinking.prune(large, budget, method, widths=widths, inner=inner, batches=few)
    place = run.folder(f"arms-{budget}")
    arms = rethinking.trial(
        pruned, train, held, mode=scratch, seed=seed, chance=chance, watch=False, folder=place, **training
    )
    shutil.rmtree(place, ignore_errors=True)  # their answers are known
    dense, cut = (rethinking.forward_flops(one, bool(pruned.masks)) for one in (pruned.dense, pruned.student))
    once = next((arm.flops / arm.epochs for arm in arms.values() if arm.epochs), 0.0)
    return {
        "arms": {name: {"epochs": arm.epochs, "flops": arm.flops, "right": arm.right.astype(int).tolist()}
                 for name, arm in arms.items()},
        "left": cut / dense, "large": once * dense / cut * epochs,
        "widths": describe(pruned.student.model, pruned.masks),
        "notes": list(dict.fromkeys([*pruned.notes, *(note for arm in arms.values() for note in arm.notes)])),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------- of a finished run


def add(
    out: str | Path,
    model: Any,
    data: Any,
    mode: str = "both",
    *,
    chance: bool = True,
    epochs: int | None = None,
    lr: float | None = None,
    cap: float | None = None,
    held_out: Any = None,
) -> list[Evidence]:
    """Train the control arms of each result in the run directory `out`, and add them to its evidence.

    The arms are "scratch-E" and "scratch-B" as `mode` says, and with `chance` "random units": as many units of each
    site, at random, with their inherited weights. Networks are trained as `rethinking_pruning_value.fit` does, for
    `epochs` from `lr` (the run's own options unless given), detectors by AdamW for all epochs of the run, those before
    the cut too; language models just as the run's students were, by distillation from the original, for the run's steps
    and for steps F(dense) / F(cut). Their models stay in `out/scratch`; `evidence.json` and `report.html` are written
    anew, and `out/scratch.md` has the verdicts. All is measured on what the run was: on `held_out`, if that was given.

    Returns the rows; their notes say that scratch lacks the original's own training (`LACKS`).
    """
    if mode not in ("E", "B", "both"):
        raise InputError(f"mode={mode!r} is not one of E, B, both")
    rows = []
    published = evidence.read(out)
    for row in published:
        measuring.check_judges(row, held_out)
        names = ("seed", "batch", "length", "threads", "device", "text", "label", "sizes")
        shared = {name: row.settings[name] for name in names if name in row.settings}
        place = Path(out) / row.target if (Path(out) / row.target).is_dir() else Path(out)
        recipe, options = _arm(row, place, epochs, lr, cap)
        beside, notes = dict(row.baselines), [LACKS]
        wanted = [f"scratch-{letter}" for letter in ("E", "B") if mode in (letter, "both")]
        for name in [*wanted, *(["random units"] if chance else [])]:
            try:
                (found,) = executor.run(
                    recipe, model, data, row.target, Path(out) / "scratch" / f"{name}-{row.target}",
                    held_out=held_out, **shared, arm=name, **options,
                )  # fmt: skip
            except SecateurError as error:
                if name != "random units":
                    raise
                notes.append(f"random units could not be trained: {error}")
                continue
            measuring.check_judges(row, held_out, found)
            beside[name] = {**found.after, **found.measured}
        assert row.cut is not None
        kept = [note for note in row.cut.notes if note not in notes]
        rows.append(replace(row, baselines=beside, cut=replace(row.cut, notes=(*kept, *notes))))
    executor.publish_evidence(Path(out), rows)
    atomic_write(Path(out) / "scratch.md", "\n".join(_verdict(row) for row in rows) + "\n")
    return rows


def check(
    recipe: str, data: Any, options: Mapping[str, Any], *, epochs: int | None = None, lr: float | None = None,
    cap: float | None = None,
) -> None:  # fmt: skip
    """Refuse before a run of `recipe` with these options what `add` would refuse after it.

    Raises `InputError` for a recipe that records no epochs or trains for no steps, `DataError` for a network's data
    without classes and boxes.
    """
    for name, value in (("epochs", epochs), ("lr", lr), ("cap", cap)):
        if value is not None and not value > 0:
            raise InputError(f"{name}={value} of networks trained from scratch: give a number above 0")
    function = recipes.find(recipe)
    known = {name: options.get(name, one.default) for name, one in keywords.of(function).items()}
    if not isinstance(backends.of_recipe(function), Network):
        _for_language(epochs, known.get("steps", 1), f"a run of {recipe} with steps=0 trains nothing")
        return
    _for_network(recipe, known, epochs, lr)
    found = Network().read(data, label=options.get("label", "label"))
    if found.labels is None and not found.targets:
        raise DataError(f"{found.name} has no classes: networks are trained from scratch on classes or boxes; give "
                        "labels, or leave the scratch baseline out")  # fmt: skip


def _for_network(
    recipe: str, settings: Mapping[str, Any], epochs: int | None, lr: float | None
) -> tuple[int | None, float | None]:
    """What a network is trained for and from where: as given, or as the run's settings say."""
    lr = settings.get("lr") if lr is None else lr
    epochs = settings.get("epochs") if epochs is None else epochs
    if "sparse_epochs" not in settings and (epochs is None or lr is None):
        raise InputError(f"recipe {recipe} records no epochs and lr: say what the original was trained with")
    return epochs, lr


def _for_language(epochs: int | None, steps: int, why: str) -> None:
    if epochs is not None:
        raise InputError("language models are trained for the run's own steps: leave epochs out")
    if not steps:
        raise InputError(f"{why}: its control would not be either; run it with steps")


def _arm(
    row: Evidence, place: Path, epochs: int | None, lr: float | None, cap: float | None
) -> tuple[Callable[..., Iterator[Result]], dict[str, Any]]:
    """The generator that makes a row's arms, and its options as the run recorded them."""
    assert row.cut is not None
    counts = {site: [int(gone), int(count)] for site, (gone, count) in row.cut.removed.items()}
    common = {"student": str(place), "removed": counts, "cap": cap}
    settings = row.settings
    if (place / "cut.json").is_file():
        asked = epochs
        epochs, lr = _for_network(str(row.recipe), settings, epochs, lr)
        if "sparse_epochs" in settings:
            # A detector's recipe trains before its cut and after it, all with one optimiser and rate.
            after = sum(float(settings.get(name, 0)) for name in ("finetune_epochs", "distil_epochs"))
            whole = float(settings["sparse_epochs"]) + after if asked is None else float(asked)
            own = {"weight_decay": settings["weight_decay"], "finetune": "same", "finetune_epochs": after}
            return fresh_network, {**common, "epochs": whole, "lr": lr, "optimizer": "adamw", **own}
        assert epochs is not None
        assert lr is not None
        own = {name: settings[name] for name in ("weight_decay", "finetune", "finetune_epochs") if name in settings}
        # That recipe holds out examples of its own: its arms are to see no more than its student did.
        own["less"] = row.recipe == "rethinking_pruning_value"
        return fresh_network, {**common, "epochs": int(epochs), "lr": float(lr), **own}
    steps = row.recovery.steps if row.recovery else 0
    _for_language(epochs, steps, f"the result {row.target} was not trained")
    known = [name for name in signature(ziplm.distil).parameters if name not in ("data", "blocks", "seed", "steps")]
    recovery = {name: settings[name] for name in known if name in settings}
    return fresh_language, {**common, "steps": steps, "recovery": {**recovery, **({} if lr is None else {"lr": lr})}}


def fresh_network(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    student: str,
    removed: dict[str, list[int]],
    arm: str = "scratch-E",
    batch: int = 64,
    seed: int = 0,
    epochs: float = 160,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    optimizer: str = "sgd",
    finetune: str = "classic",
    finetune_epochs: float | None = None,
    cap: float | None = None,
    less: bool = False,
    dry_run: bool = False,
) -> Iterator[Result]:
    """A generator like a recipe: one control arm of the network saved in the folder `student`, as its result.

    Args:
        removed: site -> (units that went, units there were), for arm "random units".
        arm: "scratch-E", "scratch-B" or "random units".
        less: hold out of `data` what `rethinking_pruning_value` does.
    """
    if less:
        data, _ = data.split(seed=seed)
    subject = detectors.opened(subject) if data.targets else subject
    small = reload_traced(student, subject.model, subject.inputs)
    length, how = epochs, dict[str, Any](lr=lr)
    notes: tuple[str, ...] = ()
    found = masks.convolutions(small.model)
    closed = {name: found[name] != 0 for name in removed} if removed and set(removed) <= set(found) else {}
    if arm == "random units":
        if closed:
            small = rethinking.duplicate(subject)
            closed = masks.shuffled(closed, seed=seed)
        else:
            small = _at_random(subject, small, removed, seed)
        length = rethinking.tuning_epochs(epochs, finetune, finetune_epochs)
        how = {"lr": lr / 100, "schedule": "constant"} if finetune == "classic" else {"lr": lr}
    else:
        if arm == "scratch-B":
            dense, cut = (rethinking.forward_flops(one, bool(closed)) for one in (subject, small))
            length = rethinking.epochs_for(epochs, dense, cut, cap)
        fresh, notes = initialise.fresh(small.model, seed=seed, masks=closed)
        small = Traced(fresh, small.inputs, small.plans)
    recovery = rethinking.fit(
        small.model, data, epochs=0 if dry_run else length, batch=batch, seed=seed, weight_decay=weight_decay,
        optimizer=optimizer, closed=closed, folder=run.folder(f"train-{budgets[0]}"), **how,
    )  # fmt: skip
    yield Result(str(budgets[0]), small, _receipt(removed), {}, recovery, notes)


def fresh_language(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    student: str,
    removed: dict[str, list[int]],
    arm: str = "scratch-E",
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    steps: int = 1000,
    recovery: dict[str, Any] | None = None,
    cap: float | None = None,
    dry_run: bool = False,
) -> Iterator[Result]:
    """A generator like a recipe: one control arm of the language model saved in the folder `student`, as its result.

    Args:
        removed: site -> (units that went, units there were), for arm "random units".
        arm: "scratch-E", "scratch-B" or "random units".
        steps: of the student's own training.
        recovery: further options of `ziplm.distil`, so that nothing but the weights differs.
    """
    settings = dict(recovery or {})
    small = open_subject(student)
    if arm == "random units":
        small = _at_random(subject, small, removed, seed)
    else:
        drawn, _ = initialise.fresh(small.model, seed=seed)
        small.model.load_state_dict(drawn.state_dict())
        if arm == "scratch-B":
            tokens = int(settings.get("train_length", 128))
            dense, cut = (one.flops_per_token(tokens) for one in (subject, small))
            steps = rethinking.epochs_for(steps, dense, cut, cap)
    total, left = len(subject.layers()), len(small.layers())
    pairs = [(k, min(total, round(k * total / left))) for k in range(1, left + 1)]
    if small.model.config.hidden_size != subject.model.config.hidden_size:
        settings["token"] = 0.0  # hidden states of two widths have no distance
    trained = ziplm.distil(
        subject, small, run.folder(f"train-{budgets[0]}"), data=data, blocks=pairs, seed=seed,
        steps=0 if dry_run else steps, **settings,
    )  # fmt: skip
    yield Result(str(budgets[0]), small, _receipt(removed), {}, trained)


def _receipt(removed: Mapping[str, Sequence[int]]) -> Cut:
    return Cut({site: (gone, count) for site, (gone, count) in removed.items()}, {}, {})


def _at_random(subject: Any, small: Any, removed: Mapping[str, Sequence[int]], seed: int) -> Any:
    """`subject` with as many units of each site as `small` has, at random. Raises where that is another shape."""
    units = subject.units()
    unknown = [site for site in removed if site not in units.sites]
    if unknown:
        raise InputError(f"the result was not cut from the original at once: {unknown[0]!r} is no site of it")
    counts = {site: count - gone for site, (gone, count) in removed.items() if not units[site].frozen}
    try:
        keep = ranking.by_counts(units, random.scores(units, seed), counts).keep
    except InfeasibleError as error:
        raise InfeasibleError(f"random units can't have the result's shape: {error}", error.reachable) from error
    found = subject.cut(Selection(keep))[0]
    theirs, ours = (sorted(tuple(p.shape) for p in one.model.parameters()) for one in (small, found))
    if ours != theirs:  # layers that went as a whole take their heads along: other layers, other shapes
        raise UnsupportedError("random units do not give the result's shape: whole blocks of it are gone")
    return found


def _verdict(row: Evidence) -> str:
    """Per result: what is better by how much, from intervals over held-out examples."""
    lines = [f"## {row.target}", ""]
    quality = next((name for name in ("accuracy", "mAP", "AP50", "perplexity", "spearman") if name in row.after), None)
    quality = quality or next((name for name in ("spearman", "cosine", "pearson") if name in row.measured), None)
    ours = evidence.measured(row, quality) if quality else None
    for name in ("scratch-E", "scratch-B", "random units"):
        theirs = row.baselines.get(name, {}).get(quality or "")
        if ours is None or theirs is None:
            continue
        gap = (theirs.value - ours.value) if quality == "perplexity" else (ours.value - theirs.value)
        apart = None not in (ours.low, ours.high, theirs.low, theirs.high) and (
            ours.low > theirs.high or theirs.low > ours.high  # type: ignore[operator]
        )
        better = "the pruned and trained model" if gap > 0 else name
        words = f"{better} is better" if apart else "the intervals overlap: no verdict from one training of each"
        lines.append(f"- {quality}: {ours} beside {name} {theirs}: {words}.")
    if len(lines) == 2:
        lines.append("- no quality was measured for both: give held-out data.")
    return "\n".join([*lines, f"- {LACKS}."])
