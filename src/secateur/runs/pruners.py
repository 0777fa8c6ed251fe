"""What post-processors and retrievers of pipelines call: a recipe with its budget, checked once, for many questions."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from secateur._utils.together import Together
from secateur.errors import InputError
from secateur.retrieval import encoders
from secateur.runs.backends import documents as reading
from secateur.runs.context import Job, Trace, check_question, check_titled, explain
from secateur.subjects import Page, Passages
from secateur.subjects.graph.knowledge_graph import Facts
from secateur.subjects.text import markup
from secateur.vocabulary import Budget

__all__ = ["Call", "GraphPruner", "Kept", "Piece", "Pruner", "share_embedder", "titles_of"]

C = TypeVar("C")
T = TypeVar("T")
Call: TypeAlias = Sequence[Any]
"""What `Pruner.prune` takes, in its order."""
Piece: TypeAlias = Mapping[str, Any]
"""A row of a trace."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of one document, or one line of what stays of a graph: a fact, or a path.

    number: the document's place among those that were given; of a graph, the line's. text: what stays. score: how
    relevant it is, higher is better, comparable within one call alone: the reranker's score of a document where there
    is one, else that of its best piece that stays; None where nothing was cut, or no score is known. reasons: recipe;
    `kept` of `of` pieces and `pieces`, the path and score of each that stays; of a graph `facts`; and `notes` on the
    whole call, if any. Where nothing could be cut, `error`.
    """

    number: int
    text: str
    score: float | None = None
    reasons: Mapping[str, object] = field(default_factory=dict)

    @property
    def uncut(self) -> bool:
        """Whether the document came back as it was, since nothing could be cut."""
        return "error" in self.reasons


class Pruner:
    """A recipe on documents with a budget and options, checked once, from any thread.

    For recipes that read a graph see `GraphPruner`. Where a call can't be answered (there is no question, or the
    embedder is out of memory, say) it warns and gives the documents back as they came, unless `strict`: a pipeline is
    not to end for what was to make it cheaper.

    Args:
        recipe, budget, options: as for `secateur.prune_context`. What threads encode at once is encoded together.
        strict: raise what goes wrong with a call.
        titled: calls will bring titles, which a recipe that reads none refuses here.
        ranked: calls will bring scores of a retriever, which a recipe that reads none (`prior`) refuses here.
        warm: read models and try the recipe now; otherwise on the first call, or by `warm_up`.
    """

    def __init__(
        self,
        recipe: str,
        budget: str | Budget,
        *,
        strict: bool = False,
        titled: bool = False,
        ranked: bool = False,
        warm: bool = True,
        **options: object,
    ) -> None:
        self.recipe, self.strict, self._warm = recipe, strict, False
        self._job = Job.of(recipe, budget, options)
        self.budget, reader = self._job.budget, self._job.reader
        if not reader.numbered:
            others = " or ".join(reading.with_documents())
            raise InputError(
                f"{recipe} reads a {reader.noun} and no documents, which are all that is given here: take {others}, or "
                f"a retriever of the {reader.noun} (GraphPruner, SecateurGraphRetriever)"
            )
        if titled:
            check_titled(self._job)
        if ranked and "prior" not in self._job.options:
            raise InputError(f"{recipe} reads no scores of a retriever: leave prior out")
        if warm:
            self.warm_up()

    def warm_up(self) -> None:
        """Read models, and refuse what nothing could be pruned with; once."""
        if not self._warm:
            self._job = replace(self._job, options=share_embedder(self._job.options))
            self._job.check_trial()
            self._warm = True

    def __call__(
        self, documents: Sequence[str], question: str, titles: Sequence[str | None] | None = None
    ) -> list[tuple[int, str]]:
        """(number, what stays) of each document of which something stays: see `prune`."""
        return [(kept.number, kept.text) for kept in self.prune(documents, question, titles)]

    def prune(
        self,
        documents: Sequence[str],
        question: str,
        titles: Sequence[str | None] | None = None,
        prior: Sequence[float | None] | None = None,
    ) -> list[Kept]:
        """What stays of each document of which something stays, in the order to read, all under one budget.

        What is HTML stays HTML, and plain text and Markdown stay what they are.

        Args:
            documents: texts, HTML among them.
            question: what they are to answer.
            titles: one for each document, or None where it has none; a title becomes the document's first sentence.
            prior: a retriever's score of each, on any scale on which higher is better; None and NaN rank last.

        Raises `InputError` for one text in place of a list, whether `strict` or not: its letters are no documents.
        """
        for name, given in (("documents", documents), ("titles", titles)):
            _check_list(name, given)
        try:
            self.warm_up()
            others = [type(each).__name__ for each in documents or () if not isinstance(each, str)]
            if documents is None or others:
                raise InputError(
                    f"documents are a list of texts, and here is {'None' if documents is None else others[0]}"
                )
            question = check_question(question)
            subject = self._job.reader.open_numbered(documents, titles)
            job = self._job
            if prior is not None and any(score is not None for score in prior):
                scores = [float("nan") if score is None else float(score) for score in prior]
                job = replace(job, options={**job.options, "prior": scores})
            result, trace, told = job.run(subject, question, job.servers.meter())
        except Exception as error:
            if self.strict:
                raise
            warnings.warn(f"{self.recipe} left the documents as they were: {explain(error)}", stacklevel=2)
            reasons = {"recipe": self.recipe, "error": explain(error)}
            return [Kept(number, text, None, reasons) for number, text in enumerate(documents or ())]
        pieces = _pieces_by_document(trace)
        ranks = told["reranking_scores"] if told.get("ranks") else ()
        left = cast(Page | Passages, result.subject).documents()
        return [self._describe(number, text, pieces.get(number, ()), ranks, told) for number, (text, _) in left.items()]

    def _describe(
        self,
        number: int,
        text: str,
        pieces: Sequence[Piece],
        ranks: Sequence[float],
        told: Mapping[str, object],
    ) -> Kept:
        kept = [{"path": row["path"], "score": row["score"]} for row in pieces if row["kept"]]
        score = ranks[number] if ranks else max((row["score"] for row in kept), default=None)
        reasons = {"recipe": self.recipe, "kept": len(kept), "of": len(pieces), "pieces": kept, **_notes(told)}
        return Kept(number, text, score, reasons)

    async def aprune(
        self,
        documents: Sequence[str],
        question: str,
        titles: Sequence[str | None] | None = None,
        prior: Sequence[float | None] | None = None,
    ) -> list[Kept]:
        """`prune`, in a thread."""
        return await asyncio.to_thread(self.prune, documents, question, titles, prior)

    def prune_many(self, calls: Iterable[Call], workers: int = 4) -> list[list[Kept]]:
        """`prune` of each, `workers` at once: calls are (documents, question), and perhaps titles and prior."""
        return _map_threads(lambda call: self.prune(*call), calls, workers, "calls")


class GraphPruner:
    """A recipe on a graph with a budget and options, checked once: from a question to the facts or paths that stay.

    Args:
        recipe, budget, options: as for `secateur.prune_context`; limits on servers (run_calls) are of all questions.
        graph: as `secateur.open_graph` takes it.
        strict: raise what goes wrong with a question; otherwise it is warned of, and nothing stays. Where nothing went
            wrong and yet nothing stays, a warning says why.
        warm: open graph and models now; otherwise on the first call, or by `warm_up`.
    """

    def __init__(
        self,
        recipe: str,
        graph: object,
        budget: str | Budget,
        *,
        strict: bool = False,
        warm: bool = True,
        **options: object,
    ) -> None:
        self.recipe, self.strict, self._graph, self._subject = recipe, strict, graph, None
        self._job = Job.of(recipe, budget, options, graph)
        self.budget, self._meter = self._job.budget, self._job.servers.meter()
        if self._job.reader.brings_documents:
            raise InputError(f"{recipe} reads documents and no graph: put it behind a retriever of documents")
        if isinstance(graph, str | Path) and not str(graph):
            raise InputError(f"{recipe} reads a graph: give its file, folder or address")
        if warm:
            self.warm_up()

    def warm_up(self) -> None:
        """Open the graph and models, and refuse what nothing could be pruned with; once."""
        if self._subject is None:
            subject = self._job.open(self._graph)
            self._job = replace(self._job, options=share_embedder(self._job.options))
            self._job.check_trial()
            self._subject = subject

    def prune(self, question: str) -> list[Kept]:
        """The facts or paths that stay, in the order to read, each with what it says of the graph."""
        try:
            self.warm_up()
            result, trace, told = self._job.run(self._subject, check_question(question), self._meter)
        except Exception as error:
            if self.strict:
                raise
            warnings.warn(f"{self.recipe} found nothing: {explain(error)}", stacklevel=2)
            return []
        if not cast(Facts, result.subject).lines and told.get("notes"):  # there is nothing that could carry its notes
            reasons = "; ".join(str(note) for note in cast(Sequence[object], told["notes"]))
            warnings.warn(f"{self.recipe} kept nothing for the question: {reasons}", stacklevel=2)
        rows = {row["text"]: row for site in trace.values() for row in site if row["kept"]}
        about = {"recipe": self.recipe, "kept": len(rows), "of": sum(map(len, trace.values())), **_notes(told)}
        found = list[Kept]()
        for number, line in enumerate(cast(Facts, result.subject).lines):
            score = rows.get(line.text, {}).get("score")
            facts = [list(fact) for fact in line.facts]
            found.append(Kept(number, markup.whole(line.text), score, {**about, "facts": facts}))
        return found

    async def aprune(self, question: str) -> list[Kept]:
        """`prune`, in a thread."""
        return await asyncio.to_thread(self.prune, question)

    def prune_many(self, questions: Iterable[str], workers: int = 4) -> list[list[Kept]]:
        """`prune` of each, `workers` at once."""
        return _map_threads(self.prune, questions, workers, "questions")


def share_embedder(options: Mapping[str, object]) -> dict[str, object]:
    """A recipe's options with the embedder opened that they name, if any, as one for all threads.

    Its tokenizer stays that of the reader where there is no other.
    """
    source: Any = options.get("embedder")
    if not source or isinstance(source, Together):
        return dict(options)
    checkpoint = encoders.checkpoint_of(source) if isinstance(source, str) else ""
    how = {name: str(options.get(name) or "") for name in ("device", "precision")}
    embed = Together(encoders.open_remembering(source, device=how["device"], precision=how["precision"]))
    rest = {name: value for name, value in options.items() if name != "precision"}  # of an embedder by its name
    return {**rest, "embedder": embed, "tokenizer": options.get("tokenizer") or checkpoint}


def titles_of(metadata: Iterable[Mapping[str, object] | None], name: str) -> list[str | None] | None:
    """What a `Pruner` takes as titles: the text that each document's metadata has under `name`; None without a name."""
    if not name:
        return None
    titles = [(row or {}).get(name) for row in metadata]
    return [title if isinstance(title, str) and title.strip() else None for title in titles]


def _pieces_by_document(trace: Trace) -> dict[int, list[Piece]]:
    """Number of a document -> its rows in a trace, of the last step that looked at it."""
    found = dict[int, list[Piece]]()
    for rows in trace.values():
        by_document = dict[int, list[Piece]]()
        for row in rows:
            by_document.setdefault(row["document"], []).append(row)
        found |= by_document
    return found


def _notes(told: Mapping[str, object]) -> dict[str, object]:
    """What is told of a whole call, where there is something."""
    return {name: told[name] for name in ("notes", "answer") if told.get(name)}


def _check_list(name: str, given: object) -> None:
    """Refuse a text where a list belongs: each of its letters would be taken for a text."""
    if isinstance(given, str | bytes):
        start = f"{given[:20]!r}..." if len(given) > 20 else repr(given)
        raise InputError(f"{name} are a list, and here is one text, {start}: put it into brackets, [text]")


def _map_threads(work: Callable[[C], T], calls: Iterable[C], workers: int, name: str) -> list[T]:
    _check_list(name, calls)
    if workers < 1:
        raise InputError(f"workers={workers}: give a number of at least 1")
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, calls))
