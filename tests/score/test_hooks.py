import pytest
import torch
from torch import nn

from score.networks import Block
from score.networks import hooks as count_hooks
from secateur.errors import InputError, NumericalError
from secateur.score import hooks


def test_hooks_hang_only_within_the_block():
    model, seen = Block(), []
    with hooks.observe(model, {("up", "input"): seen.append, ("down", "output"): seen.append}):
        assert count_hooks(model) == 2
        y = model(torch.randn(2, 4))
    assert count_hooks(model) == 0
    assert seen[0].shape == (2, 4)
    assert torch.equal(seen[1], y)
    model(torch.randn(2, 4))
    assert len(seen) == 2


def test_a_wrong_path_leaves_no_hook_behind():
    model = Block()
    with (
        pytest.raises(InputError, match="no module 'nope'"),
        hooks.observe(model, {("up", "input"): print, ("nope", "input"): print}),
    ):
        pass
    assert count_hooks(model) == 0


def test_shapes_that_are_no_sequences_are_refused():
    model = nn.Identity()
    for x, mask in ((torch.zeros(1, 2, 3, 4), None), (torch.zeros(3), None), (torch.zeros(2, 5, 3), torch.ones(2, 4))):
        batch = {"x": x} | ({} if mask is None else {"attention_mask": mask})
        with pytest.raises(InputError, match="passes shape"):
            hooks.stream(lambda b: model(b["x"]), model, [batch], {("", "input"): lambda x, mask: None})


def test_modules_that_pass_no_tensor_are_refused():
    class Words(nn.Module):
        def forward(self, x):
            return "text"

    model = Words()
    with pytest.raises(InputError, match="no tensor in str"):
        hooks.stream(model, model, [torch.zeros(1, 2)], {("", "output"): lambda x, mask: None})


def test_no_gradient_is_recorded():
    model, seen = Block(), []
    hooks.stream(model, model, [torch.zeros(1, 2, 4)], {("down", "output"): lambda x, mask: seen.append((x, mask))})
    assert not seen[0][0].requires_grad
    assert seen[0][1] is None


def test_real_tokens_and_finite_values():
    assert hooks.real_tokens({"attention_mask": torch.tensor([[1, 0]])}).tolist() == [[True, False]]
    assert hooks.real_tokens({"x": 1}) is None
    assert hooks.real_tokens(torch.zeros(2)) is None
    assert hooks.finite("a", torch.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(NumericalError, match="a: NaN or infinity"):
        hooks.finite("a", torch.tensor([float("inf")]))
