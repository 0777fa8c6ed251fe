"""Who teaches, what is learned from, and how each is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from secateur.errors import UnsupportedError
from secateur.runs.backends.network import Network
from secateur.runs.distilling import setup as courses
from secateur.subjects import open_subject


def test_several_teachers_answer_as_their_mean_by_shares(of_networks, plain):
    student, setup = of_networks(replace(plain, shares=(3.0, 1.0)))
    first = setup.batches[0]
    each = [one.model(first["inputs"]).softmax(-1) for one in setup.teachers]
    together = setup.join(student, setup.teachers, 1.0)(first).prediction.softmax(-1)
    torch.testing.assert_close(together, 0.75 * each[0] + 0.25 * each[1])
    alone = setup.join(student, setup.teachers[1:], 1.0)(first).prediction
    torch.testing.assert_close(alone.softmax(-1), each[1])
    assert not alone.requires_grad
    assert setup.forward(student)(first).prediction.requires_grad  # as a learner is asked
    assert setup.count(first) == {"examples": 8, "sequences": 8} | setup.count(first)


def test_answers_that_are_given_stand_for_the_teachers(of_networks):
    student, setup = of_networks()
    given = courses.Answer(torch.eye(3))
    assert setup.join(student, setup.teachers[:1], 1.0, [lambda batch: given])({}) is given
    assert courses.predict(lambda batch: given, {}) is given.prediction


def test_a_network_without_rows_of_classes_is_no_teacher(of_networks):
    _, setup = of_networks()
    flat = Network().open(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Unflatten(1, (2, 2))), None, setup.train
    )
    with pytest.raises(UnsupportedError, match=r"gives \[8, 2, 2\], no classes of examples or pixels"):
        setup.forward(flat)(setup.batches[0])


def test_texts_of_aligned_teachers_stand_beside_the_student_s(of_texts, plain):
    student, setup = of_texts(replace(plain, align=True))
    first = setup.batches[0]
    assert {f"{courses.reading_name(number)}.pairs" for number in range(2)} <= first.keys()
    assert setup.by_characters(student)
    assert sorted(setup.foreign(student)) == [courses.reading_name(0), courses.reading_name(1)]
    assert [one.weight for one in setup.foreign(student).values()] == [0.5, 0.5]
    assert not of_texts()[1].by_characters(student)


def test_an_aligned_teacher_of_whole_texts_reads_them_for_itself(of_texts, plain):
    _, setup = of_texts(replace(plain, align=True))
    student, teacher = (
        open_subject(tiny.classifier(seed=seed).eval(), tokenizer=tiny.tokenizer()) for seed in range(2)
    )
    setup = replace(setup, teachers=(teacher,))
    assert not setup.by_characters(student)
    first = {"input_ids": torch.tensor([[6, 7]]), "teacher0.input_ids": torch.tensor([[8, 9, 10]])}
    first |= {key.replace("input_ids", "attention_mask"): torch.ones_like(ids) for key, ids in first.items()}
    theirs = teacher.forward({key: first[f"teacher0.{key}"] for key in ("input_ids", "attention_mask")}).prediction
    torch.testing.assert_close(setup.ask(teacher)(first).prediction, theirs)
    torch.testing.assert_close(setup.forward(student)(first).prediction, student.forward(first).prediction)
    assert not torch.allclose(theirs, teacher.forward(first).prediction)


def test_packed_texts_are_the_stream_of_language_models(of_texts, plain):
    student, setup = of_texts()
    assert setup.of_texts
    assert setup.output(student) == "logits"
    assert bool(setup.batches[0]["attention_mask"].all())  # packed
    again = courses.make_batches(replace(plain, seed=1), student, setup.train)
    assert not torch.equal(again[0]["input_ids"], setup.batches[0]["input_ids"])
