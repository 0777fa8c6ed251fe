"""Group channel pruning and spatial attention distilling on a detector of 20 thousand parameters."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import toys
from recipes.vision import detecting, nets
from recipes.vision.detecting import DATA, subject
from secateur.errors import InfeasibleError, InputError, UnsupportedError
from secateur.methods.detector_stages import DetectorStages
from secateur.recipes.vision import yolov4_group_sad as recipe
from secateur.recover.distillation import maps
from secateur.subjects.network import stages

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


def results(root, budgets=("params=60%",), start=None, **options):
    return nets.run(recipe.yolov4_group_sad, root, start or subject(), DATA, budgets, **{**QUICK, **options})


def test_groups_hold_every_layer_that_may_go_once():
    dense = subject()
    spared = stages.feeders(dense.model, DATA.inputs[:1])
    members = recipe.free(dense, spared)
    place = recipe.sites(members, stages.group_norms(stages.places(dense.model, DATA.inputs[:1])))
    assert set(place) == set(members)
    assert not [norm for row in members.values() for norm in row if norm in spared]
    assert next(iter(place.values())) == "stride 2"
    assert place["down5.cv2.conv.channels"] == "neck down"
    assert len(recipe.free(dense, set())) == len(members) + 3, "before the pool, before each upsampling"


def test_the_two_rates_reach_the_prunable_scales_only():
    dense = subject()
    spared = stages.feeders(dense.model, DATA.inputs[:1])
    norms = {name: module for name, module in dense.model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    state = copy.deepcopy(dense.model.state_dict())
    batch = {"inputs": DATA.inputs[:4], "targets": list(DATA.targets[:4])}

    def gradients(done: float, rate: float) -> dict[str, torch.Tensor]:
        dense.model.load_state_dict(state)
        dense.model.train().zero_grad()
        objective = recipe.pressure(dense, spared, recipe.TwoRates(rate=rate))
        objective({**batch, "done": done}, {"examples": 4})[0].backward()
        return {name: module.weight.grad.clone() for name, module in norms.items()}

    def pushed(done: float) -> dict[str, torch.Tensor]:
        with_, without = gradients(done, 0.1), gradients(done, 1e-12)
        return {name: with_[name] - without[name] for name in norms}

    early, late = pushed(0.2), pushed(0.9)
    for name, module in norms.items():
        if name in spared:
            assert late[name].abs().max() < 1e-6, f"{name} may not go and feels nothing"
        else:
            assert torch.allclose(early[name], 0.1 * module.weight.sign(), atol=1e-5)
    levels = torch.cat([late[name].abs() for name in norms if name not in spared])
    near = (levels - 0.1).abs() < 1e-4, (levels - 0.001).abs() < 1e-4
    assert bool((near[0] | near[1]).all()), "exactly two levels"
    assert 0.6 < near[0].float().mean() < 0.7


def test_budgets_are_met_and_the_prediction_is_the_count(tmp_path):
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
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
    after = dense.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()), "the scan leaves no trace"


def test_a_cut_without_offsets_leaves_what_goes_silent(tmp_path):
    how = {"fractions": FRACTIONS, "dry_run": True}
    (folded,) = results(tmp_path / "a", ("channels=70%",), **how)
    (silent,) = results(tmp_path / "b", ("channels=70%",), offsets=False, **how)
    assert folded.cut.removed == silent.cut.removed
    told = [any(note.startswith("offsets: folded") for note in one.cut.notes) for one in (folded, silent)]
    assert told == [True, False]
    pairs = zip(folded.subject.forward(), silent.subject.forward(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_what_hurts_less_loses_more():
    rises = {"a": [1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 9.0], "b": [1.0, 1.0, 1.0, 1.0, 1.1, 1.2, 1.3]}
    shares = recipe.tolerance(rises)
    assert shares(1.0) == {"a": recipe.GRID[-1], "b": recipe.GRID[-1]}
    assert shares(0.4)["b"] > shares(0.4)["a"]
    levels = [shares(level)["a"] for level in np.linspace(0, 1, 11)]
    assert levels == sorted(levels)


def test_given_fractions_keep_their_proportions(tmp_path):
    (found,) = results(tmp_path, fractions=FRACTIONS, dry_run=True)
    shares = json.loads((tmp_path / "work" / "keep-params=60%.json").read_text())["fractions"]
    assert np.allclose(np.array(list(shares.values())) / np.array(FRACTIONS), shares["stride 2"] / 0.2)
    assert len(found.notes) == 7
    (own,) = results(tmp_path / "d", groups=["stage4", "to4"], fractions=[0.1, 0.5, 0.5], dry_run=True)
    assert [note.partition(":")[0] for note in own.notes] == ["1", "2", "3"]


def test_a_shortcut_has_one_mask_and_the_policy_counts(tmp_path):
    kept = {}
    for policy in ("union", "smallest"):
        root = tmp_path / policy
        (found,) = results(root, ("channels=60%",), merge=policy, fractions=FRACTIONS, dry_run=True)
        block = found.subject.model.stage4[1]
        assert block.m[0].cv2.conv.out_channels == block.cv1.conv.out_channels // 2
        kept[policy] = json.loads((root / "work" / "keep-channels=60%.json").read_text())["keep"]
    assert kept["union"] != kept["smallest"]


def test_other_layers_are_followed_by_their_betas():
    dense, image = subject(), DATA.inputs[:1]
    taps, weights = recipe.attention_layers(dense, image, recipe.Attention(betas=(4.0, 2.0, 1.0)))
    assert len(taps) == len(weights)
    area = 64**2 / 416**2
    assert {round(weight / area, 6) for weight in weights} == {4.0, 2.0, 1.0}
    chosen = recipe.Attention(betas=(4.0, 2.0, 1.0), layers=("up4", "down5"))
    names, betas = recipe.attention_layers(dense, image, chosen)
    assert names == ["up4", "down5"]
    assert betas == [weights[taps.index(name)] if name in taps else area for name in names]


@pytest.mark.wide
def test_the_weight_of_distilling_may_be_given(tmp_path):
    alone = {"sparse_epochs": 0, "finetune_epochs": 0, "fractions": FRACTIONS, "layers": ["up4"]}
    small = {alpha: results(tmp_path / str(alpha), alpha=alpha, **alone)[0] for alpha in (0.0, 1.0)}
    assert not list(tmp_path.rglob("alpha-*")), "nothing had to be found"
    states = [one.subject.model.state_dict() for one in small.values()]
    assert not all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_all_stages_run_and_resume(tmp_path):
    first, again, fresh = (results(tmp_path / name, outputs=True, foreground=True)[0] for name in "aab")
    assert first.recovery.steps == 6
    for name, tensor in first.subject.model.state_dict().items():
        assert torch.equal(tensor, again.subject.model.state_dict()[name])
        assert torch.equal(tensor, fresh.subject.model.state_dict()[name])


@pytest.mark.parametrize(
    ("budgets", "options", "words"),
    [
        (
            ("params=1%",),
            {},
            r"params can go down to .*; ask for params=[0-9.]+% .*, or lower layer_keep or least, or allow feeders",
        ),
        (("params=60%", "params=1%"), {}, "params=1% can't be met"),
        (("params=60%", "params=100%"), {}, "params=100% would change nothing"),
        (("params=60%",), {"layer_keep": 0.9}, "params can go down to"),
        (("params=60%",), {"fractions": [0.2, *[0.0] * 6]}, "params can go down to"),
        (("params=60%",), {"fractions": [0.2, 0.3]}, "2 fractions for 7 groups"),
        (("params=60%",), {"fractions": [0.0] * 7}, "not all of them 0"),
        (("params=60%",), {"fractions": [1.5] * 7}, "0 to below 1"),
        (("params=60%",), {"groups": ["nose"]}, "groups name 'nose'"),
        (("params=60%",), {"merge": "most"}, "option merge='most'"),
        (("params=60%",), {"judged": 0}, "judged=0 .*: give a whole number of at least 1"),
        (("params=60%",), {"layers": ["nose"]}, "'nose'"),
        (("params=60%",), {"betas": [1.0]}, r"betas=\[1.0\] .*: give at least 3 of them"),
        (("params=60%",), {"quantile": 1.0}, r"quantile=1.0 .*: give a number above 0 and below 1"),
        (("params=60%",), {"outputs": True, "lambdas": [1.0]}, r"lambdas=\[1.0\] .*: give at least 2 of them"),
        (("params=60%",), {"outputs": True, "temperature": 0}, "temperature=0 .*: give a number above 0"),
        (("params=60%",), {"multiple": -8}, "multiple=-8: give a whole number of at least 1"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_trained(tmp_path, monkeypatch, budgets, options, words):
    detecting.forbid_training(monkeypatch)
    with pytest.raises((InfeasibleError, InputError), match=words):
        results(tmp_path, budgets, **options)
    assert detecting.nothing_written(tmp_path)


def test_detectors_that_can_not_be_pruned_or_learned_from_are_refused(tmp_path, monkeypatch):
    detecting.forbid_training(monkeypatch)
    with pytest.raises(UnsupportedError, match="batch norm"):
        results(tmp_path / "a", start=detecting.frozen())
    mute = subject()
    mute.model.predictions = None
    with pytest.raises(UnsupportedError, match=r"outputs: Yolo has no predictions\(images\).*leave outputs out"):
        results(tmp_path / "b", start=mute, outputs=True)
    mute.model.predictions = lambda images: (torch.zeros(1, 5, 3), torch.zeros(1, 5, 2))
    with pytest.raises(InputError, match=r"gives boxes \[1, 5, 3\] and logits \[1, 5, 2\]"):
        results(tmp_path / "c", start=mute, outputs=True)


def test_what_can_not_be_cut_after_all_shows_before_anything_is_trained(tmp_path, monkeypatch):
    order = detecting.make_site_fail(monkeypatch, "stage5.0.conv.channels")
    (found,) = results(tmp_path, finetune_epochs=0, distil_epochs=0)
    assert order == ["cut", "cut", "train", "cut"]
    assert "stage5.0.conv.channels" not in {site for site, (gone, _) in found.cut.removed.items() if gone}


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.detector(batch=8, layer_keep=0.0, least=2, sparse_epochs=1, finetune_epochs=2, distil_epochs=2)


def test_the_detector_that_was_given_teaches_by_a_tenth_of_the_loss(tmp_path, monkeypatch):
    seen, followed, fed, pressed = [], [], [], []
    distil, compare, batches, press = (
        DetectorStages.distil, recipe.spatial_attention, recipe.examples.batches, recipe.pressure,
    )  # fmt: skip

    def watch(self, student, teacher, *given, **how):
        seen.append((copy.deepcopy(teacher.model.state_dict()), how))
        return distil(self, student, teacher, *given, **how)

    monkeypatch.setattr(DetectorStages, "distil", watch)
    monkeypatch.setattr(recipe, "spatial_attention", lambda *given: followed.append(given[1]) or compare(*given))
    monkeypatch.setattr(recipe, "pressure", lambda *given: pressed.append(given[2]) or press(*given))
    monkeypatch.setattr(recipe.examples, "batches", lambda data, **how: fed.append(how["seed"]) or batches(data, **how))
    dense = subject()
    before = copy.deepcopy(dense.model.state_dict())
    how = {"sparse_epochs": 0.5, "finetune_epochs": 0, "distil_epochs": 0.5, "lr": 0.01, "fractions": FRACTIONS}
    rates = {"rate": 0.01, "switch": 0.7, "quantile": 0.3, "kept_rate": 0.5}
    results(tmp_path, start=dense, foreground=True, temperature=5.0, seed=4, **how, **rates)
    ((teacher, given),) = seen
    assert all(torch.equal(value, teacher[name]) for name, value in before.items()), "as it was before sparse training"
    assert (given["weight"], given["share"], given["temperature"]) == (None, 0.1, 5.0)
    assert followed == [True]
    assert fed == [4]
    assert pressed == [recipe.TwoRates(**rates)]


def test_the_switch_the_quantile_and_the_rate_of_kept_scales_are_those_asked_for():
    dense = subject()
    torch.manual_seed(0)
    for module in dense.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 1.0)
    objective = recipe.pressure(dense, set(), recipe.TwoRates(rate=0.1, switch=0.7, quantile=0.25, kept_rate=0.5))
    batch = {"inputs": DATA.inputs[:2], "targets": list(DATA.targets[:2])}
    free = recipe.scales.prunable(dense.model, dense.slices())
    sizes = torch.cat([gamma.detach().abs()[inside] for gamma, inside in free])
    kept = sizes >= sizes.sort().values[int(0.25 * len(sizes))]
    late = 0.1 * (0.5 * sizes[kept].sum() + sizes[~kept].sum())
    for done, wanted in ((0.6, 0.1 * sizes.sum()), (0.8, late)):
        _, parts = objective({**batch, "done": done}, {"examples": 2})
        torch.testing.assert_close(parts["scales"], wanted, rtol=1e-4, atol=0)


def test_the_scan_looks_at_as_many_batches_as_asked_for(tmp_path, monkeypatch):
    seen, real = [], recipe.scan
    monkeypatch.setattr(recipe, "scan", lambda *given: seen.append(len(given[3])) or real(*given))
    results(tmp_path, batch=4, judged=3, dry_run=True)
    assert seen == [3]


def test_layers_before_a_pool_or_an_upsampling_go_where_that_is_allowed_and_widths_are_multiples(tmp_path):
    how = {"fractions": [0.5] * 7, "dry_run": True}
    spared = stages.feeders(subject().model, DATA.inputs[:1])
    for feeders in (False, True):
        (found,) = results(tmp_path / str(feeders), feeders=feeders, multiple=4, **how)
        assert all((count - gone) % 4 == 0 for gone, count in found.cut.removed.values() if gone)
        layers = {norm.removesuffix(".bn") for norm in spared}
        gone = {layer for layer in layers for site, (less, _) in found.cut.removed.items() if less and layer in site}
        assert (gone == layers) == feeders
        assert feeders or not gone


def test_each_part_of_the_detector_has_its_beta():
    dense, image = subject(), DATA.inputs[:1]
    taps, weights = recipe.attention_layers(dense, image, recipe.Attention(betas=(4.0, 2.0, 1.0)))
    found = {tap: round(weight * 416**2 / 64**2, 6) for tap, weight in zip(taps, weights, strict=True)}
    assert {found[tap] for tap in ("up3", "down4")} == {1.0}, "the neck"
    assert found["down5"] == 2.0, "the deepest scale"
    assert {beta for tap, beta in found.items() if tap.startswith(("stem", "stage2", "stage3", "stage4"))} == {4.0}


def test_near_boxes_alone_the_rest_of_a_map_says_nothing():
    torch.manual_seed(0)
    image, (ours, theirs) = DATA.inputs[:1], torch.rand(2, 1, 3, 8, 8)
    batch = {"inputs": image, "targets": [DATA.targets[0]]}
    mask = maps.box_weights(batch["targets"], theirs, image, gains=(1.0, 1.0, 1.0), background=0.0)
    assert 0 < float(mask.mean()) < 1
    near = recipe.spatial_attention([2.0], True)([ours], [theirs], batch)
    torch.testing.assert_close(near, 2 * maps.spatial_attention(ours, theirs, mask=mask))
    whole = recipe.spatial_attention([2.0], False)([ours], [theirs], batch)
    torch.testing.assert_close(whole, 2 * maps.spatial_attention(ours, theirs))
