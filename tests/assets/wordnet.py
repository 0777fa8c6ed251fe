"""WordNet's database as facts between synsets, each of which is named by its first word.

A line of a data file is a synset (wndb(5WN)); a pointer and its inverse are one fact.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from assets import packages

__all__ = ["Net", "Synset", "net", "read", "synsets"]

Triple = tuple[str, str, str]

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
POINTERS = {
    "!": "antonym", "@": "hypernym", "@i": "instance_of", "#m": "member_holonym", "#s": "substance_holonym",
    "#p": "part_holonym", "=": "attribute", "+": "derivationally_related", ";c": "domain_topic", ";r": "domain_region",
    ";u": "domain_usage", "*": "entailment", ">": "cause", "^": "also_see", "$": "verb_group", "&": "similar_to",
    "<": "participle_of", "\\": "pertains_to",
}  # fmt: skip
INVERSE = {"~": "@", "~i": "@i", "%m": "#m", "%s": "#s", "%p": "#p", "-c": ";c", "-r": ";r", "-u": ";u"}
"""Pointers that say what another pointer of the other synset says."""
BOTH_WAYS = {"!", "=", "+", "$", "&"}
FILES_OF_SOURCE = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object noun.person "
    "noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape noun.state "
    "noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession verb.social "
    "verb.stative verb.weather adj.ppl"
)
KINDS = FILES_OF_SOURCE.split()
"""Kinds of synsets by their number (lexnames(5WN))."""


class Synset(NamedTuple):
    """name: wordnet-OFFSET-PART. pointers: (symbol, name of the other synset)."""

    name: str
    kind: str
    words: list[str]
    pointers: list[tuple[str, str]]


@dataclass(frozen=True)
class Net:
    """Facts, the name of each synset and relation (the first word of a synset), and the kind of each synset."""

    triples: tuple[Triple, ...]
    words: dict[str, str]
    kinds: dict[str, str]


@functools.cache
def net() -> Net:
    """117,659 synsets, of which 116,650 have 188 thousand facts between them."""
    return read(packages.wordnet())


def read(folder: Path) -> Net:
    """The synsets of a folder that have facts."""
    found, triples = {synset.name: synset for synset in synsets(folder)}, set[Triple]()
    for synset in found.values():
        for symbol, other in synset.pointers:
            relation = POINTERS[INVERSE.get(symbol, symbol)]
            if (symbol, synset.name[-1]) == ("\\", "r"):
                relation = "derived_from"
            turned = symbol in INVERSE or (symbol in BOTH_WAYS and other < synset.name)
            triples.add((other, relation, synset.name) if turned else (synset.name, relation, other))
    nodes = sorted({end for subject, _, other in triples for end in (subject, other)})
    words = {node: found[node].words[0] for node in nodes if node in found}
    words |= {relation: relation.replace("_", " ") for _, relation, _ in triples}
    return Net(tuple(sorted(triples)), words, {node: found[node].kind for node in nodes if node in found})


def synsets(folder: Path) -> Iterator[Synset]:
    """All synsets of a folder; `ValueError`, `IndexError` or `KeyError` for a line that is none."""
    for name in FILES:
        path = folder / name
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            if not line.startswith("  "):  # the licence
                yield _synset(line)


def _synset(line: str) -> Synset:
    fields = line.partition(" | ")[0].split(" ")
    many = int(fields[3], 16)
    at = 4 + 2 * many
    words = [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in fields[4:at:2]]
    pointers = [fields[place : place + 3] for place in range(at + 1, at + 1 + 4 * int(fields[at]), 4)]
    kind = KINDS[int(fields[1])].replace(".", " ")
    return Synset(_name(fields[0], fields[2]), kind, words, [(pointer[0], _name(*pointer[1:])) for pointer in pointers])


def _name(offset: str, part: str) -> str:
    return f"wordnet-{offset}-{'a' if part == 's' else part}"
