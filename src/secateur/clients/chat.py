"""Chat clients: a local transformers model or any server of OpenAI's protocol, behind one interface.

Keys come from the environment alone and stand in no message, log or file. A server that is slow, down or gives no valid
answer ends in one `ServerError`.
"""

from __future__ import annotations

import copy
import fcntl
import functools
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, runtime_checkable

from secateur._utils import http
from secateur._utils.http import PassingError
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import BudgetError, InputError, ServerError, opening

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SPENDING",
    "Answer",
    "LanguageModel",
    "Ledger",
    "Local",
    "Meter",
    "Scored",
    "Server",
    "SpentWarning",
    "ask_text",
    "forget_checkpoints",
    "open_local",
    "open_model",
    "opens_thinking",
    "split_thoughts",
    "with_meter",
]  # fmt: skip

_KEY, _OPENAI = "SECATEUR_LLM_KEY", "https://api.openai.com"
LONGEST = 10_000
"""Letters of an answer that are looked at; what is behind them is nonsense."""

Question = str | Sequence[Mapping[str, str]]
"""A user's words, or messages with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, how many tokens went in and came out, and whether it came to its end by itself."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """What a server says of a text, and of the one token that it goes on with: `tokens` by name.

    top: at each of them, names and log-probabilities of what it would have found likeliest there, given all before.
    The first has none.
    """

    tokens: Sequence[str]
    top: Sequence[Mapping[str, float]]
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(slots=True)
class Meter:
    """What was asked so far, and how much may be: calls, and tokens in and out together. Safe over threads.

    within: the meter of a larger whole, such as that of a run around a question's: it counts and bounds, too.
    refused: calls that were not allowed.
    """

    most_calls: int | None = None
    most_tokens: int | None = None
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    retries: int = 0
    refused: int = 0
    seconds: float = 0.0
    within: Meter | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.prompt_tokens + self.answer_tokens

    def begin(self) -> None:
        """Count a call; `BudgetError` where no more is allowed."""
        with self._lock:
            self._allow(self.calls, self.tokens)
            if self.within is not None:
                self.within.begin()
            self.calls += 1

    def end(self, answer: Answer | Scored, seconds: float) -> None:
        """Count what a call took."""
        with self._lock:
            self.prompt_tokens += answer.prompt_tokens
            self.answer_tokens += answer.answer_tokens
            self.seconds += seconds
        if self.within is not None:
            self.within.end(answer, seconds)

    def retry(self) -> None:
        """Count one more attempt at a call."""
        with self._lock:
            self.retries += 1
        if self.within is not None:
            self.within.retry()

    def _allow(self, calls: int, tokens: int) -> None:
        """Refuse one more call after so many."""
        if self.most_calls is not None and calls >= self.most_calls:
            self.refused += 1
            raise BudgetError(f"the language model was called {calls} times, as often as allowed: allow more")
        if self.most_tokens is not None and tokens >= self.most_tokens:
            self.refused += 1
            raise BudgetError(f"{tokens} tokens of {self.most_tokens} were spent on the language model: raise tokens")


@dataclass(slots=True)
class Ledger(Meter):
    """The meter of all processes of a run, in a file that outlives them: what was stopped goes on where it stood.

    `calls`, `tokens` and `refused` are this process's own; what bounds them is the sum in the file.
    """

    path: Path = field(kw_only=True)

    def begin(self) -> None:
        """Count a call; `BudgetError` where no more is allowed to all processes together."""
        with self._lock, self._lock_file() as total:
            refused = self.refused
            try:
                self._allow(total["calls"], total["tokens"])
            finally:
                total["refused"] += self.refused - refused
            if self.within is not None:
                self.within.begin()
            total["calls"] += 1
            self.calls += 1

    def end(self, answer: Answer | Scored, seconds: float) -> None:
        """Count what a call took."""
        Meter.end(self, answer, seconds)
        with self._lock, self._lock_file() as total:
            total["tokens"] += answer.prompt_tokens + answer.answer_tokens

    def total(self) -> dict[str, int]:
        """calls, tokens and refused of all processes."""
        with self._lock, self._lock_file() as total:
            return dict(total)

    @contextmanager
    def _lock_file(self) -> Iterator[dict[str, int]]:
        """What the file counts, to be changed, while no other process does."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            counts = [int(number) for number in os.pread(handle, 100, 0).split()] or [0, 0, 0]
            total = dict(zip(("calls", "tokens", "refused"), counts, strict=True))
            try:
                yield total
            finally:  # always as long, and in one piece, so that a kill leaves the old line or the new one
                os.pwrite(handle, " ".join(f"{count:20d}" for count in total.values()).encode(), 0)
        finally:
            os.close(handle)


class SpentWarning(UserWarning):
    """A bound on a whole run was reached, and the rest was done without the language model."""


Reply = TypeVar("Reply", Answer, Scored)


@runtime_checkable
class LanguageModel(Protocol):
    """Whatever answers."""

    meter: Meter

    def ask(self, question: Question, *, most: int = 256, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer in at most `most` tokens; the likeliest at temperature 0."""
        ...


THINKING = 4096
"""Tokens that a model may think before it answers, where it does."""
_THOUGHT = re.compile(r"^.*(?:</think(?:ing)?>|\[/THINK\]|<\|channel\|>final<\|message\|>)", re.DOTALL | re.IGNORECASE)
"""What a model thinks, up to the last mark of its end; its beginning may stand in the prompt."""
_BEGUN = re.compile(r"<think(?:ing)?>|\[THINK\]|<\|channel\|>analysis", re.IGNORECASE)
_READ = 500_000
"""Letters that are looked at for the end of thinking."""


@dataclass(slots=True)
class Habits:
    """What was seen of a model: whether it thinks before it answers; None until that is known."""

    thinks: bool | None = None


def ask_text(model: LanguageModel, question: Question, *, most: int = 256, room: float = math.inf, **how: Any) -> str:
    """The first letters of what a model answers, of `LONGEST` at most: whoever reads them is not to be kept busy.

    What it thinks before it answers, between <think> and </think> and their kin, is left out, and is not counted in
    `most`: a model that is cut off while it thinks, and a server whose first answer is cut off, is asked once more with
    up to `THINKING` tokens more; one that is known to think has them from the start.

    most: tokens of the answer. room: tokens of both together, at most. how: temperature and seed, see
    `LanguageModel.ask`.
    """
    habits = getattr(model, "habits", None) or Habits()
    longer = most + int(max(0, min(THINKING, min(room, _room(model, question)) - most)))
    answer = model.ask(question, most=longer if habits.thinks else most, **how)
    text, thought = split_thoughts(answer.text)
    thought = thought or (not answer.finished and opens_thinking(model, question, answer.text))
    unsure = isinstance(model, Server) and habits.thinks is None
    cut = not answer.finished and (thought or not text or unsure)
    if not habits.thinks and longer > most and (cut or (thought and not text)):
        try:
            answer = model.ask(question, most=longer, **how)
        except (BudgetError, http.RefusedError):  # spent, or longer than a server's model reads
            habits.thinks = thought
            return "" if thought else text[:LONGEST]  # what there is
        text, closed = split_thoughts(answer.text)
        thought = thought or closed
    habits.thinks = thought or bool(habits.thinks)
    return text[:LONGEST]


def split_thoughts(text: str) -> tuple[str, bool]:
    """What stands behind a model's thinking, nothing while that is not over; and whether there is any."""
    text = text[:_READ]
    end = _THOUGHT.match(text)
    if end is not None:
        return text[end.end() :].strip(), True
    return ("", True) if _BEGUN.match(text.lstrip()) else (text, False)


def opens_thinking(model: LanguageModel, question: Question, text: str = "") -> bool:
    """Whether the chat template of a local model begins its thinking, so that an answer has the end of it alone."""
    if not isinstance(model, Local) or not getattr(model.tokenizer, "chat_template", None) or _THOUGHT.match(text):
        return False
    end = model.tokenizer.decode(model.prompt(question)[-16:])
    return bool(_BEGUN.search(end)) and not _THOUGHT.search(end)


def _room(model: LanguageModel, question: Question) -> float:
    """Tokens that a model can still say, of one that knows its window."""
    return model.window - len(model.prompt(question)) if isinstance(model, Local) else math.inf


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


SPENDING = frozenset({"calls", "llm_tokens"})
"""Options of recipes that bound what is spent, and change nothing of what comes out."""


def open_model(
    source: str | LanguageModel, name: str = "", *, calls: int = 0, tokens: int = 0, device: str = "", **asked: Any
) -> LanguageModel:
    """Whatever answers, from how a user names it.

    Args:
        source: the address of a server of OpenAI's protocol, a folder or Hub id of a causal language model, or what is
            one already, whose meter goes on counting.
        name: of the model, where it is a server.
        calls, tokens: how many are allowed; no limit if 0.
        device: see `open_local`.
        asked: key, timeout, retries and per_minute of a server, see `Server`.

    Raises `InputError` for what is none, and for a server without the name of a model.
    """
    if not isinstance(source, str):
        if not isinstance(source, LanguageModel):
            raise InputError(f"a language model is a folder, a Hub id or an address, not {type(source).__name__}")
        return with_meter(source, Meter(calls or None, tokens or None)) if calls or tokens else source
    meter = Meter(calls or None, tokens or None)
    if http.is_address(source):
        if not name:
            raise InputError(
                "a server is asked for a model by name: give it, such as the one that its /v1/models lists"
            )
        return Server(source, name, meter=meter, **asked)
    model = open_local(source, device)
    return Local(model.model, model.tokenizer, meter)


def with_meter(model: LanguageModel, meter: Meter) -> LanguageModel:
    """The same model with `meter`, within the one that it has: both count, and both bound."""
    found = copy.copy(model)
    meter.within, found.meter = model.meter, meter
    return found


# ---------------------------------------------------------------------------------------------------------- local


def open_local(source: str | Local, device: str = "") -> Local:
    """A causal language model with its tokenizer, from a folder or Hub id, opened once; or the one that is given.

    device: where one that is opened is held, "cuda"; the processor if empty. A given one stays where it is.

    Raises `InputError` for what is none. Weights are read from safetensors and no code of a checkpoint is run.
    """
    if isinstance(source, Local):
        return source
    if not isinstance(source, str):
        raise InputError(f"a language model is a folder, a Hub id or chat.Local, not {type(source).__name__}")
    return _open_checkpoint(source, device or "cpu")


def forget_checkpoints() -> None:
    """Read checkpoints anew from now on: what lies in a folder is another one."""
    _open_checkpoint.cache_clear()


@functools.lru_cache(maxsize=2)
def _open_checkpoint(name: str, device: str) -> Local:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from secateur._utils.modes import move_to_device

    with opening("language model", name):
        model = AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, use_kernels=False, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    move_to_device(model, device)
    return Local(model.eval(), tokenizer)


class Local:
    """A causal language model of transformers with its tokenizer; its chat template is used where it has one."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, meter: Meter | None = None) -> None:
        self.model, self.tokenizer, self.meter, self.habits = model, tokenizer, meter or Meter(), Habits()

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

    def copy(self) -> Local:
        """The same, with a model and a meter of its own."""
        return Local(copy.deepcopy(self.model), self.tokenizer)

    def save(self, folder: str | Path) -> None:
        """An ordinary checkpoint: model and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def ask(self, question: Question, *, most: int = 256, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer in at most `most` tokens. Raises `InputError` for a question longer than the model can read."""
        import torch  # which servers do not need

        from secateur._utils.modes import evaluating

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
        devices = [given.device] if given.is_cuda else []
        with torch.no_grad(), evaluating(self.model), torch.random.fork_rng(devices=devices):
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
        key: the environment variable that holds the key. If empty, that is SECATEUR_LLM_KEY for any server, or
            OPENAI_API_KEY for OpenAI's own, which no other server gets; none is sent where none is set.
        requests: see `http.RequestOptions`.
        meter: counts calls and tokens, and how many are allowed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str = "",
        meter: Meter | None = None,
        **requests: Unpack[http.RequestOptions],
    ) -> None:
        key = http.check_key(key) if key else _variable(url)
        self.client = http.Client(url, example="http://localhost:8000/v1", key=key, **requests)
        self.model, self.key, self.meter, self.habits = model, key, meter or Meter(), Habits()

    def close(self) -> None:
        """Close its connections, for good."""
        self.client.close()

    def __repr__(self) -> str:
        return f"Server({self.client.url!r}, {self.model!r})"

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
        return self._post("/chat/completions", body, _read)

    def write(
        self, prompt: str, *, most: int = 256, temperature: float = 0.0, top_p: float = 1.0, stop: str = "",
        chat: bool = False, seed: int = 0,
    ) -> Answer:  # fmt: skip
        """What the model writes after a prompt, as it stands, or with `chat` what it answers to it; raises as `ask`.

        stop: what ends the text; some servers leave it out of it, some do not.
        """
        _at_least_one(most)
        body: dict[str, object] = {
            "model": self.model, "max_tokens": most, "temperature": temperature, "top_p": top_p, "seed": seed,
            **({"stop": [stop]} if stop else {}),
        }  # fmt: skip
        if chat:
            return self._post("/chat/completions", {**body, "messages": _messages(prompt)}, _read)
        return self._post("/completions", {**body, "prompt": prompt}, _read_completion)

    def score(self, prompt: str | Sequence[int], k: int) -> Scored:
        """What the server finds likeliest, `k` tokens, at each place of `prompt`, text or token ids, and after it.

        Asked by `/completions` with `echo` and `logprobs`. Raises as `ask`, and `ServerError` where the server tells no
        log-probabilities of what it reads.
        """
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": k,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        return self._post("/completions", body, _read_scored)

    def _post(self, path: str, body: Mapping[str, object], read: Callable[[bytes], Reply]) -> Reply:
        self.meter.begin()
        began = time.perf_counter()
        answer = self.client.post(path, read, again=self.meter.retry, json=body)
        self.meter.end(answer, time.perf_counter() - began)
        return answer


def _variable(url: str) -> str:
    """The variable in which the key of a server belongs: OpenAI's is for OpenAI alone."""
    theirs = url.lower().startswith(f"{_OPENAI}/") and not os.environ.get(_KEY)
    return "OPENAI_API_KEY" if theirs else _KEY


def _read(raw: bytes) -> Answer:
    """The answer in a reply; `PassingError` for what is none."""
    answer = _read_choice(raw, lambda choice: choice["message"]["content"], "chat completion")
    return replace(answer, text=answer.text.strip())


def _read_completion(raw: bytes) -> Answer:
    return _read_choice(raw, lambda choice: choice["text"], "completion")


def _read_choice(raw: bytes, read: Callable[[Mapping[str, Mapping[str, object]]], object], kind: str) -> Answer:
    try:
        found = json.loads(raw)
        choice = found["choices"][0]
        text = read(choice)
        usage = found.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        finished = choice.get("finish_reason") != "length"
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PassingError(f"what came is no {kind}") from error
    if text is None:
        text = ""  # some servers say nothing by saying null
    if not isinstance(text, str):
        raise PassingError(f"what came is no {kind}")
    asked, said = map(_count, counts)
    # A server that does not count is counted roughly, so that a budget still ends.
    return Answer(text, asked, said or len(text) // 4 + 1, finished)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _read_scored(raw: bytes) -> Scored:
    """The log-probabilities in a reply; `PassingError` for what is none, `ServerError` for one without them."""
    try:
        found = json.loads(raw)
        told = found["choices"][0]["logprobs"]
        if not told or not told.get("top_logprobs"):
            raise ServerError("the server tells no log-probabilities of a prompt: it needs echo and logprobs, as vLLM")
        tokens = [str(token) for token in told["tokens"]]
        top = [{str(name): float(value) for name, value in (place or {}).items()} for place in told["top_logprobs"]]
        usage = found.get("usage") or {}
        asked, said = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise PassingError("what came is no completion") from error
    if len(tokens) != len(top) or any(math.isnan(value) for place in top for value in place.values()):
        raise PassingError("what came is no completion")
    return Scored(tokens, top, asked or len(tokens) - 1, said or 1)
