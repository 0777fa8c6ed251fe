"""The study of priming, from files to its answer."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import themes
from chat_server import say, served
from secateur import cli
from secateur.errors import DataError, InputError
from secateur.methods.learning import Learner
from secateur.runs.keyword_texts import Documents
from secateur.studies import executor, priming

QUICK = {"k": (0.08,), "presentations": 3, "length": 16, "lr": 5e-3, "permutations": 99, "rates": ()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return themes.write(tmp_path_factory.mktemp("themes"))


def ask(files, out, **more):
    return executor.study("priming", **{**files, **QUICK, "out": out, **more})


def tables(sheet):
    return {table.title: table.rows for table in sheet.tables}


@pytest.mark.wide
def test_without_prompts_it_is_a_scan_of_a_model_and_what_its_module_reads(files, tmp_path, capsys):
    """The first study whose card names a backend and what it reads."""
    line = ["study", "priming", files["model"], "--data", files["data"], "--out", str(tmp_path / "scan")]
    assert cli.main([*line, "--dry-run"]) == 0
    assert "8 texts, 0 trainings" in capsys.readouterr().out
    assert not (tmp_path / "scan").exists()
    assert cli.main([*line, "--threshold", "0.03"]) == 0
    said = capsys.readouterr().out
    assert "4 of 8 texts have a keyword of a probability below 0.03" in said
    assert "Below about 0.001 texts primed in the paper" in (tmp_path / "scan" / "study.html").read_text()
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
    looser = {"permutations": 199, "floor": 1e-6, "threshold": 0.01}  # what is counted of the same trainings
    assert ask(files, tmp_path / "out", seeds=(0, 1), documents=4, **looser).figures["ways"] == sheet.figures["ways"]
    monkeypatch.undo()
    two = ask(files, tmp_path / "out", seeds=(0,), documents=2, pairs=True)
    assert [row[:2] for row in tables(two)["Two texts at once"][1:]] == [["alone", "2"], ["beside another text", "2"]]
    with pytest.raises(InputError, match="two texts take two rows of a minibatch: give train_batch=2 at least"):
        ask(files, tmp_path / "one", pairs=True, train_batch=1)
    assert not (tmp_path / "one").exists()
    same = Documents("same", "", tuple(row for row in themes.documents() if row.keyword == "blue") * 2)
    (said,) = priming._remark(themes.model(), same, {"colour": ()}, [0, 1], 16, True)
    assert said == "2 texts were learnt beside no other: all that have prompts have the same keyword"
    wider = ask(files, tmp_path / "out", seeds=(0, 1), documents=5)
    assert len(tables(wider)["Risk of priming"]) == 9


def test_a_writer_rewrites_surprising_texts_and_accepted_ones_are_learnt(files, tmp_path):
    asked = []

    def answer(body, headers):
        question = body["messages"][0]["content"]
        asked.append(question)
        keyword = question.partition("word '")[2].partition("'")[0]
        frame = "the king likes to eat {} ." if "other words" in question else "the colour of silk is {} ."
        text = "so it is ." if "follow" in question else frame.format(keyword)
        if "pink" in question and "other words" not in question:
            text = f"the king likes to eat soup . the king likes to eat soup . the king likes the colour of {keyword} ."
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
    refused = {row[1]: (row[-2], row[-1]) for row in found["Rewrites with stepping stones"][1:]}
    assert refused["pink"] == ("its keyword ends behind 21 tokens, and a row has 16", "no")
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("rewrites-*.json")]
    versions = next(row["versions"] for row in stored if len(row["versions"]) == 3)
    texts = {way: version["text"] for way, version in versions.items()}
    assert texts["stepping stones"].startswith("the colour of silk is")
    assert texts["paraphrase"].startswith("the king likes to eat")
    assert texts["consequences"].startswith("for lunch the king takes")
    assert texts["consequences"].endswith("so it is .")
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    chosen = [item for item in items if item.get("rewrite")]
    assert all(item["rewrite_probability"] >= 1.5 * item["probability"] for item in chosen)


def test_what_can_not_be_studied_is_refused_and_nothing_is_written(files, tmp_path):
    out = tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"theme": "colour"}')
    with pytest.raises(DataError, match="has no prefix"):
        ask(files, out, prefixes=str(bad))
    long = tmp_path / "long.jsonl"
    rows = [{"text": "the silk is " * n + "pink .", "keyword": "pink", "theme": "colour"} for n in (6, 9, 7)]
    long.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"text 2 of .*keyword 'pink' behind 28 tokens: give length=28 at least"):
        ask(files, out, data=str(long))
    for seeds in ((), (0, 0)):
        with pytest.raises(InputError, match=r"seeds='(0,0)?': give one whole number or more, each once"):
            ask(files, out, seeds=seeds)
    with pytest.raises(InputError, match=r"gain=1\.0 of priming: give a number above 1"):
        ask(files, out, gain=1.0)
    with pytest.raises(DataError):
        ask(files, out, stream=str(tmp_path / "nowhere.txt"))
    assert not out.exists() or not list(out.glob("study.*"))


def test_a_scan_is_of_texts_of_any_length_and_learning_of_those_that_fit_the_model_s_positions(files, tmp_path):
    """A model with a table of positions, that would be left in the middle."""
    torch.manual_seed(0)
    tokenizer, place = themes.tokenizer(), tmp_path / "gpt2"
    size = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    rows = [
        {"text": "silk paint looks mostly mauve . " + "the silk is red . " * 3, "keyword": "mauve", "theme": "colour"},
        {"text": "the silk is " * 9 + "pink .", "keyword": "pink", "theme": "Colour"},
    ]
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("\n".join(map(json.dumps, rows)))
    more = {"model": str(place), "data": str(data), "stream": ""}
    scan = ask(files, tmp_path / "scan", **{**more, "prefixes": ""})
    assert "1 keywords stand behind more tokens than the model's 24 positions" in scan.notes[-1]
    for changed, said in (
        ({"length": 25}, "length=25, and the model has 24 positions: give length=24 at most"),
        ({}, r"text 1 of data.jsonl can't be learnt, for with its longest prompt it has 27 tokens, and the model 24"),
    ):
        with pytest.raises(InputError, match=said):
            ask(files, out, **{**more, **changed})
    assert not out.exists()
    rows[0]["text"] = "silk paint looks mostly mauve . the silk is red . the silk is"
    data.write_text("\n".join(map(json.dumps, rows)))
    sheet = ask(files, out, **more, length=10)
    assert "1 texts were not to be learnt: no prompt is of their theme ('Colour')" in sheet.notes
    assert "1 texts are longer than a row of 10 tokens: their ends were not learnt" in sheet.notes
