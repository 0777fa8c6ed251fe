"""Texts as siblings of a language model, or of a classifier of texts, learn them and are compared on them.

The counterpart of `arms.fit` and `arms.mark_correct` for models that read texts; `siblings` compares on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur._utils import devices
from secateur._utils.batches import Batch
from secateur._utils.modes import evaluating
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.errors import InputError, UnsupportedError
from secateur.methods.arms import DEFAULTS, train_epochs
from secateur.recover.distillation.losses import IGNORED
from secateur.recover.sparsity.masks import Masks
from secateur.recover.training import objectives
from secateur.recover.training.compose import Parts
from secateur.vocabulary import Recovery, Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from secateur.subjects import Transformer

__all__ = ["TextPart"]

_ROWS, _TOKENS = 32, 4096
"""Texts, and tokens of them, that are judged together at most: of each token all of the vocabulary is told."""


@dataclass(frozen=True, eq=False)
class TextPart:
    """Texts for models of one architecture, that of `subject`, whose weights don't matter; `length`: tokens of a text.

    A causal model learns, and is judged by, the token that follows each other one; a classifier the class of a text.
    """

    corpus: Corpus
    subject: Transformer
    length: int

    def __post_init__(self) -> None:
        from secateur.subjects.transformer.subject import count_positions  # which loads transformers

        most = count_positions(self.subject.model)
        if most is not None and self.length > most:
            raise InputError(f"tokens={self.length} is beyond the model's {most} positions: give at most tokens={most}")
        if not self.subject.causal and self.corpus.labels is None:
            raise UnsupportedError(
                f"{type(self.subject.model).__name__} foretells no next token, and {self.corpus.name} has no classes "
                "that it gives: take a causal model, or a classifier and texts with labels"
            )

    def __len__(self) -> int:
        return len(self.corpus)

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> TextPart:
        """The texts at some places."""
        return replace(self, corpus=self.corpus.take(places))

    def feed(self, batch: int, seed: int) -> texts.Batches:
        """Endless batches to learn from."""
        packed = self.subject.causal
        return texts.batches(
            self.corpus, self.subject.tokenizer, packed=packed, batch=batch, length=self.length, seed=seed
        )

    def fit(
        self,
        model: nn.Module,
        training: Training,
        *,
        seed: int = 0,
        closed: Masks | None = None,
        step_end: Callable[[torch.optim.Optimizer], None] | None = None,
        judged: TextPart | None = None,
        folder: Path | None = None,
    ) -> Recovery | None:
        """Train a model in place; see `arms.fit`."""
        training, causal = training.default(**DEFAULTS), self.subject.causal
        view = self._open(model)

        def objective(batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, Parts]:
            return objectives.task_loss(view.forward(batch).prediction, batch, totals, causal=causal), {}

        batch = training.whole("batch")
        feed = self.feed(batch, seed)
        evaluate = None if judged is None else (lambda: judged.wrong(model, batch))
        return train_epochs(
            model, feed, objective, training, seed=seed, count=objectives.count, closed=closed, step_end=step_end,
            evaluate=evaluate, folder=folder,
        )  # fmt: skip

    def wrong(self, model: nn.Module, batch: int = 0) -> float:
        """Share of next tokens, or of classes, that are not the likeliest one."""
        view, missed, whole = self._open(model), 0, 0
        with evaluating(model), torch.inference_mode():
            for part in self.in_order(batch):
                told = view.forward(part).prediction.argmax(-1).cpu()
                right = objectives.targets_of(part) if self.subject.causal else part["labels"]
                known = right != IGNORED
                missed += int((told != right)[known].sum())
                whole += int(known.sum())
        return missed / max(1, whole)

    def outputs(self, model: nn.Module, batch: int = 0) -> Tensor:
        """[N, d]: states behind the last block, mean over the tokens of a text."""
        view, found = self._open(model), list[Tensor]()
        with evaluating(model), torch.inference_mode():
            for part in self.in_order(batch):
                states = view.forward(part, hidden=True).hidden[-1].float()
                mask = devices.move(objectives.mask_of(part), states).unsqueeze(-1).float()
                found.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu())
        return torch.cat(found)

    def in_order(self, batch: int) -> Iterator[Batch]:
        """All once: blocks of tokens of a causal model, else text by text; `batch` rows, or fewer where they are many.

        batch: 0 for as many as fit.
        """
        batch = min(batch or _ROWS, _ROWS, max(1, _TOKENS // self.length))
        if not self.subject.causal:
            yield from texts.in_order(self.corpus, self.subject.tokenizer, batch=batch, length=self.length)
            return
        blocks = texts.batches(self.corpus, self.subject.tokenizer, packed=True, batch=1, length=self.length)
        for begin in range(0, len(blocks), batch):
            rows = [blocks[place] for place in range(begin, min(len(blocks), begin + batch))]
            yield {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _open(self, model: nn.Module) -> Transformer:
        from secateur.subjects.transformer.quantised import with_model  # which loads transformers

        return with_model(self.subject, cast("PreTrainedModel", model))
