"""SliceGPT (Ashkboos et al.): the residual stream in its principal components, on small Llamas of Brown."""

from __future__ import annotations

from claims._lab import language, timing
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.subjects import Transformer

OPTIONS = {"samples": scaled(128, 16), "length": language.LENGTH, "train_length": language.LENGTH}
BUDGET = "params=80%"
LLAMAS = "Llamas of 4 layers, width 64, trained on Brown from weights of their own"
SETUP = f"{LLAMAS}; {BUDGET}; 128 windows of 64 tokens; loss on held-out Brown"
SEEDS = range(3)


def sliced(seed: int, subject: Transformer, budget: str = BUDGET, **options: object) -> Transformer:
    """The recipe's student."""
    how = {**OPTIONS, "seed": seed, **options}
    return prune("slicegpt", subject, language.training(), budget, **how).subject


def loss(seed: int, **options: object) -> float:
    """Held-out loss of the student of the seed's own model."""
    return language.held_out(sliced(seed, language.narrow(seed), **options))


@claim(
    question="At equal size, does slicing principal components lose less than channels and random directions?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="pca",
    baselines=["none", "random"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return {rotation: loss(seed, rotation=rotation) for rotation in ("pca", "none", "random")}


@claim(
    question="At equal size, is one width at all points better than widths by variance?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="constant",
    baselines=["variance"],
    seeds=SEEDS,
)
def constant(seed: int) -> Figures:
    return {widths: loss(seed, widths=widths) for widths in ("constant", "variance")}


@claim(
    question="Is a model of 70 % of the FLOPs 1.2 times as fast?",
    setup="Llama of 6 layers, width 128, trained on Brown; batch 16, 64 tokens, one thread",
    measure="speedup",
    unit="x",
    better="higher",
    ours="sliced",
    baselines=["1.2 times"],
    seeds=SEEDS,
)
def latency(seed: int) -> Figures:
    teacher = language.llama()
    student = sliced(seed, teacher, "flops=70%")
    example = teacher.example(16, language.LENGTH)
    faster = timing.speedup(lambda: teacher.forward(example), lambda: student.forward(example))
    return {"sliced": faster, "1.2 times": 1.2}
