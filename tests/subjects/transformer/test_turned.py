"""Layers that pass tokens before texts: their states are turned."""

from __future__ import annotations

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import UnsupportedError
from secateur.studies import baselines
from secateur.subjects import open_subject
from secateur.vocabulary import Budget


def test_states_of_layers_that_pass_tokens_before_texts_are_turned() -> None:
    config = XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32, bos_token_id=1, eos_token_id=2)
    subject = open_subject(XLNetLMHeadModel(config).eval())
    tokens = torch.randint(3, 64, (3, 3))  # as many texts as tokens: shapes don't tell
    with torch.no_grad():
        whole, alone = (
            subject.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, hidden=True).hidden
            for ids in (tokens, tokens[:1])
        )
    assert all(states.shape == (3, 3, 16) for states in whole)
    assert all(torch.allclose(states[:1], first, atol=1e-5) for states, first in zip(whole, alone, strict=True))
    with pytest.raises(UnsupportedError, match=r"XLNetLMHeadModel pass states on as \[S, B, d\].*take shortgpt"):
        subject.consumers()


def test_layers_that_pass_tokens_first_are_cut_by_the_norms_of_their_weights(tmp_path) -> None:
    config = XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32, bos_token_id=1, eos_token_id=2)
    subject = open_subject(XLNetLMHeadModel(config).eval())
    subject.tokenizer = tiny.tokenizer()
    with Run.open(tmp_path, {}) as run:
        data = texts.read(tiny.sentences(40))
        (found,) = baselines.magnitude(subject, data, [Budget.parse("params=80%")], run, length=8, dry_run=True)
    assert found.cut.after["params"] <= 0.8 * found.cut.before["params"]
    assert subject.consumers(read=False)
