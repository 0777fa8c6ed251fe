import torch

from score.networks import residual, slices, unit_of
from secateur.score.slices import total


def test_sums_run_over_everything_that_goes_with_a_unit():
    model = residual()
    given = slices(model)
    for value in (torch.ones_like, lambda weight: weight.detach() ** 3):
        found = total(given, value)
        for site, parts in given.items():
            expected = [unit_of(parts, unit, value).double().sum() for unit in range(len(found[site]))]
            torch.testing.assert_close(found[site], torch.stack(expected), rtol=1e-5, atol=1e-6)
            assert found[site].dtype == torch.float64


def test_a_unit_may_have_several_indices_and_an_index_no_unit():
    weight = torch.arange(12.0).reshape(2, 6).requires_grad_()
    found = total(
        {"a": [(weight, 1, torch.tensor([1, 1, -1, 0, 0, -1]))], "b": [(weight, 0, torch.tensor([-1, 0]))]}, abs
    )
    assert found["a"].tolist() == [3 + 4 + 9 + 10, 0 + 1 + 6 + 7]
    assert found["b"].tolist() == [sum(range(6, 12))]
    assert not found["a"].requires_grad
