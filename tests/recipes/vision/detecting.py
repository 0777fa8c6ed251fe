"""Runs of recipes for detectors on a YOLO of 20 thousand parameters and images of squares."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import yolo
from secateur.recover.training import loop
from secateur.subjects.network import detectors
from secateur.subjects.network.proof import Fault
from secateur.subjects.network.traced import CutError, Traced

DATA = yolo.squares(16)


@cache
def analysed() -> Traced:
    return detectors.open_detector(yolo.tiny(), DATA.inputs[:1])


def subject() -> Traced:
    """One of the caller's own, whose analysis is done once."""
    return analysed().copy()


def frozen() -> Traced:
    """A detector whose batch norms have scales that do not learn."""
    net = yolo.tiny()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    return detectors.open_detector(net, DATA.inputs[:1])


def nothing_written(root: Path) -> bool:
    return not [path for path in (root / "work").rglob("*") if path.is_file()]


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))


def make_site_fail(monkeypatch: pytest.MonkeyPatch, site: str) -> list[str]:
    """Let every cut of `site` fail its proof; returns the order in which cuts and trainings begin."""
    order, cut, train = list[str](), Traced.cut, loop.train

    def faulty(self, selection, **how):
        order.append("cut")
        if not selection.keep.get(site, np.ones(1, bool)).all():
            raise CutError("not there", Fault(site.rpartition(".")[0], "made up"))
        return cut(self, selection, **how)

    monkeypatch.setattr(Traced, "cut", faulty)
    monkeypatch.setattr(loop, "train", lambda *args, **how: order.append("train") or train(*args, **how))
    return order
