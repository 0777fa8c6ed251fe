"""Traces: what a model answers to prompts, as texts; what a teacher answers right, as prompts and completions."""

from __future__ import annotations

import json

import pytest

import tiny
from recipes.sparse.oneshot import run, taught
from secateur.clients.completions import Completion
from secateur.errors import UnsupportedError
from secateur.methods import traces
from secateur.methods.tasks import Line, read_tasks
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def task(tmp_path):
    rows = [{"question": text.rsplit(" ", 3)[0], "answer": "-"} for text in tiny.chains(40, seed=7)]
    write(tmp_path / "task.jsonl", {"task": "own", "prompt": "{question}", "tokens": 9, "stop": " "}, *rows)
    return tmp_path / "task.jsonl"


def test_answers_are_kept_once_and_only_whole_right_ones():
    lines = [
        Line("t", "0", turn, text, 2, finished, text, score)
        for turn, (text, finished, score) in enumerate(
            [
                ("a", True, 1.0),
                ("a", True, 1.0),
                ("b", True, 1.0),
                ("c", False, 1.0),
                ("d", True, 0.0),
                ("e", True, None),
            ]
        )
    ]
    assert [line.text for line in traces.keep_right(lines)] == ["a", "b"]


def test_traces_of_a_model_are_its_prompts_and_answers_up_to_enough_tokens(task, tmp_path):
    few = traces.answer_prompts(taught(), task, tmp_path, 1)
    items = read_tasks(task)[0].items
    assert len(few.texts) == 32, "no more are asked than needed"
    assert all(text.startswith(item.prompt) for text, item in zip(few.texts, items, strict=False))
    assert {word for text in few.texts for word in text.split()} <= set(tiny.WORDS), "words stay apart"
    assert few.digest == traces.answer_prompts(taught(), task, tmp_path, 1).digest
    with pytest.raises(UnsupportedError, match="traces are of language models"):
        traces.answer_prompts(open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer()), "x", tmp_path, 1)


def test_chats_are_kept_with_their_roles(tmp_path):
    write(tmp_path / "chat.jsonl", {"task": "c", "chat": True, "tokens": 3}, {"question": "who ?", "answer": "he"})

    class Teacher:
        name, window = "it", 100.0

        def count(self, prompt, how):
            return 1

        def stream(self, prompts, how, seed=0):
            yield {place: Completion("<think>he cuts</think> he", 3, True) for place in range(len(prompts))}

    assert traces.write_right_answers(Teacher(), tmp_path / "chat.jsonl", tmp_path / "r.jsonl", times=1) == (1, 1)
    (row,) = (json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][1]["content"] == "<think>he cuts</think> he"


def test_drawn_answers_go_on_after_a_kill_to_the_same_texts(tmp_path):
    """What is drawn depends on the rows beside it, as of a model that draws a batch under one seed."""

    class Teacher:
        name, window, batch = "it", 100.0, 4

        def __init__(self, batches):
            self.left = batches

        def count(self, prompt, how):
            return 1

        def stream(self, prompts, how, seed=0):
            order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
            for begin in range(0, len(order), self.batch):
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
                some = order[begin : begin + self.batch]
                beside = " ".join(prompts[at] for at in some)
                yield {at: Completion(f"<think>{seed} {beside}</think> he", 3, True) for at in some}

    rows = [{"question": f"{at} {'who ' * (at % 7)}?", "answer": "he"} for at in range(80)]
    write(tmp_path / "drawn.jsonl", {"task": "c", "tokens": 3, "temperature": 1.0}, *rows)

    def ask(name, batches):
        file = tmp_path / name / "right.jsonl"
        traces.write_right_answers(Teacher(batches), tmp_path / "drawn.jsonl", file, times=2)
        return file.read_text()

    for batches in (1, 22):
        with pytest.raises(KeyboardInterrupt):
            ask("killed", batches)
    assert ask("killed", 99) == ask("whole", 99)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_pruners_calibrate_on_what_the_model_answers_itself(task, tmp_path, name):
    own, general = (
        {key: one.weight for key, one in matrices(result.subject.model, result.subject.layers()).items()}
        for result in (
            run(name, tmp_path / at, samples=8, **how) for at, how in (("a", {"traces": str(task)}), ("b", {}))
        )
    )
    assert any(not (own[key] == general[key]).all() for key in own)
    assert all((own[key] == 0).float().mean() >= 0.49 for key in own)
