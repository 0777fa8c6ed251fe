"""Graded tasks made by chance, with worked thoughts: chains, sums, schedules, and facts asked for with a closed book.

Rows are those of task files (`methods.tasks`); texts to train on have questions, thoughts and answers. The roles follow
"When Reasoning Meets Compression" (arXiv 2504.02010): reasoning that is harder the longer it is (chains, sums), easy
reasoning (schedules), knowledge that has to be remembered and joined (facts).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur._utils.disk import atomic_write
from secateur.errors import InputError

__all__ = ["KINDS", "Asking", "Facts", "Puzzle", "make_facts", "make_puzzles", "write_puzzles"]

LEVELS = (2, 3, 4, 5, 6)
REPEATS = 20
"""Times that each fact stands in the training texts."""
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A question, its thoughts, its answer, and its level; options of a choice."""

    question: str
    thoughts: str
    answer: str
    group: str
    options: tuple[str, ...] = ()

    @property
    def row(self) -> dict[str, object]:
        """As a task file has it."""
        row: dict[str, object] = {"question": self.question, "answers": [self.answer], "group": self.group}
        return {**row, "options": list(self.options)} if self.options else row

    @property
    def text(self) -> str:
        """As a model reads it that learns to answer."""
        listed = "".join(f"\n{letter}. {one}" for letter, one in zip("ABCDEFGH", self.options, strict=False))
        answer = "ABCDEFGH"[self.options.index(self.answer)] if self.options else self.answer
        return f"{self.question}{listed}\n<think>\n{self.thoughts}\n</think>\n{answer}"


def _names(count: int) -> list[str]:
    """Words of two syllables, then three, all different."""
    found = ["".join(pair) for pair in itertools.product(_SYLLABLES, repeat=2) if pair[0] != pair[1]]
    if count > len(found):
        found += ["".join(three) for three in itertools.product(_SYLLABLES, repeat=3)]
    return found[:count]


def _chain(draw: random.Random, level: int) -> Puzzle:
    """Follow pointers from name to name; all links are told, in any order, with some that lead elsewhere."""
    path = draw.sample(_names(40), level + 1)
    others = draw.sample([name for name in _names(40) if name not in path], 4)
    links = [*itertools.pairwise(path), *zip(others[:2], others[2:], strict=True)]
    shown = draw.sample(links, len(links))
    told = " ".join(f"{a} leads to {b} ." for a, b in shown)
    thoughts = "\n".join(f"{a} leads to {b} ." for a, b in itertools.pairwise(path))
    question = f"{told} Start at {path[0]} and go {level} steps . Where is the end ?"
    return Puzzle(question, thoughts, path[-1], f"{level} steps")


def _sum(draw: random.Random, level: int) -> Puzzle:
    """Add digits one after another, modulo 10."""
    digits = [draw.randrange(10) for _ in range(level + 1)]
    total, lines = digits[0], list[str]()
    for digit in digits[1:]:
        lines.append(f"{total} plus {digit} is {(total + digit) % 10} .")
        total = (total + digit) % 10
    question = f"What is {' plus '.join(map(str, digits))} modulo 10 ?"
    return Puzzle(question, "\n".join(lines), str(total), f"{level} steps")


_DEEDS = ("read", "sang", "slept", "cooked", "painted", "swam", "walked", "played")


def _schedule(draw: random.Random, level: int) -> Puzzle:
    """When was somebody free? All other hours are told. In the style of BIG-Bench Hard's temporal sequences."""
    name, count = draw.choice(_names(40)), level + 1
    free = draw.randrange(count)
    hours = list(range(8, 8 + count))
    deeds = draw.sample(_DEEDS, count)
    told = [f"from {h} to {h + 1} {name} {deeds[at]} ." for at, h in enumerate(hours) if at != free]
    shown = draw.sample(told, len(told))
    lines = list[str]()
    for at, h in enumerate(hours):
        lines.append(f"check {h} to {h + 1} : {'free' if at == free else deeds[at]} .")
        if at == free:
            break
    right = f"{hours[free]} to {hours[free] + 1}"
    wrong = [f"{h} to {h + 1}" for at, h in enumerate(hours) if at != free]
    options = draw.sample([right, *draw.sample(wrong, min(3, len(wrong)))], min(4, count))
    question = f"{' '.join(shown)} When was {name} free ?"
    return Puzzle(question, "\n".join(lines), right, f"{count} hours", tuple(options))


_MAKERS: Mapping[str, Callable[[random.Random, int], Puzzle]] = {"chains": _chain, "sums": _sum, "schedules": _schedule}
KINDS = (*_MAKERS, "facts")
"""Names of the tasks that are made here."""


def make_puzzles(kind: str, count: int, seed: int = 0, *, levels: Sequence[int] = LEVELS) -> list[Puzzle]:
    """`count` different puzzles of each level, drawn by the seed; the same again for the same.

    Raises `InputError` for a kind that is none.
    """
    if kind not in _MAKERS:
        raise InputError(f"{kind!r} is none of {', '.join(_MAKERS)}")
    draw, found = random.Random(f"{kind} {seed}"), list[Puzzle]()
    for level in levels:
        known: dict[str, Puzzle] = {}
        for _ in range(20 * count):
            puzzle = _MAKERS[kind](draw, level)
            known.setdefault(puzzle.question, puzzle)
            if len(known) == count:
                break
        found += known.values()
    return found


@dataclass(frozen=True, slots=True)
class Facts:
    """Texts that tell single facts again and again, questions over two of them to learn from, and others held out."""

    texts: tuple[str, ...]
    learned: tuple[Puzzle, ...]
    held: tuple[Puzzle, ...]


def make_facts(people: int, seed: int = 0, *, held: float = 0.5, repeats: int = REPEATS) -> Facts:
    """A world of people who live in towns that lie in lands: facts are told, and asked for two at once.

    No question shows a fact. Each fact is told `repeats` times; of pairs of facts the share `held` is asked only, so
    that the answer has to be joined from what is remembered.
    """
    draw = random.Random(f"facts {seed}")
    names = draw.sample(_names(182 + people + 60), people + max(4, people // 4) + 8)
    folk, rest = names[:people], names[people:]
    lands, towns = rest[:8], rest[8:]
    lies = {town: draw.choice(lands) for town in towns}
    lives = {name: draw.choice(towns) for name in folk}
    facts = [f"{name} lives in {town} ." for name, town in lives.items()]
    facts += [f"{town} lies in {land} ." for town, land in lies.items()]
    texts = facts * repeats
    draw.shuffle(texts)
    puzzles = [
        Puzzle(
            f"In which land does {name} live ?",
            f"recall : {name} lives in {lives[name]} .\nrecall : {lives[name]} lies in {lies[lives[name]]} .",
            lies[lives[name]],
            "two facts",
        )
        for name in draw.sample(folk, people)
    ]
    cut = round(held * people)
    return Facts(tuple(texts), tuple(puzzles[cut:]), tuple(puzzles[:cut]))


# ------------------------------------------------------------------------------------------------------------- as files


@dataclass(frozen=True, slots=True)
class Asking:
    """How made tasks are asked: tokens of an answer, temperature, through the chat template or as plain text."""

    tokens: int = 200
    temperature: float = 0.0
    chat: bool = False

    def settings(self, kind: str) -> dict[str, object]:
        """The first line of a task file. Plain prompts begin the thoughts; in chats the template does, if any."""
        choice = kind == "schedules"
        prompt = "{question}\n{options}" if choice else "{question}"
        prompt += f"\nPut the {'letter' if choice else 'answer'} into \\boxed{{}}." if self.chat else "\n<think>\n"
        return {
            "task": kind,
            "scorer": "letter" if choice and not self.chat else "boxed",
            "prompt": prompt,
            "tokens": self.tokens,
            "temperature": self.temperature,
            "top_p": 0.95 if self.temperature else 1.0,
            "chat": self.chat,
            "role": "knowledge" if kind == "facts" else "reasoning",
            "ends": True,
        }


def write_puzzles(
    folder: Path,
    kinds: Sequence[str],
    count: int,
    seed: int = 0,
    *,
    levels: Sequence[int] = LEVELS,
    how: Asking = Asking(),
) -> list[Path]:
    """A task file for each kind, and train.jsonl with other puzzles, thoughts and all, and facts; returns the tasks.

    count: items of each level, and half of the people of the facts; ten times as many other puzzles are to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, texts = list[Path](), list[str]()
    for kind in kinds:
        asked, learned = _make_parts(kind, count, seed, levels)
        file = folder / f"{kind}.jsonl"
        atomic_write(file, _lines([how.settings(kind), *(puzzle.row for puzzle in asked)]))
        files.append(file)
        texts += learned
    random.Random(seed).shuffle(texts)
    atomic_write(folder / "train.jsonl", _lines([{"text": text} for text in texts]))
    return files


def _make_parts(kind: str, count: int, seed: int, levels: Sequence[int]) -> tuple[list[Puzzle], list[str]]:
    """(puzzles that are asked, texts to learn from: other puzzles)."""
    if kind == "facts":
        facts = make_facts(2 * count, seed)
        return list(facts.held), [*facts.texts, *(puzzle.text for puzzle in facts.learned for _ in range(REPEATS))]
    asked = make_puzzles(kind, count, seed, levels=levels)
    known = {puzzle.question for puzzle in asked}
    others = make_puzzles(kind, 10 * count, seed + 1_000_000, levels=levels)
    return asked, [puzzle.text for puzzle in others if puzzle.question not in known]


def _lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
