"""What is special to one kind of thing that is read: how it is opened, from what a user has, and written again.

A recipe says by the annotation of its first parameter what it cuts.
"""

from __future__ import annotations

import functools
import html
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from secateur import recipes
from secateur.clients.stores import Embedded
from secateur.errors import DataError, InputError
from secateur.methods.graphs import open_graph
from secateur.subjects import KnowledgeGraph, Page, Passages, open_page, open_passages
from secateur.subjects.text import markup

__all__ = ["FIELDS", "Document", "Reading", "apart", "field", "of_recipe", "of_row", "options", "parts"]

Document: TypeAlias = Any
"""HTML, text, bytes, a path of a file; of passages also a list of sentences; of a graph what `open_graph` takes."""

FIELDS = ("html", "text", "passages")
_OWN = ("topics", "choices")
"""Options of a recipe that are about one question: a row may bring its own."""


class Readable(Protocol):
    """What a recipe leaves."""

    def written(self) -> str:
        """What the model is to read."""
        ...


@dataclass(frozen=True)
class Reading:
    """One kind of thing.

    kind: of subject. noun: a word for it. read: a document -> what the subject is opened from. opened: documents ->
    subject. apart: the same, so that `documents` of what is left tells them apart; None for what has no documents.
    trial: something to try a recipe on. own: whether each question brings its documents. titled: whether titles of
    documents are read.
    """

    kind: type
    noun: str
    read: Callable[[Document], Document]
    opened: Callable[[Sequence[Document], Sequence[str | None] | None], Any]
    apart: Callable[[Sequence[str], Sequence[str | None] | None], Any] | None
    trial: Callable[[], Any]
    own: bool = True
    titled: bool = False


@functools.lru_cache
def of_recipe(recipe: str) -> Reading:
    """The reading of a recipe; `InputError` for one that does not prune what a model reads."""
    function = recipes.find(recipe)
    kind = next(iter(typing.get_type_hints(function).values()))
    found = next((reading for reading in _READINGS if reading.kind is kind), None)
    if found is None:
        names = [name for name, card in recipes.cards().items() if card["family"] == "context"]
        raise InputError(f"{recipe} does not prune what a model reads: use {' or '.join(names)}, or `secateur run`")
    return found


def apart() -> list[str]:
    """The recipes that tell documents apart in what is left."""
    names = [name for name, card in recipes.cards().items() if card["family"] == "context"]
    return [name for name in names if of_recipe(name).apart is not None]


def of_row(row: Mapping[str, Any], file: Path | None) -> tuple[list[Document], list[str | None] | None]:
    """The documents of a row, and their titles: what its `html`, `text` or `passages` say, or the file that it names.

    Raises `DataError` for a row without.
    """
    name = field(row)
    if not name and file is not None and "file" in row:
        return [file], None
    value = row.get(name)
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(_text(part, name) for part in parts):
        raise DataError(f"this line has no {', '.join(FIELDS)} that is text or a list of texts")
    titles = row.get("titles", [row["title"]] * len(parts) if isinstance(row.get("title"), str) else None)
    if titles is not None and (
        not isinstance(titles, list) or not all(title is None or isinstance(title, str) for title in titles)
    ):
        raise DataError("this line has titles that are no list of texts: give one for each passage, or null")
    return [part if isinstance(part, list) else (_Html if name == "html" else _Plain)(part) for part in parts], titles


def field(row: Mapping[str, Any]) -> str:
    """Which of its fields a row is read from; "" where it has none."""
    return next((name for name in FIELDS if name in row), "")


def parts(subject: Readable) -> tuple[str, ...]:
    """What is left of each document; of a graph, which has none, nothing."""
    return tuple(map(markup.whole, subject.parts())) if isinstance(subject, Page | Passages) else ()


def options(row: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a row brings for its own question, of those of the recipe, with what the run says: `known`.

    Where no language model is asked, nobody chooses, and the choices of a row say nothing. Raises `DataError` for what
    is no list of texts.
    """
    found = dict[str, Any]()
    for name in _OWN:
        if name not in known or row.get(name) is None or (name == "choices" and not known.get("llm")):
            continue
        texts = [row[name]] if isinstance(row[name], str) else row[name]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"this line has {name} that are no list of texts: give one, or leave {name} out")
        found[name] = [markup.whole(text) for text in texts]
    return found


def _text(part: object, name: str) -> bool:
    several = name == "passages" and isinstance(part, list) and all(isinstance(one, str) for one in part)
    return isinstance(part, str) or several


class _Html(str):
    """Text that is known to be HTML."""


class _Plain(str):
    """Text that is known to be none."""


# ------------------------------------------------------------------------------------------------------------- pages


def _page(documents: Sequence[Document], titles: Sequence[str | None] | None) -> Page:
    return open_page([_as_html(one) for one in documents], numbered=False)


def _pages_apart(documents: Sequence[str], titles: Sequence[str | None] | None) -> Page:
    return open_page([_as_html(document) for document in documents], numbered=False, apart=True)


def _as_html(document: Document) -> Document:
    """Plain text, files of it, and lists of sentences, as HTML; what is HTML or its bytes already, as it is."""
    if isinstance(document, list | tuple):
        return paragraphs(" ".join(document))
    if isinstance(document, Path):
        plain = document.suffix.lower() in (".txt", ".md")
        return paragraphs(_read(document).decode("utf-8", "replace")) if plain else document
    if isinstance(document, _Html) or not isinstance(document, str | bytes):
        return document
    text = markup.decode(document) if isinstance(document, bytes) else document
    return document if markup.is_html(text) and not isinstance(document, _Plain) else paragraphs(text)


def paragraphs(text: str) -> str:
    """Plain text as HTML: a paragraph between blank lines each."""
    parts = [part for part in text.replace("\r\n", "\n").split("\n\n") if part.strip()]
    return "<section>" + "".join(f"<p>{html.escape(part.strip(), quote=False)}</p>" for part in parts) + "</section>"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: give the path of a text") from error


# ---------------------------------------------------------------------------------------------------------- passages


def _passages(documents: Sequence[Document], titles: Sequence[str | None] | None) -> Passages:
    if titles is not None:
        titles = [title if title is None else markup.whole(title) for title in titles]
    return open_passages([_as_text(one) for one in documents], titles=titles)


def _as_text(document: Document) -> Any:
    """Texts and lists of sentences as they are; HTML as the text of its blocks."""
    if isinstance(document, Path) and document.suffix.lower() not in (".html", ".htm"):
        return _read(document).decode("utf-8", "replace")
    if isinstance(document, bytes):
        document = document.decode("utf-8", "replace")
    if isinstance(document, Path | _Html) or (type(document) is str and markup.is_html(document)):
        page = open_page(document, block=0)  # a paragraph ends a sentence
        return "\n\n".join(page.text(block) for block in range(len(page.blocks)))
    if isinstance(document, list | tuple) and all(isinstance(part, str) for part in document):
        return [markup.whole(part) for part in document]
    return markup.whole(document) if isinstance(document, str) else document


# ------------------------------------------------------------------------------------------------------------ graphs


def _graph(documents: Sequence[Document], titles: Sequence[str | None] | None) -> KnowledgeGraph:
    if len(documents) != 1:
        raise InputError(
            f"a recipe on a graph reads one, and these are {len(documents)}: give a file, folder or address"
        )
    (source,) = documents
    return _kept(source) if isinstance(source, str | Path) else open_graph(source)


@functools.lru_cache(maxsize=4)
def _kept(source: str | Path) -> KnowledgeGraph:
    """Opened once for all the questions of a process."""
    return open_graph(source)


_READINGS = (
    Reading(Page, "page", _as_html, _page, _pages_apart, lambda: _page(["<p>word</p>"], None)),
    Reading(
        Passages,
        "passage",
        _as_text,
        _passages,
        _passages,
        lambda: _passages(["A word."], None),
        titled=True,
    ),
    Reading(KnowledgeGraph, "graph", lambda one: one, _graph, None, lambda: open_graph(Embedded()), own=False),
)
