"""Measurements: size, latency, memory, quality, retrieval and statistics; called, `runs.measuring.measure`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import cast

from secateur._utils.lazy import load_name

__all__: list[str] = []


class _Measure(ModuleType):
    # The folder of measures as the function of the same name, which an attribute of `secateur` can't be beside it:
    # it is called, and told of by `inspect` and notebooks, as that function is.

    @staticmethod
    def _load() -> Callable[..., object]:
        return cast(Callable[..., object], load_name("secateur", {"measure": "runs.measuring"}, "measure"))

    def __call__(self, *args: object, **options: object) -> object:
        return self._load()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._load())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._load().__doc__


sys.modules[__name__].__class__ = _Measure
