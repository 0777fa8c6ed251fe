"""The pruner that is there without a model: built from packages, calibrated, and found by the recipe."""

from __future__ import annotations

import json

import numpy as np
import pytest

import keeper
import secateur
import tiny
from secateur.data import packages
from secateur.data.packages import Entry, Section
from secateur.errors import InputError, RunError
from secateur.methods.reranker_training import keep_sentences, share_words
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Judgement
from secateur.runs import default_pruner


@pytest.fixture
def few_texts(tmp_path, monkeypatch):
    """Some sentences for each of the packages, and a cache of its own."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_pruner, "JUDGED", 12)
    lines = [f"{text.capitalize()}." for text in tiny.sentences(160)]
    sections = [Section(f"name{i}", " ".join(lines[2 * i : 2 * i + 3])) for i in range(40)]
    nouns = {
        i: Entry((f"{a} {b}",), f"what {lines[i].lower()}", i % 4)
        for i, (a, b) in enumerate(zip(tiny.WORDS * 2, tiny.WORDS[3:] + tiny.WORDS, strict=False))
    }
    monkeypatch.setattr(packages, "python_manual", lambda: [(f"m{i}", sections[i::8]) for i in range(8)])
    monkeypatch.setattr(packages, "wordnet_nouns", lambda: nouns)
    monkeypatch.setattr(packages, "brown_documents", lambda: [("news", lines[i::8]) for i in range(8)])
    monkeypatch.setattr(packages, "minilm", lambda: tiny.folder("bert", tmp_path / "minilm"))


def test_the_recipe_works_without_a_model_once_the_pruner_is_built(few_texts, tmp_path):
    asked = ("provence", ["The tree grows slowly. She prunes every branch."], "who prunes", "tokens=100%")
    with pytest.raises(InputError, match=r"run `secateur build-pruner` once \(`make pruner`"):
        secateur.prune_context(*asked)
    measured = default_pruner.build_pruner(questions=8, longest=48, recall=0.8)
    place = tmp_path / "cache" / "pruner"
    options = {"model": "", "questions": 8, "recall": 0.8, "longest": 48, "seed": 0}
    assert json.loads((place / "calibration.json").read_text()) == {**measured, "options": options}
    assert measured["recall"] >= measured["wanted"] == 0.8
    assert 0 < measured["kept"] <= 1
    assert 0 <= measured["of_best"] <= 1
    card = (place / "README.md").read_text()
    assert f"{measured['recall']:.1%} of the sentences that answer stay" in card
    assert "Brown corpus" in card
    modes = {path.name: path.stat().st_mode & 0o777 for path in (place, *place.iterdir())}
    plain = tmp_path / "plain"
    plain.touch()
    assert modes.pop("pruner") == tmp_path.joinpath("cache").stat().st_mode & 0o777  # others may read it
    assert set(modes.values()) == {plain.stat().st_mode & 0o777}
    model = rerankers.open_reranker(place)
    how = model.settings
    assert (how.threshold, how.of_best, how.rounding) == (measured["threshold"], measured["of_best"], "mean")
    assert how.terms == default_pruner.TERMS
    assert not model.settings.ranks
    assert secateur.prune_context(*asked).after["tokens"] <= 10
    before = (place / "model.safetensors").stat().st_mtime_ns
    assert default_pruner.build_pruner(questions=8, longest=48, recall=0.8) == measured  # it is there
    with pytest.raises(RunError, match=r"questions=8, longest=48, not questions=2000, longest=192"):
        default_pruner.build_pruner(recall=0.8)
    assert (place / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in place.parent.iterdir() if path.name.startswith((".tmp", "pruner."))] == []
    other = default_pruner.build_pruner(questions=8, longest=48, recall=0.5, seed=1, overwrite=True)
    assert other != measured
    assert rerankers.open_reranker(place).settings.threshold == other["threshold"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RunError, match="holds no pruner"):
        default_pruner.build_pruner(tmp_path / "mine")


def test_the_threshold_keeps_the_share_that_is_asked_for_and_no_more():
    draw, rows, judged = np.random.default_rng(0), [], []
    for _ in range(60):
        count = int(draw.integers(1, 6))
        owner = np.repeat(np.arange(count), 3)
        rows.append({"question": "a", "documents": [["b"] * count], "answer": int(draw.integers(count))})
        judged.append(Judgement(0.0, draw.random(len(owner)) * (1 + (owner == rows[-1]["answer"])) / 2, owner))
    model, shares, told = keeper.fresh(), [], [{"keep": one.keep, "owner": one.owner} for one in judged]
    sizes = [len(row["documents"][0]) for row in rows]
    first = np.cumsum([0, *sizes[:-1]]) + [row["answer"] for row in rows]
    model.judge = lambda pairs: judged
    for recall in (0.5, 0.9, 0.99):
        measured = default_pruner.calibrate(model, rows, recall)
        how = model.settings
        keep, means = keep_sentences(told, sizes, how.threshold, how.rounding, how.of_best)
        stays = float(keep[first].mean())
        best = [part.max() for part in np.split(means, np.cumsum(sizes)[:-1])]
        assert (means[first] < how.of_best * np.array(best)).mean() <= (1 - recall) * 9 / 10
        assert stays == pytest.approx(measured["recall"])
        assert recall <= stays <= recall + 1 / len(rows)
        assert model.settings.rounding == "mean"
        shares.append(measured["kept"])
    assert shares == sorted(shares)
    assert shares[0] < 0.6
    assert how.of_best > 0


def test_recall_and_share_are_those_of_requests_with_all_their_passages():
    """The first passage alone was judged, and words of the question raised it as if there were no other."""
    draw, rows, judged = np.random.default_rng(0), [], dict[str, Judgement]()
    for number in range(40):
        name = f"w{number}"
        other = [name] if number % 2 else [f"four {number}"] * 3
        parts = [[f"{name} one {name}", "two three"], other][: 1 + number % 3]
        rows.append({"question": name, "documents": parts, "answer": number % 2})
        for passage in parts:
            owner = np.repeat(np.arange(len(passage)), 4)
            judged[f"{number} {passage}"] = Judgement(0.0, draw.random(len(owner)), owner)
    model, asked = keeper.fresh(), list[str]()

    def judge(pairs):
        asked.extend(f"{question[1:]} {passage}" for question, passage in pairs)
        return [judged[f"{question[1:]} {passage}"] for question, passage in pairs]

    model.judge = judge
    measured = default_pruner.calibrate(model, rows, 0.7)
    assert asked == list(judged)
    how, answers, shares = model.settings, list[bool](), list[float]()
    for number, row in enumerate(rows):  # as the recipe does with each
        told = [judged[f"{number} {passage}"] for passage in row["documents"]]
        raised = how.terms * share_words(row["question"], row["documents"], "en")
        pairs = [{"keep": one.keep, "owner": one.owner} for one in told]
        sizes = [len(passage) for passage in row["documents"]]
        keep, _ = keep_sentences(pairs, sizes, how.threshold, how.rounding, how.of_best, raised)
        answers.append(keep[row["answer"]])
        shares.append(float(np.mean(np.repeat(keep, 4))))
    assert measured["recall"] == pytest.approx(np.mean(answers))
    assert 0.7 <= measured["recall"] <= 0.7 + 1 / len(rows)
    assert measured["kept"] == pytest.approx(np.mean(shares))


def test_what_is_taught_lies_between_the_label_and_the_cosine():
    vectors = {"q": [1.0, 0.0], "a": [0.6, 0.8], "b": [0.0, 1.0], "c": [-1.0, 0.0]}
    rows = [{"question": "q", "documents": [["a", "b"], ["c", "q"]], "kept": [[1], []]}]
    taught = default_pruner.soften(rows, lambda texts: np.array([vectors[text] for text in texts]))
    assert taught == [[[0.3, 0.5], [0.0, 0.5]]]
