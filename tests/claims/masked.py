"""What the claims about masked language models share: two small BERTs of two tokenizers, four tasks, loyalty.

Documents of Brown are dealt out once: of every five, three are for learning, one for finding settings, one to be judged
on. Tokenizers and masked language models see those for learning alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

import readers
from assets import packages
from claims import lab
from secateur.data import texts
from secateur.measure import loyalty, quality
from secateur.recipes.language import romanian_distilberts as recipe
from secateur.recover.distillation import alignment
from secateur.recover.training import loop
from secateur.subjects import Transformer, open_subject

__all__ = [
    "FINE_TUNING",
    "STEPS",
    "TASKS",
    "Fitted",
    "fitted",
    "learned",
    "pretrained",
    "taught",
    "teacher",
    "texts_of",
]

LENGTH, BATCH = 48, 16
STEPS = 200
"""Of every student's training on masked texts."""
FINE_TUNING = {"steps": 80, "lr": 2e-3}
SHAPES: dict[str, dict[str, Any]] = {
    "A": {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 256},
    "B": {"hidden_size": 80, "num_hidden_layers": 4, "intermediate_size": 320},
}
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
SETUP = (
    "BERT of 6 layers, width 64, cut to 3 and trained for 200 steps; second teacher of 4 layers, width 80, without "
    "capitals; parts of speech, genre and overlap of sentence pairs in Brown, spam; documents of their own for judging"
)
PART = {"learning": (0, 1, 2), "settings": (3,), "judged": (4,)}


# ------------------------------------------------------------------------------------------------------------- models


@functools.cache
def texts_of(part: str) -> texts.Corpus:
    """Sentences of 5 to 40 words."""
    documents = [found for n, found in enumerate(packages.brown_documents()) if n % 5 in PART[part]]
    chosen = [text for _, sentences in documents for text in sentences if 5 <= len(text.split()) <= 40]
    return texts.read(chosen)


@functools.cache
def teacher(name: str) -> Transformer:
    """A: with capitals, 6 layers of width 64. B: without capitals, another vocabulary, 4 layers of width 80. Cached."""
    steps = 3000
    folder = lab.CACHE / f"masked-{name}-{steps}-{texts_of('learning').digest[:8]}"
    if not (folder / "config.json").exists():
        sample = tuple(texts_of("learning").texts[:20_000])
        tokenizer = readers.wordpiece(2000 if name == "A" else 1500, capitals=name == "A", texts=sample)
        # Weights drawn wide, a low rate, many masks: or else models this small learn how frequent words are, no more.
        config = BertConfig(
            vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=128, pad_token_id=0,
            initializer_range=0.06, **SHAPES[name],
        )  # fmt: skip
        torch.manual_seed(0)
        subject = open_subject(BertForMaskedLM(config), tokenizer=tokenizer)
        taught(subject, [], steps, seed=0, factors=(0.0, 1.0, 0.0), batch=24, share=0.3, smoothing=0.0)
        subject.save(folder)
    return open_subject(folder)


def taught(
    student: Transformer,
    company: Sequence[recipe.Teacher],
    steps: int,
    *,
    seed: int,
    factors: Sequence[float] = (5.0, 2.0, 1.0),
    lr: float = 1e-3,
    batch: int = BATCH,
    **masking: float,
) -> Transformer:
    """`student` trained in place on masked texts, by the recipe's own loss and batches."""
    stream = recipe.batches(student, company, texts_of("learning"), batch, LENGTH, seed=seed, **masking)
    loop.train(
        student.model, stream, recipe.triple(student, found=company, factors=factors, temperature=2.0),
        steps=steps, lr=lr, schedule="linear", clip=5.0, seed=seed, dropout=False, progress=False,
        count=functools.partial(recipe.counted, found=company),
        extra=[one.project for one in company if one.project is not None],
    )  # fmt: skip
    return student


@torch.no_grad()
def pretrained(student: Transformer, part: str) -> dict[str, float]:
    """On 20 batches of masked texts, for a student of A's tokenizer: "loss" of masked tokens, "cosine" of last hidden
    states with A's, and "probability": its loyalty to what A says of masked tokens.
    """
    found = recipe.company(teacher("A"), (), (), "words", LENGTH)
    items = recipe.batches(student, found, texts_of(part), BATCH, LENGTH, seed=7).take(20)
    objective = recipe.triple(student, found=found, factors=(0.0, 1.0, 1.0), temperature=2.0)
    rows = [objective(item, recipe.counted(item, found=found))[1] for item in items]
    tally = loyalty.Tally()
    quality.accuracies([teacher("A").forward, student.forward], items, watch=tally.add)
    return {
        "loss": float(np.mean([row["masked"] for row in rows])),
        "cosine": 1.0 - float(np.mean([row["near original"] for row in rows])),
        "probability": tally.figures()["probability_loyalty"].value,
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
def _items(task: str, part: str, count: int) -> Items:
    documents = [found for n, found in enumerate(packages.brown_tagged()) if n % 5 in PART[part]]
    draw = np.random.default_rng(11)
    sentences = [one for _, document in documents for one in document if 5 <= len(one) <= 25]
    chosen = [sentences[i] for i in draw.permutation(len(sentences))[:count]]
    if task == "tags":
        known = _kinds()
        told = [[known.get(_kind(tag), len(known)) for _, tag in one] for one in chosen]
        return Items([" ".join(word for word, _ in one) for one in chosen], (), told, len(known) + 1)
    if task in ("genre", "spam"):
        classes = 4 if task == "genre" else 2
        rows = [[text for kind, text in _texts(task, part) if kind == number] for number in range(classes)]
        few = count // classes  # equally many of each
        told = [
            (text, kind)
            for kind, some in enumerate(rows)
            for text in (some[i] for i in draw.permutation(len(some))[:few])
        ]
        picked = [told[i] for i in draw.permutation(len(told))]
        return Items([text for text, _ in picked], (), [kind for _, kind in picked], classes)
    pairs, targets = [], []
    for one, other in zip(chosen, reversed(chosen), strict=True):
        first, second = ([word for word, _ in words] for words in (one, other))
        changed = draw.random(len(first)) < draw.random()
        mixed = [second[i % len(second)] if hit else first[i] for i, hit in enumerate(changed)]
        sets = [{word.lower() for word in words} for words in (first, mixed)]
        pairs.append((" ".join(first), " ".join(mixed)))
        targets.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    return Items([one for one, _ in pairs], [other for _, other in pairs], targets, 1)


def _texts(task: str, part: str) -> list[tuple[int, str]]:
    """(class, text): three sentences of a kind of writing, or the first 50 words of a mail's body, 1 for spam."""
    if task == "spam":
        mails = [found for n, found in enumerate(packages.spam_assassin()) if n % 5 in PART[part]]
        bodies = [(int(group.startswith("spam")), mail.partition("\n\n")[2].split()) for group, mail in mails]
        return [(kind, " ".join(words[:50])) for kind, words in bodies if words]
    plain = [found for n, found in enumerate(packages.brown_documents()) if n % 5 in PART[part]]
    return [(KINDS[genre], " ".join(text[i : i + 3])) for genre, text in plain for i in range(0, len(text) - 2, 3)]


@functools.cache
def _kinds() -> dict[str, int]:
    documents = [found for n, found in enumerate(packages.brown_tagged()) if n % 5 in PART["learning"]]
    times = Counter(_kind(tag) for _, document in documents for one in document for _, tag in one)
    return {kind: number for number, (kind, _) in enumerate(times.most_common(20))}


def _kind(tag: str) -> str:
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
            return self.out(alignment.word_means(states, batch["words"]))
        texts = recipe.averaged(states, batch["attention_mask"])
        if self.task != "similarity":
            return self.out(texts)
        first, second = texts.chunk(2)
        return self.out(torch.cat([(first - second).abs(), first * second], -1)).squeeze(-1)


def _batch(tokenizer: Any, items: Items, rows: Sequence[int], task: str) -> dict[str, Tensor]:
    chosen = [items.texts[row] for row in rows] + [items.others[row] for row in rows if items.others]
    readings = alignment.read(tokenizer, chosen, 128)
    width = max(len(one.ids) for one in readings)
    ids, mask = np.zeros((len(readings), width), np.int64), np.zeros((len(readings), width), np.int64)
    words, so_far = np.full((len(readings), width), -1, np.int64), 0
    for row, (text, one) in enumerate(zip(chosen, readings, strict=True)):
        ids[row, : len(one.ids)], mask[row, : len(one.ids)] = one.ids, 1
        if task == "tags":
            numbers = alignment.words(text, one)
            assert len(np.unique(numbers[numbers >= 0])) == len(text.split())
            words[row, : len(numbers)] = np.where(numbers < 0, -1, numbers + so_far)
            so_far += len(text.split())
    told = [items.targets[row] for row in rows]
    flat = [one for row in told for one in row] if task == "tags" else told
    arrays = {"input_ids": ids, "attention_mask": mask, "words": words}
    return {name: torch.from_numpy(array) for name, array in arrays.items()} | {"targets": torch.tensor(flat)}


@dataclass
class Fitted:
    """A fine-tuned encoder: what it predicts of the judged items ([n, C] probabilities, or [n]), and how well."""

    predictions: Tensor
    score: float
    subject: Transformer
    head: Head


def fitted(
    subject: Transformer,
    task: str,
    seed: int,
    *,
    part: str = "judged",
    tutor: Fitted | None = None,
    steps: int = FINE_TUNING["steps"],
    lr: float = FINE_TUNING["lr"],
) -> Fitted:
    """A copy of `subject` fine-tuned on `task`, from its labels or, with a `tutor`, from that one's predictions alone.

    The score is macro F1, of similarities Pearson's correlation. Both kinds of training take equally many steps.
    """
    copy = subject.copy()
    items = _items(task, "learning", 1200)
    torch.manual_seed(seed)
    head = Head(task, copy.hidden_size, items.classes)
    order = np.random.default_rng([seed, 3]).permutation(len(items.texts))
    rows = [order[i : i + 16] for i in range(0, len(order) - 15, 16)]
    feed = [_batch(copy.tokenizer, items, part_of, task) for part_of in rows]
    if tutor is not None:
        for batch, part_of in zip(feed, rows, strict=True):
            batch["taught"] = _told(tutor, _batch(tutor.subject.tokenizer, items, part_of, task))

    def objective(batch: dict[str, Tensor], totals: Any) -> tuple[Tensor, dict[str, float]]:
        said = head(functools.partial(_states, copy), batch)
        goal = batch.get("taught", batch["targets"])
        if task == "similarity":
            return functional.mse_loss(said, goal.float()), {}
        return functional.cross_entropy(said, goal), {}

    loop.train(copy.model, feed, objective, steps=steps, lr=lr, seed=seed, extra=[head], dropout=False,
               progress=False)  # fmt: skip
    judged = _items(task, part, 400)
    whole = [range(i, min(i + 50, len(judged.texts))) for i in range(0, len(judged.texts), 50)]
    found = Fitted(torch.empty(0), 0.0, copy, head)
    batches = [_batch(copy.tokenizer, judged, rows_of, task) for rows_of in whole]
    found.predictions = torch.cat([_told(found, batch) for batch in batches])
    found.score = _score(task, found.predictions, torch.cat([batch["targets"] for batch in batches]))
    return found


def _states(subject: Transformer, batch: dict[str, Tensor]) -> Tensor:
    how = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states: Tensor = subject.model.base_model(**how).last_hidden_state
    return states


@torch.no_grad()
def _told(one: Fitted, batch: dict[str, Tensor]) -> Tensor:
    one.subject.model.eval()
    said: Tensor = one.head(functools.partial(_states, one.subject), batch)
    return said.double().softmax(-1) if said.dim() > 1 else said.double()


def _score(task: str, predictions: Tensor, targets: Tensor) -> float:
    if task == "similarity":
        return float(np.corrcoef(predictions.numpy(), targets.numpy())[0, 1])
    return float(f1_score(targets.numpy(), predictions.argmax(-1).numpy(), average="macro"))


@functools.cache
def learned(name: str, task: str, seed: int, part: str = "judged") -> Fitted:
    """Teacher `name`, fine-tuned on a task."""
    return fitted(teacher(name), task, seed, part=part)


def compared(student: Fitted, task: str, seed: int) -> dict[str, Any]:
    """How good a fine-tuned student is, and how loyal to A, to B and to their average, fine-tuned alike."""
    teachers = {name: learned(name, task, seed).predictions for name in "AB"}
    found: dict[str, Any] = {"score": student.score}
    if task == "similarity":
        for name, told in loyalty.to_each(loyalty.regression, student.predictions, teachers).items():
            found[name] = {"regression": told["pearson"].value}
        return found
    for kind, measure in (("label", loyalty.label), ("probability", loyalty.probability)):
        for name, figure in loyalty.to_each(measure, student.predictions, teachers).items():
            found.setdefault(name, {})[kind] = figure.value
    return found
