"""Files of a cut network: written whole, read back, and refused in one line where they hold something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.errors import ModelError
from secateur.subjects.network import files
from secateur.subjects.network.recording import Example
from secateur.subjects.network.shrinking import History
from secateur.subjects.network.traced import open_traced, reload_traced
from subjects import nets


@pytest.mark.usefixtures("programs")
def test_a_cut_can_be_cut_again_and_reloaded(tmp_path: Path) -> None:
    model, inputs = nets.make("residual")
    subject = open_traced(model, inputs)
    once, _ = subject.cut(nets.half(subject))
    twice, _ = once.cut(nets.half(once))
    twice.save(tmp_path, program=True)
    (tmp_path / "mine").touch()
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert set(modes) == {"model.safetensors", "cut.json", "model.pt2", "mine"}
    assert len(set(modes.values())) == 1, "others may read them as any file"
    again = reload_traced(tmp_path, model, inputs)
    assert torch.equal(again.forward(), twice.forward())
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(inputs), twice.forward())
    with pytest.raises(ModelError, match=r"another architecture|does not have|does not fit"):
        reload_traced(tmp_path, nets.make("mlp")[0], inputs)
    with pytest.raises(ModelError, match="no saved network"):
        reload_traced(tmp_path / "nothing", model, inputs)


@pytest.mark.usefixtures("programs")
def test_a_folder_holds_what_was_stored(tmp_path: Path) -> None:
    model, inputs = nets.make("mlp")
    files.write(tmp_path / "deep" / "folder", files.Stored(model, History((), 12.0, "net.py:build")))
    files.write_program(tmp_path, model, Example.of(inputs))
    assert (tmp_path / "model.pt2").is_file()
    stored = files.read(tmp_path / "deep" / "folder", nets.make("mlp")[0])
    assert (stored.history, stored.masks, stored.forms) == (History((), 12.0, "net.py:build"), {}, {})
    assert all(torch.equal(a, b) for a, b in zip(stored.model.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "said",
    [
        "[" * 100_000,
        [],
        {"plans": 3},
        {"plans": [3]},
        {"plans": [{"tensors": {"stem.weight": {"0": [-99]}}, "attributes": []}]},
        {"plans": [{"tensors": {"stem.weight": {"-9": [0]}}, "attributes": []}]},
        {"plans": [{"tensors": {}, "attributes": [["stem", "nothing", 3]]}]},
        {"plans": [{"tensors": {}, "attributes": [], "biases": [""]}]},
        {"plans": [{"tensors": {}, "attributes": [], "bits": [["stem", "x"]]}]},
        {"plans": [{"tensors": {}, "attributes": [], "scaled": [["stem.weight", 0, 3, 2.0]]}]},
        {"plans": [], "forms": 3},
        {"plans": [], "channels": "many"},
    ],
)
def test_a_file_of_a_cut_that_holds_something_else_is_one_line(tmp_path: Path, said: object) -> None:
    model, inputs = nets.make("residual")
    files.write(tmp_path, files.Stored(model))
    (tmp_path / "cut.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ModelError, match=r"damaged|no saved network") as told:
        reload_traced(tmp_path, model, inputs)
    assert "\n" not in str(told.value)
    (tmp_path / "cut.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="no saved network"):
        reload_traced(tmp_path, model, inputs)
