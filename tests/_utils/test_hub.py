"""A folder is pushed to a server on loopback that stands for the Hub, and every refusal is one line."""

from __future__ import annotations

import json

import pytest

from hub_server import TOKEN, hub_server
from secateur._utils import hub
from secateur.errors import InputError, ServerError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run directory with a model in it, as it is pushed."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a storage of its own protocol
    texts = {"README.md": "---\nlicense: mit\n---\n# x", "model.safetensors": "1234", "run.yaml": "model: /x"}
    texts |= {"work/scores.npz": "", "evidence.json": "{}", "report.html": "", "1_Pooling/config.json": "{}"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("public", [False, True])
def test_a_model_is_pushed_without_what_is_of_the_run(folder, monkeypatch, public):
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        assert hub.push(folder, "me/small", public=public) == f"{server.root}/me/small"
    assert server.visibility == {"me/small": "public" if public else "private"}
    assert set(server.files) == {"README.md", "model.safetensors", "1_Pooling/config.json"}
    assert server.files["model.safetensors"] == b"1234"


def test_names_of_models_here_are_found(tmp_path):
    assert hub.list_names(tmp_path) == {}
    for name, held in {"/a/b": True, "small": True, "me/small": False, "": False}.items():
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
        (tmp_path / "cut_map.json").write_text(json.dumps({"base": {"name": name}}))
        wanted = {"adapter_config.json": name, "cut_map.json": name} if held else {}
        assert hub.list_names(tmp_path) == wanted
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    (tmp_path / "cut_map.json").write_text('{"base": []}')
    assert hub.list_names(tmp_path) == {}


def test_a_hub_that_refuses_or_is_not_there_is_told_in_a_line(folder, monkeypatch):
    with hub_server(refusal=403) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        with pytest.raises(
            ServerError, match=r"the Hub refused me/small \(.*403.* that the token may write there"
        ) as told:
            hub.push(folder, "me/small")
    assert "\n" not in str(told.value)
    with pytest.raises(ServerError, match=r"the Hub can't be reached to push me/small \(.*hf upload me/small"):
        hub.push(folder, "me/small")  # it has stopped by now
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match="was not pushed to me/small: HF_HUB_OFFLINE is set"):
        hub.push(folder, "me/small")


def test_what_can_not_be_pushed_is_refused(folder, monkeypatch, tmp_path):
    for name in ("a/b/c", "me/-small", "me/sm all", ""):
        with pytest.raises(InputError, match="is no name of a repository on the Hub: give OWNER/NAME"):
            hub.push(folder, name)
    with pytest.raises(InputError, match="holds no model to push to me/small"):
        hub.push(folder / "work", "me/small")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="pushing to me/small needs a token of the Hub: run `hf auth login`"):
        hub.check_id("me/small")


def test_names_and_cards(folder):
    assert hub.is_id("meta-llama/Llama-3.2-1B")
    assert not any(map(hub.is_id, ("llama", "./a", "/a/b", "a/b/c", str(folder), "")))
    assert hub.read_card(folder) == {"license": "mit"}
    for text in ("no metadata", "---\n- a\n---\n", "---\na: [\n---\n"):
        (folder / "README.md").write_text(text)
        assert hub.read_card(folder) == {}
    assert hub.read_card(folder / "nowhere") == {}
