"""Questions with texts that say otherwise: answers without heads, instructed, by contrast, and without the texts."""

from __future__ import annotations

import copy
import functools
import hashlib
import json

import pytest

import tiny
from assets import facts
from secateur import cli
from secateur.clients.completions import Completion, Local
from secateur.data import conflicts as reading
from secateur.errors import InputError
from secateur.methods import conflicts
from secateur.runs.questions import read
from secateur.studies import executor, grounding
from secateur.subjects import open_subject
from secateur.subjects.transformer import heads

WORLD = facts.World()
ASK = {"prompt": "{text} {question}", "closed": "{question}", "tokens": 1}


@functools.cache
def subject():
    return open_subject(tiny.knowing(WORLD))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """heads.json of both lists by path patching, and questions on facts that the model knows, in texts that lie."""
    folder = tmp_path_factory.mktemp("grounding")
    known = conflicts.keep_known(
        subject(), conflicts.build(reading.read(facts.rows(WORLD)), subject().tokenizer, relation="capital")
    )
    scored, asked = known.split(0.3, seed=0)
    table = conflicts.score(subject(), conflicts.encode(scored, subject().tokenizer))
    worth = {(layer, head): table[f"layers.{layer}.heads"][head] for layer in range(3) for head in range(4)}
    order = sorted(worth, key=worth.get, reverse=True)
    heads.write_lists(
        folder / "heads.json", subject(), {"trust-context": order[:3], "trust-memory": order[:-4:-1], "none": []}
    )
    heads.write_lists(folder / "far.json", subject(), {"trust-context": [(9, 0)]})
    rows = [
        {"question": one.plain, "answers": [one.context.strip()], "passages": [one.prompt[: -len(one.plain)].strip()]}
        for one in asked.items
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def agreement(place, silent):
    """The share of answers that are as without the text, of a model whose weights behind these heads are zero.

    Which way heads of the context move it hangs on the last digits of a training, so that it is counted, not guessed.
    """
    model, words = copy.deepcopy(subject().model), subject().tokenizer
    wide = model.config.n_embd // model.config.n_head
    for layer, head in silent:
        model.transformer.h[layer].attn.c_proj.weight.data[head * wide : (head + 1) * wide] = 0

    def answer(model, prompt):
        return model(**words(prompt, return_tensors="pt")).logits[0, -1].argmax().item()

    rows = [json.loads(line) for line in (place / "questions.jsonl").read_text().splitlines()]
    same = [
        answer(model, f"{row['passages'][0]} {row['question']}") == answer(subject().model, row["question"])
        for row in rows
    ]
    return sum(same) / len(same)


@pytest.mark.wide
def test_without_heads_of_the_memory_more_is_answered_from_the_text(place, tmp_path, capsys):
    line = ["study", "grounding", str(tiny.knowing(WORLD)), "--data", str(place / "questions.jsonl"), "--lists",
            str(place), "--out", str(tmp_path / "out"), "--prompt", ASK["prompt"], "--closed", ASK["closed"],
            "--tokens", "1"]  # fmt: skip
    count = len(read(place / "questions.jsonl").rows)
    assert cli.main([*line, "--dry-run"]) == 0
    assert f"{count} questions, {7 * count} answers" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.main(line) == 0
    assert "without 3 heads, instructed" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "study.json").read_text())
    right = {arm: figures["exact_match"]["value"] for arm, figures in record["figures"].items()}
    assert right[grounding.AS_IS] < right["without 3 heads"]
    assert right["without 3 random heads"] < right["without 3 heads"]
    assert right[grounding.AS_IS] < right[grounding.CONTRAST]
    page = (tmp_path / "out" / "study.html").read_text()
    assert "Ahead of as many random heads" in page
    assert "random heads that were off: (" in page
    assert right[grounding.BARE] == 0, "it remembers what is true"
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 7 * count
    for item in items:
        assert item["exact_match"] == item["f1"] == item["recall"] == float(item["answer"] in item["answers"])
    memory = grounding.grounding(
        subject(), read(place / "questions.jsonl"), tmp_path / "memory", lists=str(place), trust="memory", **ASK
    )
    same = {arm: memory.figure(arm, "as_without").value for arm in memory.items}
    assert same[grounding.AS_IS] == agreement(place, ())
    assert same["without 3 heads"] == agreement(place, heads.find_list(subject(), "trust-memory", place))
    assert grounding.CONTRAST not in same
    assert same[grounding.BARE] == 1


def test_what_was_answered_is_not_asked_again_and_heads_are_on_again(place, tmp_path, monkeypatch):
    def ask(**more):
        return executor.study(
            "grounding", subject(), place / "questions.jsonl", tmp_path / "out", lists=str(place), **{**ASK, **more}
        )

    found = ask(heads=(2,), weight=0.0)
    # Files are named as before ways had another beside them: folders of that time go on.
    arms = grounding._plan_arms(subject(), str(place), "context", (2,), 0.0, 0)
    words = (grounding.INSTRUCTIONS["context"], ASK["prompt"], ASK["closed"], 1, True)
    tasks = grounding._make_tasks(subject(), read(place / "questions.jsonl"), arms, *words)
    told = [
        [tasks[arm].digest, {key: getattr(arm, key) for key in ("name", "silent", "instructed", "weight", "open")}]
        for arm in arms
    ]
    digests = {hashlib.sha256(json.dumps(one).encode()).hexdigest()[:12] for one in told}
    assert {file.stem for file in (tmp_path / "out").rglob("answers/*.jsonl")} == digests
    written = []
    stream = Local.stream
    monkeypatch.setattr(
        Local, "stream", lambda self, prompts, *rest: written.append(prompts) or stream(self, prompts, *rest)
    )
    assert ask(heads=(2,), weight=0.0).figures == found.figures
    assert written == []
    more = ask(heads=(1, 2), weight=0.0)
    assert len(written) == 3, "without one head, and instructed, and without a random one"
    assert {name: more.figures[name] for name in found.figures} == found.figures
    again = ask(heads=(2,), weight=0.0, seed=1)
    assert len(written) == 4, "without two others"
    other = {name for name in found.figures if "random" not in name}
    assert {name: again.figures[name] for name in other} == {name: found.figures[name] for name in other}


def test_as_many_random_heads_are_off_that_the_list_does_not_hold():
    def off(chosen, heads, seed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grounding, "find_list", lambda *_: chosen)
            return {arm.name: arm for arm in grounding._plan_arms(subject(), "", "context", heads, 1.0, seed)}

    chosen = [(0, 1), (2, 3), (1, 0)]
    arms = off(chosen, (1, 3), 0)
    three = arms["without 3 random heads"].silent
    assert arms["without 1 random head"].silent == three[:1]
    assert len(set(three)) == 3
    assert not set(three) & set(chosen)
    assert arms["without 3 heads"].beside == "without 3 random heads"
    assert off(chosen, (1, 3), 0) == arms
    assert off(chosen, (3,), 1)["without 3 random heads"].silent != three
    most = [(layer, head) for layer in range(3) for head in range(4)][:7]
    arms = off(most, (), 0)
    assert "without 7 random heads" not in arms
    notes = grounding._remark(list(arms.values()), {}, 4)
    assert notes[1] == "the list leaves fewer than 7 other heads: as many random ones were not tried"


def test_a_chat_template_is_used_where_there_is_one_and_may_be_left_out(place):
    def asked(template, **how):
        start = copy.copy(subject())
        start.tokenizer = copy.deepcopy(start.tokenizer)
        start.tokenizer.chat_template = template
        arms = grounding._plan_arms(start, str(place), "context", (), 0.0, 0)
        tasks = grounding._make_tasks(start, read(place / "questions.jsonl"), arms, "", "", "{question}", 1, **how)
        return {task.writing.chat for task in tasks.values()}

    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert asked(None, chat=True) == {False}
    assert asked(template, chat=True) == {True}
    assert asked(template, chat=False) == {False}


def test_answers_that_are_cut_off_are_told_and_agree_with_nothing(place, tmp_path, monkeypatch):
    """As of a model that thinks before it answers, and has too few tokens for both."""
    lost = Completion("<think> it may be", 1, False)
    monkeypatch.setattr(Local, "stream", lambda self, prompts, *rest: [dict.fromkeys(range(len(prompts)), lost)])
    data = read(place / "questions.jsonl")
    found = grounding.grounding(subject(), data, tmp_path / "out", lists=str(place), weight=0.0, **ASK)
    count = len(data.rows)
    assert f"as it is: {count} of {count} answers are empty, {count} of these cut off at 1 tokens" in found.notes[2]
    assert found.figure(grounding.AS_IS, "as_without").value == 0


def test_fewer_questions_at_once_go_on_in_the_same_folder(place, tmp_path):
    def ask(batch):
        return executor.study(
            "grounding", subject(), place / "questions.jsonl", tmp_path / "out", lists=str(place), batch=batch, **ASK
        )

    assert ask(8).figures == ask(3).figures


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lists": "nowhere"}, "is not there: give lists, the heads.json"),
        ({"lists": "{place}/far.json"}, "layer 9 has 0 heads, and no head 0"),
        ({"heads": (4,)}, "heads=4: the list trust-context holds 3"),
        ({"prompt": "{question}"}, "prompt='{question}' has no {text}"),
        ({"closed": "who?"}, "closed='who\\?' has no {question}"),
        ({"tokens": 60}, r"question 1 of questions.jsonl takes \d+ tokens with its text, and 60 to answer: the model"),
    ],
)
def test_what_can_not_be_asked_is_refused_and_nothing_is_written(place, tmp_path, given, said):
    given = {name: one.format(place=place) if name == "lists" else one for name, one in given.items()}
    with pytest.raises(InputError, match=said):
        executor.study(
            "grounding", subject(), place / "questions.jsonl", tmp_path / "out", **{"lists": str(place), **ASK, **given}
        )
    assert not (tmp_path / "out").exists()


def test_a_list_of_another_model_is_refused(place, tmp_path):
    other = open_subject(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    with pytest.raises(InputError, match="use the model that was scored"):
        executor.study("grounding", other, place / "questions.jsonl", tmp_path / "out", lists=str(place))
    encoder = open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    with pytest.raises(InputError, match="needs a causal language model"):
        executor.study("grounding", encoder, place / "questions.jsonl", tmp_path / "out", lists=str(place))
