"""Magnitude, and what all one-shot recipes keep to: exact counts, patterns, refusals."""

from __future__ import annotations

import pytest
import torch

import secateur
import toys
from recipes.sparse.oneshot import RECIPES, data, run, stays, taught
from secateur.errors import BudgetError, InfeasibleError, InputError
from secateur.select.pattern import n_of_m
from secateur.subjects.matrices import matrices, nonzero
from secateur.subjects.transformer import blocks


@pytest.mark.parametrize("name", RECIPES)
def test_counts_are_exact_and_everything_else_stays(name, tmp_path):
    result = run(name, tmp_path)
    found = matrices(result.subject.model, result.subject.layers())
    whole = blocks.count(taught())
    assert nonzero(found) == result.cut.after["weights"] == result.predicted["weights"]
    assert 0.45 * whole < nonzero(found) <= 0.5 * whole
    if name == "wanda":
        assert all((mask.sum(1) == mask.shape[1] // 2).all() for mask in stays(result).values())
    inside = {m.leaf for m in found.values()}
    before = taught().model.state_dict()
    for key, tensor in result.subject.model.state_dict().items():
        if key not in inside:
            assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("name", RECIPES)
def test_patterns_hold_in_every_run_of_inputs(name, tmp_path):
    result = run(name, tmp_path, "pattern=2:4", **({"spread": 0.0} if name == "owl" else {}))
    for mask in stays(result).values():
        assert (mask.reshape(mask.shape[0], -1, 4).sum(-1) <= 2).all()
    assert result.name == "pattern=2:4"


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_a_tail_that_m_does_not_divide_stays(name, tmp_path):
    result = run(name, tmp_path, "pattern=2:5")
    for key, mask in stays(result).items():
        rest = mask.shape[1] % 5
        assert rest, key
        assert mask[:, -rest:].all()
        assert (mask[:, :-rest].reshape(mask.shape[0], -1, 5).sum(-1) == 2).all()


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_masks_are_nested(name, tmp_path):
    small, large = (stays(run(name, tmp_path, f"weights={share}%")) for share in (30, 60))
    first = taught().layers()[0] if name == "wanda" else ""  # later blocks read what the pruned first one gives
    assert all(not (small[key] & ~large[key]).any() for key in small if key.startswith(first))


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_global_scope_has_one_threshold(name, tmp_path):
    result = run(name, tmp_path, scope="global")
    whole = blocks.count(taught())
    assert result.cut.after["weights"] == whole // 2
    shares = [float(mask.float().mean()) for mask in stays(result).values()]
    assert max(shares) - min(shares) > 0.02
    if name == "magnitude":
        kept = [m.weight.abs()[m.weight != 0].min() for m in matrices(result.subject.model, taught().layers()).values()]
        original, masks = matrices(taught().model, taught().layers()), stays(result)
        gone = [m.weight.abs()[~masks[key]].max() for key, m in original.items()]
        assert max(gone) <= min(kept)


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_each_scope_compares_what_it_names(name, tmp_path):
    def counts(scope):
        """Of the first matrix: weights that stay in each row, and in all."""
        mask = next(iter(stays(run(name, tmp_path, scope=scope)).values()))
        return set(mask.sum(1).tolist()), int(mask.sum()), mask.numel()

    rows, _, _ = counts("row")
    assert len(rows) == 1
    for scope in ("block", "matrix"):
        rows, kept, whole = counts(scope)
        assert len(rows) > 1
        assert kept == whole // 2


@pytest.mark.parametrize("name", RECIPES)
def test_bad_budgets_are_refused(name, tmp_path):
    for bad in ("params=50%", "weights=100%", "pattern=4:4", "weights=50%,pattern=2:4"):
        with pytest.raises(BudgetError, match=r"budget|pattern"):
            run(name, tmp_path, bad)
    with pytest.raises((InfeasibleError, InputError), match="weights"):
        run(name, tmp_path, "weights=0.0001%")


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
def test_half_of_a_model_that_was_pruned_before_is_half_of_what_it_holds(tmp_path, stream):
    """The recipe kept half of all weights, the verdict asked for half of those that are not zero: missed."""
    (first,) = secateur.run("magnitude", taught(), data(), "weights=40%", tmp_path / "first", batch=2, length=16)
    (row,) = secateur.run(
        "magnitude", tmp_path / "first", data(), "weights=50%", tmp_path / "second", stream=stream, batch=2, length=16
    )
    assert row.verdict == "met"
    assert row.cut.before["weights"] == first.cut.after["weights"]
    assert row.cut.after["weights"] == pytest.approx(row.cut.before["weights"] / 2, rel=0.001)


def test_patterns_rank_inside_runs(tmp_path):
    result = run("magnitude", tmp_path, "pattern=1:4")
    for key, matrix in matrices(taught().model, taught().layers()).items():
        assert torch.equal(stays(result)[key], n_of_m(matrix.weight.abs(), 1, 4))


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    return toys.language("llama", "weights=50%")
