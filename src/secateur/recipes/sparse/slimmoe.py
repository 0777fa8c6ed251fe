"""SlimMoE: structured compression of large MoE models via expert slimming and distillation.

Li, Liang, Zhang, Cheng, Kim, Chen, Wang, Zhao and Chen, COLM 2025 (arXiv 2506.18349).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from secateur._utils import plugins
from secateur._utils.disk import writing
from secateur._utils.modes import held
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.measure import size
from secateur.recover.distillation import losses, teachers
from secateur.recover.sparsity import merging
from secateur.recover.training import loop, objectives, records, routing, schedule
from secateur.score import activation, experts, gradient, hooks, magnitude, random
from secateur.score import routing as routes
from secateur.select import allocate, clusters, ranking
from secateur.subjects import Moe, open_subject
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Recovery, Result, Selection, Units, listed

CARD = {
    "title": "SlimMoE: Structured Compression of Large MoE Models via Expert Slimming and Distillation",
    "paper": "https://arxiv.org/abs/2506.18349",
    "cuts": "FFN neurons inside every expert, all experts and the router kept; KV groups, shared and dense FFNs",
    "recovers": "logit distillation from the original, in stages of decreasing size",
    "extra": "",
    "family": "sparse",
}

Items = Sequence[Mapping[str, Tensor]]
Counts = dict[str, int]
Rule = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


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
    score: str = "taylor",
    alike: bool = False,
    loss: Literal["truncated", "full", "task"] = "truncated",
    top: int = 8,
    calibration: int = 64,
    kv_groups: int = 0,
    shared: float = 1.0,
    dense: float = 1.0,
    divisor: int = 8,
    steps: int = 1000,
    train_batch: int = 16,
    lr: float | Sequence[float] = 1e-3,
    min_lr: float | Sequence[float] = 1e-4,
    warmup: float = 0.05,
    temperature: float = 1.0,
    cache: int = 0,
    task: float = 0.0,
    logit: float = 1.0,
    balance: float | None = None,
    freeze_router: bool = False,
    noise: bool = True,
    training: str | Sequence[str] = "",
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
        slim: neurons; or experts, the baseline that drops whole ones, by how often tokens are routed to them unless
            `score` is soft, saliency or random; or merge, the other one: the means of experts whose rows of the router
            are near, and of these rows.
        score: taylor, weight (norm of all weights), activation (mean |h_j|), soft (of whole experts: the router's
            probabilities summed up, SEER-MoE), saliency (of whole experts: their mean weighted output, REAP), random,
            or file.py:function with (subject, batches) -> site -> [count] scores; sites it leaves out are ranked by
            taylor.
        alike: one set of indices for all experts of a layer, the ablation.
        loss: of the score: truncated to the original's likeliest tokens; full KL, which has no gradient where student
            and original are one, so that the first stage then takes the task's; or task, the next token.
        top: likeliest tokens of the original in the truncated loss.
        calibration: sequences scored.
        kv_groups: KV groups that each layer keeps, cut with the last stage; 0 for all.
        shared: share that stays of the neurons of experts which every token passes.
        dense: share that stays of the neurons of layers without experts.
        divisor: widths are multiples of it, such as 64 at real scale.
        steps: distillation steps, all stages together.
        train_batch: sequences per distillation step.
        lr: peak learning rate, one for all stages or one for each, such as 1e-3,5e-4.
        min_lr: learning rate at the end of the last stage, those before being stopped early, at their peak; or one for
            each.
        warmup: share of a stage's steps in warm-up.
        temperature: of the KL.
        cache: tokens per position kept of the original's predictions, on disk, in place of asking it at every step.
        task: weight of cross-entropy; the paper has none.
        logit: weight of the logit loss.
        balance: weight of the load-balancing loss; the original's own by default.
        freeze_router: leave the router as it was, all through.
        noise: train with what the original's config has of dropout and jitter, and with routers that sample (PhiMoE).
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        dry_run: stop after the cuts; nothing is trained.

    Departures: gates stand for the paper's sums over rows and columns, which it does not spell out: for W2 they are
    equal to the signed sum. Stage sizes and token shares are not published; these are our defaults. That first stages
    are stopped early is known at second hand. Scores are taken in evaluation mode, where routers that sample take the
    best experts. Shared and dense FFNs, which the paper's model does not have, keep shares of their own.
    """
    if not isinstance(subject, Moe):
        raise UnsupportedError(f"slimmoe slims experts, and {subject.family.model_type} has none: use minitron")
    plan = partial(
        planned, subject, kv_groups=kv_groups, shared=shared, dense=dense, divisor=divisor, slim=slim,
        batch=batch, length=length,
    )  # fmt: skip
    many, further = shares_of(stages, "stages") if stages else None, loop.options(training)
    train, _ = data.split(seed=seed)
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=True, length=length)
    texts_seen = make(train, batch=min(16, calibration), seed=seed).take(max(1, calibration // 16))
    stream = make(train, batch=train_batch, seed=seed + 1)
    samples = beside(texts_seen, run.tensors("likeliest", partial(remembered, subject, texts_seen, top)))
    weight = getattr(subject.model.config, "router_aux_loss_coef", 0.0) if balance is None else balance
    learnt: Any = stream
    if cache and steps and not dry_run:
        learnt = teachers.remembered(
            run.folder("predictions"), subject.model, subject.forward, subject.tokenizer, stream,
            steps * further.get("accumulate", 1), k=cache, temperature=temperature,
            key={"data": data.digest, "batches": f"{train_batch} x {length}, seed {seed + 1}"},
        )  # fmt: skip

    def distil(student: Moe, name: str, count: int, first: int, rate: tuple[float, float]) -> Recovery:
        objective = objectives.distil(
            student.forward, None if cache else subject.forward, output="logits", task=task, logit=logit,
            temperature=temperature, fused=True,
        )  # fmt: skip
        for router in student.routers():
            router.requires_grad_(not freeze_router)
        ours, theirs = student.flops_per_token(length), 0.0 if cache else subject.flops_per_token(length)
        done = loop.train(
            student.model, After(learnt, first), routing.balanced(objective, student.routers(), weight),
            steps=count, lr=rate[0], min_lr=rate[1], warmup=warmup, seed=seed, dropout=noise,
            frozen=[] if cache else [subject.model], checkpoint=run.folder(name),
            flops_per_token=size.training_flops(ours, theirs), **further,
        )  # fmt: skip
        student.model.requires_grad_(True)
        return done

    for budget in budgets:
        if budget.pattern or not budget.limits:
            raise BudgetError(f"budget {budget}: slimmoe makes widths, such as params=50% or active_params=60%")
        goals = path(many, budget, partial(plan, subject, last=True))
        student, parts, notes, stored = subject, list[Recovery](), list[str](), dict[str, Path]()
        order = zip(goals, dealt(tokens, steps, len(goals)), rates(lr, min_lr, len(goals)), strict=True)
        for stage, (share, count, rate) in enumerate(order, 1):
            ask = partial(plan, share=share, last=stage == len(goals))
            student = merged(student, ask(student)[1]) if slim == "merge" else student
            units, counts = ask(student)
            rank = partial(scores, student, subject, units, samples, how=score, loss=loss, alike=alike, seed=seed)
            found = run.tensors(f"scores-{budget}-{stage}", rank)
            told_of = [site for site in units.free() if f"{site.name}.starved" in found]
            lacking = sum(int(found[f"{site.name}.starved"]) for site in told_of)
            if lacking:
                notes.append(f"stage {stage}: {lacking} experts got nothing to score by: ranked by their weights")
            if "fallback" in found:
                notes.append(f"stage {stage}: {loss} loss has no gradient here, scored by the next token's")
            student = cast(Moe, student.cut(ranking.by_counts(units, found, counts))[0])
            if count and not dry_run:
                first = sum(part.steps for part in parts) * further.get("accumulate", 1)
                parts.append(distil(student, f"train-{budget}-{stage}", count, first, rate))
                notes.append(told(stage, student, parts[-1], length, None if cache else subject))
            if stage < len(goals) and not dry_run:
                stored[f"stage {stage}"] = kept(student, run.path(f"stage-{budget}-{stage}"))
        cut = shapes.receipt(subject, student)
        predicted = student.units(batch=batch, length=length).cost()
        recovery, stages_made = records.together(*parts), Stages(stored, subject)
        yield Result(str(budget), student, cut, predicted, recovery, tuple(notes), stages=stages_made)


class Stages(Mapping[str, Moe]):
    """The models after the first stages, each read from its folder when it is asked for."""

    def __init__(self, folders: Mapping[str, Path], subject: Moe) -> None:
        self.folders, self.subject = folders, subject

    def __getitem__(self, name: str) -> Moe:
        found = open_subject(self.folders[name], tokenizer=self.subject.tokenizer)
        held(found.model, str(self.subject.model.device))
        return cast(Moe, found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


def kept(student: Moe, folder: Path) -> Path:
    """`folder`, with the model in it: whole, and written once."""
    if not folder.exists():
        with writing(folder) as temporary:
            student.save(temporary)
    return folder


class After:
    """Batches from number `first` on: a stage goes on where the one before stopped."""

    def __init__(self, batches: Any, first: int) -> None:
        self.batches, self.first = batches, first

    def __getitem__(self, index: int) -> Any:
        return self.batches[self.first + index]


# ------------------------------------------------------------------------------------------------- how far, in stages


def shares_of(given: str | Sequence[str], what: str) -> list[float] | int:
    """ "2" as a number, "50%,20%" as shares; `InputError` for anything else."""
    text = ",".join(listed(given))
    if re.fullmatch(r"[1-9][0-9]*", text):
        return int(text)
    parts = re.findall(r"([0-9.]+)%(?:,|$)", text.replace(" ", ""))
    found = [float(part) / 100 for part in parts]
    if not found or len(found) != text.count("%") or not all(0 < share <= 1 for share in found):
        raise InputError(f"{what}={given!r} is neither a number of stages nor shares such as 50%,20%")
    return found


def planned(
    subject: Moe,
    student: Moe,
    *,
    share: float,
    last: bool,
    slim: str,
    kv_groups: int,
    shared: float,
    dense: float,
    divisor: int,
    batch: int,
    length: int,
) -> tuple[Units, Counts]:
    """The units of a stage, and how many each site keeps: `share` of the original's experts, the rest with the last."""
    kinds = {"expert_neurons" if slim == "neurons" else "experts": share}
    if slim not in ("neurons", "experts", "merge"):
        raise InputError(f"slim={slim!r} is not one of neurons, experts, merge")
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


def merged(student: Moe, counts: Counts) -> Moe:
    """A copy with as many experts as `counts` gives each layer: means of those whose rows of the router are near."""
    keep, groups, before = dict[str, np.ndarray](), dict[int, list[list[int]]](), student.mixtures()
    for index, mixture in before.items():
        name, rows = f"layers.{index}.experts", cast(Tensor, mixture.router.weight)
        found = clusters.grouped(routes.row_distance(rows), counts[name], student.layout.expert_groups)
        keep[name], groups[index] = np.isin(np.arange(mixture.count), [one[0] for one in found]), found
    small = cast(Moe, student.cut(Selection(keep))[0])
    for index, new in small.mixtures().items():
        first = [one[0] for one in groups[index]]
        for theirs, ours in ((before[index].experts, new.experts), (before[index].router, new.router)):
            merging.fill(theirs, ours, groups[index], first, kappa=len(first))
    return small


def path(many: list[float] | int | None, budget: Budget, plan: Callable[..., tuple[Units, Counts]]) -> list[float]:
    """The share of the experts after each stage, the last as large as the budget allows, or as asked for.

    Without a number, as many stages as halve the experts: a model that keeps less than that of itself has too little of
    the original left to learn the rest from it.
    """
    units, _ = plan(share=1.0)
    limits = budget.absolute(units.cost())

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
    for measure, least in excess(0.0):
        raise InfeasibleError(
            f"budget {budget} can't be met by thinner experts: {measure} can go down to {least:.6g}, the limit is "
            f"{limits[measure]:.6g}; cut kv_groups, shared or dense as well",
            least,
        )
    finest = max(site.count for site in units.free())
    low, high = 0, finest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if excess(middle / finest) else (middle, high)
    last = low / finest
    halvings = many or max(2, round(-math.log2(last)) if last else 2)
    return [last ** (stage / halvings) for stage in range(1, halvings + 1)]


def dealt(tokens: str | Sequence[str], steps: int, stages: int) -> list[int]:
    """Steps of each stage; by default each gets four times those of the one before."""
    given = shares_of(tokens, "tokens") if tokens else [4.0**stage for stage in range(stages)]
    if not isinstance(given, list) or len(given) != stages:
        raise InputError(f"tokens={tokens!r} has not a share for each of {stages} stages: write such as 34%,66%")
    ends = np.round(np.cumsum([0.0, *given]) / sum(given) * steps).astype(int)
    return [int(count) for count in np.diff(ends)]


def rates(peaks: float | Sequence[float], floors: float | Sequence[float], stages: int) -> list[tuple[float, float]]:
    """(highest, last) learning rate of each stage; raises where numbers lack, before the first stage is trained.

    One `floors` is the last stage's: those before are stopped early, while their rate is at its peak.
    """
    highest = each("lr", peaks, stages)
    alone = not isinstance(floors, Sequence) or len(floors) == 1
    found = each("min_lr", floors, stages)
    pairs = list(zip(highest, [*highest[:-1], found[-1]] if alone else found, strict=True))
    for peak, floor in pairs:
        schedule.learning_rate(0, steps=1, lr=peak, min_lr=floor)
    return pairs


def each(what: str, given: float | Sequence[float], stages: int) -> list[float]:
    """One number for each stage; raises where one is given neither for all nor for each."""
    numbers = list(given) if isinstance(given, Sequence) else [given]
    if len(numbers) not in (1, stages):
        raise InputError(
            f"{what}={','.join(f'{one:g}' for one in numbers)} has {len(numbers)} numbers for {stages} stages: "
            "give one for all of them, or one for each"
        )
    return numbers * (stages // len(numbers))


def told(stage: int, student: Moe, done: Recovery, length: int, teacher: Moe | None) -> str:
    """What a stage made and what it took; the student's FLOPs and the original's apart."""
    widths = sorted({mixture.width for mixture in student.mixtures().values()})
    ours = size.training_flops(student.flops_per_token(length)) * done.tokens
    theirs = 0.0 if teacher is None else teacher.flops_per_token(length) * done.tokens
    return (
        f"stage {stage}: {len(student.mixtures())} layers with experts of {', '.join(map(str, widths))} neurons, "
        f"{done.tokens} tokens, {ours:.3g} FLOPs of the student and {theirs:.3g} of the original"
    )


# ---------------------------------------------------------------------------------------------------- sensitivity


def remembered(subject: Moe, samples: Items, top: int) -> dict[str, Tensor]:
    """The original's `top` likeliest tokens at every position of the samples."""
    found: dict[str, Tensor] = {}
    with hooks.sound(subject.model, subject.layers()):
        for number, item in enumerate(samples):
            values, indices = experts.likeliest(subject.forward(item).prediction, top)
            found |= {f"{number}.values": values.cpu(), f"{number}.indices": indices.cpu()}
    return found


def beside(samples: Items, known: Mapping[str, Tensor]) -> Items:
    """The samples with what the original said of them."""
    return [
        {**item, "likely": known[f"{number}.values"], "likely_indices": known[f"{number}.indices"]}
        for number, item in enumerate(samples)
    ]


def rules(subject: Moe) -> dict[str, Rule]:
    """Name -> mean loss of the student's logits on a batch."""

    def mask(batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        return batch["attention_mask"].bool().to(logits.device)

    def truncated(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        at = logits.device
        return experts.truncated(logits, batch["likely"].to(at), batch["likely_indices"].to(at), mask(batch, logits))

    def full(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            theirs = subject.forward(batch).prediction
        return losses.kl(logits, theirs, mask(batch, logits)) / objectives.count(batch)["tokens"]

    def task(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        there = {name: tensor.to(logits.device) for name, tensor in batch.items()}
        return objectives.task_loss(logits, there, objectives.count(batch), causal=True)

    return {"truncated": truncated, "full": full, "task": task}


def scores(
    student: Moe, subject: Moe, units: Units, samples: Items, *, how: str, loss: str, alike: bool, seed: int
) -> dict[str, Tensor]:
    """Site -> [count] for all free sites; with "fallback" where the loss had no gradient and the task's was taken.

    With "SITE.starved", a number of experts, where some of a site had no score at all (`ranked`).
    """
    if how in ("soft", "saliency") and not any(site.kind == "experts" for site in units.free()):
        raise InputError(f"score={how} is of whole experts: give slim=experts, or score=activation for neurons")
    free = {site.name for site in units.free()}
    layers = {f"layers.{n}.expert_neurons": mixture.experts for n, mixture in student.mixtures().items()}
    layers = {site: module for site, module in layers.items() if site in free}
    whole = {f"layers.{n}.experts": mixture.experts for n, mixture in student.mixtures().items()}
    counted = {site: module for site, module in whole.items() if site in free}
    others = {site: at for site, at in student.consumers().items() if site in free}
    found: dict[str, Tensor] = {}
    if counted:
        routers = dict(zip(whole, student.routers(), strict=True)) if how == "soft" else None
        used = routes.collect(
            student.forward, student.model, samples, counted, saliency=how == "saliency", routers=routers
        )
        worths = {site: one.worth(how) for site, one in used.items()}
        found |= {site: (used[site].counts if one is None else one).float() for site, one in worths.items()}
    if how == "random":
        found |= random.scores(units, seed)
    elif how == "weight":
        found |= experts.weight(layers) | magnitude.groups(student.model, others)
    elif how == "activation":
        found |= experts.activation(student.forward, student.model, layers, samples) if layers else {}
        taps = activation.inputs(others)
        found |= activation.collect(student.forward, student.model, samples, taps) if others else {}
    elif ":" in how:
        given = {site: torch.as_tensor(score) for site, score in plugins.function(how)(student, samples).items()}
        rest = scores(student, subject, units, samples, how="taylor", loss=loss, alike=False, seed=seed)
        found |= {name: score for name, score in rest.items() if name.removesuffix(".starved") not in given}
        found |= {site: score for site, score in given.items() if site in free}
    elif how in ("taylor", "soft", "saliency"):
        every = rules(subject)
        if loss not in every:
            raise InputError(f"loss={loss!r} is not one of {', '.join(every)}")
        rule = every[loss]
        with torch.no_grad():
            logits = student.forward(samples[0]).prediction
        if experts.vanishes(lambda z: every[loss](z, samples[0]), logits):
            rule, found["fallback"] = every["task"], torch.ones(1)

        def value(batch: Any) -> Tensor:
            return rule(student.forward(batch).prediction, batch)

        found |= experts.taylor(value, student.model, layers, samples) if layers else {}
        found |= gradient.taylor(value, student.model, samples, others) if others else {}
    else:
        raise InputError(
            f"score={how!r} is not one of taylor, weight, activation, soft, saliency, random, or file.py:function"
        )
    found |= experts.alike(found, layers) if alike and layers else {}
    return found if ":" in how else ranked(found, layers)


def ranked(found: dict[str, Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The scores, where experts that have none, such as those that no token came to, are ranked by their weights.

    Ties would keep the first neurons, whatever they are. Each expert is ranked on its own, so scales need not agree.
    """
    norms = experts.weight(layers)
    for site, module in layers.items():
        rows = found[site].reshape(len(module.down_proj), -1)
        none = ~rows.any(1)
        if bool(none.any()):
            found[site] = torch.where(none[:, None], norms[site].view_as(rows), rows).flatten()
            found[f"{site}.starved"] = none.sum()[None]
    return found
