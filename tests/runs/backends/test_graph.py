"""A graph answers all questions of a run: one is read, and once."""

from __future__ import annotations

import pytest

from secateur.errors import InputError
from secateur.runs.backends.graph import Graphs


def test_one_graph_alone_is_read_and_opened_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "graph.csv").write_text("subject,predicate,object\nAcme,makes,salbutamol\n")
    with pytest.raises(InputError, match="these are 2"):
        Graphs().open(["a", "b"])
    assert Graphs().open_trial().things() is not None
    assert Graphs().open(tmp_path / "graph.csv") is Graphs().open_documents([tmp_path / "graph.csv"])
