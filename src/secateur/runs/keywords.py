"""A recipe's options: what its signature says of them, and whether what was given fits."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from secateur.errors import InputError

__all__ = ["check_seed", "checked", "fitting", "of", "spares"]


def of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Name -> parameter, of what can be given by keyword alone."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def fitting(
    function: Callable[..., Any], given: Mapping[str, Any], optional: Collection[str], **shared: Any
) -> dict[str, Any]:
    """`given` and `shared`, without those of `optional` and `shared` that the recipe does not have."""
    known = of(function)
    values = {name: value for name, value in given.items() if name in known or name not in optional}
    return {**values, **{name: value for name, value in shared.items() if name in known}}


def spares(function: Callable[..., Any], name: str) -> bool:
    """Whether the parameter `name` may be None."""
    return type(None) in typing.get_args(typing.get_type_hints(function).get(name))


def checked(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options: `given` ones checked against the annotations, the others at their defaults.

    Raises `InputError` for an option that is unknown, missing or of another kind, and for a number that is not finite:
    NaN passes comparisons that are to refuse it.
    """
    keywords, hints = of(function), typing.get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default) for name, p in keywords.items()
    }
    how = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    model = create_model("Options", __config__=how, **fields)
    try:
        found = model(**given)
    except ValidationError as error:
        raise InputError(_explain(error, function.__name__, list(keywords))) from error
    return {name: getattr(found, name) for name in keywords}


def check_seed(*seeds: int) -> None:
    """Refuse seeds that some generator can't take, before one of them is asked in the middle of the work."""
    for seed in seeds:
        if not (isinstance(seed, int) and 0 <= seed < 2**63):
            raise InputError(f"seed={seed!r} is not a whole number of at least 0 and below 2**63")


def _explain(error: ValidationError, recipe: str, known: Sequence[str]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
        return f"{recipe} has no option {name!r}: {hint}"
    if first["type"] == "missing":
        return f"{recipe} needs the option {name!r}"
    return f"option {name}={first['input']!r} of {recipe}: {first['msg'][:1].lower()}{first['msg'][1:]}"
