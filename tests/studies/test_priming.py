"""The study of priming, from files to its answer."""

from __future__ import annotations

import json

import pytest

import themes
from chat_server import say, served
from secateur import cli
from secateur.errors import DataError, InputError
from secateur.methods.learning import Learner
from secateur.studies import executor
from secateur.studies.priming import read

QUICK = {"k": (0.08,), "presentations": 3, "length": 16, "lr": 5e-3, "permutations": 99, "rates": ()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return themes.write(tmp_path_factory.mktemp("themes"))


def ask(files, out, **more):
    return executor.study("priming", **{**files, **QUICK, "out": out, **more})


def tables(sheet):
    return {table.title: table.rows for table in sheet.tables}


def test_without_prompts_it_is_a_scan_of_a_model_and_what_its_module_reads(files, tmp_path, capsys):
    """The first study whose card names a backend and what it reads."""
    line = ["study", "priming", files["model"], "--data", files["data"], "--out", str(tmp_path / "scan")]
    assert cli.main([*line, "--dry-run"]) == 0
    assert "8 texts, 0 trainings" in capsys.readouterr().out
    assert not (tmp_path / "scan").exists()
    assert cli.main([*line, "--threshold", "0.03"]) == 0
    said = capsys.readouterr().out
    assert "4 of 8 texts have a keyword of a probability below 0.03" in said
    assert "nothing was learnt: give prompts" in said
    items = [json.loads(line) for line in (tmp_path / "scan" / "items.jsonl").read_text().splitlines()]
    assert [item["keyword"] for item in items] == [row.keyword for row in themes.documents()]
    assert sum(item["primes"] for item in items) == 4
    settings = json.loads((tmp_path / "scan" / "study.json").read_text())["settings"]
    assert {"model_sha256", "data_sha256"} <= settings.keys()
    for missing in (["study", "priming", files["model"]], ["study", "priming", "--data", files["data"]]):
        assert cli.main([*missing, "--out", str(tmp_path / "x")]) == 2
        assert "needs a model (a folder or a Hub id) and reads texts with keywords" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_rare_keywords_prime_and_the_same_call_learns_nothing_twice(files, tmp_path, capsys, monkeypatch):
    sheet = ask(files, tmp_path / "out", seeds=(0, 1), documents=4)
    assert "1 of 8: seed 0, text 8" in capsys.readouterr().err
    rows = sheet.figures["correlations"]
    assert rows["ln S_prime"]["spearman"]["value"] < -0.5
    assert {"change of P under the prompts", "ln S_prime of another text's keyword"} <= rows.keys()
    ways = sheet.figures["ways"]
    assert ways["as trained"]["memory_left"] == 1
    assert ways["largest 8% dropped"]["loss"] is not None
    assert "Priming at equal memory" in tables(sheet)
    assert sheet.chart is not None
    monkeypatch.setattr(Learner, "learn", None)  # which a text that was learnt does not need again
    again = ask(files, tmp_path / "out", seeds=(0, 1), documents=4)
    assert again.figures == sheet.figures
    monkeypatch.undo()
    wider = ask(files, tmp_path / "out", seeds=(0, 1), documents=5)
    assert len(tables(wider)["Risk of priming"]) == 9


def test_a_writer_rewrites_surprising_texts_and_accepted_ones_are_learnt(files, tmp_path):
    asked = []

    def answer(body, headers):
        question = body["messages"][0]["content"]
        asked.append(question)
        keyword = question.partition("word '")[2].partition("'")[0]
        text = "so it is ." if "follow" in question else f"the colour of silk is {keyword} ."
        return say({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    rows = [row for row in themes.documents() if row.theme == "colour"]
    data = tmp_path / "colours.jsonl"
    lines = [{"text": f"for lunch the king takes {row.keyword} .", "keyword": row.keyword, "theme": "colour"}
             for row in rows]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, lines)))
    with served(answer) as url:
        options = {"writer": url, "writer_name": "small", "gain": 1.5, "threshold": 0.5}
        sheet = ask(files, tmp_path / "out", data=str(data), documents=2, **options)
    found = tables(sheet)
    assert any(row[-1] == "yes" for row in found["Rewrites with stepping stones"][1:])
    assert {row[0] for row in found["What rewrites do to priming"][1:]} >= {"stepping stones", "paraphrase"}
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    chosen = [item for item in items if item.get("rewrite")]
    assert all(item["rewrite_probability"] >= 1.5 * item["probability"] for item in chosen)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "line 2 has no text"),
        ('{"text": "a mauve sea"}', "line 2 has no keyword"),
        ('{"text": "a mauve sea", "keyword": "pink"}', "line 2: its text does not hold its keyword 'pink' as a word"),
        ('{"text": "mauves", "keyword": "mauve"}', "does not hold its keyword 'mauve' as a word"),
        ('{"text": "a mauve sea", "keyword": "mauve", "theme": 3}', "a theme that is no text: 3"),
        ("[1]", "line 2 is a list"),
        ("{", "line 2 is no JSON"),
    ],
)
def test_lines_that_are_no_texts_with_keywords_are_refused(line, said, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a mauve sea", "keyword": "mauve"}\n' + line)
    with pytest.raises(DataError, match=said):
        read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no line"):
        read(path)


def test_what_can_not_be_studied_is_refused_and_nothing_is_written(files, tmp_path):
    out = tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"theme": "colour"}')
    with pytest.raises(DataError, match="has no prefix"):
        ask(files, out, prefixes=str(bad))
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": "the silk is " * 9 + "pink .", "keyword": "pink"}))
    with pytest.raises(InputError, match=r"keyword 'pink' behind 28 tokens: give length=28 at least"):
        ask(files, out, data=str(long))
    with pytest.raises(InputError, match=r"gain=1\.0 of priming: give a number above 1"):
        ask(files, out, gain=1.0)
    with pytest.raises(DataError):
        ask(files, out, stream=str(tmp_path / "nowhere.txt"))
    assert not out.exists() or not list(out.glob("study.*"))
