from __future__ import annotations

import torch

from secateur.subjects.network.labels import along, compact, first, on, padded, varying


def test_compact_keeps_only_what_changes() -> None:
    row = torch.tensor([1, 2, 3])
    full = row.view(1, 3, 1).expand(2, 3, 4)
    assert compact(full).shape == (1, 3, 1)
    assert compact(full.contiguous()).shape == (1, 3, 1)
    both = torch.arange(6).view(2, 3)
    assert compact(both) is both
    ends_alike = torch.tensor([1, 2, 1])
    assert compact(ends_alike).shape == (3,)


def test_rows_and_dimensions() -> None:
    label = on(torch.tensor([4, 5]), 1, 3)
    assert label.shape == (1, 2, 1)
    assert varying(label) == {1}
    assert along(label, 1).tolist() == [4, 5]
    assert first(label, [1]).flatten().tolist() == [4]
    assert padded(torch.tensor([4, 5]), 3).shape == (1, 1, 2)
