"""ZipLM: inference-aware structured pruning of language models.

Kurtic, Frantar and Alistarh, NeurIPS 2023 (arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from secateur._utils import modes
from secateur._utils.bars import show_bar
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InfeasibleError
from secateur.methods import distillation, timing
from secateur.methods.budgets import refuse_patterns
from secateur.methods.calibration import make_feed
from secateur.methods.distillation import BlockLosses
from secateur.methods.timing import Clock
from secateur.recover.training import objectives
from secateur.score import database, hessian
from secateur.score.database import Sweeps
from secateur.select import allocate, knapsack, levels, search
from secateur.subjects import Transformer
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Result, Selection, Training, Units

CARD = {
    "title": "ZipLM: Inference-Aware Structured Pruning of Language Models",
    "paper": "https://arxiv.org/abs/2302.04089",
    "cuts": "attention heads (KV groups), FFN neurons, whole attention and FFN sub-blocks",
    "recovers": "least-squares compensation, then logit and token-level distillation from the dense model",
    "extra": "",
    "family": "language",
    "parts": "no",
    "needs": "free heads, neurons",
}


Limits = Mapping[str, float]


def ziplm(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 32,
    length: int = 64,
    seed: int = 0,
    calibration: Annotated[int, Ge(1)] = 256,
    ratio: float = 0.9,
    damp: float = 0.01,
    trials: int = 200,
    judged: Annotated[int, Ge(1)] = 32,
    gradual: bool = True,
    train_length: int = 128,
    losses: BlockLosses = BlockLosses(task=None, logit=1.0, token=None, temperature=1.0),
    clock: Clock = Clock(environment="prefill", timer="eager", tolerance=0.02, corrections=4),
    training: Training = Training(steps=1000, batch=32, lr=5e-4, weight_decay=0.03),
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
        length: tokens per sequence in the timed environment; where that is decoding, tokens in the cache.
        seed: of sampling, search and training.
        calibration: sequences for the Hessians. More help, ever less: without distillation, a Spearman of 0.705, 0.807,
            0.872 and 0.885 by 16, 64, 256 and 1024 at 2x (row ziplm/calibration of docs/log/claims-0.1.md): give 1024
            where nothing, or little, is trained afterwards.
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
        losses: the lambdas, see `BlockLosses`.
        logit: lambda_2.
        clock: what a latency is of, what runs the model meanwhile, and how near to a target it must come, see `Clock`.
        keep_database: keep every level of every linear in the run directory (some ten times the pruned weights) when
            they have served: they lie there, layer by layer, until a budget's cut is decided.
        dry_run: stop after the cut; nothing is trained (so with `gradual`, a later budget starts from a student that is
            not trained either).

    In a mixture of experts, KV groups shrink, and the neurons of layers without experts; experts stay whole. Where a
    family's heads or neurons can't be cut, the others go alone.

    Departures: the latency of counts between two timed sizes is interpolated; FFN sizes are rounded to multiples of
    8 since odd widths run slower; the coefficient search starts from each site's measured weight in the whole
    model's loss instead of 1; for sentence encoders, which have no logits, the logit loss is one minus cosine of the
    embeddings. The paper's FFN grid, its 1,000 trials, its lambdas and its learning rates (8e-5 for BERT, 1e-3 for
    GPT-2) are known at second hand; 200 trials, (0, 1, 1) or (0.5, 1, 0.5), and 5e-4 are this project's choice.
    """
    refuse_patterns("ziplm", budgets)
    distillation.check_recovery(subject, data, losses, training)
    subject.check_unequal()
    train, _ = data.split(seed=seed)
    feed = make_feed(subject, train, length=train_length, seed=seed)
    samples, items = feed.sequences(calibration), feed.sequences(judged)

    whole, axes = subject.units(batch=batch, length=length), timing.choose_axes(subject)
    grid = allocate.grid(levels.widest(whole)["neurons"], ratio=ratio) if "neurons" in axes else []
    table = None
    if any("latency" in budget for budget in budgets):
        timed = partial(timing.time_blocks, subject, axes, grid, batch, length, clock, budgets=budgets)
        table = run.json("latency", timed, alone=True)
    rest = table["rest"]["0"] if table else 0.0
    dense = levels.with_latency(whole, table, rest).cost()
    limits = {budget: budget.absolute(dense) for budget in budgets}
    for limit in limits.values():  # before the first of them is trained
        check_reachable(subject.units(*axes, batch=batch, length=length), table, limit, rest, dense)

    def sweeps(start: Transformer, name: str) -> Sweeps:
        sites = start.units(*axes).free()
        gone = {s.name: [s.count - k for k in grid if k < s.count] + [0] for s in sites if s.kind == "neurons"}
        gone |= {s.name: list(range(s.count + 1)) for s in sites if s.kind != "neurons"}
        old = run.path(f"{name}.safetensors")  # of 0.1.0: all sites in one file
        if old.exists():
            return {site: hessian.Sweep.open(old, f"{site}/") for site in gone}
        folder = run.folder(name)
        return database.build(start.forward, start.model, samples, start.consumers(), gone, folder, damp=damp)

    share, current = partial(timing.time_share, subject, batch=batch, length=length, clock=clock), subject
    order = sorted(budgets, key=lambda b: -min(limits[b][m] / dense[m] for m in limits[b]))
    for budget in order:
        start = current if gradual else subject
        name = "database" if start is subject else f"database-{budget}"
        units = start.units(*axes, batch=batch, length=length)

        def decide(
            start: Transformer = start, units: Units = units, limit: Limits = limits[budget], name: str = name
        ) -> dict[str, Tensor]:
            base = sweeps(start, name)
            solve = partial(choose_levels, units, table, base, limit, dense=dense)
            weights = search_coefficients(subject, start, base, partial(solve, rest), items, trials, seed)

            def predict(chosen: dict[str, int], fixed: float) -> float:
                return levels.with_latency(units, table, fixed).cost(kept_units(base, chosen))["latency"]

            def measure(chosen: dict[str, int], lasting: float) -> float:
                return share(start.cut(Selection(kept_units(base, chosen)))[0], lasting=lasting) * dense["latency"]

            chosen, fixed, noisy = timing.meet_target(
                partial(solve, coefficients=weights), predict, measure, limit.get("latency"), rest,
                tolerance=clock.tolerance, corrections=clock.corrections,
            )  # fmt: skip
            decided = {f"{site}.weight": base[site].weights[level] for site, level in chosen.items()}
            decided |= {f"{site}.keep": base[site].keep(level) for site, level in chosen.items()}
            return decided | {"fixed": torch.tensor(fixed, dtype=torch.float64), "noisy": torch.tensor(noisy)}

        decided = run.tensors(f"cut-{budget}", decide, alone=True)
        if not keep_database and (gradual or budget is order[-1]):
            run.drop(name)
        keep = {site.name: decided[f"{site.name}.keep"].numpy() for site in units.free()}
        predicted = levels.with_latency(units, table, float(decided["fixed"])).cost(keep)
        if "latency" in predicted:
            predicted["speedup"] = dense["latency"] / predicted["latency"]
        with database.stitch(start.model, start.consumers(), {s: decided[f"{s}.weight"] for s in keep}):
            student, cut = start.cut(Selection(keep, predicted, budget))
        recovery = None if dry_run else distillation.distil(
            subject, student, data, run.folder(f"train-{budget}"), seed=seed, train_length=train_length,
            losses=losses, training=training,
        )  # fmt: skip
        cut = replace(shapes.receipt(subject, student), notes=cut.notes)  # of the original, not of the last student
        yield Result(str(budget), student, cut, predicted, recovery, (timing.NOISY,) if decided["noisy"] else ())
        current = student if gradual else subject
        del student, start, decide  # or they would be held beside the next one


def check_reachable(
    units: Units, table: levels.Table | None, limit: Limits, fixed: float, dense: Mapping[str, float]
) -> None:
    """Raise `InfeasibleError`, saying what is reachable, where even a model without all that can go costs too much.

    dense: what the original costs, to which a speedup refers.
    """
    least = levels.with_latency(units, table, fixed).cost({s.name: np.zeros(s.count, bool) for s in units.free()})
    going = " and no ".join(sorted({"neuron" if site.kind == "neurons" else "head" for site in units.free()}))
    for measure, most in limit.items():
        if least[measure] > most:
            best = f"at least {measure}={np.ceil(least[measure]):.0f}"
            if measure == "latency":  # rounded down: rounded up, it could not be met
                best = f"at most speedup={np.floor(100 * dense[measure] / least[measure]) / 100:g}x"
            if "active_params" in dense:
                best += "; experts stay whole here: slimmoe makes them thinner, stun drops some, and sparsegpt and "
                best += "wanda zero weights in them"
            raise InfeasibleError(
                f"{measure} of {most:.4g} can't be met: with no {going} left it is {least[measure]:.4g}; "
                f"ask for {best}", least[measure],
            )  # fmt: skip


def choose_levels(
    units: Units,
    table: levels.Table | None,
    base: Sweeps,
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
    check_reachable(units, table, limit, fixed, dense or priced.cost())
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


def kept_units(base: Sweeps, chosen: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Site -> which of its units stay at the chosen level."""
    return {site: base[site].keep(level).numpy() for site, level in chosen.items()}


def search_coefficients(
    subject: Transformer,
    start: Transformer,
    base: Sweeps,
    solve: Callable[[Sequence[float]], dict[str, int]],
    items: Sequence[Mapping[str, Tensor]],
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
    direction = distillation.choose_direction(subject)
    with torch.no_grad(), modes.evaluating(subject.model):
        answers = [subject.forward(item).prediction for item in items]

    def propose(coefficients: NDArray[np.float64]) -> tuple[tuple[tuple[str, int], ...], dict[str, int]]:
        chosen = solve(coefficients.tolist())
        return tuple(chosen.items()), chosen

    @torch.no_grad()
    def evaluate(chosen: dict[str, int]) -> float:
        with modes.evaluating(start.model), database.running(start.model, start.consumers(), base, chosen):
            losses = [
                objectives.distance(
                    start.forward(item).prediction, answer, item, output=subject.output, direction=direction
                )
                for item, answer in zip(items, answers, strict=True)
            ]
        return float(np.average([float(loss) for loss in losses], weights=[len(item["input_ids"]) for item in items]))

    uncut, weights = evaluate({}), []
    for site, sweep in base.items():
        lossy = [(abs(sweep.errors[level] - 0.3), level) for level in sweep.levels if sweep.errors[level] > 0]
        level = min(lossy, default=(0.0, 0))[1]
        alone = evaluate({site: level}) - uncut
        weights.append(max(0.0, alone) / sweep.errors[level] if sweep.errors[level] else 0.0)
    most = max(weights)
    scale = [max(weight / most, 1e-3) for weight in weights] if most else [1.0] * len(base)
    bar = partial(show_bar, title="coefficient search")
    best = search.coefficients(propose, evaluate, len(base), trials=trials, scale=scale, seed=seed, progress=bar)
    return list(best.coefficients)
