"""Paths between two entities of a graph of a million triples: the whole exploration of paths_over_graph, and its parts.

    python benchmarks/paths.py                     # writes docs/evidence/benchmarks/paths.*
    python benchmarks/paths.py --triples 50000     # a quick look, writes nothing

The graph, and the pairs of entities of middling rank, are those of `graph.py`. "The exploration" is all that a user
waits for: three hops of two topics, all three phases, the pruning of paths, and the text within a budget, without a
language model and an encoder, whose times are their own. "Three hops" is its first phase by hand: reading three hops
from both, reducing, and all paths looked at. Bounds are the recipe's defaults. Times are of a process whose store is
open already; memory is above what it held before.
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

BOUND, ROOM = 2.0, 256
"""Seconds that an exploration may take, and MiB."""
BUDGET = "words=200"


def explored(store: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What it took to find the paths of each pair, three hops from both."""
    from secateur.methods.graphs import open_graph
    from secateur.subjects.graph import walks

    graph = open_graph(store)
    graph.around(["urn:a:none"])

    def work(pair: tuple[str, str]) -> tuple[int, int, int, int]:
        around = walks.Surroundings(graph, pair)
        around.reach(3)
        reduced = around.reduce(3)
        found = walks.find_paths(reduced, *pair, 3)
        whole = around.within(0, 3) | around.within(1, 3)
        return around.facts, len(whole), len(reduced), len(walks.cluster_paths(found.paths))

    rows = [graphs.above(lambda pair=pair: work(pair)) for pair in pairs]
    names = ("facts", "entities", "entities_reduced", "paths")
    return {
        "exploration": whole(graph, pairs),
        "seconds": [row[0] for row in rows],
        "processor": [row[1] for row in rows],
        "above_mib": max(row[2] for row in rows),
        **{name: statistics.median(row[3][i] for row in rows) for i, name in enumerate(names)},
    }


def whole(graph: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the recipe itself took, from topics to the text that is left."""
    from secateur._utils.rundir import Transient
    from secateur.recipes.context.paths_over_graph import paths_over_graph
    from secateur.runs import keywords
    from secateur.vocabulary import Budget

    def work(pair: tuple[str, str]) -> tuple[int, float]:
        names = graph.names(pair)
        question = f"How are {names[pair[0]]} and {names[pair[1]]} related?"
        how = {"topics": [names[node] for node in pair], "start": 3, "depth": 3, "enough": 2.0}
        run = Transient()
        (result,) = keywords.call(paths_over_graph, graph, question, [Budget.parse(BUDGET)], run, **how)
        return run.values[f"told-{BUDGET}"]["paths"], result.cut.after["words"]

    rows = [graphs.above(lambda pair=pair: work(pair)) for pair in pairs]
    return {
        "seconds": [row[0] for row in rows],
        "processor": [row[1] for row in rows],
        "above_mib": max(row[2] for row in rows),
        "paths": statistics.median(row[3][0] for row in rows),
        "words": statistics.median(row[3][1] for row in rows),
    }


def seconds(row: dict[str, Any]) -> str:
    """What the clock says of several, and what the processor."""
    clock, busy = row["seconds"], row["processor"]
    return (
        f"{statistics.median(clock):.2f} s in the median, {max(clock):.2f} s at most; "
        f"{statistics.median(busy):.2f} and {max(busy):.2f} s of the processor"
    )


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
    machine, ours = describe(), found["exploration"]
    lines = [
        "# Paths",
        "",
        f"paths_over_graph, three hops of two topics in a graph of {options.triples:,} triples with hubs, to {BUDGET}, "
        f"{options.pairs} pairs: {seconds(ours)} ({BOUND:.0f} are asked for); at most {ours['above_mib']:,.0f} MiB "
        f"above what was held before ({ROOM} are allowed). In the median {ours['paths']:,.0f} paths were found, and "
        f"{ours['words']:,.0f} words are left.",
        f"Of these, three hops of both, reduced, and all paths looked at: {seconds(found)}; at most "
        f"{found['above_mib']:,.0f} MiB.",
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
