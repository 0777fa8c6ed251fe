"""The feature before the logits, of a classifier or of a detector's regions, seen in student and teacher at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating
from secateur.data.examples import Examples
from secateur.errors import InputError
from secateur.recover.distillation import maps, review, taps
from secateur.recover.training import objectives
from secateur.recover.training.mixing import Mix
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced

__all__ = ["Classifier", "Detector", "Pass", "View", "logit_layers"]

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass of a network gives of N inputs, or of N regions in them."""

    features: Tensor
    """[N, D]"""
    logits: Tensor
    """[N, K]"""
    maps: list[Tensor]
    """[B, C, H, W] of each stage."""
    heads: tuple[Tensor, ...] = ()
    """Of two heads whose mean the logits are: those of its class head, and of its distillation head."""
    loss: Tensor | None = None
    """A detector's own, per image."""


@dataclass(frozen=True, eq=False)
class View:
    """Student and teacher on one batch. Labels of a mixed input count `share`, those it was mixed with the rest."""

    student: Pass
    teacher: Pass
    labels: Tensor
    others: Tensor
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier with the places of its feature and of its maps.

    Of two heads, of classes and of distillation, the feature is the mean of what they read, or what was asked for.
    """

    subject: Traced
    places: Sequence[str]
    readers: Sequence[str]
    """The linear layers that give the logits; none where no such layers do."""
    width: int
    classes: int
    stages: Sequence[str] = ()
    shapes: Sequence[Shape] = ()

    @classmethod
    def of(cls, subject: Traced, feature: str = "", staged: bool = False) -> Classifier:
        """At the module that fits `feature`, or at what the classifier reads. Raises `InputError` where neither is.

        staged: look at the last maps of each size too.
        """
        heads = logit_layers(subject)
        if not feature and not heads:
            raise InputError(
                f"no linear layer of this {type(subject.model).__name__} gives its logits: name the module that gives "
                "the feature, feature=NAME, or feature=NAME@input for what it reads"
            )
        places = [taps.one(subject.model, feature)] if feature else [f"{head}@input" for head in heads]
        args, kwargs = subject.inputs.fresh()
        example = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        features = taps.look_at(subject.model, places, example, _pool, ask=subject.inputs.ask)
        if features[0].shape != features[-1].shape:
            wide = " and ".join(str(feature.shape[1]) for feature in features)
            raise InputError(f"{' and '.join(heads)} read features of widths {wide}: name one, feature={places[0]}")
        names, shapes = list[str](), list[Shape]()
        if staged:
            names, shapes = review.stages(subject.model, lambda model: subject.inputs.ask(model, example))
        classes = objectives.logits(subject.forward()).shape[1]
        return cls(subject, places, heads, features[0].shape[1], classes, names, shapes)

    @property
    def name(self) -> str:
        """The place of the feature."""
        return " and ".join(self.places)

    def __call__(self, inputs: Tensor) -> Pass:
        """One pass, in the network's own mode."""
        model, heads = self.subject.model, self.readers if len(self.readers) > 1 else ()
        with (
            taps.tap(model, self.places, _pool) as features,
            taps.tap(model, heads) as answers,
            taps.tap(model, self.stages, maps.flat) as staged,
        ):
            logits = objectives.logits(self.subject.inputs.ask(model, inputs))
        # In training some networks answer with both heads apart, for their mean.
        return Pass(_mean(features), _mean(answers) if heads else logits, list(staged), tuple(answers))

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [B, D], classes [B]), for class means."""
        return self(batch["inputs"]).features, batch["labels"]

    def labels_in(self, data: Examples) -> Tensor:
        """The classes that need a mean."""
        assert data.labels is not None
        return data.labels

    def view(self, teacher: Classifier, batch: Mapping[str, Any], mix: Mix | None = None) -> View:
        """Both passes over a batch, mixed with itself by `mix` where one is given."""
        inputs, labels = batch["inputs"], batch["labels"]
        others, share = labels, 1.0
        if mix:
            inputs, order, share = mix(inputs)
            others = labels[order]
        with torch.no_grad():
            theirs = teacher(inputs)
        return View(self(inputs), theirs, labels, others, share)


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector of two stages; what stands for its inputs are the regions that the student samples of them."""

    subject: Traced
    model: detectors.TwoStage
    width: int
    classes: int
    shapes: Sequence[Shape]
    name: str = "regions"

    @classmethod
    def of(cls, subject: Traced, data: Examples) -> Detector:
        """Raises `UnsupportedError` for a detector that has no second stage."""
        model, image = detectors.two_stage(subject.model), data.inputs[:1]
        with torch.no_grad(), evaluating(subject.model):
            found = model.judged(image, [detectors.regions(image.shape[2], image.shape[3]).to(image)])
        shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in found.maps]
        return cls(subject, model, found.features.shape[1], found.logits.shape[1], shapes)

    @property
    def readers(self) -> tuple[str]:
        """The linear layer that gives the classes of regions."""
        return (self.model.reader,)

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [N, D], classes [N]) of the regions that the detector samples, for class means."""
        judged = self.model.sampled(batch)
        assert judged.labels is not None
        return judged.features, judged.labels

    def labels_in(self, data: Examples) -> Tensor:
        """The classes that need a mean: those of the boxes, and the background."""
        labels = torch.cat([target["labels"] for target in data.targets]) + self.model.first
        return torch.cat([labels, labels.new_zeros(1)])

    def view(self, teacher: Detector, batch: Mapping[str, Any], mix: Mix | None = None) -> View:
        """The student proposes, samples and learns; the teacher judges the same regions of its own maps."""
        ours = self.model.sampled(batch)
        with torch.no_grad():
            theirs = teacher.model.judged(batch["inputs"], ours.boxes)
        assert ours.labels is not None
        student, told = (Pass(one.features, one.logits, one.maps, loss=one.loss) for one in (ours, theirs))
        return View(student, told, ours.labels, ours.labels)


def logit_layers(subject: Traced) -> tuple[str, ...]:
    """The linear layer whose outputs are the logits, or the two whose mean is; none where there are neither.

    Of two, the one of classes comes first: the one that has no "dist" in its name, or that the network has first.
    """
    logits = objectives.logits(subject.forward())
    args, kwargs = subject.inputs.fresh()
    linears = [name for name, module in subject.model.named_modules() if isinstance(module, nn.Linear)]
    alike = dict[str, Tensor]()
    for name in reversed(linears):
        with torch.no_grad(), evaluating(subject.model), taps.tap(subject.model, [name]) as outputs:
            subject.model(*args, **kwargs)
        if not outputs or outputs[0].shape != logits.shape:
            continue
        if torch.equal(outputs[0], logits):
            return (name,)
        for other, answers in alike.items():
            if torch.allclose(_mean([outputs[0], answers]), logits):
                return (other, name) if "dist" in name and "dist" not in other else (name, other)
        alike[name] = outputs[0]
    return ()


def _pool(output: Any) -> list[Tensor]:
    """[B, D] in what a module gave: rows as they are, maps [B, D, H, W] as their mean over places."""
    return [one.mean((2, 3)) if one.dim() == 4 else one for one in taps.first(output) if one.dim() in (2, 4)]


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape; of one alone the tensor itself."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(0)
