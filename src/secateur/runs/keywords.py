"""Options of a recipe: read from its signature, and checked."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import annotated_types
from pydantic import ConfigDict, ValidationError, create_model

from secateur.errors import InputError
from secateur.recipes import describe_bounds
from secateur.vocabulary import Training

__all__ = [
    "DRY",
    "DRY_SECONDS",
    "QUICK",
    "QUICK_PAIRS",
    "SAME",
    "add_adapters",
    "another_batch",
    "call",
    "check_counts",
    "check_options",
    "check_seed",
    "defaults",
    "find_paths",
    "fitting",
    "flat",
    "names",
    "of",
    "pack",
    "quicken",
    "rename",
    "spares",
]

T = TypeVar("T")


def of(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Name -> parameter, of what can be given by keyword alone."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _groups(function: Callable[..., object]) -> dict[str, dict[str, str]]:
    """Parameter -> {flag: field} of the options that are one frozen value, such as `training`.

    Its fields are options of their own, but of `Training` only those that its default sets. `batch` of `Training` is
    `train_batch` in a recipe on texts, which has a length too: there `batch` is what is timed.
    """
    keywords = of(function)
    texts = any(name.rpartition("_")[2] == "length" for name in keywords)
    grouped = {name: p.default for name, p in keywords.items() if dataclasses.is_dataclass(p.default)}
    return {
        name: {
            ("train_batch" if one.name == "batch" and texts else one.name): one.name
            for one in dataclasses.fields(default)
            if getattr(default, one.name) is not None or not isinstance(default, Training)
        }
        for name, default in grouped.items()
    }


_VALIDATING = ("patience", "validation")
"""Fields of `Training` that every recipe which trains has as flags, beside those that its default sets."""


def _shorthands(function: Callable[..., object]) -> dict[str, str]:
    """Flag -> the parameter of whose `training` text it is a part, for flags that are no option of their own."""
    keywords = of(function)
    grouped = [name for name, parameter in keywords.items() if isinstance(parameter.default, Training)]
    own = {*keywords, *(flag for flags in _groups(function).values() for flag in flags)}
    return {flag: name for name in grouped for flag in _VALIDATING if flag not in own}


def flat(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, Any]:
    """`options` as flags and run.yaml name them: what is one value in the signature is its fields here.

    Fields of `training` that are no flag stand in one text, as `--training` takes them.
    """
    groups, values = _groups(function), dict[str, Any]()
    for name, value in options.items():
        if name not in groups:
            values[name] = value
            continue
        values |= {flag: getattr(value, field) for flag, field in groups[name].items()}
        if isinstance(value, Training):
            others = {key: one for key, one in value.named.items() if key not in groups[name].values()}
            values[name] = ",".join(f"{key}={_format_value(one)}" for key, one in others.items())
    return values


def add_adapters(training: Training, flags: Mapping[str, object]) -> Training:
    """The same, with the adapters of a recipe that has them as options of its own."""
    rank, bits = flags.get("lora_rank"), flags.get("lora_bits")
    if not isinstance(rank, int) or training.lora or training.dora:
        return training
    return training.default(**{"dora" if flags.get("dora") else "lora": rank}, lora_bits=bits or None)


def defaults(function: Callable[..., object]) -> dict[str, Any]:
    """All options by name, as flags and run.yaml have them, and their defaults."""
    return flat(function, {name: parameter.default for name, parameter in of(function).items()})


def another_batch(flags: Mapping[str, object], *functions: Callable[..., object]) -> int | None:
    """The examples per step among `flags`; None where it is what the first of the functions that has one would take."""
    own = next((known["batch"] for one in functions if "batch" in (known := defaults(one))), None)
    batch = flags.get("batch", own)
    return batch if isinstance(batch, int) and batch != own else None


def names(function: Callable[..., object]) -> list[str]:
    """The names of all options, as flags and run.yaml have them."""
    return [*defaults(function), *_shorthands(function)]


def _format_value(value: object) -> str:
    if value == math.inf:
        return "none"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def fitting(
    function: Callable[..., object], given: Mapping[str, object], optional: Collection[str], **shared: object
) -> dict[str, Any]:
    """`given` and `shared`, without those of `optional` and `shared` that the recipe does not have."""
    known = {*of(function), *(flag for flags in _groups(function).values() for flag in flags), *_shorthands(function)}
    values = {name: value for name, value in given.items() if name in known or name not in optional}
    return {**values, **{name: value for name, value in shared.items() if name in known}}


SAME = {"calibration": "samples"}
"""What options of some recipes are called in all of them -> their own names, which go on."""


def rename(function: Callable[..., object], given: Mapping[str, object]) -> dict[str, object]:
    """`given` by the recipe's own names. Raises `InputError` for an option that is given by both."""
    known = names(function)
    own = {name: SAME[name] for name in given if name in SAME and name not in known and SAME[name] in known}
    if twice := next((name for name in own if own[name] in given), None):
        raise InputError(f"{twice} and {own[twice]} are one option of {function.__name__}: give one of them")
    return {own.get(name, name): value for name, value in given.items()}


QUICK: dict[str, float] = {
    "steps": 30,
    "short_steps": 5,
    "candidates": 2,
    "calibration": 64,
    "samples": 16,
    "seen": 64,
    "looks": 64,
    "trials": 10,
    "judged": 16,
    "corrections": 1,
    "ratio": 0.8,
    "timings": 8,
    "runs": 1,
    "epochs": 2,
    "sparse_epochs": 1,
    "finetune_epochs": 1,
    "distil_epochs": 1,
    "quantise_epochs": 1,
    "surrogate_epochs": 2,
    "probe_epochs": 2,
    "tune_epochs": 1,
    "score_epochs": 2,
}
"""Options that take time -> as much of them as a first look needs."""

DRY: dict[str, float] = {"corrections": 0, "timings": 8, "trials": 50, "calibration": 64, "judged": 16}
"""What a dry run needs on the way to a cut that is to meet a time: its table of sizes and times is a forecast."""

DRY_SECONDS = 20.0
"""How long a dry run times its cuts beside the original, all together, where no budget is in time."""

QUICK_PAIRS = 10
"""Pairs of runs of the result and the original that a first look times; up to eight times as many on a noisy clock."""


def quicken(function: Callable[..., object], given: Collection[str], *most: Mapping[str, float]) -> dict[str, float]:
    """Values of `most`, as `QUICK`, for the options that the recipe has, has larger, and that are not among `given`.

    Of several the least.
    """
    usual = defaults(function)
    numbers = {name: value for name, value in usual.items() if isinstance(value, int | float)}
    least = {name: min(one[name] for one in most if name in one) for name in chain.from_iterable(most)}
    return {name: value for name, value in least.items() if numbers.get(name, 0) > value and name not in given}


def spares(function: Callable[..., object], name: str) -> bool:
    """Whether the parameter `name` may be None."""
    return type(None) in typing.get_args(typing.get_type_hints(function).get(name))


def find_paths(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, list[Path]]:
    """Option -> the files and folders that it names, alone or in a list, of the options that name some.

    Left out are options that take but certain words, those of `training`, and what stands at its default: a folder of
    such a name is there by chance. What is no path, such as a Hub id, is none.
    """
    hints, found = typing.get_type_hints(function), dict[str, list[Path]]()
    for name, parameter in of(function).items():
        value = options.get(name)
        if value == parameter.default or not _takes_text(hints.get(name, Any)):
            continue
        texts = [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, str | Path)]
        places = [Path(one) for one in texts if os.path.isfile(one) or os.path.isdir(one)]
        owners = [str(one).rpartition(":")[0] for one in texts]  # of file.py:function
        places += [Path(one) for one in owners if os.path.isfile(one)]
        if places:
            found[name] = places
    return found


def _takes_text(kind: object) -> bool:
    """Whether an annotation, or a part of it, allows any text or path."""
    return kind in (str, Path, Any) or any(map(_takes_text, typing.get_args(kind)))


def check_options(function: Callable[..., object], given: Mapping[str, object]) -> dict[str, Any]:
    """All options: `given` ones checked against the annotations, the others at their defaults.

    Raises `InputError` for an option that is unknown, missing or of another kind, and for a number that is not finite:
    NaN passes comparisons that are to refuse it.
    """
    keywords, hints = of(function), typing.get_type_hints(function, include_extras=True)
    groups = _groups(function)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in keywords.items()
        if name not in groups
    }
    for name, flags in groups.items():
        default = keywords[name].default
        kinds = typing.get_type_hints(type(default), include_extras=True)
        fields |= {flag: (kinds[field], getattr(default, field)) for flag, field in flags.items()}
        fields[name] = (Any, "")
    hints = typing.get_type_hints(Training)
    fields |= {flag: (hints[flag], None) for flag in _shorthands(function)}
    how = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    model = create_model("Options", __config__=how, **fields)
    try:
        found = model(**given)
    except ValidationError as error:
        raise InputError(_explain(error, function.__name__, fields)) from error
    values = pack(function, {name: getattr(found, name) for name in fields})
    return {name: values[name] for name in keywords}


def call(function: Callable[..., T], *arguments: object, **options: object) -> T:
    """`function` called with options by flag, checked."""
    return function(*arguments, **check_options(function, options))


def pack(function: Callable[..., object], options: Mapping[str, object]) -> dict[str, Any]:
    """Options by flag as the keywords of a call: the inverse of `flat`."""
    values: dict[str, Any] = dict(options)
    keywords = of(function)
    for flag, name in _shorthands(function).items():
        if (value := values.pop(flag, None)) is not None:
            values[name] = Training().merge(values.get(name) or "").merge({flag: value})
    for name, flags in _groups(function).items():
        own = {field: values.pop(flag) for flag, field in flags.items() if flag in values}
        values[name] = _group(function.__name__, keywords[name].default, own, values.get(name, ""))
    return values


def _group(recipe: str, default: Any, own: Mapping[str, Any], given: Any) -> object:
    """The value of an option that is one frozen value: its fields by flag, and what was given for it as a whole."""
    value = dataclasses.replace(default, **own)
    if isinstance(value, Training):
        merged = value.merge(given or "")
        for name in ("steps", "epochs", "batch"):
            if name in merged.named and name not in own:
                raise InputError(f"{recipe} does not train by {name}: it has {', '.join(own)}")
        return merged
    if given and not isinstance(given, type(default)):
        raise InputError(f"{recipe} takes {', '.join(own)} one by one, or a {type(default).__name__}")
    return given or value


def check_counts(**numbers: int | None) -> None:
    """Raise `InputError` for a number that is given and is no whole one of at least 1."""
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise InputError(f"{name}={value!r} is not a whole number of at least 1")


def check_seed(*seeds: int) -> None:
    """Refuse seeds that some generator can't take, before one of them is asked in the middle of the work."""
    for seed in seeds:
        if not (isinstance(seed, int) and 0 <= seed < 2**63):
            raise InputError(f"seed={seed!r} is not a whole number of at least 0 and below 2**63")


_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of", "too_short", "too_long")
"""What pydantic calls values that are out of bounds."""


def _explain(error: ValidationError, recipe: str, fields: Mapping[str, tuple[Any, Any]]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields)}"
        return f"{recipe} has no option {name!r}: {hint}"
    if first["type"] == "missing":
        return f"{recipe} needs the option {name!r}"
    problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] in _LIMITS:
        kind, length = fields[name][0], first["type"].startswith("too_")
        bounds = describe_bounds(limit for limit in _limits(kind) if limit[0].endswith("Len") == length)
        number = "a whole number " if "int" in str(kind) else "a number "
        problem = f"give {'' if length else number}{'of ' if bounds.startswith('at') and not length else ''}{bounds}"
    return f"option {name}={first['input']!r} of {recipe}: {problem}"


def _limits(kind: object) -> list[tuple[str, Any]]:
    """The bounds in an annotation such as `Annotated[float, Gt(0)] | None`, by the names of their classes."""
    limits = list[tuple[str, Any]]()
    for bound in getattr(kind, "__metadata__", ()):
        parts: Iterable[Any] = bound if isinstance(bound, annotated_types.GroupedMetadata) else [bound]
        for part in parts:
            limits += [(type(part).__name__, getattr(part, field.name)) for field in dataclasses.fields(part)]
    return limits + [limit for inner in typing.get_args(kind) for limit in _limits(inner)]
