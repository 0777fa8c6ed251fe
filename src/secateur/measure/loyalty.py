"""Agreement of a student with its teacher: labels, probabilities and calibration, whether answers are right or wrong.

Two students of equal accuracy may err in other places than their teacher; loyalty tells them apart. Label and
probability loyalty are shares from 0 to 1, as accuracies are here; publications print them times 100.

Source: label and probability loyalty: Xu et al., "Beyond Preserved Accuracy", EMNLP 2021 (arXiv 2109.03228);
regression loyalty: Avram et al., "Distilling the Knowledge of Romanian BERTs Using Multiple Teachers", LREC 2022
(arXiv 2112.12650).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from secateur._utils import devices
from secateur.errors import MeasurementError, NumericalError
from secateur.measure.statistics import Values, mean_interval, pearson, per_item, proportion, spearman
from secateur.vocabulary import Figure

__all__ = ["Tally", "average", "divergence", "label", "numbers", "probability", "regression", "to_each"]

IGNORE = -100
"""Label of a token that does not count, as in transformers."""

_ELEMENTS = 2**22
"""Probabilities in float64 that exist at once: 32 MiB."""

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------- three loyalties


def label(student: Tensor, teacher: Tensor) -> Figure:
    """Share of items for which both find one class likeliest, with Wilson's interval.

    student, teacher: [n, C], probabilities or logits of the same n items (the tokens of a tagger are items).
    """
    _alike(student, teacher)
    return proportion(int((student.argmax(-1) == teacher.argmax(-1)).sum()), len(student))


def probability(student: Tensor, teacher: Tensor, *, base: float = 2.0) -> Figure:
    """Mean over items of ``1 - sqrt(JSD(p_t || p_s))``; with base 2 it is 1 for equal and 0 for disjoint predictions.

    student, teacher: [n, C] probabilities. One root only: SciPy's `jensenshannon` has taken it already.
    """
    return mean_interval((1.0 - divergence(student, teacher, base=base).sqrt()).cpu().numpy())


def divergence(student: Tensor, teacher: Tensor, *, base: float = 2.0) -> Tensor:
    """[n], float64: ``JSD = 1/2 KL(p_t || m) + 1/2 KL(p_s || m)``, ``m = (p_t + p_s) / 2``, of rows [n, C].

    Symmetric, from 0 to log_base(2). Raises `MeasurementError` for rows that are no probabilities.
    """
    _alike(student, teacher)
    if not 1.0 < base < math.inf:
        raise MeasurementError(
            f"a divergence with logarithms of base {base} was asked for: give one above 1, such as 2"
        )
    p, q = (_probabilities(one) for one in (teacher, student))
    middle = (p + q) / 2.0
    apart = sum((torch.special.xlogy(one, one) - torch.special.xlogy(one, middle)).sum(-1) for one in (p, q))
    return torch.as_tensor(apart).clamp(min=0.0) / (2.0 * math.log(base))


def regression(student: Values, teacher: Values) -> dict[str, Figure]:
    """Of two models' numbers for the same items: "pearson", "spearman" and "rmse", each with its interval.

    Pearson's correlation is the regression loyalty of the article; neither it nor Spearman's changes with scale or
    offset, which the root of the mean squared difference tells. Its interval is that of the mean square.
    """
    ours, theirs = (np.asarray(values, dtype=np.float64).ravel() for values in (student, teacher))
    found = {"pearson": pearson(ours, theirs), "spearman": spearman(ours, theirs)}
    square = mean_interval((ours - theirs) ** 2)
    low, high = (None if bound is None else math.sqrt(max(0.0, bound)) for bound in (square.low, square.high))
    return {**found, "rmse": Figure(math.sqrt(square.value), low, high, "", square.samples)}


def numbers(student: Values, teacher: Values) -> dict[str, Figure]:
    """`regression` under the names of evidence: "pearson", "rank_loyalty" (Spearman's) and "rmse".

    There "spearman" is the fidelity of embeddings (`quality.fidelity`), another thing. Of several numbers for each
    item, [n, C], correlations are the mean of those of each, without an interval: over all of them together, how far
    apart their means lie would count as agreement.
    """
    ours, theirs = np.asarray(student), np.asarray(teacher)
    if ours.ndim == 2 and ours.shape[1] > 1:
        each = [numbers(*columns) for columns in zip(ours.T, theirs.T, strict=True)]
        mean = {name: Figure(fmean(row[name].value for row in each), samples=len(ours)) for name in each[0]}
        return mean | {"rmse": regression(ours, theirs)["rmse"]}
    return {{"spearman": "rank_loyalty"}.get(name, name): one for name, one in regression(student, teacher).items()}


# ------------------------------------------------------------------------------------------------ several teachers


def average(predictions: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """What teachers tell together: ``sum_k w_k p_k / sum_k w_k``, of [n, C] or [n] each; equal weights unless given."""
    chosen = [1.0] * len(predictions) if weights is None else list(weights)
    if not predictions or len(chosen) != len(predictions) or min(chosen) < 0 or not sum(chosen) > 0:
        raise MeasurementError(f"weights {chosen} for {len(predictions)} teachers: give one of at least 0 for each")
    for other in predictions[1:]:
        _alike(other, predictions[0])
    mixed = sum(weight / sum(chosen) * one.double() for weight, one in zip(chosen, predictions, strict=True))
    return torch.as_tensor(mixed)


def to_each(
    loyalty: Callable[[Tensor, Tensor], T],
    student: Tensor,
    teachers: Mapping[str, Tensor],
    weights: Sequence[float] | None = None,
) -> dict[str, T]:
    """One of the loyalties above to each teacher by name and, of several, to their average, under "ensemble"."""
    found = {name: loyalty(student, predictions) for name, predictions in teachers.items()}
    if len(teachers) > 1:
        found["ensemble"] = loyalty(student, average(list(teachers.values()), weights))
    return found


# ------------------------------------------------------------------------------------------- beside other measures


class Tally:
    """Label and probability loyalty, added up batch by batch while the logits of both models are there.

    ``tally.add`` is what `quality.accuracies` and `quality.perplexities` take as `watch`. Float64 probabilities exist
    for some rows at a time, so that a large vocabulary does no harm.
    """

    def __init__(self, *, base: float = 2.0) -> None:
        self._base = base
        self._same: list[float] = []
        self._close: list[float] = []
        self._counts: list[int] = []

    def add(self, logits: Sequence[Tensor], batch: Mapping[str, Tensor]) -> None:
        """One batch's logits of teacher and student, [B, C] each, or [B, S, C] of tokens.

        Vocabularies that differ by padding rows at their end are compared over the tokens both have.
        Of tokens those count that have a label in the batch's `labels` [B, S] or, where it has none, that are `counted`
        [B, S], or that are no padding by `attention_mask` [B, S].
        """
        teacher, student = logits
        if teacher.dim() == student.dim() == 3:
            width = min(teacher.shape[-1], student.shape[-1])
            teacher, student = teacher[..., :width], student[..., :width]
        _alike(student, teacher)
        counted = _token_masks(student, batch)
        for mine, yours, some in zip(student, teacher, counted, strict=True):
            rows = (mine, yours) if some is None else (mine[some], yours[devices.move(some, yours)])
            mine, yours = (one.reshape(-1, one.shape[-1]) for one in rows)
            if not len(mine):
                continue
            same = close = 0.0
            step = max(1, _ELEMENTS // mine.shape[-1])
            for ours, theirs in zip(mine.split(step), yours.split(step), strict=True):
                theirs = devices.move(theirs, ours)  # which may have been said on another device
                p, q = (functional.softmax(one.double(), -1) for one in (ours, theirs))
                same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
                close += float((1.0 - divergence(p, q, base=self._base).sqrt()).sum())
            self._same.append(same)
            self._close.append(close)
            self._counts.append(len(mine))

    @property
    def seen(self) -> int:
        """How many predictions were added."""
        return sum(self._counts)

    def add_pairs(self, logits: Sequence[Tensor], texts: Tensor) -> None:
        """Logits of teacher and student, [n, C] each, at n places, and the number [n] of the text each stands in.

        For models that read one text with different tokenizers: the places are those that both share.
        """
        for text in texts.unique():
            here = texts == text
            self.add([one[here.to(one.device)][None] for one in logits], {})

    def figures(self) -> dict[str, Figure]:
        """{"label_loyalty", "probability_loyalty"}; of tokens, texts are the sample of the intervals."""
        if not self._counts:
            raise MeasurementError("loyalty on no predictions was asked for: give at least one batch")
        if set(self._counts) == {1}:
            whole = proportion(round(sum(self._same)), len(self._same))
            return {"label_loyalty": whole, "probability_loyalty": mean_interval(self._close)}
        return {
            "label_loyalty": per_item(self._same, self._counts),
            "probability_loyalty": per_item(self._close, self._counts),
        }


def _token_masks(logits: Tensor, batch: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
    """Per sequence which of its tokens count: booleans [S]; None for one prediction per sequence."""
    labels, mask = batch.get("labels"), batch.get("counted", batch.get("attention_mask"))
    if logits.dim() < 3:
        return [None] * len(logits)
    if labels is not None and labels.dim() > 1:
        return list((labels != IGNORE).to(logits.device))
    return [None] * len(logits) if mask is None else list(mask.bool().to(logits.device))


def _alike(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise MeasurementError(
            f"predictions of shape {tuple(student.shape)} and {tuple(teacher.shape)} can't be compared: give both "
            "models the same items and the same classes"
        )


def _probabilities(rows: Tensor) -> Tensor:
    rows = rows.double()
    if not torch.isfinite(rows).all():
        raise NumericalError("a prediction is NaN or infinite: check the models before measuring loyalty")
    if bool((rows < 0).any()) or bool(((rows.sum(-1) - 1.0).abs() > 1e-3).any()):
        raise MeasurementError("probability loyalty needs probabilities that add up to 1: give softmax of the logits")
    return rows
