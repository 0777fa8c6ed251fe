"""One trial step before anything is measured or written: whether the loss is finite, its memory and its time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur._utils.plugins import line
from secateur.errors import InputError, SecateurError
from secateur.methods.distillation import OWN_DIRECTIONS, own_direction
from secateur.recover.training import loop
from secateur.runs import memory_plan, memory_steps
from secateur.runs.distilling import caches, training
from secateur.runs.distilling.models import Learner
from secateur.runs.distilling.setup import Setup, reading_name
from secateur.subjects import Transformer
from secateur.vocabulary import Evidence, Training

__all__ = ["check_number", "describe_memory", "plan", "try_losses"]

_WRITTEN = 4
"""Tokens that a student is let write on trial."""


def check_number(setup: Setup, student: Learner) -> None:
    """Refuse options about classes where the student tells numbers, or labels of which several may hold.

    Refused is also what compares such labels, where the student tells none.
    """
    settings = setup.settings
    if isinstance(student, Transformer):
        own = own_direction(student)
    else:
        own = "mse" if setup.ask(student)(setup.batches[0]).prediction.shape[-1] == 1 else ""
    if settings.direction == "binary" and not own:
        raise InputError(
            "direction binary is of classifiers of texts with the problem_type multi_label_classification, and the "
            "student is none: leave direction out"
        )
    told = OWN_DIRECTIONS.get(own, "")
    wrong = {
        f"direction {settings.direction} compares classes, and the student tells {told}: use --direction {own}":
            settings.direction not in (own, "mse"),
        f"task is cross-entropy of classes, and the student tells {told}: leave task out": settings.task,
        f"teachers are averaged or chosen by their classes, and these tell {told}: name one teacher":
            len(setup.names) > 1,
    }  # fmt: skip
    for words, holds in wrong.items():
        if own and holds:
            raise InputError(words)


def try_losses(setup: Setup, student: Learner, between: Sequence[Learner]) -> None:
    """Ask for the loss of the first batch once, in each link of the chain, so that what can't be compared is refused
    before anything is measured or written.

    Of a student that writes itself, a batch as it is given, and one that it writes on from prompts by a few tokens.
    Raises `InputError` and `DataError`.
    """
    settings, above = setup.settings, tuple(setup.teachers)
    if settings.on_policy:
        for learner in (*between, student):
            _try_rollouts(setup, learner, above)
            above = (learner,)
        return
    by_characters = setup.by_characters(student)
    step = [setup.batches[index] for index in range(max(1, settings.batches_per_step))]
    first = {**step[0], **({"done": 0.0} if settings.warm_up else {})}
    for learner in (*between, student):
        device = devices.find_device(learner.model)
        asked = setup.join(learner, above, settings.temperature) if above and not by_characters else None
        objective = training.make_objective(setup, learner, above, asked)
        each = [objective.count(batch) for batch in step]
        totals = {name: sum(one[name] for one in each) for name in each[0]}
        for module in objective.extra:
            module.to(device)
        with torch.no_grad(), evaluating(learner.model):
            objective.loss(devices.move(first, device), totals)
        above = (learner,)
    for number, name in enumerate(setup.names if by_characters else ()):
        if not totals[f"{reading_name(number)}.pairs"]:
            raise InputError(
                f"the teacher {name} reads no characters of the first batch as one token where the student does, "
                "and has nothing to say to it: use another teacher, or other texts"
            )


def _try_rollouts(setup: Setup, learner: Learner, above: Sequence[Learner]) -> None:
    """Let a student write, and ask for the loss of that; chance and modes stay as they were."""
    if not above:  # a server is not asked on trial
        return
    name, batches = type(learner.model).__name__, training.rollouts(setup, learner)
    objective = training.make_objective(setup, learner, above, setup.join(learner, above, setup.settings.temperature))
    device = devices.find_device(learner.model)
    batches.new = min(batches.new, _WRITTEN)
    with torch.no_grad(), evaluating(learner.model):
        for batches.share in (0.0, 1.0):  # a text as it is given has the full length, what is written is short
            try:
                batch = batches[0]
            except SecateurError:
                raise
            except Exception as error:  # whatever a model's own code raises
                raise InputError(f"{name} can't write on from a prompt, as on-policy asks: {line(error)}") from error
            try:
                loss, _ = objective.loss(devices.move(batch, device), objective.count(batch))
            except SecateurError:
                raise
            except Exception as error:
                raise InputError(f"what {name} writes can't be scored by its teacher: {line(error)}") from error
            if not torch.isfinite(loss):
                raise InputError(f"what {name} writes can't be scored by its teacher: the loss is {float(loss)}")


def describe_memory(setup: Setup, student: Learner, between: Sequence[Learner]) -> str:
    """Peak memory of training, of the link of the chain that takes most, with all models held; "" where it is unknown.

    That is so of what a student writes itself, of rounded weights, and of teachers on devices of their own.
    """
    if setup.settings.on_policy or setup.settings.bits or setup.apart:
        return ""
    device = devices.find_device(student.model)
    if device.type == "cpu":
        with loop.place_for_training(nn.Identity()) as device:
            pass

    def find() -> dict[str, float]:
        everyone, above, peaks = (*setup.teachers, *between, student), tuple(setup.teachers), list[float]()
        for learner in (*between, student):
            peaks.append(_plan_link(setup if above else _alone(setup), learner, above, everyone, str(device)))
            above = (learner,)
        held = (tensor for one in everyone for tensor in (*one.model.parameters(), *one.model.buffers()))
        return {
            "weights": float(sum(tensor.numel() * tensor.element_size() for tensor in held)),
            "training": max(peaks),
        }

    return memory_steps.describe_planned(find, str(device))


def _plan_link(
    setup: Setup, learner: Learner, above: Sequence[Learner], everyone: Sequence[Learner], device: str
) -> float:
    """Bytes at the highest point of training `learner` on what those `above` say of the first batch."""
    how = Training(**setup.settings.training)
    first, totals = setup.batches[0], setup.count(setup.batches[0])
    if setup.settings.warm_up:
        first = {**first, "done": 0.0}
    others = [one for one in everyone if one is not learner]

    def step(module: nn.Module, rest: Sequence[nn.Module]) -> Tensor:
        pairs = [(one, _with_model(one, copied)) for one, copied in zip(others, rest, strict=True)]
        teachers = [copied for one, copied in pairs if any(one is teacher for teacher in above)]
        blank, student = replace(setup, teachers=teachers), _with_model(learner, module)
        asked = blank.join(student, teachers, setup.settings.temperature) if teachers else None
        loss: Tensor = training.make_objective(blank, student, teachers, asked).loss(first, totals)[0]
        return loss

    def adapt(model: nn.Module) -> None:
        memory_plan.adapt(model, how.lora or how.whole("dora"), dora=how.dora is not None, bits=how.adapter_bits)

    models = [one.model for one in others]
    adapted = adapt if how.lora or how.dora else None
    return memory_steps.plan_step(learner.model, models, step, how, device, adapted)


def _with_model(subject: Learner, model: nn.Module) -> Learner:
    """The same subject of another model, in which experts are used evenly: see `memory_plan`."""
    result = copy.copy(subject)
    result.model = model
    return memory_plan.with_even_experts(result) if isinstance(result, Transformer) else result


def _alone(setup: Setup) -> Setup:
    """The same without a server, which is not asked: the student learns the task."""
    return replace(setup, settings=replace(setup.settings, task=1.0, server="", cache=0, on_policy=0.0))


def plan(setup: Setup, student: Learner) -> Evidence:
    """What would be trained, and how long that takes, by one step of a copy."""
    settings, above = setup.settings, tuple(setup.teachers)
    if not above:  # a server is not asked: the student's own time
        one = training.train_student(_alone(setup), student.copy(), (), None, "", 1, settings.bits)
    else:
        one = training.train_student(setup, student.copy(), above, None, "", 1, settings.bits)
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    return Evidence(
        recipe="distill",
        target=f"{settings.steps} steps",
        predicted={
            "params": float(sum(p.numel() for p in student.model.parameters())),
            "trained parameters": float(trained),
            "teacher parameters": float(sum(p.numel() for m in above for p in m.model.parameters())),
            ("tokens" if setup.of_texts else "examples"): float(one.tokens * settings.steps),
            "seconds per step": one.seconds,
            "seconds": one.seconds * settings.steps,
            **caches.cache_cost(setup, student, one.tokens * settings.steps),
        },
        settings={"model": type(student.model).__name__, "teachers": list(setup.names)},
        verdict="dry run",
    )
