"""What a model does in its thoughts, piece by piece: by rules on words, or as a language model marks it.

Behaviours are those of "When Reasoning Meets Compression" (arXiv 2504.02010): initializing, deduction,
adding-knowledge, example-testing, uncertainty-estimation, backtracking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch

from secateur._utils.tokenizers import Tokenizer, continue_text
from secateur.clients import chat
from secateur.errors import DataError, UnsupportedError
from secateur.score.steering import Marked

__all__ = [
    "DEDUCTION",
    "INITIALIZING",
    "RULES",
    "Segment",
    "Tagger",
    "check_tokenizer",
    "mark",
    "match_segment",
    "read_rules",
    "tag_by_model",
    "tag_by_rules",
]

DEDUCTION, INITIALIZING = "deduction", "initializing"
RULES: Mapping[str, Sequence[str]] = {
    "backtracking": ("wait", "alternatively", "let me go back", "on second thought", "that is wrong", "start over"),
    "uncertainty-estimation": ("not sure", "maybe", "perhaps", "i think", "probably", "uncertain", "hmm"),
    "example-testing": ("for example", "let me test", "let me check", "check", "let me try", "suppose", "verify"),
    "adding-knowledge": ("recall", "i know", "it is known", "remember", "by definition", "in general"),
}
"""Behaviour -> words, the first that occur in a sentence name it; others deduce. Offline stand-in for an annotator."""
COVERAGE = 0.9
"""Share of a segment that must be found again in the text. Source: arXiv 2504.02010."""

Tagger = Callable[[str], "list[Segment]"]
"""A text -> its segments, in order."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A behaviour, and which letters of a text show it: from `start` to before `end`."""

    behaviour: str
    start: int
    end: int


def read_rules(file: str | Path) -> Mapping[str, Sequence[str]]:
    """Rules of a JSON file, {behaviour: [words]}; those above where none is named. Raises `DataError`."""
    if not file:
        return RULES
    try:
        told = json.loads(Path(file).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as JSON: give an object of behaviours and their words") from error
    good = (
        isinstance(told, dict)
        and told
        and all(
            isinstance(words, list) and words and all(isinstance(one, str) and one.strip() for one in words)
            for words in told.values()
        )
    )
    if not good:
        raise DataError(f'{file} is no object of behaviours and their words: write {{"backtracking": ["wait", ...]}}')
    rules: Mapping[str, Sequence[str]] = told
    return rules


def tag_by_rules(text: str, rules: Mapping[str, Sequence[str]] = RULES) -> list[Segment]:
    """Each sentence or line by the first rule one of whose words it holds, else deduction; the first one initializes.

    Neighbours of one behaviour are one segment.
    """
    found = list[Segment]()
    for match in re.finditer(r"(?:[^\n.!?]|[.!?](?=\S))+[.!?]*", text):
        sentence = match[0]
        if not sentence.strip():
            continue
        start = match.start() + len(sentence) - len(sentence.lstrip())
        end = match.start() + len(sentence.rstrip())
        behaviour = _name(sentence, rules)
        if behaviour == DEDUCTION and not found:
            behaviour = INITIALIZING
        if found and found[-1].behaviour == behaviour:
            found[-1] = Segment(behaviour, found[-1].start, end)
        else:
            found.append(Segment(behaviour, start, end))
    return found


def _name(sentence: str, rules: Mapping[str, Sequence[str]]) -> str:
    lower = sentence.lower()
    for behaviour, words in rules.items():
        if any(re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", lower) for word in words):
            return behaviour
    return DEDUCTION


# ------------------------------------------------------------------------------------------------- by a language model


ASKED = (
    "Split the reasoning below into segments, and label each with one of: {labels}. Copy every segment word for word. "
    'Write one line for each: ["label"] segment ["end-section"]\n\nReasoning:\n{text}\n\nSegments:\n'
)
_LINE = re.compile(r'\["([\w-]+)"\]\s*(.*?)\s*\["end-section"\]', re.DOTALL)


def tag_by_model(
    text: str, model: chat.LanguageModel, behaviours: Sequence[str], *, most: int = 4096, coverage: float = COVERAGE
) -> list[Segment]:
    """Segments as a language model marks them, found again in the text; those that are not are left out.

    Source: the annotation of arXiv 2504.02010. most: tokens of its answer. Raises `ServerError` where it is down.
    """
    asked = ASKED.replace("{labels}", ", ".join(behaviours)).replace("{text}", text)
    found = list[Segment]()
    for label, segment in _LINE.findall(chat.ask_text(model, asked, most=most)):
        place = match_segment(text, segment, coverage)
        if label in behaviours and place is not None:
            found.append(Segment(label, *place))
    return sorted(found, key=lambda one: (one.start, one.end))


def match_segment(text: str, segment: str, coverage: float = COVERAGE) -> tuple[int, int] | None:
    """Where a segment stands in a text: its longest block in common, if that is at least `coverage` of the segment.

    Models change a letter here and there. None where too little is found.
    """
    if not segment:
        return None
    at = text.find(segment)
    if at >= 0:
        return at, at + len(segment)
    match = SequenceMatcher(None, text, segment, autojunk=False).find_longest_match()
    return (match.a, match.a + match.size) if match.size >= coverage * len(segment) else None


# ------------------------------------------------------------------------------------------------------------- tokens


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raise `UnsupportedError` for a tokenizer that does not tell where its tokens stand, which `mark` needs."""
    _tokenise(tokenizer, "So.", special=False)


def _tokenise(tokenizer: Tokenizer, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """(tokens, where each starts and ends in the text)."""
    try:
        read = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    except NotImplementedError as error:
        raise UnsupportedError("behaviours need a fast tokenizer, which tells where its tokens stand") from error
    return list(read["input_ids"]), list(read["offset_mapping"])


def mark(
    tokenizer: Tokenizer, prompt: str, answer: str, segments: Sequence[Segment], *, most: int = 0, special: bool = True
) -> Marked:
    """Prompt and answer as tokens, and each behaviour's spans of the tokens that hold a letter of its segments.

    segments: of the answer. most: tokens that are kept; a span that is cut goes; 0 for all. special: the
    tokenizer puts its own tokens around, which a chat template has written already. Raises `UnsupportedError` for a
    tokenizer that does not tell where its tokens stand.
    """
    whole = prompt + continue_text(tokenizer, prompt, answer)
    ids, offsets = _tokenise(tokenizer, whole, special=special)
    spans: dict[str, list[tuple[int, int]]] = {}
    for one in segments:
        start, end = (at + len(whole) - len(answer) for at in (one.start, one.end))
        places = [at for at, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
        if places and not (most and places[-1] >= most):
            spans.setdefault(one.behaviour, []).append((places[0], places[-1] + 1))
    return Marked(torch.tensor(ids[:most] if most else ids), spans)
