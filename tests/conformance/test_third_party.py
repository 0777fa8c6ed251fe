"""The suite runs on a subject that secateur has never seen, and notices each way of breaking a law."""

from __future__ import annotations

import numpy as np
import pytest

from secateur import conformance
from secateur.vocabulary import Cut, Selection, Site, Units


class Examples:
    """A training set: its units are examples, its cost their number and their tokens."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def units(self, *axes: str) -> Units:
        count = len(self.rows)
        cost = {"examples": np.ones(count), "tokens": self.rows[:, 0].copy()}
        return Units({"train": Site("train", count, cost, minimum=1)})

    def cut(self, selection: Selection) -> tuple[Examples, Cut]:
        keep = np.asarray(selection.keep["train"])
        smaller = type(self)(self.rows[keep].copy())
        gone = {"train": (int((~keep).sum()), len(keep))} if not keep.all() else {}
        return smaller, Cut(gone, self.units().cost(), smaller.units().cost())


class Careless(Examples):
    """Cuts the original too."""

    def cut(self, selection: Selection) -> tuple[Examples, Cut]:
        smaller, cut = super().cut(selection)
        self.rows *= 0
        return smaller, cut


class Boastful(Examples):
    """Promises more than went."""

    def cut(self, selection: Selection) -> tuple[Examples, Cut]:
        smaller, cut = super().cut(selection)
        return smaller, Cut(cut.removed, cut.before, {name: value / 2 for name, value in cut.after.items()})


class Idle(Examples):
    """Masks instead of cutting."""

    def cut(self, selection: Selection) -> tuple[Examples, Cut]:
        return type(self)(self.rows.copy()), super().cut(selection)[1]


def make(kind: type[Examples]) -> Examples:
    return kind(np.random.default_rng(0).integers(1, 50, (20, 3)).astype(float))


def check(kind: type[Examples]) -> list[str]:
    return conformance.check_subject(
        lambda: make(kind),
        output=lambda subject: subject.rows.sum(axis=0),
        counted=lambda subject: {"examples": float(len(subject.rows)), "tokens": float(subject.rows[:, 0].sum())},
        silence=lambda subject, selection: kind(subject.rows * np.asarray(selection.keep["train"])[:, None]),
        measure="tokens",
    )


def test_a_training_set_as_a_subject() -> None:
    expected = ["identity", "original untouched", "predicted = receipt", "predicted = counted", "cut = silenced"]
    assert sorted(check(Examples)) == sorted([*expected, "superset"])


@pytest.mark.parametrize(
    ("kind", "law"),
    [(Careless, "original"), (Boastful, "receipt against prediction"), (Idle, "cost of the result against prediction")],
    ids=["careless", "boastful", "idle"],
)
def test_a_broken_law_is_named(kind: type[Examples], law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check(kind)


def test_something_else_is_no_subject() -> None:
    with pytest.raises(AssertionError, match="lacks units"):
        conformance.check_subject(lambda: object())
