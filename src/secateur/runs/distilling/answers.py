"""Sequence-level distillation: a teacher answers the prompts of a task file, and its right answers are the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from secateur._utils import distributed
from secateur.clients import chat
from secateur.clients.completions import Completer, Local, Served
from secateur.errors import InputError, UnsupportedError
from secateur.methods import tasks as asking
from secateur.methods import traces
from secateur.runs import backends
from secateur.runs.backends import AnyBackend, Data
from secateur.runs.distilling.models import Model
from secateur.runs.distilling.settings import Settings
from secateur.subjects import Transformer

__all__ = ["answer_tasks"]


def answer_tasks(
    backend: AnyBackend,
    sources: Sequence[Model],
    data: Data,
    place: Path,
    settings: Settings,
    device: str | None,
    *,
    dry_run: bool,
) -> tuple[Data, list[str]]:
    """(a file of prompts and right answers, or rows for a dry run; notes).

    place: folder whose sub-folder of this teacher, task and seed keeps all answers: the same call goes on there, and
    another student with the same teacher takes them from there. A dry run asks nobody, and takes the answers that the
    task file gives.

    Raises `InputError` for several teachers or data that is no task file, `DataError` where no answer is right.
    """
    if not isinstance(data, str | Path):
        raise InputError("answers are written to the prompts of a task file: give its path as data")
    tasks = asking.read_tasks(data)
    if len(sources) > 1:
        raise InputError(f"answers are of one teacher: {len(sources)} are given; name one")
    if dry_run:
        rows = [{"prompt": item.prompt, "completion": item.answers[0]} for task in tasks for item in task.items]
        return rows, ["a dry run asks no teacher: lengths are those of the task's own answers"]
    completer, identity = _open(backend, sources[0], settings, device)
    key = repr((identity, [task.digest for task in tasks], settings.answers, settings.seed))
    folder = place / hashlib.sha256(key.encode()).hexdigest()[:12]
    tokenizer = completer.tokenizer if isinstance(completer, Local) else None
    write = partial(
        traces.write_right_answers,
        completer,
        data,
        folder / "right.jsonl",
        tokenizer=tokenizer,
        times=settings.answers,
        seed=settings.seed,
    )
    right, count = distributed.by_first(write)
    return folder / "right.jsonl", [f"{right} of {count} answers of {completer.name} are right, and are learned"]


def _open(backend: AnyBackend, source: Model, settings: Settings, device: str | None) -> tuple[Completer, str]:
    """Who answers, and what tells it from others."""
    if settings.server:
        server = chat.Server(settings.server, str(source))
        return Served(server), f"{server.client.url} {server.model}"
    subject = backend.open(source, device, None)
    if not isinstance(subject, Transformer) or not subject.causal:
        raise UnsupportedError("answers are written by language models: this teacher is none")
    name = Path(backends.name_source(source)).name
    return Local(subject.model, subject.tokenizer, name=name, batch=settings.batch), backend.digest(subject)
