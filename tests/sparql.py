"""A SPARQL endpoint on loopback: a real HTTP server in front of a store, which may be slow, rude or lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

Twist = Callable[[str, bytes], bytes | tuple[int, bytes]]
"""(query, the true answer) -> what is told instead, with a status if it is not 200."""


@contextmanager
def served(store: Any, twist: Twist | None = None, asked: list[str] | None = None) -> Iterator[str]:
    """The URL of an endpoint that answers from `store` (`stores.Embedded`, in memory); queries are added to `asked`."""
    ox = store.library

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            query = parse_qs(body)["query"][0]
            if asked is not None:
                asked.append(query)
            try:
                status, content = 200, store.graph.query(query).serialize(format=ox.QueryResultsFormat.JSON)
            except (SyntaxError, ValueError) as error:
                status, content = 400, str(error).encode()
            if twist is not None:
                told = twist(query, content)
                status, content = told if isinstance(told, tuple) else (status, told)
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/sparql-results+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # who asked has left
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/sparql"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
