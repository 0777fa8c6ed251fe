"""How far a model may be compressed: bars of the original, frontiers without luck, and what perplexity hides."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from recipes.sparse.oneshot import taught
from secateur.clients.completions import Local, Writing
from secateur.data import texts
from secateur.errors import DataError, InputError
from secateur.methods.tasks import Item, Line, Task
from secateur.reports import sheet as pages
from secateur.runs import scoring
from secateur.runs.compression import DENSE, Config
from secateur.studies import executor, kick
from secateur.vocabulary import Figure, Selection

QUICK = {"methods": ["magnitude", "rtn"], "sparsity": ["10%", "90%"], "patterns": ["2:4"], "bits": [8, 2], "length": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, texts, and two tasks whose answers are the model's own words."""
    folder = tmp_path_factory.mktemp("kick")
    taught().save(folder / "model")
    (folder / "texts.txt").write_text("\n".join(tiny.chains(300)))
    prompts = [text.rsplit(" ", 3)[0] for text in tiny.chains(24, seed=7)]
    said = Local(taught().model, taught().tokenizer).write(prompts, Writing(most=2))
    rows = [{"question": prompt, "answer": one.text.strip(), "group": "ab"[at % 2]}
            for at, (prompt, one) in enumerate(zip(prompts, said, strict=True)) if one.text.strip()]  # fmt: skip
    write(folder / "facts.jsonl", {"task": "facts", "prompt": "{question}", "tokens": 2}, *rows)
    write(folder / "pick.jsonl", {"task": "pick"}, *({**row, "options": [row["answer"], "q", "z"]} for row in rows))
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(place, out, **more):
    given = {"tasks": [str(place / "facts.jsonl")], **QUICK, **more}
    return executor.study("kick", str(place / "model"), str(place / "texts.txt"), out=place / out, **given)


@pytest.fixture(scope="module")
def sheet(place):
    return ask(place, "out")


def test_the_original_matches_itself_and_what_is_broken_does_not(place, sheet):
    models = {one["name"]: one for one in sheet.figures["models"]}
    assert list(models) == ["original", "magnitude 10%", "magnitude 90%", "magnitude 2:4", "rtn 8bit", "rtn 2bit"]
    dense, gone = models["original"]["tasks"]["facts"], models["magnitude 90%"]["tasks"]["facts"]
    assert dense["score"]["value"] == 1.0
    assert dense["matching"]
    assert models["rtn 8bit"]["tasks"]["facts"]["matching"]
    assert not gone["matching"]
    assert gone["difference"]["high"] < 0
    assert gone["p"] < 0.05
    assert models["rtn 2bit"]["bytes"] < models["rtn 8bit"]["bytes"] < models["original"]["bytes"]
    assert models["magnitude 90%"]["params"] < 0.3 * models["original"]["params"]
    assert (
        models["magnitude 90%"]["figures"]["perplexity"]["value"] > models["original"]["figures"]["perplexity"]["value"]
    )
    (prune, quantise) = sheet.figures["frontiers"]
    assert prune["tasks"]["facts"]["first_failing"] == "90%"
    assert quantise["tasks"]["facts"]["last"] in ("8bit", "2bit")


def test_the_page_tables_and_lines_are_there(place, sheet):
    assert [table.title for table in sheet.tables] == ["How far each method may go", "Scores", "facts by group"]
    page = (place / "out" / "study.html").read_text()
    assert "magnitude 90%" in page
    assert "<svg" in page
    lines = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert {line["model"] for line in lines} == {one["name"] for one in sheet.figures["models"]}
    assert {"task", "item", "text", "tokens", "finished", "answer", "score"} <= lines[0].keys()


def test_a_second_call_compresses_nothing_and_more_methods_only_themselves(place, sheet, monkeypatch):
    done, real = [], scoring.compress

    def compress(original, config, *given, **how):
        done.append(str(config))
        return real(original, config, *given, **how)

    monkeypatch.setattr(scoring, "compress", compress)
    assert ask(place, "out").figures == sheet.figures
    assert not done
    ask(place, "out", sparsity=["10%", "50%", "90%"])
    assert done == ["magnitude 50%"]


@pytest.mark.wide
def test_recovery_wins_back_and_stands_in_a_row_of_its_own(place):
    sheet = ask(place, "recovered", methods=["magnitude"], sparsity=["60%"], patterns=[], recover=30)
    models = {one["name"]: one for one in sheet.figures["models"]}
    lost, won = models["magnitude 60%"], models["magnitude 60%, recovered"]
    assert won["figures"]["perplexity"]["value"] < lost["figures"]["perplexity"]["value"]
    assert won["params"] == lost["params"], "zeros stay zero: adapters stand beside them"
    assert [row["recovered"] for row in sheet.figures["frontiers"]] == [False, True]


def test_other_models_stand_beside_by_folder_at_equal_size(place):
    one_layer = np.arange(len(taught().layers())) == 0
    small, _ = taught().cut(Selection({"layers": one_layer}))
    (place / "small").mkdir()
    small.save(place / "small")
    sheet = ask(place, "beside", methods=["magnitude"], sparsity=["70%"], patterns=[], beside=[str(place / "small")])
    assert "Large and sparse minus small and dense, in points" in [table.title for table in sheet.tables]
    assert sheet.figures["models"][-1]["name"] == "small"


def test_calibration_is_compared_at_the_amounts_given(place):
    sheet = ask(place, "swept", methods=["wanda"], sparsity=["50%"], patterns=[], samples=8, calibration=[2, 8])
    (table,) = (one for one in sheet.tables if one.title == "Calibration samples")
    assert [row[1] for row in table.rows[1:]] == ["2", "8"]
    assert [one["name"] for one in sheet.figures["models"]] == ["original", "wanda 50%", "wanda 50%, 2 windows"]


def test_frontiers_are_of_the_calibration_that_was_asked_for():
    task = Task("facts", (Item("0", "", ("x",)),))
    models = [(config, False, answered(str(config), {"facts": [score]})) for config, score in (
        (DENSE, 1.0), (Config("wanda", "50%", samples=8), 0.0),
        (Config("wanda", "50%", samples=64, label="wanda 50%, 64 windows"), 1.0),
    )]  # fmt: skip
    (row,) = kick.Kicked([task], models, 0.05).frontiers()
    assert row["tasks"]["facts"] == {"last": "", "first_failing": "50%"}, "64 windows are of the sweep"


def test_frontiers_have_no_lucky_points():
    assert kick.frontier([("10%", True), ("20%", False), ("30%", True)]) == ("10%", "20%")
    assert kick.frontier([("10%", False)]) == ("", "10%")
    assert kick.frontier([("10%", True), ("20%", True)]) == ("20%", "")
    assert kick.matches(0.95, 1.0)
    assert not kick.matches(0.94, 1.0)
    assert not kick.matches(0.25, 0.26, chance=0.25), "at chance nothing matches"
    assert not kick.matches(0.0, 0.0), "an original that knows nothing is matched by nothing"
    assert kick.frontier([("10%", True), ("20%", None), ("30%", True)]) == ("10%", ""), "nothing is known of 20%"
    passing = [kick.matches(0.8, 1.0, tolerance=e) for e in (0.05, 0.1, 0.2, 0.3)]
    assert passing == sorted(passing), "monotone in the tolerance"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tasks": []}, "give JSONL files"),
        ({"methods": ["wonder"]}, "method 'wonder' is none of"),
        ({"sparsity": ["200%"]}, "sparsity '200%'"),
        ({"methods": ["magnitude-profile"], "sparsity": ["99%"]}, "leaves the first and the last block whole"),
        ({"beside": ["nowhere"]}, "'nowhere' is no folder of a model and no address"),
        ({"beside": ["http://localhost:1/v1"]}, "names no model"),
        ({"beside": ["tests"]}, "'tests' is no model folder: it has no config.json"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"bits": [1]}, "bits=1"),
    ],
)
def test_what_can_not_be_asked_is_said_before_anything_runs(place, more, words):
    with pytest.raises(InputError, match=words):
        ask(place, "refused", **more)
    assert not (place / "refused").exists()


def test_tasks_that_are_none_and_judges_that_are_missing_are_said(place):
    write(place / "bad.jsonl", {"question": "x"})
    with pytest.raises(DataError, match="line 1: no answers"):
        ask(place, "refused", tasks=[str(place / "bad.jsonl")])
    write(place / "judged.jsonl", {"task": "j", "scorer": "judge"}, {"question": "Say it"})
    with pytest.raises(InputError, match="j is scored by a judge: give one"):
        ask(place, "refused", tasks=[str(place / "judged.jsonl")])
    write(place / "long.jsonl", {"task": "l", "prompt": "{question}"}, {"question": "the " * 200, "answer": "x"})
    with pytest.raises(DataError, match="item 0 of l takes 202 tokens, and 32 to answer: the original reads 128"):
        ask(place, "refused", tasks=[str(place / "long.jsonl")], dry_run=True)
    with pytest.raises(InputError, match="two tasks are called 'facts'"):
        ask(place, "refused", tasks=[str(place / "facts.jsonl")] * 2)
    assert not (place / "refused").exists()
    sheet = ask(place, "judge", tasks=[str(place / "judged.jsonl")], judge="likelihood", methods=[])
    assert 0 < sheet.figures["models"][0]["tasks"]["j"]["score"]["value"] <= 1


def answered(name, scores):
    """A model with a score for each item of the task `name`, over tasks."""
    lines = {task: [Line(task, str(at), 0, "", 1, True, "", one) for at, one in enumerate(own)]
             for task, own in scores.items()}  # fmt: skip
    return scoring.Model(name, lines)


def test_a_task_of_which_the_original_knows_nothing_has_no_verdict():
    groups = ("science/physics", "science/maths", "arts", "arts")
    tasks = [Task(name, tuple(Item(str(at), "", ("x",), group=group) for at, group in enumerate(groups)))
             for name in ("facts", "unknown")]  # fmt: skip
    dense = answered("original", {"facts": [1, 1, 1, 0], "unknown": [0.0] * 4})
    same = answered("magnitude 10%", {"facts": [1, 1, 1, 0], "unknown": [0.0] * 4})
    unrated = answered("magnitude 20%", {"facts": [None] * 4, "unknown": [1.0] * 4})
    models = [(DENSE, False, dense), (Config("magnitude", "10%"), False, same),
              (Config("magnitude", "20%"), False, unrated)]  # fmt: skip
    sheet = kick.Kicked(tasks, models, 0.05).sheet()
    verdicts = [[one["tasks"][task.name]["matching"] for task in tasks] for one in sheet.figures["models"]]
    assert verdicts == [[True, None], [True, None], [None, None]]
    (row,) = sheet.figures["frontiers"]
    assert row["tasks"] == {
        "facts": {"last": "10%", "first_failing": ""}, "unknown": {"last": "", "first_failing": ""},
    }  # fmt: skip
    assert sheet.tables[0].rows[1][1:3] == ["10%", "–"]
    tables = {table.title: table.rows[0][1:] for table in sheet.tables}
    assert tables["facts by group"] == ["science", "arts"]
    assert tables["facts by group, level 2"] == ["science/physics", "science/maths"]
    assert sheet.headline == "1 of 1 models and tasks match the original"
    assert any("on unknown: such a task tells nothing" in note for note in sheet.notes)
    scores = next(table for table in sheet.tables if table.title == "Scores")
    assert scores.rows[2][1].startswith("✓ 75.0")
    assert scores.rows[3][1] == "no rating"


def test_a_judge_that_rated_nothing_is_told(tmp_path):
    """In the table, in the headline, and in a note of the page; a sweep of calibration has no figure either."""
    task = Task("essays", tuple(Item(str(at), "", ()) for at in range(4)), "judge")
    models = [(config, False, answered(str(config), {"essays": [None] * 4}))
              for config in (DENSE, Config("wanda", "10%", samples=8), Config("wanda", "10%", samples=4))]  # fmt: skip
    sheet = kick.Kicked([task], models, 0.05).sheet()
    assert sheet.headline == "no model can be compared with the original: the notes say why"
    tables = {table.title: table.rows[1:] for table in sheet.tables}
    assert {row[1] for row in tables["Scores"]} == {row[2] for row in tables["Calibration samples"]} == {"no rating"}
    told = "the judge rated no answer of the original on essays: no model can be compared with it there"
    assert told in sheet.notes
    assert not any("at chance" in note for note in sheet.notes)
    pages.write(tmp_path, sheet, {}, environment={})
    assert told in (tmp_path / "study.html").read_text()


def test_a_dry_run_counts_and_writes_nothing(place):
    sheet = ask(place, "dry", dry_run=True)
    assert "6 models" in sheet.headline
    assert not (place / "dry").exists()


def test_a_length_beyond_the_texts_is_refused_by_a_dry_run(place, tmp_path):
    """It was found out by the run, be it after the models that read no texts had answered everything."""
    (tmp_path / "few.txt").write_text("\n".join(tiny.chains(3)))

    def plan(**given):
        asked = {"tasks": [str(place / "facts.jsonl")], **QUICK, "methods": ["wanda"], "length": 12, **given}
        how = {"out": tmp_path / "out", "dry_run": True}
        return executor.study("kick", str(place / "model"), str(tmp_path / "few.txt"), **how, **asked)

    assert plan().figures["models"] == 4
    for given, words in (
        ({"length": 500}, r"the held-out part of few\.txt holds \d\d tokens, less than one batch: 500 are needed"),
        ({"recover": 2}, r"few\.txt holds \d\d tokens, less than one batch: 96 are needed"),
    ):
        with pytest.raises(DataError, match=words):
            plan(**given)
    held = scoring.Held(texts.read(["one two"]), texts.read(tiny.chains(4)), 24)
    with pytest.raises(DataError, match="less than one batch: 24 are needed"):
        scoring.check_texts(taught(), held, [Config("wanda", "50%")])
    scoring.check_texts(taught(), held, [Config("wanda", "0%"), Config("rtn", "8bit")])


def measured(config, score, perplexity=0.0, params=0.0):
    """A model with one score on `facts`, as studies have them."""
    figures = {"perplexity": Figure(perplexity)} if perplexity else {}
    lines = {"facts": [Line("facts", "0", 0, "", 1, True, "", score)]}
    return config, False, scoring.Model(str(config), lines, figures, params)


def test_a_frontier_is_of_the_mean_over_seeds_and_perplexity_has_to_hold_under_each():
    task = Task("facts", (Item("0", "", ("x",)),))
    models = [
        measured(DENSE, 1.0, 10.0),
        measured(Config("wanda", "20%"), 0.96, 10.5),
        measured(Config("wanda", "20%", seed=1), 0.90, 11.5),
        measured(Config("wanda", "10%"), 0.92, 10.9),
        measured(Config("wanda", "10%", seed=1), 1.0, 10.9),
        measured(Config("rtn", "3bit"), 0.5, 11.2),
        measured(Config("rtn", "4bit"), 0.96, 10.9),
    ]
    pruned, rounded = kick.Kicked([task], models, 0.05).frontiers()
    wanted = {"last": "10%", "first_failing": "20%"}
    assert pruned["tasks"]["facts"] == wanted, "0.96 on average, and 0.93"
    assert pruned["perplexity"] == wanted, "up by more than a tenth under one of two seeds"
    assert rounded["tasks"]["facts"] == rounded["perplexity"] == {"last": "4bit", "first_failing": "3bit"}


def test_the_sparse_model_of_the_same_size_is_compared_and_the_small_one_taken_off():
    task = Task("facts", (Item("0", "", ("x",)),))
    models = [
        measured(DENSE, 1.0, params=100),
        measured(Config("magnitude", "10%"), 1.0, params=90),
        measured(Config("magnitude", "50%"), 0.75, params=50),
        measured(Config("magnitude", "90%"), 0.0, params=10),
        measured(Config("models/small"), 0.25, params=46),
    ]
    (table,) = (one for one in kick.Kicked([task], models, 0.05).sheet().tables if one.title.startswith("Large"))
    (row,) = table.rows[1:]
    assert row[:4] == ["small", "46", "magnitude 50%", "50"]
    assert row[4].startswith("+50.0")


def test_what_is_asked_for_reaches_the_models(place, monkeypatch):
    seen, real = [], kick.score_model

    def watch(subject, config, tasks, held, *given, **how):
        seen.append((held.length, how["passes"], how["batch"]))
        return real(subject, config, tasks, held, *given, **how)

    monkeypatch.setattr(kick, "score_model", watch)
    sheet = ask(place, "asked", methods=[], tolerance=0.3, length=12, passes=2, batch=7)
    assert seen == [(12, 2, 7)]
    assert sheet.figures["tolerance"] == 0.3
