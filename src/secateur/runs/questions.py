"""Questions with known answers and what is read for them, from a JSONL file, as studies ask them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secateur.errors import DataError
from secateur.runs.backends import documents as reading
from secateur.runs.backends.documents import Document
from secateur.runs.context_files import parse_line, read_lines

__all__ = ["Question", "Questions", "read"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what answers it (any of these), and what is read for it."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[Document, ...]
    titles: tuple[str | None, ...] | None = None

    def read_text(self) -> str:
        """What is read as plain text, of HTML that of its blocks: documents in order, each behind its title."""
        texts = list[str]()
        for document, title in zip(self.documents, self.titles or [None] * len(self.documents), strict=True):
            text = reading.as_text(document)
            text = text if isinstance(text, str) else " ".join(text)
            texts.append(f"{title}\n{text}" if title else text)
        return "\n\n".join(texts)


@dataclass(frozen=True, slots=True)
class Questions:
    """What a file of questions holds; `digest` is of all that is asked and read."""

    name: str
    digest: str
    rows: tuple[Question, ...] = field(repr=False)


def read(source: str | Path) -> Questions:
    """Questions of a JSONL file: lines of `question`, `answers` (a list of texts, or one) and what is read for it.

    What is read is `html`, `text` or `passages` as `secateur prune-context` takes them, or `files`: paths from the
    folder of the questions. Raises `DataError` for a line that lacks one of these, naming it.
    """
    file, digest, rows = Path(source), hashlib.sha256(), list[Question]()
    for place, line in read_lines(file, ""):
        try:
            row = parse_line(line)
            rows.append(_read_question(row, file.parent))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        digest.update(json.dumps(row, sort_keys=True).encode())
        for document in rows[-1].documents:
            digest.update(document.read_bytes() if isinstance(document, Path) else b"")
    if not rows:
        raise DataError(f"{file} holds no line: each is to be an object with question, answers and what is read")
    return Questions(file.name, digest.hexdigest(), tuple(rows))


def _read_question(row: Mapping[str, object], folder: Path) -> Question:
    question, given = row.get("question"), row.get("answers", row.get("answer"))
    right = [given] if isinstance(given, str) else given
    if not isinstance(question, str) or not question.strip():
        raise DataError("this line has no question: give a text")
    if not isinstance(right, list) or not right or not all(isinstance(one, str) and one.strip() for one in right):
        raise DataError("this line has no answers: give a list of texts, each of which is right")
    documents, titles = _read_documents(row, folder)
    if titles is not None and len(titles) != len(documents):
        raise DataError(f"this line has {len(titles)} titles for {len(documents)} passages: give one for each, or null")
    read = (tuple(document) if isinstance(document, list) else document for document in documents)
    return Question(question, tuple(right), tuple(read), None if titles is None else tuple(titles))


def _read_documents(row: Mapping[str, object], folder: Path) -> tuple[Sequence[Document], Sequence[str | None] | None]:
    files = row.get("files")
    if files is None:
        return reading.read_row(row, None)
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        raise DataError("this line has files that are no list of paths")
    paths = [folder / name for name in files]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is no file: paths are from the folder of the questions")
    return paths, None
