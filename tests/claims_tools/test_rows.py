"""Rows: what a claim writes, what is read back, when it is stale, and the tables made of rows."""

import importlib.util
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from claims import __main__ as runner
from claims._lab import claim as claims
from claims._lab import ran, rows, settings
from claims._lab.rows import Difference, Row
from secateur.vocabulary import Figure

ROOT = Path(__file__).resolve().parents[2]
ROW = Row(
    recipe="toy",
    claim="headline",
    question="Is it better | by far?",
    setup="a toy",
    measure="loss",
    better="lower",
    margin=0.0,
    arms={"ours": {"loss": Figure(1.0, 0.9, 1.1, "nats", 3)}, "theirs": {"loss": Figure(2.0, 1.9, 2.1, "nats", 3)}},
    difference=Difference("ours", "theirs", Figure(-1.0, -1.2, -0.8, "nats", 3)),
    seeds=(0, 1, 2),
    commit="abc",
    digest=None,
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A claim of a system of its own, its cache and how often it was run."""
    module = types.ModuleType("claims.toy")
    monkeypatch.setitem(sys.modules, "claims.toy", module)
    monkeypatch.setattr(settings, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(settings, "PILOT", False)
    monkeypatch.setattr(ran, "digest", lambda system, claim: "first")
    monkeypatch.setattr(ran, "note", lambda system, claim: module.notes.append(claim) or "first")
    module.runs, module.notes, module.shift = [], [], 0.0

    def headline(seed):
        module.runs.append(seed)
        loss = 1.0 + 0.01 * seed + module.shift
        return {"ours": {"loss": loss, "steps": 5.0}, "theirs": 2.0, "worse": 3.0}

    headline.__module__ = "claims.toy"
    card = claims.claim(
        question="Is it better?", setup="a toy", measure="loss", unit="nats", better="lower", ours="ours",
        baselines=["worse", "theirs"], seeds=range(3),
    )  # fmt: skip
    module.headline = card(headline)
    return module


def test_a_claim_writes_a_row_by_its_card(toy, tmp_path):
    row = toy.headline.judged(tmp_path)
    assert row == rows.read(tmp_path / "toy-headline.json")
    assert (row.verdict, row.difference.baseline, row.seeds, row.digest) == ("holds", "theirs", (0, 1, 2), "first")
    assert row.arms["ours"]["loss"].samples == 3
    assert row.arms["ours"]["loss"].unit == row.difference.figure.unit == "nats"
    assert row.arms["ours"]["steps"].value == 5
    assert list(claims.claims_of("toy")) == [toy.headline]


def test_a_seed_is_run_once_for_the_same_code(toy, tmp_path, monkeypatch):
    first = toy.headline.judged(tmp_path)
    assert toy.headline.judged(tmp_path) == first
    assert toy.runs == [0, 1, 2]
    assert not rows.read(tmp_path / "toy-headline.json").stale
    monkeypatch.setattr(ran, "digest", lambda system, claim: "second")
    assert rows.read(tmp_path / "toy-headline.json").stale
    toy.shift = 0.1
    toy.headline.judged(tmp_path)
    assert toy.runs == [0, 1, 2, 0, 1, 2]


def test_a_row_whose_first_seed_gives_the_same_is_of_this_code_too(toy, tmp_path, monkeypatch):
    first = toy.headline.judged(tmp_path)
    monkeypatch.setattr(ran, "digest", lambda system, claim: "second")
    again = toy.headline.judged(tmp_path)
    assert toy.runs == [0, 1, 2, 0], "one seed was enough"
    assert again == replace(first, digest="second", confirmed=again.confirmed)
    assert not rows.read(tmp_path / "toy-headline.json").stale
    toy.shift = 1e-12
    monkeypatch.setattr(ran, "digest", lambda system, claim: "third")
    assert toy.headline.judged(tmp_path).confirmed == ""
    assert toy.runs == [0, 1, 2, 0, 0, 1, 2], "another figure: all seeds"
    toy.headline = replace(toy.headline, margin=0.5)
    monkeypatch.setattr(ran, "digest", lambda system, claim: "fourth")
    toy.headline.judged(tmp_path)
    assert toy.runs[7:] == [0, 1, 2], "another question: all seeds"


def test_only_rows_of_older_code_are_run_again(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings, "ROWS", tmp_path)
    monkeypatch.setattr(runner, "systems", lambda: ["toy"])
    monkeypatch.setattr(claims.Claim, "judged", lambda self, folder=None: toy.runs.append(self.name) or ROW)
    rows.write(replace(ROW, digest="first"), tmp_path)
    assert runner.main(["toy", "--stale"]) == 0
    assert toy.runs == toy.notes == []
    assert runner.main(["toy"]) == 0
    rows.write(ROW, tmp_path)
    assert runner.main(["--stale"]) == 0
    assert toy.runs == ["headline", "headline"]
    assert toy.notes == ["headline", "headline"], "what its pilot runs is noted anew before its claims are run"
    assert "ours - theirs: -1 [-1.2, -0.8] nats: holds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        runner.main(["nothing"])


def test_a_pilot_runs_one_seed_and_leaves_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "PILOT", True)
    assert toy.headline.judged(tmp_path).verdict == "undecided"
    assert toy.runs == [0]
    assert not list(tmp_path.rglob("*.json"))


def test_a_row_whose_verdict_is_not_that_of_its_figures_is_refused(tmp_path):
    file = rows.write(ROW, tmp_path)
    assert rows.read(file) == ROW
    record = json.loads(file.read_text())
    record["verdict"] = "undecided"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="says 'undecided'; by its interval it is 'holds'"):
        rows.read(file)


def test_a_withdrawn_row_has_no_verdict_and_a_row_without_a_digest_is_stale(tmp_path):
    row = rows.read(rows.write(replace(ROW, withdrawn="it compared itself"), tmp_path))
    assert row.verdict == "withdrawn"
    assert row.stale


def test_the_tables_are_narrow_and_the_headline_comes_first(tmp_path):
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    rows.write(replace(ROW, claim="ablation", question="Why?"), tmp_path)
    rows.write(ROW, tmp_path)
    found = rows.read_all(tmp_path)
    assert [row.claim for row in found] == ["headline", "ablation"]
    lines = tables.headlines(found).splitlines()
    assert lines[2:] == ["| toy | Is it better \\| by far? | holds, stale | [page](docs/guide/toy.md) |"]
    page = tables.evidence(found)
    assert "Of 2 claims: 2 holds, 0 refuted, 0 undecided, 0 withdrawn; 2 are stale." in page
    assert "loss: ours 1 [0.9, 1.1] nats, theirs 2 [1.9, 2.1] nats; difference -1 [-1.2, -0.8] nats" in page
    assert "- a toy: headline (3 seeds, abc); ablation (3 seeds, abc)" in page


def test_every_row_is_of_a_claim_and_says_what_its_interval_says():
    """Reading checks the verdicts; the headline is the first claim of each file, of three at most."""
    for row in rows.read_all(ROOT / "docs" / "evidence"):
        text = (ROOT / "claims" / f"{row.recipe}.py").read_text("utf-8")
        names = [part.partition("def ")[2].partition("(")[0] for part in text.split("\n@claim(")[1:]]
        assert row.claim in names, f"no claim {row.claim!r} in claims/{row.recipe}.py"
        assert names[0] == "headline"
        assert len(names) <= 3, f"claims/{row.recipe}.py has more than three claims"
    # A system that has just been added has claims, and no row until they are run.
    assert {row.recipe for row in rows.read_all(ROOT / "docs" / "evidence")} <= set(claims.systems())
