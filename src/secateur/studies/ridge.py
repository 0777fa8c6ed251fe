"""Why a teacher that saw more helps a student that sees less: self-distillation in ridge regression, in closed form.

Ben-Baruch et al., "Distilling the Knowledge in Data Pruning", ICML 2025 (arXiv 2403.07854), its analysis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur._utils.rundir import Run
from secateur.errors import InputError
from secateur.measure.statistics import mean_interval
from secateur.reports.charts import Line
from secateur.reports.sheet import Chart, Sheet, Table, over
from secateur.runs import keywords
from secateur.vocabulary import Figure

__all__ = ["STUDY", "Cell", "Ridge", "error", "plan", "ridge", "solution"]

STUDY = {
    "title": "ridge regression in closed form: the student's error by the share that its teacher saw",
    "recipe": "",
    "sets": "",
    "grid": "shares alphas taught seeds",
}

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


class Cell(NamedTuple):
    """One figure: of a share f, a weight alpha and a teacher's share f_t, in one seed's draws."""

    seed: int
    share: float
    alpha: float
    taught: float

    def __str__(self) -> str:
        return f"seed {self.seed}, f {self.share:g}, alpha {self.alpha:g}, f_t {self.taught:g}"


@dataclass(frozen=True, slots=True)
class Ridge:
    """Relative squared errors, seed by seed."""

    errors: Mapping[tuple[float, float, float], tuple[float, ...]]
    """(f, alpha, f_t) -> one per seed; labels alone, alpha 0, have f_t = f."""
    seeds: tuple[int, ...]

    def error(self, share: float, alpha: float, taught: float) -> Figure:
        """Mean over seeds with Student's interval."""
        return mean_interval(self.errors[share, alpha, taught])

    def sheet(self) -> Sheet:
        """Table, chart and figures."""
        shares, alphas, taught = (sorted({key[place] for key in self.errors}) for place in range(3))
        teachers = [one for one in taught if any(key[2] == one and key[1] for key in self.errors)]
        rows = [["Student's share f", "Teacher's weight", "Labels alone", *(f"f_t = {one:g}" for one in teachers)]]
        for share in shares:
            alone = _text(self.error(share, 0.0, share))
            for alpha in (one for one in alphas if one):
                cells = [_text(self.error(share, alpha, one)) if one >= share else "–" for one in teachers]
                rows.append([f"{share:g}", f"alpha {alpha:g}", alone, *cells])
        first, last = shares[0], (shares[0], alphas[-1], teachers[-1])
        headline = (
            f"A teacher of f_t = {last[2]:g} leaves an error of {self.error(*last).value:.3f} where labels alone leave "
            f"{self.error(first, 0.0, first).value:.3f}: f = {first:g}, alpha {last[1]:g}"
        )
        table = Table(
            "Relative squared error of the student, by the share f_t that its teacher saw", rows,
            f"{over(self.seeds)}; a teacher sees at least what its "
            "student sees.",
        )  # fmt: skip
        panels = {
            f"alpha {alpha:g}": [
                Line(f"f = {share:g}", [(one, self.error(share, alpha, one)) for one in teachers if one >= share],
                     (number + 1) / len(shares))
                for number, share in enumerate(shares)
            ] for alpha in alphas if alpha
        }  # fmt: skip
        chart = Chart("Error by what the teacher saw", panels, "share f_t that the teacher saw", "error",
                      "Lower is better. Whiskers are intervals.")  # fmt: skip
        figures = {
            "error": [
                {"share": share, "alpha": alpha, "taught": one, "by_seed": row, "mean": asdict(mean_interval(row))}
                for (share, alpha, one), row in self.errors.items()
            ]
        }
        return Sheet("ridge", headline, [table], figures, chart=chart)


def ridge(
    subject: None,
    data: None,
    folder: str | Path,
    progress: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
    *,
    shares: Sequence[float] = (0.1, 0.25, 0.5),
    alphas: Sequence[float] = (0.5, 1.0),
    taught: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    size: int = 400,
    features: int = 40,
    penalty: float = 10.0,
    noise: float = 1.0,
    trials: int = 100,
) -> Ridge:
    """`error` for each share, weight and teacher, over seeds, and for labels alone.

    Args:
        subject: none; data: none: everything is drawn.
        folder: a run directory; the same call again computes nothing twice.
        progress: wraps the figures, such as rich.progress.track.
        shares: f, what the student sees.
        alphas: weights of the teacher above 0; labels alone stand beside them.
        taught: f_t, what the teacher sees; only those of at least f count.
        seeds: of the draws.
        size: examples in all.
        features: d, numbers in each of them.
        penalty: lambda.
        noise: sigma.
        trials: draws of everything for each figure.
    """
    cells = _cells(shares, alphas, taught, seeds)
    how = {"size": size, "features": features, "penalty": penalty, "noise": noise, "trials": trials}
    rows: dict[tuple[float, float, float], list[float]] = {}
    with Run.open(folder, how) as run:
        for cell in progress(cells):

            def compute(cell: Cell = cell) -> float:
                return error(cell.share, cell.alpha, cell.taught, seed=cell.seed, **how)  # type: ignore[arg-type]

            rows.setdefault(cell[1:], []).append(run.json("-".join(f"{one:g}" for one in cell), compute))
    return Ridge({key: tuple(row) for key, row in rows.items()}, tuple(dict.fromkeys(seeds)))


def plan(
    subject: None,
    data: None,
    *,
    shares: Sequence[float],
    alphas: Sequence[float],
    taught: Sequence[float],
    seeds: Sequence[int],
    size: int,
    features: int,
    penalty: float,
    noise: float,
    trials: int,
) -> dict[str, int]:
    """How many figures `ridge` will work out; whatever it would refuse is refused here."""
    cells = _cells(shares, alphas, taught, seeds)
    if min(size, features, trials) < 1 or not (0 < penalty < math.inf and 0 <= noise < math.inf):
        raise InputError(f"size={size}, features={features}, trials={trials}, penalty={penalty}, noise={noise}: give "
                         "whole numbers of at least 1, a penalty above 0 and a noise of at least 0")  # fmt: skip
    if round(min(shares) * size) < 1:
        raise InputError(f"a share of {min(shares):g} of {size} examples is none: give a larger share, or size")
    return {"closed forms, no training": len(cells) * trials}


def _cells(
    shares: Sequence[float], alphas: Sequence[float], taught: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """All that are worked out, each once; for labels alone f_t is f."""
    if not seeds or not all((shares, alphas, taught)) or not all(0 < one <= 1 for one in (*shares, *alphas, *taught)):
        raise InputError(f"shares={list(shares)}, alphas={list(alphas)}, taught={list(taught)}, seeds={list(seeds)}: "
                         "give at least one of each, all but seeds above 0 and up to 1")  # fmt: skip
    keywords.check_seed(*seeds)
    if max(taught) < max(shares):
        raise InputError(f"taught={list(taught)}: no teacher sees as much as the student of share {max(shares):g}; "
                         "give one of at least that")  # fmt: skip
    cells = [
        cell for seed in seeds for share in sorted(shares)
        for cell in (
            Cell(seed, share, 0.0, share),
            *(Cell(seed, share, alpha, one) for alpha in sorted(alphas) for one in sorted(taught) if one >= share),
        )
    ]  # fmt: skip
    return list(dict.fromkeys(cells))


def _text(figure: Figure) -> str:
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.3f} to {figure.high:.3f}]"
    return f"{figure.value:.3f}{ends}"
