"""A masked language model trained on Brown, and four small tasks that its students are fine-tuned on.

Documents of their own are for learning (three of five) and for judging (the last of five); pilots judge on the fourth.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

import readers
from assets import packages
from claims._lab import settings, sources
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.recover.distillation import alignment
from secateur.recover.training import loop
from secateur.subjects import Transformer, open_subject

__all__ = ["LENGTH", "TASKS", "Fitted", "fit_task", "masked_batches", "second_teacher", "sentences", "teacher"]

LENGTH = 48
TEACHING = scaled(3000, 10)
"""Steps that a teacher is trained for."""
KINDS = {
    genre: number
    for number, genres in enumerate(
        (
            ("news", "editorial", "reviews"),
            ("government", "learned"),
            ("religion", "hobbies", "lore", "belles lettres"),
            ("fiction", "mystery", "science fiction", "adventure", "romance", "humor"),
        )
    )
    for genre in genres
}
"""Press, learned prose, general prose, and fiction: models this small can't tell fifteen genres by three sentences."""
TASKS = ("tags", "genre", "spam", "similarity")
PARTS = {"learning": (0, 1, 2), "judged": scaled((4,), (3,))}


def of_part(documents: Sequence[Any], part: str) -> list[Any]:
    """Every fifth document, by number."""
    return [document for number, document in enumerate(documents) if number % 5 in PARTS[part]]


# ------------------------------------------------------------------------------------------------------------- models


@functools.cache
def sentences(part: str) -> texts.Corpus:
    """Sentences of Brown of 5 to 40 words."""
    documents = of_part(packages.brown_documents(), part)
    return texts.read([text for _, document in documents for text in document if 5 <= len(text.split()) <= 40])


@functools.cache
def teacher() -> Transformer:
    """A BERT of 6 layers, width 64, trained on masked sentences."""
    return _trained("masked", {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 256}, capitals=True)


@functools.cache
def second_teacher() -> Path:
    """The folder of another: 4 layers, width 80, and a vocabulary of its own, without capitals."""
    shape = {"hidden_size": 80, "num_hidden_layers": 4, "intermediate_size": 320}
    _trained("masked-uncased", shape, capitals=False)
    return _folder("masked-uncased", shape)


def _folder(name: str, shape: Mapping[str, int]) -> Path:
    """Where a teacher is kept, by its shape and the code that trains it."""
    made = repr((TEACHING, sorted(shape.items()), sources.digest(__name__)))
    return settings.CACHE / "models" / f"{name}-{TEACHING}-{hashlib.sha256(made.encode()).hexdigest()[:12]}"


def _trained(name: str, shape: Mapping[str, int], *, capitals: bool) -> Transformer:
    folder = _folder(name, shape)
    if not (folder / "config.json").exists():
        known = tuple(sentences("learning").texts[:20_000])
        tokenizer = readers.wordpiece(2000, capitals=capitals, texts=known)
        # Weights drawn wide, a low rate, many masks: or else models this small learn how frequent words are, no more.
        config = BertConfig(
            vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=128, pad_token_id=0,
            initializer_range=0.06, **shape,
        )  # fmt: skip
        torch.manual_seed(0)
        subject = open_subject(BertForMaskedLM(config), tokenizer=tokenizer)

        def objective(batch: Mapping[str, Tensor], totals: Any) -> tuple[Tensor, dict[str, float]]:
            logits = subject.forward({name: batch[name] for name in ("input_ids", "attention_mask")}).prediction
            return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100), {}

        feed = list(masked_batches(subject, "learning", TEACHING, batch=24, share=0.3))
        loop.train(
            subject.model, feed, objective, steps=TEACHING, lr=1e-3, schedule="linear", clip=5.0, seed=0, dropout=False,
            progress=False,
        )  # fmt: skip
        subject.save(folder)
    return open_subject(folder)


def masked_batches(
    subject: Transformer, part: str, count: int, *, batch: int = 16, share: float = 0.15, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Sentences with a share of their tokens masked; `labels` [B, T] are the tokens there, -100 elsewhere."""
    draw = torch.Generator().manual_seed(seed)
    feed = texts.batches(sentences(part), subject.tokenizer, packed=False, batch=batch, length=LENGTH, seed=seed)
    for item in feed.take(count):
        ids, attention = item["input_ids"], item["attention_mask"]
        special = torch.isin(ids, torch.tensor(subject.tokenizer.all_special_ids))
        hidden = (torch.rand(ids.shape, generator=draw) < share) & ~special & attention.bool()
        yield {
            "input_ids": ids.masked_fill(hidden, subject.tokenizer.mask_token_id),
            "attention_mask": attention,
            "labels": ids.masked_fill(~hidden, -100),
        }


# -------------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Items:
    """Texts, and what is to be told of them: [n words in all] tags, [n] classes, or [n] similarities of pairs."""

    texts: Sequence[str]
    others: Sequence[str]
    targets: Sequence[Any]
    classes: int


@functools.cache
def items_of(task: str, part: str, count: int) -> Items:
    """The examples of a task."""
    draw = np.random.default_rng(11)
    if task in ("genre", "spam"):
        return _classified(task, part, count, draw)
    documents = of_part(packages.brown_tagged(), part)
    known = [sentence for _, document in documents for sentence in document if 5 <= len(sentence) <= 25]
    chosen = [known[i] for i in draw.permutation(len(known))[:count]]
    if task == "tags":
        tags = _frequent_tags()
        targets = [[tags.get(_coarse(tag), len(tags)) for _, tag in sentence] for sentence in chosen]
        return Items([" ".join(word for word, _ in sentence) for sentence in chosen], (), targets, len(tags) + 1)
    firsts, seconds, overlaps = [], [], []
    for sentence, other in zip(chosen, reversed(chosen), strict=True):
        first, second = ([word for word, _ in words] for words in (sentence, other))
        changed = draw.random(len(first)) < draw.random()
        mixed = [second[i % len(second)] if change else first[i] for i, change in enumerate(changed)]
        sets = [{word.lower() for word in words} for words in (first, mixed)]
        firsts.append(" ".join(first))
        seconds.append(" ".join(mixed))
        overlaps.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    return Items(firsts, seconds, overlaps, 1)


def _classified(task: str, part: str, count: int, draw: np.random.Generator) -> Items:
    """Equally many of each class: three sentences of a kind of writing, or the first 50 words of a mail."""
    if task == "spam":
        mails = of_part(packages.spam_assassin(), part)
        bodies = [(int(group.startswith("spam")), mail.partition("\n\n")[2].split()) for group, mail in mails]
        pairs = [(kind, " ".join(words[:50])) for kind, words in bodies if words]
    else:
        documents = of_part(packages.brown_documents(), part)
        pairs = [(KINDS[g], " ".join(text[i : i + 3])) for g, text in documents for i in range(0, len(text) - 2, 3)]
    classes = 1 + max(kind for kind, _ in pairs)
    chosen = []
    for kind in range(classes):
        rows = [text for own, text in pairs if own == kind]
        chosen += [(rows[i], kind) for i in draw.permutation(len(rows))[: count // classes]]
    order = draw.permutation(len(chosen))
    return Items([chosen[i][0] for i in order], (), [chosen[i][1] for i in order], classes)


@functools.cache
def _frequent_tags() -> dict[str, int]:
    documents = of_part(packages.brown_tagged(), "learning")
    times = Counter(_coarse(tag) for _, document in documents for sentence in document for _, tag in sentence)
    return {kind: number for number, (kind, _) in enumerate(times.most_common(20))}


def _coarse(tag: str) -> str:
    """A part of speech in the coarse: "nn-tl" and "nns" are nouns."""
    return tag.removeprefix("fw-").partition("-")[0].rstrip("*$")[:2] or tag


class Head(nn.Module):
    """From an encoder's states to predictions: of words, of texts (the mean of their tokens), or of pairs of texts."""

    def __init__(self, task: str, width: int, classes: int) -> None:
        super().__init__()
        self.task = task
        self.out = nn.Linear(2 * width if task == "similarity" else width, classes)

    def forward(self, encode: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Logits [words, C] or [B, C], or similarities [B]."""
        states = encode(batch)
        if self.task == "tags":
            logits: Tensor = self.out(alignment.word_means(states, batch["words"]))
            return logits
        mask = batch["attention_mask"][..., None].to(states.dtype)
        means = (states * mask).sum(1) / mask.sum(1)
        if self.task == "similarity":
            first, second = means.chunk(2)
            means = torch.cat([(first - second).abs(), first * second], -1)
        logits = self.out(means)
        return logits.squeeze(-1) if self.task == "similarity" else logits


def collate(tokenizer: Any, items: Items, rows: Sequence[int], task: str) -> dict[str, Tensor]:
    """Tokens, the number of the word of each (-1 for none), and targets."""
    chosen = [items.texts[row] for row in rows] + [items.others[row] for row in rows if items.others]
    readings = alignment.read(tokenizer, chosen, 128)
    width = max(len(reading.ids) for reading in readings)
    ids, mask = np.zeros((len(readings), width), np.int64), np.zeros((len(readings), width), np.int64)
    words, before = np.full((len(readings), width), -1, np.int64), 0
    for row, (text, reading) in enumerate(zip(chosen, readings, strict=True)):
        ids[row, : len(reading.ids)], mask[row, : len(reading.ids)] = reading.ids, 1
        if task == "tags":
            numbers = alignment.words(text, reading)
            words[row, : len(numbers)] = np.where(numbers < 0, -1, numbers + before)
            before += len(text.split())
    targets = [items.targets[row] for row in rows]
    flat = [tag for row in targets for tag in row] if task == "tags" else targets
    arrays = {"input_ids": ids, "attention_mask": mask, "words": words}
    return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"targets": torch.tensor(flat)}


@dataclass(frozen=True)
class Fitted:
    """A fine-tuned encoder: what it predicts of the judged items ([n, C] probabilities, or [n]), and how well."""

    predictions: Tensor
    score: float


def fit_task(subject: Transformer, task: str, seed: int) -> Fitted:
    """A copy of `subject` fine-tuned on the labels of `task`; macro F1, of similarities Pearson's correlation."""
    copy, items = subject.copy(), items_of(task, "learning", scaled(1200, 64))
    torch.manual_seed(seed)
    head = Head(task, copy.hidden_size, items.classes)
    order = np.random.default_rng([seed, 3]).permutation(len(items.texts)).tolist()
    feed = [collate(copy.tokenizer, items, order[i : i + 16], task) for i in range(0, len(order) - 15, 16)]

    def encode(batch: dict[str, Tensor]) -> Tensor:
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states: Tensor = copy.model.base_model(**tokens).last_hidden_state
        return states

    def objective(batch: dict[str, Tensor], totals: Any) -> tuple[Tensor, dict[str, float]]:
        answer = head(encode, batch)
        if task == "similarity":
            return functional.mse_loss(answer, batch["targets"].float()), {}
        return functional.cross_entropy(answer, batch["targets"]), {}

    steps = scaled(80, 2)
    loop.train(
        copy.model, feed, objective, steps=steps, lr=2e-3, seed=seed, extra=[head], dropout=False, progress=False
    )  # fmt: skip
    judged = items_of(task, "judged", scaled(400, 32))
    places = [list(range(i, min(i + 50, len(judged.texts)))) for i in range(0, len(judged.texts), 50)]
    batches = [collate(copy.tokenizer, judged, place, task) for place in places]
    copy.model.eval()
    with torch.no_grad():
        answers = torch.cat([head(encode, batch).double() for batch in batches])
    targets = torch.cat([batch["targets"] for batch in batches])
    if task == "similarity":
        return Fitted(answers, float(np.corrcoef(answers.numpy(), targets.numpy())[0, 1]))
    score = float(f1_score(targets.numpy(), answers.argmax(-1).numpy(), average="macro"))
    return Fitted(answers.softmax(-1), score)
