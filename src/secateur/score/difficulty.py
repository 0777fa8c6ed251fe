"""Difficulty: how much a training example is worth keeping, from what networks in training predict for it.

Each formula takes what was recorded of N examples and gives float32 [N], higher meaning keep: the published scores keep
what is hard (EL2N, GraNd, forgetting), what is neither hard nor easy (`moderate`) or what stands for its class
(`herding`). One run is chance: `average` takes the mean over several.

    logits    [N, C] of one point in training, usually early
    labels    [N] int64, 0 to C - 1
    features  [N, d], what goes into the last layer
    right     [visits, N] booleans, whether the example was classified rightly at each visit, in order
    inside    [N] booleans, whether the run learned from the example
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.errors import DataError, InputError
from secateur.score.hooks import finite

__all__ = ["NEEDS", "average", "by_name", "el2n", "forgetting", "grand", "herding", "memorisation", "moderate"]


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Float32 [N]: || softmax(z) - onehot(y) ||_2, between 0 for a certain, right prediction and sqrt(2).

    Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021 (arXiv 2107.07075), section 2.
    Raises `DataError` for a label that is no class of the logits.
    """
    error = logits.float().softmax(-1)
    at = _classes(labels, logits.shape[-1])
    error[torch.arange(len(error)), at] -= 1.0
    return finite("EL2N", error.norm(dim=-1))


def grand(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Float32 [N]: || p - y ||_2 sqrt(1 + || h ||_2^2), the norm of the loss's gradient in the last layer.

    The gradient of cross-entropy is (p - y) h^T in the last layer's weight and p - y in its bias, where h are the
    features. Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021 (arXiv 2107.07075),
    definition 2.1, of the last layer alone, as DeepCore (arXiv 2204.08499) has it.
    """
    _alike(len(labels), features=features)
    return finite("GraNd", el2n(logits, labels) * (1.0 + features.float().square().sum(-1)).sqrt())


def forgetting(right: Tensor) -> Tensor:
    """Float32 [N]: sum_t [ right at visit t, wrong at visit t + 1 ]; of an example that was never right, all visits.

    No example can be forgotten at all visits, so that what was never learned stands above all else.
    Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019
    (arXiv 1812.05159), algorithm 1; what was never learned is the hardest there, too.
    """
    if right.dim() != 2 or not len(right):
        raise InputError(f"visits of shape {tuple(right.shape)}: give [visits, N] booleans, at least one visit")
    seen = right.bool()
    events = (seen[:-1] & ~seen[1:]).sum(0).float()
    return torch.where(seen.any(0), events, torch.full_like(events, float(len(seen))))


def memorisation(right: Tensor, inside: Tensor) -> Tensor:
    """Float32 [N]: 2 [ right at the last visit ] if the run learned from the example, -2 [ ... ] if it did not.

    Over runs of which half learned from each example the mean is what memorisation is estimated by,

        mem(i) = P[ right, learned with i ] - P[ right, learned without i ],

    from -1 to 1: high for an example that no other tells about. Source: Feldman and Zhang, "What Neural Networks
    Memorize and Why", NeurIPS 2020 (arXiv 2008.03703), equation 1 and section 2.2; runs there learn from 70 % of the
    examples, here from complementary halves, so that each example is in as many runs as it is out of.
    """
    if right.dim() != 2 or not len(right) or right.shape[1:] != inside.shape:
        raise InputError(
            f"visits of shape {tuple(right.shape)} and inside {tuple(inside.shape)}: give [visits, N], [N]"
        )
    return 2.0 * right[-1].float() * (2.0 * inside.float() - 1.0)


def moderate(features: Tensor, labels: Tensor) -> Tensor:
    """Float32 [N]: 1 - | 2 r - 1 |, r from 0 to 1 the rank of || h - median_c(h) ||_2 within the class c.

    Keeping a share f of a class keeps the band [0.5 - f/2, 0.5 + f/2] of its ranking: neither the typical nor the
    odd. The median is taken of each feature. An example that is alone in its class has the score 1.
    Source: Xia et al., "Moderate Coreset", ICLR 2023, section 3, with the class median as in DP4TL (arXiv 2310.08782).
    """
    _alike(len(labels), features=features)
    result = torch.ones(len(labels))
    for members in _by_class(labels):
        own = features[members].float()
        far = (own - own.median(0).values).norm(dim=-1)
        place = far.argsort(stable=True).argsort(stable=True).float()
        result[members] = 1.0 - (2.0 * place / max(len(members) - 1, 1) - 1.0).abs() if len(members) > 1 else 1.0
    return finite("moderate", result)


def herding(features: Tensor, labels: Tensor) -> Tensor:
    """Float32 [N]: 1 - t / n_c of the example that herding takes at step t = 0, 1, ... of the n_c of its class c.

        x_t = argmax over those not taken of <w_t, h>,     w_{t+1} = w_t + mean_c(h) - h(x_t),     w_0 = mean_c(h)

    so that the mean of the first t stays near the mean of the class. Takes time n_c^2 d for each class.
    Source: Welling, "Herding Dynamical Weights to Learn", ICML 2009; for a set of examples as in iCaRL (arXiv
    1611.07725), algorithm 4, without its normalisation.
    """
    _alike(len(labels), features=features)
    result = torch.zeros(len(labels))
    for members in _by_class(labels):
        own = features[members].float()
        mean = own.mean(0)
        weight, taken = mean.clone(), torch.zeros(len(members), dtype=torch.bool)
        for step in range(len(members)):
            best = int((own @ weight).masked_fill(taken, -torch.inf).argmax())
            taken[best] = True
            weight += mean - own[best]
            result[members[best]] = 1.0 - step / len(members)
    return finite("herding", result)


def average(runs: Sequence[Tensor]) -> Tensor:
    """Float32 [N]: the mean of a score over runs, [N] each. Raises `InputError` for none, or of several lengths."""
    if not runs or any(one.shape != runs[0].shape for one in runs):
        shapes = ", ".join(str(tuple(one.shape)) for one in runs) or "none"
        raise InputError(f"scores of several runs are to be of one shape, and these are {shapes}")
    return torch.stack([one.float() for one in runs]).mean(0)


# ---------------------------------------------------------------------------------------------------------- by name


_FORMULAS: dict[str, Callable[..., Tensor]] = {
    "el2n": el2n,
    "forgetting": forgetting,
    "grand": grand,
    "herding": herding,
    "memorisation": memorisation,
    "moderate": moderate,
}
NEEDS: Mapping[str, tuple[str, ...]] = {
    "el2n": ("logits", "labels"),
    "forgetting": ("right",),
    "grand": ("logits", "labels", "features"),
    "herding": ("features", "labels"),
    "memorisation": ("right", "inside"),
    "moderate": ("features", "labels"),
}
"""Score -> what has to be recorded for it."""


def by_name(name: str, runs: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Float32 [N]: the score `name` of what each run recorded, averaged over the runs.

    Raises `InputError` for a name that is no score; names the nearest.
    """
    if name not in _FORMULAS:
        near = difflib.get_close_matches(name, _FORMULAS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(_FORMULAS)}"
        raise InputError(f"no score of examples is called {name!r}: {hint}")
    return average([_FORMULAS[name](**{part: run[part] for part in NEEDS[name]}) for run in runs])


def _classes(labels: Tensor, count: int) -> Tensor:
    wrong = (labels < 0) | (labels >= count)
    if bool(wrong.any()):
        raise DataError(f"the label {int(labels[wrong][0])} is no class of the logits: they have {count}, from 0")
    return labels.long()


def _alike(count: int, **columns: Tensor) -> None:
    for name, column in columns.items():
        if column.dim() != 2 or len(column) != count:
            raise InputError(f"{name} of shape {tuple(column.shape)} for {count} labels: give [{count}, d]")


def _by_class(labels: Tensor) -> list[Tensor]:
    """The places of each class's examples, rising."""
    return [torch.nonzero(labels == number).squeeze(1) for number in labels.unique()]
