"""Quality: perplexity, accuracy, and how close a student's embeddings are to its teacher's.

`forward` is any callable from a batch to logits, or to an object with `.logits` or `.prediction`. Sums run in float64
over all batches, so that the result does not depend on how the data was cut into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from secateur._utils.batches import Batch
from secateur.errors import DataError, MeasurementError, NumericalError
from secateur.measure.statistics import fisher, mean_interval, per_item, proportion
from secateur.vocabulary import Figure

__all__ = [
    "accuracies",
    "accuracy",
    "classification",
    "classifications",
    "fidelity",
    "loss",
    "perplexities",
    "perplexity",
    "read_logits",
]

Forward = Callable[[Any], Any]
Watch = Callable[[Sequence[Tensor], Batch], None]
"""What sees the logits of several models for one batch, while they are there."""

IGNORE = -100
"""Label of a token that does not count, as in transformers."""


def read_logits(output: object) -> Tensor:
    """What a forward pass predicts: `.prediction`, `.logits` or the tensor itself. Raises `DataError` for others."""
    for name in ("prediction", "logits"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, Tensor):
        return output
    raise DataError(
        f"forward returned {type(output).__name__}: expected logits, or an object with .logits or .prediction"
    )


def loss(forward: Forward, batches: Iterable[Batch], *, confidence: float = 0.95, chunk: int = 1024) -> Figure:
    """Mean cross-entropy of the next token, in nats per token: sum over tokens of -log p(token) / number of tokens.

    batch: input_ids [B, S]; attention_mask [B, S], where 0 is padding, neither predicted nor predicted from; labels
    [B, S] with -100 for what does not count, else input_ids; counted [B, S], if there, which positions predict a token
    that counts. forward(batch): logits [B, S, V], which predict at
    position s the token s + 1. Float32 probabilities exist for `chunk` tokens at a time.

    The interval treats sequences as the sample, since tokens of one text are not independent (`statistics.per_item`).
    """
    return _losses([forward], batches, chunk, confidence, None)[0]


def perplexity(forward: Forward, batches: Iterable[Batch], *, confidence: float = 0.95, chunk: int = 1024) -> Figure:
    """exp of the mean `loss` per token: token-weighted, padding excluded; infinity where the loss passes 709 nats."""
    return perplexities([forward], batches, confidence=confidence, chunk=chunk)[0]


def perplexities(
    forwards: Sequence[Forward],
    batches: Iterable[Batch],
    *,
    watch: Watch | None = None,
    confidence: float = 0.95,
    chunk: int = 1024,
) -> list[Figure]:
    """The `perplexity` of several models on the same batches, one forward pass of each; `watch` sees their logits."""

    return [_perplexity(mean) for mean in _losses(forwards, batches, chunk, confidence, watch)]


def _perplexity(mean: Figure) -> Figure:
    low, high = (None if bound is None else _exp(bound) for bound in (mean.low, mean.high))
    return Figure(_exp(mean.value), low, high, "", mean.samples)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf


def _losses(
    forwards: Sequence[Forward], batches: Iterable[Batch], chunk: int, confidence: float, watch: Watch | None
) -> list[Figure]:
    """`loss` of each model, batch by batch."""
    sums: list[list[float]] = [[] for _ in forwards]
    counts: list[list[float]] = [[] for _ in forwards]
    with torch.inference_mode():
        for index, batch in enumerate(batches):
            found = [read_logits(forward(batch)) for forward in forwards]
            for logits, total, count in zip(found, sums, counts, strict=True):
                of_texts, tokens = _sequence_losses(logits, batch, chunk)
                if not torch.isfinite(of_texts).all():
                    raise NumericalError(
                        f"the loss of held-out batch {index} is not finite: the model gives NaN or infinity"
                    )
                total += of_texts[tokens > 0].tolist()
                count += tokens[tokens > 0].tolist()
            if watch is not None:
                watch(found, batch)
    if not counts or not counts[0]:
        raise DataError("no token to predict in the held-out batches: give texts of at least two tokens")
    return [
        per_item(total, count, confidence=confidence, unit="nats/token")
        for total, count in zip(sums, counts, strict=True)
    ]


def _sequence_losses(logits: Tensor, batch: Batch, chunk: int) -> tuple[Tensor, Tensor]:
    """Per sequence [B]: the sum of its losses, float64, and how many tokens it has."""
    targets = _targets(batch).to(logits.device)
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=logits.device)
    rows, places = torch.nonzero(targets != IGNORE, as_tuple=True)
    for at in range(0, len(rows), chunk):
        r, s = rows[at : at + chunk], places[at : at + chunk]
        losses[r, s] = functional.cross_entropy(logits[r, s].float(), targets[r, s], reduction="none").double()
    return losses.sum(-1), (targets != IGNORE).sum(-1)


def _targets(batch: Batch) -> Tensor:
    """The token that each position predicts, [B, S]; IGNORE where it is padding, unlabelled, or beyond the end."""
    labels = batch["labels"] if "labels" in batch else batch["input_ids"]
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        targets[:, :-1][~(mask[:, 1:] & mask[:, :-1])] = IGNORE
    if "counted" in batch:
        targets[~batch["counted"]] = IGNORE
    return targets


def classification(forward: Forward, batches: Iterable[Batch], *, confidence: float = 0.95) -> dict[str, Figure]:
    """Accuracy (with Wilson's interval), macro F1 and loss of a classifier.

    batch: labels [B], or [B, S] of tokens, integers, -100 for what does not count; forward(batch): logits [B, C] or
    [B, S, C]. F1 of a class is 2 TP / (2 TP + FP + FN); the macro mean runs over the classes that occur among the
    labels or the predictions.
    """
    return classifications([forward], batches, confidence=confidence)[0]


def classifications(
    forwards: Sequence[Forward], batches: Iterable[Batch], *, watch: Watch | None = None, confidence: float = 0.95
) -> list[dict[str, Figure]]:
    """The `classification` of several models on the same batches, one pass of each; `watch` sees their logits."""
    predicted: list[list[Tensor]] = [[] for _ in forwards]
    losses: list[list[float]] = [[] for _ in forwards]
    true: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            if "labels" not in batch:
                raise DataError("a classification batch has no labels: give data with a label column")
            labels = batch["labels"].reshape(-1)
            counted = labels != IGNORE
            true.append(labels[counted].cpu())
            found = [read_logits(forward(batch)) for forward in forwards]
            for logits, seen, costs in zip(found, predicted, losses, strict=True):
                if logits.shape[:-1].numel() != len(labels):
                    raise DataError(
                        f"logits of shape {tuple(logits.shape)} do not fit {len(labels)} labels: expected [B, C]"
                    )
                rows = logits.reshape(len(labels), -1)[counted.to(logits.device)].float()
                costs += functional.cross_entropy(rows, true[-1].to(rows.device), reduction="none").tolist()
                seen.append(rows.argmax(-1).cpu())
            if watch is not None:
                watch(found, batch)
    return [
        _classification_figures(seen, true, costs, confidence) for seen, costs in zip(predicted, losses, strict=True)
    ]


def _classification_figures(
    predicted: Sequence[Tensor], true: Sequence[Tensor], losses: Sequence[float], confidence: float
) -> dict[str, Figure]:
    if not losses:
        raise DataError("no held-out batches to classify: give at least one")
    if not np.isfinite(losses).all():
        raise NumericalError("the classifier's loss is not finite: the model gives NaN or infinity")
    p, t = torch.cat(list(predicted)), torch.cat(list(true))
    classes = torch.unique(torch.cat([p, t]))
    f1 = [2.0 * int(((p == c) & (t == c)).sum()) / (int((p == c).sum()) + int((t == c).sum())) for c in classes]
    return {
        "accuracy": proportion(int((p == t).sum()), len(t), confidence=confidence),
        "f1": Figure(float(np.mean(f1)), samples=len(t)),
        "loss": mean_interval(losses, confidence=confidence, unit="nats"),
    }


def accuracy(forward: Forward, batches: Iterable[Batch], *, confidence: float = 0.95) -> Figure:
    """Share of the labels that the largest logit hits, with Wilson's interval."""
    return accuracies([forward], batches, confidence=confidence)[0]


def accuracies(
    forwards: Sequence[Forward], batches: Iterable[Batch], *, watch: Watch | None = None, confidence: float = 0.95
) -> list[Figure]:
    """The `accuracy` of several models on the same batches, one forward pass of each; `watch` sees their logits."""
    found = classifications(forwards, batches, watch=watch, confidence=confidence)
    return [one["accuracy"] for one in found]


def fidelity(
    teacher: Tensor, student: Tensor, *, confidence: float = 0.95, most: int | None = 5000
) -> dict[str, Figure]:
    """How well a student's sentence embeddings keep the teacher's: rank of similarities, and direction.

    teacher [n, d_t], student [n, d_s]: embeddings of the same n sentences.

    "spearman": Spearman's correlation between the n (n - 1) / 2 pairwise cosine similarities of the teacher and those
    of the student. Pairs that share a sentence are not independent, so the interval is the delete-one-sentence
    jackknife of atanh(rho), var = (n - 1) / n sum_i (z_i - mean z)^2, with ranks of the whole sample kept. Float64
    ranks of all pairs exist once per side: 0.2 GB at 5,000 sentences. Above `most`, evenly spaced sentences are taken.
    "cosine": mean cosine between paired embeddings, where the widths are equal.

    Source of the jackknife: B. Efron and C. Stein, The jackknife estimate of variance, Annals of Statistics 9 (1981).
    """
    if teacher.dim() != 2 or student.dim() != 2 or len(teacher) != len(student) or len(teacher) < 4:
        shapes = f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        raise MeasurementError(f"embeddings of shape {shapes} were given: expected [n, d] of the same n >= 4 sentences")
    teacher, student = (functional.normalize(_finite(e).detach().float().cpu(), dim=-1) for e in (teacher, student))
    result: dict[str, Figure] = {}
    if teacher.shape == student.shape:
        cosines = (teacher * student).sum(-1).double().numpy()
        result["cosine"] = mean_interval(cosines, confidence=confidence)
    if most is not None and len(teacher) > most:
        chosen = torch.linspace(0, len(teacher) - 1, most).round().long()
        teacher, student = teacher[chosen], student[chosen]
    rho, error = _jackknife(_ranks(teacher), _ranks(student), len(teacher))
    return {"spearman": fisher(rho, error, len(teacher), confidence=confidence), **result}


def _finite(embeddings: Tensor) -> Tensor:
    if not torch.isfinite(embeddings).all():
        raise NumericalError("an embedding is NaN or infinite: check the model before measuring its fidelity")
    return embeddings


def _ranks(unit: Tensor) -> np.ndarray:
    """Centred ranks [n (n - 1) / 2] of the cosine similarities above the diagonal, row by row."""
    n = len(unit)
    similarities = np.empty(n * (n - 1) // 2, dtype=np.float32)
    for row, part in _rows(n):
        similarities[part] = (unit[row + 1 :] @ unit[row]).numpy()
    if np.ptp(similarities) < 1e-5:  # what rounding leaves of equal values would be ranked as if it meant something
        raise MeasurementError("all pairwise similarities are equal: the embeddings have collapsed to one point")
    ranks: np.ndarray = stats.rankdata(similarities)
    ranks -= ranks.mean()
    return ranks


def _rows(n: int) -> Iterator[tuple[int, slice]]:
    start = 0
    for row in range(n - 1):
        yield row, slice(start, start + n - 1 - row)
        start += n - 1 - row


def _jackknife(x: np.ndarray, y: np.ndarray, n: int) -> tuple[float, float]:
    """Pearson's correlation of all pairs, and the jackknife error of its atanh when each sentence is left out once."""
    sums = np.zeros((5, n))  # of x, y, x^2, y^2, x y over the pairs that hold each sentence
    for row, part in _rows(n):
        a, b = x[part], y[part]
        for k, values in enumerate((a, b, a * a, b * b, a * b)):
            sums[k, row] += values.sum()
            sums[k, row + 1 :] += values
    whole = sums.sum(1, keepdims=True) / 2.0  # each pair stands in two sentences

    def correlation(s: np.ndarray, pairs: float) -> np.ndarray:
        covariance = s[4] - s[0] * s[1] / pairs
        spread = np.sqrt(np.maximum((s[2] - s[0] ** 2 / pairs) * (s[3] - s[1] ** 2 / pairs), 1e-300))
        return np.asarray(np.clip(covariance / spread, -1.0, 1.0))

    rho = float(correlation(whole, len(x))[0])
    left = correlation(whole - sums, len(x) - (n - 1.0))
    z = np.arctanh(np.clip(left, -1 + 1e-12, 1 - 1e-12))
    return rho, math.sqrt((n - 1.0) / n * float(((z - z.mean()) ** 2).sum()))
