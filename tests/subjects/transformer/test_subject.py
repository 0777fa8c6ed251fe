"""What a subject does beside being cut: running, probing, refusing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import InputError, UnsupportedError
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Selection
from subjects.tiny import (
    BATCH,
    LENGTH,
    MODELS,
    flops,
    make,
    padded,
    run,
    without,
)


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_every_hidden_state(name: str) -> None:
    subject = make(name)
    cut, _ = subject.cut(Selection({"layers": without(3, 1)}))
    batch = padded(subject)
    with torch.no_grad():
        full, output = subject.forward(batch, hidden=True), cut.forward(batch, hidden=True)
    assert [len(full.hidden), len(output.hidden)] == [4, 3]
    torch.testing.assert_close(full.hidden[0], output.hidden[0])
    torch.testing.assert_close(full.hidden[1], output.hidden[1])
    assert all(state.shape == (BATCH, LENGTH, 48) for state in full.hidden)
    assert subject.forward(batch).hidden == ()
    assert cut.layer_index == (0, 2)


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "gpt2", "llama", "gemma2", "gemma3", "phi3", "qwen3"]
)
def test_probe_runs_one_block(name: str) -> None:
    subject = make(name)
    config = subject.model.config.to_dict()
    for kind, counts in (("neurons", (8, 40)), ("heads", (2, 4))):
        small, large = (subject.probe(kind, count, 2, 7) for count in counts)
        assert small().shape == large().shape == (2, 7, 48)
        with FlopCounterMode(display=False) as less:
            small()
        with FlopCounterMode(display=False) as more:
            large()
        assert 0 < less.get_total_flops() < more.get_total_flops()
    nothing = subject.probe("neurons", 0, 2, 7)
    assert nothing() is None
    assert subject.model.config.to_dict() == config
    with pytest.raises(InputError, match="neurons"):
        subject.probe("neurons", 4000, 2, 7)


def test_probe_of_kv_groups() -> None:
    assert make("llama").probe("kv_groups", 1, 2, 7)().shape == (2, 7, 48)
    with pytest.raises(InputError, match="3 does not spread evenly over 2"):
        make("llama").probe("heads", 3, 2, 7)
    with pytest.raises(InputError, match="kv_groups in a grouped model"):
        make("gpt2").probe("kv_groups", 1, 2, 7)


def test_probe_costs_what_the_block_costs() -> None:
    """The block's FLOPs in the probe are what the units say the block costs."""
    subject = make("llama")
    units = subject.units(batch=2, length=7)
    whole = units.cost()["flops"]
    for kind, count, keep in (("neurons", 40, {"ffn": without(3, 0)}), ("heads", 4, {"attention": without(3, 0)})):
        probe = subject.probe(kind, count, 2, 7)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            probe()
        assert counter.get_total_flops() == whole - units.cost(keep)["flops"]


def test_unknown_tensors_refuse_channels_by_name() -> None:
    subject = make("llama")
    subject.model.register_module("probe_head", torch.nn.Linear(48, 5))
    with pytest.raises(UnsupportedError, match=r"probe_head\.weight \(5, 48\)"):
        subject.cut(Selection({"channels": without(48, 0)}))
    other = make("llama")
    other.model.model.layers[0].self_attn.register_module("adapter", torch.nn.Linear(48, 5))
    with pytest.raises(UnsupportedError, match=r"adapter\.weight is no part of a plain llama layer"):
        Transformer.__init__(other, other.model, other.family)


def test_what_to_do_about_an_unknown_tensor_goes_by_what_it_is() -> None:
    def refuse(model: transformers.PreTrainedModel) -> str:
        with pytest.raises(UnsupportedError, match="is no part of a plain") as caught:
            open_subject(model)
        return str(caught.value).partition("can't be cut with it")[2]

    other = make("llama").model
    other.model.layers[0].self_attn.register_module("extra", torch.nn.Linear(48, 5))
    assert refuse(other) == ": secateur prune cuts it as any network"
    peft = pytest.importorskip("peft")
    adapted = make("llama").model
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), adapted)
    assert refuse(adapted) == ": it belongs to an adapter, merge that first (merge_and_unload() of peft)"
    config = make("gpt2").model.config
    config.add_cross_attention = True
    assert "add_cross_attention=False" in refuse(transformers.GPT2LMHeadModel(config))
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=61)
    config = transformers.PegasusXConfig(**sizes, encoder_attention_heads=4, decoder_attention_heads=4, block_size=8)
    assert refuse(transformers.PegasusXForConditionalGeneration(config)) == ": secateur prune cuts it as any network"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi3"])
def test_writers_are_all_that_the_residual_stream_holds(name: str) -> None:
    subject = make(name)
    paths = subject.writers()
    blocks = sum(width.heads > 0 for width in subject.widths()) + sum(width.ffn for width in subject.widths())
    assert len(paths) == blocks + (2 if name == "gpt2" else 1)
    with torch.no_grad():
        for path in paths:
            for parameter in subject.model.get_submodule(path).parameters():
                parameter.zero_()
        states = subject.forward(padded(subject), hidden=True).hidden
    assert not any(one.any() for one in states)


def test_writers_of_experts_and_encoders_are_none_alone() -> None:
    with pytest.raises(UnsupportedError, match="mixtral has experts, so no one linear writes"):
        make("mixtral").writers()
    with pytest.raises(UnsupportedError, match="channels"):
        make("olmoe").writers()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_untied_copy_says_the_same_and_has_a_head_of_its_own(name: str) -> None:
    subject = make(name)
    free, batch = subject.untie(), padded(subject)
    assert torch.equal(run(free, batch), run(subject, batch))
    head, table = free.model.get_output_embeddings(), free.model.get_input_embeddings()
    assert head.weight is not table.weight
    assert free.model.config.tie_word_embeddings is False
    own = subject.model.get_output_embeddings().weight is not subject.model.get_input_embeddings().weight
    more = 0 if own else head.weight.numel()
    assert free.units().cost()["params"] == subject.units().cost()["params"] + more
    with torch.no_grad():
        table.weight.zero_()
    assert not torch.equal(run(free, batch), run(subject, batch))
    assert free.origin == subject.origin


def test_noop_is_called_one() -> None:
    subject = make("llama")
    cut, receipt = subject.cut(Selection({"layers.0.heads": np.ones(4, dtype=bool)}))
    assert receipt.is_noop
    assert cut.model is not subject.model
    batch = padded(subject)
    assert torch.equal(run(cut, batch), run(subject, batch))


@pytest.mark.parametrize("name", ["bert-classifier", "llama"])
def test_flops_per_token_are_those_of_a_sequence(name: str) -> None:
    subject = make(name)
    counted = flops(subject, subject.example(1, LENGTH))
    # transformers 5.15 makes the angles of rotary positions by a matrix product, which is counted.
    assert subject.flops_per_token(LENGTH) * LENGTH == pytest.approx(counted, rel=2e-4)


def test_a_notebook_shows_a_subject_as_a_table() -> None:
    subject = make("llama")
    small, _ = subject.cut(Selection({"layers.1.neurons": without(40, *range(8))}))
    shown = small._repr_html_()
    assert shown.startswith("<table><caption>Decoder: SecateurLlamaForCausalLM</caption>")
    for label, value in (("Layers", "3"), ("Channels", "48"), ("Neurons of a layer", "32 to 40")):
        assert f"<td>{label}</td><td>{value}</td>" in shown
    assert "Experts" not in shown
