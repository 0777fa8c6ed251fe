"""What ranks candidates before they are retrained: by its name, resumed, and refused where it can't be asked."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

import tiny
from recipes.vision import nets
from rows import watch_rows
from runs.test_candidates import heads, network
from secateur.errors import InputError, MeasurementError, NumericalError, RunError
from secateur.methods import retraining
from secateur.runs import candidates as drawing
from secateur.runs.candidates import Candidate, Setting
from secateur.studies import executor, oracle
from secateur.subjects import open_traced
from secateur.vocabulary import Training

QUICK = {
    "layers": ["1", "1+3"],
    "ratios": ["50%"],
    "candidates": 8,
    "repeats": 2,
    "epochs": 6,
    "train_batch": 32,
    "lr": 0.2,
    "last": 1,
    "short": 0.5,
    "score": ["l1"],
    "proxies": ["short", "kl"],
}


def ask(out, **more):
    subject = open_traced(network(), nets.data(4).inputs)
    return executor.study("oracle", subject, nets.data(120), out, **{**QUICK, **more})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("oracle")


@pytest.fixture(scope="module")
def sheet(place):
    return ask(place / "out")


def test_each_setting_has_its_proxies_its_picks_and_a_star(place, sheet):
    first, second = sheet.figures["settings"]
    assert (first["ways"], first["candidates"]) == (20, 8)
    names = {one["name"] for one in first["proxies"]}
    assert names == {oracle.PROXIES["loss"], oracle.PROXIES["kl"], oracle.PROXIES["short"], oracle.SHORT_JUDGED,
                     "score l1"}  # fmt: skip
    taus = [abs(one["loss"]["value"]) for one in second["proxies"]]
    assert taus == sorted(taus, reverse=True)
    assert len(sheet.tables) == 4
    page = (place / "out" / "study.html").read_text()
    assert "the oracle" in page
    assert "<svg" in page
    assert sheet.headline.startswith("1+3 at 50%: tau of the loss after the cut")
    lines = [json.loads(line) for line in (place / "out" / "items.jsonl").read_text().splitlines()]
    assert {line["setting"] for line in lines} == {"1 at 50%", "1+3 at 50%"}
    one = lines[0]
    assert one["loss"] == pytest.approx((one["full 1"]["loss"] + one["full 2"]["loss"]) / 2)
    assert {"removed", "origin", "cut", "short", "scores"} <= set(one)
    assert any(note.startswith("all cuts equal the network") for note in sheet.notes)


def test_a_second_call_trains_nothing_and_more_repeats_only_themselves(place, sheet, monkeypatch):
    done, real = [], retraining.retrain
    monkeypatch.setattr(retraining, "retrain", lambda *given, **how: done.append(how["seed"]) or real(*given, **how))
    assert ask(place / "out").figures == sheet.figures
    assert not done
    more = ask(place / "out", repeats=3, candidates=9)
    assert set(done) == {1000, 1001, 1002, 1003}
    assert done.count(1003) == 2, "one stack for each setting"
    assert more.figures["settings"][0]["candidates"] == 9


def test_other_examples_to_judge_on_are_another_study(place, tmp_path):
    quick = {"layers": ["1"], "candidates": 3, "repeats": 1, "epochs": 1, "proxies": [], "score": []}
    apart = nets.data(40, seed=1)
    file = tmp_path / "apart.npz"
    np.savez(file, inputs=apart.inputs.numpy(), labels=apart.labels.numpy())
    first = ask(tmp_path / "out", judged=str(file), **quick)
    assert ask(tmp_path / "out", judged=str(file), **quick).figures == first.figures
    np.savez(file, inputs=apart.inputs.numpy(), labels=(apart.labels.numpy() + 1) % 4)
    with pytest.raises(RunError, match="judged_sha256"):
        ask(tmp_path / "out", judged=str(file), **quick)


def test_a_dry_run_counts(place):
    plain = ask(place / "dry", dry_run=True, score=[])
    assert plain.headline == "dry run: 16 candidates, 16 short retrainings, 32 retrainings"
    assert not (place / "dry").exists()


def test_no_pass_has_more_examples_than_a_step_however_many_there_are(tmp_path):
    how = {"layers": ["1"], "repeats": 1, "epochs": 1, "train_batch": 16, "score": ["taylor"], "stack": 4}
    with watch_rows() as rows:
        ask(tmp_path, **how, proxies=["short", "kl", "trace"], judged=nets.data(50, seed=1))
    assert max(rows) == 16


def test_a_folder_of_transformers_is_asked_for_its_heads_and_convolutions_are_not_stacked(tmp_path):
    heads().save(tmp_path / "spam")
    rows = [json.dumps({"text": text, "label": place % 2}) for place, text in enumerate(tiny.sentences(40))]
    (tmp_path / "mails.jsonl").write_text("\n".join(rows))
    given = {"ratios": ["50%"], "candidates": 10, "length": 16, "dry_run": True, "score": ["taylor"]}
    plain = executor.study("oracle", str(tmp_path / "spam"), str(tmp_path / "mails.jsonl"), tmp_path / "out", **given)
    assert plain.figures["candidates"] in (10, 11)
    settle = functools.partial(
        oracle._settle, proxies=(), short=0.1, last=1, seed=0, processes=1, training=Training(epochs=1, batch=8, lr=0.1)
    )
    small, conv = open_traced(network(), nets.data(4).inputs), nets.opened(nets.vgg())
    assert [settle(one, stack=0).stack for one in (small, conv)] == [oracle.STACK, 1]
    assert settle(conv, stack=8).stack == 8


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"layers": ["nine"]}, "'nine', which is no layer"),
        ({"ratios": ["100%"]}, "would be left empty"),
        ({"ratios": ["5%"]}, "one candidate only"),
        ({"score": ["wonder"]}, "'wonder' is not one of"),
        ({"score": ["gone.json"]}, "no file of scores"),
        ({"proxies": ["luck"]}, "proxy 'luck' is none of"),
        ({"proxies": ["norms"]}, "has none: leave it out"),
        ({"epochs": 0}, "epochs=0"),
        ({"training": "patience=2"}, "patience=2"),
        ({"candidates": 2}, "candidates=2"),
    ],
)
def test_what_can_not_be_asked_is_said_before_anything_runs(place, more, words):
    with pytest.raises(InputError, match=words):
        ask(place / "refused", **more)
    assert not (place / "refused").exists()


def rank(loss_after_cut, repeats, short=None):
    """Candidates with these figures; of each repeat their losses, of which accuracies are the opposite."""
    count = len(loss_after_cut)
    cuts = [Candidate(str(place), {"a": [place]}, "drawn") for place in range(count)]
    figures = []
    for place in range(count):
        row = {"cut": {"loss": loss_after_cut[place]}}
        for number, losses in enumerate(repeats, 1):
            row[f"full {number}"] = {"loss": losses[place], "accuracy": 1 - losses[place], "train_loss": losses[place]}
        if short is not None:
            row["short"] = {"train_loss": short[place], "accuracy": 1 - short[place], "loss": -short[place]}
        figures.append(row)
    setting = Setting("a", {"a": (count, 1)})
    return oracle.Ranked(setting, cuts, figures, {}, len(repeats), 0.25 if short is not None else 0.0)


def test_repeats_are_averaged_before_anything_is_compared():
    cut = [1.0, 2.0, 3.0, 4.0]
    repeats = [[0.5, 0.1, 0.2, 0.3], [0.1, 0.5, 0.6, 0.7]]  # the oracle loses the first, and wins on average
    (proxy,) = rank(cut, repeats).proxies
    assert proxy.other["loss"]["anomaly"] == 0.0
    assert proxy.loss.value == pytest.approx(2 / 3, abs=0.4)
    (worst,) = rank(cut, [[0.4, 0.3, 0.2, 0.1]]).proxies
    assert worst.loss.value == pytest.approx(-1.0)
    assert worst.other["loss"]["anomaly"] == worst.other["accuracy"]["anomaly"] == pytest.approx(3 / 4)
    assert not worst.tells


def test_the_order_of_candidates_does_not_matter_and_a_constant_has_no_tau():
    rng = np.random.default_rng(0)
    cut, after, order = rng.random(30), rng.random(30), rng.permutation(30)
    (one,), (other,) = rank(cut, [after]).proxies, rank(cut[order], [after[order]]).proxies
    assert other.loss.value == pytest.approx(one.loss.value)
    assert other.other["loss"]["anomaly"] == one.other["loss"]["anomaly"]
    (flat,) = rank(cut, [np.full(30, 0.5)]).proxies
    assert flat.loss is None
    assert "–" in rank(cut, [np.full(30, 0.5)]).proxy_table().rows[1]


def test_the_pick_by_loss_is_given_as_many_epochs_as_short_retraining_takes():
    cut, after, short = np.arange(8.0), np.array([8, 7, 6, 5, 4, 3, 2, 1.0]), np.array([8, 7, 6, 5, 4, 3, 1, 2.0])
    picks = rank(cut, [after], short).picks()
    assert picks["oracle: lowest loss after the cut"] == 0
    assert picks["lowest loss after a short retraining"] == 6
    assert picks["the 3 of the lowest loss trained, the best of them"] == 2, "1 + 8 / 4 trainings"
    ranked = rank(cut, [after], short)
    taus = {one.name: one.loss.value for one in ranked.proxies}
    assert taus[oracle.PROXIES["short"]] > 0.9, "by what is learned from, not by what judges"
    rows = {name: share for name, _, _, share in ranked.pick_table().rows[1:]}
    assert list(rows.values()) == ["88", "62", "12", "50", "0"], "of eight, those of a lower loss"


def test_what_ends_better_than_the_oracle_lies_above_its_star():
    one = rank([1.0, 2.0, 3.0, 4.0], [[0.3, 0.1, 0.2, 0.5]])
    dots = {group.name: [x for x, _ in group.points] for group in one.dots()}
    assert dots == {
        "no better than the oracle": [1.0, 4.0], "better than the oracle": [2.0, 3.0], "the oracle": [1.0],
    }  # fmt: skip


def test_a_verdict_needs_candidates_enough():
    rng = np.random.default_rng(0)
    cut = np.arange(200.0)
    verdict = {
        name: proxy.verdict(len(values))
        for name, values in {
            "good": cut + 40 * rng.random(200), "none": rng.random(200), "few": rng.permutation(6),
            "lucky": np.array([1.0, 2.0, 0.0, 3.0]), "opposite": -cut,
        }.items()
        for (proxy,) in [rank(cut[: len(values)], [values]).proxies]
    }  # fmt: skip
    assert verdict["good"] == "tells"
    assert verdict["none"].startswith("does not tell")
    assert verdict["few"].startswith("not decided with 6 candidates")
    assert verdict["lucky"].startswith("not decided with 4 candidates"), "tau is 1/3, and p above 0.05"
    assert verdict["opposite"] == "does not tell; its pick is no better than one at random"


@pytest.mark.wide
def test_a_candidate_that_diverges_is_named_and_the_others_are_compared(tmp_path, monkeypatch):
    real, seen = retraining._train, []

    def train(student, *given):
        seen.append(student)
        if len(seen) == 3:
            raise NumericalError("loss is inf at step 2")
        return real(student, *given)

    monkeypatch.setattr(retraining, "_train", train)
    quick = {"layers": ["1"], "repeats": 1, "epochs": 1, "proxies": [], "stack": 1}
    sheet = ask(tmp_path, **quick)
    assert sheet.figures["settings"][0]["candidates"] == 7
    (note,) = (note for note in sheet.notes if "failed" in note)
    assert "1 at 50%: 1 of " in note
    assert "(full 1: loss is inf at step 2)" in note
    many = len(seen)
    assert ask(tmp_path, **{**quick, "stack": 3, "processes": 2}).figures == sheet.figures, "how it runs is no setting"
    assert len(seen) == many
    monkeypatch.setattr(retraining, "_train", lambda *given: (_ for _ in ()).throw(NumericalError("loss is nan")))
    with pytest.raises(MeasurementError, match=r"8 of 8 candidates failed.*lower lr"):
        ask(tmp_path / "all", **quick)


def test_the_choice_of_a_score_is_marked_and_not_compared():
    one = rank([1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0, 4.0]])
    choice = replace(one.candidates[0], origin="l1")
    marked = oracle.Ranked(
        one.setting, [choice, *one.candidates[1:]], one.figures, {"l1": [0.0, 1.0, 3.0, 2.0]}, 1, 0.0, {"l1": 0}
    )
    known = {proxy.name: proxy for proxy in marked.proxies}
    assert known["score l1"].anomaly == "0 / 0", "none beats its choice, which is none of those drawn"
    worse = replace(marked, figures=[{**one.figures[0], "full 1": one.figures[3]["full 1"]}, *one.figures[1:]])
    (proxy,) = (found for found in worse.proxies if found.name == "score l1")
    assert proxy.anomaly == "67 / 67", "two of the three drawn do, though it would pick the best of these"
    assert proxy.verdict(3).endswith("no better than one at random")
    (lost,) = (found for found in replace(marked, choices={"l1": None}).proxies if found.name == "score l1")
    assert lost.anomaly == "– / –", "its choice could not be trained"
    assert marked.sample.tolist() == [False, True, True, True]
    assert marked.picks()["score l1"] == 0
    assert "score l1" in [dots.name for dots in marked.dots()]


def test_candidates_are_the_same_on_every_run(sheet, place):
    stored = sorted((place / "out" / "work" / "runs").glob("*/candidates.jsonl"))
    assert len(stored) == 2
    subject = open_traced(network(), nets.data(4).inputs)
    for setting in drawing.parse_settings(subject, QUICK["layers"], QUICK["ratios"]):
        file = next(file for file in stored if file.parent.name == setting.folder)
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        assert ids[:8] == [one.id for one in drawing.draw(setting, 8, {})]


def test_what_is_asked_for_reaches_candidates_and_retrainings(tmp_path, monkeypatch):
    trained, tasks, scored = [], [], []
    retrain, make, choose = retraining.retrain, drawing.make_task, drawing.choose

    def watch(models, task, training, *, seed, last, together):
        trained.append((training.epochs, seed, last))
        return retrain(models, task, training, seed=seed, last=last, together=together)

    monkeypatch.setattr(retraining, "retrain", watch)
    monkeypatch.setattr(drawing, "make_task", lambda *given, **how: tasks.append(make(*given, **how)) or tasks[-1])
    monkeypatch.setattr(drawing, "choose", lambda *given, **how: scored.append(choose(*given, **how)) or scored[-1])
    how = {
        "layers": ["1"],
        "candidates": 4,
        "around": 2,
        "repeats": 1,
        "epochs": 4,
        "short": 0.25,
        "last": 3,
        "seed": 4,
    }
    ask(tmp_path, **how)
    assert set(trained) == {(1.0, 5000, 1), (4, 5001, 3)}
    train, held = nets.data(120).split(0.2, seed=4)
    assert all((one.train.digest, one.judged.digest) == (train.digest, held.digest) for one in tasks)
    (setting,) = drawing.parse_settings(open_traced(network(), nets.data(4).inputs), ["1"], ["50%"])
    wanted = drawing.draw(setting, 4, {"l1": scored[-1]}, around=2, seed=4)
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [one.id for one in wanted]
    assert {row["origin"] for row in rows} >= {"drawn", "near l1"}
    for row in rows:
        sums = sum(float(scored[-1][site][gone].sum()) for site, gone in row["removed"].items())
        assert row["scores"]["l1"] == pytest.approx(sums)
