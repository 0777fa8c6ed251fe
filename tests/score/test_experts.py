"""Neurons inside experts: against gates put there by hand, and a loss that has a gradient where KL has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import DataError, InputError
from secateur.recover.distillation import losses
from secateur.recover.training import objectives
from secateur.score import experts
from secateur.subjects import Moe, open_subject
from subjects.hybrids import make_hybrid
from subjects.tiny import make, padded

NAMES = ("mixtral", "qwen2-moe", "phimoe", "deepseek3", "without gates", "gpt-oss")


def opened(name: str) -> tuple[Moe, dict[str, Any]]:
    subject = open_subject(make_hybrid("NemotronH-moe")) if name == "without gates" else make(name)
    assert isinstance(subject, Moe)
    return subject, {f"layers.{n}.expert_neurons": one.experts for n, one in subject.mixtures().items()}


def find_path(subject: Moe, gated: Gated) -> str:
    """Of the module for which it stands in."""
    return next(path for path, module in subject.model.named_modules() if module is gated.experts)


class Gated(nn.Module):
    """Experts one by one, with a gate on each neuron."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts
        biased = hasattr(experts, "down_proj_bias")
        self.gates = nn.Parameter(torch.ones(experts.down_proj.shape[:2] if biased else experts.down_proj.shape[::2]))
        self.seen: list[tuple[int, Tensor]] = []

    def forward(self, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        total = torch.zeros_like(states)
        for e in range(len(self.gates)):
            tokens, place = torch.where(chosen == e)
            if hasattr(self.experts, "down_proj_bias"):  # gpt-oss: inputs before outputs, gates and rows in turns
                out = self._run_biased(states[tokens], e)
                total = total.index_add(0, tokens, out * shares[tokens, place][:, None])
                continue
            if hasattr(self.experts, "up_proj"):
                inner = self.experts.act_fn(functional.linear(states[tokens], self.experts.up_proj[e]))
            else:
                gate, up = functional.linear(states[tokens], self.experts.gate_up_proj[e]).chunk(2, -1)
                inner = self.experts.act_fn(gate) * up
            self.seen.append((e, inner.detach()))
            out = functional.linear(inner * self.gates[e], self.experts.down_proj[e])
            total = total.index_add(0, tokens, out * shares[tokens, place][:, None])
        return total

    def _run_biased(self, states: Tensor, e: int) -> Tensor:
        read = states @ self.experts.gate_up_proj[e] + self.experts.gate_up_proj_bias[e]
        gate, up = read[:, ::2].clamp(max=7.0), read[:, 1::2].clamp(-7.0, 7.0)
        inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
        self.seen.append((e, inner.detach()))
        return (inner * self.gates[e]) @ self.experts.down_proj[e] + self.experts.down_proj_bias[e]


@pytest.mark.parametrize("name", NAMES)
def test_taylor_is_the_gradient_of_a_gate_on_each_neuron(name: str) -> None:
    subject, layers = opened(name)
    batch = padded(subject)

    def loss(item: Any) -> Tensor:
        return objectives.task_loss(subject.forward(item).prediction, item, objectives.count(item), causal=True)

    found = experts.taylor(loss, subject.model, layers, [batch])
    again = experts.taylor(loss, subject.model, layers, [batch])
    assert all(torch.equal(found[site], again[site]) for site in found)
    gated = {site: Gated(module) for site, module in layers.items()}
    for module in gated.values():
        subject.model.set_submodule(find_path(subject, module), module)
    loss(batch).backward()
    for site, module in gated.items():
        assert module.gates.grad is not None
        torch.testing.assert_close(found[site], module.gates.grad.abs().flatten(), atol=1e-6, rtol=1e-4)


def test_a_dead_neuron_scores_nothing() -> None:
    subject, layers = opened("mixtral")
    with torch.no_grad():
        layers["layers.1.expert_neurons"].gate_up_proj[2, 5] = 0.0  # act(0) = 0
    batch = padded(subject)

    def loss(item: Any) -> Tensor:
        return subject.forward(item).prediction.square().mean()

    width = 40
    for found in (
        experts.taylor(loss, subject.model, layers, [batch]),
        experts.activation(subject.forward, subject.model, layers, [batch]),
    ):
        scores = found["layers.1.expert_neurons"].reshape(4, width)
        assert scores[2, 5] == 0
        assert (scores[2] > 0).sum() == width - 1


def test_activation_is_the_mean_over_the_tokens_an_expert_got() -> None:
    subject, layers = opened("mixtral")
    batch = padded(subject)
    real = {name: tensor[:1] for name, tensor in batch.items()}
    short = {name: tensor[1:, :6] for name, tensor in batch.items()}
    found = experts.activation(subject.forward, subject.model, layers, [batch])
    plain = experts.activation(subject.forward, subject.model, layers, [real, short])
    for site in found:
        torch.testing.assert_close(found[site], plain[site], atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match="no batches"):
        experts.activation(subject.forward, subject.model, layers, [])
    with pytest.raises(InputError, match=r"layers\.0\.expert_neurons were never run"):
        experts.activation(lambda item: None, subject.model, layers, [real])


@pytest.mark.parametrize("name", ["phimoe", "without gates", "gpt-oss"])
def test_activation_by_hand(name: str) -> None:
    subject, layers = opened(name)
    site = next(iter(layers))
    batch = {name: tensor[:1] for name, tensor in padded(subject).items()}
    found = experts.activation(subject.forward, subject.model, layers, [batch])
    gated = Gated(layers[site])
    subject.model.set_submodule(find_path(subject, gated), gated)
    with torch.no_grad():
        subject.forward(batch)
    expected = torch.stack([h.abs().mean(0) if len(h) else torch.zeros(gated.gates.shape[1]) for _, h in gated.seen])
    torch.testing.assert_close(found[site], expected.flatten(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "without gates", "gpt-oss"])
def test_weight_is_the_norm_of_all_that_leaves_with_a_neuron(name: str) -> None:
    module = next(iter(opened(name)[1].values()))
    score = experts.weight({"s": module})["s"].reshape(4, -1)[3, 7]
    gated = name == "mixtral"
    if name == "gpt-oss":
        parts = (module.gate_up_proj[3, :, 14], module.gate_up_proj[3, :, 15], module.down_proj[3, 7])
    else:
        rows = (module.gate_up_proj[3, 7], module.gate_up_proj[3, 47]) if gated else (module.up_proj[3, 7],)
        parts = (*rows, module.down_proj[3, :, 7])
    assert float(score) == pytest.approx(float(torch.cat([part.detach() for part in parts]).norm()), rel=1e-5)


def test_alike_scores_each_neuron_the_same_in_all_experts() -> None:
    _, layers = opened("mixtral")
    scores = {"layers.0.expert_neurons": torch.rand(160), "other": torch.rand(3)}
    found = experts.share_scores(scores, {"layers.0.expert_neurons": layers["layers.0.expert_neurons"]})
    rows = found["layers.0.expert_neurons"].reshape(4, 40)
    assert all(torch.equal(rows[0], row) for row in rows)
    assert torch.equal(found["other"], scores["other"])
    # A large expert does not decide alone.
    scaled = dict(scores)
    scaled["layers.0.expert_neurons"] = (scores["layers.0.expert_neurons"].reshape(4, 40) * 10).flatten()
    again = experts.share_scores(scaled, {"layers.0.expert_neurons": layers["layers.0.expert_neurons"]})
    torch.testing.assert_close(again["layers.0.expert_neurons"], found["layers.0.expert_neurons"])


def test_experts_without_a_score_are_ranked_by_their_weights_and_others_keep_theirs() -> None:
    _, layers = opened("mixtral")
    site = "layers.0.expert_neurons"
    layers = {site: layers[site]}
    rows = torch.rand(4, 40) + 0.1
    rows[1] = 0
    found = experts.fill_starved({site: rows.flatten()}, layers)
    norms = experts.weight(layers)[site].reshape(4, 40)
    assert torch.equal(found[site].reshape(4, 40), torch.stack([rows[0], norms[1], rows[2], rows[3]]))
    assert found[f"{site}.starved"].tolist() == [1]


def test_the_truncated_loss_has_a_gradient_where_the_student_is_the_teacher() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 30)
    values, indices = experts.likeliest(logits, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False

    def truncated(z: Tensor) -> Tensor:
        return experts.truncated_loss(z, values, indices, mask)

    def full(z: Tensor) -> Tensor:
        return losses.kl(z, logits, mask) / 8

    assert experts.has_no_gradient(full, logits)
    assert not experts.has_no_gradient(truncated, logits)
    # With all tokens it is cross-entropy against the teacher, and vanishes as KL does.
    every = experts.likeliest(logits, 30)
    assert experts.has_no_gradient(lambda z: experts.truncated_loss(z, *every, mask), logits)
    at = logits.clone().requires_grad_(True)
    truncated(at).backward()
    q = logits.softmax(-1)
    inside = torch.zeros_like(q).scatter(-1, indices, q.gather(-1, indices))
    mass = inside.sum(-1, keepdim=True)
    expected = (mass * q - inside) * mask[..., None] / 8
    torch.testing.assert_close(at.grad, expected, atol=1e-6, rtol=1e-4)
    # What is stored gives what is computed on the way.
    assert float(truncated(logits)) == pytest.approx(
        float(-(inside * logits.log_softmax(-1)).sum(-1)[mask].mean()), rel=1e-5
    )
