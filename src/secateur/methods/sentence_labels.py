"""Labels of sentences: from rows, from a language model that cites its sources, or from the answers they contain.

Chirkova, Formal, Nikoulina and Clinchant, "Provence", ICLR 2025 (arXiv 2501.16214), section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import numpy as np

from secateur._utils import distributed
from secateur._utils.http import RefusedError
from secateur._utils.rundir import Run
from secateur.clients import chat
from secateur.errors import BudgetError, DataError, InputError, RunError
from secateur.methods.asking import Record
from secateur.retrieval import encoders
from secateur.retrieval.rerankers import Reranker
from secateur.score import citations, relevance
from secateur.subjects.text import markup
from secateur.subjects.text.passage import open_passages, sentences

__all__ = ["find_passages", "join_labels", "label_pairs"]

Row = Mapping[str, Any]
TitledPassage = tuple[bool, Sequence[str]]
"""Whether the first of the sentences is a title, and the sentences."""

ORACLES = {
    "answer": (
        "Answer the question from the numbered sentences alone, and behind each statement cite in square brackets all "
        'sentences that it uses, such as [0] or [1, 4]. If they do not help, say "No answer". Say nothing else.'
    ),
    "relevance": (
        "Sum up what the numbered sentences say that matters for the question, and cite in square brackets all that "
        'you use, such as [0] or [1, 4]. If none matters, say "No answer". Say nothing else.'
    ),
    "indices": (
        "List the numbers of the sentences that matter for the question in square brackets, such as [0, 3, 4]. If none "
        'matters, say "No answer". Say nothing else.'
    ),
}
AT_ONCE = 8
"""Rows that a server is asked about at once."""
READ, SAID = 2048, 256
"""Tokens that a labeller reads, about, and says."""
PROBE = "Is water wet? Answer yes or no."
"""What any labeller can read."""


def join_labels(rows: Sequence[Row]) -> list[Row]:
    """The rows; those with `sentences` and `labels` get `documents` and `kept` of them. `DataError` for others."""
    found = list[Row]()
    for number, row in enumerate(rows, start=1):
        if row.get("sentences") is None:
            found.append(row)
            continue
        if row.get("documents") or row.get("titles") or row.get("kept") is not None:
            raise DataError(f"row {number} has sentences beside passages, titles or kept: give sentences and labels")
        passages = _with_labels(row["sentences"], row.get("labels"))
        if passages is None:
            raise DataError(f"row {number}: give sentences, a list of texts, and labels, a 1 or 0 for each of them")
        kept = [[i for i, (_, label) in enumerate(passage) if label] for passage in passages]
        found.append({**row, "documents": [[text for text, _ in passage] for passage in passages], "kept": kept})
    return found


def _with_labels(sentences: Any, labels: Any) -> list[list[tuple[str, bool]]] | None:
    """Of each passage its sentences with their labels, empty ones left out; None where these are not such lists."""
    if isinstance(sentences, list) and all(isinstance(text, str) for text in sentences):
        sentences, labels = [sentences], [labels]
    found = list[list[tuple[str, bool]]]()
    try:
        for texts_of, labels_of in zip(sentences, labels, strict=True):
            both = list(zip(texts_of, labels_of, strict=True))
            if isinstance(texts_of, str) or any(label not in (0, 1) for _, label in both):
                return None
            found.append([(markup.whole(text), bool(label)) for text, label in both if text.strip()])
    except (TypeError, ValueError, AttributeError):  # no lists, or not as many, or no texts
        return None
    return found


def label_pairs(
    rows: Sequence[Row], run: Run, model: chat.LanguageModel | None, oracle: str, language: str
) -> tuple[list[Record], int]:
    """Pairs of question, sentences, numbers of those that matter, and perhaps a score; and how many had no label.

    A server is asked for the labels of `AT_ONCE` rows at once, a model in memory for one after another; of several
    processes the first asks.
    """
    pairs, lost = list[Record](), 0
    opened = [open_passages(row["documents"], titles=row.get("titles"), split=language).by_passage() for row in rows]
    asked = {
        number: [(bool(title), passage) for title, passage in zip(_titles(row), opened[number], strict=True)]
        for number, row in enumerate(rows)
        if model and row.get("kept") is None
    }
    made = distributed.by_first(partial(_ask_rows, rows, run, model, asked, ORACLES[oracle])) if model else {}
    for number, (row, passages) in enumerate(zip(rows, opened, strict=True)):
        labels = row.get("kept")
        if labels is not None and len(labels) != len(passages):
            raise DataError(f"row {number + 1} has {len(passages)} passages and {len(labels)} lists of kept sentences")
        if labels is None and model is not None:
            labels = made[number]
        elif labels is None:
            labels = [_find_answers(passage, row.get("answers") or ()) for passage in passages]
        scores = row.get("scores") or [None] * len(passages)
        targets = row.get("targets") or [None] * len(passages)
        _check_targets(number + 1, targets, passages)
        for passage, kept, score, likely in zip(passages, labels, scores, targets, strict=True):
            lost += kept is None
            if kept is not None and passage:
                pair = {"question": str(row["question"]), "sentences": passage, "kept": kept, "score": score}
                pairs.append({**pair, "targets": likely} if likely else pair)
    return pairs, lost


def _check_targets(number: int, targets: Sequence[Sequence[float] | None], passages: Sequence[Sequence[str]]) -> None:
    """Raise `DataError` unless each passage has none, or a probability for each of its sentences."""
    right = len(targets) == len(passages) and all(
        likely is None or (len(likely) == len(passage) and all(0 <= value <= 1 for value in likely))
        for likely, passage in zip(targets, passages, strict=False)
    )
    if not right:
        raise DataError(f"row {number}: give targets, for each passage a number from 0 to 1 for each of its sentences")


def _titles(row: Row) -> Sequence[str | None]:
    """The title of each passage of a row, which is its first sentence; None where it has none."""
    return row.get("titles") or [None] * len(row["documents"])


def _ask_rows(
    rows: Sequence[Row],
    run: Run,
    model: chat.LanguageModel,
    asked: Mapping[int, Sequence[TitledPassage]],
    task: str,
) -> dict[int, list[list[int] | None]]:
    """The labels of rows, by their numbers; each is kept in the run as soon as it is there.

    Raises `RunError` where no more calls or tokens are allowed.
    """

    def ask(number: int) -> list[list[int] | None]:
        question = str(rows[number]["question"])
        labels: list[list[int] | None] = run.json(
            f"labels-{number}", partial(_ask_labels, model, question, asked[number], task)
        )
        return labels

    found = dict[int, list[list[int] | None]]()
    with ThreadPoolExecutor(AT_ONCE if isinstance(model, chat.Server) else 1) as pool:
        # Each thread knows, as this one does, whether other processes wait meanwhile.
        waiting = {number: pool.submit(copy_context().run, ask, number) for number in asked}
        try:
            for number, answer in waiting.items():
                found[number] = answer.result()
        except BudgetError as error:  # no refusal: what was paid for stays in the run
            pool.shutdown(cancel_futures=True)
            count = sum(one.done() and not one.cancelled() and one.exception() is None for one in waiting.values())
            raise RunError(f"{error}, and run the same command again: {count} rows have their labels") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _ask_labels(
    model: chat.LanguageModel, question: str, passages: Sequence[TitledPassage], task: str
) -> list[list[int] | None]:
    """For each passage the sentences that the model cites; None where it gives no label, or can't read the passage."""
    labels: list[list[int] | None] = []
    for titled, passage in passages:
        prompt = f"{task}\n\nQuestion: {question}\n\nSentences:\n"
        text = _fit_lines(model, prompt, [f"[{i}] {sentence}\n" for i, sentence in enumerate(passage)])
        numbers = None
        try:
            if text:
                answer = chat.ask_text(model, prompt + text, most=SAID)
                numbers = citations.read_citations(answer, len(passage), titled=titled)
        except (InputError, RefusedError):
            chat.ask_text(model, PROBE, most=SAID)  # raises where it is not the passage that is wrong
        labels.append(None if numbers is None else sorted(numbers))
    return labels


def _fit_lines(model: chat.LanguageModel, prompt: str, lines: Sequence[str]) -> str:
    """The lines that a labeller has room for behind its prompt: by its tokens, or about four bytes a token."""
    room, sizes = 4.0 * READ, [len(line.encode()) for line in lines]
    if isinstance(model, chat.Local):
        room = min(READ, model.window - SAID - len(model.prompt(prompt)))
        sizes = list(encoders.counter(model.tokenizer)(lines))
    text = ""
    for line, size in zip(lines, sizes, strict=True):
        if size <= room:
            text, room = text + line, room - size
    return text


def _find_answers(passage: Sequence[str], answers: Sequence[str]) -> list[int] | None:
    """The sentences that say one of the answers; None where there is no answer to look for."""
    wanted = [" ".join(markup.terms(answer)) for answer in answers]
    wanted = [f" {answer} " for answer in wanted if answer]
    texts = [f" {' '.join(markup.terms(sentence))} " for sentence in passage]
    return [i for i, text in enumerate(texts) if any(answer in text for answer in wanted)] if wanted else None


def find_passages(
    rows: Sequence[Row],
    corpus: Sequence[str],
    run: Run,
    model: Reranker,
    language: str,
    seed: int,
    *,
    retrieved: int = 50,
    best: int = 5,
) -> list[Record]:
    """The rows; those without `documents` get the `best` of a corpus, with `titles`.

    A document is cut into passages of N sentences, N drawn from 1 to 10 in proportion to itself; each begins in the
    middle of the one before. BM25 finds `retrieved` of them, and the model puts those in order, if it ranks.
    """
    draw, sizes = np.random.default_rng(seed), np.arange(1, 11)
    titles, passages = list[str](), list[str]()
    for document in corpus:
        (first, *rest) = sentences(document, language) or [(0, 0)]
        while rest:
            size = int(draw.choice(sizes, p=sizes / sizes.sum()))
            titles.append(document[slice(*first)])
            passages.append(document[rest[0][0] : rest[:size][-1][1]])
            rest = rest[max(1, size // 2) :] if size < len(rest) else []
    if not passages:
        raise DataError("the corpus holds no passage: give documents of at least a title and a sentence")
    lexical = relevance.lexical([markup.terms(f"{a} {b}") for a, b in zip(titles, passages, strict=True)])

    def find(question: str) -> list[int]:
        order: list[int] = np.argsort(-lexical(markup.terms(question)), kind="stable")[:retrieved].tolist()
        if model.settings.ranks:
            scores = [-found.score for found in model.judge([(question, [titles[i], passages[i]]) for i in order])]
            order = [order[i] for i in np.argsort(scores, kind="stable")]
        return order[:best]

    made = []
    for number, row in enumerate(rows):
        numbers = [] if row.get("documents") else run.json(f"found-{number}", partial(find, str(row["question"])))
        new = {"documents": [passages[i] for i in numbers], "titles": [titles[i] for i in numbers]} if numbers else {}
        made.append({**row, **new})
    return made
