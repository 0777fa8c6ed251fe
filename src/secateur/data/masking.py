"""Masked-LM batches: some tokens are hidden and predicted. Which ones is a function of seed and batch number."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from secateur._utils.computed import Computed
from secateur.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IGNORED", "Masked", "rare_first"]

IGNORED = -100
"""Label of a token that was not chosen."""


class Masked(Computed["dict[str, Tensor]"]):
    """Batches in which tokens are to be told from the others: `masked[i]` is a pure function of batch i, seed and i.

    Of every batch a `share` of the tokens is chosen; of those `hidden` become the mask token, `random` another token,
    and the rest stay. Padding and special tokens are never chosen. Since the choice goes by i and not by text, a text
    is masked anew in each epoch (dynamic masking).

    Source: BERT (arXiv 1810.04805), section 3.1; RoBERTa (arXiv 1907.11692) for masking anew. As many tokens as the
    share says, at least one, are drawn from the whole batch, as DistilBERT's training does, not each by its own coin.

    Args:
        batches: `batches[i]` with `input_ids` and `attention_mask` [B, S].
        tokenizer: knows the mask token and the special ones.
        share: of the tokens that may be chosen.
        hidden: share of the chosen that become the mask token.
        random: share of the chosen that become any token.
        weights: [vocabulary] how likely each token is to be chosen beside others, such as `rare_first` gives.
        seed: of the choice.

    Each batch has `labels` [B, S], the true tokens where chosen and -100 elsewhere, in place of any it had.
    Raises `InputError` for a tokenizer without mask token or shares out of range, `DataError` for a batch without a
    token that may be chosen.
    """

    def __init__(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        tokenizer: Any,
        *,
        share: float = 0.15,
        hidden: float = 0.8,
        random: float = 0.1,
        weights: NDArray[np.float64] | None = None,
        seed: int = 0,
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token: give a model that was trained on masked tokens")
        if not 0 < share <= 1 or min(hidden, random) < 0 or hidden + random > 1:
            raise InputError(f"share={share}, hidden={hidden}, random={random}: give shares from 0 to 1, some chosen")
        size = len(tokenizer)
        if weights is not None and (len(weights) < size or not (np.isfinite(weights) & (weights > 0)).all()):
            raise InputError(f"weights for {len(weights)} tokens: give a number above 0 for each of {size}")
        self._batches, self._seed = batches, seed
        self._share, self._hidden, self._random = share, hidden, random
        self._mask = int(tokenizer.mask_token_id)
        special = np.isin(np.arange(size), tokenizer.all_special_ids)
        self._plain = np.flatnonzero(~special)
        self._weights = np.where(special, 0.0, 1.0 if weights is None else weights[:size])

    def __len__(self) -> int:
        return len(self._batches)

    def make(self, index: int) -> dict[str, Tensor]:
        """Batch `index`."""
        import torch

        batch = self._batches[index]
        ids = batch["input_ids"].numpy().copy()
        draw = np.random.default_rng([self._seed, index])
        chosen = self._chosen(ids, batch["attention_mask"].numpy() > 0, draw, index)
        labels = np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        kind = draw.random(len(chosen[0]))
        other = draw.choice(self._plain, len(kind))
        ids[chosen] = np.where(
            kind < self._hidden, self._mask, np.where(kind < self._hidden + self._random, other, ids[chosen])
        )
        return {**batch, "input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def take(self, count: int) -> list[dict[str, Tensor]]:
        """The first `count` batches, or all if those are fewer."""
        found: list[dict[str, Tensor]] = self[:count]
        return found

    def rows(self, index: int) -> NDArray[np.int64]:
        """As the batches' own: which texts stand in batch `index`."""
        rows: NDArray[np.int64] = cast(Any, self._batches).rows(index)
        return rows

    def hold_out(self, share: float) -> tuple[Masked, Masked]:
        """As the batches' own; what is held out is masked in one way, whenever it is looked at."""
        rest, held = copy.copy(self), copy.copy(self)
        rest._batches, held._batches = cast(Any, self._batches).hold_out(share)
        return rest, held

    def _chosen(
        self, ids: NDArray[np.int64], real: NDArray[np.bool_], draw: np.random.Generator, index: int
    ) -> tuple[NDArray[np.int64], ...]:
        """(rows, places) of the tokens to tell: drawn one after the other without return, by weight.

        The largest of ``log w + Gumbel noise`` are such a draw (Vieira 2014; Kool et al., arXiv 1903.06059).
        """
        weight = np.where(real, self._weights[ids], 0.0)
        rows, places = np.nonzero(weight)
        if not len(rows):
            raise DataError(f"batch {index} has no token that could be masked: give texts with words")
        count = math.ceil(self._share * len(rows))
        key = np.log(weight[rows, places]) + draw.gumbel(size=len(rows))
        first = np.sort(np.argpartition(-key, count - 1)[:count])
        return rows[first], places[first]


def rare_first(tokens: NDArray[np.integer[Any]], vocabulary: int, power: float = 0.7) -> NDArray[np.float64]:
    """[vocabulary]: ``count^-power`` of each token among `tokens`; one that does not occur counts as if it did once.

    Smooths the choice of tokens to mask towards rare ones. Source: XLM (arXiv 1901.07291), as DistilBERT uses it.
    """
    if not 0 <= power < math.inf:
        raise InputError(f"smoothing by power {power}: give a number of at least 0")
    return np.asarray(np.maximum(np.bincount(tokens, minlength=vocabulary), 1.0) ** -power)
