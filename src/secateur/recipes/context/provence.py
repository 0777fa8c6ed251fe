"""Provence: efficient and robust context pruning for retrieval-augmented generation.

Chirkova, Formal, Nikoulina and Clinchant, ICLR 2025 (arXiv 2501.16214).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Lt

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.errors import InputError
from secateur.methods.asking import Asking
from secateur.methods.fitting import fit_to_limits
from secateur.methods.reranker_training import (
    PairBatches,
    describe_quality,
    keep_sentences,
    measure_quality,
    prepare_pairs,
    share_words,
)  # fmt: skip
from secateur.recover.training import loop, objectives
from secateur.retrieval import encoders, rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.select import limits
from secateur.subjects import Passages
from secateur.vocabulary import Budget, Cut, Recovery, Result, Selection, Training, Units

CARD = {
    "title": "Provence: efficient and robust context pruning for retrieval-augmented generation",
    "paper": "https://arxiv.org/abs/2501.16214",
    "cuts": "sentences of passages that a language model is to read, by a threshold and under a budget of tokens",
    "recovers": "nothing; the reranker that scores tokens is trained on an LLM's citations and on its own old scores",
    "extra": "context",
    "family": "context",
}

Rounding = Literal["", "vote", "mean", "share"]


def provence(
    subject: Passages,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    model: Any = "",
    tokenizer: Any = "",
    threshold: float | None = None,
    rounding: Rounding = "",
    always_select_title: bool = False,
    reorder: bool = False,
    top_k: Annotated[int, Ge(0)] = 0,
    reranker: Any = "",
    best_block: bool = False,
    longest: Annotated[int, Ge(0)] = 0,
    language: str = "",
    device: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut passages to the sentences that answer the question, each read together with the question and its neighbours.

    1. A cross-encoder reads question and passage as one sequence, each sentence tokenised on its own: it gives the
       passage a score and each token t a probability p_t to keep. A passage that is longer than the model reads is cut
       into blocks of whole sentences, the question before each; a sentence that is longer than a block, into parts.
    2. A sentence stays by "vote" if more than half of its tokens have p_t > threshold, by "mean" if the mean of its p_t
       is above the threshold, or by "share" if the share of its tokens with p_t > threshold is above the threshold.
       The default pruner's own threshold has a second part, a share of the mean of the passage's best sentence; and its
       means are raised where a sentence has words of the question (`rerankers.Settings`: of_best, terms).
    3. With `reorder` or `top_k`, passages are sorted by their scores, and the first stay.
    4. What is over the budget leaves by the mean of p_t, the lowest first; what is left is counted after each cut.

    Args:
        subject: the passages; they stay as they are.
        data: the question.
        budgets: tokens=2048, words=1000, or a share; tokens=100% where the threshold alone is to decide.
        run: where scores go.
        model: folder or Hub id of a pruner: one of `secateur train-pruner provence`, Naver's Provence or XProvence, or
            an OpenProvence; or `rerankers.Reranker`. The one that `secateur build-pruner` made here if not given.
        tokenizer: folder or Hub id of the reader's tokenizer, the name of one of OpenAI's (o200k_base, gpt-4o), or a
            function that counts tokens; the model's own if not given.
        threshold: 0.1 keeps what may matter, 0.5 what surely does; below 0 all stays. The model's own if not given,
            with its share of the best.
        rounding: "vote", "mean" or "share"; the model's own if not given.
        always_select_title: the first sentence is a title: it stays exactly where another sentence of its passage does.
        reorder: the passages in the order of their scores.
        top_k: how many passages stay, the first by score; 0 for all.
        reranker: whose scores sort passages, where the model only prunes (standalone), or the address of a
            text-embeddings-inference server that has one; the model's own if not given.
        best_block: a long passage scores as its best block, not as its first.
        longest: tokens of a block, no more than the model has positions for; if 0 as many as it reads, at most 512.
        language: whose rules split sentences, "de"; the model's own if not given. Lists of sentences stay, and so do
            passages that were opened with a `split`.
        device: where model and reranker are held if given by name, "cuda"; the processor if empty.
        seed: not used; nothing here is random.
        dry_run: as a run; nothing is kept.

    Departures: a budget comes on top of the threshold. Sentences are split by sencentex's rules instead of NLTK's. What
    stands between two sentences that stay is left as it is. A title that alone is above the threshold does not stay.
    """
    judge, question = open_pruner(model, device), " ".join(data.split())
    chosen, known = judge.settings, judge.notes
    cutoff = chosen.threshold if threshold is None else threshold
    counts = {"tokens": encoders.counter(tokenizer or judge.tokenizer)}
    subject = subject.split(language or chosen.language)
    parts = subject.by_passage()
    told = run.json("judged", lambda: judge_passages(judge, question, parts, longest, best_block))
    of_best = chosen.of_best if threshold is None else 0.0
    sizes, how = [len(part) for part in parts], rounding or chosen.rounding
    raised = None
    if chosen.terms and threshold is None:
        raised = chosen.terms * share_words(question, parts, language or chosen.language)
    keep, scores = keep_sentences(told, sizes, cutoff, how, of_best, raised)
    above = keep
    if reranker:
        other = rerankers.open_ranker(reranker, device)
        known = tuple(dict.fromkeys([*known, *other.notes]))
        told = run.json("ranked", lambda: judge_passages(other, question, parts, longest, best_block))
    elif (reorder or top_k) and not chosen.ranks:
        raise InputError("this model prunes and does not rank: give a reranker, or leave reorder and top_k out")
    order = list(range(len(parts)))
    if reorder or top_k:
        first = sorted(order, key=lambda number: (-told[number]["score"], number))[: top_k or None]
        order = first if reorder else sorted(first)
    stays = keep & np.isin([one.passage for one in subject.sentences], order)
    if always_select_title:
        keep, stays, scores = keep_titles(subject, keep, stays, scores)
    whole = subject.cost(counts)
    left, _ = subject.cut(Selection({"sentences": keep}))
    compression = 100.0 * (1.0 - count_letters(left) / max(1, count_letters(subject)))
    passing, _ = subject.reorder(order).cut(Selection({"sentences": stays}))
    for budget in budgets:
        limit = limits.limits_of_text(budget, whole, "a passage")
        kept, smaller = stays.copy(), passing
        if stays.any():
            units = passing.units(**counts)
            if always_select_title:
                units = couple_titles(units, passing, scores[stays])
            selection = fit_to_limits(passing, scores[stays], limit, counts, units)
            kept[stays], smaller = selection.keep["sentences"], passing.cut(selection)[0]
        run.json(f"trace-{budget}", partial(trace, subject, counts, scores, kept))
        notes = [*known, *explain_empty(scores, cutoff, above, stays, kept, budget)]
        ranks = {"reranking_scores": [one["score"] for one in told], "ranks": bool(reranker or chosen.ranks)}
        run.json(f"told-{budget}", partial(dict, **ranks, compression=compression, notes=notes))
        gone = {"sentences": (int((~kept).sum()), len(kept))}
        after = smaller.cost(counts)
        yield Result(str(budget), smaller, Cut(gone, whole, after, tuple(notes)), after)


Row = dict[str, Any]
Counts = Mapping[str, Callable[[Sequence[str]], Sequence[int]]]


def explain_empty(
    scores: np.ndarray, threshold: float, above: np.ndarray, stays: np.ndarray, kept: np.ndarray, budget: Budget
) -> list[str]:
    """Why nothing is left, where nothing is."""
    if kept.any() or not len(kept):
        return []
    if not above.any():
        return [f"no sentence passes the threshold {threshold:g}: the best has {scores.max():.3g} in the mean"]
    if not stays.any():
        return [
            f"{int(above.sum())} sentences pass the threshold, and none stays: each is a title alone "
            "(always_select_title), or of a passage that top_k leaves out"
        ]
    return [f"{int(stays.sum())} sentences pass the threshold, and none of them fits into {budget}"]


def count_letters(passages: Passages) -> int:
    """Characters of what is left."""
    return sum(len(text) for text, _ in passages.documents().values())


# ----------------------------------------------------------------------------------------------------------- its scores


def open_pruner(model: Any, device: str = "") -> Reranker:
    """The trained model, the default one for ""; `InputError` for a reranker that says nothing of tokens."""
    if isinstance(model, str) and not model:
        model = str(rerankers.default_folder())
        if not (rerankers.default_folder() / "config.json").is_file():
            raise InputError(
                "no pruner is built here yet: run `secateur build-pruner` once (`make pruner` in a clone; minutes), or "
                "give model, a folder or Hub id such as hotchpotch/open-provence-reranker-xsmall-v1"
            )
    found = rerankers.open_reranker(model, device)
    if found.keep is None:
        name = model if isinstance(model, str) else "this model"
        raise InputError(f"{name} ranks and does not prune: train it first (secateur train-pruner provence)")
    return found


def judge_passages(
    model: Reranker | rerankers.RemoteRanker, question: str, passages: Sequence[Sequence[str]], longest: int, best: bool
) -> list[Row]:
    """Of each passage its score, and the tokens' probabilities and sentences."""
    if longest and isinstance(model, Reranker):
        from secateur.subjects.transformer.subject import count_positions  # which loads transformers

        longest = min(longest, count_positions(model.model) or longest)
    found = model.judge([(question, sentences) for sentences in passages], longest=longest, best=best)
    return [{"score": each.score, "keep": each.keep.tolist(), "owner": each.owner.tolist()} for each in found]


def keep_titles(
    passages: Passages, keep: np.ndarray, stays: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, where a passage's first sentence stays exactly if another does, and ranks with the best of them."""
    keep, stays, scores = keep.copy(), stays.copy(), scores.copy()
    numbers = np.array([one.passage for one in passages.sentences], int)
    for number in set(numbers.tolist()):
        first, *others = np.flatnonzero(numbers == number).tolist()
        keep[first], stays[first] = bool(keep[others].any()), bool(stays[others].any())
        passing = [other for other in others if stays[other]]
        scores[first] = max(scores[passing]) if passing else scores[first]
    return keep, stays, scores


def couple_titles(units: Units, passages: Passages, scores: np.ndarray) -> Units:
    """Units whose titles go with the best other sentence of their passage."""
    numbers = np.array([one.passage for one in passages.sentences], int)
    together = np.arange(len(numbers))
    for number in set(numbers.tolist()):
        first, *others = np.flatnonzero(numbers == number).tolist()
        together[first] = others[int(np.argmax(scores[others]))]
    return replace(units, sites={"sentences": replace(units["sentences"], coupled=together)})


def trace(passages: Passages, counts: Counts, scores: np.ndarray, keep: np.ndarray) -> dict[str, list[Row]]:
    """Site -> what became of each sentence; a site for each passage."""
    units = passages.units(**counts)
    found: dict[str, list[Row]] = {f"passage {number + 1}": [] for number in range(len(passages.texts))}
    for index, (number, start, end) in enumerate(passages.sentences):
        costs = {name: float(column[index]) for name, column in units["sentences"].cost.items()}
        row = {"path": f"{start}:{end}", "score": float(scores[index]), "text": passages.text(index), **costs}
        found[f"passage {number + 1}"].append({**row, "document": number, "kept": bool(keep[index])})
    return {site: rows for site, rows in found.items() if rows}


# ------------------------------------------------------------------------------------------------------------ training


def train(
    model: Reranker,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    weight: Annotated[float, Ge(0)] = 0.05,
    corpus: str = "",
    asking: Asking = Asking(),
    oracle: Literal["answer", "relevance", "indices"] = "answer",
    everywhere: bool = True,
    training: Training = Training(epochs=1.0, batch=48, lr=3e-6),
    longest: int = 512,
    threshold: float = 0.1,
    rounding: Literal["vote", "mean"] = "vote",
    language: str = "en",
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05,
    evaluate_every: Annotated[int, Ge(0)] = 0,
    seed: int = 0,
) -> tuple[Recovery, tuple[str, ...]]:
    """Teach a cross-encoder which sentences to keep, and to go on ranking as it did.

    The loss of a batch is the mean over tokens of -log P(label), plus `weight` times the mean over pairs of
    (s - s_0)^2, where s_0 is the score that the model gave before, or the one that a row brings.

    Args:
        model: what is trained, in place: a reranker (unified), or with weight=0 any encoder (standalone).
        rows: each with `question`, `documents` (texts, or lists of sentences), and perhaps `titles` (one for each),
            `kept` (for each passage the numbers of the sentences that matter, from 0, a title counted), `scores`
            (one for each), and `targets` (for each passage what is taught of each sentence, from 0 to 1; else 1 for
            those in `kept` and 0 for the others). In place of `documents` and `kept`: `sentences` of one passage, or
            lists of several, and `labels`, for each of them 1 if it matters and 0 if not. Without either the language
            model labels; without that too, a sentence matters that says one of the row's `answers`.
        run: where labels and the training's checkpoint go.
        weight: of the distance to the old scores.
        corpus: texts in which passages are found for rows without, a .jsonl or .txt file; each begins with its title.
        asking: the language model that answers with citations, see `Asking`; what it said stands in the run.
        oracle: what it is asked for: an answer with citations, a summary with citations, or the numbers alone.
        everywhere: special tokens and those of the question are taught to go; otherwise they are not looked at.
        training: see `Training`; the learning rate is constant. Its default is that of large models and a million
            pairs: small ones want 3e-5.
        longest: tokens of a pair, as far as the model has positions for them; what is longer is cut off.
        threshold: what the model takes where it is not told otherwise.
        rounding: likewise.
        language: likewise, for the splitting of sentences, here and where the model is used.
        held_out: share of the questions that are kept back and judged, the first 2,000 of their pairs.
        evaluate_every: steps between two looks at these; 0 for four looks in all.
        seed: of the new head, of what is held out, and of the order.

    What is measured on pairs that are held out stands in the recovery's settings as `held_out`: before, at each of the
    looks (by its step), and after, each as `measure_quality` says. Notes say it in words.

    Departures: BM25 for SPLADE-v3. AdamW without decay for Adam. Padding is never looked at, so that a loss does not
    depend on what stands beside it in its batch.
    """
    model.settings = replace(model.settings, longest=longest)  # old scores are those of what is read in training
    pairs, lost = prepare_pairs(
        model, rows, run, corpus=corpus, llm=asking.open_model(str(model.model.device)), oracle=oracle,
        language=language, weight=weight, seed=seed,
    )  # fmt: skip
    model.keep = model.keep or model.with_head(seed).keep
    model.settings = replace(
        model.settings, threshold=threshold, rounding=rounding, of_best=0.0, terms=0.0, language=language,
        ranks=model.settings.ranks and weight > 0,
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    questions = sorted({pair["question"] for pair in pairs})
    back = set(draw.permutation(questions)[: round(held_out * len(questions))].tolist())
    learnt = [pair for pair in pairs if pair["question"] not in back]
    kept_back = [pair for pair in pairs if pair["question"] in back][:JUDGED]
    epochs, accumulate = training.number("epochs"), training.accumulate or 1
    order = [i for _ in range(math.ceil(epochs)) for i in draw.permutation(len(learnt)).tolist()]
    feed = PairBatches([learnt[i] for i in order], model, training.whole("batch"), everywhere, accumulate)
    steps = max(1, round(epochs * len(learnt) / (feed.batch * accumulate * distributed.count())))
    look = partial(measure_quality, model, kept_back)

    def evaluate() -> float:
        # By the step, so that what a stopped run saw is there for the one that goes on.
        seen = run.json(f"held-out-{feed.step}", look)
        return float(seen["mask_loss"] + weight * (seen["ranking_loss"] or 0.0))

    before = run.json("held-out-0", look) if kept_back else {}
    recovery = loop.train(
        model, feed, partial(objectives.keeping_loss, model, weight),
        training.default(steps=steps, warmup=0.0, schedule="constant", weight_decay=0.0), seed=seed,
        count=objectives.count_labels, checkpoint=run.folder("training"), title="pruner",
        evaluate=evaluate if kept_back else None, evaluate_every=evaluate_every or max(1, math.ceil(steps / 4)),
    )  # fmt: skip
    notes = [*model.notes, f"{len(learnt)} pairs of {len(rows)} rows; {lost} passages had no label"]
    if kept_back:
        settings = dict(recovery.settings)
        during = {str(step): run.json(f"held-out-{step}", look) for step, _ in settings.pop("evaluations")}
        after = run.json(f"held-out-{settings.get('kept_step', recovery.steps)}", look)  # of the weights that are kept
        recovery = replace(
            recovery, settings={**settings, "held_out": {"before": before, "during": during, "after": after}}
        )
        notes += describe_quality(before, after)
    return recovery, tuple(notes)


JUDGED = 2000
"""Pairs that are judged of those that are held out."""
