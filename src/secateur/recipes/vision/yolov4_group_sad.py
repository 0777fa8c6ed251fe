"""Group channel pruning and spatial attention distilling: one threshold per group of a detector's layers.

Applied Intelligence 2022 (arXiv 2306.01526), with its official code for YOLOv4; the attention is that of Zagoruyko and
Komodakis, ICLR 2017 (arXiv 1612.03928).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import seen
from secateur.recover.sparsity import slimming
from secateur.recover.training import detecting, loop, records
from secateur.score import scales
from secateur.select import thresholds
from secateur.select.limits import limits_of_cut
from secateur.subjects.network import detectors, stages
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import CutError, Traced
from secateur.vocabulary import Budget, Cut, Recovery, Result, Selection

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

Mask = Callable[[Mapping[str, float]], dict[str, np.ndarray]]
"""Group -> share to take away; gives site -> what stays."""

Shares = Callable[[float], dict[str, float]]
"""A level from 0 (nothing goes) to 1 (as much as may); gives group -> share to take away."""


def yolov4_group_sad(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    batch: int = 16,
    seed: int = 0,
    sparse_epochs: float = 200.0,
    rate: float = 1e-3,
    switch: float = 0.4,
    quantile: float = 0.65,
    kept_rate: float = 0.01,
    groups: Sequence[str] = (),
    fractions: Sequence[float] = (),
    judged: int = 4,
    feeders: bool = False,
    layer_keep: float = 0.12,
    least: int = 16,
    merge: Literal["majority", "union", "smallest"] = "majority",
    multiple: int = 1,
    offsets: bool = True,
    finetune_epochs: float = 30.0,
    distil_epochs: float = 30.0,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
    betas: Sequence[float] = (1e6, 1e3, 1e4),
    alpha: float | None = None,
    layers: Sequence[str] = (),
    foreground: bool = False,
    outputs: bool = False,
    temperature: float = 3.0,
    lambdas: Sequence[float] = (0.001, 0.001),
    training: str | Sequence[str] = "",
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
        rate: s.
        switch: share of sparse training after which there are two rates.
        quantile: p, where kept scales are told from others.
        kept_rate: share of s that kept scales still feel.
        groups: modules with which a new group of layers begins, in place of step 3.
        fractions: shares to take from each group, in the order the groups run; their proportions count, for they are
            scaled to the budget. By default a scan finds them: the loss on some batches when a share of one group goes.
        judged: batches that the scan looks at.
        feeders: cut also the layers just before an SPP pool or an upsampling, which the paper leaves whole.
        layer_keep: share of a layer's channels that stays at least.
        least: channels that stay at least where that share is none.
        merge: how masks are merged.
        multiple: kept channels are multiples of this; 8 runs well on most hardware.
        offsets: fold constants in step 6; otherwise what goes is silent.
        finetune_epochs: without distilling, after the cut.
        distil_epochs: with it, after those.
        lr: peak learning rate of all trainings, each with a cosine.
        weight_decay: of AdamW.
        betas: of the backbone's groups, of the deepest scale, and of the neck; for images of 416 x 416.
        alpha: weight of it all; by default what makes it a tenth of L_det at its first step, 1 is as published.
        layers: modules whose maps are distilled; by default the ends of the backbone's groups and the neck's maps.
        foreground: look only at cells near boxes.
        outputs: learn from the teacher's classes (soft, at all anchors) and boxes (where it is sure) too; of two stages
            at the regions that the teacher proposes. A module of your own needs predictions(images) -> (boxes
            [B, N, 4], logits of classes [B, N, K]).
        temperature: of those classes.
        lambdas: weights of those classes and boxes.
        training: more settings of the training loop, such as accumulate=4,precision=bf16.
        dry_run: stop after the cut; nothing is trained.

    Departures: the paper's body could not be read, so formulas are those of the official code, without its defects (a
    group collector with one running index for three groups; a variable rate on one GPU only). The paper chooses
    fractions by hand. A share of channels is exactly what goes (the code takes one more). beta is scaled by the images'
    area over 416^2, since it undoes a mean over places; and the whole is a tenth of L_det at first: as large as L_det,
    it did harm here. A shared mask is brought up to the floor by the mean scale.
    Positive places of the output option are those where the teacher is sure. AdamW in place of SGD.
    """
    subject, further = detectors.opened(subject), loop.options(training)
    image = data.inputs[:1]
    spared = set() if feeders else stages.feeders(subject.model, image)
    order = stages.grouped(stages.places(subject.model, image), groups)
    mask = partial(thresholds.grouped, share=layer_keep, least=least, policy=merge, multiple=multiple)
    floor = partial(thresholds.floor, share=layer_keep, least=least, multiple=multiple)
    check(subject, budgets, spared, order, fractions, merge, multiple, floor, layers, betas, image)
    if outputs:
        detectors.learnable(subject.model, image, lambdas, temperature=temperature)
    feed = examples.batches(data, batch=batch, seed=seed)
    per_epoch = len(feed) / further.get("accumulate", 1)
    train: Callable[..., Recovery] = partial(
        loop.train, lr=lr, weight_decay=weight_decay, seed=seed, count=examples.count,
        **({"precision": "fp32", "clip": None} | further),
    )  # fmt: skip
    sparse, pressed = subject.copy(), None
    if not dry_run:  # what can't be cut after all shows before anything is trained
        for budget in budgets:
            with suppress(InfeasibleError):  # scales that no training has told apart yet part nothing
                settled(sparse, spared, order, mask, partial(given, fractions), budget, offsets, seed)
    if sparse_epochs and not dry_run:
        count = detecting.steps(per_epoch, sparse_epochs)
        pressed = train(
            sparse.model, slimming.Numbered(feed, count * further.get("accumulate", 1)),
            pressure(sparse, spared, rate, quantile, switch, kept_rate), steps=count,
            checkpoint=run.folder("sparse"), title="sparse training",
        )  # fmt: skip
    judge = partial(rises, run, feed.take(judged)) if not fractions else partial(given, fractions)
    for budget in budgets:
        student, cut, selection, shares = settled(sparse, spared, order, mask, judge, budget, offsets, seed)
        run.json(f"keep-{budget}", partial(audit, selection, shares))
        spent = {measure: cut.after.get(measure, value) for measure, value in selection.spent.items()}
        loss, tuned, taught = cast(Detector, student.model).loss, None, None
        if finetune_epochs and not dry_run:
            tuned = train(
                student.model, feed, detecting.press(loss), steps=detecting.steps(per_epoch, finetune_epochs),
                checkpoint=run.folder(f"finetune-{budget}"), title="fine-tuning",
            )  # fmt: skip
        if distil_epochs and not dry_run:
            make = attention(student, subject, image, layers, betas, foreground)
            asked = partial(detecting.ratio, make(1.0), feed[0], student.model)
            weight = 0.1 * run.json(f"alpha-{budget}", asked) if alpha is None else alpha
            objective = make(weight)
            if outputs:
                objective = detecting.answering(
                    objective, student.model, subject.model, temperature=temperature, weights=lambdas
                )
            taught = train(
                student.model, feed, objective, steps=detecting.steps(per_epoch, distil_epochs), frozen=[subject.model],
                checkpoint=run.folder(f"distil-{budget}"), title="distillation",
            )  # fmt: skip
        notes = [f"{group}: {share:.0%} to go" for group, share in shares.items()]
        yield Result(str(budget), student, cut, spent, records.together(pressed, tuned, taught), tuple(notes))


def check(
    subject: Traced, budgets: Sequence[Budget], spared: set[str], groups: Mapping[str, str],
    fractions: Sequence[float], merge: thresholds.Policy, multiple: int, floor: Callable[[int], int],
    layers: Sequence[str], betas: Sequence[float], image: Tensor,
) -> None:  # fmt: skip
    """Refuse before anything is trained what would be refused after it. floor: channels of a layer -> fewest kept."""
    members, units = free(subject, spared), subject.units(multiple=multiple)
    place = sites(members, groups)
    names = list(dict.fromkeys(place.values()))
    most = given(fractions, subject, lambda _: {}, names)(1.0)
    thresholds.merge([np.ones(1, bool)], merge)
    # Whatever training makes of the scales, no more than this can go.
    shrinking = [units[site] for site in members if most[place[site]]]
    smallest = units.cost({site.name: np.arange(site.count) < floor(site.count) for site in shrinking})
    for budget in budgets:
        limits_of_cut(budget, units.cost(), smallest, "lower layer_keep or least, or allow feeders")
    if len(betas) != 3:
        raise InputError(f"betas={list(betas)}: give three, of the backbone's groups, the deepest scale and the neck")
    if layers:
        seen(subject.model, tuple(layers), image, maps.flat)


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


def pressure(
    subject: Traced, spared: set[str], rate: float, quantile: float, switch: float, kept: float
) -> detecting.Objective:
    """Step 2: the detector's loss, and the penalty at two rates on the scales that may go."""
    allowed = set(free(subject, spared))
    slices = {site: parts for site, parts in subject.slices().items() if site in allowed}
    found = scales.prunable(subject.model, slices)

    def rates(done: float) -> list[Tensor]:
        picked = [gamma.detach()[inside.to(gamma.device)] for gamma, inside in found]
        levels = slimming.variable(picked, done, initial=rate, quantile=quantile, switch=switch, kept=kept)
        return [
            torch.zeros_like(gamma).masked_scatter(inside.to(gamma.device), level)
            for (gamma, inside), level in zip(found, levels, strict=True)
        ]

    return detecting.press(cast(Detector, subject.model).loss, [gamma for gamma, _ in found], rates)


@torch.no_grad()
def scan(subject: Traced, mask: Mask, names: Sequence[str], batches: Any) -> dict[str, list[float]]:
    """Group -> the loss at each share of `GRID`, when the scales of that share of the group alone are 0."""
    probe = subject.copy()
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


def rises(run: Run, batches: Any, subject: Traced, mask: Mask, names: Sequence[str]) -> Shares:
    """Step 3's shares by a scan: see `scan` and `tolerance`."""
    found: dict[str, list[float]] = run.json("scan", lambda: scan(subject, mask, names, batches))
    return tolerance(found)


def given(fractions: Sequence[float], subject: Traced, mask: Mask, names: Sequence[str]) -> Shares:
    """Step 3's shares in the proportions of `fractions`, one for each of `names`, or even ones where there are none."""
    fractions = fractions or [0.5] * len(names)
    if len(fractions) != len(names):
        raise InputError(f"{len(fractions)} fractions for {len(names)} groups: give one for each of {', '.join(names)}")
    return proportion(dict(zip(names, fractions, strict=True)))


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


def proportion(given: Mapping[str, float]) -> Shares:
    """From a level 0 to 1 to shares in the proportions of `given`, the largest up to that of `GRID`."""
    if not all(0 <= one < 1 for one in given.values()) or not any(given.values()):
        raise InputError(f"fractions {list(given.values())}: give shares from 0 to below 1, not all of them 0")
    most = max(given.values())
    return lambda level: {name: min(GRID[-1], one / most * level) for name, one in given.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What constants are is found with noise: the same each time, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def settled(
    subject: Traced,
    spared: set[str],
    groups: Mapping[str, str],
    masks: Callable[..., dict[str, np.ndarray]],
    judge: Callable[[Traced, Mask, Sequence[str]], Shares],
    budget: Budget,
    offsets: bool,
    seed: int,
) -> tuple[Traced, Cut, Selection, dict[str, float]]:
    """Steps 3 to 6: the smaller detector, its receipt, what stays, and the share that goes of each group.

    What can't be cut after all (see `CutError`) stays whole, and the choice is made anew. With `offsets` the cut may
    add a few biases, for which room is made once they are known.
    """
    room = dict[str, float]()
    while True:
        members = free(subject, spared)
        place = sites(members, groups)
        mask = partial(masks, {site: list(row.values()) for site, row in members.items()}, place)
        shares = judge(subject, mask, list(dict.fromkeys(place.values())))
        units = subject.units()
        limits = budget.absolute(units.cost())
        level = lowest(lambda level: units.cost(mask(shares(level))), budget, limits, room)  # noqa: B023
        keep = mask(shares(level))
        selection = Selection(keep, units.cost(keep), budget)
        try:
            with seeded(seed):
                student, cut = subject.cut(selection, offsets=offsets)
        except CutError as error:
            subject.without(error.fault, selection)
            continue
        over = {n: cut.after[n] - selection.spent[n] for n, most in limits.items() if cut.after.get(n, 0.0) > most}
        if not over:
            return student, cut, selection, shares(level)
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
            f"budget {budget} can't be met: with the floors of layers, {name} can go down to {least:.6g}, the limit is "
            f"{limits[name]:.6g}; lower layer_keep or least, or allow feeders", least,
        )  # fmt: skip
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) else (low, middle)
    return high


def audit(selection: Selection, shares: Mapping[str, float]) -> dict[str, Any]:
    """The share that goes of each group, and site -> indices of the units that stay."""
    return {
        "fractions": dict(shares),
        "keep": {site: np.flatnonzero(mask).tolist() for site, mask in selection.keep.items()},
    }


def attention(
    student: Traced,
    teacher: Traced,
    image: Tensor,
    layers: Sequence[str],
    betas: Sequence[float],
    foreground: bool,
) -> Callable[[float], detecting.Objective]:
    """Step 8: from alpha to the objective."""
    original = cast(Detector, teacher.model)
    ends: dict[str, stages.Place] = {}
    order = stages.places(teacher.model, image)
    grouping = stages.grouped(order)
    for one in order:
        if grouping[one.name].startswith("stride"):
            ends[grouping[one.name]] = one
    blocks = list(dict.fromkeys(one.block for one in ends.values() if one.block))
    taps = tuple(layers) or tuple(dict.fromkeys([*blocks, *original.taps]))
    deepest = max((one.stride for one in ends.values()), default=0.0)
    area = image.shape[-1] * image.shape[-2] / 416**2
    weights = []
    for tap in taps:
        for found in seen(teacher.model, [tap], image, maps.flat):
            deep = image.shape[-1] / found.shape[-1] >= deepest
            weights.append(area * (betas[1] if deep else betas[0] if tap in blocks else betas[2]))

    def compare(ours: list[Tensor], theirs: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
        total = ours[0].new_zeros(())
        for beta, one, other in zip(weights, ours, theirs, strict=True):
            near = None
            if foreground:
                shape, size = (other.shape[2], other.shape[3]), (batch["inputs"].shape[2], batch["inputs"].shape[3])
                near = maps.box_weights(batch["targets"], shape, size, gains=(1.0, 1.0, 1.0), background=0.0).to(other)
            total = total + beta * maps.spatial_attention(one, other, mask=near)
        return total

    loss = cast(Detector, student.model).loss
    return lambda alpha: detecting.follow(
        student.model, loss, teacher.model, teacher.model, taps, compare, weight=alpha
    )
