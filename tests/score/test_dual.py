"""Dual importance by hand: the penalty's gradient, its two forms, and the score."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from secateur.errors import InputError
from secateur.score import dual


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_released_form_by_hand():
    g, G = torch.tensor([[2.0, -3.0]]), torch.tensor([[5.0, 7.0]])
    found = dual.penalise(g, G, 0.1, rate=0.5, samples=10)
    assert torch.allclose(
        found, torch.tensor([[2.0 + 0.1 * 2 * 0.25 * 5 * 4 / 10, -3.0 + 0.1 * 2 * 0.25 * 7 * 9 / 10]])
    )


def test_without_weight_the_gradient_is_the_gradient_to_the_bit():
    g, G = draw(4, 6), draw(4, 6, seed=1).square()
    assert torch.equal(dual.regularise(g, G, 0.0), g)
    assert torch.equal(dual.penalise(g, G, 0.0, rate=0.03, samples=8), g)
    assert torch.equal(dual.regularise(g, torch.zeros_like(g), 1.0), g)
    assert torch.equal(dual.regularise(0 * g, G, 1.0), 0 * g)


def test_the_relative_form_has_no_units():
    """G times 1000 changes nothing; a gradient times 1000 gives 1000 times the result; at average values it doubles."""
    g, G = draw(4, 6), draw(4, 6, seed=1).square()
    found = dual.regularise(g, G, 0.7)
    assert torch.allclose(dual.regularise(g, 1000 * G, 0.7), found)
    assert torch.allclose(dual.regularise(1000 * g, G, 0.7), 1000 * found)
    assert torch.allclose(dual.regularise(torch.ones(2, 3), torch.ones(2, 3), 1.0), torch.full((2, 3), 2.0))
    assert torch.allclose(dual.regularise(g, G, 0.7, share=0.5), dual.regularise(g, G, 0.7 / 4))


def test_the_relative_form_is_the_gradient_of_the_penalty_up_to_the_curvature():
    """d/dw of sum G g(w)^2 / 2 for a quadratic loss with diagonal Hessian h is G g h: each entry along g."""
    g, G = draw(4, 6), draw(4, 6, seed=1).square() + 0.1
    change = dual.regularise(g, G, 1.0) - g
    assert bool((change * g > 0).all())
    ratio = change / (g * g.abs() * G)
    assert torch.allclose(ratio, ratio.flatten()[:1].expand_as(ratio))


def test_for_a_large_weight_the_ranking_is_that_of_general_importance_times_squared_gradient():
    g, G, w = draw(8, 8), draw(8, 8, seed=1).square(), draw(8, 8, seed=2)
    wanted = (G * g.square() * w.abs()).flatten().argsort()
    for changed in (dual.regularise(g, G, 1e9), dual.penalise(g, G, 1e12, rate=1.0, samples=1)):
        assert torch.equal(dual.importance(w, changed, 10**12 * 10**12).flatten().argsort(), wanted)


def test_importance_by_hand():
    w, g = torch.tensor([[3.0, -2.0]]), torch.tensor([[0.5, 1.5]])
    assert torch.allclose(dual.importance(w, g, 4), torch.tensor([[abs(1.5 + 2.25 / 8), abs(-3.0 + 9.0 / 8)]]))
    cubic = dual.importance(w, g, 4, cubic=True)
    assert torch.allclose(cubic, torch.tensor([[abs(1.5 + 2.25 / 8 + 27.0), abs(-3.0 + 9.0 / 8 - 8.0)]]))


def test_the_cubic_term_makes_it_a_score_of_magnitude():
    w, g = draw(16, 16), 1e-4 * draw(16, 16, seed=1)

    def alike(a, b):
        return spearmanr(a.flatten(), b.flatten()).statistic

    assert alike(dual.importance(w, g, 100, cubic=True), w.abs()) > 0.99
    assert alike(dual.importance(w, g, 100, cubic=True), (w * g).abs()) < 0.9
    assert alike(dual.importance(w, g, 100), (w * g).abs()) > 0.9999


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"general importance \(2, 3\) of a gradient \(3, 2\)"):
        dual.regularise(draw(3, 2), torch.ones(2, 3), 1.0)
    with pytest.raises(InputError, match="negative somewhere"):
        dual.penalise(draw(2, 2), -torch.ones(2, 2), 1.0, rate=0.1, samples=1)
