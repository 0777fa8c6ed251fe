"""Questions made of texts that have none: from headings, from definitions, and by leaving words out (cloze).

By construction it is known which sentence answers, so that a pruner can be taught, calibrated and judged by them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.data.packages import Entry, Section
from secateur.methods.asking import Record
from secateur.score import relevance
from secateur.subjects.text import markup
from secateur.subjects.text.passage import sentences

__all__ = ["Document", "from_prose", "from_sections", "from_words", "make_rows", "synonyms_of"]

SIZES = range(1, 11)
"""Sentences of a passage; longer ones are more probable, in proportion to their number."""
WORDS = 90
"""Of a passage at most."""
_PRONOUNS = {"he", "she", "it", "they", "this", "these", "those", "his", "her", "its", "their", "such"}
_ABOUT = (
    "What does {} do?",
    "What is {}?",
    "What is {} for?",
    "How does {} work?",
    "{}",
    "purpose of {}",
    "Explain {}",
)
_HEADED = ("{}", "{}?", "What is said about {}?", "How about {}?", "What should I know about {}?")
_DEFINED = ("What is {}?", "What is meant by {}?", "Define {}", "{} definition", "What does {} mean?", "{}")
_NAMED = ("What is said about {}?", "What about {}?", "{}", "Tell me about {}", "What happened with {}?")
_PLAIN_WORDS = (
    "about after again all also and any are because been before being between both but can could did does each "
    "for from had has have her here him his how into its just like made many more most much must not now off "
    "one only other our out over own said same she should since some such than that the their them then there "
    "these they this those through too two under until upon very was way well were what when where which while "
    "who will with would you your"
)
_PLAIN = frozenset(_PLAIN_WORDS.split())
"""Words that say nothing by themselves."""


@dataclass(frozen=True, slots=True)
class Document:
    """title; sentences, in order. asked: (question, number of the sentence that answers) that the text itself gives.

    headings: numbers of sentences that are headings.
    """

    title: str
    sentences: tuple[str, ...]
    asked: tuple[tuple[str, int], ...] = ()
    headings: frozenset[int] = field(default_factory=frozenset)


def from_sections(title: str, sections: Iterable[Section], draw: random.Random, *, headed: float = 0.5) -> Document:
    """A document of sections: the heading of each asks, and the first sentence below it answers.

    headed: share of the headings that stand in the text; the others are only asked.
    """
    made, asked, headings = list[str](), list[tuple[str, int]](), set[int]()
    for heading, text in sections:
        parts = [text[a:b] for a, b in sentences(text)]
        parts = [" ".join(part.split()) for part in parts if 3 <= len(part.split()) <= 60][:12]
        if not parts:
            continue
        if heading and draw.random() < headed:
            headings.add(len(made))
            made.append(heading)
        if heading:
            name = re.sub(r"^[\d.]+\s+", "", heading)
            forms = ("{}",) if name.endswith("?") else _ABOUT if len(name.split()) == 1 else _HEADED
            asked.append((draw.choice(forms).format(name), len(made)))
        made += parts
    return Document(title, tuple(made), tuple(asked), frozenset(headings))


def from_words(nouns: Mapping[int, Entry], draw: random.Random, *, least: int = 4) -> list[Document]:
    """Documents of definitions: the kinds of one thing, each as a sentence that a question for its name asks for."""
    kinds: dict[int, list[Entry]] = {}
    for entry in nouns.values():
        kinds.setdefault(entry.kind, []).append(entry)
    made = []
    for number, entries in kinds.items():
        if number not in nouns or len(entries) < least:
            continue
        chosen = draw.sample(entries, min(len(entries), 40))
        lines, asked = list[str](), list[tuple[str, int]]()
        for entry in chosen:
            meaning = entry.meaning.partition('; "')[0].strip()
            name, other = entry.names[0], draw.choice(entry.names)
            verb = draw.choice(["is", "means", "is defined as", "refers to"])
            lines.append(f"{name[:1].upper()}{name[1:]} {verb} {meaning}.")
            asked.append((draw.choice(_DEFINED).format(other), len(asked)))
        made.append(Document(nouns[number].names[0], tuple(lines), tuple(asked)))
    return made


def from_prose(title: str, lines: Iterable[str]) -> Document:
    """A document that asks nothing by itself."""
    return Document(title, tuple(line for line in lines if 4 <= len(line.split()) <= 50))


def synonyms_of(nouns: Mapping[int, Entry]) -> dict[str, tuple[str, ...]]:
    """Word -> other words of the same meaning, of words that have one meaning alone."""
    meanings = Counter(name for entry in nouns.values() for name in entry.names)
    found = dict[str, tuple[str, ...]]()
    for entry in nouns.values():
        for name in entry.names:
            others = tuple(other for other in entry.names if other != name)
            if meanings[name] == 1 and others and " " not in name:
                found[name] = others
    return found


def make_rows(
    documents: Sequence[Document],
    count: int,
    seed: int,
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    own: float = 0.6,
    others: float = 0.35,
    words: int = WORDS,
) -> list[Record]:
    """`count` rows for training: `question`, `documents` (lists of sentences), `kept`, `kind`, and `answer`.

    Args:
        documents: of one corpus.
        count: how many questions; fewer where the documents give no more.
        seed: of all that is drawn.
        synonyms: word -> words that may stand for it in a question.
        own: share of the questions that the documents ask by themselves, where they do.
        others: share of the questions that get a second passage, of another document, in which nothing is kept: the
            best of all by BM25.
        words: of a passage at most.

    `answer` is the number of the sentence that answers in the first passage; `kept` has a heading above it, too, and
    a sentence behind it that goes on with a pronoun.
    """
    draw, synonyms = random.Random(f"questions {seed}"), synonyms or {}
    rare = Counter(term for document in documents for term in set(markup.terms(" ".join(document.sentences))))
    pool = [(number, first, last) for number, one in enumerate(documents) for first, last in _windows(one, draw, words)]
    lexical = relevance.lexical([markup.terms(" ".join(documents[n].sentences[a:b])) for n, a, b in pool])
    made, tries = list[Record](), 0
    while len(made) < count and tries < 50 * count:
        tries += 1
        document = documents[draw.randrange(len(documents))]
        if not document.sentences:
            continue
        if document.asked and draw.random() < own:
            (question, place), kind = draw.choice(document.asked), "own"
        else:
            place = draw.randrange(len(document.sentences))
            kind, question = _ask(document.sentences[place], draw, rare, synonyms)
        if not question or place in document.headings:
            continue
        gold = {place}
        if place - 1 in document.headings:
            gold.add(place - 1)
        if place + 1 < len(document.sentences) and _goes_on(document.sentences[place + 1]):
            gold.add(place + 1)
        first, last = _window_around(document, min(gold), max(gold) + 1, draw, words)
        passages = [list(document.sentences[first:last])]
        kept = [[number - first for number in sorted(gold) if first <= number < last]]
        if draw.random() < others:
            order = np.argsort(-lexical(markup.terms(question)), kind="stable")[:30].tolist()
            best = next((pool[i] for i in order if documents[pool[i][0]] is not document), None)
            if best is not None:
                passages.append(list(documents[best[0]].sentences[best[1] : best[2]]))
                kept.append([])
        row = {"question": question, "documents": passages, "kept": kept, "answer": place - first, "kind": kind}
        made.append(row)
    return made


def _goes_on(sentence: str) -> bool:
    return (sentence.split() or [""])[0].lower().strip(",'\"") in _PRONOUNS


def _windows(document: Document, draw: random.Random, words: int) -> Iterable[tuple[int, int]]:
    """(first, behind the last) sentence of passages that cover the document."""
    start = 0
    while start < len(document.sentences):
        end = start + 1
        size = draw.choices(SIZES, SIZES)[0]
        spent = len(document.sentences[start].split())
        while end < min(start + size, len(document.sentences)):
            spent += len(document.sentences[end].split())
            if spent > words:
                break
            end += 1
        yield start, end
        start = end


def _window_around(document: Document, first: int, last: int, draw: random.Random, words: int) -> tuple[int, int]:
    """A passage that holds the sentences from `first` to before `last`, wherever in it, of as many words at most."""
    size = max(last - first, draw.choices(SIZES, SIZES)[0])
    spent = sum(len(text.split()) for text in document.sentences[first:last])
    while last - first < size:
        sides = [side for side in (first - 1, last) if 0 <= side < len(document.sentences)]
        if not sides:
            break
        side = draw.choice(sides)
        spent += len(document.sentences[side].split())
        if spent > words:
            break
        first, last = min(first, side), max(last, side + 1)
    return first, last


def _ask(
    sentence: str, draw: random.Random, rare: Mapping[str, int], synonyms: Mapping[str, Sequence[str]]
) -> tuple[str, str]:
    """(kind, question) of what a sentence says; an empty question where it says too little."""
    words = [word.strip(".,;:!?()[]\"'`") for word in sentence.split()]
    content = [i for i, word in enumerate(words) if len(word) > 2 and word.lower() not in _PLAIN]
    if len(content) < 4:
        return "", ""
    kind = draw.choice(["cloze", "cloze", "words", "name"])
    if kind == "name":
        place = min(content, key=lambda i: (rare.get(words[i].lower(), 1), draw.random()))
        start = place - 1 if place and place - 1 in content else place
        return kind, draw.choice(_NAMED).format(" ".join(words[start : place + 1]))
    replaced = [_replace(word, draw, synonyms) for word in words]
    if kind == "words":
        chosen = sorted(draw.sample(content, min(len(content), draw.randint(3, 5))))
        return kind, " ".join(replaced[i] for i in chosen).lower()
    place = draw.choice(content)
    asks = "when" if re.fullmatch(r"1\d{3}|20\d\d", words[place]) else "how many" if words[place].isdigit() else "what"
    if words[place][:1].isupper() and place:
        asks = draw.choice(["who", "which", "what"])
    start, end = max(0, place - draw.randint(3, 8)), min(len(words), place + 1 + draw.randint(3, 8))
    text = [*replaced[start:place], asks, *replaced[place + 1 : end]]
    if place - start <= 2 and draw.random() < 0.5:  # "Who was elected in May?"
        text = [asks, *replaced[place + 1 : end]]
    joined = " ".join(word for word in text if word)
    return kind, f"{joined[:1].upper()}{joined[1:]}?" if draw.random() < 0.7 else joined.lower()


def _replace(word: str, draw: random.Random, synonyms: Mapping[str, Sequence[str]]) -> str:
    """The word, or one for it."""
    others = synonyms.get(word.lower(), ())
    return draw.choice(list(others)) if others and draw.random() < 0.5 else word
