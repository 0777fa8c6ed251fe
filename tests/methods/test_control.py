"""The control experiment of one cut, over seeds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from recipes.vision import nets
from secateur.errors import InputError
from secateur.methods.arms import Arm
from secateur.methods.control import LACKS, Control, describe, scratch_control
from secateur.methods.published_rules import prune
from secateur.vocabulary import Budget

QUICK = {"epochs": 2, "batch": 24, "lr": 0.05}


@pytest.fixture(scope="module")
def pruned():
    return prune(nets.opened(nets.vgg()), Budget.parse("channels=50%"), "l1")


def test_three_arms_and_a_control_of_units(pruned, tmp_path):
    found = scratch_control(pruned, nets.data(), seeds=(0, 1), out=tmp_path, pretrained=True, **QUICK)
    assert list(found.arms) == ["fine-tuned", "scratch-E", "scratch-B", "random units"]
    assert all(len(arms) == 2 for arms in found.arms.values())
    assert set(found.verdicts) == {"scratch-E", "scratch-B", "random units"}
    assert found.widths == {"0": 4, "3": 4, "7": 6, "10": 6, "15": 4}
    scratch_b = found.arms["scratch-B"][0]
    assert scratch_b.flops <= found.dense_flops < scratch_b.flops * (1 + 1 / scratch_b.epochs)
    page = (tmp_path / "report.md").read_text()
    for word in ("fine-tuned (classic)", "scratch-E", "scratch-B", "random units", "Training FLOPs", LACKS):
        assert word in page
    assert page == found.to_markdown()
    best = [cell.strip() for cell in re.search(r"scratch-E.*", page)[0].split("|")][2]
    assert 0 <= float(best) <= 100


def test_a_network_for_each_seed(pruned):
    seen = []

    def make(seed):
        seen.append(seed)
        return pruned

    found = scratch_control(make, nets.data(), mode="E", seeds=(4, 5), chance=False, **QUICK)
    assert seen == [4, 5]
    assert list(found.arms) == ["fine-tuned", "scratch-E"]
    assert found.arms["scratch-E"][0].accuracy != found.arms["scratch-E"][1].accuracy or not torch.equal(
        found.arms["scratch-E"][0].model[0].weight, found.arms["scratch-E"][1].model[0].weight
    )


def arm(right):
    return Arm(1, 1.0, np.array(right, bool), torch.nn.Identity())


def control(tuned, fresh, seeds):
    return Control({"fine-tuned": tuned, "scratch-E": fresh}, seeds, "classic", 1.0, {})


def test_verdicts_are_paired_over_seeds_or_over_examples():
    better = [arm([1, 1, 1, 0]), arm([1, 1, 1, 0]), arm([1, 1, 1, 1])]
    worse = [arm([1, 1, 0, 0]), arm([1, 0, 1, 0]), arm([1, 1, 1, 0])]
    found = control(tuple(better), tuple(worse), (0, 1, 2))
    assert found.difference("scratch-E").value == pytest.approx(25.0)
    assert "inherited" in found.verdicts["scratch-E"]
    assert "scratch is better" in control(tuple(worse), tuple(better), (0, 1, 2)).verdicts["scratch-E"]
    single = control((arm([1] * 50 + [0] * 2),), (arm([0] * 50 + [1] * 2),), (0,))
    assert single.difference("scratch-E").samples == 52
    assert "over held-out examples of one training" in single.to_markdown()


@pytest.mark.parametrize("options", [{"mode": "F"}, {"seeds": ()}, {"seeds": (0, -1)}])
def test_what_does_not_fit_is_refused(pruned, options):
    with pytest.raises(InputError):
        scratch_control(pruned, nets.data(), **options)


def test_an_architecture_is_described_by_its_outputs_or_kept_shares():
    subject = nets.opened(nets.vgg())
    masked = prune(subject, Budget.parse("weights=25%"), "unstructured")
    found = describe(masked.student.model, masked.masks)
    assert found["15"] == 4
    assert 0 < found["0"] <= 1
    total = sum(found[name.removesuffix(".weight")] * mask.numel() for name, mask in masked.masks.items())
    assert total == sum(int(mask.sum()) for mask in masked.masks.values())
