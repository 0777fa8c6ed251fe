"""Language models that stay on the disk, as things to run a recipe on: never more than a block of one in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.data import texts
from secateur.errors import DataError, InputError, MeasurementError
from secateur.measure import latency, loyalty, quality, size, sparsity
from secateur.runs.backends import language
from secateur.runs.backends.language import BATCH, LENGTH, NOUN
from secateur.subjects import Streamed, open_streamed
from secateur.subjects.matrices import matrices as of_model
from secateur.subjects.transformer import blocks
from secateur.subjects.transformer.subject import Output
from secateur.vocabulary import Figure

__all__ = [
    "BATCH",
    "LENGTH",
    "NOUN",
    "Model",
    "again",
    "check",
    "compared",
    "digest",
    "example",
    "fitted",
    "forward",
    "loading",
    "matrices",
    "opened",
    "read",
    "save",
    "sizes",
    "where",
]

Model: TypeAlias = str | Path | Streamed
Data: TypeAlias = str | Path | Sequence[str] | texts.Corpus
_CHUNK = 2**22
_ROWS = 256
"""Tokens whose losses are in float32 at once."""


def read(data: Data, text: str = "text", label: str = "label") -> texts.Corpus:
    """The texts in `data`; see `language.read`."""
    return language.read(data, text, label)


def fitted(corpus: texts.Corpus, subject: Streamed) -> texts.Corpus:
    """The texts, if the model has a tokenizer to read them with, of tokens that it knows."""
    if subject.tokenizer is None:
        raise InputError("the model has no tokenizer: put its files beside the weights")
    language.known(corpus, subject)
    return corpus


def check(subject: Streamed, options: Mapping[str, Any]) -> None:
    """Refuse options that the model can't follow; see `language.check`."""
    language.check(subject, options)


def loading(folder: Path, name: str) -> str:
    """The lines of Python that load the model in `folder`."""
    return language.loading(folder, name)


def opened(model: Model, device: str | None = None, data: texts.Corpus | None = None) -> Streamed:
    """`model`, a folder or Hub id, as a subject that stays there."""
    if device not in (None, "cpu"):
        raise InputError(f"device {device!r}: a model that is streamed is worked on by the CPU; leave the device out")
    if isinstance(model, Streamed):
        return model
    if not isinstance(model, str | Path):
        raise InputError(f"a {type(model).__name__} in memory can't be streamed: give the folder of its checkpoint")
    return open_streamed(model)


def again(model: Model, original: Streamed, device: str | None = None) -> Streamed:
    """Another model, to be compared with `original`."""
    return opened(model, device)


def where(subject: Streamed, batch: int | None, length: int | None, threads: int | None) -> latency.Environment:
    """What FLOPs and quality refer to; time is not measured here."""
    kind = str(subject.dtype).removeprefix("torch.")
    tokens = length or language.LENGTH or 64
    return latency.Environment(batch or BATCH, tokens, threads or torch.get_num_threads(), "cpu", kind)


def digest(subject: Streamed) -> str:
    """sha256 of the configuration and of the files of the weights."""
    found = hashlib.sha256(subject.model.config.to_json_string(use_diff=True).encode())
    for file in sorted(set(subject.files().values())):
        found.update(file.name.encode())
        with file.open("rb") as opened_file:
            while chunk := opened_file.read(_CHUNK):
                found.update(chunk)
    return found.hexdigest()


def example(subject: Streamed, place: latency.Environment) -> dict[str, Tensor]:
    """A batch of the size that FLOPs are counted for."""
    return subject.example(place.batch, place.length or 64)


def forward(subject: Streamed, batch: Mapping[str, Tensor]) -> Any:
    """What would be timed; `MeasurementError`, for reading the disk is no part of a model's time."""
    raise MeasurementError("not measured while the models stay on the disk: `secateur measure` opens and times them")


class _Matrices(Mapping[str, Tensor]):
    """Name -> weights [d_out, d_in] of the blocks' matrices, read when they are asked for, a block at a time."""

    def __init__(self, subject: Streamed) -> None:
        self.subject, self.path = subject, ""
        self.held: dict[str, Tensor] = {}
        self.places = {name: path for path in subject.layers() for name in of_model(subject.model, [path])}

    def __getitem__(self, name: str) -> Tensor:
        path = self.places[name]
        if path != self.path:
            self.held = {}
            with self.subject.resident(path):
                self.held = {key: matrix.weight.clone() for key, matrix in of_model(self.subject.model, [path]).items()}
            self.path = path
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def matrices(subject: Streamed) -> Mapping[str, Tensor]:
    """Name -> weights [d_out, d_in] of the blocks' matrices."""
    return _Matrices(subject)


def sizes(subject: Streamed, example: Mapping[str, Tensor]) -> dict[str, Figure]:
    """Parameters, zeros, bytes of the weights as saved and as packed, FLOPs of `example`."""
    parameters = size.parameters(subject.model)
    stored = float(sum(p.numel() * p.element_size() for p in subject.model.parameters()))
    return {
        "params": Figure(float(parameters["params"])),
        "embedding_params": Figure(float(parameters["embedding_params"])),
        "bytes": Figure(stored, unit="B"),
        "memory": Figure(stored, unit="B"),
        "flops": Figure(_flops(subject, example)),
        **sparsity.figures(matrices(subject), stored),
    }


def _flops(subject: Streamed, batch: Mapping[str, Tensor]) -> float:
    """FLOPs of a forward pass, block by block: of what a mixture's router chooses, too."""
    with tempfile.TemporaryDirectory() as folder:
        total = 0.0
        for block in blocks.visit(subject, [batch], Path(folder), title="FLOPs", store=False):
            total += size.flops(partial(block.run, *next(block.inputs())), {})
        (last,) = blocks.states(Path(folder), len(subject.layers()))
        with subject.resident():
            return total + size.flops(partial(blocks.run_ends, subject, batch, last), {})


def compared(
    original: Streamed, student: Streamed, held_out: texts.Corpus, place: latency.Environment
) -> tuple[dict[str, Figure], dict[str, Figure], dict[str, Figure]]:
    """(before, after, both): perplexity and loyalty, each model's blocks read once for all sequences.

    Embeddings and head are held once where both models have them from the same files, as after pruning blocks.
    """
    if original.tokenizer is None:
        raise DataError("the model has no tokenizer to measure quality with: give one beside it")
    batches = language.held_batches(held_out, original.tokenizer, packed=True, length=place.length or 64)
    tally = loyalty.Tally()
    heads = [original, original if student.ends() == original.ends() else student]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        left = [_left(one, batches, Path(folder, str(number))) for number, one in enumerate((original, student))]
        for head in {id(head): head for head in heads}.values():
            held.enter_context(head.resident())
        forwards = [partial(_finished, head, states) for head, states in zip(heads, left, strict=True)]
        before, after = quality.perplexities(forwards, batches, watch=tally.add, chunk=_ROWS)
    return {"perplexity": before}, {"perplexity": after}, tally.figures()


def _left(subject: Streamed, batches: Sequence[Mapping[str, Tensor]], folder: Path) -> Iterator[Tensor]:
    """What leaves the last block, batch by batch."""
    for _ in blocks.visit(subject, batches, folder, title="measuring", store=False):
        pass
    return blocks.states(folder, len(subject.layers()))


def _finished(head: Streamed, states: Iterator[Tensor], batch: Mapping[str, Tensor]) -> Output:
    """The logits [B, S, V] of the next states: they come in the order of the batches."""
    return Output(blocks.run_ends(head, batch, next(states)).logits, causal=True)


def save(subject: Streamed, folder: Path) -> None:
    """The model and all that travels with it."""
    subject.save(folder)
