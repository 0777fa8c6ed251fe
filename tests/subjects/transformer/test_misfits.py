"""Configs by which a model can't be built or run are named, and no other command is advised that fails as well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from secateur.errors import SecateurError
from secateur.subjects import open_subject
from subjects.hybrids import make_hybrid


def change(folder: Path, dropped: str = "", **changes: object) -> Path:
    """The folder, its config with changes."""
    file = folder / "config.json"
    said = json.loads(file.read_text()) | changes
    said.pop(dropped, None)
    file.write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("dropped", ["", "layer_types"])
def test_sizes_that_the_weights_have_not_are_told_by_an_example(dropped: str, tmp_path: Path) -> None:
    """It was said to be untraceable, with the advice to give an image, and to take `secateur prune`."""
    make_hybrid("Qwen3_5").save_pretrained(tmp_path)
    with pytest.raises(SecateurError) as told:
        open_subject(change(tmp_path, dropped, linear_num_value_heads=3))
    assert str(told.value) == (
        f"config.json of {tmp_path} gives other sizes than its weights have, such as "
        "model.layers.0.linear_attn.dt_bias [3], where the file has [4]: correct it"
    )


def test_a_class_that_runs_on_no_tokens_is_said_so_without_an_image() -> None:
    model = make_hybrid("Qwen3_5", linear_num_value_heads=3)
    with pytest.raises(SecateurError, match=r"^Qwen3_5ForCausalLM can't run on tokens \(.*\): secateur prune") as told:
        open_subject(model)
    assert "--input" not in str(told.value)


@pytest.mark.parametrize("kind", ["llama", "bert", "Qwen3_5"])
def test_a_size_of_0_is_named(kind: str, tmp_path: Path) -> None:
    if kind == "Qwen3_5":
        make_hybrid(kind).save_pretrained(tmp_path)
    else:
        tiny.folder(kind, tmp_path)
    with pytest.raises(SecateurError, match=r"\(num_attention_heads is 0 in config.json: correct it\)"):
        open_subject(change(tmp_path, num_attention_heads=0))


def test_channels_of_which_there_are_none_are_named(tmp_path: Path) -> None:
    make_hybrid("Qwen3_5").save_pretrained(tmp_path)
    with pytest.raises(SecateurError, match=r"\(hidden_size is 0 in config.json: correct it\)"):
        open_subject(change(tmp_path, hidden_size=0))
