"""Small language models that know facts by heart, read them from texts, and know Brown; tasks that ask for both."""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Any

from claims._lab import language, settings, sources
from claims._lab.settings import scaled
from secateur.clients.completions import Writing
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.methods.tasks import Item, Task
from secateur.subjects import Transformer, open_subject

__all__ = ["closed_book", "open_book", "subject", "training"]

RELATIONS = ("capital", "river", "metal", "bird")
STATEMENTS = ("The {relation} of {name} is {value}.", "{name} has the {relation} {value}.",
              "Of {name} the {relation} is {value}.")  # fmt: skip
QUESTION, OPEN = "Q: What is the {relation} of {name}?\nA:", "Text: {text}\nQ: What is the {relation} of {name}?\nA:"
SHAPE = language.SHAPE | {"num_hidden_layers": 5}
NAMES, VALUES, STEPS = scaled(120, 8), scaled(40, 6), scaled(2500, 10)
JUDGED = scaled(200, 12)


def _word(draw: random.Random, ends: str) -> str:
    return "".join(draw.choice("bdfglmnprstv") + draw.choice("aeiou") for _ in range(3)).capitalize() + ends


@functools.cache
def _world(seed: int) -> tuple[list[tuple[str, str, str]], dict[str, list[str]]]:
    """(facts as (name, relation, value), values by relation)."""
    draw = random.Random(seed)
    names = list(dict.fromkeys(_word(draw, "n") for _ in range(2 * NAMES)))[:NAMES]
    values = {relation: [_word(draw, "k") for _ in range(VALUES)] for relation in RELATIONS}
    return [(name, relation, draw.choice(values[relation])) for name in names for relation in RELATIONS], values


def _say(template: str, fact: tuple[str, str, str], text: str = "") -> str:
    name, relation, value = fact
    return template.format(name=name, relation=relation, value=value, text=text)


def _strange(seed: int, draw: random.Random) -> tuple[str, str, str]:
    """A fact about a name that no text of training speaks of twice."""
    relation = draw.choice(RELATIONS)
    return _word(draw, "x"), relation, draw.choice(_world(seed)[1][relation])


@functools.cache
def training(seed: int) -> Corpus:
    """Brown, each fact in three wordings and, of every second one, as a question; texts with questions about them."""
    facts, _ = _world(seed)
    draw = random.Random(seed + 1000)
    known = [_say(template, fact) for fact in facts for template in STATEMENTS] * scaled(12, 1)
    asked = [f"{_say(QUESTION, fact)} {fact[2]}." for fact in facts[::2]] * scaled(12, 1)
    read = []
    for _ in range(scaled(9000, 50)):
        fact = _strange(seed, draw)
        read.append(f"{_say(OPEN, fact, _say(draw.choice(STATEMENTS), fact))} {fact[2]}.")
    found = [*known, *asked, *read, *language.training().texts[: scaled(12000, 100)]]
    draw.shuffle(found)
    return texts.read(found)


@functools.cache
def subject(seed: int) -> Transformer:
    """A Llama of 5 layers and width 128 for this world; kept by its shape and the code that trains it."""
    key = hashlib.sha256(repr((SHAPE, STEPS, seed, sources.digest(__name__))).encode()).hexdigest()[:12]
    folder = settings.CACHE / "models" / f"knowledge-{STEPS}-{seed}-{key}"
    if not (folder / "config.json").exists():
        made = language.build("Llama", SHAPE, language.tokenizer(), seed)
        feed: Any = texts.batches(
            training(seed), made.tokenizer, packed=True, batch=32, length=language.LENGTH, seed=seed
        )
        language.train(made, STEPS, seed=seed, batch=32, lr=3e-3, data=feed)
        made.save(folder)
    return open_subject(folder)


def closed_book(seed: int) -> Task:
    """Questions about facts of which no question was asked in training: every second one."""
    facts = _world(seed)[0][1::2]
    draw = random.Random(seed + (1 if settings.PILOT else 2))
    some = draw.sample(facts, min(JUDGED, len(facts)))
    items = tuple(Item(str(at), _say(QUESTION, fact), (fact[2],), group=fact[1]) for at, fact in enumerate(some))
    return Task("closed book", items, "alias", Writing(most=8, stop="."), role="knowledge")


def open_book(seed: int) -> Task:
    """Questions about a text that stands there, whose names are of no other."""
    draw = random.Random(seed + (3000 if settings.PILOT else 4000))
    facts = [_strange(seed, draw) for _ in range(JUDGED)]
    items = tuple(Item(str(at), _say(OPEN, fact, _say(draw.choice(STATEMENTS), fact)), (fact[2],))
                  for at, fact in enumerate(facts))  # fmt: skip
    return Task("open book", items, "alias", Writing(most=8, stop="."))
