"""Haystack: retrieved documents cut to a budget, between retriever and prompt, and a retriever of facts or paths.

```python
from secateur.integrations.haystack import SecateurGraphRetriever, SecateurPruner

pipeline.add_component("pruner", SecateurPruner(budget="tokens=2048", options={"tokenizer": "path/to/reader"}))
pipeline.connect("retriever.documents", "pruner.documents")
pipeline.add_component("facts", SecateurGraphRetriever("graph.csv", "words=400", recipe="kg_rag"))
```
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from secateur.errors import InputError, MissingExtraError
from secateur.integrations.pruner_settings import (
    NOTE,
    Follower,
    Options,
    Setting,
    describe,
    open_graph_pruner,
    open_pruner,
    priors_of,
)
from secateur.runs.pruners import GraphPruner, Kept, Pruner, titles_of

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.core.component import Component
    from haystack.core.serialization import component_to_dict, import_class_by_name
except ImportError as error:
    raise MissingExtraError("this needs haystack-ai: pip install 'secateur[haystack]'") from error

__all__ = ["Embeddings", "SecateurGraphRetriever", "SecateurPruner"]

_OWN_SCORE = "score"
"""What `prior` calls the score that a document has itself, not in its metadata."""


@component
class SecateurPruner:
    """Cuts documents to what answers the query; those of which nothing stays are left out, metadata stays.

    A document's score is that of this recipe. Its metadata gets `secateur`: how many pieces stay of how many, their
    scores, and the retriever's score. Models are read by `warm_up`, which a pipeline calls, or on the first run.

    Args:
        budget: all documents together, such as tokens=2048.
        recipe: a recipe of the family context.
        options: the recipe's own.
        strict: raise what goes wrong with a call; otherwise documents come back as they were, with a warning.
        titles: field of the metadata that holds a document's title, such as title; for recipes on passages.
        prior: field of the metadata that holds the score of a retriever whose ranking is to count, too, or "score" for
            the documents' own; for recipes with the option prior.

    Errors of `secateur.prune_context` for a recipe, budget or option that is none are raised when it is made, those of
    models that are to be read by `warm_up`. Settings that are changed take effect on the next run.
    """

    def __init__(
        self,
        budget: str,
        recipe: str = "htmlrag",
        options: Options | None = None,
        strict: bool = False,
        titles: str = "",
        prior: str = "",
    ) -> None:
        self.budget, self.recipe, self.options = budget, recipe, dict(options or {})
        self.strict, self.titles, self.prior = strict, titles, prior
        self._follower = Follower(_open_pruner)
        self._pruner()

    def _pruner(self) -> Pruner:
        return self._follower.get(**self._settings(), warm=False)

    def _settings(self) -> dict[str, object]:
        names = ("budget", "recipe", "options", "strict", "titles", "prior")
        return {name: getattr(self, name) for name in names}

    def warm_up(self) -> None:
        """Read models, and refuse what nothing could be pruned with."""
        self._pruner().warm_up()

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document]) -> dict[str, list[Document]]:
        """The documents of which something stays, cut and in the recipe's order; those without text stay in place."""
        self.warm_up()
        texts = [number for number, document in enumerate(documents) if document.content is not None]
        metadata = [documents[number].meta for number in texts]
        scored = [{**documents[number].meta, _OWN_SCORE: documents[number].score} for number in texts]
        left = self._pruner().prune(
            [documents[number].content or "" for number in texts],
            query,
            titles_of(metadata, self.titles),
            priors_of(scored, self.prior, strict=self.strict),
        )
        kept = {texts[each.number] for each in left}
        cut = (_with_text(documents[texts[each.number]], each) for each in left)
        return {
            "documents": [
                next(cut) if number in kept else document
                for number, document in enumerate(documents)
                if number in kept or document.content is None
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document]) -> dict[str, list[Document]]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents)

    def to_dict(self) -> dict[str, object]:
        """For a pipeline that is written down."""
        return dict(default_to_dict(self, **_write_options(self._settings())))

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> SecateurPruner:
        """From a pipeline that was written down."""
        made: SecateurPruner = default_from_dict(cls, _read_options(data))
        return made


@component
class SecateurGraphRetriever:
    """The facts or paths of a graph that answer a query, one document each, by kg_rag or paths_over_graph.

    Metadata has `secateur`, with `facts`, [subject, predicate, object, literal] as they stand in the graph. Graph and
    models are read by `warm_up`, which a pipeline calls, or on the first run.

    Args:
        graph: a file, a folder, the address of a SPARQL endpoint, or a graph, as `secateur.open_graph` takes it.
        budget: all facts or paths together, such as tokens=512.
        recipe: a recipe of the family context, on graphs.
        options: the recipe's own.
        strict: raise what goes wrong with a query; otherwise it is warned of, and nothing is found.
    """

    def __init__(
        self,
        graph: object,
        budget: str,
        recipe: str = "kg_rag",
        options: Options | None = None,
        strict: bool = False,
    ) -> None:
        self.graph, self.budget, self.recipe = graph, budget, recipe
        self.options, self.strict = dict(options or {}), strict
        self._follower = Follower(_open_graph_pruner)
        self._pruner()

    def _pruner(self) -> GraphPruner:
        return self._follower.get(**self._settings(), warm=False)

    def _settings(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("graph", "budget", "recipe", "options", "strict")}

    def warm_up(self) -> None:
        """Open the graph and read models."""
        self._pruner().warm_up()

    @component.output_types(documents=list[Document])
    def run(self, query: str) -> dict[str, list[Document]]:
        """The facts or paths that stay, in the order to read."""
        self.warm_up()
        kept = self._pruner().prune(query)
        return {
            "documents": [Document(content=each.text, meta={NOTE: describe(each)}, score=each.score) for each in kept]
        }

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str) -> dict[str, list[Document]]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, query)

    def to_dict(self) -> dict[str, object]:
        """For a pipeline that is written down. Raises `InputError` for a graph in memory, which can't be."""
        if not isinstance(self.graph, str | Path):
            kind = type(self.graph).__name__
            raise InputError(
                f"graph is a {kind} in memory, and can't be written down: give its file, folder or address"
            )
        return dict(default_to_dict(self, **_write_options({**self._settings(), "graph": str(self.graph)})))

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> SecateurGraphRetriever:
        """From a pipeline that was written down."""
        made: SecateurGraphRetriever = default_from_dict(cls, _read_options(data))
        return made


def _with_text(document: Document, kept: Kept) -> Document:
    """A copy of a document that says what stays, and why; as it is where nothing could be cut."""
    if kept.uncut:
        return document
    meta: Mapping[str, object] = {**document.meta, NOTE: describe(kept, document.score)}
    score = document.score if kept.score is None else kept.score
    return replace(document, content=kept.text, meta=meta, score=score)


class Embeddings:
    """An embedder of Haystack, of documents or of texts, as an encoder of questions and passages.

    Raises `InputError` for a component that takes neither `documents` nor `text`.
    """

    def __init__(self, embedder: Component) -> None:
        self.embedder = embedder
        takes = inspect.signature(embedder.run).parameters
        self._reads_documents = "documents" in takes
        if not self._reads_documents and "text" not in takes:
            raise InputError(f"embedder {type(embedder).__name__} takes neither documents nor text: give an embedder")

    def embed_documents(self, texts: Sequence[str]) -> list[object]:
        """A vector for each."""
        if hasattr(self.embedder, "warm_up"):
            self.embedder.warm_up()
        if not self._reads_documents:
            return [self.embedder.run(text=text)["embedding"] for text in texts]
        found = self.embedder.run(documents=[Document(content=text) for text in texts])
        return [document.embedding for document in found["documents"]]

    def embed_query(self, text: str) -> object:
        """Its vector."""
        return self.embed_documents([text])[0]


def _wrap_embedder(options: Options) -> dict[str, object]:
    embedder = options.get("embedder")
    return {**options, **({"embedder": Embeddings(embedder)} if isinstance(embedder, Component) else {})}


def _open_pruner(options: Options, **settings: Setting) -> Pruner:
    return open_pruner(_wrap_embedder(options), **settings)


def _open_graph_pruner(options: Options, **settings: Setting) -> GraphPruner:
    return open_graph_pruner(_wrap_embedder(options), **settings)


def _write_options(settings: Mapping[str, Setting]) -> dict[str, object]:
    """Settings with components among the options as a pipeline has them when it is written down."""
    options = {
        name: component_to_dict(value, name) if isinstance(value, Component) else value
        for name, value in settings["options"].items()
    }
    return {**settings, "options": options}


def _read_options(data: Mapping[str, Setting]) -> dict[str, object]:
    """The inverse of `_write_options`, of the whole that was written down."""
    given = dict(data.get("init_parameters", {}))
    options = {
        name: import_class_by_name(value["type"]).from_dict(value) if _is_component(value) else value
        for name, value in (given.get("options") or {}).items()
    }
    return {**data, "init_parameters": {**given, "options": options}}


def _is_component(value: object) -> bool:
    return isinstance(value, Mapping) and {"type", "init_parameters"} <= value.keys()
