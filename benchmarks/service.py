"""How long clients of `secateur serve-context` wait, alone and sixteen at once.

    python benchmarks/service.py                 # writes docs/evidence/benchmarks/service.*
    python benchmarks/service.py --rounds 1      # a quick look, writes nothing

htmlrag with all-MiniLM-L6-v2 on all cores, ten pages of Python's manual and one question a request, 512 tokens, over
loopback. "cold": no vector is remembered, the first request of each page set; "cached": the same requests again. Then
sixteen clients, each with requests of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import numpy as np
import uvicorn

from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.runs import serving
from support import peers
from support.data import packages

CLIENTS, PAGES, EACH = 16, 10, 4


def requests(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Questions on ten pages each, of up to 60 kB."""
    draw = random.Random(seed)
    library = [page for page in sorted((packages.manual() / "library").glob("*.html")) if page.stat().st_size < 60_000]
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
        answer = httpx.post(f"{url}/prune", json=row, timeout=120)
        answer.raise_for_status()
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, rows))


def main() -> None:
    """Serve, ask, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=EACH, help=f"requests a client (default {EACH})")
    rounds = parser.parse_args().rounds
    service = serving.Service("htmlrag", "tokens=512", embedder=str(packages.minilm()))
    config = uvicorn.Config(serving.open_app(service), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    alone = requests(2 * rounds, seed=1)
    kinds = {"alone, cold": waits(url, alone, 1), "alone, cached": waits(url, alone, 1)}
    crowd = requests(CLIENTS * rounds, seed=2)
    kinds[f"{CLIENTS} clients, cold"] = waits(url, crowd, CLIENTS)
    kinds[f"{CLIENTS} clients, cached"] = waits(url, crowd, CLIENTS)
    server.should_exit = True
    thread.join()
    rows = ["| Requests | median, s | p95, s | p95 / median |", "| --- | ---: | ---: | ---: |"]
    for name, seconds in kinds.items():
        middle, late = statistics.median_interval(seconds), float(np.quantile(seconds, 0.95))
        rows.append(f"| {name} | {middle} | {late:.3f} | {late / middle.value:.2f} |")
    machine = describe()
    head = (
        f"{PAGES} pages and a question a request, htmlrag to 512 tokens, all-MiniLM-L6-v2, {rounds} requests a client."
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
