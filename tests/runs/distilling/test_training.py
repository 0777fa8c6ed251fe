"""How one link of the chain is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import dispatch_model

import second_device
from secateur._utils.rundir import Run
from secateur.errors import InputError
from secateur.runs.distilling import training


def test_a_link_learns_from_the_one_above_and_frozen_ones_stay(of_networks, plain):
    student, setup = of_networks(replace(plain, steps=60))
    first = setup.batches[0]["inputs"]
    teacher = setup.teachers[0].model
    kept = teacher[2].weight.clone()
    record = training.train_student(setup, student, setup.teachers[:1], None, "")
    assert record.steps == 60
    torch.testing.assert_close(student.model(first).softmax(-1), teacher(first).softmax(-1), atol=0.1, rtol=0)
    assert torch.equal(teacher[2].weight, kept)
    assert training.train_student(setup, student, setup.teachers[:1], None, "", 2).steps == 2


def test_an_assistant_is_asked_live_where_the_teachers_are_kept(of_networks, plain, tmp_path):
    student, setup = of_networks(replace(plain, cache="all"))
    with Run.open(tmp_path / "out", {"recipe": "distill"}) as run:
        training.train_student(setup, student, setup.teachers, run, "link-0")
        assert run.path("predictions-1").is_dir()
        before = sorted(run.path("predictions-0").iterdir())
        training.train_student(setup, setup.teachers[0].copy(), (student,), run, "link-1")
        assert sorted(run.path("predictions-0").iterdir()) == before
        assert all(run.path(f"link-{number}").is_dir() for number in range(2))


def test_a_goal_counts_as_its_batches_are_read(of_texts, of_networks, plain):
    student, setup = of_texts(replace(plain, align=True))
    assert "teacher1.pairs" in training.make_objective(setup, student, setup.teachers, None).count(setup.batches[0])
    student, setup = of_networks()
    found = training.make_objective(setup, student, setup.teachers, setup.join(student, setup.teachers, 1.0))
    assert found.count == setup.count
    assert found.extra == []


def test_features_that_match_are_trained_along(of_networks, plain):
    student, setup = of_networks(replace(plain, match=("0=0",)))
    above = setup.teachers[:1]
    found = training.make_objective(setup, student, above, setup.join(student, above, 1.0))
    assert len(found.extra) == 1
    _, parts = found.loss(setup.batches[0], found.count(setup.batches[0]))
    assert sorted(parts) == ["logit", "match"]


def test_an_index_is_of_the_patterns_with_a_number(of_networks, plain):
    above = of_networks()[1].teachers[:1]
    student, setup = of_networks(replace(plain, match=("{i}", "0=0"), match_index=(0, 1, 2)))
    assert training.make_objective(setup, student, above, setup.join(student, above, 1.0)).extra
    student, setup = of_networks(replace(plain, match=("{i}", "0=0"), match_index=(0, 1, 2, 3)))
    with pytest.raises(InputError, match="numbers for 3, which the student lacks"):
        training.make_objective(setup, student, above, setup.join(student, above, 1.0))


def test_states_of_another_width_are_projected(of_texts, plain):
    student, setup = of_texts(replace(plain, hidden=True))
    assert training.make_objective(setup, student, setup.teachers[:1], setup.ask(setup.teachers[0])).extra == []
    flops = training._flops(setup, student, setup.teachers)
    kept = replace(setup, settings=replace(setup.settings, cache=3))
    assert 0 < training._flops(kept, student, setup.teachers) < flops
    assert flops == pytest.approx(training._flops(kept, student, ()) / 3 * 5)  # forward, and twice that backward


@pytest.mark.parametrize(
    ("how", "above"),
    [({"direction": "mse"}, 1), ({"match": ("model.layers.{i}.mlp",), "hidden": True}, 1), ({"align": True}, 2)],
    ids=["mse", "features", "aligned"],
)
def test_teachers_stay_where_they_lie_and_teach_the_same(of_texts, plain, how, above):
    losses = []
    for place in ("cpu", second_device.NAME):
        student, setup = of_texts(replace(plain, steps=2, **how))
        with second_device.present():
            setup.teachers[-1].model.to("cpu")
            setup.teachers[0].model.to(place)
            record = training.train_student(replace(setup, apart=True), student, setup.teachers[:above], None, "")
            assert setup.teachers[0].model.device.type == place
        losses.append([loss for _, loss in record.losses])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("how", "above"), [({}, 1), ({}, 2), ({"on_policy": 1.0}, 1)], ids=["one", "two", "on-policy"])
def test_split_teachers_teach_the_same(of_texts, plain, tmp_path, how, above):
    losses = []
    for split in (False, True):
        student, setup = of_texts(replace(plain, steps=2, **how))
        if split:
            model = setup.teachers[0].model
            places = {"model": "cpu", "lm_head": "disk"}
            dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
        record = training.train_student(setup, student, setup.teachers[:above], None, "")
        losses.append([loss for _, loss in record.losses])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_teacher_that_is_not_asked_stays_where_it_is_and_takes_no_work(of_texts, plain, monkeypatch):
    """Learning by the task alone, as from right answers: a large teacher filled the device of the student."""
    student, setup = of_texts(replace(plain, direction="none", task=1.0))
    asked, real = [], training.loop.train
    monkeypatch.setattr(
        training.loop, "train", lambda *given, **how: asked.append(how["frozen"]) or real(*given, **how)
    )
    record = training.train_student(setup, student, setup.teachers[:1], None, "")
    assert asked == [[]]
    alone = training.size.training_flops(student.flops_per_token(plain.length))
    assert record.flops == pytest.approx(alone * record.tokens)
