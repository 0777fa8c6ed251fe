"""Compensation against what it promises: the printed pairs, an exact mean, the least squares solution."""

import pytest
import torch

from secateur.errors import InputError, NumericalError
from secateur.recover.sparsity import compensate


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def printed(heads, K):
    """Minitron's rule as printed, 1-based on heads sorted by importance."""
    L, merged = len(heads), heads.clone()
    for i in range(max(1, K - (L - K) + 1), K + 1):
        merged[i - 1] = heads[i - 1] + (heads[i - 1] - heads[2 * K - i + 1 - 1])
    return merged


@pytest.mark.parametrize("K", [3, 4, 5, 6])
def test_merged_heads_are_the_printed_ones(K):
    weight, scores = torch.randn(6 * 4, 10), torch.rand(6)
    order = scores.argsort(descending=True)
    keep = torch.zeros(6, dtype=torch.bool)
    keep[order[:K]] = True
    before = weight.clone()
    merged = compensate.merge_heads(weight, scores, keep).view(6, 4, 10)
    want = printed(weight.view(6, 4, 10)[order], K)
    torch.testing.assert_close(merged[order][:K], want[:K])
    assert torch.equal(weight, before)


def test_half_of_the_heads_at_most_take_over_and_the_rest_go_as_they_are():
    """With L > 2K every staying head has a partner, and the lower end does not run out of heads."""
    weight, scores = torch.randn(6, 3), torch.arange(6.0).flip(0)
    keep = torch.tensor([True, True, False, False, False, False])
    merged = compensate.merge_heads(weight, scores, keep)
    assert torch.equal(merged[1], 2 * weight[1] - weight[2])
    assert torch.equal(merged[0], 2 * weight[0] - weight[3])


def test_heads_merge_along_the_input_of_the_output_projection_and_of_biases():
    weight, scores, keep = torch.randn(5, 4 * 2), torch.tensor([3.0, 1, 2, 0]), torch.tensor([True, False, True, True])
    merged = compensate.merge_heads(weight, scores, keep, dim=1)
    # The least important head that stays is the last one; its partner is head 1.
    assert torch.equal(merged[:, 6:], 2 * weight[:, 6:] - weight[:, 2:4])
    assert torch.equal(merged[:, :6], weight[:, :6])
    bias = torch.randn(8)
    assert torch.equal(compensate.merge_heads(bias, scores, keep)[6:], 2 * bias[6:] - bias[2:4])


def test_heads_merge_inside_their_group():
    weight, scores = torch.randn(4, 3), torch.tensor([2.0, 1, 9, 8])
    keep, group = torch.tensor([True, False, True, False]), torch.tensor([0, 0, 1, 1])
    merged = compensate.merge_heads(weight, scores, keep, group=group)
    assert torch.equal(merged[0], 2 * weight[0] - weight[1])
    assert torch.equal(merged[2], 2 * weight[2] - weight[3])


def test_keeping_all_heads_changes_nothing():
    weight = torch.randn(8, 3)
    assert torch.equal(compensate.merge_heads(weight, torch.rand(4), torch.ones(4, dtype=torch.bool)), weight)


def test_the_constant_keeps_the_mean_output_exact():
    inputs, weight, bias = torch.randn(500, 8) + torch.arange(8.0), torch.randn(3, 8), torch.randn(3)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool()
    added = compensate.constant(weight, inputs.mean(0), keep)
    full = inputs @ weight.T + bias
    cut = inputs[:, keep] @ weight[:, keep].T + bias + added
    torch.testing.assert_close(cut.mean(0), full.mean(0), rtol=1e-4, atol=1e-4)
    assert (cut - full).square().sum() < (cut - added - full).square().sum()


def test_least_squares_is_what_lstsq_finds():
    inputs = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    weight = torch.randn(3, 8, dtype=torch.float64)
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    found = compensate.least_squares(weight, 2 * inputs.T @ inputs / 200, keep)
    want = torch.linalg.lstsq(inputs[:, keep], inputs @ weight.T).solution.T
    torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)
    whole = compensate.least_squares(weight, inputs.T @ inputs, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(whole, weight, rtol=1e-8, atol=1e-8)


def test_a_singular_hessian_is_named_and_damping_helps():
    inputs = torch.randn(50, 3)
    inputs = torch.cat([inputs, torch.zeros(50, 1), inputs[:, :1]], 1)
    hessian, keep = inputs.T @ inputs, torch.tensor([1, 1, 0, 1, 1]).bool()
    with pytest.raises(NumericalError, match=r"damp=0\.01"):
        compensate.least_squares(torch.randn(2, 5), hessian, keep)
    assert compensate.least_squares(torch.randn(2, 5), hessian, keep, damp=0.01).isfinite().all()


def test_shapes_that_do_not_fit_are_named():
    keep = torch.ones(4, dtype=torch.bool)
    with pytest.raises(InputError, match="per head"):
        compensate.merge_heads(torch.randn(7, 3), torch.rand(4), keep)
    with pytest.raises(InputError, match=r"\[d_out, d_in\]"):
        compensate.constant(torch.randn(3, 5), torch.rand(4), keep)
    with pytest.raises(InputError, match="Hessian"):
        compensate.least_squares(torch.randn(3, 5), torch.rand(4, 4), keep)
