"""Files of questions and folders of pages: line by line, in processes, killed and resumed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import processes
import secateur
from runs.pages import ASKED, PAGE, PARTS, Halved, lines, written
from secateur.errors import DataError, InputError, NumericalError, RunError
from secateur.runs import context_files


@contextmanager
def piped(path, text):
    """A pipe through which a text comes once."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writer.start()
    yield path
    writer.join(30)
    path.unlink()


def fragile(given):
    """Kill the process, as the system does where memory is short, as often as the row's file has letters."""
    number, path = given
    left = Path(path).read_text() if path else ""
    if left:
        Path(path).write_text(left[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return number, False


def out_of_memory(texts):
    if any("memory" in text for text in texts):
        raise RuntimeError("out of\n  memory")
    return np.ones((len(texts), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_line_for_line_with_its_own_fields(tmp_path, processes):
    count, failed = secateur.prune_file(
        "htmlrag", written(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", "words=12", processes=processes
    )
    assert (count, failed) == (12, 0)
    for i, row in enumerate(lines(tmp_path / "out.jsonl")):
        assert row["id"] == i
        assert row["html"] == PAGE
        assert f"person{i % 8}" in row["pruned"]
        assert row["words_after"] <= 12 < row["words_before"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.run.yaml"]


def test_fields_of_texts_and_passages_and_traces(tmp_path):
    rows = [
        {"question": "town2", "text": "About town1.\n\nAbout town2."},
        {"question": "town2", "passages": ["About town1.", "About town2."]},
        {"question": "town2", "html": ["<p>About town1.</p>", "<p>About town2.</p>"]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=2", trace=True)
    found = lines(tmp_path / "out.jsonl")
    for row in found:
        assert row["pruned"] == ("<p>About town2." if "html" in row else "About town2.")
        assert [block["kept"] for block in row["trace"]["page"]] == [False, True]
    assert [row.get("pruned_passages") for row in found] == [None, ["", "About town2."], None]


def test_what_an_earlier_run_wrote_of_a_line_is_written_anew_or_left_out(tmp_path):
    """Failed lines that were given again had their old error beside the new text."""
    old = {"pruned": "", "error": "the embedder was down", "told": {"a": 1}, "trace": {}, "tokens_after": 9, "id": 7}
    asked = [{"question": "b?", "html": "<p>a</p><p>b</p>"}, {"html": "<p>a</p>"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({**old, **row}) + "\n" for row in asked))
    assert secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=1") == (2, 1)
    good, bad = lines(tmp_path / "out.jsonl")
    assert good == {"id": 7, **asked[0], "pruned": "<p>b", "words_before": 2, "words_after": 1}
    assert bad == {"id": 7, **asked[1], "pruned": "", "error": bad["error"]}
    assert "question" in bad["error"]


def test_fields_of_ones_own_stay_whatever_they_are_called(tmp_path):
    """A line that did not come out of a run lost its `trace` and `told`."""
    own = {"question": "Which fruit?", "text": "Apples are fruit.", "trace": "id-7", "told": "by mail"}
    (tmp_path / "in.jsonl").write_text(json.dumps(own) + "\n")
    assert secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=9") == (1, 0)
    (found,) = lines(tmp_path / "out.jsonl")
    assert found.items() >= own.items()


def test_lines_that_can_not_be_pruned_say_why_and_the_others_go_on(tmp_path):
    bad = ["no json", "[1]", '{"question": "a"}', '{"html": "<p>a</p>"}', '{"question": 3, "html": "<p>a</p>"}',
           '{"question": "a", "html": [1]}', "[" * 100_000, '{"question": "a", "html": "<p>a b c</p>"}']  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(bad))
    count, failed = secateur.prune_file(
        "htmlrag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=2", processes=1
    )
    assert (count, failed) == (8, 7)
    found = lines(tmp_path / "out.jsonl")
    assert all(row["error"] and row["pruned"] == "" for row in found[:7])
    assert found[7]["pruned"] == "<p>a b"
    with pytest.raises(DataError, match="line 1: this line is no JSON"):
        secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "b.jsonl", "words=2", strict=True)


def test_a_graph_that_can_not_be_opened_is_said_once_before_any_line(tmp_path, capsys):
    """Each line had the error, in a file that was written to its end."""
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?"}\n' * 3)
    for out in (str(tmp_path / "out.jsonl"), "-"):
        with pytest.raises(DataError, match=r"none\.csv is not there"):
            secateur.prune_file("kg_rag", tmp_path / "in.jsonl", out, "words=9", graph=tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"none\.csv is not there"):
        context_files.estimate_file("kg_rag", tmp_path / "in.jsonl", "words=9", graph=tmp_path / "none.csv")
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("strict", [False, True])
def test_half_an_emoji_ends_no_run(tmp_path, strict):
    half = "\ud83d"
    rows = [{"question": f"{half} b", "html": f"<p>a</p><p>b {half}</p>"}, {"id": half, "question": "b", "text": "b"},
            {"question": "b", "text": "b ü"}]  # fmt: skip
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert secateur.prune_file("htmlrag", source, out, "words=2", strict=strict, trace=True) == (3, 0)
    found = lines(out)
    assert [{name: row[name] for name in given} for row, given in zip(found, rows, strict=True)] == rows
    assert found[0]["pruned"] == "<p>b ?"
    assert "b ü" in out.read_text("utf-8")
    pruned = secateur.prune_context("htmlrag", f"b {half}", f"{half} b", "words=2")
    pruned.write(tmp_path / "a.txt")
    pruned.save(tmp_path / "a.html")
    assert "b ?" in (tmp_path / "a.txt").read_text("utf-8")


def test_what_nobody_raised_on_purpose_is_an_error_of_its_line(tmp_path):
    rows = [{"question": "a", "text": text} for text in ("much memory", "a b c")]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert secateur.prune_file("htmlrag", source, out, "words=2", embedder=out_of_memory) == (2, 1)
    assert [row.get("error") for row in lines(out)] == ["unexpected RuntimeError: out of memory", None]
    assert context_files.estimate_file("htmlrag", source, "words=2", embedder=out_of_memory).failed == 1
    with pytest.raises(RunError, match="line 1: unexpected RuntimeError: out of memory"):
        secateur.prune_file("htmlrag", source, tmp_path / "b.jsonl", "words=2", embedder=out_of_memory, strict=True)


@pytest.mark.wide
def test_a_killed_process_is_replaced_once(tmp_path):
    rows = [(str(number), str(tmp_path / "kills") if number == 30 else "") for number in range(40)]
    (tmp_path / "kills").write_text("k")
    assert [number for number, _ in context_files._map(fragile, rows, 2)] == [number for number, _ in rows]
    (tmp_path / "kills").write_text("kk")
    with pytest.raises(RunError, match="a helping process was killed"):
        list(context_files._map(fragile, rows, 2))


def test_a_folder_of_pages(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.html").write_text(f"<p>filler</p><p>town{i} lies there</p>")
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="they hold no question"):
        secateur.prune_file("htmlrag", folder, out, "words=3")
    assert secateur.prune_file("htmlrag", folder, out, "words=3", question="town lies") == (5, 0)
    assert [row["file"] for row in lines(out)] == [f"{i}.html" for i in range(5)]
    assert all(f"town{i}" in row["pruned"] for i, row in enumerate(lines(out)))


def test_what_is_wrong_with_every_line_is_said_once_and_nothing_is_written(tmp_path):
    source, out = written(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="needs the reader's tokenizer"):
        secateur.prune_file("htmlrag", source, out, "tokens=20")
    with pytest.raises(InputError, match="'no/such/one' is no folder here"):
        secateur.prune_file("htmlrag", source, out, "words=20", embedder="no/such/one")
    with pytest.raises(NumericalError, match="the encoder gives NaN"):
        secateur.prune_file("htmlrag", source, out, "words=20", embedder=lambda texts: np.full((len(texts), 2), np.nan))
    (tmp_path / "in.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no line"):
        secateur.prune_file("htmlrag", source, out, "words=20")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    written(source, 3)
    assert secateur.prune_file("htmlrag", source, out, "words=10%") == (3, 0)


def test_ctrl_c_stops_all_processes_quietly_and_the_same_command_goes_on(tmp_path):
    source = written(tmp_path / "in.jsonl", 2000)
    command = [sys.executable, "-m", "secateur", "prune-context", "--recipe", "htmlrag", "--budget", "words=12"]
    command += ["--in", str(source), "--out", str(tmp_path / "out.jsonl"), "--processes", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "out.jsonl.part"
    while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "secateur: interrupted; the same command resumes where it stopped\n")
    assert 5 <= part.read_bytes().count(b"\n") < 2000
    alive, end = True, time.monotonic() + 30
    while alive and time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        except ProcessLookupError:
            alive = False
    assert not alive, "a helping process is left"


def test_what_is_there_is_not_lost(tmp_path):
    source, out = written(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        secateur.prune_file("htmlrag", source, out, "words=12")
    assert out.read_text() == "mine"
    secateur.prune_file("htmlrag", source, out, "words=12", overwrite=True, processes=1)
    assert len(lines(out)) == 2
    with pytest.raises(DataError, match=r"none\.jsonl"):
        secateur.prune_file("htmlrag", tmp_path / "none.jsonl", tmp_path / "new.jsonl", "words=12")


def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    source = written(tmp_path / "in.jsonl", 150)
    secateur.prune_file("htmlrag", source, tmp_path / "whole.jsonl", "words=12", processes=1)
    command = ["prune-context", "--recipe", "htmlrag", "--budget", "words=12", "--in", "in.jsonl"]
    command += ["--out", "out.jsonl", "--processes", "1"]
    part = tmp_path / "out.jsonl.part"
    child = processes.start(tmp_path, *command)
    while child.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    done = part.read_bytes().count(b"\n")
    assert 20 <= done < 150
    with part.open("ab") as half:
        half.write(b'{"id": 99, "prun')  # as a kill in the midst of writing leaves it
    with pytest.raises(RunError, match="other settings"):
        secateur.prune_file("htmlrag", source, tmp_path / "out.jsonl", "words=13")
    again = processes.run(tmp_path, *command)
    assert again.code == 0, again.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.jsonl", "out.jsonl", "out.jsonl.run.yaml", "whole.jsonl", "whole.jsonl.run.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "many"), [(3, None), (70, 2)])
def test_a_pipe_is_read_once(tmp_path, count, many):
    text = written(tmp_path / "in.jsonl", count).read_text()
    secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "file.jsonl", "words=12")
    with piped(tmp_path / "pipe", text) as pipe:
        told = secateur.prune_file("htmlrag", pipe, tmp_path / "out.jsonl", "words=12", processes=many)
    assert told == (count, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "file.jsonl").read_bytes()
    with piped(tmp_path / "pipe", text) as pipe:
        assert context_files.estimate_file("htmlrag", pipe, "words=12").count == count


def test_the_standard_input_goes_on_where_it_was_stopped_by_what_is_written(tmp_path, monkeypatch):
    text, out = written(tmp_path / "in.jsonl", 5).read_text(), tmp_path / "out.jsonl"

    def fed(said):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
        return secateur.prune_file("htmlrag", "-", out, "words=12", strict=True)

    secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "file.jsonl", "words=12")
    with pytest.raises(DataError, match="the standard input holds no line"):
        fed("\n")
    assert not out.with_name("out.jsonl.part").exists()
    with pytest.raises(DataError, match="the standard input, line 4: this line is no JSON"):
        fed("".join(text.splitlines(keepends=True)[:3]) + "no\n")
    with pytest.raises(RunError, match="the standard input holds 2 lines, and 3 are written already"):
        fed("".join(text.splitlines(keepends=True)[:2]))
    assert fed(text) == (5, 0)
    assert out.read_bytes() == (tmp_path / "file.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.jsonl", "file.jsonl.run.yaml", "in.jsonl", "out.jsonl", "out.jsonl.run.yaml",
    ]  # fmt: skip


def test_what_a_file_comes_to_is_told_by_its_first_lines_and_nothing_is_written(tmp_path):
    source = written(tmp_path / "in.jsonl", 40)
    found = context_files.estimate_file("htmlrag", source, "words=12")
    assert (found.count, found.tried, found.failed, found.calls) == (40, 8, 0, 0)
    assert found.seconds > 0
    secateur.prune_file("htmlrag", source, tmp_path / "out.jsonl", "words=12", processes=1)
    first = lines(tmp_path / "out.jsonl")[:8]
    assert found.before == {"words": sum(row["words_before"] for row in first)}
    assert found.after == {"words": sum(row["words_after"] for row in first)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.run.yaml"]


def test_lines_with_errors_are_counted_and_where_all_have_one_it_is_said(tmp_path):
    (tmp_path / "in.jsonl").write_text('no json\n{"question": "a", "html": "<p>a b c</p>"}\n')
    found = context_files.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2")
    assert (found.tried, found.failed, found.before) == (2, 1, {"words": 3.0})
    (tmp_path / "in.jsonl").write_text("no json\n" * 3)
    with pytest.raises(DataError, match="this line is no JSON"):
        context_files.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2")
    with pytest.raises(InputError, match="give no graph"):
        context_files.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2", graph="x")


def test_lines_of_passages(pruner, tmp_path):
    rows = [{"question": ASKED, "passages": [PARTS]},
            {"question": ASKED, "passages": PARTS, "titles": ["of this", None, "more"]},
            {"question": ASKED, "html": f"<p>{PARTS[1]}</p><p>{PARTS[0]}</p>"},
            {"question": ASKED, "passages": PARTS, "titles": 3}]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    secateur.prune_file("provence", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "tokens=100%", model=pruner)
    found = lines(tmp_path / "out.jsonl")
    assert [row["pruned"] for row in found] == [PARTS[1], PARTS[1], PARTS[1], ""]
    assert "titles" in found[3]["error"]
    assert [row.get("pruned_passages") for row in found] == [[PARTS[1]], ["", PARTS[1], ""], None, None]
    assert all(row["told"]["compression"] > 0 for row in found[:3])
    with pytest.raises(InputError, match="give no graph"):
        secateur.prune_file("provence", tmp_path / "in.jsonl", tmp_path / "b.jsonl", "words=2", graph="x", model=pruner)


def test_questions_to_one_graph(graph, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?", "id": 7}\n{"question": 3}\n')
    count, failed = secateur.prune_file(
        "kg_rag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=40", graph=graph, processes=2
    )
    assert (count, failed) == (2, 1)
    first, second = lines(tmp_path / "out.jsonl")
    assert first["id"] == 7
    assert "salbutamol treats asthma" in first["pruned"]
    assert first["told"]["entities"] == ["asthma"]
    assert "there is no question" in second["error"]
    with pytest.raises(InputError, match="give the graph"):
        secateur.prune_file("kg_rag", tmp_path / "in.jsonl", tmp_path / "b.jsonl", "words=2")


def test_a_line_brings_topics_of_its_own(graph, tmp_path):
    question, source, out = "What is known?", tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"topics": ["lung"]}, {"topics": "Acme"}, {}, {"topics": None}, {"topics": [3]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"question": question, "graph": graph, "topics": ["salbutamol"]}
    assert secateur.prune_file("paths_over_graph", source, out, "words=40", **how) == (5, 1)
    found = lines(out)
    for row, topic in zip(found, ["lung", "Acme", "salbutamol", "salbutamol"], strict=False):
        alone = secateur.prune_context("paths_over_graph", graph, question, "words=40", topics=[topic])
        assert row["pruned"] == alone.text
        assert row["told"]["topics"] == alone.told["topics"]
    assert len({str(row["told"]["topics"]) for row in found[:3]}) == 3
    assert "topics that are no list of texts" in found[4]["error"]


def test_a_line_brings_choices_of_its_own(graph, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"choices": ["salbutamol", "pollen"]}, {"choices": ["pollen", "dust"]}, {}]
    source.write_text("".join(json.dumps({"question": "What treats asthma?", **row}) + "\n" for row in rows))
    how = {"graph": graph, "llm": Halved(), "answer": True}
    assert secateur.prune_file("kg_rag", source, out, "words=40", **how) == (3, 0)
    assert [row["told"].get("choice") for row in lines(out)] == ["salbutamol", "", None]
    assert secateur.prune_file("kg_rag", source, tmp_path / "b.jsonl", "words=40", graph=graph) == (3, 0)


def test_a_reply_with_half_an_emoji_ends_no_run(graph, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?"}\n')
    how = {"graph": graph, "llm": Halved(), "answer": True}
    assert secateur.prune_file("kg_rag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=40", **how) == (1, 0)
    assert lines(tmp_path / "out.jsonl")[0]["told"]["answer"] == "salbutamol \ud83d"
