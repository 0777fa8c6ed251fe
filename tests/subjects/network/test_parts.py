"""A vision tower and a projector: cut as networks inside of their wholes, which load anywhere as they did before."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import secateur
from secateur import cli
from secateur._utils.rundir import Run
from secateur.errors import InputError, UnsupportedError
from secateur.runs import cutting
from secateur.runs.backends.network import Network
from secateur.subjects.network import parts
from secateur.subjects.network.shrinking import history
from secateur.vocabulary import Budget
from strangers import run_without_secateur

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
TEXT |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_parts_that_are_there_are_listed_by_what_they_may_be_called() -> None:
    """A model of texts alone calls none of its modules language_model, and `--part language_model` runs."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    assert parts.find_path(model, "language_model") == "model"
    with pytest.raises(InputError, match=r"has no part 'vision_tower': it has layers, language_model$"):
        parts.find_path(model, "vision_tower")


def make_llava() -> transformers.PreTrainedModel:
    """Its tower gives hidden states, which a projector widens."""
    image = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(**image, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=vision, image_token_index=60
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def make_qwen() -> transformers.PreTrainedModel:
    """Its tower gets patches in a row, and holds its projectors, of which the language model reads several."""
    ropes = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    text = TEXT | {"num_hidden_layers": 2, "head_dim": 8, "rope_parameters": ropes}
    image = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    image |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    marks = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=image, **marks)
    return transformers.Qwen3VLForConditionalGeneration(config).eval()


def draw_inputs(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    if isinstance(model, transformers.LlavaForConditionalGeneration):
        ids = torch.tensor([[1, 60, 60, 60, 60, 5, 6]])
        return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
    ids = torch.tensor([[1, 62, 60, 63, 5, 6]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(4, 96), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    return inputs | {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 60).long()}


LOAD = """
import os, torch
os.environ["HF_MODULES_CACHE"] = os.getcwd()
from transformers import AutoModelForImageTextToText
model, report = AutoModelForImageTextToText.from_pretrained("small"%s, output_loading_info=True)
assert not any(report.values()), report
torch.save(model.eval()(**torch.load("inputs.pt")).logits, "logits.pt")
"""


@pytest.mark.parametrize(
    ("make", "name", "path", "plain"),
    [
        (make_llava, "vision_tower", "model.vision_tower", True),
        (make_llava, "projector", "model.multi_modal_projector", False),
        (make_qwen, "vision_tower", "model.visual", False),
    ],
)
def test_a_part_is_cut_in_its_whole_which_loads_without_secateur(
    make: Callable[[], transformers.PreTrainedModel], name: str, path: str, plain: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "preprocessor_config.json").write_text("{}")
    subject = Network().open_part(tmp_path / "whole", name)
    size = sum(weight.numel() for weight in model.get_submodule(path).parameters())
    assert subject.units().cost()["params"] == size, "of the part alone"
    (result,) = cutting.prune(subject, None, [Budget.parse("params=80%")], Run(tmp_path, {}))
    Network().save(result.subject, tmp_path / "small")
    assert (tmp_path / "small" / "preprocessor_config.json").is_file()
    assert (tmp_path / "small" / "modeling_secateur.py").is_file() != plain
    small = secateur.load(tmp_path / "small")
    assert 0.6 * size < sum(weight.numel() for weight in small.get_submodule(path).parameters()) <= 0.8 * size
    before, after = model.state_dict(), small.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith(f"{path}."))
    torch.save(inputs := draw_inputs(model), tmp_path / "inputs.pt")
    run_without_secateur(LOAD % ("" if plain else ", trust_remote_code=True"), tmp_path)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, small(**inputs).logits)
    for tensor, dims in result.subject.plans[-1].tensors.items():  # and as those of units that are silent
        gone = torch.ones(len(before[f"{path}.{tensor}"]), dtype=torch.bool)
        gone[dims.get(0, range(len(gone)))] = False
        before[f"{path}.{tensor}"][gone] = 0
    torch.testing.assert_close(logits, model(**inputs).logits)
    again = Network().open_part(tmp_path / "small", name)  # and is cut again
    assert again.units().cost()["params"] == result.cut.after["params"]


@pytest.mark.wide
def test_patches_of_an_image_are_measured_as_they_lie_in_its_grid(tmp_path: Path) -> None:
    make_qwen().save_pretrained(tmp_path / "whole")
    words = ("--part", "vision_tower", "--budget", "params=80%", "--quick", "--out", str(tmp_path / "small"))
    assert cli.main(["prune", str(tmp_path / "whole"), *words]) == 0
    (row,) = json.loads((tmp_path / "small" / "evidence.json").read_text())["results"]
    assert row["environment"]["measured_at"].startswith("batch 16, ")
    told = "measured on 16 rows, as the example inputs have, for 32 don't fit them"
    assert told in row["cut"]["notes"]
    assert secateur.load(tmp_path / "small").model.visual.merger.linear_fc1.out_features < 64


def test_a_model_in_memory_gets_a_smaller_part_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = make_llava()
    inputs, before = draw_inputs(model), {name: one.clone() for name, one in model.state_dict().items()}
    small, cut = secateur.prune(model, budget="params=80%", part="vision_tower")
    assert isinstance(small, transformers.LlavaForConditionalGeneration)
    tower = model.model.vision_tower
    assert cut.before["params"] == sum(weight.numel() for weight in tower.parameters())
    assert model.config.vision_config.intermediate_size == 128
    assert history(tower).whole is None
    assert not tower._forward_hooks
    assert not small.model.vision_tower._forward_hooks
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert small.lm_head.weight is not model.lm_head.weight
    assert small(**inputs).logits.shape == model(**inputs).logits.shape


class Pair(nn.Module):
    """Two parts, of which the second reads what the first gives under several names."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.ModuleDict({"first": nn.Linear(4, 16), "second": nn.Linear(16, 8)})
        self.eye.forward = lambda x: {"states": self.eye["second"](self.eye["first"](x).relu()), "hidden_states": x}
        self.tongue = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tongue(x)


def test_a_part_of_any_network_is_cut_on_what_the_whole_gives_it() -> None:
    whole = Pair()
    small, cut = secateur.prune(whole, torch.randn(2, 8), "channels=50%", part="tongue")
    assert [tuple(weight.shape) for weight in small.tongue.parameters()] == [(6, 8), (6,), (3, 6), (3,)]
    assert small.eye["first"].weight.shape == (16, 4)
    assert cut.before["params"] == 12 * 9 + 3 * 13
    with pytest.raises(UnsupportedError, match=r"eye of Pair is not reached .* give example_inputs"):
        secateur.prune(whole, torch.randn(2, 8), part="eye")
    with pytest.raises(InputError, match=r"Pair has no part 'ear': it has eye, tongue$"):
        secateur.prune(whole, torch.randn(2, 8), part="ear")
    with pytest.raises(InputError, match=r"has 2 parts called '0', .*: name one by its path"):
        parts.find_path(nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2)), "b": nn.Sequential(nn.Linear(2, 2))}), "0")


def make_t5() -> transformers.PreTrainedModel:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()


def test_weights_that_parts_share_are_one_in_the_result() -> None:
    whole = make_t5()
    small, _ = secateur.prune(whole, budget="params=90%", part="decoder")
    assert small.decoder.embed_tokens.weight is small.shared.weight is small.encoder.embed_tokens.weight
    assert small.shared.weight is not whole.shared.weight
    again = parts.assemble(parts.open_part(whole, "decoder"), share=True).model
    assert again.decoder.embed_tokens.weight is again.shared.weight is again.encoder.embed_tokens.weight


class Tower(nn.Module):
    """Stages of blocks that add to one hidden size, which the tower's output does not have."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 6)
        stage = nn.Module()
        stage.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(blocks)
        )
        self.stages = nn.ModuleList([stage])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.stages[0].blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_hidden_size_stays_in_blocks_of_stages_and_in_a_single_layer(blocks: int) -> None:
    whole = nn.Sequential(OrderedDict(tower=Tower(blocks), tongue=nn.Linear(6, 3)))
    small, _ = secateur.prune(whole, torch.randn(2, 4), "channels=50%", part="tower")
    assert [tuple(layer.weight.shape) for layer in (small.tower.stem, small.tower.head)] == [(8, 4), (6, 8)]
    assert all(block[0].out_features == 8 for block in small.tower.stages[0].blocks)


def test_only_what_leads_from_a_tower_to_the_tongue_is_a_projector() -> None:
    text = transformers.OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = {**sizes, "image_size": 8, "patch_size": 4}
    speech = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    speech |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    asking = transformers.Blip2Config(
        vision_config=image, qformer_config={**sizes, "vocab_size": 64}, text_config=text.to_dict()
    )
    blind = [
        transformers.T5ForConditionalGeneration(make_t5().config),
        transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**speech)),
        transformers.Blip2ForConditionalGeneration(asking),
    ]
    for model in blind:
        with pytest.raises(InputError, match="has no part 'projector': it has"):
            parts.find_path(model, "projector")
    sees = {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16, **image}
    reads = {**sizes, "intermediate_size_mlp": 16, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8}
    reads |= {"num_local_experts": 2, "pad_token_id": 0}
    llama = transformers.Llama4Config(vision_config=sees, text_config=reads)
    with torch.device("meta"):
        assert (
            parts.find_path(transformers.Llama4ForConditionalGeneration(llama), "projector") == "multi_modal_projector"
        )
