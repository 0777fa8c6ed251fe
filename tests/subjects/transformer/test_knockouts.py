"""Edges of attention and sub-blocks that are taken out of a pass."""

from __future__ import annotations

import pytest
import torch

import tiny
from secateur.errors import InputError, UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import knockouts


def ask(subject, tokens):
    with torch.no_grad():
        return subject.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_edges_the_last_position_reads_itself_alone(kind, implementation):
    """With all edges blocked in all layers, other words before the last one change nothing there."""
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    subject.model.set_attn_implementation(implementation)
    tokens = torch.randint(8, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    others = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    every, layers = torch.ones_like(tokens, dtype=torch.bool), range(len(subject.layers()))
    before = ask(subject, tokens)
    with knockouts.block_edges(subject, layers, torch.zeros_like(every)):
        torch.testing.assert_close(ask(subject, tokens), before, atol=1e-5, rtol=1e-5)
    with knockouts.block_edges(subject, layers, every):
        alone, again = ask(subject, tokens), ask(subject, others)
    torch.testing.assert_close(alone[:, -1], again[:, -1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone[:, :-1], before[:, :-1], atol=1e-5, rtol=1e-5)
    assert (alone[:, -1] - before[:, -1]).abs().max() > 1e-3
    some = torch.zeros_like(every)
    some[0, 2] = True  # of the first row only
    with knockouts.block_edges(subject, [1], some):
        one = ask(subject, tokens)
    torch.testing.assert_close(one[1], before[1], atol=1e-5, rtol=1e-5)
    assert (one[0, -1] - before[0, -1]).abs().max() > 1e-6
    assert torch.equal(ask(subject, tokens), before)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mixtral"])
def test_silent_sub_blocks_add_nothing_at_the_last_position(kind):
    subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    tokens = torch.randint(8, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    before, states = ask(subject, tokens), {}
    layers = range(len(subject.layers()))
    with knockouts.silence_blocks(subject, layers, "attention"), knockouts.silence_blocks(subject, layers, "ffn"):
        silent = subject.forward({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, hidden=True)
    states = silent.hidden
    assert torch.equal(states[0][:, -1], states[-1][:, -1])
    assert not torch.equal(states[0][:, 0], states[-1][:, 0])
    assert torch.equal(ask(subject, tokens), before)
    with pytest.raises(InputError, match="give attention or ffn"), knockouts.silence_blocks(subject, [0], "mixer"):
        pass


def test_a_mask_or_a_batch_that_does_not_fit_is_refused():
    subject = open_subject(tiny.model("gpt2"), tokenizer=tiny.tokenizer())
    tokens = torch.randint(8, 60, (2, 7))
    with (
        pytest.raises(InputError, match="sources are of 2 x 5 tokens, and the batch has 2 x 7"),
        knockouts.block_edges(subject, [0], torch.ones(2, 5, dtype=torch.bool)),
    ):
        ask(subject, tokens)
    attention = subject.model.transformer.h[0].attn
    for mask, why in ((torch.ones(2, 7), "has no mask of 7 x 7 edges"), (..., "takes no mask by name")):
        given = {} if mask is ... else {"attention_mask": mask}
        with (
            pytest.raises(UnsupportedError, match=why),
            knockouts.block_edges(subject, [0], torch.ones(2, 7, dtype=torch.bool)),
        ):
            attention(torch.zeros(2, 7, 32), **given)
