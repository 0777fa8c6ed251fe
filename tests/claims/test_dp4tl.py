"""DP4TL at small scale: thirty classes of images for digits of other hands, and Brown's genres for mails.

Each seed is the whole experiment: a source drawn anew, a surrogate and a larger network of its own, other shots of the
target. All arms at one share see as many examples for as many steps.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from claims import kinds, lab, vision
from secateur.data.examples import Examples
from secateur.methods.arms import fit
from secateur.recipes.data import dp4tl as recipe
from secateur.recover.training import transfer
from secateur.score import difficulty
from secateur.studies.lossless import Point, largest_lossless
from secateur.subjects.dataset.examples import ExampleSet
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget, Figure, Training

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2, 3, 4)
EACH, SHOTS, BATCH = 60, 100, 32
EPOCHS, LR = 10, 0.05
SHORT, RUNS = 2, 5
PROBE, TUNE = (60, 0.01), (60, 2e-3)
Stage = tuple[float, float]
SHARES = (0.4, 0.5, 0.6, 0.7)
"""Of the classes that go."""
SETUP = (
    f"source: 60 each of MNIST's ten digits, ten printed letters and ten regions of photographs, 16 x 16; target: "
    f"{SHOTS} of scikit-learn's digits, 900 others to judge on; surrogate of 2 convolutions, network of 5; {EPOCHS} "
    "epochs of pre-training whatever stays"
)


@functools.cache
def world(seed: int, judged: bool = True) -> tuple[Examples, Examples, Examples]:
    """(source, target to learn from, target to judge on)."""
    return kinds.source(EACH, seed), *kinds.target(SHOTS, seed, judged=judged)


def small(seed: int) -> nn.Module:
    return vision.vgg((8, "M", 16, "M"), classes=30, seed=seed)


def large(seed: int) -> nn.Module:
    return vision.vgg((8, "M", 16, 16, "M", 32, 32), classes=30, seed=seed)


def other(seed: int) -> nn.Module:
    """Of another architecture than the surrogate, too."""
    return vision.resnet((8, 16, 32), blocks=1, classes=30, seed=seed)


def pretrain(model: nn.Module, data: Examples, seed: int, epochs: float = EPOCHS) -> nn.Module:
    training = Training(epochs=epochs, batch=BATCH, lr=LR, optimizer="sgd", weight_decay=5e-5, warmup=0.125,
                        schedule="linear", precision="fp32")  # fmt: skip
    fit(model, data, training, seed=seed)
    return model


def carried(
    model: nn.Module, taught: Examples, held: Examples, seed: int, *, probe: Stage = PROBE, tune: Stage = TUNE
) -> dict[str, float]:
    """Accuracies in percent."""
    subject, training = Traced(model, None), Training(batch=BATCH, precision="fp32")
    transfers = recipe.Transfers(*probe, *tune)
    found = recipe.carry_over(subject, transfer.head(model), taught, held, transfers, training, seed=seed)
    return {name: 100 * value for name, value in found.items()}


# -------------------------------------------------------------------------------------------------- what stays


@functools.cache
def surrogate(seed: int) -> nn.Module:
    return pretrain(small(seed), world(seed)[0], seed)


def voted(model: nn.Module, seed: int, mapping: str, clusters: int = 0, judged: bool = True) -> dict[str, Tensor]:
    source, taught, _ = world(seed, judged)
    return recipe.count_votes(model, source, np.arange(len(source)), taught, mapping=mapping, clusters=clusters,
                       classes=30, seed=seed)  # fmt: skip


def by_votes(source: Examples, votes: Mapping[str, Tensor], kept: float, order: str, seed: int) -> NDArray[np.int64]:
    whole = ExampleSet(replace(source, labels=votes["classes"], classes=()))
    budget = Budget.parse(f"examples={100 * kept:.0f}%")
    return whole.cut(recipe.select_classes(whole, votes["votes"], budget, order, seed))[0].kept


@functools.cache
def hardness(seed: int, rule: str) -> Tensor:
    """GraNd, after 2 epochs, the mean over 5 surrogates; or the middle of each class, by the surrogate's features."""
    source, model = world(seed)[0], surrogate(seed)
    assert source.labels is not None
    if rule == "Moderate":
        return difficulty.moderate(recipe.features(model, source, transfer.head(model)), source.labels)
    runs = []
    for draw in (1000 * (run + 1) + seed for run in range(RUNS)):
        model = pretrain(small(draw), source, draw, epochs=SHORT)
        seen = recipe.features(model, source, transfer.head(model))
        runs.append(difficulty.grand(recipe.ask_logits(model, source), source.labels, seen))
    return difficulty.averaged(runs)


def places(seed: int, rule: str, pruned: float, judged: bool = True) -> NDArray[np.int64]:
    """Which examples of the source stay."""
    source, kept = world(seed)[0], 1 - pruned
    if rule in ("GraNd", "Moderate"):
        best = hardness(seed, rule).argsort(descending=True, stable=True)
        return np.sort(best[: round(kept * len(source))].numpy())
    mapping, clusters = ("feature", 30) if rule == "clusters" else ("label", 0)
    votes = voted(surrogate(seed), seed, mapping, clusters, judged)
    return by_votes(source, votes, kept, rule if rule in ("random", "reverse") else "votes", seed)


# -------------------------------------------------------------------------------------------------- the arms


def arm(seed: int, rule: str, pruned: float, judged: bool = True) -> dict[str, float]:
    """Accuracies of the large network, pre-trained on what `rule` leaves, and how many examples that is."""

    def compute() -> dict[str, float]:
        source, taught, held = world(seed, judged)
        kept = np.arange(len(source)) if rule == "whole" else places(seed, rule, pruned, judged)
        model = pretrain(large(seed), source.take(kept), seed)
        return {**carried(model, taught, held, seed), "examples": float(len(kept))}

    return lab.remembered(f"dp4tl-{rule}-{pruned}-{seed}{'' if judged else '-explored'}", compute)


def scratch(seed: int) -> dict[str, float]:
    """The large network on the target alone, for twice as many epochs."""

    def compute() -> dict[str, float]:
        _, taught, held = world(seed)
        return carried(large(seed), taught, held, seed, probe=(0, 0), tune=(2 * TUNE[0], TUNE[1]))

    return lab.remembered(f"dp4tl-scratch-{seed}", compute)


def residual(seed: int) -> dict[str, dict[str, float]]:
    """The residual network, with 70 % of the classes gone: by the small surrogate's votes, by its own, at random."""

    def compute() -> dict[str, dict[str, float]]:
        source, taught, held = world(seed)
        own = pretrain(other(seed), source, seed)
        theirs, ours = (voted(model, seed, "label") for model in (surrogate(seed), own))
        found = {"whole source": carried(own, taught, held, seed)}
        for name, votes, order in (("surrogate's votes", theirs, "votes"), ("own votes", ours, "votes"),
                                   ("random classes", theirs, "random")):  # fmt: skip
            model = pretrain(other(seed), source.take(by_votes(source, votes, 0.3, order, seed)), seed)
            found[name] = carried(model, taught, held, seed)
        return found

    return lab.remembered(f"dp4tl-residual-{seed}", compute)


ARMS = {
    "votes": [("whole", 0.0), *(("labels", pruned) for pruned in SHARES)],
    "clusters": [("clusters", pruned) for pruned in SHARES],
    "controls": [(rule, pruned) for rule in ("random", "reverse") for pruned in (0.5, 0.7)],
    "baselines": [(rule, pruned) for rule in ("GraNd", "Moderate") for pruned in (0.5, 0.7)],
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ARMS)
def test_arms_see_as_many_examples(name: str, seed: int) -> None:
    """One experiment each, so that a part of the claims takes minutes; the tests below read what came out."""
    for rule, pruned in ARMS[name]:
        seen, asked = arm(seed, rule, pruned)["examples"], (1 - pruned) * len(world(seed)[0])
        assert seen <= asked + 0.5
        assert rule == "clusters" or seen > asked - 1


@pytest.mark.parametrize("seed", SEEDS)
def test_others(seed: int) -> None:
    assert scratch(seed)["full fine-tuning"] > 30
    assert set(residual(seed)) == {"whole source", "surrogate's votes", "own votes", "random classes"}


def column(rule: str, pruned: float, way: str) -> list[float]:
    return [arm(seed, rule, pruned)[way] for seed in SEEDS]


# ------------------------------------------------------------------------------------------------ 1: what to keep


REASONS = {
    "half-tuned": (
        "on the mean it is first (93.6 %, GraNd 93.1, Moderate 91.8, reverse 91.0, random 90.6), but not clearly "
        "better than its reverse: 2.5 points with an interval that holds 0; the target alone gives 90.1 already"
    ),
    "seventy-tuned": (
        "GraNd, which keeps examples of all classes, comes 0.3 points before it (92.6 and 92.3 %, interval -3.1 to "
        "2.5), and it is not clearly better than its reverse (89.8 %): fine-tuning of all weights levels what the "
        "linear probe tells apart (81.3 against 78.0 and 56.0 %)"
    ),
    "transfer-probe": ("76.1 %, far above random classes (56.2), but 6.4 points below the network's own votes (82.5)"),
    "genres-probe": (
        "70.0 %, 3.7 points below all genres (73.7) and 1.2 below random ones: what tells genres apart does not tell "
        "spam from other mails, whichever genres are kept, and fewer of them give fewer features"
    ),
}
"""Why a claim does not hold here, with its figures."""


def failing(name: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=REASONS[name])


PROBED, TUNED = "linear probe", "full fine-tuning"


@pytest.mark.parametrize(
    ("name", "pruned", "way"),
    [
        ("half", 0.5, PROBED),
        pytest.param("half-tuned", 0.5, TUNED, marks=failing("half-tuned")),
        ("seventy", 0.7, PROBED),
        pytest.param("seventy-tuned", 0.7, TUNED, marks=failing("seventy-tuned")),
    ],
)
def test_label_mapping_beats_random_classes_and_scores_of_examples(name: str, pruned: float, way: str) -> None:
    rows = {rule: column(rule, pruned, way) for rule in ("labels", "random", "reverse", "GraNd", "Moderate")}
    ours = rows.pop("labels")
    lab.record(
        "dp4tl", name, f"with {100 * pruned:.0f} % of the classes gone, label mapping is at least as good as random "
        f"classes, GraNd and Moderate, and clearly better than its reverse: {way}",
        all(lab.less(rows[rule], ours) for rule in ("random", "GraNd", "Moderate"))
        and lab.clearly_less(rows["reverse"], ours),
        ("accuracy, label mapping", ours), {f"accuracy, {rule}": row for rule, row in rows.items()},
        lower=False, seeds=SEEDS, setup=SETUP, reason=REASONS.get(name, ""),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- 2: lossless


def points(rule: str, way: str) -> list[Point]:
    whole = Point(0.0, {way: tuple(column("whole", 0.0, way))})
    return [whole, *(Point(pruned, {way: tuple(column(rule, pruned, way))}) for pruned in SHARES)]


@pytest.mark.parametrize("way", [PROBED, TUNED])
def test_forty_percent_or_more_of_the_classes_can_go(way: str) -> None:
    found = {rule: largest_lossless(points(rule, way), way).pruned for rule in ("labels", "clusters")}
    best = max(found, key=lambda rule: found[rule])
    name = f"lossless-{'probe' if way == 'linear probe' else 'tuned'}"
    ours = column(best, found[best] or SHARES[0], way)
    lab.record(
        "dp4tl", name, f"at least 40 % of the classes can go without loss, within one standard error: {way}",
        found[best] >= 0.4,
        (f"accuracy, {100 * (found[best] or SHARES[0]):.0f} % gone by {best}", ours),
        {"accuracy, whole source": column("whole", 0.0, way)},
        lower=False, seeds=SEEDS, setup=SETUP, reason=REASONS.get(name, ""),
    )  # fmt: skip


TURNS = 5


def speeds(seed: int) -> dict[float, float]:
    """Share of the classes gone -> how many times faster pre-training is, the median over turns.

    Seconds of this process, all shares in each turn, so that what else the machine does falls on all alike.
    """
    source, turns = world(seed)[0], dict[float, list[float]]()
    parts = {pruned: source.take(places(seed, "labels", pruned)) for pruned in (0.5, 0.7)}
    for _ in range(TURNS):
        taken = {}
        for pruned, part in {0.0: source, **parts}.items():
            model, began = large(seed), time.process_time()
            pretrain(model, part, seed, epochs=2)
            taken[pruned] = time.process_time() - began
        for pruned in parts:
            turns.setdefault(pruned, []).append(taken[0.0] / taken[pruned])
    return {pruned: statistics.median(row) for pruned, row in turns.items()}


def test_pre_training_takes_as_much_less_time() -> None:
    found = [speeds(seed) for seed in SEEDS[:3]]
    faster = {pruned: [one[pruned] for one in found] for pruned in found[0]}
    lab.record(
        "dp4tl", "time", "pre-training is faster by 1 / (1 - share) within 10 %, with 50 and 70 % of the classes gone",
        all(sum(row) / len(row) >= 0.9 / (1 - pruned) for pruned, row in faster.items()),
        ("times faster, 70 % gone", faster[0.7]), {"50 % gone": faster[0.5]}, seeds=SEEDS[:3], lower=False,
        setup=f"{SETUP}; 2 epochs, the median of {TURNS} turns for each seed", reason=REASONS.get("time", ""),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- 3: without labels


def test_clusters_reach_the_ratio_of_labels_within_a_step() -> None:
    way = "full fine-tuning"
    found = {rule: largest_lossless(points(rule, way), way).pruned for rule in ("labels", "clusters")}
    figures = {f"classes that can go, {rule}": Figure(pruned) for rule, pruned in found.items()}
    purity = [pure(seed) for seed in SEEDS]
    holds = found["clusters"] >= found["labels"] - 0.1 - 1e-9
    lab.singly(
        "dp4tl", "clusters", "feature mapping on clusters, without labels, loses nothing up to label mapping's share "
        "of the classes, or one step of 10 % less", holds, {**figures, "purity of clusters": lab.mean(purity)},
        seeds=SEEDS, setup=SETUP, reason=REASONS.get("clusters", ""),
    )  # fmt: skip
    assert holds, found


def pure(seed: int) -> float:
    """The share of the source that is of its cluster's commonest class."""
    clusters, labels = voted(surrogate(seed), seed, "feature", 30)["classes"], world(seed)[0].labels
    assert labels is not None
    return sum(int(torch.bincount(labels[clusters == one]).max()) for one in clusters.unique()) / len(labels)


# ---------------------------------------------------------------------------------------------- 4: other networks


@pytest.mark.parametrize("way", [pytest.param(PROBED, marks=failing("transfer-probe")), TUNED])
def test_votes_of_the_small_surrogate_serve_another_architecture(way: str) -> None:
    rows = {name: [residual(seed)[name][way] for seed in SEEDS] for name in residual(SEEDS[0])}
    ours = rows.pop("surrogate's votes")
    name = f"transfer-{'probe' if way == 'linear probe' else 'tuned'}"
    behind = [a - b for a, b in zip(rows["own votes"], ours, strict=True)]
    lab.record(
        "dp4tl", name, "a residual network with 70 % of the classes gone: the small surrogate's votes are better than "
        f"random classes and within 2 points of its own votes: {way}",
        lab.less(rows["random classes"], ours) and sum(behind) / len(behind) <= 2,
        ("accuracy, surrogate's votes", ours), {f"accuracy, {rival}": row for rival, row in rows.items()},
        lower=False, against=["accuracy, random classes"], seeds=SEEDS, setup=SETUP, reason=REASONS.get(name, ""),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- 5: scratch


def test_a_pruned_source_beats_the_target_alone() -> None:
    alone = [scratch(seed)["full fine-tuning"] for seed in SEEDS]
    rows = {pruned: column("labels", pruned, "full fine-tuning") for pruned in (0.5, 0.7)}
    lab.record(
        "dp4tl", "scratch", "fine-tuned from a source with 50 or 70 % of its classes gone, it is better than trained "
        "on the target alone for twice as long",
        all(lab.less(alone, row) for row in rows.values()),
        ("accuracy, 70 % gone", rows[0.7]), {"accuracy, 50 % gone": rows[0.5], "accuracy, target alone": alone},
        lower=False, against=["accuracy, target alone"], seeds=SEEDS, setup=SETUP, reason=REASONS.get("scratch", ""),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- texts


MAILS = 40
TEXTS = (
    f"source: 60 passages of each of Brown's 15 genres, target: {MAILS} mails of SpamAssassin, half of them spam, 500 "
    "others to judge on, all as MiniLM's embeddings; the network is 384-128-15; 60 epochs whatever stays"
)
WAYS: dict[str, tuple[float, int, str]] = {
    "whole": (0.0, 0, "votes"),
    "features": (0.4, 0, "votes"),
    "clusters": (0.4, 15, "votes"),
    "random": (0.4, 0, "random"),
    "reverse": (0.4, 0, "reverse"),
}


def layered(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(384, 128), nn.ReLU(), nn.Linear(128, 15))


def genre_arm(seed: int, rule: str, judged: bool = True) -> dict[str, float]:
    """Accuracies of a network that was pre-trained on the genres that `rule` leaves."""

    def compute() -> dict[str, float]:
        source, (taught, held) = kinds.genres(), kinds.mails(MAILS, seed, judged=judged)
        pruned, clusters, order = WAYS[rule]
        votes = recipe.count_votes(None, source, np.arange(len(source)), taught, mapping="feature", clusters=clusters,
                            classes=15, seed=seed)  # fmt: skip
        part = replace(source, labels=votes["classes"]) if clusters else source
        if pruned:
            part = part.take(by_votes(source, votes, 1 - pruned, order, seed))
        model = pretrain(layered(seed), part, seed, epochs=60)
        return carried(model, taught, held, seed, probe=(60, 0.01), tune=(30, 1e-3))

    return lab.remembered(f"dp4tl-genres-{rule}-{seed}{'' if judged else '-explored'}", compute)


@pytest.mark.parametrize("way", [pytest.param(PROBED, marks=failing("genres-probe")), TUNED])
def test_feature_mapping_of_genres_for_mails(way: str) -> None:
    rows = {rule: [genre_arm(seed, rule)[way] for seed in SEEDS] for rule in WAYS}
    ours, name = rows.pop("features"), f"genres-{'probe' if way == 'linear probe' else 'tuned'}"
    lost = [a - b for a, b in zip(rows["whole"], ours, strict=True)]
    lab.record(
        "dp4tl", name, "with 40 % of the genres gone by feature mapping, mails are told from spam as well as from all "
        f"genres, within 1 point, and at least as well as from random ones: {way}",
        sum(lost) / len(lost) <= 1 and lab.less(rows["random"], ours),
        ("accuracy, feature mapping", ours), {f"accuracy, {rule}": row for rule, row in rows.items()},
        lower=False, against=["accuracy, random"], seeds=SEEDS, setup=TEXTS, reason=REASONS.get(name, ""),
    )  # fmt: skip
