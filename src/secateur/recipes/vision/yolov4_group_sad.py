"""Group channel pruning and spatial attention distillation of detectors: one threshold per group of layers.

Applied Intelligence 2022 (arXiv 2306.01526), with its official code for YOLOv4; the attention is that of Zagoruyko and
Komodakis, ICLR 2017 (arXiv 1612.03928).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from annotated_types import Ge, Gt, Len, Lt
from torch import Tensor

from secateur._utils import devices, rundir
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.methods.cutting import cut_with_retries
from secateur.methods.detector_classes import open_with_boxes
from secateur.methods.detector_stages import Answers, DetectorStages
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import look_at
from secateur.recover.sparsity import slimming
from secateur.recover.training import detecting, records
from secateur.recover.training.compose import Objective
from secateur.score import scales
from secateur.select import thresholds
from secateur.select.limits import limits_of_cut
from secateur.subjects.network import detectors, stages
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Cut, Result, Selection, Training, write_enough

CARD = {
    "title": "Group channel pruning and spatial attention distilling for object detection",
    "paper": "https://arxiv.org/abs/2306.01526",
    "cuts": "channels of a detector, by a threshold on batch-norm scales for each group of layers",
    "recovers": "constants of what went folded into its readers, fine-tuning, then spatial attention distillation",
    "extra": "detect",
    "family": "vision",
}

GRID = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9, 0.97)
"""Shares of a group's channels that the sensitivity scan takes away."""

ALPHA = 0.1
"""How large distilling is at its first step, as a share of L_det: as large as L_det, it did harm here."""

Mask = Callable[[Mapping[str, float]], dict[str, np.ndarray]]
"""Group -> share to take away; gives site -> what stays."""

Shares = Callable[[float], dict[str, float]]
"""A level from 0 (nothing goes) to 1 (as much as may); gives group -> share to take away."""

Judge = Callable[[Traced, Mask, Sequence[str]], Shares]
"""(detector, masks, groups) -> how the shares of groups grow together."""


@dataclass(frozen=True, slots=True)
class TwoRates:
    """How strongly sparse training pulls scales towards zero; as in the official code."""

    rate: float = 1e-3
    """s."""
    switch: float = 0.4
    """Share of sparse training after which there are two rates."""
    quantile: Annotated[float, Gt(0), Lt(1)] = 0.65
    """p, where kept scales are told from others."""
    kept_rate: float = 0.01
    """Share of s that kept scales still feel."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which layers stand in a group, and how much of each group goes."""

    groups: Sequence[str] = ()
    """Modules with which a new group of layers begins, in place of step 3."""
    fractions: Sequence[float] = ()
    """Shares to take from each group, in the order the groups run; their proportions count, for they are scaled to the
    budget. By default a scan finds them: the loss on some batches when a share of one group goes."""
    judged: Annotated[int, Ge(1)] = 4
    """Batches that the scan looks at."""


@dataclass(frozen=True, slots=True)
class Masking:
    """What of a layer stays whatever its scales."""

    layer_keep: float = 0.12
    """Share of a layer's channels that stays at least."""
    least: int = 16
    """Channels that stay at least where that share is none."""
    merge: Literal["majority", "union", "smallest"] = "majority"
    """How masks are merged."""
    multiple: int = 1
    """Kept channels are multiples of this; 8 runs well on most hardware."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Where the student's attention is compared with its teacher's."""

    betas: Annotated[Sequence[float], Len(3, 3)] = (1e6, 1e3, 1e4)
    """Of the backbone's groups, of the deepest scale, and of the neck; for images of 416 x 416, as published."""
    layers: Sequence[str] = ()
    """Modules whose maps are distilled; by default the ends of the backbone's groups and the neck's maps."""
    foreground: bool = False
    """Look only at cells near boxes."""


def yolov4_group_sad(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: rundir.Run,
    *,
    seed: int = 0,
    sparse_epochs: float = 200.0,
    rates: TwoRates = TwoRates(),
    grouping: Grouping = Grouping(),
    feeders: bool = False,
    masking: Masking = Masking(),
    offsets: bool = True,
    finetune_epochs: float = 30.0,
    distil_epochs: float = 30.0,
    attention: Attention = Attention(),
    alpha: float | None = None,
    answers: Answers = Answers(),
    temperature: Annotated[float, Gt(0)] = 3.0,
    training: Training = Training(batch=16, lr=1e-3, weight_decay=5e-4),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Sparse training at a rate of two levels, a threshold per group, a bias-aware cut, attention distilling.

    1. The detector as it is given, before any sparse training, is the teacher.
    2. Sparse training of a copy: dL/dgamma_c += s_c sign(gamma_c); s_c = s for the first 0.4 of it; then, at every
       iteration, 0.01 s for scales at or above the 0.65 quantile of all, s for the others.
    3. Layers in groups: one per scale of the backbone, one for the neck's way up, one for its way down with the heads.
    4. theta_g = sorted |gamma| of the group at its fraction; a layer keeps a floor of its best.
    5. Layers that a shortcut joins merge their masks into one: by majority, union, or the smallest.
    6. The cut folds the constants act(beta) of what goes into the layers that read them.
    7. Fine-tuning without the penalty.
    8. Distilling: L_det + alpha sum_g beta_g sum_l L_l, L_l the mean over places of (Q_t - Q_s)^2, Q the mean square
       over channels, of length 1 per image: no widths need to agree, so nothing is trained along.

    Args:
        subject: a trained detector: torchvision's, Ultralytics' (AGPL-3.0), or a module with loss, detect, features.
        data: images and boxes like those the detector was trained on.
        budgets: one student for each.
        run: where checkpoints, the scan, kept indices and the weight of distilling go.
        batch: images per step, and of the timed environment.
        seed: of batches and training.
        sparse_epochs: of sparse training; 0 ranks the detector's own scales.
        rates, grouping, masking, attention, answers: see these classes.
        feeders: cut also the layers just before an SPP pool or an upsampling, which the paper leaves whole.
        offsets: fold constants in step 6; otherwise what goes is silent.
        finetune_epochs: without distilling, after the cut.
        distil_epochs: with it, after those.
        lr: peak learning rate of all trainings, each with a cosine.
        weight_decay: of AdamW.
        alpha: weight of distilling; by default what makes it a tenth of L_det at its first step, 1 is as published.
        temperature: of the teacher's classes.
        dry_run: stop after the cut; nothing is trained.

    Departures: the paper's body could not be read, so formulas are those of the official code, without its defects (a
    group collector with one running index for three groups; a variable rate on one GPU only). The paper chooses
    fractions by hand. A share of channels is exactly what goes (the code takes one more). beta is scaled by the images'
    area over 416^2, since it undoes a mean over places; and the whole is a tenth of L_det at first: as large as L_det,
    it did harm here. A shared mask is brought up to the floor by the mean scale. Layers before a split of channels are
    cut as well, each part of the split by itself; the paper leaves them whole.
    Positive places of the output option are those where the teacher is sure. AdamW in place of SGD.
    """
    subject, data = open_with_boxes(subject, data)
    image = data.inputs[:1]
    spared = set() if feeders else stages.feeders(subject.model, image)
    order = stages.group_norms(stages.places(subject.model, image), grouping.groups)
    floors: dict[str, Any] = {"share": masking.layer_keep, "least": masking.least, "multiple": masking.multiple}
    mask = partial(thresholds.by_group, policy=masking.merge, **floors)
    floor = partial(thresholds.floor, **floors)
    proportions = partial(proportional, grouping.fractions)
    check(subject, budgets, spared, order, grouping.fractions, masking.multiple, floor)
    if attention.layers:
        look_at(subject.model, attention.layers, image, maps.flat)
    if answers.outputs:
        detectors.check_predictions(subject.model, image)
    if dry_run:
        sparse_epochs = finetune_epochs = distil_epochs = 0.0
    feed = examples.batches(data, batch=training.whole("batch"), seed=seed)
    training_stages = DetectorStages(run, feed, training.default(precision="fp32", clip=math.inf), seed)
    sparse = subject.copy()
    if not dry_run:  # what can't be cut after all shows before anything is trained
        for budget in budgets:
            with suppress(InfeasibleError):  # scales that no training has told apart yet part nothing
                cut_groups(sparse, spared, order, mask, proportions, budget, offsets, seed)
    pressed = training_stages.sparsify(sparse, pressure(sparse, spared, rates), sparse_epochs)
    judge = proportions if grouping.fractions else partial(tolerant, run, feed.take(grouping.judged))
    for budget in budgets:
        student, cut, selection, shares = cut_groups(sparse, spared, order, mask, judge, budget, offsets, seed)
        run.json(f"keep-{budget}", partial(audit, selection, shares))
        spent = {measure: cut.after.get(measure, value) for measure, value in selection.spent.items()}
        tuned, taught = training_stages.finetune(student, finetune_epochs, budget), None
        if distil_epochs:
            taps, weights = attention_layers(subject, image, attention)
            taught = training_stages.distil(
                student, subject, taps, spatial_attention(weights, attention.foreground), distil_epochs, budget,
                weight=alpha, share=ALPHA, answers=answers, temperature=temperature,
            )  # fmt: skip
        notes = tuple(f"{group}: {share:.0%} to go" for group, share in shares.items())
        yield Result(str(budget), student, cut, spent, records.together(pressed, tuned, taught), notes)
        del student  # or it would be held beside the next one


def check(
    subject: Traced,
    budgets: Sequence[Budget],
    spared: set[str],
    groups: Mapping[str, str],
    fractions: Sequence[float],
    multiple: int,
    floor: Callable[[int], int],
) -> None:
    """Refuse before anything is trained what would be refused after it. floor: channels of a layer -> fewest kept."""
    members, units = free(subject, spared), subject.units(multiple=multiple)
    place = sites(members, groups)
    names = list(dict.fromkeys(place.values()))
    most = proportional(fractions, subject, lambda _: {}, names)(1.0)
    # Whatever training makes of the scales, no more than this can go.
    shrinking = [units[site] for site in members if most[place[site]]]
    smallest = units.cost({site.name: np.arange(site.count) < floor(site.count) for site in shrinking})
    for budget in budgets:
        limits_of_cut(budget, units.cost(), smallest, "lower layer_keep or least, or allow feeders")


def free(subject: Traced, spared: set[str]) -> dict[str, dict[str, Tensor]]:
    """Site -> norm -> |gamma| of each unit, for the sites that may be cut."""
    found = scales.members(subject.model, subject.slices())
    result = {site: row for site, row in found.items() if spared.isdisjoint(row)}
    if not result:
        raise UnsupportedError(
            "no layer with a batch norm may be cut: build the detector with batch norms that are trained"
        )
    return result


def sites(members: Mapping[str, Mapping[str, Tensor]], groups: Mapping[str, str]) -> dict[str, str]:
    """Site -> group, in the order in which groups run: that of the first of its norms to run."""
    order = list(groups)
    first = {
        site: min((norm for norm in row if norm in groups), key=order.index, default="")
        for site, row in members.items()
    }
    ordered = sorted(members, key=lambda site: order.index(first[site]) if first[site] else len(order))
    return {site: groups.get(first[site], "elsewhere") for site in ordered}


def pressure(subject: Traced, spared: set[str], two: TwoRates) -> Objective:
    """Step 2: the detector's loss, and the penalty at two rates on the scales that may go."""
    allowed = set(free(subject, spared))
    slices = {site: parts for site, parts in subject.slices().items() if site in allowed}
    pushed = scales.prunable(subject.model, slices)

    def rates(done: float) -> list[Tensor]:
        picked = [gamma.detach()[inside.to(gamma.device)] for gamma, inside in pushed]
        levels = slimming.variable(
            picked, done, initial=two.rate, quantile=two.quantile, switch=two.switch, kept=two.kept_rate
        )
        return [
            torch.zeros_like(gamma).masked_scatter(inside.to(gamma.device), level)
            for (gamma, inside), level in zip(pushed, levels, strict=True)
        ]

    return detecting.press(cast(Detector, subject.model).loss, [gamma for gamma, _ in pushed], rates)


@torch.no_grad()
def scan(
    subject: Traced, mask: Mask, names: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Group -> the loss at each share of `GRID`, when the scales of that share of the group alone are 0."""
    probe, batches = subject.copy(), devices.move(batches, subject.model)
    slices = probe.slices()
    norms = {id(m.weight) for m in probe.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    probe.model.eval()

    def loss() -> float:
        return float(torch.stack([cast(Detector, probe.model).loss(batch) for batch in batches]).mean())

    whole, result = loss(), {}
    for name in names:
        result[name] = [whole]
        for share in GRID[1:]:
            keep = mask({other: share if other == name else 0.0 for other in names})
            touched = []
            for site, stays in keep.items():
                for weight, _, unit in slices[site]:
                    if id(weight) in norms:
                        gone = (unit >= 0) & ~torch.from_numpy(stays)[unit.clamp(min=0)]
                        touched.append((weight, weight.clone()))
                        weight[gone.to(weight.device)] = 0.0
            result[name].append(loss())
            for weight, before in reversed(touched):
                weight.copy_(before)
    return result


def tolerant(
    run: rundir.Run, batches: Sequence[Mapping[str, Any]], subject: Traced, mask: Mask, names: Sequence[str]
) -> Shares:
    """Step 3's shares by a scan: see `scan` and `tolerance`."""
    rises: dict[str, list[float]] = run.json("scan", lambda: scan(subject, mask, names, batches))
    return tolerance(rises)


def proportional(fractions: Sequence[float], subject: Traced, mask: Mask, names: Sequence[str]) -> Shares:
    """Step 3's shares in the proportions of `fractions`, one for each of `names`, or even ones where there are none.

    The largest grows up to the last of `GRID`.
    """
    fractions = fractions or [0.5] * len(names)
    if len(fractions) != len(names):
        raise InputError(f"{len(fractions)} fractions for {len(names)} groups: give one for each of {', '.join(names)}")
    if not all(0 <= one < 1 for one in fractions) or not any(fractions):
        raise InputError(f"fractions {list(fractions)}: give shares from 0 to below 1, not all of them 0")
    most = max(fractions)
    return lambda level: {name: min(GRID[-1], one / most * level) for name, one in zip(names, fractions, strict=True)}


def tolerance(rises: Mapping[str, Sequence[float]]) -> Shares:
    """From a level 0 to 1 to shares: the largest of each group whose loss has not risen by more than that level's."""
    curves = {name: np.maximum.accumulate(np.asarray(row) - row[0]).clip(min=0) for name, row in rises.items()}
    known = np.unique(np.concatenate(list(curves.values())))

    def shares(level: float) -> dict[str, float]:
        limit = float(np.interp(level, np.linspace(0, 1, len(known)), known))
        return {
            name: GRID[-1]
            if limit >= curve[-1]
            else float(np.interp(limit, curve + 1e-9 * np.arange(len(curve)), GRID))
            for name, curve in curves.items()
        }

    return shares


def cut_groups(
    subject: Traced,
    spared: set[str],
    groups: Mapping[str, str],
    masks: Callable[..., dict[str, np.ndarray]],
    judge: Judge,
    budget: Budget,
    offsets: bool,
    seed: int,
) -> tuple[Traced, Cut, Selection, dict[str, float]]:
    """Steps 3 to 6: the smaller detector, its receipt, what stays, and the share that goes of each group.

    Folded constants may add a few biases, for which room is made once they are known.
    """
    room, taken = dict[str, float](), dict[str, float]()

    def select() -> Selection:
        members, units = free(subject, spared), subject.units()
        place = sites(members, groups)
        mask = partial(masks, {site: list(row.values()) for site, row in members.items()}, place)
        shares = judge(subject, mask, list(dict.fromkeys(place.values())))
        limits = budget.absolute(units.cost())
        level = lowest(lambda level: units.cost(mask(shares(level))), budget, limits, room)
        taken.clear()
        taken.update(shares(level))
        keep = mask(taken)
        return Selection(keep, units.cost(keep), budget)

    while True:
        selection, student, cut = cut_with_retries(subject, select, offsets=offsets, seed=seed)
        limits = budget.absolute(subject.units().cost())
        over = {n: cut.after[n] - selection.spent[n] for n, most in limits.items() if cut.after.get(n, 0.0) > most}
        if not over:
            return student, cut, selection, dict(taken)
        room |= over


def lowest(
    cost: Callable[[float], Mapping[str, float]],
    budget: Budget,
    limits: Mapping[str, float],
    room: Mapping[str, float],
) -> float:
    """The lowest level, 0 to 1, whose cost and the `room` beside it meet the limits; `InfeasibleError` if none does."""

    def excess(level: float) -> list[tuple[str, float]]:
        found = cost(level)
        return [(name, found[name]) for name, limit in limits.items() if found[name] + room.get(name, 0.0) > limit]

    for name, least in excess(1.0):
        raise InfeasibleError(
            f"budget {budget} can't be met: with the floors of layers, {name} can go down to "
            f"{write_enough(least)}, the limit is {limits[name]:.6g}; lower layer_keep or least, or allow feeders",
            least,
        )
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) else (low, middle)
    return high


def audit(selection: Selection, shares: Mapping[str, float]) -> dict[str, object]:
    """The share that goes of each group, and site -> indices of the units that stay."""
    keep = {site: np.flatnonzero(mask).tolist() for site, mask in selection.keep.items()}
    return {"fractions": dict(shares), "keep": keep}


def attention_layers(teacher: Traced, image: Tensor, attention: Attention) -> tuple[list[str], list[float]]:
    """Step 8: modules, unless given those at the ends of the backbone's groups and those that the heads read; betas.

    There is one beta for each map that these modules give.
    """
    order = stages.places(teacher.model, image)
    grouping = stages.group_norms(order)
    ends = {grouping[norm.name]: norm for norm in order if grouping[norm.name].startswith("stride")}
    blocks = list(dict.fromkeys(norm.block for norm in ends.values() if norm.block))
    deepest = max((norm.stride for norm in ends.values()), default=0.0)
    area = image.shape[-1] * image.shape[-2] / 416**2
    taps = list(attention.layers) or list(dict.fromkeys([*blocks, *cast(Detector, teacher.model).taps]))
    backbone, deepest_scale, neck = attention.betas
    weights = []
    for tap in taps:
        for found in look_at(teacher.model, [tap], image, maps.flat):
            deep = image.shape[-1] / found.shape[-1] >= deepest
            weights.append(area * (deepest_scale if deep else backbone if tap in blocks else neck))
    return taps, weights


def spatial_attention(weights: Sequence[float], foreground: bool) -> detecting.Compare:
    """Step 8: ``sum_l beta_l L_l``, near boxes alone where `foreground` says so."""

    def compare(ours: list[Tensor], theirs: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
        total = ours[0].new_zeros(())
        for beta, mine, told in zip(weights, ours, theirs, strict=True):
            near = None
            if foreground:
                near = maps.box_weights(batch["targets"], told, batch["inputs"], gains=(1.0, 1.0, 1.0), background=0.0)
            total = total + beta * maps.spatial_attention(mine, told, mask=near)
        return total

    return compare
