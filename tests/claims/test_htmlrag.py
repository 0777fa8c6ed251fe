"""HtmlRAG on pages of Python's manual: cleaning, recall of the answer under a budget, and what the path model adds."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from claims import lab, pages
from secateur import encoders
from secateur.files import packages
from secateur.files.rundir import Transient
from secateur.recipes.context.htmlrag import htmlrag
from secateur.subjects import open_page
from secateur.vocabulary import Budget

pytestmark = pytest.mark.claim

SEEDS = (0, 1, 2)
SETUP = "36 questions per seed with answers in one dd of Python's manual, 5 pages each; all-MiniLM-L6-v2 and its tokens"


@functools.cache
def encoder() -> encoders.Embed:
    return encoders.encoder(str(packages.minilm()))


@functools.cache
def count() -> encoders.Count:
    return encoders.counter(str(packages.minilm()))


def test_cleaning_keeps_the_text_and_loses_most_tokens():
    shares = []
    for seed in SEEDS:
        chosen = np.random.default_rng(seed).choice(len(pages.library()), 40, replace=False)
        before = after = 0
        for path in (pages.library()[i] for i in chosen):
            raw = path.read_text("utf-8")
            page = open_page(raw)
            seen = LexborHTMLParser(raw)
            seen.strip_tags(["script", "style", "template"])
            assert pages.squeezed(page.text()) == pages.squeezed(seen.root.text()), path
            before, after = before + count()([raw])[0], after + count()([page.html()])[0]
        shares.append(after / before)
    lab.record(
        "htmlrag", "cleaning", "cleaning leaves at most 60 % of a page's tokens and all of its text",
        all(share <= 0.6 for share in shares), ("share of tokens left", shares), setup="40 pages per seed",
    )  # fmt: skip


def recall(seed: int) -> dict[str, dict[str, float]]:
    """Way of choosing -> budget -> share of the questions whose answer is in what is left."""
    embed, found, draw = pages.Remembered(encoder()), Counter[tuple[str, int]](), np.random.default_rng(seed)
    questions = pages.asked(seed, groups=12)
    for asked in questions:
        page = open_page(list(asked.pages), numbered=False)
        budgets = [Budget.parse(f"tokens={limit}") for limit in pages.BUDGETS]
        how = {"tokenizer": str(packages.minilm())}
        ways = {
            "blocks": {"embedder": embed},
            "blocks without headings": {"embedder": embed, "headed": False},
            "blocks, BM25": {},
            "random blocks": {"embedder": lambda texts: draw.normal(size=(len(texts), 8))},
        }
        outputs: dict[tuple[str, int], str] = {}
        for way, options in ways.items():
            for result, limit in zip(
                htmlrag(page, asked.question, budgets, Transient(), **how, **options), pages.BUDGETS, strict=True
            ):
                outputs[way, limit] = result.subject.html()
        for limit in pages.BUDGETS:
            outputs["text in chunks of 100 words", limit] = pages.by_chunks(asked, limit, embed, count())
            outputs["head of the page", limit] = pages.head(page, limit, count())
        for (way, limit), output in outputs.items():
            if way.startswith(("blocks", "random")):
                assert count()([output])[0] <= limit, (way, limit)
            found[way, limit] += pages.held(asked, output)
    ways = dict.fromkeys(way for way, _ in found)
    return {way: {str(limit): found[way, limit] / len(questions) for limit in pages.BUDGETS} for way in ways}


@pytest.mark.parametrize("seed", SEEDS)
def test_recall_of_one_seed(seed):
    """One seed at a time: the three take longer than a claim may."""
    found = lab.remembered(f"htmlrag-recall-{seed}", functools.partial(recall, seed))
    print(found)
    assert set(found["blocks"]) == {str(limit) for limit in pages.BUDGETS}


@pytest.mark.parametrize("limit", pages.BUDGETS)
def test_blocks_keep_more_answers_than_chunks(limit):
    rows = [lab.remembered(f"htmlrag-recall-{seed}", functools.partial(recall, seed)) for seed in SEEDS]
    values = {way: [row[way][str(limit)] for row in rows] for way in rows[0]}
    ours, controls = values.pop("blocks"), ("random blocks", "head of the page")
    chunks = values["text in chunks of 100 words"]
    holds = sum(ours) >= sum(chunks) and all(sum(ours) > sum(values[one]) for one in controls)
    lab.record(
        "htmlrag", f"recall-{limit}",
        f"blocks keep at least as many answers in {limit:,} tokens as chunks of text with the same embedder, and more "
        "than random blocks and the page's head",
        holds, ("recall", ours), values, lower=False, against=["text in chunks of 100 words"], setup=SETUP,
        reason="at the largest budget nearly everything fits",
    )  # fmt: skip
