"""The default pruner on a corpus that it never saw: which answers stay, of how many tokens, and how fast.

    python benchmarks/pruner.py                  # writes docs/evidence/benchmarks/pruner.*
    python benchmarks/pruner.py --questions 30   # a quick look, writes nothing

The Debian FAQ (Debian's package `debian-faq`), whose headings are questions that people asked. Each question has a
passage that answers it, of up to ten sentences and 160 words, without the heading. Kinds: its own questions, where the
first sentence below the heading counts as the answer; and questions made of one sentence by leaving words out (cloze),
of some of its words, and by its rarest name. Beside the pruner: sentences by MiniLM's cosine and by BM25, as many
tokens of all passages together as the pruner keeps. "pairs a second" is from texts to texts; the ceiling is
the forward pass alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from selectolax.lexbor import LexborHTMLParser

from secateur._utils import threads
from secateur._utils.rundir import Transient
from secateur.data.packages import Section
from secateur.measure.environment import describe
from secateur.methods import made_questions
from secateur.methods.reranker_training import keep_sentences, share_words
from secateur.recipes.context.provence import provence
from secateur.retrieval import encoders, rerankers
from secateur.retrieval.batching import batches
from secateur.retrieval.rerankers import Reranker
from secateur.score import relevance
from secateur.subjects import open_passages
from secateur.subjects.text import markup
from secateur.vocabulary import Budget
from support import peers
from support.data import packages

QUESTIONS, SEED, ROUNDS, WORDS = 400, 1, 5, 160
COSINE = "MiniLM's cosine"
KINDS = {"own": "its own questions", "cloze": "cloze", "words": "some words", "name": "rarest name"}


def read_faq() -> list[made_questions.Document]:
    """The chapters, each with its questions; headings are left out of the text."""
    sha256 = "303f1c9de1d5858975490dd9f50a84fcd1c22f04c584a01afc30b5b4fc4fe52d"
    folder = packages.fetch("apt", "debian-faq", "12.2", sha256) / "usr" / "share" / "doc" / "debian" / "FAQ"
    draw, found = random.Random(SEED), []
    for path in sorted(folder.glob("*.en.html")):
        if path.name == "index.en.html":
            continue
        tree = LexborHTMLParser(path.read_bytes())
        title, sections = "", list[Section]()
        for node in tree.css("h1.title, h2.title, h3.title, p, li"):
            text = " ".join(node.text().split())
            if node.tag == "h1":
                title = re.sub(r"^Chapter \d+. ", "", text)
            elif node.tag in ("h2", "h3"):
                sections.append(Section(re.sub(r"^[\d.]+ ", "", text), ""))
            elif sections and (node.tag == "p" or node.css_first("p") is None):
                sections[-1] = Section(sections[-1].heading, f"{sections[-1].text}\n{text}".strip())
        found.append(made_questions.from_sections(title, sections, draw, headed=0.0))
    return found


def shares(judged: Sequence[Any], rows: Sequence[Any], keep: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Kind -> share of the answers that stay, and of the tokens."""
    told = {}
    for kind, name in {**KINDS, "": "all"}.items():
        mine = [i for i, row in enumerate(rows) if row["kind"] == kind or not kind]
        stays = [bool(keep[i][rows[i]["answer"]]) for i in mine]
        kept = sum(int(keep[i][judged[i].owner].sum()) for i in mine)
        told[name] = {
            "questions": len(mine),
            "answers": float(np.mean(stays)) if mine else float("nan"),
            "tokens": kept / max(1, sum(len(judged[i].owner) for i in mine)),
        }
    return told


def at_equal_tokens(scores: Sequence[np.ndarray], judged: Sequence[Any], share: float) -> list[np.ndarray]:
    """The best sentences of all passages, of as many tokens."""
    costs = [np.bincount(one.owner, minlength=len(row)) for one, row in zip(judged, scores, strict=True)]
    order = np.argsort(-np.concatenate(scores), kind="stable")
    flat = np.concatenate(costs)
    stays = np.zeros(len(order), bool)
    stays[order[np.cumsum(flat[order]) <= share * flat.sum()]] = True
    return np.split(stays, np.cumsum([len(row) for row in scores])[:-1])


def measure_speed(model: Reranker, rows: Sequence[Any]) -> tuple[float, float, float]:
    """Pairs a second from texts to texts, those of the forward pass alone, and tokens of a pair."""
    pairs = [(row["question"], row["documents"][0]) for row in rows]
    blocks = [model.blocks(*pair)[0] for pair in pairs]
    passes = batches([len(block.ids) for block in blocks])
    read = [rerankers.pad([blocks[i] for i in chosen], model.tokenizer.pad_token_id or 0) for chosen in passes]
    budget, ours, ceiling = [Budget.parse("tokens=100%")], [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for start in range(0, len(pairs), 8):  # a question has some passages
            chosen = pairs[start : start + 8]
            for result in provence(
                open_passages([part for _, part in chosen]), chosen[0][0], budget, Transient(), model=model
            ):
                result.subject.to_text()
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        threads.each(lambda batch: model(**batch), read, torch.get_num_threads())
        ceiling.append(time.perf_counter() - began)
    length = float(np.mean([len(block.ids) for block in blocks]))
    return len(pairs) / float(np.median(ours)), len(pairs) / float(np.median(ceiling)), length


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--model", default=str(rerankers.default_folder()), help="another pruner")
    options = parser.parse_args(given)
    model = rerankers.open_reranker(options.model)
    rows = made_questions.make_rows(read_faq(), options.questions, SEED, others=0.0, own=0.5, words=WORDS)
    judged = model.judge([(row["question"], row["documents"][0]) for row in rows])
    sizes, how = [len(row["documents"][0]) for row in rows], model.settings
    told = [{"keep": one.keep, "owner": one.owner} for one in judged]
    raised = how.terms * np.concatenate([share_words(row["question"], row["documents"], "en") for row in rows])
    keep, _ = keep_sentences(told, sizes, how.threshold, how.rounding, how.of_best, raised)
    ours = shares(judged, rows, np.split(keep, np.cumsum(sizes)[:-1]))
    embed = encoders.encoder(str(packages.minilm()))
    rivals = {COSINE: [], "BM25": []}
    for row in rows:
        vectors = embed([row["question"], *row["documents"][0]])
        rivals[COSINE].append(relevance.cosine(vectors[0], vectors[1:]))
        words = [markup.stems(text) for text in row["documents"][0]]
        rivals["BM25"].append(relevance.bm25(markup.stems(row["question"]), words))
    share = ours["all"]["tokens"]
    others = {name: shares(judged, rows, at_equal_tokens(scores, judged, share)) for name, scores in rivals.items()}
    speed, ceiling, length = measure_speed(model, rows[:128])
    machine: dict[str, Any] = describe()
    lines = [
        "# The default pruner",
        "",
        f"{len(rows)} questions of the Debian FAQ, which it never saw, a passage that answers each; threshold "
        f"{how.threshold:.3g}, and {how.of_best:.0%} of the best sentence of a passage. Words of the "
        f"question raise a sentence's probability by {how.terms:g}.",
        "",
        "| questions | number | answers kept | tokens kept | by MiniLM's cosine | by BM25 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {row['questions']} | {row['answers']:.1%} | {row['tokens']:.1%} | "
            f"{others[COSINE][name]['answers']:.1%} | {others['BM25'][name]['answers']:.1%} |"
            for name, row in ours.items()
        ),
        "",
        f"Pairs a second, of {length:.0f} tokens, {torch.get_num_threads()} threads: {speed:.0f} from texts to texts, "
        f"of {ceiling:.0f} that the forward pass allows.",
        f"{machine.get('cpu')}, commit {machine.get('commit')}.",
    ]
    text = "\n".join(lines)
    print(text)
    if options.questions == QUESTIONS:
        out = peers.ROOT / "docs" / "evidence" / "benchmarks"
        record = {
            "ours": ours,
            "others": others,
            "pairs": speed,
            "ceiling": ceiling,
            "tokens": length,
            "threshold": how.threshold,
            "of_best": how.of_best,
            "terms": how.terms,
            "machine": machine,
        }
        (out / "pruner.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "pruner.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
