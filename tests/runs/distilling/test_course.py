"""Who teaches, what is learned from, and how each is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from secateur.errors import UnsupportedError
from secateur.runs.backends import language, network
from secateur.runs.distilling import course as courses
from secateur.subjects import open_subject


def test_several_teachers_answer_as_their_mean_by_shares(of_networks, plain):
    pupil, course = of_networks(replace(plain, shares=(3.0, 1.0)))
    first = course.stream[0]
    each = [one.model(first["inputs"]).softmax(-1) for one in course.masters]
    together = course.voices(pupil, course.masters, 1.0)(first).prediction.softmax(-1)
    torch.testing.assert_close(together, 0.75 * each[0] + 0.25 * each[1])
    alone = course.voices(pupil, course.masters[1:], 1.0)(first).prediction
    torch.testing.assert_close(alone.softmax(-1), each[1])
    assert not alone.requires_grad
    assert course.forward(pupil)(first).prediction.requires_grad  # as a learner is asked
    assert course.count(first) == {"examples": 8, "sequences": 8} | course.count(first)


def test_answers_that_are_given_stand_for_the_teachers(of_networks):
    pupil, course = of_networks()
    given = courses.Said(torch.eye(3))
    assert course.voices(pupil, course.masters[:1], 1.0, [lambda batch: given])({}) is given
    assert courses.predicted(lambda batch: given, {}) is given.prediction


def test_a_network_without_rows_of_classes_is_no_teacher(of_networks):
    _, course = of_networks()
    flat = network.opened(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Unflatten(1, (2, 2))), None, course.train
    )
    with pytest.raises(UnsupportedError, match=r"gives \[8, 2, 2\], no row of classes per example"):
        course.forward(flat)(course.stream[0])


def test_texts_of_aligned_teachers_stand_beside_the_student_s(of_texts, plain):
    pupil, course = of_texts(replace(plain, align=True))
    first = course.stream[0]
    assert {f"{courses.aside(number)}.pairs" for number in range(2)} <= first.keys()
    assert course.by_characters(pupil)
    assert sorted(course.foreign(pupil)) == [courses.aside(0), courses.aside(1)]
    assert [one.weight for one in course.foreign(pupil).values()] == [0.5, 0.5]
    assert not of_texts()[1].by_characters(pupil)


def test_an_aligned_teacher_of_whole_texts_reads_them_for_itself(of_texts, plain):
    _, course = of_texts(replace(plain, align=True))
    pupil, teacher = (open_subject(tiny.classifier(seed=seed).eval(), tokenizer=tiny.tokenizer()) for seed in range(2))
    course = replace(course, masters=(teacher,))
    assert not course.by_characters(pupil)
    first = {"input_ids": torch.tensor([[6, 7]]), "teacher0.input_ids": torch.tensor([[8, 9, 10]])}
    first |= {key.replace("input_ids", "attention_mask"): torch.ones_like(ids) for key, ids in first.items()}
    theirs = teacher.forward({key: first[f"teacher0.{key}"] for key in ("input_ids", "attention_mask")}).prediction
    torch.testing.assert_close(course.ask(teacher)(first).prediction, theirs)
    torch.testing.assert_close(course.forward(pupil)(first).prediction, pupil.forward(first).prediction)
    assert not torch.allclose(theirs, teacher.forward(first).prediction)


def test_packed_texts_are_the_stream_of_language_models(of_texts, plain):
    pupil, course = of_texts()
    assert course.of_texts
    assert course.output(pupil) == "logits"
    assert bool(course.stream[0]["attention_mask"].all())  # packed
    again = courses.stream(language, replace(plain, seed=1), pupil, course.train)
    assert not torch.equal(again[0]["input_ids"], course.stream[0]["input_ids"])
