"""Measurements: size, latency, memory, quality, retrieval and statistics; called, `runs.measuring.measure`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from secateur._utils.lazy import load_name

__all__: list[str] = []


class _Measure(ModuleType):
    """The folder of measures as the function of the same name, which an attribute of `secateur` can't be beside it."""

    def __call__(self, *args: object, **options: object) -> object:
        """Measure a model, alone or against others: `secateur.runs.measuring.measure`."""
        function: Any = load_name("secateur", {"measure": "runs.measuring"}, "measure")
        return function(*args, **options)


sys.modules[__name__].__class__ = _Measure
