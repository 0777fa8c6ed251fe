"""What stands beside a result says what was run, and repeats it."""

from __future__ import annotations

import json

import pytest
import yaml

pytest.importorskip("selectolax")

import secateur
from secateur.errors import DataError, InputError
from secateur.runs import context_files, records

PAGE = "<h1>Trees</h1><p>Apple trees are pruned in winter.</p><p>Cherry trees are pruned in summer.</p>"


def test_a_file_says_all_that_flags_say_and_flags_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "command: prune-context\nrecipe: htmlrag\nin: a.jsonl\nbudget: words=9\ntrace: true\nheaded: false\nwide: 3\n"
        "in_sha256: abc\ncounts: {lines: 2}\nversions: {torch: 2}\nfiles: [a.html]\n"
    )
    flags, options = records.settings(path, {"budget": "words=5", "headed": True})
    assert flags == {
        "recipe": "htmlrag", "in": "a.jsonl", "budget": "words=5", "trace": True, "files": ["a.html"],
    }  # fmt: skip
    assert options == {"headed": True, "wide": 3}
    for text, message in (
        ("recipe: htmlrag\nheded: false\n", "unknown key 'heded': did you mean 'headed'"),
        ("recipe: htmlrag\nmodel: a\n", "unknown key 'model'"),
        ("recipe: htmlrag\nin: 3\n", "in is 3: give text"),
        ("recipe: htmlrag\ntrace: perhaps\n", "option trace='perhaps'"),
        ("recipe: htmlrag\nfiles: a.html\n", "option files='a.html'"),
        ("command: train-pruner\nrecipe: htmlrag\n", "say secateur train-pruner --config"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            records.settings(path, {})


def test_a_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "pages").mkdir()
    page = tmp_path / "pages" / "a.html"
    page.write_text(PAGE)
    one, whole = records.digest(page), records.digest(tmp_path / "pages")
    page.rename(tmp_path / "pages" / "b.html")
    assert records.digest(tmp_path / "pages" / "b.html") == one
    assert records.digest(tmp_path / "pages") != whole
    with pytest.raises(DataError, match=r"a\.html"):
        records.digest(page)


def test_a_run_over_a_file_is_on_record_and_repeats(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"question": "cherry", "html": PAGE}) + "\nno line\n")
    secateur.prune_file("htmlrag", source, out, "words=7", trace=True, headed=False, processes=1)
    told = yaml.safe_load(records.record_path(out).read_text("utf-8"))
    assert told["counts"] == {"lines": 2, "failed": 1}
    assert told["in_sha256"] == records.digest(source)
    assert told["versions"]["secateur"] == secateur.__version__
    flags, options = records.settings(records.record_path(out), {"out": str(tmp_path / "again.jsonl")})
    again = flags.pop("out")
    secateur.prune_file(
        flags["recipe"], flags["in"], again, flags["budget"], trace=flags["trace"], processes=1, **options
    )
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    assert options["headed"] is False


def test_what_was_stopped_does_not_go_on_with_other_lines(tmp_path, monkeypatch):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    row = json.dumps({"question": "cherry", "html": PAGE}) + "\n"
    source.write_text(row * 3)

    def stopped(*_):
        yield row, False
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(context_files, "_map", stopped)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune_file("htmlrag", source, out, "words=7", processes=1)
    source.write_text(row * 2 + row.replace("cherry", "apple"))
    with pytest.raises(secateur.errors.RunError, match="other settings"):
        secateur.prune_file("htmlrag", source, out, "words=7", processes=1)
    assert not records.record_path(out).exists()
