"""How long one compressed model with five tasks of 200 items takes, made and asked, beside the answers alone.

    python benchmarks/kick.py                # writes docs/evidence/benchmarks/kick.*
    python benchmarks/kick.py --items 20     # a quick look, writes nothing

A Llama of 6 layers and width 256 (6 million parameters, random weights), prompts of Brown, up to 16 tokens an answer,
on all cores. The goal is a minute for each model: the grid of `secateur study kick` has some thirty.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.clients.completions import Writing
from secateur.data import texts
from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.methods.tasks import Item, Task
from secateur.runs.compression import Config
from secateur.runs.scoring import Held, score_model
from secateur.subjects import Transformer, open_subject
from support import peers
from support.data import packages

METHODS = (("magnitude", "50%"), ("wanda", "50%"), ("sparsegpt", "50%"), ("rtn", "4bit"), ("gptq", "4bit"))
TASKS = 5


def make() -> Transformer:
    """The model, with a tokenizer of 4,096 tokens of Brown."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator((text for _, text in packages.brown()), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=512,
                         pad_token_id=0, eos_token_id=0, bos_token_id=None, **shape)  # fmt: skip
    return open_subject(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def main() -> None:
    """Print the seconds of each method; all of it is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200, help="of each task; with fewer than 200 nothing is written")
    given = parser.parse_args()
    subject, said = make(), [text for _, text in packages.brown() if 8 <= len(text.split()) <= 24]
    held = Held.of(texts.read(said[:4000]), 128)
    tasks = []
    for number in range(TASKS):
        asked = said[5000 + 500 * number :][: given.items]
        items = tuple(Item(str(at), text, ("the",)) for at, text in enumerate(asked))
        tasks.append(Task(f"task {number}", items, writing=Writing(most=16)))
    rows: dict[str, dict[str, float]] = {}
    for method, amount in track(METHODS, description="models"):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            model = score_model(subject, Config(method, amount), tasks, held, Path(folder))
            rows[f"{method} {amount}"] = {"seconds": time.perf_counter() - began, "answers": model.seconds}
    whole = statistics.mean_interval([row["seconds"] for row in rows.values()], unit="s")
    machine = describe()
    lines = [
        "# One compressed model through five tasks", "",
        f"{TASKS} tasks of {given.items} items, up to 16 tokens an answer, a model of "
        f"{sum(p.numel() for p in subject.model.parameters()) / 1e6:.1f} million parameters, {torch.get_num_threads()} "
        "threads.", "",
        "| model | seconds | of which answers |", "| --- | ---: | ---: |",
        *(f"| {name} | {row['seconds']:.1f} | {row['answers']:.1f} |" for name, row in rows.items()),
        "", f"Mean {whole}; the goal is 60 s. {machine.get('cpu')}, commit {machine.get('commit')}.",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if given.items >= 200:
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {"rows": rows, "machine": machine}
        (out / "kick.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "kick.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
