"""Facts from files into a store: RDF, tables, RecBole's and PyKEEN's files.

    *.nt *.nq *.ttl *.trig *.rdf     RDF; facts of all its graphs stand in one
    *.csv *.tsv *.txt *.kg           a fact a line: subject, predicate, object, and what else is known of it
    *.kg beside *.link and *.item    RecBole's: items give their entities names
    a folder with train.txt          PyKEEN's: train, valid and test together

Each may be compressed (`.gz`), files of folders aside. In tables, a thing is whatever is written: a web address or URN
is an IRI already, anything else becomes one behind `stores.ENTITY` and is named as it is written, underscores as
spaces. What else is known of a fact becomes properties of an `rdf:Statement` about it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote

from secateur.clients.stores import BLANK, ENTITY, KIND, RDF, RELATION, Embedded, entity, kind, one_line, relation
from secateur.errors import DataError, InputError

__all__ = ["list_files", "load", "load_rows"]

RDFS_LABEL = "http://www.w3.org/2000/01/rdf-schema#label"
LONGEST = 1_024
"""Letters of a name in a table; a longer one is a quote that was not closed."""
_AT_ONCE = 2**18
"""Triples that are held before they go to the store, so that a graph of any size takes the same memory."""
_REMEMBERED = 2**18
"""Things whose IRIs are kept at hand."""

_FORMATS = {
    ".nt": "N_TRIPLES",
    ".nq": "N_QUADS",
    ".ttl": "TURTLE",
    ".trig": "TRIG",
    ".rdf": "RDF_XML",
    ".owl": "RDF_XML",
}
_TABLES = {".csv", ".tsv", ".txt", ".kg"}
_SPLITS = ("train.txt", "valid.txt", "test.txt")

_COLUMNS = {
    "subject": ("subject", "subject id", "head", "head id", "subj", "s", "h"),
    "predicate": (
        "predicate",
        "predicate id",
        "relation",
        "relation id",
        "relationship",
        "edge",
        "property",
        "pred",
        "rel",
        "p",
        "r",
    ),
    "object": ("object", "object id", "tail", "tail id", "obj", "o", "t"),
    "subject name": ("subject name", "head name", "subject label", "head label"),
    "object name": ("object name", "tail name", "object label", "tail label"),
    "subject kind": ("subject kind", "head kind", "subject type", "head type"),
    "object kind": ("object kind", "tail kind", "object type", "tail type"),
}
"""What a column says, and what it may be called: letter case aside, underscores as spaces, without RecBole's types."""
_ENDS = {
    ("source", "target"): ("label",),
    ("from", "to"): ("label",),
    ("src", "dst"): ("label", "type"),
    ("node1", "node2"): ("label",),
    ("start id", "end id"): ("type",),
}
"""What subject and object are called where neither has such a name: a table of edges, such as KGTK's (node1) and
Neo4j's (:START_ID); and what the predicate is called there, too. Else a source is where a fact is from."""
_SURE = frozenset({"src", "dst", "node1", "node2", "start id", "end id"})
"""Those that name a column wherever they stand in a first line."""
_NEO4J = re.compile(r":([A-Z][A-Z_]+)(?:\(.*\))?")
"""A column that is named by its type alone, and the space of its identifiers: :START_ID(Person)."""


def list_files(source: Path) -> list[Path]:
    """The files that hold the graph of `source`, in the order in which they are read.

    Raises `DataError` for a path that is not there or holds no graph.
    """
    if source.is_dir():
        splits = [source / name for name in _SPLITS if (source / name).is_file()]
        if splits:
            return splits
        tables = sorted(source.glob("*.kg"))
        if len(tables) == 1:
            return list_files(tables[0])
        raise DataError(f"{source} holds no graph: give a folder with train.txt (PyKEEN) or one .kg (RecBole)")
    if not source.is_file():
        raise DataError(f"{source} is not there: give a file or folder that holds a graph, or the URL of an endpoint")
    end = _kind(source)
    if end not in _TABLES and end not in _FORMATS:
        known = " ".join(sorted({*_FORMATS, *_TABLES}))
        raise DataError(f"{source} is of no kind that holds a graph: give one of {known}, or its .gz")
    beside = [source.with_suffix(end) for end in (".link", ".item")] if end == ".kg" else []
    return [source, *(path for path in beside if path.is_file())]


def load(
    source: str | Path,
    store: Embedded,
    *,
    columns: Sequence[str] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Read the facts of a file or folder into a store; returns how many triples were given to it.

    Args:
        source: see the top of this module.
        store: opened for writing, or in memory.
        columns: of a table, the columns of subject, predicate and object: their names in its header. Without it,
            they are found by their names there (subject or head, predicate or relation, object or tail; or those of a
            table of edges: source and target, src and dst, node1, label and node2, :START_ID, :TYPE and :END_ID); a
            table without a header has three columns in this order.
        progress: told bytes that were read since it was last told.

    Blank nodes of RDF become IRIs behind `stores.BLANK`, so that paths lead through them; one without a label gets
    another one each time that it is read.

    Raises `DataError`: a line that holds no fact, by file and line; what was read before it stays in the store; and a
    header of which some columns are known, and not all three.
    """
    source = Path(source)
    found, ox = list_files(source), store.library
    if columns and (source.is_dir() or _kind(source) not in _TABLES):
        raise InputError(f"columns={','.join(columns)}: {source} is no table")
    if columns and len(columns) != 3:
        raise InputError(f"columns={','.join(columns)}: give three, of subject, predicate and object")
    reader = _Reader(ox)
    if _kind(found[0]) in _FORMATS:
        quads = reader.rdf(found[0], _FORMATS[_kind(found[0])])
    else:
        tables = found if source.is_dir() and _kind(found[0]) != ".kg" else found[:1]
        items = reader.items(found[1:]) if _kind(found[0]) == ".kg" else iter(())
        quads = chain(items, *(reader.table(path, columns) for path in tables))
    count, told = 0, 0
    for many in _store(quads, store):
        count += many
        progress(reader.read() - told)
        told = reader.read()
    if not count:
        raise DataError(f"{source} holds no facts: give a fact a line, its subject, predicate and object")
    return count


def load_rows(rows: Iterable[Sequence[str]], known: Sequence[str], store: Embedded) -> int:
    """Facts that stand in memory into a store, as `load` takes lines of a table; returns how many triples there were.

    Args:
        rows: subject, predicate, object, names of subject and object, kinds of subject and object, and then what is
            known of the fact; all but the first three may be empty.
        known: what that is called.
        store: opened for writing, or in memory.

    Raises `DataError`: a row that holds no fact, by its number.
    """
    reader, places = _Reader(store.library), {part: place for place, part in enumerate(_COLUMNS)}
    others = {place: reader.predicate(name) for place, name in enumerate(known, start=len(places))}
    facts = (reader.fact("the graph", number, row, places, others) for number, row in enumerate(rows, start=1))
    return sum(_store(chain.from_iterable(facts), store))


def _store(quads: Iterator[Any], store: Embedded) -> Iterator[int]:
    """How many of them went to the store each time."""
    while part := list(islice(quads, _AT_ONCE)):
        try:
            store.graph.bulk_extend(part)
        except (OSError, RuntimeError, AttributeError) as error:
            raise DataError(f"the graph store can't be written: {' '.join(str(error).split())[:200]}") from error
        yield len(part)


def _kind(path: Path) -> str:
    ends = [end.lower() for end in path.suffixes]
    return ends[-2] if len(ends) > 1 and ends[-1] == ".gz" else ends[-1] if ends else ""


class _Declared:
    """A file of XML, read on while what its entities stand for is short; otherwise a few lines could fill all memory.

    The parser replaces them wherever it finds them declared, comments and the midst of the file included, so we look
    there, too.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.rest, self.any, self.run = path, file, b"", False, 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, once they were looked at. Raises `DataError` for an entity of entities, or a long one."""
        raw = self.file.read(size)
        text = self.rest + raw
        for found in _ENTITY.findall(text):
            self.any = True
            if len(found) > LONGEST:
                raise DataError(f"{self.path} declares an entity of more than {LONGEST:,} bytes: write it out")
            if _REFERENCE.search(found):
                raise DataError(f"{self.path} declares an entity by other entities: write out what it stands for")
        last = text[text.rfind(b"<") :] if b"<" in text else b""
        self.rest = last if b"<!ENTITY".startswith(last[:8]) else b""  # it may go on in the next bytes
        first, *others = raw.split(b"<")
        self.run = others[-1].count(b"&") if others else self.run + first.count(b"&")
        if self.any and self.run > _REFERENCES:
            raise DataError(f"{self.path} has more than {_REFERENCES:,} entities in one text: write them out")
        return raw


_ENTITY = re.compile(rb"<!ENTITY[^<]*")
_REFERENCE = re.compile(rb"&(?!#|(?:amp|lt|gt|quot|apos);)[^;]*;")
_REFERENCES = 2**16
"""Entities in one text or tag, where a file declares any."""


class _Line(NamedTuple):
    number: int
    fields: list[str]


class _Reader:
    """Triples of files, one after another, as pyoxigraph's."""

    def __init__(self, library: Any) -> None:
        self.library, self.named, self.done = library, dict[str, str](), 0
        self.current: BinaryIO | None = None
        self.things, self.relations = dict[str, Any](), dict[str, Any]()
        self.label, self.type = library.NamedNode(RDFS_LABEL), library.NamedNode(f"{RDF}type")
        self.about = [library.NamedNode(f"{RDF}{part}") for part in ("subject", "predicate", "object")]

    # ------------------------------------------------------------------------------------------------------- bytes

    def read(self) -> int:
        """Bytes that were read of all files."""
        return self.done + (self.current.tell() if self.current else 0)

    @contextmanager
    def _open_file(self, path: Path) -> Iterator[BinaryIO]:
        try:
            with path.open("rb") as file:
                self.current = file
                if path.suffix.lower() == ".gz":
                    with gzip.open(file) as plain:
                        yield cast(BinaryIO, plain)
                else:
                    yield file
                self.done += file.tell()
        except (OSError, EOFError) as error:  # gzip's are of these kinds
            raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
        finally:
            self.current = None

    def _lines(self, path: Path) -> Iterator[str]:
        """The lines of a text; each is read whole, so an endless one is refused."""
        longest = 64 * LONGEST
        with self._open_file(path) as file:
            number = 0
            while raw := file.readline(longest):
                number += 1
                if len(raw) == longest:
                    raise DataError(f"{path}, line {number} has {longest:,} bytes or more: is this a table of facts?")
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number} is not UTF-8: save the file as UTF-8") from error

    # --------------------------------------------------------------------------------------------------------- RDF

    def rdf(self, path: Path, form: str) -> Iterator[Any]:
        """Those of a file of RDF: blank nodes as IRIs, graphs as one, what is said of triples on statements."""
        ox = self.library
        with self._open_file(path) as file:
            plain = _Declared(path, file) if form == "RDF_XML" else file
            try:
                for found in ox.parse(input=plain, format=getattr(ox.RdfFormat, form), base_iri="urn:secateur:file:"):
                    if isinstance(found.object, ox.Triple):  # RDF 1.2: who says it, and the triple
                        said, parts = self._open(found.subject), found.object
                        terms = (parts.subject, parts.predicate, parts.object)
                        if any(isinstance(term, ox.Triple) for term in terms):
                            continue  # of what is said of what is said nothing is read
                        for about, term in zip(self.about, terms, strict=True):
                            yield ox.Quad(said, about, self._open(term))
                    else:
                        yield ox.Quad(self._open(found.subject), found.predicate, self._open(found.object))
            except SyntaxError as error:
                said_of = " ".join(str(error.msg).split())[:300]
                raise DataError(f"{path}, line {error.lineno}: {said_of}: mend the line") from error

    def _open(self, term: Any) -> Any:
        """A term without blank nodes."""
        return self.library.NamedNode(BLANK + term.value) if isinstance(term, self.library.BlankNode) else term

    # ------------------------------------------------------------------------------------------------------- tables

    def table(self, path: Path, columns: Sequence[str]) -> Iterator[Any]:
        """Those of a table."""
        rows = self._rows(path)
        first = next(rows, None)
        if first is None:
            return
        places, others = _header(path, first, columns)
        if not places:  # no header: a fact already
            if len(first.fields) != 3:
                raise DataError(
                    f"{path}, line {first.number} has {len(first.fields)} columns and names none of them: give three, "
                    "or a first line with subject, predicate, object and the names of the others"
                )
            places, rows = {"subject": 0, "predicate": 1, "object": 2}, chain([first], rows)
        width, known = len(first.fields), {place: self.predicate(name) for place, name in others.items()}
        subject, predicate, other = (places[part] for part in ("subject", "predicate", "object"))
        things, relations, quad = self.things, self.relations, self.library.Quad
        plain = not known and len(places) == 3
        for number, fields in rows:
            if len(fields) != width:
                raise DataError(
                    f"{path}, line {number} has {len(fields)} columns where line {first.number} has {width}: mend it"
                )
            start, verb, end = things.get(fields[subject]), relations.get(fields[predicate]), things.get(fields[other])
            if plain and start is not None and verb is not None and end is not None:  # as most lines are
                yield quad(start, verb, end)
            else:
                yield from self.fact(path, number, fields, places, known)

    def _rows(self, path: Path) -> Iterator[_Line]:
        """The fields of each line that has any."""
        lines, comma = self._lines(path), ","
        if _kind(path) != ".csv":
            for number, line in enumerate(lines, start=1):
                fields = [field.strip() for field in line.split("\t")]
                if any(fields):
                    yield _Line(number, fields)
            return
        first = next(lines, "")
        if "," not in first:
            comma = next((mark for mark in ";\t" if mark in first), ",")
        reader = csv.reader(chain([first], lines), delimiter=comma, strict=True)
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield _Line(reader.line_num, [field.strip() for field in fields])
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}: is a quote closed?") from error

    def fact(
        self, path: Path | str, number: int, fields: Sequence[str], places: Mapping[str, int], others: Mapping[int, Any]
    ) -> Iterator[Any]:
        """A line of a table: the fact, names and kinds of its ends, and what else is known of it."""
        ox, ends = self.library, []
        for part in ("subject", "predicate", "object"):
            text, things = fields[places[part]], part != "predicate"
            node = (self.things if things else self.relations).get(text)
            if node is None:
                if not text:
                    raise DataError(f"{path}, line {number} has no {part}: give all three parts of a fact, or no line")
                if len(text) > LONGEST:
                    raise DataError(
                        f"{path}, line {number}: its {part} has {len(text):,} letters, and {LONGEST:,} at most are a "
                        "name: is a quote closed?"
                    )
                node = self._thing(text) if things else self.predicate(text)
                if things:
                    place = places.get(f"{part} name")
                    yield from self._name(node, text, "" if place is None else fields[place])
            ends.append(node)
        yield ox.Quad(*ends)
        for part, node in (("subject", ends[0]), ("object", ends[2])):
            place = places.get(f"{part} kind")
            if place is not None and fields[place]:
                yield ox.Quad(node, self.type, self._make_node(fields[place], kind, KIND))
        known = [(predicate, fields[place]) for place, predicate in others.items() if fields[place]]
        if known:
            # Lines that say the same share a statement; others have their own, so that what belongs together stays so.
            key = "\t".join([*(end.value for end in ends), *chain.from_iterable((p.value, v) for p, v in known)])
            about = ox.BlankNode("f" + hashlib.blake2b(key.encode(), digest_size=12).hexdigest())
            yield ox.Quad(about, self.type, ox.NamedNode(f"{RDF}Statement"))
            for predicate, end in zip(self.about, ends, strict=True):
                yield ox.Quad(about, predicate, end)
            for predicate, value in known:
                yield ox.Quad(about, predicate, ox.Literal(one_line(value)))

    def _thing(self, text: str) -> Any:
        if len(self.things) >= _REMEMBERED:
            self.things.clear()
        return self.things.setdefault(text, self._make_node(text, entity, ENTITY))

    def predicate(self, text: str) -> Any:
        """The predicate that a table calls so."""
        if len(self.relations) >= _REMEMBERED:
            self.relations.clear()
        return self.relations.setdefault(text, self._make_node(text, relation, RELATION))

    def _make_node(self, text: str, make: Callable[[str], str], place: str) -> Any:
        try:
            return self.library.NamedNode(make(text))
        except ValueError:  # it looked like an address, and is none
            return self.library.NamedNode(place + quote(text, safe=""))

    def _name(self, node: Any, text: str, given: str) -> Iterator[Any]:
        """The name of a thing: its own, that of its item, or what it is called by, unless that is an address."""
        name = given or self.named.get(text, "") or (text.replace("_", " ") if node.value.startswith(ENTITY) else "")
        name = one_line(name)
        if name:
            yield self.library.Quad(node, self.label, self.library.Literal(name))

    # ------------------------------------------------------------------------------------------------------ RecBole

    def items(self, beside: Sequence[Path]) -> Iterator[Any]:
        """What RecBole's `.item` says of entities by way of its `.link`; their titles are the names of entities."""
        ox, tables = self.library, {path.suffix: path for path in beside}
        if len(tables) < 2:
            return
        links: dict[str, list[str]] = {}
        for number, (item, thing) in self._read_columns(tables[".link"], ("item_id", "entity_id")):
            if not item or not thing:
                raise DataError(f"{tables['.link']}, line {number} has no item or no entity: give both, or no line")
            links.setdefault(item, []).append(thing)
        rows = self._rows(tables[".item"])
        first = next(rows, None)
        heads = [field.partition(":")[0] for field in first.fields] if first else []
        title = next((head for head in heads if re.search(r"title$|name$|^title|^name", head)), "")
        if "item_id" not in heads or not title:
            raise DataError(f"{tables['.item']}, line 1 names no item_id and no title: give both, as movie_title:token")
        for number, fields in rows:
            if len(fields) > len(heads):
                raise DataError(
                    f"{tables['.item']}, line {number} has {len(fields)} columns, not {len(heads)}: mend it"
                )
            row = dict(zip_longest(heads, fields, fillvalue=""))
            for thing in links.get(row["item_id"], ()):
                name, node = row[title], self._thing(thing)
                if thing not in self.named:
                    self.named[thing] = name
                    yield from self._name(node, thing, "")
                for head, value in row.items():
                    if value and head not in ("item_id", title):
                        yield ox.Quad(node, self.predicate(head), ox.Literal(one_line(value)))

    def _read_columns(self, path: Path, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """These columns of a table of RecBole's."""
        rows = self._rows(path)
        first = next(rows, None)
        heads = [field.partition(":")[0] for field in first.fields] if first else []
        if not set(names) <= set(heads):
            raise DataError(f"{path}, line 1 does not name {' and '.join(names)}: give them, as {names[0]}:token")
        for number, fields in rows:
            if len(fields) != len(heads):
                raise DataError(f"{path}, line {number} has {len(fields)} columns, not {len(heads)}: mend it")
            yield number, [fields[heads.index(name)] for name in names]


def _fold(head: str) -> str:
    return " ".join(head.casefold().replace("_", " ").split())


def _head(field: str) -> str:
    """The name of a column without the type behind it, RecBole's `head_id:token`; a type of Neo4j that has no name."""
    alone = _NEO4J.fullmatch(field)
    return alone[1] if alone else field.partition(":")[0].strip()


def _header(path: Path, first: _Line, columns: Sequence[str]) -> tuple[dict[str, int], dict[int, str]]:
    """What stands in which column of a table, and the names of those of what else is known; nothing without header."""
    heads = [_head(field) for field in first.fields]
    if columns:
        missing = [name for name in columns if name not in heads and name not in first.fields]
        if missing:
            raise DataError(f"{path}, line 1 names no column {missing[0]!r}: it names {', '.join(first.fields)[:200]}")
        named = [heads.index(name) if name in heads else first.fields.index(name) for name in columns]
        places = dict(zip(("subject", "predicate", "object"), named, strict=True))
    else:
        places = {}
    for place, head in enumerate(heads):
        part = next((part for part, names in _COLUMNS.items() if _fold(head) in names), "")
        if part and part not in places and place not in places.values():
            places[part] = place
    three = ("subject", "predicate", "object")
    folds = [_fold(head) for head in heads]
    for ends, between in _ENDS.items():
        if not {"subject", "object"} & places.keys() and all(folds.count(end) == 1 for end in ends):
            places |= {"subject": folds.index(ends[0]), "object": folds.index(ends[1])}
            said = [folds.index(name) for name in between if name in folds]
            places |= {"predicate": said[0]} if said and "predicate" not in places else {}
    sure = {place for place, fold in enumerate(folds) if fold in _SURE}
    named_so = [heads[place] for place in dict.fromkeys([*places.values(), *sorted(sure)]) if len(heads[place]) > 1]
    if not set(three) <= places.keys():
        if named_so:
            lacking = " and ".join(part for part in three if part not in places)
            raise DataError(
                f"{path}, line 1 names {', '.join(named_so)[:100]} and no {lacking}: call the columns subject, "
                "predicate and object, or name all three (graph_columns); if it is a fact, put such a line before it"
            )
        return {}, {}
    others = {place: head for place, head in enumerate(heads) if head and place not in places.values()}
    return places, others
