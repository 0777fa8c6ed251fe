"""Tickets start from the first draw, rivals from another, both in one shape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from recipes.vision import nets
from secateur.errors import DataError, InfeasibleError, InputError, RunError
from secateur.recover.sparsity import masks
from secateur.recover.training import loop
from secateur.studies import executor, lottery

QUICK = {"epochs": 1, "batch": 24, "seeds": (0, 1)}


@pytest.fixture(scope="module")
def network():
    return nets.opened(nets.vgg())


def started(monkeypatch):
    """Every training: weights before it and masks."""
    seen = []
    fit = lottery.fit

    def spy(model, data, training, **how):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        seen.append((weights, how.get("closed") or {}, training.lr))
        return fit(model, data, training, **how)

    monkeypatch.setattr(lottery, "fit", spy)
    return seen


def test_ticket_and_rival_at_both_rates(network, monkeypatch):
    seen = started(monkeypatch)
    large, small = lottery.tickets(network, nets.data(), nets.data(seed=1), kept=0.3, **QUICK)
    assert (large.lr, small.lr) == (0.1, 0.01)
    assert len(large.ticket) == len(large.drawn) == len(large.dense) == 2
    assert large.difference.samples == 2
    first, ticket, rival = seen[:3]
    assert [one[2] for one in seen] == [0.1] * 6 + [0.01] * 6
    closed = ticket[1]
    assert 0.29 < masks.share(closed) <= 0.3
    assert all(torch.equal(closed[name], rival[1][name]) for name in closed)
    for name, mask in closed.items():
        assert torch.equal(ticket[0][name][mask], first[0][name][mask])
        assert not torch.isin(rival[0][name][mask], first[0][name]).any()


def test_iterative_pruning_goes_in_equal_steps_of_what_is_left(network, monkeypatch):
    seen = started(monkeypatch)
    lottery.tickets(network, nets.data(), nets.data(), kept=0.25, rounds=2, lrs=(0.05,), **{**QUICK, "seeds": (0,)})
    shares = [masks.share(closed) if closed else 1.0 for _, closed, _ in seen]
    assert shares == [1.0, pytest.approx(0.5, abs=0.01), pytest.approx(0.25, abs=0.01), pytest.approx(0.25, abs=0.01)]
    inner, outer = seen[1][1], seen[2][1]
    assert all(bool((inner[name] | ~outer[name]).all()) for name in outer)


def test_filters_make_smaller_tickets(network, monkeypatch):
    seen = started(monkeypatch)
    lottery.tickets(network, nets.data(), nets.data(), kept=0.5, method="l1", lrs=(0.05,), **{**QUICK, "seeds": (0,)})
    first, ticket, rival = (one[0] for one in seen)
    assert ticket["0.weight"].shape == rival["0.weight"].shape == (4, 1, 3, 3)
    assert torch.isin(ticket["0.weight"], first["0.weight"]).all()
    assert not torch.isin(rival["0.weight"], first["0.weight"]).any()


def test_adam_trains_tickets_otherwise(network):
    how = {"kept": 0.3, "lrs": (0.003,), **QUICK, "seeds": (0,)}
    (adam,), (sgd,) = (lottery.tickets(network, nets.data(), nets.data(), optimizer=o, **how) for o in ("adamw", "sgd"))
    assert (adam.dense, adam.ticket) != (sgd.dense, sgd.ticket)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "soft"},
        {"optimizer": "adagrad"},
        {"rounds": 0},
        {"rounds": 2, "method": "l1"},
        {"kept": 1.0},
        {"seeds": (0, -1)},
        {"seeds": ()},
        {"lrs": ()},
        {"lrs": (0.1, 0.0)},
        {"epochs": 0},
    ],
)
def test_what_does_not_fit_is_refused(network, options):
    with pytest.raises(InputError):
        lottery.tickets(network, nets.data(), nets.data(), **options)


def test_the_networks_own_weights_do_not_matter():
    other = nets.opened(nets.vgg(seed=7))
    assert isinstance(other.model[0], nn.Conv2d)
    results = [
        lottery.tickets(one, nets.data(), nets.data(), lrs=(0.05,), **{**QUICK, "seeds": (0,)})
        for one in (other, nets.opened(nets.vgg(seed=8)))
    ]
    assert results[0] == results[1]


def answered(root, **more):
    how = {"epochs": 1, "batch": 24, "seeds": (0, 1), "kept": 0.3, "lrs": (0.1,), **more}
    return executor.study("lottery", nets.opened(nets.vgg()), nets.data(), root, **how)


def test_examples_apart_with_other_classes_are_refused(tmp_path):
    ours, theirs = (replace(nets.data(48), classes=names) for names in (("a", "b", "c", "d"), ("a", "b", "c", "e")))
    with pytest.raises(DataError, match="numbers the classes a, b, c, "):
        executor.study("lottery", nets.opened(nets.vgg()), ours, tmp_path, judged=theirs, epochs=1)


@pytest.mark.usefixtures("charted")
def test_the_study_by_its_name_resumes_and_grows(tmp_path, monkeypatch):
    sheet = answered(tmp_path, judged=nets.data(seed=1))
    (table,) = sheet.tables
    assert table.rows[0][:4] == ["Learning rate", "Large network, %", "Ticket, %", "New draw, %"]
    assert sheet.headline.startswith("Ticket minus new draw, 30% of the convolution weights left: lr 0.1: ")
    (row,) = json.loads((tmp_path / "study.json").read_text())["figures"]["rates"]
    (known,) = lottery.tickets(
        nets.opened(nets.vgg()), nets.data(), nets.data(seed=1), kept=0.3, lrs=(0.1,), **QUICK
    )  # fmt: skip
    found = (row["large network"], row["ticket"], row["new draw"])
    assert found == (list(known.dense), list(known.ticket), list(known.drawn))
    assert row["verdict"] == known.verdict == table.rows[1][-1]
    page = (tmp_path / "study.html").read_text()
    assert "new draw" in page
    assert "<svg" in page
    with monkeypatch.context() as broken:
        broken.setattr(loop, "train", lambda *given, **how: 1 / 0)
        assert answered(tmp_path, judged=nets.data(seed=1)).tables == sheet.tables
        with pytest.raises(ZeroDivisionError):
            answered(tmp_path, judged=nets.data(seed=1), lrs=(0.1, 0.01))
    with pytest.raises(RunError, match="epochs=1"):
        answered(tmp_path, judged=nets.data(seed=1), epochs=2)


@pytest.mark.wide
def test_a_dry_run_counts_and_refuses_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *given, **how: pytest.fail("trained in a dry run"))
    sheet = answered(tmp_path / "d", lrs=(0.1, 0.01), rounds=3, dry_run=True)
    assert sheet.headline == "dry run: 12 trainings of the large network, 4 tickets, 4 new draws"
    for given, error, words in (
        ({"rounds": 2, "method": "l1"}, InputError, "rounds=2"),
        ({"method": "soft"}, InputError, "method='soft'"),
        ({"lr": 0.1}, InputError, "study lottery sets lr itself"),
        ({"method": "l1", "kept": 0.001}, InfeasibleError, "channels can go down to"),
    ):
        with pytest.raises(error, match=words):
            answered(tmp_path / "d", **given)
    assert not (tmp_path / "d").exists()


def test_a_verdict_is_of_the_ticket_against_a_new_draw():
    better, worse = (0.9, 0.91, 0.92), (0.7, 0.71, 0.725)
    assert lottery.Tickets(0.1, better, better, worse).verdict == "the ticket is better"
    assert lottery.Tickets(0.1, better, worse, better).verdict == "the new draw is better"
    assert lottery.Tickets(0.1, better, better, (0.92, 0.91, 0.9)).verdict == "a tie: the interval holds 0"
    assert lottery.Tickets(0.1, (0.9,), (0.9,), (0.7,)).verdict.startswith("no verdict: one training")
