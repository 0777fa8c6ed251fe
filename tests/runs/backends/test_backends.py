"""What a recipe works on is told by its first annotation, a model by its name, a folder by its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from secateur.data.texts import Corpus
from secateur.errors import InputError
from secateur.runs import backends
from secateur.runs.backends import language, network
from secateur.subjects import Traced, Transformer


def test_a_recipe_says_by_its_first_annotation_what_it_takes():
    def on_networks(subject: Traced, data):
        """Nothing."""

    def on_text(subject: Transformer, data):
        """Nothing."""

    def silent(subject, data):
        """Nothing."""

    assert backends.of_recipe(on_networks) is network
    assert backends.of_recipe(on_text) is backends.of_recipe(silent) is language


def test_copies_of_held_out_texts_are_counted():
    train, held = Corpus(["a", "b", "a"], None, "some"), Corpus(["b", "c", "b", "d"], None, "others")
    assert backends.copies(train, held, "texts").startswith("2 of 4 held-out texts are in the training part, too,")
    assert backends.copies(held, train, "texts").startswith("1 of 3 held-out texts")
    assert backends.copies(Corpus(["x"], None, "x"), held, "texts") == ""


def test_records_call_a_model_by_its_name_or_its_class(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    subject = network.opened(module, inputs="1x2")
    assert [backends.called(one) for one in ("nets.py:build", tmp_path)] == ["nets.py:build", str(tmp_path)]
    assert backends.called(module) == backends.called(subject) == "Sequential"


def test_a_model_says_it_by_its_name(tmp_path):
    assert backends.of_model("nets.py:build") is backends.of_model(torch.nn.Linear(2, 2)) is network
    assert (
        backends.of_model(tmp_path)
        is backends.of_model("owner/model")
        is backends.of_model(tiny.model("bert"))
        is language
    )


def test_a_folder_says_it_by_its_files(tmp_path):
    assert backends.of_folder(tmp_path) is None
    (tmp_path / "cut.json").touch()
    assert backends.of_folder(tmp_path) is network
    (tmp_path / "config.json").touch()
    assert backends.of_folder(tmp_path) is language


def test_a_model_of_another_trade_is_refused_by_name():
    backends.match(network, "net.py:build", "otov3")
    backends.match(language, "some/hub-id", "ziplm")
    backends.match(network, torch.nn.Linear(2, 2), "otov3")
    with pytest.raises(InputError, match=r"ziplm works on language models, and 'net\.py:build' names a function"):
        backends.match(language, "net.py:build", "ziplm")
    with pytest.raises(InputError, match=r"otov3 works on networks, and 'folder' names none: .*net\.py:build"):
        backends.match(network, Path("folder"), "otov3")
