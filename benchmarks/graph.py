"""A graph of a million triples: loading it, and what stands within one, two and three hops of its nodes.

    python benchmarks/graph.py                     # writes docs/evidence/benchmarks/graph.*
    python benchmarks/graph.py --triples 50000     # a quick look, writes nothing

The graph is drawn so that degrees are skewed: how often a node is subject or object falls with its rank (a power law),
which makes hubs with ten thousands of edges. Pairs of entities are drawn among those of middling rank. Times are of
questions in a new process each, whose store is open already; memory is above what libraries take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support import memory, peers
from support.memory import MIB

TRIPLES, ENTITIES, RELATIONS = 1_000_000, 200_000, 40
BOUND, EACH = 20_000, 300
"""Facts of a bounded neighbourhood, and of one node of it in one direction."""


def write(path: Path, triples: int) -> None:
    draw = np.random.default_rng(0)
    entities = max(1_000, triples * ENTITIES // TRIPLES)
    with path.open("w", encoding="utf-8") as file:
        file.write("subject\tpredicate\tobject\n")
        for start in range(0, triples, 100_000):
            count = min(100_000, triples - start)
            ranks = (entities * draw.random((2, count)) ** np.array([[3.0], [2.0]])).astype(int)
            for a, r, b in zip(ranks[0], draw.integers(0, RELATIONS, count), ranks[1], strict=True):
                file.write(f"thing_{a}\trelation_{r}\tthing_{b}\n")


def pairs(triples: int, count: int) -> list[tuple[str, str]]:
    """Two entities each, of middling rank."""
    from secateur.clients.stores import entity

    draw = np.random.default_rng(1)
    entities = max(1_000, triples * ENTITIES // TRIPLES)
    chosen = draw.integers(entities // 10, entities // 2, (count, 2))
    return [(entity(f"thing_{a}"), entity(f"thing_{b}")) for a, b in chosen.tolist()]


# --------------------------------------------------------------------------------------------- in the child processes


def above(work: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """Seconds of `work`, those of the processor, MiB above what was held before, and what it gives."""
    before = memory.resident()
    memory.reset()
    began, busy = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - began, time.process_time() - busy, (memory.highest() - before) / MIB, made


def load(job: dict[str, Any]) -> dict[str, Any]:
    from secateur.clients.stores import Embedded
    from secateur.data import triples

    Embedded()

    def work() -> int:
        store = Embedded(job["store"], writing=True)
        triples.load(job["source"], store)
        store.graph.flush()
        return len(store.graph)

    seconds, busy, mib, count = above(work)
    disk = sum(path.stat().st_size for path in Path(job["store"]).iterdir()) / MIB
    return {"seconds": seconds, "processor": busy, "above_mib": mib, "triples": count, "disk_mib": disk}


def ask(job: dict[str, Any]) -> dict[str, Any]:
    from secateur.methods.graphs import open_graph

    graph = open_graph(job["store"])
    graph.around(["urn:a:none"])
    seconds, processor, sizes, cut, highest = [], [], [], 0, 0.0
    for pair in job["pairs"]:
        nodes = pair[: job["nodes"]]
        took, busy, mib, found = above(lambda nodes=nodes: graph.within(nodes, job["hops"], **job["options"]))
        seconds.append(took)
        processor.append(busy)
        sizes.append(len(found.facts))
        cut += found.cut
        highest = max(highest, mib)
    return {
        "median": statistics.median(seconds),
        "highest": max(seconds),
        "processor": {"median": statistics.median(processor), "highest": max(processor)},
        "facts": statistics.median(sizes),
        "cut": cut,
        "above_mib": highest,
    }


# ---------------------------------------------------------------------------------------------------- the parent


def child(name: str, job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--job", json.dumps(job)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def rows(found: dict[str, Any], count: int) -> Iterator[str]:
    yield "| | seconds, median | slowest | processor, median | slowest | facts, median | cut | MiB above libraries |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, row in found.items():
        yield (
            f"| {name} | {row['median']:.2f} | {row['highest']:.2f} | {row['processor']['median']:.2f} "
            f"| {row['processor']['highest']:.2f} | {row['facts']:,.0f} | {row['cut']} of {count} "
            f"| {row['above_mib']:,.0f} |"
        )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=TRIPLES)
    parser.add_argument("--pairs", type=int, default=20)
    for hidden in ("--child", "--job"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child:
        print(json.dumps({"load": load, "ask": ask}[options.child](json.loads(options.job))))
        return
    from secateur.measure.environment import describe

    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "graph.tsv"), str(Path(folder, "store"))
        write(source, options.triples)
        loaded = child("load", {"source": str(source), "store": store})
        asked = {"store": store, "pairs": pairs(options.triples, options.pairs)}
        found = {
            f"{hops} hop{'s' * (hops > 1)} of one entity": child(
                "ask", {**asked, "nodes": 1, "hops": hops, "options": {}}
            )
            for hops in (1, 2, 3)
        }
        found[f"3 hops of two entities, at most {BOUND:,} facts, {EACH} of a node"] = child(
            "ask", {**asked, "nodes": 2, "hops": 3, "options": {"most": BOUND, "each": EACH}}
        )
    machine = describe()
    lines = [
        "# A graph",
        "",
        f"{options.triples:,} lines of a table with hubs, {loaded['triples']:,} triples with the names of things. "
        f"Loaded in {loaded['seconds']:.1f} s, {loaded['processor']:.1f} s of them the processor's, with "
        f"{loaded['above_mib']:,.0f} MiB above the libraries at most; {loaded['disk_mib']:,.0f} MiB on disk.",
        "",
        *rows(found, options.pairs),
        "",
        "Cut: how often there was more than was read, by the bounds named, or by those of `KnowledgeGraph`: 10,000 "
        "facts of a node in one direction, and of `within`, 100,000 in all. Processor: seconds of the one core that "
        "works, which is what the clock says on a quiet machine.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]
    text = "\n".join(lines)
    print(text)
    if (options.triples, options.pairs) == (TRIPLES, 20):
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {"load": loaded, "within": found, "machine": machine}
        (out / "graph.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "graph.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
