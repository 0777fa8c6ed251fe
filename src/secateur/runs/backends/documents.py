"""Backends of pages and passages: how documents are opened and written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from secateur import recipes
from secateur.errors import DataError, InputError
from secateur.runs.backends import Backend, of_recipe
from secateur.subjects import Page, Passages, open_page, open_passages
from secateur.subjects.text import lines, markup, plain_text
from secateur.vocabulary import Subject

__all__ = [
    "FIELDS", "AnyReader", "Document", "Pages", "PassageTexts", "Reader", "Titles", "as_text", "field_of", "is_html",
    "kind_of", "of_document_recipe", "parts_of", "read_row", "row_options", "with_documents",
]  # fmt: skip

Document: TypeAlias = Any
"""HTML, text, bytes, a path of a file; of passages also a list of sentences; of a graph what `open_graph` takes."""
Titles: TypeAlias = Sequence[str | None] | None

FIELDS = ("html", "text", "passages")
_OWN = ("topics", "choices", "prior")
"""Options of a recipe that are about one question: a row may bring its own."""

S = TypeVar("S")


@runtime_checkable
class Reader(Backend[S, str, None], Protocol[S]):
    """A family whose recipes cut what answers a question, which takes the place of data.

    brings_documents: whether each question brings what is read. titled: whether titles of documents are read.
    numbered: whether `open_numbered` tells documents apart in what is left.
    """

    noun: str = "page"
    command: str = "prune-context"
    brings_documents: bool = True
    titled: bool = False
    numbered: bool = True

    def open(self, source: Document, device: str | None = None, data: str | None = None, inputs: object = None) -> S:
        """One document, or several in a list, as a subject."""
        return self.open_documents(source if isinstance(source, list | tuple) else [source])

    def open_documents(self, documents: Sequence[Document], titles: Titles = None) -> S:
        """Documents in their order as one subject."""
        ...

    def open_numbered(self, documents: Sequence[str], titles: Titles = None) -> S:
        """The same, so that `documents()` of what is left has the number of each."""
        return self.open_documents(documents, titles)

    def read_document(self, document: Document) -> Document:
        """What a subject is opened from, in memory."""
        return document

    def open_trial(self) -> S:
        """Something small to try a recipe on."""
        ...


AnyReader: TypeAlias = Reader[Any]


def of_document_recipe(recipe: str) -> AnyReader:
    """The backend of a recipe; `InputError` for one that does not prune what a model reads."""
    backend = of_recipe(recipes.find(recipe))
    if not isinstance(backend, Reader):
        names = [name for name, card in recipes.cards().items() if card["family"] == "context"]
        raise InputError(f"{recipe} does not prune what a model reads: use {' or '.join(names)}, or `secateur run`")
    return backend


def with_documents() -> list[str]:
    """The recipes that tell documents apart in what is left."""
    names = [name for name, card in recipes.cards().items() if card["family"] == "context"]
    return [name for name in names if of_document_recipe(name).numbered]


def read_row(row: Mapping[str, object], file: Path | None) -> tuple[list[Document], list[str | None] | None]:
    """The documents of a row, and their titles: what its `html`, `text` or `passages` say, or the file that it names.

    Raises `DataError` for a row without.
    """
    name = field_of(row)
    if not name and file is not None and "file" in row:
        return [file], None
    value = row.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(_is_text(text, name) for text in texts):
        raise DataError(f"this line has no {', '.join(FIELDS)} that is text or a list of texts")
    titles = row.get("titles", [row["title"]] * len(texts) if isinstance(row.get("title"), str) else None)
    if titles is not None and (
        not isinstance(titles, list) or not all(title is None or isinstance(title, str) for title in titles)
    ):
        raise DataError("this line has titles that are no list of texts: give one for each passage, or null")
    kind = _Html if name == "html" else _Plain
    return [text if isinstance(text, list) else kind(text) for text in texts], titles


def field_of(row: Mapping[str, object]) -> str:
    """Which of its fields a row is read from; "" where it has none."""
    return next((name for name in FIELDS if name in row), "")


def parts_of(subject: Subject) -> tuple[str, ...]:
    """What is left of each document; of a graph, which has none, nothing."""
    return tuple(map(markup.whole, subject.parts())) if isinstance(subject, Page | Passages) else ()


def row_options(row: Mapping[str, object], known: Mapping[str, object]) -> dict[str, Any]:
    """The options that a row brings for its own question, of those of the recipe, with what the run says: `known`.

    Where no language model is asked, nobody chooses, and the choices of a row say nothing. Raises `DataError` for what
    is no list of texts, or of `prior`, what a retriever scored, no list of numbers; null, as NaN, ranks last.
    """
    found = dict[str, Any]()
    for name in _OWN:
        if name not in known or row.get(name) is None or (name == "choices" and not known.get("llm")):
            continue
        if name == "prior":
            scores = row[name]
            if not isinstance(scores, list) or not all(isinstance(score, int | float | None) for score in scores):
                raise DataError("this line has a prior that is no list of numbers: give a score for each document")
            try:
                found[name] = [math.nan if score is None else float(score) for score in scores]
            except OverflowError as error:  # JSON has integers of any length
                raise DataError("this line has a prior with a number above 1e308: give smaller scores") from error
            continue
        texts = [row[name]] if isinstance(row[name], str) else row[name]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"this line has {name} that are no list of texts: give one, or leave {name} out")
        found[name] = [markup.whole(text) for text in texts]
    return found


def _is_text(part: object, name: str) -> bool:
    several = name == "passages" and isinstance(part, list) and all(isinstance(sentence, str) for sentence in part)
    return isinstance(part, str) or several


class _Html(str):
    """Text that is known to be HTML."""


class _Plain(str):
    """Text that is known to be no HTML."""


class _Text(_Plain):
    """Text that is known to be neither HTML nor Markdown."""


class _Markdown(_Plain):
    """Text that is known to be Markdown."""


_KINDS = {".txt": _Text, ".rst": _Text, ".md": _Markdown, ".markdown": _Markdown}
"""What files are by the ends of their names; others are HTML."""


_CODE = re.compile(r"(?<!`)`+[^`\n]+`+")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_PAGE = re.compile(r"<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_VERBATIM = re.compile(r"</?(?:pre|script|style|textarea)\b", re.IGNORECASE)
_SPANNING = re.compile(r"\s*<([a-z][a-z0-9]*)\b.*</\1\s*>\s*", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-z]", re.IGNORECASE)
_ROW = re.compile(r"^ {0,3}\|.*\|[ \t\r]*$", re.MULTILINE)


def kind_of(text: str) -> Literal["html", "text", "markdown"]:
    """What a text is: HTML where it has tags of it and begins as a page, or has no sign of Markdown; Markdown by these.

    Tags in code, between backticks or in a fence, say nothing. Lists alone, and headings, fences and tables in what one
    block of HTML spans, are to be more than the closing tags; what has tags between backticks is no HTML.
    """
    signs = 0 if isinstance(text, _Html | _Text) else plain_text.count_signs(text)
    if isinstance(text, _Markdown):
        return "markdown"
    if isinstance(text, _Html):
        return "html"
    if not isinstance(text, _Plain):
        bare = _drop_code(text)
        if markup.is_html(bare) and (_begins_page(bare) or (signs <= bare.count("</") and not _is_mixed(text))):
            return "html"
    return "markdown" if signs else "text"


def _begins_page(bare: str) -> bool:
    """Whether a text without code has the head of a page, and no sign of Markdown before it."""
    found = _PAGE.search(bare[:2000])
    return found is not None and not _has_structure(bare[: found.start()])


def _is_mixed(text: str) -> bool:
    """Whether a text with tags is no HTML all the same: by a heading, fence, row of a table, or tags in backticks.

    What stands in a `pre` or script is no sign, and of what a block of HTML spans only the last is one.
    """
    shown, spanning = "\n".join(_VERBATIM.split(text)[::2]), _SPANNING.fullmatch(text)
    if any(map(_TAG.search, _CODE.findall(shown))):
        return True
    spans = spanning is not None and spanning[1].lower() in lines.BLOCKS
    return not spans and (_has_structure(shown) or _ROW.search(shown) is not None)


def _has_structure(text: str) -> bool:
    """Whether a heading, by a sign before it or a line below it, a fence or the head of a table is in a text."""
    return plain_text.count_signs(text, items=False) > 0 or any(plain_text.find_underlines(text))


def _drop_code(text: str) -> str:
    """A text without what stands in fences, from one to the next of its kind, and between backticks in a line."""
    left, opened = list[str](), ""
    for line in text.splitlines(keepends=True):
        fence = _FENCE.match(line)
        if fence and opened in ("", fence[1]):
            opened = "" if opened else fence[1]
        elif not opened:
            left.append(line)
    return _CODE.sub("", "".join(left))


# ------------------------------------------------------------------------------------------------------------- pages


class Pages(Reader[Page]):
    """HTML, plain text and Markdown, each with its own structure; a list of sentences is plain text."""

    family = "pages"

    def open_documents(self, documents: Sequence[Document], titles: Titles = None) -> Page:
        """All documents as one page."""
        return self._open(documents)

    def open_numbered(self, documents: Sequence[str], titles: Titles = None) -> Page:
        """The same, with the number of each document."""
        return self._open(documents, apart=True)

    def _open(self, documents: Sequence[Document], apart: bool = False) -> Page:
        read = [self.read_document(document) for document in documents]
        kinds = [kind_of(document) if isinstance(document, str) else "html" for document in read]
        return open_page(read, kind=kinds, numbered=False, apart=apart)

    def read_document(self, document: Document) -> Document:
        """The document as HTML, its bytes or its path, or as text that says whether it is plain or Markdown."""
        if isinstance(document, list | tuple):
            return _Plain(" ".join(document))
        if isinstance(document, Path):
            kind = _KINDS.get(document.suffix.lower())
            return kind(_read_text(document)) if kind else document
        if isinstance(document, bytes):
            text = markup.decode(document)
            return document if kind_of(text) == "html" else _Plain(text)
        return document

    def open_trial(self) -> Page:
        """A page of one word."""
        return self.open_documents(["<p>word</p>"])


def is_html(document: Document) -> bool:
    """Whether a document is HTML: by the name of its file, or by what it says."""
    if isinstance(document, Path):
        return document.suffix.lower() in (".html", ".htm")
    text = markup.decode(document) if isinstance(document, bytes) else document
    return isinstance(text, str) and kind_of(text) == "html"


def _read_text(path: Path) -> str:
    """A file as text: as UTF-8, or else by its byte order mark or as Windows-1252; tags in it are no sign."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: give the path of a text") from error
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError:
        return markup.decode(source)


# ---------------------------------------------------------------------------------------------------------- passages


class PassageTexts(Reader[Passages]):
    """Texts, each perhaps a list of sentences; HTML becomes the text of its blocks."""

    family = "passages"
    noun = "passage"
    titled = True

    def open_documents(self, documents: Sequence[Document], titles: Titles = None) -> Passages:
        """Each document is a passage."""
        if titles is not None:
            titles = [title if title is None else markup.whole(title) for title in titles]
        return open_passages([as_text(document) for document in documents], titles=titles)

    def read_document(self, document: Document) -> Document:
        """The document as text, or as a list of sentences."""
        return as_text(document)

    def open_trial(self) -> Passages:
        """A passage of one sentence."""
        return self.open_documents(["A word."])


def as_text(document: Document) -> Document:
    """Texts and lists of sentences as they are; HTML as the text of its blocks."""
    if isinstance(document, Path) and document.suffix.lower() not in (".html", ".htm"):
        return _read_text(document)
    if isinstance(document, bytes):
        document = markup.decode(document)
    if isinstance(document, Path | _Html) or (type(document) is str and kind_of(document) == "html"):
        page = open_page(document, block=0)  # a paragraph ends a sentence
        return "\n\n".join(page.text(block) for block in range(len(page.blocks)))
    if isinstance(document, list | tuple) and all(isinstance(part, str) for part in document):
        return [markup.whole(part) for part in document]
    return markup.whole(document) if isinstance(document, str) else document
