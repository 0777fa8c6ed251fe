"""The control experiment over seeds and over a finished run."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

import tiny
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.errors import InfeasibleError, InputError, RunError, UnsupportedError
from secateur.recipes.vision import rethinking_pruning_value as rethinking
from secateur.recipes.vision.rethinking_pruning_value import Arm
from secateur.recover.sparsity import masks
from secateur.recover.training import loop
from secateur.reports import evidence
from secateur.runs import executor
from secateur.studies import scratch, study_inputs
from secateur.subjects import open_subject
from secateur.vocabulary import Budget

HALF = Budget.parse("channels=50%")
QUICK = {"epochs": 2, "batch": 24, "lr": 0.05}


@pytest.fixture(scope="module")
def pruned():
    return rethinking.prune(nets.opened(nets.vgg()), HALF, "l1")


def test_three_arms_and_a_control_of_units(pruned, tmp_path):
    found = scratch.scratch_control(pruned, nets.data(), seeds=(0, 1), out=tmp_path, pretrained=True, **QUICK)
    assert list(found.arms) == ["fine-tuned", "scratch-E", "scratch-B", "random units"]
    assert all(len(arms) == 2 for arms in found.arms.values())
    assert set(found.verdicts) == {"scratch-E", "scratch-B", "random units"}
    assert found.widths == {"0": 4, "3": 4, "7": 6, "10": 6, "15": 4}
    scratch_b = found.arms["scratch-B"][0]
    assert scratch_b.flops <= found.dense_flops < scratch_b.flops * (1 + 1 / scratch_b.epochs)
    page = (tmp_path / "report.md").read_text()
    for word in ("fine-tuned (classic)", "scratch-E", "scratch-B", "random units", "Training FLOPs", scratch.LACKS):
        assert word in page
    assert page == found.markdown()
    best = [cell.strip() for cell in re.search(r"scratch-E.*", page)[0].split("|")][2]
    assert 0 <= float(best) <= 100


def test_a_network_for_each_seed(pruned):
    seen = []

    def make(seed):
        seen.append(seed)
        return pruned

    found = scratch.scratch_control(make, nets.data(), mode="E", seeds=(4, 5), chance=False, **QUICK)
    assert seen == [4, 5]
    assert list(found.arms) == ["fine-tuned", "scratch-E"]
    assert found.arms["scratch-E"][0].accuracy != found.arms["scratch-E"][1].accuracy or not torch.equal(
        found.arms["scratch-E"][0].model[0].weight, found.arms["scratch-E"][1].model[0].weight
    )


def arm(right):
    return Arm(1, 1.0, np.array(right, bool), torch.nn.Identity())


def control(tuned, fresh, seeds):
    return scratch.Control({"fine-tuned": tuned, "scratch-E": fresh}, seeds, "classic", 1.0, {})


def test_verdicts_are_paired_over_seeds_or_over_examples():
    better = [arm([1, 1, 1, 0]), arm([1, 1, 1, 0]), arm([1, 1, 1, 1])]
    worse = [arm([1, 1, 0, 0]), arm([1, 0, 1, 0]), arm([1, 1, 1, 0])]
    found = control(tuple(better), tuple(worse), (0, 1, 2))
    assert found.difference("scratch-E").value == pytest.approx(25.0)
    assert "inherited" in found.verdicts["scratch-E"]
    assert "scratch is better" in control(tuple(worse), tuple(better), (0, 1, 2)).verdicts["scratch-E"]
    single = control((arm([1] * 50 + [0] * 2),), (arm([0] * 50 + [1] * 2),), (0,))
    assert single.difference("scratch-E").samples == 52
    assert "over held-out examples of one training" in single.markdown()


@pytest.mark.parametrize("options", [{"mode": "F"}, {"seeds": ()}, {"seeds": (0, -1)}])
def test_what_does_not_fit_is_refused(pruned, options):
    with pytest.raises(InputError):
        scratch.scratch_control(pruned, nets.data(), **options)


def answered(root, *budgets, **more):
    how = {**QUICK, "seeds": (0, 1), "scratch": "both", **more}
    return study_inputs.study(
        "scratch", nets.opened(nets.vgg()), nets.data(), root, budgets=budgets or ("channels=50%",), **how
    )


def test_the_study_by_its_name_resumes_and_grows(tmp_path, monkeypatch):
    sheet = answered(tmp_path / "s")
    (table,) = sheet.tables
    assert [row[0] for row in table.rows[1:]] == ["fine-tuned (classic)", "scratch-E", "scratch-B", "random units"]
    assert sheet.headline.startswith("channels=50%: fine-tuned minus scratch-")
    assert any(scratch.LACKS in note for note in sheet.notes)
    said = json.loads((tmp_path / "s" / "study.json").read_text())["figures"]["budgets"][0]
    assert said["budget"] == "channels=50%"
    assert 0 < said["flops_left"] < 0.5
    arms = {one["arm"]: one for one in said["arms"]}
    assert all(len(one["by_seed"]) == 2 for one in arms.values())
    assert arms["scratch-E"]["epochs"] == [2, 2]
    gap = np.mean(arms["fine-tuned"]["by_seed"]) - np.mean(arms["scratch-B"]["by_seed"])
    assert arms["scratch-B"]["fine_tuned_minus_it"]["value"] == pytest.approx(100 * gap)
    assert {"fine_tuned_minus_it", "verdict"} & set(arms["fine-tuned"]) == set()
    page = (tmp_path / "s" / "study.html").read_text()
    assert "random units" in page
    assert "<svg" in page
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train", lambda *given, **how: 1 / 0)
        assert answered(tmp_path / "s").tables == sheet.tables
        with pytest.raises(ZeroDivisionError):
            answered(tmp_path / "s", "channels=50%", "channels=25%")
    more = answered(tmp_path / "s", "channels=50%", "channels=25%")
    assert list(more.tables[:1]) == list(sheet.tables), "what was known stays"
    assert more.tables[1].title.startswith("channels=25%: ")
    with pytest.raises(RunError, match="epochs=2"):
        answered(tmp_path / "s", epochs=3)


def test_a_dry_run_of_the_study_counts_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *given, **how: pytest.fail("trained in a dry run"))
    plain = answered(tmp_path / "d", "channels=50%", "channels=25%", dry_run=True)
    assert plain.headline == "dry run: 8 fine-tunings, 8 trainings from scratch"
    more = {"method": "soft", "untrained": True, "chance": False, "scratch": "E"}
    other = answered(tmp_path / "d", "channels=50%", dry_run=True, **more)
    assert other.headline == "dry run: 4 large networks, 2 fine-tunings, 2 trainings from scratch"
    assert not (tmp_path / "d").exists()
    for given, words in (
        ({"scratch": "none"}, "scratch=none leaves out"),
        ({"epochs": 0}, "epochs=0"),
        ({"seeds": ()}, "give at least one of each"),
        ({"method": "l2"}, "method='l2'"),
    ):
        with pytest.raises(InputError, match=words):
            answered(tmp_path / "d", **given)
    with pytest.raises(InfeasibleError, match="channels can go down to"):
        answered(tmp_path / "d", "channels=0.1%")
    assert not (tmp_path / "d").exists()


def test_the_study_draws_and_trains_a_large_network_for_each_seed(tmp_path, monkeypatch):
    trained, real = [], rethinking.fit

    def fit(model, *given, **how):
        if how["epochs"]:
            trained.append(len(next(iter(model.parameters()))))
        return real(model, *given, **how)

    monkeypatch.setattr(rethinking, "fit", fit)
    sheet = answered(tmp_path, untrained=True, chance=False, epochs=1, judged=nets.data(40, seed=1))
    assert trained == 2 * [8, 4, 4, 4], "large, fine-tuned, E and B of each seed"
    assert not any(scratch.LACKS in note for note in sheet.notes)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("judged-*.json"))]
    assert [len(one["arms"]["scratch-E"]["right"]) for one in found] == [40, 40]


def test_an_architecture_is_described_by_its_outputs_or_kept_shares():
    subject = nets.opened(nets.vgg())
    masked = rethinking.prune(subject, Budget.parse("weights=25%"), "unstructured")
    found = scratch.describe(masked.student.model, masked.masks)
    assert found["15"] == 4
    assert 0 < found["0"] <= 1
    total = sum(found[name.removesuffix(".weight")] * mask.numel() for name, mask in masked.masks.items())
    assert total == sum(int(mask.sum()) for mask in masked.masks.values())


@pytest.fixture
def place(tmp_path):
    data = nets.data()
    np.savez(tmp_path / "data.npz", inputs=data.inputs.numpy(), labels=data.labels.numpy())
    return tmp_path


def test_arms_are_added_to_a_run_of_a_network(place):
    model = nets.vgg()
    out = place / "out"
    executor.run("rethinking_pruning_value", model, place / "data.npz", "channels=50%", out, scratch="none", **QUICK)
    (row,) = scratch.add(out, model, place / "data.npz")
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    for arm in row.baselines.values():
        assert arm["params"].value == row.after["params"].value
        assert 0 <= arm["accuracy"].value <= 1
    assert scratch.LACKS in row.cut.notes
    assert evidence.read(out)[0].baselines.keys() == row.baselines.keys()
    assert "scratch-B" in (out / "report.html").read_text()
    assert "accuracy" in (out / "scratch.md").read_text()
    before = [dict(arm) for arm in row.baselines.values()]
    (again,) = scratch.add(out, model, place / "data.npz")
    assert [{k: v for k, v in arm.items() if k == "accuracy"} for arm in again.baselines.values()] == [
        {k: v for k, v in arm.items() if k == "accuracy"} for arm in before
    ]
    assert again.cut.notes == row.cut.notes


def test_arms_are_measured_on_what_the_run_was(place):
    how = ["rethinking_pruning_value", nets.vgg(), place / "data.npz", "channels=50%"]
    test = nets.data(30, seed=7)
    executor.run(*how, place / "out", scratch="none", held_out=test, **QUICK)
    (row,) = scratch.add(place / "out", *how[1:3], "E", chance=False, held_out=test)
    assert row.baselines["scratch-E"]["accuracy"].samples == 30
    executor.run(*how, place / "split", scratch="none", **QUICK)
    shutil.rmtree(place / "out/scratch")
    for held_out, folder, told in (
        (None, "out", "quarters: give that as held_out"),
        (test.take(range(20)), "out", "quarters: give that as held_out"),
        (test, "split", "a part of the data: leave held_out out"),
    ):
        with pytest.raises(InputError, match=f"the result channels=50% was measured on {told}"):
            scratch.add(place / folder, *how[1:3], "E", chance=False, held_out=held_out)
    assert evidence.read(place / "out")[0].baselines == row.baselines


@pytest.mark.parametrize("arm", ["scratch-E", "scratch-B", "random units"])
def test_arms_of_single_weights_keep_as_many(tmp_path, arm):
    subject = nets.opened(nets.vgg())
    masked = rethinking.prune(subject, Budget.parse("weights=30%"), "unstructured")
    masked.student.save(tmp_path / "small")
    removed = {site: list(pair) for site, pair in masked.cut.removed.items()}
    with Run.open(tmp_path / "run", {}) as run:
        (found,) = scratch.fresh_network(
            subject, nets.data(), [Budget.parse("weights=30%")], run, student=str(tmp_path / "small"),
            removed=removed, arm=arm, **QUICK,
        )  # fmt: skip
    kept = {name: weight != 0 for name, weight in masks.convolutions(found.subject.model).items()}
    assert {n: int(m.sum()) for n, m in kept.items()} == {n: int(m.sum()) for n, m in masked.masks.items()}
    same = all(torch.equal(kept[name], masked.masks[name]) for name in kept)
    assert same == (arm != "random units")
    assert found.recovery.steps == {"scratch-E": 20, "random units": 10}.get(arm, found.recovery.steps)
    assert arm != "scratch-B" or found.recovery.steps > 20


def test_arms_are_added_to_a_run_of_a_language_model(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    tiny.folder("llama", tmp_path / "llama")
    place = (tmp_path / "llama", tmp_path / "texts.txt")
    executor.run("ziplm", place[0], place[1], "params=80%", tmp_path / "out", steps=4, trials=0, calibration=16,
                train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    (row,) = scratch.add(tmp_path / "out", *place)
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    assert row.baselines["scratch-E"]["params"].value == row.after["params"].value
    assert row.baselines["scratch-E"]["perplexity"].value != row.after["perplexity"].value
    stretched = evidence.read(tmp_path / "out" / "scratch" / "scratch-B-params=80%")[0]
    sizes = [open_subject(folder).flops_per_token(16) for folder in (place[0], tmp_path / "out")]
    assert stretched.recovery.steps == int(4 * sizes[0] / sizes[1]) > 4
    assert scratch.LACKS in row.cut.notes


def test_random_units_of_another_shape_are_refused():
    subject = nets.opened(nets.vgg())
    small = rethinking.prune(subject, HALF, "l1")
    removed = {site: list(pair) for site, pair in small.cut.removed.items()}
    assert scratch._at_random(subject, small.student, removed, 3).model[0].out_channels == 4
    first = next(iter(removed))
    with pytest.raises(UnsupportedError, match="shape"):
        scratch._at_random(subject, small.student, {**removed, first: [1, 8]}, 3)
    with pytest.raises(InputError, match="at once"):
        scratch._at_random(subject, small.student, {**removed, "nowhere": [1, 8]}, 3)
    with pytest.raises(InfeasibleError, match="shape"):
        scratch._at_random(subject, small.student, {**removed, first: [8, 8]}, 3)


def test_a_run_without_training_has_no_control(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    tiny.folder("bert", tmp_path / "bert")
    place = (tmp_path / "bert", tmp_path / "texts.txt")
    executor.run("ziplm", place[0], place[1], "params=85%", tmp_path / "out", steps=0, trials=0, calibration=16,
                train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    with pytest.raises(InputError, match="steps"):
        scratch.add(tmp_path / "out", *place)
    with pytest.raises(InputError, match="mode"):
        scratch.add(tmp_path / "out", *place, "F")


def test_arms_are_added_to_a_run_of_a_detector(tmp_path):
    """Trained by the detector's own loss, as long as the run in all its stages, and judged by average precision."""
    (tmp_path / "detector.py").write_text(
        "import yolo\nfrom assets.scenes import scenes\n\n\n"
        "def build():\n    return yolo.Yolo(10, (4, 8, 8, 12, 16))\n\n\n"
        "def data():\n    return scenes(16, size=64, stop=4000)\n"
    )
    model, data = (f"{tmp_path}/detector.py:{name}" for name in ("build", "data"))
    out = tmp_path / "out"
    short = dict(sparse_epochs=1, finetune_epochs=1, distil_epochs=2, batch=8, seed=0, least=2)
    executor.run("yolov8_cwd", model, data, "channels=60%", out, **short)
    (row,) = scratch.add(out, model, data, "both")
    assert set(row.baselines) == {"scratch-E", "scratch-B", "random units"}
    assert all(0 <= arm["mAP"].value <= 1 for arm in row.baselines.values())
    assert all(arm["params"].value == row.after["params"].value for arm in row.baselines.values())
    assert "mAP: " in (out / "scratch.md").read_text()
    steps = {
        name: json.loads((out / "scratch" / f"{name}-channels=60%" / "evidence.json").read_text())["results"][0]
        for name in row.baselines
    }
    assert steps["scratch-E"]["recovery"]["steps"] == row.recovery.steps
    assert steps["scratch-B"]["recovery"]["steps"] > steps["scratch-E"]["recovery"]["steps"]
    assert steps["random units"]["recovery"]["steps"] < steps["scratch-E"]["recovery"]["steps"]
