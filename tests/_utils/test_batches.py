"""Batches by number: lists of them, and what only has an item by number."""

from __future__ import annotations

import torch

from secateur._utils.batches import Batch, Batches, FiniteBatches


class _Endless:
    def __getitem__(self, index: int) -> Batch:
        return {"input_ids": torch.tensor([[index]])}


def test_lists_and_feeds_are_batches_by_number() -> None:
    """What mypy checks: a list is finite, a feed without length is not asked for one."""
    finite: FiniteBatches = [{"input_ids": torch.tensor([[7]])}]
    feeds: list[Batches] = [finite, _Endless()]
    assert [int(feed[0]["input_ids"]) for feed in feeds] == [7, 0]
    assert len(finite) == 1
