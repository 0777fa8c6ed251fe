"""Questions on tables of Python's manual that the column's head decides, and readers that copy the answer out."""

from __future__ import annotations

import functools
import html
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from assets import packages
from claims import pages
from secateur._utils.rundir import Transient
from secateur.recipes.context.htmlrag import htmlrag
from secateur.recover.training import loop, objectives
from secateur.retrieval import encoders
from secateur.subjects import open_page
from secateur.vocabulary import Budget

FORMS = ("HTML", "text")
BUDGETS = (256, 512)
LONGEST = 10
"""Words of a cell that is asked for: more are a passage, not a value."""
WINDOW, STRIDE = 512, 128
"""Tokens that a reader sees at once, the question included, and by how many windows overlap."""
SPAN = 48
"""Tokens of an answer at most."""
EACH, ORDERS = 12, 2
"""Questions on a page that teach, and in how many orders of the columns each does."""
LAYERS = 3

_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
_CELL = re.compile(r"<t[dh]>(.*?)</t[dh]>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_BEFORE, _BEHIND = re.compile(r"^(\s|<[^>]*>)+"), re.compile(r"(\s|<[^>]*>)+$")
_NOTES = re.compile(r"(\[\d+\])+")
"""Cells that hold marks of notes alone are no values."""


@dataclass(frozen=True)
class Lookup:
    """What a column says of the row that starts with `key`, the page whose table it is, and that page among others."""

    question: str
    key: str
    gold: str
    column: int
    width: int
    page: Path
    pages: tuple[Path, ...]


def flat(source: str) -> str:
    """The text of HTML as a reader of plain text gets it: words and blanks."""
    return " ".join(html.unescape(_TAG.sub(" ", source)).replace("¶", "").split())


@functools.cache
def lookups(page: Path) -> tuple[Lookup, ...]:
    """All that can be asked of a page's tables of three columns or more: short cells that differ from all of a row."""
    found = []
    source = open_page(page, block=0, numbered=False).html()
    title = flat(source.partition("</h1>")[0]).partition(" \u2014 ")[0] if "</h1>" in source else page.stem
    for table in _TABLE.findall(source):
        heads, *rows = [[flat(cell) for cell in _CELL.findall(row)] for row in _ROW.findall(table)] or [[]]
        keys = [row[0] for row in rows if row]
        if len(set(heads)) < max(3, len(heads)):
            continue
        for row in rows:
            if len(row) == len(heads) and keys.count(row[0]) == 1:
                key, width = row[0], len(row)
                found += [
                    Lookup(f"In a table of {title}, what is the {head} of {key}?", key, cell, i, width, page, ())
                    for i, (head, cell) in enumerate(zip(heads, row, strict=True))
                    if i and len(cell.split()) <= LONGEST and row.count(cell) == 1 and not _NOTES.fullmatch(cell)
                ]  # fmt: skip
    return tuple(one for one in found if sum(one.question == other.question for other in found) == 1)


@functools.cache
def modules(part: str) -> tuple[Path, ...]:
    """Pages with such tables: every third is for "choosing" how to teach and never "judged", as the others are."""
    found = [page for page in pages.library() if len(lookups(page)) >= 4]
    return tuple(page for number, page in enumerate(found) if (number % 3 == 0) == (part == "choosing"))


def split(seed: int) -> tuple[list[Path], list[Path]]:
    """The pages that are taught, and those that are judged: half of those that may be."""
    judged = random.Random(seed).sample(modules("judged"), len(modules("judged")) // 2)
    return [page for part in ("choosing", "judged") for page in modules(part) if page not in judged], judged


def asked(page: Path, seed: int, each: int, others: int = 4) -> list[Lookup]:
    """Questions on `each` rows of a page that lies among `others`."""
    draw, rows = random.Random(f"{page.name} {seed}"), dict[str, list[Lookup]]()
    rivals = draw.sample([other for other in pages.library() if other != page], others)
    order = tuple(draw.sample([page, *rivals], 1 + others))
    for one in lookups(page):
        rows.setdefault(one.key, []).append(one)
    chosen = draw.sample(sorted(rows), min(each, len(rows)))
    return [replace(draw.choice(rows[key]), pages=order) for key in chosen]


# ------------------------------------------------------------------------------------------------- what readers get


def contexts(one: Lookup, form: str) -> list[str]:
    """The pages, as HTML, cut to each budget in tokens of what `form` makes of them; blocks and ranks are the same.

    What HTML spends on tags, text has for more blocks.
    """
    page, count = open_page(list(one.pages), numbered=False), encoders.counter(str(packages.minilm()))
    counts: encoders.Count = lambda texts: count([written(text, form) for text in texts])  # noqa: E731
    limits = [Budget.parse(f"tokens={budget}") for budget in BUDGETS]
    return [result.subject.html() for result in htmlrag(page, one.question, limits, Transient(), tokenizer=counts)]


def written(source: str, form: str) -> str:
    """What a reader of `form` gets of HTML."""
    return source if form == "HTML" else flat(source)


def said(copied: str, form: str) -> str:
    """The text of what a reader copied; of plain text that is what it is, angle brackets and all."""
    return flat(copied) if form == "HTML" else copied


def shuffled(source: str, width: int, draw: random.Random) -> tuple[str, list[int]]:
    """All rows of `width` cells with all but the first in a new order, and which cell stands in each place."""
    order = [0, *draw.sample(range(1, width), width - 1)]

    def row(found: re.Match[str]) -> str:
        cells = list(_CELL.finditer(found[0]))
        if len(cells) != width:
            return found[0]
        return found[0][: cells[0].start()] + "".join(cells[i][0] for i in order) + found[0][cells[-1].end() :]

    return _ROW.sub(row, source), order


def place(one: Lookup, source: str, form: str, order: Sequence[int] = ()) -> tuple[int, int] | None:
    """The letters of what `form` makes of HTML at which the answer starts and ends; None where it is not left.

    order: which cell stands in each place of a row, where they were `shuffled`.
    """
    column = order.index(one.column) if order else one.column
    for row in _ROW.finditer(source):
        cells = list(_CELL.finditer(row[1]))
        if len(cells) == one.width and flat(cells[0][1]) == one.key and flat(cells[column][1]) == one.gold:
            start, end = (row.start(1) + at for at in cells[column].span(1))
            if form == "text":
                before = len(flat(source[:start]))
                before += before > 0
                return before, before + len(one.gold)
            inner = source[start:end]
            return end - len(_BEFORE.sub("", inner)), start + len(_BEHIND.sub("", inner))
    return None


# ---------------------------------------------------------------------------------------------------------- readers


Lesson = dict[str, Tensor]
"""`input_ids` and `token_type_ids` [L], `states` [L, d] of the frozen layers, `ends` [2]: an answer's outer tokens."""


@functools.cache
def frozen() -> tuple[Any, Any]:
    """MiniLM's tokenizer and its lower half, which is after words and places more than after what a text means."""
    folder = str(packages.minilm())
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval().requires_grad_(False)
    model.encoder.layer = model.encoder.layer[:LAYERS]
    return AutoTokenizer.from_pretrained(folder), model


@torch.no_grad()
def windows(question: str, context: str) -> tuple[Any, Tensor]:
    """Tokens of question and context, in as many windows as they need, and what the frozen layers make of them."""
    tokenizer, encoder = frozen()
    batch = tokenizer(
        [question], [context], truncation="only_second", max_length=WINDOW, stride=STRIDE, padding=True,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
    )  # fmt: skip
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return batch, encoder(**read).last_hidden_state


@functools.cache
def lessons(page: Path, form: str) -> tuple[Lesson, ...]:
    """Questions on a page whose answers are left and stand in the first window, their columns in several orders."""
    draw, found = random.Random(page.name), list[Lesson]()
    for one in asked(page, 1000, EACH, others=1):
        for source in contexts(one, form):
            for new, order in (shuffled(source, one.width, draw) for _ in range(ORDERS)):
                span = place(one, new, form, order)
                if span is None:
                    continue
                assert said(written(new, form)[slice(*span)], form) == one.gold
                batch, states = windows(one.question, written(new, form))
                letters, types = batch["offset_mapping"][0], batch["token_type_ids"][0]
                inside = ((types == 1) & (letters[:, 0] < span[1]) & (letters[:, 1] > span[0])).nonzero()[:, 0]
                if len(inside) and letters[inside[-1], 1] >= span[1]:
                    found.append({
                        "input_ids": batch["input_ids"][0], "token_type_ids": types, "states": states[0].half(),
                        "ends": inside[[0, -1]],
                    })  # fmt: skip
    return tuple(found)


class Reader(nn.Module):
    """Where an answer starts and ends, by a small head on MiniLM's lower half, which stays as it is.

    The head is DrQA's document reader, smaller: two bidirectional LSTMs over each token's word vector, its state, and
    whether the question holds it (Chen et al., 2017, arXiv 1704.00051, section 3.2).
    """

    def __init__(self, form: str, width: int = 64) -> None:
        super().__init__()
        self.form = form
        self.words = frozen()[1].embeddings.word_embeddings
        self.narrow = nn.Linear(2 * self.words.embedding_dim, width)
        self.walk = nn.LSTM(width + 2, width, num_layers=2, dropout=0.2, batch_first=True, bidirectional=True)
        self.ends = nn.Linear(2 * width, 2)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, states: Tensor) -> Tensor:
        """[n, L, 2] logits of start and end. All given are [n, L], states [n, L, d]."""
        given = token_type_ids == 1
        named = (input_ids[:, :, None] == input_ids.masked_fill(given, -1)[:, None, :]).any(-1)
        narrow = torch.tanh(self.narrow(torch.cat([self.words(input_ids), states], -1)))
        walked, _ = self.walk(torch.cat([narrow, named[..., None], given[..., None]], -1))
        found: Tensor = self.ends(walked).masked_fill(~given[..., None], -1e4)
        return found

    @torch.no_grad()
    def answer(self, question: str, context: str) -> str:
        """The likeliest span of the context, of all windows."""
        batch, states = windows(question, context)
        logits = self.eval()(batch["input_ids"], batch["token_type_ids"], states)
        short = torch.ones(logits.shape[1], logits.shape[1], dtype=torch.bool).triu().tril(SPAN - 1)
        spans = (logits[:, :, None, 0] + logits[:, None, :, 1]).masked_fill(~short, -1e9)
        window, start, end = (int(i) for i in np.unravel_index(int(spans.argmax()), tuple(spans.shape)))
        letters = batch["offset_mapping"][window]
        return said(context[int(letters[start, 0]) : int(letters[end, 1])], self.form)


class Batches(Sequence[Lesson]):
    """Lessons by the batch, `epochs` times in an order of their own, padded when they are asked for."""

    def __init__(self, given: Sequence[Lesson], epochs: int, size: int, seed: int) -> None:
        draw = random.Random(seed)
        order = [one for _ in range(epochs) for one in draw.sample(given, len(given))]
        self.parts = [order[i : i + size] for i in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        padded = {
            name: nn.utils.rnn.pad_sequence([one[name] for one in self.parts[index]], batch_first=True)
            for name in ("input_ids", "token_type_ids", "states")
        }
        return {
            **padded,
            "states": padded["states"].float(),
            "ends": torch.stack([one["ends"] for one in self.parts[index]]),
        }


def taught(form: str, taught_on: Sequence[Path], seed: int, *, epochs: int = 6, lr: float = 2e-3) -> Reader:
    """A reader of one form."""
    torch.manual_seed(seed)
    reader, given = Reader(form), [lesson for page in taught_on for lesson in lessons(page, form)]
    batches = Batches(given, epochs, 16, seed)

    def loss(batch: Lesson, totals: Any) -> tuple[Tensor, dict[str, float]]:
        logits = reader(batch["input_ids"], batch["token_type_ids"], batch["states"])
        return nn.functional.cross_entropy(logits, batch["ends"], reduction="sum") / totals["sequences"], {}

    recovery = loop.train(
        reader, batches, loss, steps=len(batches), lr=lr, seed=seed, count=objectives.count, progress=False
    )
    print(form, seed, f"{len(given)} lessons, loss {recovery.losses[0][1]:.2f} -> {recovery.losses[-1][1]:.2f}")
    return reader
