"""Two genres of Brown: their texts, and a task with labels, which of them a sentence is of."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from assets import packages
from claims import lab
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.subjects import Transformer

DOMAINS = ("learned", "romance")


@functools.cache
def unseen() -> frozenset[str]:
    """What the model was not trained on."""
    return frozenset(lab.brown().split(seed=0)[1].texts)


@functools.cache
def corpus(domain: str, held: bool = False) -> Corpus:
    """Sentences of a genre, or of all genres that are no domain (""), seen in training or not."""
    genres = [domain] if domain else sorted({genre for genre, _ in packages.brown()} - set(DOMAINS))
    return texts.read([text for text in lab.brown(*genres).texts if (text in unseen()) is held])


def prompts(held: bool) -> list[dict[str, str]]:
    """Which of two genres a sentence is of; as many of each."""
    count = min(len(corpus(domain, held)) for domain in DOMAINS)
    rows = [[{"prompt": text, "answer": f"Genre: {d}."} for text in corpus(d, held).texts[:count]] for d in DOMAINS]
    return [row for pair in zip(*rows, strict=True) for row in pair]


@torch.no_grad()
def accuracy(student: Transformer, rows: Sequence[dict[str, str]]) -> float:
    """How often the right answer has the larger log-probability per token."""
    right = 0
    for row in rows:
        found = []
        for domain in DOMAINS:
            begun = student.tokenizer(f"{row['prompt']}\n", add_special_tokens=False)["input_ids"]
            end = student.tokenizer(f"Genre: {domain}.", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([begun + end])
            logits = student.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).prediction
            spoken = torch.log_softmax(logits[0, len(begun) - 1 : -1].float(), -1)
            found.append(float(spoken.gather(-1, ids[0, len(begun) :, None]).mean()))
        right += DOMAINS[found[1] > found[0]] in row["answer"]
    return right / len(rows)
