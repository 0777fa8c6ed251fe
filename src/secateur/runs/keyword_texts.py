"""Texts with a keyword each, and prompts that such words go on, from JSONL files: what a study of priming reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from secateur.errors import DataError
from secateur.methods import rewriting
from secateur.methods.learning import Document
from secateur.runs.context_files import parse_line, read_lines

__all__ = ["Documents", "read", "read_prefixes"]


@dataclass(frozen=True, slots=True)
class Documents:
    """Texts with their keywords; `digest` is of all of them."""

    name: str
    digest: str
    rows: tuple[Document, ...] = field(repr=False)


def read(source: str | Path) -> Documents:
    """Texts of a JSONL file: lines of `text`, `keyword` and perhaps `theme` and `category`.

    What is watched is the keyword where it first stands in the text as a word. Raises `DataError` for a line that lacks
    one of these, or whose text does not hold its keyword, naming it.
    """
    rows, digest = list[Document](), hashlib.sha256()
    for place, row in _read_objects(source):
        text, keyword, theme = row.get("text"), row.get("keyword"), row.get("theme", "")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place} has no text: each is to be an object with text, keyword and perhaps theme")
        if not isinstance(keyword, str) or not keyword.strip():
            raise DataError(f"{place} has no keyword: give the word of its text whose probability is to be watched")
        category = row.get("category", "")
        for name, value in (("theme", theme), ("category", category)):
            if not isinstance(value, str):
                raise DataError(f"{place} has a {name} that is no text: {value!r}")
        start = rewriting.find_keyword(text, keyword)
        if start is None:
            raise DataError(
                f"{place}: its text does not hold its keyword {keyword!r} as a word: give one that it holds"
            )
        rows.append(Document(text, keyword, start, str(theme), str(category)))
        digest.update(json.dumps([text, keyword, theme, *([category] if category else [])]).encode())
    if not rows:
        raise DataError(f"{source} holds no line: each is to be an object with text, keyword and perhaps theme")
    return Documents(Path(source).name, digest.hexdigest(), tuple(rows))


def read_prefixes(source: str) -> dict[str, tuple[str, ...]]:
    """Theme -> prompts whose natural continuation is a word of it; nothing where no file is given."""
    found: dict[str, list[str]] = {}
    for place, row in _read_objects(source) if source else ():
        theme, prefix = row.get("theme", ""), row.get("prefix")
        if not isinstance(prefix, str) or not prefix.strip() or not isinstance(theme, str):
            raise DataError(f"{place} has no prefix: each is to be an object with theme and prefix, two texts")
        found.setdefault(theme, []).append(prefix if prefix[-1].isspace() else f"{prefix} ")
    if source and not found:
        raise DataError(f"{source} holds no line: each is to be an object with theme and prefix")
    return {theme: tuple(prompts) for theme, prompts in found.items()}


def _read_objects(source: str | Path) -> Iterator[tuple[str, dict[str, object]]]:
    for place, line in read_lines(Path(source), ""):
        row = parse_line(line, place, "each line is to be an object")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place} holds half a character (a lone surrogate), which is no text: write it whole"
            ) from error
        yield place, row
