"""ZipLM and Minitron beside random units at the same budget, on small models of families that nobody wrote a table for.

    python benchmarks/derived.py                                      # about two hours on two quiet cores
    python benchmarks/derived.py --only SmolLM3 --train 60 --steps 10 # a quick look

Models of 2 to 5 million parameters are trained on Brown and kept under .cache/claims. Each recipe and its random arm
cut to one budget of parameters and train as many steps against the original. Figures are the loss on held-out text in
nats per token (of masked tokens for a masked language model). Prints them, and with its own steps and seeds writes
docs/evidence/benchmarks/derived.{json,md} after each model; rows of others stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from support.data import packages

sys.path.append(str(Path(__file__).resolve().parents[1]))

import readers
from claims._lab import language, settings
from claims._lab.calling import prune
from secateur.data import texts
from secateur.data.masking import Masked
from secateur.errors import SecateurError
from secateur.methods import distillation
from secateur.recover.training import loop
from secateur.score import random
from secateur.select import ranking
from secateur.subjects import Transformer, open_subject
from secateur.vocabulary import Budget, Training

OUT = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "benchmarks" / "derived.json"
BUDGETS = {"gpt-oss": "params=85%"}
"""Of models whose experts ZipLM leaves whole, so that less can't be met."""
USUAL = "params=70%"
LENGTH, BATCH = 64, 16
HELD = 24
"""Batches of held-out text."""

COMMON = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SmolLM3": ("SmolLM3Config", "SmolLM3ForCausalLM", GROUPED),
    "Qwen3.5": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        GROUPED
        | {"linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 32}
        | {"linear_value_head_dim": 32},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        GROUPED | {"intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    ),
    "ModernBERT": ("ModernBertConfig", "ModernBertForMaskedLM", COMMON),
    "T5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 192, "d_kv": 32, "d_ff": 512, "num_heads": 6, "num_layers": 4, "num_decoder_layers": 4},
    ),
}


PRETRAINING: dict[str, dict[str, Any]] = {
    "ModernBERT": {"batch": 4 * BATCH, "share": 0.3, "lr": 1e-3},
    "T5": {"optimizer": "adafactor", "lr": 1e-2},
}
"""How originals learn, as the published did, that the usual way leaves little better than a guess after as many steps.

Of 16 texts 15 % masked are some 50 tokens to learn from, where a decoder has 1,024; T5's embeddings begin at 1, which
only steps in proportion to what a weight is move soon.
"""


def train_model(name: str, steps: int) -> Transformer:
    """The model trained on Brown, from the cache where it was trained before."""
    config, architecture, shape = MODELS[name]
    how = {"batch": BATCH, "share": 0.15, "lr": 2e-3, "optimizer": "adamw"} | PRETRAINING.get(name, {})
    settled = (config, sorted(shape.items()), steps) + ((sorted(how.items()),) if name in PRETRAINING else ())
    key = hashlib.sha256(repr(settled).encode()).hexdigest()[:12]
    folder = settings.CACHE / "models" / f"derived-{name.lower()}-{steps}-{key}"
    if not (folder / "config.json").exists():
        masked = architecture.endswith("MaskedLM")
        tokenizer = readers.wordpiece(2048, texts=tuple(language.training().texts[:20_000])) if masked else None
        tokenizer = tokenizer or language.tokenizer()
        marks = {mark: getattr(tokenizer, mark) for mark in ("pad_token_id", "eos_token_id", "bos_token_id")}
        marks |= {"decoder_start_token_id": tokenizer.pad_token_id} if "T5" in name else {}
        marks |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id} if masked else {}
        torch.manual_seed(0)
        made = getattr(transformers, config)(vocab_size=len(tokenizer), **shape, **marks)
        subject = open_subject(getattr(transformers, architecture)(made).eval(), tokenizer=tokenizer)

        def objective(batch: Mapping[str, Tensor], totals: Any) -> tuple[Tensor, dict[str, float]]:
            return loss(subject, batch), {}

        feed = make_batches(subject, held=False, batch=how["batch"], share=how["share"])
        lr, optimizer = how["lr"], adafactor if how["optimizer"] == "adafactor" else how["optimizer"]
        loop.train(subject.model, feed, objective, optimizer=optimizer, steps=steps, lr=lr, seed=0, progress=False)
        subject.save(folder)
    return open_subject(folder)


def adafactor(groups: Any) -> torch.optim.Optimizer:
    """Adafactor with steps in proportion to what a weight is; the loop sets the rate."""
    return transformers.Adafactor(groups, lr=1e-2, scale_parameter=True, relative_step=False)


def make_batches(subject: Transformer, *, held: bool, batch: int = BATCH, share: float = 0.15) -> Any:
    """Batches of Brown; with a share of the tokens masked for a masked language model."""
    part = language.split()[held]
    packed = subject.joins_texts and subject.causal
    plain = texts.batches(part, subject.tokenizer, packed=packed, batch=batch, length=LENGTH, seed=0)
    if held:
        plain = plain.take(HELD)
    return plain if subject.causal else Masked(plain, subject.tokenizer, seed=0, share=share)


def loss(subject: Transformer, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the next token, or of the masked ones."""
    logits = subject.forward(
        {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    ).prediction
    if not subject.causal:
        return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def held_out(subject: Transformer) -> float:
    """The mean loss on held-out Brown."""
    subject.model.eval()
    batches = make_batches(subject, held=True)
    return sum(float(loss(subject, batches[number])) for number in range(len(batches))) / len(batches)


def guess(subject: Transformer) -> float:
    """The held-out loss of who knows nothing but how often each token occurs in the texts of training."""
    size = subject.model.get_output_embeddings().weight.shape[0]
    seen, held = (
        torch.cat([targets(subject, batches[number]) for number in range(most)])
        for batches, most in ((make_batches(subject, held=False), 500), (make_batches(subject, held=True), HELD))
    )
    counts = 1.0 + torch.bincount(seen, minlength=size)
    return -float((counts / counts.sum()).log()[held].mean())


def targets(subject: Transformer, batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens that are to be predicted."""
    if not subject.causal:
        return batch["labels"][batch["labels"] != -100]
    return batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] != 0]


def cut_at_random(subject: Transformer, budget: str, steps: int, seed: int) -> Transformer:
    """As many units of every layer gone as the budget asks for, chosen at random, and ZipLM's training."""
    units = subject.units(*[kind for kind in ("kv_groups", "heads", "neurons") if has_kind(subject, kind)][:2])
    selection = ranking.by_budget(units, random.scores(units, seed), Budget.parse(budget), scope="local")
    student, _ = subject.cut(selection)
    with tempfile.TemporaryDirectory() as folder:
        distillation.distil(
            subject, student, language.training(), Path(folder), seed=seed, train_length=LENGTH,
            losses=distillation.BlockLosses(task=None, logit=1.0, token=None, temperature=1.0),
            training=Training(steps=steps, batch=BATCH, lr=5e-4, weight_decay=0.03),
        )  # fmt: skip
    return student


def has_kind(subject: Transformer, kind: str) -> bool:
    """Whether the model has such units, free to go; query heads of a group go with their keys and values."""
    kinds = {site.kind for site in subject.units().free()}
    return kind in kinds and not (kind == "heads" and "kv_groups" in kinds)


def run_arm(arm: str, subject: Transformer, budget: str, steps: int, seed: int) -> Transformer:
    """The student of one arm."""
    data = language.training()
    if arm == "ziplm, random":
        return cut_at_random(subject, budget, steps, seed)
    how: dict[str, Any] = {"seed": seed, "steps": steps, "train_batch": BATCH, "length": LENGTH}
    if arm == "ziplm":
        return prune("ziplm", subject, data, budget, train_length=LENGTH, **how).subject
    axes = [axis for axis in ("heads", "neurons", "channels") if axis not in subject.layout.whole]
    score = "random" if arm.endswith("random") else "activation"
    how |= {"axes": axes, "candidates": 1, "lr": 5e-4, "stages": 1, "score": score}
    return prune("minitron", subject, data, budget, **how).subject


ARMS = ("ziplm", "ziplm, random", "minitron", "minitron, random")


def make_table(options: Mapping[str, int], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as Markdown: losses as mean and range over the seeds, and the share of the parameters left."""
    lines = [
        "# Families that nobody wrote a table for",
        "",
        f"Models trained {options['train']:,} steps on Brown ({' and '.join(PRETRAINING)} as those published:",
        f"30 % of 64 texts masked, and by Adafactor), cut once to the budget and distilled {options['steps']} steps.",
        f"Held-out loss in nats: the mean of {options['seeds']} seeds, the lowest and the highest; then the share of",
        "parameters that is left. Guess: the loss of who knows nothing but how often each token occurs.",
        "",
        "| | parameters | budget | guess | original | " + " | ".join(ARMS) + " |",
        "| --- | ---: | --- | ---: | ---: |" + " ---: |" * len(ARMS),
    ]
    for name, row in rows.items():
        cells = [name, f"{row['params'] / 1e6:.1f}M", row["budget"], f"{row['guess']:.3f}", f"{row['original']:.3f}"]
        for arm in ARMS:
            if isinstance(found := row[arm], str):
                cells.append(f"refused: {found}")
                continue
            losses = found["losses"]
            spread = f"{sum(losses) / len(losses):.3f} [{min(losses):.3f} to {max(losses):.3f}]"
            cells.append(f"{spread}, {found['share']:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--train", type=int, default=2000, help="steps that each model is trained")
    parser.add_argument("--steps", type=int, default=100, help="steps of distillation of each arm")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    packages.brown()
    how = {"train": options.train, "steps": options.steps, "seeds": options.seeds}
    kept = how == {name: parser.get_default(name) for name in how}  # a quick look leaves the record alone
    before = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    rows: dict[str, Any] = before["rows"] if before.get("options") == how else {}
    for name in options.only:
        subject = train_model(name, options.train)
        params = subject.units().cost()["params"]
        budget = BUDGETS.get(name, USUAL)
        row: dict[str, Any] = {"params": params, "budget": budget}
        row |= {"guess": guess(subject), "original": held_out(subject)}
        figures = f"loss {row['original']:.3f}, of a guess {row['guess']:.3f}"
        print(f"{name}: {params / 1e6:.1f}M parameters, {figures}; {budget}", flush=True)
        for arm in ARMS:
            found = list[float]()
            try:
                for seed in range(options.seeds):
                    student = run_arm(arm, subject, budget, options.steps, seed)
                    share = student.units().cost()["params"] / params
                    found.append(held_out(student))
                row[arm] = {"share": share, "losses": found}
                losses = " ".join(f"{value:.3f}" for value in found)
                print(f"  {arm:18} {share:.1%} of the parameters, loss {losses}", flush=True)
            except SecateurError as error:
                row[arm] = str(error)
                print(f"  {arm:18} {error}", flush=True)
        rows[name] = row
        if kept:
            OUT.write_text(json.dumps({"options": how, "rows": rows}, indent=1) + "\n", encoding="utf-8")
            OUT.with_suffix(".md").write_text(make_table(how, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
