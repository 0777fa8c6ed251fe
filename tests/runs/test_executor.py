"""From a recipe to evidence, with a small real recipe of the test's own and real tiny models."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import secateur
import tiny
from secateur._utils.noting import note
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import (
    BudgetError,
    DataError,
    DataWarning,
    InfeasibleError,
    InputError,
    MeasurementError,
    ModelError,
    RunError,
    UnknownRecipeError,
    UnsupportedError,
)
from secateur.methods import timing
from secateur.runs import executor, keywords, measuring
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects import open_subject
from secateur.vocabulary import Budget, Figure, Recovery, Result, Selection
from subjects.hybrids import make_hybrid

CALLS: list[str] = []


def shears(
    subject,
    data: Corpus,
    budgets: Sequence[Budget],
    run,
    *,
    batch: int = 4,
    length: int = 16,
    seed: int = 0,
    power: float = 2.0,
    keep_all: bool = False,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut FFN neurons by the norm of their output columns.

    Args:
        power: not used, but checked.
        keep_all: cut nothing, to see that it is not called a success.
    """
    units = subject.units("neurons", batch=batch, length=length)
    wanted = {site: at for site, at in subject.consumers().items() if site.endswith("neurons")}
    for budget in budgets:
        CALLS.append(str(budget))
        scores = run.tensors("scores", lambda: magnitude.groups(subject.model, wanted))
        found = ranking.by_budget(units, {site: np.asarray(column) for site, column in scores.items()}, budget)
        chosen = Selection({}) if keep_all else found
        student, cut = subject.cut(chosen)
        recovery = None if dry_run else Recovery(steps=3, losses=((1, 2.0), (3, 1.0)))
        yield Result(str(budget), student, cut, units.cost(chosen.keep), recovery)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "texts.txt").write_text("\n".join(tiny.sentences(400)))
    tiny.folder("bert", root / "bert", sentence=True)
    tiny.folder("llama", root / "llama")
    return root


def go(places, out, kind="llama", budget="params=80%", **more):
    return executor.run(shears, places / kind, places / "texts.txt", budget, out, **more)


@pytest.fixture(scope="module")
def run_of_one(places):
    """The evidence of a run, and its directory, which stays as it is."""
    (row,) = go(places, places / "small")
    return row, places / "small"


def test_one_budget_leaves_a_model_that_loads_its_evidence_and_a_report(run_of_one):
    row, small = run_of_one
    assert row.verdict == "met"
    model = secateur.load(small)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert row.after["params"].value == count == row.predicted["params"] <= 0.8 * row.before["params"].value
    assert row.after["bytes"].value == sum(t.nbytes for t in load_file(small / "model.safetensors").values())
    assert row.after["perplexity"].value > 0
    assert row.after["kv_cache"].value == row.before["kv_cache"].value
    assert row.recovery.steps == 3
    card = (small / "README.md").read_text()
    uneven = "per_layer_config" in json.loads((small / "config.json").read_text())
    flag = ", trust_remote_code=True" if uneven else ""
    assert f'AutoModelForCausalLM.from_pretrained("small"{flag})' in card
    assert "\nmodel-index:\n- name: small\n" in card
    assert "params=80%" in (small / "report.html").read_text()
    assert str(small.parent) not in card
    stored = json.loads((small / "evidence.json").read_text())["results"]
    assert [result["verdict"] for result in stored] == ["met"]


def test_a_model_that_comes_from_training_is_at_rest_while_a_recipe_asks_it(places, tmp_path):
    model = secateur.load(places / "bert").train()
    modes: list[bool] = []

    def looking(subject, data, budgets, run, *, batch: int = 4, length: int = 16, seed: int = 0, dry_run: bool = False):
        """Look at the mode that the original is in."""
        modes.append(any(module.training for module in subject.model.modules()))
        yield from shears(subject, data, budgets, run, batch=batch, length=length)

    subject = open_subject(model, tokenizer=tiny.tokenizer())
    executor.run(looking, subject, places / "texts.txt", "params=90%", tmp_path / "out")
    assert modes == [False]
    assert model.training

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        executor.run(looking, subject, places / "texts.txt", "params=80%", tmp_path / "stopped", on_result=stop)
    assert model.training, f"while the traceback is held, as a notebook holds it: {held}"


def test_a_recipe_never_sees_the_texts_that_quality_is_measured_on(places, tmp_path, monkeypatch):
    seen: list[Corpus] = []

    def curious(subject, data, budgets, run, *, batch: int = 4, length: int = 16, seed: int = 0, dry_run: bool = False):
        """Remember all texts there are."""
        seen.append(data)
        yield from shears(subject, data, budgets, run, batch=batch, length=length)

    measured_on: list[Corpus] = []
    monkeypatch.setattr(
        measuring.Reference, "compare", lambda self, *_: measured_on.append(self.held_out) or ({}, {}, {}, [])
    )
    executor.run(curious, places / "llama", places / "texts.txt", "params=80%", tmp_path / "out", seed=3)
    executor.run(curious, places / "llama", places / "texts.txt", "params=80%", tmp_path / "dry", seed=3, dry_run=True)
    ((held, _), (train, again)) = measured_on, seen
    assert len(held) == 20
    assert not set(held.texts) & set(train.texts)
    assert sorted([*held.texts, *train.texts]) == sorted(texts.read(places / "texts.txt").texts)
    assert again == train


def test_held_out_texts_of_ones_own(places, tmp_path, classifier):
    (row,) = go(places, tmp_path / "out", held_out=tiny.sentences(40, seed=9))
    assert row.settings["held_out"] == "texts"
    assert row.after["perplexity"].value > 0
    half = texts.read(classifier / "named.jsonl").take(range(7))
    how = {"held_out": half, "dry_run": False}
    (row,) = executor.run(shears, classifier / "model", classifier / "named.jsonl", "params=90%", tmp_path / "c", **how)
    assert row.after["accuracy"].samples == 7
    assert "7 of 7 held-out texts are in the data, too" in " ".join(row.cut.notes)
    with pytest.raises(DataError, match=r"unknown.jsonl has the class 'maybe'"):
        executor.run(shears, classifier / "model", classifier / "named.jsonl", "params=90%", tmp_path / "d",
                    held_out=classifier / "unknown.jsonl")  # fmt: skip
    assert not (tmp_path / "d").exists()


def test_modules_behind_the_transformer_count_in_its_size(places, tmp_path):
    from sentence_transformers import SentenceTransformer, models

    word = models.Transformer(str(places / "bert"), max_seq_length=64)
    modules = [word, models.Pooling(32), models.Dense(32, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "dense"))
    (row,) = go(places, tmp_path / "small", tmp_path / "dense", budget="params=85%")
    files = (tmp_path / "small").rglob("*.safetensors")
    weights = [tensor for file in files if "work" not in file.parts for tensor in load_file(file).values()]
    assert row.after["bytes"].value == sum(tensor.nbytes for tensor in weights)
    assert row.after["params"].value == sum(tensor.numel() for tensor in weights) == row.cut.after["params"]


def test_baselines_that_a_study_added_outlive_the_same_call_again(places, tmp_path):
    (row,) = go(places, tmp_path / "out")
    beside = {"chance": {"params": row.after["params"]}}
    executor.publish_evidence(tmp_path / "out", [replace(row, baselines=beside)])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    (again,) = go(places, tmp_path / "out")
    assert again.baselines == beside
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    (tmp_path / "out" / "report.html").unlink()  # as after a kill between the two files
    go(places, tmp_path / "out")
    assert "chance" in (tmp_path / "out" / "report.html").read_text()
    assert executor.evidence.read(tmp_path / "out")[0].baselines == beside


def test_a_sentence_encoder_is_measured_by_its_fidelity(places, tmp_path):
    (row,) = go(places, tmp_path / "small", "bert")
    assert 0 < row.measured["spearman"].value <= 1
    assert "SentenceTransformer(" in (tmp_path / "small" / "README.md").read_text()


def test_several_budgets_leave_a_folder_each(places, tmp_path, monkeypatch):
    real, published = executor.publish_evidence, []
    monkeypatch.setattr(
        executor, "publish_evidence", lambda root, rows, *own: (published.append(len(rows)), real(root, rows, *own))
    )
    told = []

    def tell(row):
        told.append((row.target, (tmp_path / "out" / "params=90%").exists()))

    rows = go(places, tmp_path / "out", budget=["params=80%", Budget.parse("params=90%"), "params=80%"], on_result=tell)
    assert [row.target for row in rows] == ["params=80%", "params=90%"]
    assert told == [("params=80%", False), ("params=90%", True)], "each as soon as its model is in place"
    assert published == [1, 2], "the report is drawn as soon as a result is there, and not once more"
    sizes = [sum(p.numel() for p in secateur.load(tmp_path / "out" / row.target).parameters()) for row in rows]
    assert sizes == [row.after["params"].value for row in rows]
    assert not (tmp_path / "out" / "config.json").exists()
    assert len(json.loads((tmp_path / "out" / "evidence.json").read_text())["results"]) == 2


def test_a_run_that_goes_on_has_the_notes_of_what_it_does_not_do_again(places, tmp_path, monkeypatch):
    def score(*given):
        note("2 texts are cut")
        return scored(*given)

    def stop(row):
        raise KeyboardInterrupt

    scored = magnitude.groups
    monkeypatch.setattr(magnitude, "groups", score)
    budgets = ["params=80%", "params=90%"]
    with pytest.warns(DataWarning, match="2 texts are cut"), pytest.raises(KeyboardInterrupt):
        go(places, tmp_path / "out", budget=budgets, on_result=stop)
    rows = go(places, tmp_path / "out", budget=budgets)
    assert [row.cut.notes.count("2 texts are cut") for row in rows] == [1, 1]


def test_the_same_call_again_does_nothing_twice(places, tmp_path):
    first = go(places, tmp_path / "out", budget=["params=80%", "params=90%"])
    stamp = (tmp_path / "out" / "params=80%" / "model.safetensors").stat().st_mtime_ns
    CALLS.clear()
    assert go(places, tmp_path / "out", budget=["params=80%", "params=90%"]) == first
    assert CALLS == []
    (tmp_path / "out" / "work" / "evidence-params=90%.json").unlink()
    again = go(places, tmp_path / "out", budget=["params=80%", "params=90%"])
    assert [row.target for row in again] == ["params=80%", "params=90%"]
    assert (tmp_path / "out" / "params=80%" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_finished_run_given_again_on_the_command_line_says_since_when_it_is_complete(places, tmp_path, capsys):
    rows: list[object] = []
    how = {"budget": ["params=80%", "params=90%"], "on_result": rows.append}
    go(places, tmp_path / "out", **how)
    assert "is complete since" not in capsys.readouterr().err
    go(places, tmp_path / "out", **how)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is complete since" in line]
    assert re.fullmatch(r"note: .*/out is complete since 20\d\d-\d\d-\d\d \d\d:\d\d: --overwrite .* starts anew", line)
    assert len(rows) == 4
    (tmp_path / "out" / "work" / "evidence-params=90%.json").unlink()
    go(places, tmp_path / "out", **how)
    go(places, tmp_path / "out", overwrite=True, **how)
    assert "is complete since" not in capsys.readouterr().err


def test_another_seed_model_or_text_is_another_run(places, tmp_path):
    go(places, tmp_path / "out")
    with pytest.raises(RunError, match="holds a run with seed=0, not seed=1"):
        go(places, tmp_path / "out", seed=1)
    with pytest.raises(RunError, match="model_sha256"):
        go(places, tmp_path / "out", "bert")
    with pytest.raises(RunError, match="data_sha256"):
        executor.run(shears, places / "llama", tiny.sentences(200, seed=5), "params=80%", tmp_path / "out")
    go(places, tmp_path / "out", seed=1, overwrite=True)
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["seed"] == 1


def reading(
    subject,
    data: Corpus,
    budgets: Sequence[Budget],
    run,
    *,
    file: str | Path = "",
    teachers: Sequence[str] = (),
    kind: Literal["taylor", "random"] = "taylor",
    axes: Sequence[str] = ("heads",),
    batch: int = 4,
    length: int = 16,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut neurons, and read files."""
    yield from shears(subject, data, budgets, run)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"file": "no_suffix"}, "no_suffix"),
        ({"file": "folder"}, "folder/weights.bin"),
        ({"file": Path("folder")}, "folder/weights.bin"),
        ({"teachers": ["owner/name", "no_suffix", "folder"]}, "folder/weights.bin"),
        ({"file": "earlier"}, "earlier/work/scores.json"),
        ({"file": "own.py:make"}, "own.py"),
    ],
)
def test_other_contents_of_a_named_file_are_another_run(places, tmp_path, monkeypatch, option, changed):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor._Job, "execute", lambda self, directory, about: iter(()))
    for name in ("no_suffix", "folder/weights.bin", "earlier/work/scores.json", "own.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")

    def again():
        executor.run(reading, places / "llama", places / "texts.txt", "params=80%", tmp_path / "out", **option)

    again()
    # What is no file of the run's: words that are folders by chance, and the lock of another run.
    for name in ("taylor/x", "heads/x", "owner/x", "earlier/work/lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    again()
    (tmp_path / changed).write_text("2")
    with pytest.raises(RunError, match=f"{next(iter(option))}_sha256"):
        again()


def test_a_folder_that_the_run_writes_into_does_not_count(places, tmp_path, monkeypatch):
    monkeypatch.setattr(executor._Job, "execute", lambda self, directory, about: iter(()))
    for _ in range(2):
        executor.run(
            reading, places / "llama", places / "texts.txt", "params=80%", tmp_path / "out", file=str(tmp_path)
        )


def test_a_dry_run_says_what_would_go_and_writes_nothing(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = go(places, tmp_path / "out", dry_run=True)
    assert row.verdict == "dry run"
    assert row.recovery is None
    assert sum(gone for gone, _ in row.cut.removed.values()) > 0
    assert {"params", "flops", "memory", "peak_memory"} <= set(row.after)
    assert os.listdir(tmp_path) == []


def test_a_dry_run_times_no_longer_than_it_may_unless_a_time_is_asked_for(places, tmp_path, monkeypatch):
    limits, compare = [], measuring.latency.compare
    monkeypatch.setattr(measuring.latency, "compare", lambda *runs, **how: limits.append(how) or compare(*runs, **how))
    go(places, tmp_path / "dry", dry_run=True)
    assert 10 < limits[-1]["limit"] <= keywords.DRY_SECONDS == 20.0
    go(places, tmp_path / "two", budget=["params=80%", "params=60%"], dry_run=True)
    assert 0 < limits[-1]["limit"] <= 10
    go(places, tmp_path / "small")
    assert "limit" not in limits[-1]
    references = []
    monkeypatch.setattr(
        executor, "Reference", lambda *where, **how: references.append(how) or measuring.Reference(*where, **how)
    )
    with pytest.raises(BudgetError):  # these shears know no time
        go(places, tmp_path / "timed", budget="speedup=1.1x", dry_run=True)
    assert references[-1]["within"] is None
    monkeypatch.setattr(keywords, "DRY_SECONDS", 0.0)
    (row,) = go(places, tmp_path / "slow", dry_run=True)
    assert "speedup" not in row.measured
    assert any(note.startswith("time: not measured: one pass") for note in row.cut.notes)


def test_a_cut_of_nothing_is_a_failure_and_leaves_no_model(places, tmp_path):
    (row,) = go(places, tmp_path / "out", keep_all=True)
    assert row.verdict.startswith("failed")
    assert not (tmp_path / "out" / "config.json").exists()
    assert (tmp_path / "out" / "evidence.json").exists()


def test_a_clock_too_noisy_to_tell_is_said(places, tmp_path, monkeypatch):
    def noisy(*_, **__):
        raise MeasurementError("the clock is too noisy to tell")

    monkeypatch.setattr(measuring.latency, "compare", noisy)
    (row,) = go(places, tmp_path / "out")
    assert "speedup" not in row.measured
    assert "time: the clock is too noisy to tell" in row.cut.notes
    assert row.verdict == "met"  # parameters were asked for, and they are met
    figures = measuring.measure(tmp_path / "out", places / "llama", batch=2, length=8)
    assert figures.notes == ("time: the clock is too noisy to tell",)
    assert "params" in figures["model"]


def test_in_memory_models_and_lists_of_texts(tmp_path):
    model = tiny.uneven(tiny.model("gpt2"))
    with pytest.raises(InputError, match=r"open_subject\(model, tokenizer="):
        executor.run(shears, model, tiny.sentences(), "params=80%", tmp_path / "out")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    subject = secateur.open_subject(model, tokenizer=tiny.tokenizer())
    (row,) = executor.run(shears, subject, tiny.sentences(), "params=80%", tmp_path / "out")
    assert row.verdict == "met"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT that says "yes" (its class 0) to every text; the alphabet would number its classes otherwise."""
    place = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=64, pad_token_id=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    tiny.uneven(model).save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    rows = [{"text": text, "label": "yes" if n % 4 else "no"} for n, text in enumerate(tiny.sentences(200))]
    (place / "named.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, label in (("unknown", "maybe"), ("beyond", 2), ("negative", -1)):
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps({**row, "label": label}) for row in rows))
    partly = [{**rows[0], "label": None}, *rows[1:]]
    (place / "partly.jsonl").write_text("\n".join(map(json.dumps, partly)))
    (place / "real.jsonl").write_text("\n".join(json.dumps({**row, "label": 0.5}) for row in rows))
    return place


def test_accuracy_counts_by_the_classes_of_the_model(classifier, tmp_path):
    found = measuring.measure(classifier / "model", data=classifier / "named.jsonl", batch=2, length=8)
    assert found["model"]["accuracy"].value == 0.75
    assert found["model"]["accuracy"].samples == 200 // 16 * 16
    (row,) = executor.run(shears, classifier / "model", classifier / "named.jsonl", "params=90%", tmp_path / "out")
    # A twentieth of each class is held out: 8 of the 150 that are yes, which it always says, and 2 of the 50 others.
    assert row.before["accuracy"].value == row.after["accuracy"].value == 0.8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("unknown", "unknown.jsonl has the class 'maybe', which the model doesn't know: it knows yes, no"),
        ("beyond", "beyond.jsonl has the label 2: the model has 2 classes, 0 to 1"),
        ("negative", "negative.jsonl has the label -1"),
        ("partly", "text 1 of partly.jsonl has no label in 'label', as 1 of 200 have none: label them or drop them"),
        ("real", "text 1 of real.jsonl has the label 0.5 in 'label': classes are names or whole numbers"),
    ],
)
def test_labels_that_are_no_classes_of_the_model_are_refused(classifier, tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        measuring.measure(classifier / "model", data=classifier / f"{data}.jsonl", batch=2, length=8)
    with pytest.raises(DataError, match=message):
        executor.run(shears, classifier / "model", classifier / f"{data}.jsonl", "params=80%", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"powr": 1}, "shears has no option 'powr': did you mean 'power'"),
        ({"power": "much"}, "option power='much' of shears: input should be a valid number"),
        ({"batch": 0}, "batch"),
        ({"length": -1}, "length"),
        ({"threads": 0}, "threads"),
        ({"seed": 2**63}, "seed=9223372036854775808 is not"),
    ],
)
def test_wrong_options_are_named(places, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        go(places, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["every=0", "patience=-1", "accumulate=x", "clip=nan"])
def test_settings_of_training_are_refused_before_anything_is_read(tmp_path, setting):
    with pytest.raises(InputError, match=f"^training setting {setting}: give"):
        executor.run("ziplm", tmp_path / "none", tmp_path / "none", "params=80%", tmp_path / "out", training=setting)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 5e-6}, "min_lr=1e-05: give a floor between 0 and lr=5e-06"),
        ({"warmup": 60, "steps": 50}, "warmup=60.0: give a share from 0 to 1 or at most steps=50"),
    ],
)
def test_a_course_of_learning_rates_that_can_not_be_is_refused_before_anything_is_read(tmp_path, options, words):
    """It was when the training began, after hours of scores and searches."""
    with pytest.raises(InputError, match=f"^{words}"):
        executor.run("minitron", tmp_path / "none", tmp_path / "none", "params=80%", tmp_path / "out", **options)


def test_bad_input_is_refused_before_anything_is_written(places, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UnknownRecipeError, match="did you mean 'ziplm'"):
        executor.run("ziplmm", places / "llama", places / "texts.txt", "params=80%", out)
    with pytest.raises(BudgetError):
        go(places, out, budget="params=200%")
    with pytest.raises(InputError, match="no budget"):
        go(places, out, budget=[])
    with pytest.raises(DataError):
        executor.run(shears, places / "llama", places / "no.txt", "params=80%", out)
    with pytest.raises(ModelError):
        executor.run(shears, places / "none", places / "texts.txt", "params=80%", out)
    assert not out.exists()
    with pytest.raises(InfeasibleError):
        go(places, out, budget="params=1%")
    assert not out.exists()  # the corrected command may use the same folder


@pytest.mark.parametrize(
    ("whole", "advice"),
    [(1.2, "; no speedup is within reach on this machine: give a budget in another measure"), (4.0, "=3.2x$")],
)
def test_no_speedup_is_advised_that_would_be_refused_itself(places, tmp_path, monkeypatch, whole, advice):
    """What is advised is a share of what a few runs promise, which may be less than 1."""

    def time_whole_and_rest(probes, **options):
        return {name: Figure(whole if name == "dense" else 1.0) for name in probes}

    def hasty(subject, data: Corpus, budgets: Sequence[Budget], run, *, seed: int = 0) -> Iterator[Result]:
        timing.refuse_far(budgets, len, len)
        yield from ()

    monkeypatch.setattr(timing.latency, "time_interleaved", time_whole_and_rest)
    with pytest.raises(InfeasibleError, match=f"budget speedup=50x can't be met: .*{advice}"):
        executor.run(hasty, places / "bert", places / "texts.txt", "speedup=50x", tmp_path / "out")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("minitron", "none of heads to cut, by which minitron goes: give the option shape=layers=2"),
        ("ziplm", "none of heads, neurons to cut, by which ziplm goes"),
    ],
)
def test_a_model_without_the_units_that_a_recipe_goes_by_is_refused_in_a_line(recipe, message, tmp_path):
    """Mamba 2 has mixers alone."""
    model = open_subject(make_hybrid("Mamba2", vocab_size=64), tokenizer=tiny.tokenizer())
    with pytest.raises(UnsupportedError, match=f"this Mamba2ForCausalLM has {message}"):
        executor.run(recipe, model, tiny.sentences(100), "params=75%", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if recipe == "minitron":  # it goes on, and finds too few texts
        with pytest.raises(DataError, match="give more texts"):
            executor.run(recipe, model, tiny.sentences(100), "params=75%", tmp_path / "out", shape="layers=2")


def test_a_run_yaml_repeats_the_run(places, tmp_path):
    (first,) = executor.run("minitron", places / "llama", places / "texts.txt", "params=80%", tmp_path / "a", steps=2,
                           short_steps=1, candidates=1, train_batch=4, length=16)  # fmt: skip
    settings = executor.configured(tmp_path / "a" / "run.yaml", {"out": tmp_path / "b"})
    (again,) = executor.run(**settings)
    assert first.cut.removed == again.cut.removed
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_inspect_adds_up(places):
    found = executor.inspect(places / "llama")
    axes = {row["kind"]: row for row in found["axes"]}
    config = json.loads((places / "llama" / "config.json").read_text())
    assert axes["heads"]["units"] == config["num_hidden_layers"] * config["num_attention_heads"]
    assert axes["attention"]["share"]["params"] + axes["ffn"]["share"]["params"] == pytest.approx(
        axes["layers"]["share"]["params"], rel=0.1
    )


def test_report_is_written_anew(places, tmp_path):
    go(places, tmp_path / "small")
    (tmp_path / "small" / "report.html").unlink()
    assert executor.report(tmp_path / "small").read_text().startswith("<!")
    with pytest.raises(RunError, match="no evidence"):
        executor.report(tmp_path)


def test_public_names_are_exact_and_lazy():
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'graft'"):
        _ = secateur.graft
    assert set(secateur.__all__) == set(secateur._PLACES) | {"__version__"}


def test_exports_are_whole_and_never_overwrite(run_of_one, tmp_path):
    _, small = run_of_one
    place, notes = secateur.export(small, "decilm", tmp_path / "deci")
    assert (place / "config.json").is_file()
    assert isinstance(notes, tuple)
    with pytest.raises(InputError, match="is there already"):
        secateur.export(small, "decilm", tmp_path / "deci")
    with pytest.raises(InputError, match="choose onnx, gguf, decilm, packed, packed-int8, masks, int8 or int4"):
        secateur.export(small, "gguff")
    assert os.listdir(tmp_path) == ["deci"]


def test_measure_alone_and_against(places, run_of_one, monkeypatch):
    _, small = run_of_one
    alone = measuring.measure(places / "llama", data=places / "texts.txt", batch=2, length=8)["model"]
    assert {"params", "latency", "perplexity", "kv_cache", "peak_memory"} <= set(alone)
    monkeypatch.setitem(measuring.CLOCK, "pairs", 20)
    both = measuring.measure(small, places / "llama", batch=8, length=32)
    assert both["model"]["params"].value < both["against"]["params"].value
    assert both["both"]["speedup"].samples >= 20


def test_a_recipe_without_a_clock_meets_no_latency_of_decoding(tmp_path):
    """Its table was of a forward pass, its evidence of decoding, and nothing said so."""
    folder = tiny.folder("llama", tmp_path / "llama")
    with pytest.raises(InputError, match=r"shortgpt meets a latency of a forward pass .* leave environment out"):
        executor.run(
            "shortgpt", folder, tiny.sentences(100), "speedup=1.2x", tmp_path / "out", environment="decode", length=8
        )
    assert not (tmp_path / "out").exists()


def test_folders_that_are_names_of_the_package_work_as_both():
    """`secateur.measure` was not there, or was the folder of measures once anything had loaded that."""
    from secateur.measure import latency

    assert secateur.measure.latency is latency
    assert "ziplm" in secateur.recipes.cards()
    with pytest.raises(ModelError, match="no model at"):
        secateur.measure("nowhere/at/all/models")
    assert inspect.signature(secateur.measure) == inspect.signature(measuring.measure)
    assert inspect.getdoc(secateur.measure) == inspect.getdoc(measuring.measure)


@pytest.mark.parametrize("budget", [0.5, None])
def test_a_budget_that_is_no_text_is_refused_in_a_line(budget, tmp_path):
    with pytest.raises(BudgetError, match="was not understood: write for example speedup=2x"):
        secateur.run("magnitude", "model", "texts.txt", budget, tmp_path / "out")


def test_a_quick_look_says_what_it_left_out(places, tmp_path, monkeypatch):
    monkeypatch.setitem(keywords.QUICK, "batch", 2)
    timed, compare = [], measuring.latency.compare
    monkeypatch.setattr(measuring.latency, "compare", lambda *runs, **how: timed.append(how) or compare(*runs, **how))
    (row,) = go(places, tmp_path / "small", quick=True)
    assert (timed[-1]["pairs"], timed[-1]["lasting"]) == (10, 0.0)
    assert row.settings["batch"] == 2
    assert "a quick look, with batch=2" in row.cut.notes
    (row,) = go(places, tmp_path / "given", quick=True, length=8)
    assert row.settings["length"] == 8
    go(places, tmp_path / "dry", dry_run=True)  # a forecast is timed for no longer
    assert (timed[-1]["pairs"], timed[-1]["lasting"]) == (10, 0.0)
