"""WHO IS ASKED: language models that answer in words, a local one or any server of OpenAI's protocol; one interface.

Keys come from the environment alone and stand in no message, log or file. A server may be slow, down or lie: what comes
of that is waited out within bounds, and then one `ServerError`.
"""

from __future__ import annotations

import email.utils
import functools
import json
import math
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import torch

from secateur.errors import BudgetError, InputError, MissingExtraError, ServerError, opening
from secateur.modes import evaluating

__all__ = ["Answer", "LanguageModel", "Local", "Meter", "Server", "opened"]

Question = str | Sequence[Mapping[str, str]]
"""A user's words, or messages with `role` and `content`."""

LARGEST = 16 * 2**20
"""Bytes of an answer; what is longer is no answer."""
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, how many tokens went in and came out, and whether it came to its end by itself."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finished: bool = True


@dataclass(slots=True)
class Meter:
    """What was asked so far, and how much may be: calls, and tokens in and out together. Safe over threads."""

    most_calls: int | None = None
    most_tokens: int | None = None
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    retries: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.prompt_tokens + self.answer_tokens

    def begin(self) -> None:
        """Count a call; `BudgetError` where no more is allowed."""
        with self._lock:
            if self.most_calls is not None and self.calls >= self.most_calls:
                raise BudgetError(f"the language model was called {self.calls} times, as often as allowed: allow more")
            if self.most_tokens is not None and self.tokens >= self.most_tokens:
                raise BudgetError(
                    f"{self.tokens} tokens of {self.most_tokens} were spent on the language model: raise tokens"
                )
            self.calls += 1

    def end(self, answer: Answer, seconds: float) -> None:
        """Count what a call took."""
        with self._lock:
            self.prompt_tokens += answer.prompt_tokens
            self.answer_tokens += answer.answer_tokens
            self.seconds += seconds

    def retry(self) -> None:
        """Count one more attempt at a call."""
        with self._lock:
            self.retries += 1


@runtime_checkable
class LanguageModel(Protocol):
    """Whatever answers."""

    meter: Meter

    def ask(self, question: Question, *, most: int = 256, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer in at most `most` tokens; the likeliest at temperature 0."""
        ...


def _at_least_one(most: int) -> None:
    if most < 1:
        raise InputError(f"most={most}: give the tokens of an answer, at least 1")


def _messages(question: Question) -> list[dict[str, str]]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    found = [dict(message) for message in question]
    if not found or any(set(message) != {"role", "content"} for message in found):
        raise InputError("a question is text, or messages with role and content, at least one")
    return found


# ---------------------------------------------------------------------------------------------------------- local


def opened(source: str | Local) -> Local:
    """A causal language model with its tokenizer, from a folder or Hub id, opened once; or the one that is given.

    Raises `InputError` for what is none. Weights are read from safetensors and no code of a checkpoint is run.
    """
    if isinstance(source, Local):
        return source
    if not isinstance(source, str):
        raise InputError(f"a language model is a folder, a Hub id or llms.Local, not {type(source).__name__}")
    return _opened(source)


@functools.lru_cache(maxsize=2)
def _opened(name: str) -> Local:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with opening("language model", name):
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        return Local(model.eval(), AutoTokenizer.from_pretrained(name, trust_remote_code=False))


class Local:
    """A causal language model of transformers with its tokenizer; its chat template is used where it has one."""

    def __init__(self, model: Any, tokenizer: Any, meter: Meter | None = None) -> None:
        self.model, self.tokenizer, self.meter = model, tokenizer, meter or Meter()

    @property
    def window(self) -> float:
        """How many tokens the model can read; infinite where it sets no limit."""
        return float(getattr(self.model.config, "max_position_embeddings", None) or math.inf)

    def prompt(self, question: Question) -> list[int]:
        """The tokens that an answer to the question follows on."""
        messages = _messages(question)
        if getattr(self.tokenizer, "chat_template", None):
            ids: list[int] = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            return ids
        ids = self.tokenizer("\n".join(message["content"] for message in messages) + "\n")["input_ids"]
        while ids and ids[-1] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            ids = ids[:-1]  # some tokenizers close every text, and nothing follows an end
        return ids

    @torch.no_grad()
    def ask(self, question: Question, *, most: int = 256, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer in at most `most` tokens. Raises `InputError` for a question longer than the model can read."""
        _at_least_one(most)
        ids = self.prompt(question)
        if len(ids) + most > self.window:
            raise InputError(
                f"a question of {len(ids)} tokens, and {most} of an answer: the model reads {self.window:.0f}, so "
                "shorten it"
            )
        self.meter.begin()
        began = time.perf_counter()
        given = torch.tensor([ids], device=self.model.device)
        how: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        )
        end = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else end
        with evaluating(self.model), torch.random.fork_rng(devices=[given.device] if given.is_cuda else []):
            torch.manual_seed(seed)
            out = self.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=most, pad_token_id=pad, **how
            )
        said = out[0, len(ids) :].tolist()
        answer = Answer(self.tokenizer.decode(said, skip_special_tokens=True).strip(), len(ids), len(said), end in said)
        self.meter.end(answer, time.perf_counter() - began)
        return answer


# --------------------------------------------------------------------------------------------------------- server


class Server:
    """A server of chat completions, such as vLLM, llama.cpp, Ollama or OpenAI's own.

    Args:
        url: up to and with the version, such as http://localhost:8000/v1.
        model: the name that the server knows it by.
        key: the environment variable that holds the key; none is sent where it is not set.
        timeout: seconds to wait for an answer.
        retries: further attempts after a failure that may pass: no connection, no answer in time, no JSON, too many
            requests (`Retry-After` is kept to), or a fault of the server's own.
        backoff: seconds before the first of them, about; each waits twice as long as the one before, at most a minute.
        per_minute: calls started in any minute at most; no limit if 0.
        meter: counts calls and tokens, and how many are allowed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        per_minute: int = 0,
        meter: Meter | None = None,
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("asking a server needs httpx2: pip install 'secateur[context]'") from error
        for name, value, least in (("retries", retries, 0), ("backoff", backoff, 0), ("per_minute", per_minute, 0)):
            if not value >= least:
                raise InputError(f"{name}={value}: give a number of at least {least}")
        if not timeout > 0:
            raise InputError(f"timeout={timeout}: give seconds above 0")
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # half an IPv6 address, a port that is no number or too large
            known = False
        if not known:  # what was given is not told, since it may hold a secret
            raise InputError("the address of the server is none: give such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise InputError(f"the address of {parts.hostname} holds a secret: put the key in the variable {key}")
        self.url, self.model, self.key = url.rstrip("/"), model, key
        self.retries, self.backoff, self.per_minute = retries, backoff, per_minute
        self.meter = meter or Meter()
        self._started, self._lock = list[float](), threading.Lock()
        self._jitter = random.Random()  # of its own: a caller's draws repeat under their seed
        # A redirect would take the key to whoever it names.
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)), follow_redirects=False
        )
        self._http = httpx2

    def close(self) -> None:
        """Close its connections, for good."""
        self._client.close()

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {self.model!r})"

    def ask(self, question: Question, *, most: int = 256, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer in at most `most` tokens.

        Raises:
            ServerError: no answer, after all attempts; or a refusal, which is not asked again.
            BudgetError: no more calls or tokens are allowed.
        """
        _at_least_one(most)
        body = {
            "model": self.model, "messages": _messages(question), "max_tokens": most, "temperature": temperature,
            "seed": seed,
        }  # fmt: skip
        self.meter.begin()
        began, wait, why = time.perf_counter(), self.backoff, ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.meter.retry()
            self._take_turn()
            try:
                answer = self._once(body)
            except _PassingError as error:
                why, pause = str(error), error.wait if error.wait is not None else wait * self._jitter.uniform(0.5, 1.0)
                wait = min(2 * wait, 60.0)
                if attempt < self.retries:
                    time.sleep(min(pause, 60.0))
                continue
            self.meter.end(answer, time.perf_counter() - began)
            return answer
        raise ServerError(f"{self.url} gave no answer in {self.retries + 1} attempts: {why}")

    def _take_turn(self) -> None:
        """Wait until a call may start."""
        while self.per_minute:
            with self._lock:
                now = time.monotonic()
                self._started = [start for start in self._started if now - start < 60.0]
                if len(self._started) < self.per_minute:
                    self._started.append(now)
                    return
                pause = 60.0 - (now - self._started[0])
            time.sleep(pause)

    def _once(self, body: Mapping[str, Any]) -> Answer:
        secret = os.environ.get(self.key, "")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as reply:
                raw = bytearray()
                for part in reply.iter_bytes():
                    raw += part
                    if len(raw) > LARGEST:
                        raise _PassingError(f"an answer of more than {LARGEST >> 20} MiB")
                status, asked = reply.status_code, reply.headers.get("Retry-After", "")
        except self._http.TimeoutException as error:
            raise _PassingError("no answer in time") from error
        except (self._http.HTTPError, self._http.InvalidURL, OSError) as error:
            raise _PassingError(type(error).__name__) from error
        if status in _AGAIN:
            raise _PassingError(f"HTTP {status}", _seconds(asked))
        if status != 200:
            hint = f": is the key in {self.key} right?" if status in (401, 403) else f": {_excerpt(raw, secret)}"
            raise ServerError(f"{self.url} refused with HTTP {status}{hint}")
        return _read(bytes(raw))


class _PassingError(Exception):
    """A failure that may pass; `wait`: seconds that the server asks for."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


def _seconds(asked: str) -> float | None:
    """`Retry-After`: seconds or a date; None for anything else."""
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _excerpt(raw: bytes | bytearray, secret: str) -> str:
    """What a refusal says, in one line, without the key should it be told back."""
    text = raw[:4096].decode("utf-8", "replace")
    text = text.replace(secret, "***") if secret else text
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200] or "nothing"


def _read(raw: bytes) -> Answer:
    """The answer in a reply; `_PassingError` for what is none."""
    try:
        found = json.loads(raw)
        choice = found["choices"][0]
        text = choice["message"]["content"]
        usage = found.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        finished = choice.get("finish_reason") != "length"
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _PassingError("what came is no chat completion") from error
    if text is None:
        text = ""  # some servers say nothing by saying null
    if not isinstance(text, str):
        raise _PassingError("what came is no chat completion")
    asked, said = (count if isinstance(count, int) and count >= 0 else 0 for count in counts)
    # A server that does not count is counted roughly, so that a budget still ends.
    return Answer(text.strip(), asked, said or len(text) // 4 + 1, finished)
