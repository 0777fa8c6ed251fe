"""Terms of texts: stop words, endings, and what is kept whole."""

from __future__ import annotations

import pytest

from secateur.errors import InputError
from secateur.retrieval import words
from secateur.retrieval.words import Words

pytest.importorskip("bm25s")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("what does -s do?", ["-s"]),
        ("-S and --Max-Depth=3", ["-S", "--max-depth", "max", "depth", "3"]),
        ("set max_depth", ["set", "max_depth", "max", "depth"]),
        (
            "maxDepth of C++ or os.path.join()",
            ["maxdepth", "max", "depth", "c++", "os.path.join", "os", "path", "join"],
        ),
        ("IT support, it is", ["it", "support"]),
        ("it is", ["it", "is"]),  # nothing else is there
        ("the user's 東京", ["user", "東", "京"]),
        ("vitamin C.", ["vitamin", "c"]),
        ("", []),
    ],
)
def test_terms_of_a_text(text, wanted, monkeypatch):
    monkeypatch.setattr(words, "_stemmer", lambda _: str)
    assert Words()(text) == wanted


def test_endings_go_by_language():
    pytest.importorskip("Stemmer")
    assert Words()("treats treated treating") == ["treat"] * 3
    assert Words("de")("Die Hunde des Hauses") == Words("de-AT")("Hund Haus")
    assert Words("ja")("running") == ["running"]
    assert Words("de") == Words("de_DE") != Words()


def test_what_is_no_language_is_refused():
    with pytest.raises(InputError, match="language='english!': give the code"):
        Words("english!")


def test_of_which_languages_something_is_known():
    pytest.importorskip("Stemmer")
    assert [words.is_known(code) for code in ("de", "deu", "fi", "ko", "xx", "ja")] == [True] * 4 + [False] * 2
    assert Words("deu")("Die Hunde") == Words("ger")("Hund") == Words("de")("Hund")


def test_without_a_stemmer_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "Stemmer", None)
    words._stemmer.cache_clear()
    with pytest.warns(UserWarning, match="PyStemmer is not installed"):
        assert Words()("treats") == ["treat"], "the commonest endings of English alone"
    words._stemmer.cache_clear()
