"""ZipLM and Minitron on families that nobody wrote down, beside random units of as many sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tiny
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.recipes.language import minitron, ziplm
from secateur.runs import keywords
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import shapes
from secateur.vocabulary import Budget, Result, Selection
from subjects.hybrids import HYBRIDS

SIZES: dict[str, Any] = {
    "vocab_size": len(tiny.tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "SmolLM3ForCausalLM": SIZES | {"num_key_value_heads": 2},
    "Qwen3_5ForCausalLM": HYBRIDS["Qwen3_5"] | {"vocab_size": SIZES["vocab_size"]},
    "GptOssForCausalLM": SIZES
    | {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "ModernBertForMaskedLM": SIZES | {"cls_token_id": 2, "sep_token_id": 3},
}
DATA = texts.read(tiny.sentences(200))
HOW: dict[str, Any] = {"calibration": 16, "steps": 0, "train_batch": 8}
ZIPLM = HOW | {"judged": 8, "trials": 2, "train_length": 16}
MINITRON = HOW | {"candidates": 1, "short_steps": 0, "length": 16, "tolerance": 0.5, "axes": ("heads", "neurons")}


def make(name: str, silent: str) -> Transformer:
    """A random model; half of its neurons, and of its heads or of its groups of them, hardly speak."""
    torch.manual_seed(0)
    architecture = getattr(transformers, name)
    subject = open_subject(architecture(architecture.config_class(**FAMILIES[name])).eval(), tokenizer=tiny.tokenizer())
    sites, draw = subject.units().sites, np.random.default_rng(0)
    for site, consumer in subject.consumers().items():
        kind = site.rpartition(".")[2]
        if kind not in ("neurons", "heads", "kv_groups") or (kind == "kv_groups" and silent == "heads"):
            continue
        if kind == "heads" and silent == "kv_groups" and site.replace("heads", "kv_groups") in sites:
            continue
        weight = subject.model.get_submodule(consumer.module).get_parameter("weight")
        for unit in draw.permutation(sites[site].count // 2) * 2 + draw.integers(2):  # one of every two
            weight.data[:, unit * consumer.block : (unit + 1) * consumer.block] *= 1e-3
    return subject


def lose(whole: Transformer, cut: Transformer) -> float:
    """The mean squared difference of their outputs."""
    batch = texts.batches(DATA, whole.tokenizer, packed=whole.kind == "decoder", batch=16, length=16, seed=5).take(1)[0]
    with torch.no_grad():
        both = [subject.forward(batch).prediction for subject in (whole, cut)]
    return float((both[0] - both[1]).square().mean())


def run(recipe: Any, start: Transformer, root: Path, **options: Any) -> Result:
    with Run.open(root, {}) as folder:
        (found,) = recipe(start, DATA, [Budget.parse("params=90%")], folder, **keywords.check_options(recipe, options))
    assert found.subject.model.num_parameters() == found.predicted["params"] <= 0.9 * start.model.num_parameters()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_budget_is_kept_at_less_loss_than_by_chance(name: str, tmp_path: Path) -> None:
    start = make(name, "kv_groups")
    found = run(ziplm.ziplm, start, tmp_path / "ziplm", **ZIPLM).subject
    draw = np.random.default_rng(1)
    counts = {
        f"layers.{layer}.{kind}": (getattr(before, field), getattr(after, field))
        for layer, (before, after) in enumerate(zip(start.widths(), found.widths(), strict=True))
        for kind, field in (("kv_groups" if before.has_groups else "heads", "kv"), ("neurons", "neurons"))
    }
    keep = {site: draw.permutation(count) < left for site, (count, left) in counts.items() if count}
    chance = start.cut(Selection(keep))[0]
    assert chance.model.num_parameters() == found.model.num_parameters()
    assert lose(start, found) < lose(start, chance)

    start = make(name, "heads")
    found = run(minitron.minitron, start, tmp_path / "minitron", **MINITRON).subject
    shape = ",".join(f"{axis}={size}" for axis, size in shapes.sizes(found).items())
    chance = run(
        minitron.minitron, start, tmp_path / "chance", **MINITRON | {"shape": shape, "score": "random"}
    ).subject
    assert lose(start, found) < lose(start, chance)
