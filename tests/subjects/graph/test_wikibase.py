"""Facts of a Wikibase: told once, with the qualifiers of their statements, embedded and over HTTP."""

from __future__ import annotations

import pytest

pytest.importorskip("pyoxigraph")

import sparql
from secateur.clients.stores import Embedded, Endpoint
from secateur.subjects import Fact, KnowledgeGraph

pytest.importorskip("httpx2")

SITE = "http://www.wikidata.org/"
WD, WDT = f"{SITE}entity/", f"{SITE}prop/direct/"
ADAMS, SCHOOL, COLLEGE = f"{WD}Q42", f"{WD}Q4961791", f"{WD}Q691283"
DATA = f"""
PREFIX wd: <{WD}> PREFIX wds: <{WD}statement/> PREFIX wdt: <{WDT}> PREFIX wdtn: <{SITE}prop/direct-normalized/>
PREFIX p: <{SITE}prop/> PREFIX ps: <{SITE}prop/statement/> PREFIX pq: <{SITE}prop/qualifier/>
PREFIX pqv: <{SITE}prop/qualifier/value/> PREFIX wikibase: <http://wikiba.se/ontology#>
PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#>
INSERT DATA {{
  wd:Q42 wdt:P69 wd:Q691283 , wd:Q4961791 ; wdt:P800 wd:Q25169 ; wdt:P214 "113230702" ; wdtn:P214 wd:viaf .
  wd:Q42 p:P69 wds:a , wds:b , wds:c ; p:P214 wds:d ; rdfs:label "Douglas Adams"@en .
  wds:a ps:P69 wd:Q691283 ; pq:P582 "1974" ; pqv:P582 wd:node ; pq:P812 wd:Q186579 ; wikibase:rank wikibase:NormalRank .
  wds:b ps:P69 wd:Q4961791 ; wikibase:rank wikibase:NormalRank .
  wds:c ps:P69 wd:Q4961791 ; pq:P582 "1666" ; wikibase:rank wikibase:DeprecatedRank .
  wds:d ps:P214 "113230702" ; pq:P1810 "Adams, Douglas" ; wikibase:rank wikibase:NormalRank .
  wd:P69 wikibase:directClaim wdt:P69 ; wikibase:claim p:P69 ; rdfs:label "educated at"@en .
  wd:P582 wikibase:qualifier pq:P582 ; rdfs:label "end time"@en .
  wd:P812 wikibase:qualifier pq:P812 ; rdfs:label "academic major"@en .
  wd:Q186579 rdfs:label "English literature"@en . wd:Q691283 rdfs:label "St John's College"@en .
}}"""
TAUGHT = Fact(ADAMS, f"{WDT}P69", COLLEGE)
NUMBER = Fact(ADAMS, f"{WDT}P214", "113230702", literal=True)


@pytest.fixture(params=["embedded", "served"])
def graph(request):
    store = Embedded()
    store.graph.update(DATA)
    if request.param == "embedded":
        yield KnowledgeGraph(store)
        return
    with sparql.served(store) as url:
        yield KnowledgeGraph(Endpoint(url))


def test_a_fact_is_told_once_and_no_statement_is_a_thing(graph):
    direct = {TAUGHT, Fact(ADAMS, f"{WDT}P69", SCHOOL), Fact(ADAMS, f"{WDT}P800", f"{WD}Q25169")}
    assert set(graph.around([ADAMS])) == direct
    assert graph.around([COLLEGE]) == [TAUGHT]  # not also by the statement about it
    assert set(graph.around([ADAMS], literals=True)) == direct | {NUMBER}
    assert not any("statement" in node for node in graph.within([ADAMS], 3).hops)
    assert not any("statement" in fact.subject for fact in graph.sample(20))


def test_qualifiers_are_what_is_known_of_a_fact(graph):
    school = Fact(ADAMS, f"{WDT}P69", SCHOOL)
    assert graph.annotations([TAUGHT, school, NUMBER]) == {
        TAUGHT: {"academic major": ("English literature",), "end time": ("1974",)},
        school: {},  # of a deprecated statement nothing is told
        NUMBER: {"P1810": ("Adams, Douglas",)},
    }


def test_where_there_are_only_statements_they_are_read_as_they_are():
    store = Embedded()
    alone = "\n".join(line for line in DATA.splitlines() if "wdt:P69 wd:" not in line)
    store.graph.update(alone.replace("wikibase:directClaim wdt:P69 ; ", ""))
    facts = KnowledgeGraph(store).around([ADAMS])
    assert Fact(ADAMS, f"{SITE}prop/P69", f"{WD}statement/a") in facts
