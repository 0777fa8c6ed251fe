"""YOLOv8 CWD on a detector of 20 thousand parameters and images of squares."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

import toys
import yolo
from recipes.vision import detecting, nets
from recipes.vision.detecting import DATA, subject
from secateur.errors import BudgetError, InfeasibleError, InputError, UnsupportedError
from secateur.methods.detector_stages import DetectorStages
from secateur.recipes.vision import yolov8_cwd as recipe
from secateur.recipes.vision.yolov8_cwd import ChannelWise, Penalty, histogram, pressure, yolov8_cwd
from secateur.recover.distillation import maps
from secateur.recover.distillation.taps import Adapters
from secateur.recover.training import loop
from secateur.subjects.network import detectors

QUICK = {"batch": 8, "least": 2, "sparse_epochs": 1, "finetune_epochs": 1, "distil_epochs": 1}


def results(root, budgets=("channels=50%",), start=None, data=DATA, **options):
    return nets.run(yolov8_cwd, root, start or subject(), data, budgets, **{**QUICK, **options})


def test_every_layer_keeps_its_half(tmp_path):
    dense = subject()
    (found,) = results(tmp_path, start=dense, dry_run=True)
    units = dense.units()
    assert set(found.cut.removed) == set(units), "every layer was cut"
    for site, (gone, count) in found.cut.removed.items():
        assert count - gone == count - count // 2, site
    assert found.cut.after["params"] == found.predicted["params"]
    assert found.predicted["channels"] == 0.5 * units.cost()["channels"]
    assert not found.recovery
    boxes, logits = found.subject.model.predictions(DATA.inputs)
    assert boxes.shape[-1] == 4
    assert logits.shape[-1] == 2, "the heads' outputs stay"


def test_both_halves_of_a_split_and_members_of_a_shortcut_stay_valid(tmp_path):
    (found,) = results(tmp_path, dry_run=True)
    for name, block in found.subject.model.named_modules():
        if not isinstance(block, yolo.C2f):
            continue
        half, rest = divmod(block.cv1.conv.out_channels, 2)
        assert rest == 0
        inner = block.m[0]
        assert inner.cv1.conv.in_channels == half, name
        if inner.add:
            assert inner.cv2.conv.out_channels == half, "a shortcut's members have one mask"
        assert block.cv2.conv.in_channels == 2 * half + inner.cv2.conv.out_channels
    pool = found.subject.model.stage5[2]
    assert pool.cv2.conv.in_channels == 4 * pool.cv1.conv.out_channels


def test_the_smallest_scales_go(tmp_path):
    dense = subject()
    (found,) = results(tmp_path, start=dense, dry_run=True)
    gamma = dense.model.stem.bn.weight.detach().abs()
    kept = json.loads((tmp_path / "work" / "keep-channels=50%.json").read_text())["stem.conv.channels"]
    assert kept == sorted(gamma.topk(2).indices.tolist())
    assert torch.equal(found.subject.model.stem.bn.weight, dense.model.stem.bn.weight[kept])


@pytest.mark.wide
def test_all_stages_run_and_resume(tmp_path):
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
    first = results(tmp_path / "a", ("channels=50%", "params=60%"), start=dense)
    assert all(torch.equal(before[key], value) for key, value in dense.model.state_dict().items())
    assert [found.name for found in first] == ["channels=50%", "params=60%"]
    assert first[1].predicted["params"] <= 0.6 * dense.units().cost()["params"]
    assert all(found.recovery.steps == 6 for found in first)
    assert all("each" not in name for name, _ in first[0].subject.model.named_parameters())
    again = results(tmp_path / "a", ("channels=50%", "params=60%"))
    for one, two in zip(first, again, strict=True):
        for key, value in one.subject.model.state_dict().items():
            assert torch.equal(value, two.subject.model.state_dict()[key])
    written = {path.name for path in (tmp_path / "a" / "work").iterdir()}
    assert {"scales.json", "sparse", "keep-channels=50%.json", "alpha-channels=50%.json"} <= written


def test_biases_are_pulled_at_a_constant_rate_of_their_own():
    dense = subject()
    state = copy.deepcopy(dense.model.state_dict())
    norms = {name: module for name, module in dense.model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    batch = {"inputs": DATA.inputs[:4], "targets": list(DATA.targets[:4]), "done": 0.5}
    for module in norms.values():
        module.bias.data.fill_(0.25)
    state |= {f"{name}.bias": module.bias.detach().clone() for name, module in norms.items()}

    def gradients(bias_rate: float) -> list[torch.Tensor]:
        dense.model.load_state_dict(state)
        dense.model.train().zero_grad()
        pressure(dense, Penalty(rate=0.1, bias_rate=bias_rate))(batch, {"examples": 4})[0].backward()
        return [torch.stack([module.weight.grad, module.bias.grad]) for module in norms.values()]

    for pushed, alone in zip(gradients(0.01), gradients(0.0), strict=True):
        assert torch.allclose(pushed[0], alone[0], atol=1e-6), "scales feel the same"
        assert torch.allclose(pushed[1] - alone[1], torch.tensor(0.01), atol=1e-5)


def test_pressure_empties_scales(tmp_path):
    dense, alone = subject(), {"finetune_epochs": 0, "distil_epochs": 0}
    results(tmp_path, start=dense, sparse_epochs=15, rate=1.0, lr=0.02, schedule="constant", **alone)
    found = json.loads((tmp_path / "work" / "scales.json").read_text())
    assert found["before"] == histogram(dense)
    assert found["after"]["near_zero"] > found["before"]["near_zero"] + 0.05


def test_widths_of_eight_and_a_global_baseline_with_floors(tmp_path):
    wide = detectors.open_detector(yolo.Yolo(2, (16, 32, 32, 32, 32)), DATA.inputs[:1])
    (found,) = results(tmp_path / "a", start=wide, multiple=8, least=8, dry_run=True)
    convs = [m for m in found.subject.model.modules() if isinstance(m, yolo.Conv)]
    assert all(m.conv.out_channels % 8 == 0 for m in convs)
    (found,) = results(tmp_path / "b", start=wide, least=4, scope="global", dry_run=True)
    assert min(count - gone for gone, count in found.cut.removed.values()) >= 4
    assert found.predicted["channels"] <= 0.5 * wide.units().cost()["channels"]


@pytest.mark.parametrize(
    ("budgets", "options", "words"),
    [
        (("channels=1%",), {}, r"channels can go down to .*; ask for channels=[0-9.]+% or more, or lower least=2"),
        (("channels=50%", "channels=1%"), {}, "channels=1% can't be met"),
        (("channels=50%", "channels=100%,params=100%"), {}, "channels=100%,params=100% would change nothing"),
        (("speedup=2x",), {}, "latency has no cost here"),
        (("channels=50%",), {"least": 100}, "lower least=100"),
        (("channels=1%",), {"scope": "global"}, "channels can go down to"),
        (("channels=50%",), {"multiple": 0}, "multiple=0: give a whole number of at least 1"),
        (("channels=50%",), {"sparse_epochs": -1}, "epochs=-1"),
        (("channels=50%",), {"weights": []}, "weights are empty"),
        (("channels=50%",), {"temperature": 0.0}, "option temperature=0.0"),
        (("channels=50%",), {"layers": ["nose"]}, "'nose'"),
        (("channels=50%",), {"outputs": True, "softness": 0.0}, "softness=0.0 .*: give a number above 0"),
        (("channels=50%",), {"outputs": True, "lambdas": [1.0]}, r"lambdas=\[1.0\] .*: give at least 2 of them"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_trained(tmp_path, monkeypatch, budgets, options, words):
    detecting.forbid_training(monkeypatch)
    with pytest.raises((BudgetError, InfeasibleError, InputError), match=words):
        results(tmp_path, budgets, **options)
    assert detecting.nothing_written(tmp_path)


def test_cells_of_small_boxes_count_by_the_sizes_of_the_data_and_other_layers_may_be_followed(tmp_path, monkeypatch):
    seen, weigh = [], maps.box_weights
    monkeypatch.setattr(
        maps, "box_weights", lambda *a, sizes, **how: seen.append(sizes) or weigh(*a, sizes=sizes, **how)
    )
    data = dataclasses.replace(DATA, sizes=(0.125, 0.5))
    how = {"layers": ["up4", "down5"], "weights": [2.0], "alpha": 0.1, "sparse_epochs": 0, "finetune_epochs": 0}
    (found,) = results(tmp_path, data=data, focus=True, **how)
    assert found.recovery.steps == 2
    assert len(seen) == 4, "two maps, at each of two steps"
    assert set(seen) == {(8, 32)}, "the data's sizes, of 64 pixels"


@pytest.mark.wide
def test_the_teachers_answers_are_learned_too(tmp_path, monkeypatch):
    seen, train = [], loop.train

    def spied(model, feed, objective, *args, **how):
        def watched(batch, totals):
            total, parts = objective(batch, totals)
            seen.append(parts)
            return total, parts

        return train(model, feed, watched, *args, **how)

    monkeypatch.setattr(loop, "train", spied)
    how = {"sparse_epochs": 0, "finetune_epochs": 0, "alpha": 1.0, "outputs": True}
    results(tmp_path / "a", lambdas=[0.5, 0.25], **how)
    assert seen
    assert all(set(parts) == {"task", "maps", "kd", "boxes"} and parts["kd"] > 0 for parts in seen)
    count, strong = len(seen), float(seen[0]["kd"])
    results(tmp_path / "b", **how)
    assert float(seen[count]["kd"]) == pytest.approx(0.001 / 0.5 * strong, rel=1e-4), "lambdas are the weights"
    results(tmp_path / "c", softness=6.0, **how)
    assert seen[2 * count]["kd"] != seen[count]["kd"], "of an untrained detector's answers, nearly the same"


def test_what_can_not_be_cut_after_all_shows_before_anything_is_trained(tmp_path, monkeypatch):
    order = detecting.make_site_fail(monkeypatch, "stem.conv.channels")
    (found,) = results(tmp_path, ("channels=60%",), finetune_epochs=0, distil_epochs=0)
    assert order == ["cut", "cut", "train", "cut"]
    assert "stem.conv.channels" not in {site for site, (gone, _) in found.cut.removed.items() if gone}


@pytest.mark.wide
def test_layers_without_a_scale_stay_and_a_detector_without_any_is_refused(tmp_path):
    net = yolo.tiny()
    net.stage3[0].bn = torch.nn.BatchNorm2d(8, affine=False)
    plain = detectors.open_detector(net.eval(), DATA.inputs[:1])
    (found,) = results(
        tmp_path / "a", ("channels=60%",), start=plain, bias_rate=1e-3, finetune_epochs=0, distil_epochs=0
    )
    assert found.notes == ("stays: stage3.0.conv.channels: has no batch norm",)
    with pytest.raises(UnsupportedError, match="no batch norm whose scale can be trained"):
        results(tmp_path / "b", start=detecting.frozen())
    assert detecting.nothing_written(tmp_path / "b")


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.detector(batch=8, least=2, sparse_epochs=4, finetune_epochs=6, distil_epochs=6)


def test_the_detector_that_was_given_teaches_and_adapters_learn_along(tmp_path, monkeypatch):
    seen, fed, distil, batches = [], [], DetectorStages.distil, recipe.examples.batches

    def watch(self, student, teacher, *given, **how):
        state = {name: value.clone() for name, value in how["extra"][0].state_dict().items()}
        seen.append((student, copy.deepcopy(teacher.model.state_dict()), state, how))
        return distil(self, student, teacher, *given, **how)

    monkeypatch.setattr(DetectorStages, "distil", watch)
    monkeypatch.setattr(recipe.examples, "batches", lambda data, **how: fed.append(how["seed"]) or batches(data, **how))
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
    how = {"sparse_epochs": 0.5, "finetune_epochs": 0, "distil_epochs": 0.5, "lr": 0.01, "alpha": 0.5, "softness": 5.0}
    results(tmp_path, start=dense, seed=4, **how)
    ((student, teacher, state, given),) = seen
    assert all(torch.equal(value, teacher[name]) for name, value in before.items()), "as it was before sparse training"
    assert (given["weight"], given["temperature"]) == (0.5, 5.0)
    fresh = recipe.adapt_widths(student, dense, dense.model.taps, DATA.inputs[:1], 4).state_dict()
    assert len(fresh) == 6, "three maps are wider in the teacher"
    assert all(torch.equal(value, state[name]) for name, value in fresh.items()), "the seed draws them"
    other = recipe.adapt_widths(student, dense, dense.model.taps, DATA.inputs[:1], 0).state_dict()
    assert not any(torch.equal(value, other[name]) for name, value in fresh.items())
    after = given["extra"][0].state_dict()
    assert not any(torch.equal(value, after[name]) for name, value in fresh.items()), "they were trained"
    assert fed == [4]


def test_finer_maps_count_by_the_first_weights_at_the_temperature_asked_for():
    torch.manual_seed(0)
    ours, theirs = ([torch.randn(2, 3, size, size) for size in (8, 4, 2)] for _ in "st")
    widths = [3, 3, 3]
    compare = recipe.channel_wise(Adapters(widths, widths), ChannelWise(temperature=3.0, weights=(1.0, 0.25)), ())
    each = [maps.channel_wise(one, told, temperature=3.0) for one, told in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(compare(ours, theirs, {}), each[0] + 0.25 * each[1] + 0.25 * each[2])


def test_layers_that_a_shortcut_joins_are_ranked_by_the_mean_of_their_scales():
    dense = subject()
    torch.manual_seed(0)
    for module in dense.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 1.0)
    _, scores = recipe.rank(dense, 1)
    members = recipe.scales.members(dense.model, dense.slices())
    joined = {site: list(row.values()) for site, row in members.items() if len(row) > 1}
    assert joined
    for site, rows in joined.items():
        torch.testing.assert_close(scores[site], sum(rows) / len(rows))


@pytest.mark.parametrize(
    ("schedule", "first", "last"), [("decay", 0.1, 0.01), ("rise", 0.01, 0.1), ("constant", 0.1, 0.1)]
)
def test_scales_are_pulled_at_the_rate_and_on_the_schedule_asked_for(schedule, first, last):
    dense = subject()
    batch = {"inputs": DATA.inputs[:2], "targets": list(DATA.targets[:2])}
    size = sum(
        float(gamma.abs()[inside].sum()) for gamma, inside in recipe.scales.prunable(dense.model, dense.slices())
    )
    for done, rate in ((0.0, first), (1.0, last)):
        objective = pressure(dense, Penalty(rate=0.1, schedule=schedule))
        _, parts = objective({**batch, "done": done}, {"examples": 2})
        assert float(parts["scales"]) == pytest.approx(rate * size, rel=1e-4)
