"""Stores of facts: what a query gives, embedded and over HTTP."""

from __future__ import annotations

import pytest

import sparql
from secateur.clients import stores
from secateur.clients.stores import Embedded, Endpoint, Value, entity, iri, is_usable, kind, literal, one_line, relation
from secateur.errors import DataError, InputError, ServerError


def test_an_iri_can_not_leave_its_brackets():
    assert iri("urn:e:a") == "<urn:e:a>"
    for bad in ("", "urn:a b", "urn:a> <urn:b", 'urn:"', "urn:\n", "a", "urn:\ud800", "urn:" + "a" * 20_000):
        with pytest.raises(InputError, match="no IRI"):
            iri(bad)


@pytest.mark.parametrize(
    "text", ['"', "\\", '\\"', "a\nb\r\t", "\\u0022 } #", "'", '" } UNION { ?s ?p ?o } #', "日本 é 👩", ""]
)
def test_a_text_can_not_leave_its_quotes(text):
    for language in ("", "en", "pt-BR"):
        (row,) = Embedded().select(f"SELECT ?x WHERE {{ VALUES ?x {{ {literal(text, language)} }} }}")
        assert row == (Value(text, "literal", language.lower()),)


def test_what_no_query_can_hold_is_no_text():
    with pytest.raises(InputError, match="half of a letter"):
        literal("\ud800")
    for language in ("en }", "en>", "e n", "-", "\nen", "en-"):
        with pytest.raises(InputError, match="is no language"):
            literal("a", language)


def test_names_of_tables_become_iris_that_fit_a_query():
    assert entity("heart attack") == "urn:secateur:entity:heart%20attack"
    assert relation("http://x.org/p") == "http://x.org/p"
    assert entity("http://x.org/p> <urn:b") == "urn:secateur:entity:http%3A%2F%2Fx.org%2Fp%3E%20%3Curn%3Ab"
    assert kind("URN:x:y") == "URN:x:y"
    for name in ("http://x.org/[1]", "mailto:me", "a:b", "日本", "\n"):
        assert is_usable(entity(name))
        assert entity(name).startswith("urn:secateur:entity:")


def test_a_line_is_one_line():
    assert one_line(" a\n\tb\x00\x1bc\u2028d\ud800 ") == "a b c d"
    assert one_line("می\u200cخواهم é 👩\u200d🔬") == "می\u200cخواهم é 👩\u200d🔬"  # joiners belong to words
    assert one_line("a" * 100, 7) == "a" * 7


def test_rows_are_values_in_the_order_of_the_query():
    store = Embedded()
    store.graph.update('INSERT DATA { <urn:a> <urn:p> "x"@en . _:b <urn:p> <urn:c> }')
    rows = store.select("SELECT ?o ?s ?none WHERE { ?s <urn:p> ?o }")
    assert (Value("x", "literal", "en"), Value("urn:a"), None) in rows
    assert any(row[1].kind == "blank" for row in rows)


def test_what_is_no_select_query_is_refused():
    for bad in ("nonsense", "ASK { ?s ?p ?o }", "DELETE WHERE { ?s ?p ?o }"):
        with pytest.raises(InputError, match=r"query|SELECT"):
            Embedded().select(bad)


def test_json_that_is_no_result_is_no_answer():
    for raw in (
        b"",
        b"[]",
        b'{"head": {"vars": ["s"]}, "results": {"bindings": [{"s": {"type": "uri", "value": 3}}]}}',
    ):
        with pytest.raises(stores.PassingError):
            stores._rows(raw)


def test_a_folder_keeps_a_store_and_many_may_read_it(tmp_path):
    store = Embedded(tmp_path / "store", writing=True)
    store.graph.update("INSERT DATA { <urn:a> <urn:p> <urn:b> }")
    with pytest.raises(DataError, match="can't be opened as a graph store"):
        Embedded(tmp_path / "store", writing=True)
    del store
    both = [Embedded(tmp_path / "store"), Embedded(tmp_path / "store")]
    assert [one.select("SELECT ?o WHERE { ?s ?p ?o }") for one in both] == [[(Value("urn:b"),)]] * 2
    with pytest.raises(DataError, match="can't be opened as a graph store"):
        Embedded(tmp_path / "none")


def test_rows_come_one_after_another():
    store = Embedded()
    store.graph.update("INSERT DATA { <urn:a> <urn:p> <urn:b>, <urn:c> }")
    rows = store.each("SELECT ?o WHERE { ?s ?p ?o } ORDER BY ?o")
    assert next(rows) == (Value("urn:b"),)
    assert list(rows) == [(Value("urn:c"),)]


def test_an_endpoint_gives_rows_in_the_order_of_the_query():
    pytest.importorskip("httpx2")
    store = Embedded()
    store.graph.update('INSERT DATA { <urn:a> <urn:p> "x"@en }')
    query = "SELECT ?o ?s ?none WHERE { ?s <urn:p> ?o }"
    with sparql.served(store) as url:
        assert Endpoint(url).select(query) == store.select(query)
        with pytest.raises(ServerError, match="HTTP 400"):
            Endpoint(url).select("nonsense")
        with pytest.raises(InputError, match="SPARQL_TOKEN"):
            Endpoint(url.replace("//", "//me:secret@"))


def test_a_token_goes_into_the_header_and_no_message(monkeypatch):
    pytest.importorskip("httpx2")
    monkeypatch.setenv("THE_TOKEN", "s3cret")
    endpoint = sparql.served(Embedded(), lambda *_: (400, b"you said s3cret"))
    with endpoint as url, pytest.raises(ServerError, match=r"you said \*\*\*"):
        Endpoint(url, key="THE_TOKEN").select("SELECT ?s WHERE { ?s ?p ?o }")
