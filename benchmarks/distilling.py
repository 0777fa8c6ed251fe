"""A step of distillation, teacher's pass to student's gradient, beside peers; and learning from a cache of the teacher.

    python benchmarks/distilling.py                                   # writes docs/evidence/benchmarks/distilling.*
    python benchmarks/distilling.py --rounds 1 --vocabularies 8192    # a quick look at the step, writes nothing
    python benchmarks/distilling.py --only cache                      # that half anew, beside the other's figures

The step: the same two Llamas (folders), the same batch, float32, forward KL at temperature 1 over all tokens. Every
measurement is a process of its own; all take turns. Memory is the highest resident size of a step less what was
resident with both models loaded, so it holds activations, the loss's own and the student's gradient, which has to
exist. The gradient of each is compared with the plain formula's.

The cache: a student of less than a quarter of a trained teacher's size learns from 64 of its tokens at each place, on
disk, the likeliest and some drawn from the others; and beside it, from the same weights on the same batches, from
the teacher itself: perplexity on held-out text. Tokens/s are of shorter trainings that take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import memory, peers
from support.memory import MIB

PEERS = {
    **peers.DISTILLERS,
    # requests is imported but not asked for by it; its Hugging Face extra wants transformers below 5.15.
    "nvidia-modelopt": ["nvidia-modelopt==0.47.0", "transformers<5.15", "requests"],
}
OURS, PLAIN = "secateur", "plain PyTorch"
CONTESTANTS: dict[str, str | None] = {
    OURS: None,
    PLAIN: None,
    "torchtune ForwardKLWithChunkedOutputLoss": "torchtune",
    "TRL generalized_jsd_loss (beta=0)": "trl",
    "Model-Optimizer LogitsDistillationLoss": "nvidia-modelopt",
}
STUDENT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
TEACHER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
BATCH, LENGTH = 4, 256
K, STEPS = 64, 600
PAIRS, SHORT = 6, 60


# ------------------------------------------------------------------------------------------- in the child process

Loss = Callable[[Any, Any, Any], Any]
"""(student, teacher, input ids [B, S]) -> mean forward KL per token."""


def loss_of(name: str, student: Any, teacher: Any) -> Loss:
    """The step of one contestant, up to the loss, as its own documentation has it."""
    import torch
    from torch.nn import functional

    def both(s: Any, t: Any, ids: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            target = t(input_ids=ids, use_cache=False).logits
        return s(input_ids=ids, use_cache=False).logits, target

    if name == OURS:
        from secateur.recover.training import objectives
        from secateur.subjects import open_subject

        pupil, master = open_subject(student), open_subject(teacher)
        objective = objectives.distil(pupil.forward, master.forward, output="logits", fused=True)

        def ours(s: Any, t: Any, ids: Any) -> Any:
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return objective(batch, objectives.count(batch))[0]

        return ours
    if name == PLAIN:

        def plain(s: Any, t: Any, ids: Any) -> Any:
            ours, theirs = both(s, t, ids)
            target = functional.softmax(theirs, -1)
            return functional.kl_div(functional.log_softmax(ours, -1), target, reduction="sum") / ids.numel()

        return plain
    if name.startswith("torchtune"):
        from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

        chunked = ForwardKLWithChunkedOutputLoss(num_output_chunks=8)

        def in_chunks(s: Any, t: Any, ids: Any) -> Any:
            # Its decoders put the head on one piece of the states after the other, and hand out the list.
            with torch.no_grad():
                theirs = [t.lm_head(part) for part in t.model(input_ids=ids, use_cache=False)[0].chunk(8, dim=1)]
            ours = [s.lm_head(part) for part in s.model(input_ids=ids, use_cache=False)[0].chunk(8, dim=1)]
            return chunked(ours, theirs, torch.zeros_like(ids))

        return in_chunks
    if name.startswith("TRL"):
        try:
            from trl.experimental.gkd import GKDTrainer
        except ImportError:
            from trl import GKDTrainer

        def jsd(s: Any, t: Any, ids: Any) -> Any:
            ours, theirs = both(s, t, ids)
            return GKDTrainer.generalized_jsd_loss(ours, theirs, beta=0.0, reduction="sum") / ids.numel()

        return jsd
    import modelopt.torch.distill as distill

    criterion = {("lm_head", "lm_head"): distill.LogitsDistillationLoss(reduction="none")}
    one = distill.convert(student, mode=[("kd_loss", {"teacher_model": teacher, "criterion": criterion})])
    one.train()  # which returns nothing

    def converted(s: Any, t: Any, ids: Any) -> Any:
        one(input_ids=ids, use_cache=False)
        return one.compute_kd_loss(loss_reduction_fn=lambda rows: rows.sum() / ids.numel())

    return converted


def child(name: str, folder: Path, repeats: int, gradient: Path | None) -> dict[str, Any]:
    """Seconds of each step and the highest memory of one, in MiB; the gradient of the student goes to a file."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / which, dtype=torch.float32, attn_implementation="sdpa")
        for which in ("student", "teacher")
    )
    student.train()
    teacher.eval().requires_grad_(False)
    weights = dict(student.named_parameters())  # by their own names, whatever a tool wraps around them
    ids = load_file(folder / "batch.safetensors")["ids"]
    loss = loss_of(name, student, teacher)

    def step(part: Any) -> float:
        for weight in weights.values():
            weight.grad = None
        began = time.perf_counter()
        loss(student, teacher, part).backward()
        return time.perf_counter() - began

    step(ids[:1, :8])  # threads, kernels and imports, before anything is counted
    for weight in weights.values():
        weight.grad = None
    for model in (student, teacher):  # what is mapped and not yet touched is not resident
        float(sum(weight.detach().sum() for weight in model.parameters()))
    loaded = memory.resident()
    memory.reset()
    times = [step(ids)]
    highest = memory.highest()
    times += [step(ids) for _ in range(repeats)]
    if gradient is not None:
        save_file({key: weight.grad.contiguous() for key, weight in weights.items()}, gradient)
    return {
        "seconds": times[1:],
        "mib": (highest - loaded) / MIB,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cached(seed: int, steps: int) -> dict[str, Any]:
    """Perplexity and tokens/s of a student that learns from the cache, and from the teacher itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.append(str(peers.ROOT))
    from claims._lab import language
    from secateur.measure import quality
    from secateur.recover.distillation import teachers
    from secateur.recover.training import loop, objectives
    from secateur.subjects import open_subject

    teacher = language.llama()
    small = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = LlamaConfig(**{**teacher.model.config.to_dict(), **language.SHAPE, **small})
    feed = language.batches(teacher, seed=seed)
    held = language.batches(teacher, seed=0, held=True).take(60)
    found: dict[str, Any] = {"steps": steps}

    def taught(how: str, count: int) -> tuple[Any, float]:
        """The student after `count` steps, and its tokens/s."""
        torch.manual_seed(seed)
        student, live = open_subject(LlamaForCausalLM(config), tokenizer=teacher.tokenizer), how == "live"
        objective = objectives.distil(student.forward, teacher.forward if live else None, output="logits", fused=True)
        done = loop.train(
            student.model, feed if live else known, objective, steps=count, lr=2e-3, seed=seed, progress=False,
            frozen=(teacher.model,) if live else (),
        )  # fmt: skip
        return student, done.tokens / done.seconds

    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        began = time.perf_counter()
        known = teachers.join_topk(
            folder, teacher.model, teacher.forward, teacher.tokenizer, feed, steps,
            k=K, drawn=K - 1, temperature=1.0, key={"data": language.training().digest, "seed": seed},
        )  # fmt: skip
        found["filling"] = time.perf_counter() - began
        found["bytes"] = sum(file.stat().st_size for file in Path(folder).iterdir())
        hows = ("live", "cache")
        for how in hows:
            student = taught(how, steps)[0]
            found[how] = {"perplexity": quality.perplexity(student.forward, held).value}
        turns = [{how: taught(how, SHORT)[1] for how in hows[:: 1 if turn % 2 else -1]} for turn in range(PAIRS)]
        found["turns"] = turns
        for how in hows:
            found[how]["tokens_per_second"] = statistics.median(turn[how] for turn in turns)
    found["sizes"] = [sum(p.numel() for p in one.model.parameters()) for one in (teacher, student)]
    found["teacher"] = quality.perplexity(teacher.forward, held).value
    return found


# ---------------------------------------------------------------------------------------------------- the parent


def prepared(root: Path, vocabulary: int) -> Path:
    """A folder with both models, random weights, and a batch."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = root / str(vocabulary)
    torch.manual_seed(0)
    for name, shape in (("student", STUDENT), ("teacher", TEACHER)):
        config = LlamaConfig(
            vocab_size=vocabulary, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=LENGTH,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, **shape,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
    save_file({"ids": torch.randint(vocabulary, (BATCH, LENGTH))}, folder / "batch.safetensors")
    return folder


def run(python: str, *arguments: object) -> dict[str, Any]:
    """What this file says when `python` runs it with `arguments`, or {"problem": why it says nothing}."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode < 0:
        return {"problem": "killed: out of memory"}
    if done.returncode:
        return {"problem": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:160]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def steps(folder: Path, rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Contestant -> seconds and MiB; each in turn, several times over, so that a drift of the machine meets all."""
    rows: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name, peer in list(CONTESTANTS.items())[:: 1 if number % 2 == 0 else -1]:
            if "problem" in rows.get(name, {}):
                continue
            python, problem = peers.environment(peer, PEERS.get(peer or "", []))
            print(f"round {number + 1}/{rounds}: {name}, vocabulary {folder.name}", file=sys.stderr)
            arguments = ("--child", name, "--folder", folder, "--repeats", repeats)
            keep = ("--gradient", folder / f"{len(rows)}.safetensors") if name not in rows else ()
            one = {"problem": problem} if problem else run(python, *arguments, *keep)
            if name not in rows or "problem" in one:
                rows[name] = one | ({"gradient": str(keep[1])} if keep else {})
            else:
                rows[name]["seconds"] += one["seconds"]
                rows[name]["mib"] = max(rows[name]["mib"], one["mib"])
    return rows


def judge(rows: dict[str, dict[str, Any]]) -> None:
    """Add medians, and how far each gradient is from the plain formula's, as a share of its largest entry."""
    from safetensors.torch import load_file

    truth = load_file(rows[PLAIN].pop("gradient"))
    for name, row in rows.items():
        if "problem" in row:
            continue
        found = truth if name == PLAIN else load_file(row.pop("gradient"))
        assert found.keys() == truth.keys(), f"{name} trains other parameters"
        row["gradient_difference"] = max(
            float((found[key] - value).abs().max() / value.abs().max()) for key, value in truth.items()
        )
        row["median"] = statistics.median(row["seconds"])


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| tool | seconds a step, median | least to most | MiB above the models | gradient's difference |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        if "problem" in row:
            lines.append(f"| {name} | {row['problem']} | | | |")
            continue
        version = f" {row['version']}" if row.get("version") else ""
        lines.append(
            f"| {name}{version} | {row['median']:.2f} | {min(row['seconds']):.2f} to {max(row['seconds']):.2f} | "
            f"{row['mib']:,.0f} | {row['gradient_difference']:.1e} |"
        )
    return [*lines, ""]


def claims(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours over the fastest and the leanest of the peers, the plain formula not among them."""
    rivals = [row for name, row in rows.items() if name not in (OURS, PLAIN) and "problem" not in row]
    if not rivals or "problem" in rows[OURS]:
        return {}
    return {
        "time_of_fastest_peer": rows[OURS]["median"] / min(row["median"] for row in rivals),
        "memory_of_leanest_peer": rows[OURS]["mib"] / min(row["mib"] for row in rivals),
        "gradient_difference": rows[OURS]["gradient_difference"],
    }


def cache_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| seed | perplexity, teacher | live | cache | cache / live | tokens/s, live | cache | cache / live |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    quality, speed = [], []
    for seed, one in enumerate(found):
        live, cache = one["live"], one["cache"]
        quality.append(cache["perplexity"] / live["perplexity"])
        speed.append(statistics.median(turn["cache"] / turn["live"] for turn in one["turns"]))
        lines.append(
            f"| {seed} | {one['teacher']:.2f} | {live['perplexity']:.2f} | {cache['perplexity']:.2f} | "
            f"{quality[-1]:.4f} | {live['tokens_per_second']:,.0f} | {cache['tokens_per_second']:,.0f} | "
            f"{speed[-1]:.2f} |"
        )
    from secateur.measure.statistics import mean_interval

    sizes, filled = found[0]["sizes"], statistics.median(one["filling"] for one in found)
    lines += [
        "",
        f"Perplexity {mean_interval(quality)} of live (asked: at most 1.02), speed {mean_interval(speed)} of live "
        f"(asked: at least 1.8). Teacher {sizes[0]:,}, student {sizes[1]:,} parameters, "
        f"{found[0]['steps']} steps; speed is the median of {len(found[0]['turns'])} pairs of trainings of {SHORT}. "
        "The cache holds "
        f"{found[0]['bytes'] / MIB:.0f} MiB and took {filled:.0f} s to fill, once for all students.",
        "",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32_000, 128_256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps per process")
    parser.add_argument("--seeds", type=int, default=3, help="of the students that learn from a cache")
    parser.add_argument("--only", choices=["step", "cache"], help="measure one half, keep the other")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for hidden in ("--folder", "--gradient"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.folder, options.repeats, options.gradient)))
        return

    out = peers.ROOT / "docs" / "evidence" / "benchmarks"
    record = out / "distilling.json"
    found: dict[str, Any] = {}
    if options.only and record.exists():  # the other half stays as it was measured, with its commit
        found = json.loads(record.read_text(encoding="utf-8"))
    from secateur.measure.environment import describe  # children of peers run without secateur

    machine = describe()
    if options.only != "cache":
        found["steps"] = {"commit": machine.get("commit")}
        for vocabulary in options.vocabularies:
            with tempfile.TemporaryDirectory(prefix="distilling-") as folder:
                rows = steps(prepared(Path(folder), vocabulary), options.rounds, options.repeats)
                judge(rows)
            for name, peer in CONTESTANTS.items():
                rows[name]["version"] = peers.version(peer, PEERS.get(peer or "", []))
            found["steps"][str(vocabulary)] = {"rows": rows, "claims": claims(rows)}
    if options.only != "step":
        every = []
        for seed in range(options.seeds):
            print(f"cache: seed {seed}", file=sys.stderr)
            every.append(cached(seed, STEPS))
        found["cache"] = {"seeds": every, "commit": machine.get("commit")}
    text = "\n".join(report(found, machine))
    print(text)
    many = options.rounds >= 3 and options.seeds >= 3 and len(options.vocabularies) > 1
    if many and {"steps", "cache"} <= found.keys():
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "distilling.md").write_text(text + "\n", encoding="utf-8")


def report(found: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    lines = ["# Distilling", ""]
    for vocabulary, part in found.get("steps", {}).items():
        if vocabulary == "commit":
            continue
        lines += [f"**One step: {BATCH * LENGTH:,} tokens, vocabulary {int(vocabulary):,}, float32**", ""]
        lines += table(part["rows"])
        if reached := part["claims"]:
            lines += [
                f"secateur's step takes {reached['time_of_fastest_peer']:.2f} of the fastest peer's time (asked: "
                f"at most 1) and {reached['memory_of_leanest_peer']:.2f} of the leanest's memory (asked: 0.5).",
                "",
            ]
    if "cache" in found:
        lines += [f"**From a cache of {K} of the teacher's tokens at each place, and from the teacher itself**", ""]
        lines += cache_lines(found["cache"]["seeds"])
    large, small = (f"{shape['num_hidden_layers']} x {shape['hidden_size']}" for shape in (TEACHER, STUDENT))
    commits = ", ".join(f"{half} {part['commit']}" for half, part in found.items())
    return [
        *lines,
        f"A step: the teacher's forward pass, the student's, the loss, and the student's gradient; Llamas of {large} "
        f"and {small} with random weights. MiB above the models: the highest resident size of a step, the gradient "
        "included, less what was resident before. Gradient's difference: the largest from the plain formula's, as a "
        "share of its largest entry of that tensor. Each figure from processes of its own, in turn. Of a cache's "
        f"{K} tokens at each place some are the likeliest, the others drawn (cache_topk, drawn={K - 1}).",
        f"{machine.get('cpu')}, {machine.get('logical_cores')} cores, Python {platform.python_version()}, torch "
        f"{machine.get('torch')}, transformers {machine.get('transformers')}; commits: {commits}.",
    ]


if __name__ == "__main__":
    main()
