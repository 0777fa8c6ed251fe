"""An update: all of it is the trained model, none of it the model before, and what is kept is kept bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import updates_toy as toy
from secateur import conformance
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.delta.delta import SITE, Delta, open_delta
from secateur.subjects.delta.tensors import InMemory
from secateur.vocabulary import Selection


def output(delta):
    """All entries of the model."""
    return np.concatenate([delta.tensor(name).numpy().ravel() for name in delta.before.outlines()])


def silence(delta, selection):
    """The model with `before` where entries go, made another way."""
    after = dict(toy.states()[1])
    for site, keep in selection.keep.items():
        name = site.removesuffix(f".{SITE}")
        flat, gone = after[name].flatten().clone(), ~torch.as_tensor(keep)
        flat[gone] = toy.states()[0][name].flatten()[gone]
        after[name] = flat.view(after[name].shape)
    return Delta(InMemory(toy.states()[0]), InMemory(after))


def test_it_keeps_the_laws_of_subjects():
    counted = lambda delta: {"update": sum(float(delta.mask(name).sum()) for name in delta.sites)}  # noqa: E731
    laws = conformance.check_subject(
        toy.delta, output=output, counted=counted, silence=silence, measure="update",
        reload=lambda delta, _: delta,
    )  # fmt: skip
    assert set(laws) >= {"identity", "original untouched", "predicted = counted", "superset", "cut = silenced"}


def test_nothing_of_it_is_the_model_before_and_all_of_it_the_trained_one():
    delta, (before, after) = toy.delta(), toy.states()
    assert toy.FROZEN not in delta.sites
    none, cut = delta.cut(Selection({f"{name}.{SITE}": np.zeros(count, bool) for name, count in delta.sites.items()}))
    assert cut.after["update"] == 0
    for name in before:
        assert torch.equal(none.tensor(name), before[name])
        assert torch.equal(delta.tensor(name), after[name])
    assert none.norm() == 0.0 < delta.norm()


def test_a_cut_of_a_cut_takes_from_what_is_left():
    delta = toy.delta()
    name = next(iter(delta.sites))
    half = np.arange(delta.sites[name]) % 2 == 0
    once, _ = delta.cut(Selection({f"{name}.{SITE}": half}))
    assert once.sites[name] == half.sum() == len(once.update(name))
    twice, cut = once.cut(Selection({f"{name}.{SITE}": np.arange(half.sum()) % 2 == 0}))
    assert cut.removed[f"{name}.{SITE}"] == (half.sum() // 2, half.sum())
    assert np.flatnonzero(twice.mask(name)).tolist()[:3] == [0, 4, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_is_a_checkpoint_as_any_other(dtype, tmp_path):
    before, after = toy.folders(tmp_path, dtype=dtype)
    delta = open_delta(before, after)
    name = list(delta.sites)[-1]
    small, _ = delta.cut(Selection({f"{name}.{SITE}": np.arange(delta.sites[name]) % 3 == 0}))
    small.save(tmp_path / "out")
    for key, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict().items():
        assert torch.equal(tensor, small.tensor(key)), key
        assert tensor.dtype == dtype
    assert (tmp_path / "out" / "LICENSE").read_text() == "free after"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == len(list(after.glob("model-*.safetensors")))


def test_a_base_without_prefix_with_masks_and_with_a_tied_head_stored_is_the_same_model(tmp_path):
    """As GPT-2 lies on the Hub: h.0... for transformer.h.0..., attn.bias of older versions, a copy of the head."""
    before, after = toy.folders(tmp_path, "gpt2")
    plain, wanted = open_delta(before, after), {}
    for name in plain.sites:
        wanted[name] = plain.update(name)
    state = load_file(before / "model.safetensors")
    hub = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    hub |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "lm_head.weight": hub["wte.weight"].clone()}
    save_file(hub, before / "model.safetensors", {"format": "pt"})
    named = open_delta(before, after)
    assert named.sites == plain.sites
    assert all(torch.equal(named.update(name), change) for name, change in wanted.items())
    turned = open_delta(after, before)  # the trained one is as on the Hub, and is written so
    assert sum(turned.sites.values()) == sum(plain.sites.values())
    small, _ = turned.cut(Selection({f"wte.weight.{SITE}": np.arange(turned.sites["wte.weight"]) % 3 == 0}))
    small.save(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == hub.keys()
    assert torch.equal(written["lm_head.weight"], written["wte.weight"])
    assert not torch.equal(written["wte.weight"], hub["wte.weight"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.get_output_embeddings().weight, small.tensor("wte.weight"))


def test_two_that_are_no_checkpoints_of_one_model_are_refused(tmp_path):
    before, after = toy.folders(tmp_path)
    with pytest.raises(InputError, match="are one folder"):
        open_delta(before, tmp_path / "after" / ".." / "before")
    with pytest.raises(InputError, match="hold the same weights, so there is no update"):
        Delta(open_delta(before, after).before, open_delta(before, after).before)
    other, _ = toy.folders(tmp_path / "gpt2", "gpt2")
    with pytest.raises(InputError, match=r"has the tensor .*, and .* has not: give two checkpoints of one model"):
        open_delta(before, other)
    state = load_file(before / "model.safetensors")
    name = min(state)
    for changed, message in (
        ({f"{name}.new": state[name]}, rf"has the tensor {name}"),
        ({name: state[name][:-1].clone()}, rf"{name} is \[64, 64\] in .*before and \[63, 64\] in .*changed"),
        ({name: state[name].half()}, rf"{name} is float32 .*float16 .*save both in one number type"),
    ):
        place = tmp_path / "changed"
        place.mkdir(exist_ok=True)
        (place / "config.json").write_bytes((before / "config.json").read_bytes())
        rest = {key: tensor for key, tensor in state.items() if key != name}
        save_file({**rest, **changed}, place / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=message):
            open_delta(before, place)
    with pytest.raises(ModelError):
        open_delta(before, tmp_path / "nowhere")
    packed = [InMemory({"w": torch.full((3,), value, dtype=torch.int8)}, str(value)) for value in (1, 2)]
    with pytest.raises(UnsupportedError, match="2 changed w, which holds int8"):
        Delta(*packed)
