"""Routing of packed experts, against what the router's own logits say; distances by hand."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from secateur.errors import DataError, InputError, NumericalError
from secateur.score import routing

EXPERTS, TOP = 6, 2


@pytest.fixture(scope="module")
def model() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
    )
    made = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def batches(count: int = 3, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.long)
    if padded:
        mask[1, 5:] = 0
        mask[3, :2] = 0
    return [
        {"input_ids": torch.randint(0, 50, (4, 9), generator=draw), "attention_mask": mask.clone()}
        for _ in range(count)
    ]


def packed(model) -> dict[str, torch.nn.Module]:
    return {path: module for path, module in model.named_modules() if path.endswith(".experts")}


def collected(model, items, **how):
    return routing.collect(lambda item: model(**item), model, items, packed(model), **how)


def by_logits(model, items, layer):
    """Counts, shares and meetings, token by token, from the logits that the model itself gives out."""
    counts, shares = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
    together = torch.zeros(EXPERTS, EXPERTS)
    for item in items:
        logits = model(**item, output_router_logits=True).router_logits[layer]
        for row, real in zip(logits, item["attention_mask"].flatten().tolist(), strict=True):
            if real:
                weight, chosen = row.softmax(-1).topk(TOP)
                for a, w in zip(chosen.tolist(), (weight / weight.sum()).tolist(), strict=True):
                    counts[a] += 1
                    shares[a] += w
                i, j = chosen.tolist()
                together[i, j] += 1
                together[j, i] += 1
    return counts, shares, together


@torch.no_grad()
def test_counts_shares_and_meetings_are_those_of_the_routers_logits(model):
    items = batches()
    found = collected(model, items)
    assert list(found) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for layer, one in enumerate(found.values()):
        counts, shares, together = by_logits(model, items, layer)
        assert one.tokens == sum(int(item["attention_mask"].sum()) for item in items)
        assert one.counts.tolist() == counts.tolist()
        assert one.counts.sum() == TOP * one.tokens
        torch.testing.assert_close(one.shares, shares.double(), rtol=1e-5, atol=1e-5)
        assert one.together.tolist() == together.tolist()
        assert (one.together == one.together.T).all()
        assert not one.together.diagonal().any()
        assert one.saliency is None
        assert one.soft is None


@torch.no_grad()
def test_soft_counts_are_the_probabilities_of_all_tokens_summed_up(model):
    """Also of tokens that went elsewhere: shares count what a token was sent with, and these are other numbers."""
    items = batches()
    routers = {path: model.get_submodule(path).gate for path in ("model.layers.0.mlp", "model.layers.1.mlp")}
    routers = {f"{path}.experts": router for path, router in routers.items()}
    model(**items[0], output_router_logits=True)  # transformers leaves hooks of its own
    before = [len(router._forward_hooks) for router in routers.values()]
    found = collected(model, items, routers=routers)
    assert [len(router._forward_hooks) for router in routers.values()] == before
    for layer, one in enumerate(found.values()):
        expected = torch.zeros(EXPERTS, dtype=torch.float64)
        for item in items:
            logits = model(**item, output_router_logits=True).router_logits[layer]
            expected += logits[item["attention_mask"].flatten().bool()].double().softmax(-1).sum(0)
        torch.testing.assert_close(one.soft, expected, rtol=1e-5, atol=1e-5)
        assert float(one.soft.sum()) == pytest.approx(one.tokens)
        assert not torch.allclose(one.soft, one.shares, rtol=0.05)
        assert torch.equal(one.worth("soft"), one.soft)
        assert torch.equal(one.worth("usage"), one.counts)
        assert one.worth("clusters") is None
    alone = torch.nn.Linear(3, 2)
    alone.e_score_correction_bias = torch.zeros(2)  # as DeepSeek-V3's has
    shares = routing.probabilities(alone, torch.tensor([[0.0, 100.0]]))
    assert shares.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)]]


@torch.no_grad()
def test_saliency_is_the_mean_of_share_times_norm_over_the_tokens_routed(model):
    items = batches(2)
    layers = packed(model)
    seen = {path: [] for path in layers}
    handles = [
        module.register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args))
        for path, module in layers.items()
    ]
    found = collected(model, items, saliency=True)
    for handle in handles:
        handle.remove()
    for path, module in layers.items():
        sums, count = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
        for item, (states, experts, shares) in zip(items, seen[path], strict=True):
            real = item["attention_mask"].flatten().bool()
            for x, chosen, weights in zip(states[real], experts[real], shares[real], strict=True):
                for j, g in zip(chosen.tolist(), weights.tolist(), strict=True):
                    gate, up = (module.gate_up_proj[j] @ x).chunk(2)
                    sums[j] += g * (module.down_proj[j] @ (torch.nn.functional.silu(gate) * up)).norm()
                    count[j] += 1
        torch.testing.assert_close(found[path].saliency, sums / count.clamp(min=1), rtol=1e-4, atol=1e-5)
        assert not module._forward_pre_hooks  # nothing is left behind


@torch.no_grad()
def test_padding_does_not_count_whatever_it_holds(model):
    items = batches()
    other = [item | {"input_ids": item["input_ids"].masked_fill(item["attention_mask"] == 0, 7)} for item in items]
    for one, two in zip(collected(model, items).values(), collected(model, other).values(), strict=True):
        assert (one.together == two.together).all()
        assert (one.counts == two.counts).all()


def test_an_expert_without_tokens_has_zeros(model):
    layers = packed(model)
    path, module = next(iter(layers.items()))
    states, experts = torch.randn(5, 16), torch.tensor([[0, 1]] * 4 + [[2, EXPERTS]])  # the last: nowhere
    shares = torch.full((5, 2), 0.5)
    sums = routing._Sums(path, module, True)
    with torch.no_grad():
        sums.add(states, experts, shares, None)
    found = sums.result()
    assert found.counts.tolist() == [4, 4, 1, 0, 0, 0]
    assert found.saliency[3:].tolist() == [0, 0, 0]
    assert found.together[0, 1] == 4
    assert found.together[2].sum() == 0


def test_bad_input_is_refused(model):
    layers = packed(model)
    with pytest.raises(DataError, match="at least one"):
        collected(model, [])
    with pytest.raises(InputError, match="was never run"):
        routing.collect(lambda item: None, model, batches(1), layers)
    nothing = [item | {"attention_mask": item["attention_mask"] * 0} for item in batches(1)]
    with pytest.raises(InputError, match="every token was padding"):
        collected(model, nothing)
    with pytest.raises(InputError, match="holds no packed experts"):
        routing.collect(model, model, [], {"model.norm": model.model.norm})
    with pytest.raises(NumericalError, match="router"):
        routing.row_distance(torch.full((3, 2), float("nan")))
    with pytest.raises(InputError, match=r"give \[experts, d\]"):
        routing.row_distance(torch.zeros(3))
    with pytest.raises(InputError, match=r"give \[experts, experts\]"):
        routing.meeting_distance(torch.zeros(3, 2))
    sums = routing._Sums("there", layers["model.layers.0.mlp.experts"], False)
    with pytest.raises(InputError, match="routes 5 tokens of a batch of 6"):
        sums.add(torch.zeros(5, 16), torch.zeros(5, 2).long(), torch.zeros(5, 2), torch.ones(2, 3).bool())
    with pytest.raises(NumericalError, match="there"):
        sums.add(torch.zeros(1, 16), torch.zeros(1, 2).long(), torch.full((1, 2), float("nan")), None)


def test_distances_by_hand():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0]])
    plain = routing.row_distance(rows, normalised=False)
    assert plain.tolist() == [[0, 5, 0], [5, 0, 5], [0, 5, 0]]
    norm = (9 + 16 + 9) ** 0.5
    torch.testing.assert_close(routing.row_distance(rows), plain / norm)
    # A router of another scale gives the same distances, so one threshold serves all layers.
    torch.testing.assert_close(routing.row_distance(7 * rows), plain / norm)
    assert not routing.row_distance(torch.zeros(2, 3)).any()
    together = torch.tensor([[0, 6, 3], [6, 0, 0], [3, 0, 0]])
    near = routing.meeting_distance(together)
    assert near.tolist() == [[0, -3, -1.5], [-3, 0, 0], [-1.5, 0, 0]]
    assert not routing.meeting_distance(torch.zeros(3, 3)).any()
    torch.testing.assert_close(routing.mixed_distance(rows, together, 0.5, normalised=False), plain + 0.5 * near)
    torch.testing.assert_close(routing.mixed_distance(rows, together), plain / norm + near)
