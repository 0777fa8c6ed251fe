"""Number types, split models, 2:4 kernels, memory and waits, on a real card."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import secateur
import tiny
from secateur.data import texts
from secateur.measure.quality import perplexity
from secateur.recover.training import loop, objectives
from secateur.score import random, wanda
from secateur.select import ranking
from secateur.subjects import Transformer, matrices, open_subject
from secateur.subjects.transformer.packing import semi_structured
from secateur.vocabulary import Budget

Note = Callable[[str, str], None]


def middling(layers: int = 8, width: int = 1024) -> PreTrainedModel:
    """A Llama of about 150 million parameters in bfloat16, on the card."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8192, hidden_size=width, num_hidden_layers=layers, num_attention_heads=16,
                         num_key_value_heads=4, intermediate_size=4 * width, pad_token_id=0)  # fmt: skip
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()


def held_out(subject: Transformer) -> list[dict[str, torch.Tensor]]:
    return texts.batches(texts.read(tiny.chains(200, 1)), subject.tokenizer, packed=True, batch=8, length=16).take(8)


def peak(work: Callable[[], object]) -> float:
    """MiB at the highest."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**20


def test_bfloat16_gives_what_float32_gives(tmp_path: Path, note: Note) -> None:
    model = tiny.taught(tiny.model("llama"))
    (tmp_path / "texts.txt").write_text("\n".join(tiny.chains(400)))
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        subject = open_subject(copy.deepcopy(model).to("cuda", kind), tokenizer=tiny.tokenizer())
        out = tmp_path / str(kind)
        options = {"samples": 16, "batch": 8, "length": 16}
        (row,) = secateur.run("wanda", subject, str(tmp_path / "texts.txt"), "weights=50%", out, **options)
        found[kind] = row.after["perplexity"].value
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=0.05)
    note("perplexity of a pruned model, float32 and bfloat16", " and ".join(f"{value:.2f}" for value in found.values()))


def test_a_model_loaded_with_a_device_map_is_a_subject(tmp_path: Path, note: Note) -> None:
    tiny.folder("llama", tmp_path)
    whole = open_subject(str(tmp_path), tokenizer=tiny.tokenizer())
    half = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": "cpu", "lm_head": "cpu"}
    half |= {f"model.layers.{number}": 0 if number < 2 else "cpu" for number in range(4)}
    for name, places in (("auto", "auto"), ("half of it on the CPU", half)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places)
        subject = open_subject(model, tokenizer=tiny.tokenizer())
        values = [perplexity(one.forward, held_out(one)).value for one in (subject, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)
        note(f"device_map, {name}", f"perplexity {values[0]:.2f}, in one piece {values[1]:.2f}")


def test_two_of_four_runs_on_the_cards_kernels(note: Note) -> None:
    model = middling(2)
    with torch.no_grad():
        for matrix in matrices.matrices(model).values():
            groups = matrix.weight.view(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0.0)
    tokens = torch.randint(8, 8192, (8, 256), device="cuda")
    with torch.no_grad():
        before = model(tokens).logits
        swapped, left = semi_structured(model)
        after = model(tokens).logits
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"no 2:4 kernels on this card: {next(iter(left.values()), '')}")
    assert swapped
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)
    note("2:4 kernels", f"{len(swapped)} layers, {len(left)} stay dense")


def test_memory_of_score_cut_and_training(note: Note) -> None:
    subject = open_subject(middling(), tokenizer=tiny.tokenizer())
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters()) / 2**20
    batch = subject.example(4, 256)
    score = peak(lambda: [wanda.scores(one.weight, one.weight.new_ones(one.weight.shape[1])) for one in
                          list(matrices.matrices(subject.model, subject.layers()).values())[:4]])  # fmt: skip
    units = subject.units()
    selection = ranking.by_budget(units, random.scores(units, 0), Budget.parse("params=60%"))
    cut = peak(lambda: subject.cut(selection))
    objective = objectives.distil(subject.forward, None, output="logits", task=1.0, fused=True)
    train = peak(lambda: loop.train(subject.model, [batch], objective, steps=2, lr=1e-5, progress=False))
    assert cut < 2.5 * weights, "the original, the cut one, and no third copy"
    assert train < 16 * weights
    note("MiB of weights, and at most in score, cut and training",
         f"{weights:.0f}, and {score:.0f}, {cut:.0f}, {train:.0f}")  # fmt: skip


def test_a_step_of_training_waits_once(note: Note) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).cuda()
    batch = {"inputs": torch.randn(32, 64), "labels": torch.randint(0, 4, (32,))}

    def objective(batch, totals):
        loss = torch.nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
        return loss, {"task": loss.detach()}

    def waits(steps: int) -> int:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loop.train(model, [batch], objective, steps=steps, lr=1e-3, count=lambda batch: {"examples": 32},
                           progress=False)  # fmt: skip
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in heard)

    each = (waits(12) - waits(2)) / 10
    assert each <= 1
    note("waits of the host in a step of training", f"{each:g}")
