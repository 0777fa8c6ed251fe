"""Stores of facts: what a query gives, embedded and over HTTP."""

from __future__ import annotations

import pytest

from secateur import stores
from secateur.errors import InputError
from secateur.stores import Embedded, Value, iri


def test_an_iri_can_not_leave_its_brackets():
    assert iri("urn:e:a") == "<urn:e:a>"
    for bad in ("", "urn:a b", "urn:a> <urn:b", 'urn:"', "urn:\n"):
        with pytest.raises(InputError, match="no IRI"):
            iri(bad)


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
