"""Learning rates: a linear warm-up, then cosine, linear, constant or in steps, down to a floor; and other ramps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateur.errors import InputError
from secateur.vocabulary import Training

__all__ = ["check_course", "learning_rate", "ramp_up", "repeat_rate", "stage_rates", "warmup_steps"]

_TAIL = 0.05
"""Last share of the steps in which "cosine-zero" leaves its floor: 2,000 of the 40,000 steps of AST's GPT-2 run."""


def learning_rate(
    step: int,
    *,
    steps: int,
    lr: float,
    warmup: float = 0.05,
    schedule: str = "cosine",
    min_lr: float = 0.0,
) -> float:
    """Learning rate of step `step` (0 is the first) out of `steps`.

    Warm-up of w steps: ``lr (step + 1) / w``. Then with ``x = (step - w) / (steps - w)``:

    - cosine: ``min_lr + (lr - min_lr) (1 + cos(pi x)) / 2`` (Loshchilov and Hutter, arXiv 1608.03983, without restarts)
    - cosine-zero: cosine over the first 95 % of all steps, then straight from `min_lr` to 0 (AST, arXiv 2407.20584)
    - linear: ``lr + (min_lr - lr) x``
    - constant: ``lr``
    - milestones: ``lr / 10`` from x = 1/2, ``lr / 100`` from x = 3/4, at least `min_lr` (He et al., arXiv 1512.03385)

    `warmup` below 1 is a share of all steps, otherwise a number of steps. Raises `InputError` for an unknown schedule
    or a floor above `lr`.
    """
    if schedule not in ("cosine", "cosine-zero", "linear", "constant", "milestones"):
        raise InputError(f"schedule={schedule!r}: give 'cosine', 'cosine-zero', 'linear', 'constant' or 'milestones'")
    if not 0 <= lr < math.inf:
        raise InputError(f"lr={lr}: give a learning rate of at least 0")
    if not 0 <= min_lr <= lr:
        raise InputError(f"min_lr={min_lr}: give a floor between 0 and lr={lr}")
    first = warmup_steps(steps, warmup)
    if step < first:
        return lr * (step + 1) / first
    if schedule == "cosine-zero":
        last = max(first, steps - max(1, round(_TAIL * steps)))
        if step >= last:
            return min_lr * (steps - step) / (steps - last)
        steps, schedule = last, "cosine"
    done = (step - first) / max(1, steps - first)
    if schedule == "cosine":
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2
    if schedule == "milestones":
        return max(min_lr, lr if done < 0.5 else lr / 10 if done < 0.75 else lr / 100)
    return lr + (min_lr - lr) * done if schedule == "linear" else lr


def check_course(training: Training) -> None:
    """Refuse a floor above the learning rate, and a warm-up of more steps than there are, before anything is done.

    As `learning_rate`, of what is known without data: where epochs count, steps are not. Raises `InputError`.
    """
    if training.lr is None or training.steps == 0:
        return
    warmup = training.warmup or 0.0
    steps = max(1, math.ceil(warmup)) if training.steps is None else training.steps
    learning_rate(
        0, steps=steps, lr=training.lr, warmup=warmup, schedule=training.schedule or "cosine",
        min_lr=training.min_lr or 0.0,
    )  # fmt: skip


def ramp_up(step: int, *, top: float, steps: int) -> float:
    """`top` min(1, step / steps), for step 0, 1, ...: a straight line from 0, then constant; `top` at once if steps=0.

    The decay of AST (arXiv 2407.20584): weak while the mask explores, strong once it should settle.
    """
    return top * min(1.0, step / steps) if steps else top


def warmup_steps(steps: int, warmup: float) -> int:
    """Steps of warm-up: a share of `steps` when `warmup` is below 1, otherwise that many."""
    if warmup < 0 or warmup > steps:
        raise InputError(f"warmup={warmup}: give a share from 0 to 1 or at most steps={steps}")
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def stage_rates(
    peaks: float | Sequence[float], floors: float | Sequence[float], stages: int
) -> list[tuple[float, float]]:
    """(highest, last) learning rate of each stage; raises where numbers lack, before the first stage is trained.

    One `floors` is the last stage's: those before are stopped early, while their rate is at its peak.
    """
    highest, lowest = repeat_rate("lr", peaks, stages), repeat_rate("min_lr", floors, stages)
    if not isinstance(floors, Sequence) or len(floors) == 1:
        lowest = [*highest[:-1], lowest[-1]]
    pairs = list(zip(highest, lowest, strict=True))
    for peak, floor in pairs:
        learning_rate(0, steps=1, lr=peak, min_lr=floor)
    return pairs


def repeat_rate(name: str, rate: float | Sequence[float], stages: int) -> list[float]:
    """One number for each stage; raises where one is given neither for all nor for each."""
    numbers = list(rate) if isinstance(rate, Sequence) else [rate]
    if len(numbers) not in (1, stages):
        raise InputError(
            f"{name}={','.join(f'{number:g}' for number in numbers)} has {len(numbers)} numbers for {stages} stages: "
            "give one for all of them, or one for each"
        )
    return numbers * (stages // len(numbers))
