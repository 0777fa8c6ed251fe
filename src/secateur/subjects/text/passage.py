"""Subject `passage`: what a retriever found, as sentences with their exact places, of which some stay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from secateur.errors import InputError, MissingExtraError
from secateur.subjects.text import markup
from secateur.vocabulary import Cut, Selection, Site, Units

__all__ = ["Passages", "Sentence", "open_passages", "sentences"]

Split = Callable[[str], Sequence[tuple[int, int]]]
"""Text -> (start, end) of each sentence, in order, apart from one another."""

LONGEST = 100_000
"""Characters of one sentence: a text without a full stop is cut there, so that nothing grows with its square."""


class Sentence(NamedTuple):
    """Where a sentence stands: the number of its passage, and its first character and the one behind its last."""

    passage: int
    start: int
    end: int


def open_passages(
    passages: Sequence[str | Sequence[str]],
    *,
    titles: Sequence[str | None] | None = None,
    split: Split | str = "",
) -> Passages:
    """Passages, each a text or a list of its sentences.

    Args:
        passages: what was found; of a list of sentences the text is the sentences with a space between them.
        titles: one for each passage, or None where it has none; a title becomes the first sentence.
        split: text -> places of its sentences; or the code of a language, for sentencex's rules. Without it these are
            those of English, unless a recipe has a model of another language.

    Raises `InputError` for what is no text, `MissingExtraError` without sentencex.
    """
    if titles is not None and len(titles) != len(passages):
        raise InputError(f"{len(titles)} titles for {len(passages)} passages: give one for each")
    texts, spans = [], []
    for number, passage in enumerate(passages):
        title = titles[number] if titles is not None else None
        if isinstance(passage, str):
            start = f"{title}\n" if title else ""
            found = [(0, len(title))] if title else []
            places = sentences(passage, split or "en")
            text = start + passage
            found += [(a + len(start), b + len(start)) for a, b in places]
        elif isinstance(passage, Sequence) and all(isinstance(part, str) for part in passage):
            parts = [*([title] if title else []), *passage]
            ends = np.cumsum([len(part) + 1 for part in parts])
            text = " ".join(parts)
            found = [(int(end) - 1 - len(part), int(end) - 1) for part, end in zip(parts, ends, strict=True)]
            found = [(a, b) for a, b in found if text[a:b].strip()]
        else:
            raise InputError(f"a passage is text or a list of sentences, and this is {type(passage).__name__}")
        texts.append(text)
        spans.append(found)
    again = None if split else functools.partial(open_passages, passages, titles=titles)
    return Passages(texts, [Sentence(n, a, b) for n, places in enumerate(spans) for a, b in places], again=again)


def sentences(text: str, split: Split | str = "en") -> list[tuple[int, int]]:
    """(start, end) of each sentence, without the spaces around it; what is longer than any sentence is cut."""
    if not isinstance(split, str):
        places: Iterable[tuple[int, int]] = split(text)
    else:
        try:
            import sentencex
        except ImportError as error:
            raise MissingExtraError("splitting sentences needs sentencex: pip install 'secateur[context]'") from error
        places = ((b["start_index"], b["end_index"]) for b in sentencex.get_sentence_boundaries(split, text))
    found, last = list[tuple[int, int]](), 0
    for start, end in places:
        if not last <= start <= end <= len(text):
            raise InputError(f"a sentence from {start} to {end} of {len(text)} characters: give places in order")
        last = end
        for begin in range(start, end, LONGEST):
            part = text[begin : min(end, begin + LONGEST)]
            lead = len(part) - len(part.lstrip())
            if part.strip():
                found.append((begin + lead, begin + lead + len(part.strip())))
    return found


class Passages:
    """Texts in their order, and the sentences of each that are left.

    What is left of a passage is its text where all of it stays, to the letter; elsewhere the sentences that stay, with
    a space where one was cut between them. `order`: in which order they are read; those that it leaves out are not.
    """

    backend = "secateur.runs.backends.documents:PassageTexts"

    def __init__(
        self,
        texts: Sequence[str],
        sentences: Sequence[Sentence],
        keep: Sequence[bool] | None = None,
        order: Sequence[int] | None = None,
        again: Callable[..., Passages] | None = None,
        words: dict[Sentence, int] | None = None,
    ) -> None:
        self.texts, self._all = tuple(texts), tuple(sentences)
        self.order = tuple(range(len(self.texts)) if order is None else order)
        self._again = again
        self._words: dict[Sentence, int] = {} if words is None else words  # counted once for all that is cut from these
        self._stays = tuple([True] * len(self._all) if keep is None else keep)
        self.sentences = tuple(one for one, stays in zip(self._all, self._stays, strict=True) if stays)

    def text(self, index: int) -> str:
        """A sentence that is left."""
        number, start, end = self.sentences[index]
        return self.texts[number][start:end]

    def by_passage(self) -> list[list[str]]:
        """The sentences that are left of each passage."""
        found: list[list[str]] = [[] for _ in self.texts]
        for index, sentence in enumerate(self.sentences):
            found[sentence.passage].append(self.text(index))
        return found

    def passage(self, number: int) -> str:
        """What is left of a passage: empty where nothing is."""
        mine = [(one, stays) for one, stays in zip(self._all, self._stays, strict=True) if one.passage == number]
        if all(stays for _, stays in mine):
            return self.texts[number]
        parts, last = list[str](), -1
        for (_, start, end), stays in mine:
            if stays and parts and last >= 0:
                parts[-1] += self.texts[number][last:end]
            elif stays:
                parts.append(self.texts[number][start:end])
            last = end if stays else -1
        return " ".join(parts)

    def documents(self) -> dict[int, tuple[str, str]]:
        """Number of each passage of which something is left -> what it is, twice: as it is, and as plain text."""
        found = {number: self.passage(number) for number in self.order}
        return {number: (text, text) for number, text in found.items() if text.strip()}

    def parts(self) -> list[str]:
        """What is to be read of each passage, in the order in which they were given; empty where nothing is."""
        found = self.documents()
        return [found.get(number, ("", ""))[0] for number in range(len(self.texts))]

    def to_text(self) -> str:
        """What a model is to read: what is left of the passages, with an empty line between them."""
        return "\n\n".join(text for text, _ in self.documents().values())

    def reorder(self, order: Sequence[int]) -> Passages:
        """The same passages, or some of them, to be read in another order: numbers of passages, each once."""
        if len(set(order)) < len(order) or not set(order) <= set(range(len(self.texts))):
            raise InputError(f"order {list(order)[:20]} does not name {len(self.texts)} passages, each at most once")
        return Passages(self.texts, self._all, self._stays, order, self._again, self._words)

    def split(self, language: str) -> Passages:
        """The same, with sentences by the rules of a language; if they were not cut, nor opened with a `split`."""
        return self if self._again is None else self._again(split=language).reorder(self.order)

    def cost(self, counts: Mapping[str, Callable[[Sequence[str]], Sequence[int]]]) -> dict[str, float]:
        """Measure -> what all that is written takes."""
        text = self.to_text()
        return {"words": float(markup.words(text))} | {name: float(count([text])[0]) for name, count in counts.items()}

    def units(self, *axes: str, **counts: Callable[[Sequence[str]], Sequence[int]]) -> Units:
        """Site "sentences": those that are left, and what each costs on its own.

        counts: measure -> (texts -> how many each has), such as tokens=encoders.counter("gpt2").
        """
        unknown = [axis for axis in axes if axis != "sentences"]
        if unknown:
            raise InputError(f"passages have no {unknown[0]!r}: their one axis is sentences")
        texts = [self.text(index) for index in range(len(self.sentences))]
        for one, text in zip(self.sentences, texts, strict=True):
            if one not in self._words:
                self._words[one] = markup.words(text)
        cost = {"words": np.array([self._words[one] for one in self.sentences], dtype=float)}
        for measure, counted in counts.items():
            cost[measure] = np.array(counted(texts), dtype=float)
        return Units({"sentences": Site("sentences", len(texts), cost)})

    def cut(self, selection: Selection) -> tuple[Passages, Cut]:
        """The passages without the sentences that do not stay."""
        count = len(self.sentences)
        keep = np.asarray(selection.keep.get("sentences", np.ones(count, bool)), dtype=bool)
        if keep.shape != (count,):
            raise InputError(f"there are {count} sentences, and the selection has {keep.size}: select from these units")
        left = iter(keep.tolist())
        stays = [stood and next(left) for stood in self._stays]
        smaller = Passages(self.texts, self._all, stays, self.order, words=self._words)
        gone = {"sentences": (int((~keep).sum()), count)}
        return smaller, Cut(gone, self.units().cost(), smaller.units().cost())
