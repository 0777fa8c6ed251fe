"""What a graph tells of itself: embedded and over HTTP, with hubs, and by endpoints that are slow, down or lie."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

pytest.importorskip("pyoxigraph")

import sparql
from secateur import conformance
from secateur._utils import http
from secateur.clients.stores import Embedded, Endpoint
from secateur.errors import InputError, ServerError
from secateur.subjects import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.graph import knowledge_graph as module
from secateur.vocabulary import Selection

pytest.importorskip("httpx2")

DATA = """
PREFIX e: <urn:e:> PREFIX r: <urn:r:> PREFIX rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#>
PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#> PREFIX skos: <http://www.w3.org/2004/02/skos/core#>
INSERT DATA {
  e:ann r:knows e:bob . e:bob r:knows e:cid . e:cid r:knows e:ann . e:cid r:lives_in e:rome . e:rome r:in e:italy .
  e:ann r:age 41 . e:ann r:motto "carpe\\ndiem"@la . e:dan r:knows _:someone . e:island r:is e:alone .
  e:ann rdfs:label "Anna"@de, "Ann"@en-GB, "Anne"@fr ; skos:altLabel "Annie"@en, "Anuschka"@ru ; a e:Person, e:Zoo .
  e:bob skos:prefLabel "Bob" ; a e:Person . e:rome rdfs:label "Roma"@it ; a e:City . e:Person rdfs:label "human" .
  [] a rdf:Statement ; rdf:subject e:ann ; rdf:predicate r:knows ; rdf:object e:bob ; r:source "diary" ; r:score 0.9 .
  e:said a rdf:Statement ; rdf:subject e:ann ; rdf:predicate r:knows ; rdf:object e:bob ; r:source e:italy .
  [] rdf:subject e:ann ; rdf:predicate r:motto ; rdf:object "carpe\\ndiem"@la ; r:source "wall" .
}"""
ANN, BOB, CID, ROME, ITALY = (f"urn:e:{name}" for name in ("ann", "bob", "cid", "rome", "italy"))
KNOWS = Fact(ANN, "urn:r:knows", BOB)


def store(text: str = DATA) -> Embedded:
    made = Embedded()
    made.graph.update(text)
    return made


def lying(found: Embedded, twist, **options):
    """A graph behind an endpoint that tells something else."""
    with sparql.served(found, twist) as url:
        yield KnowledgeGraph(Endpoint(url, **{"retries": 0, "backoff": 0.001, **options}))


def rewritten(change):
    """A twist that changes the bindings of an answer."""

    def twist(_: str, content: bytes) -> bytes:
        told = json.loads(content)
        told["results"]["bindings"] = change(told["results"]["bindings"])
        return json.dumps(told).encode()

    return twist


CALLED = [("urn:e:Person", "human"), (ANN, "Ann"), (BOB, "Bob"), (ROME, "Roma")]


def everything(graph: KnowledgeGraph) -> list:
    """Whatever can be asked."""
    nodes = [ANN, BOB, CID, ROME, ITALY, "urn:e:nobody"]
    facts = graph.around(nodes, literals=True)
    return [
        facts, graph.around([CID]), graph.around([]), graph.annotations(facts), graph.names(nodes), graph.kinds(nodes),
        [one for one in graph.things() if one in CALLED], list(graph.things(["human"], aliases=True)),
        graph.within([ANN], 3),
        graph.within([ANN], 0), graph.within([ANN], 2, most=3), graph.around([ANN], most=1), sorted(graph.crowded),
    ]  # fmt: skip


def test_what_a_graph_tells():
    graph = KnowledgeGraph(store())
    assert graph.around([ANN]) == [KNOWS, Fact(CID, "urn:r:knows", ANN)]
    texts = [fact for fact in graph.around([ANN], literals=True) if fact.literal]
    assert texts == [Fact(ANN, "urn:r:age", "41", True), Fact(ANN, "urn:r:motto", "carpe diem", True)]
    # Statements say what is known of a fact, and are no facts about where that was taken from.
    assert graph.around([ITALY]) == [Fact(ROME, "urn:r:in", ITALY)]
    known = graph.annotations([KNOWS, texts[1], Fact(BOB, "urn:r:knows", CID)])
    assert known == {
        KNOWS: {"source": ("diary", ITALY), "score": ("0.9",)},
        texts[1]: {"source": ("wall",)},
        Fact(BOB, "urn:r:knows", CID): {},
    }
    assert graph.names([ANN, BOB, ROME, ITALY]) == {ANN: "Ann", BOB: "Bob", ROME: "Roma", ITALY: "italy"}
    assert KnowledgeGraph(store(), language="de").names([ANN]) == {ANN: "Anna"}
    assert graph.kinds([ANN, BOB, ROME, ITALY]) == {ANN: "human", BOB: "human", ROME: "City", ITALY: ""}
    things = list(graph.things())
    assert [one for one in things if one in CALLED] == CALLED
    assert (CID, "cid") in things, "of a small graph what has no name is called by the end of its IRI"
    assert list(graph.things(["human"], aliases=True)) == [(ANN, "Ann"), (ANN, "Annie"), (BOB, "Bob")]
    with pytest.raises(InputError, match="no kind of things called 'river'; it has City, Zoo, human"):
        list(graph.things(["river"]))


def test_an_endpoint_tells_the_same():
    asked: list[str] = []
    with sparql.served(store(), asked=asked) as url:
        assert everything(KnowledgeGraph(Endpoint(url))) == everything(KnowledgeGraph(store()))
    assert len(asked) > 15


def test_all_things_are_read_page_by_page(monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 4)
    labels = " ".join(
        f'<urn:e:{number}> <{name}> "n{number}" .'
        for number in range(10)
        for name in module.NAMES[: 1 + 3 * (number == 5)]
    )
    found = store(f"INSERT DATA {{ {labels} }}")
    wanted = list(KnowledgeGraph(found).things())
    assert len(wanted) == 10
    asked: list[str] = []
    with sparql.served(found, asked=asked) as url:
        assert list(KnowledgeGraph(Endpoint(url)).things()) == wanted
    assert len(asked) == 5


def test_a_sample_is_of_facts_about_as_many_things():
    graph, lines = KnowledgeGraph(store()), "".join(f"<urn:e:n{i}> <urn:r:next> <urn:e:n{i + 1}> ." for i in range(40))
    found = graph.sample(3)
    assert len(found) == len({fact.subject for fact in found}) == 3
    assert found == graph.sample(3)
    # Neither words nor what is said of a fact.
    assert {fact.subject for fact in graph.sample(99)} == {ANN, BOB, CID, ROME, "urn:e:island"}
    assert all(fact in graph.around([fact.subject]) for fact in graph.sample(99))
    long = store(f"INSERT DATA {{ {lines} }}")
    assert len(KnowledgeGraph(long).sample(20)) == 20
    with sparql.served(long) as url:
        assert KnowledgeGraph(Endpoint(url)).sample(20) == KnowledgeGraph(long).sample(20)
    assert KnowledgeGraph(Embedded()).sample(9) == []


NAMED = """
PREFIX e: <urn:e:> PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#> PREFIX skos: <http://www.w3.org/2004/02/skos/core#>
INSERT DATA {
  e:1 rdfs:label "heart attack"@en ; skos:altLabel "MI" ; a e:Illness . e:2 rdfs:label "Heart Attack" ; a e:Film .
  e:3 rdfs:label "iPhone" . e:4 rdfs:label "heart"@en-GB . e:5 rdfs:label "he said \\"no\\"" . e:6 rdfs:label "a\\\\b" .
  e:treats rdfs:label "treats" . e:1 e:treats e:4 . _:b rdfs:label "iphone" . e:Illness rdfs:label "illness" .
}"""


def test_things_are_found_by_their_names_without_reading_all():
    found, asked = store(NAMED), list[str]()
    with sparql.served(found, asked=asked) as url:
        for graph in (KnowledgeGraph(found), KnowledgeGraph(Endpoint(url))):
            both = [("urn:e:1", "heart attack"), ("urn:e:2", "Heart Attack")]
            assert graph.find_named(["heart attack"]) == graph.find_named(["Heart attack"], how="folded") == both
            assert graph.find_named(["heart attack"], ["illness"]) == both[:1]
            assert graph.find_named(["heart attack"], ["urn:e:Illness"]) == both[:1]
            assert graph.find_named(["mi", "treats"]) == [("urn:e:1", "MI")]  # a relation is no thing
            assert graph.find_named(["IPHONE"]) == []
            assert graph.find_named(["IPHONE"], how="folded") == [("urn:e:3", "iPhone")]
            assert graph.find_named(["heart"]) == []  # it is British
            assert graph.find_named(["HEART"], how="folded") == [("urn:e:4", "heart")]
            assert graph.find_named(["Heart"], how="holding") == [*both, ("urn:e:4", "heart")]
            assert len(graph.find_named(["heart", "phone"], how="holding", most=1)) == 2
            assert len(graph.find_named(["heart attack"], most=1)) == 1
            assert graph.find_named(['he said "no"']) == [("urn:e:5", 'he said "no"')]
            assert graph.find_named([], how="folded") == graph.find_named(["", " "]) == []
    assert all("LIMIT" in query for query in asked if "VALUES ?n" in query or "LCASE" in query)
    with sparql.served(found) as url:
        assert KnowledgeGraph(Endpoint(url), language="en-GB").find_named(["Heart"]) == [("urn:e:4", "heart")]


def test_names_that_were_not_asked_for_are_left_out():
    def more(rows):
        other = {"s": IRI, "p": {"type": "uri", "value": module.NAMES[0]}, "n": {"type": "literal", "value": "Other"}}
        return [*rows, other]

    for how in ("written", "folded", "holding"):
        for graph in lying(store(), rewritten(more)):
            assert graph.find_named(["Bob"], how=how) == [(BOB, "Bob")]


@pytest.mark.parametrize(
    "text", ['" } UNION { ?s ?p ?n } #', "a\\", "\\u0022) } #", "a'b", "\ud800", "a\nb", '"@en', "x" * 10_000]
)
def test_a_name_never_changes_a_query(text):
    for how in ("written", "folded", "holding"):
        assert KnowledgeGraph(store(NAMED)).find_named([text], how=how) == []


def test_pages_that_never_end_are_left():
    again = {"value": "urn:e:again", "type": "uri"}
    row = {"s": again, "p": {"value": module.NAMES[0], "type": "uri"}, "n": {"value": "x", "type": "literal"}}
    for graph in lying(store(), rewritten(lambda _: [row] * module._PAGE)):
        assert list(graph.things()) == [("urn:e:again", "x")]


def test_a_neighbourhood_is_all_within_its_hops():
    graph = KnowledgeGraph(store())
    found = graph.within([ANN, "urn:e:island"], 2)
    assert found.hops == {ANN: 0, "urn:e:island": 0, BOB: 1, CID: 1, "urn:e:alone": 1, ROME: 2}
    assert len(found.facts) == 5
    assert not found.cut
    assert graph.within([ANN], 9).hops[ITALY] == 3
    for most in range(1, 6):
        cut = graph.within([ANN], 9, most=most)
        assert len(cut.facts) == most
        assert cut.cut == (most < 5)
        assert set(cut.facts) <= set(graph.within([ANN], 9).facts)
    with pytest.raises(InputError, match="hops=-1"):
        graph.within([ANN], -1)


def hub(edges: int) -> Embedded:
    found = Embedded()
    ox = found.library
    middle, predicate = ox.NamedNode("urn:e:hub"), ox.NamedNode("urn:r:has")
    found.graph.bulk_extend(ox.Quad(middle, predicate, ox.NamedNode(f"urn:e:{number}")) for number in range(edges))
    found.graph.update("INSERT DATA { <urn:e:a> <urn:r:to> <urn:e:hub> . <urn:e:a> <urn:r:to> <urn:e:b> }")
    return found


def test_of_a_hub_a_bounded_part_is_read():
    found = hub(100_000)
    for most in (100, 10_000):
        graph = KnowledgeGraph(found, most=most)
        began = time.monotonic()
        part = graph.around(["urn:e:hub", "urn:e:a"])
        assert time.monotonic() - began < 5
        assert len(part) == most + 2
        assert graph.crowded == {"urn:e:hub"}
        # The same part whatever is asked with it.
        assert set(graph.around(["urn:e:hub"])) == set(part) - {Fact("urn:e:a", "urn:r:to", "urn:e:b")}
        beyond = graph.within(["urn:e:b"], 3, most=500)
        assert beyond.cut
        assert len(beyond.facts) == min(500, most + 2)
    # As many as allowed is not too many.
    graph = KnowledgeGraph(hub(50), most=50)
    assert len(graph.around(["urn:e:hub"])) == 51
    assert not graph.crowded


def test_within_reads_no_more_than_it_may(monkeypatch):
    """Many hubs side by side: reading stops once there are enough facts."""
    edges = " ".join(f"<urn:e:{a}> <urn:r:to> <urn:e:{a}.{b}> ." for a in range(40) for b in range(30))
    found = store(f"INSERT DATA {{ {edges} {' '.join(f'<urn:e:top> <urn:r:to> <urn:e:{a}> .' for a in range(40))} }}")
    monkeypatch.setattr(module, "_ROOM", 64)
    monkeypatch.setattr(module, "_FEW", 2)
    rows = 0
    select = found.select

    def counted(query: str):
        nonlocal rows
        answer = select(query)
        rows += len(answer)
        return answer

    monkeypatch.setattr(found, "select", counted)
    graph = KnowledgeGraph(found, most=30)
    assert len(graph.within(["urn:e:top"], 2, most=100).facts) == 100
    assert rows < 600  # of 1,200 facts


def test_an_answer_that_is_too_large_is_asked_for_in_parts(monkeypatch):
    found = hub(300)
    wanted = KnowledgeGraph(found, most=40).around(["urn:e:hub", "urn:e:a"])
    names = {f"urn:e:{number}": str(number) for number in range(100)}
    with sparql.served(found) as url:
        monkeypatch.setattr(http, "LARGEST", 12_000)
        graph = KnowledgeGraph(Endpoint(url), most=40)
        assert graph.around(["urn:e:hub", "urn:e:a"]) == wanted
        assert graph.names(names) == names
        monkeypatch.setattr(http, "LARGEST", 2_000)
        began = time.monotonic()
        with pytest.raises(http.LargeError, match="ask for less"):
            graph.around(["urn:e:hub"])
        assert time.monotonic() - began < 2


# --------------------------------------------------------------------------------------------- slow, down, rude, lying

IRI = {"type": "uri", "value": "urn:e:other"}
LIES = {
    "nothing": lambda rows: [],
    "rows about others": lambda rows: [dict.fromkeys(row, IRI) for row in rows],
    "words for things": lambda rows: [{n: {**value, "type": "literal"} for n, value in row.items()} for row in rows],
    "things for words": lambda rows: [{n: {**value, "type": "uri"} for n, value in row.items()} for row in rows],
    "blank nodes": lambda rows: [{name: {"type": "bnode", "value": "b"} for name in row} for row in rows],
    "what changes a query": lambda rows: [
        {name: {**value, "value": value["value"] + "> } DROP ALL #"} for name, value in row.items()} for row in rows
    ],
    "far ends that change a query": lambda rows: [
        {n: {"type": "uri", "value": "urn:a> } #"} if n in ("o", "v", "k", "n") else value for n, value in row.items()}
        for row in rows
    ],
    "no IRIs": lambda rows: [{name: {"type": "uri", "value": "a b"} for name in row} for row in rows],
    "half letters": lambda rows: [{name: {**value, "value": "\ud800"} for name, value in row.items()} for row in rows],
    "half rows": lambda rows: [dict(list(row.items())[:1]) for row in rows],
    "everything again": lambda rows: rows * 50,
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_endpoint_that_lies_is_believed_only_what_it_was_asked(lie):
    for graph in lying(store(), rewritten(LIES[lie])):
        nodes = [ANN, BOB, CID, ROME]
        facts = graph.around(nodes, literals=True)
        for fact in facts:
            assert fact.subject in nodes or fact.object in nodes
            graph.around([fact.subject] if fact.literal else [fact.subject, fact.object])  # all can be asked about
        if lie == "everything again":
            assert facts == KnowledgeGraph(store()).around(nodes, literals=True)
        assert set(graph.annotations([KNOWS])) == {KNOWS}
        assert set(graph.names(nodes)) == set(nodes)
        assert all(name and name.isprintable() for name in graph.names(nodes).values())
        assert set(graph.kinds(nodes)) == set(nodes)
        list(graph.things())
        for how in ("written", "folded", "holding"):
            assert {node for node, _ in graph.find_named(["Ann"], how=how)} <= {ANN}
        graph.around([end for fact in graph.sample(9) for end in (fact.subject, fact.object)])
        json.dumps(graph.within(nodes, 3)).encode()


def test_predicates_of_wikidata_are_called_as_their_properties():
    place, label = "http://www.wikidata.org/", "<http://www.w3.org/2000/01/rdf-schema#label>"
    told = Embedded()
    told.graph.update(
        f"""INSERT DATA {{ <{place}entity/Q35869> <{place}prop/direct/P2176> <{place}entity/Q215034> ;
        {label} "asthma"@en . <{place}entity/P2176> <http://wikiba.se/ontology#directClaim> <{place}prop/direct/P2176> ;
        {label} "drug used for treatment"@en , "Arzneimittel"@de , "medicament"@fr . }}"""
    )
    predicates = [f"{place}prop/direct/P2176", f"{place}prop/direct/P31"]
    for language, name in (("en", "drug used for treatment"), ("de", "Arzneimittel")):
        graph = KnowledgeGraph(told, language=language)
        assert list(graph.names(predicates).values()) == [name, "P31"]


def test_names_are_one_short_line():
    def long(rows):
        words = "a\n\x1b[2J\u202eb " * 100_000
        return [{**row, "n": {"type": "literal", "value": words}} if "n" in row else row for row in rows]

    for graph in lying(store(), rewritten(long)):
        name = graph.names([ANN])[ANN]
        assert len(name) <= module.LONGEST
        assert name.startswith("a [2J b a [2J")
        assert name.isprintable()


def test_columns_that_are_not_those_of_the_query_are_no_answer():
    def swapped(_: str, content: bytes) -> bytes:
        told = json.loads(content)
        told["head"]["vars"] = told["head"]["vars"][::-1]
        return json.dumps(told).encode()

    for graph in lying(store(), swapped):  # their order says nothing
        assert graph.around([ANN]) == KnowledgeGraph(store()).around([ANN])
    for content in (b'{"head": {"vars": ["x"]}, "results": {"bindings": []}}', b"<html>", b"", b"[" * 100_000):
        for graph in lying(store(), lambda _, __, content=content: content):
            with pytest.raises(ServerError, match="no result of a SELECT query"):
                graph.around([ANN])


def test_a_slow_endpoint_and_one_that_is_down_take_bounded_time():
    def slow(*_):
        time.sleep(0.5)
        return b""

    began = time.monotonic()
    for graph in lying(store(), slow, timeout=0.1, retries=2):
        with pytest.raises(ServerError, match="3 attempts: no answer in time"):
            graph.around([ANN])
    for graph in lying(store(), lambda *_: (503, b""), retries=2):
        with pytest.raises(ServerError, match="HTTP 503"):
            graph.names([ANN])
    with sparql.served(store()) as url:
        pass
    with pytest.raises(ServerError, match="ConnectError"):
        KnowledgeGraph(Endpoint(url, retries=1, backoff=0.001)).around([ANN])
    assert time.monotonic() - began < 10


# ------------------------------------------------------------------------------------------------------------ nodes


def test_a_node_never_changes_a_query():
    graph = KnowledgeGraph(store())
    for bad in ("urn:a> ?p ?o } #", "urn:a b", "no scheme", "", "urn:\ud800", "urn:" + "a" * 20_000):
        for ask in (graph.around, graph.names, graph.kinds, lambda nodes: graph.within(nodes, 1)):
            with pytest.raises(InputError, match="no IRI"):
                ask([bad])
        with pytest.raises(InputError, match="no IRI"):
            graph.annotations([Fact(bad, "urn:r:p", ANN)])


def test_identifiers_and_spoken_ends():
    assert KnowledgeGraph.identifier("urn:secateur:entity:GO%3A0008150") == "GO:0008150"
    assert KnowledgeGraph.identifier("http://x.org/a#b_c") == "b_c"
    assert module.iri_in_words("http://x.org/heart%20attack_of/") == "heart attack of"
    assert module.iri_in_words("urn:x:%0A%1b") == "urn:x:%0A%1b"


def test_a_language_is_a_tag():
    assert KnowledgeGraph(store(), language="DE-at").names([ANN]) == {ANN: "Anna"}
    with pytest.raises(InputError, match="is no language: give its code"):
        KnowledgeGraph(store(), language="en> }")


def test_a_graph_reads_at_least_one_fact_of_a_node():
    with pytest.raises(InputError, match="most=0"):
        KnowledgeGraph(store(), most=0)


# ------------------------------------------------------------------------------------------------------------ facts


def test_facts_obey_the_laws_of_subjects():
    lines = [Line(f"line {'very ' * number}long", (KNOWS,)) for number in range(12)]
    laws = conformance.check_subject(
        lambda: Facts(lines),
        output=lambda facts: np.frombuffer(facts.to_text().encode(), dtype=np.uint8).astype(float),
        counted=lambda facts: {"words": float(len(facts.to_text().split()))},
        measure="words",
    )
    assert {"identity", "predicted = counted", "superset", "original untouched"} <= set(laws)


def test_facts_are_lines_of_which_some_stay():
    facts = Facts([Line("a b", (KNOWS,), ("diary",)), Line("c", ())])
    smaller, cut = facts.cut(Selection({"facts": np.array([False, True])}))
    assert smaller.to_text() == "c"
    assert (dict(cut.removed), dict(cut.before), dict(cut.after)) == ({"facts": (1, 2)}, {"words": 3.0}, {"words": 1.0})
    assert facts.to_text([True, False]) == "a b"
    assert facts.cost({"letters": lambda texts: [len(text) for text in texts]}) == {"words": 3.0, "letters": 5.0}
    assert facts.units(letters=lambda texts: [len(text) for text in texts])["facts"].cost["letters"].tolist() == [4, 2]
    with pytest.raises(InputError, match="2 facts, and the selection has 3"):
        facts.cut(Selection({"facts": np.ones(3, bool)}))
    with pytest.raises(InputError, match="no 'pages'"):
        facts.units("pages")


def test_statements_are_no_things():
    graph = KnowledgeGraph(store())
    assert "urn:e:said" not in dict(graph.things())
    assert "urn:e:said" not in graph.within([ITALY], 5).hops


@pytest.mark.parametrize("name", [
    "http://xmlns.com/foaf/0.1/name", "http://schema.org/name", "https://schema.org/name",
    "http://purl.org/dc/terms/title", "http://purl.org/dc/elements/1.1/title",
])  # fmt: skip
def test_what_vocabularies_in_use_call_a_name_is_one(name):
    here = KnowledgeGraph(store(f'INSERT DATA {{ <urn:e:p17> <{name}> "Clyde Tombaugh" ; <urn:r:born_in> <urn:e:x> }}'))
    assert here.names(["urn:e:p17"]) == {"urn:e:p17": "Clyde Tombaugh"}
    assert here.find_named(["clyde tombaugh"], how="folded") == [("urn:e:p17", "Clyde Tombaugh")]
    assert here.around(["urn:e:p17"], literals=True) == [Fact("urn:e:p17", "urn:r:born_in", "urn:e:x")]
