"""ShortGPT: layers in large language models are more redundant than you expect.

Men et al. 2024 (arXiv 2403.03853); the angular rule: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper
Layers" (arXiv 2403.17887).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from secateur._utils.modes import evaluating
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InfeasibleError, InputError
from secateur.methods import calibration, distillation, timing
from secateur.methods.budgets import refuse_patterns
from secateur.methods.distillation import BlockLosses
from secateur.score import similarity
from secateur.select import levels, limits, ranking
from secateur.subjects import Transformer
from secateur.vocabulary import Budget, Result, Selection, Training, Units

CARD = {
    "title": "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    "paper": "https://arxiv.org/abs/2403.03853",
    "cuts": "whole layers, by block influence or by the angle between the states around a run of them",
    "recovers": "nothing by default; on request, training against the original",
    "extra": "",
    "family": "language",
    "offloaded": "steps=0",
}

Rule = Literal["influence", "angular", "deepest"]


def shortgpt(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    rule: Rule = "influence",
    tokens: Literal["all", "last"] | None = None,
    samples: Annotated[int, Ge(1)] = 128,
    train_length: Annotated[int, Ge(1)] = 128,
    losses: BlockLosses = BlockLosses(task=None, logit=1.0, token=0.0, temperature=1.0),
    training: Training = Training(steps=0, batch=16, lr=3e-4),
    select_by: Literal["score", "short-retrain"] = "score",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Remove the layers that change the residual stream least, in one shot, and heal what is left if asked to.

    1. One forward pass over `samples` sequences gives the states x_0 (embeddings) to x_L (after each layer); the rule
       deepest needs none.
    2. Which layers go, until the budget is met:
       influence: those of the least BI_i = 1 - E[cos(x_{i-1}, x_i)], wherever they stand (ShortGPT, equation 1);
       angular: the run of n neighbouring layers of the least d(x_l, x_{l+n}) = E[arccos(cos(x_l, x_{l+n}))] / pi, n
       the fewest that meet the budget (Gromov et al., section 3.2);
       deepest: the last n but the very last layer, which Gromov et al. find to be as good once healed (section 4.4).
    3. With `steps`, the shorter model is trained against the original: cross-entropy and its logits.

    Args:
        subject: any encoder or decoder; it stays as it is and teaches.
        data: texts like those the model will meet.
        budgets: one student for each; a budget of latency is met on the clock.
        run: where the distances, the choice and checkpoints go.
        batch: sequences of the environment that is timed, and for which costs are.
        length: tokens per sequence of that environment.
        seed: of sampling and training.
        rule: which layers go.
        tokens: at which real tokens states are compared; unless given, at all for influence and at the last one of
            each sequence for the angular rule, as published.
        samples: sequences of the forward pass.
        train_length: most tokens per sequence, of that pass and in training.
        losses: of healing, see `BlockLosses`; `token` compares each layer's output with that of the layer it was.
        training: of healing; none without steps, as ShortGPT is published.
        select_by: "score", as published; or "short-retrain": of 8 cuts of as many layers, that of the rule, some near
            it and some at random, the one of the lowest loss after a tenth of the healing (arXiv 2412.00143).
        dry_run: stop after the cut.

    Departures: a budget says how many layers go, where the papers give the number. ShortGPT trains nothing; Gromov et
    al. heal by next-token prediction alone (task=1, logit=0) with QLoRA, 5,000 steps of 16 sequences at 3e-4, and here
    the original teaches, too. Padding enters no mean.
    """
    refuse_patterns("shortgpt", budgets, "layers")
    distillation.check_recovery(subject, data, losses, training)
    train, _ = data.split(seed=seed)
    units = subject.units("layers", batch=batch, length=length)
    if rule != "deepest" and subject.family.has_encoder:
        raise InputError(
            f"rule={rule} compares states before and after layers side by side, and a decoder begins with states of "
            "its own, not with those that leave the encoder: give rule=deepest"
        )
    if select_by == "short-retrain":
        check_short(units, training)
    last = (tokens or ("last" if rule == "angular" else "all")) == "last"
    needed = [*subject.needed_layers()]
    refuse_unreachable(budgets, units, needed)
    table = None
    if any("latency" in budget for budget in budgets):
        table = run.json("latency", partial(timing.time_layers, subject, batch, length), alone=True)
        refuse_unreachable(budgets, units, needed, table)

    def compare_states() -> dict[str, Tensor]:
        how = similarity.angular_distance if rule == "angular" else similarity.block_influence
        states = partial(subject.forward, hidden=True)
        items = calibration.make_feed(subject, train, length=train_length, seed=seed).sequences(samples)
        with evaluating(subject.model):  # one in memory may come from training
            return {"distances": similarity.distances(lambda item: states(item).hidden, items, how, last=last)}

    distances = None if rule == "deepest" else run.tensors("distances", compare_states)["distances"].numpy()
    choose = partial(keep_layers, rule=rule, distances=distances, needed=needed)
    chosen = {
        budget: timing.select_in_time(run, subject, units, table, budget, choose, batch=batch, length=length)
        for budget in budgets
    }
    for budget, (selection, notes) in chosen.items():
        if select_by == "short-retrain" and not dry_run:
            selection, note = distillation.choose_shortly(
                subject, replace(selection, budget=budget), data, run, seed=seed, train_length=train_length,
                losses=losses, training=training, blocks=pair_layers,
            )  # fmt: skip
            notes = (*notes, note)
        student, cut = subject.cut(selection)
        notes = (*notes, *subject.describe_needed(np.asarray(selection.keep["layers"])))
        recovery = None if dry_run else distillation.distil(
            subject, student, data, run.folder(f"train-{budget}"), seed=seed, train_length=train_length,
            blocks=pair_layers(selection), losses=losses, training=training,
        )  # fmt: skip
        yield Result(str(budget), student, cut, selection.spent, recovery, notes)
        del student  # or it would be held beside the next one


def pair_layers(selection: Selection) -> list[tuple[int, int]]:
    """(place of a layer that stays, that of the same layer before), counted from 1."""
    return [(place, int(old) + 1) for place, old in enumerate(np.flatnonzero(selection.keep["layers"]), 1)]


def check_short(units: Units, training: Training) -> None:
    """Refuse a choice by short healing without healing, and among layers of which some cost more than others."""
    if not training.steps:
        raise InputError("select_by=short-retrain compares cuts after a tenth of the healing: give steps, such as 500")
    without = [units.cost({"layers": keep}) for keep in ~np.eye(units["layers"].count, dtype=bool)]
    if any(not np.allclose([cost[measure] for cost in without], without[0][measure]) for measure in without[0]):
        raise InputError("select_by=short-retrain: layers cost unlike amounts here, so that cuts do too: leave it out")


def refuse_unreachable(
    budgets: Sequence[Budget], units: Units, needed: Collection[Sequence[int]], table: levels.Table | None = None
) -> None:
    """Refuse budgets that the fewest layers don't meet, before states are compared; of a latency with its `table`."""
    timed = levels.with_latency(units, table, table["rest"]["0"] if table else 0.0)
    stays = ranking.fix_best(timed, {"layers": np.zeros(units["layers"].count)}, "layers", needed)
    limits.refuse_unreachable(budgets, timed.cost(), ranking.fewest(stays).spent)


def keep_layers(
    units: Units,
    budget: Budget,
    *,
    rule: Rule,
    distances: NDArray[np.float32] | None,
    needed: Collection[Sequence[int]] = (),
) -> Mapping[str, NDArray[np.bool_]]:
    """Which layers stay within an absolute budget: {"layers": [L] booleans}.

    distances [L + 1, L + 1]: of the states before layer i and before layer j, as `similarity.distances` gives them;
    None for the rule deepest. needed: sets of layers, of each of which one stays.
    Raises `InfeasibleError`, with what is reachable, where one layer alone costs more.
    """
    count = units["layers"].count
    worth = {"layers": np.zeros(count) if distances is None else np.diagonal(distances, 1)}
    influential = ranking.by_budget(ranking.fix_best(units, worth, "layers", needed), worth, budget).keep
    if rule == "influence":
        return influential
    for gone in range(count):
        firsts = [count - 1 - gone]
        if distances is not None and rule == "angular":
            firsts = sorted(range(count - gone + 1), key=distances.diagonal(gone).__getitem__)
        for first in firsts:
            keep = {"layers": (np.arange(count) < first) | (np.arange(count) >= first + gone)}
            if not all(keep["layers"][list(members)].any() for members in needed):
                continue
            cost = units.cost(keep)
            if all(cost[limit.measure] <= limit.value for limit in budget.limits):
                return keep
    raise InfeasibleError(
        f"no run of neighbouring layers meets {budget.brief()}: give rule=influence, or a larger budget"
    )
