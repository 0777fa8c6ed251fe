"""ND on classifiers of a few thousand weights and images of quarters."""

from __future__ import annotations

import functools
import json
import textwrap
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import small_vision as vision
import toys
import vision_models
from assets.scenes import scenes
from recipes.vision import nets
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.recipes.vision import nd_loss as module
from secateur.recipes.vision.nd_loss import Classifier, FeatureLoss, Host, Pass, View, nd_loss
from secateur.recover.training import detecting, loop
from secateur.recover.training.mixing import Mix
from secateur.subjects import open_traced
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Judged
from secateur.subjects.network.recording import Example
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


@functools.cache
def analysed() -> Traced:
    return open_traced(taught(), DATA.inputs[:2])


def results(root, budgets=("params=50%",), model=None, data=DATA, **options):
    known = model is None and data.inputs.shape[1:] == DATA.inputs.shape[1:]
    start = analysed().copy() if known else open_traced(model or taught(), data.inputs[:2])
    return nets.run(nd_loss, root, start, data, budgets, **{**QUICK, **options})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("nd") / "run"
    return root, results(root)[0]


def test_class_means_are_those_of_the_teacher_in_evaluation_mode(first):
    root, _ = first
    found = module.ClassMeans.load(root / "work" / "class-means.safetensors", {"feature": "9@input"})
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


def test_figures_are_made_without_keeping_what_earlier_batches_gave(monkeypatch):
    network = Classifier.of(opened(nets.vgg()), staged=True)
    seen, real = [], module.see

    def watch(*args):
        assert not any(one() is not None for one in seen), "tensors of an earlier batch are still there"
        view = real(*args)
        for one in (view.student, view.teacher):
            seen.extend(map(weakref.ref, (*one.maps, one.features, one.logits)))
        return view

    monkeypatch.setattr(module, "see", watch)
    centres = module.ClassMeans(torch.rand(4, network.width), torch.ones(4, dtype=torch.long))
    parts = module.diagnose(network, network, nn.Identity(), centres, DATA, 30)
    assert len(seen) == 2 * (len(network.stages) + 2) * 6
    whole = module.diagnose(network, network, nn.Identity(), centres, DATA, len(DATA))
    assert parts == {name: pytest.approx(row) for name, row in whole.items()}, "as of all rows at once"


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
    small = module.narrow(open_traced(taught(), DATA.inputs[:2]), Budget.parse("params=50%"), ("9",))[0].model
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
    assert "kd never got its weight of 1, but 0% of it" in kd.notes[-1]
    (none,) = results(tmp_path / "none", nd=0.0, host="none", **one)
    (nd,) = results(tmp_path / "nd", **one)
    name = "0.weight"
    assert torch.equal(kd.subject.model.state_dict()[name], none.subject.model.state_dict()[name])
    assert not torch.equal(nd.subject.model.state_dict()[name], none.subject.model.state_dict()[name])


def test_a_host_that_never_had_its_weight_is_told():
    (told,) = module.describe_warmup(Host(weight=2.0, warmup=20.0), 6.0)
    assert told.startswith("kd never got its weight of 2, but 25% of it at most: it warms up over 20 epochs")
    for host, epochs in (
        (Host(warmup=20.0), 21.0),
        (Host(host="none"), 1.0),
        (Host(weight=0.0), 1.0),
        (Host(warmup=0.0), 1.0),
    ):
        assert not module.describe_warmup(host, epochs)


@pytest.mark.parametrize(
    "options",
    [
        {"host": "dkd", "weight": 0.5},
        {"host": "dist"},
        {"host": "review"},
        {"variant": "direction"},
        {"variant": "norm", "nd": 0.1},
        {"variant": "features", "nd": 0.1, "keep_width": False},
        {"mixup": 0.8, "cutmix": 1.0},
        {"optimizer": "adamw", "lr": 0.005},
        {"feature": "5@input"},
    ],
    ids=str,
)
def test_every_host_and_variant_trains_to_a_network_of_its_own(tmp_path, first, options):
    (found,) = results(tmp_path, **options)
    assert vision.accuracy(found.subject.model, HELD_OUT) > 0.5
    assert not torch.equal(found.subject.model[0].weight, first[1].subject.model[0].weight)


# ---------------------------------------------------------------------------------------------------------- features


def opened(model: nn.Module) -> Traced:
    return open_traced(model.eval(), DATA.inputs[:2])


def test_a_network_without_a_linear_head_or_with_two_features_has_one_named():
    with pytest.raises(InputError, match="no linear layer of this Headless gives its logits: name the module"):
        Classifier.of(opened(nets.Headless()))
    named = Classifier.of(opened(nets.Headless()), "body")
    assert (named.name, named.width, named.classes) == ("body", 8, 4)
    with pytest.raises(InputError, match=r"head and head_dist read features of widths 8 and 6: name one, feature="):
        Classifier.of(opened(nets.Apart(6)))
    assert Classifier.of(opened(nets.Apart(6)), "head@input").width == 8


def test_the_feature_of_a_student_in_training_is_not_dropped() -> None:
    """As torchvision's MobileNetV2 ends, whose teacher and class means are of features without dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 4)))
    inputs = torch.rand(3, 1, 8, 8)
    feature = Classifier.of(Traced(net, Example.of(inputs)))
    assert feature.name == "3.0@input"
    assert torch.equal(feature(inputs).features, net.train()[:3](inputs))


@pytest.mark.parametrize("mix", [None, Mix(mixup=1.0), Mix(cutmix=1.0)], ids=["plain", "mixup", "cutmix"])
def test_both_see_one_mixed_batch(mix):
    net, batch = nets.vgg().eval(), DATA.take(range(16)).batch()
    classifier = Classifier.of(opened(net), staged=True)
    torch.manual_seed(3)
    seen = module.see(classifier, classifier, batch, mix)
    torch.manual_seed(3)
    inputs, order, share = mix(batch["inputs"]) if mix else (batch["inputs"], torch.arange(16), 1.0)
    assert seen.share == share
    assert torch.equal(seen.others, batch["labels"][order])
    assert torch.equal(seen.student.logits, net(inputs))
    assert torch.equal(seen.student.features, net[:-1](inputs))
    assert torch.equal(seen.teacher.features, seen.student.features)
    assert not seen.teacher.features.requires_grad
    assert [tuple(one.shape[1:]) for one in seen.student.maps] == list(classifier.shapes)


@pytest.mark.parametrize("net", [nets.vit(depth=1, two=True), nets.Apart()], ids=["deit", "apart"])
def test_of_two_heads_the_feature_is_the_mean_of_what_they_read(net):
    student = Classifier.of(opened(net))
    with module.taps.tap(net, student.places) as read:
        whole = net(DATA.inputs[:16])
    net.train()
    found = student(DATA.inputs[:16])
    torch.testing.assert_close(found.features, (read[0] + read[1]) / 2)
    torch.testing.assert_close(found.logits, whole)
    for answer, name, feature in zip(found.heads, student.readers, read, strict=True):
        torch.testing.assert_close(answer, net.get_submodule(name)(feature))


# ------------------------------------------------------------------------------------------------------------ losses


def view(
    images: int = 16, rows: int = 16, share: float = 1.0, loss=None, **more
) -> tuple[View, dict[str, torch.Tensor]]:
    """What student and teacher say of `rows`, features of width 24, four classes; and the batch of images."""
    torch.manual_seed(3)
    passes = [Pass(torch.randn(rows, 24), torch.randn(rows, 4), []) for _ in "st"]
    labels, others = torch.randint(0, 4, (2, rows))
    student = replace(passes[0], **more)
    if loss is not None:
        student = Judged([], student.features, student.logits, [], labels, loss)
    seen = View(student, passes[1], labels, labels if share == 1 else others, share)
    return seen, {"inputs": torch.zeros(images, 1)}


def test_labels_and_centres_of_mixed_inputs_are_mixed():
    seen, batch = view(share=0.3)
    soft = 0.3 * functional.one_hot(seen.labels, 4) + 0.7 * functional.one_hot(seen.others, 4)
    wanted = -(soft * functional.log_softmax(seen.student.logits, -1)).sum()
    assert module.label_loss(seen, batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    table = module.ClassMeans(torch.randn(4, 24), torch.ones(4, dtype=torch.long))
    ours, theirs = seen.student.features, seen.teacher.features
    along = (ours * functional.normalize(soft @ table.means, dim=1)).sum(1)
    wanted = (1 - along / torch.maximum(ours.norm(dim=1), theirs.norm(dim=1))).sum()
    loss = module.ask_feature(FeatureLoss(), table, nn.Identity())(seen, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_class_head_learns_labels_and_the_distillation_head_the_teacher():
    heads = torch.randn(16, 4), torch.randn(16, 4)
    seen, batch = view(heads=heads)
    wanted = functional.cross_entropy(heads[0], seen.labels, reduction="sum")
    torch.testing.assert_close(module.label_loss(seen, batch), wanted)
    near = functional.kl_div(heads[1].log_softmax(1), seen.teacher.logits.softmax(1), reduction="sum")
    torch.testing.assert_close(module.host_loss(Host())(seen, batch), near)


def test_losses_of_regions_are_means_over_regions_per_image():
    seen, batch = view(images=4, rows=40, loss=torch.tensor(2.5))
    assert module.label_loss(seen, batch).item() == 4 * 2.5
    table = module.ClassMeans(torch.randn(4, 24), torch.ones(4, dtype=torch.long))
    ours, theirs = seen.student.features, seen.teacher.features
    along = (ours * functional.normalize(table.means[seen.labels], dim=1)).sum(1)
    wanted = 4 * (1 - along / torch.maximum(ours.norm(dim=1), theirs.norm(dim=1))).mean()
    loss = module.ask_feature(FeatureLoss(), table, nn.Identity())(seen, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    near = functional.kl_div(seen.student.logits.log_softmax(1), seen.teacher.logits.softmax(1), reduction="batchmean")
    assert module.host_loss(Host())(seen, batch).item() == pytest.approx(4 * near.item(), rel=1e-4)


def test_weights_of_shares_steps_and_widths_are_those_asked_for():
    seen, batch = view()
    parts = [module.host_loss(Host(host="dkd", target=a, other=b))(seen, batch) for a, b in ((1, 0), (0, 1), (2, 3))]
    torch.testing.assert_close(parts[2], 2 * parts[0] + 3 * parts[1])
    table = module.ClassMeans(torch.randn(4, 24), torch.ones(4, dtype=torch.long))
    longer = [module.ask_feature(FeatureLoss("norm", step=step), table, nn.Identity())(seen, batch) for step in (1, 3)]
    assert longer[1].item() == pytest.approx(9 * longer[0].item(), rel=1e-4)
    small = module.narrow(opened(taught()), Budget.parse("channels=80%"), ("9",), 4)[0].model
    assert all(layer.out_channels % 4 == 0 for layer in small if isinstance(layer, nn.Conv2d))


def test_maps_of_named_stages_are_compared():
    named = Classifier.of(opened(nets.vgg()), stages=("2", "5"), staged=True)
    assert list(named.stages) == ["2", "5"]
    maps = named(DATA.inputs[:4]).maps
    assert [tuple(one.shape[1:]) for one in maps] == list(named.shapes)


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


def test_a_dry_run_cuts_and_goes_over_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "see", lambda *_, **__: pytest.fail("asked the networks"))
    monkeypatch.setattr(module, "collect", lambda *_: pytest.fail("made class means"))
    (found,) = results(tmp_path, dry_run=True)
    assert found.recovery is None
    assert not found.cut.is_noop


def test_a_second_budget_is_refused_before_a_pass_over_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "collect", lambda *_: pytest.fail("made class means"))
    with pytest.raises(InfeasibleError, match=r"params.*; with keep_width=false the width of the feature may go, too$"):
        results(tmp_path, ("params=50%", "params=1%"))
    with pytest.raises(InfeasibleError) as refused:
        results(tmp_path, ("params=50%", "params=1%"), keep_width=False)
    assert "keep_width" not in str(refused.value)


def test_a_killed_run_ends_with_the_same_network(first, tmp_path, monkeypatch):
    real = module.loop.train

    def killed(student, feed, objective, *args, **how):
        calls = []

        def stopping(batch, totals):
            calls.append(None)
            if len(calls) == 12:
                raise ConnectionAbortedError
            return objective(batch, totals)

        return real(student, feed, stopping, *args, every=5, **how)

    monkeypatch.setattr(module.loop, "train", killed)
    with pytest.raises(ConnectionAbortedError):
        results(tmp_path)
    monkeypatch.setattr(module.loop, "train", real)
    (again,) = results(tmp_path)
    wanted = first[1].subject.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.subject.model.state_dict().items())


def rows() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"data": Examples(DATA.inputs, name="bare")}, DataError, "bare has no classes"),
        ({"host": "hint"}, InputError, "option host='hint'"),
        ({"stages": ("2",)}, InputError, "stages=2: they are for host=review"),
        ({"host": "review", "stages": ("layer",)}, InputError, "'layer' is no module of Sequential"),
        ({"variant": "angle"}, InputError, "option variant='angle'"),
        ({"host": "dkd", "mixup": 0.2}, InputError, "mixup=0.2: dkd parts off one class of each example, and takes 0"),
        ({"host": "dkd", "cutmix": 1.0}, InputError, "cutmix=1: dkd parts off one class of each example, and takes 0"),
        ({"mixup": -0.2}, InputError, "mixup=-0.2: give an alpha of at least 0"),
        ({"cutmix": float("nan")}, InputError, "option cutmix=nan"),
        (
            {"cutmix": 1.0, "data": Examples(DATA.inputs.flatten(1), DATA.labels, name="rows"), "model": rows()},
            InputError,
            r"cutmix=1 is for images \[N, C, H, W\], and inputs of rows are \[160, 64\]",
        ),
        ({"optimizer": "adam"}, InputError, "optimizer=adam: give adamw, adamw8bit or sgd"),
        ({"warmup": -1.0}, InputError, "option warmup=-1"),
        ({"temperature": 0.0}, InputError, "option temperature=0"),
        ({"dropout": 1.0}, InputError, "option dropout=1"),
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


def test_a_student_of_two_heads_is_distilled_cut_and_reloaded(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from recipes.vision import nets\n\n\ndef build():\n    return nets.vit(3, depth=1, two=True)\n")
    how = {"optimizer": "adamw", "lr": 5e-3, "mixup": 0.8, "cutmix": 1.0}
    (given,) = results(tmp_path / "given", ("params=20K",), student=f"{file}:build", epochs=12.0, **how)
    assert vision.accuracy(given.subject.model, HELD_OUT) > 0.6
    heads = [getattr(given.subject.model.net, name).weight for name in ("cls_classifier", "distillation_classifier")]
    assert not torch.allclose(*heads)
    start = open_traced(given.subject.model, DATA.inputs[:2])
    (cut,) = nets.run(nd_loss, tmp_path / "cut", start, DATA, ["params=80%"], **{**QUICK, **how})
    assert cut.cut.after["params"] == cut.predicted["params"] < 0.8 * cut.cut.before["params"]
    assert cut.subject.model.net.cls_classifier.in_features == 32
    cut.subject.save(tmp_path / "saved")
    again = reload_traced(tmp_path / "saved", two_headed(5), DATA.inputs[:2])
    assert torch.equal(again.forward(DATA.inputs[:8]), cut.subject.forward(DATA.inputs[:8]))


def test_two_heads_train_with_sgd_though_a_warm_up_leaves_the_second_out_at_first(tmp_path):
    start = two_headed()
    (cut,) = results(tmp_path, ("params=80%",), model=start.eval(), optimizer="sgd")
    assert cut.recovery.steps == 15
    ours = cut.subject.model.net
    for name in ("cls_classifier", "distillation_classifier"):
        assert not torch.equal(getattr(ours, name).bias, getattr(start.net, name).bias)


@pytest.mark.parametrize("options", [{"host": "none"}, {"weight": 0.0}, {"host": "review"}])
def test_a_distillation_head_that_nothing_would_train_is_refused(tmp_path, options):
    net = nets.Apart()
    net.body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU())
    words = r"mean of head and head_dist, and without a host of logits nothing trains the second: give kd, dkd or dist"
    with pytest.raises(InputError, match=words):
        results(tmp_path, ("params=90%",), model=net.eval(), **options)


# ------------------------------------------------------------------------------------------ detectors of two stages

FEW = {"batch": 8, "epochs": 2.0, "warmup": 1.0, "lr": 0.01}


@functools.cache
def shown() -> Examples:
    return scenes(24, size=64, stop=8000)


@functools.cache
def unseen() -> Examples:
    return scenes(6, size=64, start=8000, seed=1)


@functools.cache
def detector() -> Traced:
    """A Faster R-CNN that has seen its scenes for some steps."""
    net = detectors.adapt(vision_models.rcnn(8, 32))
    feed = examples.batches(shown(), batch=8, seed=0)
    loop.train(
        net, feed, detecting.press(net.loss), steps=30, lr=5e-3, seed=0, count=examples.count, progress=False, clip=None
    )
    return detectors.open_detector(net.eval(), shown().inputs[:1])


def boxed(root, budget="params=70%", **options):
    (found,) = nets.run(nd_loss, root, detector(), shown(), [budget], **{**FEW, **options})
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
    for part in shown().in_order(8):
        with torch.no_grad():
            seen = detector().model.sample_regions(part)
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
    again = reload_traced(tmp_path / "saved", fresh, shown().inputs[:2])
    both = (subject.model.detect(unseen().inputs) for subject in (again, found.subject))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])


@pytest.mark.parametrize(
    "options", [{"host": "dkd"}, {"host": "dist"}, {"host": "review"}, {"host": "none"}, {"variant": "direction"},
                {"variant": "norm"}, {"variant": "features", "nd": 0.01}, {"keep_width": False}], ids=str,
)  # fmt: skip
def test_hosts_and_variants_teach_detectors_too(tmp_path, detected, options):
    found = boxed(tmp_path / "run", **options, epochs=1.0, warmup=0.0)
    assert all(loss == loss for _, loss in found.recovery.losses)
    assert len(found.subject.model.detect(unseen().inputs)) == 6
    names = {name for name in found.subject.model.state_dict() if "detector." not in name}
    assert not names, "nothing of projector or review"


def test_without_host_and_nd_a_detector_learns_by_its_own_loss(tmp_path):
    found = boxed(tmp_path / "run", host="none", nd=0.0)
    small, *_ = module.narrow(detector(), Budget.parse("params=70%"), [detector().model.reader])
    feed = examples.batches(shown(), batch=8, seed=0)
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


def test_a_detector_of_ones_own_is_distilled(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import vision_models\n\n\ndef build():\n    return vision_models.rcnn(4, 16, seed=2)\n")
    found = boxed(tmp_path / "run", student=f"{file}:build", epochs=1.0)
    inner = found.subject.model.detector
    assert inner.roi_heads.box_predictor.cls_score.in_features == 16
    assert found.cut.after["params"] == sum(one.numel() for one in inner.parameters())


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.classifier(epochs=3, batch=24)


def test_what_is_asked_for_reaches_the_terms_the_projector_and_the_training(tmp_path, monkeypatch):
    analysed()  # which has been trained before that
    terms, trained, drawn, fed, cuts = [], [], [], [], []
    compose, train, adapter = module.compose.compose, module.loop.train, module.taps.adapter
    batches, narrow = module.examples.batches, module.narrow

    def watch(student, feed, objective, training, **how):
        before = [value.clone() for one in how["extra"] for value in one.parameters()]
        done = train(student, feed, objective, training, **how)
        moved = [
            not torch.equal(*pair)
            for pair in zip(before, (p for one in how["extra"] for p in one.parameters()), strict=True)
        ]
        trained.append((training.warmup, how["seed"], len(moved), all(moved)))
        return done

    def watch_adapter(*given, **how):
        drawn.append((adapter(*given, **how), how["dropout"]))
        return drawn[-1][0]

    monkeypatch.setattr(
        module.compose, "compose", lambda given, *a, **how: terms.extend(given) or compose(given, *a, **how)
    )
    monkeypatch.setattr(module.loop, "train", watch)
    monkeypatch.setattr(module.taps, "adapter", watch_adapter)
    monkeypatch.setattr(module.examples, "batches", lambda data, **how: fed.append(how["seed"]) or batches(data, **how))
    monkeypatch.setattr(module, "narrow", lambda *given: cuts.append(given[2:]) or narrow(*given))
    weights = {"task": 0.5, "weight": 0.75, "nd": 3.0}
    how = {"epochs": 1.0, "warmup": 0.0, "dropout": 0.25, "multiple": 2, "seed": 4, "keep_width": False}
    results(tmp_path, optimizer="adamw", lr=0.01, **weights, **how)
    assert {term.name: term.weight for term in terms} == {"labels": 0.5, "host": 0.75, "nd": 3.0}
    assert trained == [(0.05, 4, 4, True)], "the projector's scales and its linear layer"
    ((projector, dropout),) = drawn
    assert (dropout, projector[1].p) == (0.25, 0.25)
    assert fed == [4]
    assert cuts == [((), 2)]


def test_every_layer_loses_the_same_share_whatever_its_scale():
    model = nets.vgg()
    with torch.no_grad():
        model[0].weight.mul_(100.0)
        model[10 if isinstance(model[10], nn.Conv2d) else 7].weight.mul_(0.01)
    _, cut, _ = module.narrow(opened(model), Budget.parse("channels=50%"), ())
    assert {gone / count for gone, count in cut.removed.values()} == {0.5}
