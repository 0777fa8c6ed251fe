"""What is tried before anything is measured or written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.runs.distilling import training, trying


def test_options_of_classes_are_refused_where_one_number_is_told(of_networks, plain):
    pupil, course = of_networks(classes=1)
    with pytest.raises(InputError, match="use --direction mse"):
        trying.check_number(course, pupil)
    by_square = replace(course, lesson=replace(plain, direction="mse"))
    with pytest.raises(InputError, match="name one teacher"):
        trying.check_number(by_square, pupil)
    trying.check_number(replace(by_square, names=("one",)), pupil)
    with pytest.raises(InputError, match="leave task out"):
        trying.check_number(replace(course, lesson=replace(plain, direction="mse", task=1.0), names=("one",)), pupil)
    trying.check_number(*reversed(of_networks()))


def test_the_first_loss_is_asked_for_in_each_link(of_networks, plain, monkeypatch):
    pupil, course = of_networks(replace(plain, training={"accumulate": 2}, warm_up={"task": 1.0}))
    state = {name: tensor.clone() for name, tensor in pupil.model.state_dict().items()}
    links, goal = [], training.goal
    monkeypatch.setattr(training, "goal", lambda *given: links.append(given[1:3]) or goal(*given))
    between = course.masters[0].copy()
    trying.tried(course, pupil, [between])
    assert links == [(between, tuple(course.masters)), (pupil, (between,))]
    assert all(torch.equal(tensor, state[name]) for name, tensor in pupil.model.state_dict().items())
    wrong = course.masters[0].copy()
    wrong.model[2] = nn.Linear(6, 5)
    with pytest.raises(InputError):  # an assistant of other classes
        trying.tried(course, pupil, [wrong])
    with pytest.raises(InputError, match="these batches have none"):
        trying.tried(replace(course, lesson=replace(plain, task=1.0)), pupil, [])


def test_a_student_that_writes_is_tried_and_stays_as_it_is(of_texts, plain, monkeypatch):
    pupil, course = of_texts(replace(plain, on_policy=0.5, direction="reverse"))
    between = course.masters[0].copy()
    links, goal, written, rollouts = [], training.goal, [], training.rollouts
    monkeypatch.setattr(training, "goal", lambda *given: links.append(given[1:3]) or goal(*given))
    monkeypatch.setattr(training, "rollouts", lambda *given: written.append(given[1]) or rollouts(*given))
    pupil.model.train()
    pupil.model.lm_head.eval()
    modes = [module.training for module in pupil.model.modules()]
    state = {name: tensor.clone() for name, tensor in pupil.model.state_dict().items()}
    settings, chance = pupil.model.generation_config.to_dict(), torch.get_rng_state()
    trying.tried(course, pupil, [between])
    assert written == [between, pupil]
    assert links == [(between, tuple(course.masters)), (pupil, (between,))]
    assert torch.equal(torch.get_rng_state(), chance)
    assert [module.training for module in pupil.model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in pupil.model.state_dict().items())
    assert pupil.model.generation_config.to_dict() == settings


def test_a_student_that_can_not_write_and_a_teacher_that_can_not_score_are_refused_in_a_line(of_texts, plain):
    lesson = replace(plain, on_policy=1.0, direction="reverse")

    def fails(*_, **__):
        raise RuntimeError("no cache\nhere")

    pupil, course = of_texts(lesson)
    pupil.model.generate = fails
    with pytest.raises(InputError) as caught:
        trying.tried(course, pupil, [])
    said = "LlamaForCausalLM can't write on from a prompt, as on-policy asks: RuntimeError: no cache here"
    assert str(caught.value) == said
    pupil, course = of_texts(lesson)
    course.masters[1].model.model.register_forward_pre_hook(fails)
    with pytest.raises(InputError) as caught:
        trying.tried(course, pupil, [])
    said = "what LlamaForCausalLM writes can't be scored by its teacher: RuntimeError: no cache here"
    assert str(caught.value) == said
    pupil, course = of_texts(lesson)
    with torch.no_grad():
        course.masters[0].model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"by its teacher: the loss is nan$"):
        trying.tried(course, pupil, [])
    course = replace(course, lesson=replace(lesson, prompt=10_000, length=10_001))
    with pytest.raises(InputError, match="are more than the model's"):
        trying.tried(course, pupil, [])


def test_a_plan_trains_a_copy_for_one_step(of_networks, plain):
    pupil, course = of_networks(replace(plain, steps=50))
    state = pupil.model[2].weight.clone()
    found = trying.planned(course, pupil)
    assert torch.equal(pupil.model[2].weight, state)
    assert found.predicted["examples"] == 50 * 8
    assert found.predicted["teacher parameters"] == 2 * found.predicted["params"] == 2 * 51
    assert found.predicted["seconds"] == pytest.approx(50 * found.predicted["seconds per step"])
    assert found.settings["teachers"] == ["one", "two"]
    assert found.verdict == "dry run"
