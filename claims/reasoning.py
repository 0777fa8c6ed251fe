"""When Reasoning Meets Compression: knowledge against reasoning, protected modules, calibration on own thoughts."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from claims._lab import thinkers
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.texts import Corpus
from secateur.methods import diagnosis
from secateur.studies import executor

THINKER = (
    "Llamas of 3 layers, width 64, trained on made schedules of 2 to 4 hours and on facts, with worked thoughts; 40 "
    "held-out questions of each level, and 40 over two facts, greedily"
)
SEEDS = range(3)
SHARES = scaled(tuple(f"{10 * at}%" for at in range(1, 9)), ("30%", "80%"))
SAMPLES, BITS, SHARE = scaled(64, 4), 3, 0.2
DRAWS = scaled(3, 1)


def study(seed: int, texts: Corpus, **options: Any) -> dict[str, Any]:
    """Figures of the study on the model of a seed; `options` see `secateur study reasoning`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        files = thinkers.write_tasks(seed, place / "tasks")
        thinkers.thinker(seed).save(place / "model")
        traces = {"traces": str(thinkers.write_spare(seed, place / "spare"))} if options.pop("own", False) else {}
        if "chosen" in options:
            (place / "protect.json").write_text(json.dumps(options.pop("chosen")), "utf-8")
            options["protect"] = str(place / "protect.json")
        if "rules" in options:
            (place / "rules.json").write_text(json.dumps(options.pop("rules")), "utf-8")
            options["behaviours"] = str(place / "rules.json")
        found = executor.study(
            "reasoning",
            str(place / "model"),
            texts,
            place / "out",
            tasks=[str(file) for file in files],
            length=thinkers.LENGTH,
            samples=SAMPLES,
            batch=128,
            passes=1,
            **traces,
            **options,
        )
    return dict(found.figures)


def score(model: dict[str, Any], kinds: tuple[str, ...] = thinkers.KINDS) -> float:
    """Mean share of right answers over tasks."""
    return mean(model["tasks"][kind]["score"]["value"] for kind in kinds)


@claim(
    question="Under SparseGPT, do facts asked for with a closed book collapse at fewer zeros than easy reasoning does?",
    setup=f"{THINKER}; 10 % to 80 % of zeros; the first share with less than half of the original's score above chance",
    measure="collapse point",
    unit="%",
    better="lower",
    ours="facts",
    baselines=["schedules"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    found = study(seed, thinkers.training(seed), methods=["sparsegpt"], sparsity=SHARES)
    points = {one["task"]: one["point"]["value"] for one in found["collapse"] if not one["group"]}
    return {kind: float(points[kind]) for kind in ("facts", "schedules")}


RULES = {"recalling": ["recall"], "checking": ["check"]}
"""What the thoughts of these models are made of."""


@functools.cache
def ranking(seed: int) -> dict[str, float]:
    """Module -> its importance, by the diagnosis of the study."""
    found = study(seed, thinkers.training(seed), methods=[], diagnose=True, rules=RULES, spans=scaled(60, 6))
    ranked: dict[str, float] = found["diagnosis"]["ranked"]
    return ranked


@claim(
    question="At 3 bits, do modules protected by importance save more right answers than random ones of equal size?",
    setup=f"{THINKER}; rounding to nearest, 3 bits; a fifth of the weights stays; random: mean of three draws",
    measure="right answers",
    unit="share",
    better="higher",
    ours="by importance",
    baselines=["at random", "none"],
    seeds=SEEDS,
)
def protection(seed: int) -> Figures:
    sizes = diagnosis.find_modules(thinkers.thinker(seed))
    ranked = ranking(seed)
    draw = torch.Generator().manual_seed(seed)
    drawn = [dict(zip(sizes, torch.rand(len(sizes), generator=draw).tolist(), strict=True)) for _ in range(DRAWS)]
    scores = []
    for order in (ranked, *drawn):
        chosen = diagnosis.choose_protected(order, sizes, SHARE)
        models = study(seed, thinkers.training(seed), methods=["rtn"], bits=[BITS], chosen=chosen)["models"]
        scores.append((score(models[-1]), score(models[-2])))
    return {
        "by importance": scores[0][0],
        "at random": mean(one for one, _ in scores[1:]),
        "none": scores[0][1],
    }


@claim(
    question="Calibrated on its own thoughts, does a model pruned by SparseGPT reason better than calibrated on prose?",
    setup=f"{THINKER}; half of the weights; 64 windows of 96 tokens of either; prose: plain sentences that tell facts",
    measure="right answers",
    unit="share",
    better="higher",
    ours="own thoughts",
    baselines=["prose"],
    seeds=SEEDS,
)
def traces(seed: int) -> Figures:
    found = study(seed, thinkers.prose(seed), methods=["sparsegpt"], sparsity=["50%"], own=True)["models"]
    kinds = thinkers.KINDS[:1]
    return {
        name: {"right answers": score(model, kinds), **{key: model["cost"][key] for key in ("tokens", "seconds")}}
        for name, model in zip(("original", "prose", "own thoughts"), found, strict=True)
    }
