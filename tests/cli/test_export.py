from __future__ import annotations

import pytest

from commands import forked


def test_export_writes_another_form(places):
    """Without a word on the standard error, as `places` sees."""
    assert (places / "deci/config.json").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--to packed", "nothing gets smaller without its zeros"),
        ("--to packed --data texts.txt", "--data goes with int8, int4 and packed-int8: packed changes no quality"),
        ("--to gguf", "'gguf' is no form to export to: choose onnx, decilm"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(places, words, error):
    done = forked(places, "export", "small", *words.split())
    assert done.code == 2
    assert done.stderr.startswith(f"secateur: {error}")
    assert done.stderr.count("\n") == 1
