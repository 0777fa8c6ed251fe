"""How many question-passage pairs a second provence reads, beside the forward pass of its encoder alone.

    python benchmarks/passages.py                # writes docs/evidence/benchmarks/passages.*
    python benchmarks/passages.py --pairs 32     # a quick look, writes nothing

all-MiniLM-L6-v2 with both heads, 192 tokens a pair, on all cores. "provence" is all that a user waits for: splitting
sentences, tokens, the forward pass, rounding and the text that is left. "forward pass" is the same batches of tokens
through the same encoder, and nothing else; "a thread each" is that in passes of half as many pairs, of which each has a
thread of its own, as provence reads them, with nothing before, between or after. Rounds of the three take turns, and
the ratios are those of each round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track

from secateur._utils import threads
from secateur._utils.rundir import Transient
from secateur.measure import statistics
from secateur.measure.environment import describe
from secateur.recipes.context.provence import provence
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.subjects import open_passages
from secateur.vocabulary import Budget
from support import peers
from support.data import packages

TOKENS, EACH, ROUNDS = 192, 8, 9
HALF, OTHER = slice(EACH // 2), slice(EACH // 2, EACH)


def passages(model: Reranker, count: int) -> list[tuple[str, list[str]]]:
    """Questions with EACH passages of Brown, each pair as long as may be up to TOKENS."""
    said, place, found = [text for _, text in packages.brown()], 0, []
    for _ in range(-(-count // EACH)):
        question, texts = " ".join(said[place].split()[:12]), []
        for _ in range(EACH):
            part: list[str] = []
            while len(model.blocks(question, [*part, said[place + 1]], longest=512)[0].ids) <= TOKENS:
                place += 1
                part.append(said[place])
            fill = said[place + 1].split()
            while fill and len(model.blocks(question, [*part, " ".join(fill)], longest=512)[0].ids) > TOKENS:
                fill.pop()
            texts.append(" ".join([*part, *([" ".join(fill)] if fill else [])]))
            place += 1
        found.append((question, texts))
    return found


def all_of_it(model: Reranker, given: Sequence[tuple[str, list[str]]]) -> float:
    """Seconds from texts to texts."""
    began = time.perf_counter()
    for question, texts in given:
        for result in provence(open_passages(texts), question, [Budget.parse("tokens=100%")], Transient(), model=model):
            result.subject.to_text()
    return time.perf_counter() - began


@torch.inference_mode()
def forward(model: Reranker, given: Sequence[dict[str, torch.Tensor]]) -> float:
    """Seconds of the encoder alone."""
    base, began = model.model.base_model, time.perf_counter()
    for batch in given:
        base(**batch)
    return time.perf_counter() - began


def at_once(model: Reranker, given: Sequence[dict[str, torch.Tensor]]) -> float:
    """Seconds of the encoder alone, where each pass has a thread of its own."""
    base, began = model.model.base_model, time.perf_counter()
    threads.each(lambda batch: base(**batch), given, torch.get_num_threads())
    return time.perf_counter() - began


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    options = parser.parse_args(given)
    model = rerankers.open_reranker(str(packages.minilm())).with_head()
    model.eval()
    asked = passages(model, options.pairs)
    batches = []
    for question, texts in asked:
        blocks = [model.blocks(question, [text])[0] for text in texts]
        batches.append(rerankers.pad(blocks, model.tokenizer.pad_token_id))
    length = sum(int(batch["attention_mask"].sum()) for batch in batches) / (len(batches) * EACH)
    halves = [{name: part[half] for name, part in one.items()} for one in batches for half in (HALF, OTHER)]
    all_of_it(model, asked[:2])
    forward(model, batches[:2])
    at_once(model, halves[:4])
    rows = [
        (all_of_it(model, asked), forward(model, batches), at_once(model, halves))
        for _ in track(range(ROUNDS), "rounds")
    ]
    many = len(asked) * EACH
    ours, ceiling, apart = (
        statistics.median_interval([many / seconds for seconds in column], unit="pairs/s")
        for column in zip(*rows, strict=True)
    )
    share = statistics.median_interval([alone / whole for whole, alone, _ in rows])
    tighter = statistics.median_interval([each / whole for whole, _, each in rows])
    machine: dict[str, Any] = describe()
    lines = [
        "# Passages", "",
        f"{many} pairs of {length:.0f} tokens, {EACH} passages to a question, all-MiniLM-L6-v2, {ROUNDS} rounds, "
        f"{torch.get_num_threads()} threads.", "",
        "| | pairs a second |", "| --- | ---: |",
        f"| provence, from texts to texts | {ours} |",
        f"| the encoder's forward pass alone | {ceiling} |",
        f"| the same, a thread each | {apart} |",
        "",
        f"provence reaches {share} of what the forward pass allows, and {tighter} of that with a thread each.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    if options.pairs == 256:
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {"seconds": rows, "pairs": many, "tokens": length, "machine": machine}
        (out / "passages.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "passages.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
