"""Feed the parsers of what strangers write with bytes that libFuzzer makes up, led by what it covers.

    python scripts/fuzz.py html -max_total_time=60        # any options of libFuzzer
    python scripts/fuzz.py list                           # the parsers

What is promised of each: an answer or one of our errors, in bounded time. Needs atheris: pip install 'secateur[fuzz]'.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["secateur"], enable_loader_override=False):
    import numpy as np

    from secateur._utils.http import PassingError
    from secateur.clients import stores
    from secateur.clients.stores import Embedded
    from secateur.data import triples
    from secateur.errors import SecateurError
    from secateur.retrieval.rerankers import Settings
    from secateur.runs.backends import documents
    from secateur.score import citations
    from secateur.subjects import open_page
    from secateur.subjects.text import passage
    from secateur.vocabulary import Budget, Selection


def html(given: bytes) -> None:
    """A page is cleaned, split, halved and written; each word stands in one block, and what is written reads back."""
    page = open_page(given, block=8, numbered=False)
    assert "".join(page.text().split()) == "".join(open_page(page.html(), block=8).text().split())
    keep = np.arange(len(page.blocks)) % 2 == 0
    smaller, cut = page.cut(Selection({"page": keep}))
    assert smaller.units().cost()["words"] == cut.after["words"] <= cut.before["words"]
    page.head(3)


def cited(given: bytes) -> None:
    """Citations are of sentences that there are."""
    found = citations.read_citations(given.decode("utf-8", "replace"), 7)
    assert found is None or all(0 <= number < 7 for number in found)


def sentences(given: bytes) -> None:
    """Sentences hold all that is no blank, in order."""
    text = given.decode("utf-8", "replace")
    found = passage.sentences(text)
    assert "".join("".join(text[a:b].split()) for a, b in found) == "".join(text.split())


def line(given: bytes) -> None:
    """A line of --in gives documents or one error."""
    row = json.loads(given)
    if isinstance(row, dict):
        documents.read_row(row, Path("here"))


def table(given: bytes, suffix: str = ".tsv") -> None:
    """A file of facts is loaded whole, or refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"graph{suffix}")
        path.write_bytes(given)
        triples.load(path, Embedded())


def ntriples(given: bytes) -> None:
    """The same, as N-Triples."""
    table(given, ".nt")


def turtle(given: bytes) -> None:
    """The same, as Turtle."""
    table(given, ".ttl")


def rdfxml(given: bytes) -> None:
    """The same, as RDF/XML."""
    table(given, ".rdf")


def rows(given: bytes) -> None:
    """What an endpoint answers is rows of values, or no answer."""
    for row in stores._rows(given):
        assert all(value is None or isinstance(value.text, str) for value in row)


def settings(given: bytes) -> None:
    """Settings of a checkpoint are settings, or refused."""
    assert isinstance(Settings.read(json.loads(given)).threshold, float | int)


def budget(given: bytes) -> None:
    """A budget that is read prints as what is read again."""
    found = Budget.parse(given.decode("utf-8", "replace"))
    assert Budget.parse(str(found)) == found


PARSERS: dict[str, Callable[[bytes], None]] = {
    parser.__name__: parser
    for parser in (html, cited, sentences, line, table, ntriples, turtle, rdfxml, rows, settings, budget)
}


ROW = b'{"question": "a", "html": ["<p>b</p>"], "titles": ["c", null], "passages": [["d", "e"], "f"], "text": "g"}'
NOTHING = b"One. Dr. No said \xe2\x80\x9cTwo!\xe2\x80\x9d\n\nThree?  \xe5\xbd\x93\xe7\x84\xb6\xe3\x80\x82"
SEEDS: dict[str, Sequence[bytes]] = {
    "html": [
        b"<html><head><title>a</title><script>b</script></head><body><div><p>c <b>d</b> e</p><ul><li>f<li>g</ul></div>"
        b"<table><tr><th>h<th>i<tr><td>j<td>k</table><pre>l\n m</pre>&amp;&lt;&#110;<!-- o --><svg><p>p</svg></body>",
    ],
    "cited": [b"It is red [1]. Blue [2, 3].", b"No answer [0]"],
    "sentences": [NOTHING],
    "line": [ROW],
    "table": [
        b"subject\tpredicate\tobject\tscore\na\tb\tc\t0.5\n",
        b"head_id:token\trelation_id:token\ttail_id:token\na\tb.c\td\n",
    ],
    "ntriples": [b'<urn:a> <urn:b> <urn:c> .\n_:d <urn:e> "f"@en .\n'],
    "turtle": [b'@prefix e: <urn:e:> .\ne:a e:b e:c ; e:d "f"@en , 3 .\n[] e:g ( e:h ) .\n'],
    "rdfxml": [
        b'<?xml version="1.0"?><!DOCTYPE rdf:RDF [<!ENTITY e "urn:e:"><!ENTITY f "urn:f:">]><rdf:RDF xmlns:e="&e;" '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="&e;a&amp;"><e:b>c</e:b>'
        b'<e:d rdf:resource="&f;g"/></rdf:Description></rdf:RDF>',
    ],
    "rows": [b'{"head": {"vars": ["s"]}, "results": {"bindings": [{"s": {"type": "uri", "value": "urn:a"}}]}}'],
    "settings": [b'{"threshold": 0.1, "rounding": "vote", "longest": 0, "language": "en", "ranks": true}'],
    "budget": [b"speedup=2x,params=50%,latency=12ms,tokens=4k,pattern=2:4"],
}
"""What each begins with."""


def main() -> None:
    """Run the parser that is named until libFuzzer's options say to stop."""
    parser = PARSERS.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if parser is None:
        print(*PARSERS)  # so that a shell can go through them
        raise SystemExit(0 if sys.argv[1:] == ["list"] else 2)

    def one(given: bytes) -> None:
        try:
            parser(given)
        except (SecateurError, PassingError, ValueError, RecursionError) as error:
            # JSON that is none is refused by who calls; a ValueError of ours would be a fault.
            if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                raise

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[parser.__name__]):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *sys.argv[2:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
