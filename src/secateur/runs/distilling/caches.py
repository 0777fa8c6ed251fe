"""Caches on disk of what teachers answer: the likeliest tokens, full outputs, or log-probabilities of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur._utils import distributed
from secateur._utils.batches import Batch, Batches
from secateur._utils.rundir import Run, lock_folder
from secateur.clients.chat import Server
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.data.images import Images
from secateur.errors import DataError, InputError
from secateur.methods.served_teacher import cache_served
from secateur.recover.distillation import ensembles, teachers
from secateur.runs.backends.language import held_batches
from secateur.runs.distilling.models import Learner, as_transformer
from secateur.runs.distilling.setup import Answer, Ask, Setup, predict

__all__ = ["ask_held_out", "cache_answers", "cache_cost", "open_server"]

_ASKED_AT_ONCE = 4
"""Batches of training that a teacher reads at a time where nothing is trained meanwhile."""
_HELD_SEQUENCES = 64
"""Held-out sequences of which a server is asked what it would say."""


def cache_answers(setup: Setup, student: Learner, above: Sequence[Learner], run: Run) -> tuple[Batches, Ask | None]:
    """The batches with what their teachers say, which are asked for what is not kept; and the teachers as one, where
    the batches bring along all that they say."""
    if setup.settings.server:
        key = _cache_key(setup)
        answers = _ask_server(setup, student, run, _name(setup, "predictions"), setup.batches, setup.batch_count, key)
        return teachers.Joined(setup.batches, answers), None
    if setup.settings.cache != "all":
        return _cache_likeliest(setup, student, above, run), None
    causal = getattr(student, "causal", False)
    each = [partial(_recall, _answer_name(number), causal) for number in range(len(above))]
    return _cache_all(setup, student, above, run), setup.join(student, above, setup.settings.temperature, each)


def ask_held_out(setup: Setup, student: Learner, run: Run) -> tuple[list[dict[str, Tensor]], teachers.TopK]:
    """Batches of held-out texts, and what a server says of them."""
    batches = _held_batches(setup, student)
    key = {"data": setup.held.digest, "batches": f"{len(batches)}, {setup.settings.length} tokens"}
    return batches, _ask_server(setup, student, run, "predictions-held", batches, len(batches), key)


def cache_cost(setup: Setup, student: Learner, tokens: int) -> dict[str, float]:
    """Bytes that a cache would take, of so many tokens in all, and how often a server would be asked."""
    settings = setup.settings
    if settings.server:
        at = Path(setup.cache_at)
        train, held = (
            teachers.count_cached(at / name) if setup.cache_at else 0 for name in ("predictions", "predictions-held")
        )
        left = [
            settings.batch * max(0, settings.count - train),
            sum(len(batch["input_ids"]) for batch in _held_batches(setup, student)[held:]),
        ]
        if (judged := setup.hold_out()[1]) is not None:
            known = teachers.count_cached(at / _name(judged, "predictions")) if setup.cache_at else 0
            left.append(sum(len(batch["input_ids"]) for batch in judged.batches[known:]))
        calls = sum(1 + some for some in left if some)  # 1: what is asked to tell the tokenizer
        return {"server calls": float(calls), "cache bytes": float(tokens * (6 * settings.server_tokens + 4))}
    if settings.tokens:
        return {"cache bytes": float(tokens * len(setup.teachers) * (6 * settings.tokens + 4))}
    if not settings.cache:
        return {}
    said = [setup.ask(one)(setup.batches[0]).prediction for one in setup.teachers]
    each = (len(setup.train) * one.shape[-1] if one.dim() == 2 else settings.count * one.numel() for one in said)
    return {"cache bytes": 2.0 * sum(each)}


# --------------------------------------------------------------------------------------------------- where it is kept


@contextmanager
def _cache_folder(setup: Setup, run: Run, name: str) -> Iterator[Path]:
    """Where what a teacher says is kept: for this run, or in a folder for several, which one at a time may fill.

    A cache of something else there is an `InputError`: it is no part of the run, which may begin with another.
    """
    if not setup.cache_at:
        yield run.folder(name)
        return
    folder = Path(setup.cache_at) / name
    # Of several processes the first one writes, and has the lock.
    with lock_folder(folder) if distributed.index() == 0 else nullcontext():
        try:
            yield folder
        except DataError as error:
            raise InputError(str(error)) from error


def _cache_key(setup: Setup) -> dict[str, object]:
    """What a cache depends on beside its teacher: data and batches."""
    settings = setup.settings
    batches = f"{settings.batch} x {settings.length}, seed {settings.seed + 1}"
    apart = {} if setup.part == "all" else {"part": f"{setup.part}, {settings.validation:g} held out"}
    return {"data": setup.train.digest, "batches": batches, **apart}


def _name(setup: Setup, name: str) -> str:
    """Of the folder in which what is said of these batches is kept."""
    return f"{name}-judged" if setup.part == "judged" else name


# ------------------------------------------------------------------------------------------------------ a server's


def open_server(setup: Setup) -> Server:
    """The server that has the teacher."""
    return Server(setup.settings.server, setup.names[0])


def _ask_server(
    setup: Setup, student: Learner, run: Run, name: str, batches: Batches, count: int, key: Mapping[str, object]
) -> teachers.TopK:
    """What the server finds likeliest in `count` batches."""
    server, k = open_server(setup), setup.settings.server_tokens
    with _cache_folder(setup, run, name) as folder:
        return cache_served(folder, server, as_transformer(student).tokenizer, batches, count, key=key, k=k)


def _held_batches(setup: Setup, student: Learner) -> list[dict[str, Tensor]]:
    """Batches of held-out texts of which a server is asked."""
    batches = held_batches(setup.held, as_transformer(student).tokenizer, packed=True, length=setup.settings.length)
    return batches[: max(1, _HELD_SEQUENCES // len(batches[0]["input_ids"]))]


# ------------------------------------------------------------------------------------------------- likeliest tokens


def _cache_likeliest(setup: Setup, student: Learner, above: Sequence[Learner], run: Run) -> teachers.Joined:
    """The batches with the likeliest tokens of their teachers, which are asked once."""
    settings, kept, key = setup.settings, [], _cache_key(setup)
    tokenizer = teachers.fingerprint(as_transformer(student).tokenizer)
    for number, one in enumerate(above):
        own = {"teacher": teachers.fingerprint(one.model), "tokenizer": tokenizer}
        with _cache_folder(setup, run, _name(setup, f"predictions-{number}")) as folder:
            kept.append(teachers.cache_topk(
                folder, partial(predict, setup.ask(one)), setup.batches, setup.batch_count, key={**key, **own},
                k=settings.tokens, drawn=settings.tokens - 1, temperature=settings.temperature,
                vocabulary=teachers.check_tokens(student, one),
            ))  # fmt: skip
    return teachers.Joined(setup.batches, ensembles.Blended(kept, settings.shares or None))


# ----------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class _Ordered:
    """All examples once, in their order, `size` at a time: `ordered[i]` is a batch."""

    data: Any
    size: int
    read: Callable[[Any], Batch]

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def __getitem__(self, index: int) -> Batch:
        return self.read(self.data.take(range(index * self.size, min((index + 1) * self.size, len(self.data)))))


def _cache_all(setup: Setup, student: Learner, above: Sequence[Learner], run: Run) -> Batches:
    """The batches with all that each of their teachers says, which is asked once: see `_recall`.

    What is one row for each example, whatever stands beside it in its batch, is kept once for each.
    """
    batches: Batches = setup.batches
    settings, key = setup.settings, _cache_key(setup)
    if setup.of_texts:
        key["tokenizer"] = teachers.fingerprint(as_transformer(student).tokenizer)
    ordered = _Ordered(setup.train, _ASKED_AT_ONCE * settings.batch, _make_batch(setup, student))
    for number, one in enumerate(above):
        ask = partial(predict, setup.ask(one))
        name, own = _answer_name(number), {**key, "teacher": teachers.fingerprint(one.model)}
        in_rows = ask(setup.batches[0]).dim() == 2 and not _draws_anew(setup.train)
        place = f"predictions-{number}"
        if in_rows and setup.of_texts:  # those of all texts: both parts find theirs among them
            own.pop("part", None)
        else:
            place = _name(setup, place)
        with _cache_folder(setup, run, place) as folder:
            if in_rows:
                own |= {"batches": f"in order, {ordered.size} x {settings.length if setup.of_texts else 1}"}
                rows = setup.batches.rows if setup.of_texts else setup.batches.places
                batches = teachers.Told(batches, rows, {name: teachers.cache_rows(folder, ask, ordered, key=own)})
                continue
            known = teachers.fill_outputs(
                partial(_name_answer, name, ask), setup.batches, setup.batch_count, folder=folder, half=True, key=own
            )
            batches = teachers.Joined(batches, known, prefix="")
    return batches


def _draws_anew(data: object) -> bool:
    """Whether an example is another input in every epoch: answers are then those on a batch, and no example's own."""
    return isinstance(data, Examples) and isinstance(data.inputs, Images) and data.inputs.draws_anew


def _make_batch(setup: Setup, student: Learner) -> Callable[[Any], Batch]:
    """How a part of the data becomes one batch."""
    if not setup.of_texts:
        return Examples.batch
    length = setup.settings.length
    return lambda part: next(texts.in_order(part, as_transformer(student).tokenizer, batch=len(part), length=length))


def _answer_name(number: int) -> str:
    """What is called in the batches what a teacher has said."""
    return f"said{number}"


def _name_answer(name: str, ask: Callable[[Batch], Tensor], batch: Batch) -> dict[str, Tensor]:
    return {name: ask(batch)}


def _recall(name: str, causal: bool, batch: Batch, *, hidden: bool = False) -> Answer:
    """A teacher whose answer the batch brings along, under `name`."""
    return Answer(batch[name], causal=causal)
