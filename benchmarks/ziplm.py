"""ZipLM on all-MiniLM-L6-v2: seconds for the pruning database (every level of all 6 layers) and for one DP solve.

    python benchmarks/ziplm.py            # about two minutes on 2 cores

Targets: database under 60 s on 2 cores, solve under 0.2 s.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from secateur.data import texts
from secateur.methods import timing
from secateur.recipes.language import ziplm
from secateur.score import database
from secateur.select import allocate, levels
from secateur.subjects import open_subject
from support.data import packages


def main() -> None:
    subject = open_subject(packages.minilm())
    corpus = texts.read([text for _, text in packages.brown() if 5 <= len(text.split()) <= 40])
    samples = texts.batches(corpus, subject.tokenizer, packed=False, batch=16, length=128, seed=0).take(16)
    sites = subject.units("heads", "neurons").free()
    grid = allocate.grid(max(site.count for site in sites))
    table = timing.time_blocks(subject, ("heads", "neurons"), grid, 32, 64)
    units = subject.units("heads", "neurons", batch=32, length=64)
    fixed = table["rest"]["0"]
    limit = {"latency": levels.with_latency(units, table, fixed).cost()["latency"] / 2}
    for name, wanted in {"the recipe's grid": grid, "every single count": range(max(grid) + 1)}.items():
        gone = {s.name: [s.count - k for k in wanted if k <= s.count] for s in sites}
        began = time.perf_counter()
        base = database.build(subject.forward, subject.model, samples, subject.consumers(), gone)
        built = time.perf_counter() - began
        solves = []
        for _ in range(11):
            began = time.perf_counter()
            ziplm.choose_levels(units, table, base, limit, fixed, np.ones(len(base)))
            solves.append(time.perf_counter() - began)
        count = sum(len(sweep.levels) for sweep in base.values())
        print(
            f"{name}: {count} levels of {len(base)} sites; database {built:.1f} s (target 60), "
            f"solve {statistics.median(solves):.3f} s [{min(solves):.3f} to {max(solves):.3f}] (target 0.2); "
            f"{torch.get_num_threads()} threads, 256 sequences"
        )
        del base


if __name__ == "__main__":
    main()
