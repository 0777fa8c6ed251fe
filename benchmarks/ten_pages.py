"""Ten pages of Python's manual and a question: seconds of htmlrag with all-MiniLM-L6-v2, to 512 tokens, one thread.

    python benchmarks/ten_pages.py                # a minute or two
    python benchmarks/ten_pages.py --most 20000   # of short pages

Target: under 0.15 s for a question about pages whose vectors are known, and under 1 s on two cores where they are not.
Seconds are of the processor, in a process that has the model; the first question about ten pages reads, parses, counts
and encodes them, into a cache that is empty. "Another" question reads what of its shortlist no earlier one did, and
"again" is a question that was asked before. float32 and bfloat16, each with all that the pages say and with the
shortlist that is the default, take turns, in processes of their own; ratios are medians over the turns. Of the blocks
that float32 keeps for the questions where all is read, it is told how many each of the others keeps as well.
--threads 2 tells seconds of the clock, on two quiet cores.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from secateur.runs.context import Pruned, prune_context
from support.data import packages
from support.processes import Tell, run_apart

QUESTIONS = (
    "how is a file opened in text mode?",
    "what does the timeout argument do?",
    "which exception is raised when a key is missing?",
)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "float32, all": {"precision": "float32", "shortlist": 0},
    "bfloat16, all": {"precision": "bfloat16", "shortlist": 0},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
}
LIMIT = 300.0
"""Seconds that one turn may take."""


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=0, help="bytes of a page, at least")
    parser.add_argument("--most", type=int, default=60_000, help="bytes of a page, at most")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--threads", type=int, default=1, help="seconds are of the clock if there are several")
    options = parser.parse_args(given)
    encoder = str(packages.minilm())
    pages = sorted((packages.manual() / "library").glob("*.html"))
    fitting = [page for page in pages if options.least <= page.stat().st_size <= options.most]
    documents = [page.read_text("utf-8") for page in random.Random(7).sample(fitting, 10)]
    torch.set_num_threads(1)  # of this process, since threads of its own would be lost to those that it forks
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SECATEUR_CACHE"] = folder
        for how in WAYS.values():  # turns have the models of this process
            prune(["<p>one page</p>"], QUESTIONS[0], encoder, how)
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, how in WAYS.items():
            row = run_apart(partial(take_turn, documents, encoder, how, options.threads), LIMIT, show=True)
            if "first" not in row:
                raise SystemExit(f"{way}: {row}")
            rows[way].append(row)
    kind = "of the processor" if options.threads == 1 else f"of the clock, {options.threads} threads"
    size = sum(map(len, documents)) / 1000
    print(f"ten pages of {size:.0f} kB, seconds {kind}, the median of {options.rounds} turns [least to most]")
    for way, turns in rows.items():
        first, other, again = (describe([turn[name] for turn in turns]) for name in ("first", "other", "again"))
        print(f"{way}: {first} s for the first question, {other} s for another, {again} s for one again")
    full = next(iter(rows.values()))
    kept = set(map(tuple, full[0]["kept"]))
    for way, turns in rows.items():
        if turns is not full:
            ratios = [one["first"] / other["first"] for one, other in zip(full, turns, strict=True)]
            others = set(map(tuple, turns[0]["kept"]))
            print(
                f"{way}: the first question {describe(ratios)} times as fast; of {len(kept)} blocks kept in float32 of "
                f"all it keeps {len(kept & others)}, and {len(others - kept)} others"
            )


def describe(values: Sequence[float]) -> str:
    """The median, and the least and most."""
    return f"{statistics.median(values):.3g} [{min(values):.3g} to {max(values):.3g}]"


def take_turn(
    documents: Sequence[str], encoder: str, how: Mapping[str, Any], threads: int, tell: Tell
) -> Mapping[str, Any]:
    """Seconds, of the clock if there are several threads, and what stays, with a cache of its own.

    Blocks that stay are told by question, where they stand, and text.
    """
    torch.set_num_threads(threads)
    watch = time.process_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SECATEUR_CACHE"] = folder
        began = watch()
        prune(documents, QUESTIONS[0], encoder, how)
        first = watch() - began
        other, again, kept = list[float](), list[float](), list[tuple[str, str, str]]()
        for question in QUESTIONS:
            seconds = list[float]()
            for _ in range(3):
                began = watch()
                pruned = prune(documents, question, encoder, how)
                seconds.append(watch() - began)
            other += seconds[:1] if question != QUESTIONS[0] else []
            again.append(min(seconds))
            kept += [(question, str(row["path"]), str(row["text"])) for row in pruned.trace["page"] if row["kept"]]
    return {"first": first, "other": statistics.mean(other), "again": statistics.mean(again), "kept": kept}


def prune(documents: Sequence[str], question: str, encoder: str, how: Mapping[str, Any]) -> Pruned:
    """What stays of the pages within the budget."""
    return prune_context("htmlrag", documents, question, "tokens=512", embedder=encoder, **how)


if __name__ == "__main__":
    main()
