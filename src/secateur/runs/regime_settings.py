"""What `study regimes` is told, checked before anything is trained: temperatures, densities, and how siblings learn.

Source: Zhou et al., "A Three-regime Model of Network Pruning" (arXiv 2305.18383).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from secateur.errors import InputError
from secateur.methods.arms import DEFAULTS, refuse_selection
from secateur.methods.siblings import Allocation, Layers
from secateur.methods.temperatures import AXES, Axis, find_checkpoints
from secateur.runs import keywords
from secateur.runs.candidates import Part
from secateur.vocabulary import Training

__all__ = ["LAST", "USUAL_RHO", "Settings", "Temperature"]

Temperature = Literal["epochs", "batch", "rho", "lr", "weight_decay"]
LAST = 5
"""Epochs over which the test error is averaged."""
USUAL_RHO = 0.05
"""The default of sharpness-aware minimisation, where the advice on rho begins."""


@dataclass(frozen=True, eq=False)
class Settings:
    """All options of `studies.regimes`, checked; see there. Raises `InputError` for what can't be used together."""

    temperature: Temperature
    temperatures: Sequence[float]
    checkpoints: str
    densities: Sequence[float]
    allocation: Allocation
    layers: Layers
    siblings: int
    seeds: Sequence[int]
    judged: str | Part
    augment: str
    tokens: int
    retrain_epochs: float | None
    retrain_lr: float | None
    points: int
    images: int
    control: bool
    follow: bool
    start: float | None
    barrier: float
    similar: float
    training: Training

    def __post_init__(self) -> None:
        keywords.check_seed(*self.seeds)
        if not self.densities or not self.seeds:
            raise InputError(f"densities={list(self.densities)}, seeds={list(self.seeds)}: give at least one of each")
        refuse_selection(self.training)
        if min(self.how.number("epochs"), self.retraining.number("epochs")) <= 0:
            raise InputError(f"epochs={self.how.epochs:g}, retrain_epochs={self.retraining.epochs:g}: give more than 0")
        if self.training.evaluate_every is not None:
            raise InputError(
                f"evaluate_every={self.training.evaluate_every}: the test error is the mean over the last {LAST} "
                "epochs: leave it out"
            )
        if self.images == 1:
            raise InputError("images=1: give 2 or more, or 0 for all")
        if self.checkpoints and self.temperatures:
            raise InputError("checkpoints have temperatures of their own, the numbers in their names: give one of both")
        if self.control and self.follow:
            raise InputError("control=True is about the whole map, and follow=True leaves most of it out: give one")
        if len(self.sources) < 2:
            raise InputError(
                f"{self.checkpoints or self.temperature} has one temperature, {next(iter(self.sources))}, and the "
                "study chooses between two or more: give more"
            )
        if self.follow and not self.ordered:
            raise InputError(
                "follow=True goes from temperature to temperature: put a number into each checkpoint's name"
            )
        if self.start is not None and self.start not in self.sources.values():
            raise InputError(f"start={self.start:g} is none of the temperatures: {', '.join(self.sources)}")

    @property
    def axis(self) -> Axis:
        """What is turned."""
        return AXES[self.temperature]

    @cached_property
    def how(self) -> Training:
        """The dense training."""
        return self.training.default(**DEFAULTS)

    @cached_property
    def retraining(self) -> Training:
        """The dense recipe again, on the masked network."""
        epochs, lr = self.retrain_epochs, self.retrain_lr
        return replace(
            self.how, epochs=self.how.epochs if epochs is None else epochs, lr=self.how.lr if lr is None else lr
        )

    @cached_property
    def _by_name(self) -> Mapping[str, tuple[Path, float]]:
        return find_checkpoints(self.checkpoints, self.axis) if self.checkpoints else {}

    @property
    def files(self) -> dict[str, Path]:
        """Name of a temperature -> the user's checkpoint, the warmest first."""
        return {name: file for name, (file, _) in self._by_name.items()}

    @cached_property
    def sources(self) -> dict[str, float]:
        """Name of each temperature -> its value, the warmest first; NaN where checkpoints have no numbers."""
        if self.checkpoints:
            return {name: value for name, (_, value) in self._by_name.items()}
        known = getattr(self.how, self.axis.field)
        scale = 1.0 if self.temperature == "rho" else known
        if not self.temperatures and not scale:
            raise InputError(f"{self.axis.field}={known:g} has no multiples to be turned to: give temperatures")
        values_asked = [float(one) for one in self.temperatures] or [part * scale for part in self.axis.shares]
        if self.temperature == "batch":
            values_asked = [float(max(1, round(one))) for one in values_asked]
        most = self.how.number("epochs")
        for value in values_asked:
            wrong = self.temperature == "epochs" and not 0 < value <= most
            least = "numbers of 0 or more" if self.temperature in ("rho", "weight_decay") else "numbers above 0"
            if wrong or (value == 0 and least.endswith("above 0")) or not math.isfinite(value) or value < 0:
                wanted = f"above 0 and up to the {most:g} epochs of the training" if wrong else least
                raise InputError(f"temperatures={value:g} of {self.temperature}: give {wanted}")
        return {f"{self.temperature} {value:g}": value for value in self.axis.sort(values_asked)}

    @property
    def ordered(self) -> bool:
        """Whether every temperature is a number."""
        return not any(math.isnan(value) for value in self.sources.values())

    @property
    def place(self) -> int:
        """Where the advice begins: `start`, for rho its usual value, else the coolest."""
        values = list(self.sources.values())
        if self.start is not None:
            return values.index(self.start)
        return values.index(USUAL_RHO) if self.temperature == "rho" and USUAL_RHO in values else len(values) - 1

    @property
    def shares(self) -> tuple[float, ...]:
        """The densities, each once, by size."""
        return tuple(sorted(set(self.densities)))

    @property
    def beyond(self) -> tuple[str, str]:
        """In words, the next warmer than the warmest and the next cooler than the coolest; "" where there is none."""
        warmest, *_, coolest = self.sources.values()
        steps = [(warmest, self.axis.warmer(warmest)), (coolest, self.axis.cooler(coolest))]
        words = [
            f"{self.temperature} {step:g}" if step and self.ordered and step != value else "" for value, step in steps
        ]
        return words[0], words[1]

    def early(self) -> tuple[str, ...]:
        """Temperatures of one run before its rate decays."""
        if self.temperature != "epochs" or self.files or self.how.schedule != "milestones":
            return ()
        return tuple(name for name, value in self.sources.items() if value <= self.how.number("epochs") / 2)

    def dense_training(self, value: float) -> Training:
        """Of one temperature; for epochs the whole run, of which checkpoints are taken."""
        if self.temperature == "epochs":
            return self.how
        # rho 0 is plain SGD, which a training without `sam` is.
        chosen = int(value) if self.temperature == "batch" else value or None if self.temperature == "rho" else value
        turned: dict[str, Any] = {self.axis.field: chosen}
        return replace(self.how, **turned)
