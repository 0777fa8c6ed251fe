"""Backends are found by a recipe's first annotation, a source by its kind or name, a folder by its files."""

from __future__ import annotations

import pytest
import torch

import tiny
from secateur.errors import InputError, UnsupportedError
from secateur.runs import backends
from secateur.runs.backends.dataset import Datasets
from secateur.runs.backends.graph import Graphs
from secateur.runs.backends.language import Language
from secateur.runs.backends.network import Network
from secateur.runs.backends.streamed import OnDisk
from secateur.subjects import ExampleSet, KnowledgeGraph, Moe, Streamed, Traced, Transformer


@pytest.mark.parametrize(
    ("kind", "stream", "backend"),
    [(Traced, False, Network), (Transformer, False, Language), (Moe, False, Language), (None, False, Language),
     (Transformer | Streamed, False, Language), (Transformer | Streamed, True, OnDisk),
     (KnowledgeGraph, False, Graphs), (ExampleSet, False, Datasets)],
)  # fmt: skip
def test_a_recipe_says_by_its_first_annotation_what_it_takes(kind, stream, backend):
    def recipe(subject, data):
        """Nothing."""

    recipe.__annotations__ = {} if kind is None else {"subject": kind}
    assert type(backends.of_recipe(recipe, stream=stream)) is backend
    if not stream and kind != Transformer | Streamed:
        with pytest.raises(UnsupportedError, match="recipe needs the whole model in memory"):
            backends.of_recipe(recipe, stream=True)


def test_records_call_a_source_by_its_name_or_its_class(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    subject = Network().open(module, inputs="1x2")
    assert [backends.name_source(one) for one in ("nets.py:build", tmp_path)] == ["nets.py:build", str(tmp_path)]
    assert backends.name_source(module) == backends.name_source(subject) == "Sequential"
    assert type(backends.of_source(subject)) is Network


def test_a_source_says_it_by_its_name_or_kind(tmp_path):
    networks, models = ["nets.py:build", torch.nn.Linear(2, 2)], [tmp_path, "owner/model", tiny.model("bert")]
    assert {type(backends.of_source(source)) for source in networks} == {Network}
    assert {type(backends.of_source(source)) for source in models} == {Language}


def test_a_network_is_found_without_asking_the_backend_of_language_models(monkeypatch):
    asked, resolve = [], backends.resolve
    monkeypatch.setattr(backends, "resolve", lambda name: asked.append(name) or resolve(name))
    backends.of_source("nets.py:build")
    assert asked[-1] == "secateur.runs.backends.network:Network"
    assert "secateur.runs.backends.language:Language" not in asked


def test_a_folder_says_it_by_its_files(tmp_path):
    assert backends.of_folder(tmp_path) is None
    (tmp_path / "cut.json").touch()
    assert isinstance(backends.of_folder(tmp_path), Network)
    (tmp_path / "config.json").touch()
    assert isinstance(backends.of_folder(tmp_path), Language)


def test_a_source_of_another_family_is_refused_by_name(tmp_path):
    backends.check_source(Network(), "net.py:build", "otov3")
    backends.check_source(Language(), "some/hub-id", "ziplm")
    backends.check_source(Network(), torch.nn.Linear(2, 2), "otov3")
    with pytest.raises(InputError, match=r"ziplm works on language models, and 'net\.py:build' names none: give a fo"):
        backends.check_source(Language(), "net.py:build", "ziplm")
    with pytest.raises(InputError, match=r"otov3 works on networks, and there is no '.*/folder': .*net\.py:build"):
        backends.check_source(Network(), tmp_path / "folder", "otov3")
    with pytest.raises(InputError, match=r"otov3 works on networks, and '.*' names none: .*net\.py:build"):
        backends.check_source(Network(), tmp_path, "otov3")


def test_a_backend_that_is_not_there_is_refused():
    for name in ("no_such_module:Bags", "secateur.runs.backends.network:Bags", "nothing"):
        with pytest.raises(InputError, match=f"there is no backend '{name}'"):
            backends.resolve(name)
