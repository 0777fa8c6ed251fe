"""Ways to keep what a text teaches and to lose what it primes: parts of its update, beside scaling and slower learning.

"How new data permeates LLM knowledge and how to dilute it" (arXiv 2504.09522), and its baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from torch import Tensor

from secateur._utils.batches import Batch, Batches
from secateur.measure import likelihood, quality
from secateur.measure.priming import Shift, memory, priming
from secateur.methods import updates
from secateur.methods.learning import Document, Episode, Learner
from secateur.methods.updates import Rule, Scope
from secateur.subjects.delta.delta import Delta
from secateur.subjects.delta.tensors import InMemory
from secateur.subjects.transformer.subject import count_positions
from secateur.vocabulary import Training

__all__ = ["CLIP", "KEPT", "RATE", "TRAINED", "Dilution", "Learnt", "Probes", "name_way"]

TRAINED, KEPT, RATE, CLIP = "as trained", "largest 15% kept", "learning rate x", "gradients clipped at"
"""What tables call the update as it is, and its largest entries alone; how trainings of another kind begin."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Natural logarithms of a keyword's probability: in its own text, under the prompts of its theme, of another
    text's keyword under the prompts of that one's theme, and under the prompts behind the text itself."""

    own: float
    prompts: Sequence[float]
    control: Sequence[float]
    in_context: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Learnt:
    """What became of a trial: way of treating the update -> probes afterwards, the loss on general texts, and the
    length of what is left of the update, as it is in the weights' number type."""

    before: Probes
    after: Mapping[str, Probes]
    loss_before: float | None
    loss: Mapping[str, float]
    lengths: Mapping[str, float] = field(default_factory=dict)

    def memory(self, way: str) -> Shift:
        """How much the text is remembered."""
        return memory(self.before.own, self.after[way].own)

    def priming(self, way: str, floor: float) -> Shift | None:
        """How much it primes; None where all prompts are below the floor."""
        return priming(self.before.prompts, self.after[way].prompts, floor=floor)

    def control(self, way: str, floor: float) -> Shift | None:
        """How much another text's keyword is primed."""
        return priming(self.before.control, self.after[way].control, floor=floor)

    def in_context(self, floor: float) -> Shift | None:
        """How much it primes from in front of the prompts, without being learnt."""
        return priming(self.before.prompts, self.before.in_context, floor=floor)


@dataclass(frozen=True)
class Dilution:
    """A model, the prompts of each theme, and how a text is learnt and its update treated.

    stream: seed -> minibatches of ordinary texts, or None; held: others of them, for the general loss; training,
    presentations, spacing, length: see `learning.Episode`; k, scope, when, rates, clips: of the ways, see `learn`.
    """

    learner: Learner
    prompts: Mapping[str, Sequence[str]]
    stream: Callable[[int], Batches | None]
    held: Sequence[Batch]
    training: Training
    presentations: int
    spacing: int
    k: Sequence[float]
    scope: Scope
    when: Literal["end", "step"]
    rates: Sequence[float]
    clips: Sequence[float]
    length: int | None = None

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """ln P(continuation | prompt) of each pair; of a prompt as much as the model has positions for, its end."""
        subject = self.learner.subject
        spans = [span for prompt, word in pairs for span in likelihood.encode(subject.tokenizer, prompt, [word])]
        if (most := count_positions(subject.model)) is not None:
            room = [max(1, most - len(span.continuation)) for span in spans]
            spans = [replace(span, prompt=span.prompt[-left:]) for span, left in zip(spans, room, strict=True)]
        logs = likelihood.span_log_probabilities(partial(subject.forward, head=False), spans)
        return [float(one) for one in logs]

    def scan(self, documents: Sequence[Document]) -> list[float]:
        """ln P(keyword | context) of each text."""
        return self.log_probabilities([(document.context, document.keyword) for document in documents])

    def probe(self, document: Document, other: Document | None, *, in_context: bool = False) -> Probes:
        """The model as it is now; `other` is the text whose keyword is the control, if there is one."""
        prompts = self.prompts.get(document.theme, ())
        others = [] if other is None else [(prompt, other.keyword) for prompt in self.prompts.get(other.theme, ())]
        behind = [f"{document.text.rstrip()} {prompt}" for prompt in prompts] if in_context else []
        pairs = [(document.context, document.keyword)]
        pairs += [(prompt, document.keyword) for prompt in prompts]
        pairs += others
        pairs += [(prompt, document.keyword) for prompt in behind]
        logs = self.log_probabilities(pairs)
        first, second = 1 + len(prompts), 1 + len(prompts) + len(others)
        return Probes(logs[0], logs[1:first], logs[first:second], logs[second:])

    def general_loss(self) -> float | None:
        """Mean loss on held-out texts of the stream, in nats per token; None without a stream."""
        return quality.loss(self.learner.subject.forward, self.held).value if self.held else None

    def learn(
        self, document: Document, other: Document | None, seed: int, *, all_ways: bool = True, beside: str = ""
    ) -> Learnt:
        """Learn a text, and treat the update in all ways, or leave it as it is, be it with another text `beside` it.

        The ways, beside the model as trained: without its largest entries, a share k, in each step or at the end; the
        whole update as long as that; without as many entries at random, or the smallest; its largest 15 % alone, as
        task vectors are trimmed; trained anew with other rates or with gradients clipped.
        """
        before, loss_before = self.probe(document, other, in_context=True), self.general_loss()
        after, losses, lengths = dict[str, Probes](), dict[str, float](), dict[str, float]()
        for way, weights in self._ways(document, seed) if all_ways else self._plainly(document, seed, beside):
            lengths[way] = updates.measure_length(InMemory(self.learner.before), weights)
            self.learner.load(weights)
            try:
                after[way] = self.probe(document, other)
                if (loss := self.general_loss()) is not None:
                    losses[way] = loss
            finally:
                self.learner.restore()
        return Learnt(before, after, loss_before, losses, lengths)

    def _train(
        self,
        document: Document,
        seed: int,
        rule: Rule | None = None,
        training: Training | None = None,
        beside: str = "",
    ) -> Delta:
        steps = 1 + (self.presentations - 1) * (1 + self.spacing)
        training = replace(training or self.training, steps=steps)
        episode = Episode(training, self.spacing, seed, rule, self.length)
        return self.learner.learn(document.text, episode, self.stream(seed), beside)

    def _plainly(self, document: Document, seed: int, beside: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        yield TRAINED, _weights(self._train(document, seed, beside=beside))

    def _ways(self, document: Document, seed: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """(what was done, weights) of the trained model and of all that is compared with it."""
        update = self._train(document, seed)
        yield TRAINED, _weights(update)
        for k in self.k:
            rule = Rule(k, "drop", "largest", self.scope)
            small = update.cut(updates.select(update, rule))[0]
            if self.when == "step":
                small = self._train(document, seed, rule)
            yield name_way("largest", k), _weights(small)
            yield name_way("scaled", k), updates.scale_to(update, small)
            for order in ("random", "smallest"):
                chosen = updates.select(update, replace(rule, order=order, seed=seed))
                yield name_way(order, k), _weights(update.cut(chosen)[0])
        yield KEPT, _weights(update.cut(updates.select(update, Rule(0.15, "keep", "largest", self.scope)))[0])
        lr = self.training.number("lr")
        for rate in self.rates:
            yield (
                name_way("rate", rate),
                _weights(self._train(document, seed, training=replace(self.training, lr=lr * rate))),
            )
        for clip in self.clips:
            yield (
                name_way("clip", clip),
                _weights(self._train(document, seed, training=replace(self.training, clip=clip))),
            )


def name_way(way: str, value: float) -> str:
    """What tables call a way of treating the update."""
    if way == "rate":
        return f"{RATE} {value:g}"
    if way == "clip":
        return f"{CLIP} {value:g}"
    percent = f"{100 * value:g}%"
    return f"scaled to the length without the largest {percent}" if way == "scaled" else f"{way} {percent} dropped"


def _weights(update: Delta) -> dict[str, Tensor]:
    return {name: update.tensor(name) for name in update.before.outlines()}
