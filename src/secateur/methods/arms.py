"""Train a network on classes or boxes and judge it: arms of a control experiment in one shape, and the verdict.

Source: Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019 (arXiv 1810.05270), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.modes import evaluating
from secateur.data import examples
from secateur.data.batches import Feed, count_steps
from secateur.data.examples import Augment, Examples
from secateur.errors import DataError, InputError
from secateur.measure import size, statistics
from secateur.methods.published_rules import Pruned, duplicate
from secateur.recover.sparsity import masks
from secateur.recover.sparsity.masks import Masks
from secateur.recover.training import detecting, initialise, loop, objectives, transfer
from secateur.recover.training.compose import Objective, Parts
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Figure, Recovery, Training

__all__ = [
    "DEFAULTS", "Arm", "describe_arms", "equal_flops", "finetune_length", "finetune_settings", "fit", "forward_flops",
    "give_verdict", "mark_correct", "refuse_selection", "split_judged", "train_arms", "train_epochs",
]  # fmt: skip


DEFAULTS: dict[str, Any] = {
    "epochs": 160, "batch": 64, "lr": 0.1, "weight_decay": 1e-4, "schedule": "milestones", "warmup": 0,
    "optimizer": "sgd", "clip": math.inf,
}  # fmt: skip
"""Fields of `Training` that nobody set: those of the paper's small networks, whose rate decays at 50 % and 75 %."""


class _Periodic(torch.optim.SGD):
    """Nesterov's SGD that calls `then` with itself after every `every` steps; the count is part of its state."""

    def __init__(
        self, groups: ParamsT, then: Callable[[torch.optim.Optimizer], None], every: int, momentum: float
    ) -> None:
        super().__init__(groups, lr=0.1, momentum=momentum, nesterov=momentum > 0)
        self.then, self.every = then, every

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step."""
        value = super().step(closure)
        state = self.state[self.param_groups[0]["params"][0]]
        done = int(state.get("done", 0)) + 1
        state["done"] = torch.tensor(float(done))
        if done % self.every == 0:
            self.then(self)
        return value


def fit(
    model: nn.Module,
    data: Examples,
    training: Training | None = None,
    *,
    seed: int = 0,
    objective: Objective | None = None,
    penalty: Callable[[], Tensor] | None = None,
    closed: Masks | None = None,
    epoch_end: Callable[[], None] | None = None,
    step_end: Callable[[torch.optim.Optimizer], None] | None = None,
    extra: Sequence[nn.Module] = (),
    judged: Examples | None = None,
    augment: Augment | None = None,
    folder: Path | None = None,
    flops: float = 0.0,
    **settings: Any,
) -> Recovery | None:
    """Train `model` in place on the classes of `data`, or as a detector on its boxes; None for no epochs.

    Args:
        model: a classifier, or a `Detector`.
        data: what it learns from.
        training: how, with its `epochs`; what is not set: `DEFAULTS`, then those of the loop.
        seed: of the order of batches, and of all else that is random.
        objective: what is learned; unless given, cross-entropy of the classes, or a detector's own loss.
        penalty: is added to the mean loss.
        closed: masks; what they close is held at 0.
        epoch_end: called after each epoch; with SGD alone.
        step_end: called with the optimizer after each step; with SGD alone.
        extra: modules that are trained along.
        judged: examples whose error is noted after each epoch, for the best beside the last.
        augment: see `examples.batches`.
        folder: of checkpoints.
        flops: of one forward pass of one example.
        settings: fields of `training`, in place of those that it has.
    """
    if not data.has_classes and not data.targets:
        raise DataError(f"{data.name} has no classes: give labels, for networks are trained on them here")
    training = replace(training or Training(), **settings).default(**DEFAULTS)
    feed = examples.batches(data, batch=training.whole("batch"), seed=seed, augment=augment)
    if objective is None:
        objective = detecting.press(cast(Detector, model).loss) if data.targets else transfer.classify(model)
    if penalty is not None:
        objective = _add_penalty(objective, penalty)
    evaluate = None if judged is None else (lambda: 1.0 - float(mark_correct(model, judged).mean()))
    return train_epochs(
        model, feed, objective, training, seed=seed, count=examples.count, closed=closed, epoch_end=epoch_end,
        step_end=step_end, extra=extra, evaluate=evaluate, folder=folder, flops=flops,
    )  # fmt: skip


def train_epochs(
    model: nn.Module,
    feed: Feed,
    objective: Objective,
    training: Training,
    *,
    count: Callable[[Batch], dict[str, int]],
    seed: int = 0,
    closed: Masks | None = None,
    epoch_end: Callable[[], None] | None = None,
    step_end: Callable[[torch.optim.Optimizer], None] | None = None,
    extra: Sequence[nn.Module] = (),
    evaluate: Callable[[], float] | None = None,
    folder: Path | None = None,
    flops: float = 0.0,
) -> Recovery | None:
    """Train `model` in place for the epochs of `training` on any batches; None for no epochs. Arguments: see `fit`.

    count: what a batch holds, see `loop.train`. evaluate: an error that is noted after each epoch.
    """
    accumulate = training.accumulate or 1
    steps, epoch = count_steps(feed, training.number("epochs"), accumulate), count_steps(feed, 1, accumulate)
    if not steps:
        masks.apply(model, closed or {})
        return None
    stepper: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None
    if training.optimizer != "sgd" and (epoch_end or step_end):
        raise InputError(
            f"optimizer={training.optimizer}: what this method does between steps is for sgd; leave it out"
        )
    momentum = loop.DEFAULTS["momentum"] if training.momentum is None else training.momentum
    if epoch_end is not None:
        stepper = partial(_Periodic, then=lambda _: epoch_end(), every=epoch, momentum=momentum)
    if step_end is not None:
        stepper = partial(_Periodic, then=step_end, every=1, momentum=momentum)
    with masks.hold(model, closed or {}):
        return loop.train(
            model, feed, objective, training.default(every=max(100, epoch), evaluate_every=epoch), steps=steps,
            optimizer=stepper, seed=seed, count=count, checkpoint=folder, evaluate=evaluate, extra=extra,
            flops_per_token=3.0 * flops,
        )  # fmt: skip


def _add_penalty(objective: Objective, penalty: Callable[[], Tensor]) -> Objective:
    def both(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        loss, parts = objective(batch, totals)
        return loss + penalty() * (len(batch["inputs"]) / totals["examples"]), parts

    return both


def mark_correct(
    model: nn.Module, data: Examples, batch: int = 256, attack: Callable[[Tensor, Tensor], Tensor] | None = None
) -> NDArray[np.bool_]:
    """[N]: whether the largest logit is that of the class, in evaluation mode.

    attack: (inputs, classes) -> the inputs that are judged in their place.
    """
    marks = []
    with evaluating(model):
        for part in data.in_order(batch):
            inputs = devices.move(part["inputs"], model)
            if attack is not None:
                inputs = attack(inputs, devices.move(part["labels"], model))
            with torch.inference_mode():
                logits = objectives.logits(model(inputs))
            marks.append((logits.argmax(-1).cpu() == part["labels"]).numpy())
    return np.concatenate(marks)


def split_judged(data: Examples, judged: Examples | None, seed: int) -> tuple[Examples, Examples]:
    """(what is learned from, what is judged on): a tenth of the data under the seed, unless `judged` is given.

    Raises `DataError` where one of the two has no classes.
    """
    for part in (data, data if judged is None else judged):
        if part.labels is None or part.per_pixel:
            what = "a class for each pixel" if part.per_pixel else "no classes"
            raise DataError(f"{part.name} has {what}: give one for each example, for all arms are judged by accuracy")
    return data.split(seed=seed) if judged is None else (data, judged)


# ------------------------------------------------------------------------------------------------------- arms


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to weights in the cut shape."""

    epochs: int
    flops: float
    """Of its training: three forward passes for each example seen."""
    right: NDArray[np.bool_]
    """[held-out examples]: whether the last weights get each right."""
    model: nn.Module
    recovery: Recovery | None = None
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Of the last weights, on the held-out examples."""
        return float(self.right.mean())


Epochs = TypeVar("Epochs", int, float)


def finetune_length(epochs: Epochs, finetune: str, wanted: Epochs | None = None) -> Epochs:
    """Epochs of fine-tuning: those `wanted`, or a quarter of the large network's for classic, all for rewind."""
    if wanted is not None:
        return wanted
    return max(type(epochs)(1), epochs // 4) if finetune == "classic" else epochs


def finetune_settings(training: Training, finetune: str) -> Training:
    """How a cut is fine-tuned: classic, a constant rate of a hundredth of the large network's; else as that one."""
    return replace(training, lr=training.number("lr") / 100, schedule="constant") if finetune == "classic" else training


def equal_flops(epochs: Epochs, dense: float, cut: float, cap: float | None = None) -> Epochs:
    """E F(dense) / F(cut), at most `cap` times E, whole where E is: what Scratch-B may train for. Source: section 3."""
    kind, most = type(epochs), math.inf if cap is None else cap
    return kind(min(epochs * dense / cut + 1e-9, most * epochs))


def forward_flops(subject: Traced, sparse: bool = False) -> float:
    """FLOPs of a forward pass on the subject's example inputs, everything counted; see `size.every_flop`."""
    return size.every_flop(subject.forward, sparse=sparse)


def refuse_selection(training: Training) -> None:
    """Raise `InputError` for a training that examples would end, or pick weights of: arms are judged by the same."""
    for name, value in training.named.items():
        if name in ("patience", "validation") or (name, value) == ("keep", "best"):
            raise InputError(
                f"{name}={value}: every arm trains for the epochs that it is compared at, and the examples that would "
                "stop it or pick its weights judge it; leave it out"
            )


def train_arms(
    pruned: Pruned,
    data: Examples,
    judged: Examples,
    training: Training | None = None,
    *,
    seed: int = 0,
    mode: str = "both",
    finetune: str = "classic",
    finetune_epochs: int | None = None,
    cap: float | None = None,
    norm: float = 1.0,
    chance: bool = False,
    build: Callable[[], nn.Module] | None = None,
    augment: Augment | None = None,
    watch: bool = True,
    folder: Path | None = None,
    **settings: Any,
) -> dict[str, Arm]:
    """Fine-tune a cut, and train fresh networks of its shape beside it, for one seed: name of the arm -> what came out.

    "fine-tuned" has the inherited weights; "scratch-E" new ones and E epochs; "scratch-B" new ones and as many FLOPs as
    the large network cost; "random units" inherited weights of units chosen at random. The arms share nothing but the
    order of the batches. `pruned` stays as it is. For masks, zeros count as if they saved their time.

    Args:
        pruned: see `published_rules.prune`.
        data: what all arms learn from.
        judged: what they are judged on.
        training: how the large network was trained, for E whole epochs; see `fit`.
        seed, augment: of all arms, see `fit`.
        mode: "E", "B", "both" or "none" of the fresh networks.
        finetune: "classic", constant lr / 100; or "rewind", the whole schedule again from the first rate.
        finetune_epochs: see `finetune_length`.
        cap: "scratch-B" trains for at most this many times E.
        norm: first weights of batch norms in fresh networks.
        chance: train "random units", too.
        build: gives a network of the cut shape, whose weights are drawn anew; a copy of the student otherwise.
        watch: note the error after each epoch, too, for the best beside the last.
        folder: of checkpoints.
        settings: fields of `training`, in place of those that it has.
    """
    training = replace(training or Training(), **settings).default(**DEFAULTS)
    refuse_selection(training)
    epochs = training.whole("epochs")
    first = next(x for x in (*pruned.dense.inputs.args, *pruned.dense.inputs.kwargs.values()) if isinstance(x, Tensor))
    dense, cut = (forward_flops(one, bool(pruned.masks)) / len(first) for one in (pruned.dense, pruned.student))
    gentle = finetune_settings(training, finetune)
    short = finetune_length(epochs, finetune, finetune_epochs)
    arms: dict[str, Arm] = {}

    def train(
        name: str, model: nn.Module, closed: Masks, length: int, how: Training, notes: tuple[str, ...] = ()
    ) -> None:
        recovery = fit(
            model, data, replace(how, epochs=length), seed=seed, closed=closed, augment=augment, flops=cut,
            judged=judged if watch else None, folder=None if folder is None else folder / name,
        )  # fmt: skip
        spent = 3.0 * cut * len(data) * length
        arms[name] = Arm(length, spent, mark_correct(model, judged), model, recovery, notes)

    train("fine-tuned", duplicate(pruned.student).model, pruned.masks, short, gentle)
    for name, length in (("scratch-E", epochs), ("scratch-B", equal_flops(epochs, dense, cut, cap))):
        if mode in (name[-1], "both"):
            shape = pruned.student.model if build is None else _same_shape(build(), pruned.student.model)
            model, notes = initialise.fresh(shape, seed=seed, norm=norm, masks=pruned.masks)
            train(name, model, pruned.masks, length, training, notes)
    if chance:
        student, closed = pruned.cut_at_random(seed)
        train("random units", duplicate(student).model, closed, short, gentle)
    return arms


def _same_shape(built: nn.Module, student: nn.Module) -> nn.Module:
    ours, theirs = ({n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (built, student))
    wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if wrong:
        raise InputError(
            f"the network that was built has {wrong[0]} of shape {ours.get(wrong[0])}, the pruned one "
            f"{theirs.get(wrong[0])}: build the cut shape"
        )
    return built


def give_verdict(
    difference: Figure, ours: str = "the inherited weights are", theirs: str = "training from scratch is"
) -> str:
    """Who is better by the interval of ours minus theirs; nobody where there is no interval, or it holds 0."""
    if difference.low is None or difference.high is None:
        return "no verdict: one training of each says nothing"
    if difference.low > 0:
        return f"{ours} better"
    if difference.high < 0:
        return f"{theirs} better"
    return "a tie: the interval holds 0"


def describe_arms(arms: Mapping[str, Arm], finetune: str) -> str:
    """One sentence with every arm's epochs, FLOPs and accuracy, and the verdict against the best fresh network.

    Of several fresh networks the better one is picked on a random half of the examples, and compared on the other:
    whoever picks the maximum on what it is judged by gives it a lead that is luck.
    """
    tuned = arms["fine-tuned"]
    count = len(tuned.right)
    shown = [
        f"{name}{f' ({finetune})' if name == 'fine-tuned' else ''} {100 * arm.accuracy:.1f}% "
        f"({arm.epochs} epochs, {arm.flops:.3g} FLOPs)"
        for name, arm in arms.items()
    ]
    text = f"accuracy on {count} examples held out of the training data: {', '.join(shown)}"
    fresh = [name for name in arms if name.startswith("scratch")]
    if not fresh:
        return text
    best, judged, where = fresh[0], np.arange(count), ""
    if len(fresh) > 1 and count > 1:
        order = np.random.default_rng([count, 2]).permutation(count)
        picking, judged = order[: count // 2], np.sort(order[count // 2 :])
        best = max(fresh, key=lambda name: float(arms[name].right[picking].mean()))
        where = f", the better on {len(picking)} of them,"
    difference = statistics.paired_difference(tuned.right[judged].astype(float), arms[best].right[judged].astype(float))
    points = statistics.to_percent(difference)
    verdict = give_verdict(difference)
    over = f"the other {len(judged)}" if where else "examples"
    return f"{text}; fine-tuned minus {best}{where} {points} points, over {over} of one training each: {verdict}"
