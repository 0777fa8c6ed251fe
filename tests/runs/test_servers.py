"""Servers asked as a user says: options that are checked, bounds on a whole run, and real servers on loopback."""

from __future__ import annotations

import json
import time

import pytest

import secateur
import sparql
from chat_server import say, served
from secateur import cli
from secateur._utils import http
from secateur.clients import chat
from secateur.clients.chat import Ledger, Meter, SpentWarning
from secateur.clients.stores import Embedded
from secateur.errors import DataError, InputError, RunError, ServerError
from secateur.methods.graphs import open_graph
from secateur.recipes.context.htmlrag import htmlrag
from secateur.recipes.context.kg_rag import kg_rag
from secateur.runs.servers import servers, split_options

pytest.importorskip("pyoxigraph")
pytest.importorskip("httpx2")

QUESTION = "What treats asthma?"
FACTS = "subject,predicate,object\nsalbutamol,treats,asthma\nAcme,makes,salbutamol\nasthma,affects,lung\n"
LISTED = {
    "choices": [{"message": {"content": '{"entities": ["asthma"]}'}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "graph.csv").write_text(FACTS)
    return tmp_path / "graph.csv"


@pytest.fixture
def asked(tmp_path):
    """Questions, a line each."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"question": QUESTION, "id": i}) + "\n" for i in range(6)))
    return tmp_path / "in.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ------------------------------------------------------------------------------------------------------------- options


def test_options_of_servers_and_of_the_recipe_are_told_apart():
    given = {"llm": "http://localhost:1/v1", "llm_name": "x", "llm_timeout": 5, "run_calls": 7, "graph_retries": 1}
    how, own = split_options(kg_rag, given, "http://localhost:1/sparql")
    assert own == {"llm": "http://localhost:1/v1", "llm_name": "x"}
    assert (how.llm.timeout, how.graph.retries, how.calls) == (5.0, 1, 7)
    assert how == servers(llm_timeout=5, run_calls=7, graph_retries=1)
    assert split_options(kg_rag, {"llm": "a/folder"})[0] == servers()


def test_keys_are_those_of_the_variables_that_are_named(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    url = "http://localhost:1/v1"
    how, own = split_options(kg_rag, {"llm": url, "llm_name": "x", "llm_key": "MY_KEY", "graph_key": "MY_KEY"}, url)
    assert how.open_llm(own).key == how.open_graph(url).store.key == "MY_KEY"
    how, own = split_options(kg_rag, {"llm": url, "llm_name": "x"}, url)
    assert (how.open_llm(own).key, how.open_graph(url).store.key) == ("SECATEUR_LLM_KEY", "SPARQL_TOKEN")


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        (htmlrag, {"llm_timeout": 3}, "htmlrag asks no language model: leave llm_timeout out"),
        (kg_rag, {"llm_timeout": 3}, "llm_timeout is about a server, and no language model"),
        (kg_rag, {"llm": "a/folder", "llm_per_minute": 3}, "llm_per_minute is about a server"),
        (kg_rag, {"run_calls": 3}, "run_calls bounds a language model: give one"),
        (kg_rag, {"graph_timeout": 3}, "graph_timeout is about an endpoint"),
        (htmlrag, {"graph_columns": ["a"]}, "graph_columns is about a graph, and htmlrag reads none"),
        (kg_rag, {"graph_columns": 3}, "option graph_columns=3"),
        (kg_rag, {"llm": "http://h/v1", "run_calls": -1}, "run_calls=-1: give a number of at least 0"),
        (kg_rag, {"llm": "http://h/v1", "llm_retries": "x"}, "option llm_retries='x'"),
    ],
)
def test_what_is_said_of_a_server_that_nobody_asks_is_refused(recipe, given, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        split_options(recipe, given, "graph.csv" if recipe is kg_rag else "")


def test_what_is_said_of_a_graph_that_is_opened_already_is_refused(graph):
    table = {"graph_columns": ["a", "b", "c"]}
    for given, source, words in (
        (table, open_graph(graph), "graph_columns is for a graph that is still to be opened"),
        ({"graph_language": "de"}, open_graph(graph), "graph_language is for a graph that is still to be opened"),
        (table, "http://localhost:1/sparql", "graph_columns is about a table, and the graph is an endpoint"),
        (table, open_graph(graph).store.folder, "columns=a,b,c: .* is no table"),
        (table, Embedded(), "columns=a,b,c: .* is no table"),
        ({"graph_columns": ["a", "b"]}, graph, "give three, of subject, predicate and object"),
        ({"graph_language": "de> }"}, graph, "is no language"),
    ):
        with pytest.raises(InputError, match=words):
            secateur.prune_context("kg_rag", source, QUESTION, "words=9", **given)
    with pytest.raises(DataError, match="names no column 'a'"):
        secateur.prune_context("kg_rag", graph, QUESTION, "words=9", **table)


@pytest.mark.parametrize("wrong", [{"llm_timeout": 0}, {"llm_per_minute": -1}, {"llm_timeout": float("inf")}])
def test_numbers_that_make_no_sense_are_refused_before_any_line(wrong, graph, asked, tmp_path):
    how = {"llm": "http://127.0.0.1:1/v1", "llm_name": "x", **wrong}
    with pytest.raises(InputError, match=next(iter(wrong)).partition("_")[2]):
        secateur.prune_file("kg_rag", asked, tmp_path / "out.jsonl", "words=40", graph=graph, **how)
    assert not list(tmp_path.glob("out*"))


def test_a_graph_is_opened_as_is_said(tmp_path, asked, monkeypatch, capsys):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.csv").write_text("was;wen;womit\ntreats;asthma;salbutamol\n")
    name = "<http://www.w3.org/2000/01/rdf-schema#label>"
    told = "".join(f'<urn:{who}> {name} "{word}"@{tag} .\n' for who, word, tag in (
        ("a", "asthma", "en"), ("a", "Asthme", "fr"), ("b", "cough", "en"), ("b", "toux", "fr")))  # fmt: skip
    (tmp_path / "b.nt").write_text(told + "<urn:a> <urn:causes> <urn:b> .\n")
    columns = {"graph_columns": ["womit", "was", "wen"]}
    found = secateur.prune_context("kg_rag", tmp_path / "a.csv", QUESTION, "words=40", **columns)
    assert found.text == "salbutamol treats asthma"
    out = tmp_path / "out.jsonl"
    secateur.prune_file("kg_rag", asked, out, "words=40", graph=tmp_path / "a.csv", **columns)
    assert lines(out)[0]["pruned"] == "salbutamol treats asthma"
    for file, question, flag, said, wanted in (
        ("a.csv", QUESTION, "--graph-columns", "womit,was,wen", "salbutamol treats asthma"),
        ("b.nt", "Asthme ?", "--graph-language", "fr", "Asthme causes toux"),
    ):
        given = ["--recipe", "kg_rag", "--question", question, "--budget", "words=40", "--no-identifier", flag, said]
        capsys.readouterr()
        assert cli.main(["prune-context", str(tmp_path / file), *given]) == 0
        assert capsys.readouterr().out == f"{wanted}\n"
    with sparql.served(Embedded()) as url:
        assert split_options(kg_rag, {"graph_language": "fr"}, url)[0].open_graph(url).language == "fr"
    network = pytest.importorskip("networkx").DiGraph([("a", "b", {"relation": "of"})])
    assert split_options(kg_rag, {"graph_language": "fr"}, network)[0].open_graph(network).language == "fr"


def test_a_run_that_opens_its_graph_otherwise_is_another_one(graph, asked, tmp_path):
    def cut(**how):
        secateur.prune_file("kg_rag", asked, tmp_path / "out.jsonl", "words=40", graph=graph, strict=True, **how)

    asked.write_text(asked.read_text() + "nonsense\n")
    with pytest.raises(DataError, match="line 7"):
        cut()
    with pytest.raises(RunError, match="was made by other settings"):
        cut(graph_language="fr")
    with pytest.raises(DataError, match="line 7"):
        cut(graph_language="en")


def test_processes_share_the_requests_of_a_minute():
    how = servers(llm_per_minute=7, graph_per_minute=3)
    assert (how.processes(16), how.processes(2)) == (3, 2)
    share = how.share(2)
    assert (share.llm.per_minute, share.graph.per_minute) == (3, 1)
    assert (servers().processes(16), servers().share(16)) == (16, servers())


# ------------------------------------------------------------------------------------------------------------- servers


def test_a_slow_language_model_is_waited_for_as_long_as_is_said(graph):
    seen = []

    def slow(body, headers):
        seen.append(body)
        time.sleep(0.4)
        return say(LISTED)

    with served(slow) as url:
        how = {"llm": url, "llm_name": "small", "llm_retries": 1, "llm_timeout": 0.1}
        found = secateur.prune_context("kg_rag", graph, QUESTION, "words=40", **how)
        assert len(seen) == 2
        assert "no answer in time" in found.told["notes"][0]
        patient = secateur.prune_context("kg_rag", graph, QUESTION, "words=40", **{**how, "llm_timeout": 10})
    assert len(seen) == 3
    assert patient.told["entities"] == ["asthma"]


def test_an_endpoint_is_waited_for_as_long_as_is_said():
    store, seen = Embedded(), []

    def slow(query, content):
        seen.append(query)
        time.sleep(0.4)
        return content

    with sparql.served(store, slow) as url:
        with pytest.raises(ServerError, match="no answer in 2 attempts"):
            secateur.prune_context("kg_rag", url, QUESTION, "words=40", graph_timeout=0.1, graph_retries=1)
        assert len(seen) == 2
        found = secateur.prune_context("kg_rag", url, QUESTION, "words=40", graph_timeout=10)
    assert found.text == ""


def test_requests_of_a_minute_are_bounded_over_all_questions(graph, monkeypatch):
    """By a clock of our own: a minute is not waited for."""
    now, slept = [1000.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(http.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(http.time, "sleep", sleep)
    with served(lambda *_: say(LISTED)) as url:
        how = {"llm": url, "llm_name": "small", "llm_per_minute": 2}
        found = secateur.prune_context("kg_rag", graph, [QUESTION] * 5, "words=40", **how)
    assert [one.told["llm_calls"] for one in found] == [1] * 5
    assert slept == [60.0, 60.0]


# ------------------------------------------------------------------------------------------------------ a whole run


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", ["kg_rag", "paths_over_graph"])
def test_a_limit_of_the_run_is_kept_by_all_processes_and_every_line_is_answered(
    recipe, processes, graph, asked, tmp_path
):
    seen = []

    def answer(body, headers):
        seen.append(body)
        return say(LISTED)

    with served(answer) as url:
        how = {"graph": graph, "llm": url, "llm_name": "small", "run_calls": 3, "processes": processes}
        with pytest.warns(SpentWarning, match="called 3 times for 27 tokens") as warned:
            done = secateur.prune_file(recipe, asked, tmp_path / "out.jsonl", "words=40", **how)
    assert done == (6, 0)
    assert len(seen) == 3
    assert len([one for one in warned if one.category is SpentWarning]) == 1
    found = lines(tmp_path / "out.jsonl")
    assert all("salbutamol" in row["pruned"] for row in found)
    assert sum(row["told"].get("llm_calls", row["told"].get("calls")) for row in found) == 3
    assert any("as often as allowed" in note for row in found for note in row["told"]["notes"])
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.run.yaml"]


def test_a_limit_on_tokens_bounds_a_call_for_many_questions(graph):
    with served(lambda *_: say(LISTED)) as url:
        how = {"llm": url, "llm_name": "small", "run_llm_tokens": 10}
        with pytest.warns(SpentWarning, match="called 2 times for 18 tokens"):
            found = secateur.prune_context("kg_rag", graph, [QUESTION] * 4, "words=40", **how)
    assert [one.told["llm_calls"] for one in found] == [1, 1, 0, 0]
    assert all("salbutamol" in one.text for one in found)


def test_a_run_that_goes_on_has_spent_what_it_spent(graph, asked, tmp_path, monkeypatch):
    """As a kill after two lines leaves it."""
    with served(lambda *_: say(LISTED)) as url:
        how = {"graph": graph, "llm": url, "llm_name": "small", "run_calls": 4, "processes": 1}
        out, whole = tmp_path / "out.jsonl", chat.Server.ask
        left = [3]  # one of them in the trial, which asks nobody

        def ask(server, *given, **more):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return whole(server, *given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(chat.Server, "ask", ask)
            with pytest.raises(KeyboardInterrupt):
                secateur.prune_file("kg_rag", asked, out, "words=40", **how)
        assert Ledger(path=tmp_path / "out.jsonl.part.spent").total() == {"calls": 2, "tokens": 18, "refused": 0}
        with pytest.warns(SpentWarning, match="called 4 times"):
            assert secateur.prune_file("kg_rag", asked, out, "words=40", **how) == (6, 0)
    assert [row["told"]["llm_calls"] for row in lines(out)] == [1, 1, 1, 1, 0, 0]


def test_nobody_is_asked_in_a_trial_and_limits_of_a_question_hold_too(graph, asked, tmp_path):
    seen = []

    def answer(body, headers):
        seen.append(body)
        return say(LISTED)

    with served(answer) as url:
        how = {"llm": url, "llm_name": "small", "calls": 1, "answer": True}
        secateur.prune_file("kg_rag", asked, tmp_path / "out.jsonl", "words=40", graph=graph, processes=1, **how)
    found = lines(tmp_path / "out.jsonl")
    assert len(seen) == 6
    assert [row["told"]["llm_calls"] for row in found] == [1] * 6
    assert all("gave no answer" in row["told"]["notes"][-1] for row in found)


def test_a_model_that_is_given_as_such_is_bounded_and_counts_on(graph):
    with served(lambda *_: say(LISTED)) as url:
        model = chat.Server(url, "small", meter=Meter(most_calls=3))
        with pytest.warns(SpentWarning):
            secateur.prune_context("kg_rag", graph, [QUESTION] * 3, "words=40", llm=model, run_calls=2)
        assert model.meter.calls == 2
        secateur.prune_context("kg_rag", graph, [QUESTION] * 3, "words=40", llm=model)
    assert model.meter.calls == 3
