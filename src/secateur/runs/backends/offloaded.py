"""Backend of transformers that Accelerate has offloaded: as in memory, but weights are looked at a block at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur.errors import UnsupportedError
from secateur.measure import latency
from secateur.runs.backends import Row, describe_config
from secateur.runs.backends.language import Language
from secateur.runs.backends.streamed import Matrices
from secateur.subjects import Transformer
from secateur.subjects.transformer.offloaded import Offloaded
from secateur.vocabulary import Budget

__all__ = ["OffloadedLanguage"]


class OffloadedLanguage(Language):
    """Models of transformers with weights on the disk or in main memory, which run where Accelerate brings them."""

    def digest(self, subject: Transformer) -> str:
        """That of the same model in memory, of tensors that are read one by one."""
        if not isinstance(subject, Offloaded):
            return super().digest(subject)
        digest = hashlib.sha256(describe_config(subject.model.config).encode())
        weights = subject.weights()
        for name in sorted(weights):
            digest.update(name.encode())
            tensor = weights[name]
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def environment(
        self, subject: Transformer, batch: int | None, length: int | None, threads: int | None,
        device: str | None = None,
    ) -> latency.Environment:  # fmt: skip
        """The model is measured where Accelerate runs it."""
        place = super().environment(subject, batch, length, threads, device)
        return replace(place, device=str(devices.find_device(subject.model)))

    def check_clock(self, subject: Transformer, environment: latency.Environment) -> None:
        """See `Language.check_clock`; Accelerate's hooks, which bring the weights, run in PyTorch as it is alone."""
        if environment.timer != "eager":
            raise UnsupportedError(
                f"timer={environment.timer} can't run {type(subject.model).__name__}, which is offloaded: take "
                "timer=eager, or open it without device_map where memory holds it"
            )
        super().check_clock(subject, environment)

    def describe_memory(
        self,
        subject: Transformer,
        budgets: Sequence[Budget],
        options: Mapping[str, object],
        environment: latency.Environment,
    ) -> str:
        """Nothing: plans are of models that are in memory as a whole."""
        return ""

    def sizes(self, subject: Transformer, batch: Batch) -> Row:
        """See `Language.sizes`."""
        if isinstance(subject, Offloaded):
            subject.tie()
        return super().sizes(subject, batch)

    def matrices(self, subject: Transformer) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Name -> weights [d_out, d_in] of the blocks' matrices, read when they are asked for."""
        return Matrices(subject)
