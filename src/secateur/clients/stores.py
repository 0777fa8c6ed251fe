"""Stores of RDF: an embedded, persistent one, or any SPARQL 1.1 endpoint by URL; both take the same queries.

A store answers SELECT queries. What it holds, and how it is read, is the business of `subjects.graph.knowledge_graph`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack, runtime_checkable
from urllib.parse import quote

from secateur._utils import http
from secateur._utils.http import PassingError
from secateur.errors import DataError, InputError, MissingExtraError

__all__ = [
    "BLANK",
    "ENTITY",
    "KIND",
    "RDF",
    "RELATION",
    "Embedded",
    "Endpoint",
    "Row",
    "Store",
    "Value",
    "entity",
    "iri",
    "is_usable",
    "kind",
    "literal",
    "one_line",
    "relation",
]

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
ENTITY = "urn:secateur:entity:"
"""What is put before the name of a thing that is no IRI, percent-encoded."""
RELATION = "urn:secateur:relation:"
"""The same for predicates, and for what is known of a fact."""
KIND = "urn:secateur:kind:"
"""The same for kinds of things."""
BLANK = "urn:secateur:blank:"
"""The same for a blank node, once it is loaded."""

_FORBIDDEN = '<>"{}|^`\\'
# No spaces, control letters or halves of a letter (surrogates) either.
_IRI = re.compile(f"[A-Za-z][A-Za-z0-9+.-]*:[^\\x00-\\x20\\x7f-\\x9f\\ud800-\\udfff{re.escape(_FORBIDDEN)}]*")
_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_TAG = re.compile("[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\ufffd"})
_GIVEN = re.compile(r"(?:https?://|urn:)[^\[\]]+", re.IGNORECASE)
_LONGEST = 16_384
"""Letters of an IRI; what is longer is none that can be asked about."""


class Value(NamedTuple):
    """What stands at one place of a row: text, whether it is an IRI ("iri"), "literal" or "blank", and its language."""

    text: str
    kind: str = "iri"
    language: str = ""


Row = tuple[Value | None, ...]
"""The values of a row in the order of the query's variables; None where one is not bound."""


@runtime_checkable
class Store(Protocol):
    """Whatever answers SELECT queries."""

    def select(self, query: str) -> list[Row]:
        """The rows of a SELECT query of SPARQL 1.1."""
        ...


def is_usable(text: str) -> bool:
    """Whether text is an IRI that a query can hold."""
    return len(text) <= _LONGEST and _IRI.fullmatch(text) is not None


def iri(text: str) -> str:
    """`<text>` for a query.

    Raises `InputError` for text that is no IRI: nothing that comes from data or a user is to change a query.
    """
    if not is_usable(text):
        raise InputError(
            f"{text[:100]!r} is no IRI: it has no scheme such as urn:, holds spaces or one of "
            f"{_FORBIDDEN}, or is longer than {_LONGEST} letters"
        )
    return f"<{text}>"


def literal(text: str, language: str = "") -> str:
    """`"text"` for a query, in a language if one is given: whatever the text holds, it stays within its quotes.

    Raises `InputError` for halves of a letter (surrogates), which no query can hold, and for what is no language's tag.
    """
    if language and not _TAG.fullmatch(language):
        raise InputError(f"{language[:100]!r} is no language: give its code, such as en or pt-BR")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{text[:100]!r} holds half of a letter: give whole text")
    return f'"{text.translate(_ESCAPES)}"' + (f"@{language}" if language else "")


def one_line(text: str, most: int = 0) -> str:
    """Text in one line of at most `most` letters, without control letters, turns of direction and halves of letters."""
    if most:
        text = text[: 2 * most]  # megabytes need not be looked at
    return " ".join((text if text.isprintable() else _CONTROLS.sub(" ", text)).split())[: most or None]


def entity(name: str) -> str:
    """The IRI of a thing as tables name it: a web address or URN as it is, anything else behind `ENTITY`."""
    return _make_iri(name, ENTITY)


def relation(name: str) -> str:
    """The IRI of a predicate as tables name it."""
    return _make_iri(name, RELATION)


def kind(name: str) -> str:
    """The IRI of a kind of things as tables name it."""
    return _make_iri(name, KIND)


def _make_iri(name: str, place: str) -> str:
    return name if _GIVEN.fullmatch(name) and is_usable(name) else place + quote(name, safe="")


class Embedded:
    """pyoxigraph's store: in memory, or in a folder that stays.

    Args:
        folder: where it is kept; None for memory.
        writing: open the folder to write into it, which one process may do at a time. Otherwise any number read it.

    Raises `MissingExtraError` without pyoxigraph, `DataError` for a folder that holds no store or is in use.
    """

    def __init__(self, folder: str | Path | None = None, *, writing: bool = False) -> None:
        try:
            import pyoxigraph
        except ImportError as error:
            raise MissingExtraError("a graph store needs pyoxigraph: pip install 'secateur[context]'") from error
        self.library, self.folder = pyoxigraph, folder
        try:
            if folder is None:
                self.graph = pyoxigraph.Store()
            else:
                self.graph = pyoxigraph.Store(str(folder)) if writing else pyoxigraph.Store.read_only(str(folder))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{folder} can't be opened as a graph store: {_line(error)}") from error

    def select(self, query: str) -> list[Row]:
        """The rows of a SELECT query. Raises `InputError` for what is no query, `DataError` for a damaged store."""
        return list(self.each(query))

    def each(self, query: str) -> Iterator[Row]:
        """The same, one row after another: for more of them than are to be held."""
        ox = self.library
        try:
            found = self.graph.query(query)
            if not isinstance(found, ox.QuerySolutions):
                raise InputError("a store is asked by SELECT queries alone")
            value = self._value
            for row in found:
                yield tuple([value(term) for term in row])
        except SyntaxError as error:
            raise InputError(f"this is no SPARQL query: {_line(error)}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"the graph store could not answer: {_line(error)}") from error

    def _value(self, value: object) -> Value | None:
        if isinstance(value, self.library.NamedNode):
            return Value(value.value)
        if isinstance(value, self.library.Literal):
            return Value(value.value, "literal", value.language or "")
        return None if value is None else Value(str(value), "blank")


class Endpoint:
    """A SPARQL 1.1 endpoint, such as Fuseki, GraphDB, Virtuoso, Blazegraph or Wikidata's.

    Args:
        url: such as http://localhost:3030/data/sparql.
        key: the environment variable that holds a bearer token. If empty, that is SPARQL_TOKEN; none is sent where
            that is not set.
        requests: see `http.RequestOptions`.

    Its answers are read as JSON, checked, and bounded in size: one that lies about their form is asked again, and then
    refused with `ServerError`.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        **requests: Unpack[http.RequestOptions],
    ) -> None:
        key = http.check_key(key) if key else "SPARQL_TOKEN"
        requests = {"timeout": 30.0, "retries": 3, **requests}
        self.client = http.Client(url, example="http://localhost:3030/data/sparql", key=key, **requests)
        self.key = key

    def __repr__(self) -> str:
        return f"Endpoint({self.client.url!r})"

    def select(self, query: str) -> list[Row]:
        """The rows of a SELECT query. Raises `ServerError`: no answer after all attempts, or a refusal."""
        headers = {"Accept": "application/sparql-results+json"}
        found = _VARIABLES.match(query)
        read = functools.partial(_rows, wanted=found[1].replace("?", "").split() if found else ())
        return self.client.post("", read, data={"query": query}, headers=headers)


_KINDS = {"uri": "iri", "literal": "literal", "typed-literal": "literal", "bnode": "blank"}


_VARIABLES = re.compile(r"\s*SELECT\s+(?:DISTINCT\s+|REDUCED\s+)?((?:\?\w+\s+)+)WHERE\b", re.IGNORECASE)
"""The variables of a query that names them without ado."""


def _rows(raw: bytes, wanted: Sequence[str] = ()) -> list[Row]:
    """SPARQL 1.1 Query Results JSON Format; the variables that are wanted, else as the server orders them."""
    try:
        found = json.loads(raw)
        names: Sequence[str] = wanted or found["head"]["vars"]
        bindings = found["results"]["bindings"]
        if not isinstance(bindings, list) or not set(names) <= set(found["head"]["vars"]):
            raise TypeError
        rows = [tuple(_bound(row[name]) if name in row else None for name in names) for row in bindings]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise PassingError("what came is no result of a SELECT query") from error
    return rows


def _bound(value: Any) -> Value:
    text, language = value["value"], value.get("xml:lang", "")
    if not isinstance(text, str) or not isinstance(language, str):
        raise TypeError
    return Value(text, _KINDS[value["type"]], language)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
