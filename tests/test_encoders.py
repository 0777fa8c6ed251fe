"""Encoders and tokenizers by name, as objects and as functions."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from secateur import encoders
from secateur.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder") / "bert"
    tiny.folder("bert", place, sentence=True)
    return place


def test_an_encoder_by_name_as_a_model_and_as_a_function(folder):
    embed = encoders.encoder(str(folder))
    texts = tiny.sentences(5)
    found = embed(texts)
    assert found.dtype == np.float32
    assert found.shape[0] == 5
    assert np.array_equal(embed([texts[3]])[0].round(5), found[3].round(5))
    assert embed([]).shape[0] == 0
    again = encoders.encoder(str(folder))
    assert again.args[0] is embed.args[0]  # opened once
    assert np.array_equal(encoders.encoder(embed.args[0])(texts), found)
    assert encoders.encoder(len) is len


def test_a_counter_counts_what_a_text_adds(folder):
    count = encoders.counter(str(folder))
    first, second, *_ = tiny.sentences(3)
    assert count([first, second, ""]) == [len(first.split()), len(second.split()), 0]
    assert count([]) == []
    assert encoders.counter(tiny.letters())(["abc", "é"]) == [3, 2]


def test_what_is_no_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="embedder 'no/such/encoder' is no folder here, nor found on the Hub"):
        encoders.encoder("no/such/encoder")
    with pytest.raises(InputError, match="is a folder without one"):
        encoders.tokenizer(str(tmp_path))
    with pytest.raises(InputError, match="not int"):
        encoders.encoder(3)
