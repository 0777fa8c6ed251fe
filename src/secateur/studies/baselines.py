"""Is it better than what is simple? Two baselines at equal measured time, recovered by the same training.

Each is a generator like a recipe, so that `running.run` takes it: every second layer dropped, as DistilBERT and
DistilGPT2 begin, and the smallest weight norms pruned alike in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur import running
from secateur.files import texts
from secateur.files.rundir import Run
from secateur.files.texts import Corpus
from secateur.measure import evidence
from secateur.recipes.language import ziplm
from secateur.recover import loop, objectives
from secateur.score import magnitude as norms
from secateur.select import allocate, levels, ranking
from secateur.subjects import Transformer
from secateur.vocabulary import Budget, Evidence, Limit, Recovery, Result, Selection, Units

__all__ = ["add", "every_second_layer", "magnitude"]

Training = dict[str, Any]


def every_second_layer(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    steps: int = 1000,
    train_batch: int = 32,
    train_length: int = 128,
    lr: float = 5e-4,
    weight_decay: float = 0.03,
    logit: float = 1.0,
    token: float | None = None,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Layers 0, 2, 4, ... stay; each learns the output of the pair of layers it stands for. The budget is ignored.

    Args:
        steps: distillation steps; the rest as in `ziplm`.
    """
    total = len(subject.layers())
    student, cut = subject.cut(Selection({"layers": np.arange(total) % 2 == 0}))
    left = len(student.layers())
    pairs = [(k, min(total, round(k * total / left))) for k in range(1, left + 1)]
    training = {"steps": 0 if dry_run else steps, "train_batch": train_batch, "train_length": train_length, "lr": lr,
                "weight_decay": weight_decay, "logit": logit, "token": token, "seed": seed}  # fmt: skip
    recovery = _recover(subject, student, data, run, pairs, training)
    yield Result(str(budgets[0]), student, cut, student.units(batch=batch, length=length).cost(), recovery)


def magnitude(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    steps: int = 1000,
    train_batch: int = 32,
    train_length: int = 128,
    lr: float = 5e-4,
    weight_decay: float = 0.03,
    logit: float = 1.0,
    token: float | None = None,
    tolerance: float = 0.02,
    corrections: int = 4,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Heads and neurons of the smallest norm go, the same share in every layer, until the budget is met on the clock.

    Args:
        steps: distillation steps; the rest as in `ziplm`.
    """
    whole = subject.units(batch=batch, length=length)
    kinds = {site.kind: site.count for site in whole.sites.values()}
    axis = "kv_groups" if "kv_groups" in kinds else "heads"
    units = subject.units(axis, "neurons", batch=batch, length=length)
    table = None
    if any("latency" in budget for budget in budgets):
        grid = allocate.grid(kinds["neurons"])
        table = run.json("latency", lambda: ziplm.profile(subject, axis, grid, batch, length))
    fixed = table["rest"]["0"] if table else 0.0
    columns = norms.groups(subject.model, {s: at for s, at in subject.consumers().items() if not units[s].frozen})
    scores = {site: column.numpy() for site, column in columns.items()}
    for budget in budgets:

        def decide(budget: Budget = budget) -> dict[str, list[bool]]:
            return _on_the_clock(subject, units, scores, budget, table, fixed, batch, length, tolerance, corrections)

        keep = {site: np.array(mask) for site, mask in run.json(f"cut-{budget}", decide).items()}
        student, cut = subject.cut(Selection(keep))
        pairs = [(k, k) for k in range(1, 1 + len(student.layers()))]
        training = {"steps": 0 if dry_run else steps, "train_batch": train_batch, "train_length": train_length,
                    "lr": lr, "weight_decay": weight_decay, "logit": logit, "token": token, "seed": seed}  # fmt: skip
        recovery = _recover(subject, student, data, run, pairs, training)
        predicted = levels.with_latency(units, table, fixed).cost(keep)
        yield Result(str(budget), student, cut, predicted, recovery)


def add(
    out: str | Path,
    model: running.Model,
    data: Any,
    *,
    options: Sequence[str] = ("steps", "train_batch", "train_length", "lr", "weight_decay", "logit", "token"),
) -> list[Evidence]:
    """Make both baselines for each result in the run directory `out`, with its training, and add them to its evidence.

    Their models stay in `out/baselines`; `evidence.json` and `report.html` are written anew.
    """
    rows = []
    baselines: tuple[Callable[..., Iterator[Result]], ...] = (every_second_layer, magnitude)
    for row in evidence.read(out):
        shared = {name: row.settings[name] for name in ("seed", "batch", "length", "threads")}
        training = {name: row.settings[name] for name in options if name in row.settings}
        beside = {}
        for baseline in baselines:
            place = Path(out) / "baselines" / f"{baseline.__name__}-{row.target}"
            (found,) = running.run(baseline, model, data, row.target, place, **shared, **training)
            beside[baseline.__name__.replace("_", " ")] = {**found.after, **found.measured}
        rows.append(replace(row, baselines=beside))
    running.publish_evidence(Path(out), rows)
    return rows


def _on_the_clock(
    subject: Transformer, units: Units, scores: dict[str, np.ndarray], budget: Budget, table: levels.Table | None,
    fixed: float, batch: int, length: int, tolerance: float, corrections: int,
) -> dict[str, list[bool]]:  # fmt: skip
    """What stays: by norm, the same share everywhere, until the measured time meets a latency limit."""
    limits = budget.absolute(levels.with_latency(units, table, fixed).cost())
    dense = levels.with_latency(units, table, fixed).cost()
    for turn in range(1 + corrections):
        priced = levels.with_latency(units, table, fixed)
        goal = Budget(tuple(Limit(measure, value) for measure, value in limits.items()))
        chosen = ranking.by_budget(priced, scores, goal, scope="local")
        if "latency" not in limits or turn == corrections:
            break
        seconds = ziplm.clock(subject, subject.cut(chosen)[0], batch, length) * dense["latency"]
        if abs(seconds / limits["latency"] - 1) <= tolerance:
            break
        fixed += seconds - chosen.spent["latency"]
    return {site: [bool(stays) for stays in mask] for site, mask in chosen.keep.items()}


def _recover(
    subject: Transformer, student: Transformer, data: Corpus, run: Run, pairs: list[tuple[int, int]], given: Training
) -> Recovery | None:
    """ZipLM's distillation, so that nothing but the cut differs."""
    if not given["steps"]:
        return None
    decoder = subject.kind == "decoder"
    train, _ = data.split(seed=given["seed"])
    batches = texts.batches(
        train, subject.tokenizer, packed=decoder, batch=given["train_batch"], length=given["train_length"],
        seed=given["seed"] + 1,
    )  # fmt: skip
    token = given["token"] if given["token"] is not None else (0.5 if decoder else 1.0)
    objective = objectives.distil(
        student.forward, subject.forward, output=subject.output, blocks=pairs, task=0.5 if decoder else 0.0,
        logit=given["logit"], token=token,
    )  # fmt: skip
    return loop.train(
        student.model, batches, objective, steps=given["steps"], lr=given["lr"], schedule="linear", warmup=0.1,
        weight_decay=given["weight_decay"], seed=given["seed"], dropout=False, checkpoint=run.folder("train"),
    )  # fmt: skip
