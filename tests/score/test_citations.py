"""What an LLM's answer cites, and both filters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.score.citations import read_citations


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("It is red [1]. Or blue [3, 4].", {1, 3, 4}),
        ("It is red [1][2].", {1, 2}),
        ("[0, 2]", {0, 2}),
        ("No answer", set()),
        ("no answer.", set()),
        ("It is red.", None),  # it forgot to cite
        ("It is red [0, 0].", {0}),
        ("No answer, but see [2]", {2}),
        ("It is red [7].", None),  # there is no such sentence
        ("It is red [1, 99].", {1}),
        ("[a] [] [ , ] [-1]", None),
        ("[" + "9" * 10_000 + "]", None),
        ("", None),
    ],
)
def test_what_an_answer_cites(answer, found):
    assert read_citations(answer, 5) == found


@pytest.mark.parametrize(
    ("answer", "plain", "titled"),
    [
        ("It is red [0].", {0}, None),
        ("No answer [0]", {0}, set()),
        ("It is red [0, 1].", {0, 1}, {0, 1}),
    ],
)
def test_a_title_alone_answers_nothing_and_a_first_sentence_may(answer, plain, titled):
    for count in (1, 5) if plain == {0} else (5,):
        assert read_citations(answer, count) == plain
        assert read_citations(answer, count, titled=True) == titled


@given(st.text(alphabet="[]0123456789, No answer", max_size=60), st.integers(0, 12), st.booleans())
def test_any_answer_gives_sentences_that_there_are_or_nothing(answer, count, titled):
    found = read_citations(answer, count, titled=titled)
    assert found is None or all(0 <= number < count for number in found)
    assert not titled or found != {0}
