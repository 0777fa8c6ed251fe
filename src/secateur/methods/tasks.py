"""Tasks for language models: items with answers, how they are asked, and how what is written is scored.

A task is a JSONL file. Its first line may be settings, an object with "task"; each other line is an item:

    {"task": "capitals", "scorer": "alias", "prompt": "Q: {question}\\nA:", "tokens": 16, "stop": "\\n"}
    {"question": "What is the capital of Peru?", "answers": ["Lima"], "group": "South America"}

Items that were written stay written: a run that goes on asks for the others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from secateur._utils.disk import atomic_write
from secateur.clients import chat
from secateur.clients.completions import Completer, Completion, Writing
from secateur.errors import DataError, InputError, SecateurError, ServerError
from secateur.measure import answers, likelihood, statistics
from secateur.subjects import Transformer
from secateur.vocabulary import Figure

__all__ = [
    "SCORERS",
    "Item",
    "Judge",
    "Line",
    "Summary",
    "Task",
    "build_prompt",
    "check_tasks",
    "export_task",
    "judge_by_likelihood",
    "judge_by_model",
    "list_groups",
    "read_lines",
    "read_tasks",
    "run_task",
    "scores_by_item",
    "summarise",
]  # fmt: skip

LETTERS = "ABCDEFGHIJ"
QUESTION = "{question}\nAnswer:"
"""How an item is asked where the task does not say."""

Row = Mapping[str, Any]
"""What JSON gives."""
_Score = Callable[[str, Sequence[str]], float]
SCORERS: Mapping[str, _Score | None] = {
    "alias": answers.alias_match,
    "exact": answers.same_answer,
    "lenient": answers.lenient_match,
    "f1": answers.token_f1,
    "rouge": answers.rouge_l,
    "letter": answers.letter_match,
    "boxed": answers.same_answer,
    "judge": None,
}
"""Name -> score of (what was answered, what is right), 0 to 1; a judge scores by other means."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is asked, and what is right. options: of a choice, one of which is right; group: such as a level."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """Items that are asked alike. shots: examples before each prompt, the first of which go where there is no room.

    role: knowledge, reasoning, or nothing. ends: what did not come to its end is wrong.
    """

    name: str
    items: tuple[Item, ...] = field(repr=False)
    scorer: str = "alias"
    writing: Writing = field(default_factory=Writing)
    shots: tuple[str, ...] = ()
    role: str = ""
    ends: bool = False

    @property
    def digest(self) -> str:
        """sha256 of all that is asked and of how."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def chance(self) -> float:
        """What guessing gives: 1 / options on average, 0 without options."""
        return self.chance_of("")

    def chance_of(self, group: str) -> float:
        """`chance` of the items of a group, of all for no name."""
        items = [one for one in self.items if not group or one.group == group]
        return mean(1 / len(one.options) if one.options else 0.0 for one in items)


@dataclass(frozen=True, slots=True)
class Line:
    """One item as it was answered: text, its tokens, whether it ended, what was read of it, and the score.

    score: None where a judge gave none. seconds: of writing it, its part of those of all that were written at once.
    """

    task: str
    item: str
    turn: int
    text: str
    tokens: int
    finished: bool
    answer: str
    score: float | None
    group: str = ""
    seconds: float = field(default=0.0, compare=False)


# ---------------------------------------------------------------------------------------------------------- reading


def read_tasks(source: str | Path) -> list[Task]:
    """The task of a JSONL file; two of one whose settings have a prompt `closed`, too: with an open and a closed book.

    Raises `DataError` naming the line that lacks something, or that is no object.
    """
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other character ends a line of JSON
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as a task: {error}") from error
    settings: dict[str, Any] = {}
    rows = list[tuple[str, Row]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is no JSON: each line is to be an object") from error
        if not isinstance(row, dict):
            raise DataError(f"{place} is no object: give question and answers")
        if "task" in row and not rows and not settings:
            settings = row
            continue
        rows.append((place, row))
    if not rows:
        raise DataError(f"{path} holds no item: each line is to be an object with question and answers")
    books = {"": settings}
    if "closed" in settings:
        rest = {key: value for key, value in settings.items() if key != "closed"}
        books = {", open book": rest, ", closed book": {**rest, "prompt": settings["closed"]}}
    return [_read_book(path, rows, how, more) for more, how in books.items()]


def _read_book(path: Path, rows: Sequence[tuple[str, Row]], settings: Row, more: str) -> Task:
    items = list[Item]()
    for place, row in rows:
        try:
            items.append(_read_item(row, settings, str(len(items))))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if len({item.id for item in items}) < len(items):
        raise DataError(f"{path} has items with the same id: leave ids out, or give each its own")
    try:
        return _make_task(settings, str(settings.get("task") or path.stem) + more, items)
    except (InputError, TypeError, ValueError) as error:
        raise DataError(f"{path}, settings of the task: {error}") from error


_OF_LETTERS = ("letter", "boxed", "exact", "judge")
"""Scorers that tell whether the letter of an option is right."""


def check_tasks(tasks: Sequence[Task], judge: str) -> None:
    """Refuse two tasks of one name, and tasks that a judge scores where none is given."""
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'two tasks are called {name!r}: give them other names ("task" in their first lines)')
    if not judge and (judged := [task.name for task in tasks if task.scorer == "judge"]):
        raise InputError(f"{judged[0]} is scored by a judge: give one (--judge likelihood, a folder or an address)")


_SETTINGS = ("task", "scorer", "prompt", "tokens", "temperature", "top_p", "stop", "chat", "shots", "role", "ends")


def _make_task(settings: Row, name: str, items: Sequence[Item]) -> Task:
    for key in settings:
        if key not in _SETTINGS:
            raise InputError(f"{key!r} is none of {', '.join(_SETTINGS)}")
    choices = all(item.options for item in items)
    if not choices and any(item.options for item in items):
        raise InputError("some items have options and others none: make two tasks of them")
    scorer = settings.get("scorer", "letter" if choices else "alias")
    if scorer not in SCORERS:
        raise InputError(f"scorer={scorer!r}: give one of {', '.join(SCORERS)}")
    if scorer == "letter" and not choices:
        raise InputError("scorer=letter needs options in each item")
    if choices and scorer not in _OF_LETTERS:
        raise InputError(f"scorer={scorer} reads words, and options are told by letters: give {', '.join(_OF_LETTERS)}")
    role = settings.get("role", "")
    if role not in ("", "knowledge", "reasoning"):
        raise InputError(f"role={role!r}: give knowledge, reasoning, or leave it out")
    shots = settings.get("shots", [])
    if not isinstance(shots, list) or not all(isinstance(one, str) for one in shots):
        raise InputError("shots are to be a list of texts")
    writing = Writing(
        int(settings.get("tokens", 4 if scorer == "letter" else 32)), float(settings.get("temperature", 0.0)),
        float(settings.get("top_p", 1.0)), str(settings.get("stop", "")), settings.get("chat", False) is True,
    )  # fmt: skip
    return Task(name, tuple(items), scorer, writing, tuple(shots), role,
                settings.get("ends", False) is True)  # fmt: skip


def _read_item(row: Row, settings: Row, number: str) -> Item:
    given = row.get("answers", row.get("answer"))
    right = [given] if isinstance(given, str | int | float) else given
    judged = settings.get("scorer") == "judge"
    if judged and right is None:
        right = []
    if not isinstance(right, list) or not all(isinstance(one, str | int | float) for one in right):
        raise DataError("no answers: give a list of texts, each of which is right")
    texts = tuple(str(one) for one in right if str(one).strip())
    if not texts and not judged:
        raise DataError("no answers: give a list of texts, each of which is right")
    options = row.get("options", [])
    if not isinstance(options, list) or not all(isinstance(one, str) and one.strip() for one in options):
        raise DataError("options are to be a list of texts")
    if options:
        texts = (_letter_of(texts, options),)
    template = row.get("prompt", settings.get("prompt", QUESTION))
    if not isinstance(template, str):
        raise DataError("prompt is to be a text")
    values = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    if options and "options" not in template and "question" in values:
        values["question"] = f"{values['question']}\n{listed}"
    prompt = _fill(template, {**values, "options": listed})
    group = row.get("group", "")
    if not group and isinstance(row.get("text"), str) and settings.get("scorer") in ("rouge", "judge"):
        group = _length_class(row["text"])
    return Item(str(row.get("id", number)), prompt, texts, tuple(options), str(group))


def _length_class(text: str) -> str:
    """Of what is summed up, in words. Source: LLM-KICK (arXiv 2310.01382), section 3.4."""
    words = len(text.split())
    return "small" if words <= 470 else "medium" if words < 790 else "large"


def _letter_of(texts: Sequence[str], options: Sequence[str]) -> str:
    """The letter of the right option, which is told by its letter or its text."""
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"{len(options)} options: give 2 to {len(LETTERS)}")
    if len({one.strip().casefold() for one in options}) < len(options):
        raise DataError("options that are not distinct: each is to be another answer")
    right = [place for place, one in enumerate(options) if one in texts or LETTERS[place] in texts]
    if len(right) != 1:
        raise DataError(f"{len(right)} of the options are right: the answer is to be one of them, or its letter")
    return LETTERS[right[0]]


def _fill(template: str, values: Mapping[str, object]) -> str:
    """`{name}` becomes the item's own field of that name: nothing else of a template is looked into."""

    def one(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise DataError(f"the prompt asks for {found[0]}, which the item does not have")
        return str(values[found[1]])

    return re.sub(r"\{(\w+)\}", one, template)


# ---------------------------------------------------------------------------------------------------------- asking


def build_prompt(task: Task, item: Item, completer: Completer) -> str:
    """The item's prompt behind as many of the shots, the last ones, as leave room to answer.

    Raises `DataError` where the item alone does not fit.
    """
    for first in range(len(task.shots) + 1):
        prompt = "\n\n".join([*task.shots[first:], item.prompt])
        tokens = completer.count(prompt, task.writing)
        if tokens + task.writing.most <= completer.window:
            return prompt
    raise DataError(
        f"item {item.id} of {task.name} takes {tokens} tokens, and {task.writing.most} to answer: {completer.name} "
        f"reads {completer.window:.0f}; shorten it or leave it out"
    )


Judge = Callable[[Item, str], float | None]
"""(item, what was answered) -> a score, or None where there is none."""


def run_task(
    task: Task,
    completer: Completer,
    *,
    file: Path | None = None,
    passes: int = 1,
    seed: int = 0,
    judge: Judge | None = None,
    chunk: int = 64,
    tick: Callable[[int], object] = lambda done: None,
) -> list[Line]:
    """Ask all items `passes` times, with `seed` and those after it; returns a line for each, in order.

    file: where lines are written as they come, and read again by a run that goes on. chunk: items that are asked at
    once, and judged behind that. tick: told how many more are done. Raises `InputError` where a judge is needed.
    """
    if task.scorer == "judge" and judge is None:
        raise InputError(f"{task.name} is scored by a judge: give one")
    there = {(line.item, line.turn): line for line in read_lines(file, task.name)} if file is not None else {}
    tick(len(there))
    waiting = _Waiting(file.with_suffix(".unjudged") if file is not None and task.scorer == "judge" else None)

    def finish(items: Sequence[Item], texts: Mapping[str, tuple[Completion, float]], turn: int) -> None:
        with open(file or os.devnull, "a", encoding="utf-8") as out:
            for item in items:
                completion, spent = texts[item.id]
                try:
                    line = replace(score(task, item, completion, turn, judge), seconds=spent)
                except ServerError as error:
                    words = "what was answered is kept, and the same command again goes on with the judge"
                    raise ServerError(f"the judge of {task.name}: {error}; {words}") from error
                there[item.id, turn] = line
                # In plain ASCII: models write half letters, and what other readers take for the end of a line.
                out.write(f"{json.dumps(asdict(line))}\n")
        tick(len(items))

    for turn in range(passes):
        rest = [item for item in task.items if (item.id, turn) not in there]
        texts = waiting.read(turn)
        for begin in range(0, len(rest), chunk):
            some = rest[begin : begin + chunk]
            for new in _write([item for item in some if item.id not in texts], task, completer, seed + turn):
                waiting.add(turn, new)
                texts |= new
                if task.scorer != "judge":
                    finish([item for item in some if item.id in new], texts, turn)
            if task.scorer == "judge":
                finish(some, texts, turn)
    waiting.end()
    return [there[item.id, turn] for turn in range(passes) for item in task.items]


def _write(
    items: Sequence[Item], task: Task, completer: Completer, seed: int
) -> Iterator[dict[str, tuple[Completion, float]]]:
    """Item -> what was written and its seconds, as it comes; what comes together shares its seconds."""
    prompts = [build_prompt(task, item, completer) for item in items]
    began = time.perf_counter()
    for some in completer.stream(prompts, task.writing, seed) if prompts else ():
        spent = (time.perf_counter() - began) / len(some)
        yield {items[place].id: (completion, spent) for place, completion in some.items()}
        began = time.perf_counter()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What was written and has no score yet, in a file, since judges may be down; nothing is kept without a file."""

    file: Path | None

    def read(self, turn: int) -> dict[str, tuple[Completion, float]]:
        """Item -> what was written in this turn, and its seconds."""
        rows = _read_whole(self.file) if self.file is not None else ()
        return {row["item"]: (Completion(**row["text"]), row["seconds"]) for row in rows if row["turn"] == turn}

    def add(self, turn: int, written: Mapping[str, tuple[Completion, float]]) -> None:
        """Keep what was written."""
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                for item, (completion, seconds) in written.items():
                    row = {"item": item, "turn": turn, "text": asdict(completion), "seconds": seconds}
                    out.write(f"{json.dumps(row)}\n")

    def end(self) -> None:
        """All have a score."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def read_lines(file: Path, task: str) -> Iterator[Line]:
    """The lines of a task that are whole."""
    for row in _read_whole(file):
        found = Line(**row)
        if found.task == task:
            yield found


def _read_whole(file: Path) -> Iterator[Row]:
    """Rows of JSON; a kill may have left half of the last one, which is cut off."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    yield from (json.loads(line) for line in whole.split("\n")[:-1])


def score(task: Task, item: Item, written: Completion, turn: int = 0, judge: Judge | None = None) -> Line:
    """What was read of a completion, and how right it is; one that did not end is wrong where the task says so."""
    text, over = chat.split_thoughts(written.text)
    if not over and (written.begun or item.prompt.rstrip().endswith("<think>")):
        text = ""  # the prompt has begun its thoughts, and they never end
    answer = text.strip()
    if task.scorer == "letter":
        answer = answers.read_letter(text, LETTERS[: len(item.options)])
    elif task.scorer == "boxed":
        answer = answers.read_boxed(text) or answer
    scorer = SCORERS[task.scorer]
    value: float | None
    if task.ends and not written.finished:
        value = 0.0
    elif scorer is not None:
        value = scorer(answer, item.answers)
    else:
        value = judge(item, answer) if judge is not None else None
    return Line(task.name, item.id, turn, written.text, written.tokens, written.finished, answer, value, item.group)


# ---------------------------------------------------------------------------------------------------------- judging


JUDGED = (
    "Rate how well the answer does what was asked, from 1 (not at all) to 10 (perfectly): coherence, consistency, "
    "fluency, relevance.\n\nAsked:\n{prompt}\n\nA good answer:\n{right}\n\nThe answer:\n{answer}\n\n"
    "Give the number alone.\nRating: "
)


def judge_by_model(model: chat.LanguageModel) -> Judge:
    """Ratings from 0.1 to 1 by a language model; None where it gives no number from 1 to 10.

    Raises `ServerError` where it is down.
    """

    def rate(item: Item, answer: str) -> float | None:
        right = item.answers[0] if item.answers else "(none is given)"
        asked = _fill(JUDGED, {"prompt": item.prompt, "right": right, "answer": answer})
        said = chat.ask_text(model, asked, most=8)
        found = re.search(r"(?<![\d.])(10|[1-9])(?:\.\d+)?(?![\d])", said)
        return None if found is None else min(float(found[0]), 10.0) / 10

    return rate


def judge_by_likelihood(original: Transformer) -> Judge:
    """exp of the mean log-probability that the original gives the tokens of an answer: what it might have said itself.

    0 for an answer without a token.
    """
    forward = partial(original.forward, head=False)

    def rate(item: Item, answer: str) -> float | None:
        try:
            (span,) = likelihood.encode(original.tokenizer, item.prompt, [f" {answer}" if answer else ""])
        except SecateurError:
            return 0.0
        (logs,) = likelihood.log_probabilities(forward, [span])
        return float(logs.mean().exp())

    return rate


# ---------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class Summary:
    """A task's lines in figures. Items are the sample: passes over one are averaged first.

    score: mean; None where no item has one. unscored: lines without a score. correct, wrong: tokens of lines with a
    score of at least a half and of the others, where there are any. groups: score by group, and by what groups are
    parts of: "science/physics" counts in "science", too.
    """

    score: Figure | None
    tokens: Figure
    unfinished: float
    unscored: int
    distinct: float
    correct: Figure | None = None
    wrong: Figure | None = None
    groups: Mapping[str, Figure] = field(default_factory=dict)


def scores_by_item(lines: Iterable[Line]) -> dict[str, float]:
    """Item -> mean score over its passes; items without a score are left out."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line.score is not None:
            found.setdefault(line.item, []).append(line.score)
    return {item: mean(values) for item, values in found.items()}


def list_groups(group: str) -> list[str]:
    """A group behind what it is a part of: "science" and "science/physics" of the latter; nothing of no name."""
    return list(itertools.accumulate(group.split("/"), "{}/{}".format)) if group else []


def _mean(scores: Sequence[float]) -> Figure:
    """The mean with an interval that stays within 0 and 1 where each item is right or wrong."""
    if set(scores) <= {0.0, 1.0}:
        return statistics.proportion(int(sum(scores)), len(scores))
    return statistics.mean_interval(scores)


def summarise(lines: Sequence[Line]) -> Summary:
    """The figures of one task's lines."""
    by_item = scores_by_item(lines)
    right = [line.tokens for line in lines if line.score is not None and line.score >= 0.5]
    wrong = [line.tokens for line in lines if line.score is not None and line.score < 0.5]
    groups = {}
    for group in dict.fromkeys(name for line in lines for name in list_groups(line.group)):
        values = scores_by_item(line for line in lines if group in list_groups(line.group))
        if values:
            groups[group] = _mean(list(values.values()))
    figure = _mean(list(by_item.values())) if by_item else None
    return Summary(
        figure, statistics.mean_interval([line.tokens for line in lines]),
        mean(not line.finished for line in lines), sum(line.score is None for line in lines),
        answers.distinct([line.text for line in lines]),
        statistics.mean_interval(right) if right else None, statistics.mean_interval(wrong) if wrong else None, groups,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- exporting


def export_task(task: Task, folder: Path) -> Path:
    """The task as one of lm-eval's: NAME.yaml beside its items, NAME.jsonl, in `folder`; returns the YAML.

    Choices are told by their letters' likelihood there, and other answers compared exactly but for case and
    punctuation: lm-eval has no other of our scores. Raises `InputError` for a task that a judge scores.
    """
    if task.scorer == "judge":
        raise InputError(f"{task.name} is scored by a judge, which lm-eval does not have")
    name = re.sub(r"\W+", "_", task.name)
    rows = [{"prompt": "\n\n".join([*task.shots, item.prompt]), "answers": list(item.answers),
             "letters": list(LETTERS[: len(item.options)]),
             "right": LETTERS.index(item.answers[0]) if item.options else 0} for item in task.items]  # fmt: skip
    data = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(data, "".join(f"{json.dumps(row)}\n" for row in rows))
    document: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test", "doc_to_text": "{{prompt}}", "target_delimiter": " ", "metadata": {"version": 1.0},
    }  # fmt: skip
    if task.scorer == "letter":
        document |= {"output_type": "multiple_choice", "doc_to_choice": "letters", "doc_to_target": "right",
                     "metric_list": [{"metric": "acc"}]}  # fmt: skip
    else:
        writing = {"until": [task.writing.stop or "\n\n"], "max_gen_toks": task.writing.most, "do_sample": False}
        same = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
                "ignore_punctuation": True}  # fmt: skip
        document |= {"output_type": "generate_until", "doc_to_target": "answers", "generation_kwargs": writing,
                     "metric_list": [same]}  # fmt: skip
    file = folder / f"{name}.yaml"
    atomic_write(file, yaml.safe_dump(document, sort_keys=False))
    return file
