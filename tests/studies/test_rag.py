"""Pipelines side by side: what they keep of answers at equal limits, and what is refused."""

from __future__ import annotations

import json
import re

import pytest

from chat_server import say, served
from secateur.errors import InputError, ServerError
from secateur.runs.questions import read
from secateur.studies import executor, rag

TREES = (
    "<h1>Trees</h1><p>" + "Much is said of gardens and their owners. " * 12 + "</p>"
    "<h2>Cherry</h2><p>Cherry trees are pruned in summer.</p><h2>Apple</h2><p>Apple trees are pruned in winter.</p>"
)
ROWS = [
    {"question": "When are cherry trees pruned?", "answers": ["pruned in summer"], "html": TREES},
    {"question": "When are apple trees pruned?", "answers": ["in spring", "in winter"], "html": TREES},
    {"question": "Who owns the moon?", "answer": "Nobody", "passages": ["A.", "Nobody owns the moon."],
     "titles": ["Letters", None]},
]  # fmt: skip
QUICK = {"budgets": ("words=20", "words=60"), "words": (10,)}


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_pipelines_are_judged_at_equal_limits_and_nothing_is_cut_twice(questions, tmp_path, monkeypatch):
    found = executor.study("rag", None, questions, tmp_path / "out", **QUICK, letters=80)
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert len(items) == 3 + 3 * 2 * 5, "nothing cut, and five pipelines under two budgets"
    for item in items:
        assert not item["budget"] or item["cost"] <= float(item["budget"].removeprefix("words="))
    kept = {(i["pipeline"], i["budget"], i["question"]): i["kept"] for i in items}
    assert all(kept[rag.WHOLE, "", row["question"]] for row in ROWS)
    assert all(kept["htmlrag", "words=20", row["question"]] for row in ROWS)
    assert not kept[rag.FIRST, "words=60", ROWS[0]["question"]], "the garden's owners come first"
    header, whole, first = found.tables[0].rows[:3]
    assert header == ["Pipeline", "words=20", "words=60"]
    assert whole[1].startswith("100.0 [")
    assert first[0] == rag.FIRST
    assert "htmlrag keeps the answers of 100 % of the questions" in found.headline
    assert "htmlrag" in (tmp_path / "out" / "study.html").read_text()
    monkeypatch.setattr(rag, "_answer", lambda *_: pytest.fail("cut again"))
    assert executor.study("rag", None, questions, tmp_path / "out", **QUICK, letters=80).headline == found.headline


def test_a_reader_answers_by_what_is_left(questions, tmp_path):
    def answer(body, headers):
        text = body["messages"][0]["content"]
        said = "In summer, perhaps.\nOr not." if "summer" in text else "I can't say"
        return say({"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": {}})

    data = read(questions)
    with served(answer) as url:
        found = rag.rag(None, data, tmp_path / "run", **QUICK, reader=url, reader_name="small")
    item = found.items["htmlrag"]["words=20"][0]
    assert item["answer"] == "In summer, perhaps."
    assert item["f1"] == pytest.approx(2 * 2 / 6)
    assert any(table.title.startswith("What a reader answers") for table in found.sheet().tables)


def test_a_text_that_the_reader_refuses_is_told_and_a_reader_that_refuses_all_is_an_error(questions, tmp_path):
    """A server with a small context refused "nothing cut", and the study ended there, each time."""

    def answer(body, headers):
        if len(body["messages"][0]["content"]) > most:
            return say({"error": {"message": "maximum context length"}}, status=400)
        return say({"choices": [{"message": {"content": "in summer"}, "finish_reason": "stop"}], "usage": {}})

    data, most = read(questions), 500
    with served(answer) as url:
        asked = {**QUICK, "reader": url, "reader_name": "small"}
        found = rag.rag(None, data, tmp_path / "run", **asked)
        most = 0
        with pytest.raises(ServerError, match="400"):
            rag.rag(None, data, tmp_path / "other", **asked)
    whole = found.items[rag.WHOLE][""]
    assert [("maximum context" in item.get("refused", ""), item["kept"]) for item in whole] == [
        (True, True), (True, True), (False, True),
    ]  # fmt: skip
    assert found.items["htmlrag"]["words=20"][0]["f1"] > whole[0]["f1"] == 0
    told = " ".join(" ".join(row) for table in found.sheet().tables for row in table.rows)
    ends = [float(end) for pair in re.findall(r"\[(\S+) to (\S+)\]", told.replace("−", "-")) for end in pair]
    assert len(ends) > 20, "intervals"
    assert -100 <= min(ends) < max(ends) <= 100, "of few questions Student's went beyond what a share can be"
    assert found.sheet().notes == [
        f"The reader refused 2 of 3 texts of {rag.WHOLE}: they count as not answered (items.jsonl)"
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budgets": ("words=20%",)}, "give equal limits"),
        ({"budgets": ("words=20", "tokens=20")}, "give equal limits"),
        ({"budgets": ()}, "give equal limits"),
        ({"budgets": ("30",)}, "say tokens=30, words=400 or a share of all"),
        ({"budgets": ("tokens=20",)}, "tokens are counted by a tokenizer"),
        ({"recipes": ("ziplm",)}, "ziplm does not prune what a model reads"),
        ({"settings": ("htmlrag.wide",)}, "was not understood: give RECIPE.OPTION=VALUE"),
        ({"settings": ("htmlrag.wide=0.5",)}, "wide"),
        ({"settings": ("htmlrga.wide=3",)}, "'htmlrga.wide=3' is of no recipe that is run here: of htmlrag"),
        ({"words": (0,)}, "sizes of chunks"),
    ],
)
def test_what_can_not_be_compared_is_refused_before_any_work(questions, tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        executor.study("rag", None, questions, tmp_path / "out", **{**QUICK, **given})
    assert not (tmp_path / "out" / "study.json").exists()


def test_a_study_of_questions_takes_no_network_and_wants_its_questions(questions):
    with pytest.raises(InputError, match="takes no MODEL and reads questions with answers"):
        executor.study("rag", "net.py:build", questions, "out")
    with pytest.raises(InputError, match="give it as --data"):
        executor.study("rag", None, None, "out")
    found = executor.study("rag", None, questions, "out", dry_run=True, **QUICK)
    assert found.headline == "dry run: 3 questions, 24 cuts"
