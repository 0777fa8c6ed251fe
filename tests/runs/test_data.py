"""A training set cut to budgets: nested, balanced, resumed, by each kind of data, and what bad input gets."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections import deque
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import processes
import secateur
import tiny
from secateur.data import texts
from secateur.data.examples import Examples
from secateur.data.shelf import CHUNK, Texts
from secateur.data.survey import Survey
from secateur.data.texts import Corpus
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, RunError
from secateur.recover.training import rehearsal
from secateur.retrieval import encoders
from secateur.runs import data as module
from secateur.runs.backends.dataset import read_rows
from secateur.subjects import ExampleSet, open_subject

BUILD = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

def image():
    return nn.Conv2d(1, 3, 1)

def wide():
    return nn.Linear(5, 3)

def scores(data):
    return -torch.arange(len(data))

def rows(data):
    return -torch.tensor(data.rows["x"])

def short(data):
    return [1.0]

def nothing(data):
    return None

def fails(data):
    raise KeyError("x")
"""


class Ended(IterableDataset):
    """What is passed over once, and goes on where it was."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


class Passed(Dataset):
    """Rows by their places, and one after the other."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]

    def __iter__(self):
        return iter(self.rows)


def drawn(seed=0):
    """An image [4, 4, 3] of bytes."""
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def to_bytes(image):
    file = BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.fixture
def places(tmp_path):
    tiny.training_set(tmp_path)
    (tmp_path / "net.py").write_text(BUILD)
    rows = [{"text": " ".join(["w"] * (1 + i % 9)) + f" {i}", "label": "ab"[i % 2]} for i in range(50)]
    (tmp_path / "bare.jsonl").write_text('{"x": 1, "label": "a"}\n{"x": 2, "label": "b"}')
    (tmp_path / "some.jsonl").write_text('{"x": 1}\n{"x": 2, "text": "b"}')
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "W  w 1.", "label": "a"}])))
    return tmp_path


def test_budgets_are_nested_balanced_and_exact(places):
    found = secateur.prune_data(places / "data.npz", ["examples=10%", "examples=50%"], places / "out", seed=3)
    small, large = (one.subject for one in found)
    assert set(small.kept) < set(large.kept)
    assert np.bincount(small.labels).tolist() == [3, 2, 1]
    assert np.bincount(large.labels).tolist() == [15, 10, 5]
    assert found[0].predicted == found[0].cut.after
    rows = json.loads((places / "out" / "evidence.json").read_text())["results"]
    assert [row["verdict"] for row in rows] == ["met", "met"]
    again = ExampleSet.load(read_rows(places / "data.npz"), places / "out" / "examples=10%")
    assert np.array_equal(again.kept, small.kept)
    assert np.array_equal(again.data.inputs, small.data.inputs)
    other = secateur.prune_data(places / "data.npz", "examples=10%", places / "other", seed=4)[0]
    assert not np.array_equal(other.subject.kept, small.kept)


def test_the_array_of_classes_that_was_named_is_that_of_the_index_too(places):
    with np.load(places / "data.npz") as file:
        np.savez(places / "more.npz", **file, coarse=file["labels"] > 0)
    found = secateur.prune_data(places / "more.npz", "examples=50%", places / "out", label="coarse")[0].subject
    assert np.bincount(found.labels).tolist() == [15, 15]
    assert torch.equal(read_rows(places / "out" / "examples=50%").labels, found.data.labels)
    plain = secateur.prune_data(places / "more.npz", "examples=50%", places / "plain", label="")[0].subject
    assert plain.labels is None


def test_budgets_of_earlier_calls_stay_in_the_evidence(places):
    for budget in ("examples=50%", "examples=20%", "examples=50%"):
        secateur.prune_data(places / "data.npz", budget, places / "out", seed=3)
    rows = json.loads((places / "out" / "evidence.json").read_text())["results"]
    assert [row["target"] for row in rows] == ["examples=50%", "examples=20%"]
    assert all((places / "out" / row["target"] / "index.npz").is_file() for row in rows)


def test_another_budget_needs_no_scoring_and_a_kill_loses_one_training(places, monkeypatch):
    asked = []
    real = rehearsal.rehearse

    def counted(*given, **how):
        if len(asked) == 1 and "killed" not in asked:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append("done")
        return real(*given, **how)

    monkeypatch.setattr(module.rehearsal, "rehearse", counted)
    how = dict(score="el2n", model=f"{places}/net.py:build", runs=2, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune_data(places / "data.npz", "examples=20%", places / "out", **how)
    first = secateur.prune_data(places / "data.npz", "examples=20%", places / "out", **how)[0].subject
    assert asked == ["done", "killed", "done"]
    larger = secateur.prune_data(places / "data.npz", "examples=40%", places / "out", **how)[0].subject
    assert len(asked) == 3
    assert set(first.kept) < set(larger.kept)
    assert np.array_equal(first.scores["el2n"], larger.scores["el2n"])
    fresh = secateur.prune_data(places / "data.npz", "examples=20%", places / "fresh", **how)[0].subject
    assert (places / "fresh/examples=20%/index.npz").read_bytes() == (
        places / "out/examples=20%/index.npz"
    ).read_bytes()
    assert np.array_equal(fresh.kept, first.kept)
    with pytest.raises(RunError, match="holds a run with seed=0, not seed=1"):
        secateur.prune_data(places / "data.npz", "examples=20%", places / "out", seed=1, **how)


@pytest.mark.parametrize("score", ["el2n", "grand", "forgetting", "memorisation", "moderate", "herding"])
def test_every_score_of_a_network_in_training(places, score):
    runs = 2 if score == "memorisation" else 1
    how = dict(score=score, model=f"{places}/net.py:build", runs=runs, epochs=2)
    one, two = (
        secateur.prune_data(places / "data.npz", "examples=30%", places / name, **how)[0].subject for name in "ab"
    )
    assert np.array_equal(one.scores[score], two.scores[score])  # it repeats
    assert len(one) == 18
    assert len(np.unique(one.scores[score])) > 1
    for number in range(3):  # the best of each class
        own, kept = one.source.labels.numpy() == number, np.isin(np.arange(60), one.kept)
        assert one.scores[score][own & kept].min() >= one.scores[score][own & ~kept].max()


def test_a_network_is_trained_from_new_weights_and_left_as_it_is(places):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    before = [weight.clone() for weight in net.parameters()]
    secateur.prune_data(places / "data.npz", "examples=30%", places / "out", score="el2n", model=net, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_texts_are_passed_over_once(places):
    passes = itertools.count()

    def stream():
        next(passes)
        yield from (f"text {i} " + "w " * (i % 5) for i in range(200))

    found = secateur.prune_data(stream(), "words=25%", places / "out", score="length")[0]
    assert next(passes) == 1
    assert found.cut.after["words"] <= found.cut.before["words"] * 0.25
    lengths = found.subject.scores["length"]
    assert lengths[found.subject.kept].min() >= np.delete(lengths, found.subject.kept).max()
    held = ExampleSet.load(texts.read(list(stream())), places / "out" / "words=25%")
    assert held.data.texts[0].count("w") == 4


def test_a_file_of_texts_balances_and_drops_what_repeats(places):
    found = secateur.prune_data(places / "rows.jsonl", "examples=20", places / "out", deduplicate="normalised")[0]
    assert np.bincount(found.subject.labels).tolist() == [10, 10]
    assert found.notes == ("1 examples repeat an earlier one: dropped",)
    assert 50 not in found.subject.kept
    corpus = ExampleSet.load(texts.read(places / "rows.jsonl"), places / "out" / "examples=20").data
    assert isinstance(corpus, Corpus)
    exact = secateur.prune_data(places / "rows.jsonl", "examples=20", places / "b", deduplicate="exact")[0]
    assert exact.notes == ()


def test_what_repeats_is_told(places):
    found = secateur.prune_data(["one", "two", "one", "three"], "examples=50%", places / "out")[0]
    assert found.notes == ("1 examples repeat an earlier one: --deduplicate drops them first",)
    dropped = secateur.prune_data(["one", "two", "one", "three"], "examples=100%", places / "b", deduplicate="exact")[0]
    assert dropped.subject.kept.tolist() == [0, 1, 3]
    most = secateur.prune_data(["one", "two", "one", "three"], "examples=75%", places / "c", deduplicate="exact")[0]
    assert most.subject.kept.tolist() == [0, 1, 3], "a share is of the whole, repeats and all"


def test_tables_of_datasets(places, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", places / "cache")
    rows = datasets.Dataset.from_dict({"x": list(range(40)), "label": [i % 4 for i in range(40)]})
    rows.save_to_disk(str(places / "saved"))
    rows.to_csv(str(places / "rows.csv"))
    rows.to_parquet(str(places / "bare.parquet"))
    rows.to_json(str(places / "bare.jsonl"))
    files = [places / name for name in ("saved", "rows.csv", "bare.parquet", "bare.jsonl")]
    for score, out in ((f"{places}/net.py:rows", "own"), ("random", "out")):  # the function is given the table
        indices = [
            secateur.prune_data(source, "examples=50%", places / f"{out}{n}", score=score)[0].subject.kept.tolist()
            for n, source in enumerate((rows, *files))
        ]
        assert indices == indices[:1] * 5
    part = ExampleSet.load(read_rows(rows), places / "out0" / "examples=50%").data.rows
    assert part["x"] == indices[0]
    assert rows.select(np.load(places / "out0/examples=50%/index.npz")["kept"])["x"] == indices[0]


@pytest.fixture
def corpus(tmp_path):
    """Texts of two classes, of more than one chunk, a classifier of them, and places where the texts stand."""
    tiny.classifier("ba").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    spoken = tiny.sentences(CHUNK + 200)
    rows = [{"text": f"{text} {'é' * (i % 3)}", "label": "ab"[i % 3 % 2]} for i, text in enumerate(spoken)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path, rows


@pytest.mark.parametrize(("score", "epochs"), [("el2n", 0), ("forgetting", 0.2), ("memorisation", 0.2)])
def test_texts_on_the_disk_are_scored_as_in_memory(corpus, score, epochs):
    root, rows = corpus
    how = dict(score=score, model=root / "model", runs=2, epochs=epochs, length=16, deduplicate="exact", lr=1e-2)
    held = secateur.prune_data(texts.read(root / "rows.jsonl"), "words=30%", root / "held", **how)[0]
    disk = secateur.prune_data(root / "rows.jsonl", "words=30%", root / "disk", **how)[0]
    assert isinstance(disk.subject.data.texts, Texts)
    assert (root / "held/words=30%/index.npz").read_bytes() == (root / "disk/words=30%/index.npz").read_bytes()
    assert list(disk.subject.data.texts) == list(held.subject.data.texts)  # also when the run is over
    assert held.cut == disk.cut
    streamed = secateur.prune_data(iter(rows), "words=30%", root / "stream", **how)[0]
    assert np.array_equal(streamed.subject.scores[score], held.subject.scores[score])
    assert streamed.subject.source.digest == held.subject.source.digest
    assert sorted(path.name for path in (root / "disk").rglob("*") if path.is_file()) == [
        "evidence.json", "index.npz", "lock", "run.yaml", "scores-0.safetensors", "scores-1.safetensors"
    ]  # fmt: skip


def test_tables_on_the_disk_are_scored_as_in_memory(corpus, monkeypatch):
    root, rows = corpus
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    table = datasets.Dataset.from_list(rows)
    table.to_csv(str(root / "rows.csv"))
    how = dict(score="el2n", model=root / "model", runs=1, epochs=0.2, length=16)
    held = secateur.prune_data(read_rows(root / "rows.csv", held=True), "words=30%", root / "held", **how)
    disk = secateur.prune_data(root / "rows.csv", "words=30%", root / "disk", **how)
    assert isinstance(held[0].subject.source.texts, list)
    assert isinstance(disk[0].subject.source.texts, Texts)
    assert (root / "held/words=30%/index.npz").read_bytes() == (root / "disk/words=30%/index.npz").read_bytes()
    for place, given in (("set", table), ("table", read_rows(table))):
        other = secateur.prune_data(given, "words=30%", root / place, **how)[0].subject
        assert np.array_equal(other.scores["el2n"], disk[0].subject.scores["el2n"])
    table.add_column("empty", [None] * len(rows)).to_csv(str(root / "empty.csv"))
    with pytest.raises(DataError, match=r"empty.csv has None and no text in 'empty' of row 1: drop the row"):
        secateur.prune_data(root / "empty.csv", "words=30%", root / "bad", text="empty", **how)
    assert not (root / "bad").exists()


@pytest.mark.wide
def test_ctrl_c_and_the_same_command_again(corpus):
    root, _ = corpus
    words = ["prune-data", "rows.jsonl", "--score", "el2n", "--model", "model", "--runs", "3", "--epochs", "1",
             "--length", "16", "--budget", "words=30%", "--out"]  # fmt: skip
    child = processes.start(root, *words, "out")
    while not (root / "out/work/scores-0.safetensors").exists():
        assert child.poll() is None, child.stderr
        time.sleep(0.005)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
    assert not (root / "out/words=30%").exists()
    first = (root / "out/work/scores-0.safetensors").stat().st_mtime_ns
    assert sorted(path.name for path in root.iterdir()) == ["model", "out", "rows.jsonl"]
    for name in ("out", "whole"):
        done = processes.run(root, *words, name)
        assert done.code == 0, done.stderr
    assert (root / "out/work/scores-0.safetensors").stat().st_mtime_ns == first
    assert (root / "out/words=30%/index.npz").read_bytes() == (root / "whole/words=30%/index.npz").read_bytes()


def test_an_index_of_texts_is_cut_further_from_the_disk(corpus):
    root, _ = corpus
    secateur.prune_data(root / "rows.jsonl", "examples=50%", root / "first", deduplicate="normalised")
    index = root / "first/examples=50%"
    how = dict(score="el2n", model=root / "model", runs=1, epochs=0, length=16)
    held = secateur.prune_data(read_rows(index), "examples=30%", root / "held", **how)[0]
    disk = secateur.prune_data(index, "examples=30%", root / "disk", **how)[0]
    assert isinstance(held.subject.source.texts, list)
    assert isinstance(disk.subject.source.texts, Texts)
    assert (root / "held/examples=30%/index.npz").read_bytes() == (root / "disk/examples=30%/index.npz").read_bytes()


def test_a_score_of_ones_own_reads_texts(corpus):
    root, rows = corpus
    (root / "own.py").write_text("def vowels(data):\n    return [text.count('e') for text in data.texts]\n")
    own = f"{root}/own.py:vowels"
    for name, given in (("file", root / "rows.jsonl"), ("list", rows), ("stream", iter(rows))):
        found = secateur.prune_data(given, "examples=30%", root / name, score=own)[0].subject
        assert found.scores[own].tolist() == [row["text"].count("e") for row in rows]


LARGE = """
import gc, resource, sys, threading
from pathlib import Path

import secateur
import torch
from secateur.data import texts

def data():
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmData"))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
threading.stack_size(2**19)  # of those that read weights
how = dict(score="el2n", model="model", runs=1, length=16, batch=128)
few = [{"text": "one two", "label": "a"}, {"text": "tree", "label": "b"}] * 16
secateur.prune_data(iter(few), "examples=50%", "", epochs=1, dry_run=True, **how)  # what is loaded on first use
gc.collect()
before, ballast = data(), []
while data() < before + 2**20:  # what has been freed and could hold texts is filled first
    ballast += [bytes(1500) for _ in range(64)]
limit = data() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    texts.read("large.jsonl")
except MemoryError:
    print("too large to hold")
for epochs in (0, 0.05):
    gc.collect()
    secateur.prune_data("large.jsonl", "examples=30%", f"out-{epochs}", epochs=epochs, **how)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded by Linux's means")
@pytest.mark.memory
def test_a_model_scores_texts_that_memory_can_not_hold(corpus):
    """In a process of its own that may take 16 MB more than what it has loaded, of a file of 22 MB."""
    root, rows = corpus
    with (root / "large.jsonl").open("w") as file:
        for number in range(11_000):
            row = rows[number % len(rows)]
            file.write(json.dumps({**row, "text": f"{row['text']} {number} {'🌳' * 500}"}, ensure_ascii=False) + "\n")
    assert (root / "large.jsonl").stat().st_size > 22e6
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(16 << 20)], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["too large to hold"]
    how = dict(score="el2n", model=root / "model", runs=1, length=16, batch=128, epochs=0)
    secateur.prune_data(texts.read(root / "large.jsonl"), "examples=30%", root / "held", **how)
    ours, held = (root / name / "examples=30%/index.npz" for name in ("out-0", "held"))
    assert ours.read_bytes() == held.read_bytes()
    one, other = (np.load(root / name / "examples=30%/index.npz")["scores/el2n"] for name in ("out-0", "out-0.05"))
    assert len(one) == len(other) == 11_000
    assert not np.array_equal(one, other)


def test_a_model_of_texts_scores_from_its_own_weights(places):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = tiny.tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=2, label2id={"b": 0, "a": 1}, id2label={0: "b", 1: "a"},
    )  # fmt: skip
    model = open_subject(BertForSequenceClassification(config), tokenizer=tokenizer)
    how = dict(score="grand", model=model, runs=1, length=16)
    as_it_is = secateur.prune_data(places / "rows.jsonl", "examples=20", places / "a", epochs=0, **how)[0].subject
    trained = secateur.prune_data(places / "rows.jsonl", "examples=20", places / "b", epochs=2, lr=1e-2, **how)[0]
    assert as_it_is.scores["grand"].std() > 0
    assert not np.allclose(as_it_is.scores["grand"], trained.subject.scores["grand"])
    counted = secateur.prune_data(
        places / "rows.jsonl", "examples=20", places / "c", tokenizer=None, epochs=0, **how
    )[0].subject  # fmt: skip
    assert np.array_equal(counted.kept, as_it_is.kept)
    pair = {**how, "score": "memorisation", "runs": 2}
    halves = secateur.prune_data(places / "rows.jsonl", "examples=20", places / "e", epochs=2, lr=1e-2, **pair)[0]
    assert set(halves.subject.scores["memorisation"]) <= {-1.0, 0.0, 1.0}  # right where learned, right where not
    language_model = open_subject(tiny.model("llama"), tokenizer=tokenizer)
    with pytest.raises(InputError, match="gives no classes"):
        secateur.prune_data(places / "rows.jsonl", "examples=20", places / "d", score="el2n", model=language_model)


def test_tokens_are_counted(places, monkeypatch):
    monkeypatch.setattr(encoders, "counter", lambda name: lambda some: [len(text) for text in some])
    found = secateur.prune_data(places / "rows.jsonl", "tokens=30%", places / "out", tokenizer="any")[0]
    assert found.cut.before["tokens"] == sum(map(len, texts.read(places / "rows.jsonl").texts))
    assert 0 < found.cut.after["tokens"] <= 0.3 * found.cut.before["tokens"]


def test_a_dry_run_writes_nothing(places):
    before = sorted(places.iterdir())
    found = secateur.prune_data(places / "data.npz", "examples=30%", places / "out", dry_run=True)[0]
    assert len(found.subject) == 18
    assert sorted(places.iterdir()) == before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None], "2 of rows.jsonl has no label in 'label', as 20 of 40 have none: label them or drop them"),
        ([["B", "O"]], r"1 of rows.jsonl has the label \['B', 'O'\] in 'label', more than one value"),
        ([1, 0.5], "2 of rows.jsonl has the label 0.5 in 'label': classes are names or whole numbers"),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_labels_that_are_no_classes_are_not_passed_over(tmp_path, monkeypatch, as_table, labels, message):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"text {n}", "label": labels[n % len(labels)]} for n in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data, out = datasets.Dataset.from_list(rows) if as_table else path, tmp_path / "out"
    message = message.replace("rows.jsonl", "table") if as_table else message
    with pytest.raises(DataError, match=rf"^(text|row) {message}.*, or go by no classes: --label ''$"):
        secateur.prune_data(data, "examples=30%", out)
    for how in ({"balanced": True}, {"balanced": False, "score": "el2n", "model": "a/folder"}):
        with pytest.raises(DataError, match=message) as caught:
            secateur.prune_data(data, "examples=30%", out, **how)
        assert "--label ''" not in str(caught.value)  # which would be of no use
    assert not out.exists()
    first, second = (
        secateur.prune_data(data, "examples=30%", tmp_path / name, **how)[0].subject.kept.tolist()
        for name, how in (("label", {"label": ""}), ("fair", {"balanced": False}))
    )
    assert first == second


def test_a_score_of_ones_own(places):
    found = secateur.prune_data(
        places / "data.npz", "examples=10%", places / "out", score=f"{places}/net.py:scores", balanced=False
    )[0]
    assert found.subject.kept.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("data", "budget", "options", "error", "words"),
    [
        ("data.npz", "examples=30%", {"score": "el2m"}, InputError, "no score of examples is called 'el2m': did you"),
        ("data.npz", "examples=30%", {"seed": -1}, InputError, "seed=-1 is not a whole number of at least 0"),
        ("data.npz", "examples=30%", {"score": "loss"}, InputError, "give one of random, length, el2n"),
        ("data.npz", "examples=30%", {"score": "el2n"}, InputError, "looks at a model in training: give one"),
        ("data.npz", "examples=30%", {"model": "net.py:build"}, InputError, "score 'random' asks no model"),
        (
            "bare.npz",
            "examples=30%",
            {"score": "el2n", "model": "net.py:build"},
            InputError,
            "has no classes, by which",
        ),
        ("bare.npz", "examples=30%", {"balanced": True}, InputError, "has no classes to balance"),
        ("data.npz", "examples=30%", {"score": "el2n", "model": "net.py:narrow"}, DataError, "has 2 classes, 0 to 1"),
        ("data.npz", "examples=30%", {"score": "el2n", "model": "net.py:image"}, InputError, "a classifier gives"),
        ("data.npz", "examples=30%", {"score": "el2n", "model": "net.py:wide"}, InputError, "can't take data.npz:"),
        (
            "data.npz",
            "examples=30%",
            {"score": "el2n", "model": "a/folder"},
            InputError,
            "holds arrays: give a network",
        ),
        ("rows.jsonl", "examples=30%", {"score": "el2n", "model": "net.py:build"}, InputError, "holds texts: give the"),
        (
            "data.npz",
            "examples=30%",
            {"score": "memorisation", "model": "net.py:build"},
            InputError,
            "memorisation of runs=1, epochs=1: runs come in pairs",
        ),
        ("data.npz", "examples=30%", {"score": "length"}, InputError, "have no length to go by"),
        ("data.npz", "examples=30%", {"score": "net.py:short"}, InputError, r"shape \(1,\) for 60 examples"),
        (
            "data.npz",
            "examples=30%",
            {"score": "net.py:nothing"},
            InputError,
            "gave a NoneType for the scores",
        ),
        ("data.npz", "examples=30%", {"score": "net.py:fails"}, InputError, "net.py:fails failed: KeyError: 'x'"),
        ("data.npz", "examples=30%", {"runs": 0}, InputError, "at least one run"),
        ("data.npz", "examples=30%", {"deduplicate": "normalised"}, DataError, "only repeat exactly"),
        ("data.npz", "examples=4%", {}, InfeasibleError, "leaves nothing of class 2, which has 10 of 60"),
        ("data.npz", "examples=0.1%", {"balanced": False}, InfeasibleError, "examples can go down to 1"),
        ("data.npz", "tokens=50%", {}, BudgetError, "tokens has no cost here; costs known: bytes, examples"),
        ("rows.jsonl", "tokens=50%", {}, BudgetError, r"give a tokenizer to count by \(--tokenizer\)"),
        ("rows.jsonl", "examples=30%", {"text": "body"}, DataError, "has no text in 'body': it has text, label"),
        ("bare.jsonl", "examples=50%", {"text": "body"}, DataError, "has no text in 'body': it has x, label"),
        ("bare.jsonl", "examples=50%", {"score": "length"}, InputError, "has no column 'text' whose words could be"),
        ("bare.jsonl", "examples=50%", {"score": "el2n", "model": "a/folder"}, DataError, "for a model to read"),
        ("some.jsonl", "examples=50%", {}, DataError, "has texts in 'text' of some rows, and its first has none"),
        (
            "data.npz",
            "examples=30%",
            {"label": "lables"},
            DataError,
            "npz has no array 'lables': it has labels, inputs$",
        ),
        ("rows.jsonl", "examples=30%", {"label": "lable"}, DataError, "has no column 'lable': it has label, text$"),
        ("none.npz", "examples=30%", {}, DataError, "there is no data at"),
        ("none.jsonl", "examples=30%", {}, DataError, "does not exist"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_line(places, data, budget, options, error, words):
    for name, value in options.items():
        if str(value).startswith("net.py"):
            options = {**options, name: f"{places}/{value}"}
    with pytest.raises(error, match=words) as refused:
        secateur.prune_data(places / data, budget, places / "out", runs=options.pop("runs", 1), epochs=1, **options)
    assert "\n" not in str(refused.value)
    assert not (places / "out").exists()  # the corrected command may use the same folder


def test_other_data_is_refused_where_a_run_stands(places):
    secateur.prune_data(["one", "two", "three"], "examples=1", places / "out")
    with pytest.raises(RunError, match="data_sha256"):
        secateur.prune_data(["one", "two", "four"], "examples=1", places / "out")
    secateur.prune_data(["one", "two", "four"], "examples=1", places / "out", overwrite=True)


def test_a_score_that_was_written_anew_is_another_run(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def score(data):\n    return range(len(data))\n")
    rows, score = ["one", "two", "three", "four"], f"{own}:score"
    secateur.prune_data(rows, "examples=2", tmp_path / "out", score=score)
    secateur.prune_data(rows, "examples=1", tmp_path / "out", score=score)
    own.write_text("def score(data):\n    return [-at for at in range(len(data))]\n")
    with pytest.raises(RunError, match="score_sha256"):
        secateur.prune_data(rows, "examples=1", tmp_path / "out", score=score)


def test_labels_out_of_range():
    data = Examples(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1]), classes=("x", "y"))
    with pytest.raises(DataError, match="has the label 2: it names 2 classes"):
        secateur.prune_data(data, "examples=50%", "unused", dry_run=True)


def test_its_run_yaml_repeats_it(places):
    how = {"score": "el2n", "model": f"{places}/net.py:build", "runs": 1, "epochs": 1}
    budgets = ["examples=30%", "examples=50%"]
    results = secateur.prune_data(places / "data.npz", budgets, places / "kept", **how)
    again = secateur.prune_data(**module.configured(places / "kept/run.yaml", {"out": places / "twice"}))
    for one, other in zip(results, again, strict=True):
        assert np.array_equal(one.subject.kept, other.subject.kept)


def test_a_folder_of_yolo_is_images_with_boxes_and_no_texts(tmp_path):
    """Its labels are .txt files; they were cut in place of the images."""
    for part in ("images", "labels"):
        (tmp_path / "yolo" / part).mkdir(parents=True)
    (tmp_path / "yolo" / "data.yaml").write_text("train: images\nnames: [car, cat]\n")
    for number in range(6):
        Image.new("RGB", (20 + number, 20)).save(tmp_path / "yolo" / "images" / f"{number}.png")
        (tmp_path / "yolo" / "labels" / f"{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
    (result,) = secateur.prune_data(tmp_path / "yolo", "examples=50%", tmp_path / "out")
    assert len(result.subject.data.targets) == 3
    assert result.cut.removed["examples"] == (3, 6)


def images_in_a_table():
    pictures = [Image.new("RGB", (2 + place % 2, 2), (place * 9, 0, 0)) for place in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": pictures, "label": [place % 3 for place in range(12)]}
    return pictures, datasets.Dataset.from_dict(rows, features=features)


class Stream(IterableDataset):
    def __iter__(self):
        return iter((torch.full((1, 2, 2), place / 12), place % 3) for place in range(12))


FORMS = (
    "arrays", "loader", "pairs", "rows", "passed over", "splits", "streamed", "stream of torch", "batches",
    "tuple of rows",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_images_of_python_are_read_as_recipes_read_them(form, tmp_path):
    pictures, table = images_in_a_table()
    arrays, labels = torch.rand(12, 1, 2, 2), torch.arange(12) % 3
    pairs = [(torch.full((1, 2, 2), place / 12), place % 3) for place in range(12)]
    data = {
        "arrays": (arrays, labels), "loader": DataLoader(TensorDataset(arrays, labels), batch_size=5), "pairs": pairs,
        "rows": [{"image": one, "label": place % 3} for place, one in enumerate(pictures)],
        "passed over": iter(pairs), "splits": {"train": (arrays, labels)}, "streamed": table.to_iterable_dataset(),
        "stream of torch": Stream(), "batches": iter(DataLoader(TensorDataset(arrays, labels), batch_size=5)),
        "tuple of rows": tuple({"image": one, "label": place} for place, one in enumerate(pictures[:2])),
    }[form]  # fmt: skip
    if form == "tuple of rows":
        assert len(read_rows(data)) == 2
        return
    seen = {"size": "1x2x2"} if form in ("rows", "streamed") else {}
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    (result,) = secateur.prune_data(
        data, "examples=50%", tmp_path / "out", score="el2n", model=net, runs=1, epochs=1, **seen
    )
    assert isinstance(result.subject.source, Examples)
    assert len(result.subject.kept) == 6
    assert np.bincount(result.subject.labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("form", ["saved", "table.parquet", "in memory"])
def test_a_network_scores_the_images_of_a_table_which_keeps_its_columns(form, tmp_path):
    _, table = images_in_a_table()
    more = "where" if form == "table.parquet" else "text"  # a file with texts is read for them
    table = table.add_column(more, [f"shelf {place}" for place in range(12)])
    if form == "saved":
        table.save_to_disk(tmp_path / form)
    elif form != "in memory":
        table.to_parquet(tmp_path / form)
    data = table if form == "in memory" else tmp_path / form
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    how = {"score": "herding", "model": net, "runs": 1, "epochs": 0, "size": 2}
    (result,) = secateur.prune_data(data, "examples=50%", tmp_path / "out", **how)
    assert result.subject.data.rows.column_names == ["image", "label", more]
    assert len(secateur.prune_data(data, "examples=50%", tmp_path / "drawn", size=2)[0].subject.kept) == 6
    if form != "in memory":
        again = secateur.open_index(tmp_path / "out" / "examples=50%")
        kept = result.subject.data.rows[more]
        assert list(again.data.texts if more == "text" else again.data.rows[more]) == list(kept)


@pytest.mark.parametrize(
    "given",
    [("a b", "c d"), ({"text": "a b", "image": "x"}, {"text": "c d", "image": "y"}), iter(["a b", "c d"]),
     [{"text": "a b", "image": b"x"}, {"text": "c d", "image": b"y"}], np.array(["a b", "c d"]),
     np.array(["a b", "c d"], object), np.array(["a b", "c d"], np.dtypes.StringDType()), Ended(["a b", "c d"])]
)  # fmt: skip
def test_texts_stay_texts_whatever_stands_beside_them(given):
    assert read_rows(given).costs()["words"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"prompt": "a", "completion": "b"}],
)  # fmt: skip
def test_chats_stay_texts_whatever_stands_beside_them(row):
    assert isinstance(read_rows((row, row)), Survey)
    assert isinstance(read_rows([{"image": drawn(), **row}] * 2), Survey)


def test_a_frame_is_its_rows():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": ["a b", "c d e", "f"], "label": [0, 1, 0]})
    assert read_rows(frame).costs()["words"].tolist() == [2.0, 3.0, 1.0]
    assert texts.read(texts.take_rows(frame)).labels == [0, 1, 0]
    assert read_rows(pd.DataFrame({"image": [drawn(), drawn()], "label": [0, 1]})).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "form", ["array", "tensor", "objects", "once", "deque", "batches of rows", "data set that can be passed over"]
)
def test_images_are_read_from_first_to_last(form):
    images = np.stack([drawn(seed) for seed in range(4)])
    rows = [(image, place % 2) for place, image in enumerate(images)]
    data = {
        "array": images, "tensor": torch.from_numpy(images), "once": Ended(rows), "deque": deque(rows),
        "objects": np.fromiter(map(Image.fromarray, images), object),
        "batches of rows": DataLoader([{"image": torch.ones(3, 4, 4), "label": 0}] * 4, 2),
        "data set that can be passed over": Passed(rows),
    }[form]  # fmt: skip
    assert len(read_rows(iter(data) if form == "batches of rows" else data)) == 4


@pytest.mark.parametrize("form", ["bytes.parquet", "struct.parquet", "nested"])
def test_a_network_sees_the_images_of_a_table_that_says_of_no_type(form, tmp_path):
    encoded = [to_bytes(drawn(seed)) for seed in range(6)]
    table = datasets.Dataset.from_dict({
        "image": {
            "bytes.parquet": encoded, "struct.parquet": [{"bytes": one, "path": ""} for one in encoded],
            "nested": [np.full((3, 4, 4), place / 9.0).tolist() for place in range(6)],
        }[form],
        "label": [0, 1] * 3,
    })  # fmt: skip
    if form != "nested":
        table.to_parquet(tmp_path / form)
    data, size = (table, {}) if form == "nested" else (tmp_path / form, {"size": 4})
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))\n"
    )
    net = Path(f"{tmp_path / 'net.py'}:build")
    how = {"score": "el2n", "model": net, "runs": 1, "epochs": 0, **size}
    (result,) = secateur.prune_data(data, "examples=50%", tmp_path / "out", **how)
    assert len(result.subject.kept) == 3


def test_how_many_workers_read_what_no_network_sees_is_the_same_run(tmp_path):
    _, table = images_in_a_table()
    (first,) = secateur.prune_data(table, "examples=50%", tmp_path)
    (again,) = secateur.prune_data(table, "examples=50%", tmp_path, workers=0)
    assert again.subject.kept.tolist() == first.subject.kept.tolist()


def test_a_network_does_not_read_a_table_of_texts(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a b", "c d"] * 5, "label": [0, 1] * 5})
    with pytest.raises(InputError, match="holds texts: give the folder or Hub id of a model that classifies texts"):
        secateur.prune_data(table, "examples=50%", tmp_path, score="el2n", model=nn.Linear(1, 2), runs=1)


def test_texts_with_pictures_that_are_streamed_stay_texts():
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (2, 2))] * 2, "text": ["a b", "c d"]})
    rows = rows.cast_column("image", datasets.Image())
    assert read_rows(rows.to_iterable_dataset()).costs()["words"].tolist() == [2.0, 2.0]


def test_parts_without_one_to_learn_from_are_refused():
    with pytest.raises(DataError, match="the data has the splits validation and no train: give one of them"):
        secateur.prune_data({"validation": ["a", "b"]}, "examples=50%", "nowhere")


def test_a_table_of_images_that_is_seen_in_another_way_is_another_run(tmp_path):
    _, table = images_in_a_table()
    how = {"score": "el2n", "model": nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "runs": 1, "epochs": 0}
    secateur.prune_data(table, "examples=50%", tmp_path, size=2, **how)
    with pytest.raises(RunError, match="seen_sha256"):
        secateur.prune_data(table, "examples=50%", tmp_path, size=2, transform="imagenet", **how)


def test_an_index_of_rows_without_texts_is_opened_again(tmp_path):
    datasets.Dataset.from_dict({"x": [*range(10)], "label": [0, 1] * 5}).save_to_disk(tmp_path / "rows")
    (result,) = secateur.prune_data(tmp_path / "rows", "examples=40%", tmp_path / "out")
    kept = secateur.open_index(tmp_path / "out" / "examples=40%").data
    assert kept.rows["x"] == result.subject.data.rows["x"]
    with pytest.raises(DataError, match="rows has no column 'text' for a model to read: name it with --text"):
        secateur.prune_data(tmp_path / "rows", "examples=40%", tmp_path / "to", score="el2n", model=nn.Linear(1, 2))
