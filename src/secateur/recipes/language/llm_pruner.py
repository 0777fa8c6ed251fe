"""LLM-Pruner: on the structural pruning of large language models.

Ma, Fang and Wang, NeurIPS 2023 (arXiv 2305.11627).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from secateur._utils import plugins
from secateur._utils.batches import Batch
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import InputError, UnsupportedError
from secateur.methods import distillation, timing
from secateur.methods.budgets import refuse_patterns
from secateur.methods.distillation import BlockLosses
from secateur.recover.training import objectives
from secateur.score import gradient, magnitude, random
from secateur.score.slices import Slices
from secateur.select import allocate, levels, limits, ranking
from secateur.subjects import Transformer
from secateur.vocabulary import Array, Budget, Result, Training, Units

CARD = {
    "title": "LLM-Pruner: On the Structural Pruning of Large Language Models",
    "paper": "https://arxiv.org/abs/2305.11627",
    "cuts": "coupled groups: heads with their keys and values, FFN neurons, residual channels on request",
    "recovers": "a short training on little data, against the original",
    "extra": "",
    "family": "language",
    "parts": "scope=local, first=0, last=0",
}

AXES = ("heads", "kv_groups", "neurons", "channels")
Aggregation = Literal["sum", "prod", "max", "last"]

_LOG_OF_ZERO = -1e6
"""Of a factor: below the logarithms of some thousand positive float32 numbers, each -104 at the least, together."""


@dataclass(frozen=True, slots=True)
class Importance:
    """How groups of coupled weights are ranked; the defaults are the published ones for 7 billion weights."""

    score: str = "taylor"
    """taylor, l2, random, or file.py:function with (subject, batches) -> site -> [count] scores."""
    within: Literal["vector", "element"] = "element"
    """Whether the changes of a row or column are summed with their signs (vector-wise) or one by one."""
    order: Literal[1, 2] = 1
    """1: |w g|; 2: with the Fisher diagonal in place of the Hessian, |w g - w^2 E[g^2] / 2|."""
    aggregation: Aggregation = "sum"
    """How the matrices of a group add up; prod ranks by the logarithm of the product, last by the output's alone."""
    samples: Annotated[int, Ge(1)] = 10
    """Sequences whose gradients are taken."""


def llm_pruner(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    axes: Sequence[str] = ("kv_groups", "neurons"),
    importance: Importance = Importance(),
    scope: Literal["local", "kind", "global"] = "local",
    first: Annotated[int, Ge(0)] | None = None,
    last: Annotated[int, Ge(0)] | None = None,
    train_length: Annotated[int, Ge(1)] = 128,
    losses: BlockLosses = BlockLosses(task=None, logit=1.0, token=0.0, temperature=1.0),
    training: Training = Training(steps=1000, batch=64, lr=1e-4, warmup=0.1),
    select_by: Literal["score", "short-retrain"] = "score",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Remove the groups of coupled weights that matter least to the loss, then recover quickly.

    1. Groups (section 3.1): what has to go together. A head takes its rows of the query, key and value projections
       and its columns of the output projection; where heads share keys and values, a group of them goes as one. A
       neuron takes its rows of gate and up projections and its column of the down projection; a channel its slice of
       every matrix that reads or writes the residual stream.
    2. Importance (section 3.2, equations 3 to 5): with g_n the gradient of sequence n and g their mean, each vector
       (row or column) of each matrix of a group has |sum_w d_w| (vector-wise) or sum_w |d_w| (element-wise), with
       d_w = w g (order 1) or w g - 1/2 w^2 mean_n g_n^2 (order 2). A matrix counts as the sum of its vectors, and the
       matrices of a group are added, multiplied, or the largest or the last one taken.
    3. The groups of least importance go until the budget is met, the same share in every layer (`scope`), but for the
       first and last layers, which stay whole.
    4. Recovery (section 3.3): the smaller model is trained on `data`.

    Args:
        subject: a language model, of the next token or of masked ones, or a classifier with labels in `data`; it stays
            as it is and teaches.
        data: a little text like that the model will meet.
        budgets: one student for each; a budget of latency is met on the clock.
        run: where scores, the choice and checkpoints go.
        batch: sequences of the environment that is timed, and for which costs are.
        length: tokens per sequence of that environment.
        seed: of sampling and training.
        axes: what goes: kv_groups (heads where each has keys and values of its own), heads (inside their groups),
            neurons, channels.
        importance: how groups are ranked, see `Importance`.
        scope: local: every layer loses the same share; kind, global: the weakest of a kind, or of all, go.
        first: layers from the start that stay whole but for channels; an eighth unless given, 4 of 32 as published.
        last: layers at the end that stay whole but for channels; a sixteenth unless given, 2 of 32 as published.
        train_length: most tokens per sequence, of gradients and in training.
        losses: of recovery, see `BlockLosses`.
        training: of recovery.
        select_by: "score", as published; or "short-retrain": of 8 cuts of the same widths, that of the scores, some
            near it and some at random, the one of the lowest loss after a tenth of the recovery (arXiv 2412.00143).
        dry_run: stop after the cut.

    Departures: a budget says how much goes, where the paper gives a share of every pruned layer. The paper's two-fold
    equation 5 has the sum of the squares of gradients; here it is their mean, as the first-order term is, so that
    neither grows with the number of sequences. Biases count with the rows of their matrix. Recovery is by the loop of
    every recipe, with the original as a teacher; the paper trains LoRA of rank 8 on 50,000 instructions for two epochs
    by next-token prediction (task=1, logit=0).
    """
    refuse_patterns("llm_pruner", budgets, "heads, neurons and channels")
    distillation.check_recovery(subject, data, losses, training)
    axes, units = choose_units(subject, axes, first, last, batch=batch, length=length)
    limits.refuse_idle(budgets, units.cost())
    refuse_unreachable(budgets, units)
    if scope != "local" or {first, last} != {0}:
        subject.check_unequal()
    if losses.token != 0 and "channels" in axes:
        raise InputError("token compares states of equal width, and channels go: set token=0, or leave channels out")
    if select_by == "short-retrain" and any(site.group is not None for site in units.free()):
        raise InputError("select_by=short-retrain: heads go in step within groups; leave it out, or cut kv_groups")
    train, _ = data.split(seed=seed)
    table = None
    if any("latency" in budget for budget in budgets):
        table = run.json("latency", partial(time_units, subject, axes, batch, length), alone=True)
        refuse_unreachable(budgets, levels.with_latency(units, table, table["rest"]["0"]))

    def rank() -> Mapping[str, Tensor]:
        batches = sequences(subject, train, importance.samples, length=train_length, seed=seed)
        return score_units(subject, units, batches, importance, seed=seed)

    scores = run.tensors("scores", rank)

    def choose(priced: Units, budget: Budget) -> Mapping[str, Array]:
        keep = ranking.by_budget(priced, scores, budget, scope=scope).keep
        if subject.whole is None:
            return keep
        return ranking.even_out(priced, scores, keep, budget).keep  # the whole says one width for all of its layers

    chosen = {
        budget: timing.select_in_time(run, subject, units, table, budget, choose, batch=batch, length=length)
        for budget in budgets
    }
    for budget, (selection, notes) in chosen.items():
        if select_by == "short-retrain" and not dry_run and training.steps:
            selection, note = distillation.choose_shortly(
                subject, replace(selection, budget=budget), data, run, seed=seed, train_length=train_length,
                losses=losses, training=training,
            )  # fmt: skip
            notes = (*notes, note)
        student, cut = subject.cut(selection)
        recovery = None if dry_run else distillation.distil(
            subject, student, data, run.folder(f"train-{budget}"), seed=seed, train_length=train_length,
            losses=losses, training=training,
        )  # fmt: skip
        yield Result(str(budget), student, cut, selection.spent, recovery, notes)
        del student  # or it would be held beside the next one


def choose_units(
    subject: Transformer, axes: Sequence[str], first: int | None, last: int | None, *, batch: int, length: int
) -> tuple[tuple[str, ...], Units]:
    """The axes that this model has, and its units with those of the first and last layers frozen."""
    if not axes or not set(axes) <= set(AXES):
        raise InputError(f"axes={','.join(axes)}: give one or more of {', '.join(AXES)}")
    kinds = {site.kind for site in subject.units().free()}
    named = dict.fromkeys("heads" if axis == "kv_groups" and axis not in kinds else axis for axis in axes)
    there = tuple(axis for axis in named if axis in kinds)
    if not there:
        raise UnsupportedError(f"this {subject.family.model_type} model has none of {', '.join(named)} to cut")
    count = len(subject.layers())
    ahead, behind = (round(count / part) if given is None else given for given, part in ((first, 8), (last, 16)))
    if ahead + behind >= count and set(there) != {"channels"}:
        raise InputError(f"first={ahead} and last={behind} keep all {count} layers whole: give smaller ones")
    units = subject.units(*there, batch=batch, length=length)
    whole = {f"layers.{index}." for index in range(count) if index < ahead or index >= count - behind}
    sites = {
        name: replace(site, frozen=site.frozen or any(name.startswith(layer) for layer in whole))
        for name, site in units.sites.items()
    }
    return there, replace(units, sites=sites)


def refuse_unreachable(budgets: Sequence[Budget], units: Units) -> None:
    """Refuse budgets that the fewest of these units don't meet; of a latency where units have their seconds."""
    limits.refuse_unreachable(budgets, units.cost(), ranking.fewest(units).spent, "cut more axes or layers")


def time_units(subject: Transformer, axes: Sequence[str], batch: int, length: int) -> levels.Table:
    """Seconds of attention and FFN at every number of units, as ZipLM takes them."""
    timed: list[timing.Axis] = [axis for axis in ("heads", "kv_groups", "neurons") if axis in axes]
    if "channels" in axes or {"heads", "kv_groups"} <= set(timed):
        raise UnsupportedError(
            "a latency is predicted for one of heads and kv_groups, and neurons: leave the others out of axes, or give "
            "a budget of params or flops"
        )
    grid = allocate.grid(levels.widest(subject.units())["neurons"]) if "neurons" in timed else []
    return timing.time_blocks(subject, timed, grid, batch, length)


# --------------------------------------------------------------------------------------------------------- importance


def sequences(subject: Transformer, data: Corpus, samples: int, *, length: int, seed: int) -> Sequence[Batch]:
    """Batches of one sequence each, with the labels that a loss of this model asks for.

    Raises `InputError` for a model whose loss needs labels that the data has not.
    """
    return distillation.make_batches(subject, data, batch=1, length=length, seed=seed).take(samples)


def score_units(
    subject: Transformer, units: Units, batches: Sequence[Batch], importance: Importance, *, seed: int
) -> dict[str, Tensor]:
    """Site -> [count], for every free site."""
    free = [site.name for site in units.free()]
    if importance.score == "random":
        return random.scores(units, seed=seed)
    if ":" in importance.score:
        own = plugins.function(importance.score)(subject, batches)
        return {name: torch.as_tensor(own[name]) for name in free if name in own}
    if importance.score not in ("taylor", "l2"):
        raise InputError(f"score {importance.score!r} is not one of taylor, l2, random, or file.py:function")
    coupled = {name: parts for name, parts in subject.slices().items() if name in free}
    vectors = {
        f"{name}/{number}": [(weight, dim, torch.arange(weight.shape[dim]))]
        for name, parts in coupled.items()
        for number, (weight, dim, _) in enumerate(parts)
    }
    if importance.score == "l2":
        found = {name: norm.square() for name, norm in magnitude.coupled_norm(vectors, normalise=False).items()}
    else:
        found = score_vectors(subject, vectors, batches, importance)
    modules = {id(weight): name.rpartition(".")[0] for name, weight in subject.model.named_parameters()}
    return {name: aggregate(name, parts, found, modules, importance.aggregation) for name, parts in coupled.items()}


def score_vectors(
    subject: Transformer, vectors: Slices, batches: Sequence[Batch], importance: Importance
) -> dict[str, Tensor]:
    """Importance of every row or column of `vectors`, by the gradients of the model's own loss."""
    no_loss = subject.output != "logits" or "labels" not in batches[0] or distillation.own_direction(subject)
    if not subject.causal and no_loss:
        raise InputError(
            "llm_pruner scores by the gradient of a loss, and this model has none on these data: give a language "
            "model, a classifier of classes with labels in its data, or score=l2"
        )

    def loss(batch: Batch) -> Tensor:
        found = subject.forward(batch)
        return objectives.task_loss(found.prediction, batch, objectives.count(batch), causal=found.causal)

    within: Literal["unit", "weight"] = "unit" if importance.within == "vector" else "weight"
    return gradient.taylor(loss, subject.model, batches, vectors, within=within, order=importance.order)


def aggregate(
    site: str,
    parts: Sequence[tuple[Tensor, int, Tensor]],
    vectors: Mapping[str, Tensor],
    modules: Mapping[int, str],
    how: Aggregation,
) -> Tensor:
    """[count]: the importance of a site's units, from that of the vectors of each matrix.

    parts: the site's slices; vectors: "site/number" of each -> [size of its dimension]. The bias of a matrix counts
    with it, and each part of a fused projection as a matrix. Products are given as their logarithms, the sums of those
    of the factors: of hundreds of matrices, as channels have, no float holds the product. A factor of 0 lowers the sum
    further than any others raise it.
    """
    count = 1 + max(int(unit.max()) for _, _, unit in parts)
    sums: dict[tuple[str, int], Tensor] = {}
    for number, (weight, _, unit) in enumerate(parts):
        inside = unit >= 0
        begin = int(inside.nonzero()[0])
        own = sums.setdefault((modules[id(weight)], begin), torch.zeros(count, dtype=torch.float64))
        own.index_add_(0, unit[inside], vectors[f"{site}/{number}"][inside].double())
    matrices = torch.stack(list(sums.values()))
    if how == "sum":
        return matrices.sum(0)
    if how == "prod":
        return matrices.log().clamp(min=_LOG_OF_ZERO).sum(0)
    return matrices.amax(0) if how == "max" else matrices[-1]
