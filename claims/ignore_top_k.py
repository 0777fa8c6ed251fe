"""Ignore-top-k (arXiv 2504.09522): priming by surprising texts, and updates without their largest entries."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path

import torch

from claims._lab import language, themes
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.measure import quality
from secateur.studies import priming
from secateur.studies.priming import Documents, Primed
from secateur.subjects.delta.delta import Delta
from secateur.subjects.delta.tensors import InMemory
from secateur.vocabulary import Training

SETUP = (
    "five Llamas of 4 layers and width 64, trained on Brown and on sentences with words of four WordNet themes "
    "(colours, jobs, fruit, fabrics) from weights of their own; 16 texts each, learnt one at a time: one row of 20 "
    "minibatches of 8 x 64 tokens, AdamW at a constant 1e-3; 8 prompts per theme of other frames"
)
SEEDS = range(5)
K = 0.08
TRAINING = Training(lr=1e-3, batch=8, optimizer="adamw", schedule="constant")


@functools.cache
def learnt(seed: int) -> Primed:
    """The study on one model."""
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place, "prompts.jsonl")
        prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in themes.PROMPTS))
        stream = Path(place, "stream.txt")
        stream.write_text("\n".join(themes.ordinary()))
        rows = tuple(themes.documents(scaled(16, 8), seed))
        return priming.priming(
            themes.model(seed), Documents("themes", str(seed), rows), Path(place, "runs"), prefixes=str(prompts),
            stream=str(stream), documents=len(rows), length=64, training=TRAINING, k=(K,), seeds=(seed,),
            rates=(0.5, 0.25), clips=(0.1, 0.01),
        )  # fmt: skip


@claim(
    question="Is it told before learning which texts prime: the rarer the keyword, the more?",
    setup=f"{SETUP}; Spearman of ln P(keyword) before and ln S_prime after; of the control another text's keyword",
    measure="Spearman",
    unit="",
    better="lower",
    ours="the text's keyword",
    baselines=["no relation", "another text's keyword"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    found = learnt(seed).correlations()
    rows = {
        "the text's keyword": "ln S_prime",
        "another text's keyword": "ln S_prime of another text's keyword",
        "in context": "ln S_prime in context, nothing learnt",
        "change of P": "change of P under the prompts",
    }
    figures = {
        arm: {"Spearman": found[name].spearman.value, "p": found[name].p} for arm, name in rows.items() if name in found
    }
    return {**figures, "no relation": 0.0}


@claim(
    question="At equal memory, does dropping the largest 8 % leave less priming than its rivals?",
    setup=f"{SETUP}; medians of ln S over texts, as shares of what training alone gives, rivals interpolated",
    measure="priming left",
    unit="",
    better="lower",
    ours="largest dropped",
    baselines=["scaled", "random dropped", "smallest dropped", "smaller rates", "clipped", "largest kept"],
    seeds=SEEDS,
    note="the paper's models are larger by thousands of times, and more redundant: in these memory goes as well",
)
def trade_off(seed: int) -> Figures:
    row = dict(learnt(seed).at_equal_memory()[K])
    memory = row.pop("memory")
    return {arm: {"priming left": share, "memory kept": memory} for arm, share in row.items()}


@claim(
    question="Is the loss on held-out Brown no worse when the largest 8 % of a fine-tuning are dropped?",
    setup=f"{SETUP}; here all texts are learnt together, 20 times each among 2,000 sentences, in 160 minibatches",
    measure="loss",
    unit="nats",
    better="lower",
    margin=0.005,
    ours="largest dropped",
    baselines=["as trained"],
    seeds=SEEDS,
)
def general(seed: int) -> Figures:
    before = themes.model(seed)
    after, texts = before.copy(), [document.text for document in themes.documents(16, seed)]
    lines = random.Random(seed).sample(themes.ordinary(), 2000)
    feed = themes.batches([*lines, *texts * 20], seed=seed)
    language.train(after, scaled(160, 40), seed=seed, data=feed, lr=1e-3)
    states = [dict(subject.model.named_parameters()) for subject in (before, after)]
    small = prune("ignore_top_k", Delta(*map(InMemory, states)), None, "update=92%").subject
    cleaned = before.copy()
    with torch.no_grad():
        for name, parameter in cleaned.model.named_parameters():
            parameter.copy_(small.tensor(name))
    arms = {"largest dropped": cleaned, "as trained": after, "before training": before}
    return {arm: quality.loss(subject.forward, themes.held_out()).value for arm, subject in arms.items()}
