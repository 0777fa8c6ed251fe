"""Small language models trained on Brown, MiniLM, and their losses on text that no recipe sees."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from assets import packages
from claims._lab import settings, sources
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Batches, Corpus
from secateur.measure import quality
from secateur.recover.training import loop, objectives, routing
from secateur.select import weights
from secateur.select.pattern import n_of_m
from secateur.subjects import Moe, Transformer, open_subject
from secateur.subjects.matrices import matrices
from secateur.vocabulary import Budget

__all__ = [
    "BATCH",
    "LENGTH",
    "SHAPE",
    "batches",
    "brown",
    "build",
    "fresh",
    "held_out",
    "llama",
    "masked_at_random",
    "minilm",
    "mixtral",
    "narrow",
    "spearman",
    "train",
    "training",
]

LENGTH, BATCH = 64, 8
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "head_dim": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
NARROW = SHAPE | {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
EXPERTS: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
BALANCE = 0.01
"""Weight of the load-balancing loss of models with experts."""


# --------------------------------------------------------------------------------------------------------------- data


@functools.cache
def brown(*genres: str) -> Corpus:
    """Brown sentences of 5 to 40 words, of the genres named or of all."""
    chosen = [text for genre, text in packages.brown() if not genres or genre in genres]
    return texts.read([text for text in chosen if 5 <= len(text.split()) <= 40])


def split(*genres: str) -> tuple[Corpus, Corpus]:
    """(what recipes may see, what they are judged on); of a pilot, the second is taken from the first."""
    train, judged = brown(*genres).split(seed=0)
    return train.split(seed=1) if settings.PILOT else (train, judged)


def training() -> Corpus:
    """The part of Brown that recipes may see."""
    return split()[0]


def batches(
    subject: Transformer, *, seed: int, held: bool = False, batch: int = BATCH, genres: Sequence[str] = ()
) -> Batches:
    """Batches of the training part of Brown, or of the held-out part."""
    return _batches(subject.tokenizer, subject.kind == "decoder", seed, held, batch, tuple(genres))


@functools.cache
def _batches(tokenizer: Any, packed: bool, seed: int, held: bool, batch: int, genres: tuple[str, ...]) -> Batches:
    part = split(*genres)[held]
    return texts.batches(part, tokenizer, packed=packed, batch=batch, length=LENGTH, seed=seed)


# ------------------------------------------------------------------------------------------------------------- models


@functools.cache
def minilm() -> Transformer:
    """all-MiniLM-L6-v2, real weights."""
    return open_subject(packages.minilm())


@functools.cache
def llama() -> Transformer:
    """A Llama with grouped-query attention (6 layers, width 128, 8 query and 2 KV heads), trained on Brown."""
    return _trained("Llama", SHAPE, scaled(2000, 30), 0)


@functools.cache
def narrow(seed: int) -> Transformer:
    """One of several Llamas of 4 layers and width 64: models that were trained alike differ."""
    return _trained("Llama", NARROW, scaled(1500, 30), seed)


@functools.cache
def mixtral(seed: int = 0) -> Moe:
    """A Mixtral (4 layers, width 96, 8 experts of width 128, two per token, 8 query and 4 KV heads), on Brown."""
    subject = _trained("Mixtral", EXPERTS, scaled(1500, 30), seed)
    assert isinstance(subject, Moe)
    return subject


def _trained(family: str, shape: dict[str, Any], steps: int, seed: int) -> Transformer:
    """A language model trained on Brown from fresh weights; kept by its shape and the code that trains it."""
    key = hashlib.sha256(repr((shape, steps, seed, sources.digest(__name__))).encode()).hexdigest()[:12]
    folder = settings.CACHE / "models" / f"{family.lower()}-{steps}-{seed}-{key}"
    if not (folder / "config.json").exists():
        subject = build(family, shape, tokenizer(), seed)
        train(subject, steps, seed=seed, batch=32, lr=3e-3)
        subject.save(folder)
    return open_subject(folder)


def build(family: str, shape: dict[str, Any], tokenizer: Any, seed: int) -> Transformer:
    """A language model with fresh weights for a tokenizer."""
    import transformers

    end = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **shape, **end)
    torch.manual_seed(seed)
    return open_subject(getattr(transformers, f"{family}ForCausalLM")(config), tokenizer=tokenizer)


@functools.cache
def tokenizer() -> Any:
    """Byte-level BPE of 2,048 tokens, trained on Brown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(brown().texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>")


def train(
    subject: Transformer,
    steps: int,
    *,
    seed: int,
    batch: int = BATCH,
    lr: float = 2e-3,
    data: Batches | None = None,
    teacher: Transformer | None = None,
) -> None:
    """Train `subject` in place, on the next token alone or on a teacher's logits alone; its experts evenly loaded."""
    if teacher is None:
        objective = objectives.distil(subject.forward, None, output="logits", task=1.0)
    else:
        objective = objectives.distil(subject.forward, teacher.forward, output="logits")
    objective = routing.add_balance(objective, subject.routers() if isinstance(subject, Moe) else [], BALANCE)
    feed = batches(subject, seed=seed, batch=batch) if data is None else data
    loop.train(subject.model, feed, objective, steps=steps, lr=lr, seed=seed, progress=False)


def fresh(like: Transformer, seed: int) -> Transformer:
    """A model of the same shape with random weights."""
    torch.manual_seed(seed)
    return open_subject(type(like.model)(like.model.config), tokenizer=like.tokenizer)


@torch.no_grad()
def masked_at_random(subject: Transformer, budget: str, seed: int) -> Transformer:
    """A copy with random weights at zero, within the budget's share of each row or its pattern."""
    student, draw = subject.copy(), torch.Generator().manual_seed(seed)
    share, pattern = weights.read_budget(Budget.parse(budget), 1.0, "random")
    for matrix in matrices(student.model, student.layers()).values():
        scores = torch.rand(matrix.weight.shape, generator=draw)
        mask = n_of_m(scores, pattern.n, pattern.m) if pattern else weights.best(scores, share, "row")
        matrix.weight.mul_(mask)
    return student


# ------------------------------------------------------------------------------------------------------------ figures


def held_out(student: Transformer, genres: Sequence[str] = ()) -> float:
    """Next-token loss on held-out Brown, in nats per token."""
    items = batches(student, seed=0, held=True, genres=genres).take(scaled(24, 4))
    return objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=items)


@torch.no_grad()
def spearman(student: Transformer, count: int = 1000) -> float:
    """Spearman between the pairwise cosines of held-out Brown sentences under MiniLM and under `student`."""
    items = batches(student, seed=0, held=True, batch=50).take(scaled(count, 100) // 50)
    theirs = torch.cat([minilm().forward(item).prediction for item in items])
    ours = torch.cat([student.forward(item).prediction for item in items])
    return float(quality.fidelity(theirs, ours)["spearman"].value)
