"""SparseGPT of secateur beside NVIDIA Model-Optimizer's and LLM Compressor's: perplexity, time and memory in one run.

    python benchmarks/sparse.py                                  # writes docs/evidence/benchmarks/sparse.*
    python benchmarks/sparse.py --layers 2 --rounds 1 --seeds 1  # a quick look, writes nothing

The same model folder and the same calibration windows (a safetensors file) for all, dampening 0.01, blocks of 128
columns; float32, and for time and memory bfloat16 as well, the type that checkpoints come in; all linears of the
decoder's blocks, never the head. Every measurement is a process of its own, and all results are judged by one process.
Each tool lives in an environment of its own under .cache/bench with what it asks for, secateur without any extra.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from support import memory, peers
from support.memory import MIB

PEERS = {
    "secateur": ["-e", str(peers.ROOT)],
    # requests is imported but not asked for by it; its Hugging Face extra wants transformers below 5.15.
    "nvidia-modelopt": ["nvidia-modelopt==0.47.0", "transformers<5.15", "requests"],
    "llmcompressor": ["llmcompressor==0.14.0.1"],
}
OURS, STREAMED, THEIRS, OTHERS = "secateur", "secateur, streamed", "Model-Optimizer", "LLM Compressor"
DENSE = "secateur, streamed, dense inputs"
"""As Model-Optimizer does: a block is judged by what dense blocks before it give, and runs once."""
CONTESTANTS: dict[str, tuple[str, str]] = {
    OURS: ("sparsegpt", "secateur"),
    STREAMED: ("streamed", "secateur"),
    DENSE: ("dense", "secateur"),
    THEIRS: ("modelopt", "nvidia-modelopt"),
    OTHERS: ("llmcompressor", "llmcompressor"),
}
BASELINES: dict[str, tuple[str, str]] = {
    "secateur's wanda": ("wanda", "secateur"),
    "secateur's magnitude": ("magnitude", "secateur"),
}
PATTERN, WIDE, SHARE = "pattern=2:4", "pattern=16:32", "weights=50%"
"""WIDE: as near to any half of the weights as Model-Optimizer's solver comes, see `modelopt`."""
RIVAL = {PATTERN: PATTERN, WIDE: WIDE, SHARE: WIDE}
"""Budget -> that of Model-Optimizer's which it is set against."""
LACKS = {(THEIRS, SHARE): "patterns only"}
DAMP, BLOCK = 0.01, 128
BATCH = 8
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
"""The model that is timed, with random weights: what is computed does not depend on them."""
DTYPES = ("float32", "bfloat16")
WINDOWS, LENGTH = 128, {"trained": 64, "large": 128}
"""Calibration: how many windows, and of how many tokens."""


# ------------------------------------------------------------------------------------------- in the child process

Phases = Iterator[Any]
"""Libraries loaded; model loaded, the model; pruned; saved. A tool stops at each for what is measured there."""


def modelopt(folder: Path, windows: Path, budget: str, out: Path) -> Phases:
    """Its search lets 2:4 through alone, its solver takes any n:m: for any other, that check is left out."""
    import modelopt.torch.sparsity as sparsity
    from modelopt.torch.opt.searcher import BaseSearcher
    from modelopt.torch.sparsity.weight_sparsity.sparsegpt import SparseGPTSearcher
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    yield None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    batches = load_file(windows)["calibration"].split(BATCH)
    yield model
    config = {
        "data_loader": batches,
        # Only the inputs of the blocks' linears are asked for: logits of one place instead of all are kind to it.
        "collect_func": lambda ids: ({"input_ids": ids, "use_cache": False, "logits_to_keep": 1},),
        "pattern": f"{budget.removeprefix('pattern=')} sparsity",
        "hessian_damp": DAMP,
        "col_block_size": BLOCK,
    }
    if budget != PATTERN:
        SparseGPTSearcher.sanitize_search_config = BaseSearcher.sanitize_search_config
    model = sparsity.export(sparsity.sparsify(model, mode="sparsegpt", config=config))
    yield model
    model.save_pretrained(out)
    yield None


def llmcompressor(folder: Path, windows: Path, budget: str, out: Path) -> Phases:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    yield None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids = load_file(windows)["calibration"]
    loader = torch.utils.data.DataLoader([{"input_ids": row} for row in ids], batch_size=BATCH)
    yield model
    modifier = SparseGPTModifier(
        sparsity=0.5,
        mask_structure="0:0" if budget == SHARE else budget.removeprefix("pattern="),
        block_size=BLOCK,
        dampening_frac=DAMP,
        targets=["Linear"],
        ignore=["re:.*lm_head"],
    )
    oneshot(
        model=model,
        dataset=loader,
        recipe=[modifier],
        num_calibration_samples=len(ids),
        max_seq_length=ids.shape[1],
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    yield model
    model.save_pretrained(out)
    yield None


def ours(recipe: str, stream: bool = False, **options: Any) -> Callable[[Path, Path, str, Path], Phases]:
    """A recipe on an opened subject, without what `secateur.run` measures before and after."""

    def tool(folder: Path, windows: Path, budget: str, out: Path) -> Phases:
        import importlib

        from safetensors.torch import load_file

        from secateur._utils import rundir
        from secateur.data import texts
        from secateur.subjects import open_streamed, open_subject
        from secateur.vocabulary import Budget

        prune = getattr(importlib.import_module(f"secateur.recipes.sparse.{recipe}"), recipe)
        yield None
        subject = open_streamed(folder) if stream else open_subject(folder)
        calibration = load_file(windows)["calibration"]
        drawn = [
            {"input_ids": ids, "attention_mask": ids.new_ones(ids.shape)}
            for ids in calibration.split(512 // calibration.shape[1])  # as texts.windows does
        ]
        # The windows of the file, in place of what a recipe would draw from texts.
        texts.windows = lambda *_, **__: (drawn, ())
        yield None if stream else subject.model
        with tempfile.TemporaryDirectory() as work:
            (result,) = prune(subject, None, [Budget.parse(budget)], rundir.Run.open(Path(work), {}), **options)
            yield None
            result.subject.save(out)
        yield None

    return tool


TOOLS: dict[str, Callable[[Path, Path, str, Path], Phases]] = {
    "modelopt": modelopt,
    "llmcompressor": llmcompressor,
    "sparsegpt": ours("sparsegpt"),
    "streamed": ours("sparsegpt", stream=True),
    "dense": ours("sparsegpt", stream=True, sequential=False),
    "wanda": ours("wanda"),
    "magnitude": ours("magnitude"),
}


def child(tool: str, folder: Path, windows: Path, budget: str, out: Path, threads: int) -> dict[str, Any]:
    """Seconds of pruning, and resident bytes: libraries loaded; at the highest while pruning, and from start to end."""
    import torch

    torch.set_num_threads(threads)
    phases = TOOLS[tool](folder, windows, budget, out)
    next(phases)
    libraries = memory.resident()
    model = next(phases)
    if model is not None:  # what is mapped and not yet touched is not resident
        float(sum(parameter.detach().sum() for parameter in model.parameters()))
    before = memory.highest()
    memory.resident()  # what is free is given back before time and memory are taken
    memory.reset()
    began = time.perf_counter()
    next(phases)
    seconds = time.perf_counter() - began
    highest = memory.highest()
    next(phases)
    return {
        "seconds": seconds,
        "libraries": libraries,
        "highest": highest,
        "whole": max(before, memory.highest()),
        "torch": torch.__version__,
    }


def judge(dense: Path, windows: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Of each folder: perplexity on the held-out windows, and what became of the matrices of the dense model."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from secateur.measure import quality
    from secateur.subjects import matrices, open_subject

    held_out = load_file(windows)["held_out"].split(64)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in held_out]
    before = dict(AutoModelForCausalLM.from_pretrained(dense, dtype="float32").named_parameters())
    found = []
    for folder in folders:
        subject = open_subject(folder)
        names = list(matrices.matrices(subject.model, subject.layers()))
        after = dict(subject.model.named_parameters())
        others = [name for name in after if name not in names and not torch.equal(after[name], before[name])]
        assert not others, f"{folder.name}: {others[0]} has changed"
        kept = moved = zeros = total = 0
        regular = True
        for name in names:
            weight = after[name].detach()
            stays = weight != 0
            kept, moved = kept + int(stays.sum()), moved + int((weight != before[name])[stays].sum())
            zeros, total = zeros + int((~stays).sum()), total + weight.numel()
            regular &= bool((stays.unflatten(1, (-1, 4)).sum(-1) <= 2).all())
        perplexity = quality.perplexity(subject.forward, batches).value
        found.append(
            {
                "perplexity": perplexity,
                "zeros": zeros / total,
                "moved": moved / kept,
                "2:4": regular,
                "matrices": len(names),
            }
        )
    return found


# ---------------------------------------------------------------------------------------------------- the parent


def prepared(root: Path, layers: int, seeds: int) -> dict[str, Any]:
    """Folders of both models and files of windows under `root`, made once."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from secateur.data import texts
    from secateur.subjects import open_subject

    sys.path.append(str(peers.ROOT))
    from claims._lab import language

    trained = language.llama()
    tokenizer = trained.tokenizer
    places = {name: root / name for name in ("trained", "large", "bfloat16")}
    trained.save(places["trained"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        num_hidden_layers=layers,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **LARGE,
    )
    large = open_subject(LlamaForCausalLM(config), tokenizer=tokenizer)
    large.save(places["large"])
    large.model.bfloat16()
    large.save(places["bfloat16"])

    def drawn(corpus: Any, length: int, count: int, seed: int) -> Any:
        batches = texts.batches(corpus, tokenizer, packed=True, batch=1, length=length, seed=seed).take(count)
        return torch.cat([batch["input_ids"] for batch in batches])

    held_out = drawn(language.brown().split(seed=0)[1], LENGTH["trained"], 512, 0)
    for model, length in LENGTH.items():
        for seed in range(seeds):
            ids = drawn(language.training(), length, WINDOWS, seed)
            save_file({"calibration": ids, "held_out": held_out}, root / f"{model}-{seed}.safetensors")
    sizes = {"parameters": sum(p.numel() for p in LlamaForCausalLM(config).parameters()), "layers": layers}
    return {name: str(place) for name, place in places.items()} | {"large_size": sizes}


def run(python: str, threads: int, *arguments: object) -> Any:
    """What this file says when `python` runs it with `arguments`, or {"problem": why it says nothing}."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "LLM_COMPRESSOR_LOG_DISABLED": "1"}
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return {"problem": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:160]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, model: str, windows: Path, budget: str, out: Path, threads: int) -> dict[str, Any]:
    tool, peer = (CONTESTANTS | BASELINES)[name]
    python, problem = peers.environment(peer, PEERS[peer])
    if problem or (name, budget) in LACKS:
        return {"problem": problem or LACKS[name, budget]}
    print(f"{name}, {budget}, {Path(model).name}, {threads} threads", file=sys.stderr)
    arguments = ("--child", tool, "--model", model, "--windows", windows, "--budget", budget, "--out", out)
    return dict(run(python, threads, *arguments, "--threads", threads))


def quality(models: dict[str, Any], root: Path, seeds: int) -> dict[str, Any]:
    """Budget -> contestant -> what the judge finds, over calibration draws; and the dense model."""
    dense = models["trained"]
    found: dict[str, Any] = {"dense": judged(dense, root / "trained-0.safetensors", [Path(dense)])[0]}
    for budget in RIVAL:
        rows = found.setdefault(budget, {})
        for name in [*CONTESTANTS, *BASELINES]:
            made = []
            for seed in range(seeds):
                windows, out = root / f"trained-{seed}.safetensors", root / "result"
                one = measure(name, dense, windows, budget, out, 1)
                made.append(one if "problem" in one else judged(dense, windows, [out])[0])
                shutil.rmtree(out, ignore_errors=True)
            problem = next((one for one in made if "problem" in one), None)
            rows[name] = problem or {key: [one[key] for one in made] for key in made[0]}
    return found


def judged(dense: str, windows: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    found = run(sys.executable, 1, "--judge", *folders, "--model", dense, "--windows", windows)
    if isinstance(found, dict):
        raise SystemExit(f"the judge {found['problem']}")
    return list(found)


def speed(
    models: dict[str, Any], root: Path, rounds: int, threads: Sequence[int], model: str
) -> dict[int, dict[str, Any]]:
    """Threads -> contestant -> seconds and MiB of each round. All take turns, so that a drift meets all alike."""
    found: dict[int, dict[str, Any]] = {}
    for count in threads:
        rows: dict[str, Any] = found.setdefault(count, {})
        for number in range(rounds):
            for name in list(CONTESTANTS)[:: 1 if number % 2 == 0 else -1]:
                if "problem" in rows.get(name, {}):
                    continue
                one = measure(name, models[model], root / "large-0.safetensors", PATTERN, root / "result", count)
                shutil.rmtree(root / "result", ignore_errors=True)
                if "problem" in one:
                    rows[name] = one
                    continue
                row = rows.setdefault(name, {key: [] for key in COLUMNS})
                row["seconds"].append(one["seconds"])
                row["above_libraries"].append((one["highest"] - one["libraries"]) / MIB)
                row["in_all"].append(one["highest"] / MIB)
                row["whole"].append(one["whole"] / MIB)
                row["torch"] = one["torch"]
    return found


# ----------------------------------------------------------------------------------------------------- the report


def quality_table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Dense: perplexity {found['dense']['perplexity']:.2f}.",
        "",
        "| budget | tool | perplexity, mean | least to most | of Model-Optimizer's | zeros | 2:4 everywhere "
        "| kept weights that moved |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for budget, theirs in RIVAL.items():
        for name, row in found[budget].items():
            if "problem" in row:
                lines.append(f"| {budget} | {name} | {row['problem']} | | | | | |")
                continue
            values, mean = row["perplexity"], statistics.mean(row["perplexity"])
            rival = found[theirs].get(THEIRS, {}).get("perplexity")
            share = f"{mean / statistics.mean(rival):.3f}" if rival else ""
            lines.append(
                f"| {budget} | {name} | {mean:.2f} | {min(values):.2f} to {max(values):.2f} | {share} | "
                f"{statistics.mean(row['zeros']):.2%} | {'yes' if all(row['2:4']) else 'no'} | "
                f"{statistics.mean(row['moved']):.1%} |"
            )
    return [*lines, ""]


COLUMNS = {
    "seconds": "seconds",
    "above_libraries": "MiB above the libraries",
    "in_all": "MiB in all",
    "whole": "loading and saving too",
}


def speed_table(found: dict[int, dict[str, Any]]) -> list[str]:
    heads = " | ".join(f"{title} | of Model-Optimizer's" for title in COLUMNS.values())
    lines = [f"| threads | tool | {heads} |", "| --- | --- |" + " ---: | ---: |" * len(COLUMNS)]
    for threads, rows in found.items():
        for name, row in rows.items():
            if "problem" in row:
                lines.append(f"| {threads} | {name} | {row['problem']} |" + " |" * (2 * len(COLUMNS) - 1))
                continue
            cells = []
            for key in COLUMNS:
                value, share = statistics.median(row[key]), ratio(rows, name, key)
                cells += [f"{value:,.1f}", f"{share:.2f}" if share else ""]
            lines.append(f"| {threads} | {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def ratio(rows: dict[str, Any], name: str, key: str) -> float | None:
    """A contestant's median over Model-Optimizer's."""
    ours, theirs = rows.get(name, {}).get(key), rows.get(THEIRS, {}).get(key)
    return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None


def claims(quality: dict[str, Any], speeds: dict[str, Any]) -> dict[str, Any]:
    """What is asked of secateur, and what came out."""
    found: dict[str, Any] = {}
    for name, (budget, rival) in itertools.product((OURS, STREAMED, DENSE), RIVAL.items()):
        ours = quality.get(budget, {}).get(name, {}).get("perplexity")
        theirs = quality.get(rival, {}).get(THEIRS, {}).get("perplexity")
        if ours and theirs:
            found[f"{name}: perplexity of theirs, {budget}"] = statistics.mean(ours) / statistics.mean(theirs)
    for dtype, speed in ((dtype, speeds[dtype]) for dtype in DTYPES if dtype in speeds):
        for threads, rows in speed.items():
            for name in (OURS, STREAMED, DENSE):
                for key in COLUMNS:
                    found[f"{name}: {key} of theirs, {dtype}, {threads} threads"] = ratio(rows, name, key)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the model that is timed")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each tool")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration windows, for perplexity")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=["quality", "speed"], help="measure one half, keep the other")
    for hidden in ("--child", "--budget"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--model", "--windows", "--out"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--judge", type=Path, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        threads = options.threads[0]
        print(json.dumps(child(options.child, options.model, options.windows, options.budget, options.out, threads)))
        return
    if options.judge:
        print(json.dumps(judge(options.model, options.windows, options.judge)))
        return
    report(options)


def report(options: argparse.Namespace) -> None:
    out = peers.ROOT / "docs" / "evidence" / "benchmarks"
    record = out / "sparse.json"
    found: dict[str, Any] = {}
    if options.only and record.exists():  # the other half stays as it was measured, with its commit
        found = json.loads(record.read_text(encoding="utf-8"))
    from secateur.measure.environment import describe

    machine = describe()
    with tempfile.TemporaryDirectory(prefix="sparse-") as folder:
        root = Path(folder)
        models = prepared(root, options.layers, options.seeds)
        if options.only != "speed":
            found["quality"] = quality(models, root, options.seeds) | {"commit": machine.get("commit")}
        if options.only != "quality":
            found["speed"] = {
                "commit": machine.get("commit"),
                "size": models["large_size"],
                **{
                    dtype: speed(models, root, options.rounds, options.threads, model)
                    for dtype, model in zip(DTYPES, ("large", "bfloat16"), strict=True)
                },
            }
    found["claims"], found["machine"] = claims(found.get("quality", {}), found.get("speed", {})), machine
    text = "\n".join(written(found))
    print(text)
    if options.layers == 4 and options.rounds >= 3 and options.seeds >= 3 and {"quality", "speed"} <= found.keys():
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "sparse.md").write_text(text + "\n", encoding="utf-8")


def written(found: dict[str, Any]) -> list[str]:
    lines, machine = ["# SparseGPT", ""], found["machine"]
    if "quality" in found:
        lines += [f"**Perplexity: a Llama trained on Brown, {WINDOWS} windows of {LENGTH['trained']} tokens**", ""]
        lines += quality_table(found["quality"])
    for dtype in DTYPES if "speed" in found else ():
        size = found["speed"]["size"]
        lines += [
            f"**Time and memory at 2:4, {dtype}: a Llama of {size['layers']} layers and "
            f"{size['parameters'] / 1e6:.0f} M random weights, {WINDOWS} windows of {LENGTH['large']} tokens**",
            "",
            *speed_table(found["speed"][dtype]),
        ]
    versions = ", ".join(
        f"{name} {peers.version(peer, PEERS[peer])} (transformers {peers.version(peer, PEERS[peer], 'transformers')})"
        for name, (_, peer) in CONTESTANTS.items()
        if name in (OURS, THEIRS, OTHERS)
    )
    commits = ", ".join(f"{half} {found[half]['commit']}" for half in ("quality", "speed") if half in found)
    return [
        *lines,
        f"Perplexity in float32; dampening {DAMP}, blocks of {BLOCK} columns, batches of {BATCH} windows, or of "
        "512 tokens for secateur; the linears of the decoder's blocks alone. Medians, each of a fresh process; "
        "the tools take turns. MiB: the highest resident size while pruning, above what the libraries had taken and in "
        "all, and from the start of the process to its end. Model-Optimizer gives masks, and leaves the weights that "
        f"stay as they were; its search lets 2:4 through alone, its solver any n:m, so that for {WIDE} the check was "
        f"left out, and {SHARE} is set against that. Streamed: blocks are read from the disk one at a time, and no "
        "model is loaded before. Dense inputs: blocks read what dense ones before them give, as those of "
        "Model-Optimizer do (`--no-sequential`).",
        f"{machine.get('cpu')}, {machine.get('logical_cores')} cores, Python {platform.python_version()}, torch "
        f"{machine.get('torch')}; {versions}; commits: {commits}.",
    ]


if __name__ == "__main__":
    main()
