"""The course that a chain of students takes: who teaches, what is learned from, and how each of them is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from secateur.data import examples, masking, texts
from secateur.errors import UnsupportedError
from secateur.measure import latency
from secateur.recover.distillation import alignment, ensembles, teachers
from secateur.recover.training import objectives
from secateur.runs.backends import Trade, language
from secateur.runs.distilling.lessons import Lesson
from secateur.runs.distilling.members import masked, of_tokens, of_whole_texts
from secateur.subjects import Traced

__all__ = ["Course", "Said", "aside", "classes", "predicted", "stream"]


@dataclass(frozen=True)
class Course:
    """Those who teach, what is learned from, and how; a server's teacher is in `names` alone."""

    trade: Trade
    lesson: Lesson
    names: tuple[str, ...]
    masters: Sequence[Any]
    train: Any
    held: Any
    stream: Any
    where: latency.Environment
    cache_at: str = ""

    @property
    def of_texts(self) -> bool:
        """Whether transformers learn from texts."""
        return self.trade is language

    def by_characters(self, student: Any) -> bool:
        """Whether teachers are aligned token by token: what tells of whole texts needs no tokens of the same place."""
        return self.lesson.align and not of_whole_texts(self.trade, student)

    def forward(self, subject: Any) -> Any:
        """The subject as an objective sees it; an aligned teacher of whole texts reads them for itself."""
        if not self.of_texts:
            return partial(classes, subject)
        number = next((number for number, one in enumerate(self.masters) if one is subject), None)
        alone = number is None or not self.lesson.align
        return subject.forward if alone else partial(_as_it_reads, subject.forward, aside(number or 0))

    def ask(self, subject: Any) -> Any:
        """As `forward`, of a subject that is not in training."""
        return teachers.live(subject.model, self.forward(subject))

    def voices(self, student: Any, above: Sequence[Any], temperature: float, each: Sequence[Any] = ()) -> Any:
        """The teachers as one; `each` of them as it is asked, live unless given."""
        asked = each or [self.ask(one) for one in above]
        if len(asked) == 1:
            return asked[0]
        tokens = self.of_texts and of_tokens(student)
        width = min(teachers.check_tokens(student, one) for one in above) if tokens else None
        if self.lesson.choice:
            return ensembles.Chosen(asked, self.lesson.choice, vocabulary=width)
        return ensembles.Averaged(asked, self.lesson.shares or None, temperature=temperature, vocabulary=width)

    def foreign(self, student: Any) -> dict[str, alignment.Foreign]:
        """The teachers, each by what the batches call its reading."""
        weights = ensembles.shares(self.lesson.shares or None, len(self.masters))
        return {
            aside(number): alignment.Foreign(
                teachers.live(one.model, one.forward), alignment.shared_vocabulary(student.tokenizer, one.tokenizer), w
            )
            for number, (one, w) in enumerate(zip(self.masters, weights, strict=True))
        }

    def output(self, subject: Any) -> str:
        """What a prediction holds."""
        return str(subject.output) if self.of_texts else "logits"

    def count(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """What the sums of a loss are divided by."""
        if self.of_texts:
            return objectives.count(batch)
        return {**examples.count(batch), "sequences": len(batch["inputs"])}


def stream(trade: Trade, lesson: Lesson, pupil: Any, train: Any, masters: Sequence[Any] = ()) -> Any:
    """What all in the chain learn from, since they read the same, or side by side: `batches[i]` for any i."""
    how: dict[str, Any] = {"batch": lesson.batch, "seed": lesson.seed + 1}
    if trade is not language:
        return examples.batches(train, **how)
    packed = pupil.causal and not lesson.align
    plain = texts.batches(train, pupil.tokenizer, packed=packed, length=lesson.length, **how)
    found = masking.Masked(plain, pupil.tokenizer, seed=lesson.seed) if masked(pupil) else plain
    if not lesson.align:
        return found
    others = {aside(number): one.tokenizer for number, one in enumerate(masters)}
    return alignment.Parallel(found, plain.rows, train.texts, pupil.tokenizer, others, length=lesson.length)


def aside(number: int) -> str:
    """What a teacher's own reading is called in the batches."""
    return f"teacher{number}"


# ------------------------------------------------------------------------------------------------------ how one answers


@dataclass
class Said:
    """What a network, or a teacher that was asked before, says of a batch: see `objectives.Prediction`."""

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()
    causal: bool = False


def predicted(ask: Any, batch: Mapping[str, Any]) -> Tensor:
    """The prediction alone of what is said of a batch."""
    found: Tensor = ask(batch).prediction
    return found


def _as_it_reads(forward: Any, name: str, batch: Mapping[str, Tensor], **options: Any) -> Any:
    """What a teacher says of the texts of a batch of `alignment.Parallel`, in its own reading."""
    return forward(alignment.own(batch, name), **options)


def classes(subject: Traced, batch: Mapping[str, Any], *, hidden: bool = False) -> Said:
    """A network's row of classes per example, [B, C]; it is not asked for hidden states (`members.check_kind`)."""
    from secateur.runs.backends import network  # texts do without

    logits = objectives.logits(network.called(subject, batch))
    if logits.dim() != 2:
        raise UnsupportedError(
            f"the network gives {list(logits.shape)}, no row of classes per example: distil it by a recipe on networks"
        )
    return Said(logits)
