"""Questions on passages of Brown and of Python's manual; by construction it is known which sentences matter."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assets import packages
from secateur.score import citations, relevance
from secateur.subjects import open_page
from secateur.subjects.text import markup
from secateur.subjects.text.passage import sentences

LONGEST = 5
"""Sentences of a passage at most: a small encoder on two cores is taught with 128 tokens."""
AWAY = ("fiction", "mystery", "science fiction", "adventure", "romance", "humor")
"""Genres that nothing is trained on."""
_PRONOUNS = {"he", "she", "it", "they", "this", "these", "those", "his", "her", "its", "their", "such"}


@dataclass(frozen=True)
class Question:
    """A question and its passages, the title of each first; numbers of the sentences that matter, in the first alone.

    continued: which of them only goes on from the one before, or -1.
    """

    question: str
    passages: tuple[tuple[str, ...], ...]
    gold: tuple[frozenset[int], ...]
    continued: int


@functools.cache
def documents(domain: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(title, sentences) of all documents: of "taught" and "held" genres that are trained on, "away", and "manual"."""
    if domain == "manual":
        found = []
        for path in sorted((packages.manual() / "library").glob("*.html"))[::2]:
            page = open_page(path)
            blocks = [page.text(i).replace("¶", "") for i in range(len(page.blocks))]
            heading = re.split(r" \u2014 ", blocks[0])[0] if blocks else path.stem
            lines = [block[a:b] for block in blocks for a, b in sentences(block) if 5 <= len(block[a:b].split()) <= 50]
            if len(lines) > 40:
                found.append((f"{path.stem}: {' '.join(heading.split()[:6])}", tuple(lines)))
        return tuple(found)
    chosen = []
    for number, (genre, given) in enumerate(packages.brown_documents()):
        part = "away" if genre in AWAY else "held" if number % 4 == 0 else "taught"
        if part == domain:
            lines = tuple(one for one in given if 4 <= len(one.split()) <= 50)
            chosen.append((f"{genre}: {' '.join(given[0].split()[:6])}", lines))
    return tuple(chosen)


@functools.cache
def common() -> Counter[str]:
    """How often each word is used in all that is asked about."""
    return Counter(term for domain in ("taught", "held", "away", "manual") for _, lines in documents(domain)
                   for line in lines for term in markup.terms(line))  # fmt: skip


def phrases(lines: Sequence[str]) -> list[tuple[int, str]]:
    """(sentence, a rare word with the one before it) of what stands in one sentence of a document alone."""
    terms = [markup.terms(line) for line in lines]
    once = Counter(term for one in terms for term in set(one))
    found = []
    for number, one in enumerate(terms):
        for before, word in itertools.pairwise(one):
            if len(word) > 4 and word.isalpha() and once[word] == 1 and common()[word] <= 12 and len(before) > 3:
                found.append((number, f"{before} {word}"))
    return found


def continues(lines: Sequence[str], number: int) -> bool:
    """Whether the next sentence goes on by a pronoun."""
    return number + 1 < len(lines) and lines[number + 1].split()[0].lower().strip(",'\"") in _PRONOUNS


def draw_questions(domain: str, seed: int, count: int, passages: int = 5) -> list[Question]:
    """`count` questions, each with the passage that answers it and the best others by BM25."""
    draw, sizes = random.Random(f"{domain} {seed}"), list(range(1, LONGEST + 1))
    texts = documents(domain)
    pool: list[tuple[int, int, int]] = []
    for number, (_, lines) in enumerate(texts):
        start = 0
        while start < len(lines):
            size = draw.choices(sizes, sizes)[0]
            pool.append((number, start, min(len(lines), start + size)))
            start += max(1, size // 2)
    lexical = relevance.lexical([markup.terms(" ".join(texts[n][1][a:b])) for n, a, b in pool])
    found: list[Question] = []
    while len(found) < count:
        number = draw.randrange(len(texts))
        title, lines = texts[number]
        choice = phrases(lines)
        goes_on = [one for one in choice if continues(lines, one[0])]
        if not choice:
            continue
        place, phrase = draw.choice(goes_on if goes_on and len(found) % 2 else choice)
        gold = {place, place + 1} if continues(lines, place) else {place}
        question = f"What is said about {phrase}?"
        if draw.random() < 0.3:
            question = cloze(lines[place], phrase.split()[-1], draw) or question
        size = max(len(gold), draw.choices(sizes, sizes)[0])
        first = draw.randint(max(0, max(gold) + 1 - size), min(gold))
        mine = list(range(first, min(len(lines), first + size)))
        order = np.argsort(-lexical(markup.terms(question)), kind="stable").tolist()
        others = [pool[i] for i in order[:200] if pool[i][0] != number or not gold & set(range(*pool[i][1:]))]
        parts = [(title, *(lines[i] for i in mine))]
        parts += [(texts[n][0], *texts[n][1][a:b]) for n, a, b in others[: passages - 1]]
        wanted = frozenset(mine.index(i) + 1 for i in gold if i in mine)
        after = mine.index(place + 1) + 1 if len(gold) == 2 else -1
        found.append(Question(question, tuple(parts), (wanted, *[frozenset[int]()] * (len(parts) - 1)), after))
    return found


def cloze(sentence: str, word: str, draw: random.Random) -> str:
    """The words around another rare one, which is left out; empty where there is none."""
    words = sentence.split()
    rare = [i for i, one in enumerate(words) if len(one) > 4 and one.isalpha() and one.lower() != word]
    if len(words) < 8 or not rare:
        return ""
    place = draw.choice(rare)
    around = [*words[max(0, place - 5) : place], "...", *words[place + 1 : place + 6]]
    return f"Which word is missing: {' '.join(around)}?"


def training_rows(questions: Sequence[Question], draw: random.Random | None = None) -> list[dict]:
    """The questions as a pruner is taught by them; with `draw`, through an LLM's citations, some wrong or forgotten."""
    made = []
    for one in questions:
        kept: list[list[int] | None] = []
        for part, gold in zip(one.passages, one.gold, strict=True):
            citation = "".join(f"So it says [{i}]. " for i in sorted(gold)) or "No answer"
            if draw is not None and gold and draw.random() < 0.1:
                citation = "So it says."
            elif draw is not None and draw.random() < 0.05:
                citation = f"So it says [{draw.randrange(len(part))}]."
            numbers = citations.read_citations(citation, len(part), titled=True)
            kept.append(None if numbers is None else sorted(numbers))
        made.append({"question": one.question, "documents": [list(part) for part in one.passages], "kept": kept})
    return made
