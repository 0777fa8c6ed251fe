"""Facts, and conflict prompts made of them: read from JSON lines, split by subject, written.

A conflict prompt says something false about a subject and asks for it: "The capital of France is Rome. The capital of
France is". A model answers from its memory (Paris) or from the context (Rome).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur._utils import hashes
from secateur._utils.disk import atomic_write
from secateur.data import texts
from secateur.errors import DataError

__all__ = ["KINDS", "Conflict", "Conflicts", "Facts", "read", "write"]

KINDS = ("substitution", "coherent")
"""Kinds of conflicts: the false statement once, or by every template of its relation, one after another."""

_NEEDED = {"prompt", "memory", "context"}


@dataclass(frozen=True, slots=True)
class Conflict:
    """A prompt whose context contradicts what a model remembers.

    prompt: the false statement and the question. memory, context: the answers, as they follow the prompt. corrupted:
    the prompt with another subject and another attribute, of as many tokens, which supports neither answer; "" where
    there is none. plain: the question alone; "" where it is not known. subject, relation: what it is about, and which
    prompts go together. kind: of `KINDS`, or a word of one's own. template: which of the relation's it asks by.
    """

    prompt: str
    memory: str
    context: str
    corrupted: str = ""
    plain: str = ""
    subject: str = ""
    relation: str = ""
    kind: str = "substitution"
    template: int = 0


@dataclass(frozen=True)
class Facts:
    """A fact table: relation -> its templates, with {subject} in them, and (subject, relation, object) triples."""

    templates: Mapping[str, Sequence[str]]
    triples: Sequence[tuple[str, str, str]]
    name: str = "facts"
    backend = "secateur.runs.backends.conflicts:ConflictPrompts"


@dataclass(frozen=True)
class Conflicts:
    """Conflict prompts in order, a name for people, and why others of the same data were left out.

    known: whether a model was asked for the answers already, and those that it does not know are left out.
    """

    items: Sequence[Conflict]
    name: str = "conflict prompts"
    notes: tuple[str, ...] = ()
    known: bool = False
    backend = "secateur.runs.backends.conflicts:ConflictPrompts"

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """A hash of all prompts and answers."""
        return hashlib.sha256(json.dumps([asdict(item) for item in self.items]).encode()).hexdigest()

    def keys(self) -> NDArray[np.void]:
        """[N] digests, equal for equal prompts with equal answers."""
        return hashes.digests("\0".join((one.prompt, one.memory, one.context)).encode() for one in self.items)

    def split(self, held_out: float = 0.2, seed: int = 0) -> tuple[Conflicts, Conflicts]:
        """(most, held out): all prompts of a random share of the subjects are held out; both keep the order.

        Raises `DataError` for prompts on fewer than two subjects.
        """
        subjects = list(dict.fromkeys(_about(item) for item in self.items))
        if len(subjects) < 2:
            raise DataError(f"{self.name} asks about {len(subjects)} subject: give at least 2, one to measure on")
        count = min(max(1, round(len(subjects) * held_out)), len(subjects) - 1)
        drawn = np.random.default_rng([seed, len(subjects)]).permutation(len(subjects))[:count]
        away = {subjects[at] for at in drawn}
        rest, held = ([one for one in self.items if (_about(one) in away) == out] for out in (False, True))
        return replace(self, items=rest), replace(self, items=held, name=f"the held-out part of {self.name}")

    def choose(self, *, relation: str = "", kind: str = "") -> Conflicts:
        """The prompts of a relation and a kind; of all for "". Raises `DataError`, with what there is, for none."""
        found = self
        for field, wanted in (("relation", relation), ("kind", kind)):
            there = list(dict.fromkeys(str(getattr(item, field)) for item in found.items))
            if wanted and wanted not in there:
                raise DataError(f"{self.name} has no prompt of {field}={wanted}: it has {', '.join(there) or 'none'}")
            if wanted:
                found = replace(found, items=[one for one in found.items if getattr(one, field) == wanted])
        return found

    def take(self, indices: Sequence[int] | NDArray[np.int64], name: str = "") -> Conflicts:
        """The prompts at `indices`, in that order, called `name` if one is given."""
        return replace(self, items=[self.items[int(at)] for at in indices], name=name or self.name)


def _about(item: Conflict) -> str:
    return item.subject or item.prompt


def read(source: str | Path | Iterable[Mapping[str, object]] | Facts | Conflicts) -> Facts | Conflicts:
    """Conflict prompts, or a table of facts, from a JSON-lines file or from rows.

    Rows of prompts have the fields of `Conflict`. Rows of a table are facts, {"subject", "relation", "object"}, and
    templates, {"relation", "template"}, such as "The capital of {subject} is".

    Raises `DataError` for a file that is missing or no JSON lines, rows of neither form or of both, an unknown field,
    answers that are empty, and relations without a template.
    """
    if isinstance(source, Facts | Conflicts):
        return source
    if isinstance(source, str | Path):
        file = Path(source)
        name, rows = file.name, list(_read_lines(file))
    else:
        given = list(source)
        if not all(isinstance(row, Mapping) for row in given):
            raise DataError("the rows are no mappings: give facts, or conflict prompts (secateur conflicts makes them)")
        name, rows = "the rows", [dict(row) for row in given]
    if not rows:
        raise DataError(f"{name} holds no row: give facts, or conflict prompts (secateur conflicts makes them)")
    prompts = [row.keys() >= _NEEDED for row in rows]
    if all(prompts):
        return Conflicts([_read_prompt(row, f"{name}, row {at}") for at, row in enumerate(rows, 1)], name)
    templates: dict[str, list[str]] = {}
    triples: list[tuple[str, str, str]] = []
    for number, row in enumerate(rows, 1):
        place = f"{name}, row {number}"
        if {"relation", "template"} <= row.keys() and "subject" not in row:
            template = _read_text(row, "template", place)
            if template.count("{subject}") != 1:
                raise DataError(f"{place}: the template {template!r} needs {{subject}} once")
            templates.setdefault(_read_text(row, "relation", place), []).append(template)
        elif {"subject", "relation", "object"} <= row.keys():
            subject, relation, value = (_read_text(row, field, place) for field in ("subject", "relation", "object"))
            triples.append((subject, relation, value))
        else:
            raise DataError(
                f"{place} has {', '.join(sorted(map(str, row))) or 'nothing'}: give facts (subject, relation, object) "
                "and templates (relation, template), or conflict prompts (prompt, memory, context) alone"
            )
    for _, relation, _ in triples:
        if relation not in templates:
            raise DataError(
                f'{name} has facts and no template of {relation!r}: add a row such as {{"relation": "{relation}", '
                f'"template": "The {relation} of {{subject}} is"}}'
            )
    return Facts(templates, triples, name)


def _read_lines(file: Path) -> Iterator[dict[str, object]]:
    if not file.is_file():
        raise DataError(f"{file} is not there: give a JSON-lines file of facts or conflict prompts")
    for where, row in texts.json_lines(file):
        if not isinstance(row, dict):
            raise DataError(f'{where} holds no object: give one such as {{"subject": ...}}')
        yield row


def _read_text(row: Mapping[str, object], field: str, place: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {field} is {value!r}, no text")
    return texts.whole(value, f"{place}, in {field},")


def _read_prompt(row: Mapping[str, object], place: str) -> Conflict:
    kinds = {field.name: field.type for field in fields(Conflict)}
    for name, value in row.items():
        if name not in kinds:
            raise DataError(f"{place} has the unknown field {name!r}: a prompt has {', '.join(kinds)}")
        if isinstance(value, bool) or not isinstance(value, int if kinds[name] == "int" else str):
            raise DataError(f"{place}: {name} is {value!r}, no {'whole number' if kinds[name] == 'int' else 'text'}")
        if isinstance(value, str):
            texts.whole(value, f"{place}, in {name},")
    for name in sorted(_NEEDED):
        _read_text(row, name, place)
    return Conflict(**row)  # type: ignore[arg-type]


def write(items: Conflicts, file: str | Path) -> None:
    """The prompts as JSON lines, which `read` takes; whole, or not at all."""
    atomic_write(Path(file), "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items.items))
