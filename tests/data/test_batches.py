from __future__ import annotations

import pytest

from secateur._utils import distributed
from secateur.data.batches import Numbered, Shifted, count_steps
from secateur.errors import InputError


@pytest.mark.parametrize(("epochs", "accumulate", "steps"), [(0, 1, 0), (0.1, 1, 1), (2.5, 1, 10), (2.5, 4, 2)])
def test_steps_of_epochs(epochs: float, accumulate: int, steps: int) -> None:
    assert count_steps(range(4), epochs, accumulate) == steps


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_epochs_without_sense_are_refused(wrong: float) -> None:
    with pytest.raises(InputError, match=f"epochs={wrong}: give 0 or more"):
        count_steps(range(4), wrong)


def test_batches_know_how_far_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = Numbered([{"inputs": 1}, {"inputs": 2}], 2, accumulate=2)
    assert numbered[1] == {"inputs": 2, "done": 0.0}
    assert len(numbered) == 2
    assert [batch["done"] for batch in Numbered([{"inputs": 1}] * 4, 2, accumulate=2)] == [0.0, 0.0, 0.5, 0.5]
    assert Numbered([{"inputs": 1}] * 9, 4)[8]["done"] == 1.0
    monkeypatch.setattr(distributed, "count", lambda: 2)
    numbered = Numbered([{"inputs": 1}] * 9, 4)
    assert [numbered[index]["done"] for index in (2, 3)] == [0.25, 0.25], "two processes take two batches a step"
    assert count_steps(range(8), 3, 2) == 6


def test_shifted_batches_go_on_behind_the_first():
    assert Shifted([5, 6, 7], 2)[0] == 7
