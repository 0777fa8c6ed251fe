"""Facts as sentences with their sources, and filters on what is known of them."""

from __future__ import annotations

import pytest

pytest.importorskip("pyoxigraph")

from fact_graph import graph, iri
from secateur.errors import InputError
from secateur.subjects.graph.sentences import Wording, describe_node, parse_filter


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({"sources": ["A", "B"], "source": "C", "pmid_list": "1"}, ["A", "B"]),
        ({"source": "C", "preprint_list": "arXiv", "pmid_list": "1"}, ["C"]),
        ({"preprint_list": "arXiv", "pmid_list": "1"}, ["arXiv"]),
        ({"pmid_list": ["12", "34"]}, ["pubmedId:12", "pubmedId:34"]),
        ({"Source": "C", "pmid": "1"}, ["C"]),
        ({"pmid": "1"}, ["pubmedId:1"]),
        ({"score": "1"}, []),
    ],
)
def test_the_order_of_provenance(known, wanted):
    here = graph(("x1", "has", "y1", known))
    for origin in ("", "the house"):
        (row,) = describe_node(here, iri("x1"), "x1", Wording(origin=origin), [])
        sources = wanted or [origin] * bool(origin)
        assert row["provenance"] == sources
        assert row["text"] == "x1 has y1" + (f", according to {', '.join(sources)}" if sources else "")


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        ("TREATS_CtD", "treats"), ("PREVALENCEIN_DpL", "prevalencein"), ("is_a", "is a"), ("PART_OF", "PART OF"),
        ("associated_with", "associated with"),
    ],
)  # fmt: skip
def test_predicates_in_words(predicate, words):
    (row,) = describe_node(graph(("x1", predicate, "y1")), iri("x1"), "x1", Wording(), [])
    assert (row["text"], row["predicate"], row["path"]) == (f"x1 {words} y1", words, f"x1 > {words}")


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["phase>=3"], "cd"), (["Phase<=3"], "abd"), (["source=A|B"], "abd"), (["phase>=1", "source=B"], "d"),
        (["none>=3"], "abcd"), ([], "abcd"),
    ],
)  # fmt: skip
def test_facts_are_filtered_by_what_is_known_of_them(filters, wanted):
    """One without the property passes; one whose property is no number does not."""
    here = graph(
        ("drug a", "treats", "flu", {"phase": 1, "source": "A"}),
        ("drug b", "treats", "flu", {"phase": "low" if filters == ["phase>=3"] else 2, "source": "A"}),
        ("drug c", "treats", "flu", {"phase": 4, "source": "C"}),
        ("drug d", "treats", "flu", {"phase": ["0", "3"], "source": ["B", "C"]}),
    )
    rows = describe_node(here, iri("flu"), "flu", Wording(), list(map(parse_filter, filters)))
    assert {row["target"][-1] for row in rows} == set(wanted)


@pytest.mark.parametrize("text", ["phase", "phase>3", "phase>=high", ">=3", "source=", "phase>=nan"])
def test_filters_that_say_nothing_are_refused(text):
    with pytest.raises(InputError, match="filter"):
        parse_filter(text)


def test_what_is_known_of_a_fact_is_told_as_json_holds_it():
    known = {"phase": 4, "p_value": "0.05", "note": ["a", "b"], "code": "007"}
    (row,) = describe_node(graph(("x1", "has", "y1", known)), iri("x1"), "x1", Wording(), [])
    assert row["evidence"] == {"code": "007", "note": ["a", "b"], "p_value": 0.05, "phase": 4}
