"""Every recipe obeys the laws of `secateur.conformance` on a toy: a language model, a classifier or a detector."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

import keeper
import small_vision as vision
import tiny
import yolo
from recipes.data import test_dp4tl as transferred
from recipes.vision import nets
from secateur import conformance, recipes
from secateur._utils.rundir import Run
from secateur.clients.stores import Embedded
from secateur.data import masking, texts
from secateur.data.examples import Examples
from secateur.measure.quality import perplexity
from secateur.runs import backends
from secateur.runs.backends.network import Network
from secateur.subjects import (
    ExampleSet,
    Facts,
    KnowledgeGraph,
    Page,
    Passages,
    Traced,
    Transformer,
    open_page,
    open_passages,
    open_subject,
    open_traced,
)
from secateur.subjects.graph.knowledge_graph import Line
from secateur.subjects.network import detectors
from secateur.vocabulary import Budget, Result

# Recipe -> the toy: kind of model, budget, and options that make it quick. Others run as they are on the default.
DEFAULT = ("llama", "params=75%", {})
TOYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ast": ("llama", "pattern=2:4", {"steps": 20, "refresh": 5, "length": 16, "train_batch": 8, "slorb": 8}),
    "minitron": (
        "llama",
        "params=75%",
        {"steps": 0, "short_steps": 0, "calibration": 64, "length": 16, "train_batch": 8, "candidates": 3},
    ),
    "magnitude": ("llama", "weights=50%", {}),
    "romanian_distilberts": ("masked", "params=80%", {"steps": 40, "length": 16, "train_batch": 8, "lr": 3e-3}),
    "owl": ("llama", "weights=40%", {"samples": 24, "length": 16, "times": 2.0}),
    "slimmoe": ("mixtral", "params=70%", {"steps": 0, "calibration": 64, "length": 16}),
    "sparsegpt": ("llama", "weights=50%", {"samples": 24, "length": 16}),
    "wanda": ("llama", "weights=50%", {"samples": 24, "length": 16}),
    "d_pruner": (
        "llama",
        "weights=50%",
        {"general": "general.txt", "general_samples": 16, "samples": 64, "train_batch": 8, "train_length": 16},
    ),
    "stun": ("mixtral", "weights=60%", {"seen": 32, "samples": 32, "length": 16}),
    "ziplm": ("bert", "params=75%", {"steps": 0, "calibration": 32, "trials": 4, "judged": 16}),
}
LAWS = {"card", "within budget", "original untouched", "repeats", "resumes", "beats chance", "refuses"}


@functools.cache
def taught(kind: str) -> PreTrainedModel:
    return tiny.taught(tiny.model(kind))


# The same for recipes on networks: kind of network, budget, options.
DEFAULT_NETWORK = ("classifier", "channels=60%", {"epochs": 6, "batch": 24})
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpusq_vit": (
        "vit",
        "pattern=2:4",
        {"epochs": 3, "quantise_epochs": 2, "batch": 24, "lr": 1e-3, "quantise_lr": 2e-4, "least": 8},
    ),
    "rethinking_pruning_value": ("classifier", "channels=60%", {"epochs": 4, "batch": 24, "scratch": "E"}),
    "yolov4_group_sad": (
        "detector",
        "channels=60%",
        {
            "batch": 8,
            "judged": 1,
            "layer_keep": 0.0,
            "least": 2,
            "sparse_epochs": 4,
            "finetune_epochs": 8,
            "distil_epochs": 8,
        },
    ),
    "yolov8_cwd": (
        "detector",
        "channels=60%",
        {"batch": 8, "least": 2, "sparse_epochs": 4, "finetune_epochs": 8, "distil_epochs": 8},
    ),
}
IN_CONTEXT = {
    name: next(iter(get_type_hints(recipes.find(name)).values()))
    for name, card in recipes.cards().items()
    if card["family"] == "context"
}
ON_DATA = {name for name, card in recipes.cards().items() if card["family"] == "data"}
"""What they cut is what a network is trained on; tests of their own are below."""
ON_MODELS = [name for name in recipes.cards() if name not in IN_CONTEXT and name not in ON_DATA]
ON_NETWORKS = [name for name in ON_MODELS if isinstance(backends.of_recipe(recipes.find(name)), Network)]


@pytest.mark.parametrize("name", ON_NETWORKS)
def test_recipes_on_networks(name: str) -> None:
    kind, budget, options = NETWORKS.get(name, DEFAULT_NETWORK)
    if kind in ("classifier", "vit"):
        data, held_out = nets.data(240), nets.data(200, seed=5)
        model = nets.vgg() if kind == "classifier" else nets.vit()
        how = {} if kind == "classifier" else {"optimizer": "adamw", "lr": 2e-3, "warmup": 0.1}
        vision.fit(model, data, epochs=12, batch=24, **how)
        subject = open_traced(model, data.inputs[:2])

        def quality(one: Traced) -> float:
            return vision.accuracy(one.model, held_out)
    else:
        data, held_out = yolo.squares(32), yolo.squares(32, seed=5)
        subject = detectors.open_detector(yolo.tiny(), data.inputs[:1])

        def quality(one: Traced) -> float:
            with torch.no_grad():
                return -float(one.model.eval().loss(held_out.batch()))

    def output(one: Traced) -> torch.Tensor:
        found = one.forward(data.inputs[:8])
        return torch.cat([part.detach().flatten() for part in tree_leaves(found)])

    laws = conformance.check_recipe(name, subject, data, budget, options=options, quality=quality, output=output)
    assert set(laws) == LAWS


def test_a_recipe_on_examples() -> None:
    """What is cut is the training set: its student has to beat one of equally many examples, by chance and alone."""
    data, held_out, name = nets.data(240), nets.data(200, seed=5), "kd_data_pruning"
    wrong = torch.rand(240, generator=torch.Generator().manual_seed(3)) < 0.3
    data = replace(data, labels=torch.where(wrong, torch.arange(240) % 4, data.labels))
    model, recipe = nets.vgg(), recipes.find(name)
    vision.fit(model, data, epochs=6, batch=24)
    teacher = open_traced(model, data.inputs[:2])
    students: dict[int, torch.nn.Module] = {}

    def on_examples(
        subject: ExampleSet, data: Examples, budgets: Sequence[Budget], run: Run, **options: Any
    ) -> Iterator[Result]:
        for one in recipe(teacher, data, budgets, run, **options):
            kept = ExampleSet.load(data, run.folder(f"kept-{one.name}"))
            students[id(kept)] = one.subject.model
            yield replace(one, subject=kept)

    on_examples.__name__ = name

    def student(one: ExampleSet) -> torch.nn.Module:
        if one.whole:
            return model
        if id(one) not in students:
            students[id(one)] = nets.vgg()
            vision.fit(students[id(one)], one.data, epochs=10 * 240 / len(one), batch=24, lr=0.05)
        return students[id(one)]

    def output(one: ExampleSet) -> torch.Tensor:
        with torch.no_grad():
            return student(one).eval()(data.inputs[:8])

    laws = conformance.check_recipe(
        name, ExampleSet(data), data, "examples=20%", recipe=on_examples, output=output,
        options={"alpha": 1.0, "epochs": 10, "batch": 24, "lr": 0.05, "balanced": True},
        quality=lambda one: vision.accuracy(student(one), held_out),
    )  # fmt: skip
    assert set(laws) == LAWS


def said(one: Any, texts: Sequence[str]) -> np.ndarray:
    """Which texts stand in what is left to read."""
    return np.array([float(text in one.written()) for text in texts])


@pytest.mark.parametrize("name", [name for name, kind in IN_CONTEXT.items() if kind is Page])
def test_recipes_on_pages(name: str) -> None:
    facts = [
        f"The {word} of number {i} is {word[::-1]}." for i, word in enumerate(["alpha", "gamma", "delta", "omega"])
    ]
    filler = " ".join(["Nothing of note stands here, and it goes on."] * 6)
    parts = "".join(f"<section><h2>Part {i}</h2><p>{fact}</p><p>{filler}</p></section>" for i, fact in enumerate(facts))
    page = open_page(f"<html><body>{parts}</body></html>", block=16)
    laws = conformance.check_recipe(
        name, page, "What is the gamma of number 1?", "words=20%", output=partial(said, texts=[*facts, filler]),
        quality=lambda one: float(said(one, ["ammag"])[0]),
    )  # fmt: skip
    assert set(laws) == LAWS


@pytest.mark.parametrize("name", [name for name, kind in IN_CONTEXT.items() if kind is Passages])
def test_recipes_on_passages(name: str) -> None:
    parts = [[keeper.sentence(*range(10 + 4 * i, 14 + 4 * i)) for i in range(4)] for _ in range(3)]
    parts[1][2] = gold = keeper.sentence(3, 30, 31, 32)
    laws = conformance.check_recipe(
        name, open_passages(parts), keeper.sentence(3), "words=20%", options={"model": keeper.taught()},
        output=partial(said, texts=[text for part in parts for text in part]),
        quality=lambda one: float(said(one, [gold])[0]),
    )  # fmt: skip
    assert set(laws) == LAWS


ON_PATHS = {"paths_over_graph"}
"""They look for what joins several things; a test of their own is below."""


@pytest.mark.parametrize("name", [n for n, kind in IN_CONTEXT.items() if kind is KnowledgeGraph and n not in ON_PATHS])
def test_recipes_on_facts(name: str) -> None:
    """A graph has no units of its own: what is cut is all that stands around the things of the question."""
    store, names = Embedded(), ["alpha", "gamma", "delta", "omega", "sigma", "kappa"]
    label = "<http://www.w3.org/2000/01/rdf-schema#label>"
    said = [f"<urn:x:{word}> {label} {word!r} ; <urn:r:is_turned_to> <urn:x:{word[::-1]}> ." for word in names]
    said += [f"<urn:x:gamma> <urn:r:stands_in_row> <urn:x:row{i}> ." for i in range(12)]
    store.graph.update(f"INSERT DATA {{ {' '.join(said)} }}")
    graph, recipe = KnowledgeGraph(store), recipes.find(name)
    facts = [Line(f"gamma stands in row row{i}", ()) for i in range(12)]
    everything = Facts([Line("gamma is turned to ammag", ()), *facts])

    def on_graph(subject: Facts, data: str, budgets: Sequence[Budget], run: Run, **options: Any) -> Iterator[Result]:
        return recipe(graph, data, budgets, run, **options)

    on_graph.__name__ = name

    def output(one: Facts) -> np.ndarray:
        return np.array([float(line.text in one.written()) for line in everything.lines])

    def quality(one: Facts) -> float:
        return float("ammag" in one.written())

    laws = conformance.check_recipe(
        name, everything, "What is gamma turned to?", "words=20%", output=output, quality=quality, recipe=on_graph
    )
    assert set(laws) == LAWS


def test_a_recipe_on_paths() -> None:
    """A graph has no units of its own: what is cut is all that leads from the one to the other, each way a path."""
    store, name = Embedded(), "paths_over_graph"
    said = [f"<urn:x:alpha> <urn:r:r{i}> <urn:x:m{i}> . <urn:x:m{i}> <urn:r:s{i}> <urn:x:omega> ." for i in range(12)]
    said += ["<urn:x:alpha> <urn:r:feeds> <urn:x:ammag> . <urn:x:ammag> <urn:r:heals> <urn:x:omega> ."]
    store.graph.update(f"INSERT DATA {{ {' '.join(said)} }}")
    graph, recipe = KnowledgeGraph(store), recipes.find(name)
    ways = [(f"r{i}", f"m{i}", f"s{i}") for i in range(12)] + [("feeds", "ammag", "heals")]
    everything = Facts([Line(f"alpha -[{r}]-> {m} -[{s}]-> omega", ()) for r, m, s in ways])

    def on_graph(subject: Facts, data: str, budgets: Sequence[Budget], run: Run, **options: Any) -> Iterator[Result]:
        return recipe(graph, data, budgets, run, **options)

    on_graph.__name__ = name

    def output(one: Facts) -> np.ndarray:
        return np.array([float(line.text in one.written()) for line in everything.lines])

    laws = conformance.check_recipe(
        name, everything, "What is it that alpha feeds and that heals omega?", "words=20%",
        options={"topics": ["urn:x:alpha", "urn:x:omega"]}, output=output,
        quality=lambda one: float("ammag" in one.written()), recipe=on_graph,
    )  # fmt: skip
    assert set(laws) == LAWS


def test_a_recipe_on_what_is_pre_trained_on(tmp_path: Path) -> None:
    """Its first argument is the network to train; what is cut is the training set, of which it leaves an index."""
    name, data, files = "dp4tl", transferred.source(), transferred.written(tmp_path)
    recipe, subject = recipes.find(name), ExampleSet(transferred.source())

    def on_data(_: ExampleSet, data: Examples, budgets: Sequence[Budget], run: Run, **options: Any) -> Iterator[Result]:
        for result in recipe(transferred.opened(), data, budgets, run, **options):
            yield replace(result, subject=ExampleSet.load(data, run.path(f"subset-{result.name}") / "train"))

    on_data.__name__ = name

    def output(one: ExampleSet) -> np.ndarray:
        return np.isin(np.arange(len(data)), one.kept).astype(float)

    def quality(one: ExampleSet) -> float:
        """The share of what is left that looks like the target."""
        return float((one.labels < 4).mean())

    options = {"target": str(files / "target.npz"), "surrogate": f"{files / 'small.py'}:build", **transferred.QUICK}
    laws = conformance.check_recipe(
        name, subject, data, "examples=40%", options=options, output=output, quality=quality, recipe=on_data
    )
    assert set(laws) == LAWS


@pytest.mark.parametrize("name", [name for name in ON_MODELS if name not in ON_NETWORKS])
def test_recipes(name: str, tmp_path: Path) -> None:
    kind, budget, options = TOYS.get(name, DEFAULT)
    if "general" in options:  # the name of a second file of texts
        file = tmp_path / options["general"]
        file.write_text("\n".join(tiny.sentences(400)), "utf-8")
        options = {**options, "general": str(file)}
    quality = None
    if kind in ("llama", "mixtral"):
        subject = open_subject(taught(kind), tokenizer=tiny.tokenizer())
        held_out = texts.batches(texts.read(tiny.chains(200, 1)), subject.tokenizer, packed=True, batch=8, length=16)

        def quality(student: Transformer) -> float:
            return -perplexity(student.forward, held_out.take(10)).value

        assert quality(subject) > -20  # of 64 words: the toy has learnt something that a cut can lose
    elif kind == "masked":
        subject = open_subject(tiny.model("masked"), tokenizer=tiny.tokenizer())
        plain = texts.batches(texts.read(tiny.chains(200, 1)), subject.tokenizer, packed=False, batch=8, length=16)
        hidden = masking.Masked(plain, subject.tokenizer, seed=1)[:10]

        def quality(student: Transformer) -> float:
            """Mean log-probability of the hidden tokens: what is taught, of a teacher that knows nothing."""
            with torch.no_grad():
                said = torch.cat([student.forward(one).prediction.flatten(0, 1) for one in hidden])
            return -float(functional.cross_entropy(said, torch.cat([one["labels"].flatten() for one in hidden])))

    else:
        subject = open_subject(tiny.uneven(tiny.model(kind)), tokenizer=tiny.tokenizer())
    data = texts.read(tiny.chains(800))
    assert set(conformance.check_recipe(name, subject, data, budget, options=options, quality=quality)) == LAWS
