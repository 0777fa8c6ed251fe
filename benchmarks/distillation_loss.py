"""Forward KL between teacher and student logits: peak extra memory and time of secateur, plain PyTorch and peers.

    python benchmarks/distillation_loss.py                      # 8,192 tokens x 128,256 vocabulary, writes the evidence
    python benchmarks/distillation_loss.py --tokens 256 --vocabulary 8192     # a quick look, writes nothing

Every measurement is a process of its own. Extra memory is the peak resident size of forward and backward, less what was
resident before (both logit matrices) and less the student's gradient, which has to exist. All contestants are compared
at one size, the largest at which the most wasteful fits in memory; secateur is measured at the full size too, and what
the plain formula would need there is its figure scaled by the number of tokens, in which its memory and time are
linear (a second, smaller size shows how far that holds). Peers live in environments of their own under .cache/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import peers

PEERS = peers.DISTILLERS
CONTESTANTS = {
    "secateur kl": None,
    "plain PyTorch": None,
    "autograd in chunks": None,
    "torchtune ForwardKLLoss": "torchtune",
    "torchtune ForwardKLWithChunkedOutputLoss": "torchtune",
    "TRL generalized_jsd_loss (beta=0)": "trl",
}
FROM_HIDDEN = ("secateur kl_from_hidden", "plain PyTorch from hidden states")
MATRICES = 11  # [tokens, vocabulary] matrices to leave room for: inputs, gradient and what the most wasteful one keeps
MIB = 2**20


# ------------------------------------------------------------------------------------------- in the child process


def loss_of(name: str) -> Callable[..., Any]:
    """(student logits, teacher logits) -> mean forward KL per token."""
    import torch
    from torch.nn import functional

    def plain(student: Any, teacher: Any) -> Any:
        with torch.no_grad():
            target = functional.softmax(teacher, -1)
        return functional.kl_div(functional.log_softmax(student, -1), target, reduction="sum") / len(student)

    if name == "plain PyTorch":
        return plain
    if name == "secateur kl":
        from secateur.recover.distillation import losses

        return lambda student, teacher: losses.kl(student, teacher) / len(student)
    if name == "autograd in chunks":
        return autograd_in_chunks()
    if name == FROM_HIDDEN[0]:
        from secateur.recover.distillation import losses

        return lambda s, head, t, teacher_head: losses.kl_from_hidden(s, head, t, teacher_head) / len(s)
    if name == FROM_HIDDEN[1]:

        def from_hidden(s: Any, head: Any, t: Any, teacher_head: Any) -> Any:
            with torch.no_grad():
                target = t @ teacher_head.T
            return plain(s @ head.T, target)

        return from_hidden
    if name == "torchtune ForwardKLLoss":
        from torchtune.modules.loss import ForwardKLLoss

        whole = ForwardKLLoss()
        return lambda s, t: whole(s[None], t[None], torch.zeros(1, len(s), dtype=torch.long))
    if name == "torchtune ForwardKLWithChunkedOutputLoss":
        from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

        chunked = ForwardKLWithChunkedOutputLoss(num_output_chunks=8)

        def in_chunks(s: Any, t: Any) -> Any:
            labels = torch.zeros(1, len(s), dtype=torch.long)
            return chunked(list(s[None].chunk(8, dim=1)), list(t[None].chunk(8, dim=1)), labels)

        return in_chunks
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        from trl import GKDTrainer
    return lambda s, t: GKDTrainer.generalized_jsd_loss(s[None], t[None], beta=0.0, reduction="sum") / len(s)


def autograd_in_chunks() -> Callable[..., Any]:
    """The same walk over chunks as secateur's, but the gradient of each is autograd's and not derived by hand."""
    import torch
    from torch.nn import functional

    class Walk(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student: Any, teacher: Any) -> Any:
            rows = max(1, 2**20 // student.shape[1])
            gradient, total = torch.empty_like(student), 0.0
            for start in range(0, len(student), rows):
                piece = student[start : start + rows].detach().requires_grad_()
                target = functional.log_softmax(teacher[start : start + rows], -1)
                with torch.enable_grad():
                    logs = functional.log_softmax(piece, -1)
                    value = functional.kl_div(logs, target, log_target=True, reduction="sum") / len(student)
                gradient[start : start + rows] = torch.autograd.grad(value, piece)[0]
                total += value.item()
            ctx.save_for_backward(gradient)
            return student.new_tensor(total)

        @staticmethod
        def backward(ctx: Any, scale: Any) -> Any:
            return ctx.saved_tensors[0].mul_(scale), None

    return lambda student, teacher: Walk.apply(student, teacher)


def child(name: str, tokens: int, vocabulary: int, width: int, repeats: int) -> None:
    import torch

    loss = loss_of(name)
    torch.manual_seed(0)

    loss(*inputs(name, 8, vocabulary, width)).backward()  # threads, kernels and imports, before anything is counted
    arguments = inputs(name, tokens, vocabulary, width)
    leaves = [tensor for tensor in arguments if tensor.requires_grad]
    before = _peak()
    times = []
    peak = 0
    for repeat in range(repeats):
        for leaf in leaves:
            leaf.grad = None
        began = time.perf_counter()
        loss(*arguments).backward()
        times.append(time.perf_counter() - began)
        if repeat == 0:
            peak = _peak()
    gradient = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    del arguments, leaves
    found = {
        "extra_mib": (peak - before - gradient) / MIB,
        "seconds": times,
        "gradient_difference": gradient_difference(name, vocabulary, width),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))


def inputs(name: str, tokens: int, vocabulary: int, width: int) -> list[Any]:
    """The loss's arguments in float32, those of the student requiring a gradient."""
    import torch

    if name in FROM_HIDDEN:
        made = [torch.empty(shape).uniform_(-1, 1) for shape in [(tokens, width), (vocabulary, width)] * 2]
        return [tensor.requires_grad_(index < 2) for index, tensor in enumerate(made)]
    made = [torch.empty(tokens, vocabulary).uniform_(-4, 4) for _ in range(2)]
    return [made[0].requires_grad_(), made[1]]


def gradient_difference(name: str, vocabulary: int, width: int, tokens: int = 8) -> float:
    """Largest difference from the plain formula's gradient in float64, as a share of that gradient's largest entry."""
    arguments = inputs(name, tokens, vocabulary, width)
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in arguments]
    loss_of(name)(*arguments).backward()
    loss_of(FROM_HIDDEN[1] if name in FROM_HIDDEN else "plain PyTorch")(*exact).backward()
    pairs = [(ours, truth) for ours, truth in zip(arguments, exact, strict=True) if ours.requires_grad]
    return max(float((ours.grad - truth.grad).abs().max() / truth.grad.abs().max()) for ours, truth in pairs)


def _peak() -> int:
    """Highest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------------------------------------------- the parent


def measure(name: str, peer: str | None, tokens: int, options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    python, problem = peers.environment(peer, PEERS.get(peer or "", []))
    if problem:
        return {"problem": problem}
    sizes = {"tokens": tokens, "vocabulary": options.vocabulary, "width": options.width, "repeats": repeats}
    command = [python, __file__, "--child", name]
    for key, value in sizes.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return {"problem": f"killed at {tokens} tokens: out of memory"}
    if done.returncode:
        return {"problem": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:120]}
    return {"tokens": tokens, **json.loads(done.stdout.strip().splitlines()[-1])}


def rounds(contestants: dict[str, str | None], tokens: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each contestant in turn, several times over, so that a drift of the machine meets all alike."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(options.rounds):
        for name, peer in contestants.items():
            if "problem" in found.get(name, {}):
                continue
            print(f"round {number + 1}/{options.rounds}: {name}, {tokens} tokens", file=sys.stderr)
            one = measure(name, peer, tokens, options, options.repeats)
            if "problem" in one or name not in found:
                found[name] = one
            else:
                found[name]["seconds"] += one["seconds"]
                found[name]["extra_mib"] = max(found[name]["extra_mib"], one["extra_mib"])
    for one in found.values():
        if "seconds" in one:
            one["median_seconds"] = statistics.median(one["seconds"])
    return found


def available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def fitting(tokens: int, vocabulary: int, matrices: int) -> int:
    """The largest halving of `tokens` at which that many float32 matrices fit in nine tenths of free memory."""
    while tokens > 1 and matrices * tokens * vocabulary * 4 > 0.9 * available():
        tokens //= 2
    return tokens


def table(title: str, rows: dict[str, dict[str, Any]], against: str) -> list[str]:
    lines = [
        f"**{title}**",
        "",
        "| loss | extra memory, MiB | of plain | seconds, median | of plain | gradient difference |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    plain = rows.get(against, {})
    for name, row in rows.items():
        if "problem" in row:
            lines.append(f"| {name} | {row['problem']} | | | | |")
            continue
        memory = f"{row['extra_mib'] / plain['extra_mib']:.3f}" if plain.get("extra_mib") else ""
        speed = f"{row['median_seconds'] / plain['median_seconds']:.2f}" if plain.get("median_seconds") else ""
        version = f" {row['version']}" if row.get("version") else ""
        lines.append(
            f"| {name}{version} | {row['extra_mib']:,.0f} | {memory} | {row['median_seconds']:.2f} | {speed} | "
            f"{row['gradient_difference']:.1e} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=256, help="of the hidden states, for the losses through the head")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs per process")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for the evidence (at the full size: docs/evidence/benchmarks)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.tokens, options.vocabulary, options.width, options.repeats)
        return

    common = fitting(options.tokens, options.vocabulary, MATRICES)
    contestants = {name: peer for name, peer in CONTESTANTS.items() if not (options.no_peers and peer)}
    same = rounds(contestants, common, options)
    for name, peer in contestants.items():
        same[name]["version"] = peers.version(peer, PEERS.get(peer or "", []))
    hidden = rounds(dict.fromkeys(FROM_HIDDEN), common, options)
    half = rounds({"plain PyTorch": None}, max(1, common // 2), options)["plain PyTorch"]
    full = rounds({"secateur kl": None}, options.tokens, options)["secateur kl"]
    plain = same["plain PyTorch"]

    lines = ["# Distillation loss", ""]
    lines += table(f"{common:,} tokens x {options.vocabulary:,} vocabulary, float32", same, "plain PyTorch")
    lines += table(
        f"Through the head: hidden states of width {options.width}, same tokens and vocabulary", hidden, FROM_HIDDEN[1]
    )
    claims: dict[str, Any] = {}
    if "problem" not in {**full, **plain, **half}:
        scale = options.tokens / common
        claims = {
            "memory_of_plain": full["extra_mib"] / (scale * plain["extra_mib"]),
            "time_of_plain": full["median_seconds"] / (scale * plain["median_seconds"]),
            "time_of_plain_at_one_size": same["secateur kl"]["median_seconds"] / plain["median_seconds"],
            "gradient_difference": full["gradient_difference"],
        }
        lines += [
            f"secateur at {options.tokens:,} tokens: {full['extra_mib']:,.0f} MiB extra, "
            f"{full['median_seconds']:.2f} s.",
            f"The plain formula there, scaled by {scale:g} from {common:,} tokens: "
            f"{scale * plain['extra_mib']:,.0f} MiB, {scale * plain['median_seconds']:.2f} s "
            f"(from {common // 2:,} to {common:,} tokens its memory grew {plain['extra_mib'] / half['extra_mib']:.2f} "
            f"times, its time {plain['median_seconds'] / half['median_seconds']:.2f} times).",
            f"Memory {claims['memory_of_plain']:.3f} of plain (target 0.25), time {claims['time_of_plain']:.2f} of "
            f"plain ({claims['time_of_plain_at_one_size']:.2f} at one size; target 1.15).",
            "",
        ]
    from secateur.measure.environment import describe  # children of peers run without secateur

    commit = describe().get("commit", "unknown")
    lines += [
        "Extra memory: beyond both inputs and the student's gradient. Gradient difference: the largest from the plain "
        "formula in float64, as a share of its largest entry. Each figure from processes of its own, in turn.",
        f"{platform.machine()}, {os.cpu_count()} cores, {full.get('threads')} threads, Python "
        f"{platform.python_version()}, torch {full.get('torch')}, commit {commit}.",
    ]
    text = "\n".join(lines)
    print(text)
    out = options.out
    if out is None and (options.tokens, options.vocabulary) == (8192, 128_256) and not options.no_peers:
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found = {
            "tokens": options.tokens,
            "common_tokens": common,
            "vocabulary": options.vocabulary,
            "full": full,
            "same_size": same,
            "plain_at_half": half,
            "from_hidden": hidden,
            "claims": claims,
            "commit": commit,
        }
        (out / "distillation_loss.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "distillation_loss.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
