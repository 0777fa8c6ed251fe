"""Backend of language models that stay on the disk: never more than a block of one in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from secateur._utils.batches import Batch
from secateur._utils.modes import find_place
from secateur.data import texts
from secateur.errors import DataError, InputError, MeasurementError
from secateur.measure import latency, loyalty, quality, size, sparsity
from secateur.runs.backends import Row, describe_config
from secateur.runs.backends.language import TOKENS, TextBackend, check_tokens, held_batches, per_batch
from secateur.subjects import Streamed, open_streamed
from secateur.subjects.matrices import matrices as matrices_of
from secateur.subjects.transformer import blocks
from secateur.subjects.transformer.subject import Output
from secateur.vocabulary import Figure

__all__ = ["Matrices", "Model", "OnDisk"]

Model: TypeAlias = str | Path | Streamed
Data: TypeAlias = str | Path | Sequence[str] | texts.Corpus
_CHUNK = 2**22
_ROWS = 256
"""Tokens whose losses are in float32 at once."""


class OnDisk(TextBackend[Streamed]):
    """Causal language models in a folder or of the Hub, which are worked on a block at a time by the CPU or a GPU."""

    on_disk = True

    def open(
        self, source: Model, device: str | None = None, data: texts.Corpus | None = None, inputs: object = None
    ) -> Streamed:
        """A folder or Hub id as a subject that stays there; its blocks come to the device one at a time."""
        place = None if device is None else find_place(device)
        if isinstance(source, Streamed):
            return source if place is None or place == source.device else source.put_on(place)
        if not isinstance(source, str | Path):
            raise InputError(
                f"{type(source).__name__} is no folder, so it can't be streamed: give the folder of its checkpoint"
            )
        subject = open_streamed(source)
        return subject if place is None or place == subject.device else subject.put_on(place)

    def fit_data(self, data: texts.Corpus, subject: Streamed) -> texts.Corpus:
        """The texts, if the model has a tokenizer to read them with, of tokens that it knows."""
        if subject.tokenizer is None:
            raise InputError("the model has no tokenizer: put its files beside the weights")
        if data.packing == "documents":
            raise InputError(
                "packing=documents is of training, and a model that is streamed is not trained: leave it out"
            )
        data = data.render(subject.tokenizer)
        check_tokens(data, subject)
        return data

    def environment(
        self, subject: Streamed, batch: int | None, length: int | None, threads: int | None, device: str | None = None
    ) -> latency.Environment:
        """What FLOPs and quality refer to; time is not measured here."""
        kind = str(subject.dtype).removeprefix("torch.")
        threads = threads or torch.get_num_threads()
        return latency.Environment(batch or self.batch, length or TOKENS, threads, str(subject.device), kind)

    def digest(self, subject: Streamed) -> str:
        """sha256 of the configuration and of the files of the weights."""
        digest = hashlib.sha256(describe_config(subject.model.config).encode())
        for path in sorted(set(subject.files().values())):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def forward(self, subject: Streamed, batch: Batch) -> Output:
        """What would be timed; `MeasurementError`, for reading the disk is no part of a model's time."""
        raise MeasurementError(
            "not measured while the models stay on the disk: `secateur measure` opens and times them"
        )

    def matrices(self, subject: Streamed) -> Mapping[str, Tensor]:
        """Name -> weights [d_out, d_in] of the blocks' matrices."""
        return Matrices(subject)

    def costs(self, subject: Streamed, environment: latency.Environment) -> dict[str, float]:
        """FLOPs of a batch of the size that is measured, and what is cached of it, of a mixture of experts.

        Memory is that of the weights, as it is counted of what was never run whole.
        """
        if not subject.family.experts:
            return {}
        length = environment.length or TOKENS
        units = subject.units("experts", batch=environment.batch, length=length)
        return {**per_batch(units), "memory": units.cost()["bytes"]}

    def sizes(self, subject: Streamed, batch: Batch) -> Row:
        """Parameters, zeros, bytes of the weights as saved and as packed, FLOPs of `batch`."""
        parameters = size.parameters(subject.model)
        stored = float(sum(p.numel() * p.element_size() for p in subject.model.parameters()))
        return {
            "params": Figure(float(parameters["params"])),
            "embedding_params": Figure(float(parameters["embedding_params"])),
            "bytes": Figure(stored, unit="B"),
            "memory": Figure(stored, unit="B"),
            "flops": Figure(_flops(subject, batch)),
            **sparsity.figures(self.matrices(subject), stored),
        }

    def compare(
        self, original: Streamed, student: Streamed, held_out: texts.Corpus, environment: latency.Environment
    ) -> tuple[Row, Row, Row]:
        """(before, after, both): perplexity and loyalty, each model's blocks read once for all sequences.

        Embeddings and head are held once where both models have them from the same files, as after pruning blocks.
        """
        if original.tokenizer is None:
            raise DataError("the model has no tokenizer to measure quality with: give one beside it")
        length = environment.length or TOKENS
        batches = held_batches(held_out, original.tokenizer, packed=True, length=length)
        tally = loyalty.Tally()
        heads = [original, original if student.ends() == original.ends() else student]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            pair = enumerate((original, student))
            states = [_last_states(subject, batches, Path(folder, str(number))) for number, subject in pair]
            for head in {id(head): head for head in heads}.values():
                stack.enter_context(head.resident())
            forwards = [partial(_logits, head, some) for head, some in zip(heads, states, strict=True)]
            before, after = quality.perplexities(forwards, batches, watch=tally.add, chunk=_ROWS)
        return {"perplexity": before}, {"perplexity": after}, tally.figures()


class Matrices(Mapping[str, Tensor]):
    """Name -> weights [d_out, d_in] of the blocks' matrices, read when they are asked for, a block at a time."""

    def __init__(self, subject: blocks.Blocks) -> None:
        self.subject, self.path = subject, ""
        self.held: dict[str, Tensor] = {}
        self.places = {name: path for path in subject.layers() for name in matrices_of(subject.model, [path])}

    def __getitem__(self, name: str) -> Tensor:
        path = self.places[name]
        if path != self.path:
            self.held = {}
            with self.subject.resident(path):
                self.held = {
                    key: matrix.weight.clone() for key, matrix in matrices_of(self.subject.model, [path]).items()
                }
            self.path = path
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _flops(subject: Streamed, batch: Mapping[str, Tensor]) -> float:
    """FLOPs of a forward pass, block by block: of what a mixture's router chooses, too."""
    with tempfile.TemporaryDirectory() as folder:
        total = 0.0
        for block in blocks.visit(subject, [batch], Path(folder), title="FLOPs", store=False):
            total += size.flops(partial(block.run, *next(block.inputs())), {})
        (last,) = blocks.states(Path(folder), len(subject.layers()))
        with subject.resident():
            return total + size.flops(partial(blocks.run_ends, subject, batch, last), {})


def _last_states(subject: Streamed, batches: Sequence[Mapping[str, Tensor]], folder: Path) -> Iterator[Tensor]:
    """What leaves the last block, batch by batch."""
    for _ in blocks.visit(subject, batches, folder, title="measuring", store=False):
        pass
    return blocks.states(folder, len(subject.layers()))


def _logits(head: Streamed, states: Iterator[Tensor], batch: Mapping[str, Tensor]) -> Output:
    """The logits [B, S, V] of the next states: they come in the order of the batches."""
    return Output(blocks.run_ends(head, batch, next(states)).logits, causal=True)
