"""Mixed distillation of a network from another of the same shape: hard labels, soft answers, features of some layers.

    L = alpha CE(S(x), y) + beta tau^2 KL(softmax(T(x) / tau) || softmax(S(x) / tau))
        + gamma sum_i w_i MSE(F_T^i, F_S^i)

Source: GPUSQ-ViT (arXiv 2305.10727), the losses of both of its workflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.modes import evaluating
from secateur.errors import InputError, UnsupportedError
from secateur.recover.distillation import losses
from secateur.recover.distillation.taps import tap
from secateur.recover.training.compose import Objective, Parts

__all__ = ["Labels", "answers", "importance", "objective", "residuals"]

Labels = Literal["true", "teacher", "none"]
"""What the hard term compares with: the data's labels, the teacher's likeliest class, or nothing."""

Ask = Callable[[nn.Module, Tensor], Any]
"""(network, inputs) -> its output."""

_BESIDE = ("hidden", "attention", "past", "cache")
"""In names of what transformers gives beside its answers."""


def answers(output: object) -> tuple[list[Tensor], list[Tensor]]:
    """(logits [N, ..., C] with their classes last, other answers): what the soft term compares by KL, and by MSE.

    A tensor is logits, with classes in dimension 1 where it has four (segmentation); so is what a mapping calls logits.
    Tuples without names are other answers, such as the boxes and scores of a detector.
    """
    if isinstance(output, Tensor):
        return [output.movedim(1, -1) if output.dim() == 4 else output], []
    if isinstance(output, Mapping):
        named = [(str(name), part) for name, part in output.items() if isinstance(part, Tensor)]
        named = [(name, part) for name, part in named if not any(word in name for word in _BESIDE)]
        logits = [one for name, part in named if "logits" in name for one in answers(part)[0]]
        return logits, [part for name, part in named if "logits" not in name and part.is_floating_point()]
    if isinstance(output, list | tuple):
        found = [answers(part) for part in output]
        return [], [one.movedim(-1, 1) if one.dim() == 4 else one for pair in found for part in pair for one in part]
    raise UnsupportedError(f"the network returns a {type(output).__name__}: expected tensors, or a mapping of them")


def objective(
    student: nn.Module,
    teacher: nn.Module,
    ask: Ask,
    taps: Sequence[str],
    *,
    labels: Labels = "true",
    factors: Sequence[float] = (1.0, 10.0, 5.0),
    temperature: float = 2.0,
    weights: Sequence[float] | None = None,
    disagreeing: float = 1.0,
) -> Objective:
    """The loss of the top of this module, a mean over the images of a step.

    Args:
        student: the network in training.
        teacher: of the same layers and shapes; asked without gradients.
        ask: runs either on a batch's inputs.
        taps: names of the modules whose outputs are the features F^i.
        labels: of the hard term; without any, alpha counts for nothing.
        factors: alpha, beta, gamma.
        temperature: tau.
        weights: w_i, one for each of `taps`; 1 if None.
        disagreeing: how much the features of an image count for which student and teacher tell another class.

    Logits of many places (pixels, queries) are averaged over places. Raises `InputError` for labels that are missing,
    and for features of different shapes; `UnsupportedError` for a hard term without logits.
    """
    alpha, beta, gamma = factors
    share = [1.0] * len(taps) if weights is None else list(weights)

    def compute(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
        inputs = batch["inputs"]
        with tap(student, taps) as ours:
            answered = answers(ask(student, inputs))
        theirs: list[Tensor] = []
        told: tuple[list[Tensor], list[Tensor]] = ([], [])
        if beta or gamma or labels == "teacher":
            with torch.no_grad(), tap(teacher, taps) as theirs:
                told = answers(ask(teacher, inputs))
        total, parts = inputs.new_zeros(()), dict[str, Tensor]()

        def add(name: str, weight: float, value: Tensor) -> None:
            nonlocal total
            value = value / totals["examples"]
            total = total + weight * value
            parts[name] = value.detach()

        if alpha and labels != "none":
            add("hard", alpha, hard(answered[0], told[0], batch, labels))
        if beta:
            add("soft", beta, soft(answered, told, temperature))
        if gamma and taps:
            counts = _agreement(answered[0], told[0], disagreeing)
            add("features", gamma, feature_error(ours, theirs, taps, share, counts))
        return total, parts

    return compute


def hard(ours: Sequence[Tensor], theirs: Sequence[Tensor], batch: Batch, labels: Labels) -> Tensor:
    """Cross-entropy summed over images, of the first logits, with the batch's labels or the teacher's classes."""
    if not ours:
        raise UnsupportedError(
            f"labels={labels} needs logits, and this network gives none: take labels=none, to learn from the teacher"
        )
    if labels == "teacher":
        wanted = theirs[0].argmax(-1)
    elif "labels" not in batch:
        raise InputError("labels=true, and the data has no labels: give some, or take labels=teacher or labels=none")
    else:
        wanted = batch["labels"]
    logits = ours[0]
    if logits.shape[:-1] != wanted.shape:
        raise UnsupportedError(
            f"labels={labels} compares one class for each of {tuple(logits.shape[:-1])} logits with labels of shape "
            f"{tuple(wanted.shape)}: take labels=teacher or labels=none"
        )
    return losses.cross_entropy(logits, wanted) * (len(logits) / max(1, wanted.numel()))


def soft(
    ours: tuple[Sequence[Tensor], Sequence[Tensor]],
    theirs: tuple[Sequence[Tensor], Sequence[Tensor]],
    temperature: float,
) -> Tensor:
    """``tau^2 KL(T || S)`` of logits and the mean squared error of other answers, summed over images."""
    total: Tensor = torch.zeros(())
    for one, other in zip(ours[0], theirs[0], strict=True):
        places = one.shape[1:-1].numel()
        total = total + losses.kl(one, other, temperature=temperature) * (temperature**2 / places)
    for one, other in zip(ours[1], theirs[1], strict=True):
        total = total + (one - other).square().flatten(1).mean(1).sum()
    return total


def feature_error(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    taps: Sequence[str],
    weights: Sequence[float],
    counts: Tensor | None,
) -> Tensor:
    """``sum_n c_n sum_i w_i mean (F_T^i - F_S^i)^2`` over images n; [N, ...] each, c [N]."""
    total: Tensor = torch.zeros(())
    for one, other, name, weight in zip(ours, theirs, taps, weights, strict=True):
        if one.shape != other.shape:
            raise InputError(
                f"{name} gives {tuple(one.shape)} in the student and {tuple(other.shape)} in its teacher: features of "
                "one shape are compared"
            )
        each = (one - devices.move(other, one)).float().square().flatten(1).mean(1)
        total = total + weight * (each if counts is None else each * counts).sum()
    return total


def _agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor], disagreeing: float) -> Tensor | None:
    """[N]: 1 where both tell one class, `disagreeing` where not; None where there is no such class."""
    if disagreeing == 1.0 or not ours or ours[0].dim() != 2:
        return None
    alike = ours[0].detach().argmax(-1) == theirs[0].argmax(-1)
    return torch.where(alike, 1.0, disagreeing)


@torch.no_grad()
def residuals(
    student: nn.Module, teacher: nn.Module, ask: Ask, taps: Sequence[str], batches: Iterable[Batch]
) -> dict[str, float]:
    """Tap -> ``l_i = mean MSE(F_T^i, F_S^i)`` over all images of the batches, in evaluation mode."""
    sums, images = torch.zeros(len(taps), dtype=torch.float64), 0
    with evaluating(student, teacher):
        for batch in batches:
            with tap(student, taps) as ours:
                ask(student, batch["inputs"])
            with tap(teacher, taps) as theirs:
                ask(teacher, batch["inputs"])
            for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                sums[place] += float((one - other).float().square().flatten(1).mean(1).sum())
            images += len(batch["inputs"])
    return {tap: value / max(1, images) for tap, value in zip(taps, sums.tolist(), strict=True)}


def importance(residual: Sequence[float]) -> list[float]:
    """``w_i = n l_i / sum_j l_j``: positive, mean 1; what pruning has hurt most counts most. All 1 where nothing hurt.

    Source: the sparse-distillation-aware factor of arXiv 2305.10727; this normalisation is one of several possible.
    """
    whole = sum(residual)
    if not whole > 0:
        return [1.0] * len(residual)
    # A layer that lost nothing still counts a little: weights are positive.
    least = 1e-3 * whole / len(residual)
    raised = [max(one, least) for one in residual]
    return [len(raised) * one / sum(raised) for one in raised]
