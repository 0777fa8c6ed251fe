"""Chats through whole commands: only answers are learned and measured, and results are those of one document alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

import commands
import secateur
import tiny
from secateur.data import texts
from secateur.errors import DataWarning, InputError, UnsupportedError
from secateur.measure import quality
from secateur.recover.distillation import teachers
from secateur.runs import measuring
from secateur.runs.backends.language import Language, check_documents, held_batches
from secateur.subjects import open_subject

QUICK = {"steps": 6, "batch": 4, "length": 32, "lr": 3e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("chats")
    for name, seed in (("teacher", 0), ("student", 1)):
        tiny.model("qwen3", seed).save_pretrained(root / name)
        tiny.chat_tokenizer().save_pretrained(root / name)
    rows = tiny.chats(120, turns=2)
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "dialog.jsonl").write_text("".join(json.dumps({"dialog": row["messages"]}) + "\n" for row in rows))
    return root


def learn(folders, out, data="chats.jsonl", **how):
    return secateur.distill(folders / "student", folders / "teacher", folders / data, out, **{**QUICK, **how})


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mixtral"])
def test_a_document_in_a_block_is_read_as_if_it_were_alone(kind):
    subject = open_subject(tiny.model(kind), tokenizer=tiny.tokenizer())
    read = replace(texts.read(tiny.sentences(20)), packing="documents")
    check_documents(subject)
    batch = texts.batches(read, subject.tokenizer, packed=True, batch=2, length=40)[0]
    together = subject.forward(batch).prediction
    for row in range(2):
        places, length = batch["position_ids"][row], int(batch["attention_mask"][row].sum())
        starts = [place for place in range(length) if places[place] == 0]
        assert len(starts) > 2
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            alone = subject.forward({"input_ids": batch["input_ids"][row : row + 1, start:end]}).prediction[0]
            torch.testing.assert_close(together[row, start:end], alone, atol=2e-5, rtol=1e-4)


def test_a_model_that_does_not_keep_documents_apart_is_refused(monkeypatch):
    subject = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    forward = type(subject).forward

    def mixing(self, batch, **how):  # as attention does that knows no packed positions
        return forward(self, {"input_ids": batch["input_ids"]}, **how)

    monkeypatch.setattr(type(subject), "forward", mixing)
    with pytest.raises(UnsupportedError, match=r"LlamaForCausalLM with \w+ attention does not keep packed"):
        Language().fit_data(replace(texts.read(tiny.sentences(20)), packing="documents"), subject)


def test_a_student_of_chats_learns_answers_and_the_run_repeats(folders, tmp_path):
    row = learn(folders, tmp_path / "out", completion_only=True, packing="documents", task=0.5)
    assert row.after["probability_loyalty"].value > row.before["probability_loyalty"].value
    settings = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert (settings["completion_only"], settings["packing"]) == (True, "documents")
    again = commands.forked(tmp_path, "distill", "--config", tmp_path / "out" / "run.yaml", "--out", tmp_path / "again")
    assert again.wait() == 0, again.stderr
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "out" / "chat_template.jinja").is_file(), "the template goes along"


def test_a_column_of_chats_is_named_as_one_of_texts_is(folders, tmp_path):
    found = learn(folders, tmp_path / "named", "dialog.jsonl", text="dialog", completion_only=True)
    usual = learn(folders, tmp_path / "usual", completion_only=True)
    assert found.after == usual.after


@pytest.mark.wide
def test_quality_of_chats_is_that_of_answers(folders):
    subject = open_subject(folders / "student")
    data = Language().fit_data(replace(texts.read(folders / "chats.jsonl"), completion_only=True), subject)
    figure = measuring.measure(folders / "student", data=folders / "chats.jsonl", completion_only=True)
    batches = held_batches(data, subject.tokenizer, packed=True, length=64)
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            log_p = subject.forward(batch).prediction.log_softmax(-1)
            for row, place in batch["counted"].nonzero().tolist():
                total, count = total - float(log_p[row, place, batch["input_ids"][row, place + 1]]), count + 1
    assert quality.perplexity(subject.forward, batches).value == pytest.approx(torch.tensor(total / count).exp().item())
    whole = measuring.measure(folders / "student", data=folders / "chats.jsonl")
    assert whole["model"]["perplexity"].value != figure["model"]["perplexity"].value


@pytest.mark.parametrize("cache", [8, "all"])
def test_a_cache_of_answers_teaches_what_the_teacher_does(folders, tmp_path, cache):
    row = learn(folders, tmp_path / "out", completion_only=True, packing="documents", cache=cache, steps=3)
    assert row.recovery.steps == 3
    if cache == 8:
        subject = open_subject(folders / "teacher")
        data = Language().fit_data(
            replace(texts.read(folders / "chats.jsonl"), completion_only=True, packing="documents"), subject
        )
        batch = texts.batches(data, subject.tokenizer, packed=True, batch=2, length=32)[0]
        kept = teachers.cache_topk(
            tmp_path / "kept", lambda one: subject.forward(one).prediction, [batch], 1, key={"k": 8}, k=8
        )
        assert len(kept[0]["indices"]) == int(batch["counted"].sum())


def test_a_recipe_cuts_and_recovers_on_chats(folders, tmp_path):
    (row,) = secateur.run(
        "minitron", folders / "teacher", folders / "chats.jsonl", "params=80%", tmp_path / "out", completion_only=True,
        packing="documents", training="steps=4,batch=2", length=32,
    )  # fmt: skip
    assert row.settings["packing"] == "documents"
    assert row.after["perplexity"].value > 1


@pytest.mark.parametrize(
    ("how", "data", "message"),
    [
        (
            {"completion_only": True},
            tiny.sentences(30),
            "completion_only is of chats, and texts holds texts: give",
        ),
        ({"packing": "best"}, tiny.sentences(30), "packing='best': give blocks or documents"),
        ({"packing": "documents", "on_policy": 0.5, "prompt": 4}, None, "leave align, on-policy and server out"),
        ({"completion_only": True, "on_policy": 0.5, "prompt": 4}, None, "on-policy picks its own prompts"),
        ({"align": True}, None, "align lets each teacher read the texts for itself, and a chat is written out for one"),
    ],
)
def test_what_can_not_be_is_refused(folders, tmp_path, how, data, message):
    rows = tiny.chats(30) if data is None else data
    with pytest.raises((InputError, UnsupportedError), match=message):
        secateur.distill(folders / "student", folders / "teacher", rows, tmp_path / "out", **{**QUICK, **how})
    assert not (tmp_path / "out").exists()


def test_chats_without_a_template_end_in_one_line(folders, tmp_path):
    tiny.folder("llama", tmp_path / "plain")
    done = commands.forked(
        tmp_path, "run", "magnitude", tmp_path / "plain", "--budget", "weights=50%", "--data", folders / "chats.jsonl",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.wait() == 2
    assert done.stderr.strip() == (
        "secateur: chats.jsonl holds chats, and the tokenizer has no chat template: take that of an instruct model, or "
        "set chat_template in its folder"
    )
    assert not (tmp_path / "out").exists()


def test_an_encoder_reads_the_messages_of_a_chat(folders):
    subject = open_subject(tiny.model("bert"), tokenizer=tiny.tokenizer())
    read = texts.read(folders / "chats.jsonl")
    assert Language().fit_data(read, subject).texts == read.join().texts
    with pytest.raises(UnsupportedError, match="packing=documents is of language models, and BertModel is none"):
        Language().fit_data(replace(read, packing="documents"), subject)


def test_a_streamed_model_is_pruned_on_chats_and_packs_no_documents(folders, tmp_path):
    how = {"samples": 4, "length": 16, "stream": True}
    (row,) = secateur.run(
        "wanda", str(folders / "teacher"), folders / "chats.jsonl", "weights=50%", tmp_path / "out",
        completion_only=True, **how,
    )  # fmt: skip
    assert row.after["perplexity"].value > 1
    with pytest.raises(InputError, match="packing=documents is of training, and a model that is streamed is not"):
        secateur.run(
            "wanda", str(folders / "teacher"), folders / "chats.jsonl", "weights=50%", tmp_path / "other",
            packing="documents", **how,
        )  # fmt: skip


def test_what_is_cut_is_one_note_of_the_command_line(folders, tmp_path):
    done = commands.forked(
        tmp_path, "distill", folders / "student", "--from", folders / "teacher", "--data", folders / "chats.jsonl",
        "--out", tmp_path / "out", "--steps", 1, "--batch", 4, "--length", 16, "--packing", "documents",
        "--completion-only",
    )  # fmt: skip
    assert done.wait() in (0, 1), done.stderr
    notes = [line for line in done.stderr.splitlines() if "are cut there: a larger length takes more of them" in line]
    assert [line[:6] for line in notes] == ["note: "] * len(notes)
    assert 0 < len(notes) == len(set(notes))
    assert DataWarning.__name__ not in done.stderr
