"""HtmlRAG (Tan et al.): blocks of HTML under a budget of tokens, on questions on pages of Python's manual."""

from __future__ import annotations

import functools
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from assets import packages
from claims._lab import pages
from claims._lab.calling import call
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur._utils.rundir import Run, Transient
from secateur.clients import chat
from secateur.recipes.context.htmlrag import htmlrag, train
from secateur.retrieval import encoders
from secateur.runs import keywords
from secateur.runs.questions import Question, Questions
from secateur.studies import rag
from secateur.subjects import open_page

GROUPS = scaled(12, 1)
PILOT_SEED = scaled(0, 10_000)
"""Pilots ask other questions."""
WORDS, LETTERS = (50, 100, 200), 600
WAYS = [f"chunks of {size} words{headed}" for size in WORDS for headed in ("", " under headings")] + [rag.SPLITTER]
RIVALS = (rag.FIRST, *(f"{way} by {by}" for by in ("BM25", "embedder") for way in WAYS), "random blocks")
"""Pipelines of `secateur study rag`, and blocks by chance."""
SETUP = "36 questions per seed with answers in one dd of Python's manual, 5 pages each; all-MiniLM-L6-v2 and its tokens"


@functools.cache
def count() -> encoders.Count:
    """Tokens of MiniLM."""
    return encoders.counter(str(packages.minilm()))


def pruned(question: pages.Question, budgets: tuple[int, ...], **options: Any) -> list[str]:
    """HTML that the recipe leaves, at each budget of tokens."""
    page = open_page(list(question.pages), numbered=False)
    limits, how = [f"tokens={limit}" for limit in budgets], {"tokenizer": str(packages.minilm()), **options}
    results = call(htmlrag, page, question.question, limits, memory=Transient(), **how)
    return [result.subject.html() for result in results]


@claim(
    question="Do blocks keep more answers than each of: chunks of 50, 100 and 200 words, with and without the headings "
    "that they stand under, and LangChain's splitter at 600 letters, all ranked by BM25 and by the same embedder; the "
    "first words; random blocks?",
    setup=f"{SETUP}; 256, 512, 1,024 and 4,096 tokens",
    measure="recall",
    better="higher",
    pairs=[(f"{limit} tokens: blocks", f"{limit} tokens: {rival}") for limit in pages.BUDGETS for rival in RIVALS],
    seeds=range(3),
)
def headline(seed: int) -> Figures:
    questions = pages.draw_questions(PILOT_SEED + seed, groups=GROUPS)
    rows = [Question(one.question, (one.gold,), one.pages) for one in questions]
    limits = {limit: f"tokens={limit}" for limit in pages.BUDGETS}
    model = str(packages.minilm())
    with tempfile.TemporaryDirectory() as folder:
        asked = Questions("manual", str(seed), tuple(rows))
        how = {"budgets": list(limits.values()), "embedder": model, "words": WORDS, "letters": LETTERS}
        found = keywords.call(rag.rag, None, asked, Path(folder, "run"), **how)
    draw = np.random.default_rng(seed)
    held: Counter[int] = Counter()
    for question in questions:
        texts = pruned(question, pages.BUDGETS, embedder=lambda texts: draw.normal(size=(len(texts), 8)))
        held.update({limit: int(pages.has_answer(question, text)) for limit, text in zip(limits, texts, strict=True)})
    arms: dict[str, float] = {}
    for limit, budget in limits.items():
        arms[f"{limit} tokens: blocks"] = found.recall("htmlrag", budget).value
        arms |= {f"{limit} tokens: {rival}": found.recall(rival, budget).value for rival in RIVALS[:-1]}
        arms[f"{limit} tokens: {RIVALS[-1]}"] = held[limit] / len(questions)
    return arms


def path_model(seed: int) -> chat.Local:
    """A causal model of 1.5M parameters from scratch, taught on questions on other pages; byte pairs of the manual."""
    draw = random.Random(1000 + seed)
    held = {question.page for question in pages.draw_questions(PILOT_SEED + seed, groups=GROUPS)}
    taught = [page for page in pages.library() if page not in held][: scaled(None, 12)]
    base = Tokenizer(models.BPE())
    base.pre_tokenizer, base.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    base.train_from_iterator((open_page(page, block=16).html() for page in taught[::4]), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = chat.Local(LlamaForCausalLM(config), tokenizer)
    known = [(page, question, gold) for page in taught for _, question, gold in pages.questions_on(page)]
    rows = [
        {"question": question, "documents": [page.read_text("utf-8")], "answers": [gold]}
        for page, question, gold in draw.sample(known, scaled(400, 8))
    ]
    how = {"windows": (640,), "rates": (1.0,), "epochs": scaled(3, 1), "lr": 2e-3, "accumulate": 8, "seed": seed}
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder, "run"), {}) as run:
        keywords.call(train, model, rows, run, **how)
    return model


@claim(
    question="Do both cuts keep more answers in 256 tokens than either alone?",
    setup="36 questions per seed; path model of 1.5M parameters from scratch, 400 questions on other pages; coarse cut "
    "by BM25; the fine cut alone reads what BM25 leaves in its window",
    measure="recall",
    better="higher",
    ours="both cuts",
    baselines=["coarse cut", "fine cut"],
    seeds=range(3),
)
def steps(seed: int) -> Figures:
    model, questions = path_model(seed), pages.draw_questions(PILOT_SEED + seed, groups=GROUPS)
    ways: dict[str, dict[str, Any]] = {
        "both cuts": {"path_model": model},
        "coarse cut": {},
        "fine cut": {"path_model": model, "wide": 1e6},
    }
    return {
        way: sum(pages.has_answer(question, pruned(question, (256,), **options)[0]) for question in questions)
        / len(questions)
        for way, options in ways.items()
    }


@claim(
    question="Does cleaning leave at most 60 % of a page's tokens?",
    setup="40 pages of Python's manual per seed",
    measure="tokens left",
    unit="%",
    better="lower",
    ours="cleaned",
    baselines=["60 %"],
    seeds=range(3),
)
def cleaning(seed: int) -> Figures:
    draw = np.random.default_rng(PILOT_SEED + seed)
    chosen = draw.choice(len(pages.library()), scaled(40, 2), replace=False)
    raw = [pages.library()[place].read_text("utf-8") for place in chosen]
    before = sum(count()(raw))
    after = sum(count()([open_page(text).html() for text in raw]))
    return {"cleaned": 100 * after / before, "60 %": 60.0}
