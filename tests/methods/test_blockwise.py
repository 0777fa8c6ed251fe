"""Pruning block by block: which groups of weights are compared, one threshold for all, starved experts."""

from __future__ import annotations

import pytest
import torch

import tiny
from recipes.sparse.oneshot import CALIBRATED, RECIPES, data, run, taught
from secateur.data import texts
from secateur.errors import InfeasibleError
from secateur.methods import blockwise
from secateur.subjects import open_subject
from secateur.subjects.matrices import matrices
from secateur.subjects.transformer import blocks
from secateur.vocabulary import Budget


@pytest.mark.parametrize(
    ("scope", "size"),
    [("row", 64), ("block", 16 * 24), ("columns", 16 * 16), ("matrix", 16 * 64), ("layer", 34816), ("global", 139264)],
)
def test_a_share_that_leaves_nothing_of_the_smallest_group_is_refused_and_more_is_not(scope, size):
    """Keys are [16, 64]; of blocks of 24 columns the last has 16."""
    width = {"columns": lambda columns: 24, "block": lambda columns: 24}.get(scope, lambda columns: 128)
    assert blockwise.smallest_group(taught(), scope, width) == size
    least = Budget.parse(f"weights={100 / size + 1e-5:.6f}%")
    assert blockwise.follow_budget(taught(), least, "it", scope, width)[1] is None
    with pytest.raises(InfeasibleError, match=f"leaves nothing of .*{size} weights: keep at least") as refused:
        blockwise.follow_budget(taught(), Budget.parse(f"weights={99 / size:.6f}%"), "it", scope, width)
    assert refused.value.reachable == 1 / size


def test_patterns_are_of_single_rows_whatever_is_compared():
    share, pattern = blockwise.follow_budget(taught(), Budget.parse("pattern=2:4"), "it", "global")
    assert share == 0.5
    assert (pattern.n, pattern.m) == (2, 4)


def test_one_threshold_keeps_exactly_the_best_of_all_blocks(tmp_path):
    student = taught().copy()
    blockwise.prune_globally(student, tmp_path, lambda matrix: matrix.weight.abs(), 0.3)
    before = torch.cat([m.weight.flatten() for m in matrices(taught().model, taught().layers()).values()])
    after = torch.cat([m.weight.flatten() for m in matrices(student.model, student.layers()).values()])
    assert int(torch.count_nonzero(after)) == int(0.3 * before.numel())
    assert after[after != 0].abs().min() >= before[after == 0].abs().max()


def test_outliers_are_counted_block_by_block_and_nothing_changes(tmp_path):
    windows, _ = texts.windows(data(), taught().tokenizer, CALIBRATED["samples"], CALIBRATED["length"])
    before = {name: tensor.clone() for name, tensor in taught().model.state_dict().items()}
    shares, sizes = blockwise.measure_outliers(taught(), windows, tmp_path, times=2.0, floor=1)
    assert sum(sizes) == blocks.count(taught())
    assert len(set(shares)) == len(taught().layers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught().model.state_dict().items())


def test_outliers_of_experts_stand_beside_those_of_matrices_that_read_more_tokens(tmp_path):
    """The norms are over tokens: an expert that got a tenth of them has sqrt(1/10) of the scores."""
    mixture = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())
    windows, _ = blockwise.read_windows(mixture, data(), 8, 16, seed=0)
    squares = {}
    for block in blocks.visit(mixture, windows, tmp_path / "reference", store=False):
        squares |= {name: one.value(name) * one.rows for name, one in blockwise.read_inputs(block, 1).items()}
    shares, _ = blockwise.measure_outliers(mixture, windows, tmp_path / "outliers", times=2.0, floor=1)
    for path, share in zip(mixture.layers(), shares, strict=True):
        found = matrices(mixture.model, [path]).items()
        scores = torch.cat([(m.weight.abs() * squares[name].sqrt()).flatten() for name, m in found])
        assert share == pytest.approx(100 * float((scores > 2 * scores.mean()).float().mean()), rel=1e-3)
    assert len({round(float(one.sum()), 3) for name, one in squares.items() if "gate_up_proj" in name}) > 8


def test_an_encoder_reads_calibration_texts_one_by_one(tmp_path):
    subject = open_subject(tiny.model("masked"), tokenizer=tiny.tokenizer())
    windows, _ = blockwise.read_windows(subject, data(), 40, 12, seed=0)
    first, last = subject.tokenizer("the", return_tensors="pt")["input_ids"][0, [0, -1]].tolist()
    assert len(windows) == 40
    assert all(one["input_ids"][0, 0] == first and one["input_ids"][0, -1] == last for one in windows)
    (running, *_), _ = blockwise.read_windows(taught(), data(), 40, 12, seed=0)
    assert running["input_ids"].shape == (2, 12)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "magnitude"])
def test_starved_experts_of_blocks_done_before_a_kill_are_counted(tmp_path, monkeypatch, name):
    mixture = open_subject(tiny.model("mixtral"), tokenizer=tiny.tokenizer())

    def notes_of(place):
        found = run(name, tmp_path / place, "weights=60%", mixture, floor=10**6).cut.notes
        return [note for note in found if "under 1000000 tokens" in note]

    whole = notes_of("whole")
    assert whole[0].startswith("48 matrices of experts")  # two of each of 8 experts in 3 layers
    real, read = blockwise.read_inputs, []

    def stop_at_the_last(block, *given, **how):
        read.append(block.index)
        if read.count(2) == (2 if name == "owl" else 1):  # owl looks for outliers first
            raise KeyboardInterrupt
        return real(block, *given, **how)

    monkeypatch.setattr(blockwise, "read_inputs", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        notes_of("killed")
    read.clear()
    monkeypatch.setattr(
        blockwise, "read_inputs", lambda block, *a, **h: read.append(block.index) or real(block, *a, **h)
    )
    assert notes_of("killed") == whole
    assert set(read) == {2}
