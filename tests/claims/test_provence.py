"""Provence on Brown and Python's manual: what is kept against rivals at equal size, and the ranking."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from assets import packages
from claims import lab, needles
from keeper import NoCheckpoints, train
from secateur.measure import retrieval
from secateur.measure.environment import describe
from secateur.methods.reranker_training import PairBatches
from secateur.recover.training import loop, objectives
from secateur.retrieval import encoders, rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.score import relevance

pytestmark = pytest.mark.claim

SEEDS = (0, 1, 2)
DOMAINS = {"held": "genres that were taught", "away": "other genres", "manual": "Python's manual"}
LONGEST, QUESTIONS, RANKED = 128, 1200, 500
LR, BATCH = 1e-4, 8
JUDGED, PASSAGES = 48, 5
THRESHOLDS = np.arange(1, 50) / 50
UNSEEN = 5000
"""Seed of questions that were not looked at while it was chosen how to teach; those of seed 1000 were."""
SETUP = (
    f"all-MiniLM-L6-v2, one epoch on {QUESTIONS} questions with a passage of Brown each, and an irrelevant one for "
    f"every fourth; labels cited with 10 % forgotten and 5 % wrong; judged on {JUDGED} questions with {PASSAGES} "
    "passages of each domain"
)


FEW = "0.72 do: of the passages that were taught one in five was irrelevant, and they were 1,500"


def fresh() -> Reranker:
    """MiniLM with a classifier that knows nothing."""
    model = rerankers.open_reranker(str(packages.minilm())).copied()
    torch.manual_seed(0)
    nn.init.normal_(model.model.classifier.weight, std=0.02)
    nn.init.zeros_(model.model.classifier.bias)
    return model


@functools.cache
def lessons(seed: int) -> list[dict[str, Any]]:
    asked = needles.asked("taught", seed, QUESTIONS, passages=2)
    parts = [one if i % 4 == 0 else replace(one, passages=one.passages[:1], gold=one.gold[:1])
             for i, one in enumerate(asked)]  # fmt: skip
    return needles.rows(parts, random.Random(seed))


def reranker(seed: int) -> Reranker:
    """The initial model: whether a passage answers, learnt from the first of the same questions."""
    model, pairs = fresh(), []
    for one in needles.asked("taught", seed, QUESTIONS, passages=2)[:RANKED]:
        for part, gold in zip(one.passages, one.gold, strict=True):
            pairs.append({"question": one.question, "sentences": list(part), "kept": [], "score": float(bool(gold))})
    order = np.random.default_rng(seed).permutation(len(pairs))
    model.settings = rerankers.Settings(longest=LONGEST)
    given = PairBatches([pairs[i] for i in order], model, BATCH, True)

    def loss(batch, totals):
        scores, _ = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        right = nn.functional.binary_cross_entropy_with_logits(scores, batch["scores"], reduction="sum")
        return right / totals["examples"], {}

    loop.train(
        model, given, loss, steps=len(given), lr=LR / 2, seed=seed, count=objectives.count_labels, progress=False
    )
    return model


def pruner(seed: int, start: Reranker, weight: float) -> Reranker:
    model = start.copied()
    train(model, lessons(seed), NoCheckpoints(), weight=weight, lr=LR, batch=BATCH, epochs=1.0, longest=LONGEST,
          held_out=0.0, seed=seed)  # fmt: skip
    return model


KINDS = ("reranker", "unified", "standalone", "drifted")
"""The initial model; trained with a weight of 0.05 from there; from the bare encoder; and with a weight of 0."""


@functools.cache
def trained(kind: str, seed: int) -> Reranker:
    """A model, made once per commit."""
    folder = lab.CACHE / "parts" / f"provence-{kind}-{seed}-{describe()['commit']}"
    if not (folder / "config.json").exists() or folder.name.endswith("+"):
        makers = {
            "reranker": lambda: reranker(seed),
            "unified": lambda: pruner(seed, trained("reranker", seed), 0.05),
            "standalone": lambda: pruner(seed, fresh(), 0.0),
            "drifted": lambda: pruner(seed, trained("reranker", seed), 0.0),
        }
        folder.mkdir(parents=True, exist_ok=True)
        makers[kind]().save(folder)
    return rerankers.open_reranker(str(folder))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, seed):
    """One at a time: all together take longer than a claim may."""
    assert trained(kind, seed).settings.longest == LONGEST


# --------------------------------------------------------------------------------------------------- what is judged


Scored = dict[str, list[np.ndarray]]
"""Way of scoring -> of each passage a score for each sentence but the title; more is better."""


def pairs(questions: Sequence[needles.Asked]) -> list[tuple[str, list[str], frozenset[int]]]:
    return [(one.question, list(part), gold) for one in questions
            for part, gold in zip(one.passages, one.gold, strict=True)]  # fmt: skip


def probabilities(model: Reranker, given: Sequence[tuple[str, list[str], Any]]) -> tuple[list[np.ndarray], list[float]]:
    """Mean probability of each sentence, the title's too, and the passages' scores."""
    found = model.judge([(question, part) for question, part, _ in given])
    means = [
        relevance.kept_mean(one.keep, one.owner, len(part)) for one, (_, part, _) in zip(found, given, strict=True)
    ]
    return means, [one.score for one in found]


def votes(model: Reranker, given: Sequence[tuple[str, list[str], Any]], threshold: float) -> list[np.ndarray]:
    found = model.judge([(question, part) for question, part, _ in given])
    return [relevance.kept_share(one.keep, one.owner, len(part), threshold)[1:] > 0.5
            for one, (_, part, _) in zip(found, given, strict=True)]  # fmt: skip


@functools.cache
def embed() -> encoders.Embed:
    return encoders.encoder(str(packages.minilm()))


def rivals(seed: int, given: Sequence[tuple[str, list[str], frozenset[int]]]) -> Scored:
    """What else can be done with the same weights: each is to keep as many words as we do."""
    draw = np.random.default_rng(seed)
    sizes = [len(part) - 1 for _, part, _ in given]
    texts = sorted({text for question, part, _ in given for text in (question, *part)})
    vectors = dict(zip(texts, embed()(texts), strict=True))
    cosine = [relevance.cosine(vectors[question], np.stack([vectors[text] for text in part[1:]]))
              for question, part, _ in given]  # fmt: skip
    model = trained("reranker", seed)
    alone = [(question, [part[0], text]) for question, part, _ in given for text in part[1:]]
    flat = np.array([one.score for one in model.judge(alone)])
    single = np.split(flat, np.cumsum(sizes)[:-1])
    return {
        "random sentences": [draw.random(size) for size in sizes],
        "head of each passage": [-np.arange(size) + draw.random() for size in sizes],
        "encoder, best n of each passage": [_ranks(row) for row in cosine],
        "encoder, one threshold": cosine,
        "the same reranker, sentence by sentence": single,
    }


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Minus the rank, ties of passages broken by the score."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(len(scores))
    return -ranks + 1e-3 * scores


def words(part: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in part], float)


def at_equal_words(
    scores: Sequence[np.ndarray], given: Sequence[tuple[str, list[str], Any]], room: float
) -> list[np.ndarray]:
    """The best sentences of all passages that fit into as many words."""
    flat = np.concatenate(list(scores))
    costs = np.concatenate([words(part[1:]) for _, part, _ in given])
    order = np.argsort(-flat, kind="stable")
    stays = np.zeros(len(flat), bool)
    stays[order[np.cumsum(costs[order]) <= room]] = True
    return np.split(stays, np.cumsum([len(row) for row in scores])[:-1])


def f1(stays: Sequence[np.ndarray], given: Sequence[tuple[str, list[str], frozenset[int]]]) -> float:
    """Of all sentences of all passages together."""
    chosen = {(n, i) for n, row in enumerate(stays) for i in np.flatnonzero(row).tolist()}
    wanted = {(n, i - 1) for n, (_, _, gold) in enumerate(given) for i in gold}
    return retrieval.kept(chosen, wanted).f()


def recall(stays: Sequence[np.ndarray], given: Sequence[tuple[str, list[str], frozenset[int]]]) -> float:
    wanted = [(n, i - 1) for n, (_, _, gold) in enumerate(given) for i in gold]
    return float(np.mean([stays[n][i] for n, i in wanted]))


def judged(domain: str, seed: int) -> dict[str, Any]:
    """All figures of one domain and seed."""
    questions = needles.asked(domain, UNSEEN + seed, JUDGED, passages=PASSAGES)
    given = pairs(questions)
    means, _ = probabilities(trained("unified", seed), given)
    ours = votes(trained("unified", seed), given, 0.5)
    room = sum(float(words(part[1:])[row].sum()) for row, (_, part, _) in zip(ours, given, strict=True))
    others = rivals(seed, given)
    one = trained("standalone", seed)
    alone = [row[1:] for row in probabilities(one, given)[0]]
    found: dict[str, Any] = {
        "kept": room / sum(float(words(part[1:]).sum()) for _, part, _ in given),
        "f1": {"unified": f1(ours, given), "standalone": f1(at_equal_words(alone, given, room), given)}
        | {way: f1(at_equal_words(rows, given, room), given) for way, rows in others.items()},
        "curve": {},
        "empty": float(np.mean([not row.any() for row, (_, _, gold) in zip(ours, given, strict=True) if not gold])),
        "more": float(
            np.mean([abs(int(row.sum()) - len(gold)) for row, (_, _, gold) in zip(ours, given, strict=True)])
        ),
    }
    flat = [row[1:] for row in means]
    whole = sum(float(words(part[1:]).sum()) for _, part, _ in given)
    for way, rows in {"unified": flat, "standalone": alone, **others}.items():
        shares = [recall(at_equal_words(rows, given, share * whole), given) for share in (0.02, 0.05, 0.1, 0.2, 0.4)]
        found["curve"][way] = shares
    both = [
        (n, one.continued - 1)
        for n, one in zip(range(0, len(given), PASSAGES), questions, strict=True)
        if one.continued > 0
    ]
    for way, rows in {
        "unified": flat,
        "the same reranker, sentence by sentence": others["the same reranker, sentence by sentence"],
    }.items():
        stays = at_equal_words(rows, given, room)
        found.setdefault("continued", {})[way] = float(np.mean([stays[n][i] for n, i in both]))
    places = {"first": [], "middle": [], "last": []}
    for n, (_, part, gold) in enumerate(given):
        if gold and len(part) > 3:
            first = min(gold)
            place = "first" if first == 1 else "last" if max(gold) == len(part) - 1 else "middle"
            places[place].append(bool(ours[n][first - 1]))
    found["places"] = {place: float(np.mean(hits)) for place, hits in places.items() if hits}
    found["thresholds"] = {}
    shares = trained("unified", seed).judge([(question, part) for question, part, _ in given])
    for t in THRESHOLDS:
        stays = [relevance.kept_share(one.keep, one.owner, len(part), t)[1:] > 0.5
                 for one, (_, part, _) in zip(shares, given, strict=True)]  # fmt: skip
        found["thresholds"][f"{t:.2f}"] = {"f1": f1(stays, given), "recall": recall(stays, given)}
    found["ranking"] = {kind: ranking(trained(kind, seed), domain, seed) for kind in ("reranker", "unified", "drifted")}
    return found


def ranking(model: Reranker, domain: str, seed: int) -> dict[str, float]:
    """nDCG@10 and MRR@10 over ten passages of each question."""
    questions = needles.asked(domain, 2 * UNSEEN + seed, 24, passages=10)
    given = pairs(questions)
    scores = [one.score for one in model.judge([(question, part) for question, part, _ in given])]
    rows = list(itertools.batched(zip(scores, given, strict=True), 10)) if hasattr(itertools, "batched") else [
        list(zip(scores, given, strict=True))[i : i + 10] for i in range(0, len(given), 10)]  # fmt: skip
    relevant = [[float(bool(gold)) for _, (_, _, gold) in row] for row in rows]
    scored = [[score for score, _ in row] for row in rows]
    return {
        "ndcg": float(np.mean([retrieval.ndcg(r, s) for r, s in zip(relevant, scored, strict=True)])),
        "mrr": float(np.mean([retrieval.reciprocal_rank(r, s) for r, s in zip(relevant, scored, strict=True)])),
    }


def figures(domain: str, seed: int) -> dict[str, Any]:
    return lab.remembered(f"provence-{domain}-{seed}", functools.partial(judged, domain, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_figures(domain, seed):
    """One at a time, as the trainings."""
    print(domain, seed, figures(domain, seed))
    assert 0 < figures(domain, seed)["kept"] < 1


# ------------------------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("domain", DOMAINS)
def test_sentences_kept_against_rivals_at_equal_size(domain):
    rows = [figures(domain, seed)["f1"] for seed in SEEDS]
    values = {way: [row[way] for row in rows] for way in rows[0]}
    ours, standalone = values.pop("unified"), values.pop("standalone")
    holds = all(sum(ours) > sum(other) for other in values.values())
    kept = np.mean([figures(domain, seed)["kept"] for seed in SEEDS])
    lab.record(
        "provence", f"f1-{domain}",
        f"at equal size the sentences kept are better than those of every rival, on {DOMAINS[domain]}",
        holds, ("F1 of kept sentences", ours), {**values, "standalone": standalone}, lower=False, against=list(values),
        setup=f"{SETUP}; threshold 0.5 leaves {kept:.1%} of the words, and each rival as many",
    )  # fmt: skip


def test_one_model_for_both_keeps_as_well_as_one_for_sentences_alone():
    ours, alone = ([np.mean([figures(domain, seed)["f1"][way] for domain in DOMAINS]) for seed in SEEDS]
                   for way in ("unified", "standalone"))  # fmt: skip
    lab.record(
        "provence", "unified", "F1 of the unified model is within 0.02 of the standalone one's, over all domains",
        np.mean(ours) >= np.mean(alone) - 0.02, ("F1 of kept sentences", ours), {"standalone": alone}, lower=False,
        setup=SETUP,
    )  # fmt: skip


def test_the_ranking_is_kept():
    rows = {kind: [np.mean([figures(domain, seed)["ranking"][kind]["ndcg"] for domain in DOMAINS]) for seed in SEEDS]
            for kind in ("reranker", "unified", "drifted")}  # fmt: skip
    ours = rows.pop("unified")
    named = {"the reranker it started from": rows["reranker"], "trained without its old scores": rows["drifted"]}
    lab.record(
        "provence", "ranking", "nDCG@10 is within 0.02 of that of the reranker it started from",
        np.mean(ours) >= np.mean(rows["reranker"]) - 0.02, ("nDCG@10", ours), named, lower=False,
        against=["the reranker it started from"],
        setup=f"{SETUP}; 24 questions with ten passages of each domain",
    )  # fmt: skip


def test_without_the_old_scores_the_ranking_drifts():
    kept, drifted = ([np.mean([figures(domain, seed)["ranking"][kind]["ndcg"] for domain in DOMAINS]) for seed in SEEDS]
                     for kind in ("unified", "drifted"))  # fmt: skip
    lab.record(
        "provence", "drift", "without the old scores in the loss, nDCG@10 is lower",
        sum(kept) > sum(drifted), ("nDCG@10", kept), {"trained without its old scores": drifted}, lower=False,
        setup=SETUP,
    )  # fmt: skip


def best_threshold(domain: str, seed: int) -> str:
    rows = figures(domain, seed)["thresholds"]
    return max(rows, key=lambda t: rows[t]["f1"])


@pytest.mark.parametrize("measure", ["f1", "recall"])
def test_one_threshold_serves_two_domains(measure):
    """The threshold with the best F1 on the genres that were taught, where nothing was tuned."""

    def mean(threshold):
        return [np.mean([figures(domain, seed)["thresholds"][threshold(domain, seed)][measure]
                         for domain in ("away", "manual")]) for seed in SEEDS]  # fmt: skip

    ours, there = mean(lambda domain, seed: best_threshold("held", seed)), mean(best_threshold)
    fixed = {f"threshold {t}": mean(lambda domain, seed, t=t: t) for t in ("0.10", "0.50")}
    lab.record(
        "provence", f"threshold-{measure}",
        f"the threshold that is best for F1 on the genres that were taught loses less than 2 points of {measure} on "
        "other genres and the manual against the best one there",
        np.mean(ours) >= np.mean(there) - 0.02, (measure, ours), {"the best threshold there": there, **fixed},
        lower=False, against=["the best threshold there"], setup=SETUP,
    )  # fmt: skip


def test_sentences_that_go_on_by_a_pronoun():
    rows = [figures(domain, seed)["continued"] for seed in SEEDS for domain in DOMAINS]
    ways = {way: [np.mean([figures(domain, seed)["continued"][way] for domain in DOMAINS]) for seed in SEEDS]
            for way in rows[0]}  # fmt: skip
    ours = ways.pop("unified")
    lab.record(
        "provence", "continued",
        "read together, the sentence that goes on by a pronoun stays more often than scored alone, at equal size",
        all(sum(ours) > sum(other) for other in ways.values()), ("share of them kept", ours), ways, lower=False,
        setup=SETUP,
    )  # fmt: skip


def test_area_under_recall_against_size():
    rows = [figures(domain, seed)["curve"] for seed in SEEDS for domain in DOMAINS]
    ways = {way: [np.mean([np.mean(figures(domain, seed)["curve"][way]) for domain in DOMAINS]) for seed in SEEDS]
            for way in rows[0]}  # fmt: skip
    ours, standalone = ways.pop("unified"), ways.pop("standalone")
    lab.record(
        "provence", "curve", "recall over sizes of 2 to 40 % of the words is higher than every rival's",
        all(sum(ours) > sum(other) for other in ways.values()), ("mean recall at 2, 5, 10, 20 and 40 %", ours),
        {**ways, "standalone": standalone}, lower=False, against=list(ways), setup=SETUP,
    )  # fmt: skip


@pytest.mark.xfail(strict=True, reason=FEW)
def test_irrelevant_passages_become_empty():
    ours = [np.mean([figures(domain, seed)["empty"] for domain in DOMAINS]) for seed in SEEDS]
    more = [np.mean([figures(domain, seed)["more"] for domain in DOMAINS]) for seed in SEEDS]
    first, middle, last = ([np.mean([figures(domain, seed)["places"].get(place, np.nan) for domain in DOMAINS])
                            for seed in SEEDS] for place in ("first", "middle", "last"))  # fmt: skip
    holds = bool(np.mean(ours) >= 0.8)
    lab.singly(
        "provence", "empty", "of passages without an answer, 80 % become empty", holds,
        {
            "share that becomes empty": lab.mean(ours),
            "distance of the number kept to the number that matter": lab.mean(more),
            **{f"needles kept at the {place}": lab.mean(row)
               for place, row in {"start": first, "middle": middle, "end": last}.items()},
        },
        reason=FEW, setup=SETUP, seeds=SEEDS,
    )  # fmt: skip
    assert holds
