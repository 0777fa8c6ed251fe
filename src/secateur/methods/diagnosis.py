"""Which linears matter for what a reasoning model does: behaviours in its answers, directions, gradients, shifts.

Source: "When Reasoning Meets Compression" (arXiv 2504.02010), from annotated spans to importance and its shift.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import NothingFoundError
from secateur.methods.behaviours import INITIALIZING, Tagger, mark
from secateur.score import obs, steering
from secateur.score.steering import Marked
from secateur.subjects import Transformer
from secateur.subjects.matrices import matrices

__all__ = [
    "Answer",
    "Importance",
    "choose_protected",
    "damage_of_rounding",
    "describe_protection",
    "find_modules",
    "importance",
    "mark_answers",
    "rank",
    "shift",
]


class Answer(NamedTuple):
    """A prompt as the model reads it, and what was answered. special: without the tokens that a tokenizer adds."""

    prompt: str
    text: str
    special: bool = True


@dataclass(frozen=True)
class Importance:
    """Behaviour -> module -> mean |u_hat^T g| over its spans, and the same of two baselines.

    random: along a random direction in place of the behaviour's; gradient: ||g|| alone. spans: how many of each.
    """

    scores: Mapping[str, Mapping[str, float]]
    random: Mapping[str, Mapping[str, float]]
    gradient: Mapping[str, Mapping[str, float]]
    spans: Mapping[str, int]

    @property
    def shares(self) -> dict[str, dict[str, float]]:
        """Behaviour -> module -> its share of the sum over all modules."""
        return {behaviour: steering.relative(own) for behaviour, own in self.scores.items()}


def find_modules(subject: Transformer) -> dict[str, int]:
    """Path of each linear of the blocks -> its weights; packed experts, which are no module, are left out."""
    found: dict[str, int] = {}
    for matrix in matrices(subject.model, subject.layers()).values():
        if matrix.expert is None:
            found[matrix.module] = matrix.weight.numel()
    return found


def mark_answers(
    subject: Transformer, answers: Sequence[Answer], tag: Tagger, *, spans: int = 60, most: int = 0
) -> list[Marked]:
    """Answers as tokens with the spans of their behaviours, as many of each behaviour as of the others, `spans` in all.

    How an answer begins (initializing) is not looked at. most: tokens of a text; 0 for all. Raises
    `NothingFoundError` where nothing is found.
    """
    texts = [
        mark(subject.tokenizer, one.prompt, one.text, tag(one.text), most=most, special=one.special) for one in answers
    ]
    names = sorted({name for text in texts for name in text.spans} - {INITIALIZING})
    if not names:
        raise NothingFoundError(
            f"no behaviour is found in {len(answers)} answers: give longer ones, or rules for their words"
        )
    each = max(1, spans // len(names))
    left = dict.fromkeys(names, each)
    found = list[Marked]()
    for text in texts:
        kept: dict[str, Sequence[tuple[int, int]]] = {}
        for name in names:
            own = text.spans.get(name, ())[: left[name]]
            left[name] -= len(own)
            if own:
                kept[name] = own
        found.append(Marked(text.tokens, kept))
    return found


def importance(
    subject: Transformer, texts: Sequence[Marked], modules: Sequence[str], tick: Callable[[int], object] = int
) -> Importance:
    """I of each module for each behaviour: mean over its spans of |u_hat^T g|, see `score.steering`.

    One forward pass for each text, and one with its backward pass for each span.
    """
    vectors = steering.steering_vectors(subject.forward, subject.model, modules, texts)
    drawn = steering.random_vectors(vectors)
    kinds = ("scores", "random", "gradient")
    sums: dict[str, dict[str, dict[str, float]]] = {
        kind: {behaviour: dict.fromkeys(modules, 0.0) for behaviour in vectors} for kind in kinds
    }
    counts = dict.fromkeys(vectors, 0)
    for text in texts:
        for behaviour, gradients in steering.span_gradients(subject.forward, subject.model, modules, text):
            counts[behaviour] += 1
            for module, gradient in gradients.items():
                values = (
                    float((vectors[behaviour][module] @ gradient).abs()),
                    float((drawn[behaviour][module] @ gradient).abs()),
                    float(gradient.norm()),
                )
                for kind, value in zip(kinds, values, strict=True):
                    sums[kind][behaviour][module] += value
            tick(1)
    means = {
        kind: {b: {m: value / max(1, counts[b]) for m, value in own.items()} for b, own in found.items()}
        for kind, found in sums.items()
    }
    return Importance(means["scores"], means["random"], means["gradient"], counts)


def rank(importance: Importance) -> dict[str, float]:
    """Module -> its mean share over behaviours, the most important one first."""
    shares = list(importance.shares.values())
    found = {module: mean(one[module] for one in shares) for module in shares[0]}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def shift(compressed: Importance, original: Importance) -> dict[str, dict[str, float]]:
    """Behaviour -> module -> its share in the compressed model minus that in the original: both signs; sums to 0."""
    ours, theirs = compressed.shares, original.shares
    return {
        behaviour: {module: ours[behaviour][module] - share for module, share in theirs[behaviour].items()}
        for behaviour in theirs
        if behaviour in ours
    }


def choose_protected(ranked: Mapping[str, float], sizes: Mapping[str, int], share: float) -> list[str]:
    """The modules to protect: the most important ones that fit into `share` of all weights, at least one.

    What does not fit is passed over for smaller ones behind it. Source: about 2 % in arXiv 2504.02010.
    """
    room, found = share * sum(sizes.values()), list[str]()
    for module in sorted(ranked, key=lambda one: -ranked[one]):
        if sizes[module] <= room or not found:
            found.append(module)
            room -= sizes[module]
    return found


def describe_protection(chosen: Sequence[str], ranked: Mapping[str, float]) -> str:
    """protect.json: the modules, and how important each one of the model is."""
    return json.dumps({"protect": list(chosen), "importance": dict(ranked)}, indent=1)


# ----------------------------------------------------------------------------------------------------------- validation


@torch.no_grad()
def damage_of_rounding(
    subject: Transformer, texts: Sequence[Marked], modules: Sequence[str], *, bits: int = 3, group: int = 0
) -> dict[str, float]:
    """Module -> by how much the loss of the marked spans rises where it alone is rounded to nearest.

    The model is as before when it returns. Source: single-matrix quantisation of arXiv 2504.02010; its loss stands in
    for answers anew, which would take one generation for each module.
    """
    owners = {m.module: m for m in matrices(subject.model, subject.layers()).values() if m.expert is None}
    before, found = _loss(subject, texts), {}
    for module in modules:
        weight = owners[module].weight
        kept = weight.clone()
        try:
            weight.copy_(obs.round_to_nearest(weight, bits, group))
            found[module] = _loss(subject, texts) - before
        finally:
            weight.copy_(kept)
    return found


def _loss(subject: Transformer, texts: Sequence[Marked]) -> float:
    """Mean cross-entropy of the tokens of all spans."""
    total, count = 0.0, 0
    for text in texts:
        places = sorted({at for own in text.spans.values() for first, last in own for at in range(max(1, first), last)})
        if not places:
            continue
        batch = {"input_ids": text.tokens[None], "attention_mask": torch.ones_like(text.tokens)[None]}
        logits: Tensor = subject.forward(batch).prediction[0]
        at = torch.tensor(places)
        targets = text.tokens[at].to(logits.device)
        total += float(functional.cross_entropy(logits[(at - 1).to(logits.device)].float(), targets, reduction="sum"))
        count += len(places)
    return total / max(1, count)
