import pytest
import torch
from scipy import stats

from secateur.errors import MeasurementError
from secateur.measure import distribution


def test_kurtosis_of_all_weights_together_is_scipys():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 20, generator=draw), torch.randn(30, generator=draw).bfloat16() * 3 + 1]
    whole = torch.cat([part.flatten().double() for part in parts]).numpy()
    assert distribution.kurtosis(parts) == pytest.approx(stats.kurtosis(whole, fisher=False), rel=1e-12)
    normal = torch.randn(200_000, generator=draw)
    assert distribution.kurtosis([normal]) == pytest.approx(3, abs=0.05)
    assert distribution.kurtosis([7 * normal]) == pytest.approx(distribution.kurtosis([normal]), rel=1e-5)


def test_what_was_pruned_does_not_count_unless_asked():
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    pruned = weights * (weights.abs() > 0.5)
    assert distribution.kurtosis([pruned]) == pytest.approx(distribution.kurtosis([weights[weights.abs() > 0.5]]))
    # Small weights gone, K falls; their zeros would have hidden it.
    assert distribution.kurtosis([pruned]) < distribution.kurtosis([weights])
    assert distribution.kurtosis([pruned], zeros=True) > distribution.kurtosis([weights])


@pytest.mark.parametrize("weights", [[], [torch.zeros(5)], [torch.ones(5)], [torch.tensor([1.0, float("inf")])]])
def test_too_few_or_broken_weights_are_refused(weights):
    with pytest.raises(MeasurementError, match="at least two, finite and different"):
        distribution.kurtosis(weights)
