"""Mixtures of experts: what their layers are made of, what is refused, and how they are written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import InfeasibleError, UnsupportedError
from secateur.select import ranking
from secateur.subjects import Moe, Transformer, load, open_subject
from secateur.subjects.transformer.deriving import find_family
from secateur.subjects.transformer.making import make_subject
from secateur.vocabulary import Selection
from strangers import run_without_secateur
from subjects.tiny import MIXTURES, make, padded, run, selections, without


def mixture(name: str) -> Moe:
    found = make(name)
    assert isinstance(found, Moe)
    return found


@pytest.mark.parametrize("name", MIXTURES)
def test_all_and_active_parameters_are_those_of_the_formula(name: str) -> None:
    """Experts E 3 d width, and biases, per layer, of which a token passes k; all else is passed by every token."""
    subject = mixture(name)
    config, cost = subject.model.config, subject.units().cost()
    experts = {n: 3 * config.hidden_size * one.count * one.width for n, one in subject.mixtures().items()}
    biases = {n: one.count * (2 * one.width + config.hidden_size) for n, one in subject.mixtures().items()}
    experts = {n: size + (biases[n] if name == "gpt-oss" else 0) for n, size in experts.items()}
    assert cost["params"] == sum(p.numel() for p in subject.model.parameters())
    idle = sum(size * (1 - subject.top_k / subject.mixtures()[n].count) for n, size in experts.items())
    assert cost["active_params"] == cost["params"] - idle
    half, receipt = subject.cut(Selection(selections(subject)["expert neurons alike"]))
    gone = sum(experts.values()) / 2
    gone -= sum(one.count * config.hidden_size for one in subject.mixtures().values()) / 2 if name == "gpt-oss" else 0
    assert receipt.before["params"] - receipt.after["params"] == gone
    active = gone * subject.top_k / next(iter(subject.mixtures().values())).count
    assert receipt.before["active_params"] - receipt.after["active_params"] == active
    assert half.units().cost()["active_params"] == receipt.after["active_params"]


@pytest.mark.parametrize("name", ["mixtral", "deepseek3"])
def test_slimming_leaves_the_router_alone_and_each_expert_its_own_neurons(name: str) -> None:
    subject = mixture(name)
    keep = selections(subject)["expert neurons alike"]
    slim, _ = subject.cut(Selection(keep))
    assert isinstance(slim, Moe)
    for layer, after in slim.mixtures().items():
        before = subject.mixtures()[layer]
        for one, other in zip(before.router.state_dict().values(), after.router.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        mine = keep[f"layers.{layer}.expert_neurons"].reshape(before.count, before.width)
        assert len({tuple(row) for row in mine}) == before.count
        for expert, row in enumerate(mine):
            both = np.concatenate([row, row])
            assert torch.equal(after.experts.gate_up_proj[expert], before.experts.gate_up_proj[expert][both])
            assert torch.equal(after.experts.down_proj[expert], before.experts.down_proj[expert][:, row])


def test_neurons_whose_rows_alternate_go_with_both_of_their_rows_their_biases_and_their_line_of_the_output() -> None:
    """gpt-oss stores inputs before outputs: [E, d, 2 I] with gate and row of a neuron side by side, and [E, I, d]."""
    subject = mixture("gpt-oss")
    keep = selections(subject)["experts and their neurons"]
    slim, _ = subject.cut(Selection(keep))
    assert isinstance(slim, Moe)
    before, after = subject.mixtures()[2], slim.mixtures()[2]
    stay = np.flatnonzero(keep["layers.2.experts"])
    mine = keep["layers.2.expert_neurons"].reshape(before.count, before.width)[stay]
    assert after.count == len(stay) < before.count
    for number, (old, row) in enumerate(zip(stay, mine, strict=True)):
        both = np.repeat(row, 2)
        for leaf in ("gate_up_proj", "gate_up_proj_bias"):
            assert torch.equal(getattr(after.experts, leaf)[number], getattr(before.experts, leaf)[old][..., both])
        assert torch.equal(after.experts.down_proj[number], before.experts.down_proj[old][row])
        assert torch.equal(after.experts.down_proj_bias[number], before.experts.down_proj_bias[old])
        assert torch.equal(after.router.bias[number], before.router.bias[old])


def test_experts_go_where_their_neurons_stay_whole() -> None:
    model = mixture("gpt-oss").model
    subject = make_subject(model, replace(find_family(type(model), model.config), whole={"expert_neurons": "of a try"}))
    gone, neurons = without(4, 1), np.repeat(without(4, 1), 40)
    small, _ = subject.cut(Selection({"layers.1.experts": gone, "layers.1.expert_neurons": neurons}))
    assert small.layout.widths[1].experts == 3
    with pytest.raises(UnsupportedError, match="of a try"):
        subject.cut(Selection({"layers.1.expert_neurons": np.tile(np.arange(40) > 0, 4)}))


def test_slimming_leaves_the_routing_of_the_first_layer_as_it_was() -> None:
    subject = mixture("mixtral")
    slim, _ = subject.cut(Selection(selections(subject)["expert neurons alike"]))
    batch, chosen = padded(subject), list[Tensor]()
    for one in (subject, slim):
        hook = one.mixtures()[0].router.register_forward_hook(lambda _, args, out: chosen.append(out[2]))
        run(one, batch)
        hook.remove()
    assert torch.equal(*chosen)


@pytest.mark.parametrize(
    ("name", "keep", "why"),
    [
        ("mixtral", {"layers.1.experts": without(4, 0, 1, 2)}, r"keeps 1 experts .* gives each token 2 .* at least 2"),
        ("mixtral", {"layers.1.experts": without(4, 0, 1, 2, 3), "ffn": without(3, 0)}, None),
        (
            "mixtral",
            {"layers.1.expert_neurons": without(160, *range(8))},
            r"\[32, 40, 40, 40\] neurons .* equally wide",
        ),
        (
            "mixtral",
            {"layers.1.expert_neurons": without(160, *range(0, 160, 40))},
            "39 of .* multiples of 4 in float32",
        ),
        ("mixtral", {"channels": without(48, 5)}, "keeps 47 of channels: .* multiples of 4 in float32"),
        ("deepseek3", {"layers.1.experts": without(8, 0)}, r"keeps \[3, 4\] experts in the groups"),
        ("deepseek3", {"layers.1.experts": without(8, 0, 1, 2, 4, 5, 6)}, "keeps 2 experts .* at least 4"),
        ("deepseek2-groups", {"layers.1.experts": without(8, 0, 1, 2, 4, 5, 6)}, "at least 4"),
        ("deepseek3", {"layers.1.heads": without(4, 0)}, "heads of this deepseek_v3 model can't be cut: .* latent"),
        ("deepseek2", {"channels": without(48, *range(8))}, "channels of this deepseek_v2 model can't be cut"),
        ("olmoe", {"layers.1.kv_groups": without(2, 0)}, "kv_groups of this olmoe model can't be cut"),
        ("qwen2-moe", {"layers.1.shared_neurons": without(40, *range(40))}, "no neuron of layers.1.shared_neurons"),
    ],
)
def test_what_a_mixture_can_not_lose_is_refused_in_one_line(name: str, keep: dict, why: str | None) -> None:
    subject = mixture(name)
    if why is None:
        subject.cut(Selection(keep))
        return
    with pytest.raises(UnsupportedError, match=why) as caught:
        subject.cut(Selection(keep))
    assert "\n" not in str(caught.value)


def test_axes_that_stay_whole_are_refused_by_name() -> None:
    with pytest.raises(
        UnsupportedError, match="axis 'heads' of this olmoe model can't be cut: its query and key norms"
    ):
        mixture("olmoe").units("heads")
    with pytest.raises(
        UnsupportedError, match=r"'neurons' is not one .* layers, attention, ffn, experts, expert_neurons"
    ):
        mixture("olmoe").units("neurons")
    found = mixture("mixtral")
    found.mixtures()[0].experts.gate_up_proj_bias = torch.nn.Parameter(torch.zeros(4, 80))
    with pytest.raises(UnsupportedError, match="no part of a plain mixtral layer"):
        open_subject(found.model)
    config = transformers.DeepseekV2Config(
        vocab_size=61, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, mlp_bias=True,
        num_experts_per_tok=2, n_routed_experts=4, moe_intermediate_size=8, intermediate_size=8, kv_lora_rank=8,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="experts with biases can't be pruned"):
        open_subject(transformers.DeepseekV2ForCausalLM(config))


def test_experts_are_ranked_within_what_the_router_needs() -> None:
    subject = mixture("deepseek3")
    units = subject.units("experts")
    scores = {site.name: np.arange(site.count, dtype=float) for site in units.free()}
    chosen = ranking.by_counts(units, scores, {"experts": 6})
    assert chosen.keep["layers.1.experts"].tolist() == [False, True, True, True, False, True, True, True]
    with pytest.raises(InfeasibleError, match="can't keep 2 of 8"):
        ranking.by_counts(units, scores, {"experts": 2})
    plain = mixture("mixtral").units("expert_neurons")
    scores = {site.name: np.arange(site.count, dtype=float) for site in plain.free()}
    kept = ranking.by_budget(plain, scores, "active_params=80%")
    assert len({int(keep.sum()) for keep in kept.keep.values()}) == 1 or kept.spent["active_params"] > 0
    for keep in kept.keep.values():
        assert len(set(keep.reshape(4, -1).sum(1).tolist())) == 1


@pytest.mark.parametrize("name", [n for n in MIXTURES if n != "mixtral-base"])
@pytest.mark.parametrize("label", ["expert neurons alike", "experts alike"])
def test_what_is_alike_in_all_layers_is_written_plainly(name: str, label: str, tmp_path: Path) -> None:
    subject = mixture(name)
    small, _ = subject.cut(Selection(selections(subject)[label]))
    config = small.model.config
    assert not config.is_heterogeneous
    count = config.num_experts if hasattr(config, "num_experts") else config.num_local_experts
    assert count == next(iter(small.mixtures().values())).count
    assert config.num_experts_per_tok == subject.top_k
    small.save(tmp_path)
    assert not (tmp_path / "modeling_secateur.py").exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    batch = padded(small)
    torch.testing.assert_close(again(**batch).logits, run(small, batch), atol=1e-5, rtol=1e-5)


def test_a_shared_expert_that_is_no_multiple_of_the_others_needs_a_modelling_file(tmp_path: Path) -> None:
    """DeepSeek's config tells its width as a number of experts."""
    subject = mixture("deepseek2")
    whole = selections(subject)
    plain, _ = subject.cut(Selection(whole["shared neurons alike"]))
    assert plain.model.config.n_shared_experts == 1
    own, _ = subject.cut(Selection({f"layers.{n}.shared_neurons": without(48, *range(16)) for n in subject.mixtures()}))
    assert own.model.config.is_heterogeneous
    own.save(tmp_path)
    batch = padded(own)
    torch.testing.assert_close(load(tmp_path).eval()(**batch).logits, run(own, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "deepseek3", "gpt-oss"])
def test_layers_of_their_own_widths_load_without_remote_code(name: str, tmp_path: Path) -> None:
    subject = mixture(name)
    found = selections(subject)
    keep = found["experts and their neurons"] | found["attention"]
    own, _ = subject.cut(Selection(keep))
    own.save(tmp_path)
    batch = padded(own)
    torch.testing.assert_close(load(tmp_path).eval()(**batch).logits, run(own, batch), atol=1e-5, rtol=1e-5)
    again = open_subject(tmp_path)
    assert again.units().cost() == own.units().cost()
    twice, receipt = again.cut(Selection(selections(subject)["a layer"]))
    assert receipt.after == {key: value for key, value in twice.units().cost().items() if key in receipt.after}


def test_experts_listed_one_by_one_round_trip(tmp_path: Path) -> None:
    """Checkpoints of older releases hold w1, w2 and w3 of each expert; what is written does too."""
    subject = mixture("mixtral")
    batch = padded(subject)
    subject.save(tmp_path / "whole")
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    listed = {f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight" for e in range(4) for w in ("w1", "w2", "w3")}
    assert listed <= names
    again = open_subject(tmp_path / "whole")
    assert isinstance(again, Moe)
    torch.testing.assert_close(run(again, batch), run(subject, batch), atol=1e-5, rtol=1e-5)
    # Packed ones load as well.
    packed = {key: value.contiguous() for key, value in subject.model.state_dict().items()}
    save_file(packed, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(run(open_subject(tmp_path / "whole"), batch), run(again, batch))
    slim, _ = again.cut(Selection(selections(subject)["expert neurons alike"]))
    slim.save(tmp_path / "slim")
    tensors = load_file(tmp_path / "slim" / "model.safetensors")
    assert tensors["model.layers.0.block_sparse_moe.experts.3.w1.weight"].shape == (20, 48)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2-moe", "gpt-oss"])
def test_a_mixture_of_many_widths_loads_without_secateur(name: str, tmp_path: Path) -> None:
    subject = mixture(name)
    found = selections(subject)
    own, _ = subject.cut(Selection(found["experts and their neurons"] | found.get("shared neurons", {})))
    own.save(tmp_path)
    batch = padded(own)
    save_file(batch, tmp_path / "batch.safetensors")
    code = (
        "import json, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from safetensors.torch import load_file\n"
        "model = AutoModelForCausalLM.from_pretrained('.', trust_remote_code=True).eval()\n"
        "print('VALUES', json.dumps(model(**load_file('batch.safetensors')).logits.flatten()[:500].tolist()))\n"
    )
    printed = run_without_secateur(code, tmp_path)
    values = json.loads(next(line for line in printed.splitlines() if line.startswith("VALUES"))[7:])
    np.testing.assert_allclose(np.array(values), run(own, batch).flatten()[:500].numpy(), atol=1e-5)


def test_the_balancing_loss_of_the_class_is_off_where_layers_differ() -> None:
    subject = mixture("mixtral")
    subject.model.config.output_router_logits = True
    own, _ = subject.cut(Selection({"layers.0.experts": without(4, 1)}))
    assert not own.model.config.output_router_logits
    batch = padded(own)
    own.model(**batch, labels=batch["input_ids"]).loss.backward()
    alike, _ = subject.cut(Selection(selections(subject)["expert neurons alike"]))
    assert alike.model.config.output_router_logits


def test_a_dense_decoder_is_no_mixture() -> None:
    assert isinstance(make("llama"), Transformer)
    assert not isinstance(make("llama"), Moe)
    assert "active_params" not in make("llama").units().cost()
