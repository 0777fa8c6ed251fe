"""Small Llamas that think before they answer: trained on made schedules and facts, with worked thoughts."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from claims._lab import language, settings, sources
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.methods import puzzles
from secateur.methods.puzzles import Asking
from secateur.subjects import Transformer, open_subject

__all__ = ["KINDS", "LENGTH", "prose", "thinker", "training", "write_spare", "write_tasks"]

KINDS = ("schedules", "facts")
LEVELS = (1, 2, 3)
LENGTH, STEPS = 96, scaled(2000, 30)
LEARNED, TOLD = scaled(2000, 40), 4
"""Schedules of each level to learn from: fewer are learned by heart. And how often all texts of facts are there."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
COUNT = scaled(40, 4)
"""Questions of each level; and half of the people whom facts are of."""
HOW = Asking(tokens=48)


def write_tasks(seed: int, folder: Path) -> list[Path]:
    """The tasks of a seed, a file for each kind, and train.jsonl; a pilot's are those of no judged seed."""
    return puzzles.write_puzzles(folder, KINDS, COUNT, seed + scaled(0, 500), levels=LEVELS, how=HOW)


def write_spare(seed: int, folder: Path) -> Path:
    """A task file of schedules on which nothing is judged, to think about."""
    folder.mkdir()
    own = write_tasks(seed, folder / "own")
    files = puzzles.write_puzzles(folder / "other", KINDS[:1], COUNT, seed + 7_000_000, levels=LEVELS, how=HOW)
    known = {line for file in own for line in file.read_text("utf-8").splitlines()}
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()[1:] if line not in known]
    asked = [{"text": _prompt(json.loads(line)), "answer": "-"} for line in lines]
    out = folder / "spare.jsonl"
    first = {**HOW.settings("facts"), "task": "spare", "prompt": "{text}"}
    out.write_text("".join(f"{json.dumps(row)}\n" for row in [first, *asked]), "utf-8")
    return out


def _prompt(row: dict[str, Any]) -> str:
    """A row's question with its options, as its task asks it."""
    options = "".join(f"\n{letter}. {one}" for letter, one in zip("ABCD", row.get("options", ()), strict=False))
    return f"{row['question']}{options}\n<think>\n"


@functools.cache
def training(seed: int) -> Corpus:
    """What the model of this seed learns from: facts, again and again, and schedules that nobody asks."""
    with tempfile.TemporaryDirectory() as place:
        files = write_tasks(seed, Path(place))
        rows = [json.loads(row)["text"] for row in (Path(place) / "train.jsonl").read_text("utf-8").splitlines()]
        asked = {json.loads(row).get("question") for file in files for row in file.read_text("utf-8").splitlines()}
    found = [text for text in rows if "lives in" in text or "lies in" in text] * TOLD
    for kind in KINDS[:1]:
        made = puzzles.make_puzzles(kind, LEARNED, seed + 3_000_000, levels=LEVELS)
        found += [puzzle.text for puzzle in made if puzzle.question not in asked]
    random.Random(seed).shuffle(found)
    return texts.read(found)


def prose(seed: int) -> Corpus:
    """The texts without thoughts: plain sentences that tell facts, in the place of general text."""
    return texts.read([text for text in training(seed).texts if "<think>" not in text])


@functools.cache
def thinker(seed: int) -> Transformer:
    """The model of a seed, trained on its texts; kept by its shape and the code that trains it."""
    key = repr((SHAPE, STEPS, LEVELS, COUNT, LENGTH, seed, settings.PILOT, sources.digest(__name__)))
    folder = settings.CACHE / "models" / f"thinker-{seed}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "config.json").exists():
        subject = language.build("Llama", SHAPE, _tokenizer(training(seed)), seed)
        data = texts.batches(training(seed), subject.tokenizer, packed=True, batch=16, length=LENGTH, seed=seed)
        language.train(subject, STEPS, seed=seed, lr=4e-3, data=data)
        subject.save(folder)
    return open_subject(folder)


def _tokenizer(corpus: Corpus) -> Any:
    """One token for each word of the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in corpus.texts for word in text.split()})
    vocabulary = {word: at for at, word in enumerate(["<|end|>", "[UNK]", *words])}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>", unk_token="[UNK]")
