"""What the claims share: real models and texts, cached teachers, short trainings, and the record of what came out."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from assets import packages
from secateur._utils.disk import atomic_write
from secateur.data import texts
from secateur.data.texts import Batches, Corpus
from secateur.measure import quality, statistics
from secateur.measure.environment import describe
from secateur.recover.training import loop, objectives, routing
from secateur.reports import evidence
from secateur.subjects import Moe, Transformer, open_subject
from secateur.vocabulary import Figure

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("SECATEUR_CLAIMS_CACHE", ROOT / ".cache" / "claims"))
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
NARROW = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
WIDE_EXPERTS = EXPERTS | {"hidden_size": 128, "intermediate_size": 256}
BALANCE = 0.01
"""Weight of the load-balancing loss of whatever has experts."""


@functools.cache
def brown(*genres: str) -> Corpus:
    """Brown sentences of 5 to 40 words, of the genres named or of all."""
    chosen = [text for genre, text in packages.brown() if not genres or genre in genres]
    return texts.read([text for text in chosen if 5 <= len(text.split()) <= 40])


def training() -> Corpus:
    """The part of Brown that recipes may see: `held_out` and `spearman` use none of it."""
    return brown().split(seed=0)[0]


@functools.cache
def minilm() -> Transformer:
    """all-MiniLM-L6-v2, real weights."""
    return open_subject(packages.minilm())


@functools.cache
def llama(name: str = "llama", steps: int = 2000, genres: tuple[str, ...] = ()) -> Transformer:
    """A Llama with grouped-query attention (6 layers, width 128, 8 query and 2 KV heads), trained on Brown; cached."""
    return _taught("Llama", SHAPE, name, steps, genres)


@functools.cache
def settled() -> Transformer:
    """A Llama of 4 layers and width 64 that has seen Brown often enough to be short of weights, not of steps; cached.

    `llama` is not: whatever is trained on from it, half of its weights gone, gets better than it.
    """
    return _taught("Llama", NARROW, "settled", 8000, ())


@functools.cache
def narrow(seed: int) -> Transformer:
    """One of several small Llamas, for what is not the same of every original; cached."""
    return _taught("Llama", NARROW, f"narrow-{seed}", 1500, (), seed)


@functools.cache
def wide_mixtral() -> Moe:
    """A Mixtral of width 128, its experts of 256 and trained for twice as long as `mixtral`'s; cached."""
    found = _taught("Mixtral", WIDE_EXPERTS, "wide-mixtral", 3000, ())
    assert isinstance(found, Moe)
    return found


@functools.cache
def mixtral(name: str = "mixtral", steps: int = 1500, genres: tuple[str, ...] = (), seed: int = 0) -> Moe:
    """A Mixtral (4 layers, width 96, 8 experts of width 128, two per token, 8 query and 4 KV heads), trained on Brown.

    With the load-balancing loss; cached.
    """
    found = _taught("Mixtral", EXPERTS, name, steps, genres, seed)
    assert isinstance(found, Moe)
    return found


def _taught(
    family: str, shape: dict[str, Any], name: str, steps: int, genres: tuple[str, ...], seed: int = 0
) -> Transformer:
    """A language model trained on Brown from fresh weights, or the one that was."""
    how = {"seed": seed, "genres": genres, "batch": 32, "lr": 3e-3}
    key = hashlib.sha256(repr((shape, how, LENGTH, brown(*genres).digest)).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{steps}-{key}"
    if not (folder / "config.json").exists():
        subject = untaught(family, shape, _tokenizer(), seed)
        task(subject, steps, **how)
        subject.save(folder)
    return open_subject(folder)


def untaught(family: str, shape: dict[str, Any], tokenizer: Any, seed: int) -> Transformer:
    """A language model with fresh weights for a tokenizer."""
    import transformers

    end = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **shape, **end)
    torch.manual_seed(seed)
    return open_subject(getattr(transformers, f"{family}ForCausalLM")(config), tokenizer=tokenizer)


def _tokenizer() -> Any:
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


def batches(
    subject: Transformer, *, seed: int, held: bool = False, batch: int = BATCH, genres: Sequence[str] = ()
) -> Batches:
    """Batches of the training part of Brown, or of the held-out part."""
    return _fed(subject.tokenizer, subject.kind == "decoder", seed, held, batch, tuple(genres))


@functools.cache
def _fed(tokenizer: Any, packed: bool, seed: int, held: bool, batch: int, genres: tuple[str, ...]) -> Batches:
    """Made once for each tokenizer: reading all of Brown takes longer than a short training."""
    part = brown(*genres).split(seed=0)[held]
    return texts.batches(part, tokenizer, packed=packed, batch=batch, length=LENGTH, seed=seed)


def held_out(student: Transformer, genres: Sequence[str] = ()) -> float:
    """Next-token loss on held-out Brown, in nats per token."""
    items = batches(student, seed=0, held=True, genres=genres).take(24)
    return objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=items)


@torch.no_grad()
def choice(student: Transformer, count: int = 400, start: int = 0) -> float:
    """A small downstream task: which of two endings a held-out sentence has, by log-probability. Chance is 0.5.

    Over `count` sentences from number `start` on.
    """
    rows = student.tokenizer(list(brown().split(seed=0)[1].texts), add_special_tokens=False)["input_ids"]
    rows = [row[:40] for row in rows if len(row) >= 16][start : start + count + 1]
    right = 0
    for own, other in itertools.pairwise(rows):
        start, length = len(own) // 2, min(len(own) - len(own) // 2, len(other) // 2)
        begun = own[:start]
        both = torch.tensor([begun + own[start : start + length], begun + other[-length:]])
        logits = student.forward({"input_ids": both, "attention_mask": torch.ones_like(both)}).prediction
        spoken = torch.log_softmax(logits[:, start - 1 : -1].float(), -1).gather(-1, both[:, start:, None])
        real, false = spoken.sum((1, 2)).tolist()
        right += real > false
    return right / (len(rows) - 1)


def task(
    subject: Transformer, steps: int, *, seed: int, genres: Sequence[str] = (), batch: int = BATCH, lr: float = 2e-3
) -> None:
    """Train `subject` in place on the next token alone, its experts evenly loaded."""
    objective = balanced(objectives.distil(subject.forward, None, output="logits", task=1.0), subject)
    loop.train(
        subject.model,
        batches(subject, seed=seed, batch=batch, genres=genres),
        objective,
        steps=steps,
        lr=lr,
        seed=seed,
        progress=False,
    )


def distil(
    student: Transformer,
    teacher: Transformer,
    steps: int,
    *,
    seed: int,
    genres: Sequence[str] = (),
    lr: float = 2e-3,
    extra: Sequence[torch.nn.Module] = (),
    **what: Any,
) -> Transformer:
    """Train `student` in place against `teacher`, and return it."""
    objective = balanced(objectives.distil(student.forward, teacher.forward, output=teacher.output, **what), student)
    loop.train(
        student.model,
        batches(student, seed=seed, genres=genres),
        objective,
        steps=steps,
        lr=lr,
        seed=seed,
        extra=extra,
        progress=False,
    )
    return student


def balanced(objective: objectives.Objective, subject: Transformer) -> objectives.Objective:
    """The objective with the load-balancing loss, where there are experts."""
    return routing.add_balance(objective, subject.routers() if isinstance(subject, Moe) else [], BALANCE)


def fresh(like: Transformer, seed: int) -> Transformer:
    """A model of the same shape with random weights."""
    torch.manual_seed(seed)
    model = type(like.model)(like.model.config)
    return open_subject(model, tokenizer=like.tokenizer)


@torch.no_grad()
def spearman(student: Transformer, count: int = 1000) -> float:
    """Spearman between the pairwise cosines of `count` held-out Brown sentences under MiniLM and under `student`."""
    items = batches(student, seed=0, held=True, batch=50).take(count // 50)
    theirs = _reference(count)
    ours = torch.cat([student.forward(item).prediction for item in items])
    return quality.fidelity(theirs, ours)["spearman"].value


@functools.cache
@torch.no_grad()
def _reference(count: int) -> torch.Tensor:
    items = batches(minilm(), seed=0, held=True, batch=50).take(count // 50)
    return torch.cat([minilm().forward(item).prediction for item in items])


def remembered(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` gave for this commit, asked once: a long claim may be split over several tests.

    Code that is not committed has no name to remember it by: there, everything is computed anew.
    """
    path = CACHE / "parts" / f"{name}-{describe()['commit']}.json"
    if not path.exists() or path.stem.endswith("+"):
        atomic_write(path, json.dumps(compute()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def mean(values: Sequence[float], unit: str = "") -> Figure:
    """Mean over seeds with its interval."""
    return statistics.mean_interval(list(values), unit=unit)


def record(
    recipe: str,
    name: str,
    claim: str,
    holds: bool,
    ours: tuple[str, Sequence[float]],
    others: dict[str, Sequence[float]] | None = None,
    *,
    lower: bool = True,
    against: Sequence[str] = (),
    setup: str = "",
    reason: str = "",
    seeds: Sequence[int] = (0, 1, 2),
) -> None:
    """Write the claim's row, then let the test fail if it does not hold.

    The row's difference is to the best of the rows in `against` (all `others` unless given), paired over seeds.
    """
    label, values = ours
    rivals = {rival: {label: mean(row)} for rival, row in (others or {}).items()}
    difference = None
    if others:
        pick: Callable[..., str] = min if lower else max
        best = pick(against or others, key=lambda rival: sum(others[rival]))
        difference = statistics.paired_difference(list(values), list(others[best]))
    singly(
        recipe, name, claim, holds, {label: mean(values)}, rivals, difference, setup=setup, reason=reason, seeds=seeds
    )
    shown = {label: values, **(others or {})}
    figures = "; ".join(f"{key} {[round(float(v), 4) for v in row]}" for key, row in shown.items())
    print(f"\n{recipe} {name}: {figures}")
    assert holds, f"{claim}: {shown}"


def singly(
    recipe: str,
    name: str,
    claim: str,
    holds: bool,
    figures: dict[str, Figure],
    baselines: dict[str, dict[str, Figure]] | None = None,
    difference: Figure | None = None,
    *,
    setup: str = "",
    reason: str = "",
    seeds: Sequence[int] = (),
) -> None:
    """Write the claim's row from figures that have their own intervals, such as one timing for each target."""
    evidence.row(
        ROOT / "docs" / "evidence" / f"{recipe}-{name}.json",
        recipe=recipe,
        claim=claim,
        holds=holds,
        figures=figures,
        baselines=baselines,
        difference=difference,
        seeds=list(seeds),
        setup=setup,
        reason="" if holds else reason,
    )
    print(f"\n{recipe} {name}: {'holds' if holds else 'does NOT hold'}: {figures} {baselines or ''}")


def less(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the mean of `first` is at most that of `second`."""
    return sum(first) <= sum(second)


def clearly_less(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the whole interval of the paired difference lies below zero."""
    difference = statistics.paired_difference(list(first), list(second))
    return difference.high is not None and difference.high < 0
