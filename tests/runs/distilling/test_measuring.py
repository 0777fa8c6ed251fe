"""What is measured of a student, beside its teachers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secateur.errors import DataError
from secateur.measure import loyalty
from secateur.runs.distilling import measuring
from secateur.vocabulary import Evidence, Figure


def test_loyalty_is_to_the_teachers_together_and_to_each_alone(of_networks):
    pupil, course = of_networks()
    row, known, why = measuring.measured(course, pupil, None)
    items = list(course.held.in_order(40))
    assert len(items) == 1
    ours, *theirs = (one.model(items[0]["inputs"]).softmax(-1) for one in (pupil, *course.masters))
    assert row["label_loyalty"].value == loyalty.label(ours, loyalty.averaged(theirs)).value
    assert (row["params"].value, known["params"].value) == (51, 102)
    assert "zeros" not in known
    assert why == ""
    lines = measuring.to_each(course, pupil)
    for line, name, one in zip(lines, course.names, theirs, strict=True):
        assert line.startswith(f"to the teacher {name} alone: probability loyalty")
        assert f"label loyalty {loyalty.label(ours, one)}" in line
    assert measuring.to_each(replace(course, masters=course.masters[:1]), pupil) == []


def test_an_aligned_teacher_that_is_the_student_is_not_apart_from_it(of_texts, plain):
    pupil, course = of_texts(replace(plain, align=True))
    twin = replace(course, masters=(pupil.copy(), course.masters[0]), names=("twin", "other"))
    row, known, _ = measuring.measured(twin, pupil, None)
    assert known == {}
    both, (first, second) = measuring._apart(twin, pupil)
    assert first["shared_kl"].value == pytest.approx(0.0, abs=1e-5)
    assert first["shared_label_loyalty"].value == 1.0
    assert second["shared_kl"].value > 0.01
    assert both["shared_kl"].value == row["shared_kl"].value == pytest.approx(second["shared_kl"].value / 2, rel=1e-3)
    alike = second["shared_probability_loyalty"]
    assert alike.samples == len(twin.held) > 1  # texts are the sample, of several tokens each
    assert 0 < alike.low < alike.value < alike.high < 1


def test_data_that_tells_no_quality_is_refused_and_models_that_have_none_yet_are_not(of_texts, of_networks, plain):
    for lesson in (plain, replace(plain, align=True)):
        pupil, course = of_texts(lesson)
        few = replace(course, held=course.held.take([0]))
        assert "less than one batch" in measuring.measured(few, pupil, None)[2]
        with pytest.raises(DataError, match=r"can't be measured on the held-out data: .* less than one batch"):
            measuring.beforehand(few, pupil, None)
    course.masters[0].tokenizer = None
    assert "no tokenizer" in measuring.beforehand(replace(course, lesson=plain), pupil, None)[2]
    pupil, course = of_networks()
    for parameter in pupil.model[2].parameters():
        parameter.data.zero_()
    assert "collapsed" in measuring.beforehand(course, pupil, None)[2]
    course = replace(course, held=course.held.take(range(3)))
    with pytest.raises(DataError, match="n >= 4"):
        measuring.beforehand(course, pupil, None)


def test_a_verdict_is_by_the_first_measure_that_tells():
    row = Evidence(recipe="distill", target="1 steps")
    assert measuring.verdict(row) == ""
    both = {"accuracy": Figure(0.9), "shared_kl": Figure(0.5)}
    row = replace(row, before=both, after={"accuracy": Figure(0.8), "shared_kl": Figure(0.25)})
    assert measuring.verdict(row) == "met: shared kl 0.5 -> 0.25"
    row = replace(row, before={"accuracy": Figure(0.9)})
    assert measuring.verdict(row) == "failed: the student is no nearer to its teachers, accuracy 0.9 -> 0.8"
