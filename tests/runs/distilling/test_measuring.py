"""What is measured of a student, beside its teachers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateur.data.examples import Examples
from secateur.errors import DataError
from secateur.measure import loyalty
from secateur.runs.distilling import measuring
from secateur.vocabulary import Evidence, Figure


def test_loyalty_is_to_the_teachers_together_and_to_each_alone(of_networks):
    student, setup = of_networks()
    row, known, why = measuring.measure_student(setup, student, None)
    items = list(setup.held.in_order(40))
    assert len(items) == 1
    ours, *theirs = (one.model(items[0]["inputs"]).softmax(-1) for one in (student, *setup.teachers))
    assert row["label_loyalty"].value == loyalty.label(ours, loyalty.average(theirs)).value
    assert (row["params"].value, known["params"].value) == (51, 102)
    assert "zeros" not in known
    assert why == ""
    lines = measuring.loyalty_notes(setup, student)
    for line, name, one in zip(lines, setup.names, theirs, strict=True):
        assert line.startswith(f"to the teacher {name} alone: probability loyalty")
        assert f"label loyalty {loyalty.label(ours, one)}" in line
    assert measuring.loyalty_notes(replace(setup, teachers=setup.teachers[:1]), student) == []


def test_an_aligned_teacher_that_is_the_student_is_not_apart_from_it(of_texts, plain):
    student, setup = of_texts(replace(plain, align=True))
    twin = replace(setup, teachers=(student.copy(), setup.teachers[0]), names=("twin", "other"))
    row, known, _ = measuring.measure_student(twin, student, None)
    assert known == {}
    both, (first, second) = measuring._compare_aligned(twin, student)
    assert first["shared_kl"].value == pytest.approx(0.0, abs=1e-5)
    assert first["shared_label_loyalty"].value == 1.0
    assert second["shared_kl"].value > 0.01
    assert both["shared_kl"].value == row["shared_kl"].value == pytest.approx(second["shared_kl"].value / 2, rel=1e-3)
    alike = second["shared_probability_loyalty"]
    assert alike.samples == len(twin.held) > 1  # texts are the sample, of several tokens each
    assert 0 < alike.low < alike.value < alike.high < 1


def test_a_teacher_that_only_guesses_is_said_and_one_that_knows_is_not(of_networks, capsys):
    _, setup = of_networks()
    wrong, right = (teacher.model for teacher in setup.teachers)
    wrong.load_state_dict({name: -one if name[0] == "2" else one for name, one in right.state_dict().items()})
    inputs = torch.randn(60, 4)
    setup = replace(setup, held=Examples(inputs, right(inputs).argmax(-1), name="some"))
    (warning,) = measuring.warn_of_guessing(setup)
    assert warning.startswith("teacher 1 has accuracy ")
    assert "no better than guessing" in warning
    assert capsys.readouterr().err == f"warning: {warning}\n"
    (warning,) = measuring.warn_of_guessing(replace(setup, teachers=setup.teachers[:1]))
    assert warning.startswith("the teacher has accuracy ")


def test_data_that_tells_no_quality_is_refused_and_models_that_have_none_yet_are_not(of_texts, of_networks, plain):
    for settings in (plain, replace(plain, align=True)):
        student, setup = of_texts(settings)
        few = replace(setup, held=setup.held.take([0]))
        assert "less than one batch" in measuring.measure_student(few, student, None)[2]
        with pytest.raises(DataError, match=r"can't be measured on the held-out data: .* less than one batch"):
            measuring.measure_before(few, student, None)
    setup.teachers[0].tokenizer = None
    assert "no tokenizer" in measuring.measure_before(replace(setup, settings=plain), student, None)[2]
    student, setup = of_networks()
    for parameter in student.model[2].parameters():
        parameter.data.zero_()
    assert "collapsed" in measuring.measure_before(setup, student, None)[2]
    setup = replace(setup, held=setup.held.take(range(3)))
    with pytest.raises(DataError, match="n >= 4"):
        measuring.measure_before(setup, student, None)


def test_a_verdict_is_by_the_first_measure_that_tells():
    row = Evidence(recipe="distill", target="1 steps")
    assert measuring.verdict(row) == ""
    both = {"accuracy": Figure(0.9), "shared_kl": Figure(0.5)}
    row = replace(row, before=both, after={"accuracy": Figure(0.8), "shared_kl": Figure(0.25)})
    assert measuring.verdict(row) == "met: shared kl 0.5 -> 0.25"
    row = replace(row, before={"accuracy": Figure(0.9)})
    assert measuring.verdict(row) == "failed: the student is no nearer to its teachers, accuracy 0.9 -> 0.8"
