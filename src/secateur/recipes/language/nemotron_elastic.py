"""Nemotron Elastic: towards efficient many-in-one reasoning language models.

Taghibakhshi et al., NVIDIA 2025 (arXiv 2511.16664); the released training code is the package `elastification` of
Megatron-LM.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from secateur._utils import distributed
from secateur._utils.batches import Batch
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InputError, UnsupportedError
from secateur.methods import calibration, distillation, elastic
from secateur.methods.distillation import Losses
from secateur.recover.sparsity import router as routers
from secateur.recover.training import objectives, records
from secateur.recover.training.compose import Parts
from secateur.score import random
from secateur.subjects import Transformer
from secateur.subjects.transformer.subject import Output, count_positions
from secateur.vocabulary import Budget, Recovery, Result, Training, Units, parse_list

CARD = {
    "title": "Nemotron Elastic: Towards Efficient Many-in-One Reasoning LLMs",
    "paper": "https://arxiv.org/abs/2511.16664",
    "cuts": "layers, channels, FFN neurons, heads, Mamba-2 heads, experts: several nested sizes in one set of weights",
    "recovers": "all sizes at once, with a router that chooses them, by distillation from the frozen original",
    "extra": "",
    "family": "language",
}


@dataclass(frozen=True, slots=True)
class Routing:
    """How the router learns which size is which."""

    router_hidden: Annotated[int, Ge(1)] = 256
    """Width of its hidden layers, one for each axis."""
    router_lr: Annotated[float, Gt(0)] = 1e-2
    """Its peak learning rate; that of the weights is `lr`."""
    router_weight: Annotated[float, Ge(0)] = 1.0
    """lambda: weight of the loss of the budgets."""
    masks: Literal["soft", "hard"] = "soft"
    """soft: masks of all choices, weighed by their probabilities; hard: the likeliest choice's alone."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What is drawn in training, and its second stage, of longer sequences."""

    whole_share: Annotated[float, Gt(0), Lt(1)] = 0.3333
    """How often the whole model is drawn in the first stage; the rest is shared out evenly."""
    long_steps: Annotated[int, Ge(0)] = 0
    """Optimiser steps of the second stage; the paper has 45 % of the tokens there."""
    long_length: Annotated[int, Ge(0)] = 0
    """Tokens per sequence of the second stage; six times `length` if 0."""
    long_weights: str | Sequence[str] = ""
    """How often each size is drawn there, the whole model first, such as 0.5,0.3,0.2; if none are given, the whole half
    of the time, and the next size half as often again as the one after it."""


@dataclass(frozen=True, slots=True)
class Teaching(Losses):
    """What the sizes learn from."""

    task: Annotated[float, Ge(0)] = 0.0
    """Weight of cross-entropy; with a teacher that learns, of the teacher's own."""
    teacher: Literal["frozen", "learning"] = "frozen"
    """frozen: the original; learning: the whole model as it is trained, by cross-entropy."""


def nemotron_elastic(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    axes: Sequence[str] = ("layers", "channels", "neurons", "heads", "state_heads", "state_channels", "experts"),
    uneven: Sequence[str] = ("neurons", "state_heads"),
    choices: str | Sequence[str] = "",
    ranking: Literal["activations", "random"] = "activations",
    samples: Annotated[int, Ge(1)] = 1024,
    depth_samples: Annotated[int, Ge(1)] = 64,
    profile: str = "bf16",
    routing: Routing = Routing(),
    curriculum: Curriculum = Curriculum(),
    losses: Teaching = Teaching(task=0.0, logit=1.0, temperature=1.0),
    training: Training = Training(steps=1000, batch=16, lr=9e-5, warmup=0.06),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Train one set of weights that holds all sizes, and the router that chooses each; then cut every size out of it.

    1. Width (section 3.1): channels by sum |LN(X)|, neurons by sum |X W1^T|, heads inside their KV groups by what they
       give to the output projection, experts by the router. Every axis is sorted once; no output changes.
    2. Depth: s_j = sum (M(x) - M_-j(x))^2 / sum M(x)^2 on the logits; the layer of the least s_j goes, and the rest is
       judged anew.
    3. Masks of the first k units of an axis, and a gate g_j for each layer, y + g_j (f_j(y) - y). Norms see the kept
       channels alone, eps k/D and sqrt(k/D), so that a masked model gives what the sliced one gives.
    4. Router: budget u (one-hot) -> z = W2 leaky(W1 u + b1) + b2 for each axis; pi = softmax((s z + g) / tau), Gumbel
       noise g, tau from 1 to 0.05 and s from 1 to 10 over training. `uneven` axes have logits for each layer.
    5. Soft masks sum_i pi_i I_i, or hard ones, the likeliest with the gradient of its pi.
    6. Loss: KL(teacher || student) + lambda |C(pi) / (b C_full) - 1|, C the expected cost; no second term within 5 % of
       a budget, and 10 MSE(pi, whole) beside it at b = 1.
    7. Two stages: the whole model drawn a third of the time, and the rest evenly; then longer sequences, and the whole
       model drawn more often.
    8. Extraction: no noise, the likeliest choice of each axis, tensors sliced. No training.

    Args:
        subject: the original; it stays as it is and teaches.
        data: text like that the model will meet.
        budgets: one smaller model for each, all in one measure, such as params=75% and params=50%; between them the
            router can be asked for any other later (`secateur extract`).
        run: where scores and checkpoints go; its folder "elastic" gets the one model that holds all sizes.
        batch: sequences of the measured environment.
        length: tokens per sequence, in the environment and in the first stage.
        seed: of sampling, of the sizes that are drawn, of the router and its noise.
        axes: along which it may shrink; those that the model has not are passed over. kv_groups, shared_neurons and
            expert_neurons too.
        uneven: axes along which layers choose on their own; none (`--uneven ""`, uneven=() in Python) for models of one
            shape for all layers.
        choices: sizes to choose from, as shares of each layer's own width (1.0 is the whole) or as counts:
            neurons=0.5+0.75,layers=20+24; those that can't be are named in the notes of the results. Eighths of the
            whole down to a quarter, and down to half of the layers, unless given.
        ranking: activations, or for comparison random, of units and layers alike.
        samples: sequences by which widths are ranked.
        depth_samples: sequences by which layers are ranked, as often as layers squared.
        profile: for budgets such as served_memory=12GB, of weights, caches and one activation: bf16, fp8, fp4, or bytes
            of each number, weights=0.5625,cache=1,states=2,buffers=2. The original is measured by it, too.
        routing: see `Routing`.
        curriculum: see `Curriculum`.
        losses: see `Teaching`.
        training: of both stages; without lora and dora, whose adapters are beside the masks.
        dry_run: stop before training; sizes are then what a fresh router chooses.

    Departures: activations of gated FFNs are read behind the gate, those of heads at the input of the output
    projection, as the sibling code for one-shot pruning does. Means over tokens and samples in place of sums. Hard
    masks have scale 1 in training as they have afterwards, where the code multiplies them by the winning probability.
    tau and s go by the share of training that is over, not by iterations. A size's budget and noise follow from the
    number of its micro-batch, so that several processes train what one would with as many micro-batches per step; the
    code draws one budget per micro-step for all ranks. A size that the likeliest choices put above its budget loses the
    units that the router misses least until it is within, and one more than 5 % below it grows where something fits. A
    budget never gets more than it allows. Norm corrections are applied to what goes into a norm and what comes out of
    it, which is the same as changing its epsilon. States are masked before their norm alone, which gives what masks of
    z, x, dt and the convolution give. Learning rates warm up anew in the second stage. The paper's lists of choices are
    not published. Logits of the router are not divided by their deviation, an option of the code. Heads are masked at
    the input of the output projection alone, which gives what masks of Q, K and V give. Neurons inside experts
    (`expert_neurons`) are an axis that has to be named, for masking them takes a copy of the experts' output weights in
    each pass.
    """
    timed, served = elastic.Timed(batch, length), elastic.read_profile(profile)
    if any("served_memory" in budget for budget in budgets):
        subject.profile = served
    measure, shares = check(subject, data, budgets, losses, training, timed)
    weigh_whole(shares, curriculum)  # refuses
    find_length(subject, length, curriculum)  # refuses
    layer_count = len(subject.layers())
    train, held = data.split(seed=seed)
    feed = calibration.make_feed(subject, train, length=length, seed=seed)
    depth: list[tuple[int, float]] = []
    find = partial(elastic.find_axes, subject, axes, uneven=uneven, choices=choices)
    first = find(order=range(layer_count))  # refuses before anything is scored
    if "layers" in first:
        deepest = layer_count - first["layers"].counts["layers"][-1]
        rank = partial(elastic.rank_layers, subject, feed.sequences(depth_samples), deepest)
        depth = run.json("depth", rank if ranking == "activations" else partial(shuffle_layers, subject, deepest, seed))
    chosen_axes = find(order=[int(layer) for layer, _ in depth])
    score = partial(elastic.score_widths, subject, feed.sequences(samples), chosen_axes)
    sites = {site for axis in chosen_axes.values() if axis.name != "layers" for site in axis.counts}
    chance = partial(draw_scores, subject, sites, seed)
    scores = run.tensors("scores", score if ranking == "activations" else chance)
    torch.manual_seed(seed)
    model = elastic.make(subject, scores, chosen_axes, measure, shares, hidden=routing.router_hidden, timed=timed)
    model.choose(shares[-1])  # refuses what can't be reached before anything is trained
    recoveries = [] if dry_run else train_sizes(
        model, subject, train, held, run, length=length, seed=seed, routing=routing, curriculum=curriculum,
        losses=losses, training=training,
    )  # fmt: skip
    if not dry_run:
        distributed.by_first(lambda: publish(run, model))
    sites = {site.rpartition(".")[2] for site in subject.units().sites}
    whole = {axis: "no smaller count of them can be cut" if axis in sites else "this model has none" for axis in axes}
    whole = {axis: elastic.find_reason(subject, axis) or why for axis, why in whole.items() if axis not in chosen_axes}
    for budget in budgets:
        share = elastic.share_of(budget, measure, model.whole)
        chosen = model.choose(share)
        student, cut = model.cut(chosen)
        notes = [", ".join(f"{axis} {size}" for axis, size in model.describe(chosen).items())]
        notes += [text for axis in chosen_axes.values() for text in axis.dropped]
        notes += [f"{axis} stay whole: {why}" for axis, why in whole.items()]
        notes += subject.describe_needed([layer in student.layer_index for layer in subject.layer_index])
        yield Result(str(budget), student, cut, model.cost(chosen), records.together(*recoveries), tuple(notes))
        del student  # or it would be held beside the next one


def check(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    losses: Teaching,
    training: Training,
    timed: elastic.Timed,
) -> tuple[str, list[float]]:
    """(the measure of all budgets, the shares of the whole cost that sizes are trained for, falling from the whole).

    Raises an error for budgets of several measures, or of all of the model, and for losses and ways of training that
    can't be.
    """
    if training.lora or training.dora:
        raise UnsupportedError(
            "lora and dora stand beside weights that are masked, and see units that a size has not: train the weights "
            "themselves, without them"
        )
    if training.checkpointing and losses.teacher == "learning":
        raise UnsupportedError(
            "checkpointing runs a pass again at another size than that of a teacher that learns: set teacher=frozen, "
            "or leave checkpointing out"
        )
    measures = list(dict.fromkeys(limit.measure for budget in budgets for limit in budget.limits))
    if len(measures) != 1 or any(budget.pattern is not None for budget in budgets):
        asked = " and ".join(budget.brief() for budget in budgets)
        raise BudgetError(f"one router learns budgets of one measure, not {asked}: give such as params=75%, params=50%")
    whole = subject.units(batch=timed.batch, length=timed.length).cost()
    if measures[0] not in whole:
        known = ", ".join(sorted(whole))
        raise BudgetError(f"budget {budgets[0].brief()}: a router learns what adds up over units, one of {known}")
    shares = [elastic.share_of(budget, measures[0], whole) for budget in budgets]
    if max(shares) >= 1:
        raise BudgetError(
            f"budget {budgets[shares.index(max(shares))].brief()} is the whole model, which is trained beside the "
            "sizes and stands in the run's folder elastic: give smaller ones"
        )
    distillation.check_recovery(subject, data, losses)
    if losses.teacher == "learning" and not (losses.task and losses.logit and subject.causal):
        raise InputError(
            "teacher=learning learns by cross-entropy of the next token, and the sizes by its logits: set task=1 and "
            "logit=1, or teacher=frozen"
        )
    return measures[0], [1.0, *sorted(set(shares), reverse=True)]


def shuffle_layers(subject: Transformer, count: int, seed: int) -> list[tuple[int, float]]:
    """`elastic.rank_layers` by chance."""
    draw = torch.Generator().manual_seed(seed)
    removable = elastic.removable_layers(subject)
    order = [removable[place] for place in torch.randperm(len(removable), generator=draw).tolist()]
    for members in subject.needed_layers():
        if set(members) <= set(order):  # one must stay
            order.remove(max(members, key=order.index))
    return [(layer, 0.0) for layer in order[:count]]


def draw_scores(subject: Transformer, sites: Collection[str], seed: int) -> dict[str, Tensor]:
    """Scores of the units of `sites` by chance."""
    units = subject.units()
    chosen = {site: replace(units[site], frozen=False) for site in sites}
    return random.scores(Units(chosen), seed=seed)


# ----------------------------------------------------------------------------------------------------------- training


def train_sizes(
    model: elastic.Elastic,
    subject: Transformer,
    train: Corpus,
    held: Corpus,
    run: Run,
    *,
    length: int,
    seed: int,
    routing: Routing,
    curriculum: Curriculum,
    losses: Teaching,
    training: Training,
) -> list[Recovery]:
    """Both stages; the weights of `model` and its router learn."""
    first, second = training.whole("steps"), curriculum.long_steps
    stages = [(first, length, weigh_evenly(len(model.shares), curriculum.whole_share))]
    if second:
        stages.append((second, find_length(subject, length, curriculum), weigh_whole(model.shares, curriculum)))
    size, made, before = training.whole("batch"), list[Recovery](), 0
    make = partial(distillation.make_batches, subject)
    judged = make(held, batch=min(16, size), length=length, seed=seed).take(16)
    objective = make_objective(model, subject, routing, losses)
    # Of all stages before the first is trained: texts may be too few for long sequences.
    feeds = {
        number: make(train, batch=size, length=tokens, seed=seed + number)
        for number, (steps, tokens, _) in enumerate(stages, 1)
        if steps
    }
    for number, (steps, tokens, weights) in enumerate(stages, 1):
        if not steps:
            continue
        draws = routers.Draws(
            feeds[number], model.router, weights, steps=first + second, before=before,
            accumulate=training.accumulate or 1, seed=seed,
        )  # fmt: skip
        with model.masks.on(model.subject.model):
            made.append(
                distillation.train_student(
                    model.subject,
                    subject,
                    draws,
                    objective,
                    distillation.shorten(training, steps),
                    length=tokens,
                    seed=seed,
                    checkpoint=run.folder(f"train-{number}"),
                    extra=[model.router],
                    extra_rate=routing.router_lr / training.number("lr"),
                    evaluate=partial(judge, model, subject, judged),
                )
            )
        before += steps
    return made


def find_length(subject: Transformer, length: int, curriculum: Curriculum) -> int:
    """Tokens per sequence of the second stage. Raises `InputError` where it comes and the model has fewer positions."""
    wanted, most = curriculum.long_length or 6 * length, count_positions(subject.model)
    if curriculum.long_steps and most is not None and wanted > most:
        raise InputError(
            f"long_length={wanted} is beyond the model's {most} positions: give at most long_length={most}"
        )
    return wanted


def weigh_evenly(sizes: int, whole: float) -> list[float]:
    """How often each size is drawn in the first stage, the whole model first."""
    return [whole, *[(1 - whole) / (sizes - 1)] * (sizes - 1)]


def weigh_whole(sizes: Sequence[float], curriculum: Curriculum) -> list[float]:
    """How often each of the sizes is drawn in the second stage: as asked for, or 5 : 3 : 2 for three and so on.

    Raises `InputError` for weights that are no finite numbers, or another number of them.
    """
    given = parse_list(curriculum.long_weights)
    if not given:
        rest = [1.5**-place for place in range(len(sizes) - 1)]
        return [0.5, *(0.5 * one / sum(rest) for one in rest)]
    try:
        weights = [float(one) for one in given]
    except ValueError:
        weights = []
    if len(weights) != len(sizes) or not min(weights) >= 0 or not 0 < sum(weights) < math.inf:
        shares = ", ".join(f"{share:.4g}" for share in sizes)
        raise InputError(f"long_weights={','.join(given)}: give a number for each of the sizes {shares}")
    return weights


def make_objective(
    model: elastic.Elastic, subject: Transformer, routing: Routing, losses: Teaching
) -> objectives.Objective:
    """The loss of a batch at the size that was drawn for it, and that of the router."""
    learns = losses.teacher == "learning"

    def choose(batch: Batch) -> dict[str, Tensor]:
        drawn, done = dict[str, Any](batch), dict[str, Any](batch)["done"]
        budget = torch.zeros(len(model.shares), device=drawn["noise"].device)
        budget[drawn["size"]] = 1.0
        noise = model.router.split(drawn["noise"])
        return {
            name: routers.gumbel_softmax(
                logits, noise[name], temperature=routers.temperature_at(done), scale=routers.scale_at(done),
                hard=drawn["sharp"] or routing.masks == "hard",
            )
            for name, logits in model.router(budget).items()
        }  # fmt: skip

    def teach(batch: Batch, **how: bool) -> Output:
        with model.masks.off():
            return model.subject.forward(batch, **how)

    teacher = teach if learns else subject.forward
    distil = objectives.distil(
        model.subject.forward, teacher, output=subject.output, task=0.0 if learns else losses.task,
        logit=losses.logit, temperature=losses.temperature,
        direction=distillation.choose_direction(subject, "forward"), fused=True,
    )  # fmt: skip

    def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        chosen = choose(batch)
        model.masks.choose(model.weights(chosen))
        share = model.shares[dict[str, Any](batch)["size"]]
        loss, parts = distil(batch, totals)
        near = routers.budget_loss(model.expect_cost(), model.whole[model.measure], share, chosen)
        weight = objectives.count(batch)["tokens"] / max(1, totals["tokens"])  # of all micro-batches of the step
        loss = loss + routing.router_weight * weight * near
        if learns:
            whole = teach(batch).prediction
            loss = loss + losses.task * objectives.task_loss(whole, batch, totals, causal=True)
        return loss, {**parts, "budget": weight * near.detach()}

    return objective


@torch.no_grad()
def judge(model: elastic.Elastic, subject: Transformer, batches: Sequence[Batch]) -> float:
    """The mean loss of all sizes on held-out batches, masked as they would be cut."""
    total = 0.0
    for share in model.shares:
        model.mask(model.choose(share))
        total += distillation.held_out(model.subject, subject, batches)
    model.masks.choose({})
    return total / len(model.shares)


def publish(run: Run, model: elastic.Elastic) -> Path:
    """Put the one model that holds all sizes where the user finds it."""
    return run.publish(partial(elastic.write, model), "elastic")
