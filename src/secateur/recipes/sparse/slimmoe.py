"""SlimMoE: structured compression of large MoE models via expert slimming and distillation.

Li, Liang, Zhang, Cheng, Kim, Chen, Wang, Zhao and Chen, COLM 2025 (arXiv 2506.18349).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from secateur._utils import devices, distributed, plugins
from secateur._utils.disk import writing
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.batches import Shifted
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.measure import size
from secateur.methods import calibration, distillation
from secateur.methods.distillation import Distilling, Rates
from secateur.recover.distillation import losses
from secateur.recover.sparsity import merging
from secateur.recover.training import objectives, records
from secateur.score import activation, experts, gradient, magnitude, random, routing
from secateur.select import allocate, clusters, ranking
from secateur.select.limits import describe_idle, refuse_unreachable
from secateur.subjects import Moe
from secateur.subjects.transformer import shapes
from secateur.subjects.transformer.loading import Folders
from secateur.vocabulary import Budget, Recovery, Result, Selection, Training, Units, parse_list

CARD = {
    "title": "SlimMoE: Structured Compression of Large MoE Models via Expert Slimming and Distillation",
    "paper": "https://arxiv.org/abs/2506.18349", "extra": "", "family": "sparse",
    "cuts": "FFN neurons inside every expert, all experts and the router kept; KV groups, shared and dense FFNs",
    "recovers": "logit distillation from the original, in stages of decreasing size",
    "offloaded": "steps=0, slim=neurons|experts, score=activation|random or "
    "steps=0, slim=experts, score=soft|saliency, kv_groups=0, shared=1.0, dense=1.0",
}  # fmt: skip

Items = Sequence[Mapping[str, Tensor]]
Counts = dict[str, int]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What neurons and experts are ranked by."""

    score: str = "taylor"
    """taylor (the paper's), weight (norm of all weights), activation (mean |h_j|, without a backward pass; before any
    training it lost less here, 4.280 against 4.404 nats at half the width, row slimmoe/score of docs/log/claims-0.1.md;
    which is better after training is not measured), soft (of whole experts: the router's probabilities
    summed up, SEER-MoE), saliency (of whole experts: their mean weighted output, REAP), random, or file.py:function
    with (subject, batches) -> site -> [count] scores; sites it leaves out are ranked by taylor."""
    alike: bool = False
    """One set of indices for all experts of a layer, the ablation."""
    loss: Literal["truncated", "full", "task"] = "truncated"
    """Of the score: truncated to the original's likeliest tokens; full KL, which has no gradient where student and
    original are one, so that the first stage then takes the task's; or task, the next token."""
    top: Annotated[int, Ge(1)] = 8
    """Likeliest tokens of the original in the truncated loss."""
    calibration: Annotated[int, Ge(1)] = 64
    """Sequences scored."""


def slimmoe(
    subject: Moe,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    stages: str | Sequence[str] = "",
    tokens: str | Sequence[str] = "",
    slim: Literal["neurons", "experts", "merge"] = "neurons",
    scoring: Scoring = Scoring(score="taylor", alike=False, loss="truncated", top=8, calibration=64),
    kv_groups: Annotated[int, Ge(0)] = 0,
    shared: Share = 1.0,
    dense: Share = 1.0,
    divisor: Annotated[int, Ge(1)] = 8,
    rates: Rates = Rates(lr=1e-3, min_lr=1e-4),
    distilling: Distilling = Distilling(balance=None),
    training: Training = Training(steps=1000, batch=16, warmup=0.05),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Make every expert thinner in a few prune-distil stages; keep all experts and the router as they are.

    Per budget, stage by stage, on the model as it then is:

    1. sensitivity: s_j = |sum over tokens of h_j dL/dh_j| of the neurons h = act(W1 x) W3 x of each expert, where L is
       the KD loss over the original's `top` likeliest tokens, stored once;
    2. each expert keeps its best neurons: one width for all experts, indices of each expert's own; with the last stage
       KV groups go too, if asked for. Router, norms and embeddings stay bit for bit;
    3. the whole model, router included, is distilled from the original, with a fresh optimiser and warm-up, and saved.

    Args:
        subject: a trained mixture of experts; it stays as it is and teaches every stage.
        data: texts like those the model will meet.
        budgets: params=50% or active_params=60%, what one token passes; also bytes, flops or memory.
        run: where scores, the original's likeliest tokens, checkpoints and the models after the first stages go.
        batch: sequences per batch, for the cost of FLOPs and KV cache.
        length: tokens per sequence, in costs, calibration and training.
        seed: of sampling and training.
        stages: how many, each shrinking the experts by the same factor, by default about a half, and at least two; or
            the share of their width after each, such as 50%,20%, the last of which must be within the budget.
        tokens: share of `steps` of each stage, such as 34%,66%; by default each gets four times that of the one before.
            A stage that is rounded to the whole width, or to that of the next, is left out: the others share its steps.
        slim: neurons; or experts, the baseline that drops whole ones, by how often tokens are routed to them unless
            `score` is soft, saliency or random; or merge, the other one: the means of experts whose rows of the router
            are near, and of these rows.
        scoring, rates, distilling: see these classes.
        kv_groups: KV groups that each layer keeps, cut with the last stage; 0 for all.
        shared: share that stays of the neurons of experts which every token passes.
        dense: share that stays of the neurons of layers without experts.
        divisor: widths are multiples of it, such as 64 at real scale.
        steps: distillation steps, all stages together.
        warmup: share of a stage's steps in warm-up.
        dry_run: stop after the cuts; nothing is trained.

    Departures: gates stand for the paper's sums over rows and columns, which it does not spell out: for W2 they are
    equal to the signed sum. Stage sizes and token shares are not published; these are our defaults. That first stages
    are stopped early is known at second hand. Scores are taken in evaluation mode, where routers that sample take the
    best experts. Shared and dense FFNs, which the paper's model does not have, keep shares of their own.
    """
    if not isinstance(subject, Moe):
        raise UnsupportedError(
            "slimmoe slims experts: "
            f"{subject.layout.whole.get('experts', subject.family.model_type + ' has none')}; use minitron"
        )
    plan = partial(plan_stage, subject, kv_groups=kv_groups, shared=shared, dense=dense, divisor=divisor, slim=slim,
                   batch=batch, length=length)  # fmt: skip
    groups = [site.count for site in subject.units().sites.values() if site.kind == "kv_groups"]
    if groups and kv_groups > max(groups):
        raise InputError(f"kv_groups={kv_groups}: layers have {max(groups)} KV groups at most; 0 keeps all of them")
    wanted, steps = parse_shares(stages, "stages") if stages else None, 0 if dry_run else training.whole("steps")
    distillation.check_recovery(subject, data, distilling, training)
    orders = {}
    for budget in budgets:  # before the first of them is trained
        if budget.pattern or not budget.limits:
            raise BudgetError(f"budget {budget}: slimmoe makes widths, such as params=50% or active_params=60%")
        shares = stage_shares(wanted, budget, partial(plan, subject, last=True))
        idle = find_idle(shares, partial(plan, subject, last=False))
        units, counts = plan(subject, share=shares[-1], last=True)
        if all(units[name].count == count for name, count in counts.items()):
            raise InfeasibleError(describe_idle(budget))
        parts, peaks = split_steps(tokens, steps, len(shares), idle), rates.by_stage(training, len(shares))
        numbered = enumerate(zip(shares, parts, peaks, strict=True), 1)
        orders[budget] = {stage: how for stage, how in numbered if stage not in idle}
    train, _ = data.split(seed=seed)
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=True, length=length)
    looked = calibration.make_feed(subject, train, length=length, seed=seed).sequences(scoring.calibration)

    def predict(batch: Mapping[str, Tensor]) -> Tensor:
        return subject.forward(batch).prediction

    look = partial(experts.remember_likeliest, predict, subject.model, subject.layers(), looked, scoring.top)
    samples = experts.add_likeliest(looked, run.tensors("likeliest", look))
    stream: Any = make(train, batch=training.whole("batch"), seed=seed + 1)
    if distilling.cache and steps:
        stream = distillation.remember_teacher(
            run, subject, data, stream, steps, training, k=distilling.cache, length=length, seed=seed + 1,
            temperature=distilling.temperature,
        )  # fmt: skip
    teacher = None if distilling.cache else subject
    for budget, order in orders.items():
        student, recoveries, stored, end = subject, list[Recovery](), dict[str, Path](), max(order)
        notes = [
            f"stage {stage} is left out: rounded, it would cut nothing of its own; its steps go to the others"
            for stage in range(1, end) if stage not in order
        ]  # fmt: skip
        for stage, (share, count, (peak, floor)) in order.items():
            last = stage == end
            if slim == "merge":
                student = merge_experts(student, plan(student, share=share, last=last)[1])
            units, counts = plan(student, share=share, last=last)
            rank = partial(scores, student, subject, units, samples, scoring=scoring, seed=seed)
            worths = run.tensors(f"scores-{budget}-{stage}", rank)
            starved = sum(int(worths[name]) for name in worths if name.endswith(".starved"))
            if starved:
                notes.append(f"stage {stage}: {starved} experts got nothing to score by: ranked by their weights")
            if "fallback" in worths:
                notes.append(f"stage {stage}: {scoring.loss} loss has no gradient here, scored by the next token's")
            student = cast(Moe, student.cut(ranking.by_counts(units, worths, counts))[0])
            if count:
                for router in student.routers():
                    router.requires_grad_(not distilling.freeze_router)
                seen = sum(done.steps for done in recoveries) * (training.accumulate or 1) * distributed.count()
                recovery = distillation.train_student(
                    student, teacher, Shifted(stream, seen), distilling.objective(student, teacher),
                    replace(training, steps=count, lr=peak, min_lr=floor), length=length, seed=seed,
                    dropout=distilling.noise, checkpoint=run.folder(f"train-{budget}-{stage}"))  # fmt: skip
                student.model.requires_grad_(True)
                recoveries.append(recovery)
                notes.append(describe_stage(stage, student, recovery, length, teacher))
            if not last and not dry_run:
                path = run.path(f"stage-{budget}-{stage}")
                stored[f"stage {stage}"] = distributed.by_first(partial(save_stage, student, path))
        yield Result(
            str(budget), student, shapes.receipt(subject, student), student.units(batch=batch, length=length).cost(),
            records.together(*recoveries), tuple(notes), stages=Folders(stored, subject),
        )  # fmt: skip
        del student, rank  # or they would be held beside the next one


def save_stage(student: Moe, folder: Path) -> Path:
    """`folder`, with the model in it: whole, and written once."""
    if not folder.exists():
        with writing(folder) as temporary:
            student.save(temporary)
    return folder


def describe_stage(stage: int, student: Moe, done: Recovery, length: int, teacher: Moe | None) -> str:
    """What a stage made and what it took; the student's FLOPs and the original's apart."""
    widths = sorted({mixture.width for mixture in student.mixtures().values()})
    ours = size.training_flops(student.flops_per_token(length)) * done.tokens
    theirs = 0.0 if teacher is None else teacher.flops_per_token(length) * done.tokens
    return (
        f"stage {stage}: {len(student.mixtures())} layers with experts of {', '.join(map(str, widths))} neurons, "
        f"{done.tokens} tokens, {ours:.3g} FLOPs of the student and {theirs:.3g} of the original"
    )


# ------------------------------------------------------------------------------------------------- how far, in stages


def parse_shares(given: str | Sequence[str], what: str) -> list[float] | int:
    """ "2" as a number, "50%,20%" as shares; `InputError` for anything else."""
    text = ",".join(parse_list(given))
    if re.fullmatch(r"[1-9][0-9]*", text):
        return int(text)
    shares = [float(part) / 100 for part in re.findall(r"([0-9]+\.?[0-9]*|\.[0-9]+)%(?:,|$)", text.replace(" ", ""))]
    if not shares or len(shares) != text.count("%") or not all(0 < share <= 1 for share in shares):
        raise InputError(f"{what}={given!r} is neither a number of stages nor shares such as 50%,20%")
    return shares


def plan_stage(
    subject: Moe, student: Moe, *, share: float, last: bool, slim: str, kv_groups: int, shared: float, dense: float,
    divisor: int, batch: int, length: int,
) -> tuple[Units, Counts]:  # fmt: skip
    """The units of a stage, and how many each site keeps: `share` of the original's experts, the rest with the last."""
    kinds = {"expert_neurons" if slim == "neurons" else "experts": share}
    if last:
        kinds |= {"kv_groups": 0.0} if kv_groups else {}
        kinds |= {kind: part for kind, part in (("shared_neurons", shared), ("neurons", dense)) if part < 1}
    units, whole = student.units(*kinds, multiple=divisor, batch=batch, length=length), subject.units(multiple=divisor)
    counts = {}
    for site in units.free():
        before, groups = whole[site.name], 1 if site.group is None else len(np.unique(site.group))
        if site.kind == "kv_groups":
            counts[site.name] = min(kv_groups, site.count)
            continue
        step = int(np.lcm(site.multiple, groups))
        least = max(site.minimum, step if site.kind != "experts" else 0)
        kept = allocate.round_to(kinds[site.kind] * before.count, step, minimum=least, maximum=before.count)
        counts[site.name] = min(kept, site.count)
    return units, counts


def merge_experts(student: Moe, counts: Counts) -> Moe:
    """A copy with as many experts as `counts` gives each layer: means of those whose rows of the router are near."""
    keep, groups, before = dict[str, np.ndarray](), dict[int, list[list[int]]](), student.mixtures()
    for index, mixture in before.items():
        name, rows = f"layers.{index}.experts", cast(Tensor, mixture.router.weight)
        groups[index] = clusters.cluster_layer(routing.row_distance(rows), counts[name], student.layout.expert_groups)
        keep[name] = np.isin(np.arange(mixture.count), [members[0] for members in groups[index]])
    small = cast(Moe, student.cut(Selection(keep))[0])
    for index, new in small.mixtures().items():
        first = [members[0] for members in groups[index]]
        for theirs, ours in ((before[index].experts, new.experts), (before[index].router, new.router)):
            merging.fill(theirs, ours, groups[index], first, kappa=len(first))
    return small


def stage_shares(
    many: list[float] | int | None, budget: Budget, plan: Callable[..., tuple[Units, Counts]]
) -> list[float]:
    """The share of the experts after each stage, the last as large as the budget allows, or as asked for.

    Without a number, as many stages as halve the experts: a model that keeps less than that of itself has too little of
    the original left to learn the rest from it.
    """
    units, _ = plan(share=1.0)
    whole = units.cost()
    limits = budget.absolute(whole)

    def excess(share: float) -> list[tuple[str, float]]:
        units, counts = plan(share=share)
        cost = units.cost({name: np.arange(units[name].count) < count for name, count in counts.items()})
        return [(measure, cost[measure]) for measure, limit in limits.items() if cost[measure] > limit]

    if isinstance(many, list):
        if sorted(many, reverse=True) != many:
            raise InputError(f"stages={','.join(f'{share:.0%}' for share in many)}: each must be below the one before")
        for measure, cost in excess(many[-1]):
            raise InfeasibleError(
                f"budget {budget}: the last of the stages, {many[-1]:.1%} of the width, leaves {cost:.6g} {measure}, "
                f"the limit is {limits[measure]:.6g}: give a smaller share, or a number of stages",
                cost,
            )
        return many
    refuse_unreachable([budget], whole, limits | dict(excess(0.0)), "cut kv_groups, shared or dense as well")
    finest = max(site.count for site in units.free())
    low, high = 0, finest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if excess(middle / finest) else (middle, high)
    last = low / finest
    halvings = many or max(2, round(-float(np.log2(last))) if last else 2)
    return [last ** (stage / halvings) for stage in range(1, halvings + 1)]


def find_idle(shares: Sequence[float], plan: Callable[..., tuple[Units, Counts]]) -> list[int]:
    """Numbers from 1 of stages that are rounded to the whole width or to that of the next; the last is none of them."""
    whole, *counts = (plan(share=share)[1] for share in (1.0, *shares))
    return [stage for stage, both in enumerate(pairwise(counts), 1) if both[0] in (whole, both[1])]


def split_steps(tokens: str | Sequence[str], steps: int, stages: int, idle: Sequence[int] = ()) -> list[int]:
    """Steps of each stage, none of the `idle` ones; by default each gets four times those of the one before."""
    shares = parse_shares(tokens, "tokens") if tokens else [4.0**stage for stage in range(stages)]
    if not isinstance(shares, list) or len(shares) != stages:
        raise InputError(f"tokens={tokens!r} has not a share for each of {stages} stages: write such as 34%,66%")
    shares = [0.0 if stage in idle else share for stage, share in enumerate(shares, 1)]
    ends = np.round(np.cumsum([0.0, *shares]) / sum(shares) * steps).astype(int)
    return [int(count) for count in np.diff(ends)]


# ---------------------------------------------------------------------------------------------------- sensitivity


def score_loss(name: str, subject: Moe, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean loss of the student's logits on a batch: "truncated" or "full" KL to the original's, or the "task"."""
    there = devices.move(batch, logits)
    mask = objectives.mask_of(there)
    if name == "truncated":
        return experts.truncated_loss(logits, there["likely"], there["likely_indices"], mask)
    if name == "full":
        with torch.no_grad():
            theirs = subject.forward(batch).prediction
        return losses.kl(logits, theirs, mask) / objectives.count(batch)["tokens"]
    return objectives.task_loss(logits, there, objectives.count(batch), causal=True)


def scores(
    student: Moe, subject: Moe, units: Units, samples: Items, *, scoring: Scoring = Scoring(), seed: int = 0
) -> dict[str, Tensor]:
    """Site -> [count] for all free sites; with "fallback" where the loss had no gradient and the task's was taken.

    With "SITE.starved", a number of experts, where some of a site had no score at all (`experts.fill_starved`).
    """
    how, alike = scoring.score, scoring.alike
    free = {site.name for site in units.free()}
    layers = {f"layers.{n}.expert_neurons": mixture.experts for n, mixture in student.mixtures().items()}
    layers = {site: module for site, module in layers.items() if site in free}
    others = {site: at for site, at in student.consumers().items() if site in free}
    if ":" in how:
        own = {site: torch.as_tensor(score) for site, score in plugins.function(how)(student, samples).items()}
        rest = scores(student, subject, units, samples, scoring=Scoring(loss=scoring.loss), seed=seed)
        table = {name: score for name, score in rest.items() if name.removesuffix(".starved") not in own}
        table |= {site: score for site, score in own.items() if site in free}
        return table | (experts.share_scores(table, layers) if alike and layers else {})
    if how in ("soft", "saliency") and not any(site.kind == "experts" for site in units.free()):
        raise InputError(f"score={how} is of whole experts: give slim=experts, or score=activation for neurons")
    table = expert_worths(student, samples, free, how)
    if how == "random":
        table |= random.scores(units, seed)
    elif how == "weight":
        table |= experts.weight(layers) | magnitude.groups(student.model, others)
    elif how == "activation":
        table |= experts.activation(student.forward, student.model, layers, samples) if layers else {}
        taps = activation.inputs(others)
        table |= activation.collect(student.forward, student.model, samples, taps) if others else {}
    elif how in ("taylor", "soft", "saliency"):
        rule = partial(score_loss, scoring.loss, subject)
        with torch.no_grad():
            logits = student.forward(samples[0]).prediction
        if experts.has_no_gradient(partial(rule, batch=samples[0]), logits):
            rule, table["fallback"] = partial(score_loss, "task", subject), torch.ones(1)

        def value(batch: Mapping[str, Tensor]) -> Tensor:
            return rule(student.forward(batch).prediction, batch)

        table |= experts.taylor(value, student.model, layers, samples) if layers else {}
        table |= gradient.taylor(value, student.model, samples, others) if others else {}
    else:
        raise InputError(
            f"score={how!r} is not one of taylor, weight, activation, soft, saliency, random, or file.py:function"
        )
    table |= experts.share_scores(table, layers) if alike and layers else {}
    return experts.fill_starved(table, layers)


def expert_worths(student: Moe, samples: Items, free: set[str], how: str) -> dict[str, Tensor]:
    """Site -> [E] of whole experts that may go: "soft" or "saliency", else how many tokens were routed to each."""
    mixtures = {f"layers.{n}.experts": mixture for n, mixture in student.mixtures().items()}
    layers = {site: mixture.experts for site, mixture in mixtures.items() if site in free}
    if not layers:
        return {}
    routers = {site: mixtures[site].router for site in layers}
    routings = routing.collect_for(how, student.forward, student.model, samples, layers, routers)
    worths = {site: routed.worth(how) for site, routed in routings.items()}
    return {site: (routings[site].counts if worth is None else worth).float() for site, worth in worths.items()}
