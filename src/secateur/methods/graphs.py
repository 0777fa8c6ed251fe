"""Open a graph of facts: a file is loaded into a store once, and opened from there afterwards.

A graph of networkx is read into memory.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur._utils import bars, http
from secateur._utils.disk import cache_folder, guard, writing
from secateur.clients.stores import Embedded, Endpoint, Store, one_line
from secateur.data import networkx_facts, triples
from secateur.errors import DataError, InputError, ServerError
from secateur.retrieval.names import Names, phrases
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph

__all__ = ["find_names", "names_of", "open_graph", "open_once"]

_MANY = 2_000
"""Names whose vectors are kept on the disk."""
_WORDS = 16
"""Words of a text that names are to hold, at most."""
_HOLDING = 100
"""Names that hold a word, at most."""
_FORM = "2"
"""Of what is made of a file: another one makes it anew."""


def open_graph(
    source: str | Path | Store | KnowledgeGraph | networkx_facts.Network,
    *,
    language: str = "en",
    most: int = 10_000,
    columns: Sequence[str] = (),
    relation: str = "relation",
) -> KnowledgeGraph:
    """A graph of facts.

    Args:
        source: the http(s) URL of a SPARQL 1.1 endpoint; a file or folder of facts (see `data.triples`), which is
            loaded into a store in the cache and only opened there from then on, as long as it holds the same; the
            folder of a store; a store; a `DiGraph` or `MultiDiGraph` of networkx (see `data.networkx_facts`), which is
            read as it is now; or a graph, which is given back as it is.
        language, most: see `KnowledgeGraph`.
        columns: of a table, the columns of subject, predicate and object, where their names do not tell.
        relation: of a graph of networkx, the attribute of edges that says how their ends are related.

    Raises `InputError` for what is none of these, `DataError` for a file that is not there or holds a line that is no
    fact.
    """
    if isinstance(source, KnowledgeGraph):
        return source
    path = Path(source) if isinstance(source, str | Path) and not http.is_address(source) else None
    stored = path is not None and (path / "CURRENT").is_file()
    if columns and (path is None or stored):
        raise InputError(f"columns={','.join(columns)}: {source} is no table")
    if not isinstance(source, str | Path):
        if isinstance(source, networkx_facts.Network):
            store = Embedded()
            networkx_facts.load(source, store, relation=relation)
            source = store
        if not isinstance(source, Store):
            raise InputError(
                "a graph is a file, a folder, a URL, a store or a graph of networkx, and this is "
                f"{type(source).__name__}"
            )
        return KnowledgeGraph(source, language=language, most=most)
    if path is None:
        return KnowledgeGraph(Endpoint(str(source)), language=language, most=most)
    return KnowledgeGraph(Embedded(path if stored else _load_once(path, columns)), language=language, most=most)


def open_once(source: str | Path, *, columns: Sequence[str] = (), language: str = "en") -> KnowledgeGraph:
    """The same for a path or an address, opened once in a process, and anew where its files were changed since."""
    return _open_stamped(source, tuple(columns), language, _stamp(source))


@functools.lru_cache(maxsize=4)
def _open_stamped(
    source: str | Path, columns: tuple[str, ...], language: str, stamps: tuple[tuple[str, int, int], ...]
) -> KnowledgeGraph:
    return open_graph(source, columns=columns, language=language)


def _stamp(source: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Path, time and size of each file of a graph; nothing of an address, a store, or what is no graph."""
    if http.is_address(source):
        return ()
    with suppress(DataError):
        files = [(file, file.stat()) for file in triples.list_files(Path(source))]
        return tuple((str(file.resolve()), about.st_mtime_ns, about.st_size) for file, about in files)
    return ()


@functools.lru_cache(maxsize=2)
def names_of(graph: KnowledgeGraph, kinds: tuple[str, ...] = ()) -> Names:
    """What the things of a graph are called, or those of some kinds; vectors of many names are kept in the cache."""
    things = list(graph.things(kinds, aliases=True))
    return Names(things, folder=cache_folder() / "names" if len(things) > _MANY else None)


def find_names(
    graph: KnowledgeGraph, texts: Sequence[str], kinds: tuple[str, ...] = (), lookup: str = "all"
) -> tuple[Names, list[str]]:
    """Names of things in a graph, among which are those that the texts speak of; and what went wrong.

    Args:
        graph: what is asked.
        texts: a question, or names in it.
        kinds: only things of one of these.
        lookup: "all" for all names, which are read once; "query" for those that the graph finds for each text: of
            things that a part of it names as it is written; where there is none, that a part names in any letters; and
            at last so many names that hold one of its words. The graph looks at all of its names for these two: if it
            does not answer then, that is noted, and they are left out.
    """
    if lookup not in ("all", "query"):
        raise InputError(f"lookup={lookup!r}: give all or query")
    if lookup == "all":
        return names_of(graph, kinds), []
    found, notes = set[tuple[str, str]](), list[str]()
    for text in texts:
        parts, words = phrases(text), [part for part in phrases(text, longest=1) if len(part) > 1][:_WORDS]
        new = graph.find_named(parts, kinds)
        try:
            new = new or graph.find_named(parts, kinds, how="folded")
            new = new or graph.find_named(words, kinds, how="holding", most=_HOLDING)
        except ServerError as error:
            notes.append(f"no names like those in {one_line(text, 60)!r} were found: {error}")
        found.update(new)
    return Names(sorted(found)), notes


def _load_once(source: Path, columns: Sequence[str]) -> Path:
    """The folder of the store that holds what `source` holds: made now, unless it is there."""
    found = triples.list_files(source)
    folder = cache_folder() / "graphs" / _digest(found, columns)
    if folder.is_dir():
        return folder
    with _alone(folder):
        if folder.is_dir():  # another process was faster
            return folder
        for left in folder.parent.glob(f".tmp-*-{folder.name}"):  # of one that was killed: it held the lock
            shutil.rmtree(left, ignore_errors=True)
        with writing(folder) as temporary, _show_progress(source, found) as progress:
            store = Embedded(temporary, writing=True)
            try:
                triples.load(source, store, columns=columns, progress=progress)
                store.graph.flush()
            finally:
                del store.graph  # which closes it
                gc.collect()
    return folder


def _digest(found: Sequence[Path], columns: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{_FORM} {found[0].suffixes} {list(columns)}".encode())
    for path in found:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest() + path.suffix.encode())
    return digest.hexdigest()[:32]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process makes the same store; the system lets go where one is killed."""
    with guard(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.with_name(f".lock-{folder.name}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextmanager
def _show_progress(source: Path, found: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar where it takes more than two seconds and somebody sees it."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"loading {source.name}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = bars.make_bar(*columns, transient=True)
    task, began = bar.add_task("", total=sum(path.stat().st_size for path in found)), time.monotonic()

    def advance(count: int) -> None:
        if time.monotonic() - began > 2.0 and not bar.live.is_started:
            bar.start()
        bar.advance(task, count)

    try:
        yield advance
    finally:
        bar.stop()
