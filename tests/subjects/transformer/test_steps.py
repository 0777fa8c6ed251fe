"""A step of decoding: what it gives, that it is the same at each call, and which models have none."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertModel, FNetModel, StableLmForCausalLM

from secateur.errors import UnsupportedError
from secateur.subjects import open_subject
from secateur.subjects.transformer import steps
from secateur.vocabulary import Selection
from subjects.hybrids import make_hybrid
from subjects.tiny import GENERATORS, make, without

LENGTH = 9


@pytest.mark.parametrize("name", GENERATORS)
def test_a_step_says_what_a_pass_over_the_whole_text_says_last(name: str) -> None:
    """Layer 0 has no attention, by which the cache would know its length."""
    subject, _ = make(name).cut(Selection({"attention": without(3, 0)}))

    torch.manual_seed(0)
    with torch.no_grad():
        whole = subject.forward(subject.example(2, LENGTH + 1)).prediction[:, -1:]
    for static in (False, True):
        torch.manual_seed(0)
        step = steps.decode(subject, 2, LENGTH, static=static)
        with torch.no_grad():
            first, second = step(), step()
        torch.testing.assert_close(first, whole, atol=2e-5, rtol=2e-5)
        moves = static and getattr(subject.model.config, "sliding_window", None)
        assert moves or torch.equal(first, second)
    torch.manual_seed(0)
    module, tensors = steps.flatten_step(subject, 2, LENGTH)
    with torch.no_grad():
        flat, *cache = module(*tensors)
    torch.testing.assert_close(flat, whole, atol=2e-5, rtol=2e-5)
    assert len(cache) == len(tensors) - 2
    assert cache[2].shape[2] <= LENGTH + 1


@pytest.mark.parametrize("name", ["bert", "llama-classifier"])
def test_what_reads_whole_texts_has_no_step(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"reads whole texts and has no cache: .*environment=prefill"):
        steps.decode(make(name), 2, LENGTH)


@pytest.mark.parametrize("name", ["Mamba2", "RecurrentGemma", "Lfm2", "Qwen3_5"])
def test_states_of_recurrences_and_convolutions_are_no_keys_and_values(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"a {name}ForCausalLM keeps other states than keys and values"):
        steps.CachedPass(open_subject(make_hybrid(name)))


def test_networks_of_tokens_and_their_mask_give_logits_or_states() -> None:
    small = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 24, "max_position_embeddings": 20}
    for kind, output, causal in (
        (BertModel, "states", False),
        (BertForMaskedLM, "logits", False),
        (StableLmForCausalLM, "logits", True),
    ):
        groups = {"num_key_value_heads": 2} if causal else {}
        texts = steps.TextNetwork(kind(kind.config_class(**small, **groups)).eval())
        assert (texts.output, texts.causal) == (output, causal)
        example = texts.example(2, 7)
        (given,) = steps.ForwardPass(texts).eval()(example["input_ids"], example["attention_mask"])
        assert given.shape == (2, 7, 16 if output == "states" else 20)
    for kind, words in ((FNetModel, "tokens and their mask alone"), (BertForQuestionAnswering, "neither logits nor")):
        with pytest.raises(UnsupportedError, match=words):
            steps.TextNetwork(kind(kind.config_class(**small)).eval())


def test_a_stack_has_one_kind_of_block_alone() -> None:
    subject = make("llama")
    for kind, count, width in (("neurons", 8, (0, 8)), ("kv_groups", 1, (2, 0)), ("neurons", 0, (0, 0))):
        stack = subject.stack(kind, count, 2)
        assert [(layer.heads, layer.neurons) for layer in stack.widths()] == [width] * 2
        assert steps.decode(stack, 2, LENGTH)().shape == (2, 1, subject.hidden_size)


def test_a_cache_that_fills_all_positions_leaves_none_for_the_next_token() -> None:
    subject = make("gpt2")
    assert steps.decode(subject, 1, 47)().shape[1] == 1
    with pytest.raises(UnsupportedError, match=r"has 48 positions, .* give a length of at most 47"):
        steps.decode(subject, 1, 48)
