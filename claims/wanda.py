"""Wanda (Sun et al.): scores of weight times input norm, on a small Llama trained on Brown."""

from __future__ import annotations

import torch

from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.subjects import Transformer

OPTIONS = {"samples": scaled(128, 8), "length": language.LENGTH}
SETUP = "Llama of 6 layers, width 128, trained on Brown; weights=50%; 128 windows of 64 tokens; loss on held-out Brown"


def loss(
    subject: Transformer, seed: int, recipe: str = "wanda", budget: str = "weights=50%", **options: object
) -> float:
    """Held-out loss after pruning."""
    known = {} if recipe == "magnitude" else {**OPTIONS, "seed": seed, **options}
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
    question="Where channels differ in scale, does Wanda lose less than magnitude at half of the weights?",
    setup=f"{SETUP}; channels rescaled by 1/4 to 4, which changes no output of the original",
    measure="loss",
    unit="nats",
    better="lower",
    ours="Wanda",
    baselines=["magnitude"],
    seeds=range(3),
)
def headline(seed: int) -> Figures:
    uneven = rescaled(language.llama(), seed)
    return {
        "Wanda": loss(uneven, seed),
        "magnitude": loss(uneven, seed, "magnitude"),
        "Wanda, not rescaled": loss(language.llama(), seed),
    }


@claim(
    question="Is it better to compare scores within a row than within a matrix?",
    setup="five Llamas of 4 layers, width 64, trained on Brown from weights of their own; weights=50%",
    measure="loss",
    unit="nats",
    better="lower",
    ours="row",
    baselines=["matrix"],
    seeds=range(5),
)
def rows(seed: int) -> Figures:
    scopes = ("row", "matrix", "global")
    return {scope: loss(language.narrow(seed), seed, scope=scope) for scope in scopes}


@claim(
    question="Are 8 calibration windows enough, to 0.02 nats of 128?",
    setup=SETUP,
    measure="loss",
    unit="nats",
    better="lower",
    margin=0.02,
    ours="8 windows",
    baselines=["128 windows"],
    seeds=range(3),
)
def samples(seed: int) -> Figures:
    return {
        "8 windows": loss(language.llama(), seed, samples=8),
        "128 windows": loss(language.llama(), seed, samples=scaled(128, 16)),
    }
