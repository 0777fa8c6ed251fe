from __future__ import annotations

import peft
import pytest

from commands import forked
from hub_server import TOKEN, hub_server
from secateur.subjects import load


@pytest.fixture(scope="module")
def adapter(places):
    """A LoRA of the model that `small` was cut from."""
    model = load(places / "llama")
    model.name_or_path = model.config._name_or_path = "llama"
    options = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoraConfig(r=2, **options)).save_pretrained(places / "adapter")
    return places / "adapter"


def test_an_adapter_is_translated_and_what_is_not_exact_is_said(places, adapter):
    done = forked(places, "translate-adapter", "adapter", "--to", "small", "--out", "fit")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("note: the result's own weights are others than a cut of")
    assert done.stdout.endswith("fit\n")
    fit = peft.PeftModel.from_pretrained(load(places / "small"), str(places / "fit"))
    assert any("lora_A" in name for name, _ in fit.named_parameters())


def test_a_pushed_adapter_says_that_it_names_a_folder_here(places, adapter, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.root)
        words = ["translate-adapter", "adapter", "--to", "small", "--out", "shared", "--push-to-hub", "me/shared"]
        done = forked(places, *words)
        assert done.code == 0, done.stderr
        assert "note: adapter_config.json goes along and names small: give its Hub id" in done.stdout
        assert done.stdout.endswith(f"pushed  {server.root}/me/shared\n")
    assert set(server.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["translate-adapter", "adapter", "--to", "other"],
            "other carries no cut_map.json, so nothing tells what was cut",
        ),
        (
            ["translate-adapter", "adapter", "--to", "small", "--base", "other"],
            "the weights of other are not those that",
        ),
        (["translate-adapter", "llama", "--to", "small"], "llama holds no adapter_config.json"),
        (["translate-adapter", "adapter"], "translate-adapter needs --to: say for example"),
        (["measure", "adapter"], "adapter holds an adapter, which is no model of its own: merge it first"),
        (
            ["run", "ziplm", "adapter", "--budget", "params=80%", "--data", "texts.txt", "--out", "never"],
            "adapter holds an adapter, which is no model of its own: merge it first",
        ),
        (
            ["prune", "adapter", "--budget", "channels=50%", "--out", "never"],
            "adapter holds an adapter, which is no model of its own: merge it first",
        ),
    ],
)
def test_a_mistake_gets_one_line(places, adapter, words, error):
    done = forked(places, *words)
    assert done.code == 2
    assert done.stderr.startswith(f"secateur: {error}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (places / "never").exists()
