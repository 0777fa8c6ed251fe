"""Rethinking the value of network pruning: is the pruned network better than the same shape trained from scratch?

Liu, Sun, Zhou, Huang and Darrell, ICLR 2019 (arXiv 1810.05270).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from torch import nn

from secateur._utils import plugins
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Augment, Examples
from secateur.errors import BudgetError, DataError, InputError
from secateur.methods import published_rules, retraining
from secateur.methods.arms import describe_arms, finetune_length, finetune_settings, fit, refuse_selection, train_arms
from secateur.methods.published_rules import Pruned
from secateur.methods.retraining import ImageTask
from secateur.select import limits, ranking, subsets
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Result, Training

CARD = {
    "title": "Rethinking the Value of Network Pruning",
    "paper": "https://arxiv.org/abs/1810.05270",
    "cuts": "channels or residual branches of any network by six published rules, or single weights of convolutions",
    "recovers": "fine-tuning, beside fresh networks of the same shape trained for as long and for as many FLOPs",
    "extra": "",
    "family": "vision",
    "selects": "no",
}


def rethinking_pruning_value(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    run: Run,
    *,
    seed: int = 0,
    method: Literal["l1", "slimming", "soft", "thinet", "regression", "blocks", "unstructured"] = "l1",
    widths: str | Sequence[str] = "",
    inner: bool = True,
    untrained: bool = False,
    sparsity: float = 1e-4,
    calibration: int = 512,
    finetune: Literal["classic", "rewind"] = "classic",
    finetune_epochs: int | None = None,
    scratch: Literal["E", "B", "both", "none"] = "both",
    cap: float | None = None,
    norm: float = 1.0,
    augment: str = "",
    select_by: Literal["score", "short-retrain"] = "score",
    training: Training = Training(epochs=160, batch=64, lr=0.1, weight_decay=1e-4),
    dry_run: bool = False,
) -> Iterator[Result]:
    """Prune by a published rule, fine-tune, and train fresh networks of the cut shape beside it (section 3).

    Per budget, each from the original:

    1. the large network; slimming, soft filters and blocks train it on, with their sparsity, for `epochs`;
    2. what goes. Predefined, the same share in every layer: "l1" (smallest sum |W| of a filter), "soft" (smallest L2,
       zeroed after every epoch and still learning), "thinet" (greedy) and "regression" (LASSO) by what the next layer
       loses, which is then refitted by least squares. Automatic, the network's own shape: "slimming" (smallest
       |gamma| of all batch norms), "blocks" (smallest scale of a residual branch: sparse structure selection),
       "unstructured" (smallest |w| of all convolutions, held at 0);
    3. the inherited weights are fine-tuned;
    4. Scratch-E: new weights in the same shape, trained for `epochs`, decays at 50 % and 75 %;
    5. Scratch-B: the same for int(epochs F(dense) / F(cut)) epochs, so that it costs what the large network cost.

    All arms see the same batches in the same order, and are judged by their last weights on examples held out of the
    training data; the notes of the result tell epochs, FLOPs, accuracies and a verdict. The result is the fine-tuned
    network; the fresh ones stand beside it as rivals, so that they are measured as it is.

    Args:
        subject: the large network; it stays as it is.
        data: examples with classes.
        budgets: channels=, params=, bytes= or flops=; branches= for "blocks"; weights= (of convolutions) for
            "unstructured".
        run: where checkpoints go.
        batch: examples per step.
        seed: of sampling, initialisation and training.
        method: l1, slimming, soft, thinet, regression, blocks or unstructured.
        widths: units to keep at each site that may shrink, in the network's order, such as 32,64,128; the share of
            the budget in every layer unless given. Only for predefined methods.
        inner: let channels that several layers write (those of residual sums) stay, as the paper does.
        epochs: E, what the large network was trained for; a whole number.
        lr: the large network's first learning rate, of SGD.
        weight_decay: of matrices and kernels.
        untrained: the subject comes with its first weights: train it for `epochs` before anything else.
        sparsity: s of slimming's s |gamma|, and of the scales of blocks.
        calibration: examples on which thinet and regression reconstruct.
        finetune: "classic", constant lr / 100; or "rewind", the whole schedule again from `lr`.
        finetune_epochs: a quarter of `epochs` for classic and all of them for rewind, unless given.
        scratch: "E", "B", "both" or "none".
        cap: Scratch-B trains for at most this many times `epochs`; the paper's 2 for ImageNet.
        norm: first weights of batch norms in fresh networks; 0.5 in the VGG of the slimming code.
        augment: file.py:function, (inputs, generator) -> inputs, drawn anew for each batch of every training and arm,
            but not of what is calibrated or judged by.
        select_by: "score", as published; or "short-retrain": of 16 cuts at the budget, the rule's own, some near it and
            some at random, the one of the lowest training loss after a tenth of the fine-tuning (arXiv 2412.00143).
        dry_run: stop after the cut; nothing is trained.

    Departures: weight decay spares norms and biases; SGD's momentum is Nesterov's; soft filters, slimming and blocks
    train on from the subject's weights unless it comes `untrained`; scales of blocks take plain proximal steps where
    sparse structure selection accelerates them; ThiNet and regression go over all layers at once, with moments of the
    original network; slimming leaves channels of residual sums whole where the paper puts a channel selection before
    them, unless `inner` is off, which cuts what all their readers share; the schedules of ImageNet in thirds, and
    other tasks than classification, are not here. The rewinding recipe is later work.
    """
    check(subject, data, budgets, method=method, widths=widths, inner=inner)
    refuse_selection(training)
    if select_by == "short-retrain" and method not in ("l1", "soft", "slimming"):
        raise InputError(
            f"select_by=short-retrain is for l1, soft and slimming, not for {method}: leave one of them out"
        )
    batch, epochs = training.whole("batch"), training.number("epochs")
    if epochs % 1:
        raise InputError(f"epochs={epochs:g}: give a whole number, of which the other arms train for shares")
    if dry_run:
        training, finetune_epochs, scratch = replace(training, epochs=0), 0, "none"
    train, judged = data.split(seed=seed)
    moved: Augment | None = plugins.function(augment) if augment else None
    learn = partial(fit, data=train, training=training, seed=seed, augment=moved)
    calibrating = examples.batches(train, batch=batch, seed=seed).take(max(1, calibration // batch))
    large = published_rules.train_large(subject, run, learn, rule=method, untrained=untrained, sparsity=sparsity)
    for budget in budgets:
        start = large
        if method == "soft":
            start = published_rules.train_soft(large, budget, run, learn, inner=inner)
        pruned = published_rules.prune(start, budget, method, widths=widths, inner=inner, batches=calibrating)
        if select_by == "short-retrain" and not dry_run:
            task = ImageTask(train, judged, moved)
            pruned = choose_cut(pruned, task, training, run, finetune, finetune_epochs, seed=seed)
        arms = train_arms(
            pruned, train, judged, training, seed=seed, mode=scratch, finetune=finetune,
            finetune_epochs=finetune_epochs, cap=cap, norm=norm, augment=moved, folder=run.folder(f"arms-{budget}"),
        )  # fmt: skip
        tuned = arms["fine-tuned"]
        unknown = dict.fromkeys(note for arm in arms.values() for note in arm.notes)
        notes = pruned.notes if dry_run else (*pruned.notes, *unknown, describe_arms(arms, finetune))
        students = {name: replace_model(pruned.student, arm.model) for name, arm in arms.items()}
        student = students.pop("fine-tuned")
        spent = dict(pruned.selection.spent)
        yield Result(str(budget), student, pruned.cut, spent, tuned.recovery, notes, beside=students)
        del start, pruned, arms, tuned, student, students  # or they would be held beside the next ones


def choose_cut(
    pruned: Pruned, task: ImageTask, training: Training, run: Run, finetune: str, length: int | None, *, seed: int
) -> Pruned:
    """Of cuts at one budget the one that a short fine-tuning leaves with the lowest training loss, and a note."""
    selections = subsets.around(pruned.selection, CUTS, seed)
    cuts = [pruned.dense.cut(one) for one in selections]
    whole = finetune_length(training.whole("epochs"), finetune, length)
    how = finetune_settings(training, finetune)

    def choose() -> list[float]:
        brief = replace(how, epochs=max(SHORT * whole, 1e-9))
        return retraining.compare_shortly([small.model for small, _ in cuts], task, brief, seed=seed)

    reached = run.json(f"shortly-{pruned.selection.budget}", choose)
    best = int(np.argmin(reached))
    (student, cut), note = cuts[best], retraining.describe_choice(best, reached)
    return replace(pruned, student=student, cut=cut, selection=selections[best], notes=(*pruned.notes, note))


CUTS, SHORT = 16, 0.1
"""Cuts that are compared, and the share of the fine-tuning that each gets."""


def replace_model(subject: Traced, model: nn.Module) -> Traced:
    """The same subject with other weights."""
    return Traced(model, subject.inputs, subject.plans)


def check(
    subject: Traced,
    data: Examples,
    budgets: Sequence[Budget],
    *,
    method: published_rules.Rule,
    widths: str | Sequence[str],
    inner: bool,
) -> None:
    """Refuse before anything is trained what can't be met, and widths or budgets that do not go with the method."""
    if widths and method in published_rules.FINDS_WIDTHS:
        raise InputError(f"widths are predefined, and {method} finds its own: leave one of the two out")
    if data.labels is None or data.per_pixel:
        what = "a class for each pixel" if data.per_pixel else "no classes"
        raise DataError(f"{data.name} has {what}: give one for each example, for all arms are judged by accuracy")
    for budget in budgets:
        if ("weights" in budget) != (method == "unstructured"):
            example = "weights=10%" if method == "unstructured" else "channels=50%"
            raise BudgetError(f"budget {budget} is not one of method {method}: say for example {example}")
    units = published_rules.cuttable(subject, method, inner)
    for budget in budgets:
        if widths:  # which say on their own what goes
            any_units = {site.name: np.zeros(site.count) for site in units.free()}
            counts = published_rules.parse_widths(units, widths)
            published_rules.refuse_larger(budget, ranking.by_counts(units, any_units, counts), units.cost())
        else:
            limits.limits_of_cut(budget, units.cost(), ranking.fewest(units).spent)
