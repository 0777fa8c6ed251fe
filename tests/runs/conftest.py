"""Fixtures of several files of tests."""

from __future__ import annotations

import pytest

import fact_graph
import keeper


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruner")
    keeper.taught().save(folder)
    return str(folder)


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "graph.csv"
    path.write_text(fact_graph.CSV)
    return path
