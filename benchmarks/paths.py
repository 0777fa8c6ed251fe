"""Paths between two entities of a graph of a million triples: reading three hops, reducing, and all paths looked at.

    python benchmarks/paths.py                     # writes docs/evidence/benchmarks/paths.*
    python benchmarks/paths.py --triples 50000     # a quick look, writes nothing

The graph, and the pairs of entities of middling rank, are those of `graph.py`. Bounds are the recipe's defaults. Times
are of a process whose store is open already; memory is above what it held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import graph as graphs
from support import memory, peers

BOUND = 2.0
"""Seconds that an exploration may take."""


def explored(store: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What it took to find the paths of each pair, three hops from both."""
    from secateur.graphs import open_graph
    from secateur.subjects import walks

    graph = open_graph(store)
    graph.around(["urn:a:none"])

    def work(pair: tuple[str, str]) -> tuple[int, int, int, int]:
        around = walks.Surroundings(graph, pair)
        around.reach(3)
        reduced = around.reduced(3)
        found = walks.between(reduced, *pair, 3)
        whole = around.within(0, 3) | around.within(1, 3)
        return around.facts, len(whole), len(reduced), len(walks.clustered(found.paths))

    rows = [graphs.above(lambda pair=pair: work(pair)) for pair in pairs]
    names = ("facts", "entities", "entities_reduced", "paths")
    return {
        "seconds": [row[0] for row in rows],
        "processor": [row[1] for row in rows],
        "above_mib": max(row[2] for row in rows),
        **{name: statistics.median(row[3][i] for row in rows) for i, name in enumerate(names)},
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=graphs.TRIPLES)
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args(given)
    from secateur.measure.environment import describe

    memory.resident()
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "graph.tsv"), str(Path(folder, "store"))
        graphs.write(source, options.triples)
        graphs.child("load", {"source": str(source), "store": store})
        found = explored(store, graphs.pairs(options.triples, options.pairs))
    machine, times = describe(), sorted(found["seconds"])
    busy = sorted(found["processor"])
    lines = [
        "# Paths",
        "",
        f"Three hops of two entities in a graph of {options.triples:,} triples with hubs, {options.pairs} pairs: "
        f"{statistics.median(times):.2f} s in the median, {times[-1]:.2f} s at most ({BOUND:.0f} are asked for); "
        f"{statistics.median(busy):.2f} and {busy[-1]:.2f} s of the processor; at most {found['above_mib']:,.0f} MiB "
        "above what was held before.",
        f"In the median {found['facts']:,.0f} facts were read, by the default bounds (20,000 in all, 300 of a node); "
        f"{found['entities']:,.0f} entities, reduced to {found['entities_reduced']:,.0f}; the 2,000 paths that are "
        f"looked at make {found['paths']:,.0f} with different relations.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]
    text = "\n".join(lines)
    print(text)
    if (options.triples, options.pairs) == (graphs.TRIPLES, 20):
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        (out / "paths.json").write_text(json.dumps({**found, "machine": machine}, indent=1) + "\n", encoding="utf-8")
        (out / "paths.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
