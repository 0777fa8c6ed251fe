"""What is found in the answers of an ONNX file is what the network finds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import vision_models
import yolo
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.measure import detection
from secateur.subjects.network import detectors
from secateur.subjects.network.exported import Exported
from secateur.vocabulary import Selection

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
DATA = yolo.squares(5)


class Session:
    """In the place of onnxruntime's: a network itself, for two images at a time."""

    model = yolo.tiny()

    def __init__(self, file: str, providers: list[str]) -> None:
        self.shape = [2, 3, 64, 64]

    def get_inputs(self):
        return [SimpleNamespace(name="images", shape=self.shape)]

    @torch.no_grad()
    def run(self, names, given):
        assert given["images"].shape == tuple(self.shape)
        return [one.numpy() for one in type(self).model(torch.from_numpy(given["images"]))]


@pytest.mark.wide
def test_what_a_file_finds_is_what_the_cut_network_finds(tmp_path):
    dense = detectors.open_detector(yolo.tiny(), DATA.inputs[:1])
    keep = {name: np.arange(site.count) % 2 == 0 for name, site in dense.units().sites.items()}
    subject, _ = dense.cut(Selection(keep))
    small = subject.model.eval()
    for head in small.cls:  # or nothing is sure enough to be found
        torch.nn.init.constant_(head[1].bias, 0.5)
    subject.export_onnx(tmp_path / "model.onnx")
    file = Exported(yolo.tiny(), tmp_path / "model.onnx")
    wanted, found = small.detect(DATA.inputs), file.detect(DATA.inputs)
    assert any(len(one["boxes"]) for one in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert len(one["boxes"]) == len(other["boxes"])
        # One to one and not in order: on some processors two boxes whose scores are all but equal change places.
        apart = torch.cdist(one["boxes"], other["boxes"], p=float("inf"))
        apart = apart.maximum(100 * (one["scores"][:, None] - other["scores"]).abs())
        apart = apart.maximum((one["labels"][:, None] != other["labels"]).float()).numpy()
        assert apart[linear_sum_assignment(apart)].max(initial=0) < 1e-2
    batches = [DATA.batch()]
    assert detection.all_point(file.detect, batches).value == pytest.approx(
        detection.all_point(small.detect, batches).value, abs=1e-3
    )
    assert "forward" not in vars(file.model)
    with pytest.raises(InputError, match=r"answers .* the detector .*: give the file that was exported from it"):
        Exported(yolo.Yolo(3, (4, 8, 8, 12, 16)), tmp_path / "model.onnx").detect(DATA.inputs)


def test_a_detector_of_torchvision_and_a_file_of_one_shape(monkeypatch):
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    nets = []
    for seed in (0, 1):
        net = vision_models.ssd(8, seed, classes=3)
        net.score_thresh = 0.0
        nets.append(detectors.adapt(net).eval())
    monkeypatch.setattr(Session, "model", nets[0])
    images = DATA.inputs[:3]
    wanted, found, own = nets[0].detect(images), Exported(nets[1], "ssd.onnx").detect(images), nets[1].detect(images)
    for one, other, third in zip(found, wanted, own, strict=True):
        assert torch.allclose(one["scores"], other["scores"], atol=1e-4)
        assert torch.allclose(one["boxes"], other["boxes"], atol=1e-2)
        assert not torch.equal(one["scores"], third["scores"]), "of the file, not of the model beside it"


def test_what_can_not_be_found_in_a_file_is_said(tmp_path, monkeypatch):
    staged = vision_models.rcnn(8, 32)
    with pytest.raises(UnsupportedError, match="graph of FasterRCNN judges fixed regions"):
        Exported(detectors.adapt(staged), tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="can't be read as ONNX"):
        Exported(yolo.tiny(), tmp_path / "none.onnx")
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr(yolo.Yolo, "detect", lambda self, images: [])
    with pytest.raises(UnsupportedError, match=r"Yolo\.detect does not go through forward"):
        Exported(yolo.tiny(), tmp_path / "none.onnx").detect(DATA.inputs)
