"""Siblings of models of texts: what they get wrong, what they hide, and that they learn under masks."""

from __future__ import annotations

import pytest
import torch

import tiny
from secateur.data import texts
from secateur.errors import InputError, UnsupportedError
from secateur.methods import siblings
from secateur.methods.sibling_texts import TextPart
from secateur.subjects import open_subject
from secateur.vocabulary import Training

HOW = Training(epochs=1, batch=4, lr=0.05, optimizer="adamw")


def decoder():
    return open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())


def part(subject, labels=None):
    return TextPart(texts.read(tiny.chains(12)) if labels is None else labels, subject, 8)


def test_next_tokens_that_are_not_the_likeliest_are_wrong_whatever_the_batch():
    subject = decoder()
    some = part(subject)
    missed = whole = 0
    for row in some.in_order(1):
        told = subject.model(**row).logits[0].argmax(-1)
        missed += int((told[:-1] != row["input_ids"][0, 1:]).sum())
        whole += len(told) - 1
    assert some.wrong(subject.model) == pytest.approx(missed / whole)
    assert some.wrong(subject.model, batch=3) == some.wrong(subject.model)
    states = some.outputs(subject.model)
    rows = torch.cat([row["input_ids"] for row in some.in_order(1)])
    want = subject.forward({"input_ids": rows}, hidden=True).hidden[-1].mean(1)
    assert torch.allclose(states, want, atol=1e-5)


def test_a_model_of_texts_is_connected_to_itself_and_learns_under_masks():
    subject = decoder()
    some = part(subject)
    state = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    same = siblings.compare(subject.copy().model, state, state, some, points=3)
    assert same.connectivity == 0
    assert same.similarity == pytest.approx(1)
    assert same.errors == (some.wrong(subject.model),) * 3
    closed = siblings.close_smallest(siblings.prunable(subject.model, "matrices"), 0.3)
    assert not any("lm_head" in name for name in closed)
    before = some.wrong(subject.model)
    recovery = some.fit(subject.model, HOW, closed=closed, judged=some)
    assert recovery.settings["evaluations"][-1][1] == some.wrong(subject.model)
    assert recovery.losses[-1][1] < recovery.losses[0][1] or some.wrong(subject.model) <= before
    parameters = dict(subject.model.named_parameters())
    assert all(not parameters[name][~mask].any() for name, mask in closed.items())


def test_classes_of_texts_are_learned_by_classifiers_alone():
    subject = open_subject(tiny.classifier(), tokenizer=tiny.tokenizer())
    corpus = texts.read([{"text": text, "label": at % 2} for at, text in enumerate(tiny.sentences(9))])
    some = part(subject, corpus)
    right = sum(int(subject.model(**{key: row[key] for key in ("input_ids", "attention_mask")}).logits.argmax()
                    == row["labels"][0]) for row in some.in_order(1))  # fmt: skip
    assert some.wrong(subject.model) == pytest.approx(1 - right / 9)
    assert some.outputs(subject.model, batch=4).shape == (9, subject.hidden_size)
    with pytest.raises(UnsupportedError, match="foretells no next token, and texts has no classes"):
        part(subject)
    with pytest.raises(InputError, match="tokens=600 is beyond the model's 512 positions"):
        TextPart(corpus, subject, 600)


def test_long_texts_are_judged_fewer_at_a_time():
    subject, seen = decoder(), []
    some = TextPart(texts.read(tiny.chains(500)), subject, 256)

    def note(module, given, named):
        seen.append(named["input_ids"].numel())

    subject.model.register_forward_pre_hook(note, with_kwargs=True)
    some.wrong(subject.model)
    assert max(seen) == 4096


def test_gpt2_is_pruned_though_its_layers_are_no_linears():
    names = siblings.prunable(tiny.model("gpt2"), "matrices")
    assert "transformer.h.0.mlp.c_fc.weight" in names
    assert not any("lm_head" in name or "wte" in name for name in names)
