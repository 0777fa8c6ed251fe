"""Several teachers as one: averaged predictions, the best teacher per sample, or joined caches.

Each of these is what `objectives.distil` takes where it takes one teacher: a `Forward`, or answers of a cache beside
the batches (`teachers.Joined`). A teacher of weight 0 is never asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur.errors import DataError, InputError, UnsupportedError
from secateur.recover.distillation import losses
from secateur.recover.distillation.teachers import TopK
from secateur.recover.training.objectives import Forward, mask_of, targets_of

__all__ = ["Averaged", "Blended", "Chosen", "Mixture", "add_weighted", "average_logits", "shares"]

_CHUNK = 2**22
"""Elements of a float32 piece of logits."""


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of `count` teachers, scaled to add up to 1; equal ones if None.

    Raises `InputError` for a number of weights that is not `count`, or ones that are negative, not finite or all 0.
    """
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if not count or len(given) != count:
        raise InputError(f"{len(given)} weights for {count} teachers: give one for each, and at least one teacher")
    total = sum(given)
    if not all(weight >= 0 for weight in given) or not 0 < total < math.inf:
        raise InputError(
            f"weights of teachers {', '.join(f'{w:g}' for w in given)}: give numbers of at least 0, one above"
        )
    return [weight / total for weight in given]


def add_weighted(log_p: Tensor, log_q: Tensor | None, weight: float) -> Tensor:
    """``log(q + w p)`` from log p and log q, elementwise: one more teacher of a weighted mean of probabilities."""
    part = log_p + math.log(weight)
    return part if log_q is None else torch.logaddexp(log_q, part)


@dataclass
class _Answer:
    """What the teachers gave together; see `objectives.Prediction`."""

    prediction: Tensor
    causal: bool
    hidden: tuple[Tensor, ...] = ()
    head: Any = None
    softcap: float | None = None


class Averaged:
    """The weighted mean of the teachers' softened predictions, as one teacher.

    ``p = sum_k w_k softmax(z_k / T)``, told as the logits ``T log p``, so that a loss at the same temperature T meets
    exactly p, whatever its direction. Source: Hinton et al. 2015 (arXiv 1503.02531), section 2: the soft targets of an
    ensemble are the mean of its members'.

    Args:
        teachers: models that give logits [B, S, V] or [B, C].
        weights: of each; scaled to add up to 1, equal if None. With all weight on one, that one answers as it is.
        temperature: of the loss that follows.
        vocabulary: columns to use, where the teachers differ by padding rows (see `teachers.check_vocabularies`).

    Memory: one teacher is asked after the other. Asked with their heads left out, as a `fused` objective does, no
    matrix of logits is ever whole; else the mean is one float32 matrix, beside the logits of one teacher at a time.

    The call raises `InputError` for teachers of other numbers of classes, `UnsupportedError` where hidden states are
    wanted, since they lie in spaces of their own and have no mean, or where teachers tell one number each.
    """

    def __init__(
        self,
        teachers: Sequence[Forward],
        weights: Sequence[float] | None = None,
        *,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature={temperature}: give a number above 0")
        found = zip(teachers, shares(weights, len(teachers)), strict=True)
        self.members = [(teacher, weight) for teacher, weight in found if weight > 0]
        self.temperature, self.vocabulary = temperature, vocabulary

    def __call__(self, batch: Batch, *, hidden: bool = False, head: bool = True) -> Any:
        """What the teachers say of `batch`: logits, or without `head` the states and the `Mixture` of their heads."""
        how: dict[str, bool] = {"hidden": hidden} if head else {"hidden": hidden, "head": False}
        if len(self.members) == 1:
            return self.members[0][0](batch, **how)
        if hidden:
            raise UnsupportedError("hidden states of several teachers have no mean: give one teacher, or predictions")
        return self._logits(batch) if head else self._states(batch)

    def _logits(self, batch: Batch) -> _Answer:
        mixed: Tensor | None = None
        causal = False
        for teacher, weight in self.members:
            answer = teacher(batch)
            logits, causal = answer.prediction[..., : self.vocabulary], answer.causal
            if mixed is not None and mixed.shape != logits.shape:
                raise InputError(
                    f"the teachers give predictions of {list(mixed.shape)} and {list(logits.shape)}: use teachers of "
                    "the same classes, or vocabulary= where only padding differs"
                )
            if logits.shape[-1] == 1:
                raise UnsupportedError("one number each has no mean of probabilities: give one teacher")
            mixed = _into(mixed, logits, weight, self.temperature)
        assert mixed is not None
        return _Answer(mixed.mul_(self.temperature), causal)

    def _states(self, batch: Batch) -> _Answer:
        answers: list[Any] = [teacher(batch, head=False) for teacher, _ in self.members]  # type: ignore[call-arg]
        if any(getattr(answer, "head", None) is None for answer in answers):
            return self._logits(batch)  # one that is split or sharded goes through its head itself
        head = Mixture(
            [answer.head for answer in answers],
            [answer.softcap for answer in answers],
            [answer.prediction.shape[-1] for answer in answers],
            [weight for _, weight in self.members],
            self.temperature,
            self.vocabulary,
        )
        wide = torch.float32 if len({answer.prediction.dtype for answer in answers}) > 1 else None
        home = answers[0].prediction.device  # teachers may lie on several
        states = torch.cat([answer.prediction.to(home, wide or answer.prediction.dtype) for answer in answers], -1)
        return _Answer(states, True, head=head)


def average_logits(predictions: Sequence[Tensor], weights: Sequence[float], *, temperature: float = 1.0) -> Tensor:
    """`Averaged` of teachers that have answered: logits [..., V] each, of which the columns that all have count."""
    width = min(logits.shape[-1] for logits in predictions)

    def make_answer(logits: Tensor) -> Callable[..., _Answer]:
        return lambda batch, **options: _Answer(logits, causal=False)

    ready = [make_answer(logits) for logits in predictions]
    mixed: Tensor = Averaged(ready, weights, temperature=temperature, vocabulary=width)({}).prediction
    return mixed


def _into(mixed: Tensor | None, logits: Tensor, weight: float, temperature: float) -> Tensor:
    """Add one teacher to the mean of those before: float32 [..., V] of log p, in pieces of rows."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    first = mixed is None
    mixed = torch.empty(logits.shape, dtype=wide, device=logits.device) if mixed is None else mixed
    ours, theirs = mixed.view(-1, mixed.shape[-1]), logits.reshape(-1, logits.shape[-1])
    rows = max(1, _CHUNK // theirs.shape[-1])
    for start in range(0, len(theirs), rows):
        span = slice(start, start + rows)
        log_p = functional.log_softmax(theirs[span].to(ours) / temperature, -1)
        ours[span] = add_weighted(log_p, None if first else ours[span], weight)
    return mixed


class Mixture:
    """The heads of several teachers as one: states [n, d_1 + ... + d_K] -> logits [n, V] of their mean prediction."""

    def __init__(
        self,
        heads: Sequence[Any],
        softcaps: Sequence[float | None],
        widths: Sequence[int],
        weights: Sequence[float],
        temperature: float,
        vocabulary: int | None,
    ) -> None:
        sizes = sorted({min(len(head.weight), vocabulary or len(head.weight)) for head in heads})
        if len(sizes) > 1:
            raise InputError(
                f"the teachers give logits of {sizes[0]} and {sizes[-1]} tokens: use vocabulary={sizes[0]} where only "
                "padding differs"
            )
        self.parts = list(zip(heads, softcaps, weights, strict=True))
        self.widths, self.temperature, self.out_features = list(widths), temperature, sizes[0]

    def __call__(self, states: Tensor) -> Tensor:
        """``T log sum_k w_k softmax(head_k(states_k) / T)`` of a few rows, in float32."""
        mixed: Tensor | None = None
        for part, (head, softcap, weight) in zip(states.split(self.widths, -1), self.parts, strict=True):
            logits = devices.move(head(part.to(head.weight))[..., : self.out_features], states)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
            mixed = add_weighted(functional.log_softmax(logits / self.temperature, -1), mixed, weight)
        assert mixed is not None
        return mixed.mul_(self.temperature)


class Chosen:
    """The teacher that knows a sample best answers for it: per row of the batch, one of several.

    by="label": the one of the lowest mean cross-entropy on the sample's labels (classes [B], tokens [B, S], or the next
    tokens of a causal model); by="confidence": the one of the highest mean log-probability of its own likeliest class.
    The hard limit of the per-sample weights of CA-MKD (arXiv 2201.00007), eq. 3, which fall with that cross-entropy.
    Ties go to the teacher named first. Two matrices of logits exist at a time. vocabulary: columns to use, as of
    `Averaged`.

    The call raises `InputError` where labels are needed and not there, or the teachers' predictions differ in shape,
    `UnsupportedError` where hidden states are wanted, or heads are to be left out.
    """

    def __init__(
        self,
        teachers: Sequence[Forward],
        by: Literal["label", "confidence"] = "label",
        *,
        vocabulary: int | None = None,
    ) -> None:
        if by not in ("label", "confidence"):
            raise InputError(f"teachers can't be chosen by {by!r}: give 'label' or 'confidence'")
        if not teachers:
            raise InputError("no teacher was given: give at least one")
        self.teachers, self.by, self.vocabulary = list(teachers), by, vocabulary

    def __call__(self, batch: Batch, *, hidden: bool = False, head: bool = True) -> Any:
        """The chosen predictions [B, S, V] or [B, C]."""
        if hidden or not head:
            raise UnsupportedError("teachers chosen per sample give predictions only: no hidden states, and not fused")
        rate = _fit if self.by == "label" else _confidence
        best: Tensor | None = None
        found: Any = None
        for teacher in self.teachers:
            answer = teacher(batch)
            logits = answer.prediction[..., : self.vocabulary]
            if found is not None:  # teachers may lie on several devices
                logits = devices.move(logits, found.prediction)
            ratings = rate(logits, batch, answer.causal)
            if best is None:
                found, best = _Answer(logits, answer.causal), ratings
                continue
            if found.prediction.shape != logits.shape:
                raise InputError(
                    f"the teachers give predictions of {list(found.prediction.shape)} and {list(logits.shape)}: use "
                    "teachers of the same classes, or vocabulary= where only padding differs"
                )
            better = (ratings > best).view(-1, *[1] * (logits.dim() - 1))
            found.prediction = torch.where(better, logits, found.prediction)
            best = torch.maximum(best, ratings)
        return found


def _fit(prediction: Tensor, batch: Batch, causal: bool) -> Tensor:
    """[B]: minus the mean cross-entropy of each sample's labels; 0 where it has none."""
    if causal:
        labels = targets_of(batch)
    elif "labels" in batch:
        labels = batch["labels"]
    else:
        raise InputError("teachers are chosen by labels, and these batches have none: choose by confidence")
    if labels.shape != prediction.shape[:-1]:
        raise InputError(
            f"labels {list(labels.shape)} for predictions {list(prediction.shape)}: give labels "
            f"{list(prediction.shape[:-1])}, {losses.IGNORED} where there is none, or choose by confidence"
        )
    if labels.device.type == "cpu":  # a GPU would have to be waited for
        losses.check_classes(labels, prediction.shape[-1])
    labels = labels.to(prediction.device)
    rows = [_per_token(losses.cross_entropy, logits, row) for logits, row in zip(prediction, labels, strict=True)]
    return -torch.stack(rows)


def _per_token(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    count = (labels != losses.IGNORED).sum().clamp(min=1)
    return loss(logits.view(-1, logits.shape[-1]), labels.reshape(-1)) / count


def _confidence(prediction: Tensor, batch: Batch, causal: bool) -> Tensor:
    """[B]: the log-probability of the likeliest class, a mean over each sample's real tokens."""
    rows = torch.stack([_surest(logits) for logits in prediction])
    if rows.dim() == 1:
        return rows
    mask = mask_of(batch).to(rows.device)
    return torch.where(mask, rows, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _surest(logits: Tensor) -> Tensor:
    """``max_v log p_v`` of one sample, [S, V] -> [S] or [C] -> a scalar."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.amax(-1) - logits.logsumexp(-1)


class Blended:
    """The weighted mean of several teachers' caches of likeliest tokens: `cache[i]` as of a `teachers.TopK`.

    A token's probability is ``sum_k w_k p_k`` over the teachers that kept it, the remaining mass ``sum_k w_k r_k``. A
    teacher that did not keep a token says nothing of it, so what it would have given stays in the remaining mass: with
    equal sets of tokens this is the exact mean, and otherwise the named tokens get at most r_k of teacher k too little.

    A row has as many columns as all caches together; where teachers named the same token, it stands there again with
    probability 0, which `losses.topk_kl` passes over. Raises `InputError` for caches of different temperatures;
    reading raises `DataError` where they do not hold the same tokens of a batch.
    """

    def __init__(self, caches: Sequence[TopK], weights: Sequence[float] | None = None) -> None:
        found = zip(caches, shares(weights, len(caches)), strict=True)
        self.members = [(cache, weight) for cache, weight in found if weight > 0]
        made = sorted({cache.temperature for cache, _ in self.members})
        if len(made) > 1:
            raise InputError(
                f"caches of the temperatures {made[0]:g} and {made[-1]:g} have no mean: make them with the same"
            )

    def __len__(self) -> int:
        return min(len(cache) for cache, _ in self.members)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if len(self.members) == 1:
            return self.members[0][0][index]
        entries = [(cache[index], weight) for cache, weight in self.members]
        if len({cache.order(index) for cache, _ in self.members}) > 1:
            raise DataError(f"the caches are of different tokens in batch {index}: make them from the same batches")
        log_p = torch.cat([entry["log_probabilities"] + math.log(weight) for entry, weight in entries], -1)
        rest = torch.stack([entry["remaining"] + math.log(weight) for entry, weight in entries], -1).logsumexp(-1)
        indices, order = torch.cat([entry["indices"] for entry, _ in entries], -1).sort(dim=-1, stable=True)
        return {
            "log_probabilities": _merge_equal(log_p.gather(-1, order), indices),
            "indices": indices,
            "remaining": rest,
        }


def _merge_equal(log_p: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities [n, K] of sorted `indices`, equal ones added up in the first of them, -inf in the others."""
    again = functional.pad(indices[:, 1:] == indices[:, :-1], (1, 0))
    slot = (~again).long().cumsum(-1) - 1  # the how-manieth distinct token each column holds
    first = torch.full_like(log_p, -math.inf)
    total = torch.zeros_like(log_p).scatter_add_(-1, slot, log_p.exp()).log().gather(-1, slot)
    return torch.where(again, first, total)
