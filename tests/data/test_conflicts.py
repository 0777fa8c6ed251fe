"""Fact tables and conflict prompts: read, written, split."""

from __future__ import annotations

import json

import pytest

from secateur.data import conflicts
from secateur.data.conflicts import Conflict, Conflicts, Facts
from secateur.errors import DataError

TEMPLATE = {"relation": "capital", "template": "The capital of {subject} is"}
FACT = {"subject": "France", "relation": "capital", "object": "Paris"}
PROMPT = {"prompt": "The capital of France is Rome. The capital of France is", "memory": " Paris", "context": " Rome"}


def prompts(count=10, each=2):
    return Conflicts([Conflict(f"p{at}", " a", " b", subject=f"s{at // each}", relation="r") for at in range(count)])


def test_a_table_and_prompts_are_read_and_written_again(tmp_path):
    table = conflicts.read([TEMPLATE, FACT])
    assert isinstance(table, Facts)
    assert table.templates == {"capital": ["The capital of {subject} is"]}
    assert table.triples == [("France", "capital", "Paris")]
    found = conflicts.read([PROMPT, {**PROMPT, "kind": "mine", "template": 2, "subject": "France"}])
    assert isinstance(found, Conflicts)
    assert (found.items[0].kind, found.items[1].kind, found.items[1].template) == ("substitution", "mine", 2)
    conflicts.write(found, tmp_path / "prompts.jsonl")
    again = conflicts.read(tmp_path / "prompts.jsonl")
    assert again.items == found.items
    assert again.digest == found.digest
    assert len(set(found.keys().tolist())) == 1  # one prompt, twice
    assert conflicts.read(found) is found


def test_a_split_keeps_what_is_on_one_subject_together():
    rest, held = prompts(20).split(0.3, seed=1)
    assert len(rest) + len(held) == 20
    assert {one.subject for one in rest.items}.isdisjoint(one.subject for one in held.items)
    assert len({one.subject for one in held.items}) == 3
    assert prompts(20).split(0.3, seed=1)[1].items == held.items
    assert prompts(20).split(0.3, seed=2)[1].items != held.items
    with pytest.raises(DataError, match="asks about 1 subject: give at least 2"):
        prompts(4, each=4).split()


def test_prompts_are_chosen_by_relation_and_kind():
    data = Conflicts([Conflict("a", "b", "c", relation=r, kind=k) for r in "xy" for k in ("one", "two")])
    assert [one.kind for one in data.choose(relation="x").items] == ["one", "two"]
    assert len(data.choose(relation="y", kind="one")) == 1
    assert len(data.choose()) == 4
    with pytest.raises(DataError, match="no prompt of relation=z: it has x, y"):
        data.choose(relation="z")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no row"),
        ([FACT], "no template of 'capital': add a row such as"),
        ([TEMPLATE, {"subject": "France"}], "row 2 has subject: give facts"),
        ([TEMPLATE, FACT, PROMPT], "row 3 has context, memory, prompt: give facts"),
        ([{**TEMPLATE, "template": "The capital is"}], "needs {subject} once"),
        ([TEMPLATE, {**FACT, "object": 3}], "row 2: object is 3, no text"),
        ([{**PROMPT, "memory": " "}], "row 1: memory is ' ', no text"),
        ([{**PROMPT, "answer": "x"}], "unknown field 'answer'"),
        ([{**PROMPT, "template": "x"}], "template is 'x', no whole number"),
    ],
)
def test_wrong_rows_are_refused_in_one_line(tmp_path, rows, words):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as error:
        conflicts.read(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_json_lines_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match="is not there"):
        conflicts.read(file)
    with pytest.raises(DataError, match="the rows are no mappings: give facts, or conflict prompts"):
        conflicts.read(["a text"])
    for content, words in (
        (b"\xff\n", "not UTF-8 at byte 0"),
        (b"{\n", "line 1, is not JSON"),
        (b"[" * 200_000 + b"\n", "line 1, is not JSON"),
        (b'{"template": ' + b"9" * 5000 + b"}\n", "line 1, is not JSON"),
        (b'{"prompt": "a \\ud800 is", "memory": "x", "context": "y"}\n', r"row 1, in prompt, holds \\ud800"),
        (b'{"relation": "a", "template": "{subject} \\ud800"}\n', r"row 1, in template, holds \\ud800"),
        (b"[1]\n", "holds no object"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=words) as error:
            conflicts.read(file)
        assert "\n" not in str(error.value)


def test_lines_end_where_json_lines_end(tmp_path):
    """A mark of the byte order is no part of the first line, and other ends of lines stand within a text."""
    items = [Conflict("a\u2028b \x85 is", " x", " y")]
    file = tmp_path / "rows.jsonl"
    conflicts.write(Conflicts(items), file)
    assert conflicts.read(file).items == items
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert conflicts.read(file).items == items
