"""What is tried before anything is measured or written."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from secateur.errors import InputError
from secateur.runs.backends.network import Network
from secateur.runs.distilling import training, trial
from secateur.subjects import open_subject

MEASURE = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from dataclasses import replace
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import tiny
from runs.distilling.conftest import PLAIN
from secateur.data import texts
from secateur.measure import memory
from secateur.runs import memory_steps
from secateur.runs.backends.language import Language
from secateur.runs.distilling import training, trial
from secateur.runs.distilling.setup import Setup, make_batches
from secateur.subjects import open_subject

def make(hidden):
    config = LlamaConfig(
        vocab_size=8192, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, bos_token_id=5, eos_token_id=6, pad_token_id=0,
    )
    return open_subject(LlamaForCausalLM(config), tokenizer=tiny.tokenizer())

student, teacher = make(256), make(384)
settings = replace(PLAIN, length=96, task=0.5)
data = texts.read(tiny.chains(400))
items = make_batches(settings, student, data, [teacher])
place = Language().environment(student, settings.batch, settings.length, None)
setup = Setup(Language(), settings, ("one",), [teacher], data, data, items, place)
described = list()
memory_steps.describe = lambda stages, device: described.append(stages) or "line"
assert trial.describe_memory(setup, student, [])
trial.try_losses(setup, student, [])  # what a first call allocates
found = memory.peak(lambda: training.train_student(setup, student, [teacher], None, "", 3))
print(json.dumps({"measured": described[0]["weights"] + found.extra, "planned": described[0]["training"]}))
"""


@pytest.mark.memory
def test_the_plan_is_within_15_percent_of_a_fresh_process() -> None:
    command = [sys.executable, "-c", MEASURE, json.dumps(sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


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


def test_a_plan_says_the_memory_of_training(of_networks, of_texts, plain):
    """Of several teachers, which are held all the time, and of a chain the link that takes most."""

    def say(setup, student, between=()):
        found = trial.describe_memory(setup, student, between)
        assert found.startswith("peak memory: weights "), found
        return found

    student, setup = of_networks(plain)
    state = student.model[2].weight.clone()
    alone = say(setup, student)
    assert " weights 612" in alone  # of all three
    assert torch.equal(student.model[2].weight, state)
    assert student.model[2].weight.grad is None
    wide = Network().open(nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 3)), None, setup.train)
    assert say(setup, student, [wide]) != alone
    student, setup = of_texts(plain)
    assert say(setup, student) != say(replace(setup, settings=replace(plain, training={"lora": 2})), student)
    for unknown in ({"on_policy": 0.5}, {"bits": 8}):
        assert not trial.describe_memory(replace(setup, settings=replace(plain, **unknown)), student, [])
