"""What a model answers to the prompts of task files, as texts: to calibrate it on, or to teach a student.

A reasoning model reads its own thoughts most of the time: calibration on them is reported to win back what pruned
reasoning models lose on general texts, in right answers and in the length of their thoughts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from secateur._utils.disk import atomic_write
from secateur._utils.tokenizers import Tokenizer, continue_text
from secateur.clients.completions import Completer, Local
from secateur.data.texts import Corpus
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.methods import tasks as asking
from secateur.methods.tasks import Item, Line, Task
from secateur.subjects import Streamed, Transformer

__all__ = ["answer_prompts", "is_rendered", "join_answers", "keep_right", "render_prompt", "write_right_answers"]

CHUNK = 32
"""Items between two looks at whether there are enough tokens."""


def answer_prompts(
    subject: Transformer | Streamed, source: str | Path, folder: Path, tokens: int, *, batch: int = 32
) -> Corpus:
    """Prompts of a task file with what a model in memory answers, until there are `tokens` tokens, as texts.

    folder: where answers are kept for a run that goes on. Raises `UnsupportedError` for a model that can't write,
    `DataError` for a file that is no task.
    """
    if isinstance(subject, Streamed):
        raise UnsupportedError("traces are written by a model in memory: open it whole, or leave traces out")
    if not subject.causal:
        raise UnsupportedError(f"{type(subject.model).__name__} writes no text: traces are of language models")
    completer = Local(subject.model, subject.tokenizer, batch=batch)
    folder.mkdir(parents=True, exist_ok=True)
    found, form = list[str](), "text"
    for task in asking.read_tasks(source):
        for lines, part in _answer_in_parts(task, completer, folder):
            some = join_answers(part, lines, completer, subject.tokenizer)
            found, form = [*found, *some.texts], some.form
            tokens -= sum(line.tokens for line in lines)
            if tokens <= 0:
                break
        if tokens <= 0:
            break
    digest = hashlib.sha256("\n".join(found).encode()).hexdigest()
    return Corpus(
        found,
        name=f"what the model answers to {Path(source).name}",
        digest=digest,
        form="rendered" if form == "rendered" else "text",
    )


def _answer_in_parts(task: Task, completer: Completer, folder: Path) -> Iterator[tuple[list[Line], Task]]:
    """Lines of some items after others; a task that a judge scores is asked without one."""
    for begin in range(0, len(task.items), CHUNK):
        part = replace(task, items=task.items[begin : begin + CHUNK])
        file = folder / f"{part.digest[:12]}.jsonl"
        yield asking.run_task(part, completer, file=file, judge=_no_judge, chunk=CHUNK), part


def _no_judge(item: Item, answer: str) -> None:
    """No score: what is read is read for its own sake."""


def join_answers(task: Task, lines: Collection[Line], completer: Completer, tokenizer: Tokenizer) -> Corpus:
    """The texts of prompts with their answers, as the model reads them."""
    prompts = {item.id: asking.build_prompt(task, item, completer) for item in task.items}
    chat = is_rendered(task, tokenizer)
    written = list[str]()
    for line in lines:
        prompt = render_prompt(task, prompts[line.item], tokenizer)
        text = continue_text(tokenizer, prompt, line.text)
        end = str(getattr(tokenizer, "eos_token", None) or "") if chat and line.finished else ""
        written.append(prompt + text + end)
    return Corpus(written, form="rendered" if chat else "text")


def is_rendered(task: Task, tokenizer: Tokenizer) -> bool:
    """Whether a chat template writes the prompts of a task, special tokens and all."""
    return task.writing.chat and bool(getattr(tokenizer, "chat_template", None))


def render_prompt(task: Task, prompt: str, tokenizer: Tokenizer) -> str:
    """A prompt as the model reads it, through the chat template where the task says so."""
    if not is_rendered(task, tokenizer):
        return prompt
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


# --------------------------------------------------------------------------------------------------- for a student


def keep_right(lines: Collection[Line]) -> list[Line]:
    """The lines that came to their end and are right; of equal answers to an item the first one."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:
        if line.finished and line.score is not None and line.score >= 0.5:
            found.setdefault((line.item, line.text), line)
    return list(found.values())


def write_right_answers(
    completer: Completer,
    source: str | Path,
    file: Path,
    *,
    times: int,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    tick: Callable[[int], object] = lambda done: None,
) -> tuple[int, int]:
    """Have a teacher answer each item of a task file `times` times, and write those answers that are right.

    file: JSONL of {"prompt", "completion"}, or of messages where the task goes through a chat template. Beside it stand
    all answers, so that a run that goes on asks for the others. tokenizer: the teacher's, if it is known. Returns
    (right ones, all).

    Source: arXiv 2504.02010, its distilled students; samples of a teacher filtered by their final answer, as STaR
    (arXiv 2203.14465). Raises `InputError` where none is right, or a judge would have to say so.
    """
    rows, count = list[dict[str, object]](), 0
    for task in asking.read_tasks(source):
        if task.scorer == "judge":
            raise InputError(f"{task.name} is scored by a judge: give a task whose answers are known")
        raw = file.with_name(f"{file.stem}-{task.digest[:12]}.jsonl")
        raw.parent.mkdir(parents=True, exist_ok=True)
        if times > 1 and not task.writing.temperature:
            raise InputError(f'{task.name} is answered {times} times the same way: set its "temperature", such as 0.6')
        # What is drawn together is kept together: a run that was killed draws the rest in the same batches.
        many = getattr(completer, "batch", 64) if task.writing.temperature else 64
        lines = asking.run_task(task, completer, file=raw, passes=times, seed=seed, tick=tick, chunk=many)
        prompts = {item.id: asking.build_prompt(task, item, completer) for item in task.items}
        count += len(lines)
        for line in keep_right(lines):
            prompt = prompts[line.item]
            text = line.text if tokenizer is None else continue_text(tokenizer, prompt, line.text)
            rows.append(_make_row(task, prompt, text))
    if not rows:
        raise DataError(
            f"{completer.name} answers none of {count} prompts of {Path(source).name} right: there is "
            "nothing to learn from; give easier ones, or more tokens"
        )
    atomic_write(file, "".join(f"{json.dumps(row)}\n" for row in rows))
    return len(rows), count


def _make_row(task: Task, prompt: str, text: str) -> dict[str, object]:
    if task.writing.chat:
        roles = (("user", prompt), ("assistant", text))
        return {"messages": [{"role": role, "content": content} for role, content in roles]}
    return {"prompt": prompt, "completion": text}
