"""Is it better than what is simple? Two baselines, recovered by the same training.

Each is a generator like a recipe, so that `runs.executor.run` takes it: the smallest weight norms pruned alike in every
layer, until the budget is met, on the clock where it is one of time; and every second layer dropped, as DistilBERT and
DistilGPT2 begin, whatever time and size that gives: no budget is met there, and `add` notes the gap as measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.methods import distillation, timing
from secateur.methods.timing import Clock
from secateur.reports import display, evidence
from secateur.runs import backends, executor, keywords, measuring
from secateur.runs.backends import Data, Source
from secateur.score import magnitude as norms
from secateur.select import allocate, levels, ranking
from secateur.subjects import Transformer
from secateur.vocabulary import Budget, Evidence, Recovery, Result, Selection, Units

__all__ = ["add", "every_second_layer", "magnitude"]

_CLOCK = ("tolerance", "corrections", "timings")
"""Fields of `Clock` that a baseline cut on the clock has from the run."""


def every_second_layer(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    recovery: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Layers 0, 2, 4, ... stay; each learns the output of the pair of layers it stands for.

    The budget is ignored: compare its figures with those of a result only together with the time and size that it has.

    Args:
        recovery: options of `distillation.distil`, so that nothing but the cut differs.
    """
    total = len(subject.layers())
    student, cut = subject.cut(Selection({"layers": np.arange(total) % 2 == 0}))
    left = len(student.layers())
    pairs = [(k, min(total, round(k * total / left))) for k in range(1, left + 1)]
    trained = _recover(subject, student, data, run.folder(f"train-{budgets[0]}"), seed, dry_run, recovery, blocks=pairs)
    yield Result(str(budgets[0]), student, cut, student.units(batch=batch, length=length).cost(), trained)


def magnitude(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    recovery: Mapping[str, Any] | None = None,
    clock: Clock = Clock(environment="prefill", timer="eager", tolerance=0.02, corrections=4),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Heads and neurons of the smallest norm go, the same share in every layer, until the budget is met on the clock.

    Args:
        recovery: options of `distillation.distil`, so that nothing but the cut differs.
        clock: see `timing.Clock`.
    """
    whole = subject.units(batch=batch, length=length)
    axes = timing.choose_axes(subject)
    units = subject.units(*axes, batch=batch, length=length)
    table = None
    if any("latency" in budget for budget in budgets):
        grid = allocate.grid(levels.widest(whole)["neurons"]) if "neurons" in axes else []
        table = run.json("latency", lambda: timing.time_blocks(subject, axes, grid, batch, length, clock))
    fixed = table["rest"]["0"] if table else 0.0
    readers = {site: at for site, at in subject.consumers(read=False).items() if not units[site].frozen}
    columns = norms.groups(subject.model, readers)
    scores = {site: column.numpy() for site, column in columns.items()}
    for budget in budgets:

        def decide(budget: Budget = budget) -> dict[str, list[bool]]:
            return _on_the_clock(subject, units, scores, budget, table, fixed, batch, length, clock)

        keep = {site: np.array(mask) for site, mask in run.json(f"cut-{budget}", decide).items()}
        student, cut = subject.cut(Selection(keep))
        trained = _recover(subject, student, data, run.folder(f"train-{budget}"), seed, dry_run, recovery)
        predicted = levels.with_latency(units, table, fixed).cost(keep)
        yield Result(str(budget), student, cut, predicted, trained)


def add(
    out: str | Path,
    model: Source,
    data: Data,
    held_out: Data = None,
) -> list[Evidence]:
    """Make both baselines for each result in the run directory `out`, with its training, and add them to its evidence.

    Their models stay in `out/baselines`; `evidence.json` and `report.html` are written anew. Every second layer keeps
    to no budget: a note of each result says what it measures where the budget has its limits. They are measured on what
    the run was: on `held_out`, if that was given. The smallest norms are cut by the seconds that ZipLM has timed.
    """
    rows = []
    baselines: tuple[Callable[..., Iterator[Result]], ...] = (every_second_layer, magnitude)
    for row in evidence.read(out):
        judges = measuring.choose_judges(row, backends.of_source(model), data, held_out)
        names = ["seed", "batch", "length", "environment", "timer", "threads", "device"]
        names += ["text", "label", "completion_only", "packing"]
        shared = {name: row.settings[name] for name in names if name in row.settings}
        recovery = {name: row.settings[name] for name in ("steps", *distillation.RECORDED) if name in row.settings}
        alike = partial(measuring.check_judges, row, judges)
        beside = {}
        table = Path(out) / "work" / "latency.json"
        for baseline in baselines:
            place = Path(out) / "baselines" / f"{baseline.__name__}-{row.target}"
            how, arm = {**shared, "recovery": recovery, "held_out": judges, "on_data": alike}, baseline
            if baseline is magnitude:
                how |= {name: row.settings[name] for name in _CLOCK if name in row.settings}
                arm = _with_table(arm, table) if row.recipe == "ziplm" and table.exists() else arm
            (found,) = executor.run(arm, model, data, row.target, place, **how)
            beside[baseline.__name__.replace("_", " ")] = {**found.after, **found.measured}
        rows.append(_note_gaps(replace(row, baselines=beside)))
    executor.publish_evidence(Path(out), rows)
    return rows


def _with_table(arm: Callable[..., Iterator[Result]], table: Path) -> Callable[..., Iterator[Result]]:
    """`arm` that finds the latency table `table` in its run, in place of one of its own: the same seconds for both."""

    @wraps(arm)
    def run_arm(
        subject: Transformer, data: Corpus, budgets: Sequence[Budget], run: Run, **options: object
    ) -> Iterator[Result]:
        run.json("latency", lambda: json.loads(table.read_text("utf-8")))
        yield from arm(subject, data, budgets, run, **options)

    return run_arm


def _note_gaps(row: Evidence) -> Evidence:
    """`row` with a note on how far every second layer is from the budget, in each measure that the budget limits."""
    begin, theirs = "the baseline of every second layer ignores the budget", row.baselines["every second layer"]
    gaps = [
        f"{display.measure(name).label} {display.text(name, theirs.get(name))} "
        f"beside {display.text(name, evidence.figure_of(row, name))}"
        for name in evidence.targets(row)
    ]
    assert row.cut is not None
    kept = [note for note in row.cut.notes if not note.startswith(begin)]
    return replace(row, cut=replace(row.cut, notes=(*kept, f"{begin}: {', '.join(gaps)}")))


def _on_the_clock(
    subject: Transformer, units: Units, scores: dict[str, np.ndarray], budget: Budget, table: levels.Table | None,
    fixed: float, batch: int, length: int, clock: Clock,
) -> dict[str, list[bool]]:  # fmt: skip
    """What stays: by norm, the same share everywhere, until the measured time meets a latency limit."""
    limits = budget.absolute(levels.with_latency(units, table, fixed).cost())
    dense = levels.with_latency(units, table, fixed).cost()
    goal = Budget.of(limits)
    chosen, _, _ = timing.meet_target(
        lambda fixed: ranking.by_budget(levels.with_latency(units, table, fixed), scores, goal, scope="local"),
        lambda chosen, fixed: levels.with_latency(units, table, fixed).cost(chosen.keep)["latency"],
        lambda chosen, lasting: dense["latency"]
        * timing.time_share(subject, subject.cut(chosen)[0], batch, length, clock, lasting),
        limits.get("latency"), fixed, tolerance=clock.tolerance, corrections=clock.corrections,
    )  # fmt: skip
    return {site: [bool(stays) for stays in mask] for site, mask in chosen.keep.items()}


def _recover(
    subject: Transformer, student: Transformer, data: Corpus, folder: Path, seed: int, dry_run: bool,
    recovery: Mapping[str, Any] | None, **more: object,
) -> Recovery | None:  # fmt: skip
    given = {**(recovery or {}), **({"steps": 0} if dry_run else {}), **more, "seed": seed}
    return distillation.distil(subject, student, data, folder, **keywords.check_options(distillation.distil, given))
