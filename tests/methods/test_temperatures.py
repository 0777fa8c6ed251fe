"""Turning a hyper-parameter by regimes alone."""

from __future__ import annotations

import pytest

from secateur.errors import InputError
from secateur.methods.temperatures import AXES, advise, find_checkpoints, pick, walk
from secateur.subjects.transformer.files import write_index


@pytest.mark.parametrize(
    ("axis", "value", "warmer", "cooler"),
    [
        ("epochs", 40, 20, 80),
        ("batch", 64, 32, 128),
        ("rho", 0.1, 0.2, 0.05),
        ("lr", 1, 2, 0.5),
        ("weight_decay", 2, 4, 1),
    ],
)
def test_every_axis_has_both_moves(axis, value, warmer, cooler):
    one = AXES[axis]
    assert (one.warmer(value), one.cooler(value)) == (warmer, cooler)
    known = [warmer, value, cooler]
    assert one.sort([*known, value]) == known, "the warmest first"
    assert (one.warmer(value, known), one.warmer(warmer, known)) == (warmer, None)
    assert (one.cooler(value, known), one.cooler(cooler, known)) == (cooler, None)


@pytest.mark.parametrize(
    ("regimes", "start", "chosen", "path"),
    [
        (["II-A", "II-B", "I"], 2, 1, (2, 1)),
        (["II-A", "I", "I"], 2, 0, (2, 1, 0)),  # a further step would flip: the side of II-A
        (["II-A", "I", "I"], 0, 0, (0, 1)),
        (["I", "I"], 1, 0, (1, 0)),
        (["II-A", "II-A"], 0, 1, (0, 1)),
        (["I", "II-B"], 1, 1, (1,)),
    ],
)
def test_a_walk_looks_at_no_more_than_it_needs(regimes, start, chosen, path):
    seen = []

    def look(place):
        seen.append(place)
        return regimes[place]

    found = walk(start, len(regimes), look)
    assert (found.chosen, found.path) == (chosen, path)
    assert tuple(seen) == path
    with pytest.raises(InputError, match="start=9"):
        walk(9, 2, look)


def test_advice_and_choice():
    assert [advise(one) for one in ("I", "II-A", "II-B")] == ["warmer", "cooler", "keep"]
    assert pick([-0.2, 0.0, 0.01, -0.04], [0.99, 0.9, 0.95, 0.93], barrier=0.05) == 2
    assert pick([-0.2, -0.1], [0.99, 0.9], barrier=0.05) == 1


def test_a_checkpoint_in_several_files_is_found_by_its_index(tmp_path):
    """None of its files is one of its own, wherever it lies; one file goes before an index, as for transformers."""
    for place in (tmp_path, tmp_path / "checkpoint-5", tmp_path / "checkpoint-9"):
        place.mkdir(exist_ok=True)
        (place / "model-00001-of-00002.safetensors").touch()
        write_index(place, {"weight": "model-00001-of-00002.safetensors"}, 4)
    (tmp_path / "checkpoint-9" / "model.safetensors").touch()
    found = {
        name: str(file.relative_to(tmp_path)) for name, (file, _) in find_checkpoints(tmp_path, AXES["lr"]).items()
    }
    assert found == {
        "checkpoint-5": "checkpoint-5/model.safetensors.index.json",
        "checkpoint-9": "checkpoint-9/model.safetensors",
        "model": "model.safetensors.index.json",
    }
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    assert list(find_checkpoints(tmp_path, AXES["lr"])) == ["checkpoint-9", "checkpoint-5"]
