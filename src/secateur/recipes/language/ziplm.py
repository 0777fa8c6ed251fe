"""ZipLM: inference-aware structured pruning of language models.

Kurtic, Frantar and Alistarh, NeurIPS 2023 (arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InfeasibleError, MeasurementError
from secateur.measure import latency, size
from secateur.recover.training import loop, objectives
from secateur.score import database, hessian
from secateur.select import allocate, knapsack, levels, search
from secateur.subjects import Transformer
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Recovery, Result, Selection, Units

CARD = {
    "title": "ZipLM: Inference-Aware Structured Pruning of Language Models",
    "paper": "https://arxiv.org/abs/2302.04089",
    "cuts": "attention heads (KV groups), FFN neurons, whole attention and FFN sub-blocks",
    "recovers": "least-squares compensation, then logit and token-level distillation from the dense model",
    "extra": "",
    "family": "language",
}


def ziplm(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    calibration: int = 256,
    ratio: float = 0.9,
    damp: float = 0.01,
    trials: int = 200,
    judged: int = 32,
    gradual: bool = True,
    steps: int = 1000,
    train_batch: int = 32,
    train_length: int = 128,
    lr: float = 5e-4,
    weight_decay: float = 0.03,
    task: float | None = None,
    logit: float = 1.0,
    token: float | None = None,
    temperature: float = 1.0,
    tolerance: float = 0.02,
    corrections: int = 4,
    training: str | Sequence[str] = "",
    keep_database: bool = False,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Meet each budget, a measured speedup above all, by a second-order layer-wise search, then distil.

    Per budget, the loosest first:

    1. Hessians H = 2 X X^T / N of the inputs of every output projection and second FFN linear (section 3.1);
    2. one pass of structured OBS per linear: drop the cheapest structure, compensate, repeat; every level is kept;
    3. the latency of one attention and one FFN block at every level, timed on this machine;
    4. dynamic programming over levels, min sum_l c_l p_l subject to sum_l t_l <= T - T_fix, with the loss prior
       p = |W'X - WX|^2 / |WX|^2, and a random search over c that lowers the whole model's calibration loss;
    5. a real cut, re-timed; where prediction and clock disagree, T_fix is corrected and step 4 repeated;
    6. distillation: lambda_1 task + lambda_2 logit + lambda_3 token (section 3.3); with `gradual`, the next budget
       starts from this student and from fresh Hessians.

    Args:
        subject: a trained encoder or decoder; it stays as it is and teaches.
        data: texts like those the model will meet.
        budgets: one student is made for each; relative budgets refer to `subject`.
        run: where intermediate artefacts go.
        batch: sequences per batch in the timed environment.
        length: tokens per sequence in the timed environment.
        seed: of sampling, search and training.
        calibration: sequences for the Hessians.
        ratio: step of the geometric grid of FFN sizes.
        damp: dampening, as a share of the mean of the Hessian's diagonal.
        trials: coefficient vectors tried; 0 leaves every c at 1.
        judged: sequences on which each trial's model is judged.
        gradual: continue from the last student; otherwise each budget is cut from `subject` (one-shot).
        steps: distillation steps per budget; 0 stops after compensation (one-shot mode).
        train_batch: sequences per distillation step.
        train_length: most tokens per distillation sequence.
        lr: peak learning rate, re-warmed and decayed linearly for each budget.
        weight_decay: of AdamW.
        task: lambda_1; 0 for encoders and 0.5 for decoders unless given.
        logit: lambda_2.
        token: lambda_3; 1 for encoders and 0.5 for decoders unless given.
        temperature: of the logit loss.
        tolerance: relative gap between target and clock that is left alone.
        corrections: most re-timings per budget.
        training: more settings of the training loop, such as accumulate=4,precision=bf16,patience=3,trackers=wandb.
        keep_database: store every level of every linear in the run directory (some ten times the pruned weights), so
            that a run which is killed in its search resumes without a second pass.
        dry_run: stop after the cut; nothing is trained (so with `gradual`, a later budget starts from a student that is
            not trained either).

    Departures: the latency of counts between two timed sizes is interpolated; FFN sizes are rounded to multiples of
    8 since odd widths run slower; the coefficient search starts from each site's measured weight in the whole
    model's loss instead of 1; for sentence encoders, which have no logits, the logit loss is one minus cosine of the
    embeddings. The paper's FFN grid, its 1,000 trials, its lambdas and its learning rates (8e-5 for BERT, 1e-3 for
    GPT-2) are known at second hand; 200 trials, (0, 1, 1) or (0.5, 1, 0.5), and 5e-4 are this project's choice.
    """
    recover = partial(
        distil, subject, data=data, seed=seed, steps=0 if dry_run else steps, train_batch=train_batch, lr=lr,
        train_length=train_length, weight_decay=weight_decay, task=task, logit=logit, token=token,
        temperature=temperature, training=training,
    )  # fmt: skip
    train, _ = data.split(seed=seed)
    packed = subject.kind == "decoder"
    feed = texts.batches(train, subject.tokenizer, packed=packed, batch=16, length=train_length, seed=seed)
    samples = feed.take(max(1, calibration // 16))

    whole = subject.units(batch=batch, length=length)
    kinds = {site.kind: site.count for site in whole.sites.values()}
    axis = "kv_groups" if "kv_groups" in kinds else "heads"
    grid = allocate.grid(kinds["neurons"], ratio=ratio)
    table = None
    if any("latency" in budget for budget in budgets):
        table = run.json("latency", lambda: profile(subject, axis, grid, batch, length))
    rest = table["rest"]["0"] if table else 0.0
    dense = levels.with_latency(whole, table, rest).cost()
    limits = {budget: budget.absolute(dense) for budget in budgets}
    for limit in limits.values():  # before the first of them is trained
        check(subject.units(axis, "neurons", batch=batch, length=length), table, limit, rest, dense)

    @cache
    def sweeps(start: Transformer, name: str) -> Database:
        sites = start.units(axis, "neurons").free()
        gone = {s.name: [s.count - k for k in grid if k < s.count] + [0] for s in sites if s.kind == "neurons"}
        gone |= {s.name: list(range(s.count + 1)) for s in sites if s.kind == axis}
        build = partial(database.build, start.forward, start.model, samples, start.consumers(), gone, damp=damp)
        return stored(run, name, build, list(gone)) if keep_database else build()

    share, current = partial(clock, subject, batch=batch, length=length), subject
    for budget in sorted(budgets, key=lambda b: -min(limits[b][m] / dense[m] for m in limits[b])):
        start = current if gradual else subject
        units = start.units(axis, "neurons", batch=batch, length=length)

        def decide(
            start: Transformer = start, units: Units = units, limit: Limits = limits[budget], budget: Budget = budget
        ) -> dict[str, Tensor]:
            base = sweeps(start, "database" if start is subject else f"database-{budget}")
            solve = partial(solution, units, table, base, limit, dense=dense)
            weights = tune(subject, start, base, partial(solve, rest), samples, judged, trials, seed)
            chosen, fixed, noisy = settle(
                lambda fixed: solve(fixed, weights),
                lambda chosen, fixed: levels.with_latency(units, table, fixed).cost(kept(base, chosen))["latency"],
                lambda chosen: share(start.cut(Selection(kept(base, chosen)))[0]) * dense["latency"],
                limit.get("latency"), rest, tolerance=tolerance, corrections=corrections,
            )  # fmt: skip
            decided = {f"{site}.weight": base[site].weights[level] for site, level in chosen.items()}
            decided |= {f"{site}.keep": base[site].keep(level) for site, level in chosen.items()}
            return decided | {"fixed": torch.tensor(fixed, dtype=torch.float64), "noisy": torch.tensor(noisy)}

        decided = run.tensors(f"cut-{budget}", decide)
        keep = {site.name: decided[f"{site.name}.keep"].numpy() for site in units.free()}
        predicted = levels.with_latency(units, table, float(decided["fixed"])).cost(keep)
        if "latency" in predicted:
            predicted["speedup"] = dense["latency"] / predicted["latency"]
        with database.stitched(start.model, start.consumers(), {s: decided[f"{s}.weight"] for s in keep}):
            student, cut = start.cut(Selection(keep, predicted, budget))
        recovery = recover(student, run.folder(f"train-{budget}"))
        notes = ("the clock disagrees with the latency table or with itself: repeat on a quiet machine",)
        cut = replace(shapes.receipt(subject, student), notes=cut.notes)  # of the original, not of the last student
        yield Result(str(budget), student, cut, predicted, recovery, notes if decided["noisy"] else ())
        current = student


def distil(
    subject: Transformer,
    student: Transformer,
    folder: Path,
    *,
    data: Corpus,
    blocks: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    steps: int = 1000,
    train_batch: int = 32,
    train_length: int = 128,
    lr: float = 5e-4,
    weight_decay: float = 0.03,
    task: float | None = None,
    logit: float = 1.0,
    token: float | None = None,
    temperature: float = 1.0,
    training: str | Sequence[str] = "",
) -> Recovery | None:
    """Step 6 of `ziplm`: train `student` in place against `subject`, with checkpoints in `folder`; None for no steps.

    blocks: (student, teacher) blocks whose output L_token compares; unless given, those of the same index that still
        have an attention or an FFN.
    """
    further, decoder = loop.options(training), subject.kind == "decoder"
    train, held = data.split(seed=seed)
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=decoder, length=train_length)
    batches = make(train, batch=train_batch, seed=seed + 1)
    if not steps:
        return None
    objective = objectives.distil(
        student.forward, subject.forward, output=subject.output, logit=logit, temperature=temperature, fused=True,
        task=(0.5 if subject.causal else 0.0) if task is None else task,
        token=(0.5 if decoder else 1.0) if token is None else token,
        blocks=[(k, k) for k, width in enumerate(student.widths(), 1) if width.heads or width.neurons]
        if blocks is None else blocks,
    )  # fmt: skip
    evaluate = None
    if "patience" in further:
        judged = make(held, batch=min(16, train_batch), seed=seed).take(16)
        evaluate = partial(
            objectives.held_out, student.forward, teacher=subject.forward, output=subject.output, batches=judged
        )
    return loop.train(
        student.model, batches, objective, steps=steps, lr=lr, schedule="linear", warmup=0.1, seed=seed,
        weight_decay=weight_decay, dropout=False, frozen=[subject.model], evaluate=evaluate, checkpoint=folder,
        flops_per_token=size.training_flops(*(s.flops_per_token(train_length) for s in (student, subject))), **further,
    )  # fmt: skip


T = TypeVar("T")
Limits = Mapping[str, float]
Database = Mapping[str, hessian.Sweep]


def profile(subject: Transformer, axis: str, grid: Sequence[int], batch: int, length: int) -> levels.Table:
    """Seconds of one attention and one FFN block at every level, and of what is left without them ("rest").

    The rest is the time of a model with next to nothing in its blocks: taken as the difference of two large times,
    it would hold all their noise. A block alone is a little slower than inside the model, so that all entries are
    scaled alike until the whole model's add up to its own time.
    """
    sites = subject.units(axis, "neurons").free()
    most = {kind: max(site.count for site in sites if site.kind == kind) for kind in (axis, "neurons")}
    counts = {axis: list(range(1, 1 + most[axis])), "neurons": [k for k in grid if 0 < k <= most["neurons"]]}
    probes = {(kind, k): subject.probe(cast(Any, kind), k, batch, length) for kind in counts for k in counts[kind]}
    least = counts["neurons"][0]
    bare, _ = subject.cut(
        Selection({s.name: np.arange(s.count) < (least if s.kind == "neurons" else 0) for s in sites})
    )
    example = subject.example(batch, length)
    probes |= {("rest", 0): partial(bare.forward, example), ("dense", 0): partial(subject.forward, example)}
    times = latency.interleaved(probes, rounds=20, progress=True, device=str(subject.model.device))
    table: levels.Table = {}
    for kind, row in counts.items():
        smooth = latency.monotone({k: times[kind, k].value for k in row})
        table[kind] = {"0": 0.0} | {str(k): seconds for k, seconds in smooth.items()}
    blocks = table["neurons"][str(least)] * sum(s.kind == "neurons" for s in sites)
    table["rest"] = {"0": max(0.0, times["rest", 0].value - blocks)}
    units = subject.units(axis, "neurons", batch=batch, length=length)
    scale = times["dense", 0].value / levels.with_latency(units, table, table["rest"]["0"]).cost()["latency"]
    return {kind: {count: scale * seconds for count, seconds in row.items()} for kind, row in table.items()}


def check(units: Units, table: levels.Table | None, limit: Limits, fixed: float, dense: Mapping[str, float]) -> None:
    """Raise `InfeasibleError`, saying what is reachable, where even a model without heads and neurons costs too much.

    dense: what the original costs, to which a speedup refers.
    """
    least = levels.with_latency(units, table, fixed).cost({s.name: np.zeros(s.count, bool) for s in units.free()})
    for measure, most in limit.items():
        if least[measure] > most:
            best = f"at least {measure}={np.ceil(least[measure]):.0f}"
            if measure == "latency":  # rounded down: rounded up, it could not be met
                best = f"at most speedup={np.floor(100 * dense[measure] / least[measure]) / 100:g}x"
            raise InfeasibleError(
                f"{measure} of {most:.4g} can't be met: with no head and no neuron left it is {least[measure]:.4g}; "
                f"ask for {best}", least[measure],
            )  # fmt: skip


def solution(
    units: Units,
    table: levels.Table | None,
    base: Database,
    limit: Limits,
    fixed: float,
    coefficients: Sequence[float],
    *,
    dense: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Site -> units removed: min sum_l c_l p_l under every limit, when all that can't go takes `fixed` seconds.

    dense: what the original costs, where `units` are those of a student; for the error that says what is reachable.
    """
    priced = levels.with_latency(units, table, fixed)
    check(units, table, limit, fixed, dense or priced.cost())
    kept = {site: [units[site].count - level for level in sweep.levels] for site, sweep in base.items()}
    columns = {measure: levels.costs(priced, kept, measure) for measure in limit}
    losses = [
        [c * sweep.errors[level] for level in sweep.levels]
        for c, sweep in zip(coefficients, base.values(), strict=True)
    ]
    costs = {measure: [column[site] for site in base] for measure, (column, _) in columns.items()}
    spare = {measure: limit[measure] - rest for measure, (_, rest) in columns.items()}
    if len(limit) == 1:
        (measure,) = limit
        choice = knapsack.solve(costs[measure], losses, spare[measure])
    else:
        choice = knapsack.solve_many(costs, losses, spare)
    return {site: base[site].levels[at] for site, at in zip(base, choice.levels, strict=True)}


def stored(run: Run, name: str, build: Callable[[], Database], sites: Sequence[str]) -> Database:
    """The database `name` of the run directory, in the order of `sites`; built and stored the first time."""

    def flat() -> dict[str, Tensor]:
        return {f"{site}/{part}": t for site, sweep in build().items() for part, t in sweep.to_tensors().items()}

    parts: dict[str, dict[str, Tensor]] = {site: {} for site in sites}
    for key, tensor in run.tensors(name, flat).items():
        site, _, part = key.rpartition("/")
        parts[site][part] = tensor
    return {site: hessian.Sweep.from_tensors(tensors) for site, tensors in parts.items()}


def kept(base: Database, chosen: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Site -> which of its units stay at the chosen level."""
    return {site: base[site].keep(level).numpy() for site, level in chosen.items()}


def tune(
    subject: Transformer,
    start: Transformer,
    base: Database,
    solve: Callable[[Sequence[float]], dict[str, int]],
    samples: Sequence[Mapping[str, Tensor]],
    judged: int,
    trials: int,
    seed: int,
) -> Sequence[float]:
    """The coefficients whose solution loses least on the whole model, against what `subject` says.

    The search starts from how much each site's error weighs in the whole model's loss, found by cutting it alone to
    where its relative error is nearest 0.3: that start is worth some 120 trials from c = 1. Without trials every
    coefficient is 1.
    """
    if not trials:
        return [1.0] * len(base)
    items = samples[: max(1, judged // 16)]
    with torch.no_grad():
        answers = [subject.forward(item).prediction for item in items]

    def propose(coefficients: Any) -> tuple[Any, dict[str, int]]:
        chosen = solve(coefficients)
        return tuple(chosen.items()), chosen

    @torch.no_grad()
    def evaluate(chosen: dict[str, int]) -> float:
        weights = {site: base[site].weights[level] for site, level in chosen.items()}
        with database.stitched(start.model, start.consumers(), weights):
            losses = [
                objectives.distance(start.forward(item).prediction, answer, item, output=subject.output)
                for item, answer in zip(items, answers, strict=True)
            ]
        return float(sum(losses)) / len(items)

    uncut, weights = evaluate({}), []
    for site, sweep in base.items():
        lossy = [(abs(sweep.errors[level] - 0.3), level) for level in sweep.levels if sweep.errors[level] > 0]
        level = min(lossy, default=(0.0, 0))[1]
        alone = evaluate({site: level}) - uncut
        weights.append(max(0.0, alone) / sweep.errors[level] if sweep.errors[level] else 0.0)
    most = max(weights)
    scale = [max(weight / most, 1e-3) for weight in weights] if most else [1.0] * len(base)
    bar = partial(track, description="coefficient search", transient=True)
    found = search.coefficients(propose, evaluate, len(base), trials=trials, scale=scale, seed=seed, progress=bar)
    return list(found.coefficients)


def settle(
    solve: Callable[[float], T],
    predict: Callable[[T, float], float],
    timed: Callable[[T], float],
    limit: float | None,
    fixed: float,
    *,
    tolerance: float,
    corrections: int,
) -> tuple[T, float, bool]:
    """The choice nearest to `limit` seconds on the clock: (choice, fixed seconds it was solved with, clock failed).

    Where the clock disagrees by more than `tolerance`, the difference goes to the fixed seconds and the choice is made
    anew, at most `corrections` times. What is returned was timed itself, unless the clock failed at once.
    """
    chosen, failed = solve(fixed), False
    found: list[tuple[float, int, T, float]] = []
    for turn in range(1 + corrections if limit else 0):
        try:
            seconds = timed(chosen)
            found.append((abs(seconds / cast(float, limit) - 1), len(found), chosen, fixed))
            if found[-1][0] <= tolerance or turn == corrections:
                break
            fixed += seconds - predict(chosen, fixed)
            chosen = solve(fixed)
        except (MeasurementError, InfeasibleError):
            failed = True
            break
    return (*min(found)[2:], failed) if found else (chosen, fixed, failed)


def clock(subject: Transformer, student: Transformer, batch: int, length: int) -> float:
    """The student's share of the subject's time, by alternating pairs for a quarter of a minute, or a thousand."""
    example, device = subject.example(batch, length), str(subject.model.device)
    times = latency.compare(
        lambda: subject.forward(example), lambda: student.forward(example), resolution=0.03, device=device,
        lasting=15.0, most=2000,
    )  # fmt: skip
    return 1 / times.speedup.value
