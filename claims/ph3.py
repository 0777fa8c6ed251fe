"""PH3 (Jin et al.): heads of the memory and of the context, on GPT-2s that know made-up facts and copy."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from assets import facts
from claims._lab.calling import prune_all
from claims._lab.claim import Figures, claim
from claims._lab.settings import PILOT, scaled
from secateur._utils.rundir import read_tensors
from secateur.data import conflicts as reading
from secateur.data import texts
from secateur.data.conflicts import Conflicts
from secateur.measure import quality, statistics
from secateur.methods import conflicts
from secateur.subjects import Transformer, open_subject
from secateur.subjects.transformer import heads as switching

Trust = Literal["context", "memory"]
SIDES: tuple[Trust, ...] = ("context", "memory")
RATIOS = "3%,6%,9%,15%,25%"
"""Of 32 heads: 1, 2, 3, 5 and 8; each arm has the one that is best for it on subjects set aside."""
ARMS = {"path patching": "patching", "gradient": "gradient", "magnitude": "magnitude", "random": "random"}
SETUP = (
    "GPT-2 of 4 layers with 8 heads, width 64, that learnt 320 facts on 160 subjects, copying and Brown, and is "
    "undecided in conflicts; 1 to 8 heads go, how many by subjects set aside"
)


def world(seed: int) -> facts.World:
    """What a model learns; a pilot's facts are others."""
    return facts.World(
        subjects=160, held=40, strangers=400, objects=16, words=1000, layers=4, heads=8, width=64, steps=1500, batch=64,
        lr=4e-3, seed=1000 + seed if PILOT else seed,
    )  # fmt: skip


@functools.cache
def model(seed: int) -> Transformer:
    """The trained model, kept in the cache."""
    subject = open_subject(facts.model_folder(world(seed)))
    assert isinstance(subject, Transformer)
    return subject


@functools.cache
def prompts(seed: int, held: bool) -> Conflicts:
    """Prompts on the facts that it knows, of subjects that were in conflicts, or of those held out of them."""
    with tempfile.TemporaryDirectory() as folder:
        table = reading.read(facts.write_table(world(seed), Path(folder, "facts.jsonl"), held=held))
    assert isinstance(table, reading.Facts)
    made = conflicts.build(table, model(seed).tokenizer)
    return conflicts.keep_known(model(seed), made)


def rate(student: Transformer, data: Conflicts, trust: Trust) -> float:
    """Percent of the answers that come from the trusted source."""
    return 100 * conflicts.rates(student, conflicts.encode(data, student.tokenizer))[f"{trust}_rate"].value


def pruned(seed: int, trust: Trust, score: str, folder: Path | None = None, **options: object) -> Transformer:
    """The recipe's model; its files go to `folder`, if one is given."""
    how = {"trust": trust, "score": score, "ratios": RATIOS, "seed": seed, **options}
    student = prune_all("ph3", model(seed), prompts(seed, False), ["heads=99%"], folder=folder, **how)[0].subject
    assert isinstance(student, Transformer)
    return student


def same_layers(seed: int, trust: Trust) -> Transformer:
    """The model without random heads, as many in each layer as path patching takes there."""
    with tempfile.TemporaryDirectory() as folder:
        pruned(seed, trust, "patching", folder=Path(folder, "run"))
        gone = switching.read_lists(Path(folder, "run", "heads.json"))[f"trust-{trust}"]
    counts = {layer: count for layer, (_, count) in switching.find_outputs(model(seed)).items()}
    draw, chosen = np.random.default_rng([seed, 2]), list[switching.Head]()
    for layer, many in sorted(Counter(layer for layer, _ in gone).items()):
        chosen += [(layer, int(head)) for head in draw.permutation(counts[layer])[:many]]
    return switching.cut_heads(model(seed), chosen)[0]


def loss(student: Transformer) -> float:
    """Nats per word of Brown that was not learnt from."""
    corpus = texts.read(facts.sentences(held=True)[: scaled(600, 60)])
    return quality.loss(
        student.forward, texts.batches(corpus, student.tokenizer, packed=True, batch=8, length=32)
    ).value


@claim(
    question="Do heads by path patching raise the trusted source's rate more than gradient, magnitude and chance?",
    setup=f"{SETUP}; rate on held-out subjects, mean of trusting the context and trusting the memory",
    measure="trusted",
    unit="%",
    better="higher",
    ours="path patching",
    baselines=["gradient", "magnitude", "random", "random in the same layers", "uncut"],
    seeds=range(5),
)
def headline(seed: int) -> Figures:
    held = prompts(seed, True)
    found = {"uncut": {"trusted": float(np.mean([rate(model(seed), held, side) for side in SIDES]))}}
    found["uncut"]["loss on Brown"] = loss(model(seed))
    for arm, score in {**ARMS, "random in the same layers": ""}.items():
        students = {side: pruned(seed, side, score) if score else same_layers(seed, side) for side in SIDES}
        found[arm] = {f"{side}": rate(student, held, side) for side, student in students.items()}
        found[arm]["trusted"] = float(np.mean([found[arm][side] for side in SIDES]))
        found[arm]["loss on Brown"] = float(np.mean([loss(student) for student in students.values()]))
        items = conflicts.encode(held, model(seed).tokenizer)
        plain = [conflicts.rates(student, items)["no_conflict_rate"].value for student in students.values()]
        found[arm]["no conflict"] = 100 * float(np.mean(plain))
    return found


@claim(
    question="Do two disjoint sets of 200 prompts rank the heads more alike than two of 4?",
    setup=f"{SETUP.split(';')[0]}; Spearman correlation of all heads' scores between two sets without a common subject",
    measure="correlation",
    unit="",
    better="higher",
    ours="200 prompts",
    baselines=["4 prompts"],
    seeds=range(5),
)
def steadiness(seed: int) -> Figures:
    first, second = prompts(seed, False).split(0.5, seed=seed)
    return {f"{count} prompts": alike(seed, first, second, count) for count in (200, 4)}


def alike(seed: int, first: Conflicts, second: Conflicts, count: int) -> float:
    """Spearman correlation of the scores from `count` prompts of each part."""
    scores = []
    for part in (first, second):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "run")
            prune_all("ph3", model(seed), part, ["heads=90%"], folder=place, samples=min(count, len(part)), seed=seed)
            table = read_tensors(place / "work" / "scores.safetensors")
        order = sorted(name for name in table if name.startswith("layers."))
        scores.append(np.concatenate([table[name].numpy() for name in order]))
    return statistics.spearman(*(row.tolist() for row in scores)).value


@claim(
    question="Do heads scored on one relation move the answers on another by more than by gradient and chance?",
    setup=f"{SETUP}; scored and chosen on capitals alone, rate on languages of held-out subjects, mean of both sides",
    measure="trusted",
    unit="%",
    better="higher",
    ours="path patching",
    baselines=["gradient", "random", "uncut"],
    seeds=range(5),
)
def transfer(seed: int) -> Figures:
    held = prompts(seed, True).choose(relation="language")
    found = {"uncut": float(np.mean([rate(model(seed), held, side) for side in SIDES]))}
    for arm in ("path patching", "gradient", "random"):
        rates = [rate(pruned(seed, side, ARMS[arm], relation="capital"), held, side) for side in SIDES]
        found[arm] = float(np.mean(rates))
    return found
