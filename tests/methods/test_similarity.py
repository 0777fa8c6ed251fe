"""Similarity of texts, with an encoder and without."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import DataError, DataWarning, InputError
from secateur.methods import similarity
from secateur.methods.similarity import Matching, Similarity
from secateur.score import naming, relevance

TEXTS = ["the old garden", "a new house", ""]


def embed(texts):
    return np.array([[len(text), text.count("e"), 1.0 / 3] for text in texts])


@pytest.mark.parametrize("digits", [None, 2])
def test_cosine_of_vectors_or_words(digits):
    vectors, words = Similarity(embed, digits=digits), Similarity(None, str.split, digits)
    cosines = relevance.cosine(embed(["old house"])[0], embed(TEXTS))
    lexical = relevance.bm25(["old", "house"], [text.split() for text in TEXTS])
    for found, wanted in (
        (vectors.compare(["old house"], TEXTS)[0], cosines), (vectors.rank("old house", TEXTS), cosines),
        (words.rank("old house", TEXTS), lexical),
        (words.compare(["old house"], TEXTS), naming.tfidf([["old", "house"]], [text.split() for text in TEXTS])),
    ):  # fmt: skip
        assert np.array_equal(found, wanted if digits is None else np.round(wanted, digits))
    for either in (vectors, words):
        assert either.compare([], TEXTS).shape == (0, 3)
        assert either.rank("old", []).shape == (0,)


def ranking(scores):
    return np.argsort(-scores, kind="stable").tolist()


def test_both_rankings_and_that_of_a_retriever_are_joined():
    texts = ["an old house e e e", "house", "nothing"]
    vectors, words = Similarity(embed), Similarity(None, str.split)
    both = Similarity(embed, str.split, matching=Matching(hybrid=True))
    expected = relevance.reciprocal_ranks([vectors.rank("house", texts), words.rank("house", texts)])
    assert np.array_equal(both.rank("house", texts), expected)
    expected = relevance.reciprocal_ranks([vectors.rank("nothing: house", texts), words.rank("house", texts)])
    assert np.array_equal(both.rank("house", texts, instruction="nothing: "), expected)
    prior = Similarity(None, str.split, matching=Matching(prior=(0.1, 900.0, float("nan")), trust=10.0))
    assert ranking(prior.rank("nothing", texts, [0, 1, 2])) == [1, 0, 2]
    assert ranking(prior.rank("nothing", texts)) == [2, 0, 1]  # nobody says which document each is of
    with pytest.raises(InputError, match="prior has 3 scores, and there are 4 documents or more"):
        prior.rank("nothing", texts, [0, 1, 3])


def test_a_shortlist_is_all_that_an_encoder_reads():
    texts = ["no such word in it", "house", "an old house e e e", "house house e", "garden"]
    seen = list[str]()

    def watched(given):
        seen.extend(given)
        return embed(given)

    def rank(words, question="house", **options):
        seen.clear()
        matching = Matching(shortlist=words, **options)
        return Similarity(watched, str.split, matching=matching).rank(question, texts)

    cosines, by_words = Similarity(embed).rank("house", texts), Similarity(None, str.split).rank("house", texts)
    found = rank(4)  # the two best by their words have 1 and 3 words, the third has 6
    best = ranking(by_words)[:2]
    assert sorted(seen) == sorted(["house", *(texts[place] for place in best)])
    assert [found[place] for place in best] == pytest.approx([cosines[place] for place in best])
    assert ranking(found) == sorted(best, key=lambda place: -cosines[place]) + ranking(by_words)[2:]
    assert len(set(found)) == len(texts)
    assert len(rank(1)) == len(texts)
    assert len(seen) == 2
    for words in (0, 100):
        assert np.array_equal(rank(words), cosines)
        assert len(seen) == len(texts) + 1
    for question in ("unheard", "house unheard unseen"):  # the texts lack more than half of it: words don't tell
        assert np.array_equal(rank(1, question), Similarity(embed).rank(question, texts))
    rank(1, "house unheard")
    assert len(seen) == 2
    both = rank(4, hybrid=True)
    assert np.array_equal(both, relevance.reciprocal_ranks([rank(4), by_words]))


def test_a_shortlist_takes_from_all_places_where_few_texts_match():
    seen, texts = list[str](), [f"text {number}" for number in range(300)]
    texts[7] = "house 7"

    def watched(given):
        seen.extend(given)
        return embed(given)

    Similarity(watched, str.split, matching=Matching(shortlist=40)).rank("house", texts)
    numbers = sorted(int(text.split()[1]) for text in seen if " " in text)
    assert len(numbers) == 20
    assert 7 in numbers
    assert max(np.diff([0, *numbers, 300])) < 40


def test_a_corpus_counts_beside_the_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    texts = ["common words here", "rare words here"]
    (tmp_path / "corpus").mkdir()
    page = "<p>common <b>words</b></p>" * 50 + "<p>rare</p>"
    (tmp_path / "corpus" / "a.html").write_text(page)
    (tmp_path / "corpus" / "b.md").write_text("some common words\n\nmore of them")
    (tmp_path / "lines.txt").write_text("common words\n" * 50)
    alone = Similarity(None).rank("common rare", texts)
    assert alone[0] == alone[1]
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.txt").write_text("common words\n" * 50)
    (tmp_path / "both" / "b.md").write_text("rare\n\nother")
    assert similarity.read_frequencies(tmp_path / "both", str.split, "en").total == 52
    for source in ("corpus", "lines.txt"):
        for _ in range(2):  # counted, then from the cache
            found = Similarity(None, matching=Matching(corpus=str(tmp_path / source))).rank("common rare", texts)
            assert found[1] > 2 * found[0]
            similarity._count.cache_clear()
    assert len(list((tmp_path / "cache" / "frequencies").glob("*.json"))) == 3
    with pytest.raises(DataError, match="is not there"):
        Similarity(None, matching=Matching(corpus=str(tmp_path / "none")))


def test_a_language_of_which_nothing_is_known_is_told():
    pytest.importorskip("Stemmer")
    with pytest.warns(DataWarning, match="language=xx: neither stop words nor endings of it are known"):
        Matching(language="xx")
