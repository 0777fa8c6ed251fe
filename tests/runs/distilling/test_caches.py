"""What teachers say is asked once, kept where one says, and told with the batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateur._utils.rundir import Run, lock_folder
from secateur.errors import DataError, InputError, RunError
from secateur.runs.distilling import caches


@pytest.fixture
def run(tmp_path):
    with Run.open(tmp_path / "out", {"recipe": "distill"}) as made:
        yield made


def test_all_that_networks_say_stands_in_the_batches(of_networks, plain, run):
    student, setup = of_networks(replace(plain, cache="all"))
    batches, asked = caches.cache_answers(setup, student, setup.teachers, run)
    live = setup.join(student, setup.teachers, 1.0)
    assert asked is not None
    for index in range(3):
        torch.testing.assert_close(
            asked(batches[index]).prediction.softmax(-1), live(setup.batches[index]).prediction.softmax(-1),
            atol=1e-3, rtol=0,
        )  # fmt: skip
    assert sorted(path.name for path in run.path("x").parent.glob("predictions-*")) == [
        "predictions-0", "predictions-1"
    ]  # fmt: skip


def test_the_likeliest_tokens_stand_in_the_batches_and_no_teacher_is_needed(of_texts, plain, run):
    student, setup = of_texts(replace(plain, cache=4, steps=2))
    batches, asked = caches.cache_answers(setup, student, setup.teachers[:1], run)
    assert asked is None
    assert batches[0]["teacher_indices"].shape[-1] == 4
    assert caches.cache_cost(setup, student, 100) == {"cache bytes": 100 * 2 * (6 * 4 + 4)}


@pytest.mark.parametrize("cache", [4, "all"])
def test_what_training_is_judged_by_has_a_cache_of_its_own(of_texts, plain, run, cache):
    student, setup = of_texts(replace(plain, cache=cache, steps=2, training={"validation": 0.3}))
    learned, judged = setup.hold_out()
    assert judged is not None
    for part in (learned, judged):
        batches, _ = caches.cache_answers(part, student, setup.teachers[:1], run)
        told = "teacher_indices" if cache == 4 else "said0"
        assert all(told in batches[index] for index in range(part.batch_count))
    assert len(list(batches)) == len(judged.batches)
    assert {path.name for path in run.path("x").parent.glob("predictions-*")} == {
        "predictions-0", "predictions-0-judged"
    }  # fmt: skip
    assert caches._cache_key(learned) != caches._cache_key(setup)


def test_rows_of_held_out_examples_are_their_own(of_networks, plain, run):
    student, setup = of_networks(replace(plain, cache="all", training={"patience": 1}))
    for part in setup.hold_out():
        batches, asked = caches.cache_answers(part, student, setup.teachers, run)
        live = setup.join(student, setup.teachers, 1.0)
        torch.testing.assert_close(
            asked(batches[0]).prediction.softmax(-1), live(part.batches[0]).prediction.softmax(-1), atol=1e-3, rtol=0
        )


def test_a_folder_for_several_is_filled_by_one_at_a_time(of_networks, plain, run, tmp_path):
    student, setup = of_networks(replace(plain, cache="all"), cache_at=tmp_path / "shelf")
    with lock_folder(tmp_path / "shelf" / "predictions-0"), pytest.raises(RunError, match="in use"):
        caches.cache_answers(setup, student, setup.teachers, run)
    caches.cache_answers(setup, student, setup.teachers, run)
    assert (tmp_path / "shelf" / "predictions-1").is_dir()
    assert not run.path("predictions-0").exists()
    other, setup = of_networks(replace(plain, cache="all"), classes=4, cache_at=tmp_path / "shelf")
    with pytest.raises(InputError, match=str(tmp_path / "shelf" / "predictions-0")) as caught:
        caches.cache_answers(setup, other, setup.teachers, run)
    assert type(caught.value) is InputError  # what is there is no part of the run, and not damaged
    inside = replace(setup, cache_at="")
    caches.cache_answers(inside, other, inside.teachers, run)
    _, of_three = of_networks(replace(plain, cache="all"))
    with pytest.raises(DataError):  # a part of the run, which is damaged
        caches.cache_answers(of_three, student, of_three.teachers, run)


def test_what_a_cache_takes_is_told_beforehand(of_networks, of_texts, plain):
    student, setup = of_networks(replace(plain, cache="all"))
    assert caches.cache_cost(setup, student, 1) == {"cache bytes": 2.0 * 2 * len(setup.train) * 3}
    assert caches.cache_cost(of_networks()[1], student, 1) == {}
    student, setup = of_texts(replace(plain, server="http://x", steps=2))
    held = sum(len(batch["input_ids"]) for batch in caches._held_batches(setup, student))
    wanted = {"server calls": 1 + 2 * 8 + 1 + held, "cache bytes": 10 * (6 * 20 + 4)}
    assert caches.cache_cost(setup, student, 10) == wanted
    student, setup = of_texts(replace(plain, server="http://x", steps=2, training={"validation": 0.3}))
    judged = sum(len(batch["input_ids"]) for batch in setup.hold_out()[1].batches)
    assert caches.cache_cost(setup, student, 10) == {**wanted, "server calls": wanted["server calls"] + 1 + judged}
