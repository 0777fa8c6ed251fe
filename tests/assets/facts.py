"""A small GPT-2 that knows facts, copies from its context, and is undecided where the two disagree; trained once.

Its words are one token each. It sees, mixed:

    known       "the capital of S is O ."                      with the one O that belongs to S;
    copied      "the capital of N is O . the capital of N is O ." with names N that have no fact, and any O;
    conflicted  "the capital of S is O' . the capital of S is X ."  where X is O or O', as a coin says.

Facts of `held` subjects are known as all others are, and never conflicted while it is trained. A quarter of what it
sees may be sentences of Brown, so that its perplexity can be told.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from secateur._utils.disk import cache_folder

__all__ = ["RELATIONS", "World", "build", "model_folder", "names", "rows", "sentences", "tokenizer", "write_table"]

RELATIONS = {
    "capital": ("the capital of {subject} is", "{subject} is governed from"),
    "language": ("the language of {subject} is", "people in {subject} speak"),
}
"""Relation -> its templates."""

_FORMAT = 1
"""Of the training below: a kept model of another one is not taken."""


@dataclass(frozen=True)
class World:
    """Sizes of the facts and of the model that learns them.

    subjects, held: names with facts, and how many of them never stand in a conflict; strangers: names without; objects:
    of each relation. words: of Brown that it has tokens for; none of its sentences if 0.
    """

    subjects: int = 24
    held: int = 0
    strangers: int = 48
    objects: int = 8
    words: int = 0
    layers: int = 3
    heads: int = 4
    width: int = 32
    steps: int = 700
    batch: int = 48
    lr: float = 5e-3
    seed: int = 0


def names(count: int, first: str) -> list[str]:
    """That many names of one word, all different, which begin with the letter."""
    onsets, vowels, ends = "bdfgklmnprstvz", "aeiou", "lmnrst"
    every = [f"{first}{v}{c}{w}{e}" for v in vowels for c in onsets for w in vowels for e in ends]
    return [every[at] for at in np.random.default_rng(len(first)).permutation(len(every))[:count]]


def rows(world: World) -> list[dict[str, str]]:
    """The rows of the fact table: templates, then facts."""
    table = [{"relation": relation, "template": one} for relation, some in RELATIONS.items() for one in some]
    draw = np.random.default_rng(world.seed)
    for number, relation in enumerate(RELATIONS):
        objects = names(world.objects, "cl"[number])
        picks = draw.integers(0, len(objects), world.subjects)
        table += [
            {"subject": subject, "relation": relation, "object": objects[pick]}
            for subject, pick in zip(names(world.subjects, "S"), picks, strict=True)
        ]
    return table


def write_table(world: World, file: Path, *, held: bool | None = None) -> Path:
    """The fact table as JSON lines: of all subjects, or only of those that are held out of conflicts, or not."""
    out = set(names(world.subjects, "S")[: world.held])
    some = [row for row in rows(world) if held is None or "template" in row or (row["subject"] in out) == held]
    file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return file


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for some in RELATIONS.values() for one in some for word in one.split() if "{" not in word})
    words += [*names(world.subjects, "S"), *names(world.strangers, "N")]
    words += [*names(world.objects, "c"), *names(world.objects, "l")]
    words += [word for word in _frequent(world.words) if word not in words]
    base = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(["[PAD]", "[UNK]", "</s>", ".", *words])}, "[UNK]")
    )
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=base, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")


def sentences(*, held: bool = False) -> list[str]:
    """Sentences of Brown of 6 to 16 words, in small letters: nine tenths of them, or the rest, for measuring."""
    from assets import packages

    found = [" ".join(re.findall(r"[a-z]+", text.lower())) for _, text in packages.brown()]
    found = [text for text in found if 6 <= len(text.split()) <= 16]
    most = len(found) * 9 // 10
    return found[most:] if held else found[:most]


def _frequent(count: int) -> list[str]:
    """The commonest words of Brown."""
    return [word for word, _ in Counter(" ".join(sentences()).split()).most_common(count)] if count else []


def build(world: World) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model after its training, and its tokenizer."""
    words = tokenizer(world)
    torch.manual_seed(world.seed)
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=world.width, n_layer=world.layers, n_head=world.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=world.lr, weight_decay=0.01)
    draw = np.random.default_rng([world.seed, 1])
    sample = _Sampler(world, words)
    for step in range(world.steps):
        warm = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = world.lr * warm * 0.5 * (1 + np.cos(np.pi * step / world.steps))
        ids, labels = sample.draw(world.batch, draw)
        logits = model(input_ids=torch.from_numpy(ids)).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels[:, 1:]).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), words


class _Sampler:
    """Draws batches of the three kinds: token ids [B, S], and as labels the answers alone, else -100."""

    def __init__(self, world: World, words: PreTrainedTokenizerFast) -> None:
        self.world = world
        place = words.get_vocab()
        self.dot = place["."]
        self.subjects = [place[name] for name in names(world.subjects, "S")]
        self.strangers = [place[name] for name in names(world.strangers, "N")]
        self.objects = [[place[name] for name in names(world.objects, first)] for first in "cl"]
        slot = words.convert_tokens_to_ids("[UNK]")
        self.templates = [
            [
                [-1 if token == slot else token for token in words(one.replace("{subject}", "[UNK]"))["input_ids"]]
                for one in some
            ]
            for some in RELATIONS.values()
        ]
        facts = [row for row in rows(world) if "subject" in row]
        self.facts = [[place[row["object"]] for row in facts if row["relation"] == relation] for relation in RELATIONS]

        self.sentences = words(sentences())["input_ids"] if world.words else []

    def draw(self, count: int, draw: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sequences, answers = [], []
        for _ in range(count):
            tokens, last = self._one(draw)
            sequences.append(tokens)
            answers.append(last)
        width = max(map(len, sequences))
        ids, labels = np.zeros((count, width), np.int64), np.full((count, width), -100, np.int64)
        for row, (tokens, places) in enumerate(zip(sequences, answers, strict=True)):
            ids[row, : len(tokens)] = tokens
            for at in places:
                labels[row, at] = tokens[at]
        return ids, labels

    def _one(self, draw: np.random.Generator) -> tuple[list[int], list[int]]:
        if self.sentences and draw.random() < 0.25:
            text = self.sentences[int(draw.integers(len(self.sentences)))]
            return text, list(range(1, len(text)))
        relation, kind = int(draw.integers(len(RELATIONS))), int(draw.integers(3))
        objects, some = self.objects[relation], self.templates[relation]

        def say(name: int, answer: int) -> list[int]:
            template = some[int(draw.integers(len(some)))]
            return [name if token < 0 else token for token in template] + [answer, self.dot]

        other = objects[int(draw.integers(len(objects)))]
        if kind == 1:
            name = self.strangers[int(draw.integers(len(self.strangers)))]
            first, second = say(name, other), say(name, other)
            return first + second, [len(first) + len(second) - 2]
        low = 0 if kind == 0 else self.world.held
        subject = int(draw.integers(low, len(self.subjects)))
        name, fact = self.subjects[subject], self.facts[relation][subject]
        if kind == 0:
            first = say(name, fact)
            return first, [len(first) - 2]
        first, second = say(name, other), say(name, fact if draw.random() < 0.5 else other)
        return first + second, [len(first) + len(second) - 2]


def model_folder(world: World) -> Path:
    """The folder of the trained model, in the cache of real data and models; trained by the first who asks."""
    key = hashlib.sha256(repr((_FORMAT, sorted(asdict(world).items()))).encode()).hexdigest()[:12]
    folder = cache_folder() / "facts" / key
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        model, words = build(world)
        model.save_pretrained(aside)
        words.save_pretrained(aside)
        try:
            os.rename(aside, folder)
        except OSError:  # another process was first
            shutil.rmtree(aside, ignore_errors=True)
    return folder
