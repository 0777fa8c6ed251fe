"""Consensus sub-networks on a net of a few thousand parameters: what is left is what the gates said."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

import toys
from recipes.vision import nets
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InfeasibleError, InputError, UnsupportedError
from secateur.recipes.vision import consensus_polarization as recipe
from secateur.recover.training import loop
from secateur.score.gates import Votes
from secateur.subjects.network.traced import Traced, open_traced
from secateur.vocabulary import Budget, Result, Selection

QUICK = {"batch": 32, "epochs": 12.0, "lr": 0.05}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *(Block(8) for _ in range(4)),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


@cache
def data(count: int = 256) -> Examples:
    """Which quarter of the picture is the brightest."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 1, 6, 6, generator=draw)
    labels = torch.randint(0, 4, (count,), generator=draw)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        image[0, row : row + 3, column : column + 3] += 0.5
    return Examples(inputs, labels, name="quarters")


@cache
def analysed() -> Traced:
    return open_traced(net(), data().inputs[:1])


def subject() -> Traced:
    """One of the caller's own, whose analysis is done once."""
    return analysed().copy()


def results(root, budgets, **options) -> list[Result]:
    return nets.run(recipe.consensus_polarization, root, subject(), data(), budgets, **{**QUICK, **options})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Mode -> (result, what the run noted of its gates)."""
    made = {}
    for mode in ("layer", "channel"):
        root = tmp_path_factory.mktemp(mode) / "run"
        (one,) = results(root, ["params=60%"], mode=mode)
        (file,) = root.rglob("gates-*.json")
        made[mode] = one, json.loads(file.read_text())
    return made


@pytest.mark.parametrize("mode", ["layer", "channel"])
def test_the_budget_is_kept_and_the_prediction_is_the_count(found, mode):
    one, said = found[mode]
    count = sum(p.numel() for p in one.subject.model.parameters())
    whole = sum(p.numel() for p in net().parameters())
    assert count == one.predicted["params"] == one.cut.after["params"]
    assert count <= 0.6 * whole
    assert not one.cut.is_noop
    assert not any("gate" in name or "decide" in name for name in one.subject.model.state_dict())
    assert one.recovery.steps == 12 * (231 // 32)
    assert one.recovery.flops == pytest.approx(said["training"]["flops"])
    assert said["flops"]["static"] < said["flops"]["dense"]


@pytest.mark.parametrize("mode", ["layer", "channel"])
def test_it_has_learnt_and_kept_what_the_gates_say(found, mode):
    one, said = found[mode]
    model, held = one.subject.model.eval(), data()
    right = (model(held.inputs).argmax(1) == held.labels).float().mean()
    assert right > 0.7, "chance is 0.25"
    often = np.concatenate([np.array(row) for row in said["frequency"].values()])
    kept = sum(total - gone for gone, total in one.cut.removed.values())
    total = sum(total for _, total in one.cut.removed.values())
    assert total == len(often) or mode == "channel"
    assert said["unanimous"] == pytest.approx(((often <= 0.01) | (often >= 0.99)).mean())
    if not said["overruled"] and total == len(often):
        assert kept == (often >= 0.5).sum()
    assert f"{said['unanimous']:.1%} of {len(often)} gates" in one.notes[0]


@pytest.mark.parametrize("mode", ["layer", "channel"])
def test_the_static_network_is_the_gated_one_where_its_masks_are_the_consensus(mode):
    work = subject()
    gated = recipe.gate(work, mode, bias=0.5)
    for name, one in zip(gated.gates.places, gated.gates.each, strict=True):  # each gate on for about half the inputs
        _, mean = recipe.ask(work.model, gated.gates, data(), 64)
        with torch.no_grad():
            one.decide.bias += 0.5 - mean[name].float()
    with gated.gates.on(work.model.eval()), torch.no_grad():
        work.model(data().inputs)
        decisions = {name: value > 0.5 for name, value in gated.gates.values.items()}
    votes, _ = recipe.ask(work.model, gated.gates, data(), 64)
    assert all(torch.equal(votes.on[name], value.sum(0)) for name, value in decisions.items())
    per_site = gated.by_site({name: value.T.double() for name, value in decisions.items()})
    masks = {name: value.T.bool() for name, value in per_site.items()}
    chosen = torch.cat(list(masks.values()), 1)
    patterns, count = torch.unique(chosen, dim=0, return_counts=True)
    enough = [row for row in patterns if mode == "layer" or all(bool(part.any()) for part in row.split(10))]
    consensus = max(enough, key=lambda row: int(count[(patterns == row).all(1)]))
    same = (chosen == consensus).all(1)
    assert 0 < int(same.sum()) < len(same), "some inputs must agree and some not"
    parts = consensus.split([value.shape[1] for value in masks.values()])
    keep = {name: part.numpy() for name, part in zip(masks, parts, strict=True)}
    assert not all(part.all() for part in keep.values())
    small, _ = gated.cut(work, Selection(keep))
    with torch.no_grad(), gated.gates.on(work.model):
        dynamic = work.model.eval()(data().inputs)
    with torch.no_grad():
        static = small.model.eval()(data().inputs)
    assert torch.allclose(static[same], dynamic[same], atol=1e-5)
    assert not torch.allclose(static[~same], dynamic[~same], atol=1e-3)


def test_polarization_makes_the_gates_agree(tmp_path):
    share = {}
    for strength in (0.0, 3.0):
        root = tmp_path / str(strength)
        results(root, ["params=60%"], mode="channel", polarization=strength, seed=1)
        share[strength] = json.loads(next(root.rglob("gates-*.json")).read_text())["unanimous"]
    assert share[3.0] > share[0.0]
    assert share[3.0] > 0.9


def test_gates_forced_open_train_the_network_alone():
    work = subject()
    gated = recipe.gate(work, "layer")
    part = {**examples.batches(data(), batch=32)[0], "done": 0.05}
    target = {"params": 2000.0}
    totals = {"examples": 32}
    with gated.gates.on(work.model):
        closed, _ = recipe.loss(work.model, gated.gates, gated.units, target, part, totals, open_for=0.1)
        closed.backward()
    task = nn.functional.cross_entropy(work.model(part["inputs"]), part["labels"])
    assert float(closed.detach()) == pytest.approx(float(task.detach()), rel=1e-5)
    assert all(p.grad is None for p in gated.gates.parameters())


def test_the_parts_of_the_loss_and_their_ramp():
    work = subject()
    gated = recipe.gate(work, "layer")
    with torch.no_grad():
        for index, one in enumerate(gated.gates.each):
            one.decide.weight.zero_()
            one.decide.bias.fill_(1.0 if index else 0.0)
    part, totals = examples.batches(data(), batch=32)[0], {"examples": 32}
    whole = gated.units.cost()["params"]
    per_branch = gated.units["branches"].cost["params"][0]
    half = {"params": whole - 2 * per_branch}  # one branch of four is off, two are to be

    def value(progress, **how):
        with gated.gates.on(work.model), torch.no_grad():
            given = {**part, "done": progress}
            return recipe.loss(work.model, gated.gates, gated.units, half, given, totals, ramp=0.5, **how)

    loss, parts = value(1.0, activation=2.0)
    assert parts["act"] == pytest.approx(0.25, abs=1e-6)
    assert parts["polar"] == pytest.approx(0.0)
    assert float(loss) == pytest.approx(float(parts["task"]) + 0.5, rel=1e-5)
    with torch.no_grad():
        one = gated.gates.each[1]
        one.decide.weight.normal_(generator=torch.Generator().manual_seed(0))
        _, mean = recipe.ask(work.model, gated.gates, data(), 64)
        one.decide.bias += 0.5 - mean[list(gated.gates.places)[1]].float()
        work.model.train()
    _, parts = value(1.0, activation=0.0)
    assert parts["polar"] > 0
    early, late = (value(at, activation=0.0, polarization=4.0)[0] for at in (0.25, 1.0))
    task = float(parts["task"])
    assert float(late) - task == pytest.approx(4.0 * float(parts["polar"]), rel=1e-4)
    assert float(early) - task == pytest.approx(2.0 * float(parts["polar"]), rel=1e-4)


@pytest.mark.parametrize(
    ("form", "slack", "width"), [("band", 0.02, 0.25), ("band", 0.3, 0.3), ("absolute", 0.0, 0.125)]
)
def test_the_band_is_as_wide_as_a_unit_so_that_whole_units_can_meet_it(form, slack, width, tmp_path, monkeypatch):
    seen, real = set(), recipe.gates.activation

    def watched(share, target, form, slack):
        seen.add((form, round(slack, 6)))
        return real(share, target, form, slack)

    monkeypatch.setattr(recipe.gates, "activation", watched)
    results(tmp_path, ["params=60%"], mode="layer", form=form, slack=slack, epochs=0.5)
    assert seen == {(form, width)}  # four branches of one size


def test_two_micro_batches_weigh_as_their_mean():
    work = subject()
    gated = recipe.gate(work, "layer", bias=0.5)
    feed, target = examples.batches(data(), batch=16), {"params": 1000.0}
    with gated.gates.on(work.model.eval()), torch.no_grad():
        alone = [
            recipe.loss(work.model, gated.gates, gated.units, target, feed[i], {"examples": 16})[0] for i in (0, 1)
        ]
        joint = [
            recipe.loss(work.model, gated.gates, gated.units, target, feed[i], {"examples": 32})[0] for i in (0, 1)
        ]
    assert float(sum(joint)) == pytest.approx(float(sum(alone)) / 2, rel=1e-6)


def test_a_budget_the_vote_overruns_is_kept_all_the_same(tmp_path):
    (one,) = results(tmp_path, ["channels=50%"], mode="channel", dry_run=True)
    assert one.cut.after["channels"] <= 0.5 * one.cut.before["channels"]
    assert any("against the gates' vote" in note for note in one.notes)
    assert any("dry run" in note for note in one.notes)
    assert one.recovery is None


def test_a_tie_stays_and_one_channel_stays_where_all_gates_are_off():
    from secateur.select import ranking

    gated = recipe.gate(subject(), "channel")
    scores = {name: np.zeros(10) for name in gated.gates.places}
    first = next(iter(scores))
    scores[first][3:5] = 0.5
    keep = ranking.threshold(gated.units, scores, 0.5).keep
    assert np.flatnonzero(keep[first]).tolist() == [3, 4]
    assert all(int(mask.sum()) == 1 for name, mask in keep.items() if name != first)


def test_the_original_stays_and_a_run_repeats_and_resumes(tmp_path):
    original = subject()
    before = copy.deepcopy(original.model.state_dict())
    weights = []
    for root in ("a", "b", "a"):
        (one,) = nets.run(
            recipe.consensus_polarization, tmp_path / root, original, data(), ["params=70%"], **{**QUICK, "epochs": 2.0}
        )
        weights.append(one.subject.model.state_dict())
    for other in weights[1:]:
        assert weights[0].keys() == other.keys()
        assert all(torch.equal(weights[0][name], other[name]) for name in other)
    assert all(torch.equal(before[name], value) for name, value in original.model.state_dict().items())


def tiny_vit() -> tuple[nn.Module, Tensor]:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=6, patch_size=3,
        num_channels=1, num_labels=4,
    )  # fmt: skip
    return ViTForImageClassification(config), data().inputs[:2]


def tiny_bert() -> tuple[nn.Module, dict[str, Tensor]]:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=30, num_labels=4
    )
    ids = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("make", [tiny_vit, tiny_bert])
def test_attention_and_feed_forward_of_token_models_have_gates(make):
    torch.manual_seed(0)
    model, inputs = make()
    opened = open_traced(model.eval(), inputs)
    layers = recipe.gate(opened, "layer", bias=5.0)
    assert len(layers.gates.places) == 4
    channels = recipe.gate(opened, "channel", bias=5.0)
    assert sum(name.endswith("heads") for name in channels.gates.places) == 2
    assert sum(place.units == 24 for place in channels.gates.places.values()) == 2
    for gated in (layers, channels):
        for doors, expected in (({}, opened.model), (None, opened.model)):
            gated.gates.fixed = doors
            args, kwargs = opened.inputs.fresh()
            with torch.no_grad(), gated.gates.on(opened.model):
                given = opened.model(*args, **kwargs).logits
            with torch.no_grad():
                assert torch.equal(given, expected(*args, **kwargs).logits)
            shape = {value.shape[0] for value in gated.gates.values.values()}
            assert not shape, "values go with the hooks"


@pytest.mark.parametrize(
    ("make", "mode", "budget"), [(tiny_vit, "layer", "flops=70%"), (tiny_bert, "channel", "flops=80%")]
)
def test_a_transformer_is_trained_with_gates_on_its_sub_layers(make, mode, budget, tmp_path):
    torch.manual_seed(0)
    model, inputs = make()
    opened, learnt = open_traced(model, inputs), data()
    if make is tiny_bert:
        ids = torch.randint(0, 30, (96, 7), generator=torch.Generator().manual_seed(1))
        learnt = Examples(ids, ids[:, 0] % 4)
    how = {"mode": mode, "optimizer": "adamw", "lr": 3e-3, "epochs": 3, "batch": 32}
    (one,) = nets.run(recipe.consensus_polarization, tmp_path, opened, learnt, [budget], **how)
    assert one.subject.flops() == one.predicted["flops"] <= Budget.parse(budget).limits[0].value * opened.flops()
    kinds = {site.rpartition(".")[2] for site, (gone, _) in one.cut.removed.items() if gone}
    assert kinds == ({"branches"} if mode == "layer" else {"heads", "channels"})
    with torch.no_grad():
        scores = one.subject.model.eval()(learnt.inputs[:5]).logits
    assert scores.shape == (5, 4)


def test_gates_have_the_width_and_the_leak_asked_for():
    gated = recipe.gate(subject(), "layer", hidden=5, bias=0.5, leak=0.2)
    for one in gated.gates.each:
        assert (one.look.out_features, one.leak) == (5, 0.2)
        assert (one.decide.bias == 0.5).all()


def test_the_margin_moves_the_target_and_norms_stay_where_that_is_asked_for(tmp_path, monkeypatch):
    limits, calls = [], []
    monkeypatch.setattr(recipe, "loss", lambda *args, **_: limits.append(args[3]["params"]) or pytest.skip())
    monkeypatch.setattr(recipe.norms, "reestimate", lambda *_: calls.append(None))
    for margin in (0.0, 0.25):
        with pytest.raises(pytest.skip.Exception):
            results(tmp_path / str(margin), ["params=60%"], mode="layer", margin=margin)
    assert limits[1] == pytest.approx(0.75 * limits[0])
    monkeypatch.setattr(recipe.statistics, "unanimous", lambda _: 0.5)
    for reestimate in (False, True):
        results(tmp_path / str(reestimate), ["params=60%"], mode="layer", reestimate=reestimate, dry_run=True)
        assert len(calls) == reestimate


@pytest.mark.parametrize("votes", ["all on", "half of them on"])
def test_norms_are_averaged_anew_where_gates_that_agree_are_overruled(tmp_path, monkeypatch, votes):
    """The budget takes branches that all gates wanted: norms were those of the whole network."""
    real, calls = recipe.ask, []
    monkeypatch.setattr(recipe.norms, "reestimate", lambda *_: calls.append(None))

    def ask(*given):
        found, sure = real(*given)
        off = list(found.on)[: 0 if votes == "all on" else 2]
        return replace(found, on={name: on * (name not in off) for name, on in found.on.items()}), sure

    monkeypatch.setattr(recipe, "ask", ask)
    results(tmp_path, ["params=60%"], mode="layer", dry_run=True)
    (file,) = tmp_path.rglob("gates-*.json")
    said = json.loads(file.read_text())
    assert said["unanimous"] == 1.0
    assert (said["overruled"] > 0) == (votes == "all on")
    assert len(calls) == (votes == "all on")


def test_gates_in_a_loop_of_ones_own():
    """The losses are plain functions: any loop can add them."""
    work = subject()
    gated = recipe.gate(work, "channel", units=["2.conv1.*"])
    assert set(gated.gates.places) == {"2.conv1.channels"}
    feed = examples.batches(data(), batch=32)

    def objective(part, totals):
        return recipe.loss(work.model, gated.gates, gated.units, {"params": 1.0}, part, totals, activation=5.0)

    with gated.gates.on(work.model):
        loop.train(
            work.model, feed, objective, steps=40, lr=0.05, optimizer="sgd", extra=[gated.gates], count=examples.count
        )
    votes, _ = recipe.ask(work.model, gated.gates, data(), 64)
    assert float(votes.on["2.conv1.channels"].double().mean()) < 0.5 * votes.count


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("training has begun"))
    with pytest.raises(InputError, match="neither 'channel' nor 'layer'"):
        recipe.gate(subject(), "block")
    with pytest.raises(InputError, match="no site is called"):
        recipe.gate(subject(), "channel", units="stage*")
    with pytest.raises(InfeasibleError):
        results(tmp_path / "a", ["params=1%"])
    with pytest.raises(UnsupportedError, match="can be gated"):
        recipe.gate(open_traced(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3)),
                                torch.randn(4, 6)))  # fmt: skip
    for budget in ("params=100%", "channels=100%,flops=100%"):
        with pytest.raises(InfeasibleError, match=f"budget {budget} would change nothing"):
            results(tmp_path / "c", ["params=60%", budget])
    for options, words in (
        ({"epochs": 0}, "epochs=0: give a number above 0"),
        ({"epochs": float("nan")}, "option epochs=nan"),
        ({"threshold": 7}, "option threshold=7"),
        ({"threshold": -0.1}, r"option threshold=-0\.1"),
        ({"form": "square"}, "option form='square'"),
        ({"slack": -0.5}, "option slack=-0.5"),
        ({"margin": 1.0}, "option margin=1.0"),
        ({"hidden": 0}, "option hidden=0"),
        ({"leak": -1.0}, "option leak=-1.0"),
        ({"open_for": 2.0}, "option open_for=2.0"),
        ({"ramp": -1.0}, "option ramp=-1.0"),
    ):
        with pytest.raises(InputError, match=words):
            results(tmp_path / "d", ["params=60%"], **options)
    unlabelled = Examples(data().inputs, None, name="pictures")
    with pytest.raises(DataError, match="pictures has no classes"):
        nets.run(recipe.consensus_polarization, tmp_path / "b", subject(), unlabelled, ["params=60%"])


def test_a_stage_all_of_whose_branches_are_gone_is_told_from_others():
    names = ["stem.a", "layer1.0", "layer1.1", "layer2.0.f", "layer2.0.g", "layer2.1.f"]

    def collapsed(row):
        return recipe._find_collapsed(dict(zip(names, map(bool, row), strict=True)))

    assert collapsed([1, 0, 0, 1, 1, 1]) == {"layer1": 2}
    assert collapsed([1, 0, 1, 0, 0, 1]) == {"layer2.0": 2}
    assert collapsed([1, 1, 1, 0, 0, 0]) == {"layer2": 3}, "the whole of it, not its parts again"
    assert collapsed([0, 1, 1, 1, 1, 1]) == {}, "one branch is no stage"


def test_a_collapsed_stage_stands_in_the_notes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    stages = [nn.Sequential(Block(8), Block(8)) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                          nn.Linear(32, 4))  # fmt: skip
    some = data(64)
    off = {"2.0", "2.1"}

    def ask(model, doors, data, batch):
        told = {name: torch.full((len(data), 1), float(name not in off)) for name in doors.places}
        return Votes.of(told), {name: row.mean(0).double() for name, row in told.items()}

    monkeypatch.setattr(recipe, "ask", ask)
    start, how = open_traced(model, some.inputs[:1]), {"mode": "layer", "dry_run": True}
    (found,) = nets.run(recipe.consensus_polarization, tmp_path, start, some, ["params=60%"], **how)
    assert "all 2 branches of 2 are gone: only the shortcuts of that stage are left" in found.notes


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(epochs=6, batch=24)


def test_gates_are_asked_on_what_was_learned_and_accuracies_are_of_what_was_held_out(tmp_path, monkeypatch):
    asked, judged, seen = [], [], []
    ask, accuracy, batches = recipe.ask, recipe._accuracy, recipe.examples.batches
    monkeypatch.setattr(recipe, "ask", lambda *given: asked.append(given[2].digest) or ask(*given))
    monkeypatch.setattr(recipe, "_accuracy", lambda *given: judged.append(given[1].digest) or accuracy(*given))
    monkeypatch.setattr(
        recipe.examples, "batches", lambda part, **how: seen.append((part.digest, how["seed"])) or batches(part, **how)
    )
    monkeypatch.setattr(recipe.norms, "reestimate", lambda model, run, feed: seen.append(feed.data.digest))
    results(tmp_path, ["params=60%"], mode="layer", dry_run=True, seed=3)  # gates that start open are overruled
    train, held = (part.digest for part in data().split(seed=3))
    assert asked == [train]
    assert judged == [held] * 3
    assert seen == [(train, 3), train]


def test_what_is_asked_for_reaches_the_gates_and_the_loss(tmp_path, monkeypatch):
    gates, losses = [], []
    gate, loss = recipe.gate, recipe.loss
    monkeypatch.setattr(recipe, "gate", lambda *given, **how: gates.append((given[1:], how)) or gate(*given, **how))
    monkeypatch.setattr(recipe, "loss", lambda *given, **how: losses.append(how) or loss(*given, **how))
    shape = {"hidden": 5, "bias": 2.0, "leak": 0.1}
    weights = {"activation": 2.5, "polarization": 1.5, "open_for": 0.0, "ramp": 0.25}
    results(tmp_path, ["params=60%"], mode="layer", epochs=0.1, units=["2*", "3*"], seed=3, **shape, **weights)
    assert gates == [(("layer", ["2*", "3*"]), {"multiple": 1, "seed": 3, **shape})]
    assert losses
    assert all({name: one[name] for name in weights} == weights for one in losses)


@pytest.mark.parametrize(
    ("often", "sure", "budget", "threshold", "kept"),
    [
        ([1.0, 0.75, 0.625, 0.25], [0.0] * 4, "params=90%", 0.5, [True, True, True, False]),
        ([1.0, 0.75, 0.625, 0.25], [0.0] * 4, "params=90%", 0.7, [True, True, False, False]),
        ([1.0] * 4, [3.0, -2.0, 1.0, 2.0], "params=80%", 0.5, [True, False, True, True]),
    ],
    ids=["half", "more than half", "the least sure of equals goes"],
)
def test_branches_stay_by_how_often_and_then_by_how_surely_they_are_on(
    tmp_path, monkeypatch, often, sure, budget, threshold, kept
):
    def ask(model, doors, some, batch):
        places = list(doors.places)
        on = {name: torch.arange(8)[:, None] < 8 * share for name, share in zip(places, often, strict=True)}
        return Votes.of({name: row.float() for name, row in on.items()}), {
            name: torch.tensor([value], dtype=torch.float64) for name, value in zip(places, sure, strict=True)
        }

    monkeypatch.setattr(recipe, "ask", ask)
    results(tmp_path, [budget], mode="layer", threshold=threshold, dry_run=True)
    (file,) = tmp_path.rglob("gates-*.json")
    assert list(json.loads(file.read_text())["branches"].values()) == kept
