"""The largest share that loses nothing, by hand; and the sweep of a real run."""

from __future__ import annotations

import pytest

from recipes.data import test_dp4tl as toy
from secateur.errors import InputError
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


def test_the_sweep_asks_each_share_once_for_each_seed_with_the_whole_first():
    asked = []

    def outcome(share, seed):
        asked.append((seed, share))
        return {"accuracy": share + seed}

    found = lossless.sweep([0.7, 0.5], outcome, seeds=(3, 4))
    assert asked == [(3, 0.0), (3, 0.5), (3, 0.7), (4, 0.0), (4, 0.5), (4, 0.7)]
    assert [point.pruned for point in found] == [0.0, 0.5, 0.7]
    assert found[1].figures["accuracy"] == (3.5, 4.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return toy.written(tmp_path_factory.mktemp("files"))


def test_a_study_of_the_recipe_scores_once_per_seed_and_goes_on_where_it_stopped(tmp_path, files, monkeypatch):
    scored = []
    vote = recipe.vote
    monkeypatch.setattr(recipe, "vote", lambda *given, **how: scored.append(how["seed"]) or vote(*given, **how))
    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **toy.QUICK}

    def study():
        return lossless.lossless(lambda seed: toy.opened(seed), toy.source(), tmp_path, shares=(0.5, 0.75),
                                 seeds=(0, 1), measure="linear probe", **options)  # fmt: skip

    winner, found = study()
    assert scored == [0, 1]
    assert found[0].figures["examples"][0] > found[1].figures["examples"][0] > found[2].figures["examples"][0]
    assert winner is lossless.largest_lossless(found, "linear probe")
    assert winner.pruned >= 0.5, "half of the classes are nothing like the target"
    again, _ = study()
    assert scored == [0, 1]
    assert again == winner


def test_what_is_refused():
    with pytest.raises(InputError, match="give shares of the classes that go"):
        lossless.sweep([0.5, 1.0], dict)
    with pytest.raises(InputError, match="at least two"):
        lossless.sweep([0.5], dict, seeds=(0,))
    with pytest.raises(InputError, match="let it be the whole source"):
        lossless.largest_lossless(points(p20=(0.9, 0.9), p40=(0.9, 0.9)), "accuracy")
