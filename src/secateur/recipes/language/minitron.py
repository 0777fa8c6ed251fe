"""Minitron: compact language models via pruning and knowledge distillation.

Muralidharan et al., NeurIPS 2024 (arXiv 2407.14679); practice report: Sreenivas et al. (arXiv 2408.11796).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import plugins
from secateur._utils.rundir import Run
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, InputError
from secateur.methods import calibration, distillation
from secateur.methods.distillation import Losses
from secateur.recover.sparsity import compensate
from secateur.recover.training import objectives
from secateur.recover.training.records import add_up, spent
from secateur.score import ablation, activation, magnitude, random, similarity
from secateur.select import allocate
from secateur.select.ranking import by_counts
from secateur.select.search import combine, count_halvings, likeliest, lose_alone, nearest_under, require_way, under
from secateur.subjects import Transformer
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Recovery, Result, Scores, Selection, Training, parse_list

CARD = {
    "title": "Minitron: Compact Language Models via Pruning and Knowledge Distillation",
    "paper": "https://arxiv.org/abs/2407.14679",
    "cuts": "layers, attention heads inside their KV groups, FFN neurons, residual channels; one shape for all layers",
    "recovers": "logit distillation from the original, with hidden states where many layers went",
    "extra": "",
    "family": "language",
    "needs": "heads or shape=layers=2",
}

WIDTHS = ("heads", "neurons", "channels")
Reducer = Literal["mean", "l2", "var"]
Items = Sequence[Mapping[str, Tensor]]
Shapes = list[dict[str, int]]
Trim = Callable[[dict[str, int]], Transformer]
"""Sizes -> the student cut to them."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How units, layers and candidates are ranked. The reducers are the paper's best, as are the 1024 sequences."""

    score: str = "activation"
    """activation, magnitude, random, or file.py:function with (subject, batches) -> site -> [count] scores; sites it
    leaves out are ranked by activation."""
    over_batch: Reducer = "l2"
    """Reducer over samples."""
    over_sequence: Reducer = "mean"
    """Reducer over tokens."""
    calibration: Annotated[int, Ge(1)] = 1024
    """Sequences scored."""
    depth: Literal["perplexity", "influence"] = "perplexity"
    """How layers are ranked."""
    contiguous: bool = True
    """Drop one block of neighbouring layers; otherwise the lowest layers wherever they stand."""
    criterion: str = "loss"
    """What ranks layers and candidates: loss on held-out texts, or file.py:function with (student, batches) -> a
    number, the lower the better, such as minus the accuracy on a task (practice report)."""


@dataclass(frozen=True, slots=True)
class Search:
    """How the shape is found."""

    candidates: Annotated[int, Ge(1)] = 6
    """Shapes that get a short distillation, of all that the budget allows those of the lowest estimated loss."""
    tolerance: float = 0.05
    """How far below the budget a shape may lie."""
    short_steps: Annotated[int, Ge(0)] = 50
    """Distillation steps per candidate."""


@dataclass(frozen=True, slots=True)
class StateLosses(Losses):
    """Minitron's losses (section 3)."""

    task: Annotated[float, Ge(0)] = 0.0
    """Weight of cross-entropy; the paper's best is none."""
    hidden: bool | None = None
    """Hidden-state loss; by default where a quarter of the layers or more went."""
    direction: str = "forward"
    """forward or reverse KL, js, mse or cosine on the logits; mse where the model tells numbers, and binary (KL of each
    label) where several labels may hold."""


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
    ranking: Ranking = Ranking(),
    rounds: Annotated[int, Ge(1)] = 1,
    merge: bool = False,
    search: Search = Search(),
    correction_steps: Annotated[int, Ge(0)] = 0,
    stages: Annotated[int, Ge(0)] = 0,
    losses: StateLosses = StateLosses(task=0.0, logit=1.0, hidden=None, direction="forward", temperature=1.0),
    cache: Annotated[int, Ge(0)] = 0,
    training: Training = Training(steps=1000, batch=16, lr=1e-3, min_lr=1e-5, warmup=0.05),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Rank every axis by activations, pick the best of a few shapes by short distillation, distil the winner.

    Per budget:

    1. teacher correction (practice report): fine-tune the original on `data` first, if `correction_steps`;
    2. importance in one forward pass: F_head, F_neuron and F_emb (section 2.2), aggregated over sequence, then batch;
       channel scores are summed over all norms, so that one order serves the whole residual stream;
    3. depth: perplexity without a block of layers, or block influence 1 - E[cos(X_i, X_i+n)];
    4. shapes within `tolerance` below the budget are enumerated; the `candidates` of the lowest loss, estimated by
       cutting each axis alone, the best of every depth first, are cut, distilled for `short_steps` and ranked;
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
        shape: sizes in place of the search's own, axes not named stay whole: exact ones (layers=4,neurons=512), which
            are refused above the budget; or several (neurons=512+768) and ranges (layers=3..6), of which what lies
            within `tolerance` below the budget is searched.
        ranking: how units, layers and candidates are ranked.
        rounds: rounds of score and cut on the way to the shape.
        merge: head residual merging: heads that stay take over the ones that go (section 2.2).
        search: how the shape is found.
        correction_steps: steps of teacher correction, at a fifth of `lr`.
        stages: prune-distil stages of `steps` each; 0 picks one per halving of the budget's measure, as the paper does.
            At equal tokens one stage of twice the steps was better here (to a quarter: 4.641 against 4.712 nats, row
            minitron/stages of docs/log/claims-0.1.md): give stages=1 and all the steps where they are counted.
        losses: their weights and kinds.
        steps: distillation steps per stage.
        train_batch: sequences per distillation step.
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine.
        warmup: share of steps in warm-up.
        cache: tokens per position kept of the teacher's predictions: asked for once, on disk, for all candidates and
            stages (forward KL only, no hidden states); 0 asks the teacher at every step.
        dry_run: stop after the cut of the candidate that is best before any training; nothing is trained.

    In a mixture of experts, layers, heads and channels shrink; experts stay whole, and so do layers without.

    Departures: shapes lie within `tolerance` below the budget, not on both sides of it; which of them are tried is
    estimated, where the paper's spaces are small enough to try all, and the official library takes the largest;
    neurons and heads are read after the gate, as the official library does; a removed channel's norms are corrected
    exactly, which the paper does not mention; head merging is off by default, since it loses in the claim that
    measures it; small models want larger learning rates than the paper's 1e-4 to 2e-4; the teacher is corrected
    before it teaches, not meanwhile, which the report finds on par.
    """
    distillation.check_recovery(subject, data, losses, None if search.short_steps else training)
    check(subject, budgets, axes, losses, cache=cache, correction_steps=correction_steps)
    whole = subject.units(batch=batch, length=length).cost()
    limits = {budget: budget.absolute(whole) for budget in budgets}
    many = {budget: stages or count_halvings(limits[budget], whole) for budget in budgets}
    given = shapes.parse(shape, subject) if shape else {}
    price = partial(shapes.cost, subject.units(batch=batch, length=length))
    ends = {b: combine(given, price, limits[b], tolerance=search.tolerance) for b in budgets} if given else {}

    def find_shapes(student: Transformer, budget: Budget, stage: int, start: Mapping[str, int] | None = None) -> Shapes:
        share, now = stage / many[budget], start or shapes.sizes(student)
        if given:
            there = [end for end in ends[budget] if all(end[axis] <= now[axis] for axis in end)]
            between = partial(allocate.between, shapes.sizes(subject), share=share, multiples=shapes.steps(subject))
            return [dict(sizes) for sizes in dict.fromkeys(tuple(between(end).items()) for end in there)]
        goal = {m: whole[m] * (limit / whole[m]) ** share for m, limit in limits[budget].items()}
        price = shapes.pricing(student, batch=batch, length=length)
        # Once a stage has trained, its work is not lost for a narrow miss.
        choose = under if stage == many[budget] and (start or stage == 1) else nearest_under
        return choose(shapes.grid(student, axes, start=start), price, goal, tolerance=search.tolerance)

    for budget in () if given else budgets:
        shapes.require_least(subject, axes, price, limits[budget], many[budget])
    first_shapes = {budget: find_shapes(subject, budget, 1) for budget in budgets}  # before anything is trained
    fewest = min((given or shapes.grid(subject, axes))["layers"])
    able = shapes.removable_layers(subject.units()) if fewest < len(subject.layers()) else []
    if ranking.depth == "influence" and (why := shapes.explain_states(subject, able, blocks=ranking.contiguous)):
        raise InputError(f"depth=influence compares states before and after layers side by side, and {why}")
    if len(able) in (0, len(subject.layers())):  # of several kinds it is not known which ones a later stage drops
        for budget, found in first_shapes.items():
            require_way(found, partial(find_shapes, subject, budget), many[budget])
    train, held = data.split(seed=seed)
    train_batch = training.whole("batch")
    make = partial(distillation.make_batches, subject, length=length)
    stream = make(train, batch=train_batch, seed=seed + 1)
    samples = calibration.make_feed(subject, train, length=length, seed=seed).sequences(ranking.calibration)
    # Embeddings and states may change their width: a projection lifts them in training, their relations judge them.
    lifted = subject.output != "logits" and (
        "channels" in axes or any("channels" in part for part in parse_list(shape))
    )
    # Of fewer than three texts there are none.
    judged = make(held, batch=max(3 if lifted else 1, min(16, train_batch)), seed=seed).take(16)
    fit = partial(distillation.train_student, length=length, seed=seed)

    teacher, beside = subject, list[Mapping[str, float]]()
    if correction_steps and not dry_run:
        teacher = subject.cut(Selection({}))[0]
        correct = objectives.distil(teacher.forward, None, output=teacher.output, task=1.0, fused=True)
        slow = replace(distillation.shorten(training, correction_steps, slower=5), patience=None)
        beside.append(spent(fit(teacher, None, stream, correct, slow, checkpoint=run.folder("teacher"))))
    ruling = None if ranking.criterion == "loss" else plugins.function(ranking.criterion)

    def judge(student: Transformer) -> float:
        if ruling is not None:
            return float(ruling(student, judged))
        return distillation.held_out(student, teacher, judged, relational=lifted)

    def distil(student: Transformer, name: str, steps: int) -> Recovery:
        deep = 4 * len(student.layers()) <= 3 * len(teacher.layers()) if losses.hidden is None else losses.hidden
        pairs = objectives.match_states(len(student.layers()), len(teacher.layers())) if deep and not cache else []
        ours, theirs = student.hidden_size, teacher.hidden_size
        torch.manual_seed(seed)
        projection = nn.Linear(ours, theirs, bias=False) if (pairs or lifted) and ours != theirs else None
        objective = objectives.distil(
            student.forward, None if cache else teacher.forward, output=teacher.output, task=losses.task,
            logit=losses.logit, temperature=losses.temperature, hidden=pairs,
            direction=distillation.choose_direction(teacher, losses.direction),
            projection=projection, fused=True,
        )  # fmt: skip
        batches = stream if not cache else distillation.remember_teacher(
            run, teacher, data, stream, steps, training, k=cache, length=length, seed=seed + 1,
            temperature=losses.temperature,
        )  # fmt: skip
        return fit(
            student, None if cache else teacher, batches, objective, distillation.shorten(training, steps),
            extra=[projection] if projection is not None else [], checkpoint=run.folder(name),
            evaluate=partial(judge, student),
        )  # fmt: skip

    rank = partial(scores, how=ranking.score, batch=ranking.over_batch, sequence=ranking.over_sequence, seed=seed)
    first = run.tensors("scores", lambda: rank(teacher, samples))
    layers = partial(kept_layers, depth=ranking.depth, contiguous=ranking.contiguous, judge=judge, judged=judged)
    to_shape = partial(shrink, rank=partial(rank, batches=samples), rounds=rounds, merge=merge)
    of_teacher = lru_cache(16)(layers)
    for budget in budgets:
        student, cut, counted, recoveries = teacher, shapes.receipt(subject, teacher), list(beside), list[Recovery]()
        for stage in range(1, many[budget] + 1):
            name = f"{budget}-{stage}"
            worths = first if stage == 1 else run.tensors(f"scores-{name}", partial(rank, student, samples))
            tries = first_shapes[budget] if stage == 1 else find_shapes(student, budget, stage)
            trim = partial(to_shape, student, scores=worths, keeps=of_teacher if stage == 1 else lru_cache(16)(layers))
            if len(tries) > search.candidates:
                alone = run.json(f"axes-{name}", partial(lose_alone, tries, trim, judge))
                tries = likeliest(tries, alone, search.candidates, each="layers")
            short = 0 if dry_run else search.short_steps
            compare = partial(compare_shapes, tries, trim, judge, distil, f"candidate-{name}", short)
            tried = run.json(f"shape-{name}", compare)
            student, counted = trim(tried["best"]), counted + [row["spent"] for row in tried["candidates"]]
            cut = shapes.receipt(subject, student)
            if training.steps and not dry_run:
                recoveries.append(distil(student, f"train-{name}", training.steps))
        recovery = add_up(recoveries, counted) if recoveries else None
        predicted = student.units(batch=batch, length=length).cost()
        notes = shapes.describe_slack(predicted, limits[budget], search.tolerance)
        yield Result(str(budget), student, cut, predicted, recovery, notes)


def check(
    subject: Transformer, budgets: Sequence[Budget], axes: Sequence[str], losses: StateLosses,
    *, cache: int, correction_steps: int,
) -> None:  # fmt: skip
    """Raise an error for budgets that no shape meets, and for options that can't go together or not with this model."""
    for budget in budgets:
        if budget.pattern is not None or not budget.limits:
            raise BudgetError(
                f"minitron can't meet {budget.brief()}: it makes smaller shapes, such as params=50% or memory=2GB"
            )
    known = ("layers", *WIDTHS)
    if not axes or not set(axes) <= set(known):
        raise InputError(f"axes={','.join(axes)}: give one or more of {', '.join(known)}")
    distillation.choose_direction(subject, losses.direction)
    if correction_steps and not subject.causal:
        raise InputError("correction_steps trains on the next token: leave it out, this is no language model")
    if cache and (not subject.causal or losses.hidden or losses.direction != "forward"):
        raise InputError("cache keeps a language model's likeliest tokens: it serves forward KL without hidden states")


# -------------------------------------------------------------------------------------------------------- candidates


def compare_shapes(
    tries: Shapes,
    trim: Trim,
    judge: Callable[[Transformer], float],
    distil: Callable[[Transformer, str, int], Recovery],
    name: str,
    steps: int,
) -> dict[str, object]:
    """Every shape cut and judged, before and after a short distillation (none for a single shape), and the best."""
    rows: list[dict[str, Any]] = []
    for number, sizes in enumerate(tries):
        trial = trim(sizes)
        zero_shot = judge(trial)
        short = distil(trial, f"{name}-{number}", steps) if steps and len(tries) > 1 else Recovery()
        rows.append({"shape": sizes, "zero_shot": zero_shot, "short": judge(trial), "spent": spent(short)})
    return {"candidates": rows, "best": rows[int(np.argmin([row["short"] for row in rows]))]["shape"]}


# ------------------------------------------------------------------------------------------------- scores and cutting


def scores(
    subject: Transformer,
    batches: Items,
    *,
    how: str,
    seed: int,
    batch: Reducer = "l2",
    sequence: Reducer = "mean",
) -> dict[str, Tensor]:
    """Site -> [count]: heads, neurons and channels; the channels' score is summed over all norms."""
    if how == "random":
        return random.scores(subject.units(*width_axes(subject)), seed=seed)
    consumers = {site: at for site, at in subject.consumers().items() if not site.endswith("kv_groups")}
    if how == "magnitude":
        table = subject.model.get_input_embeddings().weight
        return magnitude.groups(subject.model, consumers) | {"channels": magnitude.norm(table)}
    if how == "activation":
        taps = activation.inputs(consumers) | {norm: activation.Tap(norm, "output") for norm in subject.norms()}
        by_site = activation.collect(subject.forward, subject.model, batches, taps, batch=batch, sequence=sequence)
        channels = activation.sum_scores({norm: by_site.pop(norm) for norm in subject.norms()})
        return by_site | {"channels": channels}
    if ":" not in how:
        raise InputError(f"score {how!r} is not one of activation, magnitude, random, or file.py:function")
    own = {site: torch.as_tensor(score) for site, score in plugins.function(how)(subject, batches).items()}
    sites = {name: site for name, site in subject.units().sites.items() if site.kind in (*WIDTHS, "kv_groups")}
    for site, score in own.items():
        if site not in sites or score.shape != (sites[site].count,):
            known = f"it has {sites[site].count} units" if site in sites else f"the sites are {', '.join(sites)}"
            raise InputError(f"{how} scores {site!r} with shape {list(score.shape)}: {known}")
    if {*consumers, "channels"} <= own.keys():
        return own
    return scores(subject, batches, how="activation", seed=seed, batch=batch, sequence=sequence) | own


def width_axes(subject: Transformer) -> list[str]:
    """The axes of `WIDTHS` that this model has and that can be cut; with experts, neurons are none of them."""
    return [axis for axis in WIDTHS if axis in shapes.sizes(subject) and axis not in subject.layout.whole]


def shrink(
    student: Transformer,
    sizes: Mapping[str, int],
    *,
    scores: Scores,
    rank: Callable[[Transformer], Scores],
    keeps: Callable[[Transformer, int], NDArray[np.bool_]],
    rounds: int,
    merge: bool,
) -> Transformer:
    """`student` cut to `sizes` in `rounds` rounds of score and cut; `keeps` says which layers stay."""
    start, steps = shapes.sizes(student), shapes.steps(student)
    for turn in range(1, rounds + 1):
        scores = scores if turn == 1 else rank(student)
        now = allocate.between(start, sizes, turn / rounds, steps)
        stays = keeps(student, now["layers"])
        if merge and now.get("heads", 0) < shapes.sizes(student).get("heads", 0):
            student = merge_heads(student, scores, now["heads"])
        shrunk = {axis: now[axis] for axis in start if axis != "layers" and now[axis] < shapes.sizes(student)[axis]}
        keep = by_counts(student.units(*shrunk), scores, shrunk).keep if shrunk else {}
        student, _ = student.cut(Selection({**keep, "layers": stays}))
    return student


def merge_heads(student: Transformer, scores: Scores, heads: int) -> Transformer:
    """A copy whose heads that stay took over the residual of those that will go (section 2.2)."""
    merged, units = student.copy(), student.units("heads")
    keep = by_counts(units, scores, {"heads": heads}).keep
    for layer in [n for n in range(len(student.layers())) if f"layers.{n}.heads" in keep]:  # others have a mixer, say
        site = f"layers.{layer}.heads"
        group = None if units[site].group is None else torch.as_tensor(units[site].group)
        worth, stays = torch.as_tensor(scores[site]), torch.as_tensor(keep[site])
        for name, dim, start, length in merged.head_slices(layer):
            weight = merged.model.get_parameter(name).data.narrow(dim, start, length)
            weight.copy_(compensate.merge_heads(weight, worth, stays, dim=dim, group=group))
    return merged


def kept_layers(
    student: Transformer,
    count: int,
    depth: str,
    contiguous: bool,
    judge: Callable[[Transformer], float],
    judged: Items,
) -> NDArray[np.bool_]:
    """[layers] booleans: which `count` layers stay, by what the model loses without the others."""
    total = len(student.layers())
    if count == total:
        return np.ones(total, dtype=bool)
    span = total - count if contiguous else 1
    removable = shapes.removable_layers(student.units())
    blocks = [removable[first : first + span] for first in range(len(removable) - span + 1)]

    def without(gone: Sequence[int]) -> NDArray[np.bool_]:
        return ~np.isin(np.arange(total), gone)

    if depth == "influence":
        states = partial(student.forward, hidden=True)
        worth = similarity.collect(lambda item: states(item).hidden, judged, span=span).numpy()
        worth = worth[[block[0] for block in blocks]]
    else:
        rest = (Selection({"layers": without(block)}) for block in blocks)
        worth = ablation.without(lambda selection: judge(student.cut(selection)[0]), rest).numpy()
    if contiguous:
        return without(blocks[int(np.argmin(worth))])
    return without([blocks[int(at)][0] for at in np.argsort(worth, kind="stable")[: total - count]])
