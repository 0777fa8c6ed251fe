"""A SPARQL endpoint on loopback: a real HTTP server in front of a store, which may be slow, rude or lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import loopback
from loopback import Reply, Request

Twist = Callable[[str, bytes], bytes | tuple[int, bytes]]
"""(query, the true answer) -> what is told instead, with a status if it is not 200."""


@contextmanager
def served(store: Any, twist: Twist | None = None, asked: list[str] | None = None) -> Iterator[str]:
    """The URL of an endpoint that answers from `store` (`stores.Embedded`, in memory); queries are added to `asked`."""
    ox = store.library

    def answer(request: Request) -> Reply:
        query = parse_qs(request.body.decode())["query"][0]
        if asked is not None:
            asked.append(query)
        try:
            status, content = 200, store.graph.query(query).serialize(format=ox.QueryResultsFormat.JSON)
        except (SyntaxError, ValueError) as error:
            status, content = 400, str(error).encode()
        if twist is not None:
            told = twist(query, content)
            status, content = told if isinstance(told, tuple) else (status, told)
        return status, {"Content-Type": "application/sparql-results+json"}, content

    with loopback.serve(answer) as url:
        yield f"{url}/sparql"
