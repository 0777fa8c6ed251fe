"""A question to be answered by paths of a knowledge graph: its topics, phrases and path indicator."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from secateur.retrieval.words import COMMON

__all__ = [
    "PathQuestion", "find_phrases", "find_position", "is_common_noun", "order_topics", "read_question",
    "split_indicator", "suits_kind", "with_phrases",
]  # fmt: skip

_FUNCTION = (
    "been being both either how into its neither of on other one ones or over some someone something such than the "
    "their them then there these they thing things this those through to under was whose with you your"
)
STOP = COMMON | set(_FUNCTION.split())
ASKING = frozenset(("what", "which"))
_VERBS = frozenset(
    ("is", "are", "was", "were", "do", "does", "did", "has", "have", "had", "can", "could", "will", "would", "should")
)
"""What stands behind the thing that is asked for: "which part of the body does"."""
_DESCRIBING = frozenset(("that", "which", "who", "whose"))
_ARTICLES = frozenset(("the", "a", "an", "any", "some"))
"""What stands around the kind of a thing that is described: "the company that makes"."""
OPEN = re.compile(r"(?:answer\b.*|[a-z]|\?.*)$", re.IGNORECASE)
"""What stands in an indicator for what is not known."""


@dataclass(frozen=True, slots=True)
class PathQuestion:
    """A question as it was read.

    topics: nodes, in the order in which a path is to lead through them; names of these, and a part of the question for
    each. lengths: steps that each part seems to speak of. indicator: what paths are compared with. steps: how many it
    has (D). phrases: what the question says of each step, in the order of the path. kinds: of what is asked for or
    described, where phrases say more than these. others: what else the indicator names.
    """

    text: str
    topics: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    indicator: str = ""
    steps: int = 1
    phrases: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def hops(self) -> int:
        """Hops from each topic with which a search starts: half of the steps from one to the next, where they join."""
        return max(1, self.steps if len(self.topics) < 2 else math.ceil(self.steps / (2 * (len(self.topics) - 1))))


def read_question(text: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> PathQuestion:
    """The question by its words: a topic's part is the clause that names it.

    nodes, names: the topics. indicator: "A" - treats - x - causes - "B", where one is known.
    """
    chain = indicator or text
    order = sorted(range(len(nodes)), key=lambda i: (find_position(names[i], chain), i))
    topics, known = tuple(nodes[i] for i in order), tuple(names[i] for i in order)
    clauses = re.split(r"[,;]|\b(?:and|but|while)\b", text) if len(known) > 1 else []
    parts = tuple(
        next((clause.strip() for clause in clauses if name.casefold() in clause.casefold()), text) for name in known
    )
    links, folded = split_indicator(indicator), {name.casefold() for name in known}
    if len(links) <= 2:
        links = []
    others = tuple(name for name in links[::2] if name.casefold() not in folded and not OPEN.match(name))
    steps = (len(links) - 1) // 2 if links else 0
    return with_phrases(PathQuestion(text, topics, known, parts, (), chain, steps, (), (), others))


def split_indicator(indicator: str) -> list[str]:
    """Entities and relations in turn: "A" - treats - x - causes - "B"."""
    line = " ".join(indicator.split())
    return [part.strip().strip("\"'“”") for part in re.split(r" (?:-+>?|<-+|→|–|—) ", line) if part.strip()]


def find_position(name: str, text: str) -> float:
    """Where a name stands in a text, or the part of it that is found there; behind all where nothing is."""
    text, name = text.casefold(), name.casefold()
    if name in text:
        return text.index(name)
    match = difflib.SequenceMatcher(None, text, name, autojunk=False).find_longest_match()
    return match.a if match.size >= 3 else len(text)


def with_phrases(question: PathQuestion) -> PathQuestion:
    """The question with the phrases of its parts, from topic to topic; D is how many there are, unless it is known.

    A path from one topic to the next has the phrases of the one, then those of the other backwards. A part without any
    speaks of the same as the one before it: "directed both A and B".
    """
    each, kinds = list[list[str]](), dict[str, None]()
    for part, name in zip(question.parts, question.names, strict=True):
        phrases, some = _read_phrases(part, name, question.names)
        kinds |= dict.fromkeys(some if phrases else ())
        each.append(phrases or some or (each[-1] if each else []))
    each = [phrases or next((other for other in each if other), []) for phrases in each]
    along = list(each[0]) if len(each) == 1 else []
    for near, far in itertools.pairwise(each):
        along += [*near, *reversed(far)]
    lengths = tuple(max(1, len(phrases)) for phrases in each)
    steps = question.steps or max(1, len(along))
    return replace(question, phrases=tuple(along), kinds=tuple(kinds), lengths=lengths, steps=steps)


_TIME = re.compile(r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|century)\b", re.IGNORECASE)
_NO_TIME = re.compile(r"\b(?:who|whom|where)\b", re.IGNORECASE)
_STEP = re.compile(r" <?-\[.*?\]->? ")
"""What stands between two places of a path in words."""
_TOLD = (
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday spring summer autumn winter st nd "
    "rd th s century centuries early mid late about around before after since until to and of the in c ca circa ad bc "
    "ce bce t z am pm utc gmt q"
)
_IN_TIMES = frozenset(_TOLD.split())
"""What the name of a time may hold beside its number."""


def suits_kind(question: PathQuestion, text: str) -> bool:
    """Whether a path in words may name what is asked for: a time where one is, else something that is none.

    A time is a number, alone or with what times are told by: 2004 and the 19th century, not Ariane 5. Topics do not
    count. Where neither a time nor a person or a place is asked for any path may.
    """
    asked = question.text.strip()
    time = bool(_TIME.match(asked))
    if not time and not _NO_TIME.match(asked):
        return True
    places = [place.strip("{}").split(", ") for place in _STEP.split(text)]
    kinds = {_is_time(name) for name in itertools.chain(*places) if name not in question.names}
    return time in kinds or not (time or kinds)


def _is_time(name: str) -> bool:
    parts = re.findall(r"\d+|[^\W\d_]+", name.casefold())
    return any(part.isdigit() for part in parts) and all(part.isdigit() or part in _IN_TIMES for part in parts)


def order_topics(question: PathQuestion, topics: Sequence[str]) -> PathQuestion:
    """The question with its topics in another order; D stays."""
    order = [question.topics.index(topic) for topic in topics]
    names, parts = tuple(question.names[i] for i in order), tuple(question.parts[i] for i in order)
    return with_phrases(replace(question, topics=tuple(topics), names=names, parts=parts))


def find_phrases(text: str, topic: str, names: Sequence[str]) -> list[str]:
    """Phrases of a text, those nearest to the topic first: runs of words between names and function words.

    What it asks for at its start is none, "which drug treats" asks for a drug, and neither is the kind of what is
    described, "the company that makes"; unless it says nothing else. "Of" binds closer than what stands behind a name.
    """
    phrases, kinds = _read_phrases(text, topic, names)
    return phrases or kinds


def _read_phrases(text: str, topic: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What `find_phrases` finds, and the kinds of what is asked for or described."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(re.escape(name), " ¦ " if name == topic else " , ", text, flags=re.IGNORECASE)
    words = [*re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[,;.?!:¦]", text.casefold()), "."]
    at = words.index("¦") if "¦" in words else 0
    phrases, kinds, run, before = list[tuple[int, str]](), list[tuple[int, str]](), list[str](), ""
    asked = _end_of_asking(words)
    for number, word in enumerate(words):
        if word not in STOP and word[0].isalnum():
            run.append(word)
            continue
        far = max(at - number + 1, number - len(run) - at)
        if run and not phrases and before in ASKING and (len(run) > 1 or word in STOP):
            kinds.append((far, " ".join(run if number <= asked else run[:1])))
            run = [] if number <= asked else run[1:]
            far = max(at - number + 1, number - len(run) - at)
        if run and word == "of" and number < at <= number + 2:
            far = 0
        if run and word in _DESCRIBING and before in _ARTICLES:
            kinds.append((far, run.pop()))
        if run:
            (kinds if number <= asked else phrases).append((far, " ".join(run)))
        run, before = [], word
    near, beside = (sorted(some, key=lambda pair: pair[0]) for some in (phrases, kinds))
    return [phrase for _, phrase in near], [kind for _, kind in beside]


def is_common_noun(text: str, start: int, end: int, name: str) -> bool:
    """Whether a text means a kind of thing at a place where it holds a name: the moon of Neptune is not the Moon.

    It is so where the text has small letters, the name has not, and it is asked for, "which moon", or described.
    """
    if text[start:end] != name.lower() or name == name.lower():
        return False
    before, after = text[:start].lower().split()[-1:], text[end:].lower().split()[:1]
    return bool(ASKING & set(before) or (_ARTICLES & set(before) and (_DESCRIBING | {"of"}) & set(after)))


def _end_of_asking(words: Sequence[str]) -> int:
    """Where the thing that a question asks for ends, at a verb such as "does"; -1 where it names none."""
    start = next((number for number, word in enumerate(words[:3]) if word in ASKING), len(words))
    for number in range(start + 1, len(words)):
        if words[number] in _VERBS:
            return number
        if not words[number][0].isalnum():
            break
    return -1
