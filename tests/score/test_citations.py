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
        ("It is red [0].", None),  # the title alone
        ("No answer [0]", set()),
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


@given(st.text(alphabet="[]0123456789, No answer", max_size=60), st.integers(0, 12))
def test_any_answer_gives_sentences_that_there_are_or_nothing(answer, count):
    found = read_citations(answer, count)
    assert found is None or all(0 <= number < count for number in found)
    assert found != {0}
