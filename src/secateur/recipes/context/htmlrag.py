"""HtmlRAG: HTML is better than plain text for modeling retrieved knowledge in RAG systems.

Tan, Dou, Wang, Wang, Chen and Wen, WWW 2025 (arXiv 2411.02959).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from secateur._utils import distributed
from secateur._utils.rundir import Run, Transient
from secateur.clients import chat
from secateur.errors import DataError, InputError
from secateur.methods.similarity import Matching, Similarity
from secateur.retrieval import encoders
from secateur.retrieval.encoders import Count, Encoding
from secateur.select import limits
from secateur.subjects import Page, open_page
from secateur.subjects.text import markup
from secateur.vocabulary import Budget, Cut, Recovery, Result, Selection, Training

if TYPE_CHECKING:  # pages are cut by BM25 without torch
    from torch import Tensor

CARD = {
    "title": "HtmlRAG: HTML is Better Than Plain Text for Modeling Retrieved Knowledge in RAG Systems",
    "paper": "https://arxiv.org/abs/2411.02959",
    "cuts": "blocks of HTML pages that a language model is to read, under a budget of tokens",
    "recovers": "nothing; the model that scores paths is trained on pages whose answers are known",
    "extra": "context",
    "family": "context",
}

PROMPT = (
    "**HTML**: ```{html}```\n**Question**: {question}\n**Task**: Which part of the page answers the question best? "
    "Give the path to its tag, such as <html1><body><div2><p>.\n**Path**: "
)

READER = (
    "**HTML**: ```{html}```\n**Question**: {question}\n**Task**: Answer the question by what the page says, in as few "
    "words as will do.\n**Answer**: "
)
"""What a reader is asked with the page that is left; the paper's pattern, in words of ours."""


def reader_prompt(html: str, question: str) -> str:
    """What to ask a language model once a page is cut: the page in backticks, the question, and to answer from it.

    Backticks of the page are written as entities, so that they do not end it.
    """
    return READER.format(html=html.replace("```", "&#96;&#96;&#96;"), question=" ".join(question.split()))


def htmlrag(
    subject: Page,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    embedder: Any = "",
    tokenizer: Any = "",
    path_model: Any = "",
    instruction: str = "",
    headed: bool = True,
    matching: Matching = Matching(),
    hidden: bool = False,
    wide: Annotated[float, Ge(1)] = 2.0,
    block: Annotated[int, Ge(0)] = 0,
    fine: Annotated[int, Ge(0)] = 0,
    device: str = "",
    precision: Literal["", "float32", "bfloat16"] = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut a page to a budget of tokens: first by similarity of its blocks, then by the likelihood of paths to them.

    The page is clean and split into blocks (`open_page`). For each budget:

    1. coarse: blocks of about `block` words are ranked by how alike their text and the question are to the embedder,
       or by BM25; the best stay as long as what is left fits into `wide` times the budget, each with its companions
       (`Page.companions`: headings, terms of definitions, heads of tables, sentences that lead into lists and code),
       and of the first that does not fit the best sentences; from there on each with its nearest companions;
    2. fine, with a path model: what is left is split anew, into blocks of about `fine` words. The path of each is read
       as text, "<html><body><div1><p0>"; all paths make a tree of tokens, and a path's score is the sum of
       log P(token | prompt, the tokens before), P over what some path goes on with. The worst leave until what is left
       fits into the budget;
    3. after each block the page is cleaned and counted anew, since tags leave with what they hold.

    Args:
        subject: one page, or several under one root; it stays as it is.
        data: the question.
        budgets: tokens=2048, or words=1000 where there is no tokenizer; or a share of the page, tokens=20%.
        run: where scores go.
        embedder: folder or Hub id of a bi-encoder, such a model, one of LangChain or LlamaIndex, or the address of
            a server that has one; without one blocks are ranked by BM25.
        tokenizer: folder or Hub id of the reader's tokenizer, the name of one of OpenAI's (o200k_base, gpt-4o), or a
            function that counts tokens; the embedder's own if not given.
        path_model: folder or Hub id of a causal language model for step 2, or `chat.Local`; without one there is no
            step 2, and step 1 goes down to the budget.
        instruction: what is put before the question for the embedder; BAAI/bge wants "Represent this sentence for
            searching relevant passages: ".
        headed: a block is ranked with the headings, terms and table heads that it stands under.
        matching: see this class: words of which language, rank fusion, a corpus, scores of a retriever.
        hidden: keep what a page hides from who looks at it (`hidden`, `aria-hidden`, `display: none`); else a note says
            how many words were left out.
        wide: the coarse cut's budget, as a multiple.
        block: words above which a tag is split for step 1; 0 for a size that suits page and budget (`suit_block`).
        fine: the same for step 2.
        device: where embedder and path model are held if given by name, "cuda"; the processor if empty.
        precision: numbers in which an embedder that is given by folder or Hub id computes; as its checkpoint has it if
            empty, mostly float32. On processors with AMX bfloat16 takes less than half the time, on others it may
            take more. In bfloat16 a text's vector depends a little on what is read beside it.
        seed: not used; nothing here is random.
        dry_run: as a run; nothing is kept.

    Where not even the best block fits it is split further, down to sentences, and at last only its first words
    stay: a result is never over budget, and never empty where the page and the budget are not. `told` counts the
    path model's calls and tokens, and its notes say what was hidden.

    Departures: of long pages an embedder reads the 2,000 words that match best by BM25 (`shortlist`; 0 reads all, as
    the paper does). Block sizes follow page and budget unless given (256 and 128 words in the paper). Headings lead the
    texts of their blocks, and stay with them. Protected tags such as tables are not unwrapped, a page may hold
    several documents, a split tag's bare text is a block however short, and costs only itself. The released package
    (0.1.1) drops the best blocks when the lengths of all exceed the budget; this follows the paper. A path's score
    is not divided by the mean length of paths, which is the same for all. Tags that say only how a line looks
    (`markup.PLAIN`: a, b, code, em) always go, and what they hold stays. A `pre`, and a tag with a line of text and
    nothing else, is never split into blocks. Since block sizes follow the budget, a larger one does not always keep
    all that a smaller one does (of 100 neighbouring pairs 3 did not); with `block` given, blocks are the same for
    all, and a larger one may spend on companions of a better block what a smaller one had left for the next.
    """
    subject = subject.show_hidden() if hidden else subject
    notes = () if hidden or not subject.hidden else (HIDDEN.format(subject.hidden),)
    encoding, question = Encoding(embedder, tokenizer, device, precision=precision), " ".join(data.split())
    counts = encoding.counts()
    scorer = chat.open_local(path_model, device) if path_model else None
    embed = encoding.open_embedder()
    similarity = Similarity(embed, matching=matching)
    matching.check_prior(len(subject.parts()))
    rate = partial(score_texts, question=question, similarity=similarity, headed=headed, instruction=instruction)
    whole = cost(subject, counts)
    for budget in budgets:
        limit = limits.limits_of_text(budget, whole, "a page")
        more: dict[str, Any] = {"notes": list(notes)} if notes else {}
        if scorer is None:
            size = block or suit_block(limit, whole)
            page, told = reduce_page(subject, limit, counts, size, rate, run, f"coarse-{budget}")
            trace = {"page": told}
        else:
            # What the path model is to read must fit into it, too.
            both = {**counts, READ: encoders.counter(scorer.tokenizer)}
            many = {name: wide * most for name, most in limit.items()} | {READ: room(scorer, question, subject)}
            page, told = reduce_page(subject, many, both, block, rate, run, f"coarse-{budget}")
            spent = {"calls": 0, "tokens": 0}
            score = partial(score_paths, question=question, model=scorer, spent=spent)
            page, then = reduce_page(page, limit, counts, fine, score, run, f"fine-{budget}")
            trace = {"page": told, "page.fine": then}
            more["path_model"] = spent
        run.json(f"trace-{budget}", partial(dict, trace))
        if more:
            run.json(f"told-{budget}", partial(dict, more))
        gone = {site: (sum(not row["kept"] for row in told), len(told)) for site, told in trace.items()}
        after = cost(page, counts)
        yield Result(str(budget), page, Cut(gone, whole, after, notes), after)


HIDDEN = "{} words that the page hides from who looks at it were left out: hidden=True (--hidden) keeps them"

READ = "read"
"""The measure of what the path model reads: its own tokens of a page whose tags are numbered."""

Rate = Callable[[Page, Sequence[int] | None], np.ndarray]
"""(page, numbers of some blocks, or None for all) -> their scores."""
Counts = Mapping[str, Count]
Fits = Callable[[Page, np.ndarray, int], bool]
"""(page, booleans [blocks], times) -> whether these blocks alone, written as they will be, fit so often."""
Row = dict[str, Any]
"""What a trace tells of a block: path, score, text, costs, and whether it is kept."""


def cost(page: Page, counts: Counts) -> dict[str, float]:
    """Measure -> what the page takes, written as it is; in `READ`, as the path model reads it."""
    numbered = {READ: page.split(0).html(numbered=True)} if READ in counts else {}
    return {"words": float(markup.words(page.text()))} | {
        name: float(count([numbered.get(name) or page.to_text()])[0]) for name, count in counts.items()
    }


def suit_block(limit: Mapping[str, float], whole: Mapping[str, float]) -> int:
    """Words of a block that suit the budget and the page: 16, 32, 64 or 128, at most about an eighth of either."""
    share = min([1.0, *(most / max(1.0, whole[name]) for name, most in limit.items())])
    return max(size for size in (16, 32, 64, 128) if size == 16 or size <= whole["words"] * share / 8)


def reduce_page(
    page: Page, limit: Mapping[str, float], counts: Counts, block: int, rate: Rate, run: Run, name: str
) -> tuple[Page, list[Row]]:
    """The page within `limit`, and what became of each block; `name` is that of the scores in the run.

    The best blocks stay, each with its companions, and of the first that does not fit so the best sentences; from
    there on a block stays with the nearest of its companions, up to the first that does not fit alone.
    """
    page = page.split(block or suit_block(limit, cost(page, counts)))

    def fits(page: Page, keep: np.ndarray, times: int) -> bool:
        return is_within(limit, cost_kept(page, keep, counts), times)

    while True:
        told = run.json(f"{name}-{page.block}", partial(trace_blocks, page, counts, rate))
        order = page.rank([row["score"] for row in told])
        many = count_fitting(page, order, fits)
        if many < len(order) and (many or not page.block):
            page, told, order = refine_block(page, told, order, many, counts, rate, run, f"{name}-{page.block}-{many}")
            many += count_fitting(page, order[many:], fits, keep_first(page, order, many))
        if many or not page.block or not len(order):
            keep = keep_fitting(page, order, many, fits)
            smaller, _ = page.cut(Selection({"page": keep}))
            told = [{**row, "kept": bool(stays)} for row, stays in zip(told, keep, strict=True)]
            # With none of them not even the best sentence fits.
            return smaller if many else first_words(smaller, limit, counts), told
        page = page.split(page.block // 2)


def keep_first(page: Page, order: np.ndarray, many: int, kept: np.ndarray | Literal[False] = False) -> np.ndarray:
    """[blocks] booleans: the first of `order` and their companions, beside those of `kept`."""
    return page.complete(np.isin(np.arange(len(page.blocks)), order[:many])) | kept


def keep_fitting(page: Page, order: np.ndarray, many: int, fits: Fits) -> np.ndarray:
    """[blocks] booleans: the first `many`, with all their companions, and of the others as many as there is room for.

    Of these one that does not fit with all its companions stays with the nearest, and one that does not fit alone is
    the end: what stays is the beginning of `order`. Where not even the first fits, it stays all the same.
    """
    keep = keep_first(page, order, many)
    while many < len(order):
        more = keep_nearest(page, int(order[many]), keep, fits)
        if keep.any() and not more[order[many]]:
            break
        more[order[many]] = True
        order = order[many + 1 :]
        many = count_fitting(page, order, fits, more)
        keep = keep_first(page, order, many, more)
    return keep


def keep_nearest(page: Page, index: int, kept: np.ndarray, fits: Fits) -> np.ndarray:
    """[blocks] booleans: those of `kept`, a block if it fits, and as many of its companions as there is room for.

    The nearest come first, beside the whole block or, where only its first words will fit, in half of the limit.
    """
    keep = kept.copy()
    for other in [index, *reversed(page.companions(index))]:
        if not keep[other]:
            keep[other] = True
            keep[other] = fits(page, keep, 1 if keep[index] else 2)
    return keep


def count_fitting(page: Page, order: np.ndarray, fits: Fits, kept: np.ndarray | Literal[False] = False) -> int:
    """How many of the blocks, the best first, fit with their companions, beside those of `kept`."""
    low, step, high = 0, 1, len(order) + 1  # `low` fit, `high` do not
    while low + 1 < high:
        many = min(low + step, (low + high) // 2)
        enough = fits(page, keep_first(page, order, many, kept), 1)
        low, step, high = (many, 2 * step, high) if enough else (low, 1, many)
    return low


def is_within(limit: Mapping[str, float], spent: Mapping[str, float], times: int = 1) -> bool:
    """Whether what is spent fits so many times into the limit."""
    return all(times * spent[name] <= most for name, most in limit.items())


def cost_kept(page: Page, keep: np.ndarray, counts: Counts) -> dict[str, float]:
    """Measure -> what the page takes with the blocks of `keep` alone."""
    if READ in counts or page.numbered:  # tags that meet where others went have numbers only then
        return cost(page.cut(Selection({"page": keep}))[0], counts)
    text, words = page.draft(keep)
    return {"words": float(words)} | {name: float(count([text])[0]) for name, count in counts.items()}


def refine_block(
    page: Page, told: list[Row], order: np.ndarray, place: int, counts: Counts, rate: Rate, run: Run, name: str
) -> tuple[Page, list[Row], np.ndarray]:
    """The page with the sentences of a block in its place, `order[place]`, their rows, and the new order."""
    index = int(order[place])
    finer = page.refine(index)
    more = len(finer.blocks) - len(page.blocks)
    parts = np.arange(index, index + more + 1)
    rows = run.json(name, partial(trace_blocks, finer, counts, rate, parts.tolist()))
    best = parts[np.argsort([-row["score"] for row in rows], kind="stable")]
    others = np.where(order > index, order + more, order)
    ranked = np.concatenate([others[:place], best, others[place + 1 :]])
    return finer, [*told[:index], *rows, *told[index + 1 :]], ranked


def first_words(page: Page, limit: Mapping[str, float], counts: Counts) -> Page:
    """As many of the page's first words as fit, or letters where not even one word does."""

    def within(head: Page) -> bool:
        return is_within(limit, cost(head, counts))

    for letters in (False, True):
        most = (len(page.text()) if letters else markup.words(page.text())) + 1
        fits, many = 0, 1  # what fits, and what is tried: twice as many, as long as they fit, since pages may be large
        while many < most and within(page.head(many, letters=letters)):
            fits, many = many, 2 * many
        many = min(many, most)
        while many - fits > 1:
            middle = (fits + many) // 2
            fits, many = (middle, many) if within(page.head(middle, letters=letters)) else (fits, middle)
        if fits:
            break
    return page.head(fits, letters=letters)


def trace_blocks(page: Page, counts: Counts, rate: Rate, blocks: Sequence[int] | None = None) -> list[Row]:
    """What a trace tells of each block, or of some."""
    numbers = range(len(page.blocks)) if blocks is None else blocks
    costs = page.costs(numbers, counts)
    return [
        {"path": " > ".join(page.path(i)), "score": float(score), "text": page.text(i), "document": page.owner(i),
         **{measure: float(column[place]) for measure, column in costs.items()}}
        for place, (i, score) in enumerate(zip(numbers, rate(page, blocks), strict=True))
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- its scores


def block_texts(page: Page, headed: bool, blocks: Sequence[int] | None = None) -> list[str]:
    """What each block says, under what it stands."""
    count = range(len(page.blocks)) if blocks is None else blocks
    return [" ".join([*page.headings(i), page.text(i)] if headed else [page.text(i)]) for i in count]


def score_texts(
    page: Page,
    blocks: Sequence[int] | None = None,
    *,
    question: str,
    similarity: Similarity,
    headed: bool,
    instruction: str = "",
) -> np.ndarray:
    """Cosine of the question, behind the instruction, and each block's text, or BM25."""
    owners = [page.owner(i) for i in (range(len(page.blocks)) if blocks is None else blocks)]
    return similarity.rank(question, block_texts(page, headed, blocks), owners, instruction=instruction)


def score_paths(
    page: Page,
    blocks: Sequence[int] | None = None,
    *,
    question: str,
    model: chat.Local,
    spent: MutableMapping[str, int] | None = None,
) -> np.ndarray:
    """Log-likelihood of the path to each block; `spent` gets the calls of the model that took, and their tokens.

    Sentences of one block, `blocks`, have the same path.
    """
    if not page.blocks or blocks is not None:
        return np.zeros(len(blocks or ()))
    from secateur.score import paths as likely

    prompt = model.prompt(PROMPT.format(html=page.html(numbered=True), question=question))
    paths = [tag_path(page, i) for i in range(len(page.blocks))]
    tokens = model.tokenizer(paths, add_special_tokens=False)["input_ids"]
    found = likely.likelihood(model.model, prompt, tokens)
    if spent is not None:
        spent["calls"] += found.calls
        spent["tokens"] += found.tokens
    return found.values.numpy()


def tag_path(page: Page, index: int) -> str:
    """The path to a block as text: <html><body><div1>."""
    return "".join(f"<{name}>" for name in page.path(index))


def room(model: chat.Local, question: str, page: Page) -> float:
    """How many tokens of HTML the path model can read beside the prompt, the question and the longest path."""
    asked = len(model.prompt(PROMPT.format(html="", question=question)))
    finest = page.split(0)
    paths = [tag_path(finest, i) for i in range(len(finest.blocks))]
    return float(max(1, model.window - asked - max(encoders.counter(model.tokenizer)(paths), default=0)))


# ------------------------------------------------------------------------------------------- training the path model


def train(
    model: chat.Local,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    embedder: Any = "",
    headed: bool = True,
    windows: Sequence[int] = (2048, 4096, 8192, 16384, 32768),
    rates: Sequence[float] = (0.2, 0.3, 0.2, 0.1, 0.1),
    block: int = 0,
    fine: int = 16,
    training: Training = Training(epochs=3.0, lr=2e-5, accumulate=8),
    seed: int = 0,
) -> tuple[Recovery, tuple[str, ...]]:
    """Teach a causal language model to answer with the path to the block that holds the answer, and with that block.

    Args:
        model: what is trained, in place.
        rows: each with `question`, `documents` (a list of HTML) and `answers` (texts that they say).
        run: where the training's checkpoint goes.
        embedder, headed, block: of the coarse cut that makes the pages.
        windows: tokens of the model that a page is cut to.
        rates: how likely a row is used at each window.
        fine: words above which a tag is split.
        training: see `Training`; the learning rate is constant after a warm-up of 1 %, and a batch is one sample. What
            it is validated by are all samples of a share of the pages, which are in no epoch.
        seed: of which rows are used at which window, and of their order.

    A sample's target is the block with the largest share of the answers in it, the first of them; rows without are
    left out, as are windows that the model can't read. The loss is that of the target's tokens alone.
    """
    from secateur.data.batches import Repeated
    from secateur.recover.training import loop, objectives

    if len(windows) != len(rates) or not windows:
        raise InputError(f"windows={list(windows)}, rates={list(rates)}: give one rate for each window")
    made: list[dict[str, Tensor]] = []
    pages, lost = list[tuple[str, ...]](), 0
    draw = np.random.default_rng(seed)
    similarity = Similarity(
        encoders.encoder(embedder, str(model.model.device)) if embedder else None, matching=Matching()
    )
    for number, row in enumerate(rows, start=1):
        if not row["answers"]:
            raise DataError(f"row {number} has no answers: give text or a list of texts that its documents say")
        question = " ".join(str(row["question"]).split())
        page = open_page(row["documents"])
        for window in (window for window, share in zip(windows, rates, strict=True) if draw.random() < share):
            read = {READ: encoders.counter(model.tokenizer)}
            limit = {READ: min(float(window), room(model, question, page))}
            rate = partial(score_texts, question=question, similarity=similarity, headed=headed)
            smaller, _ = reduce_page(page, limit, read, block, rate, Transient(), "coarse")
            sample = make_sample(smaller.split(fine), question, row["answers"], model)
            lost += sample is None
            made += [] if sample is None else [sample]
            pages += [] if sample is None else [tuple(row["documents"])]
    if not made:
        raise DataError(f"none of {len(rows)} rows gives a sample: their answers stand in no block of their pages")
    epochs = training.number("epochs")
    order = [int(i) for _ in range(math.ceil(epochs)) for i in draw.permutation(len(made))]
    steps = max(1, round(epochs * len(made) / (training.whole("accumulate") * distributed.count())))
    recovery = loop.train(
        model.model, Repeated(made, order, pages, seed=seed), partial(objectives.answer_loss, model.model),
        training.default(steps=steps, warmup=0.01, schedule="constant", betas=(0.9, 0.98), weight_decay=1e-4),
        seed=seed, count=objectives.count_answers, checkpoint=run.folder("training"), title="path model",
    )  # fmt: skip
    return recovery, (f"{len(made)} samples of {len(rows)} rows; {lost} had no answer in what the coarse cut left",)


def make_sample(page: Page, question: str, answers: Sequence[str], model: chat.Local) -> dict[str, Tensor] | None:
    """Token ids and labels [1, S] of prompt and answer; None where no block holds an answer."""
    import torch

    wanted = [normalise(answer) for answer in answers]
    found = [normalise(page.text(i)) for i in range(len(page.blocks))]
    worth = [sum(bool(answer) and answer in text for answer in wanted) for text in found]
    if not any(worth):
        return None
    best = int(np.argmax(worth))
    _, bare = page.blocks[best]
    path = tag_path(page, best) if bare else "".join(f"<{name}>" for name in page.path(best)[:-1])
    prompt = model.prompt(PROMPT.format(html=page.html(numbered=True), question=question))
    answer = model.tokenizer(path + page.source(best), add_special_tokens=False)["input_ids"]
    ids = [*prompt, *answer]
    ids = ids[: int(min(len(ids), model.window))]
    labels = [-100] * (len(prompt) - 1) + ids[len(prompt) :] + [-100]
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles: as exact matches are counted in question answering."""
    return " ".join(term for term in markup.terms(text) if term not in ("a", "an", "the"))
