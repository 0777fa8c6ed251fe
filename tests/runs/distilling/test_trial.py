"""What is tried before anything is measured or written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from secateur.errors import InputError
from secateur.runs.distilling import training, trial
from secateur.subjects import open_subject


def test_options_of_classes_are_refused_where_one_number_is_told(of_networks, plain):
    student, setup = of_networks(classes=1)
    with pytest.raises(InputError, match="use --direction mse"):
        trial.check_number(setup, student)
    by_square = replace(setup, settings=replace(plain, direction="mse"))
    with pytest.raises(InputError, match="name one teacher"):
        trial.check_number(by_square, student)
    trial.check_number(replace(by_square, names=("one",)), student)
    with pytest.raises(InputError, match="leave task out"):
        trial.check_number(replace(setup, settings=replace(plain, direction="mse", task=1.0), names=("one",)), student)
    trial.check_number(*reversed(of_networks()))


def test_several_numbers_of_a_text_are_no_classes(of_texts, plain):
    """A student was taught by divergences of softmax, which numbers all off by 7 do not change."""
    _, setup = of_texts()
    setup = replace(setup, names=("one",))
    student = open_subject(tiny.classifier("abc", problem="regression"), tokenizer=tiny.tokenizer())
    with pytest.raises(InputError, match="the student tells numbers: use --direction mse"):
        trial.check_number(setup, student)
    by_square = replace(plain, direction="mse")
    trial.check_number(replace(setup, settings=by_square), student)
    with pytest.raises(InputError, match="leave task out"):
        trial.check_number(replace(setup, settings=replace(by_square, task=1.0)), student)


def test_labels_of_which_several_hold_are_no_classes(of_texts, plain):
    _, setup = of_texts()
    model = tiny.classifier("abc", problem="multi_label_classification")
    student = open_subject(model, tokenizer=tiny.tokenizer())
    with pytest.raises(InputError, match="the student tells labels of which several may hold: use --direction binary"):
        trial.check_number(setup, student)
    each = replace(plain, direction="binary")
    with pytest.raises(InputError, match="name one teacher"):
        trial.check_number(replace(setup, settings=each), student)
    trial.check_number(replace(setup, settings=each, names=("one",)), student)
    with pytest.raises(InputError, match="leave task out"):
        trial.check_number(replace(setup, settings=replace(each, task=1.0), names=("one",)), student)
    with pytest.raises(InputError, match="the student is none: leave direction out"):
        trial.check_number(replace(setup, settings=each), setup.teachers[0])


def test_the_first_loss_is_asked_for_in_each_link(of_networks, plain, monkeypatch):
    student, setup = of_networks(replace(plain, training={"accumulate": 2}, warm_up={"task": 1.0}))
    state = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    links, goal = [], training.make_objective
    monkeypatch.setattr(training, "make_objective", lambda *given: links.append(given[1:3]) or goal(*given))
    between = setup.teachers[0].copy()
    trial.try_losses(setup, student, [between])
    assert links == [(between, tuple(setup.teachers)), (student, (between,))]
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.model.state_dict().items())
    wrong = setup.teachers[0].copy()
    wrong.model[2] = nn.Linear(6, 5)
    with pytest.raises(InputError):  # an assistant of other classes
        trial.try_losses(setup, student, [wrong])
    with pytest.raises(InputError, match="these batches have none"):
        trial.try_losses(replace(setup, settings=replace(plain, task=1.0)), student, [])


def test_a_student_that_writes_is_tried_and_stays_as_it_is(of_texts, plain, monkeypatch):
    student, setup = of_texts(replace(plain, on_policy=0.5, direction="reverse"))
    between = setup.teachers[0].copy()
    links, goal, written, rollouts = [], training.make_objective, [], training.rollouts
    monkeypatch.setattr(training, "make_objective", lambda *given: links.append(given[1:3]) or goal(*given))
    monkeypatch.setattr(training, "rollouts", lambda *given: written.append(given[1]) or rollouts(*given))
    student.model.train()
    student.model.lm_head.eval()
    modes = [module.training for module in student.model.modules()]
    state = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    settings, chance = student.model.generation_config.to_dict(), torch.get_rng_state()
    trial.try_losses(setup, student, [between])
    assert written == [between, student]
    assert links == [(between, tuple(setup.teachers)), (student, (between,))]
    assert torch.equal(torch.get_rng_state(), chance)
    assert [module.training for module in student.model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.model.state_dict().items())
    assert student.model.generation_config.to_dict() == settings


def test_a_student_that_can_not_write_and_a_teacher_that_can_not_score_are_refused_in_a_line(of_texts, plain):
    settings = replace(plain, on_policy=1.0, direction="reverse")

    def fails(*_, **__):
        raise RuntimeError("no cache\nhere")

    student, setup = of_texts(settings)
    student.model.generate = fails
    with pytest.raises(InputError) as caught:
        trial.try_losses(setup, student, [])
    said = "LlamaForCausalLM can't write on from a prompt, as on-policy asks: RuntimeError: no cache here"
    assert str(caught.value) == said
    student, setup = of_texts(settings)
    setup.teachers[1].model.model.register_forward_pre_hook(fails)
    with pytest.raises(InputError) as caught:
        trial.try_losses(setup, student, [])
    said = "what LlamaForCausalLM writes can't be scored by its teacher: RuntimeError: no cache here"
    assert str(caught.value) == said
    student, setup = of_texts(settings)
    with torch.no_grad():
        setup.teachers[0].model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"by its teacher: the loss is nan$"):
        trial.try_losses(setup, student, [])
    setup = replace(setup, settings=replace(settings, prompt=10_000, length=10_001))
    with pytest.raises(InputError, match="are more than the model's"):
        trial.try_losses(setup, student, [])


def test_a_plan_trains_a_copy_for_one_step(of_networks, plain):
    student, setup = of_networks(replace(plain, steps=50))
    state = student.model[2].weight.clone()
    found = trial.plan(setup, student)
    assert torch.equal(student.model[2].weight, state)
    assert found.predicted["examples"] == 50 * 8
    assert found.predicted["teacher parameters"] == 2 * found.predicted["params"] == 2 * 51
    assert found.predicted["seconds"] == pytest.approx(50 * found.predicted["seconds per step"])
    assert found.settings["teachers"] == ["one", "two"]
    assert found.verdict == "dry run"
