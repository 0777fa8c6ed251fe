"""Backend of graphs of facts, of which one answers all questions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.clients.stores import Embedded
from secateur.errors import InputError
from secateur.methods.graphs import open_graph, open_once
from secateur.runs.backends.documents import Document, Reader, Titles
from secateur.subjects import KnowledgeGraph

__all__ = ["Graphs"]


class Graphs(Reader[KnowledgeGraph]):
    """Whatever `open_graph` takes; a path or an address is opened once for all questions."""

    family = "graphs"
    noun = "graph"
    brings_documents = False
    numbered = False

    def open_documents(self, documents: Sequence[Document], titles: Titles = None) -> KnowledgeGraph:
        """The one graph that is given."""
        if len(documents) != 1:
            raise InputError(
                f"a recipe on a graph reads one, and these are {len(documents)}: give a file, folder or address"
            )
        (source,) = documents
        return open_once(source) if isinstance(source, str | Path) else open_graph(source)

    def open_trial(self) -> KnowledgeGraph:
        """A graph without facts."""
        return open_graph(Embedded())
