"""The base of a result as its map tells it, and maps that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from secateur.errors import ModelError
from secateur.subjects.transformer import bases
from secateur.subjects.transformer.layout import Layout
from secateur.subjects.transformer.loading import open_subject
from secateur.subjects.transformer.origin import Origin
from secateur.vocabulary import Selection


def read(folder: Path) -> Layout:
    origin = Origin.read(folder)
    assert origin is not None
    return bases.outline(origin, folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first and third layer of a llama of four, beside their base."""
    place = tmp_path_factory.mktemp("bases")
    base = tiny.folder("llama", place / "base")
    open_subject(base).cut(Selection({"layers": np.isin(range(4), [0, 2])}))[0].save(place / "small")
    return place / "small"


def test_the_base_is_outlined_without_its_weights(small: Path) -> None:
    layout, dense = read(small), open_subject(small.parent / "base")
    assert layout.widths == dense.layout.widths
    shapes = {name: one.shape for name, one in dense.model.named_parameters()}
    assert {name: one.shape for name, one in layout.model.named_parameters()} == shapes
    assert all(one.is_meta for one in layout.model.parameters())


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "ragged": ({"parts": {"0": {"heads": ["0-3", "1"]}}}, "unequal numbers"),
    "rows": ({"parts": {"0": {"heads": ["0-3", "0-3"]}}}, "layer 0 has lists of units where one was to be"),
    "experts": ({"parts": {"0": {"experts": "0-3"}}}, "it names units that its base has not"),
    "groups": ({"parts": {"0": {"kv": "0"}}}, "the heads and kv of layer 0 do not fit"),
    "order": ({"layers": [2, 0]}, "are no ascending numbers"),
    "below": ({"layers": [-1, 0, 2], "parts": {"-1": {"heads": "", "kv": "", "neurons": ""}}}, "no ascending numbers"),
    "size": ({"base": {"config": {"hidden_size": "big"}}}, ""),
    "depth": ({"base": {"config": {"num_hidden_layers": 10**6}}}, "its base has 1000000 layers"),
    "ratio": ({"norm_ratio": 1e300}, r"norm_ratio is 1e\+300"),
    "name": ({"base": {"name": "a\0b"}}, "no folder and no Hub id"),
}
"""What was changed in a map -> what is said of it."""


def merge(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with `changes`, table by table."""
    inner = {key: merge(table.get(key, {}), value) for key, value in changes.items() if isinstance(value, dict)}
    return table | changes | inner


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_map_is_refused(case: str, small: Path, tmp_path: Path) -> None:
    changes, message = DAMAGE[case]
    table = json.loads((small / "cut_map.json").read_text())
    (tmp_path / "cut_map.json").write_text(json.dumps(merge(table, changes)))
    with pytest.raises(ModelError, match=rf"cut_map.json is damaged.*{message}") as told:
        read(tmp_path)
    assert "\n" not in str(told.value)
