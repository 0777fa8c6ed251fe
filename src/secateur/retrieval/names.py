"""An index of names: those that stand in a text, word by word, or are near it by a sentence encoder.

Two encoders or two lists of names never share vectors: a folder is called by a digest of the names, and holds what its
encoder made of a few texts, which is compared before it is used.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from secateur._utils.disk import cache_folder, writing
from secateur.errors import DataError, InputError
from secateur.retrieval.encoders import Embed, for_questions
from secateur.retrieval.words import COMMON

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["Match", "Mention", "Names", "phrases"]

LONGEST = 16
"""Words of a name that is looked for in a text; longer ones are found by their vectors alone."""
SHORT = 5
"""Letters of a name that is found where it is spelt wrong, at least."""
_NEAREST = 50
"""Names whose letters are compared one by one."""
_PROBES = ("What is pruned?", "heart attack", "The 3rd of May, 1808")
_ROWS = 65_536
"""Vectors that are compared at once."""
# Scripts without spaces: each letter is a word. Elsewhere marks belong to the letter before them.
_WORD = re.compile(
    "[\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]|"
    "[^\\W_\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]"
    "(?:[^\\W_\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]|[\\u0300-\\u036f\\u064b-\\u065f\\u0900-\\u0dff])*"
)


class Match(NamedTuple):
    """A thing that a text may speak of, by the name that is meant, and the cosine of that name and the text."""

    node: str
    name: str
    score: float


class Mention(NamedTuple):
    """A name that stands in a text, from letter `start` to before `end`, and all things called so."""

    name: str
    nodes: tuple[str, ...]
    start: int
    end: int


_BESIDE_NUMBER = re.compile(r" (?=\d)|(?<=\d) ")
"""Blanks that a number may have beside it, or not: Hayabusa2, Hayabusa 2."""
_ROMAN = re.compile(r"[ivxlcdm]+$")
_OPPOSITE = (
    ("hyper", "hypo"), ("pre", "post"), ("inter", "intra"), ("macro", "micro"), ("endo", "exo"), ("sub", "super"),
    ("over", "under"), ("in", "ex"), ("ab", "ad"), ("homo", "hetero"), ("mono", "poly"), ("anterior", "posterior"),
)  # fmt: skip
"""Prefixes of words that say the opposite, a letter or two apart."""


class Names:
    """Names of things, each of one thing or more, in the order of names.

    Args:
        things: (node, name), such as `KnowledgeGraph.things()`; a thing may have several.
        folder: where vectors are kept; None to keep them in memory alone.
    """

    def __init__(self, things: Iterable[tuple[str, str]], *, folder: Path | None = None) -> None:
        called: dict[str, set[str]] = {}
        for node, name in things:
            if name.strip():
                called.setdefault(name, set()).add(node)
        self.names = sorted(called)
        self.nodes = [tuple(sorted(called[name])) for name in self.names]
        self.folder = folder
        self._held: list[tuple[np.ndarray, np.ndarray]] = []

    @classmethod
    def build(cls, things: Iterable[tuple[str, str]], embed: Embed, *, folder: str | Path | None = None) -> Names:
        """Names with their vectors on disk, made now unless they are there.

        folder: where they are kept, one folder inside it for each list of names and encoder; by default in the cache.

        Raises `InputError` for an encoder that gives no vectors, or none that are finite.
        """
        found = cls(things, folder=Path(folder) if folder else cache_folder() / "names")
        found._vectors(embed)
        return found

    @classmethod
    def open(cls, place: str | Path) -> Names:
        """Names of one of the folders that `build` made, without the graph that they are from.

        Raises `DataError` for a folder that is none, or is damaged.
        """
        place = Path(place)
        try:
            with (place / "names.jsonl").open(encoding="utf-8") as lines:
                rows = [(str(name), [str(node) for node in nodes]) for name, nodes in map(json.loads, lines)]
            found = cls(((node, name) for name, nodes in rows for node in nodes), folder=place.parent)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{place} holds no names: give one of the folders that `Names.build` made") from error
        if not place.name.startswith(found._digest):
            raise DataError(f"{place} holds other names than it was made of: delete it and build it anew")
        return found

    def __len__(self) -> int:
        return len(self.names)

    # --------------------------------------------------------------------------------------------------- word by word

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Folded name -> which of the names are written so."""
        found: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            words = [word for word, _, _ in _words(name)]
            if 0 < len(words) <= LONGEST:
                found.setdefault(" ".join(words), []).append(index)
        return found

    @cached_property
    def _most(self) -> int:
        return max((key.count(" ") + 1 for key in self._places), default=0)

    def mentions(self, text: str, *, common: Collection[str] = COMMON) -> list[Mention]:
        """The names that stand in a text, in their order there; where two overlap, the longer one, then the first.

        Whole words count, without letter case, punctuation and underscores. common: words that are no name, alone or
        with one another, unless they are written as the name is, each with a capital: "The Who".
        The time is that of the text's words times those of the longest name, whatever the number of names.
        """
        words, spans = list(_words(text)), list[tuple[int, int, str]]()
        for first in range(len(words)):
            key = ""
            for count in range(1, min(self._most, len(words) - first) + 1):
                key += (" " if key else "") + words[first + count - 1][0]
                if key in self._places and not self._is_common(
                    key, text[words[first][1] : words[first + count - 1][2]], common
                ):
                    spans.append((count, first, key))
        taken, chosen = [False] * len(words), list[tuple[int, Mention]]()
        for count, first, key in sorted(spans, key=lambda span: (-span[0], span[1])):
            if any(taken[first : first + count]):
                continue
            taken[first : first + count] = [True] * count
            found = self._places[key]
            nodes = tuple(sorted({node for index in found for node in self.nodes[index]}))
            start, end = words[first][1], words[first + count - 1][2]
            exact = [self.names[index] for index in found if self.names[index] == text[start:end]]
            chosen.append((first, Mention((exact or [self.names[found[0]]])[0], nodes, start, end)))
        return [mention for _, mention in sorted(chosen)]

    def _is_common(self, key: str, written: str, common: Collection[str]) -> bool:
        """Whether common words stand in a text as such, though something is called so."""
        parts = key.split(" ")
        if not all(part in common for part in parts):
            return False
        proper = len(parts) > 1 and all(part[:1].isupper() for part in written.split())
        return not (proper and any(self.names[index] == written for index in self._places[key]))

    def find_named(self, name: str) -> list[str]:
        """The things that are called so, letter case and what stands around the name aside; none where none is."""
        found = self.mentions(name, common=())
        return list(found[0].nodes) if [(one.start, one.end) for one in found] == [_span(name)] else []

    # ----------------------------------------------------------------------------------------------------- by spelling

    def spelt_alike(self, texts: Sequence[str], least: float = 0.8) -> list[list[Match]]:
        """The things whose names are spelt most like each text, equals together, in the order of nodes; none below it.

        Alike is 1 - edits / letters of the longer one, where an edit puts in, takes out or alters a letter, or swaps
        two neighbours; of up to 13 letters one is allowed, of up to 20 two, and so on. Numbers, words of up to three
        letters and prefixes that say the opposite are never misspelt: hepatitis C is not B, and hypothyroidism no
        hyperthyroidism. Letter case does not count. Names of fewer than `SHORT` letters are left out: one letter makes
        another word of them. Without an encoder this is how a name is found that is spelt wrong.
        """
        folded = [" ".join(word for word, _, _ in _words(text)) for text in texts]
        found: list[list[Match]] = [[] for _ in texts]
        asked = [place for place, text in enumerate(folded) if len(text) >= SHORT]
        if not asked or not self._spellings:
            return found
        index, letters = self._pairs
        shared = _count_pairs([folded[place] for place in asked], letters) @ index.T
        for place, row in zip(asked, shared, strict=True):
            text, best = folded[place], least
            allowed = max(1, len(text) // 7)
            enough = len(set(itertools.pairwise(f" {text} "))) - 3 * allowed  # an edit spoils three at most
            near = sorted(zip(-row.data, row.indices, strict=True))[:_NEAREST]
            for many, column in near:
                name = self._spellings[column]
                edits = _edits(text, name) if -many >= enough else allowed + 1
                score = 1 - edits / max(len(text), len(name))
                if score >= best and edits <= allowed and _may_be_misspelt(text, name):
                    found[place] = [] if score > best else found[place]
                    best = score
                    found[place] += [
                        Match(node, self.names[number], round(score, 6))
                        for number in self._places[name]
                        for node in self.nodes[number]
                    ]
            found[place] = sorted(dict.fromkeys(found[place]))
        return found

    @cached_property
    def _spellings(self) -> list[str]:
        """The folded names that are long enough to be known if they are spelt wrong."""
        return [name for name in self._places if len(name) >= SHORT]

    @cached_property
    def _pairs(self) -> tuple[sparse.csr_matrix, dict[str, int]]:
        """Which pairs of letters each of these has [names, pairs], and the column of each pair."""
        letters: dict[str, int] = {}
        for name in self._spellings:
            for pair in itertools.pairwise(f" {name} "):
                letters.setdefault("".join(pair), len(letters))
        return _count_pairs(self._spellings, letters), letters

    # ------------------------------------------------------------------------------------------------------ by vectors

    def nearest(self, texts: Sequence[str], embed: Embed, k: int = 1, least: float = -1.0) -> list[list[Match]]:
        """The k things whose names are nearest to each text, best first; those below `least` are left out.

        All names are compared, and each thing is there once, by its nearest name; equals are in the order of nodes.
        The vectors of names are made the first time that an encoder asks.
        """
        if k < 1:
            raise InputError(f"k={k}: give how many things are wanted for each text, at least 1")
        if not len(texts) or not self.names:
            return [[] for _ in texts]
        asked = _normal(for_questions(embed), texts)
        rows = self._vectors(embed)
        if asked.shape[1] != rows.shape[1]:
            raise InputError(f"the encoder gives vectors of {asked.shape[1]} numbers, and names have {rows.shape[1]}")
        best: list[list[tuple[float, int]]] = [[] for _ in texts]
        for start in range(0, len(rows), _ROWS):
            scores = np.asarray(rows[start : start + _ROWS]) @ asked.T
            for one, column in zip(best, scores.T, strict=True):
                one += self._leading(np.round(column.astype(float), 6), k, least, start)
        return [self._things(one, k) for one in best]

    def _leading(self, scores: np.ndarray, k: int, least: float, start: int) -> Iterator[tuple[float, int]]:
        """(score, index) of names among which the k nearest things are."""
        # Names of one thing may take several places of the first k: as many more are taken.
        count = min(len(scores), k * self._several)
        limit = max(least, float(np.partition(scores, -count)[-count]))
        for index in np.flatnonzero(scores >= limit).tolist():
            yield float(scores[index]), start + index

    @cached_property
    def _several(self) -> int:
        """Names that one thing has at most."""
        many: dict[str, int] = {}
        for nodes in self.nodes:
            for node in nodes:
                many[node] = many.get(node, 0) + 1
        return max(many.values(), default=1)

    def _things(self, found: Sequence[tuple[float, int]], k: int) -> list[Match]:
        matches: dict[str, Match] = {}
        ranked = sorted((-score, node, self.names[index]) for score, index in found for node in self.nodes[index])
        for score, node, name in ranked:
            if len(matches) == k:
                break
            matches.setdefault(node, Match(node, name, -score))
        return list(matches.values())

    def _vectors(self, embed: Embed) -> np.ndarray:
        """The vectors of names [names, d], of length 1, float32."""
        probe = _normal(embed, _PROBES)
        for before, vectors in self._held:
            if _same(before, probe):
                return vectors
        found = self._read_vectors(probe)
        made = self._make_vectors(embed, probe) if found is None else found
        self._held.append((probe, made))
        return made

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, nodes in zip(self.names, self.nodes, strict=True):
            digest.update(_line(name, nodes).encode())
        return digest.hexdigest()[:24]

    def _read_vectors(self, probe: np.ndarray) -> np.ndarray | None:
        """The vectors that an encoder like this one made of these names, if they are on disk and whole."""
        for place in sorted(self.folder.glob(f"{self._digest}-*")) if self.folder else ():
            try:
                before = np.load(place / "probe.npy", allow_pickle=False)
                vectors: np.ndarray = np.load(place / "vectors.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):
                continue
            whole = vectors.ndim == 2 and len(vectors) == len(self.names) and vectors.dtype == np.float32
            if whole and _same(before, probe):
                return vectors
        return None

    def _make_vectors(self, embed: Embed, probe: np.ndarray) -> np.ndarray:
        if self.folder is None:
            return np.concatenate([*self._batches(embed, probe.shape[1]), np.zeros((0, probe.shape[1]), np.float32)])
        of = hashlib.sha256(np.ascontiguousarray(probe).tobytes()).hexdigest()[:8]
        place, shape = self.folder / f"{self._digest}-{of}", (len(self.names), probe.shape[1])
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        try:
            with writing(place) as temporary:
                self._write(temporary, shape, probe, embed)
        except OSError:
            found = self._read_vectors(probe)
            if found is None:
                raise
            return found  # another process was faster
        opened: np.ndarray = np.load(place / "vectors.npy", mmap_mode="r", allow_pickle=False)
        return opened

    def _write(self, place: Path, shape: tuple[int, int], probe: np.ndarray, embed: Embed) -> None:
        place.mkdir()
        np.save(place / "probe.npy", probe)
        with (place / "names.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(_line(name, nodes) for name, nodes in zip(self.names, self.nodes, strict=True))
        with (place / "vectors.npy").open("wb") as file:
            form = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**form, "shape": shape})
            for vectors in self._batches(embed, shape[1]):
                file.write(vectors.tobytes())

    def _batches(self, embed: Embed, width: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.names), 1024):
            vectors = _normal(embed, self.names[start : start + 1024])
            if vectors.shape[1] != width:
                raise InputError(f"the encoder gives vectors of {width} numbers, and then of {vectors.shape[1]}")
            yield vectors


def phrases(text: str, *, longest: int = LONGEST, most: int = 512, common: Collection[str] = COMMON) -> list[str]:
    """The parts of a text that may be names, as they stand there: the short ones first, each once.

    longest: words of one. most: how many; a quarter as many words of the text are looked at, so that there is room for
    parts of several. common: words that are none on their own.
    """
    words = list(islice(_words(text), max(1, most // 4)))
    parts = (
        text[words[first][1] : words[first + count - 1][2]]
        for count in range(1, longest + 1)
        for first in range(len(words) - count + 1)
        if not (count == 1 and words[first][0] in common)
    )
    return list(islice(dict.fromkeys(parts), most))


def _count_pairs(names: Sequence[str], letters: Mapping[str, int]) -> sparse.csr_matrix:
    """[names, pairs]: 1 for each pair of letters that a name has, of those that `letters` knows."""
    from scipy import sparse  # which names that are spelt right do without

    rows, columns = list[int](), list[int]()
    for row, name in enumerate(names):
        pairs = {letters.get("".join(pair)) for pair in itertools.pairwise(f" {name} ")} - {None}
        columns += [pair for pair in pairs if pair is not None]
        rows += [row] * (len(columns) - len(rows))
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(names), len(letters)))


def _may_be_misspelt(text: str, name: str) -> bool:
    """Whether nothing that tells one thing from another differs: numbers, short words, prefixes of the opposite."""
    if re.findall(r"\d+", text) != re.findall(r"\d+", name):
        return False
    ours, theirs = text.split(), name.split()
    if len(ours) != len(theirs):  # a blank too many, or too few
        if _BESIDE_NUMBER.sub("", text) == _BESIDE_NUMBER.sub("", name):
            return True
        return [word for word in ours if len(word) <= 3] == [word for word in theirs if len(word) <= 3]
    return all(
        one == other or (min(len(one), len(other)) > 3 and not _are_opposite(one, other) and not _ROMAN.match(other))
        for one, other in zip(ours, theirs, strict=True)
    )


def _are_opposite(one: str, other: str) -> bool:
    """Whether two words differ in a prefix, such as hyper and hypo, and in that alone or nearly so."""
    return any(
        (one.startswith(first) and other.startswith(second)) or (one.startswith(second) and other.startswith(first))
        for first, second in _OPPOSITE
    )


def _edits(one: str, other: str) -> int:
    """Letters put in, taken out or altered, and neighbours swapped, to make the other of the one.

    Source: Damerau, A technique for computer detection and correction of spelling errors (1964); no part is edited
    twice.
    """
    before, last = list[int](), list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            least = min(row[-1] + 1, last[j] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, last = last, row
    return last[-1]


def _span(text: str) -> tuple[int, int]:
    """Where a name starts and ends, without signs around it."""
    words = list(_words(text))
    return (words[0][1], words[-1][2]) if words else (0, 0)


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word of a text, folded, and where it stands."""
    for found in _WORD.finditer(text):
        yield unicodedata.normalize("NFKC", found[0]).casefold(), found.start(), found.end()


def _line(name: str, nodes: Sequence[str]) -> str:
    return json.dumps([name, list(nodes)]) + "\n"


def _normal(embed: Embed, texts: Sequence[str]) -> np.ndarray:
    """Vectors of length 1, or 0 where a text has none."""
    vectors = np.asarray(embed(list(texts)), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise InputError(f"the encoder made {vectors.shape} of {len(texts)} texts: a finite vector of each is wanted")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1.0))


def _same(before: np.ndarray, probe: np.ndarray) -> bool:
    """Whether one encoder made both; the number of threads and the like move the last digits."""
    return before.shape == probe.shape and bool(np.allclose(before, probe, atol=1e-3))
