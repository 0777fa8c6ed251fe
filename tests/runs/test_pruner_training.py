"""Training of the models that prune what another model reads."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import keeper
import processes
import secateur
import tiny
from runs.pages import ASKED, PAGE, PARTS, characters
from secateur._utils.rundir import Run
from secateur.errors import DataError, InputError, RunError
from secateur.runs import pruner_training


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
    told = pruner_training.configured(tmp_path / "out" / "run.yaml", {"out": tmp_path / "repeated"})
    assert secateur.train_pruner(**told).losses == made.losses
    assert (tmp_path / "repeated/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(RunError, match="epochs=1"):
        secateur.train_pruner("htmlrag", learner, rows, tmp_path / "out", **{**how, "epochs": 2})
    with Run.open(tmp_path / "out", {}) as run:  # nobody else holds it
        assert run.root == tmp_path / "out"


def test_a_device_holds_what_is_trained_and_what_is_named_by_its_folder(learner, tmp_path):
    rows = [{"question": "town1", "html": PAGE, "answers": "person1"}]
    with pytest.raises(InputError, match="device 'meta'"):
        secateur.train_pruner("htmlrag", learner, rows, tmp_path / "out", device="meta")
    graph = tmp_path / "graph.csv"
    graph.write_text("subject,predicate,object\nsalbutamol,treats,asthma\n")
    how = {"question": "What treats asthma?", "budget": "words=9", "device": "meta"}
    for recipe, documents, named in (
        ("htmlrag", PAGE, {"path_model": str(learner)}),
        ("kg_rag", graph, {"llm": str(learner)}),
        ("paths_over_graph", graph, {"llm": str(learner)}),
    ):
        with pytest.raises(InputError, match="device 'meta'"):
            secateur.prune_context(recipe, documents, **how, **named)


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


def test_what_is_trained_anew_in_the_same_folder_takes_the_place_of_what_was_opened_there(tmp_path):
    """The old pruner went on in the process that had opened it."""
    keeper.fresh().save(tmp_path / "reranker")
    rows = [{"question": row["question"], "passages": row["documents"], "kept": row["kept"]}
            for row in keeper.lesson(8, 0)]  # fmt: skip
    asked = ("provence", [PARTS], ASKED, "tokens=100%")
    for threshold in (-1.0, 2.0):
        how = {"batch": 8, "longest": 32, "held_out": 0.0, "threshold": threshold, "overwrite": True}
        secateur.train_pruner("provence", tmp_path / "reranker", rows, tmp_path / "out", **how)
        found = secateur.prune_context(*asked, model=str(tmp_path / "out"))
        assert (found.text == "") == (threshold > 1)


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
