"""Facts from files: every kind, malformed ones, names that would be queries."""

from __future__ import annotations

import csv
import gzip
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyoxigraph")

from assets import packages
from secateur.clients.stores import ENTITY, RELATION, Embedded, entity, one_line, relation
from secateur.data import triples
from secateur.errors import DataError, InputError
from secateur.subjects import Fact, KnowledgeGraph

LABEL = "<http://www.w3.org/2000/01/rdf-schema#label>"


def loaded(path, content: str | bytes | None = None, **options) -> KnowledgeGraph:
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    store = Embedded()
    triples.load(path, store, **options)
    return KnowledgeGraph(store)


def facts(graph: KnowledgeGraph) -> set[tuple[str, str, str]]:
    """All facts between things, as tables name them."""
    nodes = [row[0].text for row in graph.store.select("SELECT DISTINCT ?s WHERE { ?s ?p ?o FILTER(isIRI(?s)) }")]
    return {tuple(map(graph.identifier, fact[:3])) for fact in graph.around(nodes)}


# ------------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "subject,predicate,object\nheart attack,treated by,aspirin\n"),
        ("a.csv", "\ufeffhead;relation;tail\r\nheart attack;treated by;aspirin\r\n"),
        ("a.csv", "heart attack,treated by,aspirin"),
        ("a.csv", '"heart attack" ,"treated by",aspirin\n\n'.replace('" ,', '",')),
        ("a.csv", "Object,Subject,Predicate\naspirin,heart attack,treated by\n"),
        ("a.tsv", "heart attack\ttreated by\taspirin\n"),
        ("a.txt", "h\tr\tt\nheart attack\ttreated by\taspirin\n"),
        ("a.kg", "head_id:token\trelation_id:token\ttail_id:token\nheart attack\ttreated by\taspirin\n"),
        ("a.tsv.gz", gzip.compress(b"heart attack\ttreated by\taspirin\n", mtime=0)),
    ],
)
def test_a_table_in_any_of_its_forms(tmp_path, name, content):
    graph = loaded(tmp_path / name, content)
    assert facts(graph) == {("heart attack", "treated by", "aspirin")}
    assert dict(graph.things()) == {ENTITY + "heart%20attack": "heart attack", ENTITY + "aspirin": "aspirin"}


def test_other_columns_are_what_is_known_of_a_fact(tmp_path):
    graph = loaded(
        tmp_path / "a.csv",
        "head,relation,tail,source,p value,head_type,tail name\n"
        "MI,treats,D1,PubMed,0.1,Disease,Aspirin\n"
        "MI,treats,D1,DrugBank,,Disease,Aspirin\n"
        "MI,treats,D2,,,Disease,\n",
    )
    mi, aspirin, other = entity("MI"), entity("D1"), entity("D2")
    known = graph.annotations(graph.around([mi]))
    assert known[Fact(mi, relation("treats"), aspirin)] == {"source": ("DrugBank", "PubMed"), "p value": ("0.1",)}
    assert known[Fact(mi, relation("treats"), other)] == {}
    assert graph.names([mi, aspirin, other]) == {mi: "MI", aspirin: "Aspirin", other: "D2"}
    assert graph.kinds([mi, aspirin]) == {mi: "Disease", aspirin: ""}
    # Each line has a statement of its own, so that a source keeps its value.
    rows = graph.store.select(f"SELECT ?v WHERE {{ ?x <{RELATION}source> 'PubMed' ; <{RELATION}p%20value> ?v }}")
    assert [row[0].text for row in rows] == ["0.1"]
    assert (
        graph.store.select(f"SELECT ?v WHERE {{ ?x <{RELATION}source> 'DrugBank' ; <{RELATION}p%20value> ?v }}") == []
    )


def test_columns_can_be_told(tmp_path):
    content = "x_name,display,y_name,id\nMI,treats,aspirin,7\n"
    graph = loaded(tmp_path / "a.csv", content, columns=("x_name", "display", "y_name"))
    assert facts(graph) == {("MI", "treats", "aspirin")}
    assert list(graph.annotations(graph.around([entity("MI")])).values()) == [{"id": ("7",)}]
    with pytest.raises(DataError, match="names no column 'y'"):
        loaded(tmp_path / "a.csv", columns=("x_name", "display", "y"))
    with pytest.raises(InputError, match="give three"):
        loaded(tmp_path / "a.csv", columns=("x_name",))
    with pytest.raises(InputError, match="no table"):
        loaded(tmp_path / "a.nt", "<urn:a:a> <urn:a:b> <urn:a:c> .", columns=("a", "b", "c"))


def test_underscores_are_spaces_and_addresses_stay_as_they_are(tmp_path):
    graph = loaded(tmp_path / "a.tsv", "heart_attack\tseen_in\thttp://x.org/Q1\nhttp://x.org/Q1\turn:x:p\tb\n")
    assert facts(graph) == {("heart_attack", "seen_in", "Q1"), ("Q1", "p", "b")}
    assert graph.names([entity("heart_attack"), "http://x.org/Q1"]) == {
        entity("heart_attack"): "heart attack",
        "http://x.org/Q1": "Q1",
    }


INJECTED = [
    "http://x.org/a> <urn:x> <urn:y",
    'x" . } DROP ALL #',
    "http://x.org/a b",
    "urn:x%zz",
    "http://x.org/[1]",
    "http://x.org/\ue000",
    "a\\u003e",
    "} UNION { ?s ?p ?o",
    "日本 {}",
    "\u202eltr",
]


def test_a_name_never_becomes_part_of_a_query(tmp_path):
    written = io.StringIO()
    csv.writer(written).writerows([name, name, f"{name}!"] for name in INJECTED)
    graph = loaded(tmp_path / "a.csv", written.getvalue())
    for name in INJECTED:
        node = next(node for node, called in graph.things() if called == one_line(name))
        assert node.startswith(ENTITY)
        around = graph.around([node])
        assert [fact.subject for fact in around] == [node]
        assert graph.annotations(around) == {around[0]: {}}
        assert graph.names([around[0].object]) == {around[0].object: one_line(f"{name}!")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b,c\na,b\n", "line 2 has 2 columns where line 1 has 3"),
        ("a.csv", "a,b,c,d\n", "line 1 has 4 columns and names none of them"),
        ("a.csv", "a,b,c\na,,c\n", "line 2 has no predicate"),
        ("a.csv", 'a,b,c\n"a,b,c\nd,e,f\n', "line 3: .*is a quote closed"),
        ("a.csv", 'a,b,c\n"a"x,b,c\n', "line 2: .*is a quote closed"),
        ("a.csv", f"a,b,{'c' * 1025}\n", "its object has 1,025 letters"),
        ("a.csv", "a" * 70_000, "line 1 has 65,536 bytes or more"),
        ("a.csv", b"a,b,c\na,b,\xff\n", "line 2 is not UTF-8"),
        ("a.csv", "", "holds no facts"),
        ("a.csv", "subject,predicate,object\n", "holds no facts"),
        ("a.tsv", "a\tb\tc\na b c\n", "line 2 has 1 columns"),
        ("a.tsv.gz", b"no gzip", "can't be read"),
        ("a.tsv.gz", gzip.compress(b"a\tb\tc\n" * 9999, mtime=0)[:60], "can't be read"),
        ("a.nt", "<urn:a:a> <urn:a:b> <urn:a:c> .\n<urn:a:a> <urn:a b> <urn:a:c> .\n", "line 2: .*Invalid IRI"),
        ("a.nt", b'<urn:a:a> <urn:a:b> "\xff" .', "line 1: .*UTF-8"),
        ("a.ttl", "<urn:a:a> <urn:a:b>", "line 1"),
        ("a.json", "{}", "is of no kind that holds a graph"),
    ],
)
def test_a_line_that_holds_no_fact_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as refusal:
        loaded(tmp_path / name, content)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_not_there_is_said(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="give a f"):
            loaded(path)


NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAME, NAME, NAME), min_size=1, max_size=4))
def test_any_names_come_back(tmp_path, rows):
    rows = [[field.strip() for field in row] for row in rows]
    rows = [row for row in rows if all(row)]
    written = io.StringIO()
    csv.writer(written).writerows([["subject", "predicate", "object"], *rows])
    if not rows:
        return
    graph = loaded(tmp_path / "a.csv", written.getvalue())
    wanted = {entity(name) for subject, _, other in rows for name in (subject, other)}
    found = {node for fact in graph.around(wanted) for node in (fact.subject, fact.object)}
    assert found == wanted
    for subject, _, _ in rows:
        assert "\n" not in graph.names([entity(subject)])[entity(subject)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".csv", ".tsv", ".nt", ".ttl", ".kg", ".nq"]),
    st.binary(max_size=200) | st.text('<>"\\.,;_:@^ \tabu\n\r', max_size=80).map(str.encode),
)
def test_any_bytes_are_facts_or_refused(tmp_path, end, content):
    try:
        loaded(tmp_path / f"fuzz{end}", content)
    except DataError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_label_of_n_triples_is_read_in_one_line(tmp_path, label):
    written = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    graph = loaded(tmp_path / "a.nt", f'<urn:a:thing> {LABEL} "{written}" .\n')
    assert graph.names(["urn:a:thing"])["urn:a:thing"] == (one_line(label) or "thing")


# --------------------------------------------------------------------------------------------------------------- RDF


def test_rdf_in_its_forms(tmp_path):
    line = "<urn:a:a> <urn:a:p> <urn:a:b> "
    for name, content in (
        ("a.nt", f"{line}.\n"),
        ("a.nq", f"{line}<urn:a:graph> .\n"),
        ("a.ttl", "@prefix a: <urn:a:> . a:a a:p a:b ."),
        ("a.trig", "<urn:a:g> { <urn:a:a> <urn:a:p> <urn:a:b> }"),
        ("a.nt.gz", gzip.compress(f"{line}.\n".encode(), mtime=0)),
    ):
        assert loaded(tmp_path / name, content).around(["urn:a:b"]) == [Fact("urn:a:a", "urn:a:p", "urn:a:b")]


_XML = """<?xml version="1.0"?>{declared}
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:e="urn:e:">
<rdf:Description rdf:about="{about}"><e:b>{text}</e:b></rdf:Description></rdf:RDF>"""


def test_entities_of_owl_are_what_they_stand_for(tmp_path):
    for padding in range(0, 2100, 60):  # wherever the bytes that are read at once end
        declared = f"""<!-- {"x" * padding} --><!DOCTYPE rdf:RDF [
            <!ENTITY o "http://o.org/a&amp;b#" >
            <!ENTITY rdfs "http://www.w3.org/2000/01/rdf-schema#" >
        ]>"""
        graph = loaded(tmp_path / "a.owl", _XML.format(declared=declared, about="&o;c", text="d"))
        assert graph.store.select("SELECT ?s WHERE { ?s ?p ?o }")[0][0].text == "http://o.org/a&b#c"


_LAUGHS = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))


@pytest.mark.parametrize(
    ("declared", "text", "message"),
    [
        (f'<!DOCTYPE r [<!ENTITY a0 "ha">{_LAUGHS}]>', "&a9;", "by other entities"),
        (f'<!DOCTYPE r [<!-- <!ENTITY a0 "ha">{_LAUGHS} -->]>', "&a9;", "by other entities"),
        ("", f'<!DOCTYPE r [<!ENTITY a0 "ha">{_LAUGHS}]>&a9;', "by other entities"),
        (f'<!DOCTYPE r [<!ENTITY a "{"ha" * 1000}">]>', "&a;", "more than 1,024 bytes"),
        (f'<!DOCTYPE r [<!ENTITY a "{"ha" * 400}">]>', "&a;" * 2**17, "entities in one text"),
    ],
)
@pytest.mark.parametrize("padding", range(0, 2000, 190))
def test_entities_that_stand_for_a_lot_are_refused(tmp_path, declared, text, message, padding):
    content = _XML.format(declared=f"<!--{'x' * padding}-->{declared}", about="urn:a", text=text)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "a.rdf", content)


def test_paths_lead_through_blank_nodes(tmp_path):
    graph = loaded(tmp_path / "a.nt", "<urn:a:film> <urn:a:cast> _:x .\n_:x <urn:a:actor> <urn:a:ann> .\n")
    assert graph.within(["urn:a:film"], 2).hops == {"urn:a:film": 0, "urn:secateur:blank:x": 1, "urn:a:ann": 2}


def test_what_is_said_of_a_triple_in_rdf_1_2_is_known_of_it(tmp_path):
    graph = loaded(tmp_path / "a.ttl", 'VERSION "1.2"\n<urn:a:a> <urn:a:p> <urn:a:b> {| <urn:a:source> "X" |} .')
    fact = Fact("urn:a:a", "urn:a:p", "urn:a:b")
    assert graph.annotations([fact]) == {fact: {"source": ("X",)}}


# -------------------------------------------------------------------------------------------------- RecBole, PyKEEN


def test_items_of_recbole_give_entities_their_titles(tmp_path):
    (tmp_path / "m.link").write_text("item_id:token\tentity_id:token\n1\tm.1\n2\tm.9\n")
    (tmp_path / "m.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\n1\tToy Story\t1995\n2\tHeat\n3\tX\t1\n"
    )
    graph = loaded(tmp_path / "m.kg", "head_id:token\trelation_id:token\ttail_id:token\nm.1\tfilm.film.actor\tm.0_a\n")
    toys, actor = entity("m.1"), entity("m.0_a")
    assert graph.names([toys, actor]) == {toys: "Toy Story", actor: "m.0 a"}
    assert Fact(toys, relation("release_year"), "1995", True) in graph.around([toys], literals=True)
    assert loaded(tmp_path).names([toys]) == {toys: "Toy Story"}
    for name, content, message in (
        ("m.link", "item\tentity\n", r"m\.link, line 1 does not name item_id and entity_id"),
        ("m.link", "item_id:token\tentity_id:token\n1\n", r"m\.link, line 2 has 1 columns"),
        ("m.link", "item_id:token\tentity_id:token\n1\t\n", r"m\.link, line 2 has no item or no entity"),
        ("m.item", "item_id:token\tyear\n", r"m\.item, line 1 names no item_id and no title"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            loaded(tmp_path / "m.kg")
        (tmp_path / name).write_text(before)


def test_a_folder_of_pykeen_is_all_of_its_parts(tmp_path):
    (tmp_path / "train.txt").write_text("a\tr\tb\n")
    (tmp_path / "test.txt").write_text("b\tr\tc\n")
    assert facts(loaded(tmp_path)) == {("a", "r", "b"), ("b", "r", "c")}


def real(folder) -> KnowledgeGraph:
    try:
        return loaded(folder())
    except DataError as error:
        if "could not fetch" in str(error) or "apt is not there" in str(error):
            pytest.skip(str(error))
        raise


def test_umls():
    graph = real(packages.umls)
    assert len(list(graph.things())) == 135
    assert len(facts(graph)) == 6_529


@pytest.mark.wide
def test_movielens():
    graph = real(packages.movielens)
    names = dict(graph.things())
    assert len(names) == 34_628
    assert names[entity("m.0dt1p_")] == "Howling, The"
    row = graph.store.select("SELECT (COUNT(*) AS ?n) WHERE { ?s ?p ?o FILTER(isIRI(?o)) }")[0]
    assert row[0].text == "91631"


@pytest.mark.parametrize("head", [
    "source,target,relation", "from,to,edge", "Source,Target,Relationship", "src,dst,label", "src,dst,relation",
    "Src,Dst,type", "src,dst,edge", ":START_ID,:END_ID,:TYPE", ":START_ID(Person),:END_ID(Moon space),:TYPE",
])  # fmt: skip
def test_a_table_of_edges_is_understood(tmp_path, head):
    """Its header was a fact, and its third column an object: a wrong graph, without a word."""
    found = loaded(tmp_path / "edges.csv", f"{head}\naspirin,heart attack,treats\n")
    assert facts(found) == {("aspirin", "treats", "heart attack")}


def test_a_source_beside_a_subject_is_where_a_fact_is_from(tmp_path):
    found = loaded(tmp_path / "a.csv", "subject,relation,object,source\nx1,has,y1,PubMed\n")
    assert facts(found) == {("x1", "has", "y1")}
    assert list(found.annotations(found.around([entity("x1")])).values()) == [{"source": ("PubMed",)}]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("person,company,relation", "names relation and no subject and object"),
        ("subject,verb,object", "names subject, object and no predicate"),
        ("source,target,weight", "names source, target and no predicate"),
        ("src,dst,weight", "names src, dst and no predicate"),
        (":START_ID,:END_ID,since:int", "names START_ID, END_ID and no predicate"),
        ("node1,node2,weight", "names node1, node2 and no predicate"),
        ("src,x,y", "names src and no subject and predicate and object"),
    ],
)
def test_a_header_that_is_known_in_part_is_refused(tmp_path, head, told):
    with pytest.raises(DataError, match=f"line 1 {told}: call the columns subject, predicate and object"):
        loaded(tmp_path / "a.csv", f"{head}\nx,y,z\n")


def test_the_header_of_a_table_of_kgtk_is_no_fact(tmp_path):
    found = loaded(tmp_path / "a.tsv", "node1\tlabel\tnode2\nCassini\tORBITED\tSaturn\n")
    assert facts(found) == {("Cassini", "ORBITED", "Saturn")}
