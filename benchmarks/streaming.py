"""A checkpoint of 2 GiB, pruned block by block from the disk: peak memory, and whether kill -9 leaves a trace.

    python benchmarks/streaming.py                    # writes docs/evidence/benchmarks/streaming.*
    python benchmarks/streaming.py --layers 2 --kills 2   # a quick look, writes nothing

The shape of TinyLlama (1.1 billion parameters, bfloat16) with random weights, in one safetensors file per block. Wanda
and SparseGPT prune it to 2:4 with `stream=True`: once undisturbed, in a process whose highest resident size is compared
with what it held once all libraries were loaded; and once by the command line, killed by SIGKILL at random moments
within random blocks and started again, until it is done. All files of both models must be the same, byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support import memory, peers
from support.memory import MIB

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LAYERS = 22
BUDGET = "pattern=2:4"
RECIPES = ("wanda", "sparsegpt")
LIMIT = 1024  # MiB above the libraries


def checkpoint(folder: Path, layers: int) -> Path:
    """A Llama of SHAPE in bfloat16, with weights drawn tensor by tensor: no more than one block is ever in memory."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small(folder.parent / "small").tokenizer
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(**SHAPE, **ends, num_hidden_layers=layers, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with init_empty_weights():
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split(".")[2] if ".layers." in name else "rest", []).append(name)
    draw, index = torch.Generator().manual_seed(0), {}
    for number, names in enumerate(parts.values(), start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        state = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if len(shapes[name]) == 1
            else torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0.0, 0.02, generator=draw)
            for name in names
        }
        save_file(state, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    (folder / "complete").touch()
    return folder


def small(folder: Path) -> Any:
    """A Llama of one small block with the claims' tokenizer: a run on it loads whatever a run needs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from secateur.subjects import open_subject

    sys.path.append(str(peers.ROOT))
    from claims._lab import language

    tokenizer = language.llama().tokenizer
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = language.SHAPE | {"num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    subject = open_subject(LlamaForCausalLM(LlamaConfig(**shape, **ends)), tokenizer=tokenizer)
    subject.save(folder)
    return subject


def texts(file: Path, count: int) -> Path:
    """The first `count` Brown sentences that the claims use."""
    sys.path.append(str(peers.ROOT))
    from claims._lab import language

    file.write_text("\n".join(language.brown().texts[:count]) + "\n", encoding="utf-8")
    return file


# ------------------------------------------------------------------------------------------- in the child process


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and MiB of one undisturbed run, of everything `secateur.run` does."""
    import torch

    import secateur

    torch.set_num_threads(options.threads)
    chosen: dict[str, Any] = {"samples": options.samples, "length": options.length, "stream": True}

    def once(model: Path, out: Path) -> None:
        secateur.run(options.child, str(model), str(options.data), BUDGET, str(out), threads=options.threads, **chosen)

    with tempfile.TemporaryDirectory() as aside:
        once(options.model.parent / "small", Path(aside, "run"))
    before = memory.resident()
    memory.reset()
    began = time.perf_counter()
    once(options.model, options.out)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "libraries_mib": before / MIB, "above_mib": (memory.highest() - before) / MIB}


# ---------------------------------------------------------------------------------------------------- the parent


def undisturbed(recipe: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What the child says of one run."""
    print(f"{recipe}: undisturbed", file=sys.stderr)
    command = [sys.executable, __file__, "--child", recipe, "--out", str(out)]
    for name in ("model", "data", "samples", "length", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment(options))
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def environment(options: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}


def killed(recipe: str, options: argparse.Namespace, out: Path, seconds: float) -> list[int]:
    """Run by the command line, killed `options.kills` times; how many blocks were done at each kill.

    Each life does at least one block, and ends at a random moment within a later one.
    """
    draw = random.Random(0)
    blocks = sorted(draw.sample(range(options.layers), min(options.kills, options.layers)))
    deaths: list[int] = []
    for block in blocks:
        process = started(recipe, options, out)
        target = max(block, deaths[-1] + 1 if deaths else 0)
        while finished(out) < target and process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.random() * seconds / options.layers)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        deaths.append(finished(out))
        print(f"{recipe}: killed with {deaths[-1]} blocks done", file=sys.stderr)
    if started(recipe, options, out).wait():
        raise SystemExit(f"{recipe}: the resumed run failed")
    return deaths


def started(recipe: str, options: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(recipe, options, out), stdout=subprocess.DEVNULL, env=environment(options))


def command(recipe: str, options: argparse.Namespace, out: Path) -> list[str]:
    chosen = ["--samples", str(options.samples), "--length", str(options.length), "--threads", str(options.threads)]
    start = [sys.executable, "-m", "secateur", "run", recipe, str(options.model), "--budget", BUDGET]
    return [*start, "--data", str(options.data), "--out", str(out), "--stream", *chosen]


def finished(out: Path) -> int:
    """How many blocks the run directory holds."""
    return len(list(out.glob("work/**/block-*.safetensors")))


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of each file of a model."""
    return {
        path.name: hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".json") and path.name != "evidence.json"
    }


def rows(found: dict[str, Any]) -> Iterator[str]:
    yield "| recipe | seconds | MiB with libraries | MiB above them | blocks done at each kill | the same bytes |"
    yield "| --- | ---: | ---: | ---: | --- | --- |"
    for recipe, row in found.items():
        deaths = ", ".join(map(str, row["deaths"]))
        same = f"yes, {row['files']} files" if row["same"] else f"no: {', '.join(row['different'])}"
        yield (
            f"| {recipe} | {row['seconds']:,.0f} | {row['libraries_mib']:,.0f} | {row['above_mib']:,.0f} | {deaths} "
            f"| {same} |"
        )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--samples", type=int, default=16, help="calibration windows")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    for hidden in ("--model", "--data", "--out"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child:
        print(json.dumps(child(options)))
        return
    cache = peers.ROOT / ".cache" / "bench" / "streaming"
    options.model = checkpoint(cache / f"llama-{options.layers}", options.layers)
    options.data = texts(cache / "texts.txt", 2000)
    size = sum(path.stat().st_size for path in options.model.glob("*.safetensors"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=cache) as folder:
        for recipe in options.recipes:
            one, other = Path(folder, f"{recipe}-1"), Path(folder, f"{recipe}-2")
            found[recipe] = undisturbed(recipe, options, one)
            found[recipe]["deaths"] = killed(recipe, options, other, found[recipe]["seconds"])
            first, second = digests(one), digests(other)
            different = [name for name in first | second if first.get(name) != second.get(name)]
            found[recipe] |= {"same": not different, "files": len(first), "different": different}
    from secateur.measure.environment import describe

    machine = describe()
    lines = [
        "# Streaming",
        "",
        f"A Llama of {options.layers} blocks with random weights in bfloat16, {size / 2**30:.2f} GiB, pruned to 2:4 "
        f"block by block from the disk; {options.samples} windows of {options.length} tokens.",
        "",
        *rows(found),
        "",
        "MiB above them: the highest resident size during all of `secateur.run(..., stream=True)`, measurements and "
        f"saving too, less what the process held once it had loaded all libraries (asked for: under {LIMIT:,}). Each "
        "kill is by SIGKILL, at a random moment within a block; then the same command is given again.",
        f"{machine.get('cpu')}, {options.threads} threads, torch {machine.get('torch')}, transformers "
        f"{machine.get('transformers')}, commit {machine.get('commit')}.",
    ]
    text = "\n".join(lines)
    print(text)
    if (options.layers, options.recipes) == (LAYERS, list(RECIPES)):
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        out.mkdir(parents=True, exist_ok=True)
        record = {"bytes": size, "rows": found, "machine": machine}
        (out / "streaming.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "streaming.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
