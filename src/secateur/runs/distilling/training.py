"""Training of each link of the chain: its objective, its batches, and the answers of its teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur._utils.rundir import Run
from secateur.data.batches import Apart, Numbered
from secateur.measure import size
from secateur.methods.served_teacher import Live
from secateur.recover.distillation import alignment, matching, policy, taps
from secateur.recover.quantization import quantise
from secateur.recover.sparsity import masks
from secateur.recover.training import loop, objectives
from secateur.runs.distilling import caches
from secateur.runs.distilling.models import Learner, as_transformer
from secateur.runs.distilling.settings import BETA
from secateur.runs.distilling.setup import Ask, Setup
from secateur.subjects import matrices
from secateur.vocabulary import Recovery

__all__ = ["Objective", "make_objective", "rollouts", "train_student"]


@dataclass(frozen=True)
class Objective:
    """What a student is trained towards, what counts its batches, and what is trained along with it."""

    loss: Callable[..., Any]
    count: Callable[..., Any]
    extra: Sequence[nn.Module] = ()


def train_student(
    setup: Setup,
    student: Learner,
    above: Sequence[Learner],
    run: Run | None,
    name: str,
    steps: int = 0,
    bits: int = 0,
    title: str = "",
) -> Recovery:
    """Train `student` in place. Without a run, which a cache and a checkpoint need, by live teachers.

    title: what progress calls the training. With `bits` it answers with weights of so many meanwhile, and its zeros
    stay.
    """
    with _rounding(student, bits):
        return _train(setup, student, above, run, name, steps, title)


@contextmanager
def _rounding(student: Learner, bits: int) -> Iterator[None]:
    if not bits:
        yield
        return
    layers = as_transformer(student).layers()
    kept = matrices.masks_of(matrices.matrices(student.model, layers))
    quantise.prepare(student.model, bits, within=layers)
    try:
        with masks.hold(student.model, {name: mask for name, mask in kept.items() if not bool(mask.all())}):
            yield
    finally:
        quantise.finish(student.model)


def _train(
    setup: Setup, student: Learner, above: Sequence[Learner], run: Run | None, name: str, steps: int, title: str
) -> Recovery:
    settings, how = setup.settings, dict(setup.settings.training)
    asked: Ask | None = None
    if run is None:  # one step on trial is not judged
        how = {key: value for key, value in how.items() if key not in ("patience", "validation", "keep")}
    setup, judged = (setup, None) if run is None else setup.hold_out()
    if setup.apart and all(one in setup.teachers for one in above):
        how = {"teacher_device": "auto", **how}
    batches, held = setup.batches, None if judged is None else judged.batches
    torch.manual_seed(settings.seed)
    # An assistant is asked live: it has just learned, and is no large model behind a server.
    known = not settings.on_policy and settings.direction != "none" and (settings.server or settings.cache)
    kept = run is not None and known and all(one in setup.teachers for one in above)
    if run is not None and kept:
        batches, asked = caches.cache_answers(setup, student, above, run)
        if judged is not None:
            held, _ = caches.cache_answers(judged, student, above, run)
    elif above and settings.direction != "none" and not setup.by_characters(student):
        asked = setup.join(student, above, settings.temperature)
    if settings.on_policy:
        batches = rollouts(setup, student)
        if settings.server:
            tokenizer = as_transformer(student).tokenizer
            batches = Live(batches, caches.open_server(setup), tokenizer, k=settings.server_tokens)
    objective = make_objective(setup, student, above, asked, live=not kept)
    if held is not None:
        batches = Apart(batches, held)
    if settings.warm_up:
        batches = Numbered(batches, settings.steps, settings.batches_per_step)
    return loop.train(
        student.model, batches, objective.loss, steps=steps or settings.steps, lr=settings.lr, seed=settings.seed,
        dropout=False, count=objective.count, extra=objective.extra,
        frozen=[] if kept or settings.direction == "none" else [teacher.model for teacher in above],
        checkpoint=None if run is None else run.folder(name), title=title,
        flops_per_token=_flops(setup, student, above), **how,
    )  # fmt: skip


def make_objective(
    setup: Setup, student: Learner, above: Sequence[Learner], asked: Ask | None, *, live: bool = True
) -> Objective:
    """Towards its teachers, `asked` as one; those that are aligned by characters are asked each for itself."""
    settings = setup.settings
    if settings.direction == "none":  # the task alone
        asked = None
    if settings.on_policy and settings.server:
        loss = objectives.distil(
            setup.forward(student), None, output="logits", temperature=settings.temperature, fused=True
        )
        return Objective(loss, policy.count)
    if settings.on_policy:
        loss = policy.objective(
            setup.forward(student), cast(Ask, asked), beta=BETA[settings.direction], temperature=settings.temperature,
            fused=not settings.choice,
        )  # fmt: skip
        return Objective(loss, policy.count)
    if setup.by_characters(student):
        others, forward = setup.foreign(as_transformer(student)), setup.forward(student)
        loss = alignment.objective(forward, others, task=settings.task, temperature=settings.temperature)
        return Objective(loss, alignment.make_counter(list(others)))
    pairs = list[tuple[int, int]]()
    if settings.hidden and above:
        pairs = objectives.match_states(*(len(as_transformer(subject).layers()) for subject in (student, above[0])))
    projection = _projection(setup, student, above, pairs)
    loss = objectives.distil(
        setup.forward(student), asked, output=setup.output(student), task=settings.task,
        temperature=settings.temperature, direction=settings.direction, hidden=pairs, projection=projection,
        fused=setup.of_texts and not settings.choice and (live or asked is None), skew=settings.skew,
        buckets=settings.buckets, warmup=settings.ramps,
    )  # fmt: skip
    extra = [] if projection is None else [projection]
    if settings.match and above:
        loss, adapters = _with_features(setup, loss, student, above[0])
        extra.append(adapters)
    return Objective(loss, setup.count, extra)


def rollouts(setup: Setup, student: Learner) -> policy.Rollouts:
    """The batches of the setup, of which the student writes a share."""
    settings, tokenizer = setup.settings, as_transformer(student).tokenizer
    return policy.Rollouts(
        student.model, setup.batches, share=settings.on_policy, prompt=settings.prompt,
        new=settings.length - settings.prompt,
        end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, seed=settings.seed,
    )  # fmt: skip


def _projection(
    setup: Setup, student: Learner, above: Sequence[Learner], pairs: Sequence[tuple[int, int]]
) -> nn.Module | None:
    """One map from the student's width to its teacher's, where widths differ and are compared."""
    if not above or not (pairs or setup.output(student) != "logits"):
        return None
    first = {name: tensor[:1] for name, tensor in setup.batches[0].items()}
    with torch.no_grad():
        ours, theirs = (
            ask(first, hidden=True).hidden[-1] if pairs else ask(first).prediction
            for ask in (setup.forward(student), setup.forward(above[0]))
        )
    widths = ours.shape[-1], theirs.shape[-1]
    return None if widths[0] == widths[1] else nn.Linear(*widths, bias=False)


def _with_features(setup: Setup, loss: Any, student: Learner, teacher: Learner) -> tuple[Any, nn.Module]:
    """The objective with the features of the modules that are to match."""
    settings = setup.settings
    first = {name: part[:4] for name, part in setup.batches[0].items() if isinstance(part, Tensor)}
    pairs = []
    for pattern in settings.match:
        ours, _, theirs = pattern.partition("=")
        index = settings.match_index if settings.match_index and "{i}" in ours else None  # others stand beside it
        found = taps.pairs(student.model, teacher.model, ours, other=theirs, index=index)
        pairs += [(student.model, teacher.model, *one) for one in found]
    return matching.add_matching(
        loss, pairs, lambda: [setup.forward(one)(first) for one in (student, teacher)],
        kind=settings.match_loss, weights=settings.match_weight, warmup=settings.ramps.get("match", 0.0),
        balanced=settings.match_balance,
    )  # fmt: skip


def _flops(setup: Setup, student: Learner, above: Sequence[Learner]) -> float:
    """Of training, per token, where that is known."""
    if not setup.of_texts:
        return 0.0
    length = setup.settings.length
    asked: Sequence[Learner] = () if setup.settings.cache or setup.settings.direction == "none" else above
    live = sum(as_transformer(teacher).flops_per_token(length) for teacher in asked)
    return size.training_flops(as_transformer(student).flops_per_token(length), live)
