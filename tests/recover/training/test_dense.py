"""Losses of pixels: the plain formulas written out, pixels that count nowhere, sides that differ."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from secateur.errors import InputError, UnsupportedError
from secateur.recover.distillation import maps
from secateur.recover.training import dense, objectives


def maps_of(seed, side=6, classes=4):
    return torch.randn(3, classes, side, side, generator=torch.Generator().manual_seed(seed))


def labels_of(side=6):
    labels = torch.randint(4, (3, side, side), generator=torch.Generator().manual_seed(9))
    labels[0, 0] = 255
    labels[1, :, 2] = -100
    return labels


def totals_of(batch):
    return {"examples": 3, "sequences": 3, "pixels": dense.count_pixels(batch)}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_the_mean_over_pixels_that_count(temperature):
    student, teacher, batch = maps_of(0), maps_of(1), {"labels": labels_of()}
    counted = (batch["labels"] >= 0) & (batch["labels"] != 255)
    p, q = (functional.log_softmax(one / temperature, 1) for one in (teacher, student))
    by_hand = (p.exp() * (p - q)).sum(1)[counted].mean()
    pair = [dense.pixels(one) for one in (student, teacher)]
    value = objectives.prediction_loss(*pair, batch, totals_of(batch), temperature=temperature)
    factor = float(value / by_hand)
    assert factor == pytest.approx(1.0, rel=1e-5) or factor == pytest.approx(temperature**2, rel=1e-5)
    whole = objectives.prediction_loss(*pair, {}, totals_of({}), temperature=temperature)
    assert float(whole / (p.exp() * (p - q)).sum(1).mean()) == pytest.approx(factor, rel=1e-5)


def test_micro_batches_add_up_to_the_whole():
    student, teacher, labels = maps_of(0), maps_of(1), labels_of()
    totals = totals_of({"labels": labels})
    whole = objectives.prediction_loss(dense.pixels(student), dense.pixels(teacher), {"labels": labels}, totals)
    task = objectives.task_loss(dense.pixels(student), {"labels": labels}, totals, causal=False)
    parts = [slice(0, 1), slice(1, 3)]
    for expected, loss in (
        (whole, lambda s, t, b: objectives.prediction_loss(s, t, b, totals)),
        (task, lambda s, t, b: objectives.task_loss(s, b, totals, causal=False)),
    ):
        found = sum(
            loss(dense.pixels(student[part]), dense.pixels(teacher[part]), {"labels": labels[part]}) for part in parts
        )
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_channel_wise_is_the_published_loss_of_an_image():
    student, teacher = maps_of(0), maps_of(1)
    value = objectives.prediction_loss(
        dense.pixels(student), dense.pixels(teacher), {}, totals_of({}), temperature=4.0, direction="channel-wise"
    )
    assert float(value) == pytest.approx(float(maps.channel_wise(student, teacher, temperature=4.0) / 3), rel=1e-5)
    with pytest.raises(UnsupportedError, match="channel-wise is of classes of pixels"):
        objectives.prediction_loss(torch.zeros(2, 3), torch.ones(2, 3), {"input_ids": torch.zeros(2, 1)},
                                   {"sequences": 2}, direction="channel-wise")  # fmt: skip
    with pytest.raises(InputError, match="4 classes and the teacher 5"):
        objectives.prediction_loss(dense.pixels(student), dense.pixels(maps_of(1, classes=5)), {}, totals_of({}))


def test_a_student_of_other_sides_is_resized_to_its_teacher_and_to_the_mask():
    small, teacher, batch = maps_of(0, side=3).requires_grad_(), maps_of(1), {"labels": labels_of(12)}
    batch["labels"][0, :2] = 255
    student, mask, divide = dense.align(dense.pixels(small), dense.pixels(teacher), batch, totals_of(batch))
    assert student.shape == (3, 6, 6, 4)
    assert mask.shape == (3, 6, 6)
    assert not mask[0, 0].any()
    assert divide == pytest.approx(dense.count_pixels(batch) / 4)
    large = functional.interpolate(small, (12, 12), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(
        large, batch["labels"].masked_fill(batch["labels"] == 255, -100), reduction="sum"
    )
    value = dense.cross_entropy(dense.pixels(small), batch["labels"])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert small.grad is not None
    assert small.grad.abs().sum() > 0
    assert dense.align(dense.pixels(small), dense.pixels(teacher), {}, totals_of({}))[1] is None


def test_classes_of_pixels_and_of_examples_have_one_loss():
    outputs, labels = maps_of(0), labels_of()
    plain = labels.masked_fill(labels == 255, -100)
    assert float(dense.class_loss(outputs, labels)) == pytest.approx(
        3 * float(functional.cross_entropy(outputs, plain)), rel=1e-5
    )
    rows, kinds = outputs.mean((2, 3)), torch.tensor([0, 3, 1])
    assert float(dense.class_loss(rows, kinds)) == pytest.approx(
        float(functional.cross_entropy(rows, kinds, reduction="sum")), rel=1e-5
    )
    assert dense.count_pixels({"labels": kinds}) == 0


def test_one_logit_for_each_pixel_learns_by_binary_cross_entropy():
    outputs, labels = maps_of(0, classes=1), (labels_of() > 1).long()
    labels[0, 0] = 255
    counted = labels != 255
    expected = functional.binary_cross_entropy_with_logits(outputs[:, 0][counted], labels[counted].float())
    assert float(dense.class_loss(outputs, labels)) == pytest.approx(3 * float(expected), rel=1e-5)


@pytest.mark.parametrize("classes", [4, 300])
def test_what_is_divided_by_are_the_pixels_that_are_added_up(classes):
    batch = {"labels": labels_of()}
    outputs = torch.zeros(3, classes, 6, 6)
    totals = {"examples": 3, "sequences": 3, "pixels": dense.count_pixels(batch, classes)}
    task = objectives.task_loss(dense.pixels(outputs), batch, totals, causal=False)
    assert float(task) == pytest.approx(float(torch.tensor(classes).log()), rel=1e-5)
