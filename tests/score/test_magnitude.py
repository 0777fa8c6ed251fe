import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from score.networks import Block, Linear, residual, slices, unit_of
from secateur.errors import InputError, NumericalError
from secateur.score import magnitude


def test_norm_of_columns_and_blocks():
    weight = torch.tensor([[3.0, 0.0, 1.0, 1.0], [4.0, 0.0, 1.0, 1.0]])
    assert magnitude.norm(weight).tolist() == pytest.approx([5.0, 0.0, 2**0.5, 2**0.5])
    assert magnitude.norm(weight, p=1).tolist() == [7.0, 0.0, 2.0, 2.0]
    assert magnitude.norm(weight, block=2).tolist() == pytest.approx([5.0, 2.0])
    assert magnitude.norm(weight, dim=0, p=1).tolist() == [5.0, 6.0]
    with pytest.raises(InputError, match="does not divide into blocks of 3"):
        magnitude.norm(weight, block=3)


def test_groups_of_consumers_in_both_layouts():
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(6, 4), "conv": Conv1D(4, 6)})
    with torch.no_grad():
        model["conv"].weight.copy_(model["linear"].weight.T)
    scores = magnitude.groups(model, {"a": Linear("linear", 2), "b": Linear("conv", 2, conv1d=True)})
    assert scores["a"].shape == (3,)
    torch.testing.assert_close(scores["a"], scores["b"])


def test_what_is_no_linear_or_not_finite_is_named():
    model = Block()
    with pytest.raises(InputError, match="no module 'x'"):
        magnitude.groups(model, {"n": Linear("x")})
    with pytest.raises(InputError, match="no weight matrix"):
        magnitude.groups(nn.Sequential(nn.LayerNorm(3)), {"n": Linear("0")})
    with torch.no_grad():
        model.down.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"^n: NaN"):
        magnitude.groups(model, {"n": Linear("down")})


def test_coupled_slices_are_summed_over_everything_that_goes_with_a_unit():
    first, second = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([[4.0, 2.0, 0.0]])
    unit = torch.tensor([0, 1, -1])
    found = magnitude.coupled_norm({"a": [(first, 0, unit), (second, 1, unit)]}, normalise=False)
    assert found["a"].tolist() == pytest.approx([5.0, 2.0])
    shared = magnitude.coupled_norm({"a": [(first, 0, unit), (second, 1, unit)]})
    assert shared["a"].tolist() == pytest.approx([10 / 7, 4 / 7])


def test_norms_of_coupled_weights_are_the_plain_formula_and_scale():
    model = residual()
    given = slices(model)
    for p in (1.0, 2.0):
        found = magnitude.coupled_norm(given, p=p, normalise=False)
        for site, parts in given.items():
            expected = torch.stack([unit_of(parts, unit).norm(p) for unit in range(len(found[site]))])
            torch.testing.assert_close(found[site], expected)
    before, shares = magnitude.coupled_norm(given, normalise=False), magnitude.coupled_norm(given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    after, same_shares = magnitude.coupled_norm(given, normalise=False), magnitude.coupled_norm(given)
    for site in given:
        torch.testing.assert_close(after[site], 3 * before[site])
        torch.testing.assert_close(same_shares[site], shares[site])


def test_batch_norm_reads_scales_alone_and_leaves_out_sites_without():
    model = residual()
    with torch.no_grad():
        model.bn2.weight[3] = -0.01
    given = slices(model)
    found = magnitude.batch_norm(model, given)
    torch.testing.assert_close(found["wide"], model.bn.weight.detach())
    torch.testing.assert_close(found["inner"], model.bn2.weight.detach().abs())
    assert int(found["inner"].argmin()) == 3
    other = torch.full_like(model.bn.weight, 2.0)
    second = nn.BatchNorm2d(6)
    second.weight = nn.Parameter(other)
    model.second = second
    given["wide"].append((second.weight, 0, torch.arange(6)))
    torch.testing.assert_close(magnitude.batch_norm(model, given)["wide"], (model.bn.weight.detach() + 2) / 2)
    assert magnitude.batch_norm(model, {"plain": [(model.head.weight, 1, torch.arange(6))]}) == {}


def test_norms_of_weights_that_are_looked_at_in_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    for shape in ((700, 512), (512, 96, 3, 3)):
        weight = torch.randn(shape)
        for dim in (0, 1):
            unit = torch.arange(shape[dim])
            others = [other for other in range(len(shape)) if other != dim]
            for p in (1.0, 2.0):
                found = magnitude.coupled_norm({"a": [(weight, dim, unit)]}, p=p, normalise=False)["a"]
                expected = torch.linalg.vector_norm(weight.double(), ord=p, dim=others).float()
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
