from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from chat_server import say, served
from commands import forked, secateur, words_of
from secateur.cli import prune_context


def test_a_dry_run_is_one_table_and_writes_nothing(tmp_path):
    rows = [{"question": "town2", "html": f"<p>About town{i}.</p><p>{'More. ' * 9}</p>"} for i in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "page.html").write_text(rows[0]["html"])
    how = ["--recipe", "htmlrag", "--budget", "words=4", "--dry-run"]
    columns = ("Measure", "Target", "Before", "After", "Change", "words=4", "Time a question", "verdict: dry run")
    for given in (["--in", "in.jsonl", "--out", "out.jsonl"], ["page.html", "--question", "town2"]):
        done = forked(tmp_path, "prune-context", *given, *how)
        assert (done.code, done.stderr) == (0, "")
        assert [word for word in columns if word not in done.stdout] == []
        assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "page.html"]
    assert "the first 8 of 10 lines" in forked(tmp_path, "prune-context", "--in", "in.jsonl", *how).stdout


def test_what_was_run_on_a_page_repeats_by_its_record_and_flags_win(tmp_path):
    (tmp_path / "page.html").write_text("<p>Apple trees.</p><p>Cherry trees.</p>")
    given = ["page.html", "--question", "cherry", "--recipe", "htmlrag", "--budget", "words=2", "--no-headed"]
    assert forked(tmp_path, "prune-context", *given, "--out", "a.txt").code == 0
    done = forked(tmp_path, "prune-context", "--config", "a.txt.run.yaml", "--question", "apple", "--out", "b.txt")
    assert done.code == 0, done.stderr
    assert (tmp_path / "a.txt").read_text() == "<p>Cherry trees.\n"
    assert (tmp_path / "b.txt").read_text() == "<p>Apple trees.\n"
    record = (tmp_path / "b.txt.run.yaml").read_text()
    assert "headed: false" in record
    assert "question: apple" in record
    refused = forked(tmp_path, "prune-context", "--config", "a.txt.run.yaml")
    assert (refused.code, "a.txt is there already" in refused.stderr) == (2, True)


def test_options_of_servers_are_shown_where_a_recipe_asks_them(tmp_path):
    servers = {"--llm-timeout", "--llm-retries", "--llm-per-minute", "--run-calls", "--graph-per-minute"}
    for recipe, shown in (("htmlrag", set()), ("kg_rag", servers)):
        flags, _ = prune_context.COMMAND.recipe_flags(["--recipe", recipe])
        assert servers & {flag.words for flag in flags} == shown
    assert "--graph-per-minute" in words_of(forked(tmp_path, "prune-context", "--recipe=kg_rag", "--help").stdout)


def test_a_limit_of_the_run_that_is_reached_is_said_once(tmp_path):
    pytest.importorskip("pyoxigraph")
    pytest.importorskip("httpx2")
    (tmp_path / "graph.csv").write_text("subject,predicate,object\nsalbutamol,treats,asthma\n")
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?"}\n' * 4)
    answer = {"choices": [{"message": {"content": '{"entities": ["asthma"]}'}}]}
    line = "prune-context graph.csv --recipe kg_rag --in in.jsonl --out out.jsonl --budget words=9 --llm-name small"
    limits = "--run-calls 2 --llm-per-minute 100 --llm-timeout 20"
    with served(lambda *_: say(answer)) as url:
        done = secateur(
            *line.split(), "--llm", url, *limits.split(), cwd=tmp_path, SECATEUR_CACHE=str(tmp_path / "cache")
        )
    assert done.returncode == 0, done.stderr
    note, summary = done.stderr.splitlines()
    assert note.startswith("note: the language model was called 2 times for")
    assert summary == "4 lines, 0 of them with an error: out.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["salbutamol" in row["pruned"] for row in rows] == [True] * 4


def test_a_page_is_cut_by_bm25_without_torch(tmp_path):
    """A call took 4 s and 365 MB, nearly all of it for libraries that it did not use."""
    (tmp_path / "page.html").write_text("<h1>Options</h1><p>Use -s to be silent.</p><p>max_depth is the depth.</p>")
    code = """
import sys
from secateur.__main__ import main

sys.argv = ["secateur", "prune-context", "page.html", "--question", "what does -s do", "--budget", "words=6",
            "--recipe", "htmlrag", "--out", "out.html"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
large = {"torch", "scipy", "transformers", "bm25s", "matplotlib", "rich", "jinja2"} & sys.modules.keys()
assert not large, large
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Use -s to be silent." in (tmp_path / "out.html").read_text()


def test_lines_go_to_the_standard_output_and_budgets_are_explained_in_the_words_of_contexts(tmp_path):
    rows = [{"question": f"town{i}", "html": f"<p>About town{i}.</p><p>{'More. ' * 9}</p>"} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "page.html").write_text(rows[0]["html"])
    how = ["--recipe", "htmlrag", "--budget", "words=2"]
    done = forked(tmp_path, "prune-context", "--in", "in.jsonl", "--out", "-", *how)
    assert (done.code, done.stderr) == (0, "3 lines, 0 of them with an error\n")
    assert [json.loads(line)["pruned"] for line in done.stdout.splitlines()] == [f"<p>About town{i}." for i in range(3)]
    one = forked(tmp_path, "prune-context", "page.html", "--question", "town0", "--out", "-", *how)
    assert (one.code, one.stdout) == (0, "<p>About town0.\n")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "page.html"]
    (tmp_path / "in.jsonl").write_text("no json\n")
    wrong = forked(tmp_path, "prune-context", "--in", "in.jsonl", "--out", "-", *how)
    assert (wrong.code, json.loads(wrong.stdout)["pruned"], wrong.stderr) == (
        1,
        "",
        "1 lines, 1 of them with an error\n",
    )
    for given in (["prune-context", "page.html", "--question", "town0"], ["serve-context"]):
        for budget, example in (("512", "tokens=512"), ("words=no", "tokens=512"), ("100", "tokens=100")):
            refused = forked(tmp_path, *given, "--recipe", "htmlrag", "--budget", budget)
            assert (refused.code, refused.stderr.count("\n")) == (2, 1)
            assert f"budget '{budget}' was not understood: say {example}, words=400 or a share" in refused.stderr
