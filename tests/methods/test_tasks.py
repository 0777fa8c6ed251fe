"""Tasks: read with their settings, asked in batches, scored item by item, and gone on with after a kill."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest

import tiny
from chat_server import Scripted, say, served
from secateur.clients.chat import Server
from secateur.clients.completions import Completion, Local, Served
from secateur.errors import DataError, InputError, ServerError
from secateur.measure import generation, statistics
from secateur.methods import tasks
from secateur.subjects import open_subject


def read(path):
    (task,) = tasks.read_tasks(path)
    return task


class Told:
    """A completer that says what a table tells of the end of a prompt."""

    name, window = "told", 40

    def __init__(self, says, window=40):
        self.says, self.window, self.asked = says, window, []

    def count(self, prompt, how):
        return len(prompt.split())

    def stream(self, prompts, how, seed=0):
        self.asked.append((list(prompts), how, seed))
        yield {place: self.says(prompt) for place, prompt in enumerate(prompts)}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CAPITALS = [
    {"task": "capitals", "prompt": "Q: {question}\nA:", "tokens": 5, "stop": "\n", "role": "knowledge"},
    {"question": "Peru?", "answers": ["Lima"], "group": "south"},
    {"question": "Chile?", "answer": "Santiago", "group": "south"},
    {"question": "Japan?", "answers": ["Tokyo", "Edo"], "group": "east"},
]


def says(prompt):
    text = {"Peru?": " Lima, of course", "Chile?": " Lima", "Japan?": " EDO"}[prompt.splitlines()[-2].split()[-1]]
    return Completion(text, len(text.split()), "Japan" in prompt)


def test_items_are_asked_scored_and_told_by_group(tmp_path):
    task = read(write(tmp_path / "c.jsonl", *CAPITALS))
    assert (task.name, task.role, task.writing.most, task.writing.stop) == ("capitals", "knowledge", 5, "\n")
    told = Told(says)
    lines = tasks.run_task(task, told)
    assert told.asked[0][0][0] == "Q: Peru?\nA:"
    assert [line.score for line in lines] == [1.0, 0.0, 1.0]
    found = tasks.summarise(lines)
    assert found.score.value == pytest.approx(2 / 3)
    assert {name: one.value for name, one in found.groups.items()} == {"south": 0.5, "east": 1.0}
    assert (found.unfinished, found.unscored, found.correct.value, found.wrong.value) == (
        pytest.approx(2 / 3),
        0,
        2.0,
        1.0,
    )
    assert statistics.mcnemar([line.score for line in lines], [line.score for line in lines]) == 1.0


def test_groups_count_in_what_they_are_parts_of():
    groups = {"0": "science/physics", "1": "science/maths", "2": "arts", "3": ""}
    lines = [tasks.Line("t", item, 0, "", 1, True, "", float(item == "0"), group) for item, group in groups.items()]
    found = {name: figure.value for name, figure in tasks.summarise(lines).groups.items()}
    assert found == {"science": 0.5, "science/physics": 1.0, "science/maths": 0.0, "arts": 0.0}


def test_what_did_not_end_is_wrong_where_the_task_says_so(tmp_path):
    task = read(write(tmp_path / "c.jsonl", {**CAPITALS[0], "ends": True}, *CAPITALS[1:]))
    assert [line.score for line in tasks.run_task(task, Told(says))] == [0.0, 0.0, 1.0]


def test_a_killed_run_asks_for_what_is_left_and_passes_are_averaged(tmp_path):
    task, file = read(write(tmp_path / "c.jsonl", *CAPITALS)), tmp_path / "lines.jsonl"
    whole = tasks.run_task(task, Told(says), passes=2, seed=3)
    told = Told(says)
    tasks.run_task(task, told, file=file, passes=1, seed=3, chunk=2)
    assert [len(prompts) for prompts, _, _ in told.asked] == [2, 1]
    text = file.read_text()
    file.write_text(text[: text.rindex("{") + 9])  # a line was half written
    told, ticks = Told(says), []
    again = tasks.run_task(task, told, file=file, passes=2, seed=3, tick=ticks.append)
    assert again == whole
    assert [(len(prompts), seed) for prompts, _, seed in told.asked] == [(1, 3), (3, 4)]
    assert sum(ticks) == 6
    assert tasks.summarise(again).score.samples == 3, "items are the sample, not passes over them"


@pytest.mark.parametrize("scorer", ["alias", "judge"])
def test_a_server_that_goes_down_within_a_chunk_is_asked_only_for_what_is_missing(tmp_path, scorer):
    rows = [{"task": "t", "scorer": scorer}, *({"question": f"Say {at}", "answer": str(at)} for at in range(12))]
    task, file, asked = read(write(tmp_path / "t.jsonl", *rows)), tmp_path / "lines.jsonl", []

    def answer(body, headers, up):
        number = body["prompt"].split()[1]
        asked.append(int(number))
        if int(number) >= 7 and not up:
            return say({}, 503)
        return say({"choices": [{"text": number, "finish_reason": "stop"}]})

    def run(up):
        with served(partial(answer, up=up)) as url:
            completer = Served(Server(url, "small", retries=0), parallel=3)
            return tasks.run_task(task, completer, file=file, judge=lambda item, text: float(text in item.answers))

    with pytest.raises(ServerError, match="gave no answer"):
        run(up=False)
    asked.clear()
    lines = run(up=True)
    assert sorted(asked) == [7, 8, 9, 10, 11], "no answer that was given is asked for again"
    assert [(line.item, line.score) for line in lines] == [(str(at), 1.0) for at in range(12)]
    assert all(line.seconds > 0 for line in lines)
    assert {one.name for one in tmp_path.iterdir()} == {"t.jsonl", "lines.jsonl"}


def test_letters_that_look_like_ends_of_lines_are_read_again(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text('\ufeff{"question": "a\u2028b\x85c", "answer": "x"}\n', encoding="utf-8")
    (task,) = tasks.read_tasks(file)
    assert task.items[0].prompt.startswith("a\u2028b\x85c")
    said = Completion("x\u2028y\x85z \ud83d", 1, True)  # the last is half a letter
    first = tasks.run_task(task, Told(lambda prompt: said), file=tmp_path / "lines")
    assert tasks.run_task(task, Told(None), file=tmp_path / "lines") == first


def test_choices_are_listed_and_their_letter_is_right(tmp_path):
    rows = [{"question": "2 + 2?", "options": ["3", "4", "5"], "answer": "4"},
            {"question": "1 + 1?", "options": ["2", "3"], "answer": "A", "prompt": "{question}|{options}"}]  # fmt: skip
    task = read(write(tmp_path / "m.jsonl", *rows))
    assert task.scorer == "letter"
    assert task.items[0].prompt == "2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:"
    assert task.items[1].prompt == "1 + 1?|A. 2\nB. 3"
    assert [item.answers for item in task.items] == [("B",), ("A",)]
    assert task.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    lines = tasks.run_task(task, Told(lambda prompt: Completion(" (b)", 3, True)))
    assert [line.score for line in lines] == [1.0, 0.0]


def test_thoughts_and_boxes_are_read(tmp_path):
    settings = {"task": "sums", "scorer": "boxed", "ends": True}
    task = read(write(tmp_path / "b.jsonl", settings, {"question": "6 * 7", "answer": 42}))
    for text, score in ((r"<think>41? \boxed{41}</think> so \boxed{42}", 1.0), (r"\boxed{41}", 0.0), ("42", 1.0)):
        (line,) = tasks.run_task(task, Told(lambda prompt, text=text: Completion(text, 9, True)))
        assert line.score == score, text


def test_shots_go_where_there_is_no_room_and_a_long_item_is_refused(tmp_path):
    settings = {"task": "t", "shots": ["one " * 10, "two " * 10, "three " * 10], "tokens": 8, "prompt": "{question}"}
    task = read(write(tmp_path / "s.jsonl", settings, {"question": "x " * 5, "answer": "y"}))
    told = Told(lambda prompt: Completion("y", 1, True))
    tasks.run_task(task, told)
    assert told.asked[0][0][0].split()[0] == "two"
    with pytest.raises(DataError, match="item 0 of t takes 5 tokens, and 8 to answer: told reads 12"):
        tasks.run_task(task, Told(None, window=12))


def test_a_judge_rates_from_1_to_10_and_nonsense_is_no_score(tmp_path):
    task = read(write(tmp_path / "j.jsonl", {"task": "j", "scorer": "judge"}, {"question": "Sum {up}"},
                                 {"question": "Go", "answer": "gone"}))  # fmt: skip
    assert task.items[0].prompt.startswith("Sum {up}"), "braces of an item are its own"
    told = Told(lambda prompt: Completion(" fine {answer}", 2, True))
    model = Scripted("8", "lovely!")
    lines = tasks.run_task(task, told, judge=tasks.judge_by_model(model))
    assert [line.score for line in lines] == [0.8, None]
    assert "fine {answer}" in model.asked[0][0]
    found = tasks.summarise(lines)
    assert (found.score.value, found.score.samples, found.unscored) == (0.8, 1, 1)
    with pytest.raises(InputError, match="j is scored by a judge"):
        tasks.run_task(task, told)


def test_a_judge_that_breaks_down_loses_no_answer(tmp_path):
    rows = [{"task": "j", "scorer": "judge"}, *({"question": f"Say {one}"} for one in "abcd")]
    task, file = read(write(tmp_path / "j.jsonl", *rows)), tmp_path / "lines.jsonl"
    told, asked = Told(lambda prompt: Completion(prompt[-1], 2, True)), []

    def judge(item, answer):
        asked.append(item.id)
        if len(asked) == 2:
            raise ServerError("http://x gave no answer")
        return 0.5

    words = "the judge of j: http://x gave no answer; what was answered is kept"
    with pytest.raises(ServerError, match=words) as error:
        tasks.run_task(task, told, file=file, judge=judge)
    assert "\n" not in str(error.value)
    assert len(file.read_text().splitlines()) == 1
    lines = tasks.run_task(task, Told(None), file=file, judge=judge)
    assert asked == ["0", "1", "1", "2", "3"], "none is judged twice, and none written again"
    assert [(line.item, line.score) for line in lines] == [(str(at), 0.5) for at in range(4)]
    assert all(line.seconds > 0 for line in lines)
    assert {one.name for one in tmp_path.iterdir()} == {"j.jsonl", "lines.jsonl"}


def test_the_original_finds_its_own_words_likely(tmp_path):
    subject = open_subject(tiny.fluent("llama"), tokenizer=tiny.tokenizer())
    item = tasks.Item("0", tiny.chains(1)[0].rsplit(" ", 3)[0], ())
    own = Local(subject.model, subject.tokenizer).write([item.prompt], tasks.Writing(most=4))[0].text
    judge = tasks.judge_by_likelihood(subject)
    assert judge(item, own) > 2 * judge(item, " ".join(reversed(tiny.sentences(1)[0].split()[:4])))
    assert judge(item, "") == 0.0
    assert 0 < judge(item, own) <= 1
    assert not math.isnan(judge(item, own))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "x"}], "line 1: no answers"),
        ([{"question": "x", "answers": []}], "line 1: no answers"),
        ([{"question": "x", "answers": {"a": 1}}], "no answers"),
        ([{"answer": "x"}], r"asks for \{question\}, which the item does not have"),
        ([{"question": "x", "options": ["a", "A "], "answer": "a"}], "options that are not distinct"),
        ([{"question": "x", "options": ["a", "b"], "answer": "c"}], "0 of the options are right"),
        ([{"question": "x", "options": ["a"], "answer": "a"}], "1 options: give 2 to 10"),
        ([{"task": "t", "scorer": "bleu"}, {"question": "x", "answer": "y"}], "scorer='bleu': give one of alias"),
        ([{"task": "t", "tokens": 0}, {"question": "x", "answer": "y"}], "0 tokens to write"),
        ([{"task": "t", "tokens": "many"}, {"question": "x", "answer": "y"}], "settings of the task"),
        ([{"task": "t", "scorers": 1}, {"question": "x", "answer": "y"}], "'scorers' is none of"),
        ([{"task": "t", "scorer": "letter"}, {"question": "x", "answer": "y"}], "needs options"),
        ([{"question": "x", "options": ["a", "b"], "answer": "a"}, {"question": "x", "answer": "y"}], "others none"),
        ([{"task": "t", "scorer": "alias"}, {"question": "x", "options": ["a", "b"], "answer": "a"}], "reads words"),
        ([{"task": "t", "role": "fun"}, {"question": "x", "answer": "y"}], "role='fun'"),
        ([{"task": "t"}], "holds no item"),
        ([{"question": "x", "answer": "y", "id": "1"}, {"question": "x", "answer": "y", "id": 1}], "the same id"),
        ([["x"]], "line 1 is no object"),
    ],
)
def test_what_is_no_task_is_said_with_its_line(tmp_path, rows, words):
    with pytest.raises(DataError, match=words):
        tasks.read_tasks(write(tmp_path / "t.jsonl", *rows))


def test_one_file_asks_with_an_open_and_a_closed_book(tmp_path):
    settings = {"task": "facts", "prompt": "{text}\nQ: {question}\nA:", "closed": "Q: {question}\nA:", "scorer": "f1"}
    row = {"question": "Who?", "text": "It was Ada.", "answer": "Ada"}
    opened, closed = tasks.read_tasks(write(tmp_path / "f.jsonl", settings, row))
    assert (opened.name, closed.name) == ("facts, open book", "facts, closed book")
    assert opened.items[0].prompt == "It was Ada.\nQ: Who?\nA:"
    assert closed.items[0].prompt == "Q: Who?\nA:"
    assert opened.items[0].answers == closed.items[0].answers


def test_texts_to_sum_up_have_their_length_for_a_group(tmp_path):
    rows = [{"text": "word " * many, "question": "Sum up.", "answer": "words"} for many in (470, 471, 789, 790)]
    task = read(write(tmp_path / "s.jsonl", {"task": "s", "scorer": "rouge"}, *rows))
    assert [item.group for item in task.items] == ["small", "medium", "medium", "large"]


def test_exported_tasks_run_in_lm_eval(tmp_path):
    pytest.importorskip("lm_eval")
    model, words = tiny.fluent("llama"), tiny.tokenizer()
    prompts = [text.rsplit(" ", 2)[0] for text in tiny.chains(4)]
    said = [one.text.strip() or "x" for one in Local(model, words).write(prompts, tasks.Writing(most=1))]
    rows = [{"question": p, "answer": a, "prompt": "{question}"} for p, a in zip(prompts, said, strict=True)]
    free = read(write(tmp_path / "free.jsonl", {"task": "free form", "tokens": 1}, *rows))
    choice = read(write(tmp_path / "pick.jsonl", *({**one, "options": [one["answer"], "y", "z"]} for one in rows)))
    files = [tasks.export_task(one, tmp_path / "out") for one in (free, choice)]
    found = generation.evaluate(model, words, [file.stem for file in files], include_path=tmp_path / "out")
    assert found["free_form/exact_match"].value > 0.5, "most of the model's own words"
    assert 0 <= found["pick/acc"].value <= 1
    judged = read(write(tmp_path / "j.jsonl", {"task": "j", "scorer": "judge"}, {"question": "x"}))
    with pytest.raises(InputError, match="scored by a judge"):
        tasks.export_task(judged, tmp_path)


def test_files_that_are_none_are_said(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{oh\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, words in (("bad", "line 1 is no JSON"), ("bytes", "can't be read"), ("none", "can't be read")):
        with pytest.raises(DataError, match=words):
            tasks.read_tasks(tmp_path / f"{name}.jsonl")
