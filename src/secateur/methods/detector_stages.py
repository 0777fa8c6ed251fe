"""Training stages that recipes for detectors share: with a penalty on scales, fine-tuning, and distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

from annotated_types import Len
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.batches import Numbered, count_steps
from secateur.recover.training import detecting, loop
from secateur.recover.training.compose import Objective
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Recovery, Training

__all__ = ["Answers", "DetectorStages"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a student learns from its teacher's answers, beside its maps; see `detecting.answering`."""

    outputs: bool = False
    """Learn from the teacher's classes (soft, at all anchors) and boxes (where it is sure) too; of two stages at the
    regions that the teacher proposes. A module of your own needs predictions(images) -> (boxes [B, N, 4], logits of
    classes [B, N, K])."""
    lambdas: Annotated[Sequence[float], Len(2, 2)] = (0.001, 0.001)
    """Weights of those classes and boxes; by default as published for YOLOv4."""


@dataclass(frozen=True, eq=False)
class DetectorStages:
    """Trainings that follow one another on the same images, each with a checkpoint in the run's folder.

    A run that is repeated goes on from these. Each stage gives its record, or None for 0 epochs.
    """

    run: Run
    feed: examples.Batches
    training: Training
    """The same in all stages, but for the steps."""
    seed: int = 0

    def sparsify(self, subject: Traced, objective: Objective, epochs: float) -> Recovery | None:
        """Under pressure on scales; see `detecting.press`."""
        return self._train(subject, objective, epochs, "sparse", "sparse training")

    def finetune(self, subject: Traced, epochs: float, budget: Budget) -> Recovery | None:
        """By the detector's own loss alone."""
        return self._train(subject, detecting.press(_loss(subject)), epochs, f"finetune-{budget}", "fine-tuning")

    def distil(
        self,
        student: Traced,
        teacher: Traced,
        taps: Sequence[str],
        compare: detecting.Compare,
        epochs: float,
        budget: Budget,
        *,
        ask: Callable[[Tensor], object] | None = None,
        weight: float | None = None,
        share: float = 1.0,
        answers: Answers = Answers(),
        temperature: float = 3.0,
        extra: Sequence[nn.Module] = (),
    ) -> Recovery | None:
        """The detector's own loss and a loss between its maps and its teacher's; see `detecting.follow`.

        Args:
            student, teacher: the detector in training, and the one it learns from.
            taps: modules whose maps are compared.
            compare: the loss between them.
            epochs: of training.
            budget: names the files in the run.
            ask: a pass of the teacher in which the taps run; its forward pass unless given.
            weight: of that loss; unless given, what makes it `share` of the detector's own at the first step, which is
                found once and kept in the run.
            share: see `weight`.
            answers: what is learned from the teacher's classes and boxes; temperature: of these classes.
            extra: modules that are trained along, such as adapters.
        """
        if not epochs:
            return None

        def objective(weight: float) -> Objective:
            return detecting.follow(
                student.model, _loss(student), ask or teacher.model, teacher.model, taps, compare, weight=weight
            )

        for module in extra:
            module.to(devices.find_device(student.model))
        if weight is None:
            ratio = partial(detecting.ratio, objective(1.0), self.feed[0], student.model)
            with evaluating(teacher.model):  # which its training does: no statistics of a teacher change
                weight = share * self.run.json(f"alpha-{budget}", ratio)
        chosen = objective(weight)
        if answers.outputs:
            chosen = detecting.answering(
                chosen, student.model, teacher.model, temperature=temperature, weights=answers.lambdas
            )
        modules = {"extra": extra, "frozen": [teacher.model]}
        return self._train(student, chosen, epochs, f"distil-{budget}", "distillation", **modules)

    def _train(
        self, subject: Traced, objective: Objective, epochs: float, folder: str, title: str, **modules: Any
    ) -> Recovery | None:
        accumulate = self.training.accumulate or 1
        steps = count_steps(self.feed, epochs, accumulate)
        if not steps:
            return None
        return loop.train(
            subject.model, Numbered(self.feed, steps, accumulate), objective, self.training, steps=steps,
            seed=self.seed, count=examples.count, checkpoint=self.run.folder(folder), title=title, **modules,
        )  # fmt: skip


def _loss(subject: Traced) -> detecting.Loss:
    return cast(Detector, subject.model).loss
