from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from commands import forked
from hub_server import TOKEN, hub_server


def test_export_writes_another_form(places):
    """Without a word on the standard error, as `places` sees."""
    assert (places / "deci/config.json").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--to packed", "nothing gets smaller without its zeros"),
        ("--to packed --data texts.txt", "--data goes with int8, int4 and packed-int8: packed changes no quality"),
        ("--to gguff", "'gguff' is no form to export to: choose onnx, gguf, decilm"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(places, words, error):
    done = forked(places, "export", "small", *words.split())
    assert done.code == 2
    assert done.stderr.startswith(f"secateur: {error}")
    assert done.stderr.count("\n") == 1


def test_an_export_has_a_card_and_is_pushed(places, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    words = ["export", "small", "--to", "masks", "--out", "masks", "--push-to-hub"]
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(places / "none"))
    assert "needs a token of the Hub" in forked(places, *words, "me/masks").stderr
    assert not (places / "masks").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        done = forked(places, *words, "me/masks")
        assert done.code == 0, done.stderr
        assert done.stdout.endswith(f"masks\npushed  {server.root}/me/masks\n")
    assert server.visibility == {"me/masks": "private"}
    assert set(server.files) == {"README.md", "masks.safetensors"}
    card = ModelCard.load(places / "masks/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("safetensors", "text-generation")
    assert "# small as masks" in card.text
