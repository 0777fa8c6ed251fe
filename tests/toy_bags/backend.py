"""Bags are JSON files of string -> weight."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from secateur.data import texts
from secateur.data.texts import Corpus
from secateur.runs.backends import Backend, Row
from secateur.vocabulary import Figure
from toy_bags.bags import Bag

FILE = "bag.json"


class Bags(Backend[Bag, Corpus, None]):
    """Opened from a .json file, or from the folder that `save` has written."""

    family = "bags"
    example = "a .json file"
    noun = "texts"

    def takes(self, source: Any) -> bool:
        """Paths of such files and folders."""
        return isinstance(source, str | Path) and (Path(source).suffix == ".json" or self.saved_in(Path(source)))

    def read(self, data: Any, text: str = "text", label: str = "label") -> Corpus:
        """Texts."""
        return texts.read(data, column=text, label=label)

    def open(self, source: Any, device: str | None = None, data: Corpus | None = None, inputs: Any = None) -> Bag:
        """The bag in a file or folder."""
        if isinstance(source, Bag):
            return source
        path = Path(source) / FILE if Path(source).is_dir() else Path(source)
        return Bag(json.loads(path.read_text("utf-8")))

    def digest(self, subject: Bag) -> str:
        """Of the strings and weights."""
        return hashlib.sha256(json.dumps(subject.weights).encode()).hexdigest()

    def make_example(self, subject: Bag, environment: Any) -> None:
        """Nothing: a bag is not run."""

    def compare(self, original: Bag, student: Bag, held_out: Corpus, environment: Any) -> tuple[Row, Row, Row]:
        """Share of the held-out texts that are in the bags."""
        before, after = (
            {"accuracy": Figure(float(np.mean([text in bag.weights for text in held_out.texts])))}
            for bag in (original, student)
        )
        return before, after, {}

    def save(self, subject: Bag, folder: Path) -> None:
        """Write the file."""
        (folder / FILE).write_text(json.dumps(subject.weights), "utf-8")

    def saved_in(self, folder: Path) -> bool:
        """Whether the file is there."""
        return (folder / FILE).is_file()

    def load_line(self, folder: Path, name: str) -> str:
        """Reads the file."""
        return f'import json\n\nbag = json.load(open("{name}/{FILE}"))'
