"""LLM-KICK (Jaiswal et al.): what perplexity hides, on small Llamas that know facts by heart."""

from __future__ import annotations

import functools
import tempfile
from math import log
from pathlib import Path
from statistics import mean

from claims._lab import knowledge, language
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.runs.compression import DENSE, Config
from secateur.runs.scoring import Held, Model, score_model

SETUP = (
    "Llama of 5 layers, width 128, trained on Brown, 480 invented facts in three wordings and reading questions; of "
    "its own world and weights"
)
SHARES = scaled(("20%", "30%", "40%", "50%", "60%", "70%"), ("30%", "60%"))


@functools.cache
def scored(seed: int, method: str, amount: str, recover: int = 0) -> Model:
    """What a compressed model answers, and its perplexity on Brown."""
    subject = knowledge.subject(seed)
    config = Config(method, amount, samples=scaled(64, 8)) if method else DENSE
    held = Held(*language.split(), language.LENGTH)
    tasks = [knowledge.closed_book(seed), knowledge.open_book(seed)]
    with tempfile.TemporaryDirectory() as folder:
        return score_model(subject, config, tasks, held, Path(folder), recover=recover, batch=64)


def score(model: Model, task: str) -> float:
    """Mean over items."""
    return mean(float(line.score or 0.0) for line in model.lines[task])


def kept(seed: int, amount: str, task: str, recover: int = 0, method: str = "wanda") -> float:
    """Score of a pruned model over the original's."""
    return score(scored(seed, method, amount, recover), task) / max(1e-9, score(scored(seed, "", ""), task))


def perplexity(seed: int, amount: str, recover: int = 0) -> float:
    """Of a model pruned by Wanda, or the original's for no amount."""
    return scored(seed, "wanda" if amount else "", amount, recover).figures["perplexity"].value


@claim(
    question="Where perplexity is up by less than 10 %, are more than 5 % of the facts gone?",
    setup=f"{SETUP}; Wanda at 20 to 70 %, the largest share of zeros with a perplexity on held-out Brown below 1.1 "
    "times the original's; closed-book answers over the original's, questions that were never asked in training",
    measure="facts kept",
    unit="",
    better="lower",
    ours="where perplexity says fine",
    baselines=["95 %"],
    seeds=range(3),
)
def headline(seed: int) -> Figures:
    whole = perplexity(seed, "")
    fine = [amount for amount in SHARES if perplexity(seed, amount) < 1.1 * whole]
    # Where perplexity calls nothing fine, nothing goes, and all facts stay.
    return {"where perplexity says fine": kept(seed, fine[-1], "closed book") if fine else 1.0, "95 %": 0.95}


@claim(
    question="Does a pruned model keep more of what it reads in a text than of what it knows by heart?",
    setup=f"{SETUP}; Wanda at 20 to 70 %, mean of scores over the original's",
    measure="answers kept",
    unit="",
    better="higher",
    ours="open book",
    baselines=["closed book"],
    seeds=range(3),
)
def books(seed: int) -> Figures:
    return {task: mean(kept(seed, amount, task) for amount in SHARES) for task in ("open book", "closed book")}


@claim(
    question="Do 100 steps of LoRA distillation on Brown win back less of the lost facts than of the lost perplexity?",
    setup=f"{SETUP}; Wanda at 60 %; adapters of rank 8, 100 steps of 8 x 64 tokens; share of what was lost, perplexity "
    "by its logarithm",
    measure="share won back",
    unit="",
    better="lower",
    ours="facts",
    baselines=["perplexity"],
    seeds=range(3),
)
def recovery(seed: int) -> Figures:
    amount, steps = "60%", scaled(100, 3)
    losses = [log(perplexity(seed, *how)) for how in (("",), (amount,), (amount, steps))]
    facts = [1.0, kept(seed, amount, "closed book"), kept(seed, amount, "closed book", steps)]
    return {
        "facts": (facts[2] - facts[1]) / max(1e-9, facts[0] - facts[1]),
        "perplexity": (losses[1] - losses[2]) / max(1e-9, losses[1] - losses[0]),
    }
