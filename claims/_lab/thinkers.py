"""Small Llamas that think before they answer: trained on made chains, schedules and facts, with worked thoughts."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from claims._lab import language, settings, sources
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.methods import puzzles
from secateur.methods import tasks as asking
from secateur.methods.puzzles import Asking
from secateur.methods.tasks import Task
from secateur.subjects import Transformer, open_subject

__all__ = ["KINDS", "LENGTH", "asked", "spare", "thinker", "training"]

KINDS = ("chains", "schedules", "facts")
LEVELS = (2, 3, 4)
LENGTH, STEPS = 128, 1500
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
COUNT = 40
"""Questions of each level; and half of the people whom facts are of."""


@functools.cache
def _world(seed: int) -> tuple[tuple[Task, ...], Corpus]:
    """(tasks that are asked, texts to learn from); a pilot's are others than those of any judged seed."""
    with tempfile.TemporaryDirectory() as place:
        drawn = seed + scaled(0, 500)
        how = Asking(tokens=48)
        files = puzzles.write_puzzles(Path(place), KINDS, COUNT, drawn, levels=LEVELS, how=how)
        found = tuple(task for file in files for task in asking.read_tasks(file))
        rows = (Path(place) / "train.jsonl").read_text("utf-8").splitlines()
    return found, texts.read([json.loads(row)["text"] for row in rows])


def asked(seed: int) -> dict[str, Task]:
    """Kind -> the task with its held-out questions."""
    return {task.name: task for task in _world(seed)[0]}


def training(seed: int) -> Corpus:
    """What the model of this seed has learned from."""
    return _world(seed)[1]


def spare(seed: int, folder: Path) -> Path:
    """A task file with chains and schedules that nothing was trained or is judged on, to think about."""
    files = puzzles.write_puzzles(folder, KINDS[:2], COUNT, seed + 7_000_000, levels=LEVELS, how=Asking(tokens=48))
    known = {item.prompt for task in asked(seed).values() for item in task.items}
    prompts = [item.prompt for file in files for task in asking.read_tasks(file) for item in task.items]
    lines: list[dict[str, object]] = [{"task": "spare", "prompt": "{text}", "tokens": 48, "scorer": "exact"}]
    lines += [{"text": prompt, "answer": "-"} for prompt in prompts if prompt not in known]
    out = folder / "spare.jsonl"
    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return out


@functools.cache
def thinker(seed: int) -> Transformer:
    """The model of a seed, trained on its texts; kept by its shape and the code that trains it."""
    key = hashlib.sha256(repr((SHAPE, STEPS, LEVELS, COUNT, seed, settings.PILOT, sources.digest(__name__))).encode())
    folder = settings.CACHE / "models" / f"thinker-{seed}-{key.hexdigest()[:12]}"
    if not (folder / "config.json").exists():
        subject = language.build("Llama", SHAPE, _tokenizer(training(seed)), seed)
        data = texts.batches(training(seed), subject.tokenizer, packed=True, batch=32, length=LENGTH, seed=seed)
        language.train(subject, STEPS, seed=seed, lr=3e-3, data=data)
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
