"""A pruner of 60,000 weights that was taught to keep sentences with the word that is asked for."""

from __future__ import annotations

import functools
import random

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

import tiny
from secateur._utils.rundir import Transient
from secateur.recipes.context import provence
from secateur.retrieval.rerankers import Judgement, Reranker
from secateur.runs import keywords

WORDS = tiny.WORDS


def sentence(*numbers: int) -> str:
    return " ".join(WORDS[number] for number in numbers)


def fresh(seed: int = 0) -> Reranker:
    torch.manual_seed(seed)
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 1}  # fmt: skip
    return Reranker(BertForSequenceClassification(BertConfig(**shape)).eval(), tiny.tokenizer())


class Lexical(Reranker):
    """What a pruner that was taught without a flaw says: sentences stay that share a word with the question."""

    def judge(self, pairs, *, longest=0, best=False):
        found = []
        for question, parts in pairs:
            shared = np.array([len({*question.lower().split()} & {*part.lower().split()}) for part in parts])
            found.append(Judgement(float(shared.sum()), (shared > 0).astype(float), np.arange(len(parts))))
        return found


def lexical() -> Lexical:
    """Such a pruner, in no time."""
    made = fresh().with_head()
    return Lexical(made.model, made.tokenizer, made.keep)


def lesson(count: int, seed: int) -> list[dict]:
    """A sentence matters that holds the word that is asked for."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        word, many = draw.randrange(10), draw.randrange(1, 5)
        parts = [sentence(*(draw.randrange(10, 40) for _ in range(draw.randrange(2, 6)))) for _ in range(many)]
        kept = [i for i in range(many) if draw.random() < 0.4]
        for i in kept:
            parts[i] = sentence(word, *(draw.randrange(10, 40) for _ in range(draw.randrange(2, 5))))
        rows.append({"question": sentence(word), "documents": [parts], "kept": [kept]})
    return rows


def train(model: Reranker, rows: list[dict], run: Transient, **options):
    """The recipe's own training, with its options by flag."""
    return keywords.call(provence.train, model, rows, run, **options)


@functools.cache
def taught() -> Reranker:
    model, how = fresh(), {"lr": 3e-3, "batch": 32, "epochs": 6, "longest": 32, "threshold": 0.5}
    train(model, lesson(1500, 0), NoCheckpoints(), weight=0.0, held_out=0, **how)
    return model


class NoCheckpoints(Transient):
    """A run whose trainings have no checkpoints."""

    def folder(self, name):
        return None
