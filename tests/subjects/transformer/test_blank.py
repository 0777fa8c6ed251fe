"""Models without weights: buffers that no file holds are those that `from_pretrained` makes, in any number type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import init_empty_weights
from transformers import PreTrainedModel

import tiny
from secateur.subjects import open_subject
from secateur.subjects.transformer.blank import make_blank
from secateur.subjects.transformer.offloaded import Offloaded
from secateur.subjects.transformer.parts import open_part
from secateur.subjects.transformer.subject import Transformer
from secateur.vocabulary import Selection

LONG = 640
"""Positions at which frequencies that were computed in half precision have turned elsewhere."""
NAMES = ("gptj", "codegen", "xglm", "m2m_100", "kosmos-2")
SIDE = {"layers": 3, "ffn_dim": 48, "attention_heads": 4}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    gpt = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": LONG}
    gpt |= {"rotary_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
    text = {"vocab_size": 61, "max_position_embeddings": LONG}
    both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIDE.items()}
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    eyes |= {"image_size": 16, "patch_size": 8}
    width = {"d_model": 32, "num_layers": 3, "ffn_dim": 48, "attention_heads": 4}
    kosmos = text | SIDE | {"embed_dim": 32}
    match name:
        case "gptj":
            return transformers.GPTJForCausalLM(transformers.GPTJConfig(**gpt))
        case "codegen":
            return transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**gpt))
        case "xglm":
            return transformers.XGLMForCausalLM(transformers.XGLMConfig(**text, **width))
        case "m2m_100":
            config = transformers.M2M100Config(**text, **both, d_model=32)
            return transformers.M2M100ForConditionalGeneration(config)
        case _:
            config = transformers.Kosmos2Config(text_config=kosmos, vision_config=eyes, latent_query_num=4)
            return transformers.Kosmos2ForConditionalGeneration(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_is_what_is_opened_again_and_what_is_silenced(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make(name).to(dtype).save_pretrained(tmp_path / "whole")

    def open_it(folder: str) -> Transformer:
        return open_part(tmp_path / folder, "text_model") if name == "kosmos-2" else open_subject(tmp_path / folder)

    subject = open_it("whole")
    selection = Selection({"layers": np.arange(subject.units()["layers"].count) != 1})
    cut = subject.cut(selection)[0]
    cut.save(tmp_path / "cut")
    again, batch = open_it("cut"), subject.example(1, LONG - 4)
    with torch.no_grad():
        found, *others = (one.forward(batch).prediction for one in (cut, again, subject.silence(selection)))
    for other in others:
        torch.testing.assert_close(found, other, atol=0, rtol=0)
    mine, theirs = (dict(one.model.named_buffers()) for one in (cut, again))
    assert mine.keys() == theirs.keys()
    for key, buffer in mine.items():
        torch.testing.assert_close(buffer, theirs[key], atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_model_of_half_precision_has_the_buffers_of_one_that_is_loaded(name: str, tmp_path: Path) -> None:
    make(name).half().save_pretrained(tmp_path)
    model = make(name)
    there = type(model).from_pretrained(tmp_path)
    blank = make_blank(type(model), there.config, torch.float16)
    held, wanted = blank.state_dict().keys(), dict(there.named_buffers())
    for key, buffer in blank.named_buffers():
        if key not in held:
            torch.testing.assert_close(buffer, wanted[key], atol=0, rtol=0)
    assert blank.dtype is torch.float16


def test_an_offloaded_cut_has_the_buffers_of_one_in_memory(tmp_path: Path) -> None:
    make("gptj").half().save_pretrained(tmp_path)
    kind, keep = transformers.GPTJForCausalLM, Selection({"layers": np.array([True, False, True])})
    wanted = open_subject(tmp_path).cut(keep)[0]
    found = open_subject(kind.from_pretrained(tmp_path, device_map={"": "disk"})).cut(keep)[0]
    assert isinstance(found, Offloaded)
    there, batch = dict(found.model.named_buffers()), wanted.example(1, LONG - 4)
    for name, buffer in wanted.model.named_buffers():
        torch.testing.assert_close(there[name], buffer, atol=0, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(found.forward(batch).prediction, wanted.forward(batch).prediction, atol=0, rtol=0)


def test_a_part_and_the_whole_around_its_cut_have_the_buffers_of_what_is_loaded(tmp_path: Path) -> None:
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        text_config=make("gptj").config, vision_config={**eyes, "image_size": 16, "patch_size": 8}, image_token_index=60
    )
    transformers.LlavaForConditionalGeneration(config).half().save_pretrained(tmp_path / "whole")
    part = open_part(tmp_path / "whole", "language_model")
    assert isinstance(part.model, transformers.GPTJModel)  # the head of its own class has a bias, which is not there
    small = part.cut(Selection({"layers": np.array([True, False, True])}))[0]
    small.save(tmp_path / "small")
    assert small.whole is not None
    for folder, found in (("whole", part.model), ("small", small.whole.assemble(small))):
        loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / folder)
        wanted = loaded if folder == "small" else loaded.model.language_model
        there = dict(wanted.named_buffers())
        assert there
        for name, buffer in found.named_buffers():
            torch.testing.assert_close(buffer, there[name], atol=0, rtol=0)


def test_a_whole_that_was_converted_after_it_was_loaded_is_built_in_the_type_it_has(tmp_path: Path) -> None:
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        text_config=make("gptj").config, vision_config={**eyes, "image_size": 16, "patch_size": 8}, image_token_index=60
    )
    transformers.LlavaForConditionalGeneration(config).half().save_pretrained(tmp_path / "half")
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "half").float()
    small = open_part(whole, "language_model").cut(Selection({"layers": np.array([True, False, True])}))[0]
    assert small.whole is not None
    found = small.whole.assemble(small)
    small.save(tmp_path / "small")
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "small")
    there = dict(loaded.named_buffers())
    assert loaded.dtype == torch.float32
    assert there
    for name, buffer in found.named_buffers():
        torch.testing.assert_close(buffer, there[name], atol=0, rtol=0)


def test_what_stands_for_a_norm_that_went_has_no_values_in_half_precision(tmp_path: Path) -> None:
    tiny.model("llama").half().save_pretrained(tmp_path / "whole")
    subject = open_subject(tmp_path / "whole")
    count = len(subject.layers())
    cut = subject.cut(Selection({"attention": np.arange(count) != 1}))[0]
    with init_empty_weights(include_buffers=False):
        blank = make_blank(type(cut.model), cut.model.config, torch.float16)
    assert any(buffer.is_meta for buffer in blank.buffers())
    cut.save(tmp_path / "cut")
    batch = subject.example(1, 9)
    with torch.no_grad():
        found = open_subject(tmp_path / "cut").forward(batch).prediction
        torch.testing.assert_close(found, cut.forward(batch).prediction, atol=0, rtol=0)
