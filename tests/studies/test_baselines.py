"""The baselines under budgets of parameters, on models of a few thousand parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.errors import InfeasibleError, InputError
from secateur.runs import executor
from secateur.studies import baselines
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Evidence, Result

QUICK = {"recovery": {"steps": 0, "train_batch": 8, "train_length": 16}, "batch": 2, "length": 8}
TRAINED = {"steps": 3, "train_batch": 8, "train_length": 16}
DATA = texts.read(tiny.sentences(200))


def subject(kind: str) -> Transformer:
    return open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())


def results(baseline, root, *budgets, kind="bert", **options) -> list[Result]:
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return list(baseline(subject(kind), DATA, wanted, run, **{**QUICK, **options}))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_second_layer_stays_and_is_copied(tmp_path, kind):
    (found,) = results(baselines.every_second_layer, tmp_path, "params=50%", kind=kind)
    assert list(found.subject.layer_index) == [0, 2]
    left, whole = found.subject.model.state_dict(), subject(kind).model.state_dict()
    for ours, theirs in zip(found.subject.layers(), (subject(kind).layers()[i] for i in (0, 2)), strict=True):
        for name in [name for name in left if name.startswith(f"{ours}.")]:
            assert torch.equal(left[name], whole[theirs + name.removeprefix(ours)]), name
    assert found.recovery is None
    assert found.predicted["params"] == sum(p.numel() for p in found.subject.model.parameters())


@pytest.mark.parametrize(("kind", "axis"), [("bert", "heads"), ("llama", "kv_groups")])
def test_magnitude_meets_the_budget_with_the_same_share_everywhere(tmp_path, kind, axis):
    (found,) = results(baselines.magnitude, tmp_path, "params=80%", kind=kind)
    whole = subject(kind).units().cost()["params"]
    count = sum(p.numel() for p in found.subject.model.parameters())
    assert 0.7 * whole < count == found.predicted["params"] <= 0.8 * whole
    for wanted in (axis, "neurons"):
        sizes = [site.count for site in found.subject.units(axis, "neurons").free() if site.kind == wanted]
        assert max(sizes) - min(sizes) <= 8


def test_magnitude_keeps_the_largest_norms(tmp_path):
    (found,) = results(baselines.magnitude, tmp_path, "params=85%")
    before, after = subject("bert").model.encoder.layer, found.subject.model.encoder.layer
    for whole, left in zip(before, after, strict=True):
        norms = whole.output.dense.weight.norm(dim=0)
        kept = left.output.dense.weight.norm(dim=0)
        assert torch.allclose(kept.sort().values, norms.sort().values[-len(kept) :])


def test_two_budgets_each_start_from_the_original_and_a_run_resumes(tmp_path):
    first = results(baselines.magnitude, tmp_path, "params=85%", "params=70%")
    assert [found.name for found in first] == ["params=85%", "params=70%"]
    (alone,) = results(baselines.magnitude, tmp_path / "alone", "params=70%")
    assert first[1].cut.removed == alone.cut.removed
    again = results(baselines.magnitude, tmp_path, "params=85%", "params=70%")
    assert [found.cut.removed for found in again] == [found.cut.removed for found in first]
    with pytest.raises(InfeasibleError):
        results(baselines.magnitude, tmp_path / "small", "params=1%")


@pytest.mark.parametrize("baseline", [baselines.every_second_layer, baselines.magnitude])
def test_recovery_trains_the_student_and_leaves_the_original(tmp_path, baseline):
    whole = subject("bert")
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    with Run.open(tmp_path / "a", {}) as run:
        (found,) = baseline(whole, DATA, [Budget.parse("params=80%")], run, **{**QUICK, "recovery": TRAINED})
    assert found.recovery is not None
    assert found.recovery.steps == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.model.state_dict().items())
    (bare,) = results(baseline, tmp_path / "b", "params=80%")
    left = found.subject.model.state_dict()
    assert any(not torch.equal(left[name], tensor) for name, tensor in bare.subject.model.state_dict().items())
    assert all(bool(np.isfinite(loss)) for _, loss in found.recovery.losses)


@pytest.mark.wide
def test_baselines_are_added_to_the_evidence_of_a_run(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(tiny.sentences(200)))
    tiny.folder("bert", tmp_path / "bert", sentence=True)
    place = (tmp_path / "bert", tmp_path / "texts.txt")
    executor.run("ziplm", place[0], place[1], "params=80%", tmp_path / "out", steps=2, trials=0, calibration=16,
                train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    (row,) = baselines.add(tmp_path / "out", *place)
    assert set(row.baselines) == {"every second layer", "magnitude"}
    assert row.baselines["magnitude"]["params"].value <= 0.8 * row.before["params"].value
    assert executor.evidence.read(tmp_path / "out")[0].baselines.keys() == row.baselines.keys()
    assert "every second layer" in (tmp_path / "out" / "report.html").read_text()
    notes = [note for note in row.cut.notes if "every second layer ignores the budget: Parameters" in note]
    assert len(notes) == 1
    again = executor.run("ziplm", place[0], place[1], "params=80%", tmp_path / "out", steps=2, trials=0, calibration=16,
                        train_batch=8, train_length=16, batch=2, length=8)  # fmt: skip
    assert again[0].baselines == row.baselines
    assert [again_row.cut.notes for again_row in baselines.add(tmp_path / "out", *place)] == [row.cut.notes]


def test_magnitude_is_cut_by_the_seconds_that_the_run_has_timed(tmp_path, monkeypatch):
    place = (tiny.folder("bert", tmp_path / "bert", sentence=True), tiny.sentences(200))
    how = {"steps": 0, "trials": 0, "calibration": 16, "batch": 2, "length": 8, "train_batch": 8, "train_length": 16}
    how |= {"timings": 2, "corrections": 0}
    executor.run("ziplm", *place, "latency=10s", tmp_path / "out", **how)
    table = (tmp_path / "out" / "work" / "latency.json").read_text()

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("blocks were timed a second time")

    monkeypatch.setattr(baselines.timing, "time_blocks", refuse)
    baselines.add(tmp_path / "out", *place)
    (theirs,) = (tmp_path / "out" / "baselines").rglob("latency.json")
    assert theirs.read_text() == table
    assert yaml.safe_load((theirs.parents[1] / "run.yaml").read_text())["timings"] == 2


def test_baselines_are_measured_on_what_the_run_was(tmp_path, monkeypatch):
    known = dict.fromkeys(("seed", "batch", "length", "threads", "device"))
    row = Evidence("ziplm", "params=80%", settings={**known, "held_out_sha256": "a", "held_out": "test.txt"})
    executor.evidence.write(tmp_path, row)
    given = []

    def run(*names, held_out, on_data, **how):
        given.append(held_out)
        on_data({"held_out_sha256": "a" if held_out == "test.txt" else "b"})
        raise AssertionError("an arm was made")

    monkeypatch.setattr(executor, "run", run)
    for held_out in (None, "other.txt"):
        with pytest.raises(InputError, match=r"params=80% was measured on test.txt: give that as held_out"):
            baselines.add(tmp_path, "model", ["a text"], held_out)
    assert given == ["other.txt"]


def test_two_budgets_train_in_folders_of_their_own(tmp_path):
    found = results(baselines.magnitude, tmp_path, "params=85%", "params=70%", recovery=TRAINED)
    assert [row.recovery.steps for row in found] == [3, 3]
