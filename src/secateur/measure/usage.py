"""Which source a model answers from: its memory, or the context it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from secateur._utils.batches import Batch
from secateur.errors import DataError
from secateur.measure.quality import read_logits
from secateur.measure.statistics import proportion
from secateur.vocabulary import Figure

__all__ = ["greedy", "usage_rates"]

Tokens: TypeAlias = Sequence[int]
Forward: TypeAlias = Callable[[Batch], Any]
"""Batch -> logits [B, S, V], or an object that has them."""


def greedy(
    forward: Forward, prompts: Sequence[Tokens], steps: Sequence[int], *, pad: int = 0, batch: int = 32
) -> list[tuple[int, ...]]:
    """The likeliest tokens behind each prompt, as many as `steps` says for it, each given those before.

    forward(batch): logits [B, S, V], or an object with `prediction` or `logits`. Prompts of about the same length share
    a batch, filled up with `pad` at their ends, which the attention mask says.
    """
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    open_ones = [at for at in range(len(prompts)) if steps[at] > 0]
    with torch.inference_mode():
        while open_ones:
            open_ones.sort(key=lambda at: len(prompts[at]) + len(answers[at]))
            for begin in range(0, len(open_ones), batch):
                some = open_ones[begin : begin + batch]
                rows = [[*prompts[at], *answers[at]] for at in some]
                longest = max(map(len, rows))
                ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
                mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
                logits = read_logits(forward({"input_ids": ids, "attention_mask": mask}))
                last = torch.tensor([len(row) - 1 for row in rows], device=logits.device)
                best = logits[torch.arange(len(rows), device=logits.device), last].argmax(-1).tolist()
                for at, token in zip(some, best, strict=True):
                    answers[at] = (*answers[at], int(token))
            open_ones = [at for at in open_ones if len(answers[at]) < steps[at]]
    return answers


def usage_rates(answers: Sequence[Tokens], memory: Sequence[Tokens], context: Sequence[Tokens]) -> dict[str, Figure]:
    """RM = f_m / (f_m + f_c + f_o), RC = f_c / (...), and the rate of others: shares of the answers, with intervals.

    An answer is the memory's, or the context's, where it begins with all of its tokens: give the first token of each
    for the match by first tokens, all of them for the match of the whole. Raises `DataError` for no answers.

    Source: Jin et al. 2024 (arXiv 2402.18154), section 5.
    """
    if not answers:
        raise DataError("no answer to tell the use of memory and context by: give at least one prompt")
    ours = sum(tuple(a[: len(m)]) == tuple(m) for a, m in zip(answers, memory, strict=True))
    theirs = sum(tuple(a[: len(c)]) == tuple(c) for a, c in zip(answers, context, strict=True))
    counts = {"memory_rate": ours, "context_rate": theirs, "other_rate": len(answers) - ours - theirs}
    return {name: proportion(count, len(answers)) for name, count in counts.items()}
