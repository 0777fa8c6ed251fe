"""The largest share that loses nothing, by hand; and the sweep of a real run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from recipes.data import test_dp4tl as toy
from secateur.errors import InputError, SecateurError
from secateur.recipes.data import dp4tl as recipe
from secateur.studies import lossless
from secateur.studies.lossless import Point


def points(**rows: tuple[float, ...]) -> list[Point]:
    return [Point(int(name[1:]) / 100, {"accuracy": row}) for name, row in rows.items()]


def test_the_largest_share_within_one_standard_error():
    found = points(
        p0=(0.90, 0.92, 0.91),
        p20=(0.91, 0.92, 0.92),  # better
        p40=(0.90, 0.93, 0.88),  # 0.0067 worse, with a standard error of 0.0120
        p60=(0.88, 0.90, 0.90),  # 0.0167 worse, with one of 0.0033
        p80=(0.95, 0.95, 0.95),  # lucky, but behind one that loses
    )
    assert lossless.largest_lossless(found, "accuracy").pruned == 0.4
    assert lossless.largest_lossless(found, "accuracy", tolerance=0.0).pruned == 0.2
    assert lossless.largest_lossless(found, "accuracy", tolerance=9.0).pruned == 0.8
    assert found[3].loss(found[0], "accuracy").value == pytest.approx(0.0167, abs=1e-4)


def test_equal_losses_of_all_seeds_are_no_noise():
    found = points(p0=(0.9, 0.9), p50=(0.875, 0.875))
    assert lossless.largest_lossless(found, "accuracy").pruned == 0.0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return toy.written(tmp_path_factory.mktemp("files"))


def test_a_study_of_the_recipe_scores_once_per_seed_and_goes_on_where_it_stopped(tmp_path, files, monkeypatch):
    scored = []
    vote = recipe.count_votes
    monkeypatch.setattr(recipe, "count_votes", lambda *given, **how: scored.append(how["seed"]) or vote(*given, **how))
    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **toy.QUICK}

    def study():
        return lossless.lossless(lambda seed: toy.opened(seed), toy.source(), tmp_path, shares=(0.5, 0.75),
                                 seeds=(0, 1), measure="linear probe", **options)  # fmt: skip

    answer = study()
    winner, found = answer.best, answer.points
    assert scored == [0, 1]
    assert found[0].figures["examples"][0] > found[1].figures["examples"][0] > found[2].figures["examples"][0]
    assert winner is lossless.largest_lossless(found, "linear probe")
    assert winner.pruned >= 0.5, "half of the classes are nothing like the target"
    assert scored == [0, 1]
    assert study() == answer, "all figures again, seconds too"
    assert scored == [0, 1]


@pytest.mark.wide
def test_controls_take_the_votes_of_their_seed_and_are_the_recipe_s_own(tmp_path, files, monkeypatch):
    """Bit for bit what dp4tl gives in that order, or without pre-training; asked for later, the rest is not redone."""
    scored, trained = [], []
    vote, fit = recipe.count_votes, recipe.fit
    monkeypatch.setattr(recipe, "count_votes", lambda *given, **how: scored.append(how["seed"]) or vote(*given, **how))

    def noted(model, data, training, **how):
        trained.append(how.get("epochs", training.epochs))
        return fit(model, data, training, **how)

    monkeypatch.setattr(recipe, "fit", noted)
    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **toy.QUICK}

    def study(*controls):
        return lossless.lossless(lambda seed: toy.opened(seed), toy.source(), tmp_path / "c", shares=(0.5, 0.75),
                                 seeds=(0, 1), measure="linear probe", controls=controls, **options)  # fmt: skip

    alone = study()
    assert (scored, alone.controls) == ([0, 1], {})
    found = study("random", "reverse", "scratch")
    assert scored == [0, 1], "no control scores"
    assert (found.points, found.best) == (alone.points, alone.best)
    assert {name: [one.pruned for one in points] for name, points in found.controls.items()} == {
        "random": [0.5, 0.75], "reverse": [0.5, 0.75], "scratch": [1.0],
    }  # fmt: skip
    for name, how, place, budget in (
        ("random", {"order": "random"}, 0, "50%"),
        ("reverse", {"order": "reverse"}, 1, "25%"),
        ("scratch", {"epochs": 0}, 0, "100%"),
    ):
        toy.results(tmp_path / name, files, [f"classes={budget}"], network=toy.opened(1), seed=1, **how)
        expected = json.loads((tmp_path / name / "work" / f"transfer-classes={budget}.json").read_text())
        point = found.controls[name][place]
        assert {way: point.figures[way][1] for way in expected} == expected
    assert found.controls["scratch"][0].figures["examples"] == (0.0, 0.0)
    most, least = (toy.kept(tmp_path / "c" / place, "classes=50%") for place in ("seed-1", "seed-1-reverse"))
    assert sorted([*most.class_numbers, *least.class_numbers]) == list(range(toy.CLASSES))
    trained.clear()
    scored.clear()
    assert study("random", "reverse", "scratch") == found
    assert study("reverse").controls == {"reverse": found.controls["reverse"]}
    assert scored == []
    assert set(trained) == {float(toy.QUICK["epochs"]), 0.0}, "finished pre-trainings are looked at, transfers are not"


PLAN = {"shares": (0.5, 0.75), "seeds": (0, 1), "measure": "linear probe", "tolerance": 1.0, "weights": "new"}


def test_a_plan_counts_trainings_and_trains_nothing(files, monkeypatch):
    monkeypatch.setattr(recipe, "fit", lambda model, *given, epochs=1, **how: None if not epochs else 1 / 0)
    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **toy.QUICK}
    found = lossless.plan(toy.opened(), toy.source(), **PLAN, **options)
    assert found == {"surrogates": 2, "pre-trainings": 6, "transfers": 12}
    controls = ("random", "reverse", "scratch")
    assert lossless.plan(toy.opened(), toy.source(), **PLAN, controls=controls, **options) == {
        "surrogates": 2, "pre-trainings": 6 + 2 * 4, "transfers": 2 * (6 + 2 * 4 + 2),
    }  # fmt: skip
    options |= {"surrogate_epochs": 0, "tune_epochs": 0}
    assert lossless.plan(toy.opened(), toy.source(), **PLAN, **options) == {"pre-trainings": 6, "transfers": 6}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tune_epochs": 0, "measure": "full fine-tuning"}, "tune_epochs=0 leaves out the full fine-tuning"),
        ({"tolerance": -1.0}, "give standard errors, 0 or more"),
        ({"shares": (0.999999,)}, "classes can go down to 1"),
        ({"mapping": "feature", "clusters": 99}, "clusters=99: give 2 to 8"),
        ({"target": "nowhere.npz"}, "there is no data at nowhere.npz"),
        ({"controls": ("chance",)}, r"controls=\['chance'\]: 'chance' is none; give some of random, reverse, scratch"),
        ({"controls": ("random",), "order": "reverse"}, "controls stand beside order=votes: leave order=reverse out"),
        ({"scored": "first"}, "scored=first: a study scores once for each seed, .* in its folder: leave scored out"),
        ({"seeds": (0, -1)}, "seed=-1 is not a whole number of at least 0"),
    ],
)
def test_a_plan_refuses_what_the_sweep_would(files, given, words):
    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **toy.QUICK}
    with pytest.raises(SecateurError, match=words):
        lossless.plan(toy.opened(), toy.source(), **{**PLAN, **options, **given})


def test_a_network_that_is_given_is_drawn_anew_for_each_seed_unless_its_weights_are_to_be_kept():
    given = toy.opened()
    new, kept = (lossless._builder(given, weights) for weights in ("new", "given"))
    rows = [build(seed).model[0].weight for build in (new, kept) for seed in (0, 1)]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], given.model[0].weight)
    assert torch.equal(new(1).model[0].weight, rows[1])
    assert all(torch.equal(row, given.model[0].weight) and row is not given.model[0].weight for row in rows[2:])


def test_the_sheet_names_the_winner_and_what_each_share_lost():
    found = points(p0=(0.90, 0.92, 0.91), p20=(0.91, 0.92, 0.92), p40=(0.80, 0.81, 0.82))
    spent = [{"seconds": (6.0 * (1 - one.pruned),) * 3, "examples": (100 * (1 - one.pruned),) * 3} for one in found]
    found = [Point(one.pruned, {**one.figures, **more}) for one, more in zip(found, spent, strict=True)]
    best = lossless.largest_lossless(found, "accuracy")
    sheet = lossless.Lossless(best, tuple(found), "accuracy", 1.0, (0, 1, 2)).sheet()
    assert sheet.headline == "20% of the classes can go without loss: accuracy, within 1 standard error"
    header, whole, first, second = sheet.tables[0].rows
    assert header == ["Classes gone", "Examples", "accuracy, %", "Lost, accuracy", "Times faster", ""]
    assert whole[0] == "0%"
    assert whole[3:] == ["", "", ""]
    assert first[1] == "80"
    assert first[-1] == "winner"
    assert first[3].startswith("−0.7 [")
    assert first[4] == "1.2×" or first[4] == "1.3×"
    assert second[3].startswith("10.0 [")
    assert second[-1] == ""
    assert sheet.figures["winner"] == {"pruned": 0.2, "measure": "accuracy", "tolerance": 1.0}
    assert sheet.figures["points"][2]["by_seed"]["accuracy"] == (0.80, 0.81, 0.82)
    none = lossless.Lossless(found[0], tuple(found), "accuracy", 2.0, (0, 1, 2)).sheet()
    assert none.headline.startswith("None of the shares that were tried can go without loss")


def test_controls_stand_beside_the_votes_in_tables_chart_and_figures():
    rows = {0.0: (0.90, 0.92), 0.5: (0.88, 0.92), 0.75: (0.80, 0.84)}
    controls = {"random": {0.5: (0.80, 0.82), 0.75: (0.70, 0.72)}, "scratch": {1.0: (0.60, 0.60)}}
    made = lambda some: tuple(Point(f, {"probe": row, "examples": (9.0, 9.0)}) for f, row in some.items())  # noqa: E731
    points, controls = made(rows), {name: made(some) for name, some in controls.items()}
    found = lossless.Lossless(points[0], points, "probe", 1.0, (0, 1), controls)
    sheet = found.sheet()
    beside = sheet.tables[1]
    assert beside.title == "Beside controls: accuracy on the target, probe, %"
    assert beside.rows[0] == ["Classes gone", "Most votes", "random classes", "no pre-training", "Over random classes",
                              "Over no pre-training"]  # fmt: skip
    assert [row[0] for row in beside.rows[1:]] == ["0%", "50%", "75%"]
    assert (beside.rows[1][2], beside.rows[1][4]) == ("", "")
    assert beside.rows[1][5].startswith("+31.0 [")
    assert beside.rows[2][2].startswith("81.0 [")
    assert beside.rows[2][4].startswith("+9.0 [")
    assert beside.rows[3][4].startswith("+11.0 [")
    lines = {line.name: line for line in sheet.chart.panels["probe"]}
    assert list(lines) == ["most votes", "random classes", "whole source", "no pre-training"]
    drawn = {name: [(at, round(figure.value)) for at, figure in line.points] for name, line in lines.items()}
    assert drawn["random classes"] == [(0, 91), (50, 81), (75, 71)]
    assert drawn["whole source"] == [(0, 91), (50, 91), (75, 91)]
    assert drawn["no pre-training"] == [(0, 60), (50, 60), (75, 60)]
    told = sheet.figures["controls"]
    assert [one["pruned"] for one in told["random"]] == [0.5, 0.75]
    assert told["random"][0]["leads"][0]["value"] == pytest.approx(0.09)
    assert [one["pruned"] for one in told["scratch"][0]["leads"]] == [0.0, 0.5, 0.75]
    alone = replace(found, controls={}).sheet()
    assert (len(alone.tables), list(alone.chart.panels), "controls" in alone.figures) == (1, [""], False)


def planned(**given):
    return lossless.plan(toy.opened(), toy.source(), **{**PLAN, "target": "none.npz", **given})


@pytest.mark.parametrize("seeds", [(0, -1), (0, 1.5)])
def test_seeds_are_checked_from_python_too(seeds):
    with pytest.raises(InputError, match="is not a whole number of at least 0"):
        planned(seeds=seeds)


def test_what_is_refused():
    with pytest.raises(InputError, match="give shares of the classes that go"):
        planned(shares=[0.5, 1.0])
    with pytest.raises(InputError, match="at least two"):
        planned(seeds=(0,))
    with pytest.raises(InputError, match="let it be the whole source"):
        lossless.largest_lossless(points(p20=(0.9, 0.9), p40=(0.9, 0.9)), "accuracy")
