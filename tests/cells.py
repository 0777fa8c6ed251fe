"""A notebook's kernel without IPython: what is displayed is kept."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

__all__ = ["stand_in"]


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: str = "ZMQInteractiveShell") -> list[list[str]]:
    """The outputs of a cell from now on, each as all texts that it had; the shell is of a class built on `kind`."""
    outputs = list[list[str]]()
    shell = type("Shell", (type(kind, (), {}),), {})()

    class Handle:
        def __init__(self, shown: object) -> None:
            self.looks = [read(shown)]
            outputs.append(self.looks)

        def update(self, shown: object, *, raw: bool = False) -> None:
            self.looks.append(shown["text/plain"] if raw else read(shown))

    def read(shown) -> str:
        return shown._repr_mimebundle_([], [])["text/plain"]

    module, parts = ModuleType("IPython"), ModuleType("IPython.display")
    module.get_ipython = lambda: shell
    parts.display = lambda shown, *, display_id: Handle(shown)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", parts)
    return outputs
