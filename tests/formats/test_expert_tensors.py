"""Which modules hold experts in one of the forms, and what their neurons give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeepseekV4Config, GptOssConfig
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from secateur.errors import UnsupportedError
from secateur.formats.expert_tensors import (
    find_first,
    is_packed,
    is_turned,
    matrix,
    neurons_of_rows,
    run_first,
    sizes,
    takes_choice,
    told_apart,
)


def make(**shapes: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    module.act_fn = nn.SiLU()
    for name, shape in shapes.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    return module


@pytest.mark.parametrize(
    ("shapes", "first", "packed"),
    [
        ({"gate_up_proj": (2, 10, 4), "down_proj": (2, 4, 5)}, "gate_up_proj", True),
        ({"up_proj": (2, 5, 4), "down_proj": (2, 4, 5)}, "up_proj", True),
        ({"up_proj": (2, 10, 4), "down_proj": (2, 4, 5)}, "up_proj", False),
        ({"gate_up_proj": (2, 4, 10), "down_proj": (2, 5, 4)}, "gate_up_proj", True),  # inputs before outputs
        ({"gate_up_proj": (2, 4, 10), "down_proj": (2, 4, 5)}, "gate_up_proj", False),  # one of them alone
        ({"gate_proj": (2, 5, 4), "up_proj": (2, 5, 4), "down_proj": (2, 4, 5)}, "", False),  # a gate of its own
        ({"up_proj": (5, 4), "down_proj": (4, 5)}, "", False),
        ({"up_proj": (2, 5, 4)}, "", False),
    ],
)
def test_experts_are_told_by_their_tensors(shapes: dict[str, tuple[int, ...]], first: str, packed: bool) -> None:
    module = make(**shapes)
    assert find_first(module) == first
    assert is_packed(module) == packed


def test_neurons_give_what_their_rows_read() -> None:
    states = torch.randn(3, 4)

    def act(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    gated = make(gate_up_proj=(2, 10, 4), down_proj=(2, 4, 5))
    gate, up = gated.gate_up_proj[1, :5], gated.gate_up_proj[1, 5:]
    torch.testing.assert_close(run_first(gated, 1, states), act(states @ gate.T) * (states @ up.T))
    plain = make(up_proj=(2, 5, 4), down_proj=(2, 4, 5))
    torch.testing.assert_close(run_first(plain, 1, states), act(states @ plain.up_proj[1].T))


@pytest.mark.parametrize("width", [5, 4])  # of which the second tells nothing by its shapes
def test_inputs_may_stand_before_outputs(width: int) -> None:
    """As in gpt-oss, whose gates and rows take turns, and have biases."""
    config = GptOssConfig(hidden_size=4, intermediate_size=width, num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    experts, states = GptOssExperts(config).eval(), 4 * torch.randn(6, 4)
    for weight in experts.parameters():
        nn.init.normal_(weight)
    assert (is_packed(experts), is_turned(experts), sizes(experts)) == (True, True, (2, 4, width))
    assert neurons_of_rows(experts).tolist() == [one for one in range(width) for _ in range(2)]
    second = matrix(experts, "down_proj")
    assert second.shape == (2, 4, width)
    assert second.data_ptr() == experts.down_proj.data_ptr()
    with torch.no_grad():
        given = experts(states, torch.ones(6, 1, dtype=torch.long), torch.ones(6, 1))
        found = functional.linear(run_first(experts, 1, states), second[1], experts.down_proj_bias[1])
    torch.testing.assert_close(found, given)


def test_experts_may_be_called_with_states_of_their_own() -> None:
    """Llama 4 calls them with a copy of all states for each, times its share: zero for what is not sent there."""

    class Sorted(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states

    experts = Sorted()
    for name, shape in (("gate_up_proj", (2, 4, 10)), ("down_proj", (2, 5, 4))):
        experts.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    assert find_first(experts) == "gate_up_proj"
    assert is_packed(experts)
    assert not takes_choice(experts)
    states = torch.ones(2, 3, 4) * torch.tensor([[[0.5], [0.0], [0.25]], [[0.0], [0.0], [1.0]]])
    found = list(told_apart(experts, (states.flatten(0, 1),)))
    assert all(share is None for *_, share in found)
    assert torch.equal(torch.stack([own for own, *_ in found]), states)
    assert [sent.tolist() for _, sent, _ in found] == [[True, False, True], [False, False, True]]


def test_experts_that_say_nothing_of_their_order_have_the_gates_first() -> None:
    gated = make(gate_up_proj=(2, 4, 10), down_proj=(2, 5, 4))
    assert neurons_of_rows(gated).tolist() == [*range(5), *range(5)]
    states = torch.randn(3, 4)
    gate, up = (states @ gated.gate_up_proj[1]).chunk(2, -1)
    torch.testing.assert_close(run_first(gated, 1, states), gate * gate.sigmoid() * up)


def test_a_gate_of_its_own_is_heeded() -> None:
    config = DeepseekV4Config(
        hidden_size=4, moe_intermediate_size=5, n_routed_experts=2, num_experts_per_tok=1, swiglu_limit=1.0
    )
    torch.manual_seed(0)
    experts, states = DeepseekV4Experts(config).eval(), 4 * torch.randn(6, 4)
    for weight in experts.parameters():
        nn.init.normal_(weight)
    with torch.no_grad():
        given = experts(states, torch.ones(6, 1, dtype=torch.long), torch.ones(6, 1))
        torch.testing.assert_close(run_first(experts, 1, states) @ experts.down_proj[1].T, given)
    with pytest.raises(UnsupportedError, match="say neither `act_fn` nor `_apply_gate`"):
        run_first(nn.ParameterDict({name: getattr(experts, name) for name in ("gate_up_proj", "down_proj")}), 0, states)
