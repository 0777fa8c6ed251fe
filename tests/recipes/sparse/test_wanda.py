"""Wanda: rescaled channels, rows by sums, experts by their own tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM

import tiny
import toys
from recipes.sparse.oneshot import CALIBRATED, data, run, stays, taught
from secateur.errors import InputError, NumericalError
from secateur.methods import blockwise
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks


def test_wanda_survives_rescaled_channels_and_magnitude_does_not(tmp_path):
    """Norm weights times c, the weights that read them divided by c: the same function."""
    scaled = taught().copy()
    draw = torch.Generator().manual_seed(0)
    for layer in scaled.model.model.layers:
        for norm, readers in (
            (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            c = torch.exp2(torch.randint(-3, 4, norm.weight.shape, generator=draw).float())  # exact in floating point
            norm.weight.data *= c
            for reader in readers:
                reader.weight.data /= c
    plain, other = (stays(run("wanda", tmp_path / str(i), subject=s)) for i, s in enumerate((None, scaled)))
    same = [float((plain[key] == other[key]).float().mean()) for key in plain]
    assert min(same) > 0.999
    plain, other = (stays(run("magnitude", tmp_path / str(i), subject=s)) for i, s in enumerate((None, scaled)))
    key = "model.layers.0.mlp.up_proj.weight"
    assert float((plain[key] == other[key]).float().mean()) < 0.9


def test_cumulative_rows_differ_and_the_budget_is_kept(tmp_path):
    result = run("wanda", tmp_path, cumulative=True)
    masks = stays(result)
    assert any(len(set(mask.sum(1).tolist())) > 1 for mask in masks.values())
    assert 0.48 < result.cut.after["weights"] / result.cut.before["weights"] <= 0.5
    with pytest.raises(InputError, match="scope=row"):
        run("wanda", tmp_path, "pattern=2:4", cumulative=True)


def test_few_texts_are_told_and_broken_weights_named(tmp_path):
    result = run("wanda", tmp_path, samples=10_000)
    assert "fewer than the 10000 asked for" in result.cut.notes[0]
    broken = taught().copy()
    broken.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"layers\.1"):
        run("wanda", tmp_path, subject=broken)


def test_experts_are_pruned_by_their_own_tokens_and_starved_ones_by_their_layers(tmp_path):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tiny.tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )
    ).eval()  # fmt: skip
    subject = open_subject(model, tokenizer=tiny.tokenizer())
    for name in ("wanda", "sparsegpt", "owl"):
        result = run(name, tmp_path, subject=subject, floor=10**6)
        experts = [m for m in matrices(result.subject.model, subject.layers()).values() if m.expert is not None]
        assert len(experts) == 16
        spread = 0.09 if name == "owl" else 0.0  # its blocks keep different shares
        assert all(0.4 - spread < float((m.weight != 0).float().mean()) <= 0.5 + spread for m in experts)
        assert "16 matrices of experts had under 1000000 tokens" in result.cut.notes[0]
        own = run(name, tmp_path, subject=subject)
        assert not own.cut.notes
        masks, others = stays(own), stays(result)
        assert any(not torch.equal(masks[m.name], others[m.name]) for m in experts)
        assert torch.equal(result.subject.model.model.layers[0].mlp.gate.weight, model.model.layers[0].mlp.gate.weight)


def test_one_threshold_compares_experts_by_the_tokens_that_they_got(tmp_path):
    mixture = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    squares = {}
    windows, _ = blockwise.read_windows(mixture, data(), CALIBRATED["samples"], CALIBRATED["length"], seed=0)
    for block in blocks.visit(mixture, windows, tmp_path / "reference", store=False):
        squares |= {name: one.value(name) * one.rows for name, one in blockwise.read_inputs(block, 1).items()}
    masks = stays(run("wanda", tmp_path / "run", subject=mixture, scope="global"))
    found = matrices(mixture.model, mixture.layers()).items()
    scores = {name: m.weight.abs() * squares[name].sqrt() for name, m in found}
    edge = torch.cat([one.flatten() for one in scores.values()]).median()
    assert min(float((masks[name] == (one > edge)).float().mean()) for name, one in scores.items()) > 0.999


@pytest.mark.parametrize("sequential", [True, False])
def test_step_sizes_of_mamba_stay_and_the_rest_meets_the_budget(tmp_path, sequential):
    """Their weights are multiplied without the module being called: nobody sees what they read."""
    config = MambaConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2
    )
    mamba = open_subject(MambaForCausalLM(config).eval(), tokenizer=tiny.tokenizer())
    result = run("wanda", tmp_path, subject=mamba, sequential=sequential)
    layer = result.subject.model.backbone.layers[0].mixer
    assert torch.count_nonzero(layer.dt_proj.weight) == layer.dt_proj.weight.numel()
    assert float((layer.in_proj.weight == 0).float().mean()) == 0.5


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("llama", "weights=50%", samples=24, length=16)
