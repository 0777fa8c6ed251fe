"""Cut what a model reads, to a budget: from a question and documents to the text that stays. `secateur.prune_context`.

A recipe on pages runs as any other; nothing is trained, so that what is left is the text, what it costs and why.
"""

from __future__ import annotations

import time
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from secateur import recipes
from secateur._utils.disk import atomic_write, guard
from secateur._utils.rundir import Transient
from secateur.clients import chat
from secateur.clients.chat import Meter
from secateur.errors import BudgetError, DataError, InfeasibleError, InputError, SecateurError
from secateur.runs import keywords, records, servers
from secateur.runs.backends import documents as reading
from secateur.runs.backends.documents import AnyReader, Document, Titles
from secateur.runs.estimates import Estimate
from secateur.runs.servers import Servers
from secateur.subjects.text import markup
from secateur.vocabulary import Budget, Result

__all__ = [
    "Job",
    "Pruned",
    "Readable",
    "Told",
    "Trace",
    "call_settings",
    "check_question",
    "check_titled",
    "estimate",
    "estimate_context",
    "explain",
    "parse_budget",
    "prune_context",
    "record",
    "warn_spent",
]


_HEAD = 1024
"""Bytes by which a text is told from other files."""


class Readable(Protocol):
    """What can be given to a model."""

    def to_text(self) -> str:
        """What it is to read."""
        ...


Trace: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Site -> what became of each of its blocks."""
Told: TypeAlias = Mapping[str, Any]
"""What else a recipe tells, by name."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stays for one question under one budget.

    text: what the model is to read. before, after: measure (words, and tokens where they can be counted) -> cost.
    trace: site -> what became of each of its blocks: path, text, score, costs, kept, and of documents the number of the
    one that it stands in. question: as it was asked.
    told: what else the recipe tells, such as scores of passages, or an answer. documents: what stays of each document,
    in the order in which they were given, "" of those of which nothing does; none of a graph.
    """

    text: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    trace: Mapping[str, Sequence[Mapping[str, object]]] = field(repr=False)
    question: str = ""
    told: Mapping[str, object] = field(default_factory=dict, repr=False)
    documents: tuple[str, ...] = field(default=(), repr=False)

    def save(self, path: str | Path) -> None:
        """Write a page that shows what was cut, greyed out, with each block's score."""
        from secateur.reports import decisions  # its templates, which no other call needs

        with guard(Path(path)):
            atomic_write(path, markup.whole(decisions.page(self.question, self.trace, self.before, self.after)))

    def write(self, path: str | Path) -> None:
        """Write the text."""
        with guard(Path(path)):
            atomic_write(path, self.text + "\n")


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe with its budget and options, checked: what is done for each question. It travels to other processes.

    options: by flag, see `keywords.flat`.
    """

    recipe: str
    budget: Budget
    options: Mapping[str, object]
    servers: Servers

    @classmethod
    def of(cls, recipe: str, budget: str | Budget, options: Mapping[str, object], source: object = "") -> Job:
        """Checked; `source` is what is read."""
        reader, function = reading.of_document_recipe(recipe), recipes.find(recipe)
        asked, own = servers.split_options(function, options, "" if reader.brings_documents else source)
        chosen = keywords.flat(function, keywords.check_options(function, own))
        return cls(recipe, parse_budget(budget), chosen, asked)

    @property
    def reader(self) -> AnyReader:
        """The backend of what it reads."""
        return reading.of_document_recipe(self.recipe)

    @property
    def function(self) -> Callable[..., Any]:
        """The recipe."""
        return recipes.find(self.recipe)

    def pack(self, options: Mapping[str, object]) -> dict[str, Any]:
        """Options by flag as the recipe takes them."""
        return keywords.pack(self.function, options)

    def open(self, documents: Document, titles: Titles = None) -> Any:
        """What a user gave, as a subject."""
        if not self.reader.brings_documents:
            documents = self.servers.open_graph(documents)
        return self.reader.open_documents(documents if isinstance(documents, list | tuple) else [documents], titles)

    def check_graph(self, graph: str | Path) -> None:
        """Refuse a graph that is not wanted, one that is missing, and an address that is none."""
        if bool(graph) is self.reader.brings_documents:
            wanted = "give no graph" if self.reader.brings_documents else "give the graph"
            raise InputError(f"{self.recipe} reads a {self.reader.noun}: {wanted}")
        self.servers.open_graph(graph)

    def check_trial(self) -> None:
        """Refuse a budget, model or option that nothing could be pruned with. No language model is asked."""
        # A retriever's scores are of documents that are to come, and there is but one to try.
        options = {name: value for name, value in self.options.items() if name != "prior"}
        with suppress(InfeasibleError):  # a share of a page of one word
            replace(self, options=options).prune(self.reader.open_trial(), "word", Meter(most_calls=0))

    def run(self, subject: object, question: str, meter: Meter) -> tuple[Result, Trace, Told]:
        """The recipe's result for one question, what became of each block, and what else it tells."""
        run, options = Transient(), self.pack(self.servers.with_llm(self.options, meter))
        (result,) = self.function(subject, question, [self.budget], run, **options)
        return result, run.values[f"trace-{self.budget}"], run.values.get(f"told-{self.budget}", {})

    def prune(self, subject: object, question: object, meter: Meter) -> Pruned:
        """What stays for one question; `meter` counts what the language model takes."""
        question = check_question(question)
        result, trace, told = self.run(subject, question, meter)
        text, parts = markup.whole(cast(Readable, result.subject).to_text()), reading.parts_of(result.subject)
        return Pruned(text, result.cut.before, result.cut.after, trace, question, told, parts)


@typing.overload
def prune_context(recipe: str, documents: Document, question: str, budget: str | Budget, **options: Any) -> Pruned: ...
@typing.overload
def prune_context(
    recipe: str, documents: Document, question: Sequence[str], budget: str | Budget, **options: Any
) -> list[Pruned]: ...
def prune_context(
    recipe: str,
    documents: Document,
    question: str | Sequence[str],
    budget: str | Budget,
    *,
    titles: Sequence[str | None] | None = None,
    strict: bool = True,
    **options: Any,
) -> Pruned | list[Pruned]:
    """Cut documents to what answers a question, within a budget.

    Args:
        recipe: "htmlrag", "provence"; `secateur list` shows all of the family context.
        documents: HTML or text, its bytes, a path of a file, or several of these in their order. Files are plain text
            unless their names end in .html or .htm; for htmlrag, only where they end in .txt or .md. For provence each
            is a passage, and may be a list of sentences. For recipes on a graph: the graph, as `open_graph` takes it.
        titles: of passages, one for each, or None where one has none; other recipes read none and refuse them.
        question: the question, or several, each of which gives a result of its own.
        strict: raise what goes wrong with a question; otherwise it is warned of, and `told` has it as `error` beside
            the documents as they came, or of a graph nothing. A wrong recipe, budget or option is raised in any case.
        budget: tokens=2048, words=1000, or a share of all, tokens=20%.
        options: the recipe's own, such as embedder="path/to/model", tokenizer="path/to/model"; and those of
            `runs.servers.servers`, which say how the servers are asked that it needs: llm_per_minute=60,
            run_calls=500, graph_timeout=10.

    Raises:
        InputError: an unknown option, no question, a document that is none.
        DataError: a file that can't be read.

    Warns (`chat.SpentWarning`) where a limit of the whole call was reached, and the rest done without the language
    model.
    """
    several = isinstance(question, Iterable) and not isinstance(question, str)
    questions: list[Any] = list(question) if several else [question]
    job = Job.of(recipe, budget, options, documents)
    if titles is not None:
        check_titled(job)
    subject, meter, answers = None, job.servers.meter(), list[Pruned]()
    for each in questions:
        try:
            if subject is None:
                _check_documents(job, documents)
                subject = job.open(documents, titles)
            answers.append(job.prune(subject, each, meter))
        except Exception as error:
            if strict:
                raise
            warnings.warn(f"{recipe} cut nothing for {each!r}: {explain(error)}", stacklevel=2)
            answers.append(_uncut(job, documents, subject, each, error))
    if meter.refused:
        warn_spent(meter.calls, meter.tokens)
    return answers if several else answers[0]


def _check_documents(job: Job, documents: Document) -> None:
    """Raise `DataError` for a file, or its bytes, that holds no text: a PDF, an image, an archive."""
    for document in documents if isinstance(documents, list | tuple) else [documents]:
        if job.reader.brings_documents and isinstance(document, bytes | Path):
            _check_text(document)


def _check_text(document: bytes | Path) -> None:
    """Refuse what begins as a PDF, or with a NUL among its first letters, as no text does but in UTF-16."""
    if isinstance(document, bytes):
        name, head = "what was given", document[:_HEAD]
    else:
        if not document.is_file():  # whoever reads it says so
            return
        with guard(document), document.open("rb") as file:
            name, head = str(document), file.read(_HEAD)
    if head.startswith(b"%PDF-") or (b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff"))):
        kind = "a PDF" if head.startswith(b"%PDF-") else "no text"
        raise DataError(f"{name} is {kind}: give HTML, Markdown or plain text, as a converter makes of it")


def _uncut(job: Job, documents: Document, subject: Any, question: object, error: Exception) -> Pruned:
    """What is to be read where nothing could be cut; `subject` is None where that could not be opened."""
    text, parts = "", tuple[str, ...]()
    if job.reader.brings_documents:
        several = documents if isinstance(documents, list | tuple) else [documents]
        texts = [document if isinstance(document, str) else "" for document in several]
        text = markup.whole("\n\n".join(filter(None, texts)) if subject is None else subject.to_text())
        parts = tuple(map(markup.whole, texts)) if subject is None else reading.parts_of(subject)
    costs = {"words": float(markup.words(text))} if subject is None or not text else subject.units().cost()
    question = question if isinstance(question, str) else ""
    return Pruned(text, costs, costs, {}, question, {"error": explain(error)}, parts)


def explain(error: Exception) -> str:
    """One line; what nobody raised on purpose is told by its kind, too."""
    line = " ".join(str(error).split())
    return line if isinstance(error, SecateurError) else f"unexpected {type(error).__name__}: {line}"


def parse_budget(text: str | Budget) -> Budget:
    """A budget of what is read. Raises `BudgetError` for what is none, in the words of texts."""
    try:
        return Budget.parse(text)
    except BudgetError as error:
        number = str(text).strip()
        example = f"tokens={number}" if number.isdigit() else "tokens=512"
        raise BudgetError(
            f"budget {text!r} was not understood: say {example}, words=400 or a share of all, tokens=20%"
        ) from error


def estimate_context(
    recipe: str, documents: Document, question: str, budget: str | Budget, **options: object
) -> Estimate:
    """What `prune_context` would come to for what it would cut, which is cut for it; nothing is written."""
    job = Job.of(recipe, budget, options, documents)
    _check_documents(job, documents)
    subject = job.open(documents)
    job.check_trial()
    return estimate(job, 1, [lambda meter: job.prune(subject, question, meter)])


def estimate(job: Job, count: int, cuts: Sequence[Callable[[Meter], Pruned]]) -> Estimate:
    """What some of `count` come to: they are cut one after another."""
    meter, pruned, failed, began = job.servers.meter(), list[Pruned](), list[Exception](), time.perf_counter()
    for cut in cuts:
        try:
            pruned.append(cut(meter))
        except Exception as error:
            failed.append(error)
    seconds = time.perf_counter() - began
    if not pruned:
        raise failed[0]
    measure = "tokens" if "tokens" in pruned[0].after else "words"
    before = {measure: sum(each.before[measure] for each in pruned)}
    after = {measure: sum(each.after[measure] for each in pruned)}
    return Estimate(
        job.recipe,
        str(job.budget),
        count,
        len(cuts),
        len(failed),
        seconds,
        before,
        after,
        meter.calls,
        meter.tokens,
        job.servers.calls,
        job.servers.tokens,
    )


def record(
    out: str | Path,
    recipe: str,
    documents: Document,
    question: str,
    budget: str | Budget,
    found: Pruned,
    *,
    files: Sequence[str],
    **options: object,
) -> None:
    """Leave beside `out`, where `found` was written, what `prune_context` was called with; `files` hold the documents.

    It stands in `OUT.run.yaml`, which `secateur prune-context --config` repeats; `prune_file` leaves its own.
    """
    job = Job.of(recipe, budget, options, documents)
    with guard(Path(out)):
        settings = {**call_settings(job, budget, out, files, options), "question": question}
        records.write(out, settings, {"before": found.before, "after": found.after})


def call_settings(
    job: Job, budget: str | Budget, out: str | Path, files: Sequence[str | Path], options: Mapping[str, object]
) -> dict[str, Any]:
    """What repeats a call: the options as they were in force, and digests of the files that were named."""
    named = [str(file) for file in files]
    digests = [records.digest(file) if Path(file).exists() else None for file in named]
    about_servers = {name: value for name, value in options.items() if name not in job.options}
    own = {name: value for name, value in job.options.items() if name != "dry_run"}
    settings = {"recipe": job.recipe, "budget": str(budget), "out": str(out), **about_servers, **own}
    return {**settings, "files": named, "files_sha256": digests} if named else settings


def warn_spent(calls: int, tokens: int) -> None:
    """Warn that a limit of the whole run was reached."""
    spent = f"the language model was called {calls} times for {tokens} tokens, as much as the whole run may"
    warnings.warn(f"{spent} (run_calls, run_llm_tokens): the rest was done without it", chat.SpentWarning, stacklevel=3)


def check_titled(job: Job) -> None:
    """Raise `InputError` for a recipe that reads no titles: they would be left out without a word."""
    if not job.reader.titled:
        raise InputError(
            f"{job.recipe} reads no titles: leave them out, or take a recipe on passages, such as provence"
        )


def check_question(question: object) -> str:
    """The question as text that can be encoded. Raises `InputError` where there is none."""
    if not isinstance(question, str) or not question.strip():
        raise InputError("there is no question: say what the documents are to answer")
    return markup.whole(question)
