"""D-Pruner at small scale: a 1.2M-parameter Llama trained on Brown, two genres as domains, the others as open text."""

from __future__ import annotations

import functools
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from claims import lab
from claims.genres import DOMAINS, accuracy, corpus, prompts
from secateur._utils.rundir import Run
from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.recipes.sparse import d_pruner, magnitude, sparsegpt, wanda
from secateur.recover.training import loop, objectives
from secateur.select import weights
from secateur.subjects import Transformer, open_subject
from secateur.subjects.matrices import matrices
from secateur.vocabulary import Budget

pytestmark = [pytest.mark.claim, pytest.mark.timeout(600)]
SEEDS = (0, 1, 2)
SHARES = ("weights=50%", "weights=40%")
HALF = SHARES[0]
CALIBRATION = {"samples": 128, "length": lab.LENGTH}
HOW = {"general_samples": 128, "samples": 1000, "train_length": lab.LENGTH}
MASKS = ("random", "magnitude", "Wanda, general", "Wanda, domain", "SparseGPT's mask, general",
         "SparseGPT's mask, domain", "general alone", "domain alone")  # fmt: skip
SETUP = (
    "Llama-type, 6 layers, width 128, trained on Brown; domains learned and romance, open domain the 13 other genres; "
    f"128 windows of {lab.LENGTH} tokens for baselines and G, 1000 for the domain"
)


@functools.cache
def held_batches(domain: str) -> list[dict[str, torch.Tensor]]:
    tokenizer = lab.llama().tokenizer
    made = texts.batches(corpus(domain, True), tokenizer, packed=True, batch=lab.BATCH, length=lab.LENGTH)
    return made.take(24)


def perplexity(student: Transformer, domain: str = "") -> float:
    """On what neither training nor calibration has seen."""
    loss = objectives.held_out(student.forward, teacher=student.forward, output="logits", batches=held_batches(domain))
    return math.exp(loss)


def open_text(folder: Path) -> str:
    file = folder / "general.txt"
    file.write_text("\n".join(corpus("").texts), "utf-8")
    return str(file)


def pruned(recipe: Any, root: Path, data: Corpus, budgets: Sequence[str] = SHARES, model: Any = None, **options: Any):
    """Budget -> student, all from one run."""
    with Run.open(root, {}) as run:
        wanted = [Budget.parse(budget) for budget in budgets]
        return {found.name: found.subject for found in recipe(model or lab.llama(), data, wanted, run, **options)}


def stays(student: Transformer) -> dict[str, torch.Tensor]:
    return {name: matrix.weight != 0 for name, matrix in matrices(student.model, student.layers()).items()}


def kept(student: Transformer) -> float:
    masks = stays(student).values()
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def masked(masks: dict[str, torch.Tensor]) -> Transformer:
    """The original behind masks."""
    student = lab.llama().copy()
    for name, matrix in matrices(student.model, student.layers()).items():
        matrix.weight.mul_(masks[name])
    return student


def chance(seed: int, budget: str) -> Transformer:
    draw, share = torch.Generator().manual_seed(seed), float(Budget.parse(budget)["weights"].value)
    scores = {name: torch.rand(mask.shape, generator=draw) for name, mask in stays(lab.llama()).items()}
    return masked({name: weights.best(score, share, "matrix") for name, score in scores.items()})


@functools.cache
def table(domain: str, seed: int) -> dict[str, dict[str, list[float]]]:
    """Method -> budget -> perplexity on the domain and on the open domain, on all methods' equal footing."""

    def compute() -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, Transformer]] = {"random": {share: chance(seed, share) for share in SHARES}}
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            found["magnitude"] = pruned(magnitude.magnitude, root / "m", corpus(domain))
            for name, data in (("general", corpus("")), ("domain", corpus(domain))):
                how = {**CALIBRATION, "seed": seed}
                found[f"Wanda, {name}"] = pruned(wanda.wanda, root / f"w-{name}", data, **how)
                found[f"SparseGPT, {name}"] = pruned(sparsegpt.sparsegpt, root / f"s-{name}", data, **how)
                found[f"SparseGPT's mask, {name}"] = {
                    share: masked(stays(one)) for share, one in found[f"SparseGPT, {name}"].items()
                }
            how = {**HOW, "general": open_text(root), "seed": seed}
            found["general alone"] = pruned(d_pruner.d_pruner, root / "g", corpus(domain), by="general", **how)
            found["domain alone"] = pruned(d_pruner.d_pruner, root / "t", corpus(domain), general_weight=0.0, **how)
            found["D-Pruner"] = pruned(d_pruner.d_pruner, root / "d", corpus(domain), **how)
            for name, share, one in ((n, s, one) for n, students in found.items() for s, one in students.items()):
                # Wanda counts in rows, of which it keeps whole weights, and so up to 0.4 % fewer.
                assert abs(kept(one) / float(Budget.parse(share)["weights"].value) - 1) < 0.005, (name, share)
            return {
                name: {share: [perplexity(one, domain), perplexity(one)] for share, one in students.items()}
                for name, students in found.items()
            }

    return lab.remembered(f"d_pruner-{domain}-{seed}", compute)


def column(name: str, place: int | None, budget: str = HALF) -> list[float]:
    """Over seeds, the mean over both domains: perplexity on the domain (0), on the open domain (1), or their sum."""
    rows = [[table(domain, seed)[name][budget] for domain in DOMAINS] for seed in SEEDS]
    return [sum(sum(pair) if place is None else pair[place] for pair in row) / len(DOMAINS) for row in rows]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_baseline_is_pruned_to_the_same_share(domain, seed):
    """Makes the table that the next tests read, one piece at a time."""
    assert table(domain, seed).keys() == {*MASKS, "SparseGPT, general", "SparseGPT, domain", "D-Pruner"}


@pytest.mark.parametrize(("name", "budget"), [("wanda", HALF), ("wanda-40", SHARES[1])])
def test_it_beats_wanda_on_either_text(name, budget):
    ours = column("D-Pruner", None, budget)
    rivals = {rival: column(rival, None, budget) for rival in ("Wanda, general", "Wanda, domain")}
    lab.record(
        "d_pruner", name, f"at {budget} it beats Wanda on general and on domain text, by domain + general perplexity",
        all(lab.clearly_less(ours, rival) for rival in rivals.values()), ("domain + general perplexity", ours), rivals,
        setup=SETUP,
    )  # fmt: skip


def test_the_domain_keeps_more_than_by_general_importance_magnitude_or_chance():
    others = {name: column(name, 0) for name in ("general alone", "magnitude", "random")}
    ours = column("D-Pruner", 0)
    lab.record(
        "d_pruner", "domain", "domain perplexity is lower than by general importance alone, magnitude or chance",
        all(lab.clearly_less(ours, row) for row in others.values()), ("domain perplexity", ours), others, setup=SETUP,
    )  # fmt: skip


def test_general_importance_comes_second_on_the_domain():
    """By a tenth of a point: of another processor's model it is at par with magnitude (52.46 and 52.45)."""
    names = ("general alone", "magnitude", "random")
    rows = {name: column(name, 0) for name in names}
    holds = all(lab.clearly_less(rows[a], rows[b]) for a, b in itertools.pairwise(names))
    lab.record(
        "d_pruner", "domain-order", "domain perplexity: general importance alone < magnitude < random", holds,
        ("domain perplexity", rows.pop("general alone")), rows, setup=SETUP,
    )  # fmt: skip


def test_generality_is_preserved():
    ours, theirs = column("D-Pruner", 1), column("domain alone", 1)
    lab.record(
        "d_pruner", "general", "general perplexity is lower than by the domain's Taylor score alone",
        lab.clearly_less(ours, theirs), ("general perplexity", ours), {"domain alone": theirs}, setup=SETUP,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "budget"), [("masks", HALF), ("masks-40", SHARES[1])])
def test_it_is_the_best_of_all_masks(name, budget):
    """Methods that change weights stand beside it and are not compared."""
    dense = {domain: perplexity(lab.llama(), domain) for domain in (*DOMAINS, "")}

    def increase(method: str) -> list[float]:
        found = []
        for seed in SEEDS:
            pairs = [(domain, *table(domain, seed)[method][budget]) for domain in DOMAINS]
            both = [(a / dense[domain] - 1, b / dense[""] - 1) for domain, a, b in pairs]
            found.append(100 * sum(map(sum, both)) / (2 * len(DOMAINS)))
        return found

    ours = increase("D-Pruner")
    rivals = {method: increase(method) for method in (*MASKS, "SparseGPT, general", "SparseGPT, domain")}
    lab.record(
        "d_pruner", name, f"at {budget} its mean increase of domain and general perplexity is the least of all masks",
        all(lab.less(ours, rivals[method]) for method in MASKS), ("% increase of perplexity", ours), rivals,
        against=MASKS, setup=f"{SETUP}; SparseGPT itself changes weights and is not compared",
    )  # fmt: skip


@functools.cache
def crossed(seed: int) -> dict[str, Any]:
    """Perplexity of each domain's model on each domain, and how much the masks have in common."""

    def compute() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            how = {**HOW, "general": open_text(Path(folder)), "seed": seed, "budgets": [HALF]}
            found = {d: pruned(d_pruner.d_pruner, Path(folder, d), corpus(d), **how)[HALF] for d in DOMAINS}
        first, second = (stays(found[domain]) for domain in DOMAINS)
        both = sum(int((first[name] & second[name]).sum()) for name in first)
        either = sum(int((first[name] | second[name]).sum()) for name in first)
        return {
            "jaccard": both / either,
            **{f"{a} on {b}": perplexity(found[a], b) for a in DOMAINS for b in DOMAINS},
        }

    return lab.remembered(f"d_pruner-crossed-{seed}", compute)


def test_a_model_for_one_domain_is_worse_on_the_other():
    rows = [crossed(seed) for seed in SEEDS]
    own = [sum(row[f"{d} on {d}"] for d in DOMAINS) / 2 for row in rows]
    other = [sum(row[f"{a} on {b}"] for a, b in (DOMAINS, DOMAINS[::-1])) / 2 for row in rows]
    better = all(
        lab.clearly_less([row[f"{d} on {d}"] for row in rows], [row[f"{o} on {d}"] for row in rows])
        for d, o in (DOMAINS, DOMAINS[::-1])
    )
    overlaps = ", ".join(f"{row['jaccard']:.3f}" for row in rows)
    lab.record(
        "d_pruner", "crossed", "masks of two domains differ, and each domain is kept best by its own",
        better and all(row["jaccard"] < 1 for row in rows), ("perplexity, own domain", own),
        {"perplexity, the other domain's mask": other}, setup=f"{SETUP}; Jaccard of the masks {overlaps}",
    )  # fmt: skip


WEIGHTS = (0.0, 0.1, 1.0, 10.0, 100.0, 1e8)


def overlap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Share of what the one keeps that the other keeps too, at half of each matrix."""
    first, second = ({n: weights.best(s, 0.5, "matrix") for n, s in one.items()} for one in (a, b))
    return sum(int((first[n] & second[n]).sum()) for n in first) / sum(int(mask.sum()) for mask in first.values())


@functools.cache
def swept(seed: int) -> dict[str, Any]:
    """Overlap of masks with that of weight 0, for growing weights; at last with G g^2 |w| and with G."""

    def compute() -> dict[str, Any]:
        model, domain = lab.llama(), DOMAINS[0]
        names = list(stays(model))
        windows = texts.windows(corpus(""), model.tokenizer, 64, lab.LENGTH, seed=seed)[0]
        made = texts.batches(
            corpus(domain), model.tokenizer, packed=True, batch=lab.BATCH, length=lab.LENGTH, seed=seed
        )
        items = made.take(16)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "g").mkdir()
            d_pruner.general_importance(model, windows, root / "g", root / "beside")
            G = d_pruner.open_scores(root / "g", model.layers())
            found, changes = [], []
            for number, weight in enumerate(WEIGHTS):
                place = root / str(number)
                told = d_pruner.dual_importance(
                    model, items, G, place, root / f"beside-{number}", steps=16, every=16, samples=10**12,
                    weight=weight, lr=0.0,
                )  # fmt: skip
                read = d_pruner.open_scores(place, model.layers())
                found.append({name: read(name) for name in names})
                changes.append(told["change"])
            limit = {name: torch.zeros(found[0][name].shape) for name in names}
            copy = model.copy()
            held = matrices(copy.model, copy.layers())
            objective = objectives.distil(copy.forward, None, output="logits", task=1.0)
            parameters = [held[name].parameter.requires_grad_(True) for name in names]
            for item in items:
                gradients = torch.autograd.grad(objective(item, objectives.count(item))[0], parameters)
                for name, g in zip(names, gradients, strict=True):
                    # Each step's term is measured in the root mean square of that step's gradient.
                    limit[name] += G(name) * g.square() / g.square().mean().sqrt() * held[name].weight.abs()
            return {
                "overlap": [overlap(found[0], one) for one in found],
                "limit": overlap(found[-1], limit),
                "general": overlap(found[-1], {name: G(name) for name in names}),
                "change": changes,
            }

    return lab.remembered(f"d_pruner-swept-{seed}", compute)


def test_the_ranking_moves_from_the_domain_to_general_importance():
    rows = [swept(seed) for seed in SEEDS]
    falls = all(row["overlap"][0] == 1.0 and all(a > b for a, b in itertools.pairwise(row["overlap"])) for row in rows)
    shown = "; ".join(
        f"weight {weight:g}: overlap {sum(row['overlap'][i] for row in rows) / len(rows):.3f}, gradient changed by "
        f"{sum(row['change'][i] for row in rows) / len(rows):.2g}"
        for i, weight in enumerate(WEIGHTS)
    )
    lab.record(
        "d_pruner", "sweep",
        "with the general weight the overlap with the domain's mask falls steadily, towards G g^2 |w| and not G alone",
        falls and all(row["limit"] > 0.99 > row["general"] for row in rows),
        ("overlap with G g^2 |w| at the largest weight", [row["limit"] for row in rows]),
        {"overlap with G at the largest weight": [row["general"] for row in rows]}, lower=False,
        setup=f"{SETUP}; frozen weights, 128 sequences; {shown}",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- a task with labels


@functools.cache
def labelled(seed: int) -> dict[str, float]:
    """Accuracy of a model that has learnt the task, and of what is left of it under each mask."""

    def compute() -> dict[str, float]:
        model = open_subject(lab.llama().copy().model, tokenizer=lab.llama().tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "prompts.jsonl")
            file.write_text("\n".join(map(json.dumps, prompts(False))), "utf-8")
            data = texts.read(file)
            fed = texts.batches(data, model.tokenizer, packed=False, batch=16, length=80, seed=seed)
            objective = objectives.distil(model.forward, None, output="logits", task=1.0)
            loop.train(model.model, fed, objective, steps=300, lr=1e-3, seed=seed, progress=False)
            how = {
                **HOW,
                "general": open_text(Path(folder)),
                "seed": seed,
                "budgets": [SHARES[1]],
                "model": model,
                "train_length": 96,
            }
            students = {
                "original": model,
                "D-Pruner": pruned(d_pruner.d_pruner, Path(folder, "d"), data, packed=False, **how)[SHARES[1]],
                "general alone": pruned(d_pruner.d_pruner, Path(folder, "g"), data, by="general", **how)[SHARES[1]],
            }
            return {name: accuracy(student, prompts(True)) for name, student in students.items()}

    return lab.remembered(f"d_pruner-labelled-{seed}", compute)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_model_has_learnt_the_task(seed):
    assert labelled(seed)["original"] > 0.75


EASY = (
    "telling the two genres apart bears both masks at 40 % (0.948 by D-Pruner, 0.934 by general importance alone, "
    "0.952 unpruned; 0.013 [-0.025, 0.052] apart): there is next to nothing to keep that the other loses"
)


@pytest.mark.xfail(strict=True, raises=AssertionError, reason=EASY)
def test_a_task_of_the_domain_keeps_more_accuracy_than_by_general_importance():
    rows = [labelled(seed) for seed in SEEDS]
    ours, theirs = ([row[name] for row in rows] for name in ("D-Pruner", "general alone"))
    lab.record(
        "d_pruner", "task", "a labelled task keeps more accuracy than under the mask of general importance alone",
        lab.clearly_less([-v for v in ours], [-v for v in theirs]), ("accuracy", ours),
        {"general alone": theirs, "original": [row["original"] for row in rows]}, lower=False,
        against=["general alone"],
        setup=f"{SETUP}; which of the two genres a sentence is of, by prompt; {SHARES[1]}",
        reason=EASY,
    )  # fmt: skip
