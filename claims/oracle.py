"""The oracle-pruning check (Feng et al.): what tells the better of many cuts before they are retrained, on digits."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from claims._lab import networks
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.studies import oracle
from secateur.studies.oracle import PROXIES, Ranked
from secateur.subjects import open_traced
from secateur.vocabulary import Training

EPOCHS, REPEATS, MOST, SHORT = scaled(15, 3), scaled(3, 1), scaled(200, 20), 2 / 15
SETUP = (
    "MLP 64-10-10-10-10, trained for 200 epochs on 1,000 of scikit-learn's digits, 797 others to judge on; hidden "
    "units removed; 15 epochs of SGD from 0.01 in milestones, 3 repeats averaged, mean of the last 5 epochs; a short "
    "retraining has 2 epochs; each seed has a network and candidates of its own"
)
LOSS, BRIEF = PROXIES["loss"], PROXIES["short"]


@functools.cache
def ranked(seed: int, layers: str, ratio: str) -> Ranked:
    """All or 200 candidates of one setting, as the study ranks them."""
    learn, judge = networks.digits(1000)
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(),
        nn.Linear(10, 10),
    )  # fmt: skip
    networks.trained("oracle-mlp", network, learn, epochs=200, lr=0.1, seed=seed)
    training = Training(epochs=EPOCHS, batch=64, lr=0.01, weight_decay=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        answer = oracle.oracle(
            open_traced(network, learn.inputs[:2]), learn, Path(folder), layers=[layers], ratios=[ratio],
            candidates=MOST, repeats=REPEATS, short=SHORT, seed=seed, judged=judge, training=training, stack=50,
        )  # fmt: skip
    return answer.settings[0]


def tau(setting: Ranked, name: str, what: Literal["loss", "accuracy"] = "loss") -> float:
    """Kendall's tau of a proxy with the loss after retraining, or with the error rate; 0 where all are equal."""
    proxy = next(one for one in setting.proxies if one.name == name)
    if what == "accuracy":
        return -proxy.accuracy.value if proxy.accuracy else 0.0
    return proxy.loss.value if proxy.loss else 0.0


@claim(
    question="With all layers cut, is |tau| of the loss after the cut under 0.3, of short retraining over 0.4?",
    setup=f"{SETUP}; all three layers at 50 %, 200 random candidates; tau with the loss after retraining",
    measure="tau",
    better="higher",
    pairs=[("the bound of 0.3", "loss after the cut, |tau|"), ("short retraining", "the bound of 0.4")],
    seeds=range(5),
    note="the two bounds are constants: both pairs have to hold",
)
def headline(seed: int) -> Figures:
    setting = ranked(seed, "1+3+5", "50%")
    return {
        "loss after the cut, |tau|": abs(tau(setting, LOSS)),
        "short retraining": tau(setting, BRIEF),
        "score l1": tau(setting, "score l1"),
        "the bound of 0.3": 0.3,
        "the bound of 0.4": 0.4,
    }


@claim(
    question="At as many epochs in all, does short retraining pick a better cut than training those of lowest loss?",
    setup=f"{SETUP}; all three layers at 50 %, 200 random candidates; accuracy of the pick on the judged digits",
    measure="accuracy",
    unit="%",
    better="higher",
    ours="short retraining",
    baselines=["lowest losses trained, the best", "lowest loss after the cut", "one at random"],
    seeds=range(5),
    note="200 short retrainings and a whole one cost as much as 27 whole ones of the cuts of lowest loss",
)
def selection(seed: int) -> Figures:
    setting = ranked(seed, "1+3+5", "50%")
    accuracy = 100 * setting.column("full", "accuracy")
    loss_first, trained, brief, *_ = setting.picks().values()
    return {
        "short retraining": float(accuracy[brief]),
        "lowest losses trained, the best": float(accuracy[trained]),
        "lowest loss after the cut": float(accuracy[loss_first]),
        "one at random": float(accuracy[setting.sample].mean()),
        "the best there is": float(accuracy[setting.sample].max()),
    }


@claim(
    question="Does the loss after the cut tell more where one layer is cut a little than where all are cut by half?",
    setup=f"{SETUP}; all 45 subsets of each layer at 20 %, and 200 of all layers at 50 %; tau with the error rate",
    measure="tau",
    better="higher",
    ours="one layer, mean of three",
    baselines=["all layers"],
    seeds=range(5),
)
def single(seed: int) -> Figures:
    one = [tau(ranked(seed, layer, "20%"), LOSS, "accuracy") for layer in ("1", "3", "5")]
    return {
        "one layer, mean of three": sum(one) / 3,
        "first layer": one[0],
        "all layers": tau(ranked(seed, "1+3+5", "50%"), LOSS, "accuracy"),
    }
