"""STUN (Lee et al.): experts first, then single weights, on small Mixtrals that know Brown and copying."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor

from claims._lab import language, settings, sources
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.subjects import Moe, open_subject

SAMPLES = scaled(64, 8)
STEPS = scaled((900, 300), (8, 4))
"""Of training with four experts, and with eight after upcycling."""
SETUP = (
    "Mixtral of 4 layers, width 96, 8 experts, two per token; upcycled from 4 experts, trained on Brown and on copying "
    "five words; a quarter of the experts goes first; each seed has a model of its own"
)
LEVELS = (0.4, 0.6, 0.7)
WAYS = {
    "STUN": {"structured": 0.25},
    "OWL": {"structured": 0.0},
    "Wanda": {"structured": 0.0, "method": "wanda"},
}
SEEDS = range(3)


# ------------------------------------------------------------------------------------------------ models and tasks


@functools.cache
def words() -> Tensor:
    """64 common words of one token each."""
    table = language.tokenizer().get_vocab()
    whole = sorted((index, token) for token, index in table.items() if token[:1] == "Ġ" and token[1:].isalpha())
    return torch.tensor([index for index, token in whole if len(token) > 4][:64])


def to_copy(count: int, seed: int) -> Tensor:
    """[count, 12] tokens: a colon, five words, a semicolon, the five words."""
    table = language.tokenizer().get_vocab()
    draw = torch.Generator().manual_seed(seed)
    five = words()[torch.randint(0, len(words()), (count, 5), generator=draw)]
    colon, semicolon = (torch.full((count, 1), table[sign]) for sign in ":;")
    return torch.cat([colon, five, semicolon, five], 1)


@torch.no_grad()
def copied(subject: Moe) -> float:
    """How often all five words come out right, by greedy decoding. Pilots draw other words."""
    rows = to_copy(scaled(400, 20), seed=scaled(10**6, 1))
    logits = subject.forward({"input_ids": rows, "attention_mask": torch.ones_like(rows)}).prediction
    return float((logits[:, 6:-1].argmax(-1) == rows[:, 7:]).all(1).float().mean())


@functools.cache
def mixed() -> Corpus:
    """Brown and copying, one sentence of Brown for each thing to copy."""
    brown = list(language.training().texts)
    copies = language.tokenizer().batch_decode(to_copy(len(brown), seed=0))
    return texts.read([text for pair in zip(brown, copies, strict=True) for text in pair])


def train(subject: Moe, steps: int, seed: int, lr: float) -> None:
    """On Brown and copying."""
    feed = texts.batches(mixed(), subject.tokenizer, packed=True, batch=32, length=language.LENGTH, seed=seed)
    language.train(subject, steps, seed=seed, lr=lr, data=feed)


def doubled(subject: Moe, noise: float, seed: int) -> Moe:
    """Twice the experts: e and e + E are the same but for noise, relative to the spread of each tensor."""
    shape = {**language.EXPERTS, "num_local_experts": 2 * subject.model.config.num_local_experts}
    twice = language.build("Mixtral", shape, subject.tokenizer, seed)
    draw, state = torch.Generator().manual_seed(seed), subject.model.state_dict()
    for name, tensor in twice.model.state_dict().items():
        known = state[name]
        if tensor.shape != known.shape:
            known = torch.cat([known, known])
            known = known + noise * state[name].std() * torch.randn(known.shape, generator=draw)
        tensor.copy_(known)
    twice.model.tie_weights()
    assert isinstance(twice, Moe)
    return twice


@functools.cache
def upcycled(seed: int) -> Moe:
    """Trained with four experts, doubled with noise, and trained on; kept by the code that trains it."""
    key = hashlib.sha256(repr((STEPS, sources.digest("claims.stun"))).encode()).hexdigest()[:12]
    folder = settings.CACHE / "models" / f"stun-{seed}-{key}"
    if not (folder / "config.json").exists():
        half = language.build("Mixtral", {**language.EXPERTS, "num_local_experts": 4}, language.tokenizer(), seed)
        assert isinstance(half, Moe)
        train(half, STEPS[0], seed, 3e-3)
        whole = doubled(half, 0.3, seed)
        train(whole, STEPS[1], seed + 100, 1e-3)
        whole.save(folder)
    subject = open_subject(folder)
    assert isinstance(subject, Moe)
    return subject


@functools.cache
def pruned(seed: int, total: float, way: str = "STUN", **options: Any) -> Moe:
    """A student at a total sparsity, calibrated on general text, in which nothing to copy stands."""
    data = texts.read(list(language.training().texts)[:4000])
    how = {"samples": SAMPLES, "length": language.LENGTH, "seen": SAMPLES, "seed": seed, **WAYS[way], **options}
    student = prune("stun", upcycled(seed), data, f"weights={1 - total:.6g}", **how).subject
    assert isinstance(student, Moe)
    return student


# ----------------------------------------------------------------------------------------------------------- claims


@claim(
    question="At 40, 60 and 70 % total sparsity, does STUN lose less than OWL and Wanda alone?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    pairs=[(f"STUN, {level:.0%}", f"{other}, {level:.0%}") for level in LEVELS for other in ("OWL", "Wanda")],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {f"{way}, {level:.0%}": language.held_out(pruned(seed, level, way)) for level in LEVELS for way in WAYS}


@claim(
    question="At 70 % total sparsity, is it better to drop experts by the router's rows than random ones or by usage?",
    setup=f"{SETUP}; OWL afterwards in every arm",
    measure="loss",
    unit="nats",
    better="lower",
    ours="clusters",
    baselines=["random", "usage"],
    seeds=SEEDS,
)
def choice(seed: int) -> Figures:
    return {rule: language.held_out(pruned(seed, 0.7, choose=rule)) for rule in ("clusters", "random", "usage")}


@claim(
    question="Are words copied without a mistake up to a higher sparsity than by OWL or Wanda alone?",
    setup=f"{SETUP}; mean over 40, 50, 60 and 70 % total sparsity",
    measure="exact match",
    better="higher",
    ours="STUN",
    baselines=["OWL", "Wanda"],
    seeds=SEEDS,
)
def copying(seed: int) -> Figures:
    levels = (0.4, 0.5, 0.6, 0.7)
    return {way: sum(copied(pruned(seed, level, way)) for level in levels) / len(levels) for way in WAYS}
