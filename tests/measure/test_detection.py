"""Average precision, by hand and against pycocotools."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import DataError, MeasurementError
from secateur.measure import detection

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 110, 110]])
TRUTH = [{"boxes": BOXES, "labels": torch.tensor([0, 0, 1])}, {"boxes": BOXES[:1] + 5, "labels": torch.tensor([0])}]
BATCH = [{"inputs": torch.zeros(2, 3, 120, 120), "targets": TRUTH}]


def answers(*rows):
    """One detector that says the same of everything: per image a list of (box, score, label)."""

    def detect(images):
        return [
            {
                "boxes": torch.tensor([box for box, _, _ in row]).reshape(-1, 4).float(),
                "scores": torch.tensor([score for _, score, _ in row]),
                "labels": torch.tensor([label for _, _, label in row], dtype=torch.long),
            }
            for row in rows
        ]

    return detect


PERFECT = answers(
    [(BOXES[0].tolist(), 0.9, 0), (BOXES[1].tolist(), 0.8, 0), (BOXES[2].tolist(), 0.7, 1)], [([5, 5, 15, 15], 0.9, 0)]
)


def test_all_points_by_hand():
    assert detection.all_point(PERFECT, BATCH).value == 1.0
    assert detection.all_point(answers([], []), BATCH).value == 0.0
    # Class 0 has three boxes: right, wrong, right, and one never found; a second answer to a box found is wrong.
    found = answers(
        [([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 9], 0.8, 0), ([21, 20, 40, 40], 0.7, 0), ([50, 50, 110, 110], 0.1, 0)],
        [],
    )
    wanted = (1 / 3 * 1 + 1 / 3 * 2 / 3) / 2
    assert detection.all_point(found, BATCH).value == pytest.approx(wanted)
    near = answers([([2, 0, 12, 10], 0.9, 0), ([22, 20, 42, 40], 0.9, 0)], [])
    assert detection.all_point(near, BATCH).value > 0
    assert detection.all_point(near, BATCH, iou=0.9).value == 0


def test_coco_and_sizes():
    pytest.importorskip("pycocotools")
    found = detection.average_precision(PERFECT, BATCH)
    assert set(found) == {"mAP", "AP50", "AP75", "mAP_small", "mAP_medium"}, "there is no large box by COCO's sizes"
    assert all(figure.value == pytest.approx(1.0) for figure in found.values())
    only = answers([(BOXES[0].tolist(), 0.9, 0)], [([5, 5, 15, 15], 0.9, 0)])
    by_size = detection.average_precision(only, BATCH, sizes=(15, 30))
    assert by_size["mAP_small"].value == pytest.approx(1.0)
    assert by_size["mAP_medium"].value == 0
    assert by_size["mAP_large"].value == 0
    none = detection.average_precision(answers([], []), BATCH, sizes=(15, 30))
    assert {name: figure.value for name, figure in none.items()} == dict.fromkeys(by_size, 0.0)


def test_sizes_are_pixels_or_shares_of_the_image():
    assert detection.squares((32, 96), (64, 640)) == (32, 96)
    assert detection.squares((0.05, 0.15), (2, 3, 480, 640)) == pytest.approx(detection.SIZES)
    assert "32 x 32 pixels of area, medium below 96 x 96, else large (COCO's" in detection.describe_sizes(
        (), (3, 64, 64)
    )
    pytest.importorskip("pycocotools")
    only = answers([(BOXES[0].tolist(), 0.9, 0)], [([5, 5, 15, 15], 0.9, 0)])
    in_pixels = detection.average_precision(only, BATCH, sizes=(15, 30))
    assert detection.average_precision(only, BATCH, sizes=(0.125, 0.25)) == in_pixels, "of 120 pixels"


def test_both_agree_on_random_answers():
    pytest.importorskip("pycocotools")
    torch.manual_seed(0)
    truth, given = [], []
    for _ in range(30):
        corner = torch.rand(6, 2) * 80
        boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(6, 2)], 1)
        truth.append({"boxes": boxes, "labels": torch.randint(0, 3, (6,))})
        moved = boxes + 4 * torch.randn(6, 4)
        given.append({"boxes": moved, "scores": torch.rand(6), "labels": truth[-1]["labels"]})
    batch = [{"inputs": torch.zeros(30, 3, 8, 8), "targets": truth}]
    ours = detection.all_point(lambda images: given, batch).value
    theirs = detection.average_precision(lambda images: given, batch)["AP50"].value
    assert 0.2 < ours < 0.95
    assert ours == pytest.approx(theirs, abs=0.02), "all points and 101 points"


def test_what_can_not_be_judged_is_refused():
    with pytest.raises(DataError, match="no boxes"):
        detection.all_point(PERFECT, [{"inputs": torch.zeros(2, 3, 8, 8)}])
    empty = [
        {"inputs": torch.zeros(1, 3, 8, 8), "targets": [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]}
    ]
    with pytest.raises(DataError, match="no box at all"):
        detection.all_point(answers([]), empty)
    with pytest.raises(MeasurementError, match="one each"):
        detection.all_point(answers([]), BATCH)
    broken = answers([([0, 0, float("nan"), 1], 0.5, 0)], [])
    with pytest.raises(MeasurementError, match="NaN"):
        detection.all_point(broken, BATCH)


def test_detections_in_crowds_count_neither_way():
    pytest.importorskip("pycocotools")
    crowd = {"crowds": torch.tensor([[60.0, 60, 110, 110]]), "crowd_labels": torch.tensor([0])}
    truth = {"boxes": BOXES[:1], "labels": torch.tensor([0])}
    inside = answers([(BOXES[0].tolist(), 0.8, 0), ([70, 70, 90, 90], 0.9, 0)])
    for target, wanted in ((truth | crowd, 1.0), (truth, 0.5)):
        batch = [{"inputs": torch.zeros(1, 3, 120, 120), "targets": [target]}]
        assert detection.average_precision(inside, batch)["mAP"].value == pytest.approx(wanted)
