"""Why a teacher that saw more helps a student that sees less: self-distillation in ridge regression, in closed form.

Ben-Baruch et al., "Distilling the Knowledge in Data Pruning", ICML 2025 (arXiv 2403.07854), its analysis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError

__all__ = ["error", "solution"]

Matrix = NDArray[np.float64]


def solution(X: Matrix, targets: Matrix, penalty: float) -> Matrix:
    """[d]: theta = (X X^T + lambda I)^{-1} X t, for X [d, n], one example a column, and targets t [n]."""
    return np.asarray(np.linalg.solve(X @ X.T + penalty * np.eye(len(X)), X @ targets))


def error(
    share: float,
    alpha: float,
    taught: float,
    *,
    size: int = 400,
    features: int = 40,
    penalty: float = 10.0,
    noise: float = 1.0,
    trials: int = 100,
    seed: int = 0,
) -> float:
    """Mean over trials of ||theta - theta*||^2, with ||theta*|| = 1, of a student that sees a share f of the examples.

        theta(alpha, f, f_t) = (X_f X_f^T + lambda I)^{-1} X_f [ alpha X_f^T theta_t + (1 - alpha) y_f ]

    theta_t is the ridge solution on a share f_t of the examples that holds the student's; y = X^T theta* + eta. X is
    standard normal, theta* of length 1 in a random direction, eta normal of deviation `noise`.

    Args:
        share: f, what the student sees.
        alpha: weight of the teacher's targets; 0 is ridge regression on labels alone.
        taught: f_t, what the teacher saw, at least f.
        size: examples in all.
        features: d.
        penalty: lambda.
        noise: sigma.
        trials: draws of everything; equal seeds give equal draws for every f, alpha and f_t.
        seed: of the draws.

    Raises `InputError` for f_t below f, or shares or a weight that are none.
    """
    if not 0 < share <= taught <= 1 or not 0 <= alpha <= 1:
        raise InputError(f"share={share}, taught={taught}, alpha={alpha}: give 0 < share <= taught <= 1 and 0 to 1")
    found = []
    for trial in range(trials):
        draw = np.random.default_rng([seed, trial])
        X, true = draw.standard_normal((features, size)), draw.standard_normal(features)
        true /= np.linalg.norm(true)
        y = X.T @ true + noise * draw.standard_normal(size)
        few, many = round(share * size), round(taught * size)
        teacher = solution(X[:, :many], y[:many], penalty)
        targets = alpha * X[:, :few].T @ teacher + (1 - alpha) * y[:few]
        found.append(((solution(X[:, :few], targets, penalty) - true) ** 2).sum())
    return float(np.mean(found))
