"""Features before the logits of small classifiers, and of the regions of a small Faster R-CNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vision_models
import yolo
from assets.scenes import scenes
from recipes.vision import nets
from secateur.errors import InputError, UnsupportedError
from secateur.methods.penultimate import Classifier, Detector, logit_layers
from secateur.recover.distillation import taps
from secateur.recover.training.mixing import Mix
from secateur.subjects import open_traced
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced

DATA = nets.data(16)
BATCH = {"inputs": DATA.inputs, "labels": DATA.labels}


def opened(model: nn.Module) -> Traced:
    return open_traced(model.eval(), DATA.inputs[:2])


def test_heads_of_classes_and_of_distillation_are_told_apart():
    assert logit_layers(opened(nets.vit(depth=1, two=True))) == ("net.cls_classifier", "net.distillation_classifier")
    assert logit_layers(opened(nets.Apart())) == ("head", "head_dist")
    assert logit_layers(opened(nets.vgg())) == ("15",)
    assert logit_layers(opened(nets.Headless())) == ()


def test_a_network_without_a_linear_head_or_with_two_features_has_one_named():
    with pytest.raises(InputError, match="no linear layer of this Headless gives its logits: name the module"):
        Classifier.of(opened(nets.Headless()))
    named = Classifier.of(opened(nets.Headless()), "body")
    assert (named.name, named.width, named.classes) == ("body", 8, 4)
    with pytest.raises(InputError, match=r"head and head_dist read features of widths 8 and 6: name one, feature="):
        Classifier.of(opened(nets.Apart(6)))
    assert Classifier.of(opened(nets.Apart(6)), "head@input").width == 8


@pytest.mark.parametrize("mix", [None, Mix(mixup=1.0), Mix(cutmix=1.0)], ids=["plain", "mixup", "cutmix"])
def test_both_see_one_mixed_batch(mix):
    net = nets.vgg().eval()
    classifier = Classifier.of(opened(net), staged=True)
    torch.manual_seed(3)
    view = classifier.view(classifier, BATCH, mix)
    torch.manual_seed(3)
    inputs, order, share = mix(BATCH["inputs"]) if mix else (BATCH["inputs"], torch.arange(16), 1.0)
    assert view.share == share
    assert torch.equal(view.others, BATCH["labels"][order])
    assert torch.equal(view.student.logits, net(inputs))
    assert torch.equal(view.student.features, net[:-1](inputs))
    assert torch.equal(view.teacher.features, view.student.features)
    assert not view.teacher.features.requires_grad
    assert [tuple(one.shape[1:]) for one in view.student.maps] == list(classifier.shapes)


@pytest.mark.parametrize("net", [nets.vit(depth=1, two=True), nets.Apart()], ids=["deit", "apart"])
def test_of_two_heads_the_feature_is_the_mean_of_what_they_read(net):
    student = Classifier.of(opened(net))
    with taps.tap(net, student.places) as read:
        whole = net(BATCH["inputs"])
    net.train()
    found = student(BATCH["inputs"])
    torch.testing.assert_close(found.features, (read[0] + read[1]) / 2)
    torch.testing.assert_close(found.logits, whole)
    for answer, name, feature in zip(found.heads, student.readers, read, strict=True):
        torch.testing.assert_close(answer, net.get_submodule(name)(feature))


SCENES = scenes(4, size=64)


def rcnn(width: int, seed: int = 0) -> Detector:
    net = detectors.adapt(vision_models.rcnn(width, 32, seed=seed)).eval()
    return Detector.of(detectors.open_detector(net, SCENES.inputs[:1]), SCENES)


def test_the_student_samples_regions_and_the_teacher_judges_the_same():
    student, teacher = rcnn(4, seed=1), rcnn(8)
    batch = SCENES.batch()
    torch.manual_seed(2)
    view = student.view(teacher, batch)
    torch.manual_seed(2)
    ours = student.model.sampled(batch)
    theirs = teacher.model.judged(batch["inputs"], ours.boxes)
    assert torch.equal(view.student.logits, ours.logits)
    assert torch.equal(view.labels, ours.labels)
    assert view.student.loss == ours.loss
    assert torch.equal(view.teacher.features, theirs.features)
    assert not view.teacher.features.requires_grad
    assert view.student.features.requires_grad
    assert set(student.labels_in(SCENES).tolist()) == {
        0,
        *(1 + torch.cat([t["labels"] for t in SCENES.targets])).tolist(),
    }


def test_a_detector_of_one_stage_is_refused():
    with pytest.raises(UnsupportedError, match="no detector of two stages"):
        Detector.of(detectors.open_detector(yolo.tiny(), SCENES.inputs[:1]), SCENES)
