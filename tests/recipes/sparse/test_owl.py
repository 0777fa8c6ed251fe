"""OWL: more for blocks with more outliers."""

from __future__ import annotations

import pytest

from recipes.sparse.oneshot import run, stays


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
