"""How likely a model finds a continuation of a prompt: the product of what it gives each token, teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur._utils.batches import Batch
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import DataError, MeasurementError
from secateur.measure.quality import read_logits

__all__ = ["Span", "encode", "log_probabilities", "span_log_probabilities"]

Forward = Callable[[Batch], Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Token ids of a prompt and of what follows it; neither is empty."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


def encode(tokenizer: Tokenizer, prompt: str, continuations: Iterable[str]) -> list[Span]:
    """`prompt` with each of its continuations as tokens.

    Blanks at the prompt's end go over to the continuation, where tokenizers want them. Where the tokens of both
    together begin with those of the prompt, the rest are the continuation's; else it is tokenised alone, so that all
    continuations follow the same tokens. An empty prompt is the tokenizer's first token (bos), or its last (eos).

    Raises `DataError` for a continuation without a token, or an empty prompt where there is neither token.
    """
    bare = prompt.rstrip()
    blanks = prompt[len(bare) :]
    begin = _ids(tokenizer, bare)
    if not begin:
        first = (getattr(tokenizer, "bos_token_id", None), tokenizer.eos_token_id)
        begin = [next((one for one in first if one is not None), -1)]
        if begin[0] < 0:
            raise DataError("an empty prompt, and the tokenizer has no token to begin with: give a prompt")
    spans = []
    for continuation in continuations:
        rest = blanks + continuation
        both = _ids(tokenizer, bare + rest)
        together = bool(bare) and both[: len(begin)] == begin
        ids = both[len(begin) :] if together else _ids(tokenizer, rest, add_special_tokens=False)
        if not ids:
            raise DataError(f"the continuation {continuation!r} holds no token: give a text")
        spans.append(Span(tuple(begin), tuple(ids)))
    return spans


def _ids(tokenizer: Tokenizer, text: str, **options: object) -> list[int]:
    """The tokens of a text, without one that ends it: what follows is to be predicted."""
    ids: list[int] = list(tokenizer(text, **options)["input_ids"]) if text else []
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def log_probabilities(forward: Forward, spans: Sequence[Span], *, pad: int = 0, batch: int = 32) -> list[Tensor]:
    """For each span the natural logarithm of each continuation token's probability, float64 [tokens] on the CPU.

    forward(batch): logits [B, S, V], or an object with `prediction` or `logits`; where that has a `head` that was left
    out (`Transformer.forward(..., head=False)`), it is run at the places that count alone. Rows of about the same
    length share a batch and are filled up with `pad` at their ends, which the attention mask says. The order of
    `spans` is kept, and how many go at once changes nothing but rounding.

    Raises `MeasurementError` where the model gives NaN.
    """
    order = sorted(range(len(spans)), key=lambda at: len(spans[at].prompt) + len(spans[at].continuation))
    found: list[Tensor] = [torch.empty(0)] * len(spans)
    with torch.inference_mode():
        for begin in range(0, len(order), batch):
            chosen = order[begin : begin + batch]
            for at, logs in zip(chosen, _of_batch(forward, [spans[at] for at in chosen], pad), strict=True):
                found[at] = logs
    return found


def _of_batch(forward: Forward, spans: Sequence[Span], pad: int) -> Sequence[Tensor]:
    rows = [[*span.prompt, *span.continuation] for span in spans]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    output: Any = forward({"input_ids": ids, "attention_mask": mask})
    values = read_logits(output)
    lengths = [len(span.continuation) for span in spans]
    which = torch.tensor([at for at, length in enumerate(lengths) for _ in range(length)])
    places = torch.tensor([len(span.prompt) - 1 + step for span in spans for step in range(len(span.continuation))])
    logits = values[which.to(values.device), places.to(values.device)]
    if (head := getattr(output, "head", None)) is not None:
        logits = head(logits)
        if softcap := getattr(output, "softcap", None):
            logits = softcap * torch.tanh(logits / softcap)
    targets = torch.tensor([token for span in spans for token in span.continuation], device=logits.device)
    logs: Tensor = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0].double().cpu()
    if torch.isnan(logs).any():
        raise MeasurementError("the model gives NaN for a continuation: look at its weights, or at the number type")
    return torch.split(logs, lengths)


def span_log_probabilities(forward: Forward, spans: Sequence[Span], *, pad: int = 0, batch: int = 32) -> Tensor:
    """ln p(continuation | prompt) of each span, the sum over its tokens: float64 [n]; see `log_probabilities`."""
    found = log_probabilities(forward, spans, pad=pad, batch=batch)
    return torch.stack([logs.sum() for logs in found]) if found else torch.empty(0, dtype=torch.float64)
