"""Wanda (Sun et al.): scores of weight times input norm, on small Llamas trained on Brown."""

from __future__ import annotations

import torch

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.subjects import Transformer

OPTIONS = {"samples": scaled(128, 8), "length": language.LENGTH}
SETUP = (
    "five Llamas of 4 layers, width 64, trained on Brown from weights of their own; weights=50%; 128 windows of 64 "
    "tokens; loss on held-out Brown"
)
SEEDS = range(5)
SCOPES = ("row", "matrix", "global")


def loss(subject: Transformer, seed: int, recipe: str = "wanda", **options: object) -> float:
    """Held-out loss after pruning to half of the weights."""
    known = options if recipe == "magnitude" else {**OPTIONS, "seed": seed, **options}
    return language.held_out(prune(recipe, subject, language.training(), "weights=50%", **known).subject)


@torch.no_grad()
def rescaled(subject: Transformer, seed: int) -> Transformer:
    """The same function with channels of unequal scale: norm weights times 2^-2 to 2^2, their readers divided by it."""
    copy, draw = subject.copy(), torch.Generator().manual_seed(seed)
    for layer in copy.model.model.layers:
        attention, ffn = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (ffn.gate_proj, ffn.up_proj)),
        ):
            scale = torch.exp2(torch.randint(-2, 3, norm.weight.shape, generator=draw).float())
            norm.weight.mul_(scale)
            for reader in readers:
                reader.weight.div_(scale)
    return copy


@claim(
    question="At half of the weights, does Wanda lose less than magnitude, compared by row, matrix or model?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="Wanda",
    baselines=["magnitude, row", "magnitude, matrix", "magnitude, global"],
    seeds=SEEDS,
    note=(
        "asked of models as they are trained: the row of 0.1 scaled channels by 1/4 to 4, which magnitude can't see "
        "and Wanda can; those figures stand beside it"
    ),
)
def headline(seed: int) -> Figures:
    subject = language.narrow(seed)
    uneven = rescaled(subject, seed)
    return {
        "Wanda": loss(subject, seed),
        **{f"magnitude, {scope}": loss(subject, seed, "magnitude", scope=scope) for scope in SCOPES},
        "Wanda, channels rescaled": loss(uneven, seed),
        "magnitude, channels rescaled": loss(uneven, seed, "magnitude"),
        "dense": language.held_out(subject),
    }


@claim(
    question="Is it better to compare scores within a row than within a matrix?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    ours="row",
    baselines=["matrix"],
    seeds=SEEDS,
)
def rows(seed: int) -> Figures:
    return {scope: loss(language.narrow(seed), seed, scope=scope) for scope in SCOPES}


@claim(
    question="Are 8 calibration windows enough, to 0.02 nats of 128?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    margin=0.02,
    ours="8 windows",
    baselines=["128 windows"],
    seeds=SEEDS,
)
def samples(seed: int) -> Figures:
    return {
        "8 windows": loss(language.narrow(seed), seed, samples=8),
        "128 windows": loss(language.narrow(seed), seed, samples=scaled(128, 16)),
    }
