"""Settings of post-processors and retrievers: a recipe, its budget and options, checked when made and when changed."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, SupportsFloat, TypeAlias, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from secateur.errors import InputError
from secateur.runs.context import parse_budget
from secateur.runs.pruners import GraphPruner, Kept, Pruner

__all__ = [
    "NOTE",
    "Follower",
    "GraphSettings",
    "Options",
    "PrunerSettings",
    "Setting",
    "Settings",
    "describe",
    "open_graph_pruner",
    "open_pruner",
    "priors_of",
]

P = TypeVar("P")
Options: TypeAlias = Mapping[str, Any]
"""A recipe's own, by name."""
Setting: TypeAlias = Any
"""A value of a field."""

NOTE = "secateur"
"""The field of a document's metadata that says why it is there, and what stays of it."""


class Follower(Generic[P]):
    """What is made of settings, by name, and made anew on the first call after they have changed."""

    def __init__(self, make: Callable[..., P]) -> None:
        self._make = make
        self._settings: dict[str, object] = {}

    def get(self, **settings: object) -> P:
        """What is made of these settings. Raises what making it raises, and then keeps what it had."""
        if not self._settings or self._settings != settings:
            self._made = self._make(**settings)
            # Copies, by which changes within are seen.
            self._settings = {name: dict(v) if isinstance(v, dict) else v for name, v in settings.items()}
        return self._made


def open_pruner(options: Options, titles: str, prior: str, **settings: Setting) -> Pruner:
    """A pruner of documents by a post-processor's settings."""
    return Pruner(titled=bool(titles), ranked=bool(prior), **settings, **options)


def open_graph_pruner(options: Options, **settings: Setting) -> GraphPruner:
    """A pruner of a graph by a retriever's settings."""
    return GraphPruner(**settings, **options)


def describe(kept: Kept, scored: object = None) -> dict[str, object]:
    """What the field `NOTE` of the metadata says; `scored` is the score that a retriever gave, if any."""
    score = {} if kept.score is None else {"score": kept.score}
    return {**kept.reasons, **score, **({} if scored is None else {"retrieval_score": scored})}


def priors_of(
    metadata: Sequence[Mapping[str, object] | None], name: str, *, strict: bool = False
) -> list[float | None] | None:
    """The number under `name` in each document's metadata, None where there is none; None without a name.

    Warns, or with `strict` raises `InputError`, where no document has a number there, nor a None: the name is misspelt.
    """
    if not name:
        return None
    rows = [row or {} for row in metadata]
    scores = [_read_number(row.get(name)) for row in rows]
    empty = any(name in row and row[name] is None for row in rows)  # a retriever that gives no scores
    if rows and not empty and all(score is None for score in scores):
        fields = sorted({str(field) for row in rows for field in row})
        near = difflib.get_close_matches(name, [field for field in fields if field != name], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(fields) or 'no metadata'}"
        if others := [type(row[name]).__name__ for row in rows if name in row]:
            hint = f"it holds {others[0]}, and scores are numbers"
        message = f"prior={name!r}: no document has a number there: {hint}"
        if strict:
            raise InputError(message)
        warnings.warn(message, stacklevel=3)
    return scores


def _read_number(value: object) -> float | None:
    """A number of Python's, NumPy's or a tensor's, as vector stores give them; None for a text or several numbers."""
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0) > 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


class Settings(BaseModel):
    """The fields that all have. A change takes effect, and is refused where it can't be: of `options` on the next call.

    Raises `InputError` for a field that there is not, and what the recipe refuses, in one line.
    """

    recipe: str
    budget: str
    """All that stays together, such as tokens=2048."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The recipe's own."""
    strict: bool = False
    """Raise what goes wrong with a call; otherwise it is warned of."""
    _own: ClassVar[tuple[str, ...]] = ("recipe", "budget", "options", "strict")

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, given: object) -> object:
        """Refuse fields that there are not, and a budget that is missing or none."""
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(str(name), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "a recipe's own options go into options={...}"
                raise InputError(f"{cls.__name__} has no field {name!r}: {hint}")
        if "budget" not in given:
            raise InputError(f"{cls.__name__} needs a budget: say budget='tokens=2048'")
        return {**given, "budget": str(given["budget"])}

    def model_post_init(self, context: object) -> None:
        """Check recipe, budget and options."""
        super().model_post_init(context)
        parse_budget(self.budget)
        self._refresh()

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._own:
            super().__setattr__(name, value)
            return
        before = getattr(self, name)
        super().__setattr__(name, str(value) if name == "budget" else value)
        try:
            self._refresh()
        except Exception:
            super().__setattr__(name, before)
            raise

    def _refresh(self) -> object:
        """What is made of the settings as they are now."""
        raise NotImplementedError

    def _values(self) -> dict[str, Setting]:
        return {name: getattr(self, name) for name in self._own}


class PrunerSettings(Settings):
    """The fields of a post-processor that cuts what was retrieved to what answers the query."""

    recipe: str = "htmlrag"
    """A recipe of the family context, on documents: htmlrag or provence."""
    titles: str = ""
    """Field of the metadata that holds a document's title, such as title; for recipes on passages."""
    prior: str = ""
    """Field of the metadata that holds the score of a retriever, higher is better, whose ranking is to count, too; for
    recipes with the option prior."""
    _own: ClassVar[tuple[str, ...]] = (*Settings._own, "titles", "prior")

    _follower: Follower[Pruner] = PrivateAttr(default_factory=lambda: Follower(open_pruner))

    def _refresh(self) -> Pruner:
        return self._follower.get(**self._values())


class GraphSettings(Settings):
    """The fields of a retriever that finds the facts or paths of a graph that answer a query."""

    recipe: str = "kg_rag"
    """A recipe of the family context, on graphs: kg_rag or paths_over_graph."""
    graph: Any
    """A file, a folder, the address of a SPARQL endpoint, or a graph, as `secateur.open_graph` takes it."""
    _own: ClassVar[tuple[str, ...]] = (*Settings._own, "graph")

    _follower: Follower[GraphPruner] = PrivateAttr(default_factory=lambda: Follower(open_graph_pruner))

    def _refresh(self) -> GraphPruner:
        return self._follower.get(**self._values())
