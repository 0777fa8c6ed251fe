"""Does a model answer from the text that it is given? Without some heads, with an instruction, and by contrast.

Jin et al., "Cutting Off the Head Ends the Conflict" (PH3), Findings of ACL 2024 (arXiv 2402.18154): heads that were
found on cloze conflicts are silenced where questions come with retrieved passages.

Departures: the paper was read at second hand, and its prompts and data sets are not known: questions are the user's.
Heads are silenced for these answers alone, as `secateur.heads` does; what `secateur run ph3` writes answers alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

from annotated_types import Ge

from secateur._utils.rundir import Run
from secateur.clients.completions import Contrasting, Local, Writing
from secateur.errors import InputError
from secateur.measure import answers, statistics
from secateur.methods import tasks
from secateur.methods.conflicts import INSTRUCTIONS
from secateur.methods.tasks import Item, Line, Task
from secateur.reports.sheet import Sheet, Table, percent
from secateur.runs.questions import Questions
from secateur.runs.questions import read as read  # what `studies.executor` reads the data with
from secateur.score import random
from secateur.subjects import Transformer
from secateur.subjects.transformer.heads import Head, find_list, find_outputs, silence_heads
from secateur.vocabulary import Figure

__all__ = ["STUDY", "Arm", "Grounded", "grounding", "plan"]

STUDY = {
    "title": "does a model answer from the text it is given? without heads of ph3, instructed, and by contrast",
    "recipe": "",
    "backend": "secateur.runs.backends.language:Language",
    "reads": "questions with answers and texts: a .jsonl file",
    "sets": "",
    "grid": "heads weight batch chat seed",
}

PROMPT = "Text:\n{text}\n\nQuestion: {question}\nAnswer in as few words as will do.\nAnswer:"
CLOSED = "Question: {question}\nAnswer in as few words as will do.\nAnswer:"
"""How is asked, with the text and without."""
AS_IS, INSTRUCTED, CONTRAST, BARE = "as it is", "instructed", "context-aware decoding", "without the text"
MEASURES = {"exact_match": "EM", "f1": "F1", "recall": "Holds an answer", "as_without": "As without the text"}
"""What is told of an answer -> its column."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of answering. silent: heads that are off; weight: of the contrast; open: whether the text is given.

    beside: the way with as many heads off that were drawn at random, which heads of the list are to beat.
    """

    name: str
    silent: tuple[Head, ...] = ()
    instructed: bool = False
    weight: float = 0.0
    open: bool = True
    beside: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Grounded:
    """What was answered: arm -> a row for each question with the answer, exact_match, f1, recall and as_without."""

    questions: Questions
    items: Mapping[str, Sequence[Mapping[str, object]]]
    notes: tuple[str, ...] = ()
    controls: Mapping[str, str] = field(default_factory=dict)
    """Way without heads of the list -> that without as many random ones."""

    def values(self, arm: str, measure: str) -> list[float]:
        """Question by question."""
        return [float(str(item[measure])) for item in self.items[arm]]

    def figure(self, arm: str, measure: str) -> Figure:
        """The mean with its interval, Wilson's of what is 0 or 1."""
        values = self.values(arm, measure)
        if set(values) <= {0.0, 1.0}:
            return statistics.proportion(int(sum(values)), len(values))
        return statistics.mean_interval(values)

    def gain(self, arm: str, measure: str, beside: str = AS_IS) -> Figure:
        """An arm minus another, the model as it is unless named, paired over questions."""
        return statistics.paired_difference(self.values(arm, measure), self.values(beside, measure))

    def sheet(self) -> Sheet:
        """Tables and figures; every answer in a line of its own."""
        told = [[arm, *(percent(self.figure(arm, measure)) for measure in MEASURES)] for arm in self.items]
        rows = [["Answers", *MEASURES.values()], *told]
        words = (
            f"Of {len(self.questions.rows)} questions, of the answer's first line. EM and F1 of words as SQuAD counts "
            "them; holds an answer: one of the right ones stands in it; as without the text: it is what the model says "
            "when it is asked without."
        )
        tables = [Table("What is answered, % of questions", rows, words)]
        tables += self._compare("the model as it is", {arm: AS_IS for arm in self.items if arm != AS_IS})
        tables += self._compare("as many random heads", self.controls)
        figures = {arm: {measure: asdict(self.figure(arm, measure)) for measure in MEASURES} for arm in self.items}
        return Sheet("grounding", self._headline(), tables, figures, self.notes, items=list(self._lines()))

    def _compare(self, named: str, pairs: Mapping[str, str]) -> list[Table]:
        """A table of each way ahead of the one that it is paired with; none of a single question."""
        if len(self.questions.rows) < 2 or not pairs:
            return []
        rows = [["Answers", "EM", "F1"]]
        for arm, beside in pairs.items():
            differences = [self.gain(arm, measure, beside) for measure in ("exact_match", "f1")]
            rows.append([arm, *(percent(figure, signed=True) for figure in differences)])
        return [Table(f"Ahead of {named}, percentage points", rows, "Paired over questions.")]

    def _headline(self) -> str:
        shares = [f"{100 * mean(self.values(arm, 'exact_match')):.0f} % {arm}" for arm in self.items]
        return f"Of {len(self.questions.rows)} questions are answered right, to the word: {', '.join(shares)}"

    def _lines(self) -> Iterator[Mapping[str, object]]:
        for arm, items in self.items.items():
            for question, item in zip(self.questions.rows, items, strict=True):
                yield {"arm": arm, "question": question.question, "answers": question.answers, **item}


def grounding(
    subject: Transformer,
    data: Questions,
    folder: str | Path,
    progress: Callable[[Sequence[Arm]], Iterable[Arm]] = iter,
    *,
    lists: str = "",
    trust: Literal["context", "memory"] = "context",
    heads: Sequence[Annotated[int, Ge(1)]] = (),
    instruction: str = "",
    prompt: str = "",
    closed: str = "",
    tokens: Annotated[int, Ge(1)] = 32,
    weight: Annotated[float, Ge(0)] = 1.0,
    batch: Annotated[int, Ge(1)] = 8,
    chat: bool = True,
    seed: int = 0,
) -> Grounded:
    """How often questions are answered right from their texts: as it is, instructed, and without heads of `ph3`.

    The ways: the model as it is; behind an instruction (the baseline by prompting); without heads of the list, and that
    behind the instruction, too; without as many random heads, the control of the paper's own experiment; by
    context-aware decoding (`Contrasting`), where the context is to be trusted; and without the text, which tells what
    the model remembers.

    Args:
        subject: the model that was scored, whole; it stays as it is.
        data: the questions, see `questions.read`.
        folder: a run directory; what was answered is not asked again.
        progress: wraps the ways of answering.
        lists: the heads.json that `secateur run ph3` wrote, or its folder; that in the model's own folder if empty.
        trust: which list of it: what carries the memory goes to trust the context, and the other way round.
        heads: how many of the list's first heads are off, each a way of its own; all of them if empty.
        instruction: what stands before the prompt; `conflicts.INSTRUCTIONS` if empty.
        prompt, closed: how is asked with the text, {text} and {question}, and without it, {question}; `PROMPT` and
            `CLOSED` if empty.
        tokens: of an answer at most.
        weight: of the contrast in context-aware decoding; left out if 0.
        batch: questions at once.
        chat: ask through the chat template of a tokenizer that has one, and not by the bare prompt.
        seed: of the random heads, which are drawn from those that the list does not hold.

    Raises `InputError` for a model that does not write, a list that is not there or of another model, a prompt without
    its fields, and questions that are longer than the model reads.
    """
    arms = _plan_arms(subject, lists, trust, heads, weight, seed)
    ask = _make_tasks(subject, data, arms, instruction or INSTRUCTIONS[trust], prompt, closed, tokens, chat)
    alone = ask[arms[-1]].items
    said = dict[str, list[Line]]()
    with Run.open(folder, {"data_sha256": data.digest, "trust": trust, "tokens": tokens}) as run:
        place = run.folder("answers")
        for arm in progress(arms):
            task, answerer = ask[arm], Local(subject.model, subject.tokenizer, batch=batch)
            if arm.weight:
                bare = {item.prompt: other.prompt for item, other in zip(task.items, alone, strict=True)}
                answerer = Contrasting(subject.model, subject.tokenizer, bare.__getitem__, arm.weight, batch=batch)
            digest = hashlib.sha256(
                json.dumps([task.digest, {key: told for key, told in asdict(arm).items() if key != "beside"}]).encode()
            ).hexdigest()[:12]
            with silence_heads(subject, arm.silent):
                said[arm.name] = tasks.run_task(task, answerer, file=place / f"{digest}.jsonl", chunk=8 * batch)
    items = {name: _judge(data, lines, said[BARE]) for name, lines in said.items()}
    controls = {arm.name: arm.beside for arm in arms if arm.beside}
    return Grounded(data, items, _remark(arms, said, tokens), controls)


def plan(
    subject: Transformer,
    data: Questions,
    *,
    lists: str,
    trust: Literal["context", "memory"],
    heads: Sequence[int],
    instruction: str,
    prompt: str,
    closed: str,
    tokens: int,
    weight: float,
    chat: bool,
    seed: int,
    **others: object,
) -> dict[str, int]:
    """How many answers `grounding` will ask for; what it would refuse is refused here."""
    arms = _plan_arms(subject, lists, trust, heads, weight, seed)
    _make_tasks(subject, data, arms, instruction or INSTRUCTIONS[trust], prompt, closed, tokens, chat)
    return {"questions": len(data.rows), "answers": len(data.rows) * len(arms)}


def _plan_arms(
    subject: Transformer, lists: str, trust: str, heads: Sequence[int], weight: float, seed: int
) -> list[Arm]:
    """All ways of answering; the last one is without the text."""
    if not subject.causal or subject.tokenizer is None:
        raise InputError("study grounding needs a causal language model with its tokenizer: give another MODEL")
    chosen = tuple(find_list(subject, f"trust-{trust}", lists or None))
    if not chosen:
        raise InputError(f"the list trust-{trust} holds no head: give one of `secateur run ph3`")
    others = _shuffle_others(subject, chosen, seed)
    arms = [Arm(AS_IS), Arm(INSTRUCTED, instructed=True)]
    arms += [Arm(CONTRAST, weight=weight)] if weight and trust == "context" else []
    for count in dict.fromkeys(heads or [len(chosen)]):
        if count > len(chosen):
            raise InputError(f"heads={count}: the list trust-{trust} holds {len(chosen)}; give as many at most")
        named, control = (f"without {count} {kind}head{'s' * (count > 1)}" for kind in ("", "random "))
        beside = control if count <= len(others) else ""
        arms += [Arm(named, chosen[:count], beside=beside)]
        arms += [Arm(f"{named}, instructed", chosen[:count], instructed=True)]
        arms += [Arm(control, others[:count])] if beside else []
    return [*arms, Arm(BARE, open=False)]


def _shuffle_others(subject: Transformer, chosen: Sequence[Head], seed: int) -> tuple[Head, ...]:
    """The heads that are not chosen, in an order by chance."""
    places = find_outputs(subject)
    others = [(layer, head) for layer, (_, count) in places.items() for head in range(count)]
    worth = {layer: random.draw(count, f"layers.{layer}.heads", seed) for layer, (_, count) in places.items()}
    left = [head for head in others if head not in set(chosen)]
    return tuple(sorted(left, key=lambda head: float(worth[head[0]][head[1]]), reverse=True))


def _make_tasks(
    subject: Transformer,
    data: Questions,
    arms: Sequence[Arm],
    instruction: str,
    prompt: str,
    closed: str,
    tokens: int,
    chat: bool,
) -> dict[Arm, Task]:
    """What is asked in each way; refuses, before anything is asked, what can't be."""
    prompt, closed = prompt or PROMPT, closed or CLOSED
    for name, template, fields in (("prompt", prompt, ("text", "question")), ("closed", closed, ("question",))):
        for place in fields:
            if f"{{{place}}}" not in template:
                raise InputError(f"{name}={template!r} has no {{{place}}}: give one that says where it stands")
    texts = [row.read_text().strip() for row in data.rows]
    chat = chat and bool(getattr(subject.tokenizer, "chat_template", None))
    writing, found = Writing(tokens, stop="" if chat else "\n", chat=chat), dict[Arm, Task]()
    for arm in arms:
        items = list[Item]()
        for number, (row, text) in enumerate(zip(data.rows, texts, strict=True), 1):
            asked = _fill(prompt if arm.open else closed, {"text": text, "question": row.question})
            items.append(Item(str(number), f"{instruction}\n\n{asked}" if arm.instructed else asked, row.answers))
        found[arm] = Task("grounding", tuple(items), "f1", writing)
    _check_window(subject, data, found)
    return found


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields; what looks like one in a text stays as it is."""
    return re.sub(r"\{(text|question)\}", lambda match: values.get(match[1], ""), template)


def _check_window(subject: Transformer, data: Questions, tasks_of: Mapping[Arm, Task]) -> None:
    """Refuse questions that are longer than the model reads."""
    answerer = Local(subject.model, subject.tokenizer)
    if math.isinf(answerer.window):
        return
    for task in {task.digest: task for task in tasks_of.values()}.values():
        for item in task.items:
            count = answerer.count(item.prompt, task.writing)
            if count + task.writing.most > answerer.window:
                raise InputError(
                    f"question {item.id} of {data.name} takes {count} tokens with its text, and {task.writing.most} to "
                    f"answer: the model reads {answerer.window:.0f}; shorten it (secateur prune-context), or give "
                    "fewer tokens (--tokens)"
                )


def _judge(data: Questions, lines: Sequence[Line], bare: Sequence[Line]) -> list[dict[str, object]]:
    """The figures of each answer, of its first line."""
    found = list[dict[str, object]]()
    for question, line, other in zip(data.rows, lines, bare, strict=True):
        answer, alone = (one.answer.strip().partition("\n")[0] for one in (line, other))
        found.append(
            {
                "answer": answer,
                "exact_match": answers.exact_match(answer, question.answers),
                "f1": answers.token_f1(answer, question.answers),
                "recall": float(answers.holds(answer, question.answers)),
                "as_without": answers.exact_match(answer, [alone] if alone else []),
            }
        )
    return found


def _remark(arms: Sequence[Arm], said: Mapping[str, Sequence[Line]], tokens: int) -> tuple[str, ...]:
    """Which heads were off, and where nothing was answered, as by a model that is cut off while it thinks."""
    names = {arm.beside for arm in arms}
    silent = max((arm.silent for arm in arms if arm.name not in names), key=len)
    drawn = max((arm.silent for arm in arms if arm.name in names), key=len, default=())
    notes = [f"heads that were off, as (layer, head), the first ones first: {', '.join(map(str, silent))}"]
    if drawn:
        notes.append(f"random heads that were off: {', '.join(map(str, drawn))}")
    if len(drawn) < len(silent):
        notes.append(f"the list leaves fewer than {len(silent)} other heads: as many random ones were not tried")
    for name, lines in said.items():
        empty = [line for line in lines if not line.answer.strip()]
        if empty:
            cut = sum(not line.finished for line in empty)
            notes.append(
                f"{name}: {len(empty)} of {len(lines)} answers are empty, {cut} of these cut off at {tokens} tokens, "
                "as where a model thinks before it answers: give more (--tokens)"
            )
    return tuple(notes)
