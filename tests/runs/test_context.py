"""What a model reads: one question, many, files line by line, and the training of what prunes."""

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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import keeper
import processes
import secateur
import tiny
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.errors import DataError, InputError, NumericalError, RunError
from secateur.runs import context
from secateur.runs.backends import documents as readings
from secateur.runs.context import Pruner

PAGE = "<html><body><nav>home about</nav>" + "".join(
    f"<section><h2>Town {i}</h2><p>The mayor of town{i} is person{i}.</p><p>{'Nothing more. ' * 6}</p></section>"
    for i in range(8)
) + "</body></html>"  # fmt: skip


def characters(texts):
    return [len(text) for text in texts]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def written(path, count=12, **more):
    rows = [{"id": i, "question": f"Who is the mayor of town{i % 8}?", "html": PAGE, **more} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_question_and_many(tmp_path):
    found = secateur.prune_context("htmlrag", PAGE, "Who is the mayor of town5?", "words=12")
    assert "person5" in found.text
    assert found.after["words"] <= 12 < found.before["words"]
    assert [row["kept"] for row in found.trace["page"]].count(True) < len(found.trace["page"])
    many = secateur.prune_context("htmlrag", PAGE, ["mayor of town2", "mayor of town6"], "words=12")
    assert ["person2" in many[0].text, "person6" in many[1].text] == [True, True]
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.txt").write_text("A stranger <b> comes.\n\nThe mayor of town9 is person9.")
    files = [tmp_path / "a.html", tmp_path / "b.txt"]
    found = secateur.prune_context("htmlrag", files, "town9", "words=8")
    assert "person9" in found.text
    assert "&lt;b&gt;" in secateur.prune_context("htmlrag", files, "stranger", "words=10").text


def test_what_was_cut_can_be_looked_at(tmp_path):
    found = secateur.prune_context("htmlrag", "<p>one <i>two</i></p><p>three</p>", "<script>three</script>", "words=2")
    found.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;script&gt;three" in text
    assert "<script" not in text
    assert text.count('class="gone"') == 1


def test_bad_calls_get_one_line(tmp_path):
    with pytest.raises(InputError, match="wanda does not prune what a model reads: use htmlrag"):
        secateur.prune_context("wanda", PAGE, "a", "words=3")
    with pytest.raises(InputError, match="has no option 'embeder': did you mean 'embedder'"):
        secateur.prune_context("htmlrag", PAGE, "a", "words=3", embeder="x")
    with pytest.raises(InputError, match="there is no question"):
        secateur.prune_context("htmlrag", PAGE, "  ", "words=3")
    with pytest.raises(DataError, match=r"none\.html"):
        secateur.prune_context("htmlrag", tmp_path / "none.html", "a", "words=3")
    with pytest.raises(InputError, match="is no folder here, nor found on the Hub"):
        secateur.prune_context("htmlrag", PAGE, "a", "tokens=3", tokenizer="no/such/tokenizer")


# ------------------------------------------------------------------------------------------------------------ files


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
        assert row["pruned"] == "<p>About town2.</p>"
        assert [block["kept"] for block in row["trace"]["page"]] == [False, True]
    assert [row.get("pruned_passages") for row in found] == [None, ["", "<p>About town2.</p>"], None]


def test_what_stays_of_each_document_stands_in_their_order(tmp_path):
    files = [tmp_path / "a.html", tmp_path / "b.txt"]
    files[0].write_text(PAGE)
    files[1].write_text("Nobody.\n\nThe mayor of town9 is person9.")
    one = secateur.prune_context("htmlrag", files, "town9 person9", "words=6")
    assert one.documents == ("", one.text)
    two = secateur.prune_context("htmlrag", files, "town3 mayor person3 town9 person9", "words=14")
    assert ["person3" in two.documents[0], "person9" in two.documents[1]] == [True, True]
    assert "".join(two.documents) == two.text


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
    assert found[7]["pruned"] == "<p>a b</p>"
    with pytest.raises(DataError, match="line 1: this line is no JSON"):
        secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "b.jsonl", "words=2", strict=True)


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
    assert found[0]["pruned"] == "<p>b ?</p>"
    assert "b ü" in out.read_text("utf-8")
    pruned = secateur.prune_context("htmlrag", f"b {half}", f"{half} b", "words=2")
    pruned.write(tmp_path / "a.txt")
    pruned.save(tmp_path / "a.html")
    assert "b ?" in (tmp_path / "a.txt").read_text("utf-8")


def out_of_memory(texts):
    if any("memory" in text for text in texts):
        raise RuntimeError("out of\n  memory")
    return np.ones((len(texts), 2))


def test_what_nobody_raised_on_purpose_is_an_error_of_its_line(tmp_path):
    rows = [{"question": "a", "text": text} for text in ("much memory", "a b c")]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert secateur.prune_file("htmlrag", source, out, "words=2", embedder=out_of_memory) == (2, 1)
    assert [row.get("error") for row in lines(out)] == ["unexpected RuntimeError: out of memory", None]
    assert context.estimate_file("htmlrag", source, "words=2", embedder=out_of_memory).failed == 1
    with pytest.raises(RunError, match="line 1: unexpected RuntimeError: out of memory"):
        secateur.prune_file("htmlrag", source, tmp_path / "b.jsonl", "words=2", embedder=out_of_memory, strict=True)


def fragile(given):
    """Kill the process, as the system does where memory is short, as often as the row's file has letters."""
    number, path = given
    left = Path(path).read_text() if path else ""
    if left:
        Path(path).write_text(left[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return number, False


def test_a_killed_process_is_replaced_once(tmp_path):
    rows = [(str(number), str(tmp_path / "kills") if number == 30 else "") for number in range(40)]
    (tmp_path / "kills").write_text("k")
    assert [number for number, _ in context._mapped(fragile, rows, 2)] == [number for number, _ in rows]
    (tmp_path / "kills").write_text("kk")
    with pytest.raises(RunError, match="a helping process was killed"):
        list(context._mapped(fragile, rows, 2))


def test_a_pipeline_gets_back_what_it_gave_and_is_told_why():
    prune = Pruner("htmlrag", "words=2", embedder=out_of_memory)
    with pytest.warns(UserWarning, match="left the documents as they were: unexpected RuntimeError: out of memory"):
        assert prune(["much memory", "a"], "b") == [(0, "much memory"), (1, "a")]
    with pytest.warns(UserWarning, match="documents are a list of texts, and here is NoneType"):
        assert prune(["a", None], "b") == [(0, "a"), (1, None)]
    with pytest.warns(UserWarning, match="documents are a list of texts, and here is None"):
        assert prune(None, "b") == []
    with pytest.warns(UserWarning, match="there is no question"):
        assert prune(["a"], None) == [(0, "a")]
    strict = Pruner("htmlrag", "words=2", embedder=out_of_memory, strict=True)
    with pytest.raises(RuntimeError, match=r"out of\s+memory"):
        strict(["memory"], "b")
    for documents, question in ([None], "b"), (None, "b"), (["a"], None):
        with pytest.raises(InputError):
            strict(documents, question)


def test_one_question_that_fails_gives_all_there_is_unless_strict():
    with pytest.raises(RuntimeError, match=r"out of\s+memory"):
        secateur.prune_context("htmlrag", "much memory", "a", "words=1", embedder=out_of_memory)
    with pytest.warns(UserWarning, match="htmlrag cut nothing for 'a': unexpected RuntimeError: out of memory"):
        found = secateur.prune_context(
            "htmlrag", ["<p>much memory</p>", "x"], ["a"], "words=1", embedder=out_of_memory, strict=False
        )[0]
    assert ("much memory" in found.text, found.before, found.after) == (True, {"words": 3.0}, {"words": 3.0})
    assert found.told == {"error": "unexpected RuntimeError: out of memory"}
    assert ["memory" in part for part in found.documents] == [True, False]
    with pytest.warns(UserWarning, match="a document is"):
        assert secateur.prune_context("htmlrag", ["a", None], "a", "words=1", strict=False).text == "a"
    with pytest.warns(UserWarning, match="there is no question"):
        assert secateur.prune_context("htmlrag", "a b", None, "words=1", strict=False).documents == ("<p>a b</p>",)
    with pytest.raises(InputError, match="has no option"):
        secateur.prune_context("htmlrag", "a", "a", "words=1", strict=False, blok=1)


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


@contextmanager
def piped(path, text):
    """A pipe through which a text comes once."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writer.start()
    yield path
    writer.join(30)
    path.unlink()


@pytest.mark.parametrize(("count", "many"), [(3, None), (70, 2)])
def test_a_pipe_is_read_once(tmp_path, count, many):
    text = written(tmp_path / "in.jsonl", count).read_text()
    secateur.prune_file("htmlrag", tmp_path / "in.jsonl", tmp_path / "file.jsonl", "words=12")
    with piped(tmp_path / "pipe", text) as pipe:
        told = secateur.prune_file("htmlrag", pipe, tmp_path / "out.jsonl", "words=12", processes=many)
    assert told == (count, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "file.jsonl").read_bytes()
    with piped(tmp_path / "pipe", text) as pipe:
        assert context.estimate_file("htmlrag", pipe, "words=12").count == count


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


# --------------------------------------------------------------------------------------------------------- estimates


def test_what_a_file_comes_to_is_told_by_its_first_lines_and_nothing_is_written(tmp_path):
    source = written(tmp_path / "in.jsonl", 40)
    found = context.estimate_file("htmlrag", source, "words=12")
    assert (found.count, found.tried, found.failed, found.calls) == (40, 8, 0, 0)
    assert found.seconds > 0
    secateur.prune_file("htmlrag", source, tmp_path / "out.jsonl", "words=12", processes=1)
    first = lines(tmp_path / "out.jsonl")[:8]
    assert found.before == {"words": sum(row["words_before"] for row in first)}
    assert found.after == {"words": sum(row["words_after"] for row in first)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.run.yaml"]


def test_lines_with_errors_are_counted_and_where_all_have_one_it_is_said(tmp_path):
    (tmp_path / "in.jsonl").write_text('no json\n{"question": "a", "html": "<p>a b c</p>"}\n')
    found = context.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2")
    assert (found.tried, found.failed, found.before) == (2, 1, {"words": 3.0})
    (tmp_path / "in.jsonl").write_text("no json\n" * 3)
    with pytest.raises(DataError, match="this line is no JSON"):
        context.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2")
    with pytest.raises(InputError, match="give no graph"):
        context.estimate_file("htmlrag", tmp_path / "in.jsonl", "words=2", graph="x")


def test_what_one_question_comes_to():
    found = context.estimate_context("htmlrag", [PAGE, PAGE], "mayor of town5", "words=12")
    assert (found.count, found.tried) == (1, 1)
    assert found.after["words"] <= 12 < found.before["words"]


# --------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("learner"), tiny.letters()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_path_model_is_trained_saved_and_prunes(learner, tmp_path):
    rows = [{"question": f"town{i}", "html": PAGE, "answers": f"person{i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = dict(windows=[3000], rates=[1.0], epochs=1, accumulate=2, lr=1e-3)
    made = secateur.train_pruner("htmlrag", learner, tmp_path / "rows.jsonl", tmp_path / "out", **how)
    assert (made.steps, len(made.losses)) == (2, 2)
    assert secateur.train_pruner("htmlrag", learner, tmp_path / "rows.jsonl", tmp_path / "out", **how) == made
    trained, old = (AutoModelForCausalLM.from_pretrained(place) for place in (tmp_path / "out", learner))
    assert any(not a.equal(b) for a, b in zip(trained.parameters(), old.parameters(), strict=True))
    options = dict(tokenizer=characters, path_model=str(tmp_path / "out"))
    found = secateur.prune_context("htmlrag", PAGE, "mayor of town5", "tokens=300", **options)
    assert len(found.text) <= 300
    assert list(found.trace) == ["page", "page.fine"]
    told = context.configured(tmp_path / "out" / "run.yaml", {"out": tmp_path / "repeated"})
    assert secateur.train_pruner(**told).losses == made.losses
    assert (tmp_path / "repeated/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(RunError, match="epochs=1"):
        secateur.train_pruner("htmlrag", learner, rows, tmp_path / "out", **{**how, "epochs": 2})
    with Run.open(tmp_path / "out", {}) as run:  # nobody else holds it
        assert run.root == tmp_path / "out"


def test_rows_that_teach_nothing_are_refused(learner, tmp_path):
    with pytest.raises(InputError, match="wanda trains no model"):
        secateur.train_pruner("wanda", learner, [], tmp_path / "out")
    with pytest.raises(DataError, match="no row to learn from"):
        secateur.train_pruner("htmlrag", learner, [], tmp_path / "out")
    with pytest.raises(DataError, match="row 1 has no answers"):
        secateur.train_pruner("htmlrag", learner, [{"question": "a", "html": "<p>b</p>"}], tmp_path / "out")
    for bad in ({"html": "<p>b</p>"}, {"question": "a", "html": "<p>b</p>", "answers": [3]}):
        with pytest.raises(DataError, match="row 1 lacks question or answers"):
            secateur.train_pruner("htmlrag", learner, [bad], tmp_path / "out")
    row = {"question": "a", "html": "<p>b</p>", "answers": ["b"]}
    with pytest.raises(InputError, match="is no folder here"):
        secateur.train_pruner("htmlrag", tmp_path / "none", [row], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paragraphs_are_those_between_blank_lines():
    assert readings.paragraphs("a\nb\r\n\r\n  \n\nc <d>") == "<section><p>a\nb</p><p>c &lt;d&gt;</p></section>"


# ---------------------------------------------------------------------------------------------------------- passages


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruner")
    keeper.taught().save(folder)
    return str(folder)


ASKED = keeper.sentence(3)
PARTS = [keeper.sentence(20, 21, 22, 23), keeper.sentence(3, 30, 31, 32), keeper.sentence(24, 25, 26, 27)]


def test_passages_with_titles_and_what_else_is_told(pruner):
    how = {"model": pruner, "always_select_title": True}
    found = secateur.prune_context(
        "provence", [PARTS, PARTS[:1]], ASKED, "tokens=100%", titles=["of this", None], **how
    )
    assert found.text == f"of this {PARTS[1]}"
    assert found.documents == (found.text, "")
    assert len(found.told["reranking_scores"]) == 2
    assert set(found.trace) == {"passage 1", "passage 2"}
    given = [PARTS[2], PARTS[1], PARTS[0]]
    how = {"model": keeper.lexical(), "threshold": -1.0, "reorder": True}
    found = secateur.prune_context("provence", given, ASKED, "tokens=100%", **how)
    assert found.documents == tuple(given)
    assert found.text.split("\n\n")[0] == PARTS[1]


def test_html_and_files_are_read_as_text(pruner, tmp_path):
    page = "".join(f"<p>{part}</p>" for part in PARTS)
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "a.txt").write_text("\n\n".join(PARTS))
    for document in (page, page.encode(), tmp_path / "a.html", tmp_path / "a.txt"):
        found = secateur.prune_context("provence", document, ASKED, "tokens=100%", model=pruner)
        assert found.text == PARTS[1]


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


def test_half_an_emoji_is_read_as_what_it_is_not(pruner):
    half = "\ud83d"
    given = {"titles": [half], "model": pruner, "threshold": -1.0}
    for document in (f"{ASKED} {half}", [ASKED, half]):
        found = secateur.prune_context("provence", [document], f"{ASKED} {half}", "tokens=100%", **given)
        assert found.text.split() == ["?", *ASKED.split(), "?"]


def test_a_pruner_of_passages_for_pipelines(pruner):
    prune = Pruner("provence", "tokens=100%", model=pruner)
    assert prune(["\n\n".join(PARTS), PARTS[0], f"<p>{PARTS[1]}</p>"], ASKED) == [(0, PARTS[1]), (2, PARTS[1])]


def test_training_a_pruner_of_passages(tmp_path):
    keeper.fresh().save(tmp_path / "reranker")
    rows = [{"question": row["question"], "passages": row["documents"], "kept": row["kept"]}
            for row in keeper.lesson(40, 0)]  # fmt: skip
    how = {"batch": 8, "longest": 32, "held_out": 0.1}
    made = secateur.train_pruner("provence", tmp_path / "reranker", rows, tmp_path / "out", **how)
    assert made.steps == 4
    found = secateur.prune_context("provence", [PARTS], ASKED, "tokens=6", model=str(tmp_path / "out"))
    assert found.after["tokens"] <= 6
    again = secateur.train_pruner("provence", tmp_path / "reranker", rows, tmp_path / "out", **how)
    assert again == made
    told = json.loads((tmp_path / "out" / "training.json").read_text())
    assert told["recovery"]["settings"]["held_out"] == made.settings["held_out"]
    assert told["notes"][1].startswith(f"{made.settings['held_out']['after']['pairs']} pairs held out: F1")


def test_training_from_a_file_of_labelled_sentences_tells_what_is_held_out(tmp_path):
    keeper.fresh().save(tmp_path / "reranker")
    rows = [{"question": row["question"], "sentences": row["documents"][0],
             "labels": [int(i in row["kept"][0]) for i in range(len(row["documents"][0]))]}
            for row in keeper.lesson(20, 0)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("reranker", "--data", "rows.jsonl", "--out", "out", "--batch", "8", "--held-out", "0.2")
    done = processes.run(tmp_path, "train-pruner", "provence", *given)
    assert done.code == 0, done.stderr
    told = json.loads((tmp_path / "out" / "training.json").read_text())["notes"]
    assert done.stderr.splitlines()[-len(told) :] == told
    assert told[0].endswith("pairs of 20 rows; 0 passages had no label")
    assert " pairs held out: F1 of kept sentences " in told[1]


# ------------------------------------------------------------------------------------------------------------- graphs


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "graph.csv"
    path.write_text("subject,predicate,object\nsalbutamol,treats,asthma\nAcme,makes,salbutamol\nasthma,affects,lung\n")
    return path


@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_graph_is_a_file_or_opened_already(recipe, graph):
    for source in (graph, str(graph), secateur.open_graph(graph)):
        found = secateur.prune_context(recipe, source, "What treats asthma?", "words=40")
        assert "salbutamol" in found.text
        assert found.after["words"] <= 40
        assert "notes" in found.told
    with pytest.raises(
        InputError, match=r"reads a graph and no documents, which .*: take htmlrag or provence, or call"
    ):
        Pruner(recipe, "words=3")
    with pytest.warns(UserWarning, match=f"{recipe} cut nothing for ' ': there is no question"):
        found = secateur.prune_context(recipe, graph, " ", "words=40", strict=False)
    assert (found.text, found.told) == ("", {"error": "there is no question: say what the documents are to answer"})


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


class Halved:
    """A language model that says half an emoji."""

    def __init__(self):
        self.meter = chat.Meter()

    def ask(self, question, *, most=256, temperature=0.0, seed=0):
        return chat.Answer("salbutamol \ud83d")


def test_a_reply_with_half_an_emoji_ends_no_run(graph, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "What treats asthma?"}\n')
    how = {"graph": graph, "llm": Halved(), "answer": True}
    assert secateur.prune_file("kg_rag", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "words=40", **how) == (1, 0)
    assert lines(tmp_path / "out.jsonl")[0]["told"]["answer"] == "salbutamol \ud83d"
