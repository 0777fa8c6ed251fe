"""Minitron: compact language models via pruning and knowledge distillation.

Muralidharan et al., NeurIPS 2024 (arXiv 2407.14679); practice report: Sreenivas et al. (arXiv 2408.11796).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils import plugins
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import size
from secateur.recover.distillation import teachers
from secateur.recover.sparsity import compensate
from secateur.recover.training import loop, objectives
from secateur.score import ablation, activation, magnitude, random, similarity
from secateur.select import allocate, ranking, search
from secateur.subjects import Transformer
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Recovery, Result, Scores, Selection, listed

CARD = {
    "title": "Minitron: Compact Language Models via Pruning and Knowledge Distillation",
    "paper": "https://arxiv.org/abs/2407.14679",
    "cuts": "layers, attention heads inside their KV groups, FFN neurons, residual channels; one shape for all layers",
    "recovers": "logit distillation from the original, with hidden states where many layers went",
    "extra": "",
    "family": "language",
}

Reducer = Literal["mean", "l2", "var"]
Items = Sequence[Mapping[str, Tensor]]
Shapes = list[dict[str, int]]
Spent = Mapping[str, float]


def minitron(
    subject: Transformer,
    data: Corpus,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 1,
    length: int = 128,
    seed: int = 0,
    axes: Sequence[str] = ("layers", "heads", "neurons", "channels"),
    shape: str | Sequence[str] = "",
    score: str = "activation",
    over_batch: Reducer = "l2",
    over_sequence: Reducer = "mean",
    depth: Literal["perplexity", "influence"] = "perplexity",
    contiguous: bool = True,
    criterion: str = "loss",
    rounds: int = 1,
    merge: bool = False,
    calibration: int = 1024,
    candidates: int = 6,
    tolerance: float = 0.05,
    short_steps: int = 50,
    correction_steps: int = 0,
    stages: int = 0,
    steps: int = 1000,
    train_batch: int = 16,
    lr: float = 1e-3,
    min_lr: float = 1e-5,
    warmup: float = 0.05,
    task: float = 0.0,
    logit: float = 1.0,
    hidden: bool | None = None,
    direction: str = "forward",
    temperature: float = 1.0,
    cache: int = 0,
    training: str | Sequence[str] = "",
    dry_run: bool = False,
) -> Iterator[Result]:
    """Rank every axis by activations, pick the best of a few shapes by short distillation, distil the winner.

    Per budget:

    1. teacher correction (practice report): fine-tune the original on `data` first, if `correction_steps`;
    2. importance in one forward pass: F_head, F_neuron and F_emb (section 2.2), aggregated over sequence, then batch;
       channel scores are summed over all norms, so that one order serves the whole residual stream;
    3. depth: perplexity without a block of layers, or block influence 1 - E[cos(X_i, X_i+n)];
    4. shapes within `tolerance` below the budget are enumerated, cut, distilled for `short_steps` and ranked;
    5. the best is distilled from the original: forward KL on the logits; where a quarter of the layers or more went,
       with cosine of hidden states through one shared projection, weighted by L_logits / L_is (section 3);
    6. below half size, in stages, each distilled from the original.

    Args:
        subject: a trained model; it stays as it is and teaches every stage.
        data: texts like those the model will meet.
        budgets: one student for each; all share the scores of `subject`.
        run: where scores, candidates and checkpoints go.
        batch: sequences per batch, for the cost of FLOPs and KV cache.
        length: tokens per sequence, in costs and in training.
        seed: of sampling and training.
        axes: what may shrink.
        shape: exact shape in place of the search, such as layers=4,neurons=512; axes not named stay whole.
        score: activation, magnitude, random, or file.py:function with (subject, batches) -> site -> [count] scores;
            sites it leaves out are ranked by activation.
        over_batch: reducer over samples.
        over_sequence: reducer over tokens.
        depth: how layers are ranked.
        contiguous: drop one block of neighbouring layers; otherwise the lowest layers wherever they stand.
        criterion: what ranks layers and candidates: loss on held-out texts, or file.py:function with (student, batches)
            -> a number, the lower the better, such as minus the accuracy on a task (practice report).
        rounds: rounds of score and cut on the way to the shape.
        merge: head residual merging: heads that stay take over the ones that go.
        calibration: sequences scored.
        candidates: shapes that get a short distillation.
        tolerance: how far below the budget a shape may lie.
        short_steps: distillation steps per candidate.
        correction_steps: steps of teacher correction, at a fifth of `lr`.
        stages: prune-distil stages; 0 picks one per halving of the budget's measure.
        steps: distillation steps per stage.
        train_batch: sequences per distillation step.
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine.
        warmup: share of steps in warm-up.
        task: weight of cross-entropy; the paper's best is none.
        logit: weight of the logit loss.
        hidden: hidden-state loss; by default where a quarter of the layers or more went.
        direction: forward or reverse KL, js, mse or cosine on the logits.
        temperature: of the KL.
        cache: tokens per position kept of the teacher's predictions: asked for once, on disk, for all candidates and
            stages (forward KL only, no hidden states); 0 asks the teacher at every step.
        training: more settings of the training loop, such as accumulate=4,precision=bf16,patience=3,trackers=wandb.
        dry_run: stop after the cut of the candidate that is best before any training; nothing is trained.

    Departures: shapes lie within `tolerance` below the budget, not on both sides of it; neurons and heads are read
    after the gate, as the official library does; a removed channel's norms are corrected exactly, which the paper does
    not mention; head merging is off by default, since it loses in the claim that measures it; small models want larger
    learning rates than the paper's 1e-4 to 2e-4; the teacher is corrected before it teaches, not meanwhile, which the
    report finds on par.
    """
    decoder = subject.kind == "decoder"
    check(subject, cache=cache, hidden=hidden, direction=direction, correction_steps=correction_steps)
    wanted = shapes.parse(shape, subject) if shape else None
    train, held = data.split(seed=seed)
    make = partial(texts.batches, tokenizer=subject.tokenizer, packed=decoder, length=length)
    stream, further = make(train, batch=train_batch, seed=seed + 1), loop.options(training)
    samples = make(train, batch=16, seed=seed).take(max(1, calibration // 16))
    judged = make(held, batch=min(16, train_batch), seed=seed).take(16)
    # Embeddings and states may change their width: a projection lifts them in training, their relations judge them.
    lifted = subject.output != "logits" and ("channels" in axes or any("channels" in part for part in listed(shape)))

    teacher, beside = subject, list[Spent]()
    fit: Any = partial(loop.train, warmup=warmup, min_lr=min_lr, seed=seed, dropout=False, **further)
    if correction_steps and not dry_run:
        teacher = subject.cut(Selection({}))[0]
        correct = objectives.distil(teacher.forward, None, output=teacher.output, task=1.0, fused=True)
        beside.append(spent(fit(
            teacher.model, stream, objective=correct, steps=correction_steps, lr=lr / 5, patience=None,
            checkpoint=run.folder("teacher"), flops_per_token=size.training_flops(teacher.flops_per_token(length)),
        )))  # fmt: skip
    rank = partial(scores, how=score, batch=over_batch, sequence=over_sequence, seed=seed)
    ruling = None if criterion == "loss" else plugins.function(criterion)

    def judge(student: Transformer) -> float:
        if ruling is not None:
            return float(ruling(student, judged))
        return objectives.held_out(
            student.forward, teacher=teacher.forward, output=teacher.output, batches=judged, relational=lifted
        )

    first = run.tensors("scores", lambda: dict(rank(teacher, samples)))

    def remember(count: int) -> Any:
        return teachers.remembered(
            run.folder("predictions"), teacher.model, teacher.forward, teacher.tokenizer, stream, count,
            k=cache, temperature=temperature,
            key={"data": data.digest, "batches": f"{train_batch} x {length}, seed {seed + 1}"},
        )  # fmt: skip

    def distil(student: Transformer, name: str, steps: int) -> Recovery:
        deep = 4 * len(student.layers()) <= 3 * len(teacher.layers()) if hidden is None else hidden
        pairs = objectives.matched(len(student.layers()), len(teacher.layers())) if deep and not cache else []
        ours, theirs = student.hidden_size, teacher.hidden_size
        torch.manual_seed(seed)
        projection = nn.Linear(ours, theirs, bias=False) if (pairs or lifted) and ours != theirs else None
        objective = objectives.distil(
            student.forward, None if cache else teacher.forward, output=teacher.output, task=task, logit=logit,
            temperature=temperature, direction=direction, hidden=pairs, projection=projection, fused=True,
        )  # fmt: skip
        batches = remember(steps * further.get("accumulate", 1)) if cache else stream
        return cast(Recovery, fit(
            student.model, batches, objective=objective, steps=steps, lr=lr,
            extra=[projection] if projection is not None else [], frozen=[] if cache else [teacher.model],
            checkpoint=run.folder(name), evaluate=partial(judge, student) if "patience" in further else None,
            flops_per_token=size.training_flops(
                student.flops_per_token(length), 0 if cache else teacher.flops_per_token(length)
            ),
        ))  # fmt: skip

    keeps = lru_cache(16)(partial(kept_layers, depth=depth, contiguous=contiguous, judge=judge, judged=judged))
    to_shape = partial(shrink, rank=partial(rank, batches=samples), keeps=keeps, rounds=rounds, merge=merge)

    for budget in budgets:
        whole = subject.units(batch=batch, length=length).cost()
        limits = budget.absolute(whole)
        share = min((limits[m] / whole[m] for m in limits), default=1.0)
        many = stages or max(1, int(np.ceil(np.log2(1 / share) - 1e-9)))
        student, cut, counted, recoveries = teacher, shapes.receipt(subject, teacher), list(beside), list[Recovery]()
        for stage in range(1, many + 1):
            goal = {m: whole[m] * (limits[m] / whole[m]) ** (stage / many) for m in limits}
            again = partial(rank, student, samples)
            found = first if stage == 1 else run.tensors(f"scores-{budget}-{stage}", again)
            trim = partial(to_shape, student, scores=found)
            if wanted:
                tries = [allocate.between(shapes.sizes(subject), wanted, stage / many, shapes.steps(subject))]
            else:
                price = partial(shapes.cost, student.units(batch=batch, length=length))
                tries = spread(search.under(shapes.grid(student, axes), price, goal, tolerance=tolerance), candidates)
            name = f"{budget}-{stage}"
            short = 0 if dry_run else short_steps
            compare = partial(compared, tries, trim, judge, distil, f"candidate-{name}", short)
            tried = run.json(f"shape-{name}", compare)
            student, counted = trim(tried["best"]), counted + [row["spent"] for row in tried["candidates"]]
            cut = shapes.receipt(subject, student)
            if steps and not dry_run:
                recoveries.append(distil(student, f"train-{name}", steps))
        recovery = together(recoveries, counted) if recoveries else None
        yield Result(str(budget), student, cut, student.units(batch=batch, length=length).cost(), recovery)


def check(subject: Transformer, *, cache: int, hidden: bool | None, direction: str, correction_steps: int) -> None:
    """Raise `InputError` for options that can't go together, or not with this model."""
    if correction_steps and not subject.causal:
        raise InputError("correction_steps trains on the next token: leave it out, this is no language model")
    if cache and (not subject.causal or hidden or direction != "forward"):
        raise InputError("cache keeps a language model's likeliest tokens: it serves forward KL without hidden states")
    if cache and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("cache is filled by one process: make the run with one first, or leave cache out")


def compared(
    tries: Shapes,
    trim: Callable[[dict[str, int]], Transformer],
    judge: Callable[[Transformer], float],
    distil: Callable[[Transformer, str, int], Recovery],
    name: str,
    steps: int,
) -> dict[str, Any]:
    """Every shape cut and judged, before and after a short distillation (none for a single shape), and the best."""
    rows: list[dict[str, Any]] = []
    for number, sizes in enumerate(tries):
        trial = trim(sizes)
        zero_shot = judge(trial)
        short = distil(trial, f"{name}-{number}", steps) if steps and len(tries) > 1 else Recovery()
        rows.append({"shape": sizes, "zero_shot": zero_shot, "short": judge(trial), "spent": spent(short)})
    return {"candidates": rows, "best": rows[int(np.argmin([row["short"] for row in rows]))]["shape"]}


def spent(recovery: Recovery) -> Spent:
    """What a training took, without its curve."""
    return {"tokens": recovery.tokens, "seconds": recovery.seconds, "flops": recovery.flops}


def together(stages: Sequence[Recovery], beside: Sequence[Spent]) -> Recovery:
    """The stages as one record; what was trained `beside` them (candidates, the teacher) counts in what it all took."""
    losses: list[tuple[int, float]] = []
    for done, stage in zip(np.cumsum([0, *(stage.steps for stage in stages)]), stages, strict=False):
        losses += [(int(done) + step, loss) for step, loss in stage.losses]
    whole = {key: sum(part[key] for part in [*map(spent, stages), *beside]) for key in spent(stages[0])}
    return Recovery(
        sum(stage.steps for stage in stages), int(whole["tokens"]), whole["seconds"], whole["flops"], tuple(losses),
        stages[-1].settings,
    )  # fmt: skip


def scores(
    subject: Transformer, batches: Items, *, how: str, batch: Reducer, sequence: Reducer, seed: int
) -> dict[str, Tensor]:
    """Site -> [count]: heads, neurons and channels; the channels' score is summed over all norms."""
    if how == "random":
        return random.scores(subject.units("heads", "neurons", "channels"), seed=seed)
    wanted = {site: at for site, at in subject.consumers().items() if not site.endswith("kv_groups")}
    if how == "magnitude":
        table = subject.model.get_input_embeddings().weight
        return magnitude.groups(subject.model, wanted) | {"channels": magnitude.norm(table)}
    if ":" in how:
        given = {site: torch.as_tensor(score) for site, score in plugins.function(how)(subject, batches).items()}
        sites = subject.units("heads", "kv_groups", "neurons", "channels").sites
        for site, score in given.items():
            if site not in sites or score.shape != (sites[site].count,):
                known = f"it has {sites[site].count} units" if site in sites else f"the sites are {', '.join(sites)}"
                raise InputError(f"{how} scores {site!r} with shape {list(score.shape)}: {known}")
        # What it leaves out is ranked as the paper does.
        rest = {} if {*wanted, "channels"} <= given.keys() else scores(
            subject, batches, how="activation", batch=batch, sequence=sequence, seed=seed
        )  # fmt: skip
        return rest | given
    if how != "activation":
        raise InputError(f"score {how!r} is not one of activation, magnitude, random, or file.py:function")
    taps = activation.inputs(wanted) | {norm: activation.Tap(norm, "output") for norm in subject.norms()}
    found = activation.collect(subject.forward, subject.model, batches, taps, batch=batch, sequence=sequence)
    channels = activation.summed({norm: found.pop(norm) for norm in subject.norms()})
    return found | {"channels": channels}


def spread(candidates: Shapes, most: int) -> Shapes:
    """At most `most` candidates, evenly through the deepest to the shallowest."""
    ordered = sorted(candidates, key=lambda shape: [-size for size in shape.values()])
    return [ordered[int(i)] for i in np.unique(np.linspace(0, len(ordered) - 1, most).round())]


def shrink(
    student: Transformer,
    sizes: Mapping[str, int],
    *,
    scores: Scores,
    rank: Callable[[Transformer], Scores],
    keeps: Callable[[Transformer, int], Any],
    rounds: int,
    merge: bool,
) -> Transformer:
    """`student` cut to `sizes` in `rounds` rounds of score and cut; `keeps` says which layers stay."""
    start, steps = shapes.sizes(student), shapes.steps(student)
    for turn in range(1, rounds + 1):
        scores = scores if turn == 1 else rank(student)
        now = allocate.between(start, sizes, turn / rounds, steps)
        if merge:
            student = merged(student, scores, now["heads"])
        units = student.units("heads", "neurons", "channels")
        keep = dict(ranking.by_counts(units, scores, {axis: now[axis] for axis in now if axis != "layers"}).keep)
        student, _ = student.cut(Selection(keep | {"layers": keeps(student, now["layers"])}))
    return student


def merged(student: Transformer, scores: Scores, heads: int) -> Transformer:
    """A copy whose heads that stay took over the residual of those that will go (section 2.2)."""
    copy, _ = student.cut(Selection({}))
    units = student.units("heads")
    keep = ranking.by_counts(units, scores, {"heads": heads}).keep
    for layer in range(len(student.layers())):
        site = f"layers.{layer}.heads"
        group = None if units[site].group is None else torch.as_tensor(units[site].group)
        for name, dim, start, length in copy.head_slices(layer):
            weight = copy.model.get_parameter(name).data.narrow(dim, start, length)
            weight.copy_(
                compensate.merge_heads(
                    weight, torch.as_tensor(scores[site]), torch.as_tensor(keep[site]), dim=dim, group=group
                )
            )
    return copy


def kept_layers(student: Transformer, count: int, depth: str, contiguous: bool, judge: Any, judged: Items) -> Any:
    """[layers] booleans: which `count` layers stay, by what the model loses without the others."""
    total = len(student.layers())
    if count == total:
        return np.ones(total, dtype=bool)
    span = total - count if contiguous else 1
    if depth == "influence":
        states = partial(student.forward, hidden=True)
        worth = similarity.collect(lambda item: states(item).hidden, judged, span=span).numpy()
    elif depth == "perplexity":
        blocks = [(np.arange(total) < i) | (np.arange(total) >= i + span) for i in range(total - span + 1)]
        rest = (Selection({"layers": keep}) for keep in blocks)
        worth = ablation.without(lambda selection: judge(student.cut(selection)[0]), rest).numpy()
    else:
        raise InputError(f"depth {depth!r} is not one of perplexity, influence")
    if contiguous:
        first = int(np.argmin(worth))
        return (np.arange(total) < first) | (np.arange(total) >= first + span)
    return np.argsort(np.argsort(worth, kind="stable"), kind="stable") >= total - count
