"""Learn one text at a time, from the same model each time: what was learnt, as an update of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from secateur._utils import distributed
from secateur._utils.batches import Batch, Batches
from secateur._utils.tokenizers import Tokenizer
from secateur.errors import DataError, InputError, RunError
from secateur.methods import updates
from secateur.methods.updates import Rule
from secateur.recover.sparsity.updates import filter_steps
from secateur.recover.training import loop, objectives, optimizers
from secateur.subjects import Transformer
from secateur.subjects.delta.delta import Delta
from secateur.subjects.delta.tensors import InMemory
from secateur.subjects.transformer.origin import hash_tensors
from secateur.vocabulary import Training

__all__ = ["Document", "Episode", "Injected", "Learner"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text, the keyword in it whose probability is watched, where that begins, a theme that it is of, and a category
    of texts, such as real facts or made-up stories."""

    text: str
    keyword: str
    start: int
    theme: str = ""
    category: str = ""

    @property
    def context(self) -> str:
        """What stands before the keyword."""
        return self.text[: self.start]

    def count_tokens(self, tokenizer: Tokenizer) -> int:
        """Tokens of the text as far as the end of its keyword: a row of less does not teach it."""
        return len(tokenizer(self.text[: self.start + len(self.keyword)])["input_ids"])


@dataclass(frozen=True, slots=True)
class Episode:
    """How a text is learnt: `training.steps` minibatches, in every `1 + spacing`-th of which it takes a place.

    A `rule` masks each step. Of the text `length` tokens are learnt, or all.
    """

    training: Training
    spacing: int = 0
    seed: int = 0
    rule: Rule | None = None
    length: int | None = None


class Injected:
    """Batches of ordinary texts, of which some have their last row replaced by the tokens of one text.

    `each` micro-batches, of all processes, are one minibatch of a step: the text takes a row of the first of them.
    beside: tokens of a second text, which takes the row before that, in the same minibatches; none if empty. Without
    ordinary texts the text stands alone, or both do. Shapes: `input_ids` and `attention_mask` [B, S], S that of the
    ordinary batches; a shorter text is filled up, a longer one cut.

    Raises `InputError` for batches of fewer rows than there are texts.
    """

    def __init__(
        self,
        ordinary: Batches | None,
        tokens: Sequence[int],
        *,
        spacing: int,
        pad: int,
        each: int = 1,
        beside: Sequence[int] = (),
    ) -> None:
        self.ordinary, self.tokens, self.spacing, self.pad, self.each = ordinary, tokens, spacing, pad, each
        self.beside = beside

    def __getitem__(self, index: int) -> Batch:
        rows = [self.tokens, *([self.beside] if self.beside else [])]
        if self.ordinary is None:
            shape = len(rows), max(map(len, rows))
            batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        else:
            batch = dict(self.ordinary[index])
            if index % (self.each * (1 + self.spacing)):
                return batch
        ids, mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
        if len(ids) < len(rows):
            raise InputError(f"a minibatch of {len(ids)} rows holds no {len(rows)} texts: give a batch of {len(rows)}")
        for place, tokens in enumerate(rows, 1):
            row = torch.tensor(tokens[: ids.shape[1]])
            ids[-place], mask[-place] = self.pad, 0
            ids[-place, : len(row)], mask[-place, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}


class Learner:
    """A model that learns and forgets: each episode begins with the weights it was opened with.

    The optimiser is a new one each time. Raises `RunError` if the weights were not restored, by their hash. A copy of
    the weights is made when the first text is learnt, on the CPU.
    """

    def __init__(self, subject: Transformer) -> None:
        self.subject = subject

    @cached_property
    def before(self) -> dict[str, Tensor]:
        """Name -> parameter, as it was when it was first asked for."""
        return _copy(self.subject)

    @cached_property
    def hash(self) -> str:
        """Of these weights."""
        return hash_tensors(self.before.values())

    def learn(self, text: str, episode: Episode, ordinary: Batches | None = None, beside: str = "") -> Delta:
        """What learning a text changes, alone or with another `beside` it; the model is as before afterwards.

        Raises `DataError` for a text of less than two tokens, `InputError` where nothing was learnt.
        """
        tokenizer = self.subject.tokenizer
        assert tokenizer is not None
        tokens = list(tokenizer(text)["input_ids"])
        if len(tokens) < 2:
            raise DataError(f"{text!r} holds {len(tokens)} tokens: a text to be learnt has two at least")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        each = (episode.training.accumulate or 1) * distributed.count()
        second = list(tokenizer(beside)["input_ids"])[: episode.length] if beside else []
        batches = Injected(
            ordinary, tokens[: episode.length], spacing=episode.spacing, pad=pad, each=each, beside=second
        )
        self.check()
        try:
            loop.train(
                self.subject.model,
                batches,
                self._objective,
                replace(episode.training, batch=None),
                optimizer=None if episode.rule is None else partial(self._make_filtered, episode, episode.rule),
                seed=episode.seed,
                dropout=False,
                count=objectives.count,
                progress=False,
            )
            after = _copy(self.subject)
        finally:
            self.restore()
        if all(torch.equal(tensor, after[name]) for name, tensor in self.before.items()):
            raise InputError(f"learning {text[:40]!r} changed no weight: give a larger learning rate, or more steps")
        return Delta(InMemory(self.before), InMemory(after))

    def _objective(self, batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        return objectives.task_loss(self.subject.forward(batch).prediction, batch, totals, causal=True), {}

    def _make_filtered(self, episode: Episode, rule: Rule, groups: list[dict[str, object]]) -> Optimizer:
        training = episode.training.default(**loop.DEFAULTS)
        optimizer = optimizers.make_optimizer(
            training.optimizer or "adamw",
            groups,
            self.subject.model.device,
            lr=training.number("lr"),
            betas=training.betas or loop.DEFAULTS["betas"],
            momentum=training.number("momentum"),
        )
        return filter_steps(optimizer, partial(updates.masks, rule=rule))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the model these weights; `restore` takes them back."""
        for name, parameter in self.subject.model.named_parameters():
            parameter.copy_(tensors[name])

    def restore(self) -> None:
        """Give the model the weights it was opened with."""
        self.load(self.before)

    def check(self) -> None:
        """Raise `RunError` where the model's weights are not those it was opened with."""
        if hash_tensors(tensor for _, tensor in self.subject.model.named_parameters()) != self.hash:
            raise RunError("the weights of the model were not restored after the last text: run the study again")


def _copy(subject: Transformer) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in subject.model.named_parameters()
    }
