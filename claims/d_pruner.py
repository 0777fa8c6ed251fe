"""D-Pruner (Zhang et al.): weights that a domain and general skill need, on small Llamas; genres as domains."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

from assets import packages
from claims._lab import language
from claims._lab.calling import prune
from claims._lab.claim import Figures, claim
from claims._lab.settings import scaled
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.recover.training import objectives
from secateur.subjects import Transformer

DOMAINS = ("learned", "romance")
CALIBRATION = {"samples": scaled(128, 8), "length": language.LENGTH}
OPTIONS = {"general_samples": scaled(128, 8), "samples": scaled(1000, 16), "train_length": language.LENGTH}
SETUP = (
    "Llamas of 4 layers, width 64, each trained on Brown from weights of its own; weights=50%; domains learned and "
    "romance, their mean; open domain the 13 other genres; 128 windows of 64 tokens for baselines and G, 1,000 for the "
    "domain"
)
SEEDS = range(3)
RIVALS = ("Wanda, general", "Wanda, domain", "SparseGPT, general", "SparseGPT, domain")


@functools.cache
def corpus(domain: str, held: bool = False) -> Corpus:
    """Sentences of a genre, or of all genres that are no domain (""), to prune by or to judge on."""
    genres = [domain] if domain else sorted({genre for genre, _ in packages.brown()} - set(DOMAINS))
    chosen = set(language.split()[held].texts)
    return texts.read([text for text in language.brown(*genres).texts if text in chosen])


def perplexity(student: Transformer, domain: str = "") -> float:
    """On what neither training nor calibration has seen."""
    made = texts.batches(
        corpus(domain, held=True), student.tokenizer, packed=True, batch=language.BATCH, length=language.LENGTH
    )
    items = made.take(scaled(24, 2))
    loss = objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=items)
    return math.exp(loss)


@functools.cache
def students(domain: str, seed: int, *names: str) -> dict[str, Transformer]:
    """Name -> the model pruned for a domain in this way."""
    general, own = corpus(""), corpus(domain)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "general.txt")
        file.write_text("\n".join(general.texts), "utf-8")
        dual: dict[str, Any] = {**OPTIONS, "general": str(file), "seed": seed}
        ways: dict[str, tuple[str, Corpus, dict[str, Any]]] = {
            "D-Pruner": ("d_pruner", own, dual),
            "general alone": ("d_pruner", own, {**dual, "by": "general"}),
            "domain alone": ("d_pruner", own, {**dual, "general_weight": 0.0}),
            "Wanda, domain": ("wanda", own, {**CALIBRATION, "seed": seed}),
            "Wanda, general": ("wanda", general, {**CALIBRATION, "seed": seed}),
            "SparseGPT, domain": ("sparsegpt", own, {**CALIBRATION, "seed": seed}),
            "SparseGPT, general": ("sparsegpt", general, {**CALIBRATION, "seed": seed}),
            "magnitude": ("magnitude", own, {}),
        }
        made: dict[str, Transformer] = {}
        for name in names:
            if name == "random":
                made[name] = language.masked_at_random(language.narrow(seed), "weights=50%", seed)
            else:
                recipe, data, options = ways[name]
                made[name] = prune(recipe, language.narrow(seed), data, "weights=50%", **options).subject
        return made


def compare(seed: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Name -> perplexity on the domain, on open text, and their sum; means over both domains."""
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        rows = [(domain, students(domain, seed, *names)[name]) for domain in DOMAINS]
        own = sum(perplexity(student, domain) for domain, student in rows) / len(rows)
        general = sum(perplexity(student) for _, student in rows) / len(rows)
        figures[name] = {"domain perplexity": own, "general perplexity": general, "sum of both": own + general}
    return figures


@claim(
    question="On the domain, does D-Pruner lose less than general importance, that than magnitude, that than chance?",
    setup=SETUP,
    measure="domain perplexity",
    better="lower",
    pairs=[("D-Pruner", "general alone"), ("general alone", "magnitude"), ("magnitude", "random")],
    seeds=SEEDS,
)
def headline(seed: int) -> Figures:
    return compare(seed, ("D-Pruner", "general alone", "magnitude", "random"))


@claim(
    question="On open text, does D-Pruner lose less than the domain's Taylor score alone?",
    setup=SETUP,
    measure="general perplexity",
    better="lower",
    ours="D-Pruner",
    baselines=["domain alone"],
    seeds=SEEDS,
)
def generality(seed: int) -> Figures:
    return compare(seed, ("D-Pruner", "domain alone"))


@claim(
    question="On both texts together, does D-Pruner lose less than Wanda and SparseGPT calibrated on either?",
    setup=SETUP,
    measure="sum of both",
    better="lower",
    ours="D-Pruner",
    baselines=RIVALS,
    seeds=SEEDS,
    note="SparseGPT, which was better in 0.1, had been left out of the rivals",
)
def both(seed: int) -> Figures:
    return compare(seed, ("D-Pruner", *RIVALS))
