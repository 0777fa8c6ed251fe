"""A recipe of the family context behind HTTP: models stay warm, and what requests encode at once is encoded together.

POST /prune   a line as `secateur prune-context --in` takes it, and perhaps budget -> text, documents, costs, told
GET /health   what is served; how many requests are in work, were answered, failed and were turned away
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Le

from secateur.errors import InputError, MissingExtraError, SecateurError
from secateur.runs.context import Job, explain, parse_budget
from secateur.runs.context_files import parse_line, prune_row
from secateur.runs.pruners import share_embedder
from secateur.subjects.text import markup
from secateur.vocabulary import Budget

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise MissingExtraError("serving needs FastAPI and uvicorn: pip install 'secateur[serve]'") from error

__all__ = ["Service", "open_app", "serve_context"]


@dataclass
class Counts:
    """Requests since the start."""

    in_work: int = 0
    answered: int = 0
    failed: int = 0
    turned_away: int = 0


class Service:
    """A recipe with a budget, checked and warm, that answers from any thread.

    Limits of the whole run (run_calls, run_llm_tokens) are of all requests together.

    Raises what `secateur.prune_context` raises for a recipe, budget, option or graph that is none.
    """

    def __init__(self, recipe: str, budget: str | Budget, graph: str = "", **options: object) -> None:
        job, self.graph = Job.of(recipe, budget, options, graph), graph
        job.check_graph(graph)
        if graph:
            job.open(graph)  # once for all requests: what is no graph is refused now
        self.job = replace(job, options=share_embedder(job.options))
        self.job.check_trial()
        self.meter = job.servers.meter()

    def answer(self, row: Mapping[str, object]) -> dict[str, object]:
        """What stays of what a row holds: text, documents (each in its place), before and after, and what is told."""
        budget = row.get("budget", self.job.budget)
        if not isinstance(budget, str | Budget):
            raise InputError(f"budget {budget!r} is no text: give tokens=512")
        began = time.perf_counter()
        job = replace(self.job, budget=parse_budget(budget))
        found = prune_row(job, self.graph, row, self.meter)
        seconds = round(time.perf_counter() - began, 6)
        costs = {"before": dict(found.before), "after": dict(found.after)}
        return {"text": found.text, "documents": found.documents, **costs, "told": dict(found.told), "seconds": seconds}


def open_app(service: Service, *, workers: int = 4, waiting: int = 64, largest: int = 20_000_000) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        service: what answers.
        workers: how many requests are in work at once.
        waiting: how many more may wait; others are turned away with 503.
        largest: bytes of a request; larger ones are refused with 413.
    """
    app, counts = FastAPI(title=f"secateur {service.job.recipe}", docs_url=None, redoc_url=None), Counts()
    pool = ThreadPoolExecutor(workers, "prune")

    async def read(request: Request) -> bytes | None:
        """The body; None where it is too large, which is seen before all of it has come.

        Raises `ConnectionAbortedError` where the client breaks off.
        """
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError("the request ended before all of it had come: send it again")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > largest:
                return None
        return b"".join(parts)

    def refuse(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": markup.whole(line)}, status, headers)

    @app.post("/prune")
    async def prune(request: Request) -> JSONResponse:
        try:
            body = await read(request)
        except ConnectionAbortedError as error:
            counts.failed += 1
            return refuse(400, str(error))
        if body is None:
            return refuse(413, f"a request holds at most {largest} bytes: send fewer documents")
        if counts.in_work >= workers + waiting:
            counts.turned_away += 1
            return refuse(503, f"{counts.in_work} requests are in work or wait: ask again later", {"Retry-After": "1"})
        counts.in_work += 1
        try:
            row = parse_line(body.decode("utf-8", "replace"))
            answer = await asyncio.get_running_loop().run_in_executor(pool, service.answer, row)
        except Exception as error:
            counts.failed += 1
            return refuse(400 if isinstance(error, SecateurError) else 500, explain(error))
        finally:
            counts.in_work -= 1
        counts.answered += 1
        return JSONResponse(answer)

    @app.get("/health")
    async def health() -> dict[str, object]:
        served = {"recipe": service.job.recipe, "budget": str(service.job.budget)}
        return {"status": "ok", **served, **counts.__dict__}

    return app


def serve_context(
    recipe: str,
    budget: str,
    *,
    graph: str = "",
    host: str = "127.0.0.1",
    port: Annotated[int, Ge(0), Le(65535)] = 8089,
    workers: Annotated[int, Ge(1)] = 4,
    waiting: Annotated[int, Ge(0)] = 64,
    largest: Annotated[int, Ge(1)] = 20_000_000,
    **options: object,
) -> None:
    """Serve a recipe until it is interrupted.

    Args:
        recipe: of the family context.
        budget: how much may stay, unless a request says: tokens=2048, words=1000, tokens=20%.
        graph: what recipes on graphs read: a file, a folder, or the address of an endpoint.
        host: the address to listen at; 0.0.0.0 for all of this machine's. It asks for no password: that is a
            gateway's work.
        port: of the address; 0 for one that is free.
        workers: how many requests are in work at once.
        waiting: how many more may wait; others are turned away with 503.
        largest: bytes of a request.
        options: the recipe's own, as for `secateur.prune_context`.
    """
    _check_port(host, port)
    service = Service(recipe, budget, graph, **options)
    app = open_app(service, workers=workers, waiting=waiting, largest=largest)
    uvicorn.run(app, host=host, port=port, log_level="info", access_log=False)


def _check_port(host: str, port: int) -> None:
    """Refuse an address that can't be listened at, before models are read."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise InputError(f"{host}, port {port}: {error.strerror}: give another --host or --port") from error
