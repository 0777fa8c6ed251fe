"""The control experiment of one cut over several seeds: its shape with inherited weights, and trained from scratch.

Liu et al., "Rethinking the Value of Network Pruning" (arXiv 1810.05270).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateur._utils.disk import atomic_write
from secateur.data.examples import Augment, Examples
from secateur.errors import InputError
from secateur.measure import statistics
from secateur.methods.arms import DEFAULTS, Arm, forward_flops, give_verdict, refuse_selection, split_judged, train_arms
from secateur.methods.published_rules import Pruned
from secateur.recover.sparsity import masks
from secateur.reports import evidence
from secateur.vocabulary import Figure, Training

__all__ = ["LACKS", "Control", "describe", "scratch_control"]

LACKS = (
    "scratch lacks the compute of the original's training before this run, which is not counted: where the original "
    "was pretrained on more data, a fresh network that loses says that inheriting helps, not which units"
)


@dataclass(frozen=True, eq=False)
class Control:
    """What the arms gave, over seeds."""

    arms: Mapping[str, tuple[Arm, ...]]
    """Name -> one per seed, in the order of `seeds`."""
    seeds: tuple[int, ...]
    finetune: str
    dense_flops: float
    """Of training the large network for the recipe's epochs."""
    widths: Mapping[str, float]
    """The cut architecture of the first seed, see `describe`."""
    notes: tuple[str, ...] = ()

    def accuracies(self, arm: str) -> tuple[float, ...]:
        """Held-out accuracy of each seed's last weights."""
        return tuple(one.accuracy for one in self.arms[arm])

    def mean_accuracy(self, arm: str) -> Figure:
        """Mean accuracy in percent, with its interval."""
        return statistics.to_percent(statistics.mean_interval(self.accuracies(arm)))

    def difference(self, arm: str) -> Figure:
        """Fine-tuned minus `arm` in percentage points, paired: over seeds, or over examples where there is one seed."""
        if len(self.seeds) > 1:
            difference = statistics.paired_difference(self.accuracies("fine-tuned"), self.accuracies(arm))
        else:
            ours, theirs = (self.arms[name][0].right.astype(float) for name in ("fine-tuned", arm))
            difference = statistics.paired_difference(ours, theirs)
        return statistics.to_percent(difference)

    @property
    def paired_over(self) -> str:
        """What differences are paired over, in words."""
        return "seeds" if len(self.seeds) > 1 else "held-out examples of one training each"

    @property
    def verdicts(self) -> dict[str, str]:
        """Arm -> whether the inherited weights are better than it, worse, or neither."""
        verdicts = {}
        for name in self.arms:
            if name.startswith("scratch"):
                verdicts[name] = give_verdict(self.difference(name))
            elif name == "random units":
                verdicts[name] = give_verdict(self.difference(name), "the chosen units are", "random units are")
        return verdicts

    def costs(self, arm: str) -> tuple[str, str]:
        """Training FLOPs, mean over seeds: of the arm alone, and with the large network's where it inherits."""
        flops = float(np.mean([one.flops for one in self.arms[arm]]))
        return f"{flops:.3g}", f"{flops + self.dense_flops * (not arm.startswith('scratch')):.3g}"

    def arm_name(self, arm: str) -> str:
        """The arm's name in tables."""
        return f"{arm} ({self.finetune})" if arm == "fine-tuned" else arm

    def to_markdown(self) -> str:
        """The report: all arms, what each cost, a plain verdict, the architecture."""
        rows = [("Arm", "Accuracy", "Best epoch", "Epochs", "Training FLOPs", "With the large network's")]
        for name, arms in self.arms.items():
            best = [accuracy for accuracy in map(_best_accuracy, arms) if accuracy is not None]
            shown = f"{100 * float(np.mean(best)):.4g}" if best else "-"
            reached = str(self.mean_accuracy(name))
            rows.append((self.arm_name(name), reached, shown, f"{arms[0].epochs}", *self.costs(name)))
        lines = [
            "# Is it worth inheriting?",
            f"Held-out accuracy in percent, mean over seeds {', '.join(map(str, self.seeds))} with its interval.",
            evidence.markdown(rows),
            *(
                f"- fine-tuned minus {name}: {self.difference(name)} points over {self.paired_over}: {verdict}."
                for name, verdict in self.verdicts.items()
            ),
            *(f"- {note}." for note in self.notes),
            "## The architecture",
            evidence.markdown([("Layer", "Outputs"), *((name, f"{width:g}") for name, width in self.widths.items())]),
        ]
        return "\n\n".join(lines) + "\n"


def _best_accuracy(arm: Arm) -> float | None:
    evaluations = (arm.recovery.settings.get("evaluations") if arm.recovery else None) or []
    return 1.0 - min(error for _, error in evaluations) if evaluations else None


def scratch_control(
    pruned: Pruned | Callable[[int], Pruned],
    data: Examples,
    *,
    judged: Examples | None = None,
    mode: str = "both",
    seeds: Sequence[int] = (0, 1, 2),
    training: Training | None = None,
    finetune: str = "classic",
    finetune_epochs: int | None = None,
    cap: float | None = None,
    norm: float = 1.0,
    chance: bool = True,
    pretrained: bool = False,
    build: Callable[[], nn.Module] | None = None,
    augment: Augment | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Control:
    """Fine-tuned, Scratch-E, Scratch-B and random units with inherited weights, over `seeds`, in one shape.

    Args:
        pruned: a cut (see `published_rules.prune`), or seed -> one, so that the large network is another for each seed:
            then the interval is that of the whole experiment, otherwise of its last part.
        data: what all arms train on, in the same order.
        judged: what they are judged on; a tenth of `data` is held out unless given.
        mode: "E", "B" or "both".
        seeds: of initialisation and order; all arms of a seed share it.
        training, finetune, finetune_epochs, cap, norm, build, augment: see `arms.train_arms`.
        chance: whether to train random units with inherited weights, too.
        pretrained: the large network has seen more than `data`: the report says that scratch lacks that.
        out: where report.md goes; nowhere unless given.
        settings: fields of `training`, in place of those that it has.
    """
    if mode not in ("E", "B", "both"):
        raise InputError(f"mode={mode!r} is not one of E, B, both")
    if not seeds or min(seeds) < 0:
        raise InputError(f"seeds={list(seeds)}: give one of at least 0, and three for a verdict")
    data, judged = split_judged(data, judged, seeds[0])
    training = replace(training or Training(), **settings).default(**DEFAULTS)
    refuse_selection(training)
    by_name: dict[str, list[Arm]] = {}
    costs, widths, notes = [], dict[str, float](), dict[str, None]()
    for seed in seeds:
        cut = pruned(seed) if callable(pruned) else pruned
        arms = train_arms(
            cut, data, judged, training, seed=seed, mode=mode, finetune=finetune, finetune_epochs=finetune_epochs,
            cap=cap, norm=norm, chance=chance, build=build, augment=augment,
        )  # fmt: skip
        for name, arm in arms.items():
            by_name.setdefault(name, []).append(arm)
            notes |= dict.fromkeys(arm.notes)
        first = arms["scratch-E" if "scratch-E" in arms else "scratch-B"]
        ratio = forward_flops(cut.dense) / forward_flops(cut.student, bool(cut.masks))
        costs.append(first.flops / max(first.epochs, 1) * ratio * training.whole("epochs"))
        widths = widths or describe(cut.student.model, cut.masks)
    if pretrained:
        notes[LACKS] = None
    result = Control(
        {name: tuple(arms) for name, arms in by_name.items()}, tuple(seeds), finetune, float(np.mean(costs)), widths,
        tuple(notes),
    )  # fmt: skip
    if out is not None:
        atomic_write(Path(out) / "report.md", result.to_markdown())
    return result


def describe(model: nn.Module, closed: masks.Masks | None = None) -> dict[str, float]:
    """The architecture in numbers: layer -> outputs of each convolution and linear; kept share where masked."""
    closed, numbers = closed or {}, dict[str, float]()
    for path, module in model.named_modules():
        weight = f"{path}.weight" if path else "weight"
        if weight in closed:
            numbers[path] = masks.share({weight: closed[weight]})
        elif isinstance(module, nn.modules.conv._ConvNd):
            numbers[path] = float(module.out_channels)
        elif isinstance(module, nn.Linear):
            numbers[path] = float(module.out_features)
    return numbers
