"""Measurements: size, latency, memory, quality, retrieval and statistics; called, `runs.measuring.measure`."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from secateur._utils.lazy import load_name

__all__: list[str] = []


def _load() -> Any:
    return load_name("secateur", {"measure": "runs.measuring"}, "measure")


class _Measure(ModuleType):
    # The folder of measures as the function of the same name, which an attribute of `secateur` can't be beside it:
    # it is called, and told of by `inspect` and notebooks, as that function is.

    def __call__(self, *args: object, **options: object) -> object:
        return _load()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_load())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        words: str | None = _load().__doc__
        return words


sys.modules[__name__].__class__ = _Measure
