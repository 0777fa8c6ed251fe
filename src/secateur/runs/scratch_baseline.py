"""Add the same shape trained from scratch as a baseline to the evidence of a finished run.

Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270); of networks, detectors and language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from secateur import recipes
from secateur._utils import distributed
from secateur._utils.disk import atomic_write
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.data.texts import Corpus
from secateur.errors import DataError, InfeasibleError, InputError, SecateurError, UnsupportedError
from secateur.methods import distillation
from secateur.methods.arms import equal_flops, finetune_length, fit, forward_flops
from secateur.methods.control import LACKS
from secateur.methods.published_rules import duplicate
from secateur.recover.sparsity import masks
from secateur.recover.training import initialise
from secateur.reports import evidence
from secateur.runs import backends, executor, keywords, measuring
from secateur.runs.backends import Data, Source
from secateur.runs.backends.network import Network
from secateur.score import random
from secateur.select import ranking
from secateur.subjects import Transformer, open_subject, reload_traced
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Evidence, Result, Selection, Training

__all__ = ["add", "check", "fresh_language", "fresh_network", "select_at_random"]

Removed = Mapping[str, Sequence[int]]
"""Site -> (units that went, units there were)."""

Subject = TypeVar("Subject", Traced, Transformer)


def add(
    out: str | Path,
    model: Source,
    data: Data,
    mode: str = "both",
    *,
    chance: bool = True,
    epochs: int | None = None,
    lr: float | None = None,
    cap: float | None = None,
    held_out: Data = None,
) -> list[Evidence]:
    """Train the control arms of each result in the run directory `out`, and add them to its evidence.

    The arms are "scratch-E" and "scratch-B" as `mode` says, and with `chance` "random units": as many units of each
    site, at random, with their inherited weights. Networks are trained by `arms.fit`, for `epochs` from `lr` (the run's
    own options unless given), detectors by AdamW for all epochs of the run, those before the cut too; language models
    just as the run's students were, by distillation from the original, for the run's steps and for steps F(dense) /
    F(cut). Their models stay in `out/scratch`; `evidence.json` and `report.html` are written anew, and `out/scratch.md`
    has the verdicts. All is measured on what the run was: on `held_out`, if that was given, or on what stands beside
    the data.

    Returns the rows; their notes say that scratch lacks the original's own training (`LACKS`).
    """
    if mode not in ("E", "B", "both"):
        raise InputError(f"mode={mode!r} is not one of E, B, both")
    names = [f"scratch-{letter}" for letter in ("E", "B") if mode in (letter, "both")]
    names += ["random units"] if chance else []
    rows = []
    for row in evidence.read(out):
        assert row.cut is not None
        judges = measuring.choose_judges(row, backends.of_source(model), data, held_out)
        places = ("seed", "batch", "length", "threads", "device")
        read = ("text", "label", "sizes", "transform", "size", "completion_only", "packing")
        shared = {name: row.settings[name] for name in (*places, *read) if name in row.settings}
        place = Path(out) / row.target if (Path(out) / row.target).is_dir() else Path(out)
        generate, options = _arm_of(row, place, epochs, lr, cap)
        beside, notes = dict(row.baselines), [LACKS]
        for name in names:
            try:
                (arm,) = executor.run(
                    generate, model, data, row.target, Path(out) / "scratch" / f"{name}-{row.target}",
                    held_out=judges, on_data=partial(measuring.check_judges, row, judges), **shared, arm=name,
                    **options,
                )  # fmt: skip
            except SecateurError as error:
                if name != "random units":
                    raise
                notes.append(f"random units could not be trained: {error}")
                continue
            beside[name] = {**arm.after, **arm.measured}
        kept = [note for note in row.cut.notes if note not in notes]
        rows.append(replace(row, baselines=beside, cut=replace(row.cut, notes=(*kept, *notes))))

    def publish() -> None:
        executor.publish_evidence(Path(out), rows)
        atomic_write(Path(out) / "scratch.md", "\n".join(_verdict(row) for row in rows) + "\n")

    distributed.by_first(publish)
    return rows


def check(
    recipe: str,
    data: Data,
    options: Mapping[str, Any],
    *,
    epochs: int | None = None,
    lr: float | None = None,
    cap: float | None = None,
) -> None:
    """Refuse before a run of `recipe` with these options what `add` would refuse after it.

    Raises `InputError` for a recipe that records no epochs or trains for no steps, `DataError` for a network's data
    without classes and boxes.
    """
    for name, value in (("epochs", epochs), ("lr", lr), ("cap", cap)):
        if value is not None and not value > 0:
            raise InputError(f"{name}={value} of networks trained from scratch: give a number above 0")
    function = recipes.find(recipe)
    settings = {name: options.get(name, default) for name, default in executor.options(recipe).items()}
    if not isinstance(backends.of_recipe(function), Network):
        _check_language(epochs, settings.get("steps", 1), f"a run of {recipe} with steps=0 trains nothing")
        return
    _epochs_and_rate(recipe, settings, epochs, lr)
    examples = Network().read(data, label=options.get("label", "label"))
    if examples.labels is None and not examples.targets:
        raise DataError(f"{examples.name} has no classes: networks are trained from scratch on classes or boxes; give "
                        "labels, or leave the scratch baseline out")  # fmt: skip


def _epochs_and_rate(
    recipe: str, settings: Mapping[str, Any], epochs: int | None, lr: float | None
) -> tuple[float, float]:
    """What a network is trained for and from where: as given, or as the run's settings say."""
    lr = settings.get("lr") if lr is None else lr
    if "sparse_epochs" in settings:
        # A detector's recipe trains before its cut and after it, all with one optimiser and rate.
        trainings = ("sparse_epochs", "finetune_epochs", "distil_epochs")
        whole = sum(float(settings.get(name, 0)) for name in trainings)
        return (whole if epochs is None else float(epochs)), float(lr or 0.0)
    epochs = settings.get("epochs") if epochs is None else epochs
    if epochs is None or lr is None:
        raise InputError(f"recipe {recipe} records no epochs and lr: say what the original was trained with")
    return int(epochs), float(lr)


def _check_language(epochs: int | None, steps: int, why: str) -> None:
    if epochs is not None:
        raise InputError("language models are trained for the run's own steps: leave epochs out")
    if not steps:
        raise InputError(f"{why}: its control would not be either; run it with steps")


def _arm_of(
    row: Evidence, place: Path, epochs: int | None, lr: float | None, cap: float | None
) -> tuple[Callable[..., Iterator[Result]], dict[str, Any]]:
    """The generator that makes a row's arms, and its options as the run recorded them."""
    assert row.cut is not None
    counts = {site: [int(gone), int(count)] for site, (gone, count) in row.cut.removed.items()}
    common = {"student": str(place), "removed": counts, "cap": cap}
    settings = row.settings
    if (place / "cut.json").is_file():
        length, rate = _epochs_and_rate(str(row.recipe), settings, epochs, lr)
        own = {name: settings[name] for name in ("weight_decay", "finetune", "finetune_epochs") if name in settings}
        if "sparse_epochs" in settings:
            after = sum(float(settings.get(name, 0)) for name in ("finetune_epochs", "distil_epochs"))
            own |= {"finetune": "same", "finetune_epochs": after, "optimizer": "adamw"}
        else:
            # That recipe holds out examples of its own: its arms are to see no more than its student did.
            own["less"] = row.recipe == "rethinking_pruning_value"
        return fresh_network, {**common, "epochs": length, "lr": rate, **own}
    steps = row.recovery.steps if row.recovery else 0
    _check_language(epochs, steps, f"the result {row.target} was not trained")
    recovery = {name: settings[name] for name in distillation.RECORDED if name in settings}
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
    subject = detectors.open_detector(subject) if data.targets else subject
    small = reload_traced(student, subject.model, subject.inputs)
    length, training = epochs, Training(batch=batch, lr=lr, weight_decay=weight_decay, optimizer=optimizer)
    notes: tuple[str, ...] = ()
    weights = masks.convolutions(small.model)
    closed: masks.Masks = {}
    if removed and set(removed) <= set(weights):
        closed = {name: weights[name] != 0 for name in removed}
    if arm == "random units":
        if closed:
            small, closed = duplicate(subject), masks.shuffle(closed, seed=seed)
        else:
            small = select_at_random(subject, small, removed, seed)
        length = finetune_length(epochs, finetune, finetune_epochs)
        if finetune == "classic":
            training = replace(training, lr=lr / 100, schedule="constant")
    else:
        if arm == "scratch-B":
            dense, cut = (forward_flops(one, bool(closed)) for one in (subject, small))
            length = equal_flops(epochs, dense, cut, cap)
        fresh, notes = initialise.fresh(small.model, seed=seed, masks=closed)
        small = Traced(fresh, small.inputs, small.plans)
    recovery = fit(
        small.model, data, replace(training, epochs=0 if dry_run else length), seed=seed, closed=closed,
        folder=run.folder(f"train-{budgets[0]}"),
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
        recovery: further options of `distillation.distil`, so that nothing but the weights differs.
    """
    settings = dict(recovery or {})
    small = open_subject(student)
    if arm == "random units":
        small = select_at_random(subject, small, removed, seed)
    else:
        drawn, _ = initialise.fresh(small.model, seed=seed)
        small.model.load_state_dict(drawn.state_dict())
        if arm == "scratch-B":
            tokens = int(settings.get("train_length", 128))
            dense, cut = (model.flops_per_token(tokens) for model in (subject, small))
            steps = equal_flops(steps, dense, cut, cap)
    total, left = len(subject.layers()), len(small.layers())
    pairs = [(k, min(total, round(k * total / left))) for k in range(1, left + 1)]
    if small.model.config.hidden_size != subject.model.config.hidden_size:
        settings["token"] = 0.0  # hidden states of two widths have no distance
    settings |= {"blocks": pairs, "seed": seed, "steps": 0 if dry_run else steps}
    how = keywords.check_options(distillation.distil, settings)
    trained = distillation.distil(subject, small, data, run.folder(f"train-{budgets[0]}"), **how)
    yield Result(str(budgets[0]), small, _receipt(removed), {}, trained)


def _receipt(removed: Removed) -> Cut:
    return Cut({site: (gone, count) for site, (gone, count) in removed.items()}, {}, {})


def select_at_random(subject: Subject, small: Subject, removed: Removed, seed: int) -> Subject:
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
    cut = subject.cut(Selection(keep))[0]
    theirs, ours = (sorted(tuple(p.shape) for p in one.model.parameters()) for one in (small, cut))
    if ours != theirs:  # layers that went as a whole take their heads along: other layers, other shapes
        raise UnsupportedError("random units do not give the result's shape: whole blocks of it are gone")
    return cut


def _verdict(row: Evidence) -> str:
    """Per result: what is better by how much, from intervals over held-out examples."""
    lines = [f"## {row.target}", ""]
    quality = next((name for name in ("accuracy", "mAP", "AP50", "perplexity", "spearman") if name in row.after), None)
    quality = quality or next((name for name in ("spearman", "cosine", "pearson") if name in row.measured), None)
    ours = evidence.figure_of(row, quality) if quality else None
    for name in ("scratch-E", "scratch-B", "random units"):
        theirs = row.baselines.get(name, {}).get(quality or "")
        if ours is None or theirs is None:
            continue
        gap = (theirs.value - ours.value) if quality == "perplexity" else (ours.value - theirs.value)
        words = "the intervals overlap: no verdict from one training of each"
        if None not in (ours.low, ours.high, theirs.low, theirs.high) and (
            ours.low > theirs.high or theirs.low > ours.high  # type: ignore[operator]
        ):
            words = f"{'the pruned and trained model' if gap > 0 else name} is better"
        lines.append(f"- {quality}: {ours} beside {name} {theirs}: {words}.")
    if len(lines) == 2:
        lines.append("- no quality was measured for both: give held-out data.")
    return "\n".join([*lines, f"- {LACKS}."])
