"""Chats, from a JSONL file to a smaller model that answers: cut, distilled on answers alone, loaded by transformers.

    python examples/journey_chat.py [FOLDER]

Sentences come from the Brown corpus where npm is there, else from Python's own prose: each chat asks what a sentence
is like. A model of Qwen3's architecture and 20 million parameters learns to answer, is made smaller by the command that
a user would type, and answers in a process that knows nothing of secateur. Takes some ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHATS = 4000
STEPS, BATCH, LENGTH = 150, 8, 80
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = """
import json, sys
sys.modules["secateur"] = None  # whoever imports it fails
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for question in json.loads(sys.argv[2]):
    asked = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    print(json.dumps(tokenizer.decode(said[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()))
"""


def make_chats() -> list[dict[str, Any]]:
    """Questions about sentences, and their answers."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where packages are fetched by name
    from assets import packages
    from secateur.errors import DataError

    try:
        sentences = [(f" It is from {genre.replace('_', ' ')}.", text) for genre, text in packages.brown()]
    except DataError as error:
        print(f"    {error}\n    Asking about English prose that ships with Python instead.")
        sentences = [("", text) for text in packages.standard_library_text()]
    sentences = [(kind, text) for kind, text in sentences if 4 <= len(text.split()) <= 18]
    rows = []
    for kind, text in sentences[:: max(1, len(sentences) // CHATS)][:CHATS]:
        size = "long" if len(text.split()) > 12 else "short"
        messages = [
            {"role": "user", "content": f"What is this sentence like? {text}"},
            {"role": "assistant", "content": f"It is a {size} sentence.{kind}"},
        ]
        rows.append({"messages": messages})
    random.Random(0).shuffle(rows)
    return rows


def make_tokenizer(rows: list[dict[str, Any]]) -> Any:
    """A tokenizer of byte pairs, trained on the chats, with a chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    spoken = (message["content"] for row in rows for message in row["messages"])
    trained.train_from_iterator(spoken, vocab_size=4096, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def teach(tokenizer: Any, data: Path, folder: Path) -> None:
    """A Qwen3 of twenty million parameters that learns the answers: the model that a user would already have."""
    from dataclasses import replace

    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from secateur.data import texts
    from secateur.recover.training import loop, objectives
    from secateur.subjects import open_subject

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1280, num_hidden_layers=10, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    subject = open_subject(Qwen3ForCausalLM(config), tokenizer=tokenizer)
    corpus = replace(texts.read(data), completion_only=True, packing="documents")
    batches = texts.batches(corpus, tokenizer, packed=True, batch=BATCH, length=LENGTH)
    objective = objectives.distil(subject.forward, None, output="logits", task=1.0, fused=True)
    record = loop.train(subject.model, batches, objective, steps=STEPS, lr=1e-3, warmup=0.1)
    count = sum(parameter.numel() for parameter in subject.model.parameters())
    print(f"    {count / 1e6:.1f} million parameters, loss {record.losses[0][1]:.2f} -> {record.losses[-1][1]:.2f}")
    subject.save(folder)


def main() -> int:
    """Run, print what came out. Returns the exit code."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as aside:
        out = Path(sys.argv[1] if len(sys.argv) > 1 else aside).resolve()  # the answers come from inside it
        out.mkdir(parents=True, exist_ok=True)
        print("1/4 chats as JSONL, and a tokenizer with a chat template")
        rows = make_chats()
        data = out / "chats.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[:-200]), encoding="utf-8")
        held_out = out / "held-out.jsonl"
        held_out.write_text("".join(json.dumps(row) + "\n" for row in rows[-200:]), encoding="utf-8")
        print("2/4 a model that answers")
        teach(make_tokenizer(rows), data, out / "model")
        command = [
            sys.executable, "-m", "secateur", "run", "minitron", out / "model", "--data", data, "--held-out", held_out,
            "--budget", "params=60%", "--completion-only", "--packing", "documents", "--out", out / "small",
            "--overwrite", "--length", LENGTH, "--training", f"steps=60,batch={BATCH},lr=1e-3", "--candidates", 2,
            "--short-steps", 5, "--calibration", 64,
        ]  # fmt: skip
        print("3/4", " ".join(map(str, ["secateur", *command[3:]])))
        cut = subprocess.run(list(map(str, command)))
        if cut.returncode not in (0, 1):  # 1: the clock of a small model on a busy machine may miss a promise
            return cut.returncode
        print("4/4 answers of the small model, in a process without secateur")
        questions = [row["messages"][0]["content"] for row in rows[-5:]]
        arguments = [sys.executable, "-c", ANSWER, str(out / "small"), json.dumps(questions)]
        said = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, cwd=out)
        answers = [json.loads(line) for line in said.stdout.splitlines()]
        for question, answer in zip(questions, answers, strict=True):
            print(f"    {question}\n    -> {answer}")
    good = sum(answer.startswith("It is a ") and answer.endswith(".") for answer in answers)
    print(f"{good} of {len(answers)} answers have the form that was learned; {time.perf_counter() - began:.0f} s")
    return 0 if good == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
