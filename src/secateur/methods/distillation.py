"""Distilling a student from the model that it was cut from: one call of the training loop, and a teacher on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import nn

from secateur._utils import distributed
from secateur._utils.batches import Batch, Batches
from secateur._utils.disk import remove
from secateur._utils.rundir import Run
from secateur.data import masking, texts
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.measure import size
from secateur.methods.predictions import tells_labels, tells_masked, tells_numbers
from secateur.methods.retraining import describe_choice
from secateur.recover.distillation import teachers
from secateur.recover.training import loop, objectives, routing, schedule
from secateur.select import subsets
from secateur.subjects import Moe, Transformer
from secateur.vocabulary import Recovery, Selection, Training

__all__ = [
    "OWN_DIRECTIONS", "RECORDED", "BlockLosses", "Distilling", "Losses", "Rates", "check_recovery", "check_task",
    "choose_direction", "choose_shortly", "distil", "held_out", "make_batches", "own_direction", "remember_teacher",
    "shorten", "train_student",
]  # fmt: skip

RECORDED = (
    "train_batch", "train_length", "lr", "weight_decay", "task", "logit", "token", "temperature", "training",
)  # fmt: skip
"""Options of `distil`, as flags name them, that a run of ZipLM records beside its steps."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Weight and temperature of the loss on a teacher's logits."""

    logit: Annotated[float, Ge(0)] = 1.0
    """Weight of the logit loss."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """T of the logit loss, a divergence that is multiplied by T^2."""


@dataclass(frozen=True, slots=True)
class BlockLosses(Losses):
    """ZipLM's three losses (arXiv 2302.04089, section 3.3), weighted by its lambdas."""

    task: Annotated[float, Ge(0)] | None = None
    """lambda_1; 0 for encoders and 0.5 for decoders unless given."""
    token: Annotated[float, Ge(0)] | None = None
    """lambda_3, of the outputs of blocks; 1 for encoders and 0.5 for decoders unless given."""


def train_student(
    student: Transformer,
    teacher: Transformer | None,
    batches: Batches,
    objective: objectives.Objective,
    training: Training,
    *,
    length: int,
    checkpoint: Path,
    seed: int = 0,
    dropout: bool = False,
    extra: Sequence[nn.Module] = (),
    extra_rate: float = 1.0,
    evaluate: Callable[[], float] | None = None,
) -> Recovery:
    """`loop.train` of `student` on an objective that asks `teacher`; None where no teacher is in memory.

    length: tokens per sequence, for the FLOPs. checkpoint: a folder, by whose name lines of progress and trackers tell
    trainings of one run apart. evaluate: asked where `training` has patience or validation.
    """
    theirs = 0.0 if teacher is None else teacher.flops_per_token(length)
    return loop.train(
        student.model,
        batches,
        objective,
        training,
        seed=seed,
        dropout=dropout,
        extra=extra,
        extra_rate=extra_rate,
        frozen=[] if teacher is None else [teacher.model],
        checkpoint=checkpoint,
        title=checkpoint.name.replace("-", " "),
        evaluate=evaluate if training.validates else None,
        flops_per_token=size.training_flops(student.flops_per_token(length), theirs),
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates, one for all stages or one for each, such as 1e-3,5e-4."""

    lr: float | Sequence[float] = 1e-3
    """Peak learning rate, one for all stages or one for each, such as 1e-3,5e-4."""
    min_lr: float | Sequence[float] = 1e-4
    """Learning rate at the end of the last stage, those before being stopped early, at their peak; or one for each."""

    def by_stage(self, training: Training, stages: int) -> list[tuple[float, float]]:
        """(highest, last) learning rate of each stage; those that `training` sets go before."""
        peak = self.lr if training.lr is None else training.lr
        floor = self.min_lr if training.min_lr is None else training.min_lr
        return schedule.stage_rates(peak, floor, stages)


@dataclass(frozen=True, slots=True)
class Distilling(Losses):
    """What a mixture of experts learns from the model that it was cut from, and how (SlimMoE)."""

    task: Annotated[float, Ge(0)] = 0.0
    """Weight of cross-entropy; the paper has none."""
    cache: Annotated[int, Ge(0)] = 0
    """Tokens per position kept of the original's predictions, on disk, in place of asking it at every step."""
    balance: Annotated[float, Ge(0)] | None = None
    """Weight of the load-balancing loss; the original's own by default."""
    freeze_router: bool = False
    """Leave the router as it was, all through."""
    noise: bool = True
    """Train with what the original's config has of dropout and jitter, and with routers that sample (PhiMoE)."""

    def objective(self, student: Moe, teacher: Moe | None) -> objectives.Objective:
        """The loss of `student`, load balancing included; without a teacher its predictions come with the batches."""
        objective = objectives.distil(
            student.forward,
            None if teacher is None else teacher.forward,
            output="logits",
            task=self.task,
            logit=self.logit,
            temperature=self.temperature,
            fused=True,
        )
        own = getattr(student.model.config, "router_aux_loss_coef", 0.0)
        weight = own if self.balance is None else self.balance
        return routing.add_balance(objective, student.routers(), weight)


def shorten(training: Training, steps: int, *, slower: float = 1.0) -> Training:
    """The same training in fewer steps; a warm-up of more steps than these keeps its share of all.

    slower: what the learning rate is divided by; its floor is never above it.
    """
    warmup, whole = training.warmup or 0.0, training.steps or 0
    if slower != 1:
        peak = training.number("lr") / slower
        training = replace(training, lr=peak, min_lr=min(peak, training.min_lr or 0.0))
    if warmup <= max(1, steps) or steps >= whole:
        return replace(training, steps=steps)
    return replace(training, steps=steps, warmup=warmup / whole if warmup < whole else steps)


def remember_teacher(
    run: Run,
    teacher: Transformer,
    data: Corpus,
    batches: Batches,
    steps: int,
    training: Training,
    *,
    k: int,
    length: int,
    seed: int,
    temperature: float = 1.0,
) -> teachers.Joined:
    """The batches of `steps` steps, each with `k` tokens of the teacher's predictions, kept in the run's folder.

    All but one of them are drawn, so that they stand for the whole prediction in the mean (`teachers.cache_topk`): the
    likeliest alone teach worse. Where `k` is the whole vocabulary, nothing is drawn. seed: of the batches' order.
    temperature: of the teacher's probabilities.
    """
    key = {"data": data.digest, "batches": f"{training.whole('batch')} x {length}, seed {seed}"}
    count = steps * (training.accumulate or 1) * distributed.count()
    drawn = k - 1 if teacher.tokenizer is None or k < len(teacher.tokenizer) else 0
    return teachers.join_topk(
        run.folder("predictions"), teacher.model, teacher.forward, teacher.tokenizer, batches, count,
        k=k, drawn=drawn, temperature=temperature, key=key,
    )  # fmt: skip


def make_batches(
    subject: Transformer, data: Corpus, *, batch: int, length: int, seed: int
) -> texts.Batches | masking.Masked:
    """Batches of `data` as the model reads texts: run on where it joins them, tokens hidden where it tells these."""
    plain = texts.batches(data, subject.tokenizer, packed=subject.joins_texts, batch=batch, length=length, seed=seed)
    return masking.Masked(plain, subject.tokenizer, seed=seed) if tells_masked(subject) else plain


OWN_DIRECTIONS = {"mse": "numbers", "binary": "labels of which several may hold"}
"""How predictions are compared that are no classes of which one holds, and what these are."""


def own_direction(subject: Transformer) -> str:
    """Which of `OWN_DIRECTIONS` compares what the model tells; "" for classes of which one holds, and all else."""
    return "mse" if tells_numbers(subject) else "binary" if tells_labels(subject) else ""


def check_task(subject: Transformer, task: float | None, data: Corpus | None = None) -> None:
    """Raise `InputError` for cross-entropy of a model that tells no classes, or on `data` without labels for it."""
    own = own_direction(subject)
    if task and own:
        raise InputError(
            f"task={task:g} is cross-entropy of classes, and this model tells {OWN_DIRECTIONS[own]}: set task=0"
        )
    if not task or data is None or subject.causal or tells_masked(subject):  # which predict tokens of their texts
        return
    if subject.output != "logits":
        raise InputError(
            f"task={task:g} is cross-entropy of classes, and this model gives {subject.output}: set task=0"
        )
    if data.labels is None and data.tagged is None:
        raise InputError(f"task={task:g} needs labels, and {data.name} has none: give data with labels, or set task=0")


def check_recovery(subject: Transformer, data: Corpus, losses: Losses, training: Training | None = None) -> None:
    """Refuse what a student can't learn by, before anything is scored; with `training`, where that has steps.

    `training` is left out where other steps learn by these losses, too. Raises `InputError` as well where
    every weight is 0; one of None is the default's.
    """
    if training is not None and not training.steps:
        return
    check_task(subject, getattr(losses, "task", None), data)
    parts = {name: getattr(losses, name) for name in ("task", "logit", "token") if hasattr(losses, name)}
    if "task" in parts:
        parts["task"] = choose_task(subject, parts["task"])
    if not getattr(losses, "hidden", None) and all(weight == 0 for weight in parts.values()):
        given = ", ".join(f"{name}=0" for name in parts)
        otherwise = "" if training is None else ", or steps=0"
        raise InputError(f"{given} leave nothing to learn by: give one of them a weight{otherwise}")


def choose_task(subject: Transformer, task: float | None) -> float:
    """The weight of cross-entropy: unless given, 0.5 for models that tell the next token, and else 0."""
    return (0.5 if subject.causal else 0.0) if task is None else task


def choose_direction(subject: Transformer, direction: str = "forward") -> str:
    """How predictions are compared (`objectives.prediction_loss`): by the model's own way in place of the default.

    Raises `InputError` for a direction that compares something else than the model tells.
    """
    own = own_direction(subject)
    if direction == "forward":
        return own or direction
    if own and direction not in (own, "mse"):
        raise InputError(
            f"direction={direction} compares classes, and this model tells {OWN_DIRECTIONS[own]}: use {own}"
        )
    if direction == "binary" and not own:
        raise InputError(
            f"direction=binary compares {OWN_DIRECTIONS['binary']}, and this model tells none: leave direction out"
        )
    return direction


@torch.no_grad()
def held_out(
    student: Transformer, teacher: Transformer, batches: Sequence[Batch], *, relational: bool = False
) -> float:
    """`objectives.held_out`; of models that tell no classes the distance that they learn by (`choose_direction`)."""
    direction = choose_direction(teacher)
    if direction == "forward":
        return objectives.held_out(
            student.forward, teacher=teacher.forward, output=teacher.output, batches=batches, relational=relational
        )
    far = (
        objectives.distance(student.forward(batch).prediction, teacher.forward(batch).prediction, batch,
                            output=teacher.output, direction=direction)
        for batch in batches
    )  # fmt: skip
    return float(sum(far)) / len(batches)


def distil(
    subject: Transformer,
    student: Transformer,
    data: Corpus,
    folder: Path,
    *,
    blocks: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    train_length: int = 128,
    losses: BlockLosses = BlockLosses(),
    training: Training = Training(steps=1000, batch=32, lr=5e-4, weight_decay=0.03),
) -> Recovery | None:
    """Train `student` in place against `subject` by ZipLM's loss (arXiv 2302.04089, section 3.3); None for no steps.

    lambda_1 task + lambda_2 logit + lambda_3 token.

    Args:
        folder: of the training's checkpoints.
        blocks: (student, teacher) blocks whose output L_token compares; unless given, those of the same index that
            still have an attention or an FFN.
        seed: of the split, the batches and the training.
        train_length: most tokens per sequence.
        losses: `task` is 0.5 for language models and else 0, `token` 0.5 for decoders and else 1, unless given.
        training: a linear schedule and a tenth of warm-up, unless given.
    """
    if not training.steps:
        return None
    check_recovery(subject, data, losses, training)
    train, held = data.split(seed=seed)
    decoder, batch = subject.kind == "decoder", training.whole("batch")
    if blocks is None:
        blocks = [(k, k) for k, width in enumerate(student.widths(), 1) if width.heads or width.ffn]
    objective = objectives.distil(
        student.forward, subject.forward, output=subject.output, logit=losses.logit, temperature=losses.temperature,
        task=choose_task(subject, losses.task),
        token=(0.5 if decoder else 1.0) if losses.token is None else losses.token, blocks=blocks, fused=True,
        direction=choose_direction(subject),
    )  # fmt: skip
    sequences = partial(make_batches, subject, length=train_length)
    judged = sequences(held, batch=min(16, batch), seed=seed).take(16) if training.validates else []
    evaluate = partial(held_out, student, subject, judged)
    return train_student(
        student, subject, sequences(train, batch=batch, seed=seed + 1), objective,
        training.default(schedule="linear", warmup=0.1), length=train_length, checkpoint=folder, seed=seed,
        evaluate=evaluate,
    )  # fmt: skip


CUTS, SHORT = 8, 0.1
"""Cuts that `choose_shortly` compares, and the share of the steps that each gets."""


def choose_shortly(
    subject: Transformer,
    selection: Selection,
    data: Corpus,
    run: Run,
    *,
    seed: int,
    train_length: int,
    losses: BlockLosses,
    training: Training,
    blocks: Callable[[Selection], Sequence[tuple[int, int]]] | None = None,
) -> tuple[Selection, str]:
    """Of cuts of the widths of `selection` the one of the lowest loss after a short distillation, and a note.

    Compared are the selection itself, some near it and some at random, on the same batches in the same order: by the
    mean of the last fifth of the losses, which are kept in `run`. blocks: of a cut, as `distil` takes them. The other
    arguments are those of `distil`. Source:
    arXiv 2412.00143, where the loss right after a cut says little of the model after its recovery.
    """
    selections = subsets.around(selection, CUTS, seed)
    brief = shorten(training, math.ceil(SHORT * training.whole("steps")))

    def reach(number: int) -> float:
        place = run.folder(f"shortly-{selection.budget}-{number}")
        student, _ = subject.cut(selections[number])
        recovery = distil(
            subject, student, data, place, blocks=None if blocks is None else blocks(selections[number]), seed=seed,
            train_length=train_length, losses=losses, training=brief,
        )  # fmt: skip
        course = [loss for _, loss in recovery.losses] if recovery else [math.inf]
        return fmean(course[-max(1, len(course) // 5) :])

    def compare() -> list[float]:
        reached = []
        for number in range(len(selections)):
            name = f"shortly-{selection.budget}-{number}"
            reached.append(run.json(f"{name}-reached", partial(reach, number)))
            distributed.by_first(partial(remove, run.path(name)))  # of a checkpoint nothing more is wanted
        return reached

    reached = run.json(f"shortly-{selection.budget}", compare)
    best = min(range(len(reached)), key=reached.__getitem__)
    return selections[best], describe_choice(best, reached)
