"""Who is in the chain of teaching, what each tells, and who can't be held together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertForMaskedLM

import tiny
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.runs.backends import language, network
from secateur.runs.distilling import members
from secateur.subjects import open_subject


def test_a_learner_is_a_copy_and_a_teacher_is_not(of_networks):
    given, course = of_networks()
    first = members.learner(network, given, None, course.train)
    second = members.learner(network, given.model, None, course.train, first)
    assert len({id(one.model[0].weight) for one in (given, first, second)}) == 3
    assert members.opened(network, given.model, None, course.train, first).model is given.model


def test_weights_are_read_from_a_file_of_that_network(of_networks, tmp_path):
    pupil, _ = of_networks()
    save_file(
        {name: torch.ones_like(part) for name, part in pupil.model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert members.weighted(pupil, tmp_path / "w.safetensors") is pupil
    assert bool((pupil.model[2].weight == 1).all())
    save_file({"0.weight": torch.ones(2, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors are of another network"):
        members.weighted(pupil, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="can't be read as safetensors"):
        members.weighted(pupil, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="name the folder of this model instead"):
        members.weighted(nn.Linear(2, 2), tmp_path)


def test_what_tells_of_whole_texts_and_what_of_masked_tokens():
    kinds = {
        "causal": open_subject(tiny.model("llama"), tokenizer=tiny.tokenizer()),
        "masked": open_subject(BertForMaskedLM(tiny.model("bert").config), tokenizer=tiny.tokenizer()),
        "classes": open_subject(tiny.classifier(), tokenizer=tiny.tokenizer()),
    }
    assert [name for name, one in kinds.items() if members.masked(one)] == ["masked"]
    assert [name for name, one in kinds.items() if members.of_whole_texts(language, one)] == ["classes"]
    assert not members.of_whole_texts(network, kinds["classes"])


def test_options_that_a_kind_of_student_can_not_follow_are_refused(of_networks, plain):
    pupil, _ = of_networks()
    members.check_kind(network, plain, pupil, True)
    for how, words in (({"hidden": True}, "hidden states of networks"), ({"cache": 3}, "cache=3 keeps the likeliest")):
        with pytest.raises(UnsupportedError, match=words):
            members.check_kind(network, replace(plain, **how), pupil, True)


def test_a_chain_of_models_that_lie_apart_or_can_not_be_trained_is_refused(of_networks):
    pupil, course = of_networks()
    members.check_chain(network, pupil, [], course.masters, False)
    away = course.masters[1].copy()
    away.model.to("meta")
    with pytest.raises(InputError, match="the teacher has parameters without values"):
        members.check_chain(network, pupil, [], [course.masters[0], away], False)
    with pytest.raises(InputError, match="the assistant has parameters without values"):
        members.check_chain(network, pupil, [away], course.masters, False)
