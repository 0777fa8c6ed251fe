"""HtmlRAG on pages of Python's manual: cleaning, recall of the answer under a budget, and what the path model adds."""

from __future__ import annotations

import functools
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from selectolax.lexbor import LexborHTMLParser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from assets import packages
from claims import lab, pages, tables
from secateur._utils.rundir import Run, Transient
from secateur.clients import chat
from secateur.recipes.context.htmlrag import htmlrag, train
from secateur.retrieval import encoders
from secateur.runs import keywords
from secateur.subjects import open_page
from secateur.vocabulary import Budget

pytestmark = pytest.mark.claim

SEEDS = (0, 1, 2)
DRAWN = (*SEEDS, 4, 5, 6)
"""Seeds of what is compared with chunks: at 4,096 tokens a few answers of a hundred decide. 3 is the benchmark's."""
TABLES = (
    "4 questions on each of 11 pages per seed whose answer is one cell of a table of three columns or more, 5 pages "
    "each, blocks ranked by BM25; each form has a reader of its own, two LSTMs on the lower half of all-MiniLM-L6-v2, "
    "taught on tables of 22 other pages"
)
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
            "random blocks": {"embedder": lambda texts: draw.normal(size=(len(texts), 8))},
        }
        if seed in SEEDS:
            ways |= {"blocks without headings": {"embedder": embed, "headed": False}, "blocks, BM25": {}}
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


@pytest.mark.parametrize("seed", DRAWN)
def test_recall_of_one_seed(seed):
    """One seed at a time: all of them take longer than a claim may."""
    found = lab.remembered(f"htmlrag-recall-{seed}", functools.partial(recall, seed))
    print(found)
    assert set(found["blocks"]) == {str(limit) for limit in pages.BUDGETS}


@pytest.mark.parametrize("limit", pages.BUDGETS)
def test_blocks_keep_more_answers_than_chunks(limit):
    rows = [lab.remembered(f"htmlrag-recall-{seed}", functools.partial(recall, seed)) for seed in DRAWN]
    values = {way: [row[way][str(limit)] for row in rows if way in row] for way in rows[0]}
    ours, rivals = values.pop("blocks"), ("text in chunks of 100 words", "random blocks", "head of the page")
    lab.record(
        "htmlrag", f"recall-{limit}",
        f"blocks keep clearly more answers in {limit:,} tokens than chunks of text with the same embedder, random "
        "blocks, and the page's head",
        all(lab.clearly_less(values[one], ours) for one in rivals), ("recall", ours), values, lower=False,
        against=rivals, setup=SETUP, seeds=DRAWN,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- what a reader makes of it


def lookups(form: str, seed: int) -> dict[str, float]:
    """Budget -> share of the questions whose reader gives the very cell; and of those whose row is left whole."""
    taught, judged = tables.split(seed)
    reader, found = tables.taught(form, taught, seed), Counter[str]()
    questions = [one for page in judged for one in tables.asked(page, seed, each=4)]
    for one in questions:
        for limit, source in zip(tables.BUDGETS, tables.contexts(one, form), strict=True):
            context = tables.written(source, form)
            assert count()([context])[0] <= limit
            found[f"{limit}"] += pages.squeezed(reader.answer(one.question, context)) == pages.squeezed(one.gold)
            found[f"{limit} left"] += tables.place(one, source, form) is not None
    return {"questions": len(questions)} | {name: number / len(questions) for name, number in found.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", tables.FORMS)
def test_tables_of_one_seed(form, seed):
    """One reader at a time: all take longer than a claim may."""
    found = lab.remembered(f"htmlrag-tables-{form}-{seed}", functools.partial(lookups, form, seed))
    print(form, seed, found)
    assert found["questions"] >= 34


@pytest.mark.parametrize("limit", tables.BUDGETS)
def test_tables_are_read_better_as_html(limit):
    rows = {form: [lab.remembered(f"htmlrag-tables-{form}-{seed}", functools.partial(lookups, form, seed))
                   for seed in SEEDS] for form in tables.FORMS}  # fmt: skip
    exact = {form: [row[f"{limit}"] for row in rows[form]] for form in tables.FORMS}
    left = {f"the answer's row is left whole, {form}": [row[f"{limit} left"] for row in rows[form]]
            for form in tables.FORMS}  # fmt: skip
    lab.record(
        "htmlrag", f"tables-{limit}",
        f"a reader answers more questions on tables from pruned HTML than from flattened text of {limit} tokens",
        sum(exact["HTML"]) > sum(exact["text"]), ("exact match", exact["HTML"]), {"text": exact["text"]} | left,
        lower=False, against=["text"], setup=TABLES,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the path model


def path_model(seed: int) -> chat.Local:
    """A causal model of 1.5M parameters from scratch, taught on questions on other pages; byte pairs of the manual."""
    draw = random.Random(1000 + seed)
    held = {asked.page for asked in pages.asked(seed, groups=12)}
    taught = [page for page in pages.library() if page not in held]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learnt = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator((open_page(page, block=16).html() for page in taught[::4]), learnt)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = chat.Local(LlamaForCausalLM(config), tokenizer)
    found = [(page, one) for page in taught for one in pages.found_on(page)]
    rows = [
        {"question": question, "documents": [page.read_text("utf-8")], "answers": [gold]}
        for page, (_, question, gold) in draw.sample(found, 400)
    ]
    how = {"windows": (640,), "rates": (1.0,), "epochs": 3, "lr": 2e-3, "accumulate": 8, "seed": seed}
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder, "run"), {}) as run:
        print(keywords.call(train, model, rows, run, **how)[1])
    return model


def two_steps(seed: int) -> dict[str, float]:
    """Way -> share of the questions whose answer is in 256 tokens; the coarse cut is by BM25."""
    model, found = path_model(seed), Counter[str]()
    questions = pages.asked(seed, groups=12)
    ways = {"both cuts": {"path_model": model}, "coarse cut": {}, "fine cut": {"path_model": model, "wide": 1e6}}
    for asked in questions:
        page = open_page(list(asked.pages), numbered=False)
        for way, options in ways.items():
            (result,) = htmlrag(
                page, asked.question, [Budget.parse("tokens=256")], Transient(), tokenizer=str(packages.minilm()),
                **options,
            )  # fmt: skip
            found[way] += pages.held(asked, result.subject.html())
    return {way: found[way] / len(questions) for way in ways}


@pytest.mark.parametrize("seed", SEEDS)
def test_two_steps_of_one_seed(seed):
    """One seed at a time: the three take longer than a claim may."""
    found = lab.remembered(f"htmlrag-steps-{seed}", functools.partial(two_steps, seed))
    print(found)
    assert set(found) == {"both cuts", "coarse cut", "fine cut"}


@pytest.mark.xfail(strict=True, reason="a path model from scratch learns which tags answer, not which names are asked")
def test_two_steps_beat_one():
    rows = [lab.remembered(f"htmlrag-steps-{seed}", functools.partial(two_steps, seed)) for seed in SEEDS]
    values = {way: [row[way] for row in rows] for way in rows[0]}
    ours = values.pop("both cuts")
    lab.record(
        "htmlrag", "two-steps", "both cuts keep at least as many answers in 256 tokens as either alone",
        all(sum(ours) >= sum(other) for other in values.values()), ("recall", ours), values, lower=False,
        setup="path model of 1.5M parameters from scratch, 400 questions on other pages; coarse cut by BM25; the fine "
        "cut alone reads what BM25 leaves in its window",
        reason="a model from scratch learns which tags answer, not which names are asked",
    )  # fmt: skip
