"""ND on classifiers of a few thousand weights and images of quarters."""

from __future__ import annotations

import functools
import json
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import small_vision as vision
import vision_models
import yolo
from assets.scenes import scenes
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, UnsupportedError
from secateur.recipes.vision import nd_loss as module
from secateur.recipes.vision.nd_loss import nd_loss
from secateur.recover.training import detecting, loop
from secateur.recover.training.mixing import Mix
from secateur.subjects import open_traced
from secateur.subjects.network import detectors
from secateur.subjects.network.traced import Traced, reload_traced
from secateur.vocabulary import Budget

DATA, HELD_OUT = nets.data(160), nets.data(200, seed=5)
QUICK = {"batch": 32, "epochs": 3.0, "warmup": 1.0, "lr": 0.02}


def network(width: int = 24, seed: int = 0) -> nn.Module:
    """Two convolutions, mean-pooling and a linear head: the feature is [B, width]."""
    return vision.vgg((12, "M", width), classes=4, seed=seed)


@functools.cache
def taught() -> nn.Module:
    model = network()
    vision.fit(model, DATA, epochs=8, batch=32, lr=0.1)
    return model


def results(root, budgets=("params=50%",), model=None, data=DATA, **options):
    start = open_traced(model or taught(), data.inputs[:2])
    with Run.open(root, {}) as run:
        return list(nd_loss(start, data, [Budget.parse(b) for b in budgets], run, **{**QUICK, **options}))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("nd") / "run"
    return root, results(root)[0]


def test_class_means_are_those_of_the_teacher_in_evaluation_mode(first):
    root, _ = first
    tap = module.Tap.of(open_traced(taught(), DATA.inputs[:2]), "")
    assert tap.name.endswith("@input")
    found = module.ClassMeans.load(root / "work" / "class-means.safetensors", {"feature": tap.name})
    net = taught().eval()
    with torch.no_grad():
        features = net[:-1](DATA.inputs).double().numpy()
    for label in range(4):
        mean = features[DATA.labels.numpy() == label].mean(0)
        np.testing.assert_allclose(found.means[label].numpy(), mean, rtol=1e-5, atol=1e-6)


def test_inner_layers_are_narrowed_and_the_feature_keeps_its_width(first):
    _, found = first
    assert found.subject.model[-1].in_features == 24
    assert found.subject.model[0].out_channels < 12
    assert found.cut.after["params"] == found.predicted["params"] <= 0.5 * found.cut.before["params"]
    assert found.recovery.steps == 15
    assert vision.accuracy(found.subject.model, HELD_OUT) > 0.9


def test_figures_of_features_are_in_the_run_and_in_the_notes(first):
    root, found = first
    said = json.loads((root / "work" / "features-params=50%.json").read_text())
    assert set(said) == {"teacher", "student"}
    with torch.no_grad():
        rows = taught().eval()[:-1](DATA.inputs)
    assert said["teacher"]["norm"] == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-5)
    assert said["teacher"]["distance"] == 0
    assert said["student"]["distance"] > 0
    assert said["teacher"]["loyalty"] == 1
    with torch.no_grad():
        alike = found.subject.model.eval()(DATA.inputs).argmax(1) == taught().eval()(DATA.inputs).argmax(1)
    assert said["student"]["loyalty"] == pytest.approx(alike.float().mean().item())
    assert said["teacher"]["nearest"] > 0.9
    assert found.notes[1].startswith(f"student: features of norm {said['student']['norm']:.3g}, cosine")


def test_a_projector_is_trained_where_widths_differ_and_is_not_in_the_student(tmp_path):
    (found,) = results(tmp_path / "run", keep_width=False)
    assert found.subject.model[-1].in_features < 24
    assert set(found.subject.model.state_dict()) == set(taught().state_dict())
    found.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", network(seed=9), DATA.inputs[:2])
    assert torch.equal(again.forward(DATA.inputs[:8]), found.subject.forward(DATA.inputs[:8]))
    kept = torch.nn.utils.parameters_to_vector(again.model.parameters()).numel()
    assert kept == found.cut.after["params"], "as many parameters as the cut left, and none of a projector"


def plain(steps: int, host: bool) -> nn.Module:
    """Labels, and KD with its warm-up, written out by hand: what nd=0 has to be bit for bit."""
    start = open_traced(taught(), DATA.inputs[:2])
    small = module.narrowed(start, Budget.parse("params=50%"), module.classifiers(start), 1)[0].model
    feed = examples.batches(DATA, batch=32, seed=0)

    class Numbered:
        def __getitem__(self, index):
            return {**feed[index], "epoch": index // len(feed)}

    def objective(part, totals):
        logits = small(part["inputs"])
        loss = 1.0 * (module.losses.cross_entropy(logits, part["labels"]) / totals["examples"])
        if host and part["epoch"]:
            with torch.no_grad():
                told = taught().eval()(part["inputs"])
            near = 16 * module.losses.kl(logits, told, temperature=4.0) / totals["examples"]
            loss = loss + min(1.0, part["epoch"] / 2) * near
        return loss, {}

    how = dict(optimizer="sgd", warmup=0.0, weight_decay=5e-4, precision="fp32", clip=None, progress=False)
    loop.train(small, Numbered(), objective, steps=steps, lr=0.02, count=examples.count, **how)
    return small


@pytest.mark.parametrize(("options", "host"), [({"warmup": 2.0}, True), ({"host": "none"}, False)])
def test_without_nd_it_is_its_host_bit_for_bit(tmp_path, options, host):
    (found,) = results(tmp_path, nd=0.0, **options)
    expected = plain(15, host).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.subject.model.state_dict().items())


def test_the_host_is_silent_in_the_first_epoch_and_nd_is_not(tmp_path):
    one = {"epochs": 1.0, "warmup": 5.0}
    (kd,) = results(tmp_path / "kd", nd=0.0, **one)
    (none,) = results(tmp_path / "none", nd=0.0, host="none", **one)
    (nd,) = results(tmp_path / "nd", **one)
    name = "0.weight"
    assert torch.equal(kd.subject.model.state_dict()[name], none.subject.model.state_dict()[name])
    assert not torch.equal(nd.subject.model.state_dict()[name], none.subject.model.state_dict()[name])


@pytest.mark.parametrize(
    "options",
    [
        {"host": "dkd", "weight": 0.5},
        {"host": "dist"},
        {"host": "review"},
        {"variant": "direction"},
        {"variant": "norm", "nd": 0.1},
        {"variant": "features", "nd": 0.1, "keep_width": False},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"mixup": 0.8, "cutmix": 1.0},
        {"optimizer": "adamw", "lr": 0.005},
        {"feature": "3"},
        {"feature": "5@input"},
    ],
    ids=str,
)
def test_every_host_and_variant_trains_to_a_network_of_its_own(tmp_path, first, options):
    (found,) = results(tmp_path, **options)
    assert vision.accuracy(found.subject.model, HELD_OUT) > 0.5
    assert not torch.equal(found.subject.model[0].weight, first[1].subject.model[0].weight)


@pytest.mark.parametrize("mix", [Mix(mixup=1.0), Mix(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_mixed_labels_and_centres_are_those_of_the_mix(mix):
    tap = module.Tap.of(open_traced(taught().eval(), DATA.inputs[:2]), "")
    batch = {"inputs": DATA.inputs[:16], "labels": DATA.labels[:16]}
    torch.manual_seed(3)
    view = tap.beside(tap, mix)(batch)
    torch.manual_seed(3)
    inputs, order, share = mix(batch["inputs"])
    assert 0 < view.share == share < 1
    assert torch.equal(view.others, batch["labels"][order])
    assert torch.equal(view.logits, taught().eval()(inputs))
    onehot = [functional.one_hot(one, 4).float() for one in (view.labels, view.others)]
    soft = view.share * onehot[0] + (1 - view.share) * onehot[1]
    wanted = -(soft * functional.log_softmax(view.logits, -1)).sum()
    assert module.labelled(view, batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    table = module.ClassMeans(torch.randn(4, 24), torch.ones(4, dtype=torch.long))
    loss = module.drawn("nd", table, nn.Identity(), 1.0)(view, batch)
    centres = soft @ table.means
    length = torch.maximum(view.feature.norm(dim=1), view.teacher_feature.norm(dim=1))
    along = (view.feature * functional.normalize(centres, dim=1)).sum(1)
    assert loss.item() == pytest.approx((1 - along / length).sum().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------- students that are given


def written(tmp_path, width: int, classes: int = 4) -> str:
    file = tmp_path / "mine.py"
    text = f"""
    import torch
    from torch import nn

    def build():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, {width}, 3, padding=1), nn.BatchNorm2d({width}), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear({width}, {classes}),
        )
    """
    file.write_text(textwrap.dedent(text))
    return f"{file}:build"


@pytest.mark.parametrize("width", [8, 24])
def test_a_student_may_be_given(tmp_path, width):
    (found,) = results(tmp_path / "run", ("params=90%",), student=written(tmp_path, width), epochs=20.0, lr=0.1)
    assert type(found.subject.model[0]) is nn.Conv2d
    assert found.subject.model[4].out_channels == width
    assert not found.cut.is_noop
    assert "network of its own" in found.cut.notes[0]
    assert found.cut.after["params"] == sum(p.numel() for p in found.subject.model.parameters())
    assert vision.accuracy(found.subject.model, HELD_OUT) > 0.8


def test_a_student_that_is_too_large_or_of_other_classes_is_refused(tmp_path):
    with pytest.raises(InfeasibleError, match=r"more than params=10% allows .*: ask for params="):
        results(tmp_path / "a", ("params=10%",), student=written(tmp_path, 24))
    with pytest.raises(InputError, match="tells 7 classes, its teacher 4"):
        results(tmp_path / "b", student=written(tmp_path, 8, classes=7))
    with pytest.raises(InputError, match="no file"):
        results(tmp_path / "c", student="nowhere.py:build")


# --------------------------------------------------------------------------------------------- means, and what is not


def test_class_means_are_used_again_and_belong_to_their_teacher(tmp_path, first):
    file = str(first[0] / "work" / "class-means.safetensors")
    (found,) = results(tmp_path / "again", means=file)
    assert not (tmp_path / "again" / "work" / "class-means.safetensors").exists()
    assert torch.equal(found.subject.model[0].weight, first[1].subject.model[0].weight)
    with pytest.raises(DataError, match="another teacher"):
        results(tmp_path / "other", model=network(seed=4), means=file)
    with pytest.raises(DataError, match="missing"):
        results(tmp_path / "none", means=str(tmp_path / "none.safetensors"))


def test_a_dry_run_cuts_and_trains_nothing(tmp_path):
    (found,) = results(tmp_path, dry_run=True)
    assert found.recovery is None
    assert not found.cut.is_noop


def test_a_killed_run_ends_with_the_same_network(first, tmp_path, monkeypatch):
    real = module.loop.train

    def killed(student, feed, objective, **how):
        calls = []

        def stopping(batch, totals):
            calls.append(None)
            if len(calls) == 12:
                raise ConnectionAbortedError
            return objective(batch, totals)

        return real(student, feed, stopping, every=5, **how)

    monkeypatch.setattr(module.loop, "train", killed)
    with pytest.raises(ConnectionAbortedError):
        results(tmp_path)
    monkeypatch.setattr(module.loop, "train", real)
    (again,) = results(tmp_path)
    wanted = first[1].subject.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.subject.model.state_dict().items())


def test_a_vision_transformer_has_a_feature_too(tmp_path):
    model = nets.vit(depth=1)
    (found,) = results(tmp_path, ("channels=80%",), model=model, epochs=1.0, batch=80)
    assert found.subject.model.net.classifier.in_features == 32


class Two(nn.Module):
    """Logits that no linear layer gives."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


def test_a_network_without_a_linear_head_has_its_feature_named(tmp_path):
    with pytest.raises(InputError, match="no linear layer of this Two gives its logits: name the module"):
        results(tmp_path / "a", model=Two())
    (found,) = results(tmp_path / "b", model=Two(), feature="body", keep_width=False, epochs=1.0)
    assert found.recovery.steps == 5


def rows() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"data": Examples(DATA.inputs, name="bare")}, DataError, "bare has no classes"),
        ({"host": "hint"}, InputError, "give kd, dkd, dist, review or none"),
        ({"stages": ("2",)}, InputError, "stages=2: they are for host=review"),
        ({"host": "review", "stages": ("layer",)}, InputError, "'layer' is no module of Sequential"),
        ({"variant": "angle"}, InputError, "give nd, direction, norm or features"),
        ({"host": "dkd", "mixup": 0.2}, InputError, "mixup=0.2: dkd parts off one class of each example, and takes 0"),
        ({"host": "dkd", "cutmix": 1.0}, InputError, "cutmix=1: dkd parts off one class of each example, and takes 0"),
        ({"mixup": -0.2}, InputError, "mixup=-0.2: give an alpha of at least 0"),
        ({"cutmix": float("nan")}, InputError, "cutmix=nan: give an alpha of at least 0"),
        (
            {"cutmix": 1.0, "data": Examples(DATA.inputs.flatten(1), DATA.labels, name="rows"), "model": rows()},
            InputError,
            r"cutmix=1 is for images \[N, C, H, W\], and inputs of rows are \[160, 64\]",
        ),
        ({"optimizer": "adam"}, InputError, "optimizer='adam': give sgd or adamw"),
        ({"warmup": -1.0}, InputError, "warmup=-1"),
        ({"temperature": 0.0}, InputError, "temperature=0: give a number above 0"),
        ({"dropout": 1.0}, InputError, "dropout=1"),
        ({"feature": "pool"}, InputError, "'pool' is no module of Sequential: near are"),
        ({"feature": "*"}, InputError, r"names 10 modules"),
        ({"task": 0.0, "nd": 0.0}, InputError, "no term is active"),
        ({"budgets": ("params=1%",)}, InfeasibleError, "params"),
        ({"budgets": ("pattern=2:4",)}, BudgetError, "pattern"),
    ],
)
def test_what_can_not_be_done_is_refused_in_one_line(tmp_path, options, kind, said):
    with pytest.raises(kind, match=said) as caught:
        results(tmp_path, **options)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ two heads


def two_headed(seed: int = 0, depth: int = 1) -> nn.Module:
    return nets.vit(seed, depth=depth, two=True)


class Apart(nn.Module):
    """Two heads with a feature each, the one of distillation made first."""

    def __init__(self, wide: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.one, self.two = nn.Linear(16, 8), nn.Linear(16, wide)
        self.head_dist, self.head = nn.Linear(wide, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(x)
        told, said = self.head_dist(self.two(x).relu()), self.head(self.one(x).relu())
        return (said, told) if self.training else (said + told) / 2


def test_heads_of_classes_and_of_distillation_are_told_apart():
    assert module.classifiers(open_traced(two_headed(), DATA.inputs[:2])) == (
        "net.cls_classifier", "net.distillation_classifier",
    )  # fmt: skip
    assert module.classifiers(open_traced(Apart().eval(), DATA.inputs[:2])) == ("head", "head_dist")
    assert module.classifiers(open_traced(taught(), DATA.inputs[:2])) == ("9",)
    assert module.classifiers(open_traced(Two(), DATA.inputs[:2])) == ()


@pytest.mark.parametrize("make", [two_headed, Apart])
def test_the_class_head_learns_labels_and_the_distillation_head_the_teacher(make):
    torch.manual_seed(1)
    net = make().train()
    student = module.Tap.of(open_traced(net.eval(), DATA.inputs[:2]))
    teacher = module.Tap.of(open_traced(taught().eval(), DATA.inputs[:2]))
    batch = {"inputs": DATA.inputs[:16], "labels": DATA.labels[:16]}
    with module.taps.tapped(net, student.names) as read:
        whole = net.eval()(batch["inputs"])
    net.train()
    view = student.beside(teacher)(batch)
    said, told = (net.get_submodule(name)(one) for name, one in zip(student.readers, read, strict=True))
    torch.testing.assert_close(view.feature, (read[0] + read[1]) / 2)
    torch.testing.assert_close(view.logits, whole)
    wanted = functional.cross_entropy(said, batch["labels"], reduction="sum")
    torch.testing.assert_close(module.labelled(view, batch), wanted)
    near = functional.kl_div(told.log_softmax(1), view.teacher_logits.softmax(1), reduction="sum")
    torch.testing.assert_close(module.hosted("kd", 1.0, 1.0, 8.0)(view, batch), near)
    torch.testing.assert_close(view.teacher_logits, taught().eval()(batch["inputs"]))


def test_a_student_of_two_heads_is_distilled_cut_and_reloaded(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from recipes.vision import nets\n\n\ndef build():\n    return nets.vit(3, depth=1, two=True)\n")
    how = {"optimizer": "adamw", "lr": 5e-3, "mixup": 0.8, "cutmix": 1.0}
    (given,) = results(tmp_path / "given", ("params=20K",), student=f"{file}:build", epochs=12.0, **how)
    assert vision.accuracy(given.subject.model, HELD_OUT) > 0.6
    heads = [getattr(given.subject.model.net, name).weight for name in ("cls_classifier", "distillation_classifier")]
    assert not torch.allclose(*heads)
    start = open_traced(given.subject.model, DATA.inputs[:2])
    with Run.open(tmp_path / "cut", {}) as run:
        (cut,) = list(nd_loss(start, DATA, [Budget.parse("params=80%")], run, **{**QUICK, **how}))
    assert cut.cut.after["params"] == cut.predicted["params"] < 0.8 * cut.cut.before["params"]
    assert cut.subject.model.net.cls_classifier.in_features == 32
    cut.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", two_headed(5), DATA.inputs[:2])
    assert torch.equal(again.forward(DATA.inputs[:8]), cut.subject.forward(DATA.inputs[:8]))


@pytest.mark.parametrize("options", [{"host": "none"}, {"weight": 0.0}])
def test_a_distillation_head_that_nothing_would_train_is_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"mean of head and head_dist, and without a host nothing trains the second"):
        results(tmp_path, ("params=90%",), model=Apart().eval(), **options)


def test_heads_that_read_features_of_other_widths_have_one_named(tmp_path):
    with pytest.raises(InputError, match=r"head and head_dist read features of widths 8 and 6: name one, feature="):
        results(tmp_path / "a", model=Apart(6).eval())
    (found,) = results(tmp_path / "b", ("params=90%",), model=Apart(6).eval(), feature="head@input", epochs=1.0)
    assert found.subject.model.head.in_features == 8


# ------------------------------------------------------------------------------------------ detectors of two stages

SCENES, UNSEEN = scenes(24, size=64, stop=8000), scenes(6, size=64, start=8000, seed=1)
FEW = {"batch": 8, "epochs": 2.0, "warmup": 1.0, "lr": 0.01}


@functools.cache
def detector() -> Traced:
    """A Faster R-CNN that has seen its scenes for some steps."""
    net = detectors.adapt(vision_models.rcnn(8, 32))
    feed = examples.batches(SCENES, batch=8, seed=0)
    loop.train(
        net, feed, detecting.press(net.loss), steps=30, lr=5e-3, seed=0, count=examples.count, progress=False, clip=None
    )
    return detectors.opened(net.eval(), SCENES.inputs[:1])


def boxed(root, budget="params=70%", data=SCENES, **options):
    with Run.open(root, {}) as run:
        (found,) = list(nd_loss(detector(), data, [Budget.parse(budget)], run, **{**FEW, **options}))
    return found


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    root = tmp_path_factory.mktemp("nd-boxes") / "run"
    return root, boxed(root)


def test_means_of_regions_are_those_of_the_classes_and_of_the_background(detected):
    root, _ = detected
    found = module.ClassMeans.load(root / "work" / "class-means.safetensors", {"feature": "regions"})
    assert found.means.shape == (11, 32)
    sums, counts = torch.zeros(11, 32, dtype=torch.float64), torch.zeros(11, dtype=torch.int64)
    torch.manual_seed(0)
    for part in SCENES.in_order(8):
        with torch.no_grad():
            seen = detector().model.sampled(part)
        for feature, label in zip(seen.features, seen.labels.tolist(), strict=True):
            sums[label] += feature.double()
            counts[label] += 1
    assert torch.equal(found.counts, counts)
    assert counts[0] > counts[1:].sum() > 0, "most regions are background, and it has a mean too"
    there = counts > 0
    torch.testing.assert_close(found.means[there], (sums[there] / counts[there, None]).float(), rtol=1e-4, atol=1e-5)


def test_a_detector_is_narrowed_up_to_the_feature_of_its_regions(detected, tmp_path):
    _, found = detected
    inner = found.subject.model.detector
    assert inner.roi_heads.box_predictor.cls_score.in_features == 32
    assert inner.roi_heads.box_head.fc6.out_features < 32
    assert found.cut.after["params"] == found.predicted["params"] <= 0.7 * found.cut.before["params"]
    assert "of the training regions the nearest mean is right" in found.notes[0]
    found.subject.save(tmp_path / "saved")
    fresh = detectors.adapt(vision_models.rcnn(8, 32, seed=5))
    again = reload_traced(tmp_path / "saved", fresh, SCENES.inputs[:2])
    for one, other in zip(again.model.detect(UNSEEN.inputs), found.subject.model.detect(UNSEEN.inputs), strict=True):
        assert torch.equal(one["boxes"], other["boxes"])


def test_the_student_samples_regions_and_the_teacher_judges_the_same(tmp_path):
    small, *_ = module.narrowed(detector(), Budget.parse("params=70%"), [detector().model.reader], 1)
    student, teacher = (module.Regions.of(one, SCENES) for one in (small, detector()))
    batch = SCENES.take(range(4)).batch()
    torch.manual_seed(2)
    view = student.beside(teacher)(batch)
    torch.manual_seed(2)
    ours = small.model.sampled(batch)
    theirs = detector().model.judged(batch["inputs"], ours.boxes)
    assert torch.equal(view.logits, ours.logits)
    assert torch.equal(view.labels, ours.labels)
    assert torch.equal(view.teacher_feature, theirs.features)
    assert not view.teacher_feature.requires_grad
    assert view.feature.requires_grad
    means = module.ClassMeans(torch.randn(11, 32), torch.ones(11, dtype=torch.long))
    unit = functional.normalize(means.means[ours.labels], dim=1)
    length = torch.maximum(ours.features.norm(dim=1), theirs.features.norm(dim=1))
    wanted = (1 - (ours.features * unit).sum(1) / length).mean()
    found = module.drawn("nd", means, nn.Identity(), 1.0)(view, batch) / 4
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5), "a mean over regions, per image"
    near = functional.kl_div(ours.logits.log_softmax(1), theirs.logits.softmax(1), reduction="batchmean")
    assert (module.hosted("kd", 1.0, 1.0, 8.0)(view, batch) / 4).item() == pytest.approx(near.item(), rel=1e-4)
    assert (module.labelled(view, batch) / 4).item() == pytest.approx(ours.loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    "options", [{"host": "dkd"}, {"host": "dist"}, {"host": "review"}, {"host": "none"}, {"variant": "direction"},
                {"variant": "norm"}, {"variant": "features", "nd": 0.01}, {"keep_width": False}], ids=str,
)  # fmt: skip
def test_hosts_and_variants_teach_detectors_too(tmp_path, detected, options):
    found = boxed(tmp_path / "run", **options, epochs=1.0, warmup=0.0)
    assert all(loss == loss for _, loss in found.recovery.losses)
    assert len(found.subject.model.detect(UNSEEN.inputs)) == 6
    names = {name for name in found.subject.model.state_dict() if "detector." not in name}
    assert not names, "nothing of projector or review"


def test_without_host_and_nd_a_detector_learns_by_its_own_loss(tmp_path):
    found = boxed(tmp_path / "run", host="none", nd=0.0)
    small, *_ = module.narrowed(detector(), Budget.parse("params=70%"), [detector().model.reader], 1)
    feed = examples.batches(SCENES, batch=8, seed=0)
    plain = loop.train(
        small.model, feed, detecting.press(small.model.loss), steps=6, lr=0.01, seed=0, count=examples.count,
        optimizer="sgd", warmup=0.0, weight_decay=5e-4, precision="fp32", clip=None, progress=False,
    )  # fmt: skip
    assert plain.losses == found.recovery.losses


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mixup": 0.2}, "mixup=0.2: that is for classifiers, and scenes has boxes"),
        ({"cutmix": 0.5}, "cutmix=0.5: that is for classifiers, and scenes has boxes"),
        ({"feature": "head"}, "feature=head: that is for classifiers, and scenes has boxes"),
        ({"stages": ["a"], "host": "review"}, "stages=a: that is for classifiers, and scenes has boxes"),
    ],
)
def test_options_of_classifiers_are_refused_for_boxes(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        boxed(tmp_path / "run", **options)


def test_a_detector_of_one_stage_is_refused(tmp_path):
    start = detectors.opened(yolo.tiny(), SCENES.inputs[:1])
    with Run.open(tmp_path / "run", {}) as run, pytest.raises(UnsupportedError, match="no detector of two stages"):
        list(nd_loss(start, SCENES, [Budget.parse("params=70%")], run, **FEW))


def test_a_detector_of_ones_own_is_distilled(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import vision_models\n\n\ndef build():\n    return vision_models.rcnn(4, 16, seed=2)\n")
    found = boxed(tmp_path / "run", student=f"{file}:build", epochs=1.0)
    inner = found.subject.model.detector
    assert inner.roi_heads.box_predictor.cls_score.in_features == 16
    assert found.cut.after["params"] == sum(one.numel() for one in inner.parameters())
