"""OWL: more for blocks with more outliers."""

from __future__ import annotations

import pytest
import torch

import secateur
import toys
from recipes.sparse.oneshot import CALIBRATED, data, run, stays, taught
from secateur.data import texts
from secateur.errors import InputError
from secateur.score import hessian
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks


def test_owl_gives_more_to_blocks_with_more_outliers(tmp_path):
    result = run("owl", tmp_path, "weights=30%", times=2.0, spread=0.1)
    masks, shares = stays(result), []
    for path in result.subject.layers():
        inside = [mask for name, mask in masks.items() if name.startswith(f"{path}.")]
        shares.append(sum(int(m.sum()) for m in inside) / sum(m.numel() for m in inside))
    assert max(shares) - min(shares) == pytest.approx(0.2, abs=0.02)
    assert result.cut.after["weights"] / result.cut.before["weights"] == pytest.approx(0.3, abs=0.02)
    told = [float(part.split()[0]) for part in result.notes[0].removeprefix("outliers by block: ").split(", ")]
    assert sorted(range(len(told)), key=told.__getitem__) == sorted(range(len(told)), key=shares.__getitem__)


@pytest.mark.parametrize("times", [1.5, 3.0])
def test_outliers_are_those_of_the_paper_in_the_model_as_it_is(tmp_path, times):
    """D = 100 #{A > times mean(A)} / n over all matrices of a block together, A = |W| ||X||."""
    one = taught()
    windows, _ = texts.windows(data(), one.tokenizer, CALIBRATED["samples"], CALIBRATED["length"], seed=0)
    found = matrices(one.model, one.layers())
    squares = hessian.diagonal(lambda b: one.model(**b), one.model, windows, [m.module for m in found.values()])
    wanted = []
    for path in one.layers():
        inside = [m for name, m in found.items() if name.startswith(f"{path}.")]
        scores = torch.cat([(m.weight.abs() * squares[m.module].sqrt()).flatten() for m in inside])
        wanted.append(100 * float((scores > times * scores.mean()).float().mean()))
    told = run("owl", tmp_path, "weights=30%", times=times).notes[0].removeprefix("outliers by block: ")
    assert [float(part.split()[0]) for part in told.split(", ")] == pytest.approx(wanted, abs=0.02)


def test_owl_chooses_n_for_each_block(tmp_path):
    result = run("owl", tmp_path, "pattern=4:8", times=2.0)
    kept = []
    for path in result.subject.layers():
        masks = [mask for name, mask in stays(result).items() if name.startswith(f"{path}.")]
        counts = {int(n) for mask in masks for n in mask.reshape(mask.shape[0], -1, 8).sum(-1).unique()}
        assert len(counts) == 1
        kept += counts
    assert len(set(kept)) > 1
    assert sum(kept) <= 4 * len(kept)


def test_a_patterns_n_differs_by_as_many_weights_as_spread_says_of_m(tmp_path):
    """By the paper's 2 of 8, unless another share of m is given."""
    for options, reach in (({}, 2), ({"spread": 0.5}, 4)):
        told = run("owl", tmp_path, "pattern=4:8", times=2.0, **options).notes[0]
        counts = [int(n) for n in told.rpartition("of 8: ")[2].split(", ")]
        assert abs(max(counts) - min(counts) - reach) <= 1, counts


@pytest.mark.parametrize("budget", ["pattern=4:8", "pattern=2:4", "pattern=3:7"])
@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
def test_a_run_holds_each_block_to_the_n_that_it_got(budget, stream, tmp_path):
    """One n for all is not what was promised: a run that asks for it has missed wherever blocks differ."""
    model = taught()
    if stream:
        taught().save(tmp_path / "model")
        model = str(tmp_path / "model")
    (row,) = secateur.run(
        "owl", model, data(), budget, tmp_path / "out", stream=stream, times=2.0, samples=24, length=16,
        spread=0.6, batch=2,
    )  # fmt: skip
    assert row.verdict == "met", row.cut.notes
    (told,) = [note for note in row.cut.notes if note.startswith("outliers by block: ")]
    counts = told.rpartition(f"weights that stay of {budget.rpartition(':')[2]}: ")[2].split(", ")
    assert len(counts) == 4
    assert len(set(counts)) > 1


def test_magnitude_takes_the_shares_and_runs_no_block(tmp_path, monkeypatch):
    """It looks at no input: blocks ran twice each, for nothing."""

    def run_block(*_):
        raise AssertionError("a block ran")

    monkeypatch.setattr(blocks.Block, "run", run_block)
    result = run("owl", tmp_path, "weights=30%", method="magnitude", times=2.0, spread=0.1)
    masks, kept = stays(result), set()
    for name, matrix in matrices(taught().model, taught().layers()).items():
        count = int(masks[name].sum())
        kept.add(round(count / masks[name].numel(), 2))
        assert float(matrix.weight.abs()[masks[name]].min()) >= float(matrix.weight.abs()[~masks[name]].max())
    assert len(kept) > 1
    assert result.cut.after["weights"] / result.cut.before["weights"] == pytest.approx(0.3, abs=0.001)


@pytest.mark.parametrize("wrong", [{"spread": -1.0}, {"times": 0.0}, {"damp": -1.0}, {"samples": 0}, {"length": 0}])
def test_options_that_make_no_sense_are_refused_by_name_before_a_block_is_run(wrong, tmp_path):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"option {name}={value} of owl"):
        run("owl", tmp_path, **wrong)


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("llama", "weights=40%", samples=24, length=16, times=2.0)
