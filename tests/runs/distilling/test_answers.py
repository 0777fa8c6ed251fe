"""Sequence-level distillation: only what a teacher answers right is learned, and it is asked once."""

from __future__ import annotations

import json

import pytest
import yaml

import secateur
import tiny
from recipes.sparse.oneshot import taught
from secateur.clients.completions import Local, Writing
from secateur.errors import DataError, InputError
from secateur.methods import traces
from secateur.runs import splits
from secateur.runs.backends import language
from secateur.subjects import open_subject

QUICK = {"steps": 3, "batch": 2, "length": 8, "task": 1.0, "direction": "none", "answers": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, a student, and a task of which the teacher answers half right."""
    folder = tmp_path_factory.mktemp("answers")
    taught().save(folder / "teacher")
    open_subject(tiny.model("llama", 1), tokenizer=tiny.tokenizer()).save(folder / "student")
    prompts = [text.rsplit(" ", 3)[0] for text in tiny.chains(60, seed=7)]
    said = Local(taught().model, taught().tokenizer).write(prompts, Writing(most=9, stop=" "))
    rows = [
        {"question": prompt, "answer": one.text.strip() if at % 2 else "never so"}
        for at, (prompt, one) in enumerate(zip(prompts, said, strict=True))
    ]
    write(folder / "task.jsonl", {"task": "own", "prompt": "{question}", "tokens": 9, "stop": " "}, *rows)
    write(folder / "wrong.jsonl", {"task": "own", "prompt": "{question}", "tokens": 3}, *rows[::2])
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def distil(place, out, data="task.jsonl", **how):
    return secateur.distill(place / "student", place / "teacher", place / data, out, **{**QUICK, **how})


def test_right_answers_are_learned_by_their_tokens_alone_and_the_teacher_is_asked_once(place, tmp_path, monkeypatch):
    row = distil(place, tmp_path / "out")
    assert any("answers of teacher are right, and are learned" in note for note in row.settings["notes"])
    (kept,) = (tmp_path / "out-answers").glob("*/right.jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert 15 <= len(rows) <= 30
    assert all(row["prompt"] and row["completion"].startswith(" ") for row in rows), "words stay apart"
    assert row.recovery.losses[-1][1] < 20
    again = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert (again["data"], again["answers"]) == (str(place / "task.jsonl"), 1)

    def refuse(*given, **how):
        raise AssertionError("asked again")

    monkeypatch.setattr(Local, "stream", refuse)
    assert distil(place, tmp_path / "out").recovery == row.recovery
    distil(place, tmp_path / "other", cache_at=tmp_path / "out-answers", direction="forward")


def test_a_teacher_that_is_split_answers_where_it_lies(place, tmp_path, monkeypatch):
    """It was read whole into the memory of the host, and wrote there, beside idle GPUs."""
    seen, real = [], language.open_subject
    monkeypatch.setattr(language, "open_subject", lambda source, **how: seen.append(how) or real(source, **how))
    distil(place, tmp_path / "out", teacher_device="auto")
    assert seen[0] == {"device_map": "auto"}


def test_a_dry_run_asks_nobody_and_writes_nothing(place, tmp_path):
    row = distil(place, tmp_path / "dry", dry_run=True)
    assert any("asks no teacher" in note for note in row.settings["notes"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ({"data": "wrong.jsonl"}, DataError, "answers none of 30 prompts of wrong.jsonl right"),
        ({"answers": 2}, InputError, "answered 2 times the same way"),
        ({"task": 0.0}, InputError, "direction=none learns by task alone"),
        ({"on_policy": 0.5, "direction": "forward", "task": 0.0}, InputError, "answers are what the teacher writes"),
        ({"data": "teacher"}, DataError, "can't be read as a task"),
        ({"answers": -1}, InputError, "answers=-1"),
    ],
)
def test_what_gives_no_answers_is_said(place, tmp_path, how, kind, words):
    with pytest.raises(kind, match=words):
        distil(place, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="answers are of one teacher"):
        secateur.distill(
            place / "student", [place / "teacher", place / "student"], place / "task.jsonl", tmp_path / "out", **QUICK
        )


def test_answers_to_one_prompt_are_learned_or_held_out_together(place, tmp_path, monkeypatch):
    """Of several answers to a prompt some were learned, and others measured the student on what it had been told."""
    prompts, ends = [f"the {word}" for word in tiny.WORDS[6:18]], (" cuts", " grows", " waters", " keeps")

    def write_all(completer, source, file, **how):
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, *({"prompt": prompt, "completion": end} for prompt in prompts for end in ends))
        return 48, 48

    seen, real = [], splits.split
    monkeypatch.setattr(traces, "write_right_answers", write_all)
    monkeypatch.setattr(splits, "split", lambda *given, **how: seen.append(real(*given, **how)) or seen[-1])
    row = distil(place, tmp_path / "out", answers=4)
    train, held = ({" ".join(text.split()[:2]) for text in part.texts} for part in (seen[0].train, seen[0].held))
    assert held
    assert train | held == set(prompts)
    assert not train & held
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["split"] == "by prompt"
    assert distil(place, tmp_path / "out", answers=4).recovery == row.recovery
