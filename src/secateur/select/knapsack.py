"""One level per module: least total loss within a budget (the multiple-choice knapsack)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.select.arrays import as_numpy
from secateur.vocabulary import Array, write_enough

__all__ = ["Choice", "solve", "solve_many"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The level chosen for each module, and the sums of their true costs and losses."""

    levels: list[int]
    cost: float
    loss: float
    spent: Mapping[str, float] = field(default_factory=dict)
    """Cost per measure, where several were limited (`cost` is then the first)."""


def solve(costs: Sequence[Array], losses: Sequence[Array], budget: float, *, buckets: int = 10_000) -> Choice:
    """Levels s_l that minimise sum_l losses[l][s_l] subject to sum_l costs[l][s_l] <= budget.

    costs, losses: one array [levels] per module; modules may have different numbers of levels.

    Dynamic programme over discretised cost, DP[l][b] = min_s DP[l-1][b - tau_ls] + loss_ls. Costs are counted
    above each module's cheapest level (so zero-cost levels, and a budget that only the cheapest choice meets,
    need no bucket), and rounded UP, so the budget holds exactly. Where all costs are whole multiples of one step
    that fits the buckets (tokens, parameters) the optimum is exact; else it is optimal for a budget smaller by at
    most one bucket, (budget - cheapest) / buckets, per module.

    Raises `InfeasibleError` with the cheapest total as `reachable`.
    Source: SPDY (Frantar and Alistarh, 2022), section 3, as used by ZipLM (arXiv 2302.04089).
    Departures: ceil in place of round to nearest, and the shift by the cheapest level.
    """
    cost_rows, loss_rows = _rows(costs, "costs"), _rows(losses, "losses")
    _check_shapes(cost_rows, loss_rows)
    if math.isnan(budget):
        raise NumericalError("the budget is NaN: give a finite number")
    cheapest = [float(row.min()) for row in cost_rows]
    if math.fsum(cheapest) > budget:
        least = math.fsum(cheapest)
        raise InfeasibleError(
            f"a budget of {budget:.6g} can't be met: the cheapest choice costs {write_enough(least)}", least
        )

    best = [_first_best(loss, cost) for loss, cost in zip(loss_rows, cost_rows, strict=True)]
    if _total(cost_rows, best) <= budget:  # nothing to weigh up, and no rounding to lose it by
        return Choice(best, _total(cost_rows, best), _total(loss_rows, best))

    extra = [row - low for row, low in zip(cost_rows, cheapest, strict=True)]
    tau, buckets = _discretise(extra, budget - math.fsum(cheapest), buckets)
    table = np.zeros(buckets + 1)
    picks = np.empty((len(extra), buckets + 1), np.int32)
    for module, (steps, loss) in enumerate(zip(tau, loss_rows, strict=True)):
        reached = np.full(buckets + 1, np.inf)
        for level in np.flatnonzero(steps <= buckets):
            start = int(steps[level])
            offer = table[: buckets + 1 - start] + loss[level]
            better = offer < reached[start:]
            reached[start:][better] = offer[better]
            picks[module, start:][better] = level
        table = reached

    for end in range(buckets, -1, -1):  # the first end is the answer but for the last bit of a float sum
        levels, bucket = [0] * len(tau), end
        for module in range(len(tau) - 1, -1, -1):
            levels[module] = int(picks[module, bucket])
            bucket -= int(tau[module][levels[module]])
        if _total(cost_rows, levels) <= budget:
            return Choice(levels, _total(cost_rows, levels), _total(loss_rows, levels))
    raise AssertionError("unreachable: the cheapest choice fits")


def solve_many(costs: Mapping[str, Sequence[Array]], losses: Sequence[Array], budgets: Mapping[str, float]) -> Choice:
    """Like `solve`, with several measures limited at once: measure -> costs, measure -> budget.

    Integer programme: minimise sum x_ls loss_ls, with sum_s x_ls = 1 for every module and
    sum x_ls cost_mls <= budget_m for every measure m; solved by HiGHS (scipy.optimize.milp) to optimality.

    Raises `InfeasibleError`: `reachable` is the first measure's cost of the choice that comes nearest, that is with
    the smallest common factor on all budgets.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag, csr_matrix, hstack, vstack

    if not budgets or set(budgets) - set(costs):
        raise InputError(f"budgets for {sorted(budgets)} need costs of the same names, got {sorted(costs)}")
    if any(not limit > 0.0 for limit in budgets.values()):
        raise InputError(f"budgets must be above 0, got {dict(budgets)}")
    loss_rows = _rows(losses, "losses")
    cost_rows = {measure: _rows(costs[measure], f"costs of {measure}") for measure in budgets}
    for rows in cost_rows.values():
        _check_shapes(rows, loss_rows)
    one_each = block_diag([np.ones((1, row.size)) for row in loss_rows])
    shares = csr_matrix([np.concatenate(cost_rows[measure]) / limit for measure, limit in budgets.items()])
    loss = np.concatenate(loss_rows)
    ends = np.cumsum([row.size for row in loss_rows])[:-1]

    def chosen(x: np.ndarray) -> Choice:
        levels = [int(part.argmax()) for part in np.split(x[: loss.size], ends)]
        spent = {measure: _total(rows, levels) for measure, rows in cost_rows.items()}
        return Choice(levels, next(iter(spent.values())), _total(loss_rows, levels), spent)

    # The solver may overstep a limit by its tolerance; a hair less room then puts the choice back inside.
    for room in (1.0, 1.0 - 1e-6, 1.0 - 1e-5):
        answer = milp(
            loss,
            integrality=np.ones(loss.size),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(shares, -np.inf, room)],
            options={"mip_rel_gap": 0.0},
        )
        if answer.x is None:
            break
        choice = chosen(answer.x)
        if all(choice.spent[measure] <= limit for measure, limit in budgets.items()):
            return choice

    factor = vstack(
        [hstack([one_each, csr_matrix((len(loss_rows), 1))]), hstack([shares, -np.ones((len(budgets), 1))])]
    )
    nearest = milp(
        np.append(np.zeros(loss.size), 1.0),
        integrality=np.append(np.ones(loss.size), 0),
        bounds=Bounds(0, np.append(np.ones(loss.size), np.inf)),
        constraints=LinearConstraint(
            factor,
            np.append(np.ones(len(loss_rows)), np.full(len(budgets), -np.inf)),
            np.append(np.ones(len(loss_rows)), np.zeros(len(budgets))),
        ),
    )
    reachable = chosen(nearest.x)
    wanted = ", ".join(f"{measure} <= {limit:.6g}" for measure, limit in budgets.items())
    found = ", ".join(f"{measure} {write_enough(cost)}" for measure, cost in reachable.spent.items())
    raise InfeasibleError(f"budgets {wanted} can't be met together: the nearest choice costs {found}", reachable.cost)


def _discretise(extra: Sequence[np.ndarray], spare: float, buckets: int) -> tuple[list[np.ndarray], int]:
    """Costs in whole buckets, rounded up, and how many buckets there are."""
    values = np.concatenate(extra)
    if spare <= 0.0:
        return [np.where(row > 0.0, 1, 0) for row in extra], 0
    if (values == np.rint(values)).all() and values.max() < 2**53:
        step = int(np.gcd.reduce(values.astype(np.int64)))
        if step and spare // step <= buckets:
            return [(row / step).astype(np.int64) for row in extra], int(spare // step)
    # Levels beyond the budget are clipped before they could overflow an integer.
    return [np.ceil(np.minimum(row, 2.0 * spare) / spare * buckets).astype(np.int64) for row in extra], buckets


def _first_best(loss: np.ndarray, cost: np.ndarray) -> int:
    """The level of least loss; among equals the cheapest, then the first."""
    return int(np.lexsort((cost, loss))[0])


def _total(rows: Sequence[np.ndarray], levels: Sequence[int]) -> float:
    return math.fsum(float(row[level]) for row, level in zip(rows, levels, strict=True))


def _rows(arrays: Sequence[Array], what: str) -> list[np.ndarray]:
    rows = [as_numpy(array) for array in arrays]
    for module, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise InputError(f"{what} of module {module} have shape {row.shape}: give one number per level")
        if not np.isfinite(row).all():
            raise NumericalError(f"{what} of module {module} are not finite: leave out levels that can't be had")
    return rows


def _check_shapes(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> None:
    if [row.size for row in costs] != [row.size for row in losses] or not costs:
        sizes = f"{[row.size for row in costs]} costs and {[row.size for row in losses]} losses"
        raise InputError(f"{sizes}: give as many of both, at least one module")
