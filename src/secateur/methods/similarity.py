"""Similarity of texts: of vectors of an encoder, of their words, or both by their ranks."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge

from secateur._utils.disk import atomic_write, cache_folder
from secateur.errors import DataError, DataWarning, InputError
from secateur.retrieval import encoders
from secateur.retrieval.encoders import Embed
from secateur.retrieval.words import Words, count_documents, is_known
from secateur.score import relevance
from secateur.subjects.text import markup

__all__ = ["Frequencies", "Matching", "Similarity", "read_frequencies"]

_FORM = "2"
"""Of what is kept of a corpus: another one makes it anew."""


@dataclass(frozen=True, slots=True)
class Matching:
    """How blocks of documents are matched with a question."""

    language: str = "en"
    """Whose stop words and endings do not count where words are compared, such as en or de."""
    hybrid: bool = False
    """With an embedder, rank by words, too: both rankings are joined by reciprocal rank fusion."""
    shortlist: Annotated[int, Ge(0)] = 2000
    """With an embedder, about how many words of text it reads for a question: of what matches best by its words. The
    rest comes behind, as its words rank it; 0 for all. So the time of a question does not grow with the pages, of which
    words are counted far faster than an encoder reads them. All is read where the pages lack more than half of the
    question's words."""
    corpus: str = ""
    """File or folder of texts or pages (.txt, .jsonl, .parquet, .html, .md), whose words count beside those of the
    documents where it is told how rare a word is."""
    prior: Sequence[float] = ()
    """Scores that a retriever gave to the documents, in their order, on any scale on which higher is better: their
    ranking is joined with the others."""
    trust: Annotated[float, Ge(0)] = 0.5
    """What the ranking of `prior` counts, where each of the others counts 1."""

    def __post_init__(self) -> None:
        """Warn of a language of which nothing is known."""
        if not is_known(self.language):
            warnings.warn(
                f"language={self.language}: neither stop words nor endings of it are known, and all words are compared "
                "as they stand",
                DataWarning,
                stacklevel=3,
            )

    def check_prior(self, documents: int) -> None:
        """Raise `InputError` where a retriever's scores are more than the documents: they would be of others."""
        if len(self.prior) > documents:
            raise InputError(
                f"prior has {len(self.prior)} scores, and there are {documents} documents: give one for each, in their "
                "order"
            )


class Frequencies(NamedTuple):
    """Of a corpus: how many texts it has, and term -> how many of them hold it."""

    total: int = 0
    held: Mapping[str, int] = {}


class Similarity:
    """How alike texts are.

    Args:
        embed: texts -> vectors [texts, d]; without it terms are compared.
        terms: text -> what is compared of it without an encoder; by default `Words` of the language.
        digits: values are rounded to as many, since the last ones depend on what a text was read together with.
        matching: see `Matching`.
    """

    def __init__(
        self,
        embed: Embed | None,
        terms: Callable[[str], list[str]] | None = None,
        digits: int | None = None,
        matching: Matching = Matching(shortlist=0),
    ) -> None:
        self.embed, self.digits, self.matching = embed, digits, matching
        self.terms = terms or Words(matching.language)
        corpus = matching.corpus
        self._corpus = read_frequencies(corpus, self.terms, matching.language) if corpus else Frequencies()

    def compare(self, questions: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """[questions, texts]: cosine of vectors, or of terms weighted by their rarity."""
        if not questions or not texts:
            return np.zeros((len(questions), len(texts)))
        if self.embed is None:
            from secateur.score import naming  # scipy, which a page cut by BM25 does without

            values = naming.tfidf([self.terms(text) for text in questions], [self.terms(text) for text in texts])
        else:
            of_questions, of_texts = encoders.encode_pair(self.embed, questions, texts)
            values = np.stack([relevance.cosine(vector, of_texts) for vector in of_questions])
        return self._round(values)

    def rank(
        self, question: str, texts: Sequence[str], owners: Sequence[int] = (), *, instruction: str = ""
    ) -> np.ndarray:
        """[texts]: cosine of vectors, or BM25; where there are several rankings, what reciprocal rank fusion gives.

        owners: the document of each text, by its number, which has its score in `matching.prior`.
        instruction: what an encoder wants before the question; words are those of the question alone.

        Raises `InputError` where there is no score for a document.
        """
        rankings, weights, prior = list[np.ndarray](), list[float](), self.matching.prior
        asked, words, by_words = self.terms(question), list[list[str]](), np.zeros(len(texts))
        if self.embed is None or self.matching.hybrid or self.matching.shortlist:
            words = [self.terms(text) for text in texts]
            total, held = self._corpus
            by_words = relevance.bm25(asked, words, held=held, total=total)
        if self.embed is not None:
            first = self._choose_first(asked, texts, words, by_words)
            rankings.append(self._read_first(instruction + question, texts, by_words, first))
        if self.embed is None or self.matching.hybrid:
            rankings.append(by_words)
        weights = [1.0] * len(rankings)
        if len(prior) and len(owners):
            if max(owners) >= len(prior):
                raise InputError(
                    f"prior has {len(prior)} scores, and there are {max(owners) + 1} documents or more: give one for "
                    "each, in their order"
                )
            rankings.append(np.array([float(prior[owner]) for owner in owners]))
            weights.append(self.matching.trust)
        if len(rankings) == 1:
            return self._round(rankings[0])
        return self._round(relevance.reciprocal_ranks(rankings, weights))

    def _choose_first(
        self, asked: Sequence[str], texts: Sequence[str], words: Sequence[Sequence[str]], by_words: np.ndarray
    ) -> np.ndarray:
        """Numbers of the texts that the encoder reads: those that match best, and of the others some from all places.

        As many as the shortlist has room for, at least one. All of them where the texts lack more than half of the
        terms that are asked for: a question in another language, or in other words.
        """
        everything = np.arange(len(texts))
        known = set(asked) & set().union(*words) if self.matching.shortlist else set[str]()
        if not known or len(known) < len(set(asked)) / 2:
            return everything
        # Steps of the golden ratio: the first of what does not match lie far apart, however many there is room for.
        scattered = everything * (math.sqrt(5) - 1) / 2 % 1
        order = np.lexsort((scattered, -by_words))
        sizes = np.cumsum([markup.words(texts[place]) for place in order])
        return order[: max(1, int(np.searchsorted(sizes, self.matching.shortlist, side="right")))]

    def _read_first(self, question: str, texts: Sequence[str], by_words: np.ndarray, first: np.ndarray) -> np.ndarray:
        """[texts]: cosine of the texts `first`; the others are below, in the order of their words."""
        if len(first) == len(texts):
            return np.asarray(self.compare([question], texts)[0])
        values = np.full(len(texts), np.nan)
        values[first] = self.compare([question], [texts[place] for place in first])[0]
        behind = np.flatnonzero(np.isnan(values))
        behind = behind[np.argsort(-by_words[behind], kind="stable")]
        values[behind] = values[first].min() - np.arange(1, len(behind) + 1) / len(texts)
        return values

    def _round(self, values: np.ndarray) -> np.ndarray:
        return values if self.digits is None else np.round(values, self.digits)


def read_frequencies(source: str | Path, terms: Callable[[str], list[str]], language: str) -> Frequencies:
    """How many texts of a corpus hold each term: counted once, and kept in the cache as long as its files are the same.

    source: a page (.html, .htm), a Markdown file (.md), a folder of such, or whatever `data.texts.read` reads. A text
    is a paragraph of a page, a line of text, or a row. language: that of `terms`, by which the cache tells it.

    Raises `DataError` for what is not there or holds no text.
    """
    path = Path(source)
    if not _list_pages(path) and not path.exists():
        raise DataError(f"corpus {source} is not there: give a file or folder of texts or pages")
    stamps = [(str(file.resolve()), file.stat().st_mtime_ns, file.stat().st_size) for file in _walk(path)]
    return _count(path, tuple(stamps), terms, language)


@functools.lru_cache(maxsize=4)
def _count(
    path: Path, stamps: tuple[tuple[str, int, int], ...], terms: Callable[[str], list[str]], language: str
) -> Frequencies:
    key = hashlib.sha256(json.dumps([_FORM, language, type(terms).__name__, stamps]).encode()).hexdigest()[:32]
    kept = cache_folder() / "frequencies" / f"{key}.json"
    try:
        found = json.loads(kept.read_text("utf-8"))
        return Frequencies(int(found["total"]), {str(term): int(many) for term, many in found["held"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it is not there, or damaged
    texts = [terms(text) for text in _read_texts(path)]
    if not texts:
        raise DataError(f"corpus {path} holds no text: give a file or folder of texts or pages")
    frequencies = Frequencies(len(texts), count_documents(texts))
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps(frequencies._asdict(), ensure_ascii=False))
    return frequencies


def _list_pages(path: Path) -> list[Path]:
    found = _walk(path) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.suffix.lower() in (".html", ".htm", ".md")]


def _walk(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _read_texts(path: Path) -> list[str]:
    """The texts of a corpus: of pages their paragraphs, else lines or rows."""
    from secateur.data import texts

    pages = _list_pages(path)
    others = path.is_dir() and any(file.suffix in texts.SUFFIXES for file in _walk(path))
    found = list(texts.read(path).texts) if others or not pages else []
    for page in pages:
        text = markup.decode(page.read_bytes())
        if page.suffix.lower() == ".md":
            parts = text.split("\n\n")
        else:
            tree = markup.plain(markup.parse(text))
            parts = [said for tag, said in zip(tree.tag, tree.text, strict=True) if not tag]
        found += [part for part in parts if part.strip()]
    return found
