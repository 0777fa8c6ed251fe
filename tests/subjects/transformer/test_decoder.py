"""Decoders: the cache after a cut, and query heads inside their groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from secateur.errors import UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Selection
from subjects.tiny import (
    DECODERS,
    GENERATORS,
    make,
    without,
)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("gone", [(0,), (0, 1), (1, 2), (0, 1, 2)])
def test_generation_with_the_cache_equals_generation_without(name: str, gone: tuple[int, ...]) -> None:
    subject, _ = make(name).cut(Selection({"attention": without(3, *gone)}))
    tokens = subject.example(2, 5)
    settings_ = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings_ |= {"output_logits": True, "return_dict_in_generate": True}
    cached = subject.model.generate(**tokens, **settings_, use_cache=True)
    fresh = subject.model.generate(**tokens, **settings_, use_cache=False)
    assert torch.equal(cached.sequences, fresh.sequences)
    for one, other in zip(cached.logits, fresh.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_without_its_head_a_model_gives_what_goes_into_it(name: str) -> None:
    subject, _ = make(name).cut(Selection({"attention": without(3, 0)}))
    batch = subject.example(2, 5)
    with torch.no_grad():
        whole, bare = subject.forward(batch, hidden=True), subject.forward(batch, hidden=True, head=False)
        logits = bare.head(bare.prediction)
    if bare.softcap is not None:
        logits = bare.softcap * torch.tanh(logits / bare.softcap)
    torch.testing.assert_close(logits, whole.prediction)
    assert len(bare.hidden) == len(whole.hidden)
    assert whole.head is None
    assert bare.prediction.shape[-1] == subject.hidden_size


@pytest.mark.parametrize(
    "name",
    [n for n in DECODERS if not {"mha", "gpt2", "longrope", "olmoe", "deepseek2", "deepseek3"} & {*n.split("-")}],
)
def test_heads_go_evenly_from_their_groups(name: str) -> None:
    subject = make(name)
    site = subject.units()["layers.0.heads"]
    assert site.group is not None
    assert site.group.tolist() == [0, 0, 1, 1]
    with pytest.raises(UnsupportedError, match=r"\[1, 2\] query heads .* layers\.0\.heads"):
        subject.cut(Selection({"layers.0.heads": without(4, 0)}))
    cut, _ = subject.cut(Selection({f"layers.{index}.heads": without(4, 0, 3) for index in range(3)}))
    config = cut.model.config
    assert config.num_attention_heads == config.num_key_value_heads == 2
    assert not config.is_heterogeneous
    assert cut.head_dim == subject.head_dim


def test_layers_that_give_lists_are_cut_and_their_states_read() -> None:
    config = OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    subject = open_subject(OpenAIGPTLMHeadModel(config).eval())
    selection = Selection({"layers": without(3, 1)})
    small, batch = subject.cut(selection)[0], subject.example(2, 5)
    with torch.no_grad():
        output, silenced = small.forward(batch, hidden=True), subject.silence(selection).forward(batch)
    assert [states.shape for states in output.hidden] == [(2, 5, 16)] * 3
    torch.testing.assert_close(output.prediction, silenced.prediction)


def test_layers_that_give_lists_run_by_themselves(tmp_path: Path) -> None:
    config = OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    subject = open_subject(OpenAIGPTLMHeadModel(config).eval())
    for block in blocks.visit(subject, [subject.example(2, 5)], tmp_path, store=False):
        assert [block.run(*each).shape for each in block.inputs()] == [(2, 5, 16)]
