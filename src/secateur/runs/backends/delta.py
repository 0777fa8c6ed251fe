"""Backend of updates: a model before and after a training, of which entries of the difference go."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch

from secateur._utils.batches import Batch
from secateur.data import texts
from secateur.errors import InputError, MeasurementError
from secateur.measure import latency
from secateur.runs.backends import Backend, Row, resolve
from secateur.runs.backends.language import TOKENS, Language
from secateur.subjects import Transformer
from secateur.subjects.delta.delta import Delta, open_delta
from secateur.subjects.delta.tensors import Checkpoint
from secateur.vocabulary import Figure

__all__ = ["Deltas", "Source"]

Source: TypeAlias = str | Path | Delta


class Deltas(Backend[Delta, texts.Corpus, None]):
    """Two checkpoints of one model, or a base and an adapter; what is saved is a checkpoint as any other."""

    family = "updates of models"
    example = "the folder of the model before training, and --with the one after it"
    noun = "texts"

    def accepts(self, source: Source) -> bool:
        """Folders and Hub ids, to which the other model is given."""
        return isinstance(source, str | Path | Delta)

    def read(self, data: str | Path, text: str = "text", label: str = "label") -> texts.Corpus:
        """Texts, as language models have them."""
        return _language().read(data, text, label)

    def open_pair(self, source: Source, after: Source) -> Delta:
        """The update between two models."""
        for given in (source, after):
            if not isinstance(given, str | Path):
                raise InputError(f"a {type(given).__name__} is no model before or after training: give two folders")
        assert not isinstance(source, Delta)
        assert not isinstance(after, Delta)
        return open_delta(source, after)

    def open(
        self, source: Source, device: str | None = None, data: texts.Corpus | None = None, inputs: object = None
    ) -> Delta:
        """An update as it is. Raises `InputError` for one model alone."""
        if isinstance(source, Delta):
            return source
        raise InputError(f"{source} is one model, and an update is of two: give the trained one by --with (after=...)")

    def fit_data(self, data: texts.Corpus, subject: Delta) -> texts.Corpus:
        """The texts as the trained model reads them."""
        return _language().fit_data(data, _open(subject))

    def environment(
        self, subject: Delta, batch: int | None, length: int | None, threads: int | None, device: str | None = None
    ) -> latency.Environment:
        """What quality refers to; nothing is timed."""
        threads = threads or torch.get_num_threads()
        return latency.Environment(batch or self.batch, length or TOKENS, threads, device or "cpu")

    def digest(self, subject: Delta) -> str:
        """A hash of both models."""
        return subject.digest()

    def make_example(self, subject: Delta, environment: latency.Environment) -> None:
        """Nothing: an update is not run."""

    def forward(self, subject: Delta, batch: Batch | None) -> None:
        """Raise `MeasurementError`: the model keeps its shape."""
        raise MeasurementError("not measured: the model keeps its shape, and so its time")

    def sizes(self, subject: Delta, batch: Batch | None) -> Row:
        """How many entries belong to the update, counted on its masks, and its Euclidean length."""
        counted = sum(int(subject.mask(name).sum()) for name in subject.sites)
        return {"update": Figure(float(counted)), "update_norm": Figure(subject.norm())}

    def compare(
        self, original: Delta, student: Delta, held_out: texts.Corpus, environment: latency.Environment
    ) -> tuple[Row, Row, Row]:
        """As language models: the trained model beside the one with a part of its update."""
        language = _language()
        before, after = (language.open(_open(subject), environment.device) for subject in (original, student))
        return language.compare(before, after, held_out, environment)

    def check(self, subject: Delta, options: Mapping[str, object]) -> None:
        """Nothing: options are of the update alone."""

    def save(self, subject: Delta, folder: Path) -> None:
        """The checkpoint."""
        subject.save(folder)

    def saved_in(self, folder: Path) -> bool:
        """Whether there is a model of transformers."""
        return _language().saved_in(folder)

    def load_line(self, folder: Path, name: str) -> str:
        """The lines of Python that load the checkpoint."""
        return _language().load_line(folder, name)


_written: WeakKeyDictionary[Delta, tempfile.TemporaryDirectory[str]] = WeakKeyDictionary()
"""Models with an update that were written aside: each once, for as long as the update is there."""


def _language() -> Language:
    backend = resolve("secateur.runs.backends.language:Language")
    assert isinstance(backend, Language)
    return backend


def _open(subject: Delta) -> Transformer:
    """The model with an update, written aside once and opened as any other: names are transformers' business."""
    if isinstance(subject.after, Checkpoint) and subject.is_whole:
        assert subject.folder is not None
        return _language().open(subject.folder)
    if subject not in _written:
        place = tempfile.TemporaryDirectory()
        subject.save(Path(place.name))
        _written[subject] = place
    return _language().open(_written[subject].name)
