"""What models write after many prompts: a transformers model in batches, or a server of OpenAI's protocol by its URL.

A `Completer` gives for each prompt the text, how many tokens it took, and whether it came to its end by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from secateur._utils.tokenizers import Tokenizer
from secateur.clients import chat
from secateur.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Completer", "Completion", "Contrasting", "Local", "Served", "Writing"]


@dataclass(frozen=True, slots=True)
class Writing:
    """How to write on.

    most: tokens, at most. temperature: 0 for the likeliest token each time. top_p: share of the probability that is
    drawn from. stop: what ends a text, such as a line's end, and does not belong to it; nothing if empty. chat: prompts
    are a user's words, and go through the chat template.
    """

    most: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    stop: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        if self.most < 1:
            raise InputError(f"{self.most} tokens to write: give at least 1")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError(
                f"temperature={self.temperature}, top_p={self.top_p}: give a temperature of at least 0, a share up to 1"
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """A text that follows a prompt. tokens: of the text alone; finished: it ended before `most` were written.

    begun: a chat template has begun its thoughts, so that it has the end of them alone.
    """

    text: str
    tokens: int
    finished: bool
    begun: bool = False


class Completer(Protocol):
    """Whatever writes on."""

    name: str

    @property
    def window(self) -> float:
        """Tokens of prompt and text together, at most; infinite where that is not known."""
        ...

    def count(self, prompt: str, how: Writing) -> int:
        """Tokens of the prompt as it is read; 0 where that is not known."""
        ...

    def stream(self, prompts: Sequence[str], how: Writing, seed: int = 0) -> Iterator[Mapping[int, Completion]]:
        """What follows the prompts, by their places, each as soon as it is there, with what came together with it.

        The same again for the same prompts and `seed`, in any order.
        """
        ...

    def write(self, prompts: Sequence[str], how: Writing, seed: int = 0) -> list[Completion]:
        """What follows each prompt, in their order, once all are there."""
        found = dict[int, Completion]()
        for some in self.stream(prompts, how, seed):
            found |= some
        return [found[place] for place in range(len(prompts))]


class Local(Completer):
    """A causal language model of transformers with its tokenizer, where it lies.

    batch: prompts at once. Those of about the same length go together, filled up on their left: greedy texts do not
    depend on it but for rounding.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, *, name: str = "", batch: int = 32) -> None:
        self.model, self.tokenizer, self.batch, self.name = model, tokenizer, batch, name or type(model).__name__
        self._chat = chat.Local(model, tokenizer)

    @property
    def window(self) -> float:
        """How many tokens the model can read."""
        return self._chat.window

    def count(self, prompt: str, how: Writing) -> int:
        """Tokens of the prompt as it is read."""
        return len(self._ids(prompt, how))

    def stream(self, prompts: Sequence[str], how: Writing, seed: int = 0) -> Iterator[Mapping[int, Completion]]:
        """See `Completer.stream`: batch by batch. Raises `InputError` for a prompt that leaves no room for the text."""
        rows = [self._ids(prompt, how) for prompt in prompts]
        for row in rows:
            if len(row) + how.most > self.window:
                raise InputError(
                    f"a prompt of {len(row)} tokens, and {how.most} to write: the model reads {self.window:.0f}, so "
                    "shorten it"
                )
        begun = bool(how.chat and prompts and chat.opens_thinking(self._chat, prompts[0]))
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        for begin in range(0, len(order), self.batch):
            some = order[begin : begin + self.batch]
            found = self._write([rows[at] for at in some], [prompts[at] for at in some], how, seed)
            yield {at: replace(one, begun=begun) for at, one in zip(some, found, strict=True)}

    def _ids(self, prompt: str, how: Writing) -> list[int]:
        if how.chat:
            return self._chat.prompt(prompt)
        ids: list[int] = list(self.tokenizer(prompt)["input_ids"])
        while ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()  # some tokenizers close every text, and nothing follows an end
        if not ids:
            first = (getattr(self.tokenizer, "bos_token_id", None), self.tokenizer.eos_token_id)
            ids = [one for one in first if one is not None][:1]
        if not ids:
            raise InputError("an empty prompt, and the tokenizer has no token to begin with: give a prompt")
        return ids

    def _write(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[str], how: Writing, seed: int
    ) -> Iterator[Completion]:
        import torch  # which servers do not need

        from secateur._utils.modes import evaluating

        longest, end = max(map(len, rows)), self._ends()
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else next(iter(end), 0)
        place = self.model.device
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=place)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=place)
        asked: dict[str, Any] = {"do_sample": False}
        if how.temperature > 0:
            asked = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
        if how.stop:
            asked["stopping_criteria"] = [self._make_stop(how.stop, longest)]
        if (weigh := self._make_weighing(prompts, how, longest)) is not None:
            asked["logits_processor"] = [weigh]
        devices = [place] if place.type == "cuda" else []
        with torch.no_grad(), evaluating(self.model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out: Tensor = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=how.most, pad_token_id=pad, **asked
            )
        for said in out[:, longest:].tolist():
            yield self._read(said, how, end)

    def _make_weighing(self, prompts: Sequence[str], how: Writing, begin: int) -> Callable[..., Tensor] | None:
        """For `generate`: (tokens [B, S], scores [B, V]) -> other scores; what is written stands from `begin` on."""
        return None

    def _ends(self) -> set[int]:
        """The tokens that end a text: those of the generation config, or the tokenizer's."""
        told = getattr(self.model.generation_config, "eos_token_id", None)
        told = self.tokenizer.eos_token_id if told is None else told
        return set(told) if isinstance(told, list) else set() if told is None else {told}

    def _make_stop(self, stop: str, begin: int) -> Callable[..., Tensor]:
        """For `generate`: which rows hold it at their end, behind the first `begin` tokens.

        transformers' own fails on tokenizers with few letters.
        """
        import torch

        last = 4 * len(stop) + 1  # a letter takes up to four tokens of bytes

        def holds_stop(ids: Tensor, scores: object, **_: object) -> Tensor:
            texts = self.tokenizer.batch_decode(
                ids[:, max(begin, ids.shape[1] - last) :].tolist(), skip_special_tokens=True
            )
            return torch.tensor([stop in text for text in texts], device=ids.device)

        return holds_stop

    def _read(self, said: Sequence[int], how: Writing, end: set[int]) -> Completion:
        """What was written up to its end, or to `stop`; behind these stands padding."""
        length = next((at for at, token in enumerate(said) if token in end), len(said))
        finished, text = length < len(said), self.tokenizer.decode(said[:length], skip_special_tokens=True)
        if how.stop and how.stop in text:
            low, high = 1, length  # the fewest tokens that hold it: what follows is padding
            while low < high:
                middle = (low + high) // 2
                held = how.stop in self.tokenizer.decode(said[:middle], skip_special_tokens=True)
                low, high = (low, middle) if held else (middle + 1, high)
            length, finished, text = low, True, text.partition(how.stop)[0]
        return Completion(text, length, finished)


class Contrasting(Local):
    """The same, by context-aware decoding: what the context of a prompt makes likelier counts more.

    ``ln P'(y) = (1 + weight) ln P(y | prompt) - weight ln P(y | bare) + constant``, each given what was written before
    y. bare: prompt -> the same without its context, asked anew for each token, as it is short.

    Source: Shi et al., "Trusting Your Evidence" (arXiv 2305.14739), section 2.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        bare: Callable[[str], str],
        weight: float,
        *,
        batch: int = 32,
    ) -> None:
        super().__init__(model, tokenizer, batch=batch)
        self.bare, self.weight = bare, weight

    def _make_weighing(self, prompts: Sequence[str], how: Writing, begin: int) -> Callable[..., Tensor]:
        import torch

        rows = [self._ids(self.bare(prompt), how) for prompt in prompts]
        longest = max(map(len, rows))

        def weigh(ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            said, width = ids[:, begin:].tolist(), longest + ids.shape[1] - begin
            full = [[*row, *more] for row, more in zip(rows, said, strict=True)]
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in full], device=ids.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in full], device=ids.device)
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            last = torch.tensor([len(row) - 1 for row in full], device=logits.device)
            bare = logits[torch.arange(len(full), device=logits.device), last].to(scores)
            contrast: Tensor = (1 + self.weight) * scores.log_softmax(-1) - self.weight * bare.log_softmax(-1)
            return contrast

        return weigh


class Served(Completer):
    """A model behind a server of OpenAI's protocol, such as vLLM or llama.cpp, several requests in flight.

    Prompts go to `/completions`; with `Writing.chat` to `/chat/completions`.
    """

    window = math.inf

    def __init__(self, server: chat.Server, *, parallel: int = 8) -> None:
        self.server, self.parallel, self.name = server, parallel, server.model

    def count(self, prompt: str, how: Writing) -> int:
        """Not known."""
        return 0

    def stream(self, prompts: Sequence[str], how: Writing, seed: int = 0) -> Iterator[Mapping[int, Completion]]:
        """See `Completer.stream`.

        Raises `ServerError` where the server is down or refuses, behind the answers to all that was asked by then.
        """

        def one(prompt: str) -> Completion:
            answer = self.server.write(
                prompt, most=how.most, temperature=how.temperature, top_p=how.top_p, stop=how.stop, chat=how.chat,
                seed=seed,
            )  # fmt: skip
            text, cut, _ = answer.text.partition(how.stop) if how.stop else (answer.text, "", "")
            return Completion(text, answer.answer_tokens, answer.finished or bool(cut))

        with ThreadPoolExecutor(max(1, self.parallel), thread_name_prefix="secateur") as pool:
            places = {pool.submit(one, prompt): place for place, prompt in enumerate(prompts)}
            failure: BaseException | None = None
            try:
                for future in as_completed(places):
                    if future.cancelled():
                        continue
                    failure = failure or future.exception()
                    if future.exception() is None:
                        yield {places[future]: future.result()}
                    else:
                        _cancel(places)
            finally:
                _cancel(places)
        if failure is not None:
            raise failure


def _cancel(futures: Iterable[Future[Completion]]) -> None:
    """Those that have not begun; others come to their end."""
    for future in futures:
        future.cancel()
