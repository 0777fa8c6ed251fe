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

from claims import vision
from recipes.vision import nets
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.files import examples
from secateur.files.examples import Examples
from secateur.files.rundir import Run
from secateur.recipes.vision import nd_loss as module
from secateur.recipes.vision.nd_loss import nd_loss
from secateur.recover import loop
from secateur.subjects import open_traced
from secateur.subjects.traced import reload_traced
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
    small = module.narrowed(start, Budget.parse("params=50%"), True, 1)[0].model
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
        {"feature": "3"},
        {"feature": "5@input"},
    ],
    ids=str,
)
def test_every_host_and_variant_trains_to_a_network_of_its_own(tmp_path, first, options):
    (found,) = results(tmp_path, **options)
    assert vision.accuracy(found.subject.model, HELD_OUT) > 0.5
    assert not torch.equal(found.subject.model[0].weight, first[1].subject.model[0].weight)


def test_mixed_labels_and_centres_are_those_of_the_mix():
    tap = module.Tap.of(open_traced(taught().eval(), DATA.inputs[:2]), "")
    batch = {"inputs": DATA.inputs[:16], "labels": DATA.labels[:16]}
    torch.manual_seed(3)
    view = module.look(tap, tap, 1.0, batch)
    assert 0 < view.share < 1
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


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"data": Examples(DATA.inputs, name="bare")}, DataError, "bare has no classes"),
        ({"host": "hint"}, InputError, "give kd, dkd, dist, review or none"),
        ({"stages": ("2",)}, InputError, "stages=2: they are for host=review"),
        ({"host": "review", "stages": ("layer",)}, InputError, "'layer' is no module of Sequential"),
        ({"variant": "angle"}, InputError, "give nd, direction, norm or features"),
        ({"host": "dkd", "mixup": 0.2}, InputError, "takes 0 only"),
        ({"warmup": -1.0}, InputError, "warmup=-1"),
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
