"""Which way of cutting what a model reads keeps the answers, at equal tokens?

Questions with known answers go through pipelines side by side: nothing cut, the first words, chunks and LangChain's
splitter ranked by BM25 or an embedder, and recipes of the family context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import yaml
from annotated_types import Ge

from secateur import recipes as catalogue
from secateur._utils.http import RefusedError
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.errors import InputError, SecateurError
from secateur.measure import answers, statistics
from secateur.methods import chunking
from secateur.methods.similarity import Similarity
from secateur.reports.sheet import Sheet, Table, percent
from secateur.retrieval.encoders import Count, Embed, Encoding
from secateur.runs import keywords
from secateur.runs.backends import documents as reading
from secateur.runs.backends.documents import Document
from secateur.runs.context import Job, parse_budget
from secateur.runs.questions import Question, Questions
from secateur.runs.questions import read as read  # what `studies.executor` reads the data with
from secateur.subjects import Page, open_page
from secateur.subjects.text import markup
from secateur.vocabulary import Budget, Figure

__all__ = ["STUDY", "Compared", "Pipeline", "plan", "rag"]

STUDY = {
    "title": "does what is left hold the answer? recipes beside chunks, a splitter, and cutting off",
    "recipe": "",
    "reads": "questions with answers: a .jsonl file",
    "sets": "",
    "grid": "budgets recipes words",
}

READER = "Text:\n{text}\n\nQuestion: {question}\nAnswer by what the text says, in as few words as will do.\nAnswer: "
"""What a reader is asked."""

WHOLE, FIRST, SPLITTER = "nothing cut", "first words", "LangChain's splitter"
MOST_LOST = 100
"""Questions in the last table; items.jsonl has all."""


# ----------------------------------------------------------------------------------------------------------- pipelines


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A way of cutting: a question and budgets -> what is left of its documents under each, as plain text or HTML."""

    name: str
    cut: Callable[[Question, Sequence[Budget]], list[str]]
    ours: bool = False
    """Whether it is a recipe."""
    html: bool = False
    """Whether what it leaves of a page is HTML, and no text."""

    def __str__(self) -> str:
        return self.name


@lru_cache(maxsize=64)
def _page(document: Document) -> Page | None:
    """A document as a page, where it is HTML: it is read once for all pipelines that ask of it in turn."""
    return open_page(document, block=0) if reading.is_html(document) else None


def _text(document: Document) -> str:
    """A document's text, of HTML that of its blocks, one behind the other."""
    page = _page(document)
    if page is not None:
        return "\n\n".join(page.text(block) for block in range(len(page.blocks)))
    text = reading.as_text(document)
    return text if isinstance(text, str) else " ".join(text)


def _texts(question: Question) -> list[str]:
    return [_text(document) for document in question.documents]


def _chunks(question: Question, words: int, headed: bool) -> list[str]:
    """All documents in pieces of so many words."""
    found, titles = list[str](), question.titles or [None] * len(question.documents)
    for document, title in zip(question.documents, titles, strict=True):
        if (page := _page(document)) is not None:
            found += chunking.chunks_of_page(page, words, headed=headed)
        else:
            found += chunking.chunks_of_text(_text(document), words, (title or "") if headed else "")
    return found


def _rivals(embed: Embed | None, count: Count, words: Sequence[int], letters: int) -> list[Pipeline]:
    """The pipelines without a recipe."""

    def rank(name: str, split: Callable[[Question], list[str]], by: str, alike: Similarity) -> Pipeline:
        def cut(question: Question, budgets: Sequence[Budget]) -> list[str]:
            pieces = split(question)
            scores = alike.rank(question.question, pieces)
            return [chunking.best_that_fit(pieces, scores, _limit(budget), count) for budget in budgets]

        return Pipeline(f"{name} by {by}", cut)

    def cut_off(question: Question, budgets: Sequence[Budget]) -> list[str]:
        text = "\n\n".join(_texts(question))
        return [chunking.first_that_fit(text, _limit(budget), count) for budget in budgets]

    ways: dict[str, Callable[[Question], list[str]]] = {}
    for size in words:
        ways[f"chunks of {size} words"] = partial(_chunks, words=size, headed=False)
        ways[f"chunks of {size} words under headings"] = partial(_chunks, words=size, headed=True)
    if letters:
        chunking.split_recursively("", letters)  # without LangChain's splitter this is refused before any work
        ways[SPLITTER] = lambda question: [
            piece for text in _texts(question) for piece in chunking.split_recursively(text, letters)
        ]
    judges = {"BM25": Similarity(None), **({"embedder": Similarity(embed)} if embed else {})}
    ranked = [rank(name, split, by, alike) for by, alike in judges.items() for name, split in ways.items()]
    return [Pipeline(FIRST, cut_off), *ranked]


def _limit(budget: Budget) -> float:
    return budget.limits[0].value


def _recipe(name: str, graph: str, options: Mapping[str, object]) -> Pipeline:
    """A recipe as a pipeline. Raises what it refuses, before any work."""
    trial = Job.of(name, "words=100", options, graph)
    trial.check_graph("" if trial.reader.brings_documents else graph)
    trial.check_trial()

    def cut(question: Question, budgets: Sequence[Budget]) -> list[str]:
        jobs = [Job.of(name, budget, options, graph) for budget in budgets]
        brings, titled = trial.reader.brings_documents, trial.reader.titled
        subject = trial.open(list(question.documents) if brings else graph, question.titles if titled else None)
        return [job.prune(subject, question.question, job.servers.meter()).text for job in jobs]

    return Pipeline(name, cut, ours=True, html=isinstance(trial.reader, reading.Pages))


def _recipe_options(name: str, shared: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """What of `shared` a recipe takes, where it was given, and its `own` settings."""
    known = keywords.names(catalogue.find(name))
    return {key: value for key, value in shared.items() if value and key in known} | dict(own)


def _read_settings(settings: Sequence[str], recipes: Sequence[str]) -> dict[str, dict[str, object]]:
    """Recipe -> its own settings, of "htmlrag.wide=3". Raises `InputError` for one of a recipe that is not run."""
    found = dict[str, dict[str, object]]()
    for setting in settings:
        name, _, rest = setting.partition(".")
        key, equals, value = rest.partition("=")
        if not key or not equals:
            raise InputError(f"setting {setting!r} was not understood: give RECIPE.OPTION=VALUE, htmlrag.wide=3")
        if name not in recipes:
            raise InputError(f"setting {setting!r} is of no recipe that is run here: of {', '.join(recipes) or 'none'}")
        found.setdefault(name, {})[key.replace("-", "_")] = yaml.safe_load(value)
    return found


# ----------------------------------------------------------------------------------------------------------- the study

SPENDING = (
    "Means of what is left, and the median of seconds for all budgets together. What an embedder read for an earlier "
    "pipeline is not read again."
)
"""What stands below the table of costs."""

READING = "Exact match, with Wilson's interval, and F1 of words, with that of a bootstrap, as SQuAD counts them."
"""What stands below the table of a reader's answers."""

Item = Mapping[str, Any]
"""What became of a question: kept, cost, seconds; of a reader's answer exact_match and f1; error where it failed,
refused where the reader refused the text."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What each pipeline kept: `items` are those of each budget (none of what cuts nothing: "") by question."""

    questions: Questions
    measure: str
    recipes: tuple[str, ...]
    budgets: tuple[str, ...]
    items: Mapping[str, Mapping[str, Sequence[Item]]]

    def recall(self, pipeline: str, budget: str) -> Figure:
        """The share of questions of which an answer stands in what is left, with Wilson's interval."""
        kept = [bool(item["kept"]) for item in self.items[pipeline][budget]]
        return statistics.proportion(sum(kept), len(kept))

    def best_rival(self, budget: str) -> str:
        """What keeps the most answers without a recipe; of equals the first."""
        rivals = [name for name in self.items if name not in (*self.recipes, WHOLE)]
        return max(rivals, key=lambda name: self.recall(name, budget).value)

    def lead(self, recipe: str, budget: str) -> Figure:
        """A recipe's recall minus that of the best rival, paired over questions, with the interval of a bootstrap."""
        pair = (recipe, self.best_rival(budget))
        ours, rival = ([float(item["kept"]) for item in self.items[name][budget]] for name in pair)
        return statistics.paired_bootstrap(ours, rival)

    def sheet(self) -> Sheet:
        """Tables and figures; every item in a line of its own."""
        tables = [self._recalls(), *self._leads(), self._spending(), *self._reader(), *self._lost()]
        figures, notes = dict[str, dict[str, Any]](), list[str]()
        for name, by in self.items.items():
            figures[name] = {
                budget: {"recall": asdict(self.recall(name, budget)), "cost": self._mean_cost(name, budget)}
                for budget in by
            }
            failed, refused = (
                sum(what in item for items in by.values() for item in items) for what in ("error", "refused")
            )
            notes += [f"{name} failed {failed} times: items.jsonl says why"] * bool(failed)
            if refused:
                many = f"{refused} of {sum(map(len, by.values()))}"
                notes.append(f"The reader refused {many} texts of {name}: they count as not answered (items.jsonl)")
        return Sheet("rag", self._headline(), tables, {"recall": figures}, notes, items=list(self._lines()))

    def _lines(self) -> Iterator[Item]:
        for name, by in self.items.items():
            for budget, items in by.items():
                for question, item in zip(self.questions.rows, items, strict=True):
                    asked = {"question": question.question, "answers": question.answers}
                    yield {"pipeline": name, "budget": budget, **asked, **item}

    def _recalls(self) -> Table:
        whole = f"{WHOLE} ({self._mean_cost(WHOLE, ''):,.0f} {self.measure})"
        rows = [["Pipeline", *self.budgets], [whole, *[percent(self.recall(WHOLE, ""))] * len(self.budgets)]]
        rows += [
            [name, *(percent(self.recall(name, budget)) for budget in self.budgets)]
            for name in self.items
            if name != WHOLE
        ]
        words = f"Of {len(self.questions.rows)} questions: is an answer in what is left? Intervals are Wilson's."
        return Table("Answers kept, % of questions", rows, words)

    def _leads(self) -> list[Table]:
        """Recipes beside the best rival."""
        if not self.recipes:
            return []
        rows = [["Budget", "Best rival", *self.recipes]]
        for budget in self.budgets:
            leads = (percent(self.lead(name, budget), signed=True) for name in self.recipes)
            rows.append([budget, self.best_rival(budget), *leads])
        words = "Bootstrapped pairs of a question. The rival is the best on these very questions, which favours it."
        return [Table("Ahead of the best rival, percentage points", rows, words)]

    def _headline(self) -> str:
        budget = self.budgets[0]
        rival = self.best_rival(budget)
        theirs = 100 * self.recall(rival, budget).value
        if not self.recipes:
            return f"At {budget}, {rival} keeps the answers of {theirs:.0f} % of the questions"
        name = max(self.recipes, key=lambda recipe: self.recall(recipe, budget).value)
        ours, lead = 100 * self.recall(name, budget).value, percent(self.lead(name, budget), signed=True)
        return (
            f"At {budget}, {name} keeps the answers of {ours:.0f} % of the questions, {rival} of {theirs:.0f} %: "
            f"{lead} points"
        )

    def _mean_cost(self, name: str, budget: str) -> float:
        return float(mean(item["cost"] for item in self.items[name][budget]))

    def _spending(self) -> Table:
        rows = [["Pipeline", *(f"{self.measure} left, {budget}" for budget in self.budgets), "Seconds a question"]]
        for name, by in self.items.items():
            if name != WHOLE:
                seconds = median(
                    sum(by[budget][place]["seconds"] for budget in self.budgets)
                    for place in range(len(self.questions.rows))
                )
                costs = (f"{self._mean_cost(name, budget):,.0f}" for budget in self.budgets)
                rows.append([name, *costs, f"{seconds:.3f}"])
        return Table("What it takes", rows, SPENDING)

    def _reader(self) -> list[Table]:
        """Exact match and F1 of a reader's answers, if one was asked."""
        if "f1" not in self.items[WHOLE][""][0]:
            return []
        rows = [["Pipeline", *(f"{name}, {budget}" for budget in self.budgets for name in ("EM", "F1"))]]
        for name, by in self.items.items():
            cells = list[str]()
            for budget in self.budgets:
                items = by.get(budget, by.get("", ()))
                exact, alike = ([item[key] for item in items] for key in ("exact_match", "f1"))
                cells.append(percent(statistics.proportion(int(sum(exact)), len(exact))))
                cells.append(percent(statistics.bootstrap(lambda shares: float(shares.mean()), alike)))
            rows.append([name, *cells])
        return [Table("What a reader answers, %", rows, READING)]

    def _lost(self) -> list[Table]:
        """Questions whose answer some pipeline loses and another keeps, at the first budget."""
        budget, rows = self.budgets[0], [["Question", "Answer", "Kept by", "Lost by"]]
        names = [name for name in self.items if name in (*self.recipes, self.best_rival(budget), FIRST)]
        for place, question in enumerate(self.questions.rows):
            kept = [name for name in names if self.items[name][budget][place]["kept"]]
            if len(kept) < len(names):
                lost = ", ".join(name for name in names if name not in kept)
                rows.append([question.question, question.answers[0], ", ".join(kept) or "–", lost])
        words = f"The first {MOST_LOST} of {len(rows) - 1}." if len(rows) - 1 > MOST_LOST else ""
        return [Table(f"Where answers were lost, {budget}", rows[: MOST_LOST + 1], words)] if len(rows) > 1 else []


def rag(
    subject: None,
    data: Questions,
    folder: str | Path,
    progress: Callable[[Sequence[Pipeline]], Iterable[Pipeline]] = iter,
    *,
    budgets: Sequence[str] = ("tokens=256", "tokens=512", "tokens=1024"),
    recipes: Sequence[str] = ("htmlrag",),
    embedder: str = "",
    tokenizer: str = "",
    pruner: str = "",
    graph: str = "",
    settings: Sequence[str] = (),
    words: Sequence[int] = (50, 100, 200),
    letters: Annotated[int, Ge(0)] = 0,
    reader: str = "",
    reader_name: str = "",
    device: str = "",
) -> Compared:
    """What each pipeline keeps of the answers to questions, under equal budgets.

    Args:
        subject: none.
        data: the questions, see `questions.read`.
        folder: a run directory; a pipeline that is done is not run again.
        progress: wraps the pipelines, such as rich.progress.track.
        budgets: of what is left: tokens=512, or words=400 where there is no tokenizer.
        recipes: of the family context; `secateur list` has them.
        embedder: folder or Hub id of a bi-encoder, for the recipes that take one and for rivals by embedder.
        tokenizer: folder or Hub id of the tokenizer that counts; the embedder's own if not given.
        pruner: folder or Hub id of one, for provence, which calls it model.
        graph: what recipes on graphs read: a file, a folder, or the address of an endpoint.
        settings: options of one recipe, RECIPE.OPTION=VALUE: htmlrag.wide=3.
        words: sizes of the rivals' chunks, with and without the headings that they stand under.
        letters: of the pieces of LangChain's splitter (extra langchain); 0 leaves this rival out.
        reader: folder, Hub id or address of a language model that answers by what is left; none if empty.
        reader_name: of the reader, where it is a server's.
        device: where models are held, "cuda"; the processor if empty.

    Raises `InputError` for budgets that are no equal limits, and for what a recipe refuses.
    """
    limits, measure, count = _measure(budgets, embedder, tokenizer)
    shared = {"embedder": embedder, "tokenizer": tokenizer, "model": pruner, "device": device}
    own = _read_settings(settings, recipes)
    ours = [_recipe(name, graph, _recipe_options(name, shared, own.get(name, {}))) for name in recipes]
    rivals = _rivals(Encoding(embedder, device=device).open_embedder(), count, words, letters)
    ask = chat.open_model(reader, reader_name, device=device) if reader else None
    items: dict[str, dict[str, list[Item]]] = {}
    how = {
        **shared,
        "graph": graph,
        "settings": settings,
        "letters": letters,
        "reader": reader,
        "reader_name": reader_name,
        "data_sha256": data.digest,
    }
    with Run.open(folder, how) as run:
        whole = Pipeline(WHOLE, lambda question, _: ["\n\n".join(_texts(question))])
        for pipeline in progress([whole, *rivals, *ours]):
            asked = [Budget()] if pipeline is whole else limits
            fresh: dict[str, list[Item]] = {}

            def compute(
                budget: str,
                pipeline: Pipeline = pipeline,
                asked: Sequence[Budget] = asked,
                fresh: dict[str, list[Item]] = fresh,
            ) -> list[Item]:
                if not fresh:
                    fresh.update(_answer(pipeline, data.rows, asked, count, ask))
                return fresh[budget]

            items[pipeline.name] = {
                name: run.json(f"{pipeline.name}, {name or 'all'}", partial(compute, name)) for name in map(str, asked)
            }
    return Compared(data, measure, tuple(recipes), tuple(map(str, limits)), items)


def plan(
    subject: None,
    data: Questions,
    *,
    budgets: Sequence[str],
    recipes: Sequence[str],
    embedder: str,
    tokenizer: str,
    words: Sequence[int],
    letters: int,
    reader: str,
    settings: Sequence[str] = (),
    **others: object,
) -> dict[str, int]:
    """How many cuts `rag` will make; budgets and names that it would refuse are refused here."""
    limits, _, _ = _measure(budgets, embedder, tokenizer)
    _read_settings(settings, recipes)
    for name in recipes:
        reading.of_document_recipe(name)
    if not all(size > 0 for size in words):
        raise InputError(f"words={list(words)}: give sizes of chunks, at least 1")
    rivals = 1 + (2 * len(words) + bool(letters)) * (1 + bool(embedder))
    cuts = len(data.rows) * len(limits) * (rivals + len(recipes))
    return {
        "questions": len(data.rows),
        "cuts": cuts,
        **({"answers of the reader": cuts + len(data.rows)} if reader else {}),
    }


def _measure(budgets: Sequence[str], embedder: str, tokenizer: str) -> tuple[list[Budget], str, Count]:
    """The budgets, what they limit, and what counts it."""
    limits = [parse_budget(budget) for budget in budgets]
    measures = {limit.measure for budget in limits for limit in budget.limits}
    equal = all(len(one.limits) == 1 and not one.limits[0].relative and one.pattern is None for one in limits)
    if not limits or not equal or len(measures) != 1 or not measures <= {"tokens", "words"}:
        raise InputError(
            f"budgets {', '.join(budgets) or 'none'}: give equal limits for all pipelines, such as "
            "tokens=256, or words=200 where there is no tokenizer"
        )
    (measure,) = measures
    if measure == "words":
        return limits, measure, lambda texts: [markup.words(text) for text in texts]
    counts = Encoding(embedder, tokenizer).counts()
    if not counts:
        raise InputError("tokens are counted by a tokenizer: give one (--tokenizer), or budgets of words (words=400)")
    return limits, measure, counts["tokens"]


def _answer(
    pipeline: Pipeline,
    questions: Sequence[Question],
    budgets: Sequence[Budget],
    count: Count,
    reader: chat.LanguageModel | None,
) -> dict[str, list[Item]]:
    """Budget -> what became of each question."""
    found: dict[str, list[Item]] = {str(budget): [] for budget in budgets}
    for question in questions:
        began, error = time.perf_counter(), ""
        try:
            left = pipeline.cut(question, budgets)
        except SecateurError as refused:  # the question is lost, the others are not
            left, error = [""] * len(budgets), " ".join(str(refused).split())
        seconds = (time.perf_counter() - began) / len(budgets)
        for budget, text in zip(budgets, left, strict=True):
            plain = open_page(text, block=0).text() if pipeline.html and reading.is_html(text) else text
            item = {
                "kept": answers.holds(plain, question.answers),
                "cost": count([text])[0],
                "seconds": seconds,
                **({"error": error} if error else {}),
            }
            if reader is not None:
                item |= _ask(reader, text, question)
            found[str(budget)].append(item)
    return found


def _ask(reader: chat.LanguageModel, text: str, question: Question) -> Item:
    """What a reader answers by a text, and how right that is; no answer, and why, where it refuses the text.

    Raises what it says where it refuses the question without a text, too.
    """
    ask = partial(chat.ask_text, reader, most=64)
    try:
        reply, why = ask(READER.format(text=text, question=question.question)), ""
    except (InputError, RefusedError) as refused:  # longer than it reads, mostly
        ask(READER.format(text="", question=question.question))
        reply, why = "", " ".join(str(refused).split())
    said = reply.strip().partition("\n")[0]
    return {
        "answer": said,
        "exact_match": answers.exact_match(said, question.answers),
        "f1": answers.token_f1(said, question.answers),
        **({"refused": why} if why else {}),
    }
