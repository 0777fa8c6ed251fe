"""Hyper-parameters as temperatures: which way to turn one before pruning, and which of several models to prune.

Source: Zhou et al., "A Three-regime Model of Network Pruning" (arXiv 2305.18383), its three case studies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from secateur._utils.checkpoints import read_index
from secateur.errors import InputError
from secateur.measure.connectivity import Regime
from secateur.subjects.transformer.files import INDEX, WHOLE

__all__ = ["AXES", "Advice", "Axis", "Walk", "advise", "find_checkpoints", "pick", "walk"]

Advice: TypeAlias = Literal["warmer", "cooler", "keep"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A hyper-parameter of the dense training.

    field: of `Training`. heats: whether a larger value is warmer. shares: usual values, as shares of what the training
    has; absolute where it has none. what: in words.
    """

    field: str
    heats: bool
    shares: tuple[float, ...]
    what: str

    def sort(self, values: Sequence[float]) -> list[float]:
        """The warmest first, each value once."""
        return sorted(set(values), reverse=self.heats)

    def warmer(self, value: float, known: Sequence[float] = ()) -> float | None:
        """The next warmer of the `known` values, None at their end; twice or half the value where none are known."""
        return self._step(value, known, up=self.heats)

    def cooler(self, value: float, known: Sequence[float] = ()) -> float | None:
        """The next cooler one, as `warmer`."""
        return self._step(value, known, up=not self.heats)

    def _step(self, value: float, known: Sequence[float], *, up: bool) -> float | None:
        if not known:
            return value * 2 if up else value / 2
        beyond = [one for one in known if (one > value if up else one < value)]
        return (min(beyond) if up else max(beyond)) if beyond else None


AXES = {
    "epochs": Axis("epochs", False, tuple(part / 8 for part in range(1, 9)), "epochs of dense training"),
    "batch": Axis("batch", False, (0.25, 0.5, 1.0, 2.0, 4.0), "examples per step of dense training"),
    "rho": Axis("sam", True, (0.0, 0.05, 0.1, 0.2, 0.4), "rho of sharpness-aware dense training"),
    "lr": Axis("lr", True, (0.25, 0.5, 1.0, 2.0, 4.0), "learning rate of dense training"),
    "weight_decay": Axis("weight_decay", True, (0.25, 0.5, 1.0, 2.0, 4.0), "weight decay of dense training"),
}
"""Name -> what can be turned. That learning rate and weight decay behave as the others is not in the paper's maps."""


def find_checkpoints(folder: str | Path, axis: Axis) -> dict[str, tuple[Path, float]]:
    """Name -> (state dict in `folder`, NAME.safetensors or NAME/model.safetensors; its temperature), the warmest first.

    Of one in several files it is their index, NAME/model.safetensors.index.json. A temperature is the last number in a
    name; where not each has another one, all are NaN, and stand by name. Raises `InputError` for a folder without any,
    with one name twice, or with an index that is none.
    """
    folder = Path(folder)
    whole = (folder / WHOLE).is_file() or not (folder / INDEX).is_file()
    parts = set[str]() if whole else set(read_index(folder / INDEX).values())
    found = {file.stem: file for file in folder.glob("*.safetensors") if file.name not in parts}
    if not whole:
        found[WHOLE.partition(".")[0]] = folder / INDEX
    for file in [*folder.glob(f"*/{WHOLE}"), *folder.glob(f"*/{INDEX}")]:
        if file.name == INDEX and (file.parent / WHOLE).is_file():
            continue
        if found.setdefault(file.parent.name, file) != file:
            name = file.parent.name
            raise InputError(
                f"checkpoints={folder} holds {name} twice, {found[name].name} and {name}/{file.name}: rename one"
            )
    if not found:
        raise InputError(
            f"checkpoints={folder} holds no NAME.safetensors and no NAME/model.safetensors: write each with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        )
    numbers = {name: _read_number(name) for name in found}
    names = {value: name for name, value in numbers.items() if value is not None}
    if len(names) < len(found):
        return {name: (found[name], math.nan) for name in sorted(found)}
    return {names[value]: (found[names[value]], value) for value in axis.sort(list(names))}


def _read_number(name: str) -> float | None:
    """The last number in a name: 40, 0.05, .05, 5e-4."""
    found = re.findall(r"(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+(?![0-9a-zA-Z]))?", name)
    return float(found[-1]) if found else None


def advise(regime: Regime) -> Advice:
    """Which way to turn the dense training: warmer out of I, cooler out of II-A; II-B is where to be."""
    turns: dict[Regime, Advice] = {"I": "warmer", "II-A": "cooler", "II-B": "keep"}
    return turns[regime]


@dataclass(frozen=True, slots=True)
class Walk:
    """Where advice led: the place that was chosen, all places that were looked at, and why it ended."""

    chosen: int
    path: tuple[int, ...]
    end: str


def walk(start: int, count: int, look: Callable[[int], Regime]) -> Walk:
    """Follow the advice from `start` among `count` places, the warmest of which is 0, and look at no other place.

    It ends in II-B, at the last place, or where a further step would go back, between I and II-A; the II-A side is
    chosen then.

    look: place -> its regime.
    """
    if not 0 <= start < count:
        raise InputError(f"start={start}: give one of the {count} places, counted from 0")
    place, path = start, [start]
    while True:
        regime = look(place)
        turn = advise(regime)
        if turn == "keep":
            return Walk(place, tuple(path), "II-B")
        following = place + (1 if turn == "cooler" else -1)
        if not 0 <= following < count:
            return Walk(place, tuple(path), f"{regime}, and nothing {turn}")
        if following in path:
            return Walk(place if regime == "II-A" else following, tuple(path), "between I and II-A")
        place = following
        path.append(place)


def pick(connectivities: Sequence[float], similarities: Sequence[float], *, barrier: float) -> int:
    """Which of several models to prune: among those whose siblings are connected the one with the highest CKA.

    Where none is connected, the one with the lowest barrier. Needs no test error. Of equals the first.
    """
    places = range(len(connectivities))
    connected = [place for place in places if connectivities[place] >= -barrier]
    if connected:
        return max(connected, key=lambda place: similarities[place])
    return max(places, key=lambda place: connectivities[place])
