"""Wanda at small scale: channels of unequal scale, rows, and what it costs beside SparseGPT."""

from __future__ import annotations

import math

import pytest
import torch

from claims import lab, oneshot
from claims.oneshot import MANY, ORIGINALS, SEEDS, SETUP, loss

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]


def outliers(seed: int):
    """The same function with channels of unequal scale: norm weights times c, what reads them divided by c."""
    subject, draw = lab.llama().copy(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in subject.model.model.layers:
            attention, ffn = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (ffn.gate_proj, ffn.up_proj)),
            ):
                c = torch.exp2(torch.randint(-2, 3, norm.weight.shape, generator=draw).float())
                norm.weight.mul_(c)
                for reader in readers:
                    reader.weight.div_(c)
    return subject


@pytest.mark.parametrize(("name", "budget"), [("outliers", "weights=50%"), ("outliers-pattern", "pattern=2:4")])
def test_channels_of_unequal_scale_do_not_touch_wanda(name, budget):
    ours, theirs = (
        [lab.held_out(oneshot.pruned(recipe, budget, seed, outliers(seed)).subject) for seed in SEEDS]
        for recipe in ("wanda", "magnitude")
    )
    plain = [loss("wanda", budget, seed) for seed in SEEDS]
    lab.record(
        "wanda", name, "rescaled channels, which change no output, leave Wanda as it was and break magnitude",
        max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 0.01 and lab.clearly_less(ours, theirs),
        ("loss, rescaled", ours), {"magnitude, rescaled": theirs, "Wanda on the model as it was": plain},
        against=["magnitude, rescaled"], setup=f"{SETUP}; {budget}",
    )  # fmt: skip


@pytest.mark.parametrize("seed", ORIGINALS)
def test_every_original_learns(seed):
    """One training each, so that a part of the claims takes a minute or two."""
    assert lab.held_out(lab.narrow(seed)) < 0.8 * math.log(lab.narrow(seed).model.config.vocab_size)


ROWS = (
    "at this size matrices are the better scope, 4.365 against 4.381 nats and for each of five models; of two larger "
    "ones one lost less by rows, the other by matrices"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=ROWS)
def test_rows_are_the_right_scope():

    def half(**options):
        students = (oneshot.pruned("wanda", "weights=50%", seed, lab.narrow(seed), **options) for seed in ORIGINALS)
        return [lab.held_out(student.subject) for student in students]

    ours, others = half(), {"matrix": half(scope="matrix"), "global": half(scope="global")}
    others["cumulative"] = half(cumulative=True)
    lab.record(
        "wanda", "scope", "comparing within rows loses no more than comparing within matrices",
        lab.less(ours, others["matrix"]), ("loss", ours), others, against=["matrix"], setup=MANY,
        reason=ROWS, seeds=ORIGINALS,
    )  # fmt: skip


def test_few_windows_are_enough():
    many, few = ([loss("wanda", "weights=50%", seed, samples=count) for seed in SEEDS] for count in (128, 8))
    lab.record(
        "wanda", "samples", "with 8 windows it loses at most 0.02 nats more than with 128",
        all(a - b <= 0.02 for a, b in zip(few, many, strict=True)), ("loss, 8 windows", few), {"128 windows": many},
        setup=SETUP,
    )  # fmt: skip
