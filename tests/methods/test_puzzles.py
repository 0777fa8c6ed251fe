"""Made tasks: worked thoughts lead to the answer, seeds repeat, what is asked is not learned."""

from __future__ import annotations

import json
import re

import pytest

from secateur.clients.completions import Completion
from secateur.errors import InputError
from secateur.methods import tasks as asking
from secateur.methods.puzzles import Asking, make_facts, make_puzzles, write_puzzles


def test_chains_lead_where_their_links_do_and_are_longer_by_level():
    for puzzle in make_puzzles("chains", 5):
        links = dict(re.findall(r"(\w+) leads to (\w+)", puzzle.question))
        at, steps = re.search(r"Start at (\w+)", puzzle.question)[1], int(puzzle.group.split()[0])
        for _ in range(steps):
            at = links[at]
        assert at == puzzle.answer
        assert len(puzzle.thoughts.splitlines()) == steps
    assert make_puzzles("chains", 5) == make_puzzles("chains", 5)
    assert make_puzzles("chains", 5) != make_puzzles("chains", 5, seed=1)


def test_sums_and_schedules_are_right():
    for puzzle in make_puzzles("sums", 5):
        digits = map(int, re.findall(r"\d+", puzzle.question.partition(" modulo")[0]))
        assert sum(digits) % 10 == int(puzzle.answer)
    for puzzle in make_puzzles("schedules", 5):
        assert puzzle.answer in puzzle.options
        assert f"from {puzzle.answer} " not in puzzle.question, "the free hour is not told"
        assert f"check {puzzle.answer.replace(' to ', ' to ')} : free" in puzzle.thoughts
    with pytest.raises(InputError, match="'riddles' is none of chains"):
        make_puzzles("riddles", 1)


def test_facts_are_told_again_and_again_and_pairs_of_them_are_held_out():
    facts = make_facts(20)
    assert len(facts.held) == len(facts.learned) == 10
    assert all(facts.texts.count(text) == 20 for text in set(facts.texts))
    for puzzle in (*facts.held, *facts.learned):
        first, second = (line.removeprefix("recall : ") for line in puzzle.thoughts.splitlines())
        assert {first, second} <= set(facts.texts)
        assert second.split()[-2] == puzzle.answer
        assert puzzle.answer not in puzzle.question
    assert not {one.question for one in facts.held} & {one.question for one in facts.learned}


def test_files_are_tasks_whose_own_texts_are_right_answers(tmp_path):
    kinds = ["chains", "sums", "schedules", "facts"]
    files = write_puzzles(tmp_path, kinds, 2, how=Asking(64))
    tasks = {task.name: task for file in files for task in asking.read_tasks(file)}
    assert [tasks[one].role for one in kinds] == ["reasoning"] * 3 + ["knowledge"]
    assert all(task.ends for task in tasks.values())
    for kind in kinds:
        puzzles = make_facts(4).held if kind == "facts" else make_puzzles(kind, 2)
        for item, puzzle in zip(tasks[kind].items, puzzles, strict=True):
            text = puzzle.text.removeprefix(item.prompt)
            assert text != puzzle.text, "the prompt is how the text begins"
            line = asking.score(tasks[kind], item, Completion(text, 9, True))
            assert line.score == 1.0, (kind, text, line)
            assert asking.score(tasks[kind], item, Completion(text, 9, False)).score == 0.0, "unfinished is wrong"
            assert asking.score(tasks[kind], item, Completion(puzzle.thoughts, 9, True)).score == 0.0, "still thinking"
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    asked = {item.prompt for task in tasks.values() for item in task.items}
    assert not any(row["text"].startswith(prompt) for row in rows for prompt in asked)
    (chat,) = asking.read_tasks(
        write_puzzles(tmp_path / "chat", ["sums"], 1, how=Asking(chat=True, temperature=0.6))[0]
    )
    assert chat.writing.chat
    assert chat.items[0].prompt.endswith(r"\boxed{}.")
    assert (
        asking.score(
            chat, chat.items[0], Completion(rf"<think>x</think>It is \boxed{{{chat.items[0].answers[0]}}}", 3, True)
        ).score
        == 1.0
    )
