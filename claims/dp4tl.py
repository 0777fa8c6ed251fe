"""DP4TL (Zhang et al.): classes of a source that a target votes for; thirty classes of images, digits of other hands.

Each seed is the whole experiment: a source drawn anew, a surrogate and a larger network, other shots of the target.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import small_vision
from claims._lab import kinds
from claims._lab.calling import prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.subjects import open_traced
from secateur.subjects.network.traced import Traced

EPOCHS, PROBE = scaled((10, 60), (1, 1))
SETUP = (
    "source: 60 each of MNIST's ten digits, ten printed letters and ten regions of photographs, 16 x 16; target: 100 "
    "of scikit-learn's digits, 900 others to judge on; surrogate of 2 convolutions, network of 5; 10 epochs of "
    "pre-training"
)
OPTIONS = {
    "batch": 32, "surrogate_epochs": EPOCHS, "epochs": EPOCHS, "lr": 0.05, "probe_epochs": PROBE, "probe_lr": 0.01,
    "tune_epochs": PROBE, "tune_lr": 2e-3,
}  # fmt: skip
SEEDS = range(5)


@functools.cache
def source(seed: int) -> Examples:
    """Thirty classes of images."""
    return kinds.source(scaled(60, 12), seed)


def large(seed: int) -> nn.Module:
    """The network that is pre-trained."""
    return small_vision.vgg((8, "M", 16, 16, "M", 32, 32), classes=30, seed=seed)


def opened(network: nn.Module, seed: int) -> Traced:
    """With an example of the source."""
    return open_traced(network, source(seed).inputs[:2], prove=False)


def save(path: Path, data: Examples) -> str:
    """As users give a target."""
    np.savez(path, inputs=data.inputs.numpy(), labels=data.labels.numpy())
    return str(path)


def transferred(
    seed: int, budget: str, network: nn.Module | None = None, data: Examples | None = None, **options: Any
) -> tuple[dict[str, float], float]:
    """(probe and fine-tuning accuracies on the target in percent, seconds of pre-training)."""
    learnt, judged = kinds.target(100, seed, judged=scaled(True, False))
    subject = opened(large(seed) if network is None else network, seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        file = folder / "surrogate.py"
        built = f"small_vision.vgg((8, 'M', 16, 'M'), classes=30, seed={seed})"
        file.write_text(f"import small_vision\n\n\ndef build():\n    return {built}\n", "utf-8")
        how = {**OPTIONS, "target": save(folder / "target.npz", learnt), "judged": save(folder / "judged.npz", judged)}
        how |= {"surrogate": f"{file}:build", "seed": seed, **options}
        run = folder / "run"
        result = prune_all("dp4tl", subject, source(seed) if data is None else data, [budget], folder=run, **how)[0]
        (told,) = run.rglob("transfer-*.json")
        figures = {name: 100 * value for name, value in json.loads(told.read_text("utf-8")).items()}
    return figures, result.recovery.seconds


def by_score(seed: int, score: str) -> Examples:
    """Half of the source by a score of examples, whatever their class."""
    subject = opened(small_vision.vgg((8, "M", 16, "M"), classes=30, seed=seed), seed)
    how = {"score": score, "balanced": False, "alpha": 1.0, "epochs": 0.1, "batch": 32, "seed": seed}
    runs = {"runs": scaled(5, 1), "score_epochs": scaled(2.0, 0.5)}
    with tempfile.TemporaryDirectory() as place:
        prune_all("kd_data_pruning", subject, source(seed), ["examples=50%"], folder=Path(place), **how, **runs)
        (index,) = Path(place).rglob("kept-*/index.npz")
        return source(seed).take(np.load(index)["kept"])


@claim(
    question="With half of the classes gone, is label mapping better than random, its reverse, GraNd, Moderate?",
    setup=f"{SETUP}; linear probe on the target",
    measure="linear probe",
    unit="%",
    better="higher",
    ours="label mapping",
    baselines=["random", "reverse", "GraNd", "Moderate"],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    figures = {
        "label mapping": transferred(seed, "classes=50%")[0],
        "random": transferred(seed, "classes=50%", order="random")[0],
        "reverse": transferred(seed, "classes=50%", order="reverse")[0],
    }
    for name, score in (("GraNd", "grand"), ("Moderate", "moderate")):
        figures[name] = transferred(seed, "classes=100%", data=by_score(seed, score))[0]
    return figures


@claim(
    question="Do the votes of a small surrogate serve a residual network as well as its own, to 2 points?",
    setup=f"{SETUP}; a residual network; 70 % of the classes gone; linear probe",
    measure="linear probe",
    unit="%",
    better="higher",
    margin=2.0,
    ours="surrogate's votes",
    baselines=["own votes"],
    seeds=SEEDS,
)
def surrogate(seed: int) -> Figures:
    def network() -> nn.Module:
        return small_vision.resnet((8, 16, 32), blocks=1, classes=30, seed=seed)

    return {
        "surrogate's votes": transferred(seed, "classes=30%", network())[0],
        "own votes": transferred(seed, "classes=30%", network(), surrogate="self")[0],
        "random classes": transferred(seed, "classes=30%", network(), order="random")[0],
    }


@claim(
    question="With 70 % of the classes gone, is pre-training 3.3 times faster, to 10 %?",
    setup=SETUP,
    measure="times faster",
    unit="x",
    better="higher",
    margin=0.33,
    ours="measured",
    baselines=["by the share"],
    seeds=range(3),
)
def time(seed: int) -> Figures:
    whole, few = (transferred(seed, f"classes={share}%")[1] for share in (100, 30))
    return {"measured": whole / few, "by the share": 1 / 0.3}
