"""Surveys by Ray Data are those of one process, whatever the kind of file; and what can't be read is told in a line.

Ray's workers import this module for `letters`, so that on top it imports nothing that takes seconds: no torch.
"""

from __future__ import annotations

import csv
import json
import socket

import numpy as np
import pytest

from secateur.data import ray_data, texts
from secateur.data.shelf import CHUNK
from secateur.data.survey import survey
from secateur.errors import DataError, InputError

ray = pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")

ROWS = [{"text": f"Text {i % 997}" + " word" * (i % 5), "label": "bca"[i % 3]} for i in range(2 * CHUNK + 100)]


@pytest.fixture(scope="module", autouse=True)
def running():
    """One Ray for the module, as a survey starts and ends it: that takes seconds. Order is left to each survey."""
    with ray_data._running():
        ray.data.DataContext.get_current().execution_options.preserve_order = False
        yield
    assert not ray.is_initialized()


def letters(some):
    return [len(text) for text in some]


def same(found, other):
    assert (found.digest, found.classes, len(found)) == (other.digest, other.classes, len(other))
    assert (found.labels is None) == (other.labels is None)
    assert found.labels is None or np.array_equal(found.labels, other.labels)
    assert found.costs().keys() == other.costs().keys()
    for measure, column in other.costs().items():
        assert np.array_equal(found.costs()[measure], column)
    for how in (False, True):
        assert np.array_equal(found.keys(normalised=how), other.keys(normalised=how))


def written(path, rows):
    if path.suffix == ".txt":
        path.write_text("\n".join(row["text"] for row in rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["text", "label"])
            table.writeheader()
            table.writerows(rows)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_a_file_is_told_of_as_by_one_process(suffix, tmp_path):
    path = written(tmp_path / f"rows{suffix}", ROWS)
    given = path if suffix != ".csv" else ROWS
    same(ray_data.survey(path, counts={"letters": letters}), survey(given, counts={"letters": letters}))


def test_a_folder_in_its_order_and_blank_texts_left_out(tmp_path):
    rows = [*ROWS[:5], {"text": "  ", "label": "a"}, *ROWS[5:50]]
    for number in range(4):
        written(tmp_path / f"part-{number}.parquet", rows[number * 13 :][:13])
    same(ray_data.survey(tmp_path), survey(tmp_path))


@pytest.mark.parametrize("labels", [["a", None], [None], [0.5, 1], [2.0, 1.0], [["B", "O"], ["O"]], [{"id": 1}]])
def test_labels_that_are_no_classes_are_told_as_by_one_process(labels, tmp_path):
    rows = [{**row, "label": labels[number % len(labels)]} for number, row in enumerate(ROWS[:40])]
    path = written(tmp_path / "rows.jsonl", rows)
    found, other = ray_data.survey(path), survey(path)
    same(found, other)
    assert found.flaw == other.flaw
    assert bool(found.flaw) == (labels not in ([None], [2.0, 1.0]))
    given = ray_data.survey(ray.data.from_items([{"text": row["text"], "kind": row["label"]} for row in rows]),
                            label="kind")  # fmt: skip
    assert given.flaw == other.flaw.replace("rows.jsonl", "ray data set").replace("'label'", "'kind'")


def test_a_data_set_with_columns_of_its_own_names():
    rows = [{"body": row["text"], "kind": number % 4} for number, row in enumerate(ROWS[:300])]
    given = ray.data.from_items(rows)
    assert ray_data.is_dataset(given)
    found = ray_data.survey(given, column="body", label="kind")
    same(found, survey(rows, column="body", label="kind"))
    assert not ray_data.is_dataset(rows)
    with pytest.raises(DataError, match=r"^ray data set has no column 'kinds': it has kind, body$"):
        ray_data.survey(given, column="body", label="kinds")
    whole = ray.data.from_items([{"body": "one", "kind": 1}] * CHUNK, override_num_blocks=1)
    parts = whole.union(ray.data.from_items([{"body": "of no kind"}]))  # a batch of its own, without the column
    assert "has no label in 'kind', as 1 of 1025" in ray_data.survey(parts, column="body", label="kind").flaw


def test_a_training_set_is_cut_and_its_index_fits_the_corpus_read_whole(tmp_path):
    from secateur import cli
    from secateur.runs import data

    path = written(tmp_path / "rows.jsonl", ROWS)
    how = {"score": "length", "dry_run": True, "deduplicate": "exact"}
    (ours,), (plain,) = (data.prune_data(path, "words=20%", "", ray=one, **how) for one in (True, False))
    assert np.array_equal(ours.subject.kept, plain.subject.kept)
    assert ours.cut == plain.cut
    asked = ["prune-data", str(path), "--ray", "--score", "length", "--budget", "words=20%"]
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 0
    kept = type(ours.subject).load(texts.read(path), tmp_path / "out" / "words=20%")
    assert len(kept) == len(np.load(tmp_path / "out" / "words=20%" / "index.npz")["kept"])


def test_lines_are_ours_and_not_those_of_other_readers(tmp_path):
    """Ray's own readers keep blanks at a line's end, and end lines at form feeds and at Unicode's separators."""
    texts_of = ["one ", "  two", "three\x0cand more", "four\u2028and more", "five\x85and more", "\ufeffsix"]
    (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts_of).encode())
    found = ray_data.survey(tmp_path / "rows.txt")
    same(found, survey(tmp_path / "rows.txt"))
    assert len(found) == len(texts_of)


def test_a_folder_may_hold_files_of_several_kinds(tmp_path):
    for number, suffix in enumerate((".txt", ".jsonl", ".parquet")):
        written(tmp_path / f"{number}{suffix}", ROWS[number * 9 :][:9])
    same(ray_data.survey(tmp_path), survey(tmp_path))


def test_what_cannot_be_read_is_told_in_a_line(tmp_path):
    def refused(path, **how):
        with pytest.raises(DataError) as caught:
            ray_data.survey(path, **how)
        return str(caught.value)

    def as_alone(path, **how):
        with pytest.raises(DataError) as caught:
            survey(path, **how)
        return str(caught.value)

    rows, bad = written(tmp_path / "rows.jsonl", ROWS[:9]), tmp_path / "bad.jsonl"
    assert refused(rows, column="body") == as_alone(rows, column="body")
    for wrong in ('{"text": "one"}\n{"text": \n', '{"text": "one"}\n\n{"text": NaN}\n', '"one"\n', " \n"):
        bad.write_text(wrong)
        assert refused(bad) == as_alone(bad)
    (tmp_path / "bad.txt").write_bytes(b"one\n\xff\n")
    assert refused(tmp_path / "bad.txt") == as_alone(tmp_path / "bad.txt")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    assert refused(tmp_path / "bad.parquet") == as_alone(tmp_path / "bad.parquet")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == as_alone(tmp_path / "empty")
    assert "nothing.txt does not exist: give a" in refused(tmp_path / "nothing.txt")
    given = ray.data.from_items([{"text": "one"}, {"text": None}])
    assert refused(given) == "ray data set: a row has null and no text in 'text': write a text there, or drop the row"
    with pytest.raises(InputError, match="can't read a list"):
        ray_data.survey([{"text": "one"}])


def test_ray_is_not_started_for_what_it_does_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_data, "_running", lambda: pytest.fail("Ray was started"))
    np.savez(tmp_path / "x.npz", inputs=np.zeros((2, 2)))
    for given, error, words in (
        (
            tmp_path / "x.npz",
            DataError,
            r"x\.npz is no file of texts: give \.txt, \.jsonl, \.parquet, \.csv, or a folder",
        ),
        (tmp_path / "none.txt", DataError, r"none\.txt does not exist"),
        ([{"text": "one"}], InputError, "can't read a list"),
    ):
        with pytest.raises(error, match=words):
            ray_data.survey(given)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    if address.endswith(":99999"):  # a number that systems take modulo 65,536
        monkeypatch.setattr(socket, "create_connection", lambda *given: pytest.fail(f"asked at {given}"))
    with pytest.raises(InputError, match=f"no cluster answers at RAY_ADDRESS={address}: start it, or unset"):
        ray_data.survey(written(tmp_path / "rows.txt", ROWS[:9]))


def test_a_model_reads_what_ray_passed_over(tmp_path):
    import tiny
    from secateur.runs import data

    path, model = written(tmp_path / "rows.jsonl", ROWS[:1200]), str(tmp_path / "model")
    tiny.classifier("bca").save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    how = dict(score="grand", model=model, runs=1, epochs=0.1, length=16, deduplicate="normalised")
    for name, given, ours in (
        ("plain", path, False), ("held", texts.read(path), False), ("ray", path, True),
        ("set", ray.data.from_items(ROWS[:1200]), False),
    ):  # fmt: skip
        data.prune_data(given, "words=20%", tmp_path / name, ray=ours, **how)
    plain, held, by_ray = ((tmp_path / name / "words=20%/index.npz").read_bytes() for name in ("plain", "held", "ray"))
    assert plain == held == by_ray
    (tmp_path / "own.py").write_text("def first(data):\n    return [ord(text[5]) for text in data.texts]\n")
    own = dict(score=f"{tmp_path}/own.py:first", dry_run=True)
    found = data.prune_data(ray.data.from_items(ROWS[:9]), "examples=3", "", **own)[0].subject.scores[own["score"]]
    assert found.tolist() == [ord(row["text"][5]) for row in ROWS[:9]]
    one, other = (np.load(tmp_path / name / "words=20%/index.npz") for name in ("plain", "set"))
    assert all(np.array_equal(one[key], other[key]) for key in one.files if key != "name")
