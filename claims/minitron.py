"""Minitron (Muralidharan et al.): width and depth by activations, then distillation, on a small Llama of Brown."""

from __future__ import annotations

from typing import Any

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.measure import size
from secateur.subjects import Transformer

STEPS = scaled(80, 4)
SHAPE = "heads=4,neurons=192,channels=96"
OPTIONS = {
    "length": language.LENGTH,
    "train_batch": language.BATCH,
    "lr": 2e-3,
    "shape": SHAPE,
}
SETUP = (
    "one Llama of 6 layers, width 128, 8 query and 2 KV heads, trained on Brown, so that the interval is of draws of "
    "data and of training, not of models; loss on held-out Brown"
)
SEEDS = range(3)


def pruned(seed: int, budget: str = "params=90%", **options: Any) -> Transformer:
    """The recipe's student; of the shape above, unless another is asked for."""
    how = {**OPTIONS, "steps": STEPS, "seed": seed, **options}
    return prune("minitron", language.llama(), language.training(), budget, **how).subject


@claim(
    question="At equal compute, is pruning and distillation better than pruning and training, and than fresh weights?",
    setup=f"{SETUP}; {SHAPE}; 80 steps of distillation, others for as many FLOPs, the teacher's forward pass counted",
    measure="loss",
    unit="nats",
    better="lower",
    ours="distilled",
    baselines=["trained", "fresh, trained", "fresh, distilled"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    teacher = language.llama()
    distilled = pruned(seed)
    item = teacher.example(language.BATCH, language.LENGTH)
    ours, theirs = size.flops(distilled.model, item), size.flops(teacher.model, item)
    longer = round(STEPS * size.training_flops(ours, theirs) / size.training_flops(ours))
    trained = pruned(seed, dry_run=True)
    language.train(trained, longer, seed=seed)
    fresh_trained, fresh_distilled = language.fresh(distilled, seed), language.fresh(distilled, seed)
    language.train(fresh_trained, longer, seed=seed)
    language.train(fresh_distilled, STEPS, seed=seed, teacher=teacher)
    return {
        "distilled": language.held_out(distilled),
        "trained": language.held_out(trained),
        "fresh, trained": language.held_out(fresh_trained),
        "fresh, distilled": language.held_out(fresh_distilled),
    }


@claim(
    question="Before any training, does (L2, mean) activation importance lose less than magnitude and random units?",
    setup=f"{SETUP}; {SHAPE}",
    measure="loss",
    unit="nats",
    better="lower",
    ours="activation",
    baselines=["magnitude", "random"],
    seeds=SEEDS,
)
def importance(seed: int) -> Figures:
    scores = ("activation", "magnitude", "random")
    return {score: language.held_out(pruned(seed, score=score, dry_run=True)) for score in scores}


@claim(
    question="At equal parameters, is it better to prune width than depth, after distillation?",
    setup=f"{SETUP}; 120 steps; as many parameters as with 4 of 6 layers",
    measure="loss",
    unit="nats",
    better="lower",
    ours="width",
    baselines=["depth"],
    seeds=SEEDS,
)
def width(seed: int) -> Figures:
    steps = scaled(120, 4)
    deep = pruned(seed, shape="layers=4", steps=steps)
    budget = f"params={deep.units().cost()['params'] / language.llama().units().cost()['params']:.4%}"
    wide = pruned(
        seed, budget, shape="", axes=["heads", "neurons", "channels"], candidates=scaled(6, 2),
        short_steps=scaled(25, 2), steps=steps,
    )  # fmt: skip
    return {"width": language.held_out(wide), "depth": language.held_out(deep)}
