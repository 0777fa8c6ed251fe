"""What retrieval pipelines do without a recipe: texts in chunks, the best of them, and the beginning of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from secateur.errors import MissingExtraError
from secateur.retrieval.encoders import Count
from secateur.subjects import Page
from secateur.subjects.text import markup

__all__ = ["best_that_fit", "chunks_of_page", "chunks_of_text", "first_that_fit", "split_recursively"]


def chunks_of_text(text: str, words: int, head: str = "") -> list[str]:
    """A text in pieces of so many words, each behind `head`, such as its title, in a line of its own."""
    split = text.split()
    lead = f"{head}\n" if head else ""
    return [lead + " ".join(split[start : start + words]) for start in range(0, len(split), words)]


def chunks_of_page(page: Page, words: int, *, headed: bool = False) -> list[str]:
    """The text of a page in pieces of so many words; headed: behind the headings that its first word stands under."""
    texts = [page.text(block).split() for block in range(len(page.blocks))]
    ends = list(accumulate(map(len, texts)))
    every = [word for text in texts for word in text]
    found = list[str]()
    for start in range(0, len(every), words):
        block = int(np.searchsorted(ends, start, side="right"))
        lead = " > ".join(page.headings(block)) if headed else ""
        found.append((f"{lead}\n" if lead else "") + " ".join(every[start : start + words]))
    return found


def split_recursively(text: str, letters: int) -> list[str]:
    """A text in pieces of at most so many letters, cut at paragraphs, else at lines, else at words, by LangChain.

    Raises `MissingExtraError` without its splitters.
    """
    try:
        from langchain_text_splitters import RecursiveCharacterTextSplitter
    except ImportError as error:
        raise MissingExtraError(
            "LangChain's splitter needs langchain-text-splitters: pip install 'secateur[langchain]'"
        ) from error
    splitter = RecursiveCharacterTextSplitter(chunk_size=letters, chunk_overlap=0)
    return [str(piece) for piece in splitter.split_text(text)]


def best_that_fit(pieces: Sequence[str], scores: np.ndarray, limit: float, count: Count) -> str:
    """The pieces of the highest scores, as many as `limit` has room for, in their order, each in a line of its own.

    What does not fit is passed over.
    """
    costs = count([f"{piece}\n" for piece in pieces]) if pieces else []
    kept, spent = list[int](), 0
    for index in np.argsort(-scores, kind="stable"):
        if spent + costs[index] <= limit:
            kept.append(int(index))
            spent += costs[index]
    chosen = [pieces[index] for index in sorted(kept)]
    while chosen and count(["\n".join(chosen)])[0] > limit:  # joined, a text may have more tokens than its parts
        chosen.pop()
    return "\n".join(chosen)


def first_that_fit(text: str, limit: float, count: Count) -> str:
    """As many of a text's first words as `limit` has room for."""
    fits, many = 0, len(text.split()) + 1
    while many - fits > 1:
        middle = (fits + many) // 2
        fits, many = (middle, many) if count([markup.first_words(text, middle)])[0] <= limit else (fits, middle)
    return markup.first_words(text, fits)
