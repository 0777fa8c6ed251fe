from __future__ import annotations

import pytest
import torch

from secateur._utils import distributed
from secateur.data import examples
from secateur.data.batches import Apart, Numbered, Repeated, Shifted, count_steps
from secateur.errors import DataError, InputError


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
    data = examples.Examples(torch.arange(10.0)[:, None], name="ten")
    feed = examples.batches(data, batch=2, seed=3)
    rest, held = Shifted(feed, 2).hold_out(0.3)
    assert len(rest) == len(feed.hold_out(0.3)[0])
    learned, judged = feed.hold_out(0.3)
    assert torch.equal(rest[0]["inputs"], learned[2]["inputs"])
    assert [batch["inputs"].tolist() for batch in held] == [batch["inputs"].tolist() for batch in judged]


def test_what_was_held_out_before_is_what_is_held_out():
    apart = Apart([1, 2, 3], [4])
    assert (len(apart), apart[1]) == (3, 2)
    assert apart.hold_out(0.5) == ([1, 2, 3], [4])


def test_a_part_is_held_out_of_numbered_batches_and_seen_as_at_the_end():
    data = examples.Examples(torch.arange(10.0)[:, None], labels=torch.arange(10) % 2, name="ten")
    feed = examples.batches(data, batch=4, seed=3)
    rest, held = Numbered(feed, 10).hold_out(0.3)
    learnt = {float(x) for batch in (rest[i] for i in range(20)) for x in batch["inputs"]}
    judged = [float(x) for batch in held for x in batch["inputs"]]
    assert len(judged) == len(set(judged)) == 3
    assert learnt == {float(i) for i in range(10)} - set(judged)
    assert {batch["done"] for batch in held} == {1.0}
    assert (rest[0]["done"], rest[5]["done"]) == (0.0, 0.5)
    assert [batch["inputs"].tolist() for batch in held] == [batch["inputs"].tolist() for batch in held]
    with pytest.raises(InputError, match="can't hold one out"):
        Numbered([{"inputs": 1}], 10).hold_out(0.5)
    with pytest.raises(DataError, match="none can be held out"):
        examples.batches(data.take([0]), batch=1).hold_out(0.5)


def test_what_is_held_out_of_repeated_batches_is_in_no_epoch_with_all_of_its_group():
    batches, groups = [{"number": i} for i in range(8)], [i // 2 for i in range(8)]
    order = [*range(8), *reversed(range(8))]
    feed = Repeated(batches, order, groups, seed=0)
    assert len(feed) == 8
    assert [feed[i]["number"] for i in range(17)] == [*order, 0]
    rest, held = feed.hold_out(0.3)
    judged = [batch["number"] for batch in held]
    assert len(judged) == 2
    assert judged[0] // 2 == judged[1] // 2
    assert [rest[i]["number"] for i in range(12)] == [i for i in order if i not in judged]
    assert len(rest) == 6
    assert [batch["number"] for batch in feed.hold_out(0.3)[1]] == judged
    with pytest.raises(DataError, match="none of it can be held out"):
        Repeated(batches, order, ["a page"] * 8, seed=0).hold_out(0.5)
