"""Peak memory from a configuration alone, against what a fresh process takes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig

import tiny
from secateur import cli, recipes
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.measure.latency import Environment
from secateur.recover.training import lora
from secateur.runs import keywords, memory_plan, memory_steps
from secateur.runs.backends.language import Language
from secateur.subjects import open_subject
from secateur.subjects.transformer.loading import open_outline
from secateur.vocabulary import Training
from subjects.hybrids import make_hybrid

SIZES = [(256, 4, 96), (384, 6, 64), (512, 4, 128)]
"""(hidden size, layers, tokens per sequence) of models of 7 to 22 million parameters."""

MEASURE = """
import json, sys
import numpy as np, torch
from secateur.measure import memory
from secateur.recover.training import loop, objectives
from secateur.score import gradient
from secateur.subjects import open_subject
from secateur.subjects.transformer.loading import open_outline
from secateur.vocabulary import Selection, Training

stage, folder, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
subject = open_subject(folder)
weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())

def batch(count):
    tokens = torch.randint(1, 8000, (count, length))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

def score():
    with torch.no_grad():
        return subject.forward(batch(16))

def gradients():
    def loss(item):
        logits = subject.forward(item).prediction
        return objectives.task_loss(logits, item, objectives.count(item), causal=True)
    return gradient.taylor(loss, subject.model, [batch(16)], subject.consumers())

def cut():
    sites = [site for site in subject.units("kv_groups", "neurons").free()]
    return subject.cut(Selection({site.name: np.arange(site.count) < site.count // 2 for site in sites}))[0]

def training():
    student = subject.copy()
    objective = objectives.distil(student.forward, subject.forward, output="logits", fused=True)
    loop.train(student.model, [batch(8), batch(8)], objective, Training(steps=3, lr=1e-3), frozen=[subject.model],
               progress=False)
    return student

run = {"score": score, "gradients": gradients, "cut": cut, "training": training}[stage]
subject.forward(batch(1))  # what a first call allocates
found = memory.peak(run)
kept = 0.0
if stage == "cut":
    kept = sum(p.numel() for p in found.result.model.parameters()) / sum(p.numel() for p in subject.model.parameters())
print(json.dumps({"bytes": weights + found.extra, "kept": kept}))
"""


def save_llama(folder: Path, hidden: int, layers: int, *, weights: bool) -> Path:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=5, eos_token_id=6,
        pad_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    if weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


@pytest.mark.memory
@pytest.mark.parametrize("stage", ["score", "gradients", "cut", "training"])
@pytest.mark.parametrize(("hidden", "layers", "length"), SIZES)
def test_the_plan_is_within_15_percent_of_a_fresh_process(
    tmp_path: Path, stage: str, hidden: int, layers: int, length: int
) -> None:
    folder = save_llama(tmp_path / "model", hidden, layers, weights=True)
    command = [sys.executable, "-c", MEASURE, stage, str(folder), str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    share = measured["kept"] or 1.0
    plan = memory_plan.estimate(folder, share=share, batch=8, length=length)
    assert plan.stages()[stage] == pytest.approx(measured["bytes"], rel=0.15)


def test_a_folder_with_a_config_alone_and_its_file_will_do(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "Small", 64, 2, weights=False)
    plan = memory_plan.estimate(folder, share=1.0, batch=2, length=16)
    assert plan == memory_plan.estimate(folder / "config.json", share=1.0, batch=2, length=16)
    assert plan.model == "Small"
    assert plan.weights == 4 * plan.params
    assert plan.cut == 2 * plan.weights
    assert plan.training > 5 * plan.weights  # the student fourfold, and its teacher
    half = memory_plan.estimate(folder, share=0.5, batch=2, length=16)
    assert plan.training - half.training == pytest.approx(8 * plan.params, rel=0.3)
    longer = memory_plan.estimate(folder, share=1.0, batch=2, length=64)
    assert longer.score > plan.score
    assert longer.training > plan.training


@pytest.mark.parametrize("gates", [True, False])
def test_experts_count_as_evenly_used(tmp_path: Path, gates: bool) -> None:
    model = tiny.model("mixtral") if gates else make_hybrid("NemotronH-moe")
    model.config.save_pretrained(tmp_path)
    plan = memory_plan.estimate(tmp_path, batch=2, length=16)
    assert plan.params == sum(p.numel() for p in model.parameters())
    assert plan.gradients > plan.score > plan.weights


def test_what_can_not_be_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        memory_plan.estimate(tmp_path)
    save_llama(tmp_path, 64, 1, weights=False)
    with pytest.raises(InputError, match="share=0 is not above 0"):
        memory_plan.estimate(tmp_path, share=0.0)
    for wrong, words in (
        ({"batch": 0}, "batch=0 is not a whole number of at least 1"),
        ({"length": -1}, "length=-1 is not a whole number"),
        ({"device": "nowhere"}, "device='nowhere' is no device of torch"),
    ):
        with pytest.raises(InputError, match=words):
            memory_plan.estimate(tmp_path, **wrong)
    WhisperConfig(architectures=["WhisperForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"reads input_features: estimate plans models of texts alone$"):
        memory_plan.estimate(tmp_path)


def blocks_of(folder: Path) -> Iterator[nn.Module]:
    return LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).model.layers.modules()


def test_a_dry_run_plans_the_adapters_that_a_recipe_has(monkeypatch: pytest.MonkeyPatch) -> None:
    plans, asking = list[Training](), list[bool]()

    def note(*_: object, training: Training, asks: bool, **__: object) -> None:
        plans.append(training)
        asking.append(asks)

    monkeypatch.setattr(memory_plan, "plan_memory", note)
    monkeypatch.setattr(memory_plan, "describe", lambda *_: "")
    subject, place = open_subject(tiny.model("llama")), Environment(1, 8, 1, "cpu")
    for options in (
        {"training": "lora=4,lora_bits=8"},
        {"training": "ema=0.9", "lora_rank": 20, "dora": False, "lora_bits": 0},
        {"training": "", "lora_rank": 20, "dora": True, "lora_bits": 4},
        {"training": "", **keywords.defaults(recipes.find("pat"))},
        {"training": "lora=2", **keywords.defaults(recipes.find("minitron"))},
    ):
        Language().describe_memory(subject, [], options, place)
    assert [(plan.lora, plan.dora, plan.lora_bits) for plan in plans[:3]] == [
        (4, None, 8), (20, None, None), (None, 20, 4)
    ]  # fmt: skip
    assert asking == [True, False, False, False, True]  # pat learns a task; it holds the original, and never asks it


def test_an_original_that_is_not_asked_is_held_and_takes_no_pass(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, 64, 3, weights=False)
    plan = functools.partial(
        memory_plan.plan_memory, functools.partial(open_outline, folder), "llama", batch=8, length=64,
        training=Training(lora=4),
    )  # fmt: skip
    asked, alone = plan(share=1.0), plan(share=1.0, asks=False)
    assert plan(share=0.5, asks=False).training == alone.training, "what is tuned on a task is whole until it is cut"
    assert replace(asked, training=0.0) == replace(alone, training=0.0)
    assert 2 * alone.weights < alone.training < asked.training


@pytest.mark.wide
def test_what_training_is_asked_for_counts(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "Small", 64, 1, weights=False)

    @functools.cache
    def plan(training: str, device: str = "cpu", model: Path = folder) -> float:
        whole = memory_plan.estimate(model, share=1.0, batch=8, length=64, device=device, training=training)
        return whole.training / (1.0 + memory_steps.HEAP["training"] * (device == "cpu"))

    def growth(training: str) -> float:
        """What the activations of one more block take."""
        return plan(training, model=deep) - plan(training) - 16 * more

    def trained(join: Callable[[LlamaForCausalLM], object]) -> int:
        join(model := LlamaForCausalLM(LlamaConfig.from_pretrained(folder)))
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    params = memory_plan.estimate(folder, share=1.0).params
    plain = plan("")
    assert plan("ema=0.999") - plain == pytest.approx(4 * params, rel=0.01), "one more copy"
    assert plain - plan("optimizer=adamw8bit") == pytest.approx(6 * params, rel=0.02), "two bytes in place of eight"
    assert plain - plan("optimizer=sgd") == pytest.approx(4 * params, rel=0.01), "one moment"
    assert plain - plan("lora=2") > 0.8 * 12 * params, "no gradients and moments of the weights"
    for kind in ("lora", "dora"):
        alone = plan(f"{kind}=2")
        assert alone < plain
        learned = trained(lambda model, dora=kind == "dora": lora.join(model, 2, dora=dora))
        assert plan(f"{kind}=2,ema=0.999") - alone == pytest.approx(4 * learned, rel=0.01), "of the adapters alone"
        assert alone - plan(f"{kind}=2,optimizer=sgd") == pytest.approx(4 * learned, rel=0.01)
    floats = sum(4 * layer.weight.numel() for layer in blocks_of(folder) if isinstance(layer, nn.Linear))
    for bits, scales in ((8, 0.02), (4, 5 / 32 / 4)):
        saved = plan("lora=2") - plan(f"lora=2,lora_bits={bits}")
        assert saved == pytest.approx((0.75 - scales) * floats, rel=0.05), "a byte each in place of four, and scales"
    deep = save_llama(tmp_path / "Deep", 64, 2, weights=False)
    more = memory_plan.estimate(deep, share=1.0).params - params
    assert growth("checkpointing=true") < 0.3 * growth(""), "of a block, its input alone"
    assert plan("precision=fp32", "cuda") > plan("", "cuda"), "bfloat16 is a card's default"
    with pytest.raises(InputError, match="training has no setting 'emma'"):
        plan("emma=0.9")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_what_a_card_that_is_not_here_has_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_llama(tmp_path / "Small", 64, 2, weights=False)
    plan = memory_plan.estimate(folder, device="cuda")
    assert memory_plan.describe(plan, "cuda").endswith("; cuda is not here, so what it has is not known")
    assert cli.main(["estimate", str(folder), "--device", "cuda"]) == 0
    assert "cuda is not here, so what it has is not known" in capsys.readouterr().out
