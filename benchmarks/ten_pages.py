"""Ten pages of Python's manual and a question: seconds of htmlrag with all-MiniLM-L6-v2, to 512 tokens, one thread.

    python benchmarks/ten_pages.py                # a minute
    python benchmarks/ten_pages.py --most 20000   # of short pages

Target: under 0.15 s for a question about pages whose vectors are known. Seconds are of the processor, in a process that
has the model; the first question about ten pages reads, parses, counts and encodes them, into a cache that is empty.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence

import torch

from secateur.runs.context import prune_context
from support.data import packages

QUESTIONS = (
    "how is a file opened in text mode?",
    "what does the timeout argument do?",
    "which exception is raised when a key is missing?",
)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=0, help="bytes of a page, at least")
    parser.add_argument("--most", type=int, default=60_000, help="bytes of a page, at most")
    options = parser.parse_args(given)
    encoder = str(packages.minilm())
    pages = sorted((packages.manual() / "library").glob("*.html"))
    fitting = [page for page in pages if options.least <= page.stat().st_size <= options.most]
    documents = [page.read_text("utf-8") for page in random.Random(7).sample(fitting, 10)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SECATEUR_CACHE"] = folder
        prune_context("htmlrag", "<p>one page</p>", QUESTIONS[0], "words=1", embedder=encoder)
        first = time_question(documents, QUESTIONS[0], encoder)
        later = [min(time_question(documents, question, encoder) for _ in range(3)) for question in QUESTIONS]
    print(f"ten pages of {sum(map(len, documents)) / 1000:.0f} kB: {first:.2f} s for the first question")
    print(f"{sum(later) / len(later):.3f} s for a later one [{min(later):.3f} to {max(later):.3f}]")


def time_question(documents: Sequence[str], question: str, encoder: str) -> float:
    """Seconds of the processor."""
    began = time.process_time()
    prune_context("htmlrag", documents, question, "tokens=512", embedder=encoder)
    return time.process_time() - began


if __name__ == "__main__":
    main()
