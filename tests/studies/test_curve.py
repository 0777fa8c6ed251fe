"""The curves of data pruning with a teacher: figures by hand, and a real grid of tiny trainings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small_vision as vision
from pictures import class_folder
from recipes.data import test_kd_data_pruning as toy
from secateur._utils.rundir import Run
from secateur.data import examples
from secateur.data.examples import Examples
from secateur.errors import DataError, InfeasibleError, InputError
from secateur.recipes.data import kd_data_pruning as recipe
from secateur.runs import splits
from secateur.runs.backends.network import Network
from secateur.runs.data import prune_data
from secateur.studies import curve
from secateur.studies.curve import Cell
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget

QUICK = {"batch": 24, "epochs": 1.0, "runs": 1, "score_epochs": 1.0}
GRID = {"shares": (0.2, 1.0), "alphas": (1.0,), "rules": ("random", "el2n"), "seeds": (0, 1)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root, cells = tmp_path_factory.mktemp("curve"), []

    def progress(trials):
        cells.extend(trials)
        return trials

    return root, cells, curve.curve(toy.teacher(), toy.DATA, root, progress, **GRID, **QUICK)


def test_labels_alone_are_tried_beside_and_all_of_the_data_once_for_all_rules(ran):
    _, cells, found = ran
    assert found.alphas == (0.0, 1.0)
    assert len(cells) == len(set(cells)) == 2 * (2 * 2 + 2)
    assert Cell(0, "el2n", 1.0, 1.0) not in cells
    assert found.accuracies["el2n", 1.0, 1.0] == found.accuracies["random", 1.0, 1.0]
    assert found.accuracies["el2n", 0.2, 1.0] != found.accuracies["random", 0.2, 1.0]
    assert curve.plan(toy.teacher(), toy.DATA, **GRID, **QUICK) == {"students": 12, "short trainings for scores": 2}


def test_a_cell_is_the_student_of_the_recipe_on_what_its_seed_holds_out(ran, tmp_path):
    _, _, found = ran
    train, held = toy.DATA.split(seed=1)
    (alone,) = toy.results(tmp_path / "run", ["examples=20%"], train, seed=1, alpha=1.0, epochs=1.0)
    assert found.accuracies["random", 0.2, 1.0][1] == pytest.approx(vision.accuracy(alone.subject.model, held))
    with torch.inference_mode():
        ours, theirs = (one.model.eval()(held.inputs).argmax(-1) for one in (alone.subject, toy.teacher()))
    assert found.loyalties["random", 0.2, 1.0][1] == pytest.approx(float((ours == theirs).float().mean()))


def test_the_same_call_trains_nothing_and_a_larger_grid_only_what_is_new(ran, monkeypatch):
    root, _, found = ran
    asked = []
    real = recipe.train_student
    monkeypatch.setattr(
        recipe, "train_student", lambda data, said, alpha, **how: asked.append(alpha) or real(data, said, alpha, **how)
    )
    assert curve.curve(toy.teacher(), toy.DATA, root, **GRID, **QUICK) == found
    assert asked == []
    larger = curve.curve(toy.teacher(), toy.DATA, root, **{**GRID, "alphas": (0.5, 1.0), "rules": ("random",)}, **QUICK)
    assert asked == [0.5] * 4
    assert larger.accuracies["random", 0.2, 1.0] == found.accuracies["random", 0.2, 1.0]
    assert not list(root.rglob("training.safetensors")), "of what is answered no checkpoint stays"


def test_examples_apart_are_judged_on_and_all_of_the_data_is_learned(tmp_path):
    np.savez(tmp_path / "held.npz", inputs=toy.HELD_OUT.inputs.numpy(), labels=toy.HELD_OUT.labels.numpy())
    grid = {**GRID, "rules": ("random",), "seeds": (0,), "shares": (0.2,)}
    found = curve.curve(toy.teacher(), toy.DATA, tmp_path / "c", judged=str(tmp_path / "held.npz"), **grid, **QUICK)
    (alone,) = toy.results(tmp_path / "run", ["examples=20%"], alpha=1.0, epochs=1.0)
    expected = vision.accuracy(alone.subject.model, toy.HELD_OUT)
    assert found.accuracies["random", 0.2, 1.0] == pytest.approx((expected,))


def test_examples_apart_have_the_classes_of_the_data(tmp_path):
    """A folder numbers its classes by itself: one without the first has the second as its first."""
    names = ("a", "b", "c", "d")
    data, held = (replace(one, classes=names) for one in (toy.DATA, toy.HELD_OUT))
    held = held.take(torch.nonzero(held.labels > 0).flatten())
    own = replace(held, labels=held.labels - 1, classes=names[1:])
    grid = {**GRID, "rules": ("random",), "seeds": (0,), "shares": (0.2,)}
    found = [
        curve.curve(toy.teacher(), data, tmp_path / str(number), judged=judged, **grid, **QUICK).accuracies
        for number, judged in enumerate((held, own))
    ]
    assert found[0] == found[1]
    other = replace(own, classes=("b", "c", "e"))
    with pytest.raises(DataError, match=r"numbers the classes b, c, e, .* a, b, c, \.\.\.: give both the same classes"):
        curve.plan(toy.teacher(), data, judged=other, **grid, **QUICK)


def test_images_apart_become_the_inputs_that_those_of_the_data_do(tmp_path):
    """What the model says of its inputs, or the caller of the data, holds for both; an index is read, too."""
    photos, apart = class_folder(tmp_path / "photos"), class_folder(tmp_path / "apart", 6)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    net.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    subject = Traced(net, Example.of(torch.zeros(1, 3, 8, 8)))
    data = Network().fit_data(examples.read(photos), subject)
    prune_data(apart, "examples=100%", tmp_path / "kept")
    for judged in (str(apart), examples.read(apart), str(tmp_path / "kept" / "examples=100%")):
        found = splits.read_judged(judged, data, subject)
        assert found.inputs.normalisation == data.inputs.normalisation == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        assert found.inputs.shape[1:] == (3, 8, 8)
    del net.pretrained_cfg
    small = examples.with_transform(examples.read(photos), "cifar", 8)
    assert splits.read_judged(str(apart), small, subject).inputs.normalisation == small.inputs.normalisation


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Teachers of other sizes: `wide` knows something, and so gives other outputs than a new network."""
    root = tmp_path_factory.mktemp("nets")
    model = toy.mlp(32)
    vision.fit(model, toy.DATA, epochs=6, batch=24, optimizer="adamw", lr=5e-3)
    torch.save(model.state_dict(), root / "wide.pt")
    (root / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build(width, classes=4, size=64):\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, classes))\n\n"
        f"def wide():\n    net = build(32)\n    net.load_state_dict(torch.load({str(root / 'wide.pt')!r}, "
        "weights_only=True))\n    return net\n\ndef small():\n    return build(4)\n\n"
        "def like():\n    return build(16)\n\ndef six():\n    return build(16, 6)\n\n"
        "def flat():\n    return build(16, size=49), torch.rand(1, 1, 7, 7)\n"
    )
    return root / "nets.py"


def test_other_teachers_teach_the_same_students_on_the_same_examples(ran, nets, tmp_path, monkeypatch):
    """Bit for bit what the recipe gives with such a teacher; more teachers in a folder train only what is new."""
    _, _, alone = ran
    asked, cells = [], []
    real = recipe.train_student
    monkeypatch.setattr(
        recipe, "train_student", lambda data, said, alpha, **how: asked.append(alpha) or real(data, said, alpha, **how)
    )

    def study(*teachers):
        def progress(trials):
            cells[:] = trials
            return trials

        names = [f"{nets}:{one}" for one in teachers]
        return curve.curve(toy.teacher(), toy.DATA, tmp_path / "c", progress, **GRID, **QUICK, teachers=names)

    assert study() == replace(alone, params={"MODEL": 1108})
    asked.clear()
    found = study("wide")
    assert asked == [1.0] * 6, "2 seeds, 2 rules at a fifth and all of the data once; labels alone ask no teacher"
    first = next(str(one) for one in cells if one.teacher != "MODEL")
    assert first == f"seed 0, random, 20%, teacher alone, taught by {nets}:wide"
    wide = found.others[f"{nets}:wide"]
    assert found.accuracies == alone.accuracies
    assert found.params == {"MODEL": 1108, f"{nets}:wide": 2212}
    assert wide.accuracies["random", 0.2, 0.0] == alone.accuracies["random", 0.2, 0.0]
    assert wide.loyalties["random", 0.2, 1.0] != found.loyalties["random", 0.2, 1.0]
    asked.clear()
    again = study("wide", "small")
    assert asked == [1.0] * 6, "the small one's alone"
    assert again.others[f"{nets}:wide"] == wide
    names = [f"{nets}:wide", f"{nets}:small"]
    planned = curve.plan(toy.teacher(), toy.DATA, **GRID, **QUICK, teachers=names)
    assert planned == {"students": 12 + 2 * 6, "short trainings for scores": 2}
    assert planned["students"] == len(cells)
    assert again.sheet().headline.startswith("Best teacher, ")
    # The recipe itself, with that teacher and a student like MODEL.
    train, held = toy.DATA.split(seed=1)
    model = toy.mlp(32)
    model.load_state_dict(torch.load(nets.with_name("wide.pt"), weights_only=True))
    with Run.open(tmp_path / "run", {}) as run:
        (one,) = recipe.kd_data_pruning(
            Traced(model, Example.of(train.inputs[:1])), train, [Budget.parse("examples=20%")], run,
            **toy.chosen(seed=1, alpha=1.0, student=f"{nets}:like", **QUICK),
        )  # fmt: skip
    assert wide.accuracies["random", 0.2, 1.0][1] == pytest.approx(vision.accuracy(one.subject.model, held))
    soft = "work/soft-examples=20%.safetensors"
    heard = [path.read_bytes() for path in (tmp_path / "c").glob(f"random-1-by-*/{soft}")]
    assert heard.count((tmp_path / "run" / soft).read_bytes()) == 1, "of two teachers one said what the recipe heard"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("six", InputError, "nets.py:six tells 6 classes, MODEL 4: give teachers of the same classes"),
        ("flat", DataError, r"holds inputs of shape \(1, 8, 8\), the model was built for \(1, 7, 7\)"),
        ("none", InputError, "none"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(nets, name, error, words, monkeypatch):
    monkeypatch.setattr(recipe, "train_student", lambda *given, **how: 1 / 0)
    with pytest.raises(error, match=words):
        curve.plan(toy.teacher(), toy.DATA, **GRID, **QUICK, teachers=[f"{nets}:{name}"])


@pytest.mark.parametrize("seeds", [(0, -1), (0, 2**63), (0, 1.5)])
def test_seeds_are_checked_from_python_too(seeds, tmp_path):
    with pytest.raises(InputError, match="is not a whole number of at least 0"):
        curve.curve(toy.teacher(), toy.DATA, tmp_path / "c", **{**GRID, "seeds": seeds}, **QUICK)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"shares": ()}, InputError, "give shares of the examples that stay"),
        ({"shares": (1.2,)}, InputError, "above 0 and up to 1"),
        ({"shares": (0.01,)}, InfeasibleError, "leaves nothing of class"),
        ({"alphas": (0.0,)}, InputError, "one of them above 0"),
        ({"alphas": (1.5,)}, InputError, "give weights of the teacher up to 1"),
        ({"seeds": ()}, InputError, "at least one of each"),
        ({"rules": ("best",)}, InputError, "option score='best' of kd_data_pruning"),
        ({"rules": ("memorisation",)}, InputError, "runs come in pairs"),
        ({"epochs": float("nan")}, InputError, "option epochs=nan of kd_data_pruning: input should be a finite number"),
        ({"epochs": -1.0}, InputError, "epochs=-1.0: give a number of at least 0"),
        ({"score_epochs": -1.0}, InputError, "score_epochs=-1: give 0 or more"),
        ({"epoch": 3}, InputError, "did you mean 'epochs'"),
        ({"judged": "nowhere.npz"}, DataError, "there is no data at nowhere.npz"),
        ({"judged": Examples(toy.DATA.inputs)}, DataError, "has no classes to judge by"),
        ({"student": "none.py:build"}, InputError, "there is no file none.py"),
    ],
)
def test_a_plan_refuses_what_can_not_be_done_before_anything_is_trained(given, error, words, monkeypatch):
    monkeypatch.setattr(recipe, "train_student", lambda *given, **how: 1 / 0)
    with pytest.raises(error, match=words):
        curve.plan(toy.teacher(), toy.DATA, **{**GRID, **QUICK, **given})


def test_a_rule_that_the_network_can_not_give_is_refused_before_the_others_are_trained(monkeypatch):
    monkeypatch.setattr(recipe, "train_student", lambda *given, **how: 1 / 0)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grid = {**GRID, "rules": ("random", "el2n", "grand")}
    with pytest.raises(InputError, match="this score needs the input of a last linear layer"):
        curve.plan(Traced(pooled, Example.of(toy.DATA.inputs[:1])), toy.DATA, **grid, **QUICK)


def test_a_budget_is_a_share_of_the_examples():
    assert curve._budget(0.05) == Budget.parse("examples=5%")
