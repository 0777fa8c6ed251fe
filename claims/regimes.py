"""Three regimes of pruning (Zhou et al.): is what siblings advise better to prune than full training?"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

import small_vision
from claims._lab import networks
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data.examples import Examples
from secateur.runs import keywords
from secateur.runs.regime_map import RegimeMap
from secateur.studies.regimes import regimes
from secateur.subjects import open_traced

DENSITIES = scaled((0.02, 0.1, 0.8), (0.1, 0.8))
EPOCHS = scaled(40, 2)
TEMPERATURES = tuple(EPOCHS * part / 8 for part in (1, 2, 8))
SETUP = (
    "VGG 16-M-32-32-M-32-32 with batch norm, 1,000 MNIST digits of 14 x 14 with 15 % wrong labels, 1,000 rightly "
    "labelled to test; one dense run of 40 epochs of SGD from 0.1 with checkpoints at 5, 10 and 40; 2, 10 and 80 % of "
    "each layer's weights by magnitude; 2 siblings, retrained as the dense run; paths of 5 points; each seed has a "
    "dense run of its own"
)
# A pilot with 8 epochs of retraining had no barriers anywhere: siblings must have the time to part.


@functools.cache
def data() -> tuple[Examples, Examples]:
    """MNIST, with wrong labels in the part that is learnt from."""
    return networks.mnist(1000, 1000, flip=0.15, size=14)


@functools.cache
def measured(seed: int) -> RegimeMap:
    """The map of one dense run."""
    train, judged = data()
    network = small_vision.vgg((16, "M", 32, 32, "M", 32, 32))
    options = {
        "temperatures": TEMPERATURES,
        "densities": DENSITIES,
        "siblings": 2,
        "seeds": (seed,),
        "judged": judged,
        "epochs": EPOCHS,
        "batch": 64,
        "lr": 0.1,
        "points": 5,
    }
    checked = keywords.check_options(regimes, options)
    with tempfile.TemporaryDirectory() as folder:
        return regimes(open_traced(network.eval(), train.inputs[:2], prove=False), train, Path(folder), **checked)


def accuracies(seed: int) -> dict[str, list[float]]:
    """Rule -> accuracy in percent of the network that it prunes, at each density."""
    found = measured(seed)
    places = [found.choices(column) for column in range(len(found.densities))]
    result: dict[str, list[float]] = {}
    for rule in places[0]:
        errors = [
            found.errors(int(choice[rule] or 0), at)[0] for choice, at in zip(places, found.densities, strict=True)
        ]
        result[rule] = [100 * (1 - error) for error in errors]
    result["a random checkpoint"] = (100 * (1 - found.error_table().mean(0))).tolist()
    return result


@claim(
    question="Where it loses most, is the network that siblings advise no worse than full training, to 0.5 points?",
    setup=f"{SETUP}; accuracy at the density where the advice gains least on full training",
    measure="accuracy",
    unit="%",
    better="higher",
    margin=0.5,
    ours="advice",
    baselines=["full training"],
    seeds=range(3),
    note="the advice sees no test error; where it stays with full training the two are one network",
)
def headline(seed: int) -> Figures:
    found = accuracies(seed)
    worst = int(np.argmin(np.subtract(found["advice"], found["usual training"])))
    named = {"full training" if rule == "usual training" else rule: one[worst] for rule, one in found.items()}
    return named


@claim(
    question="Is the network that siblings advise better than full training at more than half of the densities?",
    setup=f"{SETUP}; share of densities with a higher accuracy",
    measure="densities",
    unit="%",
    better="higher",
    ours="advice",
    baselines=["half"],
    seeds=range(3),
)
def most(seed: int) -> Figures:
    found = accuracies(seed)
    better = np.greater(found["advice"], found["usual training"])
    best = np.greater(found["best on the map"], found["usual training"])
    return {"advice": 100 * float(better.mean()), "half": 50.0, "best on the map": 100 * float(best.mean())}


@claim(
    question="Of several checkpoints, is the connected and most alike one better to prune than the most accurate one?",
    setup=f"{SETUP}; mean accuracy over densities",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="connected and most alike",
    baselines=["most accurate before pruning", "a random checkpoint"],
    seeds=range(3),
)
def several(seed: int) -> Figures:
    return {rule: float(np.mean(one)) for rule, one in accuracies(seed).items()}
