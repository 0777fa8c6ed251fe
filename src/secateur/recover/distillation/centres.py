"""Mean feature of each class over the training set, as the teacher computes it: targets of a student's features."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from secateur._utils import devices, storage
from secateur._utils.modes import evaluating
from secateur.errors import DataError, InputError

__all__ = ["ClassMeans", "collect"]

B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Means [K, D] in float32 and counts [K]; a class of which nothing was seen has count 0 and a mean of zeros."""

    means: Tensor
    counts: Tensor

    def of(self, labels: Tensor) -> Tensor:
        """[B, D]: the mean of each input's class, for labels [B]."""
        return self.means.to(labels.device)[labels]

    def mix(self, labels: Tensor, others: Tensor, share: float | Tensor) -> Tensor:
        """[B, D]: ``share c_y + (1 - share) c_y'``, the centre of an input that mixup or CutMix made of two."""
        share = torch.as_tensor(share, dtype=self.means.dtype, device=labels.device).reshape(-1, 1)
        return share * self.of(labels) + (1 - share) * self.of(others)

    def covers(self, labels: Tensor) -> None:
        """Raises `InputError` where a label has no mean."""
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.means):
            raise InputError(f"labels from {low} to {high}, and means of classes 0 to {len(self.means) - 1}")
        absent = [k for k in labels.unique().tolist() if not self.counts[k]]
        if absent:
            raise InputError(f"class {absent[0]} has no mean: the data that the means are of has no example of it")

    def save(self, path: Path, key: Mapping[str, object]) -> None:
        """Write them as safetensors, with the key (a teacher's fingerprint) that `load` asks for."""
        storage.write(path, {"means": self.means, "counts": self.counts}, json.dumps(dict(key)))

    @classmethod
    def load(cls, path: Path, key: Mapping[str, object]) -> ClassMeans:
        """Read what `save` wrote. Raises `DataError` for a file that is missing, damaged, or of another key."""
        tensors, text = storage.read(path)
        stored = json.loads(text) if text else {}
        for name in sorted(key):
            if stored.get(name) != key[name]:
                raise DataError(
                    f"{path} has the means of another {name} ({stored.get(name)}, now {key[name]}): make them anew"
                )
        if set(tensors) != {"means", "counts"}:
            raise DataError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}: expected means and counts")
        return cls(tensors["means"], tensors["counts"])


def collect(
    model: nn.Module,
    ask: Callable[[B], tuple[Tensor, Tensor]],
    batches: Iterable[B],
    classes: int,
) -> ClassMeans:
    """``c_k = mean over the inputs of class k of f(x)``, in one pass, in evaluation mode and float64.

    ask: batch -> (features [N, D], labels [N]) by a pass of `model`; rows may be proposals of a detector as well, with
    the background as a class of its own. Rows with a label below 0 are left out. Nothing but sums is kept. Raises
    `InputError` for a label of `classes` or more, or where there is no row at all.
    """
    sums: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.int64)
    with evaluating(model), torch.no_grad():
        for batch in batches:
            features, labels = ask(devices.move(batch, model))
            there = labels >= 0
            features, labels = features[there].double().cpu(), labels[there].cpu()
            if len(labels) and int(labels.max()) >= classes:
                raise InputError(f"label {int(labels.max())}: there are {classes} classes, 0 to {classes - 1}")
            if sums is None:
                sums = torch.zeros(classes, features.shape[-1], dtype=torch.float64)
            sums.index_add_(0, labels, features)
            counts += torch.bincount(labels, minlength=classes)
    if sums is None or not int(counts.sum()):
        raise InputError("no input with a class: class means need labelled data")
    return ClassMeans((sums / counts.clamp_min(1)[:, None]).float(), counts)
