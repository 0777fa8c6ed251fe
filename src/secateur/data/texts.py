"""Texts: read from files, folders, lists or the hub, split, and made into batches of token ids."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

import secateur.data.parts as parts_of
from secateur._utils import hashes
from secateur._utils.computed import Computed
from secateur._utils.noting import note
from secateur.data import chats
from secateur.data import labels as labelling
from secateur.data.chats import Chat, Spans, Tokenizer
from secateur.data.labels import DEFAULT, IGNORED, Labelled, Labels, Tagged, short
from secateur.data.shelf import Shelf, Texts
from secateur.errors import DataError, InputError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SUFFIXES",
    "Batches",
    "Corpus",
    "Digest",
    "Packing",
    "Row",
    "batches",
    "check_part",
    "files",
    "find_held_out",
    "in_order",
    "json_lines",
    "labelled",
    "need_tokenizer",
    "opened",
    "outside",
    "read",
    "take_rows",
    "whole",
    "windows",
    "wordless",
]

SUFFIXES = (".txt", ".jsonl", ".parquet")
_HUB_LIMIT = 100_000
_TOKENISED = 128
"""Texts that are tokenised at once: meanwhile a tokenizer takes some 30 bytes for each byte of them."""
_TOGETHER = 512
"""Tokens of a batch of several calibration windows, at most."""
_PROMPTED = ("prompt", "answer")
_SLICE = re.compile(r"(.*)\[:(\d*)\]")
"""A split of the hub and how many of its texts are read, as `datasets` writes it: train[:5000], or train[:] for all."""
Row = tuple[str, Any]
Handed: TypeAlias = Any
"""What a user gives as texts, of whatever library it is."""
Packing = Literal["blocks", "documents"]


@dataclass(frozen=True)
class Corpus:
    """Texts in order, their class indices if they have any, a name for people and a digest of the content.

    Where the data names its classes, `classes` are the names that the indices count, until `labelled` turns them into a
    model's numbers. The texts may lie on the disk (`shelf.Texts`): then they are read as they are asked for.

    numbers: of each text, where labels are numbers and not all whole: no classes, but what a regression is to tell.
    flaw: why labels that the data has are no classes, for whoever needs some; see `labels.Labelled`.
    tagged: the words of each text with a class for each of them, for a model that classifies tokens.
    form: "chat" where each text is a conversation as JSON (`chats.Chat`), "rendered" where a chat template has written
    it out, with the special tokens that belong there.
    answers: of each text, which of its characters are to be learned; None: all of them.
    completion_only, packing: how `batches` makes them for a model: only answers of chats are learned; texts run on in
    blocks, or blocks are of whole documents, of which none sees another.
    """

    texts: Sequence[str]
    labels: Sequence[int] | None = None
    name: str = "texts"
    digest: str = ""
    classes: tuple[str, ...] = ()
    numbers: Sequence[float] | None = None
    flaw: str = ""
    tagged: Sequence[Tagged] | None = None
    form: Literal["text", "chat", "rendered"] = "text"
    answers: Sequence[Spans] | None = None
    completion_only: bool = False
    packing: Packing = "blocks"

    def __len__(self) -> int:
        return len(self.texts)

    def labelled(self, numbers: Mapping[str, int], count: int) -> Corpus:
        """The same texts with the class numbers of a model: names by `numbers` (its label2id), numbers as they are.

        Raises:
            DataError: labels that are no classes, a name that is not in `numbers`, or a number that is not one of the
                model's `count` classes.
        """
        if self.flaw:
            raise DataError(self.flaw)
        if self.labels is None:
            return self
        labels = self._numbered(self.labels, numbers, count)
        return Corpus(self.texts, labels, self.name, _digest(self.texts, labels))

    def words_labelled(self, numbers: Mapping[str, int], count: int) -> Corpus:
        """As `labelled`, of the words' classes, of which -100 says that a word does not count."""
        if self.tagged is None and labelling.SEVERAL in self.flaw:
            raise DataError(f"{self.flaw}; labels of words go beside a list of the words, in `tokens` or `words`")
        if self.tagged is None:
            return self
        if self.flaw:
            raise DataError(self.flaw)
        flat = self._numbered([tag for one in self.tagged for tag in one.tags], numbers, count, (IGNORED,))
        rest = iter(flat)
        tagged = [Tagged(one.words, tuple(itertools.islice(rest, len(one.tags))), one.column) for one in self.tagged]
        return replace(self, classes=(), tagged=tagged, digest=_digest(self.texts, None, None, tagged))

    def _numbered(
        self, labels: Sequence[int], numbers: Mapping[str, int], count: int, other: Sequence[int] = ()
    ) -> list[int]:
        """`labels` by the class numbers of a model; `other` are allowed beside them."""
        unknown = [name for name in self.classes if name not in numbers]
        if unknown:
            raise DataError(
                f"{self.name} has the class {unknown[0]!r}, which the model doesn't know: "
                f"it knows {', '.join(sorted(numbers, key=numbers.__getitem__))}; give those, or their numbers"
            )
        found = [numbers[self.classes[label]] for label in labels] if self.classes else list(labels)
        beyond = next((label for label in found if not 0 <= label < count and label not in other), None)
        if beyond is not None:
            raise DataError(f"{self.name} has the label {beyond}: the model has {count} classes, 0 to {count - 1}")
        return found

    def split(self, held_out: float = 0.05, seed: int = 0) -> tuple[Corpus, Corpus]:
        """(train, held out): a random share of the texts, at least one, is held out; both keep the original order.

        Raises:
            DataError: fewer than two texts.
        """
        if len(self.texts) < 2:
            raise DataError(f"{self.name} holds {len(self.texts)} text, too few to hold any out: give at least 2")
        count = min(max(1, round(len(self.texts) * held_out)), len(self.texts) - 1)
        held = np.zeros(len(self.texts), bool)
        held[np.random.default_rng([seed, len(self.texts)]).permutation(len(self.texts))[:count]] = True
        rest, name = np.flatnonzero(~held), f"the held-out part of {self.name}"
        return self.take(rest), self.take(np.flatnonzero(held), name)

    def take(self, indices: Sequence[int] | NDArray[np.int64], name: str = "") -> Corpus:
        """The texts at `indices`, in that order, called `name` if one is given."""
        places = [int(index) for index in indices]
        texts = self.texts.take(places) if isinstance(self.texts, Texts) else [self.texts[place] for place in places]
        labels = None if self.labels is None else [self.labels[place] for place in places]
        numbers = None if self.numbers is None else [self.numbers[place] for place in places]
        tagged = [self.tagged[place] for place in places] if self.tagged else self.tagged
        answers = None if self.answers is None else [self.answers[place] for place in places]
        return Corpus(
            texts, labels, name or self.name, _digest(texts, labels, numbers, tagged), self.classes, numbers, self.flaw,
            tagged, self.form, answers, self.completion_only, self.packing,
        )  # fmt: skip

    def render(self, tokenizer: Tokenizer) -> Corpus:
        """Conversations as a language model with this tokenizer reads them; see `chats.render`. Other texts stay."""
        if self.form != "chat":
            return self
        written, spans, template = chats.render(self.texts, tokenizer, self.name, spans=self.completion_only)
        if not template:
            note(f"prompts of {self.name} run on into their completions, for the tokenizer has no chat template")
        return replace(
            self, texts=written, digest=_digest(written, None), answers=spans if self.completion_only else None,
            form="rendered" if template else "text", labels=None, numbers=None, classes=(), flaw="",
        )  # fmt: skip

    def join(self) -> Corpus:
        """Conversations as texts for a model that knows no roles: the messages, one after another. Other texts stay.

        Raises `InputError` where only answers are to be learned.
        """
        if self.form != "chat":
            return self
        if self.completion_only:
            raise InputError("completion_only is of language models, which write answers: leave it out")
        written = [chats.join(text) for text in self.texts]
        return replace(self, texts=written, form="text", digest=_digest(written, self.labels, self.numbers))

    def costs(self) -> dict[str, NDArray[np.float64]]:
        """Measure -> [N], what each text takes: bytes of UTF-8, and words."""
        sizes = (len(text.encode("utf-8", "surrogatepass")) for text in self.texts)
        words = (len(text.split()) for text in self.texts)
        return {
            "bytes": np.fromiter(sizes, np.float64, len(self.texts)),
            "words": np.fromiter(words, np.float64, len(self.texts)),
        }

    def keys(self, *, normalised: bool = False) -> NDArray[np.void]:
        """[N] digests of 16 bytes, equal for equal texts; `normalised`: for texts of equal words.

        Words are compared in Unicode's NFKC form without case, spaces and punctuation.
        """
        return hashes.digests(hashes.normalise_words(text) if normalised else text.encode("utf-8", "surrogatepass")
                          for text in self.texts)  # fmt: skip


# ----------------------------------------------------------------------------------------------------- reading


def read(
    source: str | Path | Sequence[str] | Corpus, *, limit: int | None = None, column: str = "text", label: str = "label"
) -> Corpus:
    """Read texts.

    A `.txt` file holds one text per line, `.jsonl` and `.parquet` hold one per row in `column` (and perhaps a class
    in `label`), a folder holds such files at any depth, taken in the order of their paths; where their names tell
    parts those of train, or with FOLDER:test of another (`files`). `owner/name`, or
    `hub:name[:configuration[:split]]`, streams a data set of the hub, its first 100,000 texts unless `limit` says
    otherwise or the split does, as `hub:name::train[:5000]`, or `train[:]` for all. Blank texts are passed over. A row
    without `column` but with a `prompt` and an `answer` is the one and, on a line of its own, the other; one with a
    list of words, in `tokens` or `words`, is those words, which may have a class each, in `label`, `ner_tags` or
    `labels`; one with messages, in `column`, `messages` or `conversations`, or with a `prompt` and a `completion`, is a
    chat (`chats.find_chat`). Of a dict `take_rows` gives what is read.

    Raises:
        DataError: missing, empty, of an unknown kind, without `column`, or not UTF-8 (names file and byte,
            or line).
        MissingExtraError: the hub or Parquet asked for without the `data` extra.
    """
    if isinstance(source, Corpus):
        return source
    name, rows = opened(source, limit=limit, column=column, label=label)
    texts: list[str] = []
    values = Labels()
    for text, value in rows:
        texts.append(text)
        values.add(value)
    conversations = sum(isinstance(text, Chat) for text in texts)
    if 0 < conversations < len(texts):
        raise DataError(f"{name} holds {conversations} chats and {len(texts) - conversations} texts: give one kind")
    if not texts:
        raise DataError(
            f"{source if isinstance(source, (str, Path)) else 'the list given'} holds no text: give at least one line"
        )
    found = labelled(values.end(name, label), name, label, source)
    classes = None if found.classes is None else found.classes.tolist()
    numbers = None if found.numbers is None else found.numbers.tolist()
    digest = _digest(texts, classes, numbers, found.tagged)
    form: Literal["text", "chat"] = "chat" if conversations else "text"
    return Corpus(texts, classes, name, digest, found.names, numbers, found.flaw, found.tagged, form)


def labelled(found: Labelled, name: str, label: str, source: object) -> Labelled:
    """`found`, unless a column of labels was named that files do not have: then `DataError`, with those they have."""
    told = (found.classes, found.numbers, found.tagged)
    if label in ("", DEFAULT) or found.flaw or any(one is not None for one in told):
        return found
    there = isinstance(source, str | Path) and str(source) and Path(source).exists()
    names = _columns(files(Path(str(source)))[0]) if there else []
    if names:
        labelling.check(label, names, name)
    return found


def opened(
    source: str | Path | Iterable[str] | Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    column: str = "text",
    label: str = "label",
) -> tuple[str, Iterator[Row]]:
    """(name, rows): each text that `read` would take, with its class or None, one after another and never all at once.

    source: as for `read`; or anything that gives texts, or rows as mappings: a `datasets` table, streamed or not.
    Errors are those of `read`, and come when the row is reached; a `label` that was named and that no row has is told
    after the last one, or at the first where all rows have the same columns.
    """
    if isinstance(source, (str, Path)):
        name, rows = _open(source, column, label, limit)
    else:
        given: object = source  # whatever a caller in Python had
        if not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
            raise DataError(
                f"the data is {type(source).__name__}, which gives no texts: give a file, a folder or a list of them; "
                "networks and their examples are for recipes on networks (secateur list)"
            )
        name, rows = "texts", _read_handed_rows(source, column, label)
    return name, itertools.islice(_skip_blanks(rows, name), limit)


def _skip_blanks(rows: Iterable[Row], name: str) -> Iterator[Row]:
    blank = 0
    for text, value in rows:
        if text.strip():
            yield text, value
        else:
            blank += 1
    if blank:
        note(f"{blank} texts of {name} are blank and are passed over")


def _read_handed_rows(source: Iterable[Any], column: str, label: str) -> Iterator[Row]:
    known, seen = getattr(source, "column_names", None), dict[str, None]()
    if isinstance(known, list):  # of `datasets`; a stream may not know them
        labelling.check(label, known, "texts")
    for number, one in enumerate(source, 1):
        if isinstance(one, dict):
            seen.update(dict.fromkeys(one))
        yield _read_item(one, number, column, label)
    if seen:
        labelling.check(label, seen, "texts")


def _read_item(one: Any, number: int, column: str, label: str) -> Row:
    if isinstance(one, str):
        return whole(one, f"text {number} of the list"), None
    return _row(one, column, label, f"row {number}")


def _open(source: str | Path, column: str, label: str, limit: int | None) -> tuple[str, Iterator[Row]]:
    path = Path(source)
    if path.exists() or parts_of.split_name(path)[0].is_dir():
        return path.name, itertools.chain.from_iterable(_rows(file, column, label) for file in files(path))
    text = str(source)
    if text.startswith("hub:") or (
        re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and path.suffix not in SUFFIXES and not path.parent.exists()
    ):
        return text, _hub(text.removeprefix("hub:"), column, label, limit)
    raise DataError(f"{source} does not exist: give a {', '.join(SUFFIXES)} file, a folder of them, or hub:owner/name")


def files(path: Path) -> list[Path]:
    """The files of texts in a folder, in order, or the file that `path` is.

    Of a folder whose files are of several parts (`parts.part_of`), those of train, or of the part that `path` names:
    FOLDER:test. Warns (`DataWarning`) which part that is.

    Raises `DataError` where there is no file of texts, or none of that part.
    """
    folder, _ = parts_of.split_name(path)
    if not folder.is_dir() and not path.exists():
        raise DataError(f"{path} does not exist: give a {', '.join(SUFFIXES)} file, or a folder of them")
    found = _list_files(folder) if folder.is_dir() else [path]
    if not found:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} file: give a folder with texts")
    chosen, notes = parts_of.choose(path, found)
    for line in notes:
        note(line)
    return chosen


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def find_held_out(source: Handed) -> Handed:
    """The part of a folder of texts, or of splits in a dict, that is there to measure on; None where there is none.

    Warns (`DataWarning`) which split that is.
    """
    if _has_splits(source):
        named: dict[str | None, str] = {}
        for name in source:
            named.setdefault(parts_of.part_of(Path(name)), name)
        held = named.get("validation", named.get("test"))
        if held is None:
            return None
        note(f"of the splits {', '.join(source)} quality is measured on {held}")
        return source[held]
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return None
    return parts_of.find_held_out(Path(source), _list_files(Path(source)))


def check_part(source: Handed, column: str, label: str) -> None:
    """Raise `DataError` for columns that were named and that the files of a part, FOLDER:test, do not have."""
    folder, part = parts_of.split_name(Path(source)) if isinstance(source, str | Path) else (Path(), None)
    if part is None or not folder.is_dir():
        return
    chosen, _ = parts_of.choose(Path(source), _list_files(folder))
    name = Path(source).name
    if all(file.suffix == ".txt" for file in chosen):
        labelling.unnamed(f"{name} holds lines of text, which have no columns", text=column, label=label)
    elif names := dict.fromkeys(one for file in chosen for one in _columns(file)):
        labelling.check(label, names, name)


def take_rows(source: Handed) -> Handed:
    """What `read` takes of a dict: of splits (a `DatasetDict`) train, of columns their rows, as of a frame of pandas or
    polars; others stay as they are.

    Warns (`DataWarning`) which split that is, where there are others.

    Raises `DataError` for splits without train, and for columns that are no lists of one length.
    """
    if type(source).__module__.partition(".")[0] in ("pandas", "polars") and hasattr(source, "columns"):
        source = _columns_of(source)
    elif not isinstance(source, Mapping):
        return source
    elif _has_splits(source):
        if "train" not in source:
            raise DataError(f"the data has the splits {', '.join(source)} and no train: give one of them")
        if len(source) > 1:
            note(f"of the splits {', '.join(source)} train is read")
        return take_rows(source["train"])
    odd = next((name for name, one in source.items() if isinstance(one, str) or not isinstance(one, Iterable)), None)
    if odd is not None:
        raise DataError(
            f"the data is a dict with {short(source[odd])} in {odd!r}: give a list there, or a list of dicts"
        )
    columns = {name: list(column) for name, column in source.items()}
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"the data's columns are of several lengths, {shown}: give one value for each text")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _columns_of(frame: Handed) -> dict[str, list[object]]:
    """The columns of a frame of pandas or polars by name, with None for what pandas has of none."""
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the frame has several columns {twice!r}: give each a name of its own")
    columns = {str(name): list(frame[name]) for name in frame.columns}
    return {
        name: [None if type(value).__name__ == "NAType" else value for value in values]
        for name, values in columns.items()
    }


def _has_splits(source: Handed) -> TypeGuard[Mapping[str, Handed]]:
    known = type(source).__name__ in ("DatasetDict", "IterableDatasetDict")
    return known or (isinstance(source, Mapping) and "train" in source)


def wordless(path: Path, column: str) -> bool:
    """Whether the rows of a .jsonl or .parquet file have columns of which none is one of texts, as `read` takes them.

    Told by the schema, or by the first row; of a file that can't be read, or of another kind, `read` tells what is
    wrong.
    """
    names = _columns(path)
    return bool(names) and not _has_texts(names, column)


def _columns(path: Path) -> list[str]:
    """Of a .jsonl or .parquet file; none of another kind, or where they can't be told."""
    try:
        if path.suffix == ".jsonl":
            _, row = next(json_lines(path))
            return list(row) if isinstance(row, dict) else []
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(path).names)
    except (OSError, ValueError, StopIteration, ImportError, DataError):
        pass
    return []


def _has_texts(names: Sequence[str], column: str) -> bool:
    return column in names or set(_PROMPTED) <= set(names)


def _choose_columns(names: Sequence[str], column: str, label: str) -> list[str]:
    """The columns of a table that are read: of texts, prompts with answers, chats, or words; none where it has none."""
    conversations = [*([name] for name in chats.COLUMNS), [*chats.PAIR]] if column == chats.UNNAMED else []
    choices = [[column], [*_PROMPTED], *conversations]
    found = next((choice for choice in choices if set(choice) <= set(names)), None)
    wanted = labelling.columns(names, label) if found is None else [*found, label]
    return [name for name in wanted if name in names]


def _rows(path: Path, column: str, label: str) -> Iterator[Row]:
    try:
        if path.suffix == ".txt":
            yield from ((line, None) for _, line in _lines(path) if line)
        elif path.suffix == ".jsonl":
            yield from _json_rows(path, column, label)
        elif path.suffix == ".parquet":
            yield from _parquet_rows(path, column, label)
        else:
            raise DataError(f"{path} is of no known kind: give {', '.join(SUFFIXES)}, or a folder of them")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 at byte {offset + error.start}: convert it to UTF-8") from error
            offset += len(line)
            yield number, text.strip()


def _json_rows(path: Path, column: str, label: str) -> Iterator[Row]:
    for where, row in json_lines(path):
        yield _row(row, column, label, where)


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(where it stands, value) of each line of a JSON-lines file that is not blank. Raises `DataError` for no JSON."""
    for number, line in _lines(path):
        if not line:
            continue
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits, and of deep nesting
            raise DataError(f"{path}, line {number}, is not JSON: write one object per line") from error
        yield f"{path}, line {number},", row


def _parquet_rows(path: Path, column: str, label: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("reading Parquet needs pyarrow: pip install 'secateur[data]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = _choose_columns(names, column, label)
        if not wanted:
            raise DataError(f"{path} has no column {column!r}: it has {', '.join(names)}")
        for batch in table.iter_batches(columns=wanted):
            yield from (_row(row, column, label, str(path)) for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {_first_line(error)}") from error


def _hub(name: str, column: str, label: str, limit: int | None) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("data sets of the hub need datasets: pip install 'secateur[data]'") from error
    identifier, configuration, split = (*name.split(":", 2), "", "")[:3]
    sliced = _SLICE.fullmatch(split)
    most = limit or _HUB_LIMIT
    if sliced is not None:
        split, most = sliced[1], int(sliced[2] or sys.maxsize)
    try:
        stream = datasets.load_dataset(identifier, configuration or None, split=split or "train", streaming=True)
        for number, row in enumerate(stream):
            if not number:
                labelling.check(label, row, f"data set {identifier}")
            if number == most:
                if sliced is None and limit is None:
                    note(
                        f"data set {identifier} goes on after {most:,} texts, which are what is read: name another "
                        f"number as hub:{identifier}:{configuration}:{split or 'train'}[:500000], or [:] for all"
                    )
                return
            yield _row(row, column, label, f"data set {identifier}")
    except DataError:
        raise
    except Exception as error:  # the client raises many kinds: no network, no such set, no such split
        raise DataError(f"data set {identifier!r} could not be read: {_first_line(error)}") from error


def _row(row: Any, column: str, label: str, where: str) -> Row:
    prompted = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in _PROMPTED)
    if isinstance(row, dict) and not prompted and not isinstance(row.get(column), str):
        conversation = chats.find_chat(row, column, where)
        if conversation is not None:
            whole(conversation, where)
            return conversation, row.get(label)
    if isinstance(row, dict) and column not in row:
        parts = [part for part in map(row.get, _PROMPTED) if isinstance(part, str)]
        if len(parts) == len(_PROMPTED):
            row = {**row, column: "\n".join(parts).strip()}
        elif (words := labelling.tagged(row, label, where)) is not None:
            return whole(words[0], where), words[1]
    if isinstance(row, dict) and column in row and not isinstance(row[column], str):
        shown = "null" if row[column] is None else short(row[column])
        raise DataError(f"{where} has {shown} and no text in {column!r}: write a text there, or drop the row")
    if not isinstance(row, dict) or column not in row:
        known = ", ".join(row) if isinstance(row, dict) else "no fields"
        raise DataError(f"{where} has no text in {column!r}: it has {known}")
    return whole(row[column], where), row.get(label)


def whole(text: str, where: str) -> str:
    """`text`, unless half a surrogate pair stands in it: JSON can write one, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{where} holds {half}, half a surrogate pair and no character: mend or drop it") from error
    return text


class Digest:
    """The digest of a `Corpus`, of texts as they come: the same whether they are all in memory or never were."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def add(self, text: str) -> None:
        """One more text."""
        data = text.encode("utf-8", "surrogatepass")
        self._found.update(len(data).to_bytes(8, "little") + data)

    def end(
        self,
        labels: Sequence[int] | NDArray[np.int64] | None,
        numbers: Sequence[float] | NDArray[np.float64] | None = None,
        tagged: Sequence[Tagged] | None = None,
    ) -> str:
        """After the last text: its classes, numbers or labels of words, if there are any; sha256 in hexadecimal."""
        if labels is not None:
            self._found.update(np.asarray(labels, np.int64).tobytes())
        if numbers is not None:
            self._found.update(np.asarray(numbers, np.float64).tobytes())
        for one in tagged or ():
            sizes = [len(one.words), *map(len, one.words)]
            self._found.update(np.array([*sizes, *one.tags], np.int64).tobytes())
        return self._found.hexdigest()


def _digest(
    texts: Sequence[str],
    labels: Sequence[int] | None,
    numbers: Sequence[float] | None = None,
    tagged: Sequence[Tagged] | None = None,
) -> str:
    digest = Digest()
    for text in texts:
        digest.add(text)
    return digest.end(labels, numbers, tagged)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ----------------------------------------------------------------------------------------------------- batches


class Batches(Computed["dict[str, Tensor]"]):
    """Endless, repeatable batches: `batches[i]` for any i >= 0 is a pure function of the texts, the seed and i.

    `len` is the number of batches of one epoch; each epoch has an order of its own; iteration is one epoch.
    Tokens are held once, as int32; those of texts on the disk lie on the disk.

    starts, ends: [N] of each sequence in `tokens`; without `ends` each ends where the next one starts, the last of
    `starts` being the end of all. documents: where documents start in `tokens`, if they are not to see one another.
    answers: for each of `tokens`, whether it is to be learned; all are if None.
    members: numbers of the sequences that batches are made of: all, unless some are held out.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32] | Shelf,
        starts: NDArray[np.int64],
        *,
        batch: int,
        seed: int,
        pad: int,
        bucketed: bool,
        labels: NDArray[np.int64] | None = None,
        tags: NDArray[np.int64] | None = None,
        ends: NDArray[np.int64] | None = None,
        documents: NDArray[np.int64] | None = None,
        answers: NDArray[np.bool_] | None = None,
    ) -> None:
        self.tokens, self.batch, self.seed, self.pad = tokens, batch, seed, pad
        self.starts, self.ends = (starts[:-1], starts[1:]) if ends is None else (starts, ends)
        self.bucketed, self.labels, self.tags = bucketed, labels, tags
        self.documents, self.answers = documents, answers
        self.members = np.arange(len(self.starts))
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty((0, batch), np.int64)

    def __len__(self) -> int:
        return len(self.members) // self.batch

    def hold_out(self, share: float) -> tuple[Batches, Batches]:
        """(batches of the other sequences, those of a share of them, drawn by the seed), over the same tokens.

        Raises `DataError` where not one batch would be left to learn from.
        """
        count = len(self.members)
        held = max(1, round(share * count))
        if count - held < self.batch:
            raise DataError(
                f"{held} of {count} sequences held out for validation leave less than a batch of {self.batch}: give "
                "more texts, or a smaller batch"
            )
        order = np.random.default_rng([self.seed, 2**32 - 1]).permutation(self.members)
        even = math.ceil(held / math.ceil(held / self.batch))  # few are left after the last whole batch
        return self._choose(order[held:], self.batch), self._choose(order[:held], even)

    def sequences(self, count: int) -> list[dict[str, Tensor]]:
        """`count` different sequences, or all there are: the first batches, the last of them perhaps a smaller one."""
        whole = self.take(count // self.batch)
        rest = min(count, len(self.members)) - len(whole) * self.batch
        if not rest:
            return whole
        used = [self.rows(index) for index in range(len(whole))]
        left = np.setdiff1d(self.members, np.concatenate(used)) if used else self.members
        return [*whole, self._choose(left, rest)[0]]

    def _choose(self, members: NDArray[np.int64], batch: int) -> Batches:
        """Batches of some of the sequences."""
        chosen = copy.copy(self)
        chosen.members, chosen.batch, chosen._epoch = np.sort(members), batch, -1
        return chosen

    def make(self, index: int) -> dict[str, Tensor]:
        """One batch: input_ids and attention_mask [batch, longest], int64, and labels where texts have them: [batch],
        or of tokens [batch, longest], -100 where one has none.

        Where documents do not see one another, `position_ids` [batch, longest] begin anew at each of them, and at the
        padding. Then, and where only answers are learned, `counted` [batch, longest] says which positions predict a
        token that is to be learned.
        """
        import torch

        if index < 0:
            raise IndexError(f"batch {index}: batches are counted from 0 without end")
        chosen = self.rows(index)
        spans = [slice(self.starts[row], self.ends[row]) for row in chosen]
        lengths = self.ends[chosen] - self.starts[chosen]
        ids = np.full((self.batch, int(lengths.max())), self.pad, np.int64)
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        ids[mask] = np.concatenate([self.tokens[span] for span in spans])
        result = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.labels is not None:
            result["labels"] = torch.from_numpy(self.labels[chosen])
        if self.tags is not None:
            tags = np.full_like(ids, IGNORED)
            tags[mask] = np.concatenate([self.tags[span] for span in spans])
            result["labels"] = torch.from_numpy(tags)
        if self.documents is not None:
            positions = np.maximum(np.arange(ids.shape[1]) - lengths[:, None], 0)
            positions[mask] = np.concatenate([self._positions(span) for span in spans])
            result["position_ids"] = torch.from_numpy(positions)
        if self.documents is not None or self.answers is not None:
            learned = mask.copy()
            if self.answers is not None:
                learned[mask] = np.concatenate([self.answers[span] for span in spans])
            if self.documents is not None:
                learned &= positions > 0  # what stands first in a document follows nothing
            counted = np.zeros_like(mask)
            counted[:, :-1] = learned[:, 1:]
            result["counted"] = torch.from_numpy(counted)
        return result

    def _positions(self, span: slice) -> NDArray[np.int64]:
        """The place of each token of a sequence in its document, or in the part of it that stands here."""
        assert self.documents is not None
        places = np.arange(span.start, span.stop)
        first = self.documents[np.searchsorted(self.documents, places, side="right") - 1]
        positions: NDArray[np.int64] = places - np.maximum(first, span.start)
        return positions

    def rows(self, index: int) -> NDArray[np.int64]:
        """[batch]: which texts stand in batch `index`, where there is one text per row; else which blocks."""
        epoch, place = divmod(index, len(self))
        chosen: NDArray[np.int64] = self._rows(epoch)[place]
        return chosen

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        """[batches of an epoch, batch]: which sequences stand in which batch."""
        if epoch != self._epoch:
            draw = np.random.default_rng([self.seed, epoch])
            order = draw.permutation(self.members)[: len(self) * self.batch]
            if self.bucketed:
                # Sorting by length inside windows of 50 batches makes batches of like lengths: little padding,
                # and still other companions in each epoch.
                lengths = self.ends - self.starts
                window = 50 * self.batch
                parts = [order[i : i + window] for i in range(0, len(order), window)]
                order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
            rows = order.reshape(-1, self.batch)
            self._order = draw.permutation(rows) if self.bucketed else rows
            self._epoch = epoch
        return self._order


def windows(
    corpus: Corpus,
    tokenizer: Tokenizer,
    count: int,
    length: int,
    *,
    seed: int = 0,
    together: bool = False,
    packed: bool = True,
) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    """`count` calibration windows of exactly `length` tokens, one per batch, drawn at random without repeats.

    Not `packed`, for what reads each text by itself, they are texts with their special tokens, of at most that length.

    With `together` short windows share batches of at most 512 tokens, as long as there are 16 batches or more: a pass
    over a block takes less time, and no more memory than a long window. Texts run on in them, chats with their prompts,
    whatever a training learns of them.

    Where the texts hold fewer, all there are, and a note that says so. Source of the default elsewhere, 128 windows of
    the full length from general text: SparseGPT, Wanda.

    Raises:
        DataError: less than one window.
    """
    if count < 1:
        raise DataError(f"{count} calibration windows: give at least 1")
    corpus = replace(corpus.render(tokenizer), answers=None, packing="blocks")
    found = batches(corpus, tokenizer, packed=packed, batch=1, length=length, seed=seed).take(count)
    many = min(_TOGETHER // length, len(found) // 16) if together and packed else 1
    if many > 1:
        import torch

        parts = [found[start : start + many] for start in range(0, len(found), many)]
        joined = [{key: torch.cat([one[key] for one in part]) for key in part[0]} for part in parts]
    else:
        joined = found
    if len(found) == count:
        return joined, ()
    held = f"{len(found)} windows of {length} tokens" if packed else f"{len(found)} texts"
    return joined, (f"{corpus.name} holds {held}, fewer than the {count} asked for",)


def need_tokenizer(tokenizer: Tokenizer | None) -> None:
    """Raise `InputError` without one: texts can't be read."""
    if tokenizer is None:
        raise InputError(
            "the model has no tokenizer: put its files, such as tokenizer.json, into the model's folder, or give "
            "open_subject(model, tokenizer=...) in its place; secateur prune needs none"
        )


def batches(corpus: Corpus, tokenizer: Tokenizer, *, packed: bool, batch: int, length: int, seed: int = 0) -> Batches:
    """Token batches of `corpus`.

    packed:  texts run on, an end-of-text token after each and the token before each that the tokenizer itself puts
             there, cut into blocks of exactly `length` tokens (decoders). Where the corpus says packing="documents",
             blocks are of as many whole texts as fit, one after another, and none sees another; a longer text is cut.
             What its chat template has written has all special tokens, and gets no more. Where only answers count,
             blocks without one are left out.
    else:    one text per row with its special tokens, at most `length` tokens, padded to the longest of its batch;
             texts of like length stand together (encoders). Of words with classes, each class is that of its word's
             first token.

    Warns (`DataWarning`) where texts are longer than `length`, and so are cut, unless they run on.

    Raises:
        DataError: less than one batch, saying how much there is and how much is needed.
        InputError: no tokenizer; chats, and a tokenizer without a chat template.
        UnsupportedError: classes of words or answers, and a tokenizer that does not tell where its tokens stand.
    """
    need_tokenizer(tokenizer)
    corpus = corpus.render(tokenizer)
    read = _tokenise(corpus, tokenizer, packed=packed, length=length)
    apart, cut = packed and corpus.packing == "documents", read.cut
    if apart:
        borders = _whole_documents(read.borders, length)
        cut = int((np.diff(read.borders) > length).sum())
    else:
        blocks = np.arange(len(read.tokens) // length + 1, dtype=np.int64) * length
        borders = blocks if packed else read.borders
    starts, ends = borders[:-1], borders[1:]
    if read.answers is not None:  # what stands first in a block follows nothing, and is not learned
        before = np.concatenate([[0], np.cumsum(read.answers)])
        answered = before[ends] > before[starts + 1]
        starts, ends = starts[answered], ends[answered]
    if len(starts) < batch:
        there, needed, unit = (len(read.tokens), batch * length, "tokens") if packed else (len(corpus), batch, "texts")
        some = "" if read.answers is None else f", with answers in {len(starts)} of {len(borders) - 1} blocks"
        raise DataError(
            f"{corpus.name} holds {there} {unit}{some}, less than one batch: {needed} are needed, so give more texts"
        )
    if cut:
        line = f"{cut} of {len(corpus)} texts of {corpus.name} are longer than {length} tokens and are cut there"
        note(f"{line}: a larger length takes more of them")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    labels = None if packed or corpus.labels is None else np.asarray(corpus.labels, np.int64)
    return Batches(
        read.tokens, starts, batch=batch, seed=seed, pad=pad, bucketed=not packed, labels=labels, tags=read.tags,
        ends=ends, documents=read.borders[:-1] if apart else None, answers=read.answers,
    )  # fmt: skip


@dataclass(frozen=True)
class _Tokens:
    """Texts as tokens, one after another: where each starts, and the end of the last; for each token its class, and
    whether it is of an answer, if such are there; how many texts were cut.
    """

    tokens: NDArray[np.int32] | Shelf
    borders: NDArray[np.int64]
    tags: NDArray[np.int64] | None
    answers: NDArray[np.bool_] | None
    cut: int


def _tokenise(corpus: Corpus, tokenizer: Tokenizer, *, packed: bool, length: int) -> _Tokens:
    held: list[NDArray[np.int32]] = []
    shelf = Shelf(corpus.texts.folder, np.int32) if isinstance(corpus.texts, Texts) else None
    keep = held.append if shelf is None else shelf.add
    words = None if packed else corpus.tagged
    sizes, tags, learned, cut = array("q", [0]), array("q"), bytearray(), 0
    first, last = _find_ends(tokenizer) if packed and corpus.form == "text" else ([], [])
    for start in range(0, len(corpus.texts), _TOKENISED):
        part = slice(start, start + _TOKENISED)
        chunk = list(corpus.texts[part])
        if words is not None:
            rows, marks = _by_words(words[part], tokenizer, length)
            tags.extend(itertools.chain.from_iterable(marks))
        elif packed and corpus.answers is not None:
            rows, flags = _mark_answers(chunk, corpus.answers[part], tokenizer)
            for flag, spans, text in zip(flags, corpus.answers[part], chunk, strict=True):
                closed = bool(spans) and spans[-1][1] == len(text)  # then the end of the text is learned, too
                learned += bytes(len(first)) + flag + bytes([closed] * len(last))
        elif packed:
            rows = tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            special = corpus.form != "rendered"
            found = tokenizer(chunk, truncation=True, max_length=length, add_special_tokens=special)
            rows = found["input_ids"]
            cut += sum(bool(encoding.overflowing) for encoding in found.encodings or ())
        rows = [[*first, *row, *last] for row in rows] if first or last else rows
        sizes.extend(map(len, rows))
        keep(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
    return _Tokens(
        np.concatenate(held) if shelf is None else shelf,
        np.cumsum(np.array(sizes)),
        None if words is None else np.array(tags, np.int64),
        np.frombuffer(learned, np.bool_) if learned else None,
        cut,
    )


def _find_ends(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens before and after a text that runs on: what the tokenizer itself begins with, and the end of a text."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    begins = begin is not None and tokenizer("a")["input_ids"][:1] == [begin]
    return [begin] if begins else [], [] if end is None else [end]


def _whole_documents(borders: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """[N + 1]: where blocks of at most `length` tokens start, of whole documents; longer documents are cut.

    borders: where each document starts, and the end of the last.
    """
    starts = [0]
    for begin, end in itertools.pairwise(borders.tolist()):
        if end - starts[-1] > length and begin > starts[-1]:
            starts.append(begin)
        while end - starts[-1] > length:
            starts.append(starts[-1] + length)
    return np.array([*starts, borders[-1]], np.int64)


def _mark_answers(
    chunk: Sequence[str], answers: Sequence[Spans], tokenizer: Tokenizer
) -> tuple[list[list[int]], list[bytes]]:
    """(token ids, for each token 1 if it has a character of an answer, else 0) of texts that run on."""
    try:
        found = tokenizer(chunk, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    except (NotImplementedError, ValueError) as error:
        raise UnsupportedError("answers are found by a fast tokenizer, which tells where its tokens stand") from error
    flags = []
    for places, spans in zip(found["offset_mapping"], answers, strict=True):
        starts, ends = np.array(places, np.int64).reshape(-1, 2).T
        learned = np.zeros(len(places), np.bool_)
        for start, end in spans:
            learned |= (ends > start) & (starts < end)
        flags.append(learned.tobytes())
    return found["input_ids"], flags


def outside(corpus: Corpus, tokenizer: Tokenizer, size: int, *, packed: bool) -> int | None:
    """The first token of `corpus`, read as `batches` reads it, that a vocabulary of `size` lacks; None without one.

    Texts are only read where the tokenizer has such tokens at all: many have some that no text ever shows.
    """
    if max(tokenizer.get_vocab().values(), default=0) < size:
        return None
    corpus = corpus.render(tokenizer)
    ends = tokenizer.eos_token_id if packed else tokenizer.pad_token_id
    if ends is not None and ends >= size:
        return int(ends)
    for start in range(0, len(corpus.texts), _TOKENISED):
        chunk = list(corpus.texts[start : start + _TOKENISED])
        rows = tokenizer(chunk, add_special_tokens=not packed, verbose=False)["input_ids"]
        found = next((token for token in itertools.chain.from_iterable(rows) if token >= size), None)
        if found is not None:
            return int(found)
    return None


def _by_words(texts: Sequence[Tagged], tokenizer: Tokenizer, length: int) -> tuple[list[list[int]], list[list[int]]]:
    """(token ids, labels) of texts of which the words have labels: a word's first token has its label, others none.

    The words are read as one text, so that a tokenizer meets the spaces that it knows; a token's characters tell its
    word.
    """
    spoken = [" ".join(one.words) for one in texts]
    try:
        found = tokenizer(spoken, truncation=True, max_length=length, return_offsets_mapping=True)
    except (NotImplementedError, ValueError) as error:
        raise UnsupportedError("labels of words need a fast tokenizer, which tells where its tokens stand") from error
    marks = []
    for one, spans in zip(texts, found["offset_mapping"], strict=True):
        ends = np.cumsum([len(word) + 1 for word in one.words]) - 1  # a space goes to the word after it
        marks.append([IGNORED] * len(spans))
        last = -1
        for place, (start, end) in enumerate(spans):
            word = int(np.searchsorted(ends, start, side="right"))
            if end > start and word > last:
                marks[-1][place], last = one.tags[word], word
    return found["input_ids"], marks


def in_order(corpus: Corpus, tokenizer: Tokenizer, *, batch: int, length: int) -> Iterator[dict[str, Tensor]]:
    """All texts once, in their order, in batches of `batch` as those of `batches`; the last may be smaller."""
    import torch

    need_tokenizer(tokenizer)
    for start in range(0, len(corpus), batch):
        part = list(corpus.texts[start : start + batch])
        found = tokenizer(part, truncation=True, max_length=length, padding=True, return_tensors="pt")
        result = {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}
        if corpus.labels is not None:
            result["labels"] = torch.tensor(list(corpus.labels[start : start + batch]))
        yield result
