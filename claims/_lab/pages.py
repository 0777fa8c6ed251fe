"""Questions on pages of Python's manual whose answers stand in one known place, and rivals that search there too."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from selectolax.lexbor import LexborHTMLParser

from assets import packages
from secateur.retrieval import encoders
from secateur.score import relevance

BUDGETS = (256, 512, 1024, 4096)
LARGEST = 400_000
"""Bytes of a page: the index of all names is no page that is retrieved."""


@dataclass(frozen=True)
class Question:
    """A question, what the answer says word by word, the page it stands on, and that page among others."""

    question: str
    gold: str
    kind: str
    page: Path
    pages: tuple[Path, ...]


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


def _text(node) -> str:
    return " ".join(node.text().replace("¶", "").split())


def questions_on(page: Path) -> list[tuple[str, str, str]]:
    """(kind, question, gold) of all that can be asked of one page."""
    tree, found = LexborHTMLParser(page.read_bytes()), []
    for term in tree.css("dt[id]"):
        name, definition = term.attributes["id"], term.next
        while definition is not None and definition.tag != "dd":
            definition = definition.next if definition.tag in ("-text", "dt") else None
        if definition is None or not name or " " in name:
            continue
        paragraphs = [node for node in definition.iter() if node.tag == "p"]
        if paragraphs:
            found.append(("does", f"What does {name} do?", _text(paragraphs[0])))
        for paragraph in paragraphs[1:]:
            first = paragraph.css_first("em")
            if first is not None and _text(first).isidentifier():
                question = f"What is the argument {_text(first)} of {name} for?"
                found.append(("argument", question, _text(paragraph)))
        for note in definition.iter():
            if note.tag == "div" and "versionchanged" in (note.attributes.get("class") or ""):
                text = _text(note)
                change = text.partition(":")[2].strip().rstrip(".")
                if change:
                    question = f"In which version was {name} changed: {change[:1].lower()}{change[1:]}?"
                    found.append(("version", question, text))
    title = _text(tree.css_first("h1")) if tree.css_first("h1") else page.stem
    for table in tree.css("table"):
        heads = [_text(cell) for cell in table.css("thead th")]
        for row in table.css("tbody tr"):
            cells = [_text(cell) for cell in row.css("td")]
            if len(cells) == len(heads) >= 2 and cells[0] and len(cells[1].split()) >= 4:
                found.append(("table", f"What is the {heads[1].lower()} of {cells[0]} ({title})?", cells[1]))
    return [one for one in found if len(one[2].split()) >= 6]


@functools.cache
def library() -> tuple[Path, ...]:
    pages = sorted((packages.manual() / "library").glob("*.html"))
    return tuple(page for page in pages if page.stat().st_size <= LARGEST)


@functools.cache
def draw_questions(seed: int, groups: int = 14, each: int = 3, others: int = 4) -> list[Question]:
    """`groups` times `each` questions, those of a group on the same pages: one of them has the answers."""
    draw, found = random.Random(seed), list[Question]()
    while len(found) < groups * each:
        pages = draw.sample(library(), 1 + others)
        whole = without_blanks(" ".join(LexborHTMLParser(page.read_bytes()).text() for page in pages)).replace("¶", "")
        questions = [one for one in questions_on(pages[0]) if whole.count(without_blanks(one[2])) == 1]
        kinds = sorted({kind for kind, _, _ in questions})
        draw.shuffle(kinds)
        chosen = [draw.choice([one for one in questions if one[0] == kind]) for kind in (kinds * each)[:each]]
        order = draw.sample(pages, len(pages))
        if len(set(chosen)) == each:
            found += [Question(question, gold, kind, pages[0], tuple(order)) for kind, question, gold in chosen]
    return found


def has_answer(question: Question, output: str) -> bool:
    """Whether the answer stands in what is left, of HTML or of text."""
    return without_blanks(question.gold) in without_blanks(LexborHTMLParser(output).text()).replace("¶", "")


def chunks(pages: Sequence[Path], size: int = 100) -> list[str]:
    """The text of all pages in pieces of `size` words."""
    found = []
    for page in pages:
        tree = LexborHTMLParser(page.read_bytes())
        tree.strip_tags(["script", "style"])
        words = tree.body.text(separator=" ").split()
        found += [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return found


def best_chunks(
    question: Question, budget: int, embed: Callable, count: encoders.Count, order: Callable | None = None
) -> str:
    """Chunks, best first, as long as they fit; in their order."""
    pieces = chunks(question.pages)
    vectors = embed([question.question, *pieces])
    scores = relevance.cosine(vectors[0], vectors[1:]) if order is None else order(len(pieces))
    kept, spent = [], 0
    costs = count(pieces)
    for index in np.argsort(-scores, kind="stable"):
        if spent + costs[index] > budget:
            break
        kept.append(int(index))
        spent += costs[index]
    return "\n".join(pieces[index] for index in sorted(kept))


class CachedEmbedder:
    """An embedder that reads each text once."""

    def __init__(self, embed: encoders.Embed) -> None:
        self.embed, self.known = embed, dict[str, np.ndarray]()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = sorted({text for text in texts if text not in self.known}, key=len)
        self.known |= dict(zip(new, self.embed(new), strict=True)) if new else {}
        return np.stack([self.known[text] for text in texts])
