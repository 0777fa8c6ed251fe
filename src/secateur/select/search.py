"""Search over whole selections, where scores of single units do not suffice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from secateur.errors import InfeasibleError, InputError, NumericalError
from secateur.vocabulary import write_enough

__all__ = [
    "Found", "coefficients", "combine", "count_halvings", "likeliest", "lose_alone", "nearest_under", "require_way",
    "under",
]  # fmt: skip

P = TypeVar("P")

_LOOKS = 12
"""Shapes from which a way through the stages is looked for; a look is a search over a grid, up to seconds long."""


class Found(NamedTuple, Generic[P]):
    """The best candidate of a search. `history` is the best loss after each trial, the start first."""

    coefficients: np.ndarray
    payload: P
    loss: float
    history: list[float]


def coefficients(
    solve: Callable[[np.ndarray], tuple[Hashable, P]],
    evaluate: Callable[[P], float],
    n: int,
    *,
    trials: int = 200,
    mutate: float = 0.1,
    scale: Sequence[float] | None = None,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Found[P]:
    """Local search for coefficients c in [0, scale_1] x ... x [0, scale_n] with the lowest loss on the whole model.

    solve:    c -> (key, payload). Equal keys mean equal solutions, which are evaluated once
    evaluate: payload -> loss of the whole model
    trials:   how many mutations of the best so far; each draws anew a share `mutate` of its coefficients
    scale:    the largest value of each coefficient; 1 for all unless given
    progress: wraps the trials, such as tqdm or rich.progress.track

    Starts at c = scale, so the result is never worse than no search. Repeats exactly under a seed.

    Source: ZipLM (arXiv 2302.04089), after SPDY's local search; ZipLM's 1,000 trials are 200 here.
    """
    if n < 1 or not 0.0 < mutate <= 1.0:
        raise InputError(f"a search needs n >= 1 and 0 < mutate <= 1, not n={n} and mutate={mutate}")
    generator = np.random.default_rng(seed)
    most = np.ones(n) if scale is None else np.asarray(scale, dtype=float)
    if most.shape != (n,) or not (np.isfinite(most).all() and (most >= 0).all()):
        raise InputError(f"scale must be {n} finite numbers, none below 0, not {scale}")
    best = most.copy()
    key, payload = solve(best)
    loss = float(evaluate(payload))
    if math.isnan(loss):
        raise NumericalError("the loss of the first candidate is NaN: check the model and the data")
    seen, history = {key}, [loss]
    for _ in progress(range(trials)) if progress else range(trials):
        trial = best.copy()
        changed = generator.choice(n, max(1, round(mutate * n)), replace=False)
        trial[changed] = generator.random(changed.size) * most[changed]
        key, candidate = solve(trial)
        if key not in seen:
            seen.add(key)
            found = float(evaluate(candidate))
            if found < loss:  # NaN is never better
                best, payload, loss = trial, candidate, found
        history.append(loss)
    return Found(best, payload, loss, history)


def under(
    axes: Mapping[str, Sequence[int]],
    cost: Callable[[dict[str, int]], Mapping[str, float]],
    limits: Mapping[str, float],
    *,
    tolerance: float = 0.05,
) -> list[dict[str, int]]:
    """Combinations of the axes' sizes that cost (1 - tolerance) to 1 times the first limit, the largest first.

    None costs more than another limit. axes: axis -> sizes to try; cost: shape -> its cost in every measure.

    Raises `InfeasibleError` where no combination qualifies; it names the measure, its limit and what is reachable: the
    smallest shape where all are too large, otherwise the largest below.

    Source: Minitron (arXiv 2407.14679), section 2.3, lightweight architecture search. Departure: below, not around.
    """
    costed = [(cost(shape), shape) for shape in _combinations(axes)]
    measure, limit = next(iter(limits.items()))
    for name, most in limits.items():
        least = min(spent[name] for spent, _ in costed)
        if least > most:
            raise InfeasibleError(
                f"{name} of {most:.4g} can't be met: the smallest shape on this grid has {write_enough(least)}; "
                f"ask for at least {name}={write_enough(least)}",
                least,
            )
    fits = [(spent, shape) for spent, shape in costed if all(spent[name] <= limits[name] for name in limits)]
    if not fits:
        raise InfeasibleError(
            f"no shape on this grid meets {', '.join(f'{name}={most:.4g}' for name, most in limits.items())} at once: "
            "loosen one of them"
        )
    close = [(spent, shape) for spent, shape in fits if spent[measure] >= (1.0 - tolerance) * limit]
    if not close:
        nearest = max(spent[measure] for spent, _ in fits)
        raise InfeasibleError(
            f"{measure} of {limit:.4g} can't be met within {tolerance:.0%}: the largest shape below it on this grid "
            f"has {write_enough(nearest)}; ask for {measure}={write_enough(nearest)} or for more tolerance",
            nearest,
        )
    close.sort(key=lambda pair: -pair[0][measure])
    return [shape for _, shape in close]


def nearest_under(
    axes: Mapping[str, Sequence[int]],
    cost: Callable[[dict[str, int]], Mapping[str, float]],
    limits: Mapping[str, float],
    *,
    tolerance: float = 0.05,
) -> list[dict[str, int]]:
    """What `under` finds; where nothing is as close to the first limit, what is as close to the largest below it.

    Raises `InfeasibleError` where no combination is below.
    """
    try:
        return under(axes, cost, limits, tolerance=tolerance)
    except InfeasibleError as error:
        measure, limit = next(iter(limits.items()))
        if error.reachable is None or error.reachable > limit:
            raise
        try:
            return under(axes, cost, {**limits, measure: error.reachable}, tolerance=tolerance)
        except InfeasibleError:  # it was another measure that can't be met
            raise error from None


def combine(
    given: Mapping[str, Sequence[int]],
    cost: Callable[[dict[str, int]], Mapping[str, float]],
    limits: Mapping[str, float],
    *,
    tolerance: float = 0.05,
) -> list[dict[str, int]]:
    """What `under` makes of sizes that somebody chose; where they are one shape, that one, however far below.

    Raises `InfeasibleError` where there is none within the limits.
    """
    if any(len(sizes) > 1 for sizes in given.values()):
        return under(given, cost, limits, tolerance=tolerance)
    (shape,) = _combinations(given)
    name = ",".join(f"{axis}={size}" for axis, size in shape.items())
    for measure, spent in cost(shape).items():
        if spent > limits.get(measure, spent):
            raise InfeasibleError(
                f"shape {name} has {spent:.6g} {measure}, and the "
                f"budget allows {limits[measure]:.6g}: give smaller sizes, or ask for {measure}={write_enough(spent)}",
                spent,
            )
    return [shape]


def count_halvings(limits: Mapping[str, float], whole: Mapping[str, float]) -> int:
    """How often the whole cost must be halved until it is within the tightest limit, and at least 1."""
    share = min(limit / whole[measure] for measure, limit in limits.items())
    return max(1, math.ceil(math.log2(1 / share) - 1e-9))


def require_way(
    first: Sequence[dict[str, int]], find: Callable[[int, dict[str, int]], Sequence[dict[str, int]]], stages: int
) -> None:
    """Raise `InfeasibleError` where no shape of the first stage leads on through all `stages`.

    find: (stage, shape of the one before it) -> shapes of the stage; it raises `InfeasibleError` where there are none.
    Where `_LOOKS` of them don't tell, nothing is raised.
    """
    waiting = [(2, shape) for shape in reversed(first)]
    seen = set[tuple[int, ...]]()
    failed = {1: InfeasibleError("there is no shape to start from")}
    for _ in range(_LOOKS):
        if not waiting:
            raise failed[max(failed)]
        stage, start = waiting.pop()
        if stage > stages:
            return
        try:
            found = find(stage, start)
        except InfeasibleError as error:
            where = f"what stage {stage} of {stages} is to reach; fewer stages or other axes may do"
            failed[stage] = InfeasibleError(f"{error} ({where})", error.reachable if stage == stages else None)
            continue
        fresh = {(stage, *shape.values()): shape for shape in reversed(found)}
        waiting += [(stage + 1, shape) for key, shape in fresh.items() if key not in seen]
        seen |= fresh.keys()


def lose_alone(
    shapes: Sequence[dict[str, int]], cut: Callable[[dict[str, int]], P], judge: Callable[[P], float]
) -> dict[str, dict[str, float]]:
    """Axis -> size in one of the shapes, as text for JSON -> loss of what is cut on this axis alone, to this size."""
    whole = {axis: max(shape[axis] for shape in shapes) for axis in shapes[0]}
    losses: dict[str, dict[str, float]] = {axis: {} for axis in whole}
    for axis in whole:
        for size in sorted({shape[axis] for shape in shapes}):
            losses[axis][str(size)] = judge(cut(whole | {axis: size}))
    return losses


def likeliest(
    shapes: Sequence[dict[str, int]], losses: Mapping[str, Mapping[str, float]], most: int, *, each: str
) -> list[dict[str, int]]:
    """The `most` shapes of the lowest estimated loss, first of all the best of every size on the axis `each`.

    losses: see `lose_alone`. The estimate of a shape is the sum over its axes, so that some dozens of cuts tell of
    hundreds of combinations. It compares shapes of one size on `each` better than others: what dropped layers cost
    before training says little of what they cost after it.
    """

    def estimate(shape: dict[str, int]) -> float:
        return sum(losses[axis][str(size)] for axis, size in shape.items())

    seen, first, rest = set[int](), list[dict[str, int]](), list[dict[str, int]]()
    for shape in sorted(shapes, key=estimate):
        (rest if shape[each] in seen else first).append(shape)
        seen.add(shape[each])
    return [*first, *rest][:most]


def _combinations(axes: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    if not axes or not all(axes.values()):
        raise InputError("give at least one axis, and at least one size for each")
    return [dict(zip(axes, sizes, strict=True)) for sizes in itertools.product(*axes.values())]
