"""How long clients of `secateur serve-context` wait, alone and sixteen at once: median, 95th percentile, longest.

    python benchmarks/service.py                 # some five minutes; writes docs/evidence/benchmarks/service.*
    python benchmarks/service.py --rounds 1      # a quick look, writes nothing

htmlrag on five pages of Python's manual and one question a request, 512 tokens of all-MiniLM-L6-v2, over loopback; by
BM25, and by that encoder on all cores. "cold": no vector is remembered, the first request of each page set; "cached":
the same requests again. Then sixteen clients, each with requests of its own, one after the other. Target: a 95th
percentile of less than three times the median.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest import mock

import httpx2 as httpx
import numpy as np
import uvicorn

from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.runs import serving
from support import peers
from support.data import packages

CLIENTS, PAGES, EACH = 16, 5, 2
LARGEST = 20_000
"""Bytes of a page."""
PATIENCE = 600
"""Seconds that a client waits: on one busy core the encoder reads some 2,000 tokens a second."""


def requests(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Questions on five pages each, of up to 20 kB."""
    draw = random.Random(seed)
    pages = sorted((packages.manual() / "library").glob("*.html"))
    library = [page for page in pages if page.stat().st_size < LARGEST]
    found = list[dict[str, object]]()
    for _ in range(count):
        pages = draw.sample(library, PAGES)
        question = f"What does the module {pages[0].stem} do?"
        found.append({"question": question, "html": [page.read_text("utf-8") for page in pages]})
    return found


def waits(url: str, rows: list[dict[str, object]], clients: int) -> list[float]:
    """Seconds of each request, by so many clients at once."""

    def ask(row: dict[str, object]) -> float:
        began = time.perf_counter()
        answer = httpx.post(f"{url}/prune", json=row, timeout=PATIENCE)
        answer.raise_for_status()
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, rows))


@contextmanager
def serve(options: dict[str, str]) -> Iterator[str]:
    """The address of a service with these options of htmlrag, for as long."""
    # No vectors of an earlier run: cold is cold.
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, SECATEUR_CACHE=folder):
        service = serving.Service("htmlrag", "tokens=512", **options)
        server = uvicorn.Server(uvicorn.Config(serving.open_app(service), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


def main() -> None:
    """Serve, ask, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=EACH, help=f"requests a client (default {EACH})")
    rounds = parser.parse_args().rounds
    kinds, model = {}, str(packages.minilm())
    alone, crowd = requests(2 * rounds, seed=1), requests(CLIENTS * rounds, seed=2)
    for name, options in (("BM25", {"tokenizer": model}), ("MiniLM", {"embedder": model})):
        with serve(options) as url:
            for state in ("cold", "cached"):
                kinds[f"{name}, alone, {state}"] = waits(url, alone, 1)
            for state in ("cold", "cached"):
                kinds[f"{name}, {CLIENTS} clients, {state}"] = waits(url, crowd, CLIENTS)
    rows = ["| Requests | median, s | p95, s | longest, s | p95 / median |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, seconds in kinds.items():
        middle, late = statistics.median_interval(seconds), float(np.quantile(seconds, 0.95))
        rows.append(f"| {name} | {middle} | {late:.3f} | {max(seconds):.3f} | {late / middle.value:.2f} |")
    machine = describe()
    head = (
        f"htmlrag behind HTTP: {PAGES} pages of up to {LARGEST // 1000} kB and a question a request, 512 tokens, "
        f"{rounds} requests a client, blocks ranked by BM25 or by all-MiniLM-L6-v2."
    )
    text = "\n".join(["# Service", "", head, "", *rows, "", f"{machine.get('cpu')}, commit {machine.get('commit')}."])
    print(text)
    if rounds == EACH:
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {"seconds": kinds, "machine": machine}
        (out / "service.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "service.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
