"""Distilled masked language models (Avram et al.): half of the layers, three losses at once, on a small BERT."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from claims._lab import masked, timing
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.measure import loyalty
from secateur.subjects import Transformer, open_subject

OPTIONS = {"steps": scaled(200, 2), "lr": 1e-3, "train_batch": 16, "length": masked.LENGTH}
SETUP = (
    "BERT of 6 layers, width 64, trained on Brown; cut to 3 layers and trained for 200 steps of 16; documents of their "
    "own for judging"
)
SEEDS = range(3)


@functools.cache
def student(seed: int, factors: tuple[float, float, float] = (5.0, 2.0, 1.0)) -> Transformer:
    """The recipe's student. factors: of soft targets, masked tokens and hidden states."""
    data, how = masked.sentences("learning"), {**OPTIONS, "factors": factors, "seed": seed}
    return prune("romanian_distilberts", masked.teacher(), data, "layers=50%", **how).subject


def fresh(seed: int) -> Transformer:
    """Three layers with fresh weights, taught by the recipe's losses with the whole BERT as only teacher."""
    config = BertConfig.from_dict({**masked.teacher().model.config.to_dict(), "num_hidden_layers": 4})
    torch.manual_seed(seed)
    blank = open_subject(BertForMaskedLM(config), tokenizer=masked.teacher().tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        masked.teacher().save(folder)
        how: dict[str, Any] = {**OPTIONS, "seed": seed, "teachers": [folder], "weights": [0.0, 1.0]}
        return prune("romanian_distilberts", blank, masked.sentences("learning"), "layers=75%", **how).subject


@claim(
    question="Do copied layers and three losses give better task scores than fresh weights and masked tokens alone?",
    setup=f"{SETUP}; mean of macro F1 or correlation on parts of speech, genre, spam and overlap of sentence pairs",
    measure="score",
    better="higher",
    ours="three losses",
    baselines=["masked tokens alone", "fresh weights"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    arms = {
        "three losses": student(seed),
        "masked tokens alone": student(seed, (0.0, 2.0, 0.0)),
        "fresh weights": fresh(seed),
    }
    return {
        name: float(np.mean([masked.fit_task(subject, task, seed).score for task in masked.TASKS]))
        for name, subject in arms.items()
    }


@torch.no_grad()
def loyalty_on_masks(subject: Transformer) -> float:
    """Probability loyalty to the teacher, of masked tokens of judged sentences."""
    ours, theirs = [], []
    for batch in masked.masked_batches(masked.teacher(), "judged", scaled(20, 2), seed=7):
        chosen = batch["labels"] != -100
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        for rows, model in ((ours, subject), (theirs, masked.teacher())):
            rows.append(model.forward(tokens).prediction[chosen].double().softmax(-1))
    return float(loyalty.probability(torch.cat(ours), torch.cat(theirs)).value)


@claim(
    question="Does the loyalty to the teacher's predictions fall without soft targets?",
    setup=f"{SETUP}; probability loyalty of masked tokens",
    measure="probability loyalty",
    better="higher",
    ours="three losses",
    baselines=["without soft targets"],
    seeds=SEEDS,
)
def losses(seed: int) -> Figures:
    return {
        "three losses": loyalty_on_masks(student(seed)),
        "without soft targets": loyalty_on_masks(student(seed, (0.0, 2.0, 1.0))),
        "without hidden states": loyalty_on_masks(student(seed, (5.0, 2.0, 0.0))),
    }


@claim(
    question="Does a forward pass of the student take at most 0.6 of its teacher's time?",
    setup=f"{SETUP}; encoders alone, 32 x 48 tokens on one thread",
    measure="share of time",
    better="lower",
    ours="student",
    baselines=["0.6 asked for"],
    seeds=SEEDS,
)
def time(seed: int) -> Figures:
    whole, small = masked.teacher(), student(seed)
    example = whole.example(32, masked.LENGTH)
    faster = timing.speedup(lambda: whole.model.base_model(**example), lambda: small.model.base_model(**example))
    return {"student": 1 / faster, "0.6 asked for": 0.6}
