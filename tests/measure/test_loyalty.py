"""Loyalty by hand, by SciPy, and at its limits: the student that is its teacher, and the one that never agrees."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import second_device
from secateur.errors import MeasurementError, NumericalError
from secateur.measure import loyalty, statistics


def drawn(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_student_that_is_its_teacher_is_wholly_loyal():
    rows = drawn(50, 7).softmax(-1)
    assert loyalty.label(rows, rows).value == 1.0
    assert loyalty.probability(rows, rows).value == 1.0
    numbers = drawn(50).numpy()
    found = loyalty.regression(numbers, numbers)
    assert (found["pearson"].value, found["spearman"].value) == pytest.approx((1.0, 1.0))
    assert found["rmse"].value == 0.0


def test_models_on_two_devices_are_held_together():
    with second_device.present():
        logits, mask = (drawn(2, 5, 7), drawn(2, 5, 7, seed=1)), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
        wanted = loyalty.Tally()
        wanted.add(logits, {"attention_mask": mask})
        for places in (("cpu", second_device.NAME), (second_device.NAME, "cpu")):
            tally = loyalty.Tally()
            tally.add([part.to(place) for part, place in zip(logits, places, strict=True)], {"attention_mask": mask})
            assert tally.figures() == wanted.figures()


def test_a_worked_example_in_both_bases():
    """Figures worked out by hand from the definition; SciPy takes the root itself."""
    student, teacher = torch.tensor([[0.75, 0.2, 0.05]]), torch.tensor([[0.8, 0.1, 0.1]])
    assert loyalty.probability(student, teacher).value == pytest.approx(0.86229, abs=5e-6)
    assert loyalty.probability(student, teacher, base=math.e).value == pytest.approx(0.88535, abs=5e-6)
    assert loyalty.probability(student, teacher).value == pytest.approx(
        1 - jensenshannon(student[0].double(), teacher[0].double(), base=2), abs=1e-7
    )


def test_probability_loyalty_is_symmetric_and_nothing_for_predictions_that_share_no_class():
    one, other = (drawn(40, 5, seed=seed).softmax(-1) for seed in (1, 2))
    assert loyalty.probability(one, other).value == loyalty.probability(other, one).value
    first, second = torch.eye(4)[[0, 1, 2]], torch.eye(4)[[1, 2, 3]]
    assert loyalty.probability(first, second).value == 0.0
    assert loyalty.label(first, second).value == 0.0
    assert loyalty.divergence(first, second).tolist() == [1.0, 1.0, 1.0]


def test_label_loyalty_counts_agreement_whatever_the_truth():
    student, teacher = (
        torch.tensor([[2.0, 1], [0, 3], [5, 1], [1, 0]]),
        torch.tensor([[9.0, 1], [1, 2], [0, 1], [1, 0]]),
    )
    found = loyalty.label(student, teacher)
    assert found.value == 0.75
    assert found.low < 0.75 < found.high


def test_regression_loyalty_does_not_change_with_scale_and_offset_but_its_error_does():
    teacher = drawn(60).numpy()
    student = teacher + drawn(60, seed=1, scale=0.5).numpy()
    plain, moved = loyalty.regression(student, teacher), loyalty.regression(3.0 * student + 7.0, teacher)
    assert moved["pearson"].value == pytest.approx(plain["pearson"].value)
    assert moved["spearman"].value == plain["spearman"].value
    assert moved["rmse"].value > plain["rmse"].value == pytest.approx(np.sqrt(np.mean((student - teacher) ** 2)))
    assert plain["rmse"].low < plain["rmse"].value < plain["rmse"].high
    assert loyalty.regression(-student, teacher)["pearson"].value == pytest.approx(-plain["pearson"].value)
    named = loyalty.numbers(student, teacher)
    assert named == {"pearson": plain["pearson"], "rank_loyalty": plain["spearman"], "rmse": plain["rmse"]}


def test_loyalty_of_several_numbers_is_the_mean_of_that_of_each():
    teacher = np.stack([drawn(60).numpy(), 50 + drawn(60, seed=1).numpy()], 1)
    student = np.stack([drawn(60, seed=2).numpy(), 50 + drawn(60, seed=3).numpy()], 1)
    each = [loyalty.numbers(student[:, column], teacher[:, column]) for column in range(2)]
    found = loyalty.numbers(student, teacher)
    for name in ("pearson", "rank_loyalty"):
        assert found[name].value == pytest.approx(np.mean([row[name].value for row in each]))
        assert abs(found[name].value) < 0.5, "that the columns lie apart is no agreement"
    assert found["rmse"].value == pytest.approx(np.sqrt(np.mean((student - teacher) ** 2)))
    assert loyalty.numbers(student[:, :1], teacher[:, :1]) == each[0]


def test_an_ensembles_loyalty_is_to_each_teacher_and_to_their_weighted_average():
    student, first, second = (drawn(30, 4, seed=seed).softmax(-1) for seed in (3, 4, 5))
    found = loyalty.to_each(loyalty.probability, student, {"A": first, "B": second}, weights=[3.0, 1.0])
    assert list(found) == ["A", "B", "ensemble"]
    assert found["A"] == loyalty.probability(student, first)
    mixed = loyalty.probability(student, 0.75 * first.double() + 0.25 * second.double())
    assert found["ensemble"].value == pytest.approx(mixed.value)
    assert list(loyalty.to_each(loyalty.label, student, {"A": first})) == ["A"]
    assert torch.allclose(loyalty.average([first, second], [1.0, 0.0]), first.double())


def test_intervals_hold_the_truth_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        agree = draw.random(60) < 0.7
        teacher = torch.eye(2)[np.zeros(60, int)]
        found = loyalty.label(torch.eye(2)[(~agree).astype(int)], teacher)
        hits += found.low <= 0.7 <= found.high
    assert 0.9 <= hits / 200 <= 0.99


def test_a_tally_is_the_loyalty_of_all_batches_together():
    teacher, student = drawn(10, 6, seed=6), drawn(10, 6, seed=7)
    tally = loyalty.Tally()
    for part in (slice(0, 3), slice(3, 10)):
        tally.add([teacher[part], student[part]], {"labels": torch.zeros(10, dtype=torch.long)[part]})
    found = tally.figures()
    whole = loyalty.probability(student.double().softmax(-1), teacher.double().softmax(-1))
    assert found["label_loyalty"] == loyalty.label(student, teacher)
    assert found["probability_loyalty"].value == pytest.approx(whole.value)
    assert found["probability_loyalty"].low == pytest.approx(whole.low)


def test_of_tokens_padding_does_not_count_and_texts_are_the_sample(monkeypatch):
    monkeypatch.setattr(loyalty, "_ELEMENTS", 12)  # two rows at a time
    teacher, student = drawn(3, 5, 6, seed=8), drawn(3, 5, 6, seed=9)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    teacher[mask == 0], student[mask == 0] = math.nan, 7.0
    tally = loyalty.Tally()
    tally.add([teacher, student], {"attention_mask": mask})
    ours, theirs = student[mask == 1], teacher[mask == 1]
    found = tally.figures()
    assert found["label_loyalty"].value == pytest.approx(loyalty.label(ours, theirs).value)
    wanted = loyalty.probability(ours.double().softmax(-1), theirs.double().softmax(-1)).value
    assert found["probability_loyalty"].value == pytest.approx(wanted)
    assert found["probability_loyalty"].samples == 3
    labelled = loyalty.Tally()
    labelled.add([teacher, student], {"attention_mask": mask, "labels": torch.where(mask == 1, 2, -100)})
    assert labelled.figures() == found
    equal = [statistics.per_item([1.0, 2.0, 3.0], [5, 2, 3]).samples, found["label_loyalty"].samples]
    assert equal == [3, 3]


def test_pairs_of_tokens_are_counted_by_the_text_that_they_stand_in():
    teacher, student = drawn(6, 5, seed=8), drawn(6, 5, seed=9)
    texts = torch.tensor([2, 0, 0, 2, 2, 5])
    tally, rows = loyalty.Tally(), loyalty.Tally()
    assert tally.seen == 0
    tally.add_pairs([teacher[:0], student[:0]], texts[:0])
    tally.add_pairs([teacher, student], texts)
    for text in (0, 2, 5):
        rows.add([teacher[texts == text][None], student[texts == text][None]], {})
    assert tally.figures() == rows.figures()
    assert (tally.seen, tally.figures()["label_loyalty"].samples) == (6, 3)


def test_padding_rows_of_a_vocabulary_are_left_aside():
    teacher = drawn(2, 4, 6, seed=10)
    tally = loyalty.Tally()
    tally.add([torch.cat([teacher, torch.full((2, 4, 2), 9.0)], -1), teacher], {})
    assert tally.figures()["label_loyalty"].value == tally.figures()["probability_loyalty"].value == 1.0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loyalty.label(torch.zeros(3, 2), torch.zeros(3, 4)), MeasurementError, "same classes"),
        (lambda: loyalty.probability(drawn(3, 2), drawn(3, 2)), MeasurementError, "give softmax of the logits"),
        (lambda: loyalty.probability(torch.full((1, 2), math.nan), torch.eye(2)[:1]), NumericalError, "NaN"),
        (lambda: loyalty.divergence(torch.eye(2), torch.eye(2), base=1.0), MeasurementError, "above 1"),
        (lambda: loyalty.average([torch.eye(2)], [0.0]), MeasurementError, "one of at least 0"),
        (lambda: loyalty.average([torch.eye(2), torch.eye(3)]), MeasurementError, "same classes"),
        (lambda: loyalty.regression([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), MeasurementError, "pairs that differ"),
        (lambda: loyalty.Tally().figures(), MeasurementError, "at least one batch"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_a_line(call, error, words):
    with pytest.raises(error, match=words):
        call()
