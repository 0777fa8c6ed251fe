"""The curves of data pruning with a teacher: figures by hand, and a real grid of tiny trainings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small_vision as vision
from recipes.data import test_kd_data_pruning as toy
from secateur._utils.rundir import Run
from secateur.data.examples import Examples
from secateur.errors import DataError, InfeasibleError, InputError
from secateur.recipes.data import kd_data_pruning as recipe
from secateur.studies import curve
from secateur.studies.curve import Cell, Curve
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget

QUICK = {"batch": 24, "epochs": 1.0, "runs": 1, "score_epochs": 1.0}
GRID = {"shares": (0.2, 1.0), "alphas": (1.0,), "rules": ("random", "el2n"), "seeds": (0, 1)}


def by_hand() -> Curve:
    rows = {
        ("random", 0.1, 0.0): (0.50, 0.60),
        ("random", 0.1, 0.5): (0.70, 0.80),
        ("random", 0.1, 1.0): (0.72, 0.78),
        ("random", 0.2, 0.0): (0.80, 0.80),
        ("random", 0.2, 0.5): (0.80, 0.80),
        ("random", 0.2, 1.0): (0.70, 0.70),
        ("random", 0.8, 0.0): (0.90, 0.80),
        ("random", 0.8, 0.5): (0.80, 0.80),
        ("random", 0.8, 1.0): (0.80, 0.70),
    }
    loyal = {cell: tuple(1 - value / 2 for value in values) for cell, values in rows.items()}
    return Curve(rows, ("random",), (0.1, 0.2, 0.8), (0.0, 0.5, 1.0), (0, 1), loyal)


def test_the_best_alpha_is_the_smallest_of_equals():
    found = by_hand()
    assert [found.best("random", share) for share in found.shares] == [0.5, 0.0, 0.0]


def test_gains_are_paired_over_seeds():
    gain = by_hand().gain("random", 0.1, 0.5)
    assert gain.value == pytest.approx(0.2)
    assert gain.low == pytest.approx(0.2), "both seeds gain as much: no spread is left"
    assert by_hand().accuracy("random", 0.1, 0.5).low < 0.2


def test_the_area_is_the_mean_over_the_logarithm_of_the_share():
    found = by_hand()
    # From 0.1 to 0.2 is one halving, from 0.2 to 0.8 are two.
    expected = ((0.50 + 0.80) / 2 * 1 + (0.80 + 0.90) / 2 * 2) / 3
    assert found.areas("random", 0.0)[0] == pytest.approx(expected)
    assert found.area_gain("random", 0.5).value == pytest.approx(
        np.mean([a - b for a, b in zip(found.areas("random", 0.5), found.areas("random", 0.0), strict=True)])
    )
    level = Curve({("r", f, 0.0): (0.7,) for f in (0.1, 0.5)}, ("r",), (0.1, 0.5), (0.0,), (0,))
    assert level.areas("r", 0.0) == pytest.approx((0.7,))
    single = Curve({("r", 0.1, 0.0): (0.7, 0.9)}, ("r",), (0.1,), (0.0,), (0, 1))
    assert single.areas("r", 0.0) == (0.7, 0.9)


def test_the_sheet_has_a_row_for_each_share_and_tells_the_best():
    sheet = by_hand().sheet()
    accuracy, area, loyal = sheet.tables
    assert loyal.title == "random: label loyalty to the teacher, %"
    assert loyal.rows[1][0] == "10%"
    assert loyal.rows[1][1].startswith("72.5 [")
    assert sheet.figures["accuracy"][0]["label_loyalty"]["value"] == pytest.approx(0.725)
    assert accuracy.rows[0] == ["Kept", "labels alone", "alpha 0.5", "teacher alone", "Best alpha", "Gain of the best"]
    assert [row[0] for row in accuracy.rows[1:]] == ["10%", "20%", "80%"]
    assert accuracy.rows[1][-2] == "0.5"
    assert accuracy.rows[1][-1].startswith("+20.0 [")
    assert area.rows[0][-2:] == ["Gain, alpha 0.5", "Gain, teacher alone"]
    gain = 100 * by_hand().area_gain("random", 1.0).value
    assert sheet.headline.startswith(f"Teacher alone brings {gain:+.1f} [".replace("-", "−"))
    assert sheet.headline.endswith("random examples, 10 to 80%, mean over log f")
    assert [line.name for line in sheet.chart.panels["random"]] == ["labels alone", "alpha 0.5", "teacher alone"]
    assert sheet.figures["accuracy"][0]["by_seed"] == (0.50, 0.60)
    assert len(sheet.figures["accuracy"]) == 9
    assert sheet.figures["best_alpha"][0] == {"rule": "random", "share": 0.1, "alpha": 0.5}
    assert math.isclose(sheet.figures["area_over_log_share"][0]["by_seed"][0], by_hand().areas("random", 0.0)[0])


def several() -> Curve:
    """A smaller and a larger teacher beside that of `by_hand`: the smaller is the best at a tenth."""
    first, others = by_hand(), {}
    for name, rows in {
        "nets.py:wide": {0.1: (0.70, 0.78), 0.2: (0.70, 0.70), 0.8: (0.90, 0.90)},
        "nets.py:small": {0.1: (0.80, 0.84), 0.2: (0.70, 0.70), 0.8: (0.60, 0.60)},
    }.items():
        taught = {("random", share, 1.0): row for share, row in rows.items()}
        loyal = {cell: value for cell, value in first.loyalties.items() if cell[2]}
        others[name] = replace(first, accuracies={**first.accuracies, **taught}, loyalties=loyal)
    return replace(first, others=others, params={"MODEL": 100, "nets.py:wide": 400, "nets.py:small": 25})


def test_the_best_teacher_of_each_share_and_how_far_it_leads():
    found = several()
    assert list(found.teachers) == ["nets.py:small", "MODEL", "nets.py:wide"], "by size"
    best = [found.best_teacher("random", share, 1.0) for share in found.shares]
    assert best == ["nets.py:small", "nets.py:small", "nets.py:wide"], "of equals the smallest"
    lead = found.lead("random", 0.1, 1.0, "nets.py:small")
    assert lead.value == pytest.approx(0.07)
    pairs = np.array([0.80, 0.84]) - np.array([0.72, 0.78])
    assert lead.high - lead.low == pytest.approx(2 * 12.7062 * pairs.std(ddof=1) / np.sqrt(2), rel=1e-4)


def test_several_teachers_are_told_beside_one_another_and_one_alone_as_ever():
    sheet, alone = several().sheet(), by_hand().sheet()
    assert sheet.headline == (
        "Best teacher, random examples, teacher alone: nets.py:small at 10%, nets.py:small at 20%, nets.py:wide at 80%"
    )
    table = sheet.tables[1]
    assert [one.title for one in sheet.tables[:2]] == [
        "random, alpha 0.5: accuracy by teacher", "random, teacher alone: accuracy by teacher",
    ]  # fmt: skip
    assert list(sheet.tables[2:]) == list(alone.tables)
    assert table.rows[0] == ["Kept", "Teacher", "Weights", "Accuracy, %", "Over labels alone", "Over MODEL", ""]
    small, own, wide = table.rows[1:4]
    assert (small[:3], small[-1]) == (["10%", "nets.py:small", "25"], "best")
    assert small[3].startswith("82.0 [")
    assert small[4].startswith("+27.0 [")
    assert small[5].startswith("+7.0 [")
    assert (own[1], own[5], own[6]) == ("MODEL", "", "")
    assert (wide[1], wide[6]) == ("nets.py:wide", "")
    panel = sheet.chart.panels["random, teacher alone"]
    assert [line.name for line in panel] == ["labels alone", "nets.py:small", "MODEL", "nets.py:wide"]
    assert panel[1].points[0][1].value == pytest.approx(82.0)
    assert sheet.figures["best_teacher"][1] == {
        "rule": "random", "share": 0.1, "alpha": 1.0, "teacher": "nets.py:small",
    }  # fmt: skip
    told = next(one for one in sheet.figures["teachers"] if one["alpha"] == 1.0)
    assert (told["teacher"], told["params"], told["by_seed"]) == ("nets.py:small", 25, (0.80, 0.84))
    assert told["lead"]["value"] == pytest.approx(0.07)
    assert set(sheet.figures) == {*alone.figures, "teachers", "best_teacher"}


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (("a/nets.py:wide", "b/nets.py:small"), ["nets.py:small", "MODEL", "nets.py:wide"]),
        (("a/nets.py:net", "b/nets.py:net"), ["b/nets.py:net", "MODEL", "a/nets.py:net"]),
    ],
)
def test_the_chart_names_files_by_their_folders_only_where_it_must(given, drawn):
    found = several()
    sizes = dict(zip(("MODEL", *given), found.params.values(), strict=True))
    renamed = replace(found, others=dict(zip(given, found.others.values(), strict=True)), params=sizes)
    assert [line.name for line in renamed.sheet().chart.panels["random, alpha 0.5"]][1:] == drawn


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
