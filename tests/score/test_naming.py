"""TF-IDF of names beside scikit-learn's."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.score import naming

TEXTS = st.lists(st.lists(st.sampled_from("abcde"), max_size=6), min_size=1, max_size=8)


@settings(deadline=None)  # the first call imports scikit-learn
@given(TEXTS.filter(lambda texts: any(texts)), TEXTS)
def test_it_is_scikit_learns(texts, questions):
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = {term for text in texts for term in text}
    questions = [[term for term in question if term in known] for question in questions]
    theirs = TfidfVectorizer(analyzer=lambda text: text)
    said = theirs.fit_transform(texts)
    np.testing.assert_allclose(
        naming.tfidf(questions, texts), (theirs.transform(questions) @ said.T).todense(), atol=1e-12
    )


def test_a_name_is_like_itself_and_less_so_with_a_word_that_nobody_has():
    names = [["heart", "attack"], ["heart"], ["attack", "dog"]]
    found = naming.tfidf([["heart", "attack"], ["heart", "attack", "zebra"], []], names)
    assert found[0].argmax() == 0
    assert found[0, 0] == 1.0 or abs(found[0, 0] - 1.0) < 1e-12
    assert found[1, 0] < 0.95
    assert not found[2].any()
    assert naming.tfidf([], names).shape == (0, 3)
    assert naming.tfidf([["a"]], []).shape == (1, 0)
