"""Teachers behind an OpenAI-compatible server: its likeliest tokens, asked once and cached as of any teacher.

Asked by `/completions` with `echo` and `logprobs`, as vLLM and llama.cpp answer it. The server has to read the
student's tokens: the ids go as they are, and what comes back is held against the student's tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock

import torch
from torch import Tensor

from secateur._utils.batches import Batch, Batches
from secateur._utils.tokenizers import Tokenizer
from secateur.clients.chat import Scored, Server
from secateur.errors import InputError, ServerError
from secateur.recover.distillation import teachers
from secateur.recover.distillation.teachers import Likeliest, TopK

__all__ = ["Live", "Names", "cache_served", "check_tokens", "likeliest"]

_ID = "token_id:"
"""How vLLM names a token by its number, where it is asked to."""
_SLACK = 1e-3
"""By how much rounded probabilities may add up to more than 1."""


class Names:
    """Which tokens of a tokenizer a string may stand for: servers write tokens in several ways."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab()
        said = tokenizer.batch_decode([[number] for number in vocabulary.values()])
        self._ids: dict[str, set[int]] = {}
        for (token, number), decoded in zip(vocabulary.items(), said, strict=True):
            for form in (token, token.replace("▁", " ").replace("Ġ", " "), decoded):
                self._ids.setdefault(form, set()).add(number)
        self._known = set(vocabulary.values())

    def ids(self, name: str) -> set[int]:
        """The tokens that `name` may stand for; none where it is unknown."""
        if name.startswith(_ID) and name[len(_ID) :].isdecimal():
            return {int(name[len(_ID) :])} & self._known
        return self._ids.get(name, set())

    def fits(self, name: str, number: int) -> bool:
        """Whether `name` may be token `number`; a piece of a character, which has no name of its own, may be any."""
        if name == f"{_ID}{number}":  # also one of a row that pads the vocabulary, which has no name
            return True
        return number in self.ids(name) or "\ufffd" in name or name.startswith("bytes:")


def check_tokens(server: Server, tokenizer: Tokenizer, names: Names | None = None) -> None:
    """Raise `InputError` where the server splits a probe text into other tokens than the student's tokenizer."""
    names = names or Names(tokenizer)
    found = server.score(teachers.PROBE, 1).tokens
    for special in (True, False):
        ids = tokenizer(teachers.PROBE, add_special_tokens=special)["input_ids"]
        if len(found) > len(ids) and all(map(names.fits, found, ids)):
            return
    raise InputError(
        f"{server} splits a probe text into other tokens than the student's tokenizer: ask a model of that tokenizer"
    )


def likeliest(scored: Scored, ids: Sequence[int], names: Names, k: int) -> Likeliest:
    """What a server said of `ids` [n], as log-probabilities and tokens [n, k] and the log of the remaining mass [n].

    Row s is what follows token s: the server's answer at s + 1, the last of them at the one token it made itself. A
    name that may stand for several tokens, or for none, leaves its probability in the remaining mass; what a row lacks
    of k is filled up with probability 0.

    Raises `InputError` where other tokens were read, `ServerError` for fewer than k likeliest, or what are no
    probabilities.
    """
    if len(scored.tokens) <= len(ids) or not all(map(names.fits, scored.tokens, ids)):
        raise InputError(
            f"the server reads other tokens than it was sent ({len(ids)}, and it told of {len(scored.tokens)}): ask a "
            "model of the student's tokenizer"
        )
    told = scored.top[1 : len(ids) + 1]
    most = max(map(len, told), default=0)
    if most < k and not any("\ufffd" in name for top in told for name in top):  # one name of several tokens
        raise ServerError(f"the server gives {most} likeliest tokens where {k} were asked for: give k={most}")
    rows = [_row(top, names, k) for top in told]
    values, indices = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    rest = 1 - values.double().exp().sum(-1)
    if bool((rest < -_SLACK).any()) or not bool((values <= _SLACK).all()):
        raise ServerError("the server's probabilities add up to more than 1: it gives no log-probabilities")
    return values, indices, rest.clamp(min=0).log().float()


def _row(top: Mapping[str, float], names: Names, k: int) -> tuple[list[float], list[int]]:
    found: dict[int, float] = {}
    for name, value in top.items():
        ids = names.ids(name)
        if len(ids) == 1:
            found[next(iter(ids))] = value
    best = sorted(found.items(), key=lambda pair: -pair[1])[:k]
    if not best:
        raise InputError("the server names no token of the student's: ask a model of the student's tokenizer")
    filled = [*best, *[(best[0][0], -math.inf)] * (k - len(best))]
    return [value for _, value in filled], [number for number, _ in filled]


class Live:
    """Batches with what a server says of them, asked as they come: `Live(batches, server, tokenizer)[i]` is batch i and

    "teacher_log_probabilities" and "teacher_indices" [n, k] and "teacher_remaining" [n] of its n tokens that count, as
    `teachers.Joined` has them of a cache. For texts that are not there before, such as those the student writes.

    Args and errors as `cache_served`; the server's tokenizer is held against the student's at the first batch.
    """

    def __init__(
        self, batches: Batches, server: Server, tokenizer: Tokenizer, *, k: int = 20, at_once: int = 4
    ) -> None:
        if k < 1 or at_once < 1:
            raise InputError(f"k={k}, at_once={at_once}: give numbers above 0")
        self._batches, self._server, self._tokenizer, self._k = batches, server, tokenizer, k
        self._names, self._checked, self._lock = Names(tokenizer), False, Lock()
        self._pool = ThreadPoolExecutor(at_once)
        self.answered = 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self._batches[index]
        values, indices, remaining = self.ask(batch)
        told = {"log_probabilities": values, "indices": indices, "remaining": remaining}
        return {**batch, **{f"teacher_{name}": tensor for name, tensor in told.items()}}

    def ask(self, batch: Batch) -> Likeliest:
        """What the server finds likeliest at the tokens of a batch that count; safe over threads."""
        with self._lock:
            if not self._checked:
                check_tokens(self._server, self._tokenizer, self._names)
            self._checked = True
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        rows = [ids[real].tolist() for ids, real in zip(batch["input_ids"], mask, strict=True) if bool(real.any())]
        stop = Event()  # once one has failed, those behind it are not asked
        waiting = [self._pool.submit(self._ask_row, ids, stop) for ids in rows]
        try:
            said = [answer.result() for answer in waiting]
        finally:
            stop.set()
            wait(waiting)
        self.answered += 1
        learned = batch.get("counted", mask)[mask]
        values, indices, remaining = (torch.cat(part)[learned] for part in zip(*said, strict=True))
        return values, indices, remaining

    def _ask_row(self, ids: Sequence[int], stop: Event) -> Likeliest:
        if stop.is_set():
            raise CancelledError
        try:
            return likeliest(self._server.score(ids, self._k), ids, self._names, self._k)
        except ServerError as error:
            stop.set()
            if "refused with HTTP" not in str(error) or "logprobs" not in str(error):
                raise
            raise ServerError(
                f"{error}; vLLM gives as many likeliest tokens as its --max-logprobs says, 20 unless told otherwise, "
                f"and OpenAI's completions 5: ask for fewer than k={self._k}, or start vLLM with more"
            ) from error


def cache_served(
    folder: str | Path,
    server: Server,
    tokenizer: Tokenizer,
    batches: Batches,
    count: int,
    *,
    key: Mapping[str, object],
    k: int = 20,
    at_once: int = 4,
    shard: int = 32,
) -> TopK:
    """The cache of `teachers.cache_topk`, filled by a server.

    Args:
        folder, batches, count, shard: as for `teachers.cache_topk`.
        server: who is asked, one sequence at a time; it retries, and knows how many calls and tokens are allowed.
        tokenizer: the student's; the server has to have the same (`check_tokens`).
        key: what the data depend on; the server, its model and the tokenizer are added.
        k: likeliest tokens per position. vLLM gives as many as its `--max-logprobs` says, 20 unless told otherwise;
            OpenAI's completions give 5, and its chats 20 of what they write themselves, but none of a text.
        at_once: how many sequences are asked for at the same time, those of the next batch among them.

    The probabilities are those at temperature 1. Of several processes each asks for its share, and no sequence is asked
    for twice. Where the server stops half-way, what it said is kept, and the same
    call goes on there. Raises `InputError` for a server with another tokenizer, `ServerError` for one that is down or
    gives no log-probabilities, `BudgetError` where no more calls are allowed, `DataError` as `teachers.cache_topk`.
    """
    key = {
        **key, "teacher": f"{server.client.url} {server.model}", "tokenizer": teachers.fingerprint(tokenizer), "k": k,
        "temperature": 1.0,
    }  # fmt: skip
    live = Live(batches, server, tokenizer, k=k, at_once=at_once)
    try:
        ahead = min(2, at_once)
        return teachers.cache_answers(folder, live.ask, batches, count, key=key, shard=shard, ahead=ahead)
    except ServerError as error:
        if not live.answered:  # nothing was kept
            raise
        raise ServerError(f"{error}; what was asked before is kept in {folder}: the same call goes on there") from error
