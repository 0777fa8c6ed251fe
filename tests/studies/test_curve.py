"""The curves of data pruning with a teacher: figures by hand, and a real grid of tiny trainings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from claims import vision
from recipes.data import test_kd_data_pruning as toy
from secateur.errors import DataError, InfeasibleError, InputError
from secateur.files.examples import Examples
from secateur.recipes.data import kd_data_pruning as recipe
from secateur.studies import curve
from secateur.studies.curve import Cell, Curve
from secateur.subjects.recording import Example
from secateur.subjects.traced import Traced
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
    real = recipe.taught
    monkeypatch.setattr(
        recipe, "taught", lambda data, said, alpha, **how: asked.append(alpha) or real(data, said, alpha, **how)
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
        ({"epochs": -1.0}, InputError, "epochs=-1: give a number above 0"),
        ({"score_epochs": -1.0}, InputError, "score_epochs=-1: give 0 or more"),
        ({"epoch": 3}, InputError, "did you mean 'epochs'"),
        ({"judged": "nowhere.npz"}, DataError, "there is no data at nowhere.npz"),
        ({"judged": Examples(toy.DATA.inputs)}, DataError, "has no classes to judge by"),
        ({"student": "none.py:build"}, InputError, "there is no file none.py"),
    ],
)
def test_a_plan_refuses_what_can_not_be_done_before_anything_is_trained(given, error, words, monkeypatch):
    monkeypatch.setattr(recipe, "taught", lambda *given, **how: 1 / 0)
    with pytest.raises(error, match=words):
        curve.plan(toy.teacher(), toy.DATA, **{**GRID, **QUICK, **given})


def test_a_rule_that_the_network_can_not_give_is_refused_before_the_others_are_trained(monkeypatch):
    monkeypatch.setattr(recipe, "taught", lambda *given, **how: 1 / 0)
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grid = {**GRID, "rules": ("random", "el2n", "grand")}
    with pytest.raises(InputError, match="this score needs the input of a last linear layer"):
        curve.plan(Traced(pooled, Example.of(toy.DATA.inputs[:1])), toy.DATA, **grid, **QUICK)


def test_a_budget_is_a_share_of_the_examples():
    assert curve._budget(0.05) == Budget.parse("examples=5%")
