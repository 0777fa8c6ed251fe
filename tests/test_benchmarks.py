"""Benchmarks run by hand and seldom: each can at least be started from anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("benchmarks/*.py"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_fetchers_come_through_the_module_that_finds_them(file):
    """`assets` lies in tests/, which is on no path of a file that is run by itself."""
    names = [node.module for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    assert "assets" not in names, "take packages from support.data"
