"""Detectors of three makes behind four names: own ones, torchvision's, and Ultralytics' where it is installed."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet

import second_device
import vision_models
import yolo
from secateur._utils import devices
from secateur.errors import InputError, UnsupportedError
from secateur.recover.training import detecting
from secateur.score import magnitude
from secateur.select import ranking
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Detector, Torchvision

BATCH = {
    "inputs": torch.rand(2, 3, 96, 96),
    "targets": [
        {"boxes": torch.tensor([[8.0, 8, 40, 56]]), "labels": torch.tensor([0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ],
}


MAKES = {
    "SSD": lambda **how: vision_models.ssd(8, size=96, classes=4, **how),
    "FasterRCNN": lambda **how: vision_models.rcnn(8, 32, classes=4, **{"size": 96, **how}),
    "RetinaNet": lambda **how: vision_models.dense(RetinaNet, 8, size=96, classes=4, **how),
    "FCOS": lambda **how: vision_models.dense(FCOS, 32, size=96, classes=4, **how),
}


@pytest.mark.parametrize(
    ("name", "first"),
    [("SSD", 1), ("FasterRCNN", 1), ("RetinaNet", 0), ("FCOS", 0)],
)
def test_torchvision_detectors_are_traced_cut_and_trained(name, first):
    net = MAKES[name]()
    before = copy.deepcopy(net.state_dict())
    subject = detectors.open_detector(net, BATCH["inputs"][:1])
    assert subject.model.first == first
    small, cut = subject.cut(
        ranking.by_budget(subject.units(), magnitude.coupled_norm(subject.slices()), "channels=50%", scope="local")
    )
    assert cut.after["params"] < 0.5 * cut.before["params"]
    assert small.error <= 1e-5
    model = small.model
    assert isinstance(model, Detector)
    means = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    quiet = model.eval().loss(BATCH)
    assert not model.training
    assert all(torch.equal(means[key], value) for key, value in model.named_buffers() if "running" in key)
    model.train().loss(BATCH).backward()
    assert torch.isfinite(quiet)
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0
    found = model.detect(BATCH["inputs"])
    assert model.training, "asking for detections leaves the mode as it was"
    assert len(found) == 2
    assert all(0 <= label < 4 for one in found for label in one["labels"].tolist())
    assert all(one.dim() == 4 and len(one) == 2 for one in model.features(BATCH["inputs"]))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    answers_can_be_learned(model, subject.model)
    assert model.exclusive == bool(first)


def answers_can_be_learned(student: nn.Module, teacher: nn.Module) -> None:
    """Both answer for the same places, in pixels; what is learned is the teacher's, which learns nothing."""
    images = BATCH["inputs"]
    with torch.no_grad():  # fresh heads of some say nearly the same everywhere
        for weight in teacher.parameters():
            weight += 0.02 * torch.randn_like(weight)
    regions = [teacher.proposals(images)] if getattr(teacher, "staged", False) else []
    with torch.no_grad():
        places = [one.eval().predictions(images, *regions) for one in (student, teacher)]
    (boxes, logits), (wanted, told) = places
    assert boxes.shape == wanted.shape
    assert logits.shape == told.shape
    assert boxes.shape[-1] == 4
    detectors.check_predictions(teacher, images[:1])

    def zero(batch, totals):
        return batch["inputs"].new_zeros(()), {}

    objective = detecting.answering(zero, student.train(), teacher, temperature=3.0, weights=(1.0, 1.0))
    total, parts = objective(BATCH, {"examples": 2})
    assert set(parts) == {"kd", "boxes"}
    assert parts["kd"] > 0
    assert total.item() == pytest.approx(float(parts["kd"] + parts["boxes"]), rel=1e-5)
    for one in (student, teacher):
        one.zero_grad()
    total.backward()
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in teacher.parameters())
    same = detecting.answering(zero, teacher.eval(), teacher, temperature=3.0, weights=(1.0, 1.0))
    assert same(BATCH, {"examples": 2})[0].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", MAKES)
def test_what_is_detected_is_among_the_predictions(name):
    net = MAKES[name]().eval()
    (net.roi_heads if hasattr(net, "roi_heads") else net).score_thresh = 0.0
    net.transform.min_size, net.transform.max_size = (128,), 128
    model, images = detectors.adapt(net), BATCH["inputs"][:1]
    with torch.no_grad():
        regions = [model.proposals(images)] if model.staged else []
        boxes, logits = model.predictions(images, *regions)
    (found,) = model.detect(images)
    assert len(found["boxes"])
    inside = boxes.flatten(0, -2).clamp(0, 96)
    apart = (found["boxes"][:20, None] - inside[None]).abs().amax(-1)
    assert float(apart.min(1).values.max()) < 1e-2, "boxes in pixels of the images as they were given"
    scores = logits.softmax(-1)[..., 1:] if model.exclusive else logits.sigmoid()
    if name != "FCOS":  # whose scores are of centres as well
        assert found["scores"].max().item() == pytest.approx(scores.max().item(), rel=1e-3)


def test_the_loss_and_the_detections_are_the_models_own():
    net = MAKES["SSD"]()
    wrapped = detectors.adapt(net)
    assert isinstance(wrapped, Torchvision)
    wrapped.train()
    targets = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in BATCH["targets"]]
    state = copy.deepcopy(net.state_dict())
    wanted = sum(net(list(BATCH["inputs"]), targets).values())
    net.load_state_dict(state)
    assert wrapped.loss(BATCH).item() == pytest.approx(wanted.item(), rel=1e-5)
    net.eval()
    with torch.no_grad():
        theirs = net(list(BATCH["inputs"]))
    ours = wrapped.detect(BATCH["inputs"])
    for one, other in zip(ours, theirs, strict=True):
        kept = other["labels"] > 0
        assert torch.equal(one["boxes"], other["boxes"][kept])
        assert torch.equal(one["labels"], other["labels"][kept] - 1)


def staged(**how) -> Torchvision:
    return detectors.adapt(MAKES["FasterRCNN"](**how))


@pytest.mark.parametrize("training", [False, True])
def test_sampled_regions_are_those_of_the_loss_with_their_classes(training):
    net = staged().train(training)
    torch.manual_seed(1)
    wanted = net.loss(BATCH)
    torch.manual_seed(1)
    found = net.sample_regions(BATCH)
    assert torch.equal(found.loss, wanted)
    assert net.training == training
    assert [one.shape[1] for one in found.boxes] == [4, 4]
    rows = sum(map(len, found.boxes))
    assert found.features.shape == (rows, 32)
    assert found.logits.shape == (rows, 4)
    assert found.labels.shape == (rows,)
    first = found.labels[: len(found.boxes[0])]
    true = BATCH["targets"][0]["boxes"]
    from torchvision.ops import box_iou

    inside = box_iou(found.boxes[0], true)[:, 0] >= 0.5
    assert inside.any(), "the true box is among the regions"
    assert torch.equal(first, inside.long()), "class 0 of the data is 1 behind the background"
    assert not found.labels[len(first) :].any(), "an image without objects has background only"
    linear = net.get_submodule(net.reader)
    assert torch.allclose(linear(found.features), found.logits, atol=1e-5), (
        "the feature is what the classes are read of"
    )


def test_the_same_regions_are_judged_alike_and_in_pixels_of_the_images_as_given():
    net = staged().eval()
    with torch.no_grad():
        found = net.sample_regions(BATCH)
        again = net.judge_regions(BATCH["inputs"], found.boxes)
        assert torch.allclose(again.features, found.features, atol=1e-5)
        assert torch.allclose(again.logits, found.logits, atol=1e-5)
        assert again.labels is None
        other = staged(size=192).eval()  # looks at twice the pixels: the same places of the images
        whole = [torch.tensor([[0.0, 0, 96, 96]])] * 2
        twice = functional.interpolate(BATCH["inputs"], scale_factor=2.0, mode="bilinear")
        double = [torch.tensor([[0.0, 0, 192, 192]])] * 2
        assert torch.allclose(
            other.judge_regions(BATCH["inputs"], whole).features, other.judge_regions(twice, double).features, atol=1e-3
        )
        boxes = other.sample_regions(BATCH).boxes
        assert float(torch.cat(boxes).max()) <= 96


def test_the_student_samples_regions_and_the_teacher_judges_the_same():
    student, teacher = (
        detectors.Regions.of(
            detectors.open_detector(staged(seed=seed).eval(), BATCH["inputs"][:1]), BATCH["inputs"][:1]
        )
        for seed in (1, 0)
    )
    torch.manual_seed(2)
    ours, theirs = student.beside_teacher(teacher, BATCH)
    torch.manual_seed(2)
    assert torch.equal(student.model.sample_regions(BATCH).logits, ours.logits)
    assert torch.equal(teacher.model.judge_regions(BATCH["inputs"], ours.boxes).features, theirs.features)
    assert not theirs.features.requires_grad
    assert ours.features.requires_grad
    assert student.labels_in(BATCH["targets"]).tolist() == [1, 0], "the background is a class"
    with pytest.raises(UnsupportedError, match="no detector of two stages"):
        detectors.Regions.of(detectors.open_detector(yolo.tiny(), torch.rand(1, 3, 64, 64)), BATCH["inputs"])


def test_detectors_of_one_stage_have_no_regions():
    assert detectors.two_stage(staged()).first == 1
    for name in ("RetinaNet", "FCOS"):
        with pytest.raises(UnsupportedError, match=f"{name} is no detector of two stages"):
            detectors.two_stage(detectors.adapt(MAKES[name]()))
    with pytest.raises(UnsupportedError, match="Yolo is no detector of two stages"):
        detectors.two_stage(yolo.tiny())


def test_a_module_with_the_four_names_is_a_detector():
    net = yolo.tiny()
    assert detectors.adapt(net) is net
    subject = detectors.open_detector(net, torch.rand(1, 3, 64, 64))
    assert detectors.open_detector(subject) is subject
    with pytest.raises(UnsupportedError, match="features"):
        detectors.adapt(nn.Linear(2, 2))
    with pytest.raises(InputError, match="images"):
        detectors.open_detector(net)


@pytest.mark.parametrize("name", MAKES)
def test_a_label_that_the_detector_does_not_know_is_one_line(name):
    net = detectors.adapt(MAKES[name]())
    known = 3 - net.first
    for label in (known, known + 1):
        target = {"boxes": torch.tensor([[8.0, 8, 40, 56]]), "labels": torch.tensor([label])}
        batch = {"inputs": BATCH["inputs"], "targets": [target, BATCH["targets"][1]]}
        if label == known:
            assert torch.isfinite(net.loss(batch))
            continue
        with pytest.raises(
            InputError, match=f"label {label}: this detector knows 0 to {known}; build it for 5 classes"
        ):
            net.loss(batch)


def test_regions_are_the_image_and_its_quarters():
    found = detectors.regions(8, 4)
    assert found[0].tolist() == [0, 0, 4, 8]
    area = (found[:, 2:] - found[:, :2]).prod(1)
    assert area[1:].sum() == area[0]


class _Detect(nn.Module):
    """The last layer of a model of Ultralytics, as far as it is looked at here."""

    f = (0,)

    def __init__(self) -> None:
        super().__init__()
        self.cv2, self.dfl = nn.Conv2d(4, 6, 1), nn.Conv2d(2, 1, 1, bias=False).requires_grad_(False)

    def forward(self, maps):
        return self.cv2(maps[0])


def _model_of_ultralytics() -> nn.Module:
    """One of their class, by its name; its loss keeps a criterion with tensors of its own, as theirs does."""

    class DetectionModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU())
            self.model = nn.ModuleList([first, _Detect()])

        def forward(self, images):
            return self.model[1]([self.model[0](images)])

        def loss(self, batch):
            if getattr(self, "criterion", None) is None:
                self.criterion = torch.arange(6.0, device=self.model[1].cv2.bias.device)
            found = (self(batch["img"]).mean((2, 3)) * self.criterion).sum() * self.args.box
            return found[None], found.detach()

    DetectionModel.__module__ = "ultralytics.nn.tasks"
    DetectionModel.__qualname__ = "DetectionModel"
    return DetectionModel()


def test_a_checkpoint_of_ultralytics_holds_frozen_weights_and_is_trained_all_the_same():
    """Their `strip_optimizer` freezes all weights of best.pt; their own trainer thaws them, too."""
    model = detectors.adapt(_model_of_ultralytics().requires_grad_(False))
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == {
        "detector.model.1.dfl.weight"
    }
    model.train().loss(BATCH).backward()
    assert model.detector.model[0][1].weight.grad is not None
    partly = _model_of_ultralytics()
    partly.model[0].requires_grad_(False)
    assert not any(weight.requires_grad for weight in detectors.adapt(partly).detector.model[0].parameters())


def test_the_loss_of_ultralytics_follows_the_model_to_another_device_and_back():
    """Training takes a model to a GPU and brings it back; its criterion stays where it was made."""
    model = detectors.adapt(_model_of_ultralytics())
    with second_device.present(), torch.no_grad():
        here = model.loss(BATCH).item()
        model.to(second_device.DEVICE)
        assert model.loss(devices.move(BATCH, model)).cpu().item() == pytest.approx(here)
        assert model.to("cpu").loss(BATCH).item() == pytest.approx(here)


def test_ultralytics_models_are_traced_cut_and_trained():
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.manual_seed(0)
    net = tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    subject = detectors.open_detector(net, BATCH["inputs"][:1])
    small, cut = subject.cut(
        ranking.by_budget(subject.units(), magnitude.coupled_norm(subject.slices()), "channels=50%", scope="local")
    )
    assert cut.after["params"] < 0.4 * cut.before["params"]
    model = small.model
    model.train().loss(BATCH).backward()
    assert len(model.features(BATCH["inputs"])) == 3
    assert len(model.eval().detect(BATCH["inputs"])) == 2
    answers_can_be_learned(model, subject.model)
    images = BATCH["inputs"]
    with torch.no_grad():
        boxes, logits = subject.model.predictions(images)
        raw = subject.model.eval()(images).transpose(1, 2)
    assert torch.allclose(logits.sigmoid(), raw[..., 4:], atol=1e-5)
    assert torch.allclose(boxes[..., 2:] - boxes[..., :2], raw[..., 2:4], atol=1e-3)
    made = detectors.trainer(model)
    assert made.get_model(None, cfg="yolov8n.yaml") is model.detector, "what is trained is the cut module itself"


def test_ultralytics_own_trainer_trains_what_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    from PIL import Image
    from ultralytics import YOLO

    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / part).mkdir(parents=True)
        for number in range(4):
            picture = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8)
            Image.fromarray(picture.numpy()).save(tmp_path / "images" / part / f"{number}.png")
            (tmp_path / "labels" / part / f"{number}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    names = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": {0: "a", 1: "b", 2: "c"}}
    (tmp_path / "data.yaml").write_text(json.dumps(names))
    torch.manual_seed(0)
    subject = detectors.open_detector(tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False), BATCH["inputs"][:1])
    scores = magnitude.coupled_norm(subject.slices())
    small, cut = subject.cut(ranking.by_budget(subject.units(), scores, "channels=50%", scope="local"))
    user = YOLO("yolov8n.yaml", verbose=False)
    user.train(
        data=str(tmp_path / "data.yaml"), trainer=detectors.trainer(small.model), epochs=1, imgsz=64, batch=4,
        workers=0, device="cpu", project=str(tmp_path / "runs"), plots=False, verbose=False,
    )  # fmt: skip
    assert sum(p.numel() for p in user.model.parameters()) == cut.after["params"]


FRESH = """
import sys, torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import reload_traced

folder, images, wanted = sys.argv[1], *torch.load(sys.argv[1] + "/asked.pt")
with torch.no_grad():
    again = reload_traced(folder, detectors.adapt(DetectionModel("yolov8n.yaml", nc=3, verbose=False)), images)
    assert torch.allclose(again.model.eval()(images), wanted, atol=1e-5)
    theirs = YOLO(folder + "/cut.pt").model.eval()
    assert torch.allclose(theirs(images)[0], wanted, atol=1e-5)
    whole = torch.export.load(folder + "/model.pt2").module()
    assert torch.allclose(whole(images), wanted, atol=1e-4)
print(sum(p.numel() for p in theirs.parameters()))
"""


@pytest.mark.usefixtures("programs")
def test_a_cut_ultralytics_model_is_read_again_by_another_process(tmp_path: Path) -> None:
    """No YAML says what a cut left, so it stands in the folder, or in a checkpoint of Ultralytics' own form."""
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.manual_seed(0)
    images = BATCH["inputs"][:1]
    subject = detectors.open_detector(tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False), images)
    scores = magnitude.coupled_norm(subject.slices())
    small, cut = subject.cut(ranking.by_budget(subject.units(), scores, "channels=50%", scope="local"))
    small.save(tmp_path, program=True)
    with torch.no_grad():
        torch.save((images, small.model.eval()(images)), tmp_path / "asked.pt")
    torch.save({"model": small.model.detector}, tmp_path / "cut.pt")
    env = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert int(told.stdout.split()[-1]) == cut.after["params"]
