"""Provence: efficient and robust context pruning for retrieval-augmented generation.

Chirkova, Formal, Nikoulina and Clinchant, ICLR 2025 (arXiv 2501.16214).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from secateur._utils.http import RefusedError
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.data import texts
from secateur.errors import BudgetError, DataError, InputError, RunError
from secateur.measure import retrieval
from secateur.recover.training import loop, objectives
from secateur.retrieval import encoders, rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.score import citations, relevance
from secateur.select import limits as limits_of
from secateur.select import ranking
from secateur.subjects import Passages, open_passages
from secateur.subjects.text import markup
from secateur.subjects.text.passage import sentences
from secateur.vocabulary import Array, Budget, Cut, Recovery, Result, Selection, Units

CARD = {
    "title": "Provence: efficient and robust context pruning for retrieval-augmented generation",
    "paper": "https://arxiv.org/abs/2501.16214",
    "cuts": "sentences of passages that a language model is to read, by a threshold and under a budget of tokens",
    "recovers": "nothing; the reranker that scores tokens is trained on an LLM's citations and on its own old scores",
    "extra": "context",
    "family": "context",
}

Rounding = Literal["", "vote", "mean"]


def provence(
    subject: Passages,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    model: Any,
    tokenizer: Any = "",
    threshold: float | None = None,
    rounding: Rounding = "",
    always_select_title: bool = False,
    reorder: bool = False,
    top_k: int = 0,
    reranker: Any = "",
    best_block: bool = False,
    longest: int = 0,
    language: str = "",
    device: str = "",
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Cut passages to the sentences that answer the question, each read together with the question and its neighbours.

    1. A cross-encoder reads question and passage as one sequence, each sentence tokenised on its own: it gives the
       passage a score and each token t a probability p_t to keep. A passage that is longer than the model reads is cut
       into blocks of whole sentences, the question before each; a sentence that is longer than a block, into parts.
    2. A sentence stays by "vote" if more than half of its tokens have p_t > threshold, or by "mean" if the mean of its
       p_t is above the threshold.
    3. With `reorder` or `top_k`, passages are sorted by their scores, and the first stay.
    4. What is over the budget leaves by the mean of p_t, the lowest first; what is left is counted after each cut.

    Args:
        subject: the passages; they stay as they are.
        data: the question.
        budgets: tokens=2048, words=1000, or a share; tokens=100% where the threshold alone is to decide.
        run: where scores go.
        model: folder or Hub id of a trained pruner (`secateur train-pruner provence`), or `rerankers.Reranker`.
        tokenizer: folder or Hub id of the reader's tokenizer, or a function that counts tokens; the model's own if not
            given.
        threshold: 0.1 keeps what may matter, 0.5 what surely does; below 0 all stays. The model's own if not given.
        rounding: "vote" or "mean"; the model's own if not given.
        always_select_title: the first sentence is a title: it stays exactly where another sentence of its passage does.
        reorder: the passages in the order of their scores.
        top_k: how many passages stay, the first by score; 0 for all.
        reranker: whose scores sort passages, where the model only prunes (standalone), or the address of a
            text-embeddings-inference server that has one; the model's own if not given.
        best_block: a long passage scores as its best block, not as its first.
        longest: tokens of a block; as many as the model reads, and at most 512, if 0.
        language: whose rules split sentences, "de"; the model's own if not given. Lists of sentences stay, and so do
            passages that were opened with a `split`.
        device: where model and reranker are held if given by name, "cuda"; the processor if empty.
        seed: not used; nothing here is random.
        dry_run: as a run; nothing is kept.

    Departures: a budget comes on top of the threshold. Sentences are split by sencentex's rules instead of NLTK's. What
    stands between two sentences that stay is left as it is. A title that alone is above the threshold does not stay.
    """
    judge, question = pruner(model, device), " ".join(data.split())
    chosen = judge.settings
    limit = chosen.threshold if threshold is None else threshold
    counts = {"tokens": encoders.counter(tokenizer or judge.tokenizer)}
    subject = subject.split(language or chosen.language)
    parts = said(subject)
    told = run.json("judged", lambda: judged(judge, question, parts, longest, best_block))
    keep, scores = columns(told, [len(part) for part in parts], limit, rounding or chosen.rounding)
    if reranker:
        other = rerankers.ranking(reranker, device)
        told = run.json("ranked", lambda: judged(other, question, parts, longest, best_block))
    elif (reorder or top_k) and not chosen.ranks:
        raise InputError("this model prunes and does not rank: give a reranker, or leave reorder and top_k out")
    order = list(range(len(parts)))
    if reorder or top_k:
        first = sorted(order, key=lambda number: (-told[number]["score"], number))[: top_k or None]
        order = first if reorder else sorted(first)
    stays = keep & np.isin([one.passage for one in subject.sentences], order)
    if always_select_title:
        keep, stays, scores = with_titles(subject, keep, stays, scores)
    whole = subject.cost(counts)
    compression = 100.0 * (1.0 - letters(subject.cut(Selection({"sentences": keep}))[0]) / max(1, letters(subject)))
    passing, _ = subject.ordered(order).cut(Selection({"sentences": stays}))
    for budget in budgets:
        limits = limits_of.reading(budget, whole, "a passage")
        kept, smaller = stays.copy(), passing
        if stays.any():
            units = passing.units(**counts)
            if always_select_title:
                units = coupled(units, passing, scores[stays])
            absolute = Budget.of(limits)
            measure = partial(left, passing, counts)
            found = ranking.by_budget(units, {"sentences": scores[stays]}, absolute, measure=measure)
            kept[stays], smaller = found.keep["sentences"], passing.cut(found)[0]
        run.json(f"trace-{budget}", partial(trace, subject, counts, scores, kept))
        notes = reasons(scores, limit, stays, kept, budget)
        ranks = [one["score"] for one in told]
        run.json(f"told-{budget}", partial(dict, reranking_scores=ranks, compression=compression, notes=notes))
        gone = {"sentences": (int((~kept).sum()), len(kept))}
        after = smaller.cost(counts)
        yield Result(str(budget), smaller, Cut(gone, whole, after, tuple(notes)), after)


Row = dict[str, Any]
Counts = Mapping[str, Callable[[Sequence[str]], Sequence[int]]]


def left(passages: Passages, counts: Counts, keep: Mapping[str, Array]) -> dict[str, float]:
    """What is to be read takes with the sentences of `keep` alone."""
    return passages.cut(Selection(keep))[0].cost(counts)


def reasons(scores: np.ndarray, threshold: float, stays: np.ndarray, kept: np.ndarray, budget: Budget) -> list[str]:
    """Why nothing is left, where nothing is."""
    if kept.any() or not len(kept):
        return []
    if not stays.any():
        return [f"no sentence passes the threshold {threshold:g}: the best has {scores.max():.3g} in the mean"]
    return [f"{int(stays.sum())} sentences pass the threshold, and none of them fits into {budget}"]


def letters(passages: Passages) -> int:
    """Characters of what is left."""
    return sum(len(text) for text, _ in passages.documents().values())


# ----------------------------------------------------------------------------------------------------------- its scores


def pruner(model: Any, device: str = "") -> Reranker:
    """The trained model; `InputError` for a reranker that says nothing of tokens."""
    found = rerankers.opened(model, device)
    if found.keep is None:
        name = model if isinstance(model, str) else "this model"
        raise InputError(f"{name} ranks and does not prune: train it first (secateur train-pruner provence)")
    return found


def said(passages: Passages) -> list[list[str]]:
    """The sentences of each passage."""
    found: list[list[str]] = [[] for _ in passages.texts]
    for index, one in enumerate(passages.sentences):
        found[one.passage].append(passages.text(index))
    return found


def judged(
    model: Reranker | rerankers.Elsewhere, question: str, texts: Sequence[Sequence[str]], longest: int, best: bool
) -> list[Row]:
    """Of each passage its score, and the tokens' probabilities and sentences."""
    found = model.judge([(question, part) for part in texts], longest=longest, best=best)
    return [{"score": one.score, "keep": one.keep.tolist(), "owner": one.owner.tolist()} for one in found]


def columns(
    told: Sequence[Row], sizes: Sequence[int], threshold: float, rounding: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of all sentences, whether the threshold lets them stay, and the mean probability of their tokens."""
    if rounding not in ("vote", "mean"):
        raise InputError(f"rounding={rounding!r}: give vote or mean")
    if math.isnan(threshold):
        raise InputError("threshold=nan: give a number, such as 0.1")
    keep, scores = [np.zeros(0, bool)], [np.zeros(0)]
    for one, size in zip(told, sizes, strict=True):
        chance, owner = np.array(one["keep"], float), np.array(one["owner"], int)
        mean = relevance.kept_mean(chance, owner, size)
        vote = relevance.kept_share(chance, owner, size, threshold)
        keep.append(vote > 0.5 if rounding == "vote" else mean > threshold)
        scores.append(mean)
    return np.concatenate(keep), np.concatenate(scores)


def with_titles(
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


def coupled(units: Units, passages: Passages, scores: np.ndarray) -> Units:
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
        found[f"passage {number + 1}"].append({**row, "kept": bool(keep[index])})
    return {site: rows for site, rows in found.items() if rows}


# ------------------------------------------------------------------------------------------------------------ training


def train(
    model: Reranker,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    weight: float = 0.05,
    corpus: str = "",
    llm: Any = "",
    llm_name: str = "",
    oracle: Literal["answer", "relevance", "indices"] = "answer",
    calls: int = 0,
    llm_tokens: int = 0,
    everywhere: bool = True,
    epochs: float = 1.0,
    lr: float = 3e-6,
    batch: int = 48,
    longest: int = 512,
    threshold: float = 0.1,
    rounding: Literal["vote", "mean"] = "vote",
    language: str = "en",
    held_out: float = 0.05,
    evaluate_every: int = 0,
    seed: int = 0,
) -> tuple[Recovery, tuple[str, ...]]:
    """Teach a cross-encoder which sentences to keep, and to go on ranking as it did.

    The loss of a batch is the mean over tokens of -log P(label), plus `weight` times the mean over pairs of
    (s - s_0)^2, where s_0 is the score that the model gave before, or the one that a row brings.

    Args:
        model: what is trained, in place: a reranker (unified), or with weight=0 any encoder (standalone).
        rows: each with `question`, `documents` (texts, or lists of sentences), and perhaps `titles` (one for each),
            `kept` (for each passage the numbers of the sentences that matter, from 0, a title counted), and `scores`
            (one for each). In place of `documents` and `kept`: `sentences` of one passage, or lists of several, and
            `labels`, for each of them 1 if it matters and 0 if not. Without either the language model labels; without
            that too, a sentence matters that says one of the row's `answers`.
        run: where labels and the training's checkpoint go.
        weight: of the distance to the old scores.
        corpus: texts in which passages are found for rows without, a .jsonl or .txt file; each begins with its title.
        llm: folder, Hub id or address of a language model that answers with citations; what it said stands in the run.
        llm_name: the name of the model, where `llm` is an address.
        oracle: what it is asked for: an answer with citations, a summary with citations, or the numbers alone.
        calls: how often it may be asked; 0 for no limit.
        llm_tokens: how many tokens it may read and write; 0 for no limit.
        everywhere: special tokens and those of the question are taught to go; otherwise they are not looked at.
        epochs: how often each pair is seen.
        lr: learning rate, constant. The default is that of large models and a million pairs: small ones want 3e-5.
        batch: pairs of a step.
        longest: tokens of a pair; what is longer is cut off.
        threshold: what the model takes where it is not told otherwise.
        rounding: likewise.
        language: likewise, for the splitting of sentences, here and where the model is used.
        held_out: share of the questions that are kept back and judged, the first 2,000 of their pairs.
        evaluate_every: steps between two looks at these; 0 for four looks in all.
        seed: of the new head, of what is held out, and of the order.

    What is measured on pairs that are held out stands in the recovery's settings as `held_out`: before, at each of the
    looks (by its step), and after, each as `quality` says. Notes say it in words.

    Departures: BM25 for SPLADE-v3. AdamW without decay for Adam. Padding is never looked at, so that a loss does not
    depend on what stands beside it in its batch.
    """
    if not weight >= 0 or not 0 <= held_out < 1:
        raise InputError(f"weight={weight}, held_out={held_out}: give at least 0, and a share from 0 to below 1")
    if evaluate_every < 0:
        raise InputError(f"evaluate_every={evaluate_every}: give steps between two looks, or 0 for four looks in all")
    rows = apart(rows)
    if corpus:
        rows = pool(rows, texts.read(corpus).texts, run, model, language, seed)
    asked = partial(chat.answering, llm, llm_name, calls=calls, tokens=llm_tokens) if llm else None
    pairs, lost = labelled(rows, run, asked() if asked else None, oracle, language)
    if not pairs:
        raise DataError(f"none of {len(rows)} rows gives a pair: {lost} passages have no label")
    if weight and not model.settings.ranks and any(pair["score"] is None for pair in pairs):
        raise InputError("this model has no scores to keep: use weight=0 (standalone), or give a reranker")
    old = [pair for pair in pairs if weight and pair["score"] is None]
    found = run.json("old-scores", lambda: [
        one.score for one in model.judge([(pair["question"], pair["sentences"]) for pair in old], longest=longest)
    ])  # fmt: skip
    for pair, score in zip(old, found, strict=True):
        pair["score"] = score
    model.keep = model.keep or model.with_head(seed).keep
    model.settings = replace(
        model.settings, threshold=threshold, rounding=rounding, longest=longest, language=language,
        ranks=model.settings.ranks and weight > 0,
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    questions = sorted({pair["question"] for pair in pairs})
    back = set(draw.permutation(questions)[: round(held_out * len(questions))].tolist())
    learnt, kept_back = ([p for p in pairs if (p["question"] in back) is away] for away in (False, True))
    kept_back = kept_back[:JUDGED]
    order = [i for _ in range(math.ceil(epochs)) for i in draw.permutation(len(learnt)).tolist()]
    steps = max(1, round(epochs * len(learnt) / batch))
    given = Batches([learnt[i] for i in order], model, batch, everywhere)
    look = partial(quality, model, kept_back)

    def looked() -> float:
        # By the step, so that what a stopped run saw is there for the one that goes on.
        seen = run.json(f"held-out-{given.step}", look)
        return float(seen["mask_loss"] + weight * (seen["ranking_loss"] or 0.0))

    before = run.json("held-out-0", look) if kept_back else {}
    recovery = loop.train(
        model, given, partial(objectives.keeping_loss, model, weight), steps=steps, lr=lr, warmup=0.0,
        schedule="constant", weight_decay=0.0, seed=seed, count=objectives.count_labels,
        checkpoint=run.folder("training"), title="pruner",
        evaluate=looked if kept_back else None, evaluate_every=evaluate_every or max(1, math.ceil(steps / 4)),
    )  # fmt: skip
    notes = [f"{len(learnt)} pairs of {len(rows)} rows; {lost} passages had no label"]
    if kept_back:
        settings = dict(recovery.settings)
        during = {str(step): run.json(f"held-out-{step}", look) for step, _ in settings.pop("evaluations")}
        after = run.json(f"held-out-{recovery.steps}", look)
        recovery = replace(
            recovery, settings={**settings, "held_out": {"before": before, "during": during, "after": after}}
        )
        notes += in_words(before, after)
    return recovery, tuple(notes)


JUDGED = 2000
"""Pairs that are judged of those that are held out."""


class Batches:
    """Pairs as batches, over and over.

    A batch is what `Reranker.forward` takes, `labels` [n, L] (1: keep, -100: not looked at) and `scores` [n].
    """

    def __init__(self, pairs: Sequence[Row], model: Reranker, batch: int, everywhere: bool) -> None:
        self.pairs, self.model, self.batch, self.elsewhere = pairs, model, batch, 0 if everywhere else -100
        self.step = 0  # of training, which takes a batch a step

    def __len__(self) -> int:
        return max(1, -(-len(self.pairs) // self.batch))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        many, self.step = len(self.pairs), index + 1
        chosen = [self.pairs[(index * self.batch + i) % many] for i in range(min(self.batch, many))]
        blocks = [self.model.blocks(pair["question"], pair["sentences"])[0] for pair in chosen]
        given = rerankers.padded(blocks, self.model.tokenizer.pad_token_id or 0)
        labels = torch.full_like(given["input_ids"], -100)
        for row, (block, pair) in enumerate(zip(blocks, chosen, strict=True)):
            wanted = set(pair["kept"])
            labels[row, : len(block.owner)] = torch.tensor(
                [self.elsewhere if owner < 0 else int(owner in wanted) for owner in block.owner]
            )
        scores = [0.0 if pair["score"] is None else float(pair["score"]) for pair in chosen]
        return {**given, "labels": labels, "scores": torch.tensor(scores)}


def quality(model: Reranker, pairs: Sequence[Row]) -> dict[str, Any]:
    """What a model does on pairs that it has not learnt from.

    pairs: how many there are. mask_loss: mean over tokens of sentences of -log P(label). ranking_loss: mean over pairs
    of (s - s_0)^2, None without old scores. precision, recall, f1: of the sentences that stay, means over pairs. empty:
    share of the passages without anything that matters of which nothing stays, None where there are none. compression:
    percent of the characters that go. ndcg: nDCG@10 of the passages of a question, those that hold something that
    matters above the others, mean over the questions that have both; None where none has, or the model is not to rank.
    questions: these.
    """
    found = model.judge([(pair["question"], pair["sentences"]) for pair in pairs])
    told = [{"keep": one.keep, "owner": one.owner} for one in found]
    sizes = [len(pair["sentences"]) for pair in pairs]
    stays, _ = columns(told, sizes, model.settings.threshold, model.settings.rounding)
    each = np.split(stays, np.cumsum(sizes)[:-1])
    right = [
        retrieval.kept(np.flatnonzero(mine).tolist(), pair["kept"]) for mine, pair in zip(each, pairs, strict=True)
    ]
    likely = np.concatenate([
        np.where(np.isin(one.owner, pair["kept"]), one.keep, 1.0 - one.keep)
        for one, pair in zip(found, pairs, strict=True)
    ])  # fmt: skip
    held = [(one.score - pair["score"]) ** 2 for one, pair in zip(found, pairs, strict=True)
            if pair["score"] is not None]  # fmt: skip
    idle = [not mine.any() for mine, pair in zip(each, pairs, strict=True) if not pair["kept"]]
    lengths = np.array([len(sentence) for pair in pairs for sentence in pair["sentences"]], float)
    asked: dict[str, list[tuple[bool, float]]] = {}
    for one, pair in zip(found, pairs, strict=True):
        asked.setdefault(pair["question"], []).append((bool(pair["kept"]), one.score))
    ranks = [retrieval.ndcg([float(good) for good, _ in some], [score for _, score in some])
             for some in asked.values() if len({good for good, _ in some}) == 2]  # fmt: skip
    return {
        "pairs": len(pairs),
        "mask_loss": float(-np.log(np.maximum(likely, 1e-12)).sum() / max(1, len(likely))),
        "ranking_loss": float(np.mean(held)) if held else None,
        "precision": float(np.mean([one.precision for one in right])),
        "recall": float(np.mean([one.recall for one in right])),
        "f1": float(np.mean([one.f() for one in right])),
        "empty": float(np.mean(idle)) if idle else None,
        "compression": float(100.0 * lengths[~stays].sum() / max(1.0, lengths.sum())),
        "ndcg": float(np.mean(ranks)) if ranks and model.settings.ranks else None,
        "questions": len(ranks),
    }


def in_words(before: Row, after: Row) -> list[str]:
    """What `quality` found before and after training."""
    notes = [
        f"{after['pairs']} pairs held out: F1 of kept sentences {after['f1']:.3f} (before {before['f1']:.3f}), "
        f"{after['compression']:.0f}% of characters cut, mask loss {after['mask_loss']:.3g} "
        f"(before {before['mask_loss']:.3g})"
    ]
    if after["ranking_loss"] is not None:
        notes[0] += f", ranking loss {after['ranking_loss']:.3g}"
    if after["ndcg"] is not None:
        notes.append(
            f"nDCG@10 of the passages of {after['questions']} questions held out: {after['ndcg']:.3f}, "
            f"of the reranker before training {before['ndcg']:.3f}"
        )
    return notes


# ------------------------------------------------------------------------------------------------- labels, and passages

ORACLES = {
    "answer": (
        "Answer the question from the numbered sentences alone, and behind each statement cite in square brackets all "
        'sentences that it uses, such as [0] or [1, 4]. If they do not help, say "No answer". Say nothing else.'
    ),
    "relevance": (
        "Sum up what the numbered sentences say that matters for the question, and cite in square brackets all that "
        'you use, such as [0] or [1, 4]. If none matters, say "No answer". Say nothing else.'
    ),
    "indices": (
        "List the numbers of the sentences that matter for the question in square brackets, such as [0, 3, 4]. If none "
        'matters, say "No answer". Say nothing else.'
    ),
}
READ, SAID = 2048, 256
"""Tokens that a labeller reads, about, and says."""
PROBE = "Is water wet? Answer yes or no."
"""What any labeller can read."""


def apart(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows; those with `sentences` and `labels` get `documents` and `kept` of them. `DataError` for others."""
    found = list[Mapping[str, Any]]()
    for number, row in enumerate(rows, start=1):
        if row.get("sentences") is None:
            found.append(row)
            continue
        if row.get("documents") or row.get("titles") or row.get("kept") is not None:
            raise DataError(f"row {number} has sentences beside passages, titles or kept: give sentences and labels")
        passages = marked(row["sentences"], row.get("labels"))
        if passages is None:
            raise DataError(f"row {number}: give sentences, a list of texts, and labels, a 1 or 0 for each of them")
        kept = [[i for i, (_, label) in enumerate(passage) if label] for passage in passages]
        found.append({**row, "documents": [[text for text, _ in passage] for passage in passages], "kept": kept})
    return found


def marked(sentences: Any, labels: Any) -> list[list[tuple[str, bool]]] | None:
    """Of each passage its sentences with their labels, empty ones left out; None where these are not such lists."""
    if isinstance(sentences, list) and all(isinstance(text, str) for text in sentences):
        sentences, labels = [sentences], [labels]
    found = list[list[tuple[str, bool]]]()
    try:
        for texts_of, labels_of in zip(sentences, labels, strict=True):
            both = list(zip(texts_of, labels_of, strict=True))
            if isinstance(texts_of, str) or any(label not in (0, 1) for _, label in both):
                return None
            found.append([(markup.whole(text), bool(label)) for text, label in both if text.strip()])
    except (TypeError, ValueError, AttributeError):  # no lists, or not as many, or no texts
        return None
    return found


def labelled(
    rows: Sequence[Mapping[str, Any]], run: Run, llm: chat.LanguageModel | None, oracle: str, language: str
) -> tuple[list[Row], int]:
    """Pairs of question, sentences, numbers of those that matter, and perhaps a score; and how many had no label."""
    pairs, lost = list[Row](), 0
    for number, row in enumerate(rows):
        passages = open_passages(row["documents"], titles=row.get("titles"), split=language)
        parts, given = said(passages), row.get("kept")
        if given is not None and len(given) != len(parts):
            raise DataError(f"row {number + 1} has {len(parts)} passages and {len(given)} lists of kept sentences")
        if given is None and llm is not None:
            ask = partial(cited, llm, str(row["question"]), parts, ORACLES[oracle])
            try:
                given = run.json(f"labels-{number}", ask)
            except BudgetError as error:  # no refusal: what was paid for stays in the run
                raise RunError(f"{error}, and run the same command again: {number} rows have their labels") from error
        elif given is None:
            given = [holding(part, row.get("answers") or ()) for part in parts]
        scores = row.get("scores") or [None] * len(parts)
        for part, kept, score in zip(parts, given, scores, strict=True):
            lost += kept is None
            if kept is not None and part:
                pairs.append({"question": str(row["question"]), "sentences": part, "kept": kept, "score": score})
    return pairs, lost


def cited(llm: chat.LanguageModel, question: str, parts: Sequence[Sequence[str]], task: str) -> list[list[int] | None]:
    """For each passage the sentences that the model cites; None where it gives no label, or can't read the passage."""
    found: list[list[int] | None] = []
    for part in parts:
        asked = f"{task}\n\nQuestion: {question}\n\nSentences:\n"
        text = readable(llm, asked, [f"[{i}] {sentence}\n" for i, sentence in enumerate(part)])
        try:
            numbers = citations.cited(chat.said(llm, asked + text, most=SAID), len(part)) if text else None
        except (InputError, RefusedError):
            chat.said(llm, PROBE, most=SAID)  # raises where it is not the passage that is wrong
            numbers = None
        found.append(None if numbers is None else sorted(numbers))
    return found


def readable(llm: chat.LanguageModel, asked: str, lines: Sequence[str]) -> str:
    """The lines that a labeller has room for behind what it is asked: by its tokens, or about four bytes a token."""
    room, sizes = 4.0 * READ, [len(line.encode()) for line in lines]
    if isinstance(llm, chat.Local):
        room = min(READ, llm.window - SAID - len(llm.prompt(asked)))
        sizes = list(encoders.counter(llm.tokenizer)(lines))
    text = ""
    for line, size in zip(lines, sizes, strict=True):
        text, room = (text + line, room - size) if size <= room else (text, room)
    return text


def holding(part: Sequence[str], answers: Sequence[str]) -> list[int] | None:
    """The sentences that say one of the answers; None where there is no answer to look for."""
    wanted = [" ".join(markup.terms(answer)) for answer in answers]
    wanted = [f" {answer} " for answer in wanted if answer]
    said = [f" {' '.join(markup.terms(sentence))} " for sentence in part]
    return [i for i, text in enumerate(said) if any(answer in text for answer in wanted)] if wanted else None


def pool(
    rows: Sequence[Mapping[str, Any]],
    corpus: Sequence[str],
    run: Run,
    model: Reranker,
    language: str,
    seed: int,
    *,
    retrieved: int = 50,
    best: int = 5,
) -> list[dict[str, Any]]:
    """The rows; those without `documents` get the `best` of a corpus, with `titles`.

    A document is cut into passages of N sentences, N drawn from 1 to 10 in proportion to itself; each begins in the
    middle of the one before. BM25 finds `retrieved` of them, and the model puts those in order, if it ranks.
    """
    draw, sizes = np.random.default_rng(seed), np.arange(1, 11)
    titles, found = list[str](), list[str]()
    for document in corpus:
        (first, *rest) = sentences(document, language) or [(0, 0)]
        while rest:
            size = int(draw.choice(sizes, p=sizes / sizes.sum()))
            titles.append(document[slice(*first)])
            found.append(document[rest[0][0] : rest[:size][-1][1]])
            rest = rest[max(1, size // 2) :] if size < len(rest) else []
    if not found:
        raise DataError("the corpus holds no passage: give documents of at least a title and a sentence")
    lexical = relevance.lexical([markup.terms(f"{a} {b}") for a, b in zip(titles, found, strict=True)])

    def chosen(question: str) -> list[int]:
        order: list[int] = np.argsort(-lexical(markup.terms(question)), kind="stable")[:retrieved].tolist()
        if model.settings.ranks:
            scores = [-one.score for one in model.judge([(question, [titles[i], found[i]]) for i in order])]
            order = [order[i] for i in np.argsort(scores, kind="stable")]
        return order[:best]

    made = []
    for number, row in enumerate(rows):
        numbers = [] if row.get("documents") else run.json(f"found-{number}", partial(chosen, str(row["question"])))
        new = {"documents": [found[i] for i in numbers], "titles": [titles[i] for i in numbers]} if numbers else {}
        made.append({**row, **new})
    return made
