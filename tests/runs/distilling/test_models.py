"""Who is in the chain of teaching, what each tells, and who can't be held together."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM

import second_device
import tiny
from secateur._utils import devices
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.recover.distillation import teachers
from secateur.runs import exporting
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.distilling import models
from secateur.subjects import open_subject


def test_a_learner_is_a_copy_and_a_teacher_is_not(of_networks):
    given, setup = of_networks()
    first = models.open_student(Network(), given, None, setup.train)
    second = models.open_student(Network(), given.model, None, setup.train, first)
    assert len({id(one.model[0].weight) for one in (given, first, second)}) == 3
    assert models.open_teacher(Network(), given.model, None, setup.train, first).model is given.model


def test_networks_learn_and_teach_on_a_device_and_what_was_given_stays_where_it_is(of_networks):
    given, setup = of_networks()
    with second_device.present():
        first = models.open_student(Network(), given, second_device.NAME, setup.train)
        above = models.open_teacher(Network(), given.model, second_device.DEVICE, setup.train, first)
        again = models.open_teacher(Network(), above.model, second_device.NAME, setup.train, first)
        found = [devices.find_device(one.model).type for one in (first, above, given)]
    assert found == [second_device.NAME, second_device.NAME, "cpu"]
    assert again.model is above.model, "it lies there already"
    with second_device.present():
        parted = copy.deepcopy(above.model)
        list(parted.children())[-1].to("cpu")
        brought = models.open_teacher(Network(), parted, second_device.NAME, setup.train, first).model
        assert {tensor.device.type for tensor in brought.parameters()} == {second_device.NAME}
    compiled = torch.compile(given.model, backend="eager")
    assert models.open_teacher(Network(), compiled, "cpu", setup.train, given).model is compiled
    with pytest.raises(UnsupportedError, match="device 'auto' splits folders of transformers: name one for networks"):
        models.open_student(Network(), given, "auto", setup.train)


def test_a_teacher_is_opened_split_or_packed(tmp_path):
    student = open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer())
    folder = tiny.folder("llama", tmp_path / "teacher")
    plain, split = (models.open_teacher(Language(), folder, place, None, student) for place in (None, "auto"))
    batch = student.example(1, 5)
    assert torch.equal(plain.forward(batch).prediction, split.forward(batch).prediction)
    models.check_chain(student, [], [split], align=False)
    halves = models.open_student(Language(), folder, "auto", None)
    assert torch.equal(plain.forward(batch).prediction, halves.forward(batch).prediction)
    with pytest.raises(InputError, match="and not packed"):
        models.open_teacher(Language(), folder, "auto", None, student, bits=8)
    if importlib.util.find_spec("torchao"):
        packed = models.open_teacher(Language(), plain, None, None, student, bits=4)
        assert not torch.equal(plain.forward(batch).prediction, packed.forward(batch).prediction)
        assert isinstance(plain.model.model.layers[0].mlp.up_proj, nn.Linear), "what was given stays as it is"
        exporting.write(plain, tmp_path / "int8", "int8")
        stored = models.open_teacher(Language(), tmp_path / "int8", None, None, student)
        torch.testing.assert_close(plain.forward(batch).prediction, stored.forward(batch).prediction, atol=0.05, rtol=0)
        assert teachers.fingerprint(stored.model) != teachers.fingerprint(plain.model)


def test_a_teacher_of_which_parts_lie_elsewhere_passes(tmp_path):
    student, teacher = (open_subject(tiny.model("llama", seed), tokenizer=tiny.tokenizer()) for seed in range(2))
    batch = student.example(2, 5)
    wanted = teacher.forward(batch).prediction
    places = {"model": "cpu", "lm_head": "disk"}
    teacher.model = dispatch_model(teacher.model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    models.check_chain(student, [], [teacher], align=False)
    bare = teacher.forward(batch, head=False)
    assert bare.head is None
    assert torch.equal(bare.prediction, wanted)
    with pytest.raises(UnsupportedError, match=r"the student is offloaded, .*: open it without device_map"):
        models.check_chain(teacher, [], [student], align=False)


def test_a_teacher_of_which_nothing_is_in_memory_passes_and_a_learner_does_not():
    student, teacher = (open_subject(tiny.model("llama", seed), tokenizer=tiny.tokenizer()) for seed in range(2))
    away = cpu_offload(copy.deepcopy(teacher.model), "cpu")
    opened = models.open_teacher(Language(), away, "cpu", None, student)
    assert opened.model is away
    models.check_chain(student, [], [opened], align=False)
    batch = student.example(2, 5)
    bare = opened.forward(batch, head=False)
    assert bare.head is None, "its head has let its weights go when a loss would call it"
    assert torch.equal(bare.prediction, teacher.forward(batch).prediction)
    with pytest.raises(UnsupportedError, match=r"the assistant is offloaded, .*: open it without device_map; only a"):
        models.check_chain(student, [opened], [teacher], align=False)
    with pytest.raises(UnsupportedError, match="the teacher is offloaded, and only weights in memory are packed:"):
        models.open_teacher(Language(), away, None, None, student, bits=8)


def test_networks_teach_whole(of_networks):
    given, setup = of_networks()
    with pytest.raises(UnsupportedError, match="stay whole"):
        models.open_teacher(Network(), given.model, "auto", setup.train, given)


def test_weights_are_read_from_a_file_of_that_network(of_networks, tmp_path):
    student, _ = of_networks()
    save_file(
        {name: torch.ones_like(part) for name, part in student.model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert models.load_weights(student, tmp_path / "w.safetensors") is student
    assert bool((student.model[2].weight == 1).all())
    save_file({"0.weight": torch.ones(2, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors are of another network"):
        models.load_weights(student, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="can't be read as safetensors"):
        models.load_weights(student, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="name the folder of this model instead"):
        models.load_weights(nn.Linear(2, 2), tmp_path)


def test_what_tells_of_whole_texts_(of_networks):
    kinds = {
        "causal": open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()),
        "masked": open_subject(BertForMaskedLM(tiny.model("bert").config), tokenizer=tiny.tokenizer()),
        "classes": open_subject(tiny.classifier(), tokenizer=tiny.tokenizer()),
    }
    assert [name for name, one in kinds.items() if models.gives_rows(one)] == ["classes"]
    assert not models.gives_rows(of_networks()[0])


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_numbers_and_labels_are_not_taught_as_classes(kind):
    """As by a folder whose config lost its problem_type."""
    own, plain = (open_subject(tiny.classifier("abc"), tokenizer=tiny.tokenizer()) for _ in range(2))
    own.model.config.problem_type = kind
    models.check_classes(own, own, "the student", "teacher")
    for pair in ((own, plain), (plain, own)):
        with pytest.raises(InputError, match=r"classes of which one holds.*problem_type in config\.json"):
            models.check_classes(*pair, "the student", "teacher")


def test_options_that_a_kind_of_student_can_not_follow_are_refused(of_networks, plain):
    student, _ = of_networks()
    models.check_kind(plain, student, True)
    for how, words in (({"hidden": True}, "hidden states of networks"), ({"cache": 3}, "cache=3 keeps the likeliest")):
        with pytest.raises(UnsupportedError, match=words):
            models.check_kind(replace(plain, **how), student, True)


def test_a_chain_of_models_that_lie_apart_or_can_not_be_trained_is_refused(of_networks):
    student, setup = of_networks()
    models.check_chain(student, [], setup.teachers, False)
    away = setup.teachers[1].copy()
    away.model.to("meta")
    with pytest.raises(InputError, match="the teacher has parameters without values"):
        models.check_chain(student, [], [setup.teachers[0], away], False)
    with pytest.raises(InputError, match="the assistant has parameters without values"):
        models.check_chain(student, [away], setup.teachers, False)
    counting = setup.teachers[1].copy()
    counting.model.table = nn.Parameter(torch.ones(8, 3, dtype=torch.int32), requires_grad=False)
    with pytest.raises(InputError, match="the teacher has weights of type int32: give it in floating point"):
        models.check_chain(student, [], [counting], False)
