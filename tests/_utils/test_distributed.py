"""A process that was started alone; several together are in test_loop.py and test_executor.py."""

import pytest
import torch

from secateur._utils import distributed


def test_alone_a_process_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it in any case
    assert (distributed.count(), distributed.index()) == (1, 0)
    tensor = torch.ones(2)
    assert distributed.total(tensor) is distributed.broadcast(tensor) is tensor
    assert distributed.by_first(lambda: "done") == "done"
    distributed.wait()
    distributed.end()


def test_what_the_first_raises_is_raised() -> None:
    with pytest.raises(KeyError):
        distributed.by_first(lambda: {}["nothing"])


def test_a_tensor_goes_where_another_is() -> None:
    mask, weight = torch.ones(2, dtype=torch.bool), torch.empty(2, device="meta")
    assert distributed.shard_like(mask, weight).is_meta
    assert distributed.shard_like(mask, torch.empty(2)) is mask
