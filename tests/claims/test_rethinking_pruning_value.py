"""Rethinking the value of pruning at small scale: a narrow VGG on noisy MNIST with wrong labels; MiniLM on Brown.

Each seed is the whole experiment: a large network of its own, pruned, and all arms trained on one order of batches.
Both recipes of fine-tuning are shown, for the verdict depends on them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from assets import packages
from claims import lab, vision
from secateur.data.examples import Examples
from secateur.methods import arms as training_arms
from secateur.methods.published_rules import penalise_scales, prune
from secateur.recover.distillation import losses
from secateur.recover.training import initialise, loop
from secateur.score import magnitude
from secateur.select import ranking
from secateur.studies import architectures, lottery
from secateur.subjects import Transformer, open_traced
from secateur.subjects.network.traced import Traced
from secateur.vocabulary import Budget

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2, 3, 4)
SHAPES = (0, 1, 2)
EPOCHS, LR, BATCH = 12, 0.05, 64
SLACK = 0.3  # percentage points
WIDTHS = (16, "M", 32, 32, "M", 32, 32)
DEEP = (16, "M", 32, 32, 32, "M", 32, 32, 32)
SETUP = (
    "VGG 16-M-32-32-M-32-32 with batch norm, 2,000 MNIST digits of 14 x 14 with noise, shifts and 10 % wrong labels, "
    "2,000 rightly labelled to test; 12 epochs of SGD from 0.05, fine-tuning 3 epochs at 0.0005 (classic) or 12 from "
    "0.05 (rewind); each seed has a large network of its own"
)


@functools.cache
def data() -> tuple[Examples, Examples]:
    return vision.mnist(2000, 2000, noise=0.5, flip=0.1, size=14)


def shifted(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Each image moved by up to one pixel in each direction."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    moves = draw.integers(0, 3, (len(images), 2))
    size = images.shape[-1]
    return torch.stack([one[:, y : y + size, x : x + size] for one, (y, x) in zip(padded, moves.tolist(), strict=True)])


def network(seed: int, widths: Sequence[int | str] = WIDTHS) -> Traced:
    """The large network with the first weights of the rule that fresh ones are drawn by."""
    model, _ = initialise.fresh(vision.vgg(widths), seed=100 + seed)
    return open_traced(model, data()[0].inputs[:2], prove=False)


def fit(model: nn.Module, seed: int, **how: Any) -> nn.Module:
    training_arms.fit(
        model, data()[0], **{"epochs": EPOCHS, "lr": LR, "batch": BATCH, "seed": seed, "augment": shifted, **how}
    )
    return model


def accuracy(model: nn.Module) -> float:
    return 100 * float(training_arms.mark_correct(model, data()[1]).mean())


@functools.cache
def large(seed: int, sparsity: float = 0.0) -> Traced:
    subject = network(seed)
    penalty = functools.partial(penalise_scales, subject.model, sparsity) if sparsity else None
    fit(subject.model, seed, penalty=penalty)
    return subject


def experiment(method: str, budget: str, seed: int) -> dict[str, Any]:
    """Arm -> accuracy, epochs and FLOPs, of one seed."""
    dense = large(seed, 1e-3 if method == "slimming" else 0.0)
    pruned = prune(dense, Budget.parse(budget), method)
    common: dict[str, Any] = {"epochs": EPOCHS, "lr": LR, "batch": BATCH, "seed": seed, "augment": shifted}
    common |= {"watch": False, "cap": 2.0 if method == "unstructured" else None}
    arms = training_arms.train_arms(pruned, *data(), chance=True, **common)
    rewound = training_arms.train_arms(pruned, *data(), mode="none", finetune="rewind", **common)
    found = {name: [100 * arm.accuracy, arm.epochs, arm.flops] for name, arm in arms.items()}
    found["rewound"] = [100 * rewound["fine-tuned"].accuracy, EPOCHS, rewound["fine-tuned"].flops]
    whole = training_arms.forward_flops(dense) / 2
    found["dense"] = [accuracy(dense.model), EPOCHS, 3.0 * whole * len(data()[0]) * EPOCHS]
    return found


def column(method: str, budget: str, arm: str, place: int = 0, seeds: Sequence[int] = SEEDS) -> list[float]:
    rows = [
        lab.remembered(f"rethinking-{method}-{budget}-{seed}", functools.partial(experiment, method, budget, seed))
        for seed in seeds
    ]
    return [row[arm][place] for row in rows]


def surely_less(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether a one-sided paired t-test at 5 % says that the mean of `first` is below that of `second`."""
    return bool(stats.ttest_rel(first, second, alternative="less").pvalue < 0.05)


@pytest.mark.parametrize(
    ("method", "budget"), [("l1", "channels=50%"), ("slimming", "channels=60%"), ("slimming", "channels=40%")]
)
def test_scratch_b_is_not_below_fine_tuning(method, budget):
    ours = column(method, budget, "scratch-B")
    tuned = column(method, budget, "fine-tuned")
    others = {
        "fine-tuned (classic)": tuned,
        "fine-tuned (rewind)": column(method, budget, "rewound"),
        "scratch-E": column(method, budget, "scratch-E"),
        "random units, fine-tuned": column(method, budget, "random units"),
        "large network": column(method, budget, "dense"),
    }
    lab.record(
        "rethinking_pruning_value",
        f"{method}-{budget.removeprefix('channels=').removesuffix('%')}",
        f"{method} at {budget}: training the cut shape from scratch for as many FLOPs as the large network had "
        f"(Scratch-B) is at most {SLACK} points below classic fine-tuning of the inherited weights",
        float(np.mean(ours)) >= float(np.mean(tuned)) - SLACK,
        ("accuracy", ours),
        others,
        lower=False,
        against=["fine-tuned (classic)"],
        setup=SETUP,
        seeds=SEEDS,
        reason="",
    )


def test_as_many_flops_are_not_below_as_many_epochs():
    pairs = [("l1", "channels=50%"), ("slimming", "channels=60%"), ("slimming", "channels=40%")]
    ours, theirs = ([value for pair in pairs for value in column(*pair, arm)] for arm in ("scratch-B", "scratch-E"))
    lab.record(
        "rethinking_pruning_value",
        "budget-epochs",
        "Scratch-B is not below Scratch-E (one-sided paired test over seeds, methods and ratios)",
        float(np.mean(ours)) >= float(np.mean(theirs)) or not surely_less(ours, theirs),
        ("accuracy", ours),
        {"scratch-E": theirs},
        lower=False,
        setup=SETUP,
        seeds=SEEDS,
    )


def test_scratch_b_costs_less_than_the_pipeline():
    pairs = [("l1", "channels=50%"), ("slimming", "channels=60%"), ("slimming", "channels=40%")]
    ours = [value for pair in pairs for value in column(*pair, "scratch-B", 2)]
    dense = [value for pair in pairs for value in column(*pair, "dense", 2)]
    tuned = [value for pair in pairs for value in column(*pair, "fine-tuned", 2)]
    pipeline = [a + b for a, b in zip(dense, tuned, strict=True)]
    lab.record(
        "rethinking_pruning_value",
        "compute",
        "Scratch-B's training FLOPs are at most the large network's, and below those of training, pruning and "
        "fine-tuning it",
        all(a <= b < c for a, b, c in zip(ours, dense, pipeline, strict=True)),
        ("flops", ours),
        {"large network": dense, "large network and fine-tuning": pipeline},
        setup=SETUP,
        seeds=SEEDS,
    )


WEAK = (
    "three epochs at a hundredth of the learning rate bring back little of so sparse a narrow network: at the learning "
    "rate of scratch (rewind) the inherited weights win"
)


@pytest.mark.parametrize("budget", ["weights=10%", "weights=5%"])
@pytest.mark.parametrize(
    "recipe", [pytest.param("classic", marks=pytest.mark.xfail(strict=True, reason=WEAK)), "rewind"]
)
def test_single_weights_are_worth_inheriting_at_high_sparsity(budget, recipe):
    take = functools.partial(column, "unstructured", budget, seeds=SHAPES)
    arms = {"classic": take("fine-tuned"), "rewind": take("rewound")}
    fresh = take("scratch-E")
    (other,) = set(arms) - {recipe}
    lab.record(
        "rethinking_pruning_value",
        f"unstructured-{recipe}-{budget.removeprefix('weights=').removesuffix('%')}",
        f"with {budget} of convolutions left (global magnitude), {recipe} fine-tuning beats Scratch-E",
        lab.clearly_less(fresh, arms[recipe]),
        ("accuracy", arms[recipe]),
        {
            "scratch-E": fresh,
            "scratch-B": take("scratch-B"),
            f"fine-tuned ({other})": arms[other],
            "random weights, fine-tuned": take("random units"),
            "large network": take("dense"),
        },
        lower=False,
        against=["scratch-E"],
        setup=f"{SETUP}; Scratch-B here at most 24 epochs",
        seeds=SHAPES,
        reason=WEAK,
    )


# --------------------------------------------------------------------------------------- the view as a search


def params(subject: Traced) -> int:
    return sum(p.numel() for p in subject.model.parameters())


def trained(subject: Traced, seed: int) -> float:
    model, _ = initialise.fresh(subject.model, seed=seed)
    return accuracy(fit(model, seed))


def designs(seed: int) -> dict[str, Any]:
    """Accuracies from scratch, and parameters, of the three designs on the network and of two on a deeper one."""
    dense = large(seed, 1e-3)
    pruned = prune(dense, Budget.parse("channels=40%"), "slimming")
    size = f"params={params(pruned.student)}"
    uniform, _ = architectures.uniform(dense, size)
    pattern = architectures.shares(dense, pruned.cut)
    deep = network(seed, DEEP)
    same = f"params={100 * params(pruned.student) / params(dense):.4f}%"
    found = {
        "slimming": pruned.student,
        "uniform": uniform,
        "guided, deeper": architectures.guided(deep, pattern, same)[0],
        "uniform, deeper": architectures.uniform(deep, same)[0],
    }
    return {name: [trained(one, seed), params(one)] for name, one in found.items()}


def design(name: str, place: int = 0) -> list[float]:
    return [
        lab.remembered(f"rethinking-designs-{seed}", functools.partial(designs, seed))[name][place] for seed in SHAPES
    ]


GUIDED = (
    "the pattern does not carry to this depth: after 12 epochs from scratch uniform widths lead by 6.5 points, from "
    "-6.9 to 20.0 over three seeds"
)


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        ("slimming", "uniform", "widths"),
        pytest.param(
            "guided, deeper", "uniform, deeper", "guided", marks=pytest.mark.xfail(strict=True, reason=GUIDED)
        ),
    ],
)
def test_found_widths_are_not_below_uniform_ones(ours, theirs, name):
    sizes = list(zip(design(ours, 1), design(theirs, 1), strict=True))
    assert all(abs(a / b - 1) < 0.1 for a, b in sizes), sizes
    lab.record(
        "rethinking_pruning_value",
        name,
        "trained from scratch at equal parameters, the widths that slimming finds are not below uniform ones"
        if name == "widths"
        else "their pattern by stage, carried to a deeper network, is not below uniform widths at equal parameters",
        float(np.mean(design(ours))) >= float(np.mean(design(theirs))),
        ("accuracy", design(ours)),
        {theirs: design(theirs)},
        lower=False,
        setup=f"{SETUP}; slimming with s = 0.001 at channels=40%; deeper: 16-M-32-32-32-M-32-32-32",
        seeds=SHAPES,
        reason=GUIDED if name == "guided" else "",
    )


# -------------------------------------------------------------------------------------------------- the lottery

TICKETS = (0, 1, 2)


@functools.cache
def tickets(lr: float, method: str) -> lottery.Tickets:
    (found,) = lottery.tickets(
        network(0), *data(), kept=0.2 if method == "unstructured" else 0.5, method=method, lrs=(lr,), epochs=EPOCHS,
        batch=BATCH, seeds=TICKETS, augment=shifted,
    )  # fmt: skip
    return found


SLOW = (
    "at 0.01 twelve epochs leave even the large network at 67 %, so that there is nothing yet to win: ticket 63.0, new "
    "draw 63.4 (means of three)"
)


@pytest.mark.parametrize(
    ("lr", "method"),
    [
        (0.1, "unstructured"),
        pytest.param(0.01, "unstructured", marks=pytest.mark.xfail(strict=True, reason=SLOW)),
        (0.1, "l1"),
    ],
)
def test_the_ticket_is_no_better_than_a_new_draw(lr, method):
    found = tickets(lr, method)
    ours, theirs = ([100 * value for value in row] for row in (found.ticket, found.drawn))
    difference = found.difference
    assert difference.low is not None
    assert difference.high is not None
    tie = difference.low <= 0 <= difference.high
    left = "20 % of the weights left" if method == "unstructured" else "50 % of the filters left"
    claim = (
        f"{method}, {left}: at the small learning rate 0.01 the winning ticket beats a new draw of the same shape"
        if lr == 0.01
        else f"{method}, {left}: at learning rate 0.1 the winning ticket is no better than a new draw of the same shape"
    )
    lab.record(
        "rethinking_pruning_value",
        f"ticket-{method}-{lr}",
        claim,
        difference.low > 0 if lr == 0.01 else tie,
        ("accuracy", ours),
        {"new draw": theirs, "large network": [100 * value for value in found.dense]},
        lower=False,
        against=["new draw"],
        setup=SETUP,
        seeds=TICKETS,
        reason=SLOW if lr == 0.01 else "",
    )


# ------------------------------------------------------------------------------------------ pretrained: the boundary

STEPS = 20


@functools.cache
def genres() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Sentences of Brown: is it fiction or government? (to train on, held out)."""
    kinds = {"government": 0, "fiction": 1}
    rows = [(text, kinds[genre]) for genre, text in packages.brown() if genre in kinds and 6 <= len(text.split()) <= 25]
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = [rows[i] for i in order[:1400]]
    return chosen[:1000], chosen[1000:]


def encoded(subject: Transformer, rows: Sequence[tuple[str, int]], batch: int) -> list[dict[str, Tensor]]:
    found = []
    for start in range(0, len(rows) - batch + 1, batch):
        part = rows[start : start + batch]
        made = subject.tokenizer(
            [text for text, _ in part], padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        found.append({**made, "labels": torch.tensor([label for _, label in part])})
    return found


def classified(student: Transformer, steps: int, seed: int) -> float:
    """Accuracy on held-out sentences after `steps` with a new head."""
    torch.manual_seed(seed)
    head = nn.Linear(student.model.config.hidden_size, 2)
    train, held = genres()
    order = np.random.default_rng(seed).permutation(len(train))
    batches = encoded(student, [train[i] for i in order], 16)

    def logits(batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return head(student.forward(inputs).prediction)

    def objective(batch: Mapping[str, Tensor], totals: Mapping[str, int]) -> tuple[Tensor, dict[str, float]]:
        return losses.cross_entropy(logits(batch), batch["labels"]) / totals["examples"], {}

    loop.train(
        student.model, batches, objective, steps=steps, lr=3e-4, seed=seed, extra=[head], dropout=False,
        count=lambda batch: {"examples": len(batch["labels"])}, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        right = [(logits(batch).argmax(-1) == batch["labels"]).float().mean() for batch in encoded(student, held, 50)]
    return 100 * float(torch.stack(right).mean())


def half(subject: Transformer) -> Transformer:
    """Half of the heads and neurons everywhere, by the norm of what they give."""
    units = subject.units("heads", "neurons")
    consumers = {site: at for site, at in subject.consumers().items() if not units[site].frozen}
    scores = magnitude.groups(subject.model, consumers)
    counts = {site.name: site.count // 2 for site in units.free()}
    return subject.cut(ranking.by_counts(units, scores, counts))[0]


def drawn(seed: int) -> Transformer:
    student = half(lab.minilm())
    student.model.load_state_dict(initialise.fresh(student.model, seed=seed)[0].state_dict())
    return student


def boundary(seed: int) -> dict[str, float]:
    """Accuracy of each arm."""
    dense, student = lab.minilm(), half(lab.minilm())
    stretched = training_arms.equal_flops(STEPS, dense.flops_per_token(32), student.flops_per_token(32))
    return {
        "inherited": classified(student, STEPS, seed),
        "scratch-E": classified(drawn(seed), STEPS, seed),
        "scratch-B": classified(drawn(seed), stretched, seed),
    }


def test_pretrained_weights_are_worth_inheriting():
    rows = [lab.remembered(f"rethinking-minilm-{seed}", functools.partial(boundary, seed)) for seed in (0, 1, 2)]
    ours = [row["inherited"] for row in rows]
    others = {name: [row[name] for row in rows] for name in ("scratch-E", "scratch-B")}
    lab.record(
        "rethinking_pruning_value",
        "pretrained",
        "the claim ends where the large model was pretrained on more than the task: MiniLM's inherited weights beat "
        "both fresh networks by more than 5 points",
        all(min(ours) > max(row) + 5 for row in others.values()),
        ("accuracy", ours),
        others,
        lower=False,
        setup="all-MiniLM-L6-v2 with half of its heads and neurons (by norm), 1,000 Brown sentences, fiction or "
        "government; 20 steps of 16, Scratch-B as many FLOPs as 20 steps of the whole encoder; 64.75 is the share of "
        "the larger class: the fresh networks have learnt nothing yet",
    )
