"""SlimMoE at small scale: a Mixtral of 1.5M parameters, 8 experts of which a token passes two, trained on Brown."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from claims import lab
from claims.genres import accuracy, prompts
from secateur.data import texts
from secateur.measure import latency, memory
from secateur.recipes.sparse import slimmoe as recipe
from secateur.recipes.sparse import stun
from secateur.recover.training import loop, objectives
from secateur.select import ranking
from secateur.subjects import Moe

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
STEPS = 300
"""Distillation steps of an arm, all its stages together, of 8 sequences of 64 tokens."""
SETUP = "Mixtral-type, 4 layers, width 96, 8 experts of 128, two per token, GQA 8:4, Brown"
LARGE_WEIGHTS = (
    "KD-Taylor beats weights and chance, but weight norms are below chance here: neurons with large weights are not "
    "those that count; and mean activations, which need no gradient, are better still"
)
PLAN = {"kv_groups": 0, "shared": 1.0, "dense": 1.0, "divisor": 4, "slim": "neurons", "batch": 1, "length": lab.LENGTH}


WIDE = "Mixtral-type, 4 layers, width 128, 8 experts of 256, two per token, GQA 8:4, Brown"
SIX = (0, 1, 2, 3, 4, 5)
SIX_MORE = (8, 9, 10, 11, 12, 13)  # pilots were on 7
SMALLEST = 0.07
"""Of the experts' width, with half of the KV groups: the paper's smallest target."""
FAST = 6e-3
"""The learning rate that is best for one step to there, of 1e-3, 3e-3, 6e-3 and 1e-2, on a seed of its own (7)."""
LONG = 1000
"""Steps that are 8 % of the tokens which the wide original was taught with, as the paper's are of its original's."""


@functools.cache
def samples(teacher: Moe, seed: int = 0):
    """64 sequences with what the original finds likeliest there."""
    items = lab.batches(teacher, seed=100 + seed).take(8)
    return recipe.beside(items, recipe.remembered(teacher, items, 8))


def cut(
    student: Moe,
    share: float,
    seed: int,
    *,
    teacher: Moe | None = None,
    how: str = "taylor",
    alike: bool = False,
    less: Sequence[int] = (),
    **plan,
) -> Moe:
    """`student` with experts of `share` of the original's width (or number), ranked as it now is.

    In the layers `less` each expert keeps four neurons fewer.
    """
    teacher, last = teacher or lab.mixtral(), "kv_groups" in plan
    units, counts = recipe.planned(teacher, student, share=share, last=last, **{**PLAN, **plan})
    for layer in less:
        counts[f"layers.{layer}.expert_neurons"] -= 4 * student.mixtures()[layer].count
    seen = samples(teacher, seed)
    found = recipe.scores(student, teacher, units, seen, how=how, loss="truncated", alike=alike, seed=seed)
    return student.cut(ranking.by_counts(units, found, counts))[0]


def learn(
    student: Moe,
    steps: int,
    seed: int,
    first: int = 0,
    task: bool = False,
    teacher: Moe | None = None,
    rate: tuple[float, float] = (1e-3, 1e-4),
) -> Moe:
    """Distil from the original, or learn the next token alone, on the batches from number `first` on."""
    asked = None if task else (teacher or lab.mixtral()).forward
    objective = objectives.distil(student.forward, asked, output="logits", task=float(task), logit=float(not task))
    batches = recipe.After(lab.batches(student, seed=seed), first)
    balanced = lab.balanced(objective, student)
    lr, min_lr = rate
    loop.train(student.model, batches, balanced, steps=steps, lr=lr, min_lr=min_lr, seed=seed, progress=False)
    return student


def staged(
    shares: Sequence[float],
    tokens: str,
    seed: int,
    total: int = STEPS,
    *,
    teacher: Moe | None = None,
    lr: float | Sequence[float] = 1e-3,
    **last: int,
) -> Moe:
    """Prune and distil in stages to `shares` of the width, with `tokens` of the steps each; `last` with the last."""
    student, first = teacher or lab.mixtral(), 0
    dealt = zip(shares, recipe.dealt(tokens, total, len(shares)), recipe.rates(lr, 1e-4, len(shares)), strict=True)
    for stage, (share, steps, rate) in enumerate(dealt, 1):
        student = cut(student, share, seed, teacher=teacher, **(last if stage == len(shares) else {}))
        student, first = learn(student, steps, seed, first, teacher=teacher, rate=rate), first + steps
    return student


def smallest(
    stages: int, seed: int, total: int = STEPS, *, tokens: str = "", lr: float | Sequence[float] = 1e-3
) -> Moe:
    """To the paper's smallest target in `stages` that shrink by the same factor."""
    return staged(shrinking(stages), tokens, seed, total, teacher=lab.wide_mixtral(), lr=lr, kv_groups=2)


def shrinking(stages: int) -> list[float]:
    return [SMALLEST ** (stage / stages) for stage in range(1, stages + 1)]


@functools.cache
def merged() -> Moe:
    """The means of two clusters of experts, and of their rows of the router."""
    teacher = lab.mixtral()
    settled = stun.choose_experts(
        teacher, stun.expert_distances(teacher, {}, "router"), 2 * len(teacher.mixtures()), uniform=True
    )
    return stun.keep_experts(teacher, settled["clusters"], settled["chosen"], teacher.mixtures()[0].count)[0]


def quarter(seed: int, **how) -> Moe:
    """Experts of a quarter of the width, or, with slim="experts", a quarter of the experts; untrained."""
    return cut(lab.mixtral(), 0.25, seed, **how)


def fair(shares: Sequence[float], seed: int, *, teacher: Moe | None = None, **last: int) -> int:
    """Steps of one stage for the FLOPs of several, the teacher's counted: students of the first stages are larger."""
    teacher, costs = teacher or lab.mixtral(), []
    for stage, share in enumerate(shares, 1):
        student = cut(teacher, share, seed, teacher=teacher, **(last if stage == len(shares) else {}))
        costs.append(3 * student.flops_per_token(lab.LENGTH) + teacher.flops_per_token(lab.LENGTH))
    dealt = recipe.dealt("", STEPS, len(shares))
    return round(sum(steps * cost / costs[-1] for steps, cost in zip(dealt, costs, strict=True)))


ARMS: dict[str, Callable[[int], Moe]] = {
    "thin": lambda seed: learn(quarter(seed), STEPS, seed),
    "fewer experts": lambda seed: learn(quarter(seed, slim="experts"), STEPS, seed),
    "merged": lambda seed: learn(merged().copy(), STEPS, seed),
    "CE": lambda seed: learn(quarter(seed), STEPS, seed, task=True),
    "fresh KD": lambda seed: learn(lab.fresh(quarter(seed), seed), STEPS, seed),
    "fresh CE": lambda seed: learn(lab.fresh(quarter(seed), seed), STEPS, seed, task=True),
    "34/66": lambda seed: staged((0.5, 0.2), "34%,66%", seed),
    "20/80": lambda seed: staged((0.5, 0.2), "20%,80%", seed),
    "50/50": lambda seed: staged((0.5, 0.2), "50%,50%", seed),
    "one stage": lambda seed: staged((0.2,), "100%", seed),
    "one stage, equal FLOPs": lambda seed: staged((0.2,), "100%", seed, fair((0.5, 0.2), seed)),
    "fewer groups": lambda seed: learn(cut(quarter(seed), 0.25, seed, kv_groups=2), STEPS, seed),
    "thinner experts": lambda seed: learn(cut(quarter(seed), 28 / 128, seed, less=(0, 2)), STEPS, seed),
}
STAGED: dict[str, Callable[[int], Moe]] = {
    "wide, two stages": lambda seed: staged((0.5, 0.2), "", seed, LONG, teacher=lab.wide_mixtral()),
    "wide, one stage": lambda seed: staged((0.2,), "", seed, LONG, teacher=lab.wide_mixtral()),
    "smallest, four stages": lambda seed: smallest(4, seed),
    "smallest, one stage": lambda seed: smallest(1, seed),
    "smallest, one stage, equal FLOPs": lambda seed: smallest(
        1, seed, fair(shrinking(4), seed, teacher=lab.wide_mixtral(), kv_groups=2)
    ),
    "fast, three stages": lambda seed: smallest(3, seed, tokens="3%,7%,90%", lr=[FAST / 3, FAST * 2 / 3, FAST]),
    "fast, one stage": lambda seed: smallest(1, seed, lr=FAST),
}

AGAIN = {arm: STAGED[arm] for arm in ("wide, two stages", "wide, one stage")}


def _plain(arm: str) -> str:
    return arm.replace(" ", "-").replace("/", "-")


PAIRS = [
    pytest.param(arm, seed, id=f"{_plain(arm)}-{seed}")
    for arms, seeds in ((ARMS, SEEDS), (STAGED, SIX), (AGAIN, SIX_MORE))
    for arm in arms
    for seed in seeds
]


def trained(arm: str, seed: int) -> float:
    """Held-out loss of an arm after its training."""
    name = f"slimmoe-{_plain(arm)}-{seed}"
    return float(lab.remembered(name, lambda: {"loss": lab.held_out((ARMS | STAGED)[arm](seed))})["loss"])


def losses(arm: str, seeds: Sequence[int] = SEEDS) -> list[float]:
    return [trained(arm, seed) for seed in seeds]


@pytest.mark.parametrize(("arm", "seed"), PAIRS)
def test_every_arm_learns(arm: str, seed: int):
    """One training each, so that a part of the claims takes a minute; the tests below read what came out."""
    assert trained(arm, seed) < math.log(lab.mixtral().model.config.vocab_size)


@pytest.mark.xfail(strict=True, reason=LARGE_WEIGHTS)
def test_kd_taylor_ranks_better_than_weights_and_chance():
    found = {
        name: [lab.held_out(cut(lab.mixtral(), 0.5, seed, how=name)) for seed in SEEDS]
        for name in ("taylor", "activation", "weight", "random")
    }
    ours = found.pop("taylor")
    lab.record(
        "slimmoe",
        "score",
        "at half the width and before any training: KD-Taylor < weight norm < random neurons",
        lab.less(ours, found["weight"]) and lab.less(found["weight"], found["random"]),
        ("loss", ours),
        found,
        against=("weight", "random"),
        setup=SETUP,
        reason=LARGE_WEIGHTS,
    )


def test_slim_experts_beat_fewer_experts():
    """A quarter of the width of 8 experts, or 2 of 8 experts: equally many parameters, all experts are then active."""
    before: dict[str, list[float]] = {"slim": [], "fewer experts": []}
    after = {"slim": losses("thin"), "fewer experts": losses("fewer experts")}
    sizes = {}
    for seed in SEEDS:
        for name, slim in zip(before, ("neurons", "experts"), strict=True):
            student = quarter(seed, slim=slim)
            sizes[name] = (student.units().cost()["params"], student.active_params())
            before[name].append(lab.held_out(student))
    total = [params for params, _ in sizes.values()]
    assert abs(total[0] - total[1]) < 0.01 * total[0]
    assert sizes["slim"][1] < sizes["fewer experts"][1]
    lab.record(
        "slimmoe",
        "experts",
        "thin experts beat fewer experts of as many parameters, before and after the same distillation",
        all(lab.less(row["slim"], row["fewer experts"]) for row in (before, after)),
        ("loss", after["slim"]),
        {
            "fewer experts": after["fewer experts"],
            "slim, untrained": before["slim"],
            "fewer experts, untrained": before["fewer experts"],
        },
        against=("fewer experts",),
        setup=SETUP,
    )


def test_slim_experts_beat_merged_ones():
    """A quarter of the width of 8 experts, or the means of 2 clusters of them, and of their rows of the router."""
    total = [student.units().cost()["params"] for student in (quarter(0), merged())]
    assert abs(total[0] - total[1]) < 0.01 * total[0]
    ours, theirs = losses("thin"), losses("merged")
    lab.record(
        "slimmoe",
        "merged",
        "thin experts beat merged experts of as many parameters, after the same distillation",
        lab.less(ours, theirs),
        ("loss", ours),
        {"merged experts": theirs},
        setup=f"{SETUP}; merged by the router's rows, {lab.held_out(merged()):.3f} before distillation",
    )


SHORT = (
    "a tie, 4.355 against 4.354 nats: an original that was not taught for long, and a fifth of the width of its small "
    "experts, which one step breaks so little that 150,000 tokens mend it"
)


def test_two_stages_beat_one_of_an_original_that_is_well_taught():
    """The spec's set-up: experts of 256, then 128, then 52; the first stage is stopped early."""
    ours, one = losses("wide, two stages", SIX), losses("wide, one stage", SIX)
    lab.record(
        "slimmoe",
        "stages",
        "100 -> 50 -> 20 % of the width in two stages beats one step at equal tokens",
        lab.less(ours, one),
        ("loss", ours),
        {"one stage": one},
        setup=f"{WIDE}; {LONG} steps of 8 x {lab.LENGTH} tokens, all stages together",
        seeds=SIX,
    )


def test_two_stages_beat_one_once_more():
    """Other batches and samples, an original trained anew: the difference is small, and was not clear with six."""
    ours, one = (losses(arm, SIX_MORE) for arm in AGAIN)
    lab.record(
        "slimmoe",
        "stages-again",
        "100 -> 50 -> 20 % of the width in two stages beats one step at equal tokens, with six other seeds",
        lab.less(ours, one),
        ("loss", ours),
        {"one stage": one},
        setup=f"{WIDE}; {LONG} steps of 8 x {lab.LENGTH} tokens, all stages together",
        seeds=SIX_MORE,
    )


def test_four_stages_beat_one_to_the_smallest():
    """Where so little is left that one step breaks what was learnt, which is what stages are for."""
    ours, one = losses("smallest, four stages", SIX), losses("smallest, one stage", SIX)
    lab.record(
        "slimmoe",
        "stages-smallest",
        f"to {SMALLEST:.0%} of the width and half of the KV groups four stages are clearly better than one at equal "
        "tokens",
        lab.clearly_less(ours, one),
        ("loss", ours),
        {"one stage": one, "one stage, equal FLOPs": losses("smallest, one stage, equal FLOPs", SIX)},
        against=("one stage",),
        setup=f"{WIDE}; {STEPS} steps of 8 x {lab.LENGTH} tokens, all stages together",
        seeds=SIX,
    )


def test_stages_beat_one_to_the_smallest_at_the_rate_that_is_best_for_one():
    ours, one = losses("fast, three stages", SIX), losses("fast, one stage", SIX)
    lab.record(
        "slimmoe",
        "stages-fast",
        f"to {SMALLEST:.0%} of the width and half of the KV groups three stages, whose rate rises to the one that is "
        "best for one stage, are clearly better than that one at equal tokens",
        lab.clearly_less(ours, one),
        ("loss", ours),
        {"one stage": one},
        setup=f"{WIDE}; {STEPS} steps of 8 x {lab.LENGTH} tokens, all stages together; peak rate {FAST:g}",
        seeds=SIX,
    )


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=SHORT)
def test_two_stages_beat_one_at_equal_tokens():
    ours, one = losses("20/80"), losses("one stage")
    lab.record(
        "slimmoe",
        "stages-small",
        "100 -> 50 -> 20 % of the width in two stages beats one step at equal tokens",
        lab.less(ours, one),
        ("loss", ours),
        {"one stage": one, "one stage, equal FLOPs": losses("one stage, equal FLOPs")},
        against=("one stage",),
        setup=SETUP,
        reason=SHORT,
    )


def test_distillation_beats_training_and_fresh_weights():
    ours, found = losses("thin"), {arm: losses(arm) for arm in ("CE", "fresh KD", "fresh CE")}
    lab.record(
        "slimmoe",
        "distillation",
        "slim + KD < slim + CE < the same shape from fresh weights, at equal tokens",
        lab.less(ours, found["CE"]) and all(lab.less(found["CE"], found[name]) for name in ("fresh KD", "fresh CE")),
        ("loss", ours),
        found,
        setup=SETUP,
    )


def test_attention_is_the_next_to_go():
    """Its share rises as experts get thin; then KV groups cost less than as many parameters of the experts."""
    teacher = lab.mixtral()

    def attention(student: Moe) -> float:
        parts = [p.numel() for name, p in student.model.named_parameters() if ".self_attn." in name]
        return sum(parts) / student.units().cost()["params"]

    fewer, thinner = cut(quarter(0), 0.25, 0, kv_groups=2), cut(quarter(0), 28 / 128, 0, less=(0, 2))
    assert thinner.units().cost()["params"] == fewer.units().cost()["params"]
    groups, experts = losses("fewer groups"), losses("thinner experts")
    rising = attention(teacher) < attention(cut(teacher, 0.5, 0)) < attention(cut(teacher, 0.25, 0))
    lab.record(
        "slimmoe",
        "attention",
        "attention's share rises as experts get thin, and half its KV groups then cost less than as many parameters of "
        "the experts",
        rising and lab.less(groups, experts),
        ("loss", groups),
        {"thinner experts": experts},
        setup=SETUP,
    )


def test_each_expert_its_own_neurons():
    own, same, overlap = [], [], []
    for seed in SEEDS:
        mine, theirs = (cut(lab.mixtral(), 0.5, seed, alike=alike) for alike in (False, True))
        own.append(lab.held_out(mine))
        same.append(lab.held_out(theirs))
        overlap.append(_overlap(mine))
    lab.record(
        "slimmoe",
        "indices",
        "experts keep different neurons, and one set of indices for all of them is worse, before any training",
        max(overlap) < 0.9 and lab.less(own, same),
        ("loss", own),
        {"one set": same},
        setup=f"{SETUP}; two experts share {sum(overlap) / len(overlap):.0%} of the indices they keep, by chance 50%",
    )


def _overlap(student: Moe) -> float:
    """The mean share of kept indices that two experts of a layer have in common."""
    shares = []
    for layer, mixture in student.mixtures().items():
        whole = lab.mixtral().mixtures()[layer].experts.down_proj.detach()
        kept = mixture.experts.down_proj.detach()
        found = torch.stack(
            [(whole[e].T[:, None] == kept[e].T[None]).all(-1).any(1) for e in range(len(whole))]
        ).float()
        both = found @ found.T / found[0].sum()
        shares.append(both[~torch.eye(len(both), dtype=torch.bool)].mean())
    return float(torch.stack(shares).mean())


def test_tokens_belong_to_the_last_stage():
    found = {split: losses(split) for split in ("34/66", "20/80", "50/50")}
    best = min(found, key=lambda split: sum(found[split]))
    ours = found.pop("20/80")
    lab.record(
        "slimmoe",
        "tokens",
        "of 20/80, 34/66 and 50/50 of the tokens in two stages, half of them in the first is not the best",
        best != "50/50",
        ("loss", ours),
        found,
        against=("50/50",),
        setup=f"{SETUP}; {best} is best",
    )


@pytest.mark.parametrize("batch", [1, 16])
def test_thin_experts_are_faster(batch: int):
    """Tokens per second of a forward pass on the CPU, parent and slim."""
    teacher = lab.mixtral()
    slim = cut(teacher, 0.25, 0)
    example = teacher.example(batch, lab.LENGTH)
    with torch.no_grad():
        pair = latency.compare(lambda: teacher.forward(example), lambda: slim.forward(example), lasting=12.0)
    lab.singly(
        "slimmoe",
        f"latency-{batch}",
        f"a quarter of the experts' width makes a forward pass of {batch} x {lab.LENGTH} tokens faster",
        pair.faster,
        {"speedup": pair.speedup},
        setup=f"{SETUP}; {example['input_ids'].numel() / pair.before.value:.0f} tokens/s of the original, "
        f"{example['input_ids'].numel() / pair.after.value:.0f} of the slim one",
    )
    assert pair.faster


# ------------------------------------------------------------------------------------------------- fine-tuning


RAM = 24 * 2**20
"""Bytes that fine-tuning may hold: weights, gradients, AdamW's two moments, and what a batch of two texts takes."""
NEAR = 0.03
"""How much less accurate than the fine-tuned original is still close to it."""
TUNED = ("parent", "slim")


def tune(student: Moe, seed: int, steps: int = 300) -> Moe:
    """Teach `student` in place which of two genres a sentence is of: 16 texts in each step, two at a time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.jsonl")
        file.write_text("\n".join(map(json.dumps, prompts(False))), "utf-8")
        fed = texts.batches(texts.read(file), student.tokenizer, packed=False, batch=2, length=80, seed=seed)
        objective = lab.balanced(objectives.distil(student.forward, None, output="logits", task=1.0), student)
        loop.train(
            student.model, fed, objective, steps=steps, accumulate=8, lr=1e-3, seed=seed, progress=False
        )  # fmt: skip
    return student


@functools.cache
def tuned(name: str, seed: int) -> dict[str, float]:
    """Accuracy after fine-tuning the original, or what it was slimmed and distilled to, and the bytes that it takes."""

    def compute() -> dict[str, float]:
        student = lab.mixtral() if name == "parent" else ARMS["thin"](seed)
        held = memory.allocated(lambda: tune(student.copy(), seed, steps=2)).value
        return {"held": held, "accuracy": accuracy(tune(student.copy(), seed), prompts(True))}

    return lab.remembered(f"slimmoe-tuned-{name}-{seed}", compute)


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in TUNED for seed in SEEDS])
def test_a_task_is_learnt(name: str, seed: int):
    """One fine-tuning each; the test below reads what came out."""
    assert tuned(name, seed)["accuracy"] > 0.75


def test_the_slim_model_is_fine_tuned_where_the_original_does_not_fit():
    rows = {name: [tuned(name, seed) for seed in SEEDS] for name in TUNED}
    ours, theirs = ([row["accuracy"] for row in rows[name]] for name in ("slim", "parent"))
    small, large = (max(row["held"] for row in rows[name]) for name in ("slim", "parent"))
    lab.record(
        "slimmoe",
        "fine-tuning",
        f"a quarter of the experts' width is fine-tuned within {RAM >> 20} MiB, which the original exceeds, and is at "
        f"most {NEAR:.0%} less accurate than the fine-tuned original",
        small <= RAM < large and sum(theirs) - sum(ours) <= NEAR * len(SEEDS),
        ("accuracy", ours),
        {"the original": theirs},
        lower=False,
        setup=f"{SETUP}; which of two genres a sentence is of, 300 steps of 16 sentences, two at a time; "
        f"{small / 2**20:.1f} MiB of the slim one, {large / 2**20:.1f} MiB of the original",
    )
