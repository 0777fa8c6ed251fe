"""Set up a distillation: teachers, data, and how each model is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

from torch import Tensor

from secateur._utils.batches import Batch
from secateur._utils.outputs import of_two
from secateur.data import examples, masking, texts
from secateur.data.batches import hold_out
from secateur.errors import UnsupportedError
from secateur.measure import latency
from secateur.methods.predictions import tells_masked
from secateur.recover.distillation import alignment, ensembles
from secateur.recover.distillation import teachers as teaching
from secateur.recover.training import dense, objectives
from secateur.runs.backends import AnyBackend
from secateur.runs.distilling.models import Learner, gives_rows, gives_tokens
from secateur.runs.distilling.settings import Settings
from secateur.subjects import Traced, Transformer
from secateur.vocabulary import Training

__all__ = ["Answer", "Ask", "Batches", "Setup", "class_logits", "make_batches", "predict", "reading_name"]

Ask: TypeAlias = Callable[..., Any]
"""A batch -> an `objectives.Prediction`; with hidden=True its hidden states, too."""
Batches: TypeAlias = Any
"""`batches[i]` for any i."""


@dataclass(frozen=True)
class Setup:
    """Those who teach, what is learned from, and how; a server's teacher is in `names` alone.

    apart: whether teachers stay where they lie while a student is trained elsewhere.
    part: of what is learned from, where a share of it is held out to judge training by (`hold_out`).
    """

    backend: AnyBackend
    settings: Settings
    names: tuple[str, ...]
    teachers: Sequence[Learner]
    train: Any
    held: Any
    batches: Batches
    environment: latency.Environment
    cache_at: str = ""
    part: Literal["all", "learned", "judged"] = "all"
    apart: bool = False

    @property
    def batch_count(self) -> int:
        """Batches of which teachers are asked in all: those of training, or one epoch of what it is judged by."""
        return len(self.batches) if self.part == "judged" else self.settings.count

    @property
    def of_texts(self) -> bool:
        """Whether transformers learn from texts."""
        return isinstance(self.train, texts.Corpus)

    def by_characters(self, student: Learner) -> bool:
        """Whether teachers are aligned token by token: what tells of whole texts needs no tokens of the same place."""
        return self.settings.align and not gives_rows(student)

    def forward(self, subject: Learner) -> Ask:
        """The subject as an objective sees it; an aligned teacher of whole texts reads them for itself."""
        if not isinstance(subject, Transformer):
            return partial(class_logits, subject)
        number = next((number for number, teacher in enumerate(self.teachers) if teacher is subject), None)
        if number is None or not self.settings.align:
            return subject.forward
        return partial(_as_it_reads, subject.forward, reading_name(number))

    def ask(self, subject: Learner) -> Ask:
        """As `forward`, of a subject that is not in training."""
        return teaching.live(subject.model, self.forward(subject))

    def join(self, student: Learner, above: Sequence[Learner], temperature: float, each: Sequence[Ask] = ()) -> Ask:
        """The teachers as one; `each` of them as it is asked, live unless given."""
        asked = each or [self.ask(teacher) for teacher in above]
        if len(asked) == 1:
            return asked[0]
        width = min(teaching.check_tokens(student, teacher) for teacher in above) if gives_tokens(student) else None
        if self.settings.choice:
            return ensembles.Chosen(asked, self.settings.choice, vocabulary=width)
        return ensembles.Averaged(asked, self.settings.shares or None, temperature=temperature, vocabulary=width)

    def hold_out(self) -> tuple[Setup, Setup | None]:
        """(the same over what is learned from, over what training is judged by meanwhile); None where it is not."""
        if not Training(**self.settings.training).validates:
            return self, None
        learned, judged = hold_out(self.batches, self.settings.validation)
        return self._choose(learned, "learned"), self._choose(judged, "judged")

    def _choose(self, batches: Batches, part: Literal["learned", "judged"]) -> Setup:
        return replace(self, batches=batches, train=self.train if self.of_texts else batches.data, part=part)

    def foreign(self, student: Transformer) -> dict[str, alignment.Foreign]:
        """The teachers, each by what the batches call its reading."""
        weights = ensembles.shares(self.settings.shares or None, len(self.teachers))
        readers = dict[str, alignment.Foreign]()
        for number, (teacher, weight) in enumerate(zip(self.teachers, weights, strict=True)):
            if isinstance(teacher, Transformer):
                ask = teaching.live(teacher.model, teacher.forward)
                shared = alignment.shared_vocabulary(student.tokenizer, teacher.tokenizer)
                readers[reading_name(number)] = alignment.Foreign(ask, shared, weight)
        return readers

    def output(self, subject: Learner) -> str:
        """What a prediction holds."""
        return str(subject.output) if isinstance(subject, Transformer) else "logits"

    def count(self, batch: Batch) -> dict[str, int]:
        """What the sums of a loss are divided by."""
        if self.of_texts:
            return objectives.count(batch)
        pixels = dense.count_pixels(batch, self.classes) if self.train.per_pixel else 0
        return {**examples.count(batch), "sequences": len(batch["inputs"]), "pixels": pixels}

    @cached_property
    def classes(self) -> int:
        """How many classes a network's teachers, and so its student, tell of each example or pixel."""
        first = {name: part[:1] for name, part in self.batches[0].items() if isinstance(part, Tensor)}
        return int(self.ask(self.teachers[0])(first).prediction.shape[-1])


def make_batches(settings: Settings, student: Learner, train: Any, teachers: Sequence[Any] = ()) -> Batches:
    """What all in the chain learn from, since they read the same, or side by side."""
    size: dict[str, Any] = {"batch": settings.batch, "seed": settings.seed + 1}
    if not isinstance(student, Transformer):
        return examples.batches(train, **size)
    packed = student.causal and not settings.align
    plain = texts.batches(train, student.tokenizer, packed=packed, length=settings.length, **size)
    batches = masking.Masked(plain, student.tokenizer, seed=settings.seed) if tells_masked(student) else plain
    if not settings.align:
        return batches
    others = {reading_name(number): teacher.tokenizer for number, teacher in enumerate(teachers)}
    return alignment.Parallel(batches, plain.rows, train.texts, student.tokenizer, others, length=settings.length)


def reading_name(number: int) -> str:
    """What a teacher's own reading is called in the batches."""
    return f"teacher{number}"


# ------------------------------------------------------------------------------------------------------ answers


@dataclass
class Answer:
    """What a network, or a teacher that was asked before, says of a batch: see `objectives.Prediction`."""

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()
    causal: bool = False


def predict(ask: Ask, batch: Batch) -> Tensor:
    """The prediction alone of what is said of a batch."""
    prediction: Tensor = ask(batch).prediction
    return prediction


def _as_it_reads(forward: Ask, name: str, batch: Mapping[str, Tensor], **options: object) -> object:
    """What a teacher says of the texts of a batch of `alignment.Parallel`, in its own reading."""
    return forward(alignment.teacher_inputs(batch, name), **options)


def class_logits(subject: Traced, batch: Batch, *, hidden: bool = False) -> Answer:
    """A network's classes: [B, C] of each example, or [B, h, w, C] of each pixel, as `dense` has them.

    It is not asked for hidden states (`models.check_kind`).
    """
    from secateur.runs.backends.network import run_network  # texts do without

    logits = objectives.logits(run_network(subject, batch))
    if logits.dim() == 4:
        # Without masks a network of one map tells numbers; from a cache come inputs alone.
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        return Answer(dense.pixels(logits if labels is None or labels.dim() != 3 else of_two(logits)))
    if logits.dim() != 2:
        raise UnsupportedError(
            f"the network gives {list(logits.shape)}, no classes of examples or pixels: distil it by a recipe on "
            "networks"
        )
    return Answer(logits)
