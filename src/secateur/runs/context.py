"""What a model reads, cut to a budget: from a question and documents to the text that stays, one by one or by the file.

A recipe on pages runs as any other; nothing is trained, so that what is left is the text, what it costs and why.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeAlias, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from secateur import recipes
from secateur._utils import workers as quiet
from secateur._utils.disk import atomic_write, guard, is_disk_full
from secateur._utils.rundir import Run, Transient
from secateur.clients import chat
from secateur.clients.chat import Ledger, Meter
from secateur.errors import DataError, InfeasibleError, InputError, RunError, SecateurError
from secateur.measure import environment
from secateur.reports import decisions
from secateur.retrieval import rerankers
from secateur.retrieval.rerankers import Reranker
from secateur.runs import configs, keywords, records, servers
from secateur.runs.backends import documents as readings
from secateur.runs.backends.documents import Document, Reading
from secateur.runs.estimates import Estimate
from secateur.runs.servers import Servers
from secateur.subjects.text import markup
from secateur.vocabulary import Budget, Recovery

__all__ = [
    "Pruned", "Pruner", "configured", "estimate_context", "estimate_file", "prune_context", "prune_file", "record",
    "titles_of", "train_pruner",
]  # fmt: skip

_WANTED = "each is to be an object with question and html, text or passages"
_OPENED: dict[Any, Callable[[str], Any]] = {chat.Local: chat.open_local, Reranker: rerankers.open_reranker}
"""What a recipe's `train` takes -> how it is opened."""
Given: TypeAlias = tuple[str, str]
"""Where a thing to prune stands, and its JSON."""

_STDIN = "-"
_FEW = 64
"""Lines for which other processes would not have started before this one is done."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stays for one question under one budget.

    text: what the model is to read. before, after: measure (words, and tokens where they can be counted) -> cost.
    trace: site -> what became of each of its blocks: path, text, score, costs, kept. question: as it was asked.
    told: what else the recipe tells, such as scores of passages, or an answer. documents: what stays of each document,
    in the order in which they were given, "" of those of which nothing does; none of a graph.
    """

    text: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    trace: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False)
    question: str = ""
    told: Mapping[str, Any] = field(default_factory=dict, repr=False)
    documents: tuple[str, ...] = field(default=(), repr=False)

    def save(self, path: str | Path) -> None:
        """Write a page that shows what was cut, greyed out, with each block's score."""
        with guard(Path(path)):
            atomic_write(path, markup.whole(decisions.page(self.question, self.trace, self.before, self.after)))

    def write(self, path: str | Path) -> None:
        """Write the text."""
        with guard(Path(path)):
            atomic_write(path, self.text + "\n")


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
        titles: of passages, one for each, or None where one has none.
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
    asked: list[Any] = list(question) if several else [question]
    job = _Job.of(recipe, budget, options, documents)
    subject, meter, found = None, job.servers.meter(), list[Pruned]()
    for one in asked:
        try:
            subject = job.opened(documents, titles) if subject is None else subject
            found.append(job.one(subject, one, meter))
        except Exception as error:
            if strict:
                raise
            warnings.warn(f"{recipe} cut nothing for {one!r}: {_explained(error)}", stacklevel=2)
            found.append(_uncut(job, documents, subject, one, error))
    if meter.refused:
        _warn(meter.calls, meter.tokens)
    return found if several else found[0]


def _uncut(job: _Job, documents: Document, subject: Any, question: object, error: Exception) -> Pruned:
    """What is to be read where nothing could be cut; `subject` is None where that could not be opened."""
    text, parts = "", tuple[str, ...]()
    if job.reading.own:
        given = documents if isinstance(documents, list | tuple) else [documents]
        texts = [one if isinstance(one, str) else "" for one in given]
        text = markup.whole("\n\n".join(filter(None, texts)) if subject is None else subject.written())
        parts = tuple(map(markup.whole, texts)) if subject is None else readings.parts(subject)
    costs = {"words": float(markup.words(text))} if subject is None or not text else subject.units().cost()
    asked = question if isinstance(question, str) else ""
    return Pruned(text, costs, costs, {}, asked, {"error": _explained(error)}, parts)


def _explained(error: Exception) -> str:
    """One line; what nobody raised on purpose is told by its kind, too."""
    told = " ".join(str(error).split())
    return told if isinstance(error, SecateurError) else f"unexpected {type(error).__name__}: {told}"


class Pruner:
    """A recipe with a budget and options, checked once: what post-processors of retrieval pipelines call.

    It takes recipes that read documents; for those that read a graph see `prune_context`. Where a call can't be
    answered (there is no question, or the embedder is out of memory, say) it warns and gives the documents back as they
    came, unless `strict`: a pipeline is not to end for what was to make it cheaper. `titled`: calls will bring titles,
    which a recipe that reads none refuses here.
    """

    def __init__(
        self, recipe: str, budget: str | Budget, *, strict: bool = False, titled: bool = False, **options: Any
    ) -> None:
        self.recipe, self.strict = recipe, strict
        self._job = _Job.of(recipe, budget, options)
        self.budget, reading = self._job.budget, self._job.reading
        if reading.apart is None:
            raise InputError(
                f"{recipe} reads a {reading.noun} and no documents, which are all that is given here: take "
                f"{' or '.join(readings.apart())}, or call prune_context with the {reading.noun} and strict=False"
            )
        if titled and not reading.titled:
            raise InputError(
                f"{recipe} reads no titles: leave them out, or take a recipe on passages, such as provence"
            )
        self._apart = reading.apart
        self._job.trial()

    def __call__(
        self, documents: Sequence[str], question: str, titles: Sequence[str | None] | None = None
    ) -> list[tuple[int, str]]:
        """(number, what stays) of each document of which something stays, in the order to read, all under one budget.

        What is HTML stays HTML, what is plain text stays text. titles: one for each document, or None where it has
        none; a title becomes the document's first sentence.
        """
        try:
            kinds = (
                ["None"] if documents is None else [type(one).__name__ for one in documents if not isinstance(one, str)]
            )
            if kinds:
                raise InputError(f"documents are a list of texts, and here is {kinds[0]}")
            if not isinstance(question, str) or not question.strip():
                raise InputError("there is no question: say what the documents are to answer")
            subject, run, asked = self._apart(documents, titles), Transient(), markup.whole(question)
            (result,) = self._job.function(subject, asked, [self.budget], run, **self._job.pack(self._job.options))
        except Exception as error:
            if self.strict:
                raise
            warnings.warn(f"{self.recipe} left the documents as they were: {_explained(error)}", stacklevel=2)
            return list(enumerate(documents or ()))
        left = result.subject.documents()
        return [(number, html if markup.is_html(documents[number]) else text) for number, (html, text) in left.items()]


def titles_of(metadata: Iterable[Mapping[str, Any] | None], name: str) -> list[str | None] | None:
    """What a `Pruner` takes as titles: the text that each document's metadata has under `name`; None without a name."""
    if not name:
        return None
    found = [(one or {}).get(name) for one in metadata]
    return [title if isinstance(title, str) and title.strip() else None for title in found]


def prune_file(
    recipe: str,
    source: str | Path,
    out: str | Path,
    budget: str | Budget,
    *,
    question: str = "",
    graph: str | Path = "",
    trace: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    processes: int | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Cut what each line of a JSONL file holds, or each page of a folder; returns (lines, those that failed).

    A line holds `question` and `html`, `text` or `passages`, each text or a list of texts (a passage may be a list of
    sentences), and perhaps `titles`; for recipes on a graph the question, and perhaps `topics` or `choices`, which then
    stand in for the options of that name. In its place in `out` stand its own fields, `pruned`, `pruned_passages` where
    it has passages (what stays of each), `tokens_before` and `tokens_after` (`words_...` where no tokens are counted),
    `told` where the recipe tells more, and with `trace` what became of each block. A page of a folder gives a line with
    `file` and `question`.

    A line that can't be pruned (it is no JSON, lacks its fields, or an embedder fails) keeps what it has, `pruned` is
    empty and `error` says why; with `strict` the run stops there. A process that is killed is replaced once. The same
    call goes on where an earlier one was stopped: until all is done, lines stand in `out` with `.part` at its end.

    Args:
        recipe, budget, options: as for `prune_context`. Limits on servers are those of all processes together, and of
            a run that was stopped and goes on.
        source: a .jsonl file, or a folder of .html, .htm, .txt or .md files. "-" is the standard input: that, and any
            other pipe, is read once, and where a run goes on it skips as many lines as are written.
        out: the .jsonl file to write.
        question: of every page of a folder, and of lines that have none.
        graph: what all lines ask, for recipes on a graph: a file, a folder, or the address of a SPARQL endpoint.
        processes: how many work at once; unless given, one for each core where there is much to do.

    Raises `InputError`, `DataError` as `prune_context`, and `RunError` where `out` is there already, or what stands
    beside it was made by other settings.
    """
    job, source, out = _Job.of(recipe, budget, options, graph), Path(source), Path(out)
    job.with_graph(graph)
    if out.exists() and not overwrite:
        raise RunError(f"{out} is there already: give another name, or overwrite it (--overwrite)")
    rows, piped = _rows(source, question), _piped(source)
    count = None if piped else _counted(source, question)
    job.trial()  # what is wrong with all lines alike is said once, before any
    part, record = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    spent = out.with_name(out.name + ".part.spent")
    read = {} if piped else {"in_sha256": records.digest(source)}
    settings = json.dumps(
        {"recipe": recipe, "budget": str(job.budget), "question": question, "trace": trace, "strict": strict,
         "lines": count, "graph": str(graph), **job.servers.form, "source": "-" if piped else str(source.resolve()),
         **read, **{name: repr(value) for name, value in job.options.items()}}, indent=1
    )  # fmt: skip
    with guard(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        done, failed = _resumed(part, record, settings, overwrite)
        rows, todo = _ahead(source, rows, done)
        if not done:
            spent.unlink(missing_ok=True)
        atomic_write(record, settings)
        plain = all(map(_plain, job.options.values()))
        # A model that was given as such is not sent from process to process.
        many = processes or (1 if todo < _FEW else os.cpu_count() or 1)
        many = many if todo == _FEW else max(1, min(many, todo))
        workers = job.servers.processes(many) if plain else 1
        job = replace(job, servers=job.servers.share(workers))
        ledger = spent if job.servers.calls or job.servers.tokens else None
        work = partial(_line, job, str(graph), trace, strict, ledger)
        with part.open("ab") as lines, _bar(count, done) as advance:
            for text, bad in _mapped(work, rows, workers):
                lines.write(text.encode())
                lines.flush()
                done, failed = done + 1, failed + bad
                advance()
        total = Ledger(path=spent).total() if ledger else {}
        told = {"in": str(source), **read, "question": question, "trace": trace, "strict": strict}
        counts = {"lines": done, "failed": failed, **({"language_model": total} if total else {})}
        records.write(out, {**_told(job, budget, out, [graph] if graph else [], options), **told}, counts)
        part.replace(out)
        record.unlink(missing_ok=True)
        spent.unlink(missing_ok=True)
    if total.get("refused"):
        _warn(total["calls"], total["tokens"])
    return done, failed


def record(
    out: str | Path,
    recipe: str,
    documents: Document,
    question: str,
    budget: str | Budget,
    found: Pruned,
    *,
    files: Sequence[str],
    **options: Any,
) -> None:
    """Leave beside `out`, where `found` was written, what `prune_context` was called with; `files` hold the documents.

    It stands in `OUT.run.yaml`, which `secateur prune-context --config` repeats; `prune_file` leaves its own.
    """
    job = _Job.of(recipe, budget, options, documents)
    with guard(Path(out)):
        told = {**_told(job, budget, out, files, options), "question": question}
        records.write(out, told, {"before": found.before, "after": found.after})


def _told(
    job: _Job, budget: str | Budget, out: str | Path, files: Sequence[str | Path], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What repeats a call: the options as they were in force, and digests of the files that were named."""
    named = [str(file) for file in files]
    read = [records.digest(file) if Path(file).exists() else None for file in named]
    asked = {name: value for name, value in options.items() if name not in job.options}
    own = {name: value for name, value in job.options.items() if name != "dry_run"}
    found = {"recipe": job.recipe, "budget": str(budget), "out": str(out), **asked, **own}
    return {**found, "files": named, "files_sha256": read} if named else found


def estimate_file(
    recipe: str,
    source: str | Path,
    budget: str | Budget,
    *,
    question: str = "",
    graph: str | Path = "",
    few: int = 8,
    **options: Any,
) -> Estimate:
    """What `prune_file` would come to, by the first `few` lines, which are cut for it; nothing is written.

    A language model that the recipe asks is asked for these. What is loaded before the first line is not timed.

    Raises as `prune_file` does.
    """
    job, source = _Job.of(recipe, budget, options, graph), Path(source)
    job.with_graph(graph)
    rows = _rows(source, question)
    first = list(islice(rows, few))
    count = len(first) + sum(1 for _ in rows)  # a pipe is read once
    if not count:
        raise _no_line(source)
    job.trial()

    def cut(given: Given, meter: Meter) -> Pruned:
        return _cut(job, str(graph), given[0], _parsed(given[1]), meter)

    return _estimated(job, count, [partial(cut, given) for given in first])


def estimate_context(recipe: str, documents: Document, question: str, budget: str | Budget, **options: Any) -> Estimate:
    """The same for what `prune_context` would cut."""
    job = _Job.of(recipe, budget, options, documents)
    subject = job.opened(documents)
    job.trial()
    return _estimated(job, 1, [lambda meter: job.one(subject, question, meter)])


def _estimated(job: _Job, count: int, cuts: Sequence[Callable[[Meter], Pruned]]) -> Estimate:
    """What some of `count` come to: they are cut one after another."""
    meter, found, failed, began = job.servers.meter(), list[Pruned](), list[Exception](), time.perf_counter()
    for cut in cuts:
        try:
            found.append(cut(meter))
        except Exception as error:
            failed.append(error)
    seconds = time.perf_counter() - began
    if not found:
        raise failed[0]
    measure = "tokens" if "tokens" in found[0].after else "words"
    before, after = ({measure: sum(costs[measure] for costs in each)} for each in
                     ([one.before for one in found], [one.after for one in found]))  # fmt: skip
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


def _warn(calls: int, tokens: int) -> None:
    told = f"the language model was called {calls} times for {tokens} tokens, as much as the whole run may"
    warnings.warn(f"{told} (run_calls, run_llm_tokens): the rest was done without it", chat.SpentWarning, stacklevel=3)


def train_pruner(
    recipe: str,
    model: str | Path,
    data: str | Path | Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Recovery:
    """Train the model with which a recipe prunes; it stands in `out`, to be given to `prune_context`.

    The same call again goes on from its last checkpoint.

    Args:
        recipe: "htmlrag", whose `path_model` this makes, or "provence", whose `model`.
        model: folder or Hub id of what is trained: a causal language model for the one, a reranker or encoder for the
            other. It stays as it is.
        data: a .jsonl file, or rows, with `question`, `html`, `text` or `passages`, and `answers`: text or a list of
            texts that the documents say. Rows for provence may hold more, or `sentences` and `labels` instead, see its
            `train`.
        out: the run directory.
        overwrite: start anew where `out` holds another run.
        options: of the recipe's `train`; and llm_timeout, llm_retries, llm_per_minute and llm_key (the environment
            variable that holds the key of a language model's server), of `runs.servers.servers`.

    Raises:
        InputError: an unknown option, a model that can't be opened, a recipe without training.
        DataError: no row, or one without the fields.
        RunError: `out` is in use, or holds another run.
    """
    module = importlib.import_module(recipes.find(recipe).__module__)
    if not hasattr(module, "train"):
        raise InputError(f"{recipe} trains no model")
    asked, own = servers.divided(module.train, options)
    chosen = keywords.flat(module.train, keywords.checked(module.train, own))
    rows = list(_taught(data, readings.of_recipe(recipe)))
    if not rows:
        raise DataError("there is no row to learn from: give question, documents and answers in each")
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    kind = typing.get_type_hints(module.train)["model"]
    learning = _OPENED[kind](str(model)).copied()
    bound = {name: value for name, value in chosen.items() if name not in chat.SPENDING}
    if not bound.get("training"):
        bound.pop("training", None)
    settings = {"recipe": recipe, "model": str(model), "data_sha256": digest, **bound}
    about = {
        "command": "train-pruner",
        "data": str(data) if isinstance(data, str | Path) else "rows",
        **{name: value for name, value in {**chosen, **options}.items() if name not in bound},
        "versions": environment.describe(),
    }
    with guard(Path(out)), Run.open(out, settings, about=about, overwrite=overwrite) as run:
        if (Path(out) / "training.json").is_file():
            record = json.loads((Path(out) / "training.json").read_text(encoding="utf-8"))
            return Recovery.from_dict(record["recovery"])
        packed = keywords.pack(module.train, asked.chosen(chosen, asked.meter()))
        recovery, notes = module.train(learning, rows, run, **packed)
        told = json.dumps({"recovery": asdict(recovery), "notes": notes}, indent=1)

        def save(folder: Path) -> None:
            learning.save(folder)
            (folder / "training.json").write_text(told, encoding="utf-8")

        run.publish(save)
    return cast(Recovery, recovery)


def configured(path: str | Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to call `train_pruner` with: the settings in a YAML file, a run.yaml say, where `given` says nothing else.

    Raises `InputError` where the file, or a key in it, can't be used.
    """

    def own(recipe: str) -> list[str]:
        module = importlib.import_module(recipes.find(recipe).__module__)
        taught = keywords.names(module.train) if hasattr(module, "train") else ()
        return [*taught, *keywords.names(servers.servers)]

    return configs.read(path, "train-pruner", train_pruner, given, more=own)


def _taught(data: str | Path | Sequence[Mapping[str, Any]], reading: Reading) -> Iterator[dict[str, Any]]:
    """Rows with a `question`, `documents` where they have some, and `answers` as a list where there are any."""
    given = [(f"row {number}", json.dumps(dict(row))) for number, row in enumerate(data, start=1)] \
        if isinstance(data, Sequence) and not isinstance(data, str) else _rows(Path(data), "")  # fmt: skip
    for where, text in given:
        try:
            row = _parsed(text)
            documents, titles = (
                readings.of_row(row, None) if any(name in row for name in readings.FIELDS) else ([], None)
            )
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        answers = row.get("answers")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(row.get("question"), str) or not (answers is None or isinstance(answers, list)) \
                or not all(isinstance(answer, str) for answer in answers or ()):  # fmt: skip
            raise DataError(f"{where} lacks question or answers: give text, and text or a list of texts")
        yield {**row, "documents": [reading.read(one) for one in documents], "titles": titles, "answers": answers}


# ------------------------------------------------------------------------------------------------------------- one


@dataclass(frozen=True, slots=True)
class _Job:
    """A recipe with its budget and options, checked: what is done for each question. It travels to other processes.

    options: by flag, see `keywords.flat`.
    """

    recipe: str
    budget: Budget
    options: Mapping[str, Any]
    servers: Servers

    @classmethod
    def of(cls, recipe: str, budget: str | Budget, options: Mapping[str, Any], source: object = "") -> _Job:
        """Checked; `source` is what is read."""
        reading, function = readings.of_recipe(recipe), recipes.find(recipe)
        asked, own = servers.divided(function, options, "" if reading.own else source)
        chosen = keywords.flat(function, keywords.checked(function, own))
        return cls(recipe, Budget.parse(budget), chosen, asked)

    @property
    def reading(self) -> Reading:
        """How its documents are read."""
        return readings.of_recipe(self.recipe)

    @property
    def function(self) -> Callable[..., Any]:
        """The recipe."""
        return recipes.find(self.recipe)

    def pack(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options by flag as the recipe takes them."""
        return keywords.pack(self.function, options)

    def opened(self, documents: Document, titles: Sequence[str | None] | None = None) -> Any:
        """What a user gave, opened."""
        if not self.reading.own:
            return self.reading.opened([self.servers.opened(documents)], titles)
        return self.reading.opened(documents if isinstance(documents, list | tuple) else [documents], titles)

    def with_graph(self, graph: str | Path) -> None:
        """Refuse a graph that is not wanted, one that is missing, and an address that is none."""
        if bool(graph) is self.reading.own:
            wanted = "give no graph" if self.reading.own else "give the graph"
            raise InputError(f"{self.recipe} reads a {self.reading.noun}: {wanted}")
        self.servers.opened(graph)

    def trial(self) -> None:
        """Refuse a budget, model or option that nothing could be pruned with. No language model is asked."""
        with suppress(InfeasibleError):  # a share of a page of one word
            self.one(self.reading.trial(), "word", Meter(most_calls=0))

    def one(self, subject: Any, question: object, meter: Meter) -> Pruned:
        """What stays for one question; `meter` counts what the language model takes."""
        if not isinstance(question, str) or not question.strip():
            raise InputError("there is no question: say what the documents are to answer")
        run, chosen = Transient(), self.servers.chosen(self.options, meter)
        (result,) = self.function(subject, markup.whole(question), [self.budget], run, **self.pack(chosen))
        trace, told = run.values[f"trace-{self.budget}"], run.values.get(f"told-{self.budget}", {})
        text, parts = markup.whole(result.subject.written()), readings.parts(result.subject)
        return Pruned(text, result.cut.before, result.cut.after, trace, question, told, parts)


# ------------------------------------------------------------------------------------------------------------ files


def _rows(source: Path, question: str) -> Iterator[Given]:
    """(where it stands, JSON) of each thing to prune; of a folder's pages the JSON names the file."""
    if source.is_dir():
        if not question.strip():
            raise InputError(f"{source} is a folder of pages, and they hold no question: give one (--question)")
        kinds = (".html", ".htm", ".txt", ".md")
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in kinds and path.is_file())
        if not found:
            raise DataError(f"{source} holds no page: it has none of {', '.join(kinds)}")
        for path in found:
            named = {"file": str(path.relative_to(source)), "question": question}
            yield str(path), json.dumps(named, ensure_ascii=False)
        return
    name = _named(source)
    try:
        with nullcontext(sys.stdin.buffer) if str(source) == _STDIN else source.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{name}, line {number}", _asked(line.decode("utf-8", "replace"), question)
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}: give a .jsonl file or a folder of pages") from error


def _piped(source: Path) -> bool:
    """Whether it can be read once alone: the standard input, or what is neither file nor folder."""
    return str(source) == _STDIN or (source.exists() and not source.is_file() and not source.is_dir())


def _counted(source: Path, question: str) -> int:
    """How many things there are to prune; `DataError` for none."""
    count = sum(1 for _ in _rows(source, question))
    if not count:
        raise _no_line(source)
    return count


def _named(source: Path) -> str:
    return "the standard input" if str(source) == _STDIN else str(source)


def _no_line(source: Path) -> DataError:
    return DataError(f"{_named(source)} holds no line: {_WANTED}")


def _ahead(source: Path, rows: Iterator[Given], done: int) -> tuple[Iterator[Given], int]:
    """The rows behind those that are done, and how many they are, where they are but few: else `_FEW`.

    Raises `DataError` where there is none at all, `RunError` where there are fewer than are done.
    """
    skipped = sum(1 for _ in islice(rows, done))
    if skipped < done:
        raise RunError(
            f"{_named(source)} holds {skipped} lines, and {done} are written already: give the same, or overwrite "
            "(--overwrite)"
        )
    first = list(islice(rows, _FEW))
    if not first and not done:
        raise _no_line(source)
    return chain(first, rows), len(first)


def _plain(value: object) -> bool:
    """Whether an option goes from process to process."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return isinstance(value, str | int | float | None)


def _asked(line: str, question: str) -> str:
    """The line with `question` where it has none."""
    if not question:
        return line
    try:
        row = json.loads(line)
    except ValueError:
        return line
    return json.dumps({"question": question, **row}, ensure_ascii=False) if isinstance(row, dict) else line


def _line(job: _Job, graph: str, trace: bool, strict: bool, ledger: Path | None, given: Given) -> tuple[str, bool]:
    """The line of the answer, and whether it failed."""
    row: dict[str, Any] = {}
    try:
        row = _parsed(given[1])
        found = _cut(job, graph, given[0], row, job.servers.meter(ledger))
    except Exception as error:
        if is_disk_full(error):  # no other line can be written either
            raise
        if strict:
            kind = type(error) if isinstance(error, SecateurError) else RunError
            raise kind(f"{given[0]}: {_explained(error)}") from error
        return _json({**row, "pruned": "", "error": _explained(error)}), True
    measure = "tokens" if "tokens" in found.after else "words"
    answer = {
        **row, "pruned": found.text, f"{measure}_before": int(found.before[measure]),
        f"{measure}_after": int(found.after[measure]),
    }  # fmt: skip
    answer |= {"pruned_passages": found.documents} if readings.field(row) == "passages" and found.documents else {}
    answer |= {"told": found.told} if found.told else {}
    answer |= {"trace": found.trace} if trace else {}
    return _json(answer), False


def _json(row: Mapping[str, Any]) -> str:
    """A line of JSON that can be encoded: where it holds a lone half of a surrogate pair, all but ASCII is escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if text == markup.whole(text) else json.dumps(row)) + "\n"


def _cut(job: _Job, graph: str, where: str, row: Mapping[str, Any], meter: Meter) -> Pruned:
    """What stays of what a line holds, or of the graph that all lines ask."""
    documents, titles = readings.of_row(row, Path(where)) if job.reading.own else ([job.servers.opened(graph)], None)
    job = replace(job, options={**job.options, **readings.options(row, job.options)})
    return job.one(job.reading.opened(documents, titles), row.get("question"), meter)


def _parsed(text: str) -> dict[str, Any]:
    """The fields of a line."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this line is no JSON: {_WANTED}") from error
    if not isinstance(row, dict):
        raise DataError(f"this line is a {type(row).__name__}: {_WANTED}")
    return row


def _resumed(part: Path, record: Path, settings: str, overwrite: bool) -> tuple[int, int]:
    """(lines that are done, those of them that failed); what stands behind the last whole line is taken back."""
    if overwrite or not part.exists():
        part.unlink(missing_ok=True)
        return 0, 0
    if not record.exists() or json.loads(record.read_text(encoding="utf-8")) != json.loads(settings):
        raise RunError(f"{part} was made by other settings: give another name, or overwrite it (--overwrite)")
    done = failed = whole = 0
    with part.open("rb+") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            row = json.loads(line)
            whole, done = whole + len(line), done + 1
            failed += row.get("pruned") == "" and "error" in row
        lines.truncate(whole)
    return done, failed


def _mapped(
    work: Callable[[Given], tuple[str, bool]], rows: Iterable[Given], workers: int
) -> Iterator[tuple[str, bool]]:
    """The answers in the order of the rows; a few rows ahead are in work, so that a file need not fit into memory."""
    if workers == 1:
        yield from map(work, rows)
        return
    rows, waiting = iter(rows), list[Given]()
    for again in (True, False):
        try:
            yield from _pooled(work, rows, waiting, workers)
            return
        except BrokenProcessPool as error:
            if not again:
                raise RunError(
                    "a helping process was killed, and so was another in its place, perhaps for want of memory: the "
                    "same call goes on where this one stopped, and fewer processes need less"
                ) from error


def _pooled(
    work: Callable[[Given], tuple[str, bool]], rows: Iterator[Given], waiting: list[Given], workers: int
) -> Iterator[tuple[str, bool]]:
    """The answers of other processes. In `waiting` stand rows that have none yet: those that are begun with, and added.

    Raises `BrokenProcessPool` where one of the processes was killed.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, quiet.helpers(), quiet.helper, (threads, dict(os.environ))) as pool:
        futures = [pool.submit(work, row) for row in waiting]
        try:
            for row in chain(rows, repeat(None)):
                if row is not None:
                    waiting.append(row)
                    futures.append(pool.submit(work, row))
                elif not futures:
                    return
                if row is None or len(futures) > 4 * workers:
                    found = futures[0].result()
                    del futures[0], waiting[0]
                    yield found
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _bar(count: int | None, done: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal; what it yields, called, says that one more is done."""
    columns = (TextColumn("pruning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("", total=count, completed=done)
        yield partial(progress.advance, task)
