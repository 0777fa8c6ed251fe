"""Toys on which `conformance.check_recipe` runs in seconds: what a recipe prunes, its data, and how good a result is.

`toy(folder)` in the test file of each recipe gives the arguments for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils._pytree import tree_leaves

import small_vision as vision
import tiny
import yolo
from recipes.vision import nets
from secateur._utils.rundir import Run
from secateur.clients.stores import Embedded
from secateur.data import masking, texts
from secateur.measure.quality import perplexity
from secateur.recipes import find
from secateur.runs import keywords
from secateur.subjects import Facts, KnowledgeGraph, Traced, Transformer, open_subject, open_traced
from secateur.subjects.graph.knowledge_graph import Line
from secateur.subjects.network import detectors
from secateur.vocabulary import Budget, Result

Toy = dict[str, Any]


def language(kind: str = "llama", budget: str = "params=75%", **options: Any) -> Toy:
    """A language model of 64 words, taught where it writes, with the words' chains as data."""
    taught = kind in ("llama", "mixtral")
    model = tiny.fluent(kind) if taught else tiny.model(kind) if kind == "masked" else tiny.uneven(tiny.model(kind))
    subject = open_subject(model, tokenizer=tiny.tokenizer())
    held_out = texts.read(tiny.chains(200, 1))
    packed = texts.batches(held_out, subject.tokenizer, packed=taught, batch=8, length=16)
    toy = {"subject": subject, "data": texts.read(tiny.chains(800)), "budget": budget, "options": options}

    def likelihood(student: Transformer) -> float:
        return -perplexity(student.forward, packed.take(10)).value

    def masked_likelihood(student: Transformer) -> float:
        """Mean log-probability of the hidden tokens: what is taught, of a teacher that knows nothing."""
        hidden = masking.Masked(packed, subject.tokenizer, seed=1)[:10]
        with torch.no_grad():
            predicted = torch.cat([student.forward(batch).prediction.flatten(0, 1) for batch in hidden])
        return -float(functional.cross_entropy(predicted, torch.cat([batch["labels"].flatten() for batch in hidden])))

    if taught:
        assert likelihood(subject) > -20  # of 64 words: the toy has learnt something that a cut can lose
        toy["quality"] = likelihood
    elif kind == "masked":
        toy["quality"] = masked_likelihood
    return toy


@functools.cache
def _classifier(vit: bool) -> Traced:
    data, model = nets.data(240), nets.vit() if vit else nets.vgg()
    vision.fit(model, data, epochs=12, batch=24, **({"optimizer": "adamw", "lr": 2e-3, "warmup": 0.1} if vit else {}))
    return open_traced(model, data.inputs[:2])


def classifier(budget: str = "channels=60%", *, vit: bool = False, **options: Any) -> Toy:
    """A small network of convolutions, or a vision transformer, that tells four classes of images."""
    data, held_out = nets.data(240), nets.data(200, seed=5)
    return {
        "subject": _classifier(vit).copy(),
        "data": data,
        "budget": budget,
        "options": options,
        "quality": lambda small: vision.accuracy(small.model, held_out),
        "output": functools.partial(_outputs, inputs=data.inputs[:8]),
    }


@functools.cache
def _detector() -> Traced:
    return detectors.open_detector(yolo.tiny(), yolo.squares(32).inputs[:1])


def detector(**options: Any) -> Toy:
    """A detector of squares."""
    data, held_out = yolo.squares(32), yolo.squares(32, seed=5)

    @torch.no_grad()
    def quality(small: Traced) -> float:
        return -float(small.model.eval().loss(held_out.batch()))

    return {
        "subject": _detector().copy(),
        "data": data,
        "budget": "channels=60%",
        "options": options,
        "quality": quality,
        "output": functools.partial(_outputs, inputs=data.inputs[:8]),
    }


def _outputs(subject: Traced, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in tree_leaves(subject.forward(inputs))])


def written(subject: Any, texts: Sequence[str]) -> np.ndarray:
    """Which texts stand in what is left to read."""
    return np.array([float(text in subject.to_text()) for text in texts])


def recipe_of(name: str, results: Callable[..., Iterator[Result]]) -> Callable[..., Iterator[Result]]:
    """`results` under the name of a recipe, which it calls for another subject than the one that is cut."""
    results.__name__ = name
    return results


def graph(name: str, triples: Sequence[str], lines: Sequence[str], question: str, answer: str, **options: Any) -> Toy:
    """A graph has no units of its own: what is cut is `lines`, all that stands around the things of the question."""
    store = Embedded()
    store.graph.update(f"INSERT DATA {{ {' '.join(triples)} }}")
    opened = KnowledgeGraph(store)

    def on_graph(subject: Facts, data: str, budgets: Sequence[Budget], run: Run, **options: Any) -> Iterator[Result]:
        return keywords.call(find(name), opened, data, budgets, run, **options)

    return {
        "subject": Facts([Line(line, ()) for line in lines]),
        "data": question,
        "budget": "words=20%",
        "options": options,
        "recipe": recipe_of(name, on_graph),
        "output": functools.partial(written, texts=lines),
        "quality": lambda facts: float(answer in facts.to_text()),
    }
