"""Every subject obeys the laws of `secateur.conformance`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import tiny
from secateur import conformance
from secateur.subjects import open_subject
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from subjects import nets
from subjects import tiny as tiny_subjects

ALL = {
    "identity",
    "original untouched",
    "predicted = receipt",
    "predicted = counted",
    "superset",
    "cut = silenced",
    "round trip",
}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen3"])
def test_transformers(kind: str) -> None:
    laws = conformance.check_subject(lambda: open_subject(tiny.model(kind), tokenizer=tiny.tokenizer()))
    assert set(laws) == ALL


@pytest.mark.parametrize(
    "kind", ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "phimoe", "deepseek2", "deepseek2-groups", "deepseek3"]
)
def test_mixtures_of_experts(kind: str) -> None:
    def make() -> Any:
        subject = tiny_subjects.make(kind)
        subject.model.set_attn_implementation("sdpa")  # as it comes back from a folder
        return subject

    assert set(conformance.check_subject(make)) == ALL


def test_sentence_transformers_folder(tmp_path: Path) -> None:
    folder = tiny.folder("bert", tmp_path / "sentence", sentence=True)
    assert set(conformance.check_subject(lambda: open_subject(folder))) == ALL


def networks(model: nn.Module, inputs: Any) -> set[str]:
    """The laws that hold of a network of any kind."""

    def reload(small: Traced, folder: Path) -> Traced:
        small.save(folder)
        return reload_traced(folder, copy.deepcopy(model), inputs)

    return set(
        conformance.check_subject(
            lambda: open_traced(model, inputs),
            output=lambda subject: nets.outputs(subject.forward()),
            reload=reload,
        )
    )


@pytest.mark.parametrize("name", nets.NETS)
def test_networks(name: str) -> None:
    assert networks(*nets.make(name)) == ALL


def test_a_torchvision_network() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    assert networks(models.resnet18(weights=None, num_classes=10), torch.rand(2, 3, 32, 32)) == ALL


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    # linear layers with transposed weights, heads and channels of one width
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    # a position bias that attentions of all blocks share
    "T5ForConditionalGeneration": (
        "T5Config", _T5,
    ),
    # two heads of which one may be left
    "BertForSequenceClassification": ("BertConfig", _SMALL | {"num_attention_heads": 2, "max_position_embeddings": 64}),
    # reshapes by the width of another tensor
    "SegformerForSemanticSegmentation": ("SegformerConfig", {"hidden_sizes": [8, 16, 24, 32], "num_labels": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", _OTHERS)
def test_models_that_no_family_describes(name: str) -> None:
    """Unequal shares of sites, where the code of a model computes one width from another."""
    kind, values = _OTHERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, kind)(**values))
    ids = torch.randint(3, 20, (2, 12))
    inputs: Any = {"input_ids": ids, "decoder_input_ids": ids[:, :7]} if name.startswith("T5") else {"input_ids": ids}
    assert networks(model, {"pixel_values": torch.rand(1, 3, 64, 64)} if name.startswith("Seg") else inputs) == ALL
