"""Tables by columns of other names than `text` and `label`: one way for every command that reads data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import tiny
from secateur import cli
from secateur.data import texts
from secateur.errors import DataError, DataWarning, InputError
from secateur.reports import evidence
from secateur.runs import executor, splits
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.backends.streamed import OnDisk
from secateur.studies import baselines
from secateur.subjects import open_subject

BUILD = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
"""
NAMED = ["--text", "review", "--label", "stars"]
QUICK = ["--steps", "2", "--batch", "8", "--length", "16"]
CUT = [
    "prune",
    "net.py:build",
    "--budget",
    "channels=50%",
    "--data",
    "named.npz",
    "--out",
    "small",
    "--input",
    "1x1x2x2",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("columns")
    for name, spoken in (("data", tiny.sentences(60)), ("test", tiny.sentences(20, seed=1))):
        rows = [{"review": text, "stars": "ab"[len(text) % 2]} for text in spoken]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        usual = [{"text": row["review"], "label": row["stars"]} for row in rows]
        (root / f"usual-{name}.jsonl").write_text("\n".join(map(json.dumps, usual)))
    (root / "lines.txt").write_text("\n".join(tiny.sentences(20)))
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny.classifier(seed=seed).save_pretrained(root / name)
        tiny.tokenizer().save_pretrained(root / name)
    tiny.folder("llama", root / "llama")
    (root / "net.py").write_text(BUILD)
    tiny.training_set(root)
    with np.load(root / "data.npz") as found:
        np.savez(root / "named.npz", inputs=found["inputs"], stars=found["labels"])
        np.savez(root / "judged.npz", inputs=found["inputs"][::7], stars=found["labels"][::7])
    return root


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def settings(out: str) -> dict[str, object]:
    return dict(yaml.safe_load(Path(out, "run.yaml").read_text()))


def test_distill_learns_from_columns_and_is_tied_to_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["distill", "student", "--from", "teacher", *QUICK, "--task", "0.5"]
    both = ["--data", "data.jsonl", "--held-out", "test.jsonl"]
    assert cli.main([*asked, *both, *NAMED, "--out", "taught"]) in (0, 1)
    found, (row,) = settings("taught"), evidence.read(Path("taught"))
    assert (found["text"], found["label"]) == ("review", "stars")
    assert "accuracy" in row.after
    usual = ["--data", "usual-data.jsonl", "--held-out", "usual-test.jsonl"]
    assert cli.main([*asked, *usual, "--out", "usual"]) in (0, 1)
    assert not {"text", "label"} & settings("usual").keys(), "what a run of the usual columns always was"
    assert Path("taught/model.safetensors").read_bytes() == Path("usual/model.safetensors").read_bytes()
    assert cli.main(["distill", "--config", "taught/run.yaml", "--out", "taught"]) in (0, 1)
    capsys.readouterr()
    assert cli.main([*asked, *both, *NAMED, "--out", "usual"]) == 2
    assert "holds a run with text=not set, not text=review:" in capsys.readouterr().err


@pytest.mark.wide
def test_a_run_and_its_rivals_from_scratch_read_the_same_columns(place: Path) -> None:
    how = ["--batch", "1", "--length", "16", "--steps", "2", "--calibration", "16", "--trials", "0",
           "--train-batch", "8", "--train-length", "16"]  # fmt: skip
    asked = ["run", "ziplm", "llama", "--budget", "params=80%", "--data", "data.jsonl", "--held-out", "test.jsonl"]
    assert cli.main([*asked, *NAMED, *how, "--out", "cut", "--scratch-baseline", "E"]) == 0
    (row,) = evidence.read(Path("cut"))
    assert "perplexity" in row.after
    assert set(row.baselines) == {"scratch-E", "random units"}
    assert (settings("cut")["text"], settings("cut")["label"]) == ("review", "stars")
    assert cli.main(["run", "--config", "cut/run.yaml", "--out", "cut"]) == 0
    (row,) = baselines.add("cut", "llama", "data.jsonl", "test.jsonl")
    assert set(row.baselines) == {"every second layer", "magnitude"}


def test_prune_takes_the_array_of_classes_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*CUT, "--held-out", "judged.npz", "--label", "stars", "--score", "taylor"]) == 0
    (row,) = evidence.read(Path("small"))
    assert "accuracy" in row.after
    assert settings("small")["label"] == "stars"
    assert "text" not in settings("small")
    assert cli.main([*CUT, "--label", "stars", "--text", "review"]) == 2
    said = "secateur: networks read examples, which have no column of texts, so text='review' says nothing: leave it"
    assert said in capsys.readouterr().err


def test_measure_reads_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["measure", "student", "--batch", "2", "--length", "16", "--json", "--data"]
    assert cli.main([*asked, "data.jsonl", *NAMED]) == 0
    named = json.loads(capsys.readouterr().out)["model"]
    assert cli.main([*asked, "usual-data.jsonl"]) == 0
    assert named["accuracy"] == json.loads(capsys.readouterr().out)["model"]["accuracy"]
    assert cli.main([*asked, "data.jsonl", "--text", "review", "--label", ""]) == 0
    assert "accuracy" not in json.loads(capsys.readouterr().out)["model"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill", "student", "--from", "teacher", "--data", "data.jsonl", "--text", "review", "--label", "star",
          "--out", "x"], "data.jsonl has no column 'star': it has stars, review"),
        (["distill", "student", "--from", "teacher", "--data", "data.jsonl", "--text", "reviw", "--out", "x"],
         "data.jsonl, line 1, has no text in 'reviw': it has review, stars"),
        (["distill", "student", "--from", "teacher", "--data", "data.jsonl", "--held-out", "usual-test.jsonl", *NAMED,
          "--out", "x"], "usual-test.jsonl, line 1, has no text in 'review': it has text, label"),
        (["prune", "net.py:build", "--budget", "channels=50%", "--data", "named.npz", "--label", "star", "--out", "x"],
         "named.npz has no array 'star': it has stars, inputs"),
        (["measure", "student", "--data", "lines.txt", "--label", "stars"],
         "lines.txt holds lines of text, which have no columns, so label='stars' says nothing: leave it out"),
        (["measure", "student", *NAMED], "no data is given, so text='review' says nothing: leave it out"),
        (["prune", "net.py:build", "--budget", "channels=50%", "--input", "1x1x2x2", "--label", "stars", "--out", "x"],
         "no data is given, so label='stars' says nothing: leave it out"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("x").exists()


def test_lines_without_classes_are_lines(place: Path) -> None:
    assert Language().read("lines.txt", label="").digest == Language().read("lines.txt").digest
    with pytest.raises(DataError, match="lines of text, which have no columns, so text='review'"):
        Language().read("lines.txt", text="review")
    assert OnDisk().read("data.jsonl", "review", "stars").classes == ("a", "b")
    assert len(Language().read(["one text", "another"], "review")) == 2


def test_an_index_reads_the_columns_that_it_was_made_by(place: Path) -> None:
    assert cli.main(["prune-data", "data.jsonl", *NAMED, "--budget", "examples=50%", "--out", "kept"]) == 0
    found = Language().read("kept/examples=50%")
    assert found.classes == ("a", "b")
    assert Language().read("kept/examples=50%", "review", "stars").digest == found.digest
    with pytest.raises(DataError, match="is of data read with label='stars', not 'votes': leave label out"):
        Language().read("kept/examples=50%", "review", "votes")
    assert cli.main(["prune-data", "data.npz", "--budget", "examples=50%", "--out", "arrays"]) == 0
    with pytest.raises(DataError, match="is of data read with label='label', not 'stars': leave label out"):
        Network().read("arrays/examples=50%", label="stars")


def test_splits_in_a_dict_are_texts_to_learn_from_and_to_measure_on() -> None:
    splits_of = {"train": {"text": ["one", "two"]}, "validation": [{"text": "three"}]}
    with pytest.warns(DataWarning, match="quality is measured on validation"):
        found = splits.read(Language(), splits_of, splits.find_held_out(Language(), splits_of))
    assert [list(part.texts) for part in found if isinstance(part, texts.Corpus)] == [["one", "two"], ["three"]]
    _, named = splits.read(Language(), splits_of, splits.find_held_out(Language(), splits_of, {"text": ["four"]}))
    assert isinstance(named, texts.Corpus)
    assert list(named.texts) == ["four"]


@pytest.mark.parametrize("backend", [Language(), OnDisk()])
def test_texts_in_parts_are_judged_on_those_that_are_there_for_it(tmp_path: Path, backend: Language | OnDisk) -> None:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text(f"of {name}\n" * 3)
    with pytest.warns(DataWarning, match="train is read"):
        found = splits.read(backend, tmp_path, splits.find_held_out(backend, tmp_path))
    assert [set(part.texts) for part in found if isinstance(part, texts.Corpus)] == [{"of train"}, {"of dev"}]
    with pytest.warns(DataWarning, match="test is read"):
        _, named = splits.read(backend, tmp_path, f"{tmp_path}:test")
    assert isinstance(named, texts.Corpus)
    assert set(named.texts) == {"of test"}
    assert splits.find_held_out(backend, tmp_path / "train.txt") is None


@pytest.mark.filterwarnings("ignore::secateur.errors.DataWarning")
def test_what_is_said_of_texts_is_among_the_notes_of_the_run(tmp_path: Path) -> None:
    subject = open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    lines = [{"text": line} for line in [*tiny.sentences(40), " "]]
    (tmp_path / "texts").mkdir()
    for part in ("train", "dev"):
        (tmp_path / "texts" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    how = dict(samples=8, train_length=4, batch=1, length=4)
    for number in range(2):  # whatever was said before
        (row,) = executor.run(
            "shortgpt", subject, tmp_path / "texts", "params=90%", tmp_path / str(number), dry_run=bool(number), **how
        )
        notes = "\n".join(row.cut.notes)
        assert "texts holds files of several parts by their names, train (1), validation (1): train is read" in notes
        assert "1 texts of texts are blank and are passed over" in notes
        assert "texts of texts are longer than 4 tokens and are cut there" in notes
        assert len(set(row.cut.notes)) == len(row.cut.notes)


@pytest.mark.filterwarnings("ignore:part:secateur.errors.DataWarning")
@pytest.mark.parametrize(("suffix", "words"), [
    ("txt", "part:test holds lines of text, which have no columns, so label='stars' says nothing"),
    ("jsonl", "part:test has no column 'stars': it has text, label"),
])  # fmt: skip
def test_columns_that_a_part_of_a_folder_lacks_are_refused(tmp_path: Path, suffix: str, words: str) -> None:
    (tmp_path / "part").mkdir()
    for part in ("train", "test"):
        (tmp_path / "part" / f"{part}.{suffix}").write_text('{"text": "one", "label": 1}')
    for given in ((f"{tmp_path}/part:test", None), (["one"], f"{tmp_path}/part:test")):
        with pytest.raises(DataError, match=words):
            splits.read(Language(), *given, label="stars")
        assert splits.read(Language(), *given)[0]


@pytest.mark.filterwarnings("ignore:tx:secateur.errors.DataWarning")
def test_the_record_of_a_run_on_texts_in_parts_repeats_it(place: Path) -> None:
    (place / "w" / "tx").mkdir(parents=True)
    for part in ("train", "test"):
        (place / "w" / "tx" / f"{part}.txt").write_text("\n".join(tiny.sentences(20, seed=len(part))))
    how = ["--data", "w/tx", "--budget", "weights=50%", "--batch", "2", "--length", "8"]
    assert cli.main(["run", "magnitude", "llama", *how, "--out", "judged"]) == 0
    record = yaml.safe_load((place / "judged" / "run.yaml").read_text())
    assert record["held_out"] == "w/tx:test"
    assert texts.read(record["held_out"]).digest == record["held_out_sha256"]
    assert cli.main(["run", "--config", "judged/run.yaml", "--out", "again", "--dry-run"]) == 0


def test_both_are_read_alike_and_what_is_read_already_stays(place: Path) -> None:
    corpus, apart = splits.read(Language(), "data.jsonl", "test.jsonl", text="review", label="stars")
    assert (len(corpus), len(apart)) == (60, 20)
    assert corpus.classes == apart.classes == ("a", "b")
    assert splits.read(Language(), corpus, "test.jsonl", text="review", label="stars")[0] is corpus
    assert corpus.digest == texts.read("usual-data.jsonl").digest
    assert splits.read(Network(), None) == (None, None)
    with pytest.raises(InputError, match="held_out is what quality is measured on beside the data"):
        splits.read(Network(), None, "judged.npz")
    assert splits.columns("text", "label") == {}
    assert splits.columns("text", "") == {"label": ""}
