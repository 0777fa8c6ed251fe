"""The one training loop: a cut student is trained on an objective, on one core or on many machines.

Accelerate starts the processes and shards the model; this module keeps four promises on top of it. Accumulated and
distributed micro-batches weigh as in one big batch. A resumed run ends with the bytes of an uninterrupted one. A kill
at any moment leaves the last checkpoint whole. A loss that is not finite stops the run before it touches a weight.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from secateur._utils import devices, distributed
from secateur._utils.modes import check_device, evaluating
from secateur.errors import InputError, MissingExtraError, NumericalError, UnsupportedError
from secateur.recover.training import checkpoints, lora, optimizers
from secateur.recover.training.averaging import Average
from secateur.recover.training.checkpoints import Best, tensors_of, whole
from secateur.recover.training.compiling import compiling
from secateur.recover.training.compose import Parts
from secateur.recover.training.objectives import count as count_tokens
from secateur.recover.training.optimizers import MakeOptimizer, groups_of, make_optimizer, set_rate
from secateur.recover.training.progress import show_progress
from secateur.recover.training.recomputing import recomputing
from secateur.recover.training.schedule import learning_rate
from secateur.recover.training.sharpness import climb
from secateur.recover.training.sharpness import norm as norm_of
from secateur.vocabulary import Recovery, Training

__all__ = ["DEFAULTS", "check_trackers", "options", "place_for_training", "train"]

T = TypeVar("T")

Batch = Any
"""What `batches[i]` gives and the objective takes; usually a mapping of tensors."""

_POINTS = 300
"""Loss points kept in a `Recovery`."""

_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which the objective is autocast."""
_ADDED = ("lora", "dora", "lora_bits", "sam")
"""Settings that a record holds where they are given."""


DEFAULTS: dict[str, Any] = {
    "warmup": 0.05,
    "schedule": "cosine",
    "min_lr": 0.0,
    "weight_decay": 0.01,
    "optimizer": "adamw",
    "momentum": 0.9,
    "betas": (0.9, 0.999),
    "accumulate": 1,
    "clip": 1.0,
    "precision": "auto",
    "every": 100,
    "evaluate_every": 100,
}
"""Fields of `Training` that neither the user nor the recipe set."""

_SWITCHES = ("ema", "checkpointing", "compile")
"""Fields of `Training` that a record names where they are set; without checkpointing or compile, one may go on too."""


def options(given: str | Sequence[str] | Mapping[str, Any] | Training) -> dict[str, Any]:
    """The fields of `Training` that `given` sets, as keywords of `train`; see `Training.merge`."""
    return Training().merge(given).named


def check_trackers(trackers: Sequence[object]) -> None:
    """Refuse trackers that Accelerate does not know (`InputError`) or that are not installed (`MissingExtraError`).

    Accelerate itself leaves out, without a word, what is not installed.
    """
    known = {str(name) for name in LOGGER_TYPE_TO_CLASS}
    installed = {str(name) for name in get_available_trackers()}
    for name in trackers:
        if not isinstance(name, str):
            continue
        if name not in known and name != "all":
            raise InputError(f"trackers={name}: Accelerate knows {', '.join(sorted(known))}; names are joined by +")
        if name not in installed and name != "all":
            package = {"comet_ml": "comet-ml", "dvclive": "dvclive"}.get(name, name)
            raise MissingExtraError(f"trackers={name} needs the package {package}: pip install {package}")


def train(
    student: nn.Module,
    batches: Any,
    objective: Callable[[Batch, Mapping[str, int]], tuple[Tensor, Parts]],
    training: Training | None = None,
    *,
    optimizer: str | MakeOptimizer | None = None,
    seed: int = 0,
    dropout: bool = True,
    extra: Sequence[nn.Module] = (),
    extra_rate: float = 1.0,
    frozen: Sequence[nn.Module] = (),
    count: Callable[[Batch], Mapping[str, int]] = count_tokens,
    checkpoint: str | Path | None = None,
    evaluate: Callable[[], float] | None = None,
    progress: bool = True,
    title: str = "training",
    flops_per_token: float = 0.0,
    **settings: Any,
) -> Recovery:
    """Train `student` in place for `training.steps` optimiser steps; returns what it took and gave.

    Args:
        student: the module in training; parameters with `requires_grad` are trained. From the CPU it is moved to
            Accelerate's device and comes back, in its own number type and in eval mode; one that lies on another
            device, or on several, is trained there. Weights in half precision are trained as float32 copies, since an
            update of 1e-5 vanishes in bfloat16.
        batches: `batches[i]` for any i >= 0 is the i-th micro-batch, the same whenever it is asked for. A list or tuple
            is repeated.
        objective: (batch, totals) -> (loss, parts). The loss is to be a sum over the batch divided by totals; parts are
            named numbers to show, added up over micro-batches: tensors without gradients, which are read once a step.
            `totals` are the counts of the whole step, over all
            micro-batches and processes: that is what makes their sum the mean over one big batch.
        training: how to train; `steps` (those done before a resume included) and `lr` have to be set. What is not set:
            `DEFAULTS`. Learning rates: see `schedule.learning_rate`. Training stops after `patience` evaluations
            without a new best, and gives the weights of the best one unless `keep` says "last".
        optimizer: in place of the one that `training` names, a function from parameter groups to any optimiser of
            torch's; its tensors per parameter are checkpointed, and its groups' "lr" follows the schedule.
        seed: of dropout and all else that is random inside the objective; the caller's generators are left as found.
        dropout: False trains as the model is used: a short distillation has no time to average dropout's noise away,
            and a teacher's output is no label to overfit. Batch norms still learn.
        extra: further modules in training (a projection).
        extra_rate: what the learning rate is multiplied by for these (a router learns a hundred times as fast).
        frozen: modules the objective asks (a teacher): on the device meanwhile, in eval mode, untouched.
        count: batch -> what it holds, for the totals; "tokens", or else "examples", gives the speed, and adds up to
            `Recovery.tokens`.
        checkpoint: folder of the training's own checkpoint; a run that finds one there goes on from it.
        evaluate: what `patience` is about; lower is better. Where `patience` or `validation` asks for an evaluation and
            this is None, it is the objective's mean on a part that `batches.hold_out(share)` gives. With those it is
            asked each epoch, or ten times in a training of less than two.
        progress: a bar on a terminal and in a notebook, else a line each minute, at each evaluation and at the end.
        title: what the bar and the trackers call this run.
        flops_per_token: training FLOPs per token, the teacher's forward pass included, for `Recovery.flops`.
        settings: fields of `training`, in place of those that it has.

    Several processes (torchrun, accelerate launch) share the micro-batches out: process r of P takes every P-th one, so
    that P processes equal one with P times the `accumulate`. They begin with the weights of the first. Once per step
    gradients are summed, and buffers averaged, such as running statistics: a batch norm sees one micro-batch, as under
    accumulation. With FSDP2 the student is sharded meanwhile, and whole again afterwards. The first process writes.

    Ctrl-C and SIGTERM end the current step, write a checkpoint and raise `KeyboardInterrupt` or `SystemExit(143)`; a
    second Ctrl-C leaves at once. Raises `NumericalError` naming the step for a loss or gradient that is not finite
    (no weight has been touched, the last checkpoint stands), `RunError` for a checkpoint that can't be written, is
    damaged or belongs to another run.
    """
    if settings.get("clip", 1.0) is None:
        settings["clip"] = math.inf
    training = replace(training or Training(), **settings)
    asked, training = training.named, training.default(**DEFAULTS)
    steps, lr, patience = training.whole("steps"), training.number("lr"), training.patience
    bits = training.adapter_bits
    accumulate, every, evaluate_every = (training.whole(name) for name in ("accumulate", "every", "evaluate_every"))
    clip = None if training.clip == math.inf else training.clip
    optimizer = optimizer or training.optimizer or "adamw"
    course: dict[str, Any] = {
        "steps": steps,
        "lr": lr,
        "warmup": training.warmup,
        "schedule": training.schedule,
        "min_lr": training.min_lr,
    }
    rate_at: Callable[[int], float] = partial(learning_rate, **{**course, "steps": max(1, steps)})
    rate_at(0)
    if evaluate is None and training.validates:
        held = training.validation or _VALIDATION
        batches, evaluate = _validation(student, batches, objective, count, held, training.precision or "auto")
    if training.validates and "evaluate_every" not in asked:
        epoch = len(batches) if hasattr(batches, "__len__") else steps
        evaluate_every = _evaluate_after(math.ceil(epoch / (accumulate * distributed.count())), steps)
    keep_best = (training.keep or ("best" if training.validates else "last")) == "best"
    if keep_best and evaluate is None:
        raise InputError("keep=best needs an evaluation: set patience or validation too")
    trackers = list(training.trackers or ())
    check_trackers(trackers)
    accelerator = Accelerator(log_with=trackers or None, project_dir=str(checkpoint or "."))
    if accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "FSDP"):
        raise UnsupportedError(f"training under {accelerator.distributed_type} is not supported: use torchrun or FSDP2")
    if accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2:
        raise UnsupportedError("FSDP version 1 is not supported: set fsdp_version: 2 in Accelerate's configuration")

    device, share = _choose_device(student, accelerator), distributed.count()
    sharding = accelerator.distributed_type == "FSDP" and share > 1
    with contextlib.ExitStack() as stack:
        if training.lora or training.dora:
            _check_adapters(optimizer)
            rank = training.lora or training.whole("dora")
            if bits and sharding:
                raise UnsupportedError("lora_bits holds integers, which FSDP2 can't shard: leave it out")
            stack.enter_context(lora.adapt(student, rank, dora=training.dora is not None, bits=bits, seed=seed))
        place = _find_place(training.teacher_device, device)
        modules = stack.enter_context(_prepare_modules(student, extra, frozen, device, place, dropout))
        stack.enter_context(_own_randomness(device))
        signals = stack.enter_context(_signals())
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise InputError("the student has no parameter with requires_grad: unfreeze what is to be trained")
        weight_decay, momentum = training.number("weight_decay"), training.number("momentum")
        betas = training.betas or DEFAULTS["betas"]
        groups = groups_of(student, weight_decay)
        updater = make_optimizer(optimizer, groups, device, lr=lr, betas=betas, momentum=momentum)
        _broadcast(modules)
        if sharding:
            updater = stack.enter_context(_shard(student, partial(_prepare_student, accelerator, student, updater)))
            for teacher in _choose_sharded(student, frozen) if place == device else ():
                stack.enter_context(_shard(teacher, partial(_prepare_teacher, accelerator, teacher)))
        for module in extra:
            for group in groups_of(module, weight_decay):
                updater.add_param_group(group | ({} if extra_rate == 1 else {"times": extra_rate}))
        trained = [parameter for group in updater.param_groups for parameter in group["params"]]

        settings = {
            **course,
            "weight_decay": weight_decay,
            **({"betas": list(betas)} if optimizer == "adamw" else {"optimizer": optimizers.name_of(optimizer)}),
            **({"momentum": momentum} if optimizer == "sgd" else {}),
            **{name: value for name in _ADDED if (value := getattr(training, name)) is not None},
            **({} if extra_rate == 1 else {"extra_rate": extra_rate}),
            "clip": clip,
            "seed": seed,
            "precision": _precision(training.precision or "auto", device),
            "micro_batches": accumulate * share,
        }
        narrow = _NARROW.get(settings["precision"])
        state = checkpoints.State()
        path = None if checkpoint is None else Path(checkpoint) / "training.safetensors"
        average = None if training.ema is None else Average(tensors_of(modules), training.ema)
        identity = {**settings, "ema": training.ema}
        if path is not None and path.exists():
            state = checkpoints.resume(path, modules, updater, identity, average)
        if trackers:
            accelerator.init_trackers(
                _name_project(title), config={k: v for k, v in settings.items() if isinstance(v, int | float | str)}
            )
            stack.callback(accelerator.end_training)
        if training.compile:
            stack.enter_context(compiling(student, recomputed=bool(training.checkpointing)))
        if training.checkpointing:
            stack.enter_context(recomputing(student))
        shown_here = progress and accelerator.is_main_process
        bar = stack.enter_context(show_progress(shown_here, title, steps, state.step))
        best = Best(modules, None if checkpoint is None else Path(checkpoint) / "best.safetensors")

        def save() -> None:
            if path is not None and state.saved != state.step:
                checkpoints.save(path, modules, updater, identity, state, average)
                state.saved = state.step

        def learn(
            indices: Sequence[int], micro: Sequence[Batch], totals: Mapping[str, int]
        ) -> tuple[list[Tensor], list[tuple[str, float | Tensor]]]:
            """Losses of the micro-batches and their named parts; their gradients are added up, over processes too."""
            values, parts = list[Tensor](), list[tuple[str, float | Tensor]]()
            for index, batch in zip(indices, micro, strict=True):
                _seed(seed, index)
                with (
                    torch.autocast(device.type, narrow, enabled=narrow is not None),
                    _norms_fed(),
                ):
                    value, shown = objective(devices.move(batch, device), totals)
                # FSDP2 averages over processes, and so does _share_gradients; the normalised losses are to be added.
                factor = share * (state.scale if narrow is torch.float16 else 1.0)
                accelerator.backward(value if factor == 1 else value * factor)
                values.append(value.detach())
                parts += shown.items()
            if share > 1:
                _share_gradients(trained)
            return values, parts

        while state.step < steps and not state.stopped:
            began = time.perf_counter()
            first = state.step * accumulate * share + distributed.index()
            indices = range(first, first + accumulate * share, share)
            micro = [_fetch(batches, index) for index in indices]
            totals, signalled = _totals([count(batch) for batch in micro], signals)
            if signalled:
                save()
                _leave(signalled)

            unit = state.unit = "tokens" if "tokens" in totals else "examples"

            values, parts = learn(indices, micro, totals)
            if training.sam:
                with climb(modules, trained, training.sam):
                    learn(indices, micro, totals)
            if share > 1:
                _average_buffers(modules)
            # No name holds the gradients, which would stand beside those of the next step. Reading is the one time in a
            # step that the host waits for the device.
            norm, *numbers = _read([norm_of(_gradients(trained)), *values, *(part for _, part in parts)])
            named = [(name, number) for (name, _), number in zip(parts, numbers[len(values) :], strict=True)]
            loss, shown = _add_up(numbers[: len(values)], named)
            _must_be_finite("loss", loss, state.step, path)
            factor = 1.0
            if narrow is torch.float16:
                factor, norm = 1.0 / state.scale, norm / state.scale
                state.adapt_scale(math.isfinite(norm))
            if narrow is not torch.float16 or state.scale < 1.0:
                _must_be_finite("norm of the gradient", norm, state.step, path)
            if clip is not None and norm > clip:
                factor *= clip / norm
            if factor != 1.0:
                _scale_gradients(trained, factor)
            rate = rate_at(state.step)
            set_rate(updater, rate)
            if math.isfinite(norm):  # else float16 was too narrow, and the next step has a smaller scale
                updater.step()
            updater.zero_grad(set_to_none=True)
            if average is not None:
                average.update(state.step + 1)

            elapsed = time.perf_counter() - began
            tokens = totals.get(unit, 0)
            state.advance(loss, tokens, elapsed, stride=max(1, math.ceil(steps / _POINTS)), last=steps)
            if trackers:
                record = {
                    "loss": loss,
                    "lr": rate,
                    "gradient_norm": norm,
                    f"{unit}_per_second": tokens / elapsed,
                    **shown,
                }
                accelerator.log(record, step=state.step)
            bar.show(loss, f"{tokens / elapsed:,.0f} {unit}/s")
            if evaluate is not None and (state.step % evaluate_every == 0 or state.step == steps):
                with contextlib.nullcontext() if average is None else average.in_place():
                    state.judge(_evaluate(evaluate, modules), patience)
                    if keep_best and state.best_step == state.step:
                        best.save()
                bar.note(f"evaluation {state.evaluations[-1][1]:.4g}, the best {state.best:.4g} at {state.best_step}")
            if state.step % every == 0 or state.step == steps or state.stopped:
                save()
        if signals.received:
            _leave(signals.received)
        if average is not None:
            average.swap()
        if keep_best and 0 <= state.best_step < state.step:
            best.restore()
            bar.note(f"weights of step {state.best_step} are kept, the best by evaluation")

        return Recovery(
            steps=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            flops=flops_per_token * state.tokens * (2 if training.sam else 1),
            losses=tuple((step, value) for step, value in state.losses),
            settings={
                **settings,
                **{name: training.named[name] for name in _SWITCHES if training.named.get(name)},
                **({"counted": state.unit} if state.unit != "tokens" else {}),
                **({"evaluations": state.evaluations} if evaluate else {}),
                **({"kept_step": state.best_step} if keep_best and state.best_step >= 0 else {}),
            },
        )


# ------------------------------------------------------------------------------------------------------- state


# ----------------------------------------------------------------------------------------------- one step's parts


def _fetch(batches: Any, index: int) -> Batch:
    return batches[index % len(batches)] if isinstance(batches, list | tuple) else batches[index]


def _name_project(title: str) -> str:
    """A title as all trackers take it: wandb refuses projects with one of these signs, and longer ones."""
    return re.sub(r"[/\\#?:]", "-", title.replace("%", "")).strip()[:128] or "training"


@contextlib.contextmanager
def _norms_fed() -> Iterator[None]:
    """Say in one line what torch says where a norm sees one value per channel, in a batch of one example."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a batch norm can't learn from a batch of one example, which gives it one value per channel: train on "
            "batches of at least 2 examples (batch)"
        ) from error


def _totals(counts: Sequence[Mapping[str, int]], signals: _Signals) -> tuple[dict[str, int], int]:
    """Counts summed over micro-batches and processes, and a signal that any process got: all leave at one step."""
    names = sorted(counts[0])
    values = [sum(int(one[name]) for one in counts) for name in names]
    noted = [int(signals.received == number) for number in _SIGNALS]
    *values, interrupted, terminated = distributed.total(torch.tensor([*values, *noted])).tolist()
    received = signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0
    return dict(zip(names, values, strict=True)), received


def _choose_device(student: nn.Module, accelerator: Accelerator) -> torch.device:
    """Where one process trains: where the student was put, unless it is on the CPU; several: as Accelerate says."""
    home = devices.find_device(student)
    stays = devices.is_fixed(student) or (distributed.count() == 1 and home.type != "cpu")
    return home if stays else accelerator.device


def _read(numbers: Sequence[float | Tensor]) -> list[float]:
    """The values of numbers, with one copy to the host for all that lie on another device."""
    there: dict[torch.device, dict[int, Tensor]] = {}
    found: dict[int, float] = {}
    for place, number in enumerate(numbers):
        if isinstance(number, Tensor) and number.device.type != "cpu":
            there.setdefault(number.device, {})[place] = number.detach().float().reshape(())
        else:
            found[place] = float(number)
    for tensors in there.values():
        found.update(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return [found[place] for place in range(len(numbers))]


def _add_up(losses: Sequence[float], named: Sequence[tuple[str, float]]) -> tuple[float, dict[str, float]]:
    """The loss and its named parts, added up over micro-batches and processes."""
    loss, parts = sum(losses), dict[str, float]()
    for name, value in named:
        parts[name] = parts.get(name, 0.0) + value
    if distributed.count() == 1:
        return loss, parts
    # float32: not every device has float64, and these numbers are only looked at.
    loss, *values = distributed.total(torch.tensor([loss, *parts.values()])).tolist()
    return loss, dict(zip(parts, values, strict=True))


def _broadcast(modules: Sequence[nn.Module]) -> None:
    """Give every process what the first has: what is random or rounded otherwise may have left them apart."""
    with torch.no_grad():
        for tensor in tensors_of(modules).values() if distributed.count() > 1 else ():
            distributed.broadcast(tensor)


@torch.no_grad()
def _average_buffers(modules: Sequence[nn.Module]) -> None:
    """The mean over processes of what each notes of its own micro-batches, such as running statistics."""
    buffers = [tensor for tensor in tensors_of(modules).values() if not tensor.requires_grad]
    buffers = [buffer for buffer in buffers if buffer.is_floating_point() and buffer.numel()]
    if buffers:
        mean = distributed.total(torch.cat([buffer.reshape(-1) for buffer in buffers])) / distributed.count()
        for buffer, part in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def _gradients(trained: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in trained if parameter.grad is not None]


def _scale_gradients(trained: Sequence[Tensor], factor: float) -> None:
    for gradient in _gradients(trained):
        gradient.mul_(factor)


def _share_gradients(trained: Sequence[Tensor]) -> None:
    """Average the gradients of replicated parameters over the processes (FSDP2 has done so with its shards).

    Summed here and not by DistributedDataParallel, which works only when its wrapper's `forward` is what the objective
    calls. A parameter that no process used keeps no gradient, so that AdamW leaves it alone as it would in one process.
    """
    replicated = [parameter for parameter in trained if not isinstance(parameter, DTensor)]
    if not replicated:
        return
    used = torch.tensor([parameter.grad is not None for parameter in replicated], device=replicated[0].device).int()
    used = distributed.total(used)
    for parameter, processes in zip(replicated, used.tolist(), strict=True):
        if processes:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.total(parameter.grad)
            parameter.grad /= distributed.count()


def _must_be_finite(what: str, value: float, step: int, path: Path | None) -> None:
    if not math.isfinite(value):
        rest = "" if path is None else "; the last checkpoint stands"
        raise NumericalError(f"{what} is {value} at step {step + 1}: lower the learning rate or check the data{rest}")


_VALIDATION = 0.1
"""Share of the data that `patience` judges by where nobody says how much."""


def _validation(
    student: nn.Module,
    batches: object,
    objective: Callable[[Batch, Mapping[str, int]], tuple[Tensor, Parts]],
    count: Callable[[Batch], Mapping[str, int]],
    share: float,
    precision: str,
) -> tuple[object, Callable[[], float]]:
    """(what is left to learn from, the mean objective on the part held out, in the precision of the training)."""
    rest: Any
    held_out: Any
    if isinstance(batches, list | tuple) and len(batches) > 1:
        held = max(1, round(share * len(batches)))
        rest, held_out = batches[held:], batches[:held]
    elif hasattr(batches, "hold_out"):
        rest, held_out = batches.hold_out(share)
    else:
        raise InputError(
            "patience and validation need a part of the data to judge by, and this training can't hold one out: leave "
            "them out (in Python: give evaluate=, a function that measures what should get lower)"
        )

    def evaluate() -> float:
        total, weight = 0.0, 0
        device = devices.find_device(student)
        narrow = _NARROW.get(_precision(precision, device))
        for batch in held_out:
            batch, counts = devices.move(batch, device), count(batch)
            size = counts.get("tokens", counts.get("examples", 1))
            with torch.autocast(device.type, narrow, enabled=narrow is not None):
                loss, _ = objective(batch, counts)
            total += float(loss.detach()) * size
            weight += size
        return total / max(1, weight)

    return rest, evaluate


def _evaluate_after(epoch: int, steps: int) -> int:
    """Steps between evaluations: an epoch, or a tenth of the training where that is shorter than two epochs."""
    return max(1, epoch if 2 * epoch <= steps else math.ceil(steps / 10))


def _evaluate(evaluate: Callable[[], float], modules: Sequence[nn.Module]) -> float:
    """The evaluation in eval mode, the mean over processes."""
    with evaluating(*modules), torch.no_grad():
        value = float(evaluate())
    _reshard(modules)
    # Divided first: what one process alone finds stays as it is.
    return float(distributed.total(torch.tensor(value / distributed.count(), dtype=torch.float64)))


def _reshard(modules: Sequence[nn.Module]) -> None:
    """Let go of the weights that a pass without a backward pass has gathered: what is written is the shards."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


# ----------------------------------------------------------------------------------------------- around the loop


@contextlib.contextmanager
def _prepare_modules(
    student: nn.Module,
    extra: Sequence[nn.Module],
    frozen: Sequence[nn.Module],
    device: torch.device,
    place: torch.device | None,
    dropout: bool,
) -> Iterator[list[nn.Module]]:
    """The modules on `device`, in train mode, trained weights in float32; on exit as they came, in eval mode.

    place: where the frozen ones are meanwhile; where they came from if None. Networks among them answer on `device`
    wherever they are; what the losses get of models of texts they bring there themselves, piece by piece.
    """
    modules = [student, *extra]
    moved = [*modules, *frozen]
    before = [next((p.device for p in module.parameters()), torch.device("cpu")) for module in moved]
    narrow = {
        parameter: parameter.dtype
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16)
    }
    for parameter in narrow:
        parameter.data = parameter.data.float()
    lent = contextlib.ExitStack()
    for module in frozen:
        (module if place is None else _move_module(module, place)).eval()
        if not _is_of_transformers(module) and place != device:
            lent.enter_context(_answering_on(module, device))
    for module in modules:
        _move_module(module, device).train()
        if not dropout:
            _without_dropout(module)
    try:
        with lent:
            yield modules
    finally:
        for parameter, dtype in narrow.items():
            parameter.data = parameter.data.to(dtype)
        for module, home in zip(moved, before, strict=True):
            module.eval()
            if home.type != "meta" and not any(isinstance(p, DTensor) for p in module.parameters()):
                _move_module(module, home)


def _is_of_transformers(module: nn.Module) -> bool:
    """Whether it is a model of transformers, which training a network does not load."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _find_place(wanted: str | None, device: torch.device) -> torch.device | None:
    """Where teachers run: with the student on `device`, where they are asked to, or, for "auto", where they lie."""
    if wanted is None:
        return device
    if wanted == "auto":
        return None
    check_device(wanted)
    return torch.device(wanted)


@contextlib.contextmanager
def _answering_on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Bring what `module` is asked to where it lies, and what it answers to `device`."""

    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: devices.move((args, kwargs), module), with_kwargs=True
        ),
        module.register_forward_hook(lambda _, args, output: devices.move(output, device)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _prepare_student(
    accelerator: Accelerator, student: nn.Module, updater: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    """The optimiser of `student`, which is sharded."""
    sharded, updater = accelerator.prepare(student, updater)
    if sharded is not student:
        raise UnsupportedError("FSDP2 replaced the student: turn off compilation in Accelerate's configuration")
    return updater


def _choose_sharded(student: nn.Module, frozen: Sequence[nn.Module]) -> list[nn.Module]:
    """Teachers to shard: models of transformers that can be moved, and share no weight with the student."""
    ours = set(student.parameters())
    return [
        module
        for module in frozen
        if _is_of_transformers(module) and not devices.is_fixed(module) and ours.isdisjoint(module.parameters())
    ]


def _prepare_teacher(accelerator: Accelerator, teacher: nn.Module) -> None:
    """Shard a teacher as Accelerate shards a student, in the blocks that its own architecture names."""
    plugin = accelerator.state.fsdp_plugin
    before = plugin.transformer_cls_names_to_wrap, plugin.auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted(getattr(teacher, "_no_split_modules", None) or ()) or before[0]
    try:
        fsdp2_prepare_model(accelerator, teacher)
    finally:
        plugin.transformer_cls_names_to_wrap, plugin.auto_wrap_policy = before


@contextlib.contextmanager
def _shard(model: nn.Module, prepare: Callable[[], T]) -> Iterator[T]:
    """What `prepare` gives, which shards `model` by FSDP2: after the block classes, hooks and parameters come back."""
    before = {
        module: (type(module), {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()})
        for module in model.modules()
    }
    homes = {parameter: parameter.device for parameter in model.parameters()}
    prepared = prepare()
    for parameter in homes.keys() - set(model.parameters()):
        parameter.data = parameter.data.new_empty(0)
    yield prepared
    gathered = dict[nn.Parameter, Tensor]()
    for module, (_, attributes) in before.items():
        for leaf, parameter in attributes["_parameters"].items():
            if parameter is not None and parameter not in gathered:
                gathered[parameter] = whole(cast(Tensor, module._parameters[leaf])).to(homes[parameter])
    for module, (kind, attributes) in before.items():
        now = {name: vars(module)[name] for name in ("training", "_buffers")}
        setattr(module, "__class__", kind)  # noqa: B010
        vars(module).clear()
        vars(module).update(attributes | now)
    for parameter, value in gathered.items():
        parameter.data = value.detach()


@contextlib.contextmanager
def place_for_training(*modules: nn.Module) -> Iterator[torch.device]:
    """The modules on the device where `train` would train the first of them, within the block; then where they were.

    For passes over a whole training set before and after training, such as class means.
    """
    device = _choose_device(modules[0], Accelerator())
    before = [next((p.device for p in module.parameters()), torch.device("cpu")) for module in modules]
    for module in modules:
        _move_module(module, device)
    try:
        yield device
    finally:
        for module, home in zip(modules, before, strict=True):
            if home.type != "meta":
                _move_module(module, home)


def _move_module(module: nn.Module, device: torch.device) -> nn.Module:
    return module if devices.is_fixed(module) else module.to(device)


def _without_dropout(module: nn.Module) -> None:
    """Eval mode for all but batch norms. Attention reads its own `training` flag, so dropout layers alone won't do."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()


def _check_adapters(optimizer: object) -> None:
    """Refuse adapters where an optimiser of its own decides on the weights themselves."""
    if callable(optimizer):
        raise UnsupportedError(
            "lora and dora train adapters beside the weights, and this method's own optimiser works on the weights: "
            "leave them out"
        )


def _precision(wanted: str, device: torch.device) -> str:
    if wanted == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return wanted


def _seed(seed: int, index: int) -> None:
    """Seed every generator for one micro-batch, by its number: neither a resume nor more processes change it."""
    words = np.random.SeedSequence((seed, index)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))  # noqa: NPY002 - objectives may use the global generator
    devices.seed(int(words[0]) << 32 | int(words[1]))


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators as they were, so that what follows does not depend on whether training resumed."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type not in ("cpu", "mps") else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Signals:
    received: int = 0


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Turn the first Ctrl-C and SIGTERM into a note, read between steps; the second Ctrl-C acts as ever."""
    note = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield note
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if note.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        note.received = number
        if sys.stderr.isatty():
            # Not print: a signal may come in the middle of one.
            os.write(2, b"\nFinishing this step and writing a checkpoint; Ctrl-C again leaves at once.\n")

    before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield note
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _leave(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
