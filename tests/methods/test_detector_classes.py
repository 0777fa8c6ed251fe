"""Labels of the data become the detector's own: by names, by ids, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.retinanet import RetinaNet

import secateur
import vision_models
import yolo
from secateur.data.examples import Examples
from secateur.errors import DataError
from secateur.measure import detection
from secateur.methods.detector_classes import match_classes, need_boxes
from secateur.subjects.network import detectors

COCO = {1: "person", 17: "cat", 44: "bottle", 90: "toothbrush"}
"""Some of COCO's 80 classes with its original ids, of which 11 are missing between 1 and 90."""


NAMES, IDS = tuple(COCO.values()), tuple(COCO)


def scenes(names=NAMES, ids=IDS, labels=(0, 1, 2, 3)):
    boxes = torch.tensor([[4.0 + 4 * n, 4, 30 + 4 * n, 30] for n in range(len(labels))])
    target = {"boxes": boxes, "labels": torch.tensor(labels)}
    return Examples(torch.rand(1, 3, 64, 64), None, (target,), tuple(names), "scenes", ids=tuple(ids))


def labels(data):
    return data.targets[0]["labels"].tolist()


@pytest.mark.parametrize(
    ("build", "first"),
    [
        (lambda: vision_models.rcnn(8, 32, classes=91), 1),
        (lambda: vision_models.ssd(8, classes=91), 1),
        (lambda: vision_models.dense(RetinaNet, 8, classes=91), 0),
    ],
)
def test_a_detector_of_torchvision_with_91_classes_is_given_cocos_original_ids(build, first):
    net = build()
    model = detectors.adapt(net)
    data = match_classes(scenes(), model)
    seen = []
    net.forward = lambda images, targets: seen.extend(targets) or {"loss": torch.zeros(())}
    model.train().loss(data.batch())
    assert seen[0]["labels"].tolist() == list(COCO), "what the weights were trained with"
    assert data.classes[17 - first] == "cat"
    assert data.notes == (
        "classes of scenes have the detector's own numbers, by name: person 1, cat 17, bottle 44, toothbrush 90",
    )
    again = match_classes(data, model)
    assert labels(again) == labels(data)
    assert again.notes == data.notes
    pytest.importorskip("pycocotools")
    boxes, kinds = data.targets[0]["boxes"], torch.tensor(list(COCO))
    found = [{"boxes": boxes, "scores": torch.ones(4), "labels": kinds}]
    net.forward = lambda images: found
    assert detection.average_precision(model.detect, [data.batch()])["mAP"].value == pytest.approx(1.0)


def test_names_are_compared_without_case_spaces_and_hyphens_and_vocs_stand_for_cocos():
    data = scenes(("TV-Monitor", "tvmonitor", "Dining_Table", "sofa"), (), (1, 2, 3))
    matched = match_classes(data, detectors.adapt(vision_models.rcnn(8, 32, classes=91)))
    assert labels(matched) == [71, 66, 62]
    with pytest.raises(DataError, match="boxes of 'unicorn', and a detector of torchvision with 91 classes is taken"):
        match_classes(scenes(("cat", "unicorn"), (), (0, 1)), detectors.adapt(vision_models.rcnn(8, 32, classes=91)))


class Counted(yolo.Yolo):
    nc = 6


class Named(yolo.Yolo):
    def __init__(self, names) -> None:
        super().__init__(3, (4, 8, 8, 12, 16))
        self.names = names


@pytest.mark.parametrize("names", [["cat", "person", "bottle"], {0: "cat", 1: "person", 2: "bottle"}])
def test_names_that_the_detector_says_are_followed(names):
    data = scenes(labels=(0, 1, 2))
    assert labels(match_classes(data, Named(names))) == [1, 0, 2]
    with pytest.raises(DataError, match=r"scenes has boxes of 'toothbrush', and the detector knows 3 others \(cat, "):
        match_classes(scenes(), Named(names))


@pytest.mark.parametrize("names", [{0: "0", 1: "1", 2: "2"}, {0: "LABEL_0", 1: "LABEL_1"}, ["class0", "class_1"]])
def test_names_that_only_number_the_classes_are_none(names):
    data = scenes(labels=(0, 1, 2))
    assert labels(match_classes(data, Named(names))) == [0, 1, 2]


def test_categories_with_a_background_are_torchvisions_own_lists():
    net = vision_models.rcnn(8, 32, classes=4)
    net.categories = ["__background__", "bottle", "N/A", "cat"]
    assert labels(match_classes(scenes(labels=(1, 2)), detectors.adapt(net))) == [2, 0]


def test_the_names_of_a_config_are_followed():
    model = yolo.tiny()
    model.config = nn.Module()
    model.config.id2label = {"0": "bottle", "1": "cat"}
    assert labels(match_classes(scenes(labels=(1, 2)), model)) == [1, 0]


@pytest.mark.parametrize(
    ("classes", "ids", "wanted", "words"),
    [
        (5, (1, 3, 7, 9), [0, 1, 2, 3], None),  # as many as the data has: in their order
        (10, (1, 3, 7, 9), [0, 2, 6, 8], "the detector's own numbers, by their ids, of which the largest"),
        (
            40,
            (1, 3, 7, 9),
            [0, 1, 2, 3],
            "has 39 classes, scenes 4, and not both have names: they are",
        ),
        (3, (1, 3, 7, 9), [0, 1, 2, 3], None),  # too few: refused where labels are checked
        (91, (1, 3, 7, 90), [0, 2, 6, 89], "the detector's own numbers, by their ids"),  # of others than COCO's
    ],
)
def test_without_names_the_ids_decide(classes, ids, wanted, words):
    data = match_classes(scenes("abcd", ids), detectors.adapt(vision_models.rcnn(8, 32, classes=classes)))
    assert labels(data) == wanted
    assert words in data.notes[0] if words else not data.notes
    again = match_classes(data, detectors.adapt(vision_models.rcnn(8, 32, classes=classes)))
    assert (labels(again), again.notes) == (wanted, data.notes)


@pytest.mark.parametrize(
    ("build", "ids", "wanted"),
    [
        (lambda: detectors.adapt(vision_models.dense(RetinaNet, 8, classes=91)), range(1, 86), [13, 85]),
        (lambda: detectors.adapt(vision_models.dense(RetinaNet, 8, classes=7)), range(1, 4), [1, 3]),
        (lambda: detectors.adapt(vision_models.rcnn(8, 32, classes=91)), range(1, 86), [12, 84]),
        (lambda: Counted(6, (4, 8, 8, 12, 16)), range(1, 4), [1, 3]),
        (lambda: detectors.adapt(vision_models.rcnn(8, 32, classes=7)), range(4), [0, 3]),
    ],
)
def test_labels_of_python_that_have_no_names_are_the_detectors_own_numbers(build, ids, wanted):
    """A detector without a background has had label 13 for 13, not for the 13th of the classes."""
    model, first = build(), ids[0]
    seen = [13 - first, 85 - first] if len(ids) > 80 else [0, len(ids) - 1] if first == 0 else [0, 2]
    data = match_classes(scenes([""] * len(ids), tuple(ids), seen), model)
    assert labels(data) == wanted
    assert labels(match_classes(data, model)) == wanted
    assert not any(data.classes), "names of COCO would be a guess"
    if ids[0] == 0:
        assert "id 0, id 1, id 2, id 3" in data.notes[0]


def test_labels_without_names_or_ids_stay():
    data = dataclasses.replace(scenes(), classes=(), ids=())
    assert match_classes(data, detectors.adapt(vision_models.rcnn(8, 32, classes=91))) is data


def test_crowds_are_renumbered_too():
    data = scenes()
    target = {**data.targets[0], "crowds": torch.tensor([[0.0, 0, 9, 9]]), "crowd_labels": torch.tensor([3])}
    matched = match_classes(
        dataclasses.replace(data, targets=(target,)), detectors.adapt(vision_models.rcnn(8, 32, classes=91))
    )
    assert matched.targets[0]["crowd_labels"].tolist() == [89]


def test_data_without_boxes_is_refused():
    with pytest.raises(DataError, match="pets has no boxes, and a detector learns from boxes: give images with"):
        need_boxes(Examples(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), name="pets"))


def coco_folder(root):
    """Three images of unequal sizes with a box each, of COCO's ids 17, 44 and 90."""
    rows, images = [], []
    for number, (kind, size) in enumerate(zip((17, 44, 90), ((60, 40), (30, 50), (64, 64)), strict=True)):
        root.mkdir(exist_ok=True)
        Image.new("RGB", size, (9, 9, 200)).save(root / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg"})
        rows.append({"id": number, "image_id": number, "category_id": kind, "bbox": [4, 4, 20, 20]})
    kinds = [{"id": kind, "name": name} for kind, name in COCO.items()]
    (root / "labels.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": kinds}))
    return root


def test_a_dry_run_on_a_folder_of_coco_tells_what_was_matched_and_refuses_data_without_boxes(tmp_path):
    net = vision_models.rcnn(8, 128, classes=91)
    how = dict(budget="channels=98%", out=tmp_path / "out", size=64, dry_run=True)
    (row,) = secateur.run("yolov8_cwd", net, coco_folder(tmp_path / "set"), **how)
    assert "the detector's own numbers, by name: person 1, cat 17, bottle 44, toothbrush 90" in str(row.cut.notes)
    for kind in ("a", "b"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 64), (9, 9, 70 * number)).save(tmp_path / "pets" / kind / f"{number}.png")
    with pytest.raises(DataError, match="pets has no boxes, and a detector learns from boxes"):
        secateur.run("yolov8_cwd", net, tmp_path / "pets", **how)
    assert not (tmp_path / "out").exists()
