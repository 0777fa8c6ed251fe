"""Clients of servers that a recipe calls: each opened once and shared by all questions of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur._utils import http
from secateur.clients import chat
from secateur.clients.chat import LanguageModel, Ledger, Meter
from secateur.clients.stores import Endpoint
from secateur.errors import InputError
from secateur.methods.graphs import open_graph
from secateur.runs import keywords
from secateur.subjects import KnowledgeGraph

__all__ = ["Requests", "Servers", "servers", "split_options"]


@dataclass(frozen=True, slots=True)
class Requests:
    """How one server is asked: seconds to wait, further attempts, and requests a minute (0 for no limit).

    key: the environment variable that holds its key, where that is not the usual one.
    """

    timeout: float
    retries: int
    per_minute: int
    key: str = ""

    def options(self) -> dict[str, Any]:
        """As what asks it takes them."""
        return {"timeout": self.timeout, "retries": self.retries, "per_minute": self.per_minute, "key": self.key}


@dataclass(frozen=True, slots=True)
class Servers:
    """How all of them are asked; travels to other processes.

    calls, tokens: of the language model in the whole run, at most; no limit if 0. columns, language: how the graph is
    opened, as `open_graph` takes them.
    """

    llm: Requests
    graph: Requests
    calls: int = 0
    tokens: int = 0
    columns: tuple[str, ...] = ()
    language: str = "en"

    def processes(self, many: int) -> int:
        """As many of `many` as may work at once, if each is to have a request a minute."""
        return min([many, *(each.per_minute for each in (self.llm, self.graph) if each.per_minute)])

    def share(self, many: int) -> Servers:
        """What one of so many processes may ask: together they stay below the requests a minute."""
        llm, graph = (replace(each, per_minute=each.per_minute // many) for each in (self.llm, self.graph))
        return replace(self, llm=llm, graph=graph)

    def meter(self, ledger: Path | None = None) -> Meter:
        """A meter of the run's limits: in a file, where processes share it."""
        calls, tokens = self.calls or None, self.tokens or None
        return Meter(calls, tokens) if ledger is None else Ledger(calls, tokens, path=ledger)

    def with_llm(self, options: Mapping[str, object], meter: Meter, device: str = "") -> dict[str, Any]:
        """A recipe's options with the language model opened that they name, counted by `meter` too.

        device: where one in a folder is held, unless they say.
        """
        if not options.get("llm"):
            return dict(options)
        model = self.open_llm({"device": device, **options})
        return {**options, "llm": chat.with_meter(model, meter)}

    def open_llm(self, options: Mapping[str, Any]) -> LanguageModel:
        """The language model that a recipe's options name."""
        source = options["llm"]
        if http.is_address(source):
            return _open_server(source, options["llm_name"], self.llm)
        return chat.open_model(source, device=options.get("device") or "")

    def open_graph(self, graph: Any) -> object:
        """An endpoint as a graph, and whatever is to be opened in some way; what is not, as it is."""
        if http.is_address(graph):
            return _open_endpoint(graph, self.graph, self.language)
        if not self.graph_settings:
            return graph
        if isinstance(graph, KnowledgeGraph):
            raise InputError(
                f"{next(iter(self.graph_settings))} is for a graph that is still to be opened: give it to open_graph"
            )
        opens = _open_once if isinstance(graph, str | Path) else open_graph  # what stands in memory may change
        return opens(graph, columns=self.columns, language=self.language)

    @property
    def graph_settings(self) -> dict[str, Any]:
        """What is said of how the graph is opened."""
        columns = {"graph_columns": list(self.columns)} if self.columns else {}
        return {**columns, **({"graph_language": self.language} if self.language != "en" else {})}


@functools.lru_cache(maxsize=4)
def _open_server(url: str, name: str, requests: Requests) -> LanguageModel:
    return chat.open_model(url, name, **requests.options())


@functools.lru_cache(maxsize=4)
def _open_endpoint(url: str, requests: Requests, language: str) -> KnowledgeGraph:
    return open_graph(Endpoint(url, **requests.options()), language=language)


_open_once = functools.lru_cache(maxsize=4)(open_graph)


def servers(
    *,
    llm_timeout: float = 60.0,
    llm_retries: int = 5,
    llm_per_minute: int = 0,
    llm_key: str = "",
    run_calls: int = 0,
    run_llm_tokens: int = 0,
    graph_timeout: float = 30.0,
    graph_retries: int = 3,
    graph_per_minute: int = 0,
    graph_key: str = "",
    graph_columns: Sequence[str] = (),
    graph_language: str = "en",
) -> Servers:
    """How the servers are asked that a recipe needs.

    Args:
        llm_timeout: seconds to wait for an answer of the language model's server to begin, and then for all of it.
        llm_retries: further attempts after a failure of that server that may pass.
        llm_per_minute: requests to it in any minute, at most, of all processes together; no limit if 0.
        llm_key: name of the environment variable that holds the key of that server; SECATEUR_LLM_KEY if empty, or
            OPENAI_API_KEY for OpenAI's own.
        run_calls: of the language model by all questions together, at most; no limit if 0. The rest is judged without.
        run_llm_tokens: the same for tokens in and out.
        graph_timeout: seconds to wait for an answer of the graph's endpoint to begin, and then for all of it.
        graph_retries: further attempts after a failure of the endpoint that may pass.
        graph_per_minute: queries to it in any minute, at most, of all processes together; no limit if 0.
        graph_key: name of the environment variable that holds the endpoint's token; SPARQL_TOKEN if empty.
        graph_columns: of a graph that is a table, its columns of subject, predicate and object, where their names do
            not tell.
        graph_language: of the names of things, where the graph has several.

    Raises `InputError` for a limit below 0. Other numbers are checked where a server is opened.
    """
    for name, value in (("run_calls", run_calls), ("run_llm_tokens", run_llm_tokens)):
        if value < 0:
            raise InputError(f"{name}={value}: give a number of at least 0")
    llm = Requests(llm_timeout, llm_retries, llm_per_minute, llm_key)
    graph = Requests(graph_timeout, graph_retries, graph_per_minute, graph_key)
    return Servers(llm, graph, run_calls, run_llm_tokens, tuple(graph_columns), graph_language)


def split_options(
    function: Callable[..., object], options: Mapping[str, object], graph: object = ""
) -> tuple[Servers, dict[str, Any]]:
    """The options that say how servers are asked, and those of the recipe, which may ask a language model.

    Raises `InputError` for what is said of a server that nobody asks, such as `llm_timeout` of a model in a folder.
    """
    own, about = keywords.names(function), keywords.names(servers)
    about_servers = {name: value for name, value in options.items() if name in about and name not in own}
    llm = options.get("llm", "")
    for name in about_servers:
        if name in ("graph_columns", "graph_language"):
            if isinstance(graph, str) and not graph:
                raise InputError(f"{name} is about a graph, and {function.__name__} reads none: leave it out")
            if name == "graph_columns" and http.is_address(graph):
                raise InputError("graph_columns is about a table, and the graph is an endpoint: leave it out")
            continue
        if name.startswith("graph_") and not http.is_address(graph):
            raise InputError(f"{name} is about an endpoint, and no graph has its address: leave it out")
        if not name.startswith("graph_") and "llm" not in own:
            raise InputError(f"{function.__name__} asks no language model: leave {name} out")
        if name.startswith("llm_") and not http.is_address(llm):
            raise InputError(f"{name} is about a server, and no language model (llm) has its address: leave it out")
        if name.startswith("run_") and not llm:
            raise InputError(f"{name} bounds a language model: give one (llm)")
    left = {name: value for name, value in options.items() if name not in about_servers}
    return servers(**keywords.check_options(servers, about_servers)), left
