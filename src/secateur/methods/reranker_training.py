"""Train a reranker with a second head: batches, kept sentences, and quality on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur._utils import distributed
from secateur._utils.rundir import Run
from secateur.clients.chat import LanguageModel
from secateur.data import texts
from secateur.errors import DataError, InputError
from secateur.measure import retrieval
from secateur.methods import sentence_labels
from secateur.methods.asking import Record
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.retrieval.words import Words
from secateur.score import relevance

__all__ = ["PairBatches", "describe_quality", "keep_sentences", "measure_quality", "prepare_pairs", "share_words"]

Pair = Mapping[str, Any]
"""question, sentences (texts), kept (numbers of those that matter), score, a number or None, and perhaps targets, of
each sentence the probability to keep that is taught."""


def prepare_pairs(
    model: Reranker,
    rows: Sequence[Pair],
    run: Run,
    *,
    corpus: str,
    llm: LanguageModel | None,
    oracle: str,
    language: str,
    weight: float,
    seed: int,
) -> tuple[list[Record], int]:
    """Pairs of question and passage with their labels and, where these have a weight, old scores; and passages without.

    Raises `DataError` where there is no pair, `InputError` where there are no scores to keep. See `provence.train`.
    """
    rows = sentence_labels.join_labels(rows)
    if corpus:
        rows = sentence_labels.find_passages(rows, texts.read(corpus).texts, run, model, language, seed)
    pairs, lost = sentence_labels.label_pairs(rows, run, llm, oracle, language)
    if not pairs:
        raise DataError(f"none of {len(rows)} rows gives a pair: {lost} passages have no label")
    old = [pair for pair in pairs if weight and pair["score"] is None]
    if old and not model.settings.ranks:
        raise InputError("this model has no scores to keep: use weight=0 (standalone), or give a reranker")
    judge = partial(model.judge, [(pair["question"], pair["sentences"]) for pair in old])
    scores = run.json("old-scores", lambda: [judged.score for judged in judge()])
    for pair, score in zip(old, scores, strict=True):
        pair["score"] = score
    return pairs, lost


class PairBatches:
    """Pairs as batches, over and over.

    A batch is what `Reranker.forward` takes, `labels` [n, L] (1: keep, -100: not looked at), `targets` [n, L], the
    probability to keep that is taught, and `scores` [n].
    `step`: of training, which takes `accumulate` batches a step, of each process.
    """

    def __init__(
        self, pairs: Sequence[Pair], model: Reranker, batch: int, everywhere: bool, accumulate: int = 1
    ) -> None:
        self.pairs, self.model, self.batch, self.elsewhere = pairs, model, batch, 0 if everywhere else -100
        self.accumulate, self.step = accumulate, 0

    def __len__(self) -> int:
        return max(1, -(-len(self.pairs) // self.batch))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        many, self.step = len(self.pairs), index // (self.accumulate * distributed.count()) + 1
        chosen = [self.pairs[(index * self.batch + i) % many] for i in range(min(self.batch, many))]
        blocks = [self.model.blocks(pair["question"], pair["sentences"])[0] for pair in chosen]
        inputs = rerankers.pad(blocks, self.model.tokenizer.pad_token_id or 0)
        labels = torch.full_like(inputs["input_ids"], -100)
        targets = torch.zeros(labels.shape)
        for row, (block, pair) in enumerate(zip(blocks, chosen, strict=True)):
            wanted = set(pair["kept"])
            labels[row, : len(block.owner)] = torch.tensor(
                [self.elsewhere if owner < 0 else int(owner in wanted) for owner in block.owner]
            )
            likely = pair.get("targets") or [float(number in wanted) for number in range(len(pair["sentences"]))]
            each = [likely[owner] if owner >= 0 else 0.0 for owner in block.owner]
            targets[row, : len(each)] = torch.tensor(each)
        scores = [0.0 if pair["score"] is None else float(pair["score"]) for pair in chosen]
        return {**inputs, "labels": labels, "targets": targets, "scores": torch.tensor(scores)}


def keep_sentences(
    judged: Sequence[Pair],
    sizes: Sequence[int],
    threshold: float,
    rounding: str,
    of_best: float = 0.0,
    raised: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of all sentences, whether the threshold lets them stay, and the mean probability of their tokens, raised.

    Args:
        judged: of each passage `keep`, the probabilities of its tokens, and `owner`, the sentence of each.
        sizes: sentences of each passage.
        threshold: of a probability.
        rounding: "vote" keeps a sentence if more than half of its tokens are above the threshold, "mean" if their mean
            is, "share" if the share of its tokens that are above it is itself above it.
        of_best: share of the mean probability of its passage's best sentence that a sentence must have, too.
        raised: [all sentences] r, from 0 to below 1, by which a mean m becomes m^(1 - r) wherever it is compared; none
            if not given. What is surely to go, m = 0, goes.
    """
    if rounding not in ("vote", "mean", "share"):
        raise InputError(f"rounding={rounding!r}: give vote, mean or share")
    if math.isnan(threshold):
        raise InputError("threshold=nan: give a number, such as 0.1")
    keep, scores = [np.zeros(0, bool)], [np.zeros(0)]
    powers = 1.0 - (np.zeros(sum(sizes)) if raised is None else raised)
    for passage, size, end in zip(judged, sizes, np.cumsum(sizes), strict=True):
        chance, owner = np.array(passage["keep"], float), np.array(passage["owner"], int)
        mean = relevance.kept_mean(chance, owner, size) ** powers[end - size : end]
        vote = relevance.kept_share(chance, owner, size, threshold)
        stays = {"vote": vote > 0.5, "mean": mean > threshold, "share": vote > threshold}[rounding]
        keep.append(stays & (mean >= of_best * mean.max(initial=0.0)))
        scores.append(mean)
    return np.concatenate(keep), np.concatenate(scores)


def share_words(question: str, passages: Sequence[Sequence[str]], language: str) -> np.ndarray:
    """Float64 [all sentences]: BM25 of the question's words, as a share of the highest of all these passages."""
    words = Words(language)
    scores = relevance.bm25(words(question), [words(sentence) for part in passages for sentence in part])
    return scores / max(float(scores.max(initial=0.0)), 1e-12)


def measure_quality(model: Reranker, pairs: Sequence[Pair]) -> Record:
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
    how = model.settings
    stays, _ = keep_sentences(told, sizes, how.threshold, how.rounding, how.of_best)
    each = np.split(stays, np.cumsum(sizes)[:-1])
    right = [
        retrieval.precision_recall(np.flatnonzero(mine).tolist(), pair["kept"])
        for mine, pair in zip(each, pairs, strict=True)
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


def describe_quality(before: Record, after: Record) -> list[str]:
    """Notes on what `measure_quality` found before and after training."""
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
