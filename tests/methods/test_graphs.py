"""Graphs by what they are kept in: loaded once, whatever kills or races."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.progress import Progress

pytest.importorskip("pyoxigraph")

import sparql
from secateur.clients.stores import Embedded, Endpoint, entity
from secateur.data import triples
from secateur.errors import DataError, InputError, ServerError
from secateur.methods import graphs
from secateur.methods.graphs import open_graph
from secateur.subjects import KnowledgeGraph


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graphs"


def table(path: Path, rows: int = 3) -> Path:
    path.write_text("".join(f"a{row}\tr\tb{row % 7}\n" for row in range(rows)))
    return path


def stores(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.startswith(".lock-"))


def test_a_file_is_loaded_once(tmp_path, cache, monkeypatch):
    path = table(tmp_path / "a.tsv")
    first = open_graph(str(path), most=7, language="de")
    assert (first.most, first.language) == (7, "de")
    loads = []
    monkeypatch.setattr(triples, "load", lambda *_, **__: loads.append(1))
    again = open_graph(path)
    assert not loads
    assert again.around([entity("b0")]) == first.around([entity("b0")]) != []
    assert len(stores(cache)) == 1
    # By what it holds, wherever it lies.
    path.rename(tmp_path / "moved.tsv")
    open_graph(tmp_path / "moved.tsv")
    assert not loads
    open_graph(Path(str(first.store.folder)))
    assert not loads


def test_another_content_is_another_graph(tmp_path, cache):
    path = table(tmp_path / "a.tsv")
    open_graph(path)
    assert dict(open_graph(table(path, 9)).things())[entity("a8")] == "a8"
    path.write_text("x\ty\tz\n1\t2\t3\n")
    one, other = open_graph(path, columns=("x", "y", "z")), open_graph(path, columns=("z", "y", "x"))
    assert [fact.subject for fact in one.around([entity("1")])] == [entity("1")]
    assert [fact.subject for fact in other.around([entity("1")])] == [entity("3")]
    assert len(stores(cache)) == 4


def test_what_a_graph_can_be_opened_from(tmp_path):
    store = Embedded()
    graph = open_graph(store)
    assert graph.store is store
    assert open_graph(graph) is graph
    pytest.importorskip("httpx2")
    with sparql.served(store) as url:
        found = open_graph(url)
        assert isinstance(found, KnowledgeGraph)
        assert isinstance(found.store, Endpoint)
        assert found.around(["urn:a:a"]) == []
    with pytest.raises(InputError, match="a graph of networkx, and this is int"):
        open_graph(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is not there"):
        open_graph("none.csv")


def test_names_in_a_question_are_asked_for():
    store = Embedded()
    lines = [f'<urn:e:{i}> <http://www.w3.org/2000/01/rdf-schema#label> "thing {i}" .' for i in range(300)]
    lines += ['<urn:e:x> <http://www.w3.org/2000/01/rdf-schema#label> "iPhone" .']
    store.graph.update(f"INSERT DATA {{ {' '.join(lines)} }}")
    asked: list[str] = []

    def down(query, content):
        return (400, b"too slow") if "LCASE" in query else content

    with sparql.served(store, asked=asked) as url:
        graph = open_graph(url)
        for text, wanted, queries in (
            ("What of Thing 7 and THING 8?", ["thing 7", "thing 8"], 1), ("What of IPHONE?", ["iPhone"], 2),
            ("any things?", [], 3), ("", [], 0),
        ):  # fmt: skip
            asked.clear()
            names, notes = graphs.find_names(graph, [text], lookup="query")
            assert ([one.name for one in names.mentions(text)], notes, len(asked)) == (wanted, [], queries)
            assert [one.name for one in graphs.names_of(graph).mentions(text)] == wanted
        names, _ = graphs.find_names(graph, ["one thing or other"], lookup="query")
        assert len(names) == graphs._HOLDING  # that hold "thing"
        assert len(graphs.find_names(graph, ["thing 1", "iphone"], lookup="query")[0]) == 2
    with sparql.served(store, down) as url:
        graph = open_graph(url)
        assert len(graphs.find_names(graph, ["thing 7"], lookup="query")[0]) == 1
        names, (note,) = graphs.find_names(graph, ["IPHONE"], lookup="query")
        assert (len(names), "no names like those in 'IPHONE' were found: " in note) == (0, True)
    with sparql.served(store, lambda *_: (400, b"")) as url, pytest.raises(ServerError):
        graphs.find_names(open_graph(url), ["thing 7"], lookup="query")
    with pytest.raises(InputError, match="give all or query"):
        graphs.find_names(open_graph(store), ["thing"], lookup="some")


def test_a_refused_file_leaves_nothing(tmp_path, cache):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\tc\na\tb\n")
    with pytest.raises(DataError, match="line 2 has 2 columns"):
        open_graph(path)
    assert stores(cache) == []


CHILD = """
import sys
from secateur.data import triples
from secateur.methods.graphs import open_graph
triples._AT_ONCE = 500
print(len(open_graph(sys.argv[1]).around(["urn:secateur:entity:b0"])), flush=True)
"""


def child(path: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.wide
def test_a_kill_during_loading_leaves_a_store_that_is_made_anew(tmp_path, cache):
    path = table(tmp_path / "a.tsv", 100_000)
    process = child(path)
    end = time.monotonic() + 60
    while not list(cache.glob(".tmp-*/CURRENT")) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = stores(cache)
    assert left.startswith(".tmp-")  # it was killed while it loaded
    assert len(open_graph(path).around([entity("b0")], most=99_999)) == len(range(0, 100_000, 7))
    (made,) = stores(cache)
    assert not made.startswith(".")


def test_two_processes_make_one_store(tmp_path, cache):
    path = table(tmp_path / "a.tsv", 5_000)
    both = [child(path), child(path)]
    assert [process.communicate()[0].strip() for process in both] == ["715", "715"]
    assert [process.returncode for process in both] == [0, 0]
    assert len(stores(cache)) == 1


def test_a_bar_shows_on_a_terminal_and_where_it_takes_long(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Progress, "start", lambda self: started.append(not self.disable))
    clock = iter(range(0, 10**6, 3))
    monkeypatch.setattr(graphs.time, "monotonic", lambda: float(next(clock)))
    open_graph(table(tmp_path / "a.tsv"))
    assert not any(started)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    open_graph(table(tmp_path / "b.tsv", 4))
    assert any(started)
