"""The control experiment of budgets and seeds, by its name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from recipes.vision import nets
from secateur.errors import DataError, InfeasibleError, InputError, RunError
from secateur.methods import arms
from secateur.methods.control import LACKS
from secateur.recover.training import loop
from secateur.studies import executor, scratch

QUICK = {"epochs": 2, "batch": 24, "lr": 0.05}


def answered(root, *budgets, **more):
    how = {**QUICK, "seeds": (0, 1), "scratch": "both", **more}
    return executor.study(
        "scratch", nets.opened(nets.vgg()), nets.data(), root, budgets=budgets or ("channels=50%",), **how
    )


def test_examples_apart_with_other_classes_are_refused(tmp_path):
    ours, theirs = (replace(nets.data(48), classes=names) for names in (("a", "b", "c", "d"), ("a", "b", "c", "e")))
    with pytest.raises(DataError, match="numbers the classes a, b, c, "):
        executor.study("scratch", nets.opened(nets.vgg()), ours, tmp_path, judged=theirs)


@pytest.mark.usefixtures("charted")
@pytest.mark.wide
def test_the_study_by_its_name_resumes_and_grows(tmp_path, monkeypatch):
    sheet = answered(tmp_path / "s")
    (table,) = sheet.tables
    assert [row[0] for row in table.rows[1:]] == ["fine-tuned (classic)", "scratch-E", "scratch-B", "random units"]
    assert sheet.headline.startswith("channels=50%: fine-tuned minus scratch-")
    assert any(LACKS in note for note in sheet.notes)
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


@pytest.mark.wide
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
        ({"training": "validation=0.1"}, "validation=0.1: every arm trains"),
        ({"seeds": ()}, "give at least one of each"),
        ({"method": "l2"}, "method='l2'"),
    ):
        with pytest.raises(InputError, match=words):
            answered(tmp_path / "d", **given)
    with pytest.raises(InfeasibleError, match="channels can go down to"):
        answered(tmp_path / "d", "channels=0.1%")
    assert not (tmp_path / "d").exists()


def test_the_study_draws_and_trains_a_large_network_for_each_seed(tmp_path, monkeypatch):
    trained, real = [], arms.fit

    def fit(model, data, training, **how):
        if training.epochs:
            trained.append(len(next(iter(model.parameters()))))
        return real(model, data, training, **how)

    monkeypatch.setattr(scratch, "fit", fit)
    monkeypatch.setattr(arms, "fit", fit)
    sheet = answered(tmp_path, untrained=True, chance=False, epochs=1, judged=nets.data(40, seed=1))
    assert trained == 2 * [8, 4, 4, 4], "large, fine-tuned, E and B of each seed"
    assert not any(LACKS in note for note in sheet.notes)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("judged-*.json"))]
    assert [len(one["arms"]["scratch-E"]["right"]) for one in found] == [40, 40]
