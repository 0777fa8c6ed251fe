"""Group channel pruning and spatial attention distilling on a detector of 20 thousand parameters."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch

import toys
import yolo
from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.recipes.vision import yolov4_group_sad as recipe
from secateur.recipes.vision.yolov4_group_sad import yolov4_group_sad
from secateur.recover.training import loop
from secateur.subjects.network import detectors, stages
from secateur.subjects.network.proof import Fault
from secateur.subjects.network.traced import CutError, Traced
from secateur.vocabulary import Budget, Selection

DATA = yolo.squares(16)
QUICK = {
    "batch": 8,
    "layer_keep": 0.25,
    "least": 2,
    "sparse_epochs": 1,
    "finetune_epochs": 1,
    "distil_epochs": 1,
    "judged": 1,
}
FRACTIONS = [0.2, 0.2, 0.3, 0.5, 0.8, 0.7, 0.6]


@cache
def analysed(seed: int):
    return detectors.opened(yolo.tiny(seed), DATA.inputs[:1])


def subject(seed: int = 0):
    """One of the caller's own, whose analysis is done once."""
    return analysed(seed).copy()


def results(root, budgets=("params=60%",), start=None, **options):
    with Run.open(root, {}) as run:
        return list(
            yolov4_group_sad(start or subject(), DATA, [Budget.parse(b) for b in budgets], run, **{**QUICK, **options})
        )


def test_groups_hold_every_layer_that_may_go_once():
    dense = subject()
    spared = stages.feeders(dense.model, DATA.inputs[:1])
    members = recipe.free(dense, spared)
    place = recipe.sites(members, stages.grouped(stages.places(dense.model, DATA.inputs[:1])))
    assert set(place) == set(members)
    assert not [norm for row in members.values() for norm in row if norm in spared]
    pooled = sum(len(members[site]) for site in place)
    assert pooled == sum(
        len([s for s in place if place[s] == group for _ in members[s]]) for group in set(place.values())
    )
    assert next(iter(place.values())) == "stride 2"
    assert place["down5.cv2.conv.channels"] == "neck down"
    every = recipe.free(dense, set())
    assert len(every) == len(members) + 3, "before the pool, before each upsampling"


def test_the_two_rates_reach_the_prunable_scales_only():
    dense = subject()
    spared = stages.feeders(dense.model, DATA.inputs[:1])
    objective = recipe.pressure(dense, spared, 0.1, 0.65, 0.4, 0.01)
    dense.model.train()
    norms = {name: module for name, module in dense.model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}

    def gradients(done: float, rate: float) -> dict[str, torch.Tensor]:
        dense.model.zero_grad()
        recipe.pressure(dense, spared, rate, 0.65, 0.4, 0.01)(
            {"inputs": DATA.inputs[:4], "targets": list(DATA.targets[:4]), "done": done}, {"examples": 4}
        )[0].backward()
        return {name: module.weight.grad.clone() for name, module in norms.items()}

    state = copy.deepcopy(dense.model.state_dict())

    def pushed(done: float) -> dict[str, torch.Tensor]:
        dense.model.load_state_dict(state)
        with_ = gradients(done, 0.1)
        dense.model.load_state_dict(state)
        without = gradients(done, 1e-12)
        return {name: with_[name] - without[name] for name in norms}

    early, late = pushed(0.2), pushed(0.9)
    for name, module in norms.items():
        if name in spared:
            assert late[name].abs().max() < 1e-6, f"{name} may not go and feels nothing"
            continue
        assert torch.allclose(early[name], 0.1 * module.weight.sign(), atol=1e-5)
    levels = torch.cat([late[name].abs() for name in norms if name not in spared])
    near = (levels - 0.1).abs() < 1e-4, (levels - 0.001).abs() < 1e-4
    assert bool((near[0] | near[1]).all()), "exactly two levels"
    assert 0.6 < near[0].float().mean() < 0.7
    assert objective is not None


def test_budgets_are_met_and_the_prediction_is_the_count(tmp_path):
    dense = subject()
    whole = dense.units().cost()
    found = results(tmp_path, ("params=60%", "channels=70%"), start=dense, dry_run=True)
    assert found[0].predicted["params"] <= 0.6 * whole["params"]
    assert found[1].predicted["channels"] <= 0.7 * whole["channels"]
    for one in found:
        count = sum(parameter.numel() for parameter in one.subject.model.parameters())
        assert one.predicted["params"] == one.cut.after["params"] == count
        assert not one.cut.is_noop
        assert all(count - gone >= max(1, int(0.25 * count)) for gone, count in one.cut.removed.values())
        assert all(parts.shape[1] in (2, 4) for parts in one.subject.forward()), "the heads' outputs stay"
    scan = json.loads((tmp_path / "work" / "scan.json").read_text())
    assert set(scan) == {note.partition(":")[0] for note in found[0].notes}


def test_given_fractions_keep_their_proportions(tmp_path):
    dense = subject()
    (found,) = results(tmp_path, start=dense, fractions=FRACTIONS, dry_run=True)
    shares = json.loads((tmp_path / "work" / "keep-params=60%.json").read_text())["fractions"]
    assert np.allclose(np.array(list(shares.values())) / np.array(FRACTIONS), shares["stride 2"] / 0.2)
    assert len(found.notes) == 7
    with pytest.raises(InputError, match="6 fractions for 7 groups"):
        results(tmp_path / "b", fractions=FRACTIONS[:6], dry_run=True)
    with pytest.raises(InputError, match="0 to below 1"):
        results(tmp_path / "c", fractions=[1.5] * 7, dry_run=True)
    (own,) = results(tmp_path / "d", groups=["stage4", "to4"], fractions=[0.1, 0.5, 0.5], dry_run=True)
    assert [note.partition(":")[0] for note in own.notes] == ["1", "2", "3"]


def test_a_shortcut_has_one_mask_and_the_policy_counts(tmp_path):
    kept = {}
    for policy in ("majority", "union", "smallest"):
        (found,) = results(
            tmp_path / policy, merge=policy, fractions=FRACTIONS, budgets=("channels=60%",), dry_run=True
        )
        block = found.subject.model.stage4[1]
        assert block.m[0].cv2.conv.out_channels == block.cv1.conv.out_channels // 2
        stays = json.loads((tmp_path / policy / "work" / "keep-channels=60%.json").read_text())["keep"]
        kept[policy] = stays
    assert kept["union"] != kept["smallest"]


def test_the_cut_keeps_the_constants_of_what_went():
    """Away from the border, and everywhere in a network of 1 x 1 convolutions, it is the masked network."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        yolo.Conv(3, 8),
        yolo.Conv(8, 8),
        torch.nn.MaxPool2d(3, 1, 1),
        torch.nn.Upsample(scale_factor=2),
        torch.nn.Conv2d(8, 4, 1),
    )
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias)
    from secateur.subjects.network.traced import open_traced

    image = torch.rand(1, 3, 8, 8)
    dense = open_traced(net.eval(), image)
    masked = copy.deepcopy(net)
    keep = {site: np.arange(unit.count) % 2 == 0 for site, unit in dense.units().sites.items()}
    with torch.no_grad():
        for block in (masked[0], masked[1]):
            block.bn.weight[1::2] = 0
    wanted = masked(image)
    plain, _ = dense.cut(Selection(keep))
    small, _ = dense.cut(Selection(keep), offsets=True)
    assert torch.allclose(small.forward(image), wanted, atol=1e-5)
    assert not torch.allclose(plain.forward(image), wanted, atol=1e-2)


def test_no_fraction_gives_equal_outputs():
    dense = subject()
    members = recipe.free(dense, set())
    from secateur.select import thresholds

    place = recipe.sites(members, stages.grouped(stages.places(dense.model, DATA.inputs[:1])))
    layered = {site: list(row.values()) for site, row in members.items()}
    keep = thresholds.grouped(layered, place, dict.fromkeys(place.values(), 0.0))
    same, cut = dense.cut(Selection(keep), offsets=True)
    assert cut.is_noop
    assert all(torch.equal(a, b) for a, b in zip(same.forward(), dense.forward(), strict=True))


def test_the_scan_leaves_the_detector_as_it_was(tmp_path):
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
    results(tmp_path, start=dense, sparse_epochs=0, dry_run=True)
    assert all(torch.equal(before[key], value) for key, value in dense.model.state_dict().items())
    rises = {"a": [1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 9.0], "b": [1.0, 1.0, 1.0, 1.0, 1.1, 1.2, 1.3]}
    shares = recipe.tolerance(rises)
    assert shares(1.0) == {"a": recipe.GRID[-1], "b": recipe.GRID[-1]}
    assert shares(0.4)["b"] > shares(0.4)["a"], "what hurts less loses more"
    levels = [shares(level)["a"] for level in np.linspace(0, 1, 11)]
    assert levels == sorted(levels)


def test_all_stages_run_and_resume(tmp_path):
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
    (first,) = results(tmp_path / "a", start=dense, outputs=True, foreground=True)
    assert first.recovery.steps == 6
    assert all(torch.equal(before[key], value) for key, value in dense.model.state_dict().items())
    (again,) = results(tmp_path / "a", outputs=True, foreground=True)
    (fresh,) = results(tmp_path / "b", outputs=True, foreground=True)
    for key, value in first.subject.model.state_dict().items():
        assert torch.equal(value, again.subject.model.state_dict()[key])
        assert torch.equal(value, fresh.subject.model.state_dict()[key])


@pytest.mark.parametrize(
    ("budgets", "options", "words"),
    [
        (("params=1%",), {}, r"params can go down to .*; allow more, or lower layer_keep or least, or allow feeders"),
        (("params=60%", "params=1%"), {}, "params=1% can't be met"),
        (("params=60%",), {"layer_keep": 0.9}, "params can go down to"),
        (("params=60%",), {"fractions": [0.2, *[0.0] * 6]}, "params can go down to"),
        (("params=60%",), {"fractions": [0.2, 0.3]}, "2 fractions for 7 groups"),
        (("params=60%",), {"fractions": [0.0] * 7}, "not all of them 0"),
        (("params=60%",), {"groups": ["nose"]}, "groups name 'nose'"),
        (("params=60%",), {"layers": ["nose"]}, "'nose'"),
        (("params=60%",), {"merge": "most"}, "merge='most': give 'majority'"),
        (("params=60%",), {"betas": [1.0]}, r"betas=\[1.0\]: give three"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_trained(tmp_path, monkeypatch, budgets, options, words):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    with pytest.raises((InfeasibleError, InputError), match=words):
        results(tmp_path, budgets, **options)
    assert not [one for one in (tmp_path / "work").rglob("*") if one.is_file()], "nothing was written"


def test_what_can_not_be_done_is_said(tmp_path):
    with pytest.raises(InfeasibleError, match="can go down to"):
        results(tmp_path / "a", ("params=1%",), dry_run=True)
    with pytest.raises(InfeasibleError, match="params=100% would change nothing"):
        results(tmp_path / "c", ("params=60%", "params=100%"))
    with pytest.raises(InputError, match="multiple=-8: give a whole number of at least 1"):
        results(tmp_path / "c", multiple=-8)
    assert not list((tmp_path / "c").rglob("sparse*")), "nothing was trained"
    net = yolo.tiny()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    with pytest.raises(UnsupportedError, match="batch norm"):
        results(tmp_path / "b", start=detectors.opened(net, DATA.inputs[:1]), dry_run=True)


def test_outputs_of_a_detector_without_predictions_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: pytest.fail("trained before it refused"))
    mute = subject()
    mute.model.predictions = None
    with pytest.raises(UnsupportedError, match=r"outputs: Yolo has no predictions\(images\).*leave outputs out"):
        results(tmp_path, start=mute, outputs=True)
    with pytest.raises(InputError, match=r"lambdas=\[1.0\]: give two"):
        results(tmp_path, outputs=True, lambdas=[1.0])
    with pytest.raises(InputError, match="temperature=0: give a number above 0"):
        results(tmp_path, outputs=True, temperature=0)
    mute.model.predictions = lambda images: (torch.zeros(1, 5, 3), torch.zeros(1, 5, 2))
    with pytest.raises(InputError, match=r"gives boxes \[1, 5, 3\] and logits \[1, 5, 2\]"):
        results(tmp_path, start=mute, outputs=True)
    for wrapper in (detectors.Torchvision, detectors.Ultralytics):
        assert hasattr(wrapper, "predictions"), "else the docstring and the page say otherwise"


def test_what_can_not_be_cut_after_all_shows_before_anything_is_trained(tmp_path, monkeypatch):
    dense, order, cut, train = subject(), [], Traced.cut, loop.train

    def faulty(self, selection, **how):
        order.append("cut")
        if not selection.keep.get("stage5.0.conv.channels", np.ones(1, bool)).all():
            raise CutError("not there", Fault("stage5.0.conv", "made up"))
        return cut(self, selection, **how)

    monkeypatch.setattr(Traced, "cut", faulty)
    monkeypatch.setattr(loop, "train", lambda *args, **how: order.append("train") or train(*args, **how))
    (found,) = results(tmp_path / "a", ("params=60%",), start=dense, finetune_epochs=0, distil_epochs=0)
    assert order == ["cut", "cut", "train", "cut"]
    assert "stage5.0.conv.channels" not in {site for site, (gone, _) in found.cut.removed.items() if gone}


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.detector(
        batch=8, judged=1, layer_keep=0.0, least=2, sparse_epochs=4, finetune_epochs=8, distil_epochs=8
    )
