"""Votes: how often the samples of a target task land on each class, or cluster, of a source data set.

What a cheap surrogate sees in the target tells which parts of a source are worth pre-training on: DP4TL (arXiv
2310.08782). The labels of the target are not asked for.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster import vq
from torch import Tensor

from secateur.errors import DataError, InfeasibleError, InputError
from secateur.score.hooks import finite

__all__ = ["class_means", "feature_votes", "kmeans", "label_votes", "nearest"]

_CHUNK = 2**22
"""Distances that are held at once, in float64: 32 MiB."""


def label_votes(logits: Tensor, classes: int) -> Tensor:
    """Label mapping, [classes] int64: ``s(i) = |{ x in target : argmax_k f(x)_k = i }|``; the votes sum to M.

    logits: [M, classes], what a classifier of the source says of the target's samples, as they are (no augmentation).
    Of equal logits the first wins.

    Source: DP4TL (arXiv 2310.08782), label mapping. Raises `DataError` for an empty target, `InputError` for a
    surrogate of another set of classes, `NumericalError` for NaN.
    """
    if logits.dim() != 2 or logits.shape[1] != classes:
        told = f"logits of shape {list(logits.shape)}"
        raise InputError(f"the surrogate gives {told}, the source has {classes} classes: train it on that source")
    _some(logits, "target")
    return torch.bincount(finite("the surrogate's logits", logits).argmax(1), minlength=classes)


def feature_votes(features: Tensor, centres: Tensor) -> Tensor:
    """Feature mapping, [K] int64: ``s(i) = |{ x in target : i = argmin_k ||g(x) - c_k||_2 }|``; the votes sum to M.

    features: [M, d] of the target's samples, by the surrogate that the centres are from
    centres:  [K, d], `class_means` of the source, or those of `kmeans` where it has no labels

    Source: DP4TL (arXiv 2310.08782), feature mapping. Departure from its code, which stores the distance to each class
    under the number of the sample: the equation is followed. Raises as `label_votes`.
    """
    _some(features, "target")
    return torch.bincount(nearest(features, centres), minlength=len(centres))


def nearest(features: Tensor, centres: Tensor) -> Tensor:
    """[M] int64: ``argmin_k ||g_m - c_k||_2``, the first of equally near ones; centres that hold NaN are passed over.

    features [M, d] and centres [K, d]. Distances are of differences, in float64, so that ties are ties; they are held
    for a part of the samples at a time.
    """
    if features.dim() != 2 or centres.dim() != 2 or features.shape[1] != centres.shape[1]:
        shapes = f"{list(features.shape)} and {list(centres.shape)}"
        raise InputError(f"features and centres of shapes {shapes}: give [M, d] and [K, d] by one surrogate")
    centres = centres.to(features.device)
    nowhere = centres.isnan().any(1)
    if bool(nowhere.all()):
        raise DataError("no class of the source has a centre: give at least one example of one of them")
    centres = centres.double()
    rows = max(1, _CHUNK // len(centres))
    found = [
        torch.cdist(part.double(), centres, compute_mode="donot_use_mm_for_euclid_dist")
        .masked_fill(nowhere, torch.inf)
        .argmin(1)
        for part in finite("the surrogate's features", features).split(rows)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Centres [classes, d] float64: ``c_i``, the mean of the features [N, d] of class i; NaN for a class without any.

    labels: [N] from 0 to classes - 1. Raises `InputError` for others.
    """
    if labels.shape != features.shape[:1]:
        raise InputError(f"{len(features)} features and labels of shape {list(labels.shape)}: give one label for each")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, there are {classes} classes: give 0 to "
            f"{classes - 1}"
        )
    labels = labels.to(features.device)
    total = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device)
    total.index_add_(0, labels, finite("the surrogate's features", features).double())
    return total / torch.bincount(labels, minlength=classes)[:, None]


def kmeans(features: Tensor, clusters: int, *, seed: int = 0, restarts: int = 4) -> tuple[Tensor, Tensor]:
    """K-means: (centres [K, d] float64, cluster [N] int64 of each sample); the best of `restarts` by squared error.

    Each starts from k-means++ and goes on to convergence (Lloyd). Clusters are numbered by their first members; one
    that runs empty is gone, so K may be below `clusters`. The same seed gives the same clusters.

    features: [N, d]. Raises `InfeasibleError` for more clusters than there are different samples.
    """
    _some(features, "source")
    finite("the surrogate's features", features)
    samples = features.detach().cpu().double().numpy()
    different = len(np.unique(samples, axis=0))
    if not 1 <= clusters <= different:
        raise InfeasibleError(
            f"{clusters} clusters of {different} different samples: ask for 1 to {different}", float(different)
        )
    runs = (_move_centres(samples, clusters, np.random.default_rng([seed, run])) for run in range(restarts))
    labels = torch.from_numpy(min(runs, key=lambda run: run[0])[1])
    return class_means(features.cpu(), labels, int(labels.max()) + 1), labels


def _move_centres(samples: np.ndarray, clusters: int, draw: np.random.Generator) -> tuple[float, np.ndarray]:
    """(sum of squared distances to the centres, clusters [N] numbered by their first members) of one start."""
    centres, _ = vq.kmeans(samples, _spread(samples, clusters, draw))
    labels, distances = vq.vq(samples, centres)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return float((distances**2).sum()), np.argsort(np.argsort(first))[inverse]


def _spread(samples: np.ndarray, clusters: int, draw: np.random.Generator) -> np.ndarray:
    """k-means++: each next centre is a sample, drawn by its squared distance to the nearest centre so far.

    Source: Arthur and Vassilvitskii, SODA 2007. Not SciPy's, which measures all centres anew for each one.
    """
    chosen = [int(draw.integers(len(samples)))]
    left = ((samples - samples[chosen[0]]) ** 2).sum(1)
    while len(chosen) < clusters:
        chosen.append(int(draw.choice(len(samples), p=left / left.sum())))
        left = np.minimum(left, ((samples - samples[chosen[-1]]) ** 2).sum(1))
    return samples[chosen]


def _some(rows: Tensor, what: str) -> None:
    if not len(rows):
        raise DataError(f"the {what} is empty: give at least one example of it")
