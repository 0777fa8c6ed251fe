"""The command line as a user meets it: in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import processes
import tiny
from chat_server import say, served
from secateur import cli, recipes
from secateur.errors import ModelError
from secateur.runs import executor

SMALL = [
    "--batch",
    "1",
    "--length",
    "16",
    "--steps",
    "2",
    "--calibration",
    "16",
    "--trials",
    "0",
    "--train-batch",
    "8",
    "--train-length",
    "16",
]


def forked(cwd: Path, *arguments: object, columns: int = 120) -> processes.Child:
    """As `secateur`, in a process that has its imports already."""
    return processes.run(cwd, *arguments, before=lambda: os.environ.update(COLUMNS=str(columns)))


def secateur(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a new interpreter, as from a shell."""
    return subprocess.run(
        [sys.executable, "-m", "secateur", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(300)))
    tiny.folder("llama", root / "llama")
    done = secateur(
        "run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt", "--out", "small", *SMALL, cwd=root
    )
    assert done.returncode == 0, done.stderr
    (root / "printed").write_text(done.stdout)
    return root


def test_help_lists_the_commands_and_loads_nothing_slow():
    done = secateur("--help")
    assert done.returncode == 0
    for command in ("list", "show", "run", "distill", "study", "inspect", "measure", "report", "export"):
        assert f"\n  {command}" in done.stdout
    assert secateur().stdout == done.stdout
    code = (
        "import sys; from secateur.cli import main; main([{!r}]); "
        "print([m for m in ('torch', 'numpy', 'rich', 'transformers') if m in sys.modules])"
    )
    for command in ("--help", "list"):
        loaded = subprocess.run(
            [sys.executable, "-c", code.format(command)], capture_output=True, text=True, check=True
        )
        assert loaded.stdout.splitlines()[-1] == "[]", command


def test_version():
    import importlib.metadata

    assert secateur("--version").stdout == f"secateur {importlib.metadata.version('secateur')}\n"


def test_list_and_show():
    cards = json.loads(secateur("list", "--json").stdout)
    assert cards == recipes.cards()
    assert {"ziplm", "minitron"} <= set(cards)
    listed = secateur("list").stdout
    assert all(any(line.startswith(name) for line in listed.splitlines()) for name in cards)
    shown = secateur("show", "ziplm").stdout
    assert cards["ziplm"]["paper"] in shown
    assert "calibration" in shown
    assert "default 0.01" in shown


@pytest.mark.parametrize("name", sorted(recipes.cards()))
def test_run_help_shows_every_flag_of_the_recipe(name, tmp_path):
    done = forked(tmp_path, "run", name, "--help", columns=200)
    assert done.code == 0
    for option in recipes.signature(name):
        assert f"--{option.name.replace('_', '-')}" in done.stdout, option.name
        if option.name not in cli._SHARED:
            assert option.help, f"{name} does not explain {option.name}"
            first = " ".join(option.help.split()[:3])
            assert first in done.stdout


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["run", "dp4tl", "--help"], "--target"),
        (["study", "lossless", "--help"], "--target"),
        (["show", "dp4tl"], "target "),
        (["show", "provence"], "model "),
    ],
)
def test_an_option_that_has_to_be_given_is_said_to_be_required(words, shown, tmp_path):
    told = " ".join(forked(tmp_path, *words, columns=200).stdout.split()).rpartition("Options")
    assert "_empty" not in told[2]
    assert "required" in told[2].partition(shown)[2][:250]


def test_options_are_read_as_text():
    source = (
        'def f(a, *, n: int = 3, names: Sequence[str] = ("x",), must: str):\n'
        '    """Say.\n\n    Args:\n        n: how many,\n            at most.\n        must: given.\n\n'
        '    More.\n    """\n'
    )
    options = recipes.read_options(source, "f")
    assert [(o.name, o.default, o.annotation, o.help) for o in options[:2]] == [
        ("n", 3, "int", "how many, at most."),
        ("names", ("x",), "Sequence[str]", ""),
    ]
    assert options[2].help == "given."


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", "int", 3),
        ("2e-4", "float", 2e-4),
        ("none", "float | None", None),
        ("none", "float", "none"),
        ("none", "Literal['kd', 'none']", "none"),
        ("1,2", "Sequence[int]", ["1", "2"]),
        ("[1, 2]", "list[int]", [1, 2]),
        (["1, 2", "[3]", ""], "Sequence[int]", ["1", "2", 3]),
        (["1", "[3"], "Sequence[int]", "[3"),
        (["a, b"], "str | Sequence[str]", "a, b"),
        (["a,b", '["c", "d"]', "[ef]*"], "str | Sequence[str]", "a,b,c,d,[ef]*"),
        ([""], "str | Sequence[str]", ""),
        ("12", "str", "12"),
        ("no", "Literal['yes', 'no']", "no"),
        ("word", "int", "word"),
    ],
)
def test_flags_become_values(text, annotation, value):
    assert cli._value(text, annotation) == value


def test_a_flag_of_a_list_given_again_adds_to_it(places, capsys, monkeypatch):
    monkeypatch.chdir(places)
    how = ["llama", "--budget", "params=80%", "--data", "texts.txt", "--dry-run"]
    assert cli.main(["run", "romanian_distilberts", *how, "--weights", "1,a", "--weights", "2"]) == 2
    assert "option weights='a' of romanian_distilberts" in capsys.readouterr().err, "the first is not forgotten"
    asked = []
    monkeypatch.setattr(executor, "results", lambda **options: asked.append(options.get("axes", "none")) or [])
    for words in ([], ["--axes", "heads,neurons"], ["--axes", "heads", "--axes", "neurons"], ["--axes", ""]):
        assert cli.main(["run", "minitron", *how, *words]) == 0
    assert asked == ["none", ["heads", "neurons"], ["heads", "neurons"], []]
    monkeypatch.setattr(executor, "results", lambda **options: asked.append(options.get("shape", "none")) or [])
    asked.clear()
    for words in ([], ["--shape", "layers=2, neurons=8"], ["--shape", "layers=2", "--shape", "neurons=8"]):
        assert cli.main(["run", "minitron", *how, *words]) == 0
    assert asked == ["none", "layers=2, neurons=8", "layers=2,neurons=8"], "text is on record as text"
    done = forked(places, "run", "minitron", "--help")
    assert "Separated by commas, or again." in " ".join(done.stdout.replace("│", " ").split())


def test_a_choice_by_another_name_is_read_in_full():
    source = "Host = Literal['kd', 'none']\n\n\ndef f(*, host: Host = 'kd', other: Other = 1) -> None: ...\n"
    assert [one.annotation for one in recipes.read_options(source, "f")] == ["Literal['kd', 'none']", "Other"]
    hosts = {one.name: one.annotation for one in recipes.signature("nd_loss")}
    assert cli._value("none", hosts["host"]) == "none", "nd_loss --host none is a host, not nothing"
    assert cli._metavar(hosts["host"]) == "kd|dkd|dist|review|none"
    shown = {
        "Any": "NAME",
        "Sequence[str]": "Sequence[str]",
        "float | None": "float | None",
        "Literal['a', 'b'] | None": "a|b",
    }
    assert {kind: cli._metavar(kind) for kind in shown} == shown
    assert cli._metavar("str | Sequence[str]") == "Sequence[str]"


def test_all_options_that_are_written_with_commas_may_be_given_again():
    """Those whose recipe reads their commas by `listed`, `loop.options` or `shapes.parse`."""
    named = {"training", "protect", "units", "keep", "widths", "shape", "tokens"}
    found = {
        f"{recipe}.{one.name}": one.annotation
        for recipe in recipes.cards() for one in recipes.signature(recipe)
        if (one.name in named and isinstance(one.default, str)) or f"{recipe}.{one.name}" == "slimmoe.stages"
    }  # fmt: skip
    assert len(found) >= 20
    assert {name: kind for name, kind in found.items() if kind != "str | Sequence[str]"} == {}


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (["run", "ziplm", "m"], "ziplm"),
        (["run", "--budget", "params=1%", "--dry-run", "ziplm"], "ziplm"),
        (["run", "--seed=3", "--overwrite", "ziplm"], "ziplm"),
        (["run", "--no-gradual", "ziplm", "m"], "ziplm"),
        (["run", "--gradual", "ziplm", "m"], "ziplm"),
        (["run", "--merge", "minitron", "m"], "minitron"),
        (["run", "--config", "run.yaml", "--steps", "3"], "minitron"),
        (["run", "--config=run.yaml", "--no-merge"], "minitron"),
        (["run", "--config", "run.yaml", "ziplm"], "ziplm"),
        (["run", "--config", "none.yaml"], None),
        (["run", "--config", "broken.yaml"], None),
        (["run", "--config", "list.yaml"], None),
        (["run", "--config"], None),
        (["run"], None),
        (["show", "ziplm"], None),
    ],
)
def test_the_named_recipe_is_found(words, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("seed: 1\nrecipe: minitron\n")
    (tmp_path / "broken.yaml").write_text("recipe: [")
    (tmp_path / "list.yaml").write_text("- recipe\n")
    assert cli._named_recipe(words) == recipe


def test_run_prints_what_it_did(places):
    printed = (places / "printed").read_text()
    for words in ("Parameters", "verdict: met", "cut: ", "result  small", "report  small/report.html"):
        assert words in printed
    assert {"config.json", "model.safetensors", "run.yaml", "evidence.json", "report.html", "README.md"} <= set(
        os.listdir(places / "small")
    )


def test_a_config_repeats_a_run_and_flags_win_over_it(places):
    done = forked(places, "run", "--config", "small/run.yaml", "--out", "again")
    assert done.code == 0, done.stderr
    assert (places / "again/model.safetensors").read_bytes() == (places / "small/model.safetensors").read_bytes()
    for named in (["ziplm"], []):
        done = forked(places, "run", *named, "--config", "small/run.yaml", "--out", "again", "--steps", "3")
        assert done.code == 2
        assert "holds a run with steps=2, not steps=3" in done.stderr


def test_a_dry_run_writes_nothing(places):
    before = sorted(os.listdir(places))
    done = forked(places, "run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt", *SMALL, "--dry-run")
    assert done.code == 0, done.stderr
    assert "verdict: dry run" in done.stdout
    assert "FLOPs" in done.stdout
    assert sorted(os.listdir(places)) == before


def test_a_dry_run_of_what_a_model_reads_is_one_table_and_writes_nothing(tmp_path):
    rows = [{"question": "town2", "html": f"<p>About town{i}.</p><p>{'More. ' * 9}</p>"} for i in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "page.html").write_text(rows[0]["html"])
    how = ["--recipe", "htmlrag", "--budget", "words=4", "--dry-run"]
    for given in (["--in", "in.jsonl", "--out", "out.jsonl"], ["page.html", "--question", "town2"]):
        done = forked(tmp_path, "prune-context", *given, *how)
        assert (done.code, done.stderr) == (0, "")
        for word in (
            "Measure",
            "Target",
            "Before",
            "After",
            "Change",
            "words=4",
            "Time a question",
            "verdict: dry run",
        ):
            assert word in done.stdout
        assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "page.html"]
    assert "the first 8 of 10 lines" in forked(tmp_path, "prune-context", "--in", "in.jsonl", *how).stdout


def test_what_was_run_on_a_page_repeats_by_its_record_and_flags_win(tmp_path):
    (tmp_path / "page.html").write_text("<p>Apple trees.</p><p>Cherry trees.</p>")
    given = ["page.html", "--question", "cherry", "--recipe", "htmlrag", "--budget", "words=2", "--no-headed"]
    assert forked(tmp_path, "prune-context", *given, "--out", "a.txt").code == 0
    done = forked(tmp_path, "prune-context", "--config", "a.txt.run.yaml", "--question", "apple", "--out", "b.txt")
    assert done.code == 0, done.stderr
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == [
        "<p>Cherry trees.</p>\n",
        "<p>Apple trees.</p>\n",
    ]
    told = (tmp_path / "b.txt.run.yaml").read_text()
    assert "headed: false" in told
    assert "question: apple" in told
    refused = forked(tmp_path, "prune-context", "--config", "a.txt.run.yaml")
    assert (refused.code, "a.txt is there already" in refused.stderr) == (2, True)


def test_options_of_servers_are_shown_where_a_recipe_asks_them(tmp_path):
    for recipe, shown in (("htmlrag", False), ("kg_rag", True)):
        said = " ".join(forked(tmp_path, "prune-context", "--recipe", recipe, "--help").stdout.split())
        for flag in ("--llm-timeout", "--llm-retries", "--llm-per-minute", "--run-calls", "--graph-per-minute"):
            assert (flag in said) is shown
    said = forked(tmp_path, "train-pruner", "provence", "--help").stdout
    assert "--llm-timeout" in said
    assert "--graph-timeout" not in said
    assert "--run-calls" not in said


def test_a_limit_of_the_run_that_is_reached_is_said_once(tmp_path):
    pytest.importorskip("pyoxigraph")
    pytest.importorskip("httpx2")
    (tmp_path / "graph.csv").write_text("subject,predicate,object\nsalbutamol,treats,asthma\n")
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?"}\n' * 4)
    said = {"choices": [{"message": {"content": '{"entities": ["asthma"]}'}}]}
    with served(lambda *_: say(said)) as url:
        done = secateur(
            "prune-context", "graph.csv", "--recipe", "kg_rag", "--in", "in.jsonl", "--out", "out.jsonl", "--budget",
            "words=9", "--llm", url, "--llm-name", "small", "--run-calls", "2", "--llm-per-minute", "100",
            "--llm-timeout", "20", cwd=tmp_path, SECATEUR_CACHE=str(tmp_path / "cache"),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    note, told = done.stderr.splitlines()
    assert note.startswith("note: the language model was called 2 times for")
    assert told == "4 lines, 0 of them with an error: out.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["salbutamol" in row["pruned"] for row in rows] == [True] * 4


def test_inspect_measure_report_and_export(places):
    found = json.loads(forked(places, "inspect", "llama", "--json").stdout)
    assert {row["kind"] for row in found["axes"]} == {
        "layers", "attention", "ffn", "heads", "kv_groups", "neurons", "channels",
    }  # fmt: skip
    assert "neurons" in forked(places, "inspect", "llama").stdout
    measured = json.loads(forked(places, "measure", "small", "--batch", "2", "--length", "8", "--json").stdout)
    stored = json.loads((places / "small/evidence.json").read_text())["results"][0]
    assert measured["model"]["params"]["value"] == stored["after"]["params"]["value"]
    (places / "small/report.html").unlink()
    assert forked(places, "report", "small").stdout == "small/report.html\n"
    assert (places / "small/report.html").exists()
    done = secateur("export", "small", "--to", "decilm", "--out", "deci", cwd=places)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (places / "deci/config.json").exists()
    done = forked(places, "export", "small", "--to", "packed")
    assert done.code == 2
    assert done.stderr.startswith("secateur: nothing gets smaller without its zeros")
    done = forked(places, "export", "small", "--to", "packed", "--data", "texts.txt")
    assert done.stderr == "secateur: --data goes with int8, int4 and packed-int8: packed changes no quality\n"


def test_measure_compares_with_several(places, capsys):
    assert cli.main(["measure", "a", "--against", "b", "--against", "b"]) == 2
    assert capsys.readouterr().err == "secateur: against names b twice: name each model once\n"
    how = ("--against", "llama", "--against", "small", "--data", "texts.txt", "--batch", "2", "--length", "8", "--json")
    found = json.loads(forked(places, "measure", "small", *how).stdout)
    assert list(found) == ["model", "against llama", "both llama", "against small", "both small", "ensemble",
                           "both ensemble"]  # fmt: skip
    assert found["both small"]["label_loyalty"]["value"] == 1.0
    assert found["both llama"]["label_loyalty"]["value"] < 1.0
    assert found["against small"]["perplexity"] == found["model"]["perplexity"]
    assert "perplexity" in found["ensemble"]


def test_measure_asks_lm_eval_with_a_task_of_ones_own(places):
    pytest.importorskip("lm_eval")
    (places / "tasks").mkdir()
    document = {"text": tiny.WORDS[0], "choices": tiny.WORDS[1:3], "label": 0}
    (places / "words.jsonl").write_text("".join(json.dumps(document) + "\n" for _ in range(4)))
    (places / "tasks/words.yaml").write_text(
        f"task: words\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {places / 'words.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    done = secateur(
        "measure", "small", "--batch", "2", "--length", "8", "--tasks", "words", "--task-folder", "tasks",
        "--limit", "3", "--json", cwd=places, HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(places / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figure = json.loads(done.stdout)["model"]["words/acc"]
    assert figure["value"] in (0.0, 1.0)
    assert figure["samples"] == 3


def test_a_missed_budget_ends_with_one(places, capsys, monkeypatch):
    from secateur.runs import executor

    (row,) = executor.evidence.read(places / "small")
    monkeypatch.setattr(executor, "results", lambda **_: iter([executor.replace(row, verdict="missed: by a mile")]))
    arguments = ["run", "ziplm", "m", "--budget", "params=80%", "--data", "d", "--out", "o"]
    assert cli.main(arguments) == 1
    assert "verdict: missed: by a mile" in capsys.readouterr().out


def test_a_run_without_a_result_does_not_point_to_one(places, capsys, monkeypatch):
    from secateur.runs import executor

    (row,) = executor.evidence.read(places / "small")
    arguments = ["run", "ziplm", "m", "--budget", "params=80%", "--data", "d", "--out"]
    nothing = executor.replace(row, cut=executor.replace(row.cut, removed={}), verdict="failed: nothing was removed")
    monkeypatch.setattr(executor, "results", lambda **_: iter([nothing]))
    assert cli.main([*arguments, str(places / "small")]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("result  ") for line in shown)
    assert f"report  {places / 'small' / 'report.html'}" in "".join(shown)
    assert cli.main([*arguments, str(places / "nowhere")]) == 1
    assert "nowhere" not in capsys.readouterr().out
    monkeypatch.setattr(executor, "results", lambda **_: iter([nothing, row]))
    assert cli.main([*arguments, str(places / "small")]) == 1
    assert any(line.startswith("result  ") for line in capsys.readouterr().out.splitlines())


TAUGHT = ["--data", "texts.txt", "--steps", "4", "--batch", "8", "--length", "16"]


def test_distill_prints_what_it_did_and_what_it_would_take(places):
    tiny.model("llama", 7).save_pretrained(places / "other")
    tiny.tokenizer().save_pretrained(places / "other")
    done = forked(places, "distill", "other", "--from", "llama", "--dry-run", *TAUGHT)
    assert (done.code, done.stderr) == (0, "")
    assert "seconds per step" in done.stdout
    assert "verdict: dry run" in done.stdout
    both = ["--from", "llama=0.7", "--from", "other=0.3"]
    done = forked(places, "distill", "other", *both, "--out", "taught", "--lr", "0.003", *TAUGHT)
    assert done.code == 0, done.stderr
    assert "verdict: met: probability loyalty" in done.stdout
    assert "taught/report.html" in done.stdout
    assert (places / "taught" / "config.json").is_file()


def test_a_cache_that_mends_itself_says_so_in_one_line(places):
    tiny.model("llama", 7).save_pretrained(places / "asking")
    tiny.tokenizer().save_pretrained(places / "asking")
    how = ["distill", "asking", "--from", "llama", "--cache", "4", "--lr", "0.003", *TAUGHT]
    assert forked(places, *how, "--out", "sound").code == 0
    cache = places / "mended" / "work" / "predictions-0"
    shutil.copytree(places / "sound" / "work" / "predictions-0", cache)
    shutil.copy(
        places / "sound" / "run.yaml", places / "mended"
    )  # as a run leaves it that was killed before it trained
    (cache / "000000.safetensors").write_bytes(b"")
    done = forked(places, *how, "--out", "mended")
    assert done.code == 0, done.stderr
    assert done.stderr == (
        "note: 1 of 1 files in mended/work/predictions-0 are missing, damaged or cut short, 000000.safetensors the "
        "first: what they held is asked for again\n"
    )
    one, other = ((places / name / "model.safetensors").read_bytes() for name in ("sound", "mended"))
    assert one == other


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cache", "some"], "--cache some: give a number of tokens, or all"),
        (["--cache", "all", "--hidden"], "cache keeps predictions only: leave hidden out"),
    ],
)
def test_a_cache_that_makes_no_sense_is_refused_in_one_line(places, capsys, monkeypatch, flags, said):
    monkeypatch.chdir(places)
    assert cli.main(["distill", "llama", "--from", "llama", "--out", "x", *TAUGHT, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (places / "x").exists()


def test_a_student_that_comes_no_nearer_ends_with_one(places):
    done = forked(places, "distill", "llama", "--from", "llama", "--out", "same", *TAUGHT)
    assert done.code == 1
    assert "failed: the student is no nearer to its teachers" in done.stdout


def test_a_config_repeats_a_distillation_and_flags_win_over_it(places):
    tiny.model("llama", 7).save_pretrained(places / "pupil")
    tiny.tokenizer().save_pretrained(places / "pupil")
    how = ["--lr", "0.003", "--hidden", "--training", "every=2", "--held-out", "texts.txt", *TAUGHT]
    done = forked(places, "distill", "pupil", "--from", "llama", "--out", "first", *how)
    assert done.code == 0, done.stderr
    assert "held_out: texts.txt" in (places / "first/run.yaml").read_text()
    done = forked(places, "distill", "--config", "first/run.yaml", "--out", "second")
    assert done.code == 0, done.stderr
    one, other = ((places / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert one == other
    done = forked(places, "distill", "--config", "first/run.yaml", "--out", "second", "--steps", "5")
    assert done.code == 2
    assert "holds a run with steps=4, not steps=5" in done.stderr
    done = forked(
        places, "distill", "--config", "first/run.yaml", "--from", "llama=0.5", "--from", "pupil=0.5", "--dry-run"
    )
    assert done.code == 2
    assert "hidden states of several teachers have no mean" in done.stderr  # what the file says still holds


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("recipe: distill\nstps: 3\n", ["distill"], "unknown key 'stps': did you mean 'steps'"),
        ("recipe: distill\nsteps: many\n", ["distill"], "option steps='many' of distill"),
        ("student: 3\n", ["distill"], "student is 3: give text"),
        ("teachers: [a, 3]\n", ["distill"], "teachers is ['a', 3]: give text, or a list of texts"),
        ("recipe: distill\n", ["run"], "say secateur distill --config"),
        ("recipe: ziplm\n", ["distill"], "say secateur run --config"),
        ("recipe: ziplm\nheld_out: 3\n", ["run"], "held_out is 3: give text"),
        ("recipe: ziplm\nlabel: 3\n", ["run"], "label is 3: give text"),
        ("command: prune-data\n", ["run"], "say secateur prune-data --config"),
        ("command: train-pruner\nrecipe: provence\n", ["run"], "say secateur train-pruner --config"),
        ("student: llama\n", ["distill"], "distill needs --from, --data, --out"),
        ("data: texts.txt\n", ["prune-data"], "prune-data needs --budget, --out"),
        ("data: texts.txt\nbudget: examples=50%\nscor: x\n", ["prune-data"], "did you mean 'score'"),
        ("recipe: provence\n", ["train-pruner"], "train-pruner needs MODEL, --data, --out"),
        ("recipe: provence\nmodel: llama\nlongst: 3\n", ["train-pruner"], "did you mean 'longest'"),
        ("recipe: wanda\nmodel: llama\ndata: texts.txt\nout: x\n", ["train-pruner"], "wanda trains no model"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(places, capsys, monkeypatch, text, words, said):
    monkeypatch.chdir(places)
    (places / "some.yaml").write_text(text)
    assert cli.main([*words, "--config", "some.yaml"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (places / "x").exists()


MATCHED = ["llama", "--from", "llama", "--data", "texts.txt", "--out", "x", "--match"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llama"], "distill needs --from, --data, --out: say for example"),
        (["llama", "--from", "llama", "--out", "x"], "distill needs --data:"),
        (["llama", "--from", "a=0.5", "--from", "b", "--data", "x", "--out", "x"], "--from b has no share"),
        (["llama", "--from", "a=nan", "--data", "x", "--out", "x"], "weights of teachers nan: give numbers"),
        (["llama", "--from", "a=0", "--data", "x", "--out", "x"], "teachers 0: give numbers of at least 0, one above"),
        (["llama", "--from", "none/here", "--data", "texts.txt", "--out", "x"], "none/here"),
        ([*MATCHED, "model.layers.0", "--match-index", "1"], "write {i} in it, or leave match-index out"),
        (
            [*MATCHED, "model.layers.{i}", "--match-index", "0,1,2", "--match-index", "3,0"],
            "index gives numbers for model.layers.4, which the student lacks",
        ),
        ([*MATCHED, "lm_head", "--match-weight", "1,2", "--match-weight", "3"], "3 weights for 1"),
        ([*MATCHED, "lm_head", "--warm-up", "match=0.1", "--warm-up", "task=-1"], "warm-up 'match=0.1,task=-1'"),
        ([*MATCHED, "lm_head", "--training", "accumulate=x", "--training", "every=2"], "setting accumulate=x: give a"),
    ],
)
def test_distill_says_what_it_lacks_in_one_line(places, capsys, monkeypatch, words, said):
    monkeypatch.chdir(places)
    assert cli.main(["distill", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (places / "x").exists()


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m secateur show ziplm | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("family")


def test_debug_shows_where_an_error_came_from(tmp_path):
    done = forked(tmp_path, "inspect", "./nowhere", "--debug")
    assert done.code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("secateur: no model at './nowhere'")


def test_a_device_that_is_not_there_is_refused(places, capsys):
    for device in ("nonsense", "cuda:99"):
        arguments = ["measure", str(places / "small"), "--device", device]
        assert cli.main(arguments) == 2
        assert f"device '{device}' can't hold the model" in capsys.readouterr().err


def test_ctrl_c_while_the_command_line_loads_is_one_line_too(tmp_path):
    (tmp_path / "typer.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = secateur("list", PYTHONPATH=path)
    assert done.returncode == 130
    assert done.stderr == "secateur: interrupted before anything was done\n"
    assert done.stdout == ""


@pytest.mark.parametrize("becomes", [ValueError("could not determine the shape"), ModelError("can't be loaded")])
def test_ctrl_c_that_compiled_code_turned_into_an_error_is_still_ctrl_c(capsys, monkeypatch, becomes):
    def list_cards():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise becomes from None

    monkeypatch.setattr(recipes, "cards", list_cards)
    assert cli.main(["list"]) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_does_not_wait_for_a_thread_that_nobody_wakes(tmp_path):
    """As one is that Ctrl-C meets while a pool starts it: the interpreter would wait for it to the end of days."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, signal, sys, threading\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Finder(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'secateur.recipes':\n"
        "            threading.Thread(target=threading.Event().wait).start()\n"
        "            atexit.register(print, 'tidied')\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = secateur("list", PYTHONPATH=path)
    assert done.returncode == 130
    assert done.stderr.startswith("secateur: interrupted")
    assert done.stdout == "tidied\n"


def test_a_run_can_add_networks_trained_from_scratch(places):
    command = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "texts.txt", "--out", "beside", *SMALL]
    command += ["--held-out", "texts.txt"]
    refused = forked(places, *command, "--scratch-baseline", "F")
    assert refused.code == 2
    assert "E, B, both" in refused.stderr
    done = forked(places, *command, "--scratch-baseline", "E")
    assert done.code == 0, done.stderr
    assert "scratch lacks the compute" in done.stdout
    (row,) = json.loads((places / "beside" / "evidence.json").read_text())["results"]
    assert set(row["baselines"]) == {"scratch-E", "random units"}


def test_networks_that_can_not_be_trained_from_scratch_are_refused_before_the_run(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    np.savez(tmp_path / "bare.npz", inputs=np.random.default_rng(0).random((20, 6), np.float32))
    command = ["run", "otov3", "net.py:build", "--budget", "channels=50%", "--data", "bare.npz", "--out", "o",
               "--epochs", "2"]  # fmt: skip
    for more, words in (
        (["--scratch-baseline", "E"], "has no classes: networks are trained from scratch on classes or boxes"),
        (["--scratch-baseline", "E", "--scratch-epochs", "0"], "epochs=0 of networks trained from scratch"),
        (["--scratch-baseline", "E", "--scratch-lr", "-1"], "lr=-1.0 of networks trained from scratch"),
        (["--scratch-cap", "2"], "--scratch-cap is of networks trained from scratch: give --scratch-baseline"),
    ):
        refused = forked(tmp_path, *command, *more)
        assert refused.code == 2, refused.stderr
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "o").exists()
    language = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "bare.npz", "--out", "o"]
    refused = forked(tmp_path, *language, "--scratch-baseline", "E", "--steps", "0")
    assert "a run of ziplm with steps=0 trains nothing" in refused.stderr
    refused = forked(tmp_path, *language, "--scratch-baseline", "E", "--scratch-epochs", "2")
    assert "leave epochs out" in refused.stderr


def test_networks_trained_from_scratch_take_epochs_rate_and_cap(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=draw.random((40, 6), np.float32), labels=draw.integers(0, 3, 40))
    done = forked(tmp_path, "run", "otov3", "net.py:build", "--budget", "channels=50%", "--data", "data.npz", "--out",
                  "o", "--epochs", "4", "--batch", "8", "--scratch-baseline", "B", "--scratch-epochs", "3",
                  "--scratch-lr", "0.02", "--scratch-cap", "1")  # fmt: skip
    assert done.code == 0, done.stderr
    found = yaml.safe_load((tmp_path / "o/scratch/scratch-B-channels=50%/run.yaml").read_text())
    assert (found["epochs"], found["lr"], found["cap"]) == (3, 0.02, 1.0)
    assert yaml.safe_load((tmp_path / "o/run.yaml").read_text())["epochs"] == 4
