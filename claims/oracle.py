"""The oracle-pruning check (Feng et al.): what tells the better of many cuts before they are retrained, on digits."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

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


def tau(setting: Ranked, name: str) -> float:
    """Kendall's tau of a proxy with the loss after retraining; 0 where all are equal."""
    proxy = next(one for one in setting.proxies if one.name == name)
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
    question="In the first layer alone, does the loss after the cut tell more where little goes than where much does?",
    setup=f"{SETUP}; all 45 subsets of the first layer at 20 % and at 80 %; tau with the loss after retraining",
    measure="tau",
    better="higher",
    ours="20 % of the first layer",
    baselines=["80 % of the first layer", "the bound of 0.25"],
    seeds=range(5),
    note="the bound is a constant",
)
def single(seed: int) -> Figures:
    return {
        "20 % of the first layer": tau(ranked(seed, "1", "20%"), LOSS),
        "80 % of the first layer": tau(ranked(seed, "1", "80%"), LOSS),
        "the bound of 0.25": 0.25,
    }
