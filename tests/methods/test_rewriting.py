"""Rewrites by a model that answers over HTTP, accepted by what another model measures."""

from __future__ import annotations

import math

import pytest

from chat_server import say, served
from secateur.clients import chat
from secateur.methods import rewriting
from secateur.methods.learning import Document

TEXT = Document("The sand is mauve here.", "mauve", 12, "colour")


def answering(content):
    """A server whose model says `content`, or what that gives for a question."""

    def answer(body, headers):
        text = content(body) if callable(content) else content
        return say({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    return served(answer)


def test_a_keyword_stands_as_a_word():
    assert rewriting.find_keyword("ramens and ramen, too", "ramen") == 11
    assert rewriting.find_keyword("Ramen", "ramen") is None
    assert rewriting.find_keyword("anything", "") is None
    assert rewriting.find_keyword("a C++ book", "C++") == 2


def test_what_the_model_writes_takes_the_place_of_the_text_or_stands_behind_it():
    with answering('"Between violet and pink, the sand is mauve here."') as url:
        writer = chat.open_model(url, "small")
        made = rewriting.propose(writer, TEXT, "stepping stones").document
        assert made == Document("Between violet and pink, the sand is mauve here.", "mauve", 37, "colour")
        behind = rewriting.propose(writer, TEXT, "consequences").document
        assert behind.text == f"{TEXT.text} Between violet and pink, the sand is mauve here."
        assert (behind.start, behind.context) == (TEXT.start, TEXT.context)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "it is empty"),
        ("The sand is of that colour.", "it has lost the keyword"),
        ("Mauve is a colour. The sand is mauve.", "it gives the keyword away before its place"),
        ("Of all mauvish things, of MAUVES, the sand is mauve.", "it gives the keyword away before its place"),
        ("Between violet and pink, the sand is mauve.", "it is too long"),
        ("Red is the sand, mauve here.", ""),
    ],
)
def test_an_answer_that_can_not_be_used_is_refused_and_it_is_said_why(answer, why):
    with answering(answer) as url:
        made = rewriting.propose(
            chat.open_model(url, "small"), TEXT, "paraphrase",
            refuse=lambda document: "it is too long" if document.start > 30 else "",
        )  # fmt: skip
    assert made.refused == why
    assert (made.document is None) == bool(why)


def test_what_a_text_says_of_its_keyword_itself_may_stay():
    text = Document("Haggises are from Scotland, as haggis is.", "haggis", 31)
    with answering("Haggises of the north: haggis.") as url:
        assert rewriting.propose(chat.open_model(url, "small"), text, "paraphrase").refused == ""


@pytest.mark.parametrize(
    ("context", "keyword", "gives"),
    [
        ("reddish sand", "red", True),
        ("a covered credit", "red", False),
        ("New  york's streets", "New York", True),
        ("the new one", "New York", False),
        ("two teachers", "teacher", True),
        ("berries and", "berry", True),
        ("C++ is", "++", True),
    ],
)
def test_a_keyword_is_given_away_by_its_other_forms(context, keyword, gives):
    assert rewriting.gives_away(context, keyword) == gives


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ('"Look," he said, "the sand was mauve."', '"Look," he said, "the sand was mauve."'),
        ("“The sand was mauve.”", "The sand was mauve."),
        ("Text: The sand\n\nwas mauve.\n", "The sand\n\nwas mauve."),
    ],
)
def test_quotations_and_paragraphs_of_an_answer_stay(answer, kept):
    with answering(answer) as url:
        made = rewriting.propose(chat.open_model(url, "small"), TEXT, "paraphrase").document
    assert made.text == kept
    assert made.text[made.start :].startswith("mauve")


@pytest.mark.parametrize(("gain", "accepted"), [(4.0, "third mauve"), (20.0, None)])
def test_a_rewrite_is_accepted_by_its_measured_probability(gain, accepted):
    asked, logs = [], {TEXT.text: -6.0, "first mauve": -7.0, "third mauve": -6.0 + math.log(5)}

    def answer(body):
        asked.append((body["temperature"], body["seed"], body["messages"][0]["content"]))
        return ["first mauve", "no keyword", "third mauve"][len(asked) - 1]

    with answering(answer) as url:
        made, best, refused = rewriting.rewrite(
            chat.open_model(url, "small"), TEXT, lambda document: logs[document.text], gain=gain
        )
    assert (made.text if made else None) == accepted
    assert best == logs["third mauve"]
    assert refused == ["it has lost the keyword"]
    assert [seed for _, seed, _ in asked] == [0, 1, 2]
    assert "'mauve'" in asked[0][2]
    assert TEXT.text in asked[0][2]
