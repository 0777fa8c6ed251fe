"""WebDataset shards."""

from __future__ import annotations

import pytest

from image_data import check, shards
from secateur.data import examples
from secateur.errors import DataError


@pytest.mark.parametrize("json_labels", [False, True])
def test_shards(tmp_path, json_labels):
    shards(tmp_path, json_labels)
    classes = ("a", "b") if json_labels else ()
    for source in (tmp_path, f"{tmp_path}/data-*.tar", f"{tmp_path}/data-{{000..001}}.tar"):
        check(examples.read(source), classes=classes)
    assert len(examples.read(tmp_path / "data-000.tar")) == 3
    with pytest.raises(DataError, match=r"there is no shard .*data-002\.tar"):
        examples.read(f"{tmp_path}/data-{{000..002}}.tar")
    (tmp_path / "data-000.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"data-000\.tar can't be read as \.tar"):
        examples.read(tmp_path)
