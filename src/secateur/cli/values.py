"""Convert the text of a flag to the type that its parameter's annotation names."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from secateur.recipes import Option
from secateur.vocabulary import parse_list

__all__ = ["describe_default", "describe_kind", "is_list", "parse"]

_TEXT_OR = "str | "
"""How the annotation of a list begins that may be given as one text, with commas."""


def parse(text: str | Sequence[str], annotation: str) -> Any:
    """A flag's text as YAML would give it, where the annotation is more than text.

    Of a list's texts, each time the flag was given, one list; what is none of them is left to the function to refuse.
    Where the function takes text for a list, that text is the list's, so that a run is on record as it was typed.
    """
    if not isinstance(text, str):
        if annotation.startswith(_TEXT_OR):
            parts = [parse(one, annotation.removeprefix(_TEXT_OR)) if one.startswith("[") else one for one in text]
            return ",".join(part if isinstance(part, str) else ",".join(map(str, part)) for part in parts)
        parts = [parse(one, annotation) for one in text]
        wrong = [part for part in parts if not isinstance(part, list)]
        return wrong[0] if wrong else [item for part in parts for item in part]
    if annotation in ("str", "Any"):
        return text
    if annotation.startswith("Literal") and not (text.lower() == "none" and annotation.endswith("| None")):
        return int(text) if re.search(rf"[\[ ]{re.escape(text)}[,\]]", annotation) and text.isdigit() else text
    if is_list(annotation) and not text.startswith("["):
        return parse_list(text)
    if text.lower() == "none" and "None" in annotation:
        return None
    try:
        return json.loads(text) if _is_plain(annotation) else text
    except ValueError:
        return text


def _is_plain(annotation: str) -> bool:
    """Whether it names numbers or collections; what else there is (models, data, paths) is given as text."""
    names = re.search(r"\b(int|float|bool|dict|Sequence|list|tuple|Mapping)\b", annotation)
    return names is not None and "Path" not in annotation


def is_list(annotation: str) -> bool:
    """Whether a parameter takes several values."""
    several = any(name in annotation for name in ("Sequence", "list", "tuple", "Mapping"))
    return several and "Path" not in annotation  # a file has them


def describe_default(option: Option) -> str:
    """What values an option takes, where it has bounds, and what holds where it is left out."""
    default = option.default if isinstance(option.default, str) else repr(option.default)
    holds = "required" if option.default is inspect.Parameter.empty else f"default {default}"
    return f"{option.bounds}; {holds}" if option.bounds else holds


def describe_kind(annotation: str) -> str:
    """What the help shows for a value: the choices where there are some, else the kind."""
    if annotation.startswith("Literal["):
        choices = annotation.removeprefix("Literal").partition("]")[0] + "]"
        return "|".join(str(choice) for choice in ast.literal_eval(choices) if choice != "")
    if "Path" in annotation:
        return "PATH"
    kind = annotation.removesuffix(" | None").removeprefix(_TEXT_OR)
    if kind == "Any":
        return "NAME"
    return kind if _is_plain(kind) or kind == "str" else kind.upper()
