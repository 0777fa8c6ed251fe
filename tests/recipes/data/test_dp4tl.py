"""DP4TL on quarters and halves: eight classes of a source, of which a target looks like four."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import secateur
import second_device
import small_vision as vision
import toys
import trainings
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError
from secateur.recipes.data import dp4tl as module
from secateur.recipes.data.dp4tl import dp4tl
from secateur.recover.training import loop
from secateur.recover.training.transfer import with_head
from secateur.runs import keywords
from secateur.score import votes
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Budget, Training

CLASSES = 8
QUICK = {"batch": 24, "surrogate_epochs": 6, "epochs": 2, "probe_epochs": 10, "probe_lr": 0.05, "tune_epochs": 3,
         "tune_lr": 1e-3, "lr": 0.05}  # fmt: skip


@functools.cache
def source(count: int = 480) -> Examples:
    """Classes 0 to 3: the quarters of `nets`; 4 to 7: stripes of four widths and directions."""
    quarters = nets.data(count // 2)
    draw = torch.Generator().manual_seed(7)
    labels = torch.randint(4, 8, (count - count // 2,), generator=draw)
    images = 0.5 * torch.rand(len(labels), 1, 8, 8, generator=draw)
    for image, label in zip(images, labels.tolist(), strict=True):
        lines = (torch.arange(8) // (1 + label % 2)) % 2 == 0
        image[0] += 0.5 * (lines[:, None] if label < 6 else lines[None, :])
    order = torch.randperm(count, generator=draw)
    names = ("upper left", "upper right", "lower left", "lower right", "lines", "bands", "columns", "bars")
    return Examples(torch.cat([quarters.inputs, images])[order], torch.cat([quarters.labels, labels])[order],
                    classes=names, name="source")  # fmt: skip


@functools.cache
def target() -> Examples:
    """Two classes: whether the bright quarter is above or below; nothing like a stripe."""
    quarters = nets.data(120, seed=3)
    return replace(quarters, labels=quarters.labels // 2, name="target")


def small(seed: int = 1) -> nn.Module:
    """The surrogate."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, CLASSES)
    )


def large(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, CLASSES),
    )  # fmt: skip


def opened(seed: int = 0) -> Traced:
    return open_traced(large(seed), source().inputs[:2], prove=False)


def written(root: Path) -> Path:
    """A target, and a surrogate's file, as a user gives them."""
    np.savez(root / "target.npz", inputs=target().inputs.numpy(), labels=target().labels.numpy())
    np.savez(root / "bare.npz", inputs=target().inputs.numpy())
    (root / "small.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), "
        f"nn.Linear(128, {CLASSES}))\n\ndef narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
    )
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return written(tmp_path_factory.mktemp("files"))


def results(root, files, budgets=("classes=50%",), data=None, network=None, **options):
    given = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **QUICK, **options}
    with Run.open(root, {}) as run:
        data = source() if data is None else data
        wanted = [Budget.parse(one) for one in budgets]
        return list(dp4tl(network or opened(), data, wanted, run, **keywords.check_options(dp4tl, given)))


@pytest.fixture(scope="module")
def half(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("half") / "run"
    return root, results(root, files, ("classes=50%", "classes=25%"))


def kept(root, budget: str, part: str = "train", data=None) -> ExampleSet:
    return ExampleSet.load(source() if data is None else data, root / "work" / f"subset-{budget}" / part)


def counted(root) -> torch.Tensor:
    with Run.open(root, {}) as run:
        return run.tensors("votes", dict)["votes"]


# ---------------------------------------------------------------------------------------------------- what is kept


def test_the_classes_that_the_target_looks_like_stay(half):
    root, (first, second) = half
    found = counted(root)
    assert int(found.sum()) == 96, "a fifth of the target is held out; each of the others votes once"
    assert int(found[:4].sum()) > 90, "and for a quarter, not for a stripe"
    assert kept(root, "classes=50%").class_numbers.tolist() == [0, 1, 2, 3]
    assert set(kept(root, "classes=25%").kept) < set(kept(root, "classes=50%").kept), "the smaller is inside the larger"
    best = found.argsort(descending=True, stable=True)[:2]
    assert kept(root, "classes=25%").class_numbers.tolist() == sorted(best.tolist())
    assert (first.cut.after["classes"], second.cut.after["classes"]) == (4, 2)
    assert first.predicted["classes"] == 4
    assert "bytes" not in {**first.predicted, **first.cut.before, **first.cut.after}, "those of data are no network's"
    assert first.predicted["examples"] == first.cut.after["examples"] == len(kept(root, "classes=50%"))
    empty = int((found == 0).sum())
    assert first.notes[0].startswith(f"{empty} of 8 classes got none of 96 votes; 4 stay: upper left, upper right, ")


def test_train_and_validation_are_disjoint_and_hold_kept_classes_only(half):
    root, _ = half
    train, validation = (kept(root, "classes=50%", part) for part in ("train", "validation"))
    assert not set(train.kept) & set(validation.kept)
    labels = source().labels.numpy()
    every = np.flatnonzero(labels < 4)
    assert sorted([*train.kept, *validation.kept]) == every.tolist(), "nothing of a kept class is lost"
    assert len(validation) > 10
    assert torch.equal(torch.from_numpy(train.scores["votes"]), counted(root)[source().labels].float())


def test_pre_training_takes_as_many_epochs_and_so_fewer_steps(half, tmp_path, files):
    _, (first, second) = half
    (whole,) = results(tmp_path, files, ("classes=100%",), probe_epochs=0, tune_epochs=0)
    assert whole.cut.is_noop
    for one in (first, second, whole):
        assert one.recovery.steps == 2 * (int(one.cut.after["examples"]) // 24)
    assert second.recovery.steps < first.recovery.steps < whole.recovery.steps
    assert len(first.recovery.settings["evaluations"]) == 2, "validated once in each epoch, on kept classes"


def test_weight_decay_is_of_the_surrogate_and_of_pre_training_alone(tmp_path, files, monkeypatch):
    seen, real = [], loop.train

    def train(model, feed, objective, training, **how):
        seen.append(training.weight_decay)
        return real(model, feed, objective, training, **how)

    monkeypatch.setattr(loop, "train", train)
    results(tmp_path, files, surrogate_epochs=1, epochs=1, probe_epochs=1, tune_epochs=1, weight_decay=0.25)
    assert seen == [0.25, 0.25, 0.0, 0.0]


def test_the_original_stays_and_the_network_was_trained(half):
    for one in half[1]:
        assert not torch.equal(one.subject.model[0].weight, large()[0].weight)
        assert one.subject.model[-1].out_features == CLASSES, "its last layer keeps all classes"
    subject = opened()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    assert all(torch.equal(value, large().state_dict()[name]) for name, value in before.items())


def test_the_target_is_learned_and_what_was_tuned_can_be_loaded(half):
    root, (first, _) = half
    found = json.loads((root / "work" / "transfer-classes=50%.json").read_text())
    assert found["linear probe"] > 0.9
    assert found["full fine-tuning"] > 0.9
    assert f"linear probe {100 * found['linear probe']:.1f}%" in first.notes[1]
    _, held = target().split(0.2, seed=0, stratified=True)
    build = with_head(large(seed=5), "8", 2)
    tuned = reload_traced(root / "work" / "tuned-classes=50%", build, held.inputs[:2])
    assert vision.accuracy(tuned.model, held) == pytest.approx(found["full fine-tuning"])


def test_after_the_votes_nothing_asks_the_surrogate(tmp_path, files, monkeypatch):
    results(tmp_path, files, dry_run=True)
    monkeypatch.setattr(module, "build_surrogate", None)
    monkeypatch.setattr(module, "count_votes", None)
    again = results(tmp_path, files, ("classes=25%", "examples=30%"), dry_run=True)
    assert [len(one.cut.notes) for one in again] == [0, 0]
    assert kept(tmp_path, "classes=25%").class_numbers.size == 2


def test_a_budget_of_examples(half, tmp_path, files):
    (found,) = results(tmp_path, files, ("examples=40%",), dry_run=True)
    assert found.cut.after["examples"] <= 0.4 * found.cut.before["examples"]
    assert found.cut.after["examples"] > 0.2 * found.cut.before["examples"]
    assert set(kept(tmp_path, "examples=40%").class_numbers) < {0, 1, 2, 3}


def test_controls(tmp_path, files):
    def classes(order, seed=0):
        root = tmp_path / f"{order}-{seed}"
        results(root, files, order=order, seed=seed, dry_run=True, surrogate_epochs=3)
        return kept(root, "classes=50%").class_numbers.tolist()

    assert classes("reverse") == [4, 5, 6, 7]
    drawn = {tuple(classes("random", seed)) for seed in range(3)}
    assert len(drawn) > 1
    assert all(len(one) == 4 for one in drawn)


# ------------------------------------------------------------------------------------------------------ laws of votes


@functools.cache
def trained() -> nn.Module:
    model = small()
    vision.fit(model, source(), epochs=6, batch=24)
    return model


def voted(data=None, aim=None, model=None, **how):
    data = source() if data is None else data
    options = {"mapping": "label", "clusters": 0, "classes": CLASSES, **how}
    train = data.parts(0.1, seed=0)[0]
    return module.count_votes(trained() if model is None else model, data, train, aim or target(), **options)


@pytest.mark.parametrize("mapping", ["label", "feature"])
def test_labels_of_the_target_are_not_asked_for(mapping):
    shuffled = replace(target(), labels=target().labels[torch.randperm(len(target()))])
    bare = replace(target(), labels=None)
    first, *others = (voted(mapping=mapping, aim=aim)["votes"] for aim in (target(), shuffled, bare))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("mapping", ["label", "feature"])
def test_renaming_the_source_classes_renames_the_votes(mapping):
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(3))
    renamed = replace(source(), labels=order[source().labels])
    model = with_head(trained(), "4", CLASSES)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(model[4], name)[order] = getattr(trained()[4], name)
    assert torch.equal(voted(renamed, model=model, mapping=mapping)["votes"][order], voted(mapping=mapping)["votes"])


def test_feature_mapping_of_classes_is_by_the_mean_of_what_enters_the_last_layer():
    with torch.no_grad():
        seen, aim = (trained()[:4](one.inputs) for one in (source(), target()))
    train = source().parts(0.1, seed=0)[0]
    centres = votes.class_means(seen[train], source().labels[train], CLASSES)
    assert torch.equal(voted(mapping="feature")["votes"], votes.feature_votes(aim, centres))


def test_clusters_stand_in_for_classes_where_there_are_none():
    bare = replace(source(), labels=None)
    found = voted(bare, mapping="feature", clusters=CLASSES)
    assert found["classes"].shape == (len(bare),)
    kept = found["votes"].argsort(descending=True)[:4]
    inside = torch.isin(found["classes"], kept)
    assert (source().labels[inside] < 4).float().mean() > 0.9, "what stays is of the classes that labels would keep"


def test_all_of_a_source_without_classes(tmp_path, files):
    bare = replace(source(), labels=None, classes=())
    (found,) = results(tmp_path, files, data=bare, mapping="feature", surrogate="inputs", clusters=6)
    assert found.cut.removed["classes"] == (3, 6)
    assert kept(tmp_path, "classes=50%", data=bare).scores["votes"].max() > 0, (
        "the index is of the data as it was given"
    )
    assert found.recovery.steps > 0, "it was pre-trained on its clusters"


@pytest.mark.parametrize("clusters", [0, CLASSES])
def test_features_of_a_surrogate_vote_on_the_device_where_it_lies(clusters):
    here = voted(mapping="feature", clusters=clusters)
    with second_device.present():
        there = voted(mapping="feature", clusters=clusters, model=copy.deepcopy(trained()).to(second_device.DEVICE))
        assert all(torch.equal(there[name].cpu(), here[name]) for name in ("votes", "classes"))


def test_ties_keep_the_lower_number():
    whole = ExampleSet(source())
    chosen = module.select_classes(
        whole, torch.tensor([0, 5, 5, 0, 5, 0, 0, 0]), Budget.parse("classes=25%"), "votes", 0
    )
    assert np.flatnonzero(chosen.keep["classes"]).tolist() == [1, 2]


def test_classes_to_judge_on_are_numbered_by_the_names_of_the_target(files, tmp_path):
    """A folder numbers its classes by itself: one without `bird` has `cat` as its class 0."""
    animals = replace(target(), labels=target().labels + 1, classes=("bird", "cat", "dog"))
    learned = replace(animals, labels=torch.cat([torch.zeros(9, dtype=torch.long), animals.labels[9:]]))
    learned.save(tmp_path / "learned.npz")
    replace(target(), classes=("cat", "dog")).save(tmp_path / "judged.npz")
    _, held = module.read_targets(
        source(), str(tmp_path / "learned.npz"), str(tmp_path / "judged.npz"), 0, labelled=True
    )
    assert held.classes == learned.classes
    assert torch.equal(held.labels, target().labels + 1)
    replace(target(), classes=("cat", "eel")).save(tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"other\.npz numbers the classes cat, eel, learned\.npz bird, cat, dog"):
        module.read_targets(source(), str(tmp_path / "learned.npz"), str(tmp_path / "other.npz"), 0, labelled=True)


def test_each_class_of_a_target_of_few_shots_is_learned(tmp_path):
    """Drawn without regard to classes, a fifth took all of a class, and the target was refused."""
    labels = torch.tensor([0, *[1] * 2, *[2] * 2, *[3] * 3])
    replace(target().take(range(len(labels))), labels=labels).save(tmp_path / "few.npz")
    for seed in range(8):
        learned, held = module.read_targets(source(), str(tmp_path / "few.npz"), "", seed, labelled=True)
        assert set(learned.labels.tolist()) == {0, 1, 2, 3}
        assert sorted(held.labels.tolist()) == [1, 2, 3]


def test_targets_go_through_a_network_as_many_at_a_time_as_the_source(tmp_path):
    target().save(tmp_path / "target.npz")
    parts = module.read_targets(examples.limit(source(), 5), str(tmp_path / "target.npz"), "", 0, labelled=True)
    assert [part.most for part in parts] == [5, 5]


def test_a_surrogate_of_other_classes_is_refused_before_it_is_trained(tmp_path, files, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda *given, **how: pytest.fail("trained before it refused"))
    with pytest.raises(InputError, match=r"the surrogate gives logits of shape \[1, 5\], the source has 8 classes"):
        results(tmp_path / "run", files, surrogate=f"{files / 'small.py'}:narrow")


def test_fine_tuning_that_was_stopped_goes_on_where_it_stood(tmp_path, files, monkeypatch):
    real, steps = module.transfer.classify, [0, 0]

    def stop_at(most):
        def classify(model, **how):
            objective, tunes = real(model, **how), model[-1].out_features == 2

            def count(batch, totals):
                steps[tunes] += 1
                if steps[1] == most:
                    raise KeyboardInterrupt
                return objective(batch, totals)

            return count

        steps[:] = [0, 0]
        monkeypatch.setattr(module.transfer, "classify", classify)

    how = {"surrogate_epochs": 1, "epochs": 1, "probe_epochs": 0, "tune_epochs": 3, "training": Training(every=2)}
    stop_at(8)
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path / "run", files, **how)
    stop_at(0)
    results(tmp_path / "run", files, **how)
    assert steps == [0, 12 - 6], "of twelve steps the last checkpoint has six"
    results(tmp_path / "whole", files, **how)
    ours, whole = (tmp_path / run / "work" for run in ("run", "whole"))
    for name in ("transfer-classes=50%.json", "tuned-classes=50%/model.safetensors"):
        assert (ours / name).read_bytes() == (whole / name).read_bytes()
    assert not list(tmp_path.rglob("tuned-*/training")), "a checkpoint goes once it is of no more use"


def test_an_attack_is_trained_against_and_judged(tmp_path, files):
    (found,) = results(tmp_path, files, attack=0.1, epochs=1, surrogate_epochs=2)
    rows = json.loads((tmp_path / "work" / "transfer-classes=50%.json").read_text())
    assert rows.keys() == {"linear probe", "linear probe, attacked", "full fine-tuning", "full fine-tuning, attacked"}
    assert rows["full fine-tuning, attacked"] <= rows["full fine-tuning"]
    assert "attacked" in found.notes[1]


def test_augmentation_is_for_training_alone(tmp_path, files):
    (tmp_path / "turn.py").write_text("def blank(inputs, draw):\n    return inputs * 0\n")
    (found,) = results(tmp_path / "run", files, augment=f"{tmp_path / 'turn.py'}:blank", tune_epochs=0)
    losses = [value for _, value in found.recovery.losses]
    assert min(losses) > 1.2, "nothing can be learned of blank images but how often each class comes"
    assert int(counted(tmp_path / "run")[:4].sum()) > 90
    rows = json.loads((tmp_path / "run" / "work" / "transfer-classes=50%.json").read_text())
    assert rows["linear probe"] > 0.8, "features of real inputs, although the network saw none in training"


# --------------------------------------------------------------------------------------------------- through secateur


def test_the_run_is_measured_and_met(tmp_path, files):
    (tmp_path / "net.py").write_text(
        "from recipes.data import test_dp4tl\n\ndef build():\n    return test_dp4tl.large()\n"
    )
    np.savez(tmp_path / "source.npz", inputs=source().inputs.numpy(), labels=source().labels.numpy())
    (row,) = secateur.run(
        "dp4tl", f"{tmp_path / 'net.py'}:build", str(tmp_path / "source.npz"), "classes=50%", tmp_path / "out",
        target=str(files / "target.npz"), surrogate=f"{files / 'small.py'}:build", **QUICK,
    )  # fmt: skip
    assert row.verdict == "met"
    assert row.cut.after["classes"] == 4
    assert any("target, 24 examples that were held out: linear probe" in note for note in row.cut.notes)
    assert (tmp_path / "out" / "work" / "subset-classes=50%" / "train" / "index.npz").is_file()
    read = secateur.data.examples.read(tmp_path / "source.npz").split(seed=0, stratified=True)[0]
    index = ExampleSet.load(read, tmp_path / "out" / "work" / "subset-classes=50%" / "train")
    assert index.class_numbers.tolist() == [0, 1, 2, 3]
    opened_again = secateur.open_index(tmp_path / "out" / "work" / "subset-classes=50%" / "train")
    assert (opened_again.source.digest, opened_again.kept.tolist()) == (read.digest, index.kept.tolist())


@pytest.fixture(scope="module")
def ran(tmp_path_factory, files):
    """A run of half of the classes, and how to run with other options in a folder of its name."""
    root = tmp_path_factory.mktemp("ran")
    (root / "net.py").write_text("from recipes.data import test_dp4tl\n\ndef build():\n    return test_dp4tl.large()\n")
    for name, labels in (("source", source().labels), ("other", source().labels.roll(1))):
        np.savez(root / f"{name}.npz", inputs=source().inputs.numpy(), labels=labels.numpy())
    for name, part in (("target", target()), ("more", target().take(range(60)))):
        np.savez(root / f"{name}.npz", inputs=part.inputs.numpy(), labels=part.labels.numpy())

    def run(out, budget="classes=25%", data="source", aim="target", **options):
        given = {**QUICK, "surrogate_epochs": 2, "probe_epochs": 0, "tune_epochs": 0, **options}
        return secateur.run(
            "dp4tl", f"{root / 'net.py'}:build", str(root / f"{data}.npz"), budget, root / out,
            target=str(root / f"{aim}.npz"), surrogate=f"{files / 'small.py'}:build", **given,
        )  # fmt: skip

    run("first", "classes=50%")
    return root, run


@pytest.mark.wide
def test_another_budget_takes_the_votes_of_an_earlier_run(ran, monkeypatch):
    root, run = ran
    run("anew")
    for name in ("build_surrogate", "count_votes"):  # what a run can't score without
        monkeypatch.setattr(module, name, None)
    run("took", scored=str(root / "first"))
    for name in ("work/votes.safetensors", "model.safetensors"):
        assert (root / "took" / name).read_bytes() == (root / "anew" / name).read_bytes()
    assert not (root / "took" / "work" / "surrogate").exists()


@pytest.mark.wide
def test_another_target_or_mapping_is_voted_on_by_the_surrogate_of_an_earlier_run(ran, monkeypatch):
    root, run = ran
    trained, real = [], loop.train
    monkeypatch.setattr(loop, "train", lambda *args, **how: trained.append(real(*args, **how)) or trained[-1])
    for name, how in (("more", {"aim": "more"}), ("feature", {"mapping": "feature"})):
        run(f"{name}-anew", epochs=0, **how)
        run(name, epochs=0, scored=str(root / "first"), **how)
        one, other = ((root / out / "work" / "votes.safetensors").read_bytes() for out in (name, f"{name}-anew"))
        assert one == other
        anew, took = trained[-2:]
        assert took.seconds != anew.seconds, "the earlier run's training is over: none of its steps is taken again"
        assert took.losses == anew.losses


def test_votes_of_a_target_or_a_surrogate_whose_file_has_changed_are_not_taken(ran, tmp_path):
    """Under the same names: a target of as many samples is voted on anew, another surrogate refused."""
    files = {name: f"{name} as it was" for name in ("target_sha256", "judged_sha256", "surrogate_sha256")}
    recorded = yaml.safe_load((ran[0] / "first" / "run.yaml").read_text())
    assert {"target_sha256", "surrogate_sha256"} <= recorded.keys(), "what a run records of its files"
    with Run.open(tmp_path / "was", files) as run:
        run.tensors("votes", lambda: {"votes": torch.tensor([3, 1]), "classes": torch.zeros(5)})
        (run.folder("surrogate") / "training.safetensors").touch()

    def load(name, count=5, **changed):
        with Run.open(tmp_path / name, {**files, **changed}) as run:
            return module.load_votes(str(tmp_path / "was"), run, count, 4)

    assert load("same")["votes"].tolist() == [3, 1]
    assert load("target", target_sha256="another") == load("judged", judged_sha256="another") == {}
    with pytest.raises(InputError, match=r"was scored with surrogate_sha256=.*: give the same"):
        load("surrogate", surrogate_sha256="another")
    with pytest.raises(InputError, match="has 4 votes on 5 examples, not 4 on 6: its data have changed, so leave"):
        load("data", count=6)


def test_votes_that_are_not_there_or_of_something_else_are_refused(ran):
    root, run = ran

    def refused(match, scored="first", **how):
        with pytest.raises(InputError, match=match) as caught:
            run("wrong", scored=str(root / scored), **how)
        assert "\n" not in str(caught.value)
        assert not (root / "wrong").exists(), "a new run that was refused leaves nothing"

    refused("scored=.*none holds no votes: give the folder of a run of dp4tl", scored="none")
    refused("was scored with data_sha256=.*: give the same, or leave scored out", data="other")
    refused("was scored with seed=0, not 1", seed=1)
    refused("was scored with surrogate_epochs=2.0, not 3.0", surrogate_epochs=3)
    refused("was scored with lr=0.05, not 0.1", lr=0.1)
    run("bare", surrogate_epochs=0)
    refused("has votes with target=.*target.npz, not .*more.npz, and no surrogate that was trained", scored="bare",
            surrogate_epochs=0, aim="more")  # fmt: skip
    shutil.copytree(root / "first", root / "changed")
    votes_at = root / "changed" / "work" / "votes.safetensors"
    votes_at.write_bytes(votes_at.read_bytes()[:40])
    refused("changed: .*votes.safetensors is damaged", scored="changed")


# -------------------------------------------------------------------------------------------------------- bad input


def test_what_is_refused(tmp_path, files):
    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            results(tmp_path / "run", files, **options)
        assert not (tmp_path / "run").exists(), "a new run that was refused leaves nothing"

    bare = replace(source(), labels=None)
    wide = replace(source(), labels=source().labels + 4)
    refused(InputError, "source has the label 11, the network 8 outputs", data=wide)
    refused(InputError, "mapping=label votes for the source's classes, and source has none", data=bare)
    refused(InputError, "no classes to train a surrogate on: give one that comes trained", data=bare, mapping="feature")
    refused(InputError, "clusters=40: give 2 to 8", mapping="feature", clusters=40)
    refused(InputError, r"logits of shape \[1, 5\], the source has 8 classes",
            surrogate=f"{files / 'small.py'}:narrow", surrogate_epochs=0)  # fmt: skip
    refused(InputError, "option attack=2.0 .*below 1", attack=2.0)
    for name in ("probe_epochs", "tune_epochs", "surrogate_epochs", "probe_lr", "tune_lr"):
        refused(InputError, f"option {name}=-1 .*at least 0", dry_run=True, **{name: -1})
    for name in ("epochs", "weight_decay"):
        refused(InputError, f"^{name}=-1.*: give a number of at least 0", dry_run=True, **{name: -1})
    refused(InputError, "batch=0: give a whole number", batch=0)
    refused(InputError, "option validation=0.0 .*above 0", validation=0.0)
    refused(InputError, "head='7' is no linear layer of the network: did you mean '8'", head="7")
    refused(DataError, "bare.npz has no classes to learn or to judge by", target=str(files / "bare.npz"))
    refused(DataError, "there is no data at", target=str(files / "none.npz"))
    refused(BudgetError, "params has no cost here; costs known: classes, examples", budgets=["params=50%"],
            surrogate_epochs=0, dry_run=True)  # fmt: skip
    refused(InfeasibleError, "classes can go down to 1", budgets=["classes=0.0001%"], surrogate_epochs=0, dry_run=True)


def test_a_target_of_another_shape_or_with_classes_of_its_own_is_refused(tmp_path, files):
    np.savez(tmp_path / "wide.npz", inputs=torch.zeros(9, 1, 9, 9).numpy(), labels=np.zeros(9, int))
    np.savez(tmp_path / "more.npz", inputs=target().inputs.numpy(), labels=target().labels.numpy() + 1)
    with pytest.raises(DataError, match=r"wide.npz holds inputs of shape \(1, 9, 9\), source of \(1, 8, 8\)"):
        results(tmp_path / "run", files, target=str(tmp_path / "wide.npz"))
    with pytest.raises(DataError, match=r"more.npz is judged on class 2, which target.npz has no example of"):
        results(tmp_path / "run", files, judged=str(tmp_path / "more.npz"))


def test_a_target_of_one_class_is_refused_where_it_would_be_learned(tmp_path, files):
    np.savez(tmp_path / "one.npz", inputs=target().inputs.numpy(), labels=np.full(len(target()), 3))
    for dry_run in (False, True):
        with pytest.raises(DataError, match=r"one.npz holds examples of class 3 alone, which any network is right"):
            results(tmp_path / "run", files, target=str(tmp_path / "one.npz"), dry_run=dry_run)
        assert not (tmp_path / "run").exists()
    how = {"probe_epochs": 0, "tune_epochs": 0, "epochs": 0}
    assert results(tmp_path / "run", files, target=str(tmp_path / "one.npz"), **how), "it may vote all the same"


def test_a_dry_run_refuses_what_the_run_would(tmp_path, files):
    with pytest.raises(DataError, match=r"bare.npz has no classes to learn or to judge by"):
        results(tmp_path / "run", files, target=str(files / "bare.npz"), dry_run=True)


def test_scoring_alone_needs_no_labels_of_the_target(tmp_path, files):
    (found,) = results(tmp_path, files, target=str(files / "bare.npz"), probe_epochs=0, tune_epochs=0, epochs=0)
    assert found.recovery is None
    assert len(found.notes) == 1
    assert kept(tmp_path, "classes=50%").class_numbers.tolist() == [0, 1, 2, 3]


def toy(folder):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    data, files = source(), written(folder)

    def on_data(_, data, budgets, run, **options):
        """Its first argument is the network to train; what is cut is the training set, of which it leaves an index."""
        for result in keywords.call(dp4tl, opened(), data, budgets, run, **options):
            yield replace(result, subject=ExampleSet.load(data, run.path(f"subset-{result.name}") / "train"))

    return {
        "subject": ExampleSet(source()),
        "data": data,
        "budget": "examples=40%",
        "options": {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **QUICK},
        "recipe": toys.recipe_of("dp4tl", on_data),
        "output": lambda subset: np.isin(np.arange(len(data)), subset.kept).astype(float),
        "quality": lambda subset: float((subset.labels < 4).mean()),  # the share that looks like the target
    }


def test_images_of_the_target_become_inputs_as_those_of_the_source(tmp_path, monkeypatch):
    """Folders of photographs of unequal sizes, as users have them: --size holds for both."""
    draw = np.random.default_rng(0)
    for root in ("from", "to"):
        for number in range(18):
            file = tmp_path / root / "abc"[number % 3] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (9 + number, 12, 3), np.uint8)).save(file)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    few = {"surrogate_epochs": 1, "epochs": 1, "probe_epochs": 1, "tune_epochs": 1}
    how = {"size": 8, "transform": "imagenet", "target": "kept/examples=100%", "attack": 0.05}
    secateur.prune_data("to", "examples=100%", "kept")  # an index is a target as the folder is
    (row,) = secateur.run("dp4tl", "net.py:build", "from", "classes=67%", out="attacked", **how, **few)
    told = json.loads((tmp_path / "attacked" / "work" / "transfer-classes=67%.json").read_text())
    assert told["full fine-tuning, attacked"] <= told["full fine-tuning"]
    (row,) = secateur.run("dp4tl", "net.py:build", "from", "classes=67%", out="out", size=8, target="to", **few)
    assert row.cut.after["classes"] == 2
    assert json.loads((tmp_path / "out" / "work" / "transfer-classes=67%.json").read_text()).keys() == {
        "linear probe", "full fine-tuning",
    }  # fmt: skip


def test_what_training_is_asked_for_is_in_force(tmp_path, files):
    def run(training):
        out, few = tmp_path / str(len(list(tmp_path.iterdir()))), {"surrogate_epochs": 1, "probe_epochs": 1}
        results(out, files, training=training, epochs=1, tune_epochs=1, **few)

    trainings.check_options(run)


def test_each_training_has_its_part_of_the_data_its_rate_and_its_attack(tmp_path, files, monkeypatch):
    fits, radii, attacks = [], [], []
    fit, classify, mark = module.fit, module.transfer.classify, module.mark_correct

    def watch(model, data, training, **how):
        rate, epochs = training.number("lr"), how.get("epochs", training.number("epochs"))
        fits.append((data, how.get("judged"), rate, epochs, how["seed"]))
        return fit(model, data, training, **how)

    monkeypatch.setattr(module, "fit", watch)
    monkeypatch.setattr(
        module.transfer, "classify", lambda *given, **how: radii.append(how.get("radius")) or classify(*given, **how)
    )
    monkeypatch.setattr(
        module, "mark_correct", lambda *given, **how: attacks.append("attack" in how) or mark(*given, **how)
    )
    epochs = {"surrogate_epochs": 0.5, "epochs": 0.25, "probe_epochs": 0.75, "tune_epochs": 1.0}
    results(tmp_path, files, attack=0.1, seed=3, validation=0.25, probe_lr=0.03, tune_lr=2e-3, **epochs)
    ours, validating = source().parts(0.25, seed=3)
    whole, kept = (
        source().take(ours),
        {*ExampleSet.load(source(), tmp_path / "work/subset-classes=50%/train").class_numbers},
    )
    (scored, _, *scoring), (learned, judged, *pretraining), (_, _, *probing), (_, _, *tuning) = fits
    assert scored.digest == whole.digest, "nothing of the validation part"
    assert set(learned.labels.tolist()) == set(judged.labels.tolist()) == kept
    inside = np.isin(source().labels[validating], list(kept))
    assert torch.equal(judged.inputs, source().inputs[validating[inside]])
    assert scoring == [0.05, 0.5, 3]
    assert (pretraining, probing, tuning) == ([0.05, 0.25, 3], [0.03, 0.75, 3], [2e-3, 1.0, 3])
    assert [radius for radius in radii if radius is not None] == [0.1, 0.1], "of pre-training and of fine-tuning"
    assert attacks == [False, True, False, True]


def test_clusters_are_of_what_is_learned_and_drawn_by_the_seed(monkeypatch):
    seen, kmeans = [], votes.kmeans

    def watch(rows, count, *, seed):
        seen.append((len(rows), seed))
        return kmeans(rows, count, seed=seed)

    monkeypatch.setattr(votes, "kmeans", watch)
    voted(replace(source(), labels=None), mapping="feature", clusters=4, seed=3)
    assert seen == [(len(source().parts(0.1, seed=0)[0]), 3)]
